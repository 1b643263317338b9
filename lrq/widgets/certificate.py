"""Des vecteurs témoins : ce que PyTorch calcule, pour que le navigateur du lecteur le refasse et montre l'écart."""

import itertools
from collections.abc import Iterator
from typing import Any

import anywidget
import torch
import traitlets
from torch import Tensor, nn

from ..compression import stored_bytes
from ..errors import pareto_front, propagation_bound, water_filling
from ..layers import QuantizedLowRankLayer, QuantizedLowRankLinear, QuantizedTTLinear, SVDCompressedLinear, TTLinear
from ..quantizers import CLIPPINGS, PerChannel, PerGroup, PerTensor, UniformQuantizer, dequantize, quantize_symmetric
from ..randomized import halko_bound
from ..spectrum import (
    break_even_rank,
    cumulative_energy,
    marchenko_pastur_edge,
    rank_for_energy,
    truncation_errors,
)
from ..svd import truncated_svd
from ..tensor_train import clamped_ranks
from .explorer import CSS, esm
from .quantizer import clipped_share, uniform_noise
from .randomized import excess
from .rank_bits import best_within
from .rate_distortion import wasted_bits
from .tensor_train import FLOAT, rank_within, svd_nbytes

# Ce que règle QuantizerExplorer, bits à part : symétrie, écrêtage, qui partage une échelle.
SETTINGS = list(itertools.product((True, False), CLIPPINGS, (PerTensor(), PerChannel(0), PerGroup(8))))


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
        by_row = QuantizedLowRankLinear.from_linear(linear(W), rank, bits, granularity=PerChannel(0))
        sizes = [m, n, rank, bits, m + n]
        cases.append(case("QuantizedLowRankLinear.nbytes", "factorBits", sizes, 8 * by_row.nbytes()))
    cases += choice_cases(generator)
    cases += rate_cases(S, generator)
    cases.append(propagation_case(generator))
    cases += train_cases(generator)
    whole = {int(torch.randint(9, (), generator=generator)) + start for start in (0, 9)}  # symétrique, asymétrique
    for i, (symmetric, clipping, granularity) in enumerate(SETTINGS):
        bits = int(torch.randint(1, 9, (), generator=generator))
        quantizer = UniformQuantizer(bits, symmetric, granularity=granularity, clipping=clipping)
        # Tous les témoins de deux réglages, le premier de chacun des autres : au-delà, la page serait lourde.
        cases += itertools.islice(quantizer_cases(quantizer, generator), None if i in whole else 1)
    return cases


def quantizer_cases(quantizer: UniformQuantizer, generator: torch.Generator) -> Iterator[dict[str, Any]]:
    """Ce que montre QuantizerExplorer d'une petite matrice : codes, valeurs, taille, erreurs, écrêtage."""
    W = draw(quantizer, generator)
    scale, zero_point = quantizer.compute_scale_zero_point(W)
    codes = quantizer.quantize(W, scale, zero_point)
    parts = [codes.flatten(), scale.flatten(), zero_point.flatten()]
    bits, rows, symmetric = quantizer.n_bits, scale.numel(), quantizer.symmetric
    settings = [bits, rows, symmetric, quantizer.clipping]
    yield case("UniformQuantizer.quantize", "quantizeUniform", [W, *settings], torch.cat(parts))
    values = quantizer.dequantize(codes, scale, zero_point)
    stored = 8 * quantizer.compress(W).nbytes()
    yield case("UniformQuantizer.dequantize", "dequantize", parts, values)
    yield case("QuantizedTensor.nbytes", "storedBits", [W.numel(), bits, rows, symmetric], stored)
    yield case("quantization_error", "relativeError", [W, values], quantizer.quantization_error(W))
    yield case("predicted_error", "uniformNoise", [W, parts[1]], uniform_noise(W, quantizer))
    yield case("clipped", "clippedShare", [W, bits, symmetric, *parts[1:]], clipped_share(W, quantizer))
    yield case("UniformQuantizer.low, high", "extremes", [bits, symmetric], [quantizer.low, quantizer.high])


def choice_cases(generator: torch.Generator) -> Iterator[dict[str, Any]]:
    """Ce que RankBitsExplorer choisit, parmi des erreurs et des tailles dont plusieurs sont égales."""
    errors, sizes = (torch.randint(1, 9, (24,), generator=generator).tolist() for _ in range(2))
    best = min(zip(errors, sizes, strict=True))[1]  # une limite que le meilleur atteint juste
    for limit in (0, best, 8):
        yield case("best_within", "bestWithin", [errors, sizes, limit], best_within(errors, sizes, limit))
    yield case("pareto_front", "paretoFront", [errors, sizes], pareto_front(errors, sizes))


def rate_cases(S: Tensor, generator: torch.Generator) -> Iterator[dict[str, Any]]:
    """Ce que RateDistortionExplorer recalcule : la droite de Shannon, ce qui en sépare, le remplissage d'eau."""
    bits = float(10 * torch.rand((), generator=generator))
    yield case("water_filling, spectre plat", "shannonError", [bits], water_filling(torch.ones(5), bits)[0])
    error = float(torch.rand((), generator=generator)) ** 4
    yield case("wasted_bits", "wastedBits", [bits, error], wasted_bits(bits, error))
    flat = torch.cat([torch.ones(2), torch.zeros(2)])  # des directions à zéro ne reçoivent jamais rien
    for spectrum, budget in [(S, bits), (S, bits / 50), (S, 0.0), (flat, bits), (torch.zeros(3), bits)]:
        found, allocation = water_filling(spectrum, budget)
        expected = torch.cat([torch.tensor([found]), allocation])
        yield case("water_filling", "waterFilling", [spectrum, budget], expected, whole=True)


def propagation_case(generator: torch.Generator) -> dict[str, Any]:
    """Ce que PropagationExplorer recalcule : la borne d'une chaîne de couches, dont l'une est entière."""
    gains, own = (3 * torch.rand(4, generator=generator)).tolist(), torch.rand(4, generator=generator).tolist()
    own[int(torch.randint(1, 4, (), generator=generator))] = 0.0
    return case("propagation_bound", "propagationBound", [gains, own], propagation_bound(gains, own))


def train_cases(generator: torch.Generator) -> Iterator[dict[str, Any]]:
    """Ce que TensorTrainExplorer pèse : les liens d'un train, ses cœurs, et la SVD qui tient dans autant d'octets."""
    d = int(torch.randint(2, 5, (), generator=generator))
    inputs, outputs = (torch.randint(1, 5, (d,), generator=generator).tolist() for _ in range(2))
    inputs[0], outputs[-1] = inputs[0] + 1, outputs[-1] + 1  # un lien au moins n'est pas de rang 1
    for rank in (int(torch.randint(2, 9, (), generator=generator)), 10**6):  # ramené partout au plus haut
        ranks = clamped_ranks(inputs, outputs, rank)
        yield case("clamped_ranks", "bondRanks", [inputs, outputs, rank], ranks)
        for bits in (int(torch.randint(1, 9, (), generator=generator)), FLOAT):
            layer: TTLinear | QuantizedTTLinear
            if bits == FLOAT:
                layer = TTLinear(inputs, outputs, rank, device="meta")
            else:
                layer = QuantizedTTLinear(inputs, outputs, rank, bits, device="meta")
            weights = [stored_bytes(core) for core in layer.cores]
            twin = f"{type(layer).__name__}.nbytes"
            yield case(twin, "trainBits", [inputs, outputs, rank, bits], [8 * weight for weight in weights])
            m, n = layer.out_features, layer.in_features
            exactly = svd_nbytes(m, n, int(torch.randint(1, min(m, n) + 1, (), generator=generator)), bits)
            for limit in (sum(weights), exactly, exactly - 1, 0):
                yield case("rank_within", "rankWithin", [m, n, bits, 8 * limit], rank_within(m, n, bits, limit))


def draw(quantizer: UniformQuantizer, generator: torch.Generator) -> Tensor:
    """Une petite matrice, (2, 16), qui penche d'un côté et dont un terme dépasse les autres.

    « Au moindre carré », PyTorch somme des float32 dans un ordre à lui : entre deux réductions qui se valent à 1e-6
    près, il choisit au hasard de ses arrondis. On tire donc une matrice dont la meilleure grille l'emporte de 1e-5 au
    moins dans chaque bloc ; ses codes sont alors comparés un à un, comme les autres.
    """
    while True:
        W = torch.randn(2, 16, generator=generator) + 0.5
        W.view(-1)[int(torch.randint(32, (), generator=generator))] *= 5
        if quantizer.clipping != "mse" or quantizer.binary or margin(W, quantizer) > 1e-5:
            return W


def margin(W: Tensor, quantizer: UniformQuantizer) -> float:
    """De combien la meilleure des cent réductions l'emporte sur la suivante, en part d'erreur, au pire des blocs."""
    blocks = quantizer.granularity.blocks(W)
    shares = torch.linspace(0.01, 1, 100)[:, None]
    grids = quantizer._grid(*(bound * shares for bound in quantizer._bounds(blocks)))
    scale, zero_point = (values[..., None] for values in grids)  # (réductions, blocs, 1)
    approximation = (quantizer.codes(blocks, scale, zero_point) - zero_point) * scale
    errors = (approximation.double() - blocks.double()).square().sum(2)
    best, second = errors.sort(0).values[:2]
    return float(((second - best) / second).nan_to_num(0).min())


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
