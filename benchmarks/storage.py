"""Ce qu'un tenseur quantifié occupe dans un fichier, contre les bits annoncés : n_bits par nombre, et ses échelles."""

from collections.abc import Iterator
from itertools import product

import torch

from lrq import PerChannel, PerGroup, PerTensor, UniformQuantizer

from .table import Row, number

SHAPES = ((64, 64), (384, 1536))
GRANULARITIES = (PerTensor(), PerChannel(0), PerGroup(32))
TARGET = 0.01  # au plus 1 % de plus


def measure(quick: bool) -> Iterator[Row]:
    """Par forme, le pire écart de 1 à 8 bits, grille symétrique ou non, et par tenseur, par ligne ou par groupe."""
    for shape in SHAPES:
        t = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        settings = product(range(1, 9), (True, False), GRANULARITIES)
        cases = [UniformQuantizer(n_bits, symmetric, granularity=g) for n_bits, symmetric, g in settings]
        worst = max(cases, key=lambda quantizer: excess(quantizer, t))
        gap = excess(worst, t)
        yield Row(
            f"octets rangés / bits annoncés, {shape[0]}×{shape[1]}, le pire de {len(cases)} réglages de 1 à 8 bits",
            f"{stored_bytes(worst, t)} o",
            f"{-(-claimed_bits(worst, t) // 8)} o",
            f"{number(100 * gap, 2)} % d'écart",
            f"≤ {number(100 * TARGET, 1)} %",
            gap <= TARGET,
        )


def excess(quantizer: UniformQuantizer, t: torch.Tensor) -> float:
    """Écart relatif, en plus ou en moins, entre les octets du fichier et les bits annoncés."""
    return abs(8 * stored_bytes(quantizer, t) / claimed_bits(quantizer, t) - 1)


def stored_bytes(quantizer: UniformQuantizer, t: torch.Tensor) -> int:
    """Octets de données d'un fichier safetensors : tout, sauf son en-tête, qui ne nomme que les tenseurs."""
    from safetensors.torch import save

    stored = quantizer.compress(t)
    kept = {"codes": stored.packed, "scale": stored.scale, "zero_point": stored.zero_point}
    file = save({name: tensor for name, tensor in kept.items() if tensor is not None})
    return len(file) - 8 - int.from_bytes(file[:8], "little")


def claimed_bits(quantizer: UniformQuantizer, t: torch.Tensor) -> int:
    """n_bits par nombre, 32 par échelle, et 8 par point zéro si la grille est asymétrique."""
    scales = len(quantizer.granularity.blocks(t))
    return quantizer.n_bits * t.numel() + (32 if quantizer.symmetric else 40) * scales
