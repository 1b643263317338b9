"""Section 11.3 : un adaptateur dans les fichiers de PEFT, `adapter_config.json` et `adapter_model.safetensors`.

La bibliothèque PEFT lit ce qui est écrit ici, et l'inverse. Jamais de `pickle` : un adaptateur en ``.bin`` est refusé.
"""

import json
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .adapters import adaptable_names, adapter_names, lora_layers, set_adapter
from .layers import LoRAAdapter, LoRALayer, inside, replace_modules
from .layers.lora import blocks_shape, check_adapter_name, dense_weight
from .storage import read_safetensors, write_whole
from .validation import check_dropout, check_finite_number, check_integer, is_finite, listed

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
FACTORS = ("lora_A", "lora_B")

# Les réglages de PEFT qui ne changent rien à W₀ + s B A, ou que l'on sait lire. Tout autre réglage allumé est refusé.
READ = {
    "alpha_pattern",
    "bias",
    "init_lora_weights",
    "lora_alpha",
    "lora_dropout",
    "peft_type",
    "r",
    "rank_pattern",
    "use_rslora",
}
HARMLESS = {
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "target_modules",
    "task_type",
}
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")  # « pissa », par exemple, change aussi la base


def save_adapter(model: nn.Module, folder: str | os.PathLike[str], name: str | None = None) -> None:
    """Écrit un adaptateur seul, au format de PEFT, qui le charge sur le réseau d'origine et calcule la même chose.

    Un adaptateur de :meth:`LoRALayer.from_pissa` est écrit par rapport aux poids d'avant, au rang 2r : B A − B₀ A₀.

    Parameters
    ----------
    model : nn.Module
        Adapté par :func:`convert_model_to_lora`.
    folder : chemin
        Créé au besoin ; les deux fichiers y sont remplacés ensemble.
    name : str, optionnel
        L'adaptateur actif par défaut.

    Raises
    ------
    TypeError, ValueError
        Réseau sans adaptateur, nom inconnu, plusieurs adaptateurs actifs, ou nombres NaN ou infinis. Rien n'est écrit.
    OSError
        Disque plein, droits insuffisants.

    Warns
    -----
    UserWarning
        Une convolution a une dilatation ou un remplissage que PEFT n'applique pas à A : lui calculerait autre chose.
    """
    from safetensors.torch import save

    layers = lora_layers(model)
    if name is None:
        active = list(dict.fromkeys(each for layer in layers.values() for each in layer.active))
        if len(active) != 1:
            known = listed(adapter_names(model))
            raise ValueError(
                f"name : {len(active)} adaptateurs actifs, attendu un seul ; donnez son nom, parmi {known}."
            )
        name = active[0]
    named = dict(model.named_modules(remove_duplicate=False))  # une couche partagée y a tous ses noms
    adapters = {
        key: layer.adapter(name)
        for key, layer in named.items()
        if isinstance(layer, LoRALayer) and name in layer.adapters
    }
    if not adapters:
        raise ValueError(f"name : pas d'adaptateur {name!r} ; noms : {listed(adapter_names(model))}.")
    tensors: dict[str, Tensor] = {}
    for key, adapter in adapters.items():
        A, B = whole_factors(adapter)
        for factor, t in zip(FACTORS, (spread(A, len(A) // B.shape[1]), B), strict=True):
            if not torch.isfinite(t).all():
                raise ValueError(f"{key or 'la couche'} : NaN ou infini dans {factor}, attendu des nombres finis.")
            tensors[tensor_name(key, factor)] = t.detach().cpu().clone(memory_format=torch.contiguous_format)
    for key in adapters:
        forgotten = forgets(named[key].original)
        if forgotten:
            warnings.warn(f"{key} : PEFT oublie {forgotten} ; seul lrq relira bien cet adaptateur.", stacklevel=2)
    config = describe(adapters, tensors) | {"target_modules": targets(adapters, named)}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    write_whole({folder / WEIGHTS: save(tensors, {"format": "pt"}), folder / CONFIG: written.encode()})


def load_adapter(model: nn.Module, folder: str | os.PathLike[str], name: str = "default") -> nn.Module:
    """Charge sur place un adaptateur écrit par PEFT ou par :func:`save_adapter`, et l'active.

    Parameters
    ----------
    model : nn.Module
        Adapté ou non : les couches que nomme le fichier deviennent au besoin des LoRALayer, et sont gelées. Un
        adaptateur du même nom est remplacé.
    folder : chemin
        Le dossier des deux fichiers.
    name : str

    Returns
    -------
    nn.Module
        `model`, ou la LoRALayer qui le remplace s'il n'est qu'une couche.

    Raises
    ------
    FileNotFoundError
        L'un des deux fichiers manque.
    TypeError, ValueError
        Fichier tronqué ; réglage de PEFT inconnu ici (DoRA, biais entraînés…) ; tenseur sans couche, sans son autre
        facteur, d'une autre forme, NaN ou infini ; réseau fusionné. Le réseau n'a pas changé.
    """
    folder, adaptable = Path(folder), adaptable_names(model)
    config = read_config(folder)
    tensors, _ = read_safetensors(folder / WEIGHTS)
    modules = model.named_modules(remove_duplicate=False)
    present = {key: module for key, module in modules if isinstance(module, LoRALayer)}
    if any(layer.merged for layer in present.values()):
        raise ValueError("model : ses adaptateurs sont fusionnés ; appelez d'abord unmerge_adapters.")
    plain = [key for key in adaptable if not any(inside(key, above) for above in present)]
    bases = {key: layer.original for key, layer in present.items()} | {key: model.get_submodule(key) for key in plain}
    adapters = read_adapters(tensors, bases, config, str(folder / WEIGHTS))
    check_adapter_name(name)
    model = replace_modules(model, {key: LoRALayer.around for key in adapters if key in plain})
    for layer in present.values():
        layer.discard_adapter(name)
    for key, adapter in adapters.items():
        holder: Any = model.get_submodule(key)
        holder.original.requires_grad_(False)
        if name not in holder.adapters:  # une couche partagée, sous un second nom
            holder.insert_adapter(name, adapter)
    set_adapter(model, name)
    return model


def tensor_name(key: str, factor: str) -> str:
    """Le nom que PEFT donne à un facteur ; `key` est vide si le réseau n'est qu'une couche."""
    return f"{PREFIX}{key}{'.' if key else ''}{factor}.weight"


def whole_factors(adapter: LoRAAdapter) -> tuple[Tensor, Tensor]:
    """A et B par rapport aux poids d'origine : ce que PiSSA a retiré de la base y revient, de signe opposé."""
    A, B = adapter.factors()
    if adapter.A_0 is None or adapter.B_0 is None:
        return A, B
    (A, B), (A_0, B_0) = adapter.blocks(), LoRAAdapter(adapter.A_0, adapter.B_0, 1.0).blocks()
    both = torch.cat([A, A_0], 1).flatten(0, 1), torch.cat([B, -B_0], 2).flatten(0, 1)  # (g·2r, n), (out, 2r)
    return both[0].unflatten(1, adapter.A.shape[1:]), both[1].unflatten(1, (-1, *adapter.B.shape[2:]))


def spread(A: Tensor, groups: int) -> Tensor:
    """A d'une convolution par groupes, comme PEFT le range : sur tous les canaux, nul hors de son groupe."""
    if groups == 1:
        return A
    blocks, own = A.unflatten(0, (groups, -1)), torch.arange(groups)  # (g, r, in/g, kh, kw)
    whole = A.new_zeros(groups, blocks.shape[1], groups, *A.shape[1:])
    whole[own, :, own] = blocks
    return whole.flatten(2, 3).flatten(0, 1)  # (g·r, in, kh, kw)


def gather(A: Tensor, groups: int) -> Tensor | None:
    """L'inverse de :func:`spread`, ou None si A mélange les groupes."""
    if groups == 1:
        return A
    own = torch.arange(groups)
    kept = A.unflatten(1, (groups, -1)).unflatten(0, (groups, -1))[own, :, own].flatten(0, 1)  # (g·r, in/g, kh, kw)
    return kept if torch.equal(spread(kept, groups), A) else None


def forgets(layer: nn.Module) -> str:
    """Ce que PEFT n'applique pas à A, bien que la convolution l'ait."""
    if not isinstance(layer, nn.Conv2d):
        return ""
    options = {"dilation": (layer.dilation, (1, 1)), "padding_mode": (layer.padding_mode, "zeros")}
    return ", ".join(f"{name}={value!r}" for name, (value, plain) in options.items() if value != plain)


def describe(adapters: Mapping[str, LoRAAdapter], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """La configuration de PEFT. Il divise lora_alpha par le rang : on lui donne s r, quelle que soit notre échelle."""
    ranks = {key: len(tensors[tensor_name(key, "lora_A")]) for key in adapters}
    alphas = {key: neat(adapter.scale * ranks[key]) for key, adapter in adapters.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {f"^{re.escape(key)}": value for key, value in ranks.items() if value != rank},
        "alpha_pattern": {f"^{re.escape(key)}": value for key, value in alphas.items() if value != alpha},
        "use_rslora": False,
        "lora_dropout": max(adapter.dropout for adapter in adapters.values()),
        "bias": "none",
        "inference_mode": True,
        "task_type": None,
    }


def targets(adapters: Collection[str], modules: Collection[str]) -> list[str] | str:
    """Les noms, ou leur expression rationnelle si PEFT, qui les lit comme des fins de noms, en trouvait d'autres."""
    others = {name for name in modules if not any(inside(name, key) for key in adapters)}
    if any(other.endswith(f".{key}") for other in others for key in adapters):
        return "|".join(re.escape(key) for key in sorted(adapters))
    return sorted(adapters)


def neat(value: float) -> float:
    """Un entier si le nombre en est un : PEFT les préfère."""
    return int(value) if value.is_integer() else value


def read_config(folder: Path) -> dict[str, Any]:
    """La configuration, vérifiée ; ce que lrq ne sait pas rejouer est refusé, plutôt qu'oublié."""
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{path} : fichier introuvable.")
    try:
        config = dict(json.loads(path.read_text(encoding="utf-8")).items())
    except (ValueError, AttributeError):
        raise ValueError(f"{path} : attendu un objet JSON, comme PEFT l'écrit.") from None
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{path} : peft_type : reçu {config.get('peft_type')!r}, attendu 'LORA'.")
    if config.get("bias", "none") != "none":
        raise ValueError(f"{path} : bias : reçu {config['bias']!r}, attendu 'none' ; lrq n'entraîne pas les biais.")
    if config.get("init_lora_weights", True) not in PLAIN_STARTS:
        start = config["init_lora_weights"]
        raise ValueError(
            f"{path} : init_lora_weights : reçu {start!r}, qui change aussi les poids d'origine ; convertissez d'abord "
            "l'adaptateur en LoRA ordinaire avec PEFT."
        )
    for key, value in config.items():
        if value and key not in READ | HARMLESS:
            raise ValueError(f"{path} : {key} : reçu {value!r}, un réglage de PEFT que lrq ne sait pas rejouer.")
    for key in ("rank_pattern", "alpha_pattern"):
        config[key] = config.get(key) or {}
        try:
            for motif in config[key].keys():  # noqa: SIM118 — une liste, qui n'a pas de clés, est refusée
                re.compile(motif)
        except (AttributeError, re.error):
            raise ValueError(f"{path} : {key} : reçu {config[key]!r}, attendu motif → valeur.") from None
    check_integer(config.get("r"), f"{path} : r")
    config["lora_alpha"] = check_finite_number(config.get("lora_alpha"), f"{path} : lora_alpha")
    config["lora_dropout"] = check_dropout(config.get("lora_dropout", 0.0), f"{path} : lora_dropout")
    return config


def pattern_value(config: dict[str, Any], pattern: str, key: str, default: Any) -> Any:
    """Le réglage d'une couche : celui du premier motif qui la désigne, comme dans PEFT, ou celui de toutes."""
    found = (value for motif, value in config[pattern].items() if re.match(rf"(.*\.)?({motif})$", key))
    return next(found, default)


def read_adapters(
    tensors: Mapping[str, Tensor], bases: Mapping[str, nn.Module], config: dict[str, Any], path: str
) -> dict[str, LoRAAdapter]:
    """Les adaptateurs d'un fichier, par couche, après avoir vérifié que chacun va à la sienne."""
    factors: dict[str, dict[str, Tensor]] = {}
    for tensor, value in tensors.items():
        match = re.fullmatch(rf"{re.escape(PREFIX)}(?:(.+)\.)?(lora_[AB])\.weight", tensor)
        key = (match[1] or "") if match else ""
        if match is None or key not in bases:
            raise ValueError(f"{path} : {tensor} ne désigne aucune couche ; couches du réseau : {listed(bases)}.")
        W = dense_weight(bases[key])
        if not value.is_floating_point() or not is_finite(value.to(W.dtype)):
            raise ValueError(f"{path} : {tensor} : attendu des nombres réels, ni NaN ni infinis en {W.dtype}.")
        factors.setdefault(key, {})[match[2]] = value.to(W)
    if not factors:
        raise ValueError(f"{path} : aucun adaptateur dans ce fichier.")
    adapters = {}
    for key, pair in factors.items():
        W, groups = dense_weight(bases[key]), blocks_shape(bases[key])[0]
        rank = check_integer(pattern_value(config, "rank_pattern", key, config["r"]), f"{path} : rang de {key!r}")
        alpha = check_finite_number(
            pattern_value(config, "alpha_pattern", key, config["lora_alpha"]), f"{path} : alpha de {key!r}"
        )
        ones = (1,) * (W.ndim - 2)  # une convolution 1×1, ou rien
        expected = {"lora_A": (rank, groups * W.shape[1], *W.shape[2:]), "lora_B": (len(W), rank // groups, *ones)}
        for factor, shape in expected.items():
            if factor not in pair:
                raise ValueError(f"{path} : il y manque {tensor_name(key, factor)}, {shape}.")
            if tuple(pair[factor].shape) != shape or rank % groups:
                found = tuple(pair[factor].shape)
                raise ValueError(f"{path} : {tensor_name(key, factor)} : reçu la forme {found}, attendu {shape}.")
        A, B = gather(pair["lora_A"], groups), pair["lora_B"]
        if A is None:
            raise ValueError(f"{path} : {tensor_name(key, 'lora_A')} : mélange les {groups} groupes de la convolution.")
        if "peft_version" in config and forgets(bases[key]):
            raise ValueError(f"{path} : {key} : PEFT oublie {forgets(bases[key])}, que cette convolution a.")
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        adapters[key] = LoRAAdapter(A, B, scale, config["lora_dropout"])
    return adapters
