"""Décomposition en valeurs singulières : W = U diag(S) Vh, tronquée au rang r.

Le cours appelle ``torch.svd``, qui rend V ; ``torch.linalg.svd`` rend Vh = Vᵀ, la matrice que le produit attend.
"""

import torch
from torch import Tensor

from .validation import check_matrix, check_rank


def working_dtype(W: Tensor) -> torch.dtype:
    """Précision des calculs : float64 reste float64, le reste (fp16 et bf16 compris) passe en float32."""
    return torch.float64 if W.dtype == torch.float64 else torch.float32


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
    return torch.linalg.svdvals(tall.to(working_dtype(W)))


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
    """
    W = check_matrix(W)
    rank = check_rank(rank, *W.shape)
    U, S, Vh = torch.linalg.svd(W.to(working_dtype(W)), full_matrices=False)
    return U[:, :rank].to(W.dtype), S[:rank].to(W.dtype), Vh[:rank].to(W.dtype)


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
