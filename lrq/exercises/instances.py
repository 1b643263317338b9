"""Instances fraîches que les exercices partagent : matrices au spectre choisi, couches, et comment les nommer."""

import torch
from torch import Tensor, nn


def integer(generator: torch.Generator, low: int, high: int) -> int:
    """Un entier entre `low` et `high`, bornes comprises."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def uniform(generator: torch.Generator, low: float, high: float) -> float:
    """Un nombre entre `low` et `high`."""
    return low + (high - low) * float(torch.rand((), generator=generator))


def matrix(generator: torch.Generator, m: int, n: int, decay: float) -> Tensor:
    """Matrice m×n float32 dont les valeurs singulières décroissent comme i^(−decay), à une échelle quelconque."""
    p = min(m, n)
    U = torch.linalg.qr(torch.randn(m, p, generator=generator, dtype=torch.float64)).Q
    V = torch.linalg.qr(torch.randn(n, p, generator=generator, dtype=torch.float64)).Q
    S = torch.arange(1, p + 1, dtype=torch.float64) ** -decay * uniform(generator, 3, 9)
    return (U * S @ V.T).float()


def linear(weight: Tensor, generator: torch.Generator, bias: bool = True) -> nn.Linear:
    """nn.Linear qui porte ces poids et, s'il est demandé, un biais gaussien."""
    m, n = weight.shape
    layer = nn.Linear(n, m, bias, device="meta")
    layer.weight = nn.Parameter(weight)
    if bias:
        layer.bias = nn.Parameter(torch.randn(m, generator=generator))
    return layer


def number(value: float, digits: int = 3) -> str:
    """Un nombre à la française, à `digits` chiffres significatifs."""
    return f"{value:.{digits}g}".replace(".", ",").replace("-", "−")
