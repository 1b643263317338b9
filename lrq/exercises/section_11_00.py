"""Exercice 11.1 : le rang d'une couche sous une contrainte d'erreur."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .engine import Case, Exercise, Mistake, Property, as_integer
from .instances import integer, linear, matrix, number, uniform


def relative_errors(W: Tensor) -> Tensor:
    """Erreur relative de la meilleure approximation de chaque rang 0 … p, en float64."""
    energy = torch.linalg.svdvals(W.detach().double()) ** 2
    tail = torch.cat([energy.flip(0).cumsum(0).flip(0), energy.new_zeros(1)])
    return (tail / tail[0]).sqrt()


def cases(generator: torch.Generator) -> list[Case]:
    """Des couches hautes, larges et carrées, des rangs extrêmes ; la cible tombe strictement entre deux rangs."""
    instances = []
    for shape in ("haute", "large", "carrée", "haute", "large", "rang 1", "rang p"):
        p = integer(generator, 12, 20)
        q = p if shape == "carrée" else p + integer(generator, 6, 20)
        m, n = (p, q) if shape == "large" else (q, p)
        layer = linear(matrix(generator, m, n, uniform(generator, 0.6, 1.2)), generator)
        errors = relative_errors(layer.weight)
        rank = {"rang 1": 1, "rang p": p}.get(shape, integer(generator, 3, p - 4))
        target = float((errors[rank - 1] + errors[rank]) / 2)
        instances.append(Case(f"une couche {n} → {m} et erreur_max = {number(target)}", (layer, target)))
    return instances


def properties(result: object, case: Case) -> Iterable[Property]:
    """Un rang est le bon s'il suffit et si le précédent ne suffit pas."""
    layer, target = case.args
    p = min(layer.weight.shape)
    rank = as_integer(result)
    valid = rank is not None and 1 <= rank <= p
    yield Property("le rang rendu est un entier entre 1 et min(m, n)", valid, f"reçu {result!r}, et min(m, n) = {p}")
    if rank is None or not valid:
        return
    errors = relative_errors(layer.weight)
    yield Property(
        "l'erreur à ce rang respecte la contrainte",
        bool(errors[rank] <= target),
        f"au rang {rank}, l'erreur vaut {number(float(errors[rank]))}, plus que {number(target)}",
    )
    yield Property(
        "aucun rang plus petit ne suffit",
        bool(errors[rank - 1] > target),
        f"vous rendez {rank}, mais au rang {rank - 1} l'erreur vaut déjà {number(float(errors[rank - 1]))}, "
        f"moins que {number(target)}",
    )


def svdvals(layer: nn.Linear) -> Tensor:
    """Valeurs singulières des poids, en float64."""
    return torch.linalg.svdvals(layer.weight.detach().double())


def first(condition: Tensor) -> int:
    """Plus petit rang r ≥ 1 où la condition est vraie, ou le dernier."""
    return int(condition.int().argmax()) + 1 if condition.any() else len(condition)


def tail(values: Tensor) -> Tensor:
    """Somme de ce qui suit le rang r, pour r = 1 … p."""
    return values.flip(0).cumsum(0).flip(0) - values


def sigma_not_squared(layer: nn.Linear, target: float) -> int:
    """Faute : Σσ au lieu de Σσ²."""
    S = svdvals(layer)
    return first(tail(S) / S.sum() <= target)


def energy_for_error(layer: nn.Linear, target: float) -> int:
    """Faute : la part d'énergie perdue, sans sa racine."""
    S = svdvals(layer)
    return first(tail(S**2) / (S**2).sum() <= target)


def not_relative(layer: nn.Linear, target: float) -> int:
    """Faute : l'erreur n'est pas divisée par ‖W‖."""
    return first(tail(svdvals(layer) ** 2).sqrt() <= target)


def spectral(layer: nn.Linear, target: float) -> int:
    """Faute : la norme spectrale, σ_{r+1}/σ₁."""
    S = svdvals(layer)
    return first(torch.cat([S[1:], S.new_zeros(1)]) / S[0] <= target)


def index_for_rank(layer: nn.Linear, target: float) -> int:
    """Faute : l'indice de la case au lieu du rang."""
    return int((relative_errors(layer.weight)[1:] > target).sum())


def one_too_many(layer: nn.Linear, target: float) -> int:
    """Faute : un rang de trop."""
    return index_for_rank(layer, target) + 2


def rebuilt_with_v(layer: nn.Linear, target: float, fallback_to_nearest: bool) -> int:
    """L'algorithme du cours : V rendu par torch.svd y est pris pour Vᵀ."""
    W = layer.weight.detach()
    U, S, V = torch.svd(W)
    errors = []
    for rank in range(1, min(W.shape) + 1):
        rebuilt = U[:, :rank] @ torch.diag(S[:rank]) @ V[:rank, :]
        errors.append(float((W - rebuilt).norm() / W.norm()))
        if errors[-1] <= target:
            return rank
    gaps = torch.tensor(errors) - target
    return int(gaps.abs().argmin()) + 1 if fallback_to_nearest else len(errors)


EXERCISE_11_1 = Exercise(
    number="11.1",
    title="le rang sous une contrainte d'erreur",
    cases=cases,
    properties=properties,
    mistakes=(
        Mistake(
            "σ au lieu de σ²",
            "vous comparez la somme des σ abandonnés à la somme de tous ; l'erreur de Frobenius est la racine de la "
            "somme de leurs carrés.",
            (sigma_not_squared,),
        ),
        Mistake(
            "l'énergie prise pour l'erreur",
            "vous comparez erreur_max à la part d'énergie perdue ; l'erreur en est la racine carrée "
            "(10 % d'erreur, c'est 1 % de l'énergie).",
            (energy_for_error,),
        ),
        Mistake(
            "une erreur absolue",
            "vous comparez erreur_max à ‖W − W_r‖ ; divisez par ‖W‖, sinon le rang dépend de l'échelle des poids.",
            (not_relative,),
        ),
        Mistake(
            "la norme spectrale",
            "vous comparez σ_{r+1}/σ₁ à la cible : c'est l'erreur en norme spectrale, plus petite ; l'énoncé demande "
            "Frobenius, toute la queue du spectre.",
            (spectral,),
        ),
        Mistake(
            "un indice pour un rang",
            "vous rendez un rang de moins que nécessaire : la case d'indice i correspond au rang i + 1.",
            (index_for_rank,),
        ),
        Mistake("un rang de trop", "le rang rendu suffit, mais le précédent suffisait aussi.", (one_too_many,)),
        Mistake(
            "V pris pour Vᵀ",
            "torch.svd rend V, et non sa transposée : U @ diag(S) @ V[:r] ne reconstruit rien, et lève une exception "
            "sur une couche large. Prenez torch.linalg.svd, qui rend Vᵀ, ou les seules valeurs singulières.",
            (
                lambda layer, target: rebuilt_with_v(layer, target, fallback_to_nearest=True),
                lambda layer, target: rebuilt_with_v(layer, target, fallback_to_nearest=False),
            ),
        ),
    ),
)
