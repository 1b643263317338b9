"""Section 9.6 : une couche en train de tenseurs contre celle de tensorly-torch, et contre la couche dense ; TT-SVD.

Les deux couches ont les mêmes cœurs et rendent les mêmes sorties. De tensorly-torch, le plus rapide de ses deux
chemins, cœur après cœur ou Ŵ reformée ; opt_einsum y choisit l'ordre des contractions.
"""

import math
from collections.abc import Iterator
from typing import Any

import tensorly
import tensorly.decomposition
import torch
from torch import Tensor, nn

import lrq

from .table import Row, duration, number
from .timing import interleaved

DIMS = (4, 8, 8, 4)
RANKS, BATCHES = (8, 32), {1: 200, 64: 10, 512: 2}  # taille de lot : appels par tour
PATHS = ("factorized", "reconstructed")
CONTRACTED, KEPT = 1.0, 1.1  # durée / la leur ; durée, Ŵ gardée / nn.Linear
TENSORS, ROUNDED = 200, 1.0001
GAPS = {torch.float32: 1e-5, torch.float64: 1e-10}


def measure(quick: bool) -> Iterator[Row]:
    """Une couche 1024×1024 de rangs 8 et 32 ; puis TT-SVD et l'arrondi sur des tenseurs tirés au hasard."""
    torch.manual_seed(0)
    source = nn.Linear(math.prod(DIMS), math.prod(DIMS))
    with tensorly.backend_context("pytorch", local_threadsafe=True):  # ce qu'y met import tltorch
        for rank in RANKS:
            layer, kept = (lrq.TTLinear.from_linear(source, DIMS, DIMS, rank, cache=cache) for cache in (False, True))
            dense = nn.Linear(*source.weight.shape)
            dense.weight.data, dense.bias = layer.reconstruct_weight().detach(), layer.bias
            theirs = [peer(layer, path) for path in PATHS]
            for batch, calls in BATCHES.items():
                yield from forward(dense, layer, kept, theirs, batch, calls, 11 if quick else 31)
    yield guaranteed()
    yield rounded()
    yield from same_tensor()


def peer(layer: lrq.TTLinear, path: str) -> Any:
    """La couche de tensorly-torch, des mêmes cœurs : les siens sont (r, out, in, s)."""
    import tltorch

    ranks = (1, *layer.ranks, 1)
    theirs = tltorch.FactorizedLinear(DIMS, DIMS, rank=ranks, factorization="blocktt", implementation=path)
    for factor, core in zip(theirs.weight.factors, layer.cores, strict=True):
        factor.data = core.detach().transpose(1, 2).contiguous()
    theirs.bias = layer.bias
    return theirs


def forward(
    dense: nn.Module, layer: nn.Module, kept: nn.Module, theirs: list[Any], batch: int, calls: int, repeats: int
) -> Iterator[Row]:
    """Un appel : en contractant les cœurs, contre tensorly-torch ; Ŵ gardée, contre la couche dense."""
    x = torch.randn(batch, math.prod(DIMS))
    # aux bouts, les leurs : l'ordre alterne, et qui passe deux fois de suite trouve ses poids déjà en cache
    candidates = [theirs[0], dense, layer, kept, theirs[1]]
    with torch.inference_mode():
        for other in (dense, kept, *theirs):
            torch.testing.assert_close(other(x), layer(x), rtol=1e-4, atol=1e-5)
        times = interleaved([lambda each=each: each(x) for each in candidates], repeats, [calls] * len(candidates))
    first, linear, mine, cached, second = times
    peers = [first, second]
    name = f"TTLinear ({', '.join(map(str, DIMS))})², rang {layer.ranks[1]}, lot de {batch}"  # type: ignore[index, union-attr]
    best = min(peers)
    yield compare(f"{name}, contre tensorly-torch, {PATHS[peers.index(best)]}", mine, best, CONTRACTED)
    yield compare(f"{name}, contre nn.Linear", mine, linear, None)
    yield compare(f"{name}, Ŵ gardée, contre nn.Linear", cached, linear, KEPT)


def compare(name: str, mine: float, theirs: float, target: float | None) -> Row:
    """Deux durées, et leur rapport."""
    ratio = mine / theirs
    goal = "—" if target is None else f"≤ {number(target, 2)}"
    return Row(name, duration(mine), duration(theirs), number(ratio), goal, None if target is None else ratio <= target)


def draw(generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
    """Un tenseur gaussien d'ordre 3 à 5, de dimensions 2 à 8."""
    d = int(torch.randint(3, 6, (1,), generator=generator))
    shape = torch.randint(2, 9, (d,), generator=generator).tolist()
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def error(T: Tensor, cores: list[Tensor]) -> float:
    """‖T − T̂‖."""
    return float((T - lrq.tt_contract(cores)).norm())


def guaranteed() -> Row:
    """L'erreur de TT-SVD, contre celle qu'on lui permet : le pire des tenseurs."""
    generator, worst = torch.Generator().manual_seed(0), 0.0
    for _ in range(TENSORS):
        T, asked = draw(generator), float(0.99 * torch.rand(1, generator=generator) + 0.01)
        worst = max(worst, error(T, lrq.tt_svd(T, error=asked)) / (asked * float(T.norm())))
    name = f"TT-SVD, {TENSORS} tenseurs au hasard : erreur, contre celle permise, au pire"
    return Row(name, number(worst), "1", number(worst), "≤ 1", worst <= 1)


def rounded() -> Row:
    """L'erreur de l'arrondi d'un train, contre celle de TT-SVD aux mêmes rangs : le pire des tenseurs."""
    generator, worst = torch.Generator().manual_seed(0), 0.0
    for _ in range(TENSORS):
        T = draw(generator)
        whole = lrq.tt_svd(T, 10**6)
        rank = int(torch.randint(1, max(lrq.tt_ranks(whole)), (1,), generator=generator))
        mine, direct = (error(T, cores) for cores in (lrq.tt_round(whole, rank), lrq.tt_svd(T, rank)))
        worst = max(worst, mine / direct)
    name = f"tt_round, {TENSORS} tenseurs au hasard : erreur, contre celle de TT-SVD aux mêmes rangs, au pire"
    return Row(name, number(worst, 6), "1", number(worst, 6), f"≤ {number(ROUNDED, 5)}", worst <= ROUNDED)


def same_tensor() -> Iterator[Row]:
    """L'écart relatif entre notre tenseur et celui de TensorLy, aux mêmes rangs : ceux de l'erreur 0,5, puis tous."""
    for dtype, target in GAPS.items():
        generator, worst = torch.Generator().manual_seed(0), 0.0
        for _ in range(TENSORS):
            T = draw(generator, dtype)
            for cores in (lrq.tt_svd(T, error=0.5), lrq.tt_svd(T, 10**6)):
                with tensorly.backend_context("numpy", local_threadsafe=True):
                    ranks = [1, *lrq.tt_ranks(cores), 1]
                    theirs = tensorly.tt_to_tensor(list(tensorly.decomposition.tensor_train(T.numpy(), ranks)))
                worst = max(worst, float((lrq.tt_contract(cores) - torch.tensor(theirs)).norm() / T.norm()))
        name = f"TT-SVD, {TENSORS} tenseurs {str(dtype).removeprefix('torch.')} : écart à TensorLy, au pire"
        yield Row(name, f"{worst:.0e}", "0", f"{worst:.0e}", f"≤ {target:.0e}", worst <= target)
