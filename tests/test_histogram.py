"""L'histogramme en flux ne dépend que des valeurs vues, et ses bornes sont celles qu'un calcul direct trouverait."""

import math

import numpy as np
import pytest
import torch

from lrq import ActivationHistogram, UniformQuantizer
from lrq.histogram import METHODS

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SHARES = np.linspace(0.01, 1, 100)
every_method = pytest.mark.parametrize("method", METHODS)


@pytest.fixture
def samples(rng):
    """Des activations de toutes sortes : nom → vecteur float64."""

    def draw(name, count=3000):
        return {
            "gaussiennes": lambda: rng.standard_normal(count) * 3,
            "ReLU": lambda: np.maximum(rng.standard_normal(count), 0),
            "négatives": lambda: -rng.exponential(0.02, count) - 0.1,
            "lourdes": lambda: rng.standard_t(2, count) * 1e4,
            "décalées": lambda: rng.standard_normal(count) + 5,
            "écart énorme": lambda: rng.standard_normal(count) * 10.0 ** rng.integers(-300, 300, count),
            "une seule": lambda: np.full(count, 0.7),
        }[name]()

    return draw


SORTS = ["gaussiennes", "ReLU", "négatives", "lourdes", "décalées", "écart énorme", "une seule"]
every_sort = pytest.mark.parametrize("sort", SORTS)


def histogram(values, bins=2048):
    """L'histogramme de ces valeurs, vues d'un coup."""
    h = ActivationHistogram(bins)
    h.update(torch.as_tensor(values))
    return h


def edges(h):
    """Les bords des cases, exacts."""
    return np.ldexp(np.arange(-h.bins // 2, h.bins // 2 + 1, dtype=float), h.exponent + 1 - int(math.log2(h.bins)))


# --- les comptes ------------------------------------------------------------------------------------------------------


@every_sort
@pytest.mark.parametrize("bins", [4, 64, 2048])
def test_counts_are_those_of_numpy_on_the_smallest_range(sort, bins, samples):
    x = samples(sort)
    h = histogram(x, bins)
    peak = np.abs(x).max()
    assert peak < 2.0**h.exponent <= 2 * peak
    places = np.searchsorted(edges(h), x, side="right") - 1
    np.testing.assert_array_equal(h.counts.numpy(), np.bincount(places, minlength=bins))
    assert (h.low, h.high, h.count) == (x.min(), x.max(), len(x))


@every_sort
@pytest.mark.parametrize("bins", [4, 256])
def test_neither_the_order_nor_the_batches_matter(sort, bins, samples, rng):
    x = samples(sort)
    whole = histogram(x, bins)
    for cuts in (1, 7, 60):
        parts = np.split(rng.permutation(x), np.sort(rng.integers(0, len(x), cuts)))
        h = ActivationHistogram(bins)
        for part in parts:
            h.update(torch.tensor(part).reshape(-1, 1))
        assert torch.equal(h.counts, whole.counts)
        assert (h.exponent, h.low, h.high) == (whole.exponent, whole.low, whole.high)
        assert [h.range(method) for method in METHODS] == [whole.range(method) for method in METHODS]


def test_a_batch_of_zeros_does_not_widen_the_range():
    small, h = histogram([0.01, 0.02, 0.0]), histogram([0.01, 0.02])
    h.update(torch.zeros(1))  # une couche dont toutes les unités se taisent : frexp(0) vaut 0, comme celui de 0,9
    assert h.exponent == small.exponent == -5
    assert torch.equal(h.counts, small.counts)


def test_growing_values_and_tiny_negatives_never_move_to_another_bin():
    x = [-5e-324, 5e-324, -1e-310, 0.0, -0.0, -1e-40, 1.0, -(2.0**-60), 2.0**10, -(2.0**1023), 1.7e308]
    one_by_one = ActivationHistogram(8)
    for value in x:
        one_by_one.update(torch.tensor(value, dtype=torch.float64))
    assert torch.equal(one_by_one.counts, histogram(torch.tensor(x, dtype=torch.float64), 8).counts)
    assert one_by_one.counts.tolist() == [0, 0, 1, 4, 5, 0, 0, 1]
    assert one_by_one.range() == (-(2.0**1023), 1.7e308)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_counted_exactly(dtype, randn):
    x = randn(5, 40, dtype=dtype)
    h, exact = histogram(x), histogram(x.double())
    assert torch.equal(h.counts, exact.counts)
    assert h.range() == (min(float(x.min()), 0.0), max(float(x.max()), 0.0))


def test_what_is_seen_is_not_kept_and_keeps_its_graph(randn):
    x = randn(50).requires_grad_()
    h = histogram(x.detach())
    h.update(x * 2)
    assert not h.counts.requires_grad
    assert h.counts.nbytes == 8 * 2048


# --- les bornes -------------------------------------------------------------------------------------------------------


@every_sort
@pytest.mark.parametrize("percentile", [1, 50, 90, 99, 99.9, 100])
def test_percentiles_are_within_one_bin_of_torch(sort, percentile, samples):
    x = torch.tensor(samples(sort))
    h, tail = histogram(x), (100 - percentile) / 200
    expected = torch.quantile(x, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    found = h.range("percentile", percentile=percentile)
    limits = min(expected[0], 0.0), max(expected[1], 0.0)
    assert found == pytest.approx(limits, rel=1e-12, abs=h.width)
    if percentile == 100:
        assert found == h.range("min_max")


def centers(h):
    """Les centres des cases non vides, ramenés aux extrêmes, et leurs effectifs, zéros exacts ôtés."""
    borders, counts = edges(h), h.counts.numpy().copy()
    counts[len(counts) // 2] -= h.zeros
    return np.clip((borders[:-1] / 2 + borders[1:] / 2), h.low, h.high)[counts > 0], counts[counts > 0]


def affine(x, low, high, n_bits):
    """La grille affine de [low, high] sur n_bits : codes et valeurs, par NumPy."""
    top = 2**n_bits - 1
    step = (high - low) / top
    zero = np.clip(np.round(-low / step), 0, top)
    codes = np.clip(np.round(x / step) + zero, 0, top)
    return codes, (codes - zero) * step


def kullback_leibler(x, counts, low, high, n_bits):
    """KL de l'histogramme replié sur [low, high] à sa version arrondie, case par case."""
    inside = [i for i in range(len(x)) if low <= x[i] <= high]
    if len(inside) < min(2**n_bits, len(x)):  # à chaque case son niveau : rien ne se perdrait
        return math.inf
    p = {i: float(counts[i]) for i in inside}
    p[inside[0]] += sum(counts[x < low])
    p[inside[-1]] += sum(counts[x > high])
    codes = dict(zip(inside, affine(x[inside], low, high, n_bits)[0], strict=True))
    levels = {code: [i for i in inside if codes[i] == code] for code in codes.values()}
    q = {i: sum(counts[j] for j in levels[codes[i]]) / len(levels[codes[i]]) for i in inside}
    return sum(p[i] / sum(p.values()) * math.log(p[i] * sum(q.values()) / (q[i] * sum(p.values()))) for i in inside)


@pytest.mark.parametrize("sort", [sort for sort in SORTS if sort != "écart énorme"])
@pytest.mark.parametrize("n_bits", [2, 4, 8])
@pytest.mark.parametrize("method", ["mse", "entropy"])
def test_the_best_of_a_hundred_grids_is_kept(method, n_bits, sort, samples):
    h = histogram(samples(sort), 256)
    low, high = h.range(method, n_bits)
    x, counts = centers(h)
    least, most = min(h.low, 0.0), max(h.high, 0.0)

    def loss(low, high):
        if method == "entropy":
            return kullback_leibler(x, counts, low, high, n_bits)
        return float((counts * (x - affine(x, low, high, n_bits)[1]) ** 2).sum())

    share = (high - low) / (most - least)
    assert (low, high) == pytest.approx((share * least, share * most))
    assert min(abs(SHARES - share)) < 1e-9
    losses = [loss(s * least, s * most) for s in SHARES]
    assert loss(low, high) <= min(losses) * (1 + 1e-6) + 1e-12


def test_entropy_does_not_clip_what_has_few_values():
    h = histogram(torch.arange(17) / 16)  # des pixels : chaque valeur a sa case, et le peut garder
    assert h.range("entropy", 8) == h.range("min_max") == (0.0, 1.0)


def test_mse_is_as_good_as_on_the_values_themselves(rng):
    x = torch.tensor(rng.laplace(0.2, 3.0, 20_000))
    for n_bits in (3, 4, 6, 8):
        quantizer = UniformQuantizer(n_bits, symmetric=False, signed=False)
        scale, zero_point = quantizer._grid(*map(torch.tensor, histogram(x).range("mse", n_bits)))
        found = (quantizer.fake_quantize(x, scale, zero_point) - x).norm() / x.norm()
        best = UniformQuantizer(n_bits, symmetric=False, signed=False, clipping="mse").quantization_error(x)
        assert 0.999 * best <= found <= 1.02 * best


def test_a_rare_giant_is_clipped_and_few_bits_clip_more(randn):
    h = histogram(torch.cat([randn(50_000), torch.tensor([60.0])]))
    for method in ("mse", "entropy"):
        bounds = [h.range(method, n_bits)[1] for n_bits in (3, 8)]
        assert 0 < bounds[0] <= bounds[1] <= 60
        assert bounds[0] < 60
    assert h.range("percentile")[1] < 5


@every_sort
@every_method
def test_zero_is_always_inside_the_extremes(sort, method, samples):
    h = histogram(samples(sort))
    low, high = h.range(method, 4)
    assert min(h.low, 0.0) <= low <= 0.0 <= high <= max(h.high, 0.0)
    assert low < high


@every_method
@pytest.mark.parametrize("power", [-140, -3, 1, 90])
def test_scaling_by_a_power_of_two_scales_the_bounds(method, power, samples):
    x = samples("gaussiennes")
    low, high = histogram(x).range(method, 4)
    assert histogram(x * 2.0**power).range(method, 4) == (low * 2.0**power, high * 2.0**power)


@every_method
def test_null_activations_have_null_bounds(method):
    assert histogram(torch.zeros(4, 0, 3)).count == 0
    h = histogram(torch.zeros(4, 3))
    assert h.range(method) == (0.0, 0.0)
    h.update(torch.tensor([1.0, -2.0]))
    assert h.range() == (-2.0, 1.0)


# --- refus ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_change_nothing(bad, randn):
    h = histogram(randn(20))
    before = h.counts.clone(), h.exponent, h.low, h.high
    with pytest.raises(ValueError, match=r"^x : NaN ou infini dans les activations"):
        h.update(torch.tensor([1e6, bad]))
    assert torch.equal(h.counts, before[0])
    assert (h.exponent, h.low, h.high) == before[1:]


def test_refusals_are_named(randn):
    h = ActivationHistogram()
    h.update(torch.zeros(0, 3))
    for method in METHODS:
        with pytest.raises(ValueError, match=r"^range : aucune activation vue"):
            h.range(method)
    h.update(randn(9))
    with pytest.raises(ValueError, match=r"^method : reçu 'max', attendu 'min_max' ou 'percentile' ou"):
        h.range("max")
    with pytest.raises(ValueError, match=r"^n_bits : reçu 9"):
        h.range("mse", 9)
    with pytest.raises(ValueError, match=r"^percentile : reçu 0"):
        h.range("percentile", percentile=0)
    with pytest.raises(TypeError, match=r"^x : reçu list"):
        h.update([1.0])
    with pytest.raises(TypeError, match=r"^x : reçu des éléments torch.complex64"):
        h.update(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"^bins : reçu 12, attendu une puissance de 2"):
        ActivationHistogram(12)
    with pytest.raises(ValueError, match=r"^bins : reçu 2, attendu un entier entre 4"):
        ActivationHistogram(2)
