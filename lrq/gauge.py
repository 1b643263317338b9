"""La jauge : U R et V R⁻ᵀ donnent le même produit que U et V, mais ne se quantifient pas aussi bien.

Le bruit d'arrondi de U traverse V, et réciproquement : ‖δU Vᵀ‖ et ‖U δVᵀ‖. Il est le plus petit quand ‖U‖ ‖V‖ l'est, et
que l'énergie se répartit également entre les colonnes.
"""

import math

import torch
from torch import Tensor

from .svd import share_singular_values, working_dtype
from .validation import check_integer, check_matrix


def balance_factors(U: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """Les facteurs équilibrés du même produit : U'ᵀU' = V'ᵀV', diagonale. ‖U'‖ ‖V'‖ est le plus petit possible, Σσ.

    Parameters
    ----------
    U : Tensor, (m, r)
    V : Tensor, (n, r)

    Returns
    -------
    U, V : Tensor, mêmes formes
        Le produit ne change pas : U' V'ᵀ = U Vᵀ.

    Raises
    ------
    TypeError, ValueError
        Facteurs qui ne sont pas des matrices finies, de rangs différents, ou plus larges que hauts.
    """
    U, V = check_factors(U, V)
    (Q, A), (P, B) = (torch.linalg.qr(t.to(working_dtype(t))) for t in (U, V))  # (m, r) (r, r), (n, r) (r, r)
    left, S, right = torch.linalg.svd(A @ B.T)  # la SVD du produit, réduite à (r, r)
    X, Y = share_singular_values(Q @ left, S, right @ P.T)
    return X.to(U.dtype), Y.to(V.dtype)


def rotate_factors(U: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """Le même produit, par une rotation qui mélange les colonnes : chacune prend sa part de l'énergie des autres.

    La rotation est celle des cosinus (DCT-II) : ses coefficients sont tous petits, et elle ne tire rien au hasard.

    Parameters
    ----------
    U : Tensor, (m, r)
    V : Tensor, (n, r)

    Returns
    -------
    U, V : Tensor, mêmes formes
        U R et V R, avec R orthogonale.

    Raises
    ------
    TypeError, ValueError
        Comme :func:`balance_factors`.
    """
    U, V = check_factors(U, V)
    R = cosine_rotation(U.shape[1]).to(U.device)
    return tuple((t.to(working_dtype(t)) @ R.to(working_dtype(t))).to(t.dtype) for t in (U, V))  # type: ignore[return-value]


def cosine_rotation(rank: int) -> Tensor:
    """La matrice orthogonale de la DCT-II, (r, r), float64 : R_jk = √(2/r) cos(π (2j + 1) k / 2r), 1/√r pour k = 0."""
    rank = check_integer(rank, "rank")
    j = torch.arange(rank, dtype=torch.float64)
    R = math.sqrt(2 / rank) * torch.cos(math.pi * (2 * j[:, None] + 1) * j / (2 * rank))
    R[:, 0] = 1 / math.sqrt(rank)
    return R


def check_factors(U: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """Rend deux facteurs finis, de même rang, au plus égal à leurs hauteurs."""
    U, V = check_matrix(U, "U"), check_matrix(V, "V")
    if U.shape[1] != V.shape[1]:
        raise ValueError(f"V : reçu {V.shape[1]} colonnes, attendu {U.shape[1]}, autant que U.")
    if U.shape[1] > min(len(U), len(V)):
        raise ValueError(f"U : reçu le rang {U.shape[1]}, attendu au plus {min(len(U), len(V))}, la hauteur de U et V.")
    return U, V
