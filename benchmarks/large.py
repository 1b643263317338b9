"""La SVD aléatoire d'une grande matrice : son erreur, sa durée, sa mémoire, à côté de PyTorch et de scikit-learn.

À mesurer sur une machine au repos. La matrice est A diag(σ) B, où A et B sont orthogonales : des cosinus, des signes et
des permutations. Son spectre est donc connu sans la décomposer.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from lrq import approximate_svd_large

from .peak import peak_bytes
from .table import Row, duration, number
from .timing import interleaved

SIZE, QUICK_SIZE, RANK, DECAY = 10_000, 3_000, 64, 0.7
ERROR_TARGET, TORCH_TARGET, SKLEARN_TARGET, MEMORY_TARGET = 1.01, 1.15, 2.0, 0.5

PREPARE = """
from benchmarks.large import RANK, build
from lrq import approximate_svd_large

W = build(int(sys.argv[1]))
approximate_svd_large(W[:200, :200].clone(), 8)
"""


def measure(quick: bool) -> Iterator[Row]:
    """σ_i = i^-0,7, rang 64 ; dix mille lignes et colonnes, ou trois mille si l'on est pressé."""
    size = QUICK_SIZE if quick else SIZE
    name = f"approximate_svd_large {size}², rang {RANK}"
    W = build(size)
    yield accuracy(name, W)
    yield from times(name, W, 3 if quick else 5)
    del W
    yield memory(name, size, None if quick else MEMORY_TARGET)  # en petit, un bloc de W pèse autant qu'elle


def build(size: int) -> Tensor:
    """Une matrice carrée de valeurs singulières 1, 2^-0,7, 3^-0,7…, en float32."""
    from scipy.fft import dct

    rng = np.random.default_rng(0)
    W = np.diag(spectrum(size)).astype(np.float32)
    for _ in range(2):  # les colonnes, puis, après transposition, les lignes
        W *= rng.choice(np.float32([-1, 1]), size)
        W = dct(W, axis=1, norm="ortho", overwrite_x=True)[:, rng.permutation(size)].T
    return torch.from_numpy(np.ascontiguousarray(W))


def spectrum(size: int) -> np.ndarray:
    return np.arange(1, size + 1, dtype=np.float64) ** -DECAY


def accuracy(name: str, W: Tensor) -> Row:
    """L'erreur, mesurée ici en float64, à côté de la meilleure possible."""
    U, S, Vh = approximate_svd_large(W, RANK)
    left, right = (U * S).double().numpy(), Vh.double().numpy()
    blocks = range(0, len(W), 1000)
    gaps = [np.linalg.norm(W[i : i + 1000].double().numpy() - left[i : i + 1000] @ right) for i in blocks]
    sigma = spectrum(len(W))
    best = math.sqrt((sigma[RANK:] ** 2).sum())
    ratio = math.hypot(*gaps) / best
    norm = math.sqrt((sigma**2).sum())
    return Row(
        f"{name}, erreur, contre Eckart–Young",
        number(ratio * best / norm, 4),
        number(best / norm, 4),
        f"×{number(ratio, 4)}",
        f"≤ ×{number(ERROR_TARGET)}",
        ratio <= ERROR_TARGET,
    )


def times(name: str, W: Tensor, repeats: int) -> Iterator[Row]:
    """La durée, contre torch.svd_lowrank aux mêmes réglages, puis contre scikit-learn aux siens."""
    from sklearn.utils.extmath import randomized_svd

    array = W.numpy()
    candidates = [
        lambda: approximate_svd_large(W, RANK),
        lambda: torch.svd_lowrank(W, q=RANK + 10, niter=2),
        lambda: randomized_svd(array, RANK, random_state=0),
    ]
    mine, torchs, sklearns = interleaved(candidates, repeats, [1, 1, 1])
    yield Row(
        f"{name}, erreur mesurée, contre torch.svd_lowrank, qui ne la donne pas",
        duration(mine),
        duration(torchs),
        f"×{number(mine / torchs)}",
        f"≤ ×{number(TORCH_TARGET)}",
        mine / torchs <= TORCH_TARGET,
    )
    yield Row(
        f"{name}, contre randomized_svd de scikit-learn",
        duration(mine),
        duration(sklearns),
        f"×{number(sklearns / mine)}",
        f"≥ ×{number(SKLEARN_TARGET, 2)}",
        sklearns / mine >= SKLEARN_TARGET,
    )


def memory(name: str, size: int, target: float | None) -> Row:
    """La mémoire prise en plus de W, au plus haut, dans un processus neuf ; la référence recopie W une fois."""
    mine, copied = (peak_bytes(PREPARE, line, size) for line in ("approximate_svd_large(W, RANK)", "W.clone()"))
    share = mine / (4 * size**2)
    return Row(
        f"{name}, mémoire en plus, contre une copie",
        f"{number(mine / 1e6)} Mo",
        f"{number(copied / 1e6)} Mo",
        f"{number(share)} de W",
        "—" if target is None else f"≤ {number(target, 2)} de W",
        None if target is None else share <= target,
    )
