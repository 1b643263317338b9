"""Exercices 11.5.1, 11.5.2 et 11.5.3 : Eckart–Young, l'erreur d'une couche à l'autre, la paire (rang, bits)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .engine import Case, Exercise, Mistake, Property
from .instances import integer, number, uniform
from .section_11_02 import orthonormal

# --- 11.5.1 -----------------------------------------------------------------------------------------------------------

NORMS = ("frobenius", "spectrale")


def with_spectrum(generator: torch.Generator, m: int, n: int, S: Tensor) -> Tensor:
    """Matrice m×n float64 de valeurs singulières S."""
    return orthonormal(generator, m, len(S)) * S @ orthonormal(generator, n, len(S)).T


def truncated(W: Tensor, rank: int) -> Tensor:
    """W_r."""
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    return (U[:, :rank] * S[:rank]) @ Vh[:rank]


def coarse(t: Tensor, n_bits: int) -> Tensor:
    """`t` arrondie sur une grille symétrique, puis redéployée."""
    scale = t.abs().max() / (2 ** (n_bits - 1) - 1)
    return (t / scale).round() * scale


def competitors(generator: torch.Generator, W: Tensor, rank: int) -> list[Tensor]:
    """Quatre ou cinq candidates de rang permis, et deux qui ne le sont pas, dans le désordre.

    De celles-ci, W_{r+1} passe sous le minimum, et W_r arrondie, de rang plein, n'y passe pas.
    """
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    Q = orthonormal(generator, len(W), rank)
    columns = torch.linalg.qr(W[:, torch.randperm(W.shape[1], generator=generator)[:rank]]).Q
    found = [
        truncated(W, rank),
        Q @ (Q.T @ W),
        columns @ (columns.T @ W),
        (U[:, :rank] * (S[:rank] - 0.7 * S[rank])) @ Vh[:rank],  # la même erreur spectrale que W_r
        truncated(W, rank + 1),
        coarse(truncated(W, rank), 4),
    ]
    if rank > 1:
        found.append(truncated(W, rank - 1))
    return [found[i] for i in torch.randperm(len(found), generator=generator)]


def eckart_cases(generator: torch.Generator) -> list[Case]:
    """Quatre spectres : qui décroît, plat, qui s'annule, et le même jugement au rang un."""
    cases = []
    for kind in ("qui décroît", "plat", "qui s'annule", "qui décroît vite"):
        p, rank = integer(generator, 9, 13), integer(generator, 2, 4)
        q = p + integer(generator, 3, 8)
        decay = torch.arange(1, p + 1, dtype=torch.float64) ** -uniform(generator, 0.5, 1)
        if kind == "plat":
            m, n, S = p, p, torch.ones(p, dtype=torch.float64)
        elif kind == "qui s'annule":
            m, n, S = p, q, decay[: rank + 3]
        elif kind == "qui décroît":
            m, n, S = q, p, decay
        else:
            m, n, S, rank = q, p, decay**2, 1
        W = with_spectrum(generator, m, n, S * uniform(generator, 3, 9))
        label = f"W {m}×{n}, spectre {kind}, rang = {rank}"
        cases.append(Case(label, (W, rank, competitors(generator, W, rank))))
    return cases


def least_errors(W: Tensor, rank: int) -> tuple[float, float]:
    """Les deux minimums, des valeurs propres de la plus petite matrice de Gram plutôt que d'une SVD."""
    gram = W @ W.T if len(W) < W.shape[1] else W.T @ W
    energy = torch.linalg.eigvalsh(gram).flip(0).clamp_min(0)[rank:]
    return float(energy.sum().sqrt()), float(energy[0].sqrt())


def rank_of(M: Tensor) -> int:
    """Rang numérique : les instances n'ont rien entre l'arrondi et un millième de σ₁."""
    return int(torch.linalg.matrix_rank(M, rtol=1e-6))


def eckart_reading(result: Any) -> dict[str, Any]:
    """Le dictionnaire en nombres ordinaires."""
    found: dict[str, Any] = {}
    for name in NORMS:
        predicted, measured = result[name]
        found[name] = [float(predicted), float(measured)]
    found["concurrents"] = [None if value is None else float(value) for value in result["concurrents"]]
    return found


def close(a: float, b: float, tolerance: float = 2e-3) -> bool:
    """Égalité à l'arrondi près, float32 compris ; nan n'est proche de rien."""
    return abs(a - b) <= tolerance * abs(b)


def eckart_properties(result: Any, case: Case) -> Iterable[Property]:
    """Le minimum vient des valeurs propres d'une matrice de Gram ; les rangs et les erreurs sont refaits."""
    W, rank, rivals = case.args
    valid = isinstance(result, Mapping) and set(result) == {*NORMS, "concurrents"}
    text = "le résultat est un dictionnaire de clés frobenius, spectrale et concurrents"
    yield Property(text, valid, f"reçu {sorted(map(str, result)) if isinstance(result, Mapping) else result!r}")
    if not valid:
        return
    try:
        found = eckart_reading(result)
    except (TypeError, ValueError, RuntimeError):
        found = {}
    text = "frobenius et spectrale sont des couples de nombres, concurrents une suite de nombres ou de None"
    yield Property(text, bool(found), f"reçu {result!r}")
    if not found:
        return
    made = {
        "frobenius": "la racine de la somme des carrés des valeurs singulières abandonnées",
        "spectrale": f"la première valeur singulière abandonnée, σ_{rank + 1}",
    }
    for (name, what), right in zip(made.items(), least_errors(W, rank), strict=True):
        predicted, measured = found[name]
        yield Property(
            f"{name} : la prédiction est juste",
            close(predicted, right),
            f"vous prédisez {number(predicted)} ; {what}, vaut {number(right)}",
        )
        yield Property(
            f"{name} : la mesure est juste",
            close(measured, right),
            f"vous mesurez {number(measured)} sur W − W_r, et personne ne peut descendre sous {number(right)}, "
            "que W_r atteint",
        )
    ratios = found["concurrents"]
    counted = len(ratios) == len(rivals)
    yield Property("une valeur par concurrent", counted, f"reçu {len(ratios)}, pour {len(rivals)} concurrents")
    if not counted:
        return
    for i, (ratio, M) in enumerate(zip(ratios, rivals, strict=True)):
        own = rank_of(M)
        yield Property(
            "un concurrent est hors concours, None, si et seulement si son rang dépasse le rang permis",
            (ratio is None) == (own > rank),
            f"le concurrent {i} est de rang {own}, pour un rang permis de {rank}, et vous rendez "
            + ("None" if ratio is None else number(ratio)),
        )
        if ratio is None or own > rank:
            continue
        right = float((W - M).norm()) / least_errors(W, rank)[0]
        yield Property(
            "le rapport de chaque concurrent est son erreur de Frobenius divisée par le minimum",
            close(ratio, right),
            f"pour le concurrent {i}, vous rendez {number(ratio)} au lieu de {number(right)}",
        )


def eckart_variant(
    *,
    frobenius: Callable[[Tensor, int], Tensor] = lambda S, r: S[r:].square().sum().sqrt(),
    spectral: Callable[[Tensor, int], Tensor] = lambda S, r: S[r],
    approximate: Callable[[Tensor, int], Tensor] = truncated,
    measure: Callable[[Tensor], Tensor] = lambda E: torch.linalg.svdvals(E)[0],
    admitted: Callable[[int, int], bool] = lambda own, rank: own <= rank,
    ratio: Callable[[Tensor, Tensor, float], float] = lambda E, W, least: float(E.norm()) / least,
    least: Callable[[float, float], float] = lambda predicted, measured: predicted,
) -> Any:
    """Fonction fautive : la comparaison, dont quelque chose est changé ; `least` choisit à quoi l'on divise."""

    def wrong(W: Tensor, rank: int, rivals: Sequence[Tensor]) -> dict[str, Any]:
        S, E = torch.linalg.svdvals(W), W - approximate(W, rank)
        predicted, measured = float(frobenius(S, rank)), float(E.norm())
        smallest = least(predicted, measured)
        ratios = [ratio(W - M, W, smallest) if admitted(rank_of(M), rank) else None for M in rivals]
        return {
            "frobenius": (predicted, measured),
            "spectrale": (float(spectral(S, rank)), float(measure(E))),
            "concurrents": ratios,
        }

    return wrong


def v_for_vh(W: Tensor, rank: int) -> Tensor:
    """Le code du cours : V rendue par torch.svd, prise pour Vᵀ."""
    U, S, V = torch.svd(W)
    return (U[:, :rank] * S[:rank]) @ V[:rank]


def by_either(**changes: Any) -> tuple[Any, Any]:
    """La même faute, que les rapports soient divisés par le minimum prédit ou par le minimum mesuré."""
    return (
        eckart_variant(**changes),
        eckart_variant(**changes, least=lambda predicted, measured: measured),
    )


EXERCISE_11_5_1 = Exercise(
    number="11.5.1",
    title="Eckart–Young à l'épreuve",
    cases=eckart_cases,
    properties=eckart_properties,
    signature=eckart_reading,
    mistakes=(
        Mistake(
            "une somme de valeurs singulières",
            "ce sont les carrés qui s'ajoutent : l'erreur de Frobenius est la racine de la somme des σᵢ² abandonnés. "
            "La somme des σᵢ, que donne le cours, est la norme nucléaire de l'écart, toujours au moins aussi grande.",
            by_either(frobenius=lambda S, r: S[r:].sum()),
        ),
        Mistake(
            "la racine oubliée",
            "la somme des σᵢ² abandonnés est l'énergie perdue, ‖W − W_r‖² ; l'erreur en est la racine.",
            by_either(frobenius=lambda S, r: S[r:].square().sum()),
        ),
        Mistake(
            "torch.norm(E, p=2) pris pour la norme spectrale",
            "torch.norm(E, p=2), comme E.norm(), aplatit la matrice : c'est encore Frobenius. La norme spectrale est "
            "torch.linalg.matrix_norm(E, ord=2), la plus grande valeur singulière de E.",
            (eckart_variant(measure=lambda E: E.norm()),),
        ),
        Mistake(
            "un indice décalé",
            "garder r valeurs, c'est garder σ₁ … σ_r, soit S[:r] en Python : la première abandonnée, σ_{r+1}, est "
            "S[r], et la queue S[r:].",
            (
                eckart_variant(spectral=lambda S, r: S[r - 1]),
                eckart_variant(spectral=lambda S, r: S[r + 1]),
                *by_either(frobenius=lambda S, r: S[r - 1 :].norm()),
                *by_either(frobenius=lambda S, r: S[r + 1 :].norm()),
                *by_either(frobenius=lambda S, r: S[r - 1 :].norm(), spectral=lambda S, r: S[r - 1]),
                *by_either(frobenius=lambda S, r: S[r + 1 :].norm(), spectral=lambda S, r: S[r + 1]),
            ),
        ),
        Mistake(
            "V pris pour Vᵀ",
            "torch.svd rend V, torch.linalg.svd rend Vh = Vᵀ. Les r premières lignes de V ne sont pas les vecteurs "
            "singuliers droits, et votre W_r n'est pas la meilleure approximation : la mesure dépasse la prédiction.",
            by_either(approximate=v_for_vh),
        ),
        Mistake(
            "des concurrents de rang trop grand",
            "au rang r + 1 on fait mieux qu'au rang r, et le théorème n'en dit rien. Comptez les valeurs singulières "
            "non nulles de chaque concurrent, à l'arrondi près (torch.linalg.matrix_rank).",
            (eckart_variant(admitted=lambda own, rank: True),),
        ),
        Mistake(
            "le rang permis exclu",
            "un concurrent de rang r exactement est en concours : il n'est exclu que si son rang dépasse r.",
            (eckart_variant(admitted=lambda own, rank: own < rank),),
        ),
        Mistake(
            "un autre rapport",
            "divisez l'erreur de Frobenius du concurrent par le minimum : ni par la norme de W, ni dans l'autre sens, "
            "ni au carré, ni en norme spectrale. Le rapport est alors toujours au moins 1.",
            (
                eckart_variant(ratio=lambda E, W, least: least / float(E.norm())),
                eckart_variant(ratio=lambda E, W, least: float(E.norm() / W.norm())),
                eckart_variant(ratio=lambda E, W, least: float(E.norm()) ** 2 / least**2),
                eckart_variant(ratio=lambda E, W, least: float(torch.linalg.svdvals(E)[0]) / least),
                eckart_variant(ratio=lambda E, W, least: float(E.norm())),
            ),
        ),
    ),
)
