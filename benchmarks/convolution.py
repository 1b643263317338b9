"""Une convolution de rang r contre la convolution dense : quelle part de l'accélération promise par le calcul."""

from collections.abc import Iterator

import torch
from torch import nn

from lrq import SVDConv2d

from .table import Row, duration, number
from .timing import interleaved

CHANNELS, KERNEL, SIDE, RANK = 256, 3, 32, 64
TARGET = 0.5
CALLS = {1: (8, 2), 8: (2, 1)}  # appels par mesure, convolution de rang r puis dense


def measure(quick: bool) -> Iterator[Row]:
    """256 → 256 canaux, noyaux 3×3, images 32×32, rang 64, pour une image et pour huit."""
    dense = nn.Conv2d(CHANNELS, CHANNELS, KERNEL, padding=1, bias=False)
    thin = SVDConv2d(CHANNELS, CHANNELS, KERNEL, RANK, padding=1, bias=False)
    ideal = thin.compression_ratio()  # à chaque pixel, autant de multiplications que de paramètres
    for batch in [1] if quick else [1, 8]:
        x = torch.randn(batch, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            mine, theirs = interleaved([lambda x=x: thin(x), lambda x=x: dense(x)], 7 if quick else 21, CALLS[batch])
        speedup = theirs / mine
        yield Row(
            f"SVDConv2d {CHANNELS} → {CHANNELS}, {KERNEL}×{KERNEL}, {SIDE}×{SIDE}, rang {RANK}, lot de {batch}",
            duration(mine),
            duration(theirs),
            f"×{number(speedup)} = {number(speedup / ideal)} de ×{number(ideal)}",
            f"≥ {number(TARGET, 2)}",
            speedup / ideal >= TARGET,
        )
