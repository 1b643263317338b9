"""Le train de tenseurs : un tenseur d'ordre d écrit comme une chaîne de d cœurs (r_{k−1}, n_k, r_k)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .svd import truncated_svd, working_dtype
from .validation import check_integer, check_tensor, is_finite


def unfoldings(T: Tensor) -> list[Tensor]:
    """Les d − 1 dépliements : le k-ième range en lignes les k premiers indices, en colonnes les autres.

    Parameters
    ----------
    T : Tensor, (n₁, …, n_d), d ≥ 2

    Returns
    -------
    list de Tensor, (n₁ ⋯ n_k, n_{k+1} ⋯ n_d), k = 1 … d − 1
    """
    T = check_tensor_order(T)
    return [T.reshape(T.shape[:k].numel(), -1) for k in range(1, T.ndim)]


def tt_svd(T: Tensor, rank: int) -> list[Tensor]:
    """TT-SVD : une SVD tronquée par lien, de gauche à droite.

    Parameters
    ----------
    T : Tensor, (n₁, …, n_d), d ≥ 2
    rank : int
        Rang de chaque lien, ramené à ce que permettent les dimensions.

    Returns
    -------
    list de d Tensor, (r_{k−1}, n_k, r_k), avec r₀ = r_d = 1
        L'erreur ‖T − T̂‖ est au plus √(Σ_k ε_k²), où ε_k est celle de la SVD du k-ième dépliement au même rang : donc
        au plus √(d − 1) fois la plus petite possible à ces rangs.

    References
    ----------
    Oseledets (2011), théorème 2.2 et corollaire 2.4.
    """
    T = check_tensor_order(T)
    rank = check_integer(rank, "rank")
    cores, left = [], 1
    rest = T.to(working_dtype(T))
    for n in T.shape[:-1]:
        rest = rest.reshape(left * n, -1)  # (r_{k−1} n_k, n_{k+1} ⋯ n_d)
        kept = min(rank, *rest.shape)
        U, S, Vh = truncated_svd(rest, kept)
        cores.append(U.reshape(left, n, kept).to(T.dtype))
        rest, left = S[:, None] * Vh, kept  # (r_k, n_{k+1} ⋯ n_d)
    return [*cores, rest.reshape(left, T.shape[-1], 1).to(T.dtype)]


def tt_contract(cores: Sequence[Tensor]) -> Tensor:
    """Le tenseur que décrit une chaîne de cœurs.

    Parameters
    ----------
    cores : list de d Tensor, (r_{k−1}, n_k, r_k), avec r₀ = r_d = 1

    Returns
    -------
    Tensor, (n₁, …, n_d)
    """
    if not isinstance(cores, Sequence) or len(cores) == 0:
        raise ValueError(f"cores : reçu {type(cores).__name__}, attendu une liste d'au moins un cœur.")
    cores = [check_tensor(core, f"cores[{k}]") for k, core in enumerate(cores)]
    total = torch.ones(1, 1, dtype=cores[0].dtype, device=cores[0].device)
    for k, core in enumerate(cores):
        if core.ndim != 3 or core.shape[0] != total.shape[1]:
            raise ValueError(f"cores[{k}] : reçu la forme {tuple(core.shape)}, attendu ({total.shape[1]}, n, r).")
        total = (total @ core.flatten(1)).reshape(-1, core.shape[2])  # (n₁ ⋯ n_k, r_k)
    if total.shape[1] != 1:
        raise ValueError(f"cores : le dernier rang est {total.shape[1]}, attendu 1.")
    return total.reshape([core.shape[1] for core in cores])


def check_tensor_order(T: Tensor) -> Tensor:
    """Rend un tenseur de flottants finis, non vide, d'ordre 2 au moins."""
    T = check_tensor(T, "T")
    if T.ndim < 2 or T.numel() == 0:
        raise ValueError(f"T : reçu la forme {tuple(T.shape)}, attendu (n₁, …, n_d), d ≥ 2, sans dimension nulle.")
    if not T.is_floating_point():
        raise TypeError(f"T : reçu des éléments {T.dtype}, attendu des flottants.")
    if not is_finite(T):
        raise ValueError("T : NaN ou infini, attendu des nombres finis.")
    return T.detach()
