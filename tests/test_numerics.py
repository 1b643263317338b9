"""Les calculs des figures, refaits dans un vrai navigateur, contre PyTorch."""

import base64
import itertools
import re

import pytest
import torch
from conftest import GRAINE

from lrq import UniformQuantizer
from lrq.quantizers import CLIPPINGS
from lrq.widgets import QuantizerExplorer
from lrq.widgets.certificate import SETTINGS, golden_cases, quantizer_cases
from lrq.widgets.explorer import esm
from lrq.widgets.quantizer import MINILM

LIMIT = 1e-5
CERTIFY = """async ([module, cases]) => {
  const { certify } = await import(module);
  return Object.fromEntries(Array.from(certify(cases), ([name, { gap }]) => [name, gap]));
}"""


def data_url(code):
    return f"data:text/javascript;base64,{base64.b64encode(code.encode()).decode()}"


@pytest.fixture
def gaps(browser):
    """Écart par fonction, pour des témoins et, au besoin, un numerics.js altéré."""
    page = browser.new_page()

    def run(cases, alter=lambda code: code):
        good = esm("numerics.js")
        module = esm("certificate.js").replace(data_url(good), data_url(alter(good)))
        return page.evaluate(CERTIFY, [data_url(module), cases])

    yield run
    page.close()


def draws(first):
    """Huit tirages des témoins, à partir du numéro `first`."""
    seeds = range(GRAINE + first, GRAINE + first + 8)
    return [golden for seed in seeds for golden in golden_cases(torch.Generator().manual_seed(seed))]


@pytest.fixture(scope="module")
def cases():
    """Les premiers, qui prennent deux secondes : les mêmes pour toutes les altérations d'une exécution."""
    return draws(0)


def test_javascript_agrees_with_pytorch(gaps, cases):
    found = gaps(cases)
    exported = set(re.findall(r"^export function (\w+)", esm("numerics.js"), re.MULTILINE))
    tools = {"roundHalfEven", "relativeGap"}  # éprouvés par les autres et par les altérations
    assert {golden["function"] for golden in cases} == exported - tools
    assert max(found.values()) <= LIMIT, {name: gap for name, gap in found.items() if gap > LIMIT}


@pytest.mark.parametrize(
    ("right", "wrong", "twin"),
    [
        ("roundHalfEven(Math", "Math.round(Math", "quantize_symmetric"),
        ("sum / width", "sum", "quantize_symmetric"),
        ("energies[S.length] = tail", "energies[S.length] = 0", "truncation_errors"),
        ("k < rank", "k < rank - 1", "produit U_r (U_rᵀ W)"),
        ("Math.ceil((m * rank * bits) / 8)", "Math.floor((m * rank * bits) / 8)", "QuantizedLowRankLayer.nbytes"),
        ("scales * 32", "2 * 32", "QuantizedLowRankLinear.nbytes"),
        ("sizes[i] > limit", "sizes[i] >= limit", "best_within"),
        ("sizes[i] < sizes[best]", "sizes[i] > sizes[best]", "best_within"),
        ("|| errors[i] - errors[j]", "", "pareto_front"),
        ("errors[i] < errors[front.at(-1)]", "errors[i] <= errors[front.at(-1)]", "pareto_front"),
        ("kept < threshold", "kept <= threshold", "rank_for_energy"),
        ("return 2 ** -bits", "return 4 ** -bits", "water_filling, spectre plat"),
        ("rate + Math.log2(error)", "rate - Math.log2(error)", "wasted_bits"),
        ("energy > levels[k]", "energy > levels[0]", "water_filling"),
        ("2 * bits * S.length", "bits * S.length", "water_filling"),
        ("Math.min(energy, level)", "energy", "water_filling"),
        ("(energy - level) / 2", "energy - level", "water_filling"),
        ("gains[i] * bound + added", "bound + added", "propagation_bound"),
        ("product(sizes.slice(k + 1))", "product(sizes.slice(k))", "clamped_ranks"),
        ("storedBits(count, bits, 1, true)", "count * bits", "QuantizedTTLinear.nbytes"),
        ("? count * bits", "? count", "TTLinear.nbytes"),
        ("bits) > limit", "bits) >= limit", "rank_within"),
        ("rank / (oversample - 1)", "rank / oversample", "halko_bound"),
        ("error / optimum - 1", "error - optimum", "RandomizedExplorer.excess"),
        ("Math.sqrt(m) + Math.sqrt(n)", "Math.sqrt(m + n)", "marchenko_pastur_edge"),
        ("first - zeros[row]", "first", "UniformQuantizer.quantize"),
        ("symmetric ? tail : tail / 2", "tail", "UniformQuantizer.quantize"),
        ("1 - step * (SHARES", "1 - step * (1 + SHARES", "UniformQuantizer.quantize"),
        ("error < least) [least", "error <= 1.01 * least) [least", "UniformQuantizer.quantize"),
        ("symmetric ? 32 : 40", "40", "QuantizedTensor.nbytes"),
        ("zeros ? zeros[row] : 0", "0", "UniformQuantizer.dequantize"),
        ("12 * scales.length", "scales.length", "predicted_error"),
        ("last - zeros[row] + 0.5", "last - zeros[row] - 0.5", "clipped"),
        ("start & 7", "start & 3", "unpack_bits"),
        ("A[i] ** 2", "Math.abs(A[i])", "balanced_factors"),
        ("i % p < rank", "i % p <= rank", "widgets.network.compress"),
        ("byRow ? rows : 1", "1", "widgets.network.compress"),
        ("rank < breakEvenRank", "rank < 2 * breakEvenRank", "widgets.network.truncated"),
        ("byRow ? m + rank : 2", "2", "stored_bytes"),
        ("(output * inputs + input) * positions", "(input * outputs + output) * positions", "permute(2, 1, 0)"),
        ("row + i - margin", "row + i", "conv2d"),
        ("y.set(bias, to)", "y.set(bias)", "conv2d"),
        ("Math.max(0, x[a]", "Math.max(x[a]", "max_pool2d(relu)"),
        ("(dense ? 1 : 9)", "9", "DigitsCNN.forward"),
        ("values.indexOf", "values.lastIndexOf", "argmax"),
        ("10 * label + predictions[i]", "10 * predictions[i] + label", "NetworkExplorer.confusion"),
        ("width / 2, 1e-9", "1e-9", "widgets.network.ink"),
        ("(PEN / 2) ** 2", "PEN ** 2", "widgets.network.ink"),
        ("sum + error ** 2, 0", "sum + error, 0", "combined_error_analysis"),
        ("8 * trained", "4 * trained", "LoRAExplorer.nbytes"),
        ("alpha / Math.sqrt(rank)", "alpha / rank", "LoRALayer.scale"),
        ("gain / costs[i]", "gain", "allocate_budget, premier achat"),
        ("product * rank, 1", "product + rank, 0", "torch.kron, rang"),
    ],
)
def test_a_wrong_calculation_is_noticed(gaps, cases, right, wrong, twin):
    """Une faute qui ne se voit qu'à certains tirages en demande parfois d'autres : vingt fois huit, au plus."""

    def alter(code):
        assert right in code
        return code.replace(right, wrong)

    rounds = itertools.chain([cases], map(draws, range(8, 160, 8)))
    assert any(gaps(each, alter)[twin] > 1e-3 for each in rounds)


def test_a_missing_number_or_nan_is_an_infinite_gap(gaps, cases):
    golden = dict(cases[0])
    assert gaps([golden | {"expected": golden["expected"][1:]}]) == {golden["twin"]: float("inf")}


def test_every_quantizer_agrees_with_pytorch(gaps, rng):
    """Toutes les combinaisons de symétrie, d'écrêtage, de partage et de bits, que golden_cases tire au hasard."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    quantizers = [
        UniformQuantizer(bits, symmetric, granularity=granularity, clipping=clipping)
        for symmetric, clipping, granularity in SETTINGS
        for bits in range(1, 9)
    ]
    found = gaps([golden for quantizer in quantizers for golden in quantizer_cases(quantizer, generator)])
    assert max(found.values()) <= LIMIT, {name: gap for name, gap in found.items() if gap > LIMIT}


MEASURE = """async ([module, x, settings]) => {
  const { clippedShare, dequantize, quantizeUniform, relativeError, storedBits, uniformNoise } = await import(module);
  const W = Float32Array.from(x);
  return settings.map(([bits, rows, symmetric, clipping]) => {
    const { codes, scales, zeros } = quantizeUniform(W, bits, rows, symmetric, clipping);
    return [
      relativeError(W, dequantize(codes, scales, zeros)),
      uniformNoise(W, scales),
      storedBits(W.length, bits, rows, symmetric) / W.length,
      clippedShare(W, bits, symmetric, scales, zeros) * W.length,
    ];
  });
}"""


def test_every_state_of_the_quantizer_figure_agrees_with_lrq(browser):
    """Les 576 réglages possibles des quatre extraits de MiniLM, calculés par la page et par lrq.

    « Au moindre carré », deux réductions se valent parfois à l'arrondi près d'une somme de float32 : l'erreur est alors
    la même, mais un poids de plus ou de moins peut être écrêté, et le pas d'un bloc sur plusieurs change d'un centième.
    """
    explorer, page = QuantizerExplorer.of_minilm(), browser.new_page()
    shared = {"tensor": 1, "row": 32, "group": 96}
    names = [(g, s, c, b) for g in shared for s in (True, False) for c in CLIPPINGS for b in range(1, 9)]
    for name in MINILM:
        explorer.matrix = name
        settings = [
            [bits, shared[granularity], symmetric, clipping] for granularity, symmetric, clipping, bits in names
        ]
        found = page.evaluate(MEASURE, [data_url(esm("numerics.js")), explorer.W.flatten().tolist(), settings])
        for values, (granularity, symmetric, clipping, bits) in zip(found, names, strict=True):
            explorer.granularity, explorer.symmetric, explorer.clipping = granularity, symmetric, clipping
            explorer.n_bits = bits
            error, predicted, stored, clipped = values
            loose = clipping == "mse"
            assert error == pytest.approx(explorer.error, rel=1e-5), explorer
            assert predicted == pytest.approx(explorer.predicted_error, rel=1e-3 if loose else 1e-6), explorer
            assert stored == explorer.bits_per_weight, explorer
            assert clipped == pytest.approx(explorer.clipped * explorer.W.numel(), abs=1 if loose else 1e-6), explorer
    page.close()
