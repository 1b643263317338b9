"""Vérification des arguments : chaque refus nomme l'argument, la valeur reçue et ce qui était attendu."""

import math
import operator
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)

LAST_SEED = 2**64 - 1  # la dernière que prenne un torch.Generator
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_matrix(W: Any, name: str = "W") -> Tensor:
    """Rend `W` en tenseur flottant, après avoir exigé une matrice réelle, non vide et finie.

    Les entiers deviennent des float32 ; le graphe de dérivation n'est pas suivi.

    Raises
    ------
    TypeError
        `W` n'est pas un tableau de nombres réels.
    ValueError
        `W` n'a pas deux dimensions, est vide, ou contient NaN ou l'infini.
    """
    if isinstance(W, nn.Module) and isinstance(getattr(W, "weight", None), Tensor):
        raise TypeError(
            f"{name} : reçu une couche {type(W).__name__}, attendu sa matrice : donnez son attribut weight."
        )
    try:
        tensor = torch.as_tensor(W.detach() if isinstance(W, Tensor) else forwards(W))
        tuple(W.shape)
    except (AttributeError, TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} : reçu {type(W).__name__}, attendu une matrice (tenseur ou tableau NumPy).") from None
    check_tensor(tensor, name)
    if tensor.is_meta:
        raise TypeError(f"{name} : reçu un tenseur de l'appareil meta, qui n'a pas de nombres.")
    if tensor.ndim != 2:
        raise ValueError(f"{name} : reçu un tenseur de forme {tuple(tensor.shape)}, attendu une matrice (m, n).")
    if tensor.numel() == 0:
        raise ValueError(f"{name} : reçu une matrice vide {tuple(tensor.shape)}, attendu m ≥ 1 et n ≥ 1.")
    if not tensor.is_floating_point():
        tensor = tensor.to(torch.float32)
    if not is_finite(tensor):
        bad = int((~torch.isfinite(tensor)).sum())
        raise ValueError(
            f"{name} : {bad} élément(s) sur {tensor.numel()} sont NaN ou infinis, attendu des nombres finis."
        )
    return tensor


def forwards(values: Any) -> Any:
    """`values` tel quel, ou une copie si c'est un tableau NumPy dont PyTorch refuse les pas (lu à l'envers)."""
    array = isinstance(values, np.ndarray)
    return values.copy() if array and any(s < 0 or s % values.itemsize for s in values.strides) else values


def is_finite(t: Tensor) -> bool:
    """Vrai si tout est fini ; les extrêmes le disent sans copier `t`, même énorme (NaN les contamine)."""
    return t.numel() == 0 or all(math.isfinite(extreme) for extreme in t.detach().aminmax())


def check_tensor(t: Any, name: str) -> Tensor:
    """Rend `t` s'il est un tenseur de nombres réels.

    Raises
    ------
    TypeError
        Sinon.
    """
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} : reçu {type(t).__name__}, attendu un tenseur.")
    if t.is_complex() or t.dtype == torch.bool:
        raise TypeError(f"{name} : reçu des éléments {t.dtype}, attendu des nombres réels.")
    if t.layout != torch.strided:
        raise TypeError(f"{name} : reçu un tenseur {t.layout}, attendu un tenseur dense : to_dense() en fait un.")
    if t.is_floating_point() and t.dtype not in FLOATS:
        raise TypeError(f"{name} : reçu des éléments {t.dtype}, attendu float16, bfloat16, float32 ou float64.")
    return t


def check_spectrum(S: Any, name: str = "S") -> Tensor:
    """Rend en float64 des valeurs singulières : vecteur non vide, fini, positif et décroissant.

    Raises
    ------
    TypeError
        `S` n'est pas un tableau de nombres réels.
    ValueError
        `S` n'a pas cette forme.
    """
    try:
        values = check_tensor(torch.as_tensor(forwards(S)), name).detach().to(torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} : reçu {S!r}, attendu un vecteur de nombres réels.") from None
    if values.ndim != 1 or values.numel() == 0:
        raise ValueError(f"{name} : reçu la forme {tuple(values.shape)}, attendu un vecteur non vide (p,).")
    if not torch.isfinite(values).all() or (values < 0).any() or (values.diff() > 0).any():
        raise ValueError(f"{name} : attendu des valeurs singulières finies, positives et rangées en décroissant.")
    return values


def check_bool(value: Any, name: str) -> bool:
    """Rend un booléen ; le texte "False", que Python tient pour vrai, est refusé.

    Raises
    ------
    TypeError
        `value` n'est pas un booléen.
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} : reçu {value!r}, attendu True ou False.")
    return bool(value)


def check_integer(value: Any, name: str, minimum: int = 1, maximum: int | None = None) -> int:
    """Rend un entier compris entre `minimum` et `maximum` (inclus).

    Raises
    ------
    TypeError
        `value` n'est pas un entier (un booléen n'en est pas un).
    ValueError
        `value` sort de l'intervalle.
    """
    expected = f"un entier ≥ {minimum}" if maximum is None else f"un entier entre {minimum} et {maximum}"
    try:
        if isinstance(value, bool):
            raise TypeError
        integer = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} : reçu {value!r}, attendu {expected}.") from None
    if integer < minimum or (maximum is not None and integer > maximum):
        raise ValueError(f"{name} : reçu {integer}, attendu {expected}.")
    return integer


def check_integers(value: Any, name: str, count: int, each: str, maximum: int | None = None) -> list[int]:
    """Rend `count` entiers non nuls, tirés d'un seul ou d'une liste d'autant ; `each` dit de quoi chacun est celui.

    Raises
    ------
    TypeError, ValueError
        Comme :func:`check_integer` ; une liste d'une autre longueur.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        return [check_integer(value, name, 1, maximum)] * count
    if len(value) != count:
        raise ValueError(f"{name} : reçu {value!r}, attendu un entier, ou {count}, un par {each}.")
    return [check_integer(v, f"{name}[{k}]", 1, maximum) for k, v in enumerate(value)]


def check_rank(rank: Any, m: int, n: int, name: str = "rank") -> int:
    """Rend un rang compris entre 1 et min(m, n).

    Raises
    ------
    TypeError, ValueError
        Comme :func:`check_integer` ; un rang trop grand rappelle d'où vient la borne.
    """
    rank = check_integer(rank, name)
    if rank > min(m, n):
        raise ValueError(f"{name} : reçu {rank}, attendu au plus min(m, n) = {min(m, n)} pour une matrice {m}×{n}.")
    return rank


def check_ranks(ranks: Any, m: int, n: int, name: str = "ranks") -> list[int]:
    """Rend une liste non vide de rangs compris entre 1 et min(m, n)."""
    if not isinstance(ranks, Sequence) or isinstance(ranks, str) or len(ranks) == 0:
        raise ValueError(f"{name} : reçu {ranks!r}, attendu une liste non vide de rangs.")
    return [check_rank(rank, m, n, f"{name}[{i}]") for i, rank in enumerate(ranks)]


def to_float(value: Any, name: str, expected: str) -> float:
    """Rend `value` en float ; un booléen ou un texte est refusé, bien que Python sache les convertir."""
    try:
        if isinstance(value, bool | str | bytes):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} : reçu {value!r}, attendu {expected}.") from None


def check_fraction(value: Any, name: str) -> float:
    """Rend un nombre de l'intervalle ]0, 1].

    Raises
    ------
    TypeError
        `value` n'est pas un nombre (ni un booléen ni un texte n'en sont un).
    ValueError
        `value` sort de ]0, 1].
    """
    number = to_float(value, name, "un nombre dans ]0, 1]")
    if not 0.0 < number <= 1.0:  # NaN échoue aussi
        raise ValueError(f"{name} : reçu {value!r}, attendu un nombre dans ]0, 1].")
    return number


def check_dropout(value: Any, name: str) -> float:
    """Rend une part de l'intervalle [0, 1[."""
    number = to_float(value, name, "un nombre dans [0, 1[")
    if not 0.0 <= number < 1.0:
        raise ValueError(f"{name} : reçu {value!r}, attendu un nombre dans [0, 1[.")
    return number


def check_percentile(value: Any, name: str) -> float:
    """Rend un pourcentage de l'intervalle ]0, 100]."""
    number = to_float(value, name, "un pourcentage dans ]0, 100]")
    if not 0.0 < number <= 100.0:
        raise ValueError(f"{name} : reçu {value!r}, attendu un pourcentage dans ]0, 100].")
    return number


def check_finite_number(value: Any, name: str) -> float:
    """Rend un nombre fini."""
    number = to_float(value, name, "un nombre")
    if not math.isfinite(number):
        raise ValueError(f"{name} : reçu {value!r}, attendu un nombre fini.")
    return number


def check_choice(value: Any, name: str, known: Sequence[str]) -> str:
    """Rend `value` s'il est l'un des noms connus, que le refus énumère.

    Raises
    ------
    ValueError
        Sinon.
    """
    if value not in known:
        raise ValueError(f"{name} : reçu {value!r}, attendu {' ou '.join(map(repr, known))}.")
    return str(value)


def check_positive(value: Any, name: str) -> float:
    """Rend un nombre fini et strictement positif."""
    number = check_finite_number(value, name)
    if number <= 0:
        raise ValueError(f"{name} : reçu {value!r}, attendu un nombre strictement positif.")
    return number


def check_mapping(value: Any, name: str) -> Any:
    """Rend un dictionnaire nom → valeur.

    Raises
    ------
    TypeError
        `value` n'en est pas un.
    """
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} : reçu {type(value).__name__}, attendu un dictionnaire nom → valeur.")
    return value


def check_names(names: Any, known: Collection[str], what: str) -> None:
    """Exige des noms connus, dans une liste ; `what` dit ce qu'ils désignent.

    Raises
    ------
    TypeError
        `names` est un texte, qui se lirait lettre à lettre.
    ValueError
        Un nom est inconnu.
    """
    if isinstance(names, str):
        raise TypeError(f"names : reçu le texte {names!r}, attendu une liste de noms.")
    if not isinstance(names, Collection):
        raise TypeError(f"names : reçu {names!r}, attendu une liste de noms.")
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ValueError(f"names : {unknown[0]!r} n'est pas {what} du réseau, qui a : {', '.join(known)}.")


def listed(names: Collection[str], limit: int = 12) -> str:
    """Les premiers noms d'une liste, pour un refus."""
    some = ", ".join(repr(name) for name in list(names)[:limit])
    return (some or "aucun") + (f" et {len(names) - limit} autres" if len(names) > limit else "")


def check_bits(n_bits: Any, name: str = "n_bits") -> int:
    """Rend un nombre de bits entre 1 et 8."""
    return check_integer(n_bits, name, 1, 8)


def check_linear(layer: Any, name: str = "linear_layer") -> nn.Linear:
    """Rend une `nn.Linear` dont les poids sont finis ; voir :func:`check_layer`."""
    return check_layer(layer, nn.Linear, name)


def check_conv(layer: Any, name: str = "conv_layer") -> nn.Conv2d:
    """Rend une `nn.Conv2d` dont les poids sont finis ; voir :func:`check_layer`."""
    return check_layer(layer, nn.Conv2d, name)


def check_layer(layer: Any, kind: type[Layer], name: str) -> Layer:
    """Rend une couche de la classe `kind` dont les poids sont finis.

    Raises
    ------
    TypeError
        `layer` est d'une autre classe.
    ValueError
        Ses poids ou son biais ne sont pas finis.
    """
    if not isinstance(layer, kind):
        raise TypeError(f"{name} : reçu {type(layer).__name__}, attendu nn.{kind.__name__}.")
    if isinstance(layer.weight, nn.UninitializedParameter):
        raise ValueError(
            f"{name} : {type(layer).__name__} n'a pas encore de poids ; faites-y passer une entrée d'abord."
        )
    check_matrix(layer.weight.flatten(1), f"{name}.weight")
    if layer.bias is not None and not is_finite(layer.bias):
        raise ValueError(f"{name}.bias : NaN ou infini, attendu des nombres finis.")
    return layer


def check_input(x: Tensor, in_features: int, name: str = "x") -> Tensor:
    """Rend `x` si c'est un tenseur dont la dernière dimension vaut `in_features`.

    Raises
    ------
    TypeError
        `x` n'est pas un tenseur de flottants.
    ValueError
        Sa dernière dimension diffère, avec la forme reçue.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} : reçu {type(x).__name__}, attendu un tenseur (..., {in_features}).")
    if not x.is_floating_point():
        raise TypeError(f"{name} : reçu des éléments {x.dtype}, attendu des flottants.")
    if x.ndim == 0 or x.shape[-1] != in_features:
        raise ValueError(f"{name} : reçu la forme {tuple(x.shape)}, attendu (..., {in_features}).")
    return x


def outside() -> int:
    """Le `stacklevel` qui fait désigner, par ``warnings.warn``, la ligne du lecteur, et non une des nôtres."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("lrq", "functools", "joblib"):
        level, frame = level + 1, frame.f_back
    return level
