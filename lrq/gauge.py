"""La jauge : U R et V R⁻ᵀ donnent le même produit que U et V, mais ne se quantifient pas aussi bien.

Le bruit d'arrondi de U traverse V, et réciproquement : ‖δU Vᵀ‖ et ‖U δVᵀ‖. Il est le plus petit quand ‖U‖ ‖V‖ l'est, et
que l'énergie se répartit également entre les colonnes. Un train de tenseurs a la même liberté à chacun de ses liens.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .svd import share_singular_values, to_dtype, working_dtype
from .tensor_train import check_cores, tt_orthogonalize
from .tucker import check_tucker
from .validation import check_choice, check_integer, check_matrix

GAUGES = ("orthogonal", "balanced", "rotated")


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
    return to_dtype(X, U.dtype, "U"), to_dtype(Y, V.dtype, "V")


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
    X, Y = (t.to(working_dtype(t)) @ R.to(working_dtype(t)) for t in (U, V))
    return to_dtype(X, U.dtype, "U"), to_dtype(Y, V.dtype, "V")


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


# --- à chaque lien d'un train de tenseurs -----------------------------------------------------------------------------


def balance_cores(cores: Iterable[Tensor]) -> list[Tensor]:
    """Les cœurs équilibrés du même tenseur : à chaque lien, les valeurs singulières S partagées, √S de chaque côté.

    Parameters
    ----------
    cores : list de d Tensor, (r_{k−1}, n_k, r_k), ou (r_{k−1}, in_k, out_k, r_k)

    Returns
    -------
    list de d Tensor
        Les directions que le tenseur n'utilise pas sont ôtées : un rang trop grand diminue.
    """
    cores = check_cores(cores)
    chain = tt_orthogonalize([core.to(working_dtype(core)) for core in cores], 0)
    before = torch.ones(1, dtype=chain[0].dtype, device=chain[0].device)  # √S du lien précédent
    for k in range(len(chain) - 1):
        U, S, Vh = torch.linalg.svd(chain[k].flatten(0, -2), full_matrices=False)  # (r_{k−1} n_k, r_k)
        rank = max(1, int((S / S[0] > max(len(U), len(Vh)) * torch.finfo(S.dtype).eps).sum()))  # NaN si tout est nul
        U, S, Vh = U[:, :rank], S[:rank], Vh[:rank]
        # le signe, que LAPACK choisirait : celui du premier des plus grands coefficients ; une symétrie les fait égaux
        first = (U.abs() > 0.999 * U.abs().amax(0)).byte().argmax(0, keepdim=True)
        sign = U.gather(0, first).sign()
        U, Vh = U * sign, Vh * sign.T
        chain[k + 1] = torch.tensordot(S[:, None] * Vh, chain[k + 1], 1)
        root = torch.where(S > 0, S.sqrt(), 1)
        chain[k] = scaled(1 / before, U.reshape(*chain[k].shape[:-1], -1), root)
        before = root
    chain[-1] = scaled(1 / before, chain[-1], torch.ones_like(before[:1]))
    return [to_dtype(core, cores[0].dtype, f"cores[{k}]").contiguous() for k, core in enumerate(chain)]


def scaled(left: Tensor, core: Tensor, right: Tensor) -> Tensor:
    """Un cœur (r, …, s) dont les directions du premier lien sont multipliées par `left`, du second par `right`."""
    return left.view(-1, *[1] * (core.ndim - 1)) * core * right


def rotate_cores(cores: Iterable[Tensor]) -> list[Tensor]:
    """Le même tenseur, chaque lien tourné par la rotation des cosinus, qui mélange ses r_k directions.

    Parameters
    ----------
    cores : list de d Tensor, (r_{k−1}, n_k, r_k), ou (r_{k−1}, in_k, out_k, r_k)

    Returns
    -------
    list de d Tensor, mêmes formes
    """
    cores = check_cores(cores)
    chain = [core.detach().to(working_dtype(core)) for core in cores]
    for k in range(len(chain) - 1):
        R = cosine_rotation(chain[k].shape[-1]).to(chain[k])
        chain[k], chain[k + 1] = chain[k] @ R, torch.tensordot(R.T, chain[k + 1], 1)
    return [to_dtype(core, cores[0].dtype, f"cores[{k}]") for k, core in enumerate(chain)]


def rotate_tucker(core: Tensor, factors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """La même décomposition de Tucker, chaque indice du noyau tourné par les cosinus, ce que défait son facteur.

    Le noyau a d'ordinaire un coin très grand et le reste petit, ce qu'une grille uniforme rend mal.

    Parameters
    ----------
    core : Tensor, (r₁, …, r_d)
    factors : list de d Tensor, (n_k, r_k)

    Returns
    -------
    core : Tensor, même forme
    factors : list de d Tensor, mêmes formes
        Encore aux colonnes orthonormées, si elles l'étaient.
    """
    core, factors = check_tucker(core, factors)
    turned, rotated = core.detach().to(working_dtype(core)), []
    for k, U in enumerate(factors):
        R = cosine_rotation(U.shape[1]).to(turned)
        turned = torch.tensordot(turned, R, ([0], [0]))  # l'indice qui part en tête revient en queue
        rotated.append(to_dtype(U.detach().to(R.dtype) @ R, U.dtype, f"factors[{k}]"))
    return to_dtype(turned, core.dtype, "core").contiguous(), rotated


def regauge(cores: Iterable[Tensor], gauge: str) -> list[Tensor]:
    """Le même tenseur dans une jauge nommée.

    Parameters
    ----------
    cores : list de d Tensor, (r_{k−1}, n_k, r_k), ou (r_{k−1}, in_k, out_k, r_k)
    gauge : "orthogonal", "balanced" ou "rotated"
        Orthonormés à gauche, sauf le dernier (:func:`~lrq.tt_orthogonalize`) ; équilibrés (:func:`balance_cores`) ;
        équilibrés puis tournés (:func:`rotate_cores`).

    Returns
    -------
    list de d Tensor
    """
    cores = check_cores(cores)
    check_choice(gauge, "gauge", GAUGES)
    if gauge == "orthogonal":
        return tt_orthogonalize(cores, len(cores) - 1)
    balanced = balance_cores(cores)
    return rotate_cores(balanced) if gauge == "rotated" else balanced


def core_noise_bound(cores: Iterable[Tensor], noisy: Iterable[Tensor]) -> float:
    """Une borne de ‖T̂ − T‖, tirée des seuls écarts de cœur à cœur : Π (a_k + e_k) − Π a_k.

    Pour k < d, a_k = ‖G_k‖₂ et e_k = ‖Ĝ_k − G_k‖₂, cœurs lus (r_{k−1} n_k, r_k) ; pour le dernier, les normes de
    Frobenius. Des cœurs orthonormés à gauche ont tous a_k = 1 : aucun n'amplifie l'écart d'un autre.

    Parameters
    ----------
    cores, noisy : deux listes de d cœurs, de mêmes formes

    Returns
    -------
    float

    Raises
    ------
    ValueError
        Les deux chaînes n'ont pas les mêmes formes.
    """
    cores, noisy = check_cores(cores), check_cores(noisy, "noisy")
    if [G.shape for G in cores] != [G.shape for G in noisy]:
        raise ValueError(f"noisy : reçu {[tuple(G.shape) for G in noisy]}, attendu {[tuple(G.shape) for G in cores]}.")
    exact = total = 1.0
    for k, pair in enumerate(zip(cores, noisy, strict=True), 1):
        G, H = (core.detach().double().flatten(0, -2) for core in pair)
        a, e = (float(torch.linalg.matrix_norm(M, 2 if k < len(cores) else "fro")) for M in (G, H - G))
        exact, total = exact * a, total * (a + e)
    return total - exact
