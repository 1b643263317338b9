"""Le train de tenseurs : un tenseur d'ordre d écrit comme une chaîne de d cœurs (r_{k−1}, n_k, r_k).

Une *matrice* en train a des cœurs (r_{k−1}, in_k, out_k, r_k) : tout ce qui concerne les rangs les lit comme des cœurs
(r_{k−1}, in_k · out_k, r_k).
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .svd import norm, to_dtype, working_dtype
from .validation import check_fraction, check_integer, check_integers, check_matrix, check_tensor, is_finite

# --- un tenseur -------------------------------------------------------------------------------------------------------


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


def tt_svd(T: Tensor, rank: int | Sequence[int] | None = None, error: float | None = None) -> list[Tensor]:
    """TT-SVD : une SVD tronquée par lien, de gauche à droite.

    Parameters
    ----------
    T : Tensor, (n₁, …, n_d), d ≥ 2
    rank : int, ou d − 1 entiers
        Rang de chaque lien, ramené à ce que permettent les dimensions.
    error : float, dans ]0, 1]
        À la place de `rank` : l'erreur relative permise, dont chaque lien reçoit la part error/√(d − 1).

    Returns
    -------
    list de d Tensor, (r_{k−1}, n_k, r_k), avec r₀ = r_d = 1
        Orthonormés à gauche, sauf le dernier. L'erreur ‖T − T̂‖ est au plus √(Σ_k ε_k²), où ε_k est celle de la SVD du
        k-ième dépliement au même rang : donc au plus √(d − 1) fois la plus petite possible à ces rangs. Avec `error`,
        elle est au plus `error` · ‖T‖, à la précision du dtype près.

    Raises
    ------
    TypeError, ValueError
        Tenseur d'ordre 1, vide ou non fini ; `rank` et `error` tous deux donnés, ou tous deux absents ; un rang nul,
        une liste d'une autre longueur que d − 1, une erreur hors de ]0, 1].

    References
    ----------
    Oseledets (2011), algorithme 1, théorème 2.2 et corollaire 2.4.
    """
    T = check_tensor_order(T)
    ranks, share = check_truncation(rank, error, T.ndim)
    rest = T.to(working_dtype(T))
    tail = share * norm(rest)
    cores, left = [], 1
    for n, kept in zip(T.shape[:-1], ranks, strict=True):
        U, rest = cut_bond(rest.reshape(left * n, -1), kept, tail)  # (r_{k−1} n_k, n_{k+1} ⋯ n_d)
        cores.append(U.reshape(left, n, -1).to(T.dtype))
        left = U.shape[1]
    return [*cores, to_dtype(rest.reshape(left, T.shape[-1], 1), T.dtype, "T")]


def cut_bond(matrix: Tensor, rank: int | None, tail: float) -> tuple[Tensor, Tensor]:
    """U et S Vh, tronqués au rang donné ou, sinon, au plus petit qui laisse au plus `tail` d'erreur absolue."""
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    if rank is None:
        # l'erreur si l'on coupe avant σ_k, au carré, en part de `tail` : rien ne s'annule ; NaN si le tenseur est nul
        dropped = (S.double() / tail).square().flip(0).cumsum(0).flip(0)
        rank = max(1, int((dropped > 1).sum()))
    return U[:, :rank].contiguous(), (S[:rank, None] * Vh[:rank]).contiguous()  # LAPACK les range par colonnes


def tt_contract(cores: Iterable[Tensor]) -> Tensor:
    """Le tenseur que décrit une chaîne de cœurs.

    Parameters
    ----------
    cores : list de d Tensor, (r_{k−1}, n_k, r_k), avec r₀ = r_d = 1

    Returns
    -------
    Tensor, (n₁, …, n_d)
    """
    cores = check_cores(cores)
    total = cores[0].flatten(0, -2)  # (n₁, r₁)
    for core in cores[1:]:
        total = (total @ core.flatten(1)).reshape(-1, core.shape[-1])  # (n₁ ⋯ n_k, r_k)
    return total.reshape([n for core in cores for n in core.shape[1:-1]])


# --- une chaîne -------------------------------------------------------------------------------------------------------


def tt_ranks(cores: Iterable[Tensor]) -> list[int]:
    """Les rangs r₁ … r_{d−1} d'une chaîne de cœurs, un par lien.

    Parameters
    ----------
    cores : liste de d cœurs (r_{k−1}, …, r_k)
    """
    return [core.shape[-1] for core in check_cores(cores)[:-1]]


def tt_orthogonalize(cores: Iterable[Tensor], centre: int) -> list[Tensor]:
    """La forme canonique du même tenseur : des cœurs orthonormés, sauf celui du centre, qui porte toute la norme.

    Parameters
    ----------
    cores : list de d Tensor, (r_{k−1}, n_k, r_k)
    centre : int, entre 0 et d − 1
        Avant lui, les cœurs lus (r_{k−1} n_k, r_k) ont des colonnes orthonormées ; après lui, lus (r_{k−1}, n_k r_k),
        des lignes orthonormées.

    Returns
    -------
    list de d Tensor
        Un rang plus grand que ne le permettent les dimensions est ramené à ce qu'elles permettent.
    """
    cores = check_cores(cores)
    centre = check_integer(centre, "centre", 0, len(cores) - 1)
    dtype, chain = cores[0].dtype, [core.detach().to(working_dtype(cores[0])) for core in cores]
    for k in range(centre):
        Q, R = torch.linalg.qr(chain[k].flatten(0, -2))  # (r_{k−1} n_k, r_k) = Q R
        chain[k] = Q.reshape(*chain[k].shape[:-1], -1)
        chain[k + 1] = torch.tensordot(R, chain[k + 1], 1)  # R passe au cœur suivant
    for k in range(len(chain) - 1, centre, -1):
        Q, R = torch.linalg.qr(chain[k].flatten(1).T)  # (r_{k−1}, n_k r_k) = Rᵀ Qᵀ
        chain[k] = Q.T.reshape(-1, *chain[k].shape[1:])
        chain[k - 1] = torch.tensordot(chain[k - 1], R.T, 1)
    return [to_dtype(core, dtype, "cores").contiguous() for core in chain]


def tt_round(
    cores: Iterable[Tensor], rank: int | Sequence[int] | None = None, error: float | None = None
) -> list[Tensor]:
    """Réduit les rangs d'une chaîne, sans jamais former le tenseur : des QR vers la gauche, des SVD vers la droite.

    Parameters
    ----------
    cores : list de d Tensor, (r_{k−1}, n_k, r_k), d ≥ 2
    rank, error : l'un ou l'autre
        Comme pour :func:`tt_svd`, qui donnerait le même tenseur.

    Returns
    -------
    list de d Tensor, orthonormés à gauche, sauf le dernier

    References
    ----------
    Oseledets (2011), algorithme 2.
    """
    cores = check_cores(cores)
    ranks, share = check_truncation(rank, error, len(cores))
    chain = tt_orthogonalize([core.to(working_dtype(core)) for core in cores], 0)
    tail = share * norm(chain[0])  # le premier porte la norme de tout le tenseur
    for k, kept in enumerate(ranks):
        U, rest = cut_bond(chain[k].flatten(0, -2), kept, tail)  # (r_{k−1} n_k, r_k)
        chain[k] = U.reshape(*chain[k].shape[:-1], -1)
        chain[k + 1] = torch.tensordot(rest, chain[k + 1], 1)
    return [to_dtype(core, cores[0].dtype, "cores") for core in chain]


# --- une matrice ------------------------------------------------------------------------------------------------------


def tt_matrix_svd(
    W: Tensor,
    input_dims: Sequence[int],
    output_dims: Sequence[int],
    rank: int | Sequence[int] | None = None,
    error: float | None = None,
) -> list[Tensor]:
    """TT-SVD d'une matrice dont lignes et colonnes se découpent : W[o₁…o_d, i₁…i_d] = G₁[i₁, o₁] ⋯ G_d[i_d, o_d].

    Parameters
    ----------
    W : Tensor, (out, in)
    input_dims, output_dims : d entiers chacun, d ≥ 2
        De produits in et out.
    rank, error : l'un ou l'autre
        Comme pour :func:`tt_svd`.

    Returns
    -------
    list de d Tensor, (r_{k−1}, in_k, out_k, r_k)

    Raises
    ------
    TypeError, ValueError
        Comme :func:`tt_svd` ; des dimensions dont le produit n'est pas celui de W, ou qui ne vont pas par paires.

    References
    ----------
    Oseledets (2010) ; Novikov et al. (2015).
    """
    W = check_matrix(W)
    inputs, outputs = check_dims(input_dims, output_dims, W.shape[1], W.shape[0])
    d = len(inputs)
    T = W.reshape(*outputs, *inputs).permute([axis for k in range(d) for axis in (d + k, k)])  # (in₁, out₁, in₂, …)
    cores = tt_svd(T.reshape([i * o for i, o in zip(inputs, outputs, strict=True)]), rank, error)
    return [core.unflatten(1, pair) for core, pair in zip(cores, zip(inputs, outputs, strict=True), strict=True)]


def tt_matrix_contract(cores: Iterable[Tensor]) -> Tensor:
    """La matrice que décrit une chaîne de cœurs.

    Parameters
    ----------
    cores : list de d Tensor, (r_{k−1}, in_k, out_k, r_k)

    Returns
    -------
    Tensor, (out, in)
    """
    return merge_cores(check_cores(cores, order=4))[0, :, :, 0].T.contiguous()


def merge_cores(cores: Sequence[Tensor]) -> Tensor:
    """Des cœurs voisins réunis en un seul, (r, in, out, s) ; par moitiés, le plus gros produit vient en dernier."""
    if len(cores) == 1:
        return cores[0]
    A, B = merge_cores(cores[: len(cores) // 2]), merge_cores(cores[len(cores) // 2 :])
    (r, i, o, _), (_, j, p, s) = A.shape, B.shape
    product = A.flatten(0, 2) @ B.flatten(1)  # (r i o, t) @ (t, j p s)
    return product.reshape(r, i, o, j, p, s).transpose(2, 3).reshape(r, i * j, o * p, s)


# --- les refus --------------------------------------------------------------------------------------------------------


def check_tensor_order(T: Any) -> Tensor:
    """Rend un tenseur de flottants finis, non vide, d'ordre 2 au moins."""
    T = check_tensor(T, "T")
    if T.ndim < 2 or T.numel() == 0:
        raise ValueError(f"T : reçu la forme {tuple(T.shape)}, attendu (n₁, …, n_d), d ≥ 2, sans dimension nulle.")
    if not T.is_floating_point():
        raise TypeError(f"T : reçu des éléments {T.dtype}, attendu des flottants.")
    if not is_finite(T):
        raise ValueError("T : NaN ou infini, attendu des nombres finis.")
    return T.detach()


def check_cores(cores: Any, name: str = "cores", order: int | None = None) -> list[Tensor]:
    """Rend une chaîne de cœurs finis, de même ordre et de même dtype, dont les rangs s'accordent, de 1 à 1.

    Raises
    ------
    TypeError, ValueError
        Sinon ; le message dit quel cœur rompt la chaîne.
    """
    listed = list(cores) if isinstance(cores, Iterable) and not isinstance(cores, Tensor | str) else []
    if not listed:
        raise ValueError(f"{name} : reçu {type(cores).__name__}, attendu une liste d'au moins un cœur.")
    listed = [check_tensor(core, f"{name}[{k}]") for k, core in enumerate(listed)]
    order = order or max(listed[0].ndim, 3)
    left, middle = 1, "in, out" if order == 4 else ", ".join(["n"] * (order - 2))
    for k, core in enumerate(listed):
        if core.ndim != order or core.shape[0] != left or core.numel() == 0:
            raise ValueError(f"{name}[{k}] : reçu la forme {tuple(core.shape)}, attendu ({left}, {middle}, r).")
        if not core.is_floating_point() or core.dtype != listed[0].dtype:
            raise TypeError(f"{name}[{k}] : reçu des éléments {core.dtype}, attendu des flottants, partout les mêmes.")
        if not is_finite(core):
            raise ValueError(f"{name}[{k}] : NaN ou infini, attendu des nombres finis.")
        left = core.shape[-1]
    if left != 1:
        raise ValueError(f"{name} : le dernier rang est {left}, attendu 1.")
    return listed


def check_truncation(rank: Any, error: Any, order: int) -> tuple[list[int] | list[None], float]:
    """Rend un rang par lien et une part d'erreur nulle, ou aucun rang et la part de chaque lien."""
    bonds = order - 1
    if (rank is None) == (error is None):
        raise ValueError(f"rank, error : reçu {rank!r} et {error!r}, attendu l'un ou l'autre.")
    if rank is None:
        return [None] * bonds, check_fraction(error, "error") / math.sqrt(max(bonds, 1))
    return check_integers(rank, "rank", bonds, "lien"), 0.0


def check_dims(
    input_dims: Any, output_dims: Any, in_features: int | None = None, out_features: int | None = None
) -> tuple[list[int], list[int]]:
    """Rend deux listes d'autant d'entiers, deux au moins, de produits donnés."""
    found = []
    for dims, name, size in ((input_dims, "input_dims", in_features), (output_dims, "output_dims", out_features)):
        if not isinstance(dims, Sequence) or isinstance(dims, str) or len(dims) < 2:
            raise ValueError(f"{name} : reçu {dims!r}, attendu une liste d'au moins deux entiers.")
        found.append([check_integer(n, f"{name}[{k}]") for k, n in enumerate(dims)])
        if size is not None and math.prod(found[-1]) != size:
            raise ValueError(f"{name} : reçu {dims!r}, de produit {math.prod(found[-1])}, attendu {size}.")
    inputs, outputs = found
    if len(inputs) != len(outputs):
        raise ValueError(
            f"output_dims : reçu {len(outputs)} dimensions, attendu {len(inputs)} comme en entrée (ajoutez des 1)."
        )
    return inputs, outputs


def clamped_ranks(input_dims: Sequence[int], output_dims: Sequence[int], rank: int | Sequence[int]) -> list[int]:
    """Un rang par lien, ramené à ce que permettent le lien précédent et les dimensions."""
    sizes = [i * o for i, o in zip(input_dims, output_dims, strict=True)]
    ranks = [1]
    for k, r in enumerate(check_integers(rank, "rank", len(sizes) - 1, "lien"), 1):
        ranks.append(min(r, ranks[-1] * sizes[k - 1], math.prod(sizes[k:])))  # les mêmes que ceux de TT-SVD
    return ranks[1:]
