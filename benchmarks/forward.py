"""Une couche de rang r contre une couche dense : quelle part de l'accélération promise par le calcul est obtenue.

À mesurer sur une machine au repos : à plusieurs fils, un produit d'une fraction de milliseconde n'y mesure sinon que
l'attente du fil le plus lent.
"""

import itertools
from collections.abc import Iterator

import torch
from torch import nn

from lrq import CompactSVDLinear, FactorizedLinear

from .table import Row, duration, number
from .timing import interleaved

SIZE, RANK = 4096, 64
IDEAL = SIZE * SIZE / (RANK * 2 * SIZE)  # mn / r(m + n) = 32 : le rapport des multiplications
TARGETS = {1: 0.75, 32: 0.65}  # part de l'idéal, par taille de lot
CALLS = {1: (200, 10), 32: (40, 5)}  # appels par mesure, couche de rang r puis dense : des durées voisines


def measure(quick: bool) -> Iterator[Row]:
    """Rang 64 sur 4096×4096, sans biais, pour un vecteur et pour un lot de 32."""
    dense = nn.Linear(SIZE, SIZE, bias=False)
    layers = [FactorizedLinear(SIZE, SIZE, RANK), CompactSVDLinear(SIZE, SIZE, RANK)]
    every = torch.get_num_threads()
    for threads in sorted({1, every}):
        torch.set_num_threads(threads)
        try:
            for layer, (batch, target) in itertools.product(layers, TARGETS.items()):
                yield compare(dense, layer, batch, threads, target, 7 if quick else 31)
        finally:
            torch.set_num_threads(every)


def compare(dense: nn.Module, layer: nn.Module, batch: int, threads: int, target: float, repeats: int) -> Row:
    """Une taille de lot : les deux couches à tour de rôle, sur la même entrée."""
    x = torch.randn(batch, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        mine, theirs = interleaved([lambda: layer(x), lambda: dense(x)], repeats, CALLS[batch])
    speedup = theirs / mine
    return Row(
        f"{type(layer).__name__} {SIZE}×{SIZE}, rang {RANK}, lot de {batch}, {threads} fil(s)",
        duration(mine),
        duration(theirs),
        f"×{number(speedup)} = {number(speedup / IDEAL)} de ×{number(IDEAL, 2)}",
        "—" if target is None else f"≥ {number(target, 2)}",
        None if target is None else speedup / IDEAL >= target,
    )
