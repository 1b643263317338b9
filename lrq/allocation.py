"""Choisir des rangs : celui que le bruit dicte, et ceux de plusieurs couches sous un même budget."""

import heapq
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .validation import check_integer, check_mapping, check_positive, check_spectrum


def gavish_donoho_rank(S: Tensor, m: int, n: int, noise: float | None = None) -> int:
    """Combien de valeurs singulières garder pour débruiter au mieux : le seuil dur optimal de Gavish et Donoho.

    W est vue comme un signal de rang faible, plus un bruit blanc d'écart-type `noise`. Le seuil
    λ(β) √max(m, n) · bruit, avec β = min/max, minimise l'erreur quadratique asymptotique ; il vaut 4/√3 · √n · bruit
    pour une matrice carrée.

    Parameters
    ----------
    S : Tensor, (min(m, n),), décroissant
    m, n : int
    noise : float, optionnel
        Écart-type du bruit ; sinon estimé sur la valeur singulière médiane, supposée n'être que du bruit.

    Returns
    -------
    int
        Entre 0 (rien ne dépasse du bruit) et min(m, n).

    References
    ----------
    Gavish et Donoho (2014).
    """
    sigma, beta, unit = spectrum_and_unit(S, m, n, noise)
    limit = math.sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + math.sqrt(beta**2 + 14 * beta + 1)))
    return int((sigma > limit * unit).sum())


def marchenko_pastur_rank(S: Tensor, m: int, n: int, noise: float | None = None) -> int:
    """Combien de valeurs singulières dépassent le bord de Marchenko–Pastur, (√m + √n) · bruit.

    Parameters
    ----------
    S, m, n, noise
        Comme pour :func:`gavish_donoho_rank`.

    Returns
    -------
    int
        Entre 0 et min(m, n).
    """
    sigma, beta, unit = spectrum_and_unit(S, m, n, noise)
    return int((sigma > (1 + math.sqrt(beta)) * unit).sum())


def spectrum_and_unit(S: Tensor, m: int, n: int, noise: float | None) -> tuple[Tensor, float, float]:
    """Le spectre vérifié, β = min/max, et √max(m, n) · bruit."""
    m, n = check_integer(m, "m"), check_integer(n, "n")
    S = check_spectrum(S)
    if len(S) != min(m, n):
        raise ValueError(f"S : reçu {len(S)} valeurs singulières, attendu min(m, n) = {min(m, n)}.")
    beta = min(m, n) / max(m, n)
    if noise is None:
        return S, beta, float(S.median()) / math.sqrt(marchenko_pastur_median(beta))
    return S, beta, check_positive(noise, "noise") * math.sqrt(max(m, n))


def marchenko_pastur_median(beta: float) -> float:
    """Médiane de la loi de Marchenko–Pastur : celle de σ²/max(m, n) pour un bruit d'écart-type 1.

    Parameters
    ----------
    beta : float, dans ]0, 1]
        min(m, n) / max(m, n).
    """
    low, high = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2
    angle = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000 * math.pi / 2
    x = low + (high - low) * angle.sin() ** 2  # ce changement de variable ôte les singularités des deux bords
    mass = (angle.sin() * angle.cos()) ** 2 / x  # densité √((b − x)(x − a))/x, fois dx
    return float(x[(mass.cumsum(0) < mass.sum() / 2).sum()])


def allocate_ranks(spectra: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]], budget: int) -> dict[str, int]:
    """Répartit un budget de paramètres entre des couches : à qui donner le rang suivant ?

    À celle dont la prochaine composante apporte le plus d'énergie par paramètre, σ²/(m + n), tant que le budget le
    permet. Chaque couche garde au moins le rang 1.

    Parameters
    ----------
    spectra : dict nom → Tensor, décroissant
        Valeurs singulières de chaque couche, ou de W C^½ si l'on compte l'énergie en sortie.
    shapes : dict nom → (m, n)
    budget : int
        Nombre de paramètres en tout, Σ r (m + n).

    Returns
    -------
    dict nom → rang
        L'énergie gardée est optimale à une composante près, et exactement quand toutes les couches coûtent autant.

    Raises
    ------
    ValueError
        Noms différents dans `spectra` et `shapes`, plus de valeurs singulières que min(m, n), ou budget trop petit
        pour le rang 1 partout.
    """
    budget = check_integer(budget, "budget")
    for argument, named in (("spectra", spectra), ("shapes", shapes)):
        check_mapping(named, argument)
    if spectra.keys() != shapes.keys() or not spectra:
        raise ValueError(f"shapes : reçu les noms {sorted(shapes)}, attendu ceux de spectra, {sorted(spectra)}.")
    energies = {name: check_spectrum(S, f"spectra[{name!r}]") ** 2 for name, S in spectra.items()}
    for name, shape in shapes.items():
        if not isinstance(shape, Sequence) or len(shape) != 2:
            raise ValueError(f"shapes[{name!r}] : reçu {shape!r}, attendu (m, n).")
        limit = min(check_integer(size, f"shapes[{name!r}]") for size in shape)
        if len(energies[name]) > limit:
            received = f"reçu {len(energies[name])} valeurs singulières"
            raise ValueError(f"spectra[{name!r}] : {received}, attendu au plus min(m, n) = {limit}.")
    costs = {name: sum(shape) for name, shape in shapes.items()}
    left = budget - sum(costs.values())
    if left < 0:
        raise ValueError(f"budget : reçu {budget}, attendu au moins {sum(costs.values())}, le rang 1 partout.")
    ranks = dict.fromkeys(spectra, 1)
    waiting: list[tuple[float, str]] = []

    def propose(name: str) -> None:
        if ranks[name] < len(energies[name]):
            heapq.heappush(waiting, (-float(energies[name][ranks[name]]) / costs[name], name))

    for name in ranks:
        propose(name)
    while waiting:
        _, name = heapq.heappop(waiting)
        if costs[name] <= left:  # sinon, la couche en reste là
            left -= costs[name]
            ranks[name] += 1
            propose(name)
    return ranks


Option = tuple[int, float]  # ce qu'un choix coûte, en octets, et ce qu'il perd


def allocate_budget(options: Mapping[str, Sequence[Option]], budget: int) -> dict[str, int]:
    """Choisit une option par couche, pour que la perte totale soit la plus petite sous un budget en octets.

    Chaque couche part de la moins chère. À chaque tour, l'amélioration qui ôte le plus de perte par octet est faite, si
    elle tient dans ce qui reste. Ne comptent que les options de l'enveloppe convexe : les autres sont battues par un
    mélange de deux d'entre elles.

    Parameters
    ----------
    options : dict nom → suite de (octets, perte)
        Des pertes qui s'ajoutent d'une couche à l'autre.
    budget : int
        Octets en tout.

    Returns
    -------
    dict nom → indice de l'option
        La perte totale est la plus petite, à une amélioration près : la première qui n'a pas tenu. Si toutes tiennent
        jusqu'à épuiser le budget, elle est exactement la plus petite. Plus de budget ne fait jamais perdre davantage.

    Raises
    ------
    ValueError
        Une couche sans option, une perte négative ou non finie, ou un budget que dépassent les moins chères.
    """
    budget, options = check_integer(budget, "budget"), check_mapping(options, "options")
    hulls = {name: convex_hull(choices, name) for name, choices in options.items()}
    if not hulls:
        raise ValueError("options : aucune couche, attendu au moins une.")
    left = budget - sum(options[name][hull[0]][0] for name, hull in hulls.items())
    if left < 0:
        raise ValueError(f"budget : reçu {budget}, attendu au moins {budget - left} octets, le moins cher partout.")
    steps = dict.fromkeys(hulls, 0)
    waiting: list[tuple[float, str]] = []

    def cost_and_gain(name: str) -> Option:
        (cost, loss), (more, less) = (options[name][i] for i in hulls[name][steps[name] : steps[name] + 2])
        return more - cost, loss - less

    def propose(name: str) -> None:
        if steps[name] + 1 < len(hulls[name]):
            cost, gain = cost_and_gain(name)
            heapq.heappush(waiting, (-gain / cost, name))

    for name in hulls:
        propose(name)
    while waiting:
        _, name = heapq.heappop(waiting)
        cost, _ = cost_and_gain(name)
        if cost <= left:  # sinon, la couche en reste là
            left -= cost
            steps[name] += 1
            propose(name)
    return {name: hull[steps[name]] for name, hull in hulls.items()}


def convex_hull(choices: Sequence[Option], name: str) -> list[int]:
    """Les indices des options de l'enveloppe convexe, de la moins chère à celle qui perd le moins."""
    if not choices:
        raise ValueError(f"options[{name!r}] : aucune option, attendu au moins une.")
    if not all(math.isfinite(loss) and loss >= 0 and cost >= 0 for cost, loss in choices):
        raise ValueError(f"options[{name!r}] : attendu des octets et des pertes finis, positifs ou nuls.")
    hull: list[int] = []
    for i in sorted(range(len(choices)), key=lambda i: choices[i]):
        if hull and choices[i][1] >= choices[hull[-1]][1]:
            continue  # plus chère, et ne perd pas moins
        while len(hull) > 1 and slope(choices, hull[-1], i) >= slope(choices, hull[-2], hull[-1]):
            hull.pop()
        hull.append(i)
    return hull


def slope(choices: Sequence[Option], i: int, j: int) -> float:
    """Ce que l'on gagne par octet en passant de l'option i à l'option j."""
    return (choices[i][1] - choices[j][1]) / (choices[j][0] - choices[i][0])
