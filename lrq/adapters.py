"""Section 11.3 : adapter un réseau entier par LoRA, et passer d'un adaptateur à l'autre."""

import copy
import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn

from .layers import LoRALayer, inside, replace_modules
from .layers.lora import ADAPTABLE, adapter_weights, max_rank
from .validation import check_integer, listed

Targets = str | Collection[str] | None


def convert_model_to_lora(
    model: nn.Module,
    target_modules: Targets = None,
    rank: int = 16,
    alpha: float = 1.0,
    create: Callable[..., LoRALayer] = LoRALayer,
    **options: Any,
) -> nn.Module:
    """Copie gelée de `model`, où des couches ont reçu un adaptateur : lui seul s'entraîne.

    Parameters
    ----------
    model : nn.Module
        Laissé intact.
    target_modules : liste de noms, expression rationnelle ou None
        Une liste donne des noms complets ou leurs fins : « query » désigne tout nom qui finit par « .query ». Un texte
        est une expression rationnelle, que le nom complet doit suivre. None : toutes les couches linéaires,
        convolutives ou linéaires comprimées.
    rank : int, au moins 1
        Ramené, couche par couche, au plus grand rang possible ; un avertissement le dit.
    alpha : float
        L'échelle s vaut α, comme dans le cours ; pour les réglages de PEFT, où s = α/r, donnez ``scaling="alpha/r"``.
    create : fonction
        Ce qui fait d'une couche une LoRALayer : le constructeur, ou par exemple :meth:`LoRALayer.from_pissa`.
    **options
        ``dropout``, ``scaling``… : ce que `create` accepte encore.

    Returns
    -------
    nn.Module

    Raises
    ------
    TypeError
        `model` n'est pas un nn.Module, ou des cibles qui ne sont pas des noms.
    ValueError
        Une cible ne désigne aucune couche, `model` a déjà des adaptateurs, ou un argument est impossible.

    Warns
    -----
    UserWarning
        Le rang dépasse celui de certaines couches.
    """
    check_integer(rank, "rank")
    names = target_names(model, target_modules)
    layers = {name: model.get_submodule(name) for name in names}
    ranks = clamp_rank(rank, layers)
    convert = {name: partial(create, rank=ranks[name], alpha=alpha, **options) for name in names}
    return replace_modules(copy.deepcopy(model).requires_grad_(False), convert)


def adaptable_names(model: nn.Module) -> list[str]:
    """Noms des couches qui peuvent recevoir un adaptateur, sans celles qu'une autre contient."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model : reçu {type(model).__name__}, attendu nn.Module.")
    names: list[str] = []
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, ADAPTABLE) and not any(inside(name, above) for above in names):
            names.append(name)
    return names


def target_names(model: nn.Module, targets: Targets) -> list[str]:
    """Les couches que désignent des noms, des fins de noms ou une expression rationnelle ; voir le refus de chacun."""
    names = adaptable_names(model)
    if any(isinstance(module, LoRALayer) for module in model.modules()):
        raise ValueError("model : reçu un réseau déjà adapté ; pour un adaptateur de plus, appelez add_adapter.")
    if not names:
        raise ValueError("model : rien à adapter, attendu au moins une nn.Linear, nn.Conv2d ou couche comprimée.")
    if targets is None:
        found = names
    elif isinstance(targets, str):
        try:
            found = [name for name in names if re.fullmatch(targets, name)]
        except re.error as error:
            raise ValueError(f"target_modules : {targets!r} n'est pas une expression rationnelle ({error}).") from None
        if targets and not found and any(ends_with(name, targets) for name in names):
            raise ValueError(
                f"target_modules : {targets!r} n'est le nom entier d'aucune couche ; essayez [{targets!r}]."
            )
    else:
        if not isinstance(targets, Collection) or not all(isinstance(target, str) for target in targets):
            raise TypeError(f"target_modules : reçu {targets!r}, attendu des noms, une expression rationnelle ou None.")
        for target in targets:
            if not any(ends_with(name, target) for name in names):
                raise ValueError(f"target_modules : {target!r} ne désigne aucune couche ; noms : {listed(names)}.")
        found = [name for name in names if any(ends_with(name, target) for target in targets)]
    if not found:
        raise ValueError(f"target_modules : {targets!r} ne désigne aucune couche ; noms : {listed(names)}.")
    return found


def ends_with(name: str, target: str) -> bool:
    """Vrai si `target` est le nom, ou sa fin après un point."""
    return name == target or name.endswith(f".{target}")


def clamp_rank(rank: int, layers: Mapping[str, nn.Module]) -> dict[str, int]:
    """Le rang de chaque couche, ramené au plus grand possible, avec un avertissement qui nomme les couches."""
    check_integer(rank, "rank")
    most = {name: max_rank(layer) for name, layer in layers.items()}
    if rank > max(most.values()):
        raise ValueError(
            f"rank : reçu {rank}, attendu au plus {max(most.values())}, le plus grand rang de ces couches."
        )
    cut = {name: limit for name, limit in most.items() if limit < rank}
    if cut:
        told = ", ".join(f"{limit} pour {name!r}" for name, limit in cut.items())
        warnings.warn(f"rank : reçu {rank}, ramené à {told}.", stacklevel=3)
    return {name: min(rank, limit) for name, limit in most.items()}


# --- tous les adaptateurs d'un réseau ---------------------------------------------------------------------------------


def lora_layers(model: nn.Module) -> dict[str, LoRALayer]:
    """Les LoRALayer d'un réseau, par nom ; une couche partagée n'y est qu'une fois.

    Parameters
    ----------
    model : nn.Module

    Raises
    ------
    TypeError, ValueError
        `model` n'est pas un nn.Module, ou n'a aucun adaptateur.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model : reçu {type(model).__name__}, attendu nn.Module.")
    found = {name: module for name, module in model.named_modules() if isinstance(module, LoRALayer)}
    if not found:
        raise ValueError("model : aucun adaptateur ; appelez d'abord convert_model_to_lora.")
    return found


def adapter_names(model: nn.Module) -> list[str]:
    """Noms des adaptateurs d'un réseau, dans l'ordre de leur ajout.

    Parameters
    ----------
    model : nn.Module
    """
    return list(dict.fromkeys(name for layer in lora_layers(model).values() for name in layer.adapters))


def add_adapter(model: nn.Module, name: str, rank: int = 16, alpha: float = 1.0, **options: Any) -> None:
    """Ajoute à chaque LoRALayer un adaptateur, inactif et nul.

    Parameters
    ----------
    model : nn.Module
    name : str
    rank : int
        Ramené au plus grand rang de chaque couche, comme par :func:`convert_model_to_lora`.
    alpha, **options
        Ceux de :class:`LoRALayer` : ``dropout``, ``scaling``.

    Raises
    ------
    TypeError, ValueError
        Nom pris ou impossible, argument impossible. Aucune couche n'a changé.
    """
    layers = lora_layers(model)
    ranks = clamp_rank(rank, layers)
    added: list[LoRALayer] = []
    try:
        for key, layer in layers.items():
            layer.add_adapter(name, ranks[key], alpha, **options)
            added.append(layer)
    except (TypeError, ValueError):
        for layer in added:
            layer.delete_adapter(name)
        raise


def set_adapter(model: nn.Module, name: str | Mapping[str, float]) -> None:
    """Choisit l'adaptateur qui compte dans tout le réseau, ou plusieurs avec leurs poids ; eux seuls s'entraînent.

    Parameters
    ----------
    model : nn.Module
    name : str, ou dict nom → poids
        W = W₀ + Σ_k w_k ΔW_k, sans terme croisé. Un adaptateur peut manquer à certaines couches, pas à toutes.

    Raises
    ------
    TypeError, ValueError
        Nom inconnu, poids impossible, couche fusionnée. Rien n'a changé.
    """
    layers, known = lora_layers(model), adapter_names(model)
    weights = adapter_weights(name)
    for each in weights:
        if each not in known:
            raise ValueError(f"name : pas d'adaptateur {each!r} ; noms : {listed(known)}.")
    for layer in layers.values():
        layer.check_weights({each: weight for each, weight in weights.items() if each in layer.adapters})
    for layer in layers.values():
        layer.set_adapter({each: weight for each, weight in weights.items() if each in layer.adapters})


def delete_adapter(model: nn.Module, name: str) -> None:
    """Supprime un adaptateur inactif de tout le réseau.

    Parameters
    ----------
    model : nn.Module
    name : str

    Raises
    ------
    ValueError
        Inconnu, ou actif quelque part. Rien n'a changé.
    """
    holders = [layer for layer in lora_layers(model).values() if name in list(layer.adapters)]
    if not holders:
        raise ValueError(f"name : pas d'adaptateur {name!r} ; noms : {listed(adapter_names(model))}.")
    for layer in sorted(holders, key=lambda layer: name not in layer.active):  # les refus d'abord
        layer.delete_adapter(name)


@contextmanager
def disabled_adapters(model: nn.Module) -> Iterator[None]:
    """Le temps d'un bloc ``with``, le réseau d'origine, sans ses adaptateurs.

    Parameters
    ----------
    model : nn.Module
    """
    with ExitStack() as stack:
        for layer in lora_layers(model).values():
            stack.enter_context(layer.disabled())
        yield


def merge_adapters(model: nn.Module) -> None:
    """Fond les adaptateurs actifs dans les poids de tout le réseau ; une seconde fusion ne change rien et avertit.

    Parameters
    ----------
    model : nn.Module

    Raises
    ------
    TypeError, ValueError
        Une couche refuse la fusion (:meth:`LoRALayer.merge_weights`), ou partage ses poids avec une autre, que la
        fusion changerait aussi ; aucune n'a changé.
    """
    waiting = {name: layer for name, layer in lora_layers(model).items() if not layer.merged}
    holders = Counter(each for module in model.modules() for each in {*module.parameters(False), *module.children()})
    for name, layer in waiting.items():
        if holders[layer.original] > 1 or holders[layer.original._parameters.get("weight")] > 1:
            raise ValueError(f"model : {name!r} partage ses poids avec une couche que la fusion changerait aussi.")
    if not waiting:
        warnings.warn("adaptateurs déjà fusionnés : rien n'a changé.", stacklevel=2)
    done: list[LoRALayer] = []
    for name, layer in waiting.items():
        try:
            layer.merge_weights()
        except (TypeError, ValueError) as error:
            for merged in done:
                merged.unmerge_weights()
            error.add_note(f"Dans la couche {name!r}.")
            raise
        done.append(layer)


def unmerge_adapters(model: nn.Module) -> None:
    """Rend à tout le réseau ses poids d'avant la fusion, au bit près.

    Parameters
    ----------
    model : nn.Module
    """
    merged = [layer for layer in lora_layers(model).values() if layer.merged]
    if not merged:
        warnings.warn("adaptateurs non fusionnés : rien n'a changé.", stacklevel=2)
    for layer in merged:
        layer.unmerge_weights()


def merged_model(model: nn.Module) -> nn.Module:
    """Copie de `model` où chaque LoRALayer est redevenue une couche ordinaire, ses adaptateurs actifs fondus dedans.

    Parameters
    ----------
    model : nn.Module

    Raises
    ------
    TypeError, ValueError
        Réseau sans adaptateur, ou une couche refuse la fusion (:func:`merge_adapters`).
    """
    lora_layers(model)
    merged = copy.deepcopy(model)
    layers = lora_layers(merged)
    if not all(layer.merged for layer in layers.values()):
        merge_adapters(merged)
    shared = {name for name, module in merged.named_modules(remove_duplicate=False) if isinstance(module, LoRALayer)}
    return replace_modules(merged, dict.fromkeys(shared, lambda layer: layer.original))
