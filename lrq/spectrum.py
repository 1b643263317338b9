"""Ce que les valeurs singulières disent d'une matrice : énergie, erreur, rangs effectifs, seuil de rentabilité.

Toutes les fonctions partent des valeurs singulières S = (σ₁ ≥ σ₂ ≥ …) : une seule décomposition répond pour tous
les rangs, sans jamais reconstruire la matrice. Les sommes se font en float64.
"""

import warnings
from typing import Any

import torch
from torch import Tensor

from .svd import singular_values
from .validation import check_finite_number, check_fraction, check_integer, check_rank, check_spectrum


def relative_energies(S: Tensor) -> Tensor:
    """Énergies σᵢ²/σ₁², en float64 : le quotient évite tout débordement du carré ; nulles pour une matrice nulle."""
    S = check_spectrum(S)
    return (S / S[0]) ** 2 if S[0] > 0 else S


def cumulative_energy(S: Tensor) -> Tensor:
    """Part de l'énergie Σσ² que gardent les r premières valeurs singulières, pour r = 1 … p.

    Parameters
    ----------
    S : Tensor, (p,), décroissant

    Returns
    -------
    Tensor, (p,), float64
        Croissant, terminé par 1 ; une matrice nulle donne 1 partout.
    """
    kept = relative_energies(S).cumsum(0)
    return kept / kept[-1] if kept[-1] > 0 else torch.ones_like(kept)


def truncation_errors(S: Tensor) -> Tensor:
    """Erreur relative ‖W − W_r‖/‖W‖ (Frobenius) de la SVD tronquée, pour r = 1 … p.

    C'est la racine de la part d'énergie abandonnée, √(Σ_{i>r} σᵢ² / Σ σᵢ²).

    Parameters
    ----------
    S : Tensor, (p,), décroissant

    Returns
    -------
    Tensor, (p,), float64
        Décroissant, terminé par 0 ; une matrice nulle donne 0 partout.
    """
    tail = relative_energies(S).flip(0).cumsum(0).flip(0)  # sommée des petites aux grandes, sans soustraction
    dropped = torch.cat([tail[1:], tail.new_zeros(1)])  # Σ_{i>r} σᵢ², pour r = 1 … p
    return (dropped / tail[0]).sqrt() if tail[0] > 0 else dropped


def rank_for_energy(S: Tensor, threshold: float = 0.99) -> int:
    """Plus petit rang qui garde la fraction `threshold` de l'énergie.

    Parameters
    ----------
    S : Tensor, (p,), décroissant
    threshold : float, dans ]0, 1]
        1 veut dire : toute l'énergie, à la précision float64 près.

    Returns
    -------
    int, entre 1 et p
    """
    threshold = check_fraction(threshold, "threshold")
    return int((cumulative_energy(S) < threshold).sum()) + 1


def rank_for_error(S: Tensor, target_error: float = 0.01) -> int:
    """Plus petit rang dont l'erreur relative de troncature ne dépasse pas `target_error`.

    Parameters
    ----------
    S : Tensor, (p,), décroissant
    target_error : float, dans ]0, 1]

    Returns
    -------
    int, entre 1 et p
    """
    target_error = check_fraction(target_error, "target_error")
    return int((truncation_errors(S) > target_error).sum()) + 1


def entropy_rank(S: Tensor) -> float:
    """Rang effectif de Roy et Vetterli : exp(H(p)) avec pᵢ = σᵢ / Σσ.

    Vaut k pour k valeurs égales et des zéros ; varie continûment, sans seuil à choisir.

    Parameters
    ----------
    S : Tensor, (p,), décroissant

    Returns
    -------
    float, entre 1 et p ; 0 pour une matrice nulle
    """
    S = check_spectrum(S)
    if S[0] == 0:
        return 0.0
    p = S / S.sum()
    return float(torch.special.entr(p).sum().exp())  # entr(p) = −p ln p, et 0 en 0


def stable_rank(S: Tensor) -> float:
    """Rang stable de Rudelson et Vershynin : ‖W‖²_F / ‖W‖²₂ = Σσ² / σ₁².

    Parameters
    ----------
    S : Tensor, (p,), décroissant

    Returns
    -------
    float, entre 1 et le rang de W ; 0 pour une matrice nulle
    """
    S = check_spectrum(S)
    return float(((S / S[0]) ** 2).sum()) if S[0] > 0 else 0.0


def break_even_rank(m: int, n: int) -> float:
    """Rang d'équilibre r* = mn/(m + n) : deux facteurs de rang r ne pèsent moins que W que si r < r*.

    Parameters
    ----------
    m, n : int
        Dimensions de W.

    Returns
    -------
    float
    """
    m, n = check_integer(m, "m"), check_integer(n, "n")
    return m * n / (m + n)


def marchenko_pastur_edge(m: int, n: int, norm: float) -> float:
    """Bord de Marchenko–Pastur : où s'arrête le spectre d'un grand bruit m×n de norme de Frobenius `norm`.

    Des coefficients indépendants d'écart-type s = norm/√(mn) donnent σ₁ ≈ s(√m + √n), et presque rien au-delà.

    Parameters
    ----------
    m, n : int
    norm : float, positif ou nul

    Returns
    -------
    float

    Raises
    ------
    TypeError, ValueError
        Une dimension nulle, une norme négative ou qui n'est pas un nombre.
    """
    m, n = check_integer(m, "m"), check_integer(n, "n")
    norm = check_finite_number(norm, "norm")
    if norm < 0:
        raise ValueError(f"norm : reçu {norm!r}, attendu une norme, positive ou nulle.")
    return norm / (m * n) ** 0.5 * (m**0.5 + n**0.5)


class LowRankAnalysis:
    """Le potentiel de compression d'une matrice par rang faible (section 11.0)."""

    @staticmethod
    def analyze_weight_matrix(W: Tensor, threshold: float = 0.99) -> dict[str, Any]:
        """Rang effectif de W au seuil d'énergie donné, et ce que pèseraient ses facteurs.

        Parameters
        ----------
        W : Tensor, (m, n)
        threshold : float, dans ]0, 1]
            Fraction de l'énergie Σσ² à garder.

        Returns
        -------
        dict
            ``original_params``, ``effective_rank``, ``full_rank``, ``compressed_params``, ``compression_ratio``,
            ``singular_values`` (tableau NumPy), ``energy_captured`` ; et, en plus du cours, ``break_even_rank``,
            ``entropy_rank``, ``stable_rank``.
        """
        S = singular_values(W)
        m, n = W.shape
        rank = rank_for_energy(S, threshold)
        return {
            "original_params": m * n,
            "effective_rank": rank,
            "full_rank": min(m, n),
            "compressed_params": rank * (m + n),
            "compression_ratio": m * n / (rank * (m + n)),
            "singular_values": S.cpu().numpy(),
            "energy_captured": float(cumulative_energy(S)[rank - 1]),
            "break_even_rank": break_even_rank(m, n),
            "entropy_rank": entropy_rank(S),
            "stable_rank": stable_rank(S),
        }


def find_optimal_rank(
    weight_matrix: Tensor, max_rank: int | None = None, target_error: float = 0.01, verbose: bool = False
) -> int:
    """Plus petit rang dont l'erreur relative (Frobenius) ne dépasse pas `target_error` (section 11.1).

    Parameters
    ----------
    weight_matrix : Tensor, (m, n)
    max_rank : int, optionnel
        Rang à ne pas dépasser. S'il ne suffit pas, il est rendu tel quel, avec un avertissement.
    target_error : float, dans ]0, 1]
    verbose : bool
        Imprime le rang et son erreur.

    Returns
    -------
    int
    """
    S = singular_values(
        weight_matrix, "weight_matrix"
    )  # la seule décomposition : elle donne l'erreur de tous les rangs
    m, n = weight_matrix.shape
    limit = min(m, n) if max_rank is None else check_rank(max_rank, m, n, "max_rank")
    rank = rank_for_error(S, target_error)
    errors = truncation_errors(S)
    if rank > limit:
        warnings.warn(
            f"max_rank = {limit} laisse une erreur relative de {errors[limit - 1]:.4g}, "
            f"au-dessus de target_error = {target_error:g} : il faudrait le rang {rank}.",
            stacklevel=2,
        )
        rank = limit
    if verbose:
        print(f"rang {rank} : erreur relative {errors[rank - 1]:.4g}")
    return rank


def energy_analysis(weight_matrix: Tensor, energy_threshold: float = 0.99, verbose: bool = False) -> int:
    """Plus petit rang qui garde la fraction `energy_threshold` de l'énergie Σσ² (section 11.1).

    Parameters
    ----------
    weight_matrix : Tensor, (m, n)
    energy_threshold : float, dans ]0, 1]
    verbose : bool
        Imprime le rang et l'énergie gardée.

    Returns
    -------
    int
    """
    energy_threshold = check_fraction(energy_threshold, "energy_threshold")
    S = singular_values(weight_matrix, "weight_matrix")
    rank = rank_for_energy(S, energy_threshold)
    if verbose:
        print(f"rang {rank} : {cumulative_energy(S)[rank - 1]:.2%} de l'énergie")
    return rank


def analyze_svd_approximation_error(W: Tensor, max_rank: int | None = None) -> list[dict[str, float]]:
    """Ce que perd et ce que garde la SVD tronquée, à chaque rang (section 11.2).

    Parameters
    ----------
    W : Tensor, (m, n)
    max_rank : int, optionnel
        Le dernier rang analysé ; min(m, n) par défaut.

    Returns
    -------
    list de dict
        Un par rang : ``rank``, ``error`` (erreur relative de Frobenius, la racine de la somme des carrés des valeurs
        singulières abandonnées, divisée par la norme de W) et ``energy`` (part de l'énergie gardée, 1 − error²).
    """
    S = singular_values(W)
    m, n = W.shape
    limit = min(m, n) if max_rank is None else check_rank(max_rank, m, n, "max_rank")
    rows = zip(range(1, limit + 1), truncation_errors(S).tolist(), cumulative_energy(S).tolist(), strict=False)
    return [{"rank": rank, "error": error, "energy": energy} for rank, error, energy in rows]
