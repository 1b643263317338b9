"""Des facteurs sur 8 bits : multiplier en entiers, déquantifier à chaque appel, ou garder les facteurs flottants.

À mesurer sur une machine au repos, comme `forward`.
"""

from collections.abc import Iterator

import torch

from lrq import FactorizedLinear, QuantizedLowRankLinear

from .table import Row, duration, number
from .timing import interleaved

SIZES = [(4096, 4096, 64), (4096, 4096, 256), (768, 3072, 64), (768, 768, 64), (384, 1536, 153), (384, 384, 96)]
BATCHES = (1, 32, 512)
TARGETED = (4096, 4096, 64), 32  # là où deux cibles de plus sont fixées
FASTER, NEVER_SLOWER, AS_FLOAT = 1.5, 1.05, 1.0


def measure(quick: bool) -> Iterator[Row]:
    """Chaque taille et chaque lot, à un fil puis à tous."""
    every = torch.get_num_threads()
    for threads in sorted({1, every}):
        torch.set_num_threads(threads)
        try:
            for size in SIZES:
                for batch in BATCHES:
                    yield from compare(*size, batch, threads, 5 if quick else 21)
        finally:
            torch.set_num_threads(every)


def compare(n: int, m: int, rank: int, batch: int, threads: int, repeats: int) -> Iterator[Row]:
    """Les trois façons de calculer la même couche, à tour de rôle, sur la même entrée."""
    generator = torch.Generator().manual_seed(0)
    floats = FactorizedLinear(n, m, rank)
    codes = QuantizedLowRankLinear(n, m, rank, 8)
    codes.load_state_dict(floats.state_dict())
    codes.quantize_weights()
    x = torch.randn(batch, n, generator=generator)

    def integer() -> torch.Tensor:
        codes.integer = True
        return codes(x)

    def dequantized() -> torch.Tensor:
        codes.integer = False
        return codes(x)

    calls = max(5, 2**29 // (rank * (m + n) * batch))
    with torch.inference_mode():
        error = float((integer() - dequantized()).norm() / dequantized().norm())
        ours, unpacked, plain = interleaved([integer, dequantized, lambda: floats(x)], repeats, [calls] * 3)
    name = f"codes 8 bits {n}→{m}, rang {rank}, lot de {batch}, {threads} fil(s)"
    targeted = ((n, m, rank), batch) == TARGETED
    yield Row(
        f"{name}, écart {number(100 * error, 2)} % : contre déquantifier",
        duration(ours),
        duration(unpacked),
        f"×{number(unpacked / ours)}",
        f"≥ {number(FASTER, 2)}" if targeted else f"≥ 1/{number(NEVER_SLOWER)}",
        unpacked / ours >= (FASTER if targeted else 1 / NEVER_SLOWER),
    )
    if targeted:
        yield Row(
            f"{name} : contre les facteurs flottants",
            duration(ours),
            duration(plain),
            f"×{number(plain / ours)}",
            f"≥ {number(AS_FLOAT, 2)}",
            plain / ours >= AS_FLOAT,
        )
