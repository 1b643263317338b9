"""Des vecteurs témoins : ce que PyTorch calcule, pour que le navigateur du lecteur le refasse et montre l'écart."""

from typing import Any

import anywidget
import torch
import traitlets
from torch import Tensor, nn

from ..layers import QuantizedLowRankLayer, SVDCompressedLinear
from ..quantizers import dequantize, quantize_symmetric
from ..randomized import halko_bound
from ..spectrum import (
    break_even_rank,
    cumulative_energy,
    marchenko_pastur_edge,
    rank_for_energy,
    truncation_errors,
)
from ..svd import truncated_svd
from .explorer import CSS, esm
from .randomized import excess


def golden_cases(generator: torch.Generator) -> list[dict[str, Any]]:
    """Des instances tirées au hasard de chaque calcul de numerics.js, avec la réponse de PyTorch.

    Parameters
    ----------
    generator : torch.Generator

    Returns
    -------
    list de dict
        ``twin`` (le nom dans lrq), ``function`` (celui dans numerics.js), ``arguments``, ``expected`` et ``whole`` :
        l'écart est alors rapporté au plus grand terme, parce que d'autres peuvent être presque nuls.
    """
    m, n = (int(torch.randint(4, 11, (), generator=generator)) for _ in range(2))
    p = min(m, n)
    rank = int(torch.randint(1, p + 1, (), generator=generator))
    W = torch.randn(m, n, generator=generator) * torch.logspace(0, -3, n)  # un spectre qui décroît
    U, S, _ = truncated_svd(W, p)
    energy = cumulative_energy(S)
    half = p // 2
    tail = float(((S.double() / S[0].double()) ** 2)[half:].sum())
    threshold = float(energy[rank - 1])  # exactement atteint au rang voulu
    oversample = int(torch.randint(2, 41, (), generator=generator))
    optimum = float(truncation_errors(S)[half - 1])
    measured = optimum * (1 + float(torch.rand((), generator=generator)))
    cases = [
        case("cumulative_energy", "cumulativeEnergy", [S], energy),
        case("truncation_errors", "truncationErrors", [S], truncation_errors(S)),
        case("truncation_errors", "truncationErrors", [S[:half], tail], truncation_errors(S)[:half]),
        case("truncation_errors", "truncationErrors", [torch.zeros(3)], truncation_errors(torch.zeros(3))),
        case("rank_for_energy", "rankForEnergy", [energy.tolist(), threshold], rank_for_energy(S, threshold)),
        case("break_even_rank", "breakEvenRank", [m, n], break_even_rank(m, n)),
        case("halko_bound", "halkoBound", [optimum, half, oversample], halko_bound(S, half, oversample)),
        case("RandomizedExplorer.excess", "excess", [measured, optimum], excess(measured, optimum)),
        case("RandomizedExplorer.excess", "excess", [measured, 0.0], excess(measured, 0.0)),
        case("norme de Frobenius", "frobeniusNorm", [S], W.double().norm()),
        case(
            "marchenko_pastur_edge",
            "marchenkoPasturEdge",
            [m, n, float(W.norm())],
            marchenko_pastur_edge(m, n, W.norm()),
        ),
        case("produit U_r (U_rᵀ W)", "reconstruct", [U, U.T @ W, m, n, rank], product(W, rank), whole=True),
        case("produit U_r (U_rᵀ W)", "project", [U, W, m, n], U.T.double() @ W.double(), whole=True),
        case("SVDCompressedLinear.nbytes", "factorBits", [m, n, rank], 8 * svd_layer(W, rank).nbytes()),
    ]
    halves = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 126.5, 127.0])  # des moitiés exactes : échelle 1 à 8 bits
    for x, bits in [(halves, 8), *((W, bits) for bits in range(1, 9))]:
        for rows in (1, m) if x is W else (1,):
            codes, scales = quantize_symmetric(x, bits, dim=None if rows == 1 else 0)
            cases.append(
                case(
                    "quantize_symmetric",
                    "quantizeSymmetric",
                    [x, bits, rows],
                    torch.cat([codes.flatten(), scales.flatten()]),
                )
            )
            values = dequantize(codes, scales)
            cases.append(case("dequantize", "dequantize", [codes, scales.reshape(-1)], values))
    for bits in range(1, 9):
        layer = QuantizedLowRankLayer.from_linear(linear(W), rank, bits)
        cases.append(case("QuantizedLowRankLayer.nbytes", "factorBits", [m, n, rank, bits], 8 * layer.nbytes()))
    return cases


def case(twin: str, function: str, arguments: list[Any], expected: Any, whole: bool = False) -> dict[str, Any]:
    """Un témoin, en nombres que JSON garde au bit près."""
    flat = [x.flatten().tolist() if isinstance(x, Tensor) else x for x in arguments]
    answer = torch.as_tensor(expected, dtype=torch.float64).flatten().tolist()
    return {"twin": twin, "function": function, "arguments": flat, "expected": answer, "whole": whole}


def product(W: Tensor, rank: int) -> Tensor:
    """La SVD tronquée de W, multipliée."""
    U, S, Vh = truncated_svd(W, rank)
    return U * S @ Vh


def linear(W: Tensor) -> nn.Linear:
    """Une couche sans biais, de poids W."""
    layer = nn.Linear(W.shape[1], W.shape[0], bias=False, device="meta").to_empty(device=W.device)
    layer.weight.data = W
    return layer


def svd_layer(W: Tensor, rank: int) -> SVDCompressedLinear:
    """La couche dont les facteurs sont la SVD tronquée de W."""
    return SVDCompressedLinear.from_linear(linear(W), rank)


class Certificate(anywidget.AnyWidget):
    """Le tableau des écarts entre PyTorch et le navigateur du lecteur, sur des vecteurs témoins.

    Parameters
    ----------
    seed : int
        Graine des témoins.
    """

    _esm = esm("certificate.js")
    _css = CSS

    _cases: traitlets.List[Any] = traitlets.List().tag(sync=True)

    def __init__(self, seed: int = 0):
        super().__init__(_cases=golden_cases(torch.Generator().manual_seed(seed)))

    def __repr__(self) -> str:
        return f"Certificate : {sum(len(golden['expected']) for golden in self._cases)} nombres à comparer"
