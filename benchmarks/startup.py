"""Le prix de ``import lrq``, rapporté à celui de ``import torch`` qu'il contient."""

import subprocess
import sys
from collections.abc import Iterator

from .table import Row, duration, number
from .timing import interleaved

TARGET = 1.1


def start(module: str) -> None:
    """Un Python neuf qui importe `module`, et s'arrête."""
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)


def measure(quick: bool) -> Iterator[Row]:
    """Durée totale d'un processus qui importe lrq, contre torch."""
    mine, theirs = interleaved([lambda: start("lrq"), lambda: start("torch")], 4 if quick else 10, [1, 1])
    yield Row(
        "import lrq, contre import torch",
        duration(mine),
        duration(theirs),
        f"×{number(mine / theirs)}",
        f"≤ ×{number(TARGET, 2)}",
        mine / theirs <= TARGET,
    )
