"""Le rang optimal : une décomposition sans vecteurs, contre une reconstruction par rang comme dans le cours."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lrq import find_optimal_rank

from .table import Row, duration, number
from .timing import interleaved

TARGET_ERROR = 0.01  # la valeur par défaut du cours : sur une matrice gaussienne, presque tous les rangs y passent
TARGET = 50.0


def by_reconstruction(W: Tensor, rebuild: Callable[[Tensor, Tensor, Tensor, int], Tensor]) -> int:
    """L'algorithme du cours : reconstruire au rang 1, puis 2, puis 3… jusqu'à l'erreur voulue."""
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    for r in range(1, min(W.shape) + 1):
        error = torch.norm(W - rebuild(U, S, Vh, r), "fro") / torch.norm(W, "fro")
        if error <= TARGET_ERROR:
            return r
    return min(W.shape)


def course(U: Tensor, S: Tensor, Vh: Tensor, r: int) -> Tensor:
    """La reconstruction telle que le cours l'écrit, V corrigé en Vh."""
    return U[:, :r] @ torch.diag(S[:r]) @ Vh[:r]


def lean(U: Tensor, S: Tensor, Vh: Tensor, r: int) -> Tensor:
    """La même sans matrice diagonale."""
    return (U[:, :r] * S[:r]) @ Vh[:r]


def measure(quick: bool) -> Iterator[Row]:
    """find_optimal_rank contre les deux reconstructions, sur une matrice gaussienne 1024×512."""
    W = torch.randn(1024, 512, generator=torch.Generator().manual_seed(0))
    candidates = [
        lambda: find_optimal_rank(W, target_error=TARGET_ERROR),
        lambda: by_reconstruction(W, course),
        lambda: by_reconstruction(W, lean),
    ]
    ranks = {candidate() for candidate in candidates}
    if len(ranks) != 1:
        raise AssertionError(f"les trois algorithmes ne rendent pas le même rang : {sorted(ranks)}")
    mine, full, thrifty = interleaved(candidates, 3 if quick else 5, [3, 1, 1])
    name = "find_optimal_rank, 1024×512"
    yield Row(
        f"{name}, contre le cours corrigé",
        duration(mine),
        duration(full),
        f"×{number(full / mine)}",
        f"≥ ×{number(TARGET, 2)}",
        full / mine >= TARGET,
    )
    yield Row(
        f"{name}, contre le même sans diag",
        duration(mine),
        duration(thrifty),
        f"×{number(thrifty / mine)}",
        "—",
        None,
    )
