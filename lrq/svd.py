"""Décomposition en valeurs singulières : W = U diag(S) Vh, tronquée au rang r.

Le cours appelle ``torch.svd``, qui rend V ; ``torch.linalg.svd`` rend Vh = Vᵀ, la matrice que le produit attend.
"""

import math

import torch
from torch import Tensor

from .validation import check_matrix, check_rank, is_finite


def working_dtype(W: Tensor) -> torch.dtype:
    """Précision des calculs : float64 reste float64, le reste (fp16 et bf16 compris) passe en float32."""
    return torch.float64 if W.dtype == torch.float64 else torch.float32


def norm(t: Tensor) -> float:
    """Norme de Frobenius, en float64, rapportée au plus grand coefficient : aucun carré ne déborde ni ne s'annule."""
    x = t.detach().double()
    largest = float(x.abs().max()) if x.numel() else 0.0
    return largest * float((x / largest).norm()) if 0 < largest < math.inf else largest


def relative(error: float, size: float) -> float:
    """Une erreur rapportée à ce qu'elle abîme ; 0 si rien n'est abîmé, même rapporté à zéro ; NaN reste NaN."""
    if size == 0:
        return 0.0 if error == 0 else math.inf
    return error / size


def to_dtype(t: Tensor, dtype: torch.dtype, name: str = "W") -> Tensor:
    """`t` dans ce dtype, s'il y tient ; `name` nomme, dans un refus, ce dont il vient.

    Raises
    ------
    ValueError
        L'un de ses nombres y serait infini : une valeur singulière peut dépasser 65 504 quand W tient en float16.
    """
    kept = t.to(dtype)
    if not is_finite(kept):
        raise ValueError(
            f"{name} : sa décomposition va jusqu'à {float(t.abs().max()):.4g}, que {dtype} ne peut garder ; donnez-la "
            f"{'à une autre échelle' if dtype == torch.float64 else 'dans un dtype plus large'}."
        )
    return kept


def singular_values(W: Tensor, name: str = "W") -> Tensor:
    """Valeurs singulières de W, par ordre décroissant.

    Parameters
    ----------
    W : Tensor, (m, n)
    name : str
        Nom de l'argument dans les messages d'erreur.

    Returns
    -------
    Tensor, (min(m, n),)
        En float32, ou en float64 si W l'est.
    """
    W = check_matrix(W, name)
    tall = W if W.shape[0] >= W.shape[1] else W.T  # mêmes valeurs, et LAPACK y va presque deux fois plus vite
    S = torch.linalg.svdvals(tall.to(working_dtype(W)))
    return to_dtype(S, S.dtype, name)


def truncated_svd(W: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Les `rank` premiers triplets singuliers de W : la meilleure approximation de ce rang (Eckart–Young).

    Parameters
    ----------
    W : Tensor, (m, n)
    rank : int, entre 1 et min(m, n)

    Returns
    -------
    U : Tensor, (m, r)
    S : Tensor, (r,)
    Vh : Tensor, (r, n)
        Dans le dtype et sur l'appareil de W.

    Raises
    ------
    TypeError, ValueError
        W n'est pas une matrice réelle et finie, rang hors de 1 … min(m, n), ou une valeur singulière que le dtype de W
        ne peut garder (plus de 65 504 en float16).
    """
    W = check_matrix(W)
    rank = check_rank(rank, *W.shape)
    U, S, Vh = torch.linalg.svd(W.to(working_dtype(W)), full_matrices=False)
    return U[:, :rank].to(W.dtype), to_dtype(S[:rank], W.dtype), Vh[:rank].to(W.dtype)


def balanced_factors(W: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Facteurs équilibrés de la SVD tronquée : W ≈ U Vᵀ, avec √S partagé entre U et V.

    Parameters
    ----------
    W : Tensor, (m, n)
    rank : int, entre 1 et min(m, n)

    Returns
    -------
    U : Tensor, (m, r)
    V : Tensor, (n, r)
        Dans le dtype et sur l'appareil de W.
    """
    W = check_matrix(W)
    U, V = share_singular_values(*truncated_svd(W.to(working_dtype(W)), rank))
    return U.to(W.dtype), V.to(W.dtype)


def share_singular_values(U: Tensor, S: Tensor, Vh: Tensor) -> tuple[Tensor, Tensor]:
    """Donne √S à chacun : U diag(S) Vh = (U √S)(V √S)ᵀ, deux facteurs de même énergie.

    Parameters
    ----------
    U : Tensor, (m, r)
    S : Tensor, (r,)
    Vh : Tensor, (r, n)

    Returns
    -------
    U : Tensor, (m, r)
    V : Tensor, (n, r)
    """
    root = S.sqrt()
    U, V = U * root, Vh.T * root  # (m, r) * (r,), (n, r) * (r,)
    return U.contiguous(), V.contiguous()  # LAPACK rend U par colonnes, ce que safetensors refuse d'écrire
