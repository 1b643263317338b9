"""Des vecteurs témoins : ce que PyTorch calcule, pour que le navigateur du lecteur le refasse et montre l'écart."""

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import anywidget
import torch
import traitlets
from torch import Tensor, nn
from torch.nn import functional as F

from ..allocation import slope
from ..compression import stored_bytes
from ..errors import combined_error_analysis, pareto_front, propagation_bound, water_filling
from ..layers import (
    CompressedLayer,
    LoRALayer,
    QuantizedLowRankLayer,
    QuantizedLowRankLinear,
    QuantizedTTLinear,
    SVDCompressedLinear,
    SVDConv2d,
    TTLinear,
)
from ..layers.lora import SCALINGS
from ..models import DigitsCNN
from ..packing import pack_bits, unpack_bits
from ..quantizers import CLIPPINGS, PerChannel, PerGroup, PerTensor, UniformQuantizer, dequantize, quantize_symmetric
from ..randomized import halko_bound
from ..spectrum import (
    break_even_rank,
    cumulative_energy,
    marchenko_pastur_edge,
    rank_for_energy,
    truncation_errors,
)
from ..svd import balanced_factors, truncated_svd
from ..tensor_train import clamped_ranks
from .explorer import CSS, esm
from .lora import training_bytes
from .network import BITS, GRANULARITIES, compress, ink, truncated
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
            if rows == m or x is halves:  # une échelle par ligne, ou une seule : chacune a ses témoins, sans redite
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
    cases += network_cases(generator)
    whole = {int(torch.randint(9, (), generator=generator)) + start for start in (0, 9)}  # symétrique, asymétrique
    for i, (symmetric, clipping, granularity) in enumerate(SETTINGS):
        bits = int(torch.randint(1, 9, (), generator=generator))
        quantizer = UniformQuantizer(bits, symmetric, granularity=granularity, clipping=clipping)
        # Tous les témoins de deux réglages, le premier de chacun des autres : au-delà, la page serait lourde.
        cases += itertools.islice(quantizer_cases(quantizer, generator), None if i in whole else 1)
    return [*cases, *self_test_cases(generator)]


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


def network_cases(generator: torch.Generator) -> Iterator[dict[str, Any]]:
    """Ce que NetworkExplorer calcule : un petit réseau de même forme, comprimé, ses scores, ses octets, un dessin."""

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    def short(*shape: int) -> Tensor:  # des seizièmes : peu de chiffres à transporter
        return (16 * torch.randn(shape, generator=generator)).round() / 16

    bits = integer(1, 9)
    codes = torch.randint(2**bits, (13,), generator=generator)
    packed = pack_bits(codes, bits, signed=False)
    yield case("unpack_bits", "unpackBits", [packed, bits, 13], unpack_bits(packed, bits, (13,), signed=False))

    with torch.random.fork_rng(devices=[]):  # l'initialisation, aussitôt écrasée, tire au hasard
        network = TinyCNN()
    for tensor in network.parameters():
        tensor.data = short(*tensor.shape)
    rank, n_bits = integer(1, 4), BITS[integer(0, len(BITS))]  # au rang 1, tout est tronqué ; au rang 3, rien
    granularity = list(GRANULARITIES)[integer(0, 2)]
    small = compress(copy.deepcopy(network), rank, n_bits, GRANULARITIES[granularity])
    kernels = []
    layers: list[Any] = list(network.children())
    for old, new, inputs in zip(layers, small.children(), (1, 3, 2), strict=True):
        W = old.weight.detach().flatten(1)
        m, n = W.shape
        A, B = balanced_factors(W, max(r for r in range(1, min(m, n) + 1) if truncated((m, n), r)))
        yield case("balanced_factors", "secondFactor", [A, W, m, n], B.T, whole=True)
        settings, parts = [m, n, rank, n_bits, granularity == "row"], applied(new)
        found = torch.cat([part.flatten() for part in parts])
        yield case("widgets.network.compress", "compressedLayer", [W, A, B.T, *settings], found, whole=True)
        yield case("widgets.network.truncated", "worthTruncating", settings[:3], float(truncated((m, n), rank)))
        size = 8 * (stored_bytes(new) - old.bias.nbytes)
        yield case("stored_bytes", "compressedBits", settings, size)
        first, *mixer = parts
        arranged = [first.view(len(first), inputs, -1), *(part[..., None] for part in mixer)]
        kernels.append([part.permute(2, 1, 0).flatten().tolist() for part in arranged])
    image = torch.randint(17, (1, 1, 8, 8), generator=generator) / 16
    biases = [old.bias.tolist() for old in layers]
    with torch.no_grad():
        scores = small.double()(image.double())
    yield case("DigitsCNN.forward", "networkScores", [image, kernels, biases], scores, whole=True)

    weights = short(2, 3, 4)
    yield case("permute(2, 1, 0)", "arrange", [weights, 2, 3, 4], weights.permute(2, 1, 0))
    size = 2 * integer(1, 3)
    x, bias = short(2, size, size).relu(), short(3)
    for kernel, added in ((short(3, 2, 3, 3), bias), (short(3, 2, 1, 1), None)):
        y = F.conv2d(x, kernel, added, padding=kernel.shape[-1] // 2)
        arguments = [x.permute(1, 2, 0), size, kernel.flatten(2).permute(2, 1, 0), 2, 3, added]
        yield case("conv2d", "convolve", arguments, y.permute(1, 2, 0), whole=True)
    pooled = F.max_pool2d(F.relu(y[None]), 2)[0]
    yield case("max_pool2d(relu)", "reluPool", [y.permute(1, 2, 0), size, 3], pooled.permute(1, 2, 0))
    levels = torch.randint(4, (10,), generator=generator).float()  # des égalités : la première l'emporte
    yield case("argmax", "argmax", [levels], levels.argmax())
    labels, read = torch.randint(10, (2, 60), generator=generator)
    counts = torch.bincount(10 * labels + read, minlength=100)
    yield case("NetworkExplorer.confusion", "confusionMatrix", [labels, read], counts)
    strokes = [short(integer(2, 6), 2) * torch.tensor([integer(1, 9), integer(1, 9)]), short(1, 2)]
    for some in (strokes, strokes[:1], strokes[1:]):
        yield case("widgets.network.ink", "ink", [[stroke.flatten().tolist() for stroke in some]], ink(some))


class TinyCNN(DigitsCNN):
    """Un réseau de la forme de DigitsCNN, assez petit pour un témoin."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.conv1, self.conv2 = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1)
        self.fc = nn.Linear(8, 4)


def applied(layer: Any) -> list[Tensor]:
    """Les matrices qu'applique une couche de ``compress`` : W seule, ou les filtres puis ce qui les recombine."""
    if isinstance(layer, SVDConv2d):
        return [*applied(layer.filters), *applied(layer.mixer)]
    if isinstance(layer, QuantizedLowRankLayer):
        U, V = layer.dequantize()
        return [V, U]
    if isinstance(layer, SVDCompressedLinear):
        return [layer.V.detach(), layer.U.detach()]
    weight = layer.reconstruct_weight() if isinstance(layer, CompressedLayer) else layer.weight
    return [weight.detach().flatten(1)]


def self_test_cases(generator: torch.Generator) -> Iterator[dict[str, Any]]:
    """Ce que les autotests calculent et que nulle figure ne demandait : quadrature, adaptateurs, achats, rangs."""
    W = torch.randn(8, 6, generator=generator)
    rank, bits = int(torch.randint(1, 7, (), generator=generator)), int(torch.randint(2, 9, (), generator=generator))
    found = combined_error_analysis(W, rank, bits)
    alone = [found["svd_error"], found["quant_error"]]
    yield case("combined_error_analysis", "quadrature", [alone], found["estimated_combined"])
    counts = torch.randint(1, 10**6, (2,), generator=generator).tolist()
    yield case("LoRAExplorer.nbytes", "trainingBytes", counts, training_bytes(*counts))
    for scaling in SCALINGS:
        alpha = float(20 * torch.rand((), generator=generator))
        layer = LoRALayer(linear(W), rank, alpha, scaling=scaling)
        yield case("LoRALayer.scale", "loraScale", [alpha, rank, scaling], layer.scale)
    gains, costs = (torch.randint(1, 99, (5,), generator=generator).tolist() for _ in range(2))
    slopes = [slope([(0, gain), (cost, 0)], 0, 1) for gain, cost in zip(gains, costs, strict=True)]
    yield case("allocate_budget, premier achat", "bestPurchase", [gains, costs], slopes.index(max(slopes)))
    ranks = torch.randint(1, 4, (2,), generator=generator).tolist()
    wide: dict[str, Any] = {"generator": generator, "dtype": torch.float64}  # en float32, l'arrondi cacherait un rang
    one, other = (torch.randn(4, r, **wide) @ torch.randn(r, 3, **wide) for r in ranks)
    product = torch.linalg.matrix_rank(torch.kron(one, other), rtol=1e-10)
    yield case("torch.kron, rang", "kroneckerRank", [ranks], product)


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
    flat = [x.flatten().tolist() if isinstance(x, Tensor) else x for x in arguments]  # ou des listes de listes
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
