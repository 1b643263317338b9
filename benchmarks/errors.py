"""Section 11.5 : tous les rangs pour le prix des valeurs singulières ; sur MiniLM, des erreurs en quadrature."""

from collections.abc import Iterator

import torch

import lrq
from lrq import models

from .table import Row, duration, number
from .timing import interleaved

SIZE, COST = 2048, 1.1
RANKS, BITS = [16, 32, 64, 96, 128, 192, 256], [2, 3, 4, 6, 8]
NEAR, SHARE = 0.05, 0.9  # à 5 % près, dans 90 % des cas
QUICK_LAYERS = 6


def measure(quick: bool) -> Iterator[Row]:
    """Le prix de tous les rangs, puis la justesse de deux façons d'ajouter les erreurs."""
    yield cost(3 if quick else 7)
    yield quadrature(quick)


def cost(repeats: int) -> Row:
    """Erreurs, énergies et tailles de tous les rangs d'une matrice, contre ses seules valeurs singulières."""
    W = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    candidates = [
        lambda: lrq.ApproximationErrorAnalysis.analyze_error_vs_rank(W),
        lambda: torch.linalg.svdvals(W),
    ]
    mine, theirs = interleaved(candidates, repeats, [1, 1])
    return Row(
        f"erreurs, énergies et tailles des {SIZE} rangs, {SIZE}×{SIZE}, contre svdvals",
        duration(mine),
        duration(theirs),
        f"×{number(mine / theirs)}",
        f"≤ ×{number(COST, 2)}",
        mine / theirs <= COST,
    )


def quadrature(quick: bool) -> Row:
    """L'erreur des facteurs tronqués puis arrondis, prédite par √(a² + b²), et par a + b, à côté de la mesure."""
    encoder = models.load_minilm()
    names = models.encoder_linears(encoder)[: QUICK_LAYERS if quick else None]
    weights = [encoder.get_submodule(name).get_parameter("weight") for name in names]
    rows = [row for W in weights for row in lrq.compression_error_tradeoff(W, RANKS, BITS)]
    measured = torch.tensor([row["actual_combined"] for row in rows])
    root = gaps(torch.tensor([row["estimated_combined"] for row in rows]), measured)
    plain = gaps(torch.tensor([row["svd_error"] + row["quant_error"] for row in rows]), measured)
    mine, theirs = (float((gap <= NEAR).double().mean()) for gap in (root, plain))
    return Row(
        f"MiniLM, {len(rows)} cas (couche, rang, bits) : erreur prédite à {number(100 * NEAR, 1)} % près, racine des "
        "carrés contre somme ; écart médian",
        f"{number(100 * mine)} %",
        f"{number(100 * theirs)} %",
        f"{number(100 * float(root.median()), 1)} % contre {number(100 * float(plain.median()), 2)} %",
        f"≥ {number(100 * SHARE, 2)} %",
        mine >= SHARE,
    )


def gaps(predicted: torch.Tensor, measured: torch.Tensor) -> torch.Tensor:
    """Écarts relatifs de prédictions à des mesures."""
    return (predicted / measured - 1).abs()
