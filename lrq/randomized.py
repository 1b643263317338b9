"""SVD aléatoire de Halko, Martinsson et Tropp : les premiers triplets singuliers, sans décomposer toute la matrice.

On multiplie W par quelques vecteurs tirés au hasard et l'on orthonormalise le résultat : ces colonnes Q portent presque
tout ce que W a de grand. La SVD de Qᵀ W, toute petite, suffit alors. Des itérations de puissance, (W Wᵀ)^q, creusent
l'écart entre les grandes valeurs singulières et les petites.
"""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .spectrum import truncation_errors
from .svd import to_dtype, truncated_svd, working_dtype
from .validation import LAST_SEED, check_choice, check_fraction, check_integer, check_matrix, check_rank, check_tensor

BLOCK = 2**21  # coefficients de W traités à la fois, pour ne jamais en former une seconde copie


@dataclass(frozen=True, eq=False)
class ApproximateSVD:
    """Une SVD tronquée et son erreur ; ``U, S, Vh = svd`` en rend les trois facteurs.

    Attributes
    ----------
    U : Tensor, (m, r)
    S : Tensor, (r,)
    Vh : Tensor, (r, n)
    error : float
        Erreur relative ‖W − U diag(S) Vh‖/‖W‖ (Frobenius), mesurée sur W et non estimée.
    """

    U: Tensor
    S: Tensor
    Vh: Tensor
    error: float

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.U, self.S, self.Vh))


def low_rank_error(W: Tensor, U: Tensor, S: Tensor, Vh: Tensor) -> float:
    """Erreur relative ‖W − U diag(S) Vh‖/‖W‖ (Frobenius), calculée par blocs de lignes : W n'est jamais recopiée.

    Parameters
    ----------
    W : Tensor, (m, n)
    U : Tensor, (m, r)
    S : Tensor, (r,)
    Vh : Tensor, (r, n)

    Returns
    -------
    float
        Exacte à la précision des calculs près. Pour une matrice nulle : 0 si elle est bien rendue, l'infini sinon.

    Raises
    ------
    TypeError, ValueError
        W n'est pas une matrice réelle et finie, ou les facteurs n'ont pas ces formes.
    """
    W = check_matrix(W)
    if check_tensor(S, "S").ndim != 1:
        raise ValueError(f"S : reçu la forme {tuple(S.shape)}, attendu un vecteur (r,) de valeurs singulières.")
    r = len(S)
    for factor, name, shape in ((U, "U", (len(W), r)), (Vh, "Vh", (r, W.shape[1]))):
        if check_tensor(factor, name).shape != shape:
            raise ValueError(f"{name} : reçu la forme {tuple(factor.shape)}, attendu {shape}.")
    return residual(W, U, S, Vh)


@torch.no_grad()
def residual(W: Tensor, U: Tensor, S: Tensor, Vh: Tensor) -> float:
    """:func:`low_rank_error` d'une matrice déjà vérifiée."""
    rows, dtype = max(1, BLOCK // W.shape[1]), working_dtype(W)
    US, Vh = (U.to(dtype) * S.to(dtype)).contiguous(), Vh.to(dtype).contiguous()
    error, norm = 0.0, 0.0
    gap = W.new_empty(min(rows, len(W)), W.shape[1], dtype=dtype)  # le même à chaque tour : allouer coûterait autant
    for part, left in zip(W.split(rows), US.split(rows), strict=True):
        block = part.to(dtype)
        torch.addmm(block, left, Vh, alpha=-1, out=gap[: len(block)])  # W_I − U_I diag(S) Vh
        error = math.hypot(error, frobenius(gap[: len(block)]))
        norm = math.hypot(norm, frobenius(block))
    if not 1e-6 < norm < 1e18:  # les carrés de float32 débordent, ou s'annulent : on recommence à l'échelle 1
        largest = max(abs(float(extreme)) for extreme in W.aminmax())
        if largest > 0:
            return residual(W.to(dtype) / largest, U, S.to(dtype) / largest, Vh)
    if error == 0:
        return 0.0
    return error / norm if norm > 0 else math.inf


def frobenius(block: Tensor) -> float:
    """Norme de Frobenius : par morceaux de lignes en précision de calcul, aussi vite qu'on lit, puis en float64."""
    pieces = [torch.linalg.vector_norm(piece, dim=1) for piece in block.split(16384, dim=1)]
    return float(torch.stack(pieces).norm(dtype=torch.float64))


def approximate_svd_large(W: Tensor, rank: int, oversample: int = 10, n_iter: int = 2, seed: int = 0) -> ApproximateSVD:
    """SVD tronquée d'une grande matrice, approchée par projection aléatoire (section 11.2).

    Parameters
    ----------
    W : Tensor, (m, n)
    rank : int, entre 1 et min(m, n)
    oversample : int, au moins 0
        Colonnes aléatoires tirées en plus du rang ; leur total ne dépasse pas min(m, n).
    n_iter : int, au moins 0
        Itérations de puissance ; chacune relit W deux fois.
    seed : int
        Graine du tirage ; les générateurs globaux ne sont pas touchés.

    Returns
    -------
    ApproximateSVD
        Les facteurs, dans le dtype et sur l'appareil de W, et leur erreur mesurée.

    Raises
    ------
    TypeError, ValueError
        W n'est pas une matrice réelle et finie, rang hors de 1 … min(m, n), `oversample` ou `n_iter` négatif.

    References
    ----------
    Halko, Martinsson et Tropp (2011), algorithmes 4.4 et 5.1.
    """
    W = check_matrix(W)
    rank = check_rank(rank, *W.shape)
    width = min(rank + check_integer(oversample, "oversample", 0), *W.shape)
    x = W.to(working_dtype(W))
    with torch.random.fork_rng(devices=[] if x.device.type == "cpu" else [x.device]):  # svd_lowrank puise au global
        generator = torch.default_generator if x.device.type == "cpu" else torch.cuda.default_generators[x.device.index]
        generator.manual_seed(check_integer(seed, "seed", 0, LAST_SEED))
        U, S, V = torch.svd_lowrank(x, q=width, niter=check_integer(n_iter, "n_iter", 0))
    U, S, Vh = U[:, :rank].to(W.dtype), to_dtype(S[:rank], W.dtype), V[:, :rank].T.to(W.dtype)
    return ApproximateSVD(U, S, Vh, residual(x, U, S, Vh))


def halko_bound(S: Tensor, rank: int, oversample: int = 10) -> float:
    """Borne de l'erreur relative moyenne de la SVD aléatoire, sans itération de puissance : √(2 + r/(p − 1)) ε(r).

    Parameters
    ----------
    S : Tensor, (min(m, n),), décroissant
        Toutes les valeurs singulières.
    rank : int, entre 1 et min(m, n)
    oversample : int, au moins 2
        p, le nombre de colonnes en plus du rang.

    Returns
    -------
    float

    References
    ----------
    Halko, Martinsson et Tropp (2011), théorème 10.5 : projeter perd en moyenne au plus √(1 + r/(p − 1)) ε(r) ; revenir
    au rang r y ajoute, en quadrature, au plus ε(r).
    """
    error = float(truncation_errors(S)[check_rank(rank, len(S), len(S)) - 1])
    return math.sqrt(2 + rank / (check_integer(oversample, "oversample", 2) - 1)) * error


def adaptive_svd(
    W: Tensor, target_error: float = 0.1, oversample: int = 10, n_iter: int = 2, seed: int = 0
) -> ApproximateSVD:
    """SVD tronquée au rang qu'il faut pour tenir une erreur relative, sans connaître le spectre.

    Le rang double jusqu'à ce que l'erreur mesurée convienne, puis redescend : ôter des triplets ajoute exactement leur
    énergie à l'erreur. Dès que la moitié du spectre est en jeu, la SVD complète coûte moins.

    Parameters
    ----------
    W : Tensor, (m, n)
    target_error : float, dans ]0, 1]
    oversample, n_iter, seed : int
        Comme pour :func:`approximate_svd_large`.

    Returns
    -------
    ApproximateSVD
        Son erreur, mesurée, ne dépasse pas `target_error`, sauf avertissement : en demi-précision, l'arrondi des
        facteurs peut l'empêcher.
    """
    W = check_matrix(W)
    target_error = check_fraction(target_error, "target_error")
    x = W.to(working_dtype(W))
    rank = 16
    while 2 * rank < min(W.shape):
        svd = approximate_svd_large(x, rank, oversample, n_iter, seed)
        if svd.error <= target_error:
            break
        rank *= 2
    else:
        svd = ApproximateSVD(*truncated_svd(x, min(W.shape)), error=0.0)
    left = (svd.error**2 + (1 - svd.error**2) * truncation_errors(svd.S) ** 2).sqrt()  # l'erreur aux rangs 1, 2, …
    rank, step = min(int((left > target_error).sum()) + 1, len(left)), 1
    while True:
        factors = svd.U[:, :rank].to(W.dtype), to_dtype(svd.S[:rank], W.dtype), svd.Vh[:rank].to(W.dtype)
        error = residual(x, *factors)  # mesurée sur les facteurs tels qu'on les rend, arrondis compris
        if error <= target_error or rank == len(left):
            break
        rank, step = min(rank + step, len(left)), 2 * step
    if error > target_error:
        warnings.warn(
            f"target_error = {target_error:g} est hors d'atteinte en {W.dtype} : l'erreur reste à {error:.3g}.",
            stacklevel=2,
        )
    return ApproximateSVD(*factors, error)


def efficient_truncated_svd(W: Tensor, rank: int, method: str = "default") -> tuple[Tensor, Tensor, Tensor]:
    """SVD tronquée, par décomposition complète ou par projection aléatoire (section 11.2).

    Parameters
    ----------
    W : Tensor, (m, n)
    rank : int, entre 1 et min(m, n)
    method : "default" ou "randomized"
        La première est exacte ; la seconde est :func:`approximate_svd_large`, avec ses réglages par défaut.

    Returns
    -------
    U : Tensor, (m, r)
    S : Tensor, (r,)
    Vh : Tensor, (r, n)

    Raises
    ------
    ValueError
        Méthode inconnue ; le message énumère les deux noms.
    """
    method = check_choice(method, "method", ("default", "randomized"))
    U, S, Vh = truncated_svd(W, rank) if method == "default" else approximate_svd_large(W, rank)
    return U, S, Vh
