"""Faire passer des lots dans un réseau, de quelque forme qu'ils soient."""

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import evaluating
from ..svd import norm, relative

LABELS = ("labels", "label", "label_ids", "return_loss")
Batch = Tensor | Sequence[Any] | Mapping[str, Any]


def check_batches(loader: Any, name: str = "train_loader", why: str = "") -> Iterable[Batch]:
    """Rend `loader` si c'est de quoi tirer des lots.

    Raises
    ------
    ValueError
        Il manque ; `why` dit à quoi il devait servir.
    TypeError
        Ce n'est pas un itérable de lots : un tenseur, par exemple, se parcourrait image par image.
    """
    if loader is None:
        raise ValueError(f"{name} : reçu None, attendu des lots{why}.")
    if isinstance(loader, Tensor | str | Mapping) or not isinstance(loader, Iterable):
        raise TypeError(f"{name} : reçu {type(loader).__name__}, attendu un DataLoader ou une liste de lots.")
    return loader


def run_batch(model: nn.Module, batch: Batch, name: str = "train_loader", index: int = 0) -> Any:
    """Les sorties du réseau pour un lot.

    Parameters
    ----------
    model : nn.Module
    batch : Tensor, (entrées, …) ou dict
        D'un tuple ou d'une liste, le premier élément, les autres étant des étiquettes ; d'un dictionnaire, les
        arguments que `forward` connaît, sans les étiquettes (``labels``) : un réseau rendrait sa perte, et non ses
        sorties.
    name, index : pour le refus

    Raises
    ------
    TypeError, ValueError
        Lot d'une autre sorte, vide, ou que le réseau refuse : sa propre erreur est la cause.
    """
    inputs = batch
    while isinstance(inputs, Sequence) and not isinstance(inputs, str) and inputs:
        inputs = inputs[0]
    device = next((t.device for t in chain(model.parameters(), model.buffers())), torch.device("cpu"))
    positional, named = [], {}
    if isinstance(inputs, Tensor):
        positional = [inputs.to(device)]
    elif isinstance(inputs, Mapping):
        known = inspect.signature(model.forward).parameters
        free = any(p.kind is p.VAR_KEYWORD for p in known.values())
        named = {
            key: value.to(device) if isinstance(value, Tensor) else value
            for key, value in inputs.items()
            if (free or key in known) and key not in LABELS
        }
    if not positional and not named:
        raise TypeError(
            f"{name} : lot {index} : reçu {type(batch).__name__}, attendu un tenseur, (entrées, étiquettes) ou un "
            "dictionnaire d'arguments du réseau."
        )
    try:
        return model(*positional, **named)
    except Exception as error:
        shapes = [tuple(t.shape) for t in [*positional, *named.values()] if isinstance(t, Tensor)]
        raise ValueError(f"{name} : lot {index} : le réseau refuse des entrées de forme {shapes} : {error}") from error


def run_batches(model: nn.Module, loader: Any, name: str = "train_loader") -> None:
    """Fait passer tous les lots dans le réseau, en mode évaluation et sans gradient ; refuse s'il n'y en a aucun."""
    count = 0
    with torch.no_grad(), evaluating(model):
        for count, batch in enumerate(check_batches(loader, name), start=1):
            run_batch(model, batch, name, count - 1)
    if count == 0:
        raise ValueError(f"{name} : aucun lot, attendu au moins un.")


def first_tensor(output: Any) -> Tensor:
    """Le premier tenseur d'une sortie : elle-même, le premier d'un tuple, d'un dictionnaire, d'une sortie de
    transformers."""
    while not isinstance(output, Tensor):
        if isinstance(output, Mapping) and output:  # sans une perte, qui n'est qu'un nombre
            values = list(output.values())
            output = next((value for value in values if not isinstance(value, Tensor) or value.ndim), values[0])
        elif isinstance(output, Sequence) and not isinstance(output, str) and output:
            output = output[0]
        else:
            raise TypeError(f"model : rend {type(output).__name__}, attendu un tenseur.")
    return output


def output_error(model: nn.Module, other: nn.Module, loader: Any, name: str = "val_loader") -> float:
    """Erreur relative ‖y − ŷ‖/‖y‖ des sorties d'un réseau comprimé, sur tous les lots ensemble.

    Parameters
    ----------
    model, other : nn.Module
        L'original et le comprimé, mis le temps de l'essai en mode évaluation.
    loader : lots

    Returns
    -------
    float
        0 si elles sont égales, l'infini si l'original ne rend que des zéros.
    """
    wrong = total = 0.0
    count = 0
    with torch.no_grad(), evaluating(model), evaluating(other):
        for count, batch in enumerate(check_batches(loader, name), start=1):
            y, found = (first_tensor(run_batch(net, batch, name, count - 1)).double() for net in (model, other))
            wrong, total = math.hypot(wrong, norm(y - found)), math.hypot(total, norm(y))
    if count == 0:
        raise ValueError(f"{name} : aucun lot, attendu au moins un.")
    return relative(wrong, total)
