"""Remplacer les couches d'un réseau par leur version comprimée, sur une copie."""

import copy
from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor, nn

from ..validation import check_names

READ_WITHOUT_CALLING = (nn.MultiheadAttention, nn.TransformerEncoderLayer)  # leurs poids, lus par un noyau rapide

Convert = Callable[[nn.Linear], nn.Module]


def linear_names(model: nn.Module) -> list[str]:
    """Noms des nn.Linear de `model`, dans l'ordre de ``named_modules`` ; une couche partagée a tous ses noms.

    Un réseau qui est lui-même une nn.Linear porte le nom vide.

    Parameters
    ----------
    model : nn.Module

    Raises
    ------
    TypeError
        `model` n'est pas un nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model : reçu {type(model).__name__}, attendu nn.Module.")
    modules = model.named_modules(remove_duplicate=False)
    return [name for name, module in modules if isinstance(module, nn.Linear)]


def replace_linears(
    model: nn.Module, convert: Convert | Mapping[str, Convert], names: Collection[str] | None = None
) -> nn.Module:
    """Copie de `model` où chaque nn.Linear nommée est remplacée par ``convert(couche)``.

    Parameters
    ----------
    model : nn.Module
        Laissé intact.
    convert : fonction de nn.Linear vers nn.Module, ou dict nom complet → fonction
        Un dictionnaire donne à chaque couche la sienne, et nomme les couches à remplacer.
    names : noms complets, optionnel
        Toutes les nn.Linear par défaut. D'une couche partagée, n'en nommer qu'un rompt le partage. Laisser de côté
        celles d'une nn.MultiheadAttention ou d'une nn.TransformerEncoderLayer : PyTorch en lit les poids sans les
        appeler.

    Returns
    -------
    nn.Module

    Raises
    ------
    TypeError
        `model` n'est pas un nn.Module.
    ValueError
        Un nom ne désigne aucune nn.Linear du réseau, ou `names` accompagne un dictionnaire.
    """
    if isinstance(convert, Mapping):
        if names is not None:
            raise ValueError("names : reçu des noms en plus d'un dictionnaire, qui nomme déjà ses couches.")
        names = list(convert)
    present = linear_names(model)
    check_names(() if names is None else names, present, "une nn.Linear")
    chosen = present if names is None else names
    return replace_modules(
        copy.deepcopy(model), {name: convert[name] if isinstance(convert, Mapping) else convert for name in chosen}
    )


def replace_modules(model: nn.Module, convert: Mapping[str, Callable[[Any], nn.Module]]) -> nn.Module:
    """Remplace sur place chaque module nommé par ``convert[nom](module)`` ; rend le réseau.

    Tout est converti avant que rien ne soit remplacé. Un module partagé n'est converti qu'une fois, et demeure partagé.
    """
    modules = {name: model.get_submodule(name) for name in convert}
    converted: dict[nn.Module, nn.Module] = {}
    for name, module in modules.items():
        if module not in converted:
            new = convert[name](module)
            if not isinstance(new, nn.Module):
                raise TypeError(f"convert : rend {type(new).__name__} pour {name!r}, attendu un nn.Module.")
            converted[module] = new.train(module.training)
    for name, module in modules.items():
        if module is model:
            return converted[module]
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, converted[module])
    return model


def meta_copy(model: nn.Module) -> nn.Module:
    """Copie de `model` sans ses nombres : les formes et les types, sur l'appareil ``meta``, qui n'alloue rien."""

    def blank(t: Tensor) -> Tensor:
        return nn.Parameter(t.to("meta"), t.requires_grad) if isinstance(t, nn.Parameter) else t.to("meta")

    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(t): blank(t) for t in tensors})


def inside(name: str, above: str) -> bool:
    """Vrai si le module `name` est `above`, ou l'un de ses descendants."""
    return name == above or above == "" or name.startswith(above + ".")
