"""Remplacer les couches d'un réseau par leur version comprimée, sur une copie."""

import copy
from collections.abc import Callable, Collection

from torch import nn


def linear_names(model: nn.Module) -> list[str]:
    """Noms des nn.Linear de `model`, dans l'ordre de ``named_modules``."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def replace_linears(
    model: nn.Module, convert: Callable[[nn.Linear], nn.Module], names: Collection[str] | None = None
) -> nn.Module:
    """Copie de `model` où chaque nn.Linear nommée est remplacée par ``convert(couche)``.

    Parameters
    ----------
    model : nn.Module
        Laissé intact.
    convert : fonction de nn.Linear vers nn.Module
    names : noms complets, optionnel
        Toutes les nn.Linear par défaut.

    Returns
    -------
    nn.Module

    Raises
    ------
    ValueError
        Un nom ne désigne aucune nn.Linear du réseau.
    """
    if isinstance(model, nn.Linear):
        return convert(model)
    present = linear_names(model)
    unknown = sorted(set(names or ()) - set(present))
    if unknown:
        raise ValueError(f"names : {unknown[0]!r} n'est pas une nn.Linear du réseau, qui a : {', '.join(present)}.")
    model = copy.deepcopy(model)
    for name in present if names is None else names:
        parent, _, child = name.rpartition(".")
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        setattr(model.get_submodule(parent), child, convert(layer))
    return model
