"""Garder un réseau, comprimé ou non, dans un fichier safetensors, et le retrouver au bit près.

Le fichier ne contient que des nombres : jamais de pickle, donc jamais de code. Une empreinte y tient lieu de sceau. La
disposition des codes (forme, bits, échelles) y est écrite : des octets seuls ne la disent pas.
"""

import contextlib
import hashlib
import inspect
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import layers, quantizers
from .layers import (
    READ_WITHOUT_CALLING,
    ActivationQuantizer,
    CompressedLayer,
    PackedTensor,
    inside,
    meta_copy,
    replace_modules,
)
from .quantizers import Granularity, UniformQuantizer

Metadata = dict[str, str]
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Ce qu'une couche a en commun avec celle qu'elle remplace
SIZES = [
    *("in_features", "out_features", "num_embeddings", "embedding_dim", "in_channels", "out_channels"),
    *("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"),
]


def read_safetensors(path: Path, sha256: str | None = None) -> tuple[dict[str, Tensor], Metadata]:
    """Lit un fichier safetensors et ses métadonnées, après avoir vérifié l'empreinte du fichier si elle est donnée.

    Parameters
    ----------
    path : Path
    sha256 : str, optionnel

    Returns
    -------
    dict nom → Tensor, dict de textes

    Raises
    ------
    FileNotFoundError
        Le fichier n'existe pas.
    ValueError
        L'empreinte diffère, ou le fichier est tronqué ou n'est pas un safetensors.
    """
    with opened(path, sha256) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


@contextlib.contextmanager
def opened(path: Path, sha256: str | None = None) -> Iterator[Any]:
    """Un fichier safetensors dont on lit les tenseurs un à un ; mêmes refus que :func:`read_safetensors`."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"{path} : fichier introuvable.")
    if sha256 is not None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            raise ValueError(f"{path} : empreinte sha256 {found}, attendu {sha256} ; ce n'est pas le fichier public.")
    try:
        with safe_open(path, framework="pt") as tensors:
            yield tensors
    except SafetensorError as error:
        raise ValueError(f"{path} : fichier tronqué ou qui n'est pas un safetensors ({error}).") from error


def save_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Écrit les paramètres et les tampons d'un réseau : codes serrés, échelles et biais tels qu'ils sont en mémoire.

    Le fichier n'apparaît que complet : si l'écriture échoue, l'ancien demeure. Un tenseur partagé n'est écrit qu'une
    fois.

    Parameters
    ----------
    model : nn.Module
    path : chemin
        Remplacé s'il existe.

    Raises
    ------
    TypeError
        `model` n'est pas un nn.Module, ou son ``state_dict`` contient autre chose que des tenseurs denses.
    OSError
        Dossier absent, disque plein, droits insuffisants.
    """
    path = Path(path)
    state = check_model(model).state_dict()
    for name, t in state.items():
        if not isinstance(t, Tensor) or t.layout != torch.strided:
            kind = t.layout if isinstance(t, Tensor) else type(t).__name__
            raise TypeError(f"model : {name} est de sorte {kind}, attendu des tenseurs denses, seuls rangés.")
    aliases = shared(state)
    kept = {name: t.detach().cpu() for name, t in state.items() if name not in aliases}
    tensors = {name: t.clone(memory_format=torch.contiguous_format) for name, t in kept.items()}  # plus de vues
    write_whole({path: sealed(tensors, {"alias": aliases, "codes": layouts(model), "layers": recipes(model)})})


def sealed(tensors: dict[str, Tensor], description: Mapping[str, Any]) -> bytes:
    """Un fichier safetensors : des tenseurs, la description de ce qu'ils sont, et le sceau des deux."""
    from safetensors.torch import save

    described = json.dumps(description, ensure_ascii=False)
    return save(tensors, {"lrq": described + digest(tensors, described)})  # une seule clé : leur ordre varierait


def write_whole(contents: Mapping[Path, bytes]) -> None:
    """Écrit des fichiers à côté de leur place, puis les y met : les anciens demeurent tant que tout n'est pas écrit."""
    for path in contents:
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path.parent} : dossier introuvable.")
    waiting = {path: path.with_name(f".{path.name}.{secrets.token_hex(4)}") for path in contents}
    try:
        for path, whole in waiting.items():
            with whole.open("xb") as file:
                file.write(contents[path])
        for path, whole in waiting.items():
            os.replace(whole, path)
    except BaseException as error:
        for whole in waiting.values():
            whole.unlink(missing_ok=True)
        error.add_note(f"Rien n'a été écrit dans {', '.join(map(str, contents))} ; un fichier qui y était demeure.")
        raise


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Charge dans un réseau ce que :func:`save_weights` a écrit. S'il est refusé, le réseau n'a pas changé.

    Parameters
    ----------
    model : nn.Module
        De la même structure ; une couche pas encore quantifiée prend les codes du fichier, s'ils ont ses bits, ses
        formes et ses échelles.
    path : chemin

    Returns
    -------
    nn.Module
        `model`.

    Raises
    ------
    TypeError
        `model` n'est pas un nn.Module.
    FileNotFoundError
        Le fichier n'existe pas.
    ValueError
        Fichier tronqué ou modifié ; tenseur absent, en trop, d'une autre forme ou d'un autre dtype ; codes rangés
        autrement.
    """
    path = Path(path)
    check_model(model)
    tensors, recorded = read_sealed(path)
    check_fits(path, meta_copy(model), tensors, recorded["codes"])
    for name, source in shared(model.state_dict()).items():
        if name in tensors and tensors[name] is not tensors[source] and not torch.equal(tensors[name], tensors[source]):
            raise ValueError(f"{path} : {name} et {source} diffèrent, mais le réseau n'en fait qu'un tenseur.")
    model.load_state_dict(tensors)
    return model


def load_compressed(model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Refait un réseau comprimé depuis son fichier ; les poids de l'original n'y servent pas.

    Parameters
    ----------
    model : nn.Module
        Un réseau de l'architecture *originale*, laissé intact ; ses poids peuvent être quelconques, ou sur l'appareil
        ``meta``, où ne doivent pas être les tampons que les fichiers ne gardent pas (les positions de BERT).
    path : chemin
        Écrit par :func:`save_weights`, ou par ``python -m lrq compress``.

    Returns
    -------
    nn.Module
        Une copie dont les couches sont celles du fichier, sur l'appareil de `model`, en mode évaluation.

    Raises
    ------
    TypeError, FileNotFoundError, ValueError
        Comme :func:`load_weights` ; ou une couche du fichier n'existe pas dans le réseau, ou n'y est pas de la même
        sorte.
    """
    path, blank = Path(path), meta_copy(check_model(model))
    tensors, recorded = read_sealed(path)
    new = {name: rebuild(recipe, f"{path} : {name}") for name, recipe in recorded["layers"].items()}
    present = dict(blank.named_modules(remove_duplicate=False))
    for name, layer in new.items():
        check_replaces(path, name, present, layer)
    blank = replace_modules(blank, {name: partial(other, layer) for name, layer in new.items()})
    values, wanted = dict(model.named_buffers()), blank.state_dict()
    # un tampon que l'architecture ne garde plus, comme les position_ids de BERT
    tensors = {name: t for name, t in tensors.items() if name in wanted or name not in values}
    check_fits(path, blank, tensors, recorded["codes"])
    device = next((t.device for t in [*model.parameters(), *values.values()] if not t.is_meta), torch.device("cpu"))
    own = {id(t): t.to(device, copy=True) for t in tensors.values()}  # ni le fichier, ni deux fois ce qui est partagé
    for name, _ in blank.named_parameters(remove_duplicate=False):
        own[id(tensors[name])] = nn.Parameter(own[id(tensors[name])])
    blank.load_state_dict({name: own[id(t)] for name, t in tensors.items()}, assign=True)
    for name, buffer in list(blank.named_buffers()):
        if buffer.is_meta:  # absent des fichiers : recalculé par le constructeur, ou vide
            parent, _, child = name.rpartition(".")
            kept = values.get(name)
            if kept is None or kept.is_meta:
                if buffer.numel():
                    raise ValueError(f"model : {name} n'est dans aucun fichier, et n'a pas de valeur ici non plus.")
                kept = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
            setattr(blank.get_submodule(parent), child, kept.clone())
    return blank.eval()


def other(layer: nn.Module, old: nn.Module) -> nn.Module:
    """Ce par quoi remplacer une couche, quelle qu'elle soit."""
    return layer


def read_sealed(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Les tenseurs d'un fichier, noms partagés compris, et leur description ; refuse un sceau qui ne va pas."""
    tensors, metadata = read_safetensors(path)
    described, seal = metadata.get("lrq", "")[:-64], metadata.get("lrq", "")[-64:]
    if seal != digest(tensors, described):
        raise ValueError(
            f"{path} : le contenu ne correspond pas à son empreinte ; il n'est pas de save_weights, ou a été modifié."
        )
    try:
        recorded = json.loads(described)
        tensors |= {name: tensors[source] for name, source in recorded["alias"].items()}
        return tensors, {"codes": dict(recorded["codes"]), "layers": dict(recorded.get("layers", {}))}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} : description illisible ({error!r}).") from error


def check_fits(path: Path, blank: nn.Module, tensors: dict[str, Tensor], found: Mapping[str, str]) -> None:
    """Exige que des tenseurs soient ceux qu'attend un réseau, vide, et ses codes rangés comme il le veut."""
    with contextlib.suppress(RuntimeError):  # ce qui ne va pas se dit plus bas, en français
        blank.load_state_dict({name: t.to("meta") for name, t in tensors.items()}, strict=False)
    for name, layout in layouts(blank).items():
        if found.get(name, layout) != layout:
            raise ValueError(f"{path} : {name} : reçu des codes rangés {found[name]}, attendu {layout}.")
    compare(str(path), tensors, blank.state_dict())


def check_replaces(path: Path, name: str, present: Mapping[str, nn.Module], layer: nn.Module) -> None:
    """Exige qu'une couche du fichier ait sa place dans le réseau, qui a les modules `present`."""
    if name not in present:
        raise ValueError(f"{path} : la couche {name!r} n'existe pas dans le réseau.")
    old = present[name]
    kinds = {"Embedding": nn.Embedding, "Conv2d": nn.Conv2d}
    expected = next((kind for word, kind in kinds.items() if word in type(layer).__name__), nn.Linear)
    if not isinstance(old, expected):
        raise ValueError(
            f"{path} : {name} : reçu {type(layer).__name__}, qui remplace {expected.__name__}, mais le réseau y a "
            f"{type(old).__name__}."
        )
    for size in SIZES:
        found = getattr(layer, size, None)
        if getattr(old, size, found) != found:
            raise ValueError(f"{path} : {name} : reçu {size} = {found}, attendu {getattr(old, size)}.")
    for above, module in present.items():
        if isinstance(module, READ_WITHOUT_CALLING) and inside(name, above):
            raise ValueError(f"{path} : {name} : {type(module).__name__} en lit les poids sans l'appeler.")


def shared(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Les tenseurs qui en sont un autre, sous un second nom : ce nom → le premier."""
    first: dict[tuple[object, ...], str] = {}
    aliases = {}
    for name, t in state.items():
        place = (t.untyped_storage().data_ptr(), t.storage_offset(), t.dtype, t.shape, t.stride())
        if t.numel() and place in first:
            aliases[name] = first[place]
        else:
            first[place] = name
    return aliases


def digest(tensors: Mapping[str, Tensor], described: str) -> str:
    """Empreinte d'une description et de tenseurs : noms, types, formes, octets, dans l'ordre des noms."""
    seal = hashlib.sha256(described.encode())
    for name, t in sorted(tensors.items()):
        seal.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        seal.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return seal.hexdigest()


def layouts(model: nn.Module) -> dict[str, str]:
    """Comment chaque tenseur quantifié range ses codes."""
    modules = model.named_modules(remove_duplicate=False)
    return {name: module.layout() for name, module in modules if isinstance(module, PackedTensor)}


def recipes(model: nn.Module) -> dict[str, Any]:
    """De quoi refaire chaque couche comprimée, sans ses nombres ; celles qu'une autre contient viennent avec elle."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, CompressedLayer) and not any(inside(name, above) for above in found):
            found[name] = describe(module)
    return found


def describe(value: Any) -> Any:
    """Un argument de constructeur, en JSON : nombres et textes tels quels, objets par leur recette."""
    if isinstance(value, torch.dtype):
        return {"class": "dtype", "arguments": {"name": str(value).removeprefix("torch.")}}
    if isinstance(value, Granularity):
        return {"class": type(value).__name__, "arguments": dict(vars(value))}
    if isinstance(value, CompressedLayer | ActivationQuantizer | UniformQuantizer):
        arguments = {name: describe(argument) for name, argument in value.recipe().items()}
        return {"class": type(value).__name__, "arguments": arguments}
    return [describe(item) for item in value] if isinstance(value, list | tuple) else value


def rebuild(recipe: Any, where: str) -> nn.Module:
    """La couche que décrit une recette, sur l'appareil ``meta`` ; `where` la nomme dans un refus."""
    try:
        layer = build(recipe)
        if isinstance(layer, CompressedLayer):
            return layer
    except (AttributeError, KeyError, RecursionError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{where} : recette que cette version de lrq ne sait pas suivre ({error}).") from error
    raise ValueError(f"{where} : recette d'autre chose qu'une couche comprimée.")


def build(described: Any) -> Any:
    """L'inverse de :func:`describe`. Seules les classes de lrq peuvent être nommées."""
    if isinstance(described, list):
        return [build(item) for item in described]
    if not isinstance(described, dict):
        return described
    kind, arguments = described["class"], {name: build(item) for name, item in described["arguments"].items()}
    if kind == "dtype":
        return {str(dtype): dtype for dtype in DTYPES}[f"torch.{arguments['name']}"]
    known = {cls.__name__: cls for cls in [*vars(layers).values(), *vars(quantizers).values()] if isinstance(cls, type)}
    if not issubclass(known.get(kind, object), CompressedLayer | ActivationQuantizer | UniformQuantizer | Granularity):
        raise ValueError(f"classe {kind!r} inconnue")
    place = {"device": "meta"} if "device" in inspect.signature(known[kind]).parameters else {}
    return known[kind](**arguments, **place)


def compare(path: str, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Exige les mêmes noms, les mêmes formes et les mêmes types."""
    for name, t in expected.items():
        if name not in found:
            raise ValueError(f"{path} : il y manque {name}, {tuple(t.shape)}.")
        if found[name].shape != t.shape:
            raise ValueError(f"{path} : {name} : reçu la forme {tuple(found[name].shape)}, attendu {tuple(t.shape)}.")
        if found[name].dtype != t.dtype:
            raise ValueError(f"{path} : {name} : reçu des éléments {found[name].dtype}, attendu {t.dtype}.")
    extra = sorted(found.keys() - expected.keys())
    if extra:
        raise ValueError(f"{path} : {extra[0]} n'existe pas dans le réseau.")


def check_model(model: object) -> nn.Module:
    """Rend `model` si c'est un nn.Module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model : reçu {type(model).__name__}, attendu nn.Module.")
    return model
