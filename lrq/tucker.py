"""La décomposition de Tucker : un petit noyau, et une matrice de facteurs orthonormés par indice du tenseur."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .svd import to_dtype, working_dtype
from .tensor_train import check_tensor_order
from .validation import check_integer, check_integers, check_tensor, is_finite


def tucker(T: Tensor, rank: int | Sequence[int], iterations: int = 100) -> tuple[Tensor, list[Tensor]]:
    """Décomposition de Tucker, par TensorLy : T[i₁, …, i_d] ≈ Σ C[a₁, …, a_d] U₁[i₁, a₁] ⋯ U_d[i_d, a_d].

    Parameters
    ----------
    T : Tensor, (n₁, …, n_d), d ≥ 2
    rank : int, ou un par indice
        Ramené à ce que permettent les dimensions : r_k ≤ n_k, et r_k ≤ Π des autres rangs.
    iterations : int, au moins 0
        Au plus autant de passages de HOOI, qui n'augmentent jamais l'erreur ; 0 rend la HOSVD, une SVD tronquée par
        dépliement.

    Returns
    -------
    core : Tensor, (r₁, …, r_d)
    factors : list de d Tensor, (n_k, r_k), aux colonnes orthonormées
        Dans le dtype et sur l'appareil de T.

    Raises
    ------
    TypeError, ValueError
        Tenseur d'ordre 1, vide ou non fini ; un rang nul, une liste d'une autre longueur que d.
    ImportError
        TensorLy n'est pas installée.

    References
    ----------
    De Lathauwer, De Moor et Vandewalle (2000) ; Kossaifi et al. (2019).
    """
    T = check_tensor_order(T)
    ranks = [min(r, n) for r, n in zip(check_integers(rank, "rank", T.ndim, "indice"), T.shape, strict=True)]
    for k, r in enumerate(ranks):  # un dépliement du noyau, (r_k, Π des autres), n'a pas plus de rang que de colonnes
        ranks[k] = min(r, math.prod(ranks) // r)
    iterations = check_integer(iterations, "iterations", minimum=0)
    try:
        import tensorly
        from tensorly.decomposition import tucker as decompose
    except ImportError:
        raise ImportError("tucker demande TensorLy : pip install tensorly.") from None
    with tensorly.backend_context("numpy", local_threadsafe=True):
        array = T.to(working_dtype(T)).cpu().numpy()
        _, power = np.frexp(np.abs(array).max())
        array = np.ldexp(array, -power)  # à l'échelle 1, exactement : des carrés déborderaient, ou s'annuleraient
        turns = iterations if array.any() else 0  # d'un tenseur nul, l'erreur relative est 0/0
        core, factors = decompose(array, ranks, n_iter_max=turns, tol=1e-7, random_state=0)
    core, *factors = (torch.tensor(t.copy(), device=T.device) for t in (np.ldexp(core, power), *factors))
    return to_dtype(core, T.dtype, "T"), [U.to(T.dtype) for U in factors]


def tucker_contract(core: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """Le tenseur que décrivent un noyau et ses facteurs.

    Parameters
    ----------
    core : Tensor, (r₁, …, r_d)
    factors : list de d Tensor, (n_k, r_k)

    Returns
    -------
    Tensor, (n₁, …, n_d)
    """
    core, factors = check_tucker(core, factors)
    for U in factors:  # l'indice qui part en tête revient en queue : au bout de d tours, l'ordre
        core = torch.tensordot(core, U, ([0], [1]))  # (a₁, a₂, …) × (n₁, a₁) -> (a₂, …, n₁)
    return core


def check_tucker(core: Tensor, factors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Rend un noyau et ses facteurs, finis et de même dtype, un par indice et de sa taille."""
    if check_tensor(core, "core").ndim == 0:
        raise ValueError("core : reçu un scalaire, attendu un noyau (r₁, …, r_d).")
    if isinstance(factors, Tensor | str) or not isinstance(factors, Sequence) or len(factors) != core.ndim:
        received = f"{len(factors)} facteur(s)" if isinstance(factors, list | tuple) else type(factors).__name__
        raise ValueError(f"factors : reçu {received}, attendu une liste de {core.ndim}, un par indice du noyau.")
    factors = [check_tensor(U, f"factors[{k}]") for k, U in enumerate(factors)]
    for k, U in enumerate(factors):
        if U.ndim != 2 or U.shape[1] != core.shape[k]:
            raise ValueError(f"factors[{k}] : reçu la forme {tuple(U.shape)}, attendu (n, {core.shape[k]}).")
    for name, t in [("core", core), *((f"factors[{k}]", U) for k, U in enumerate(factors))]:
        if not t.is_floating_point() or t.dtype != core.dtype:
            raise TypeError(f"{name} : reçu des éléments {t.dtype}, attendu des flottants, partout les mêmes.")
        if t.numel() == 0 or not is_finite(t):
            raise ValueError(f"{name} : reçu un tenseur {tuple(t.shape)} vide ou non fini, attendu des nombres finis.")
    return core, factors
