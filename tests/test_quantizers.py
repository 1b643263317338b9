"""Quantifier rend le niveau le plus proche, sur la grille que NumPy calcule à part, quels que soient les réglages."""

import math
import re

import numpy as np
import pytest
import safetensors.torch
import torch

from lrq import (
    PerChannel,
    PerGroup,
    PerTensor,
    UniformQuantizer,
    dequantize,
    pack_bits,
    quantize_symmetric,
    unpack_bits,
)
from lrq.layers import PackedTensor
from lrq.quantizers import CLIPPINGS

BITS = range(1, 9)
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SYMMETRIC = [pytest.param(True, id="symétrique"), pytest.param(False, id="asymétrique")]
SIGNED = [pytest.param(True, id="signée"), pytest.param(False, id="non signée")]
GRANULARITIES = [PerTensor(), PerChannel(0), PerChannel(1), PerChannel(-1), PerGroup(1), PerGroup(4), PerGroup(8)]
TINY = torch.finfo(torch.float32).tiny


def combinations(function):
    """Toutes les grilles : 1 à 8 bits, symétrique ou non, signée ou non, et leurs trois écrêtages."""
    for name, values in (("n_bits", BITS), ("symmetric", SYMMETRIC), ("signed", SIGNED), ("clipping", CLIPPINGS)):
        function = pytest.mark.parametrize(name, values)(function)
    return function


def grid_bounds(n_bits, symmetric, signed):
    """Les codes extrêmes, écrits cas par cas."""
    if not signed:
        return 0, 2**n_bits - 1
    if symmetric:
        return (-1, 1) if n_bits == 1 else (-(2 ** (n_bits - 1)) + 1, 2 ** (n_bits - 1) - 1)
    return -(2 ** (n_bits - 1)), 2 ** (n_bits - 1) - 1


def block_indices(granularity, shape):
    """Le numéro du bloc de chaque élément, par NumPy."""
    where = np.indices(shape)
    if isinstance(granularity, PerTensor):
        return np.zeros(shape, dtype=int)
    if isinstance(granularity, PerChannel):
        return where[granularity.dim]
    groups = shape[-1] // granularity.size
    return np.arange(np.prod(shape[:-1], dtype=int)).reshape(shape[:-1])[..., None] * groups + (
        where[-1] // granularity.size
    )


def some(rng, values, count):
    """Quelques-uns, tirés au sort : la recherche de ``mse`` essaie cent grilles, et tous les lui donner serait long."""
    return [values[i] for i in rng.permutation(len(values))[:count]]


def check_grid(quantizer, t):
    """Codes dans la grille, le plus proche niveau pour chacun, zéro exact, rien d'infini ; rend erreur, pas et t̂.

    Les niveaux sont recalculés par NumPy en float64, et essayés tous.
    """
    bits, symmetric, signed = quantizer.n_bits, quantizer.symmetric, quantizer.signed
    scale, zero_point = quantizer.compute_scale_zero_point(t)
    codes = quantizer.quantize(t, scale, zero_point)
    back = quantizer.dequantize(codes, scale, zero_point)
    assert scale.dtype == (torch.float64 if t.dtype == torch.float64 else torch.float32)
    assert zero_point.dtype == torch.int32
    assert codes.dtype == (torch.int8 if signed else torch.uint8)
    assert codes.shape == back.shape == t.shape
    low, high = grid_bounds(bits, symmetric, signed)
    binary = symmetric and signed and bits == 1
    assert int(codes.min()) >= low
    assert int(codes.max()) <= high
    assert not binary or (codes != 0).all()
    assert torch.isfinite(scale).all()
    assert (scale >= 0).all()
    assert not symmetric or (zero_point == 0).all()
    assert torch.isfinite(back).all()
    index = block_indices(quantizer.granularity, tuple(t.shape))
    step = scale.double().numpy().reshape(-1)[index]
    zero = zero_point.numpy().reshape(-1)[index]
    x = t.detach().double().numpy()
    np.testing.assert_allclose(back.double().numpy(), (codes.double().numpy() - zero) * step, rtol=1e-6)
    every = np.array([-1, 1]) if binary else np.arange(low, high + 1)
    distance = np.abs((every - zero[..., None]) * step[..., None] - x[..., None]).min(-1)
    error = np.abs(back.double().numpy() - x)
    lost = (step < TINY) & (not binary)  # un pas plus petit que le plus petit float32 normal : le bloc devient nul
    assert (np.abs(x)[lost & (step > 0)] < 300 * TINY).all() or quantizer.clipping == "percentile"
    assert (error[~lost] <= (distance + 1e-4 * step + 1e-6 * np.abs(x))[~lost]).all()
    assert (np.abs(back.double().numpy())[lost] <= 128 * 2 * TINY).all()
    if not binary:
        at_zero = quantizer.quantize(torch.zeros_like(t), scale, zero_point)
        assert (quantizer.dequantize(at_zero, scale, zero_point) == 0).all(), "zéro n'est plus exact"
    return error, step, back


# --- toutes les grilles -----------------------------------------------------------------------------------------------


@combinations
def test_codes_are_the_nearest_levels(n_bits, symmetric, signed, clipping, randn, rng):
    """Partout, et à un demi-pas au plus là où rien n'est écrêté."""
    whole = (randn(4, 16, 3) + float(rng.normal())) * float(10 ** rng.uniform(-3, 3))
    t = whole.movedim(-1, 1)[:, :, ::2]  # (4, 3, 8), ni contigu ni dense
    for granularity in some(rng, GRANULARITIES, 2) if clipping == "mse" else GRANULARITIES:
        quantizer = UniformQuantizer(n_bits, symmetric, signed, granularity, clipping, float(rng.uniform(50, 100)))
        error, step, _ = check_grid(quantizer, t)
        if clipping == "min_max" and not (symmetric and n_bits == 1):
            kept = t.numpy() >= 0 if symmetric and not signed else np.ones(t.shape, dtype=bool)
            assert (error <= step * (0.5 + 1e-4) + 1e-6 * np.abs(t.numpy()))[kept].all()
            if isinstance(granularity, PerTensor) and kept.sum() > 20:
                assert (error > 0.3 * step)[kept].any(), "arrondir à un demi-pas de moins aurait passé aussi"


@combinations
def test_extreme_tensors(n_bits, symmetric, signed, clipping, randn, rng):
    noise = randn(2, 3, 2, 8)
    holes = noise.clone()
    holes[0] = 0
    holes[..., :4] = 0
    spread = noise * torch.tensor(10.0 ** rng.uniform(-30, 30, (2, 1, 1, 1)), dtype=torch.float32)
    extremes = torch.tensor(rng.uniform(-3e38, 3e38, (2, 3, 2, 8)), dtype=torch.float32)
    extremes[0, 0, 0, :2] = torch.tensor([-3e38, 3e38])
    tensors = [
        torch.zeros(2, 3, 2, 8),  # zéros
        torch.full((2, 3, 2, 8), float(rng.uniform(0.1, 9))),  # constante
        torch.full((2, 3, 2, 8), -float(rng.uniform(0.1, 9))),  # constante négative
        holes,  # blocs nuls à côté d'autres
        spread,  # ordres de grandeur mêlés
        noise * 1e-38,  # 1e-38
        noise * 1e-30,  # 1e-30
        noise * 1e30,  # 1e30
        extremes,  # 3e38
        torch.cat([extremes[:1].abs().neg(), extremes[:1].abs() / 6]),  # −3e38 … 5e37
        torch.sign(noise) * torch.finfo(torch.float32).max,  # le plus grand float32
    ]
    stacked = torch.stack(tensors)  # (tenseurs, 2, 3, 2, 8) : une échelle par tenseur, puis par groupe
    zero = stacked[:, :, :, :, :4] == 0
    for granularity in (PerChannel(0), PerGroup(4)):
        quantizer = UniformQuantizer(n_bits, symmetric, signed, granularity, clipping)
        _, _, back = check_grid(quantizer, stacked)
        assert (back[0] == 0).all(), "le tenseur nul ne l'est plus"
        if isinstance(granularity, PerGroup):
            assert (back[..., :4][zero] == 0).all(), "un groupe nul ne l'est plus"
    if clipping != "percentile" and (signed or not symmetric):  # 1e30 n'est pas devenu zéro
        assert UniformQuantizer(n_bits, symmetric, signed, None, clipping).quantization_error(noise * 1e30) < 1


@pytest.mark.parametrize("n_bits", [1, 2, 3, 8])
@pytest.mark.parametrize("symmetric", SYMMETRIC)
@pytest.mark.parametrize("signed", SIGNED)
@pytest.mark.parametrize("clipping", CLIPPINGS)
def test_scaling_by_a_power_of_two_scales_everything(n_bits, symmetric, signed, clipping, randn, rng):
    """Au bit près : un carré qui déborde ou s'annule, dans la recherche de ``mse``, y ferait un autre choix."""
    t = randn(4, 8)
    quantizer = UniformQuantizer(n_bits, symmetric, signed, some(rng, [PerTensor(), PerGroup(4)], 1)[0], clipping)
    scale, zero_point = quantizer.compute_scale_zero_point(t)
    codes = quantizer.quantize(t, scale, zero_point)
    for power in (2.0**100, 2.0**-100):
        other_scale, other_zero_point = quantizer.compute_scale_zero_point(t * power)
        assert torch.equal(other_scale, scale * power)
        assert torch.equal(other_zero_point, zero_point)
        assert torch.equal(quantizer.quantize(t * power, other_scale, other_zero_point), codes)


@pytest.mark.parametrize("n_bits", BITS)
@pytest.mark.parametrize("symmetric", SYMMETRIC)
def test_shapes_and_dtypes(n_bits, symmetric, randn, rng):
    for shape in [(), (1,), (7,), (3, 5), (2, 1, 3), (2, 3, 2, 2)]:
        check_grid(UniformQuantizer(n_bits, symmetric, clipping=str(rng.choice(CLIPPINGS))), randn(*shape))
    for granularity in (PerChannel(0), PerGroup(7)):
        check_grid(UniformQuantizer(n_bits, symmetric, True, granularity, str(rng.choice(CLIPPINGS))), randn(7))
    quantizer = UniformQuantizer(n_bits, symmetric, clipping=str(rng.choice(CLIPPINGS)))
    for dtype in DTYPES:
        t = randn(5, 6, dtype=dtype)
        check_grid(quantizer, t)
        back = quantizer.quantize_dequantize(t)
        assert back.dtype == dtype
        wide = t if dtype == torch.float64 else t.float()
        assert torch.equal(back, quantizer.quantize_dequantize(wide).to(dtype))  # calculé en float32, puis arrondi
        assert torch.equal(quantizer.compress(t).dequantize(), back)


@pytest.mark.parametrize("n_bits", BITS)
def test_integers_come_back_as_floats(n_bits, rng):
    t = torch.tensor(rng.integers(-90, 90, (4, 5)))
    quantizer = UniformQuantizer(n_bits)
    back = quantizer.quantize_dequantize(t)
    assert torch.equal(back, quantizer.quantize_dequantize(t.float()))
    assert torch.equal(quantizer.compress(t).dequantize(), back)
    assert quantizer.quantization_error(t) == quantizer.quantization_error(t.float())


@pytest.mark.parametrize("n_bits", BITS)
@pytest.mark.parametrize("symmetric", SYMMETRIC)
def test_largest_float16_does_not_overflow(n_bits, symmetric, rng):
    """Sur 2 bits, [−60000, 10000] a un niveau à −70000, que float16 ne sait pas écrire."""
    quantizer = UniformQuantizer(n_bits, symmetric)
    for low, high in [(-60000, 10000), (-65504, 65504), (-65504, float(rng.uniform(0, 65504)))]:
        t = torch.tensor([low, high], dtype=torch.float16)
        for back in (quantizer.quantize_dequantize(t), quantizer.compress(t).dequantize()):
            assert torch.isfinite(back).all()
    if n_bits == 2 and not symmetric:
        t = torch.tensor([-60000.0, 10000.0])
        assert quantizer.quantize_dequantize(t).min() < -65504, "la grille ne dépasse plus : ce test ne prouve rien"


@pytest.mark.parametrize("n_bits", [1, 2, 3, 8])
@pytest.mark.parametrize("symmetric", SYMMETRIC)
@pytest.mark.parametrize("signed", SIGNED)
@pytest.mark.parametrize("clipping", CLIPPINGS)
def test_each_block_is_quantized_as_if_alone(n_bits, symmetric, signed, clipping, randn, rng):
    """Au bit près : une dimension, un groupe, une tranche ; et par groupes, c'est par lignes du tenseur redécoupé."""
    t = randn(3, 4, 8)

    def results(granularity, x):
        quantizer = UniformQuantizer(n_bits, symmetric, signed, granularity, clipping, 90)
        scale, zero_point = quantizer.compute_scale_zero_point(x)
        codes = quantizer.quantize(x, scale, zero_point)
        return codes, quantizer.dequantize(codes, scale, zero_point), scale, zero_point

    dim, size = int(rng.integers(-3, 3)), int(rng.choice([1, 2, 4, 8]))
    codes, back, scale, zero_point = results(PerChannel(dim), t)
    assert scale.shape == zero_point.shape == tuple(t.shape[i] if i == dim % 3 else 1 for i in range(3))
    for i in some(rng, range(t.shape[dim]), 1 if clipping == "mse" else 3):
        alone = results(PerTensor(), t.select(dim, i))
        assert torch.equal(codes.select(dim, i), alone[0])
        assert torch.equal(back.select(dim, i), alone[1])
        assert scale.flatten()[i] == alone[2]
        assert zero_point.flatten()[i] == alone[3]
    ours = results(PerGroup(size), t)
    assert ours[2].shape == ours[3].shape == (3, 4, 8 // size)
    for mine, theirs in zip(ours, results(PerChannel(0), t.reshape(-1, size)), strict=True):
        assert torch.equal(mine.flatten(), theirs.flatten())
    if size > 1:  # d'autres voisins, d'autres échelles
        assert not torch.equal(ours[2], results(PerGroup(size), t.transpose(1, 2).reshape(3, 4, 8))[2])


@pytest.mark.parametrize("symmetric", SYMMETRIC)
@pytest.mark.parametrize("signed", SIGNED)
def test_finer_blocks_have_finer_steps(symmetric, signed, randn):
    """À 8 bits, sur des lignes d'échelles très différentes : par tenseur, les petites lignes sont écrasées."""
    t = randn(6, 32).abs() * 10.0 ** torch.arange(-3, 3)[:, None]
    errors, steps = [], []
    for granularity in (PerTensor(), PerChannel(0), PerGroup(8)):
        quantizer = UniformQuantizer(8, symmetric, signed, granularity)
        steps.append(quantizer.compute_scale_zero_point(t)[0])
        errors.append(float((t - quantizer.quantize_dequantize(t))[0].norm() / t[0].norm()))
    assert errors[0] > 0.5
    assert max(errors[1:]) < 0.02
    assert (steps[2] <= steps[1]).all()
    assert (steps[1] <= steps[0]).all()


@pytest.mark.parametrize("signed", SIGNED)
@pytest.mark.parametrize("n_bits", BITS)
def test_asymmetric_grid_covers_the_range(n_bits, signed, randn, rng):
    """L'échelle et le point zéro de NumPy ; toutes les valeurs positives : le premier niveau reste zéro."""
    low, high = grid_bounds(n_bits, False, signed)
    for shift in (-9.0, float(rng.normal()), 9.0):
        t = randn(50, dtype=torch.float64) + shift
        scale, zero_point = UniformQuantizer(n_bits, False, signed).compute_scale_zero_point(t)
        left, right = min(float(t.min()), 0.0), max(float(t.max()), 0.0)
        assert float(scale) == pytest.approx((right - left) / (2**n_bits - 1), rel=1e-12)
        assert abs(float(zero_point) - (low - left / float(scale))) <= 0.5 + 1e-9
        assert low <= int(zero_point) <= high
        assert shift != 9.0 or int(zero_point) == low
        assert shift != -9.0 or int(zero_point) == high


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation:UserWarning")
@pytest.mark.parametrize("signed", SIGNED)
def test_eight_bit_codes_are_those_of_torch(signed, randn, rng):
    """torch.quantize_per_tensor et torch.quantize_per_channel, au code près ; les codes ne bougent pas d'un."""
    kind = torch.qint8 if signed else torch.quint8
    t = randn(5, 64) * float(rng.uniform(0.1, 10))
    quantizer = UniformQuantizer(8, False, signed)
    scale, zero_point = quantizer.compute_scale_zero_point(t)
    theirs = torch.quantize_per_tensor(t, float(scale), int(zero_point), kind)
    assert torch.equal(quantizer.quantize(t), theirs.int_repr())
    torch.testing.assert_close(quantizer.quantize_dequantize(t), theirs.dequantize(), rtol=0, atol=1e-4 * float(scale))
    quantizer = UniformQuantizer(8, False, signed, PerChannel(0))
    scale, zero_point = quantizer.compute_scale_zero_point(t)
    theirs = torch.quantize_per_channel(t, scale.flatten().double(), zero_point.flatten(), 0, kind)
    assert (quantizer.quantize(t).int() - theirs.int_repr().int()).abs().max() <= 1  # torch y divise en float64
    assert (quantizer.quantize(t) != theirs.int_repr()).float().mean() < 0.02


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_one_bit_is_the_sign_times_the_mean_of_each_block(granularity, randn):
    t = randn(4, 3, 8, dtype=torch.float64)
    back = UniformQuantizer(1, granularity=granularity).quantize_dequantize(t).numpy()
    index = block_indices(granularity, t.shape)
    for block in np.unique(index):
        values = t.numpy()[index == block]
        np.testing.assert_allclose(back[index == block], np.sign(values) * np.abs(values).mean(), rtol=1e-12)
    huge = torch.full((3, 40), 3e38)
    np.testing.assert_allclose(UniformQuantizer(1).quantize_dequantize(huge), 3e38, rtol=1e-6)  # la somme déborde


# --- où s'arrête la grille --------------------------------------------------------------------------------------------


def numpy_scale(values, n_bits, symmetric, signed, percentile):
    """L'échelle d'un bloc aux centiles, par numpy.quantile."""
    tail = (100 - percentile) / 100
    if symmetric and signed:
        return np.quantile(np.abs(values), 1 - tail) / (2 ** (n_bits - 1) - 1)
    low, high = np.quantile(values, [tail / 2, 1 - tail / 2])
    return (max(high, 0) - (0 if symmetric else min(low, 0))) / (2**n_bits - 1)


@pytest.mark.parametrize("symmetric", SYMMETRIC)
@pytest.mark.parametrize("signed", SIGNED)
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(1), PerGroup(8)], ids=str)
def test_percentiles_are_those_of_numpy(symmetric, signed, granularity, randn, rng):
    for n_bits in (2, 5, 8):
        t = randn(5, 7, 16, dtype=torch.float64) + float(rng.normal())
        index = block_indices(granularity, t.shape)
        for percentile in (100, 99.9, 50, float(rng.uniform(1, 100))):
            quantizer = UniformQuantizer(n_bits, symmetric, signed, granularity, "percentile", percentile)
            scale = quantizer.compute_scale_zero_point(t)[0].flatten().numpy()
            expected = [
                numpy_scale(t.numpy()[index == block], n_bits, symmetric, signed, percentile)
                for block in range(len(scale))
            ]
            np.testing.assert_allclose(scale, expected, rtol=1e-10, atol=1e-14)
            widest = UniformQuantizer(n_bits, symmetric, signed, granularity).compute_scale_zero_point(t)[0]
            if percentile == 100:
                np.testing.assert_array_equal(scale, widest.flatten().numpy())
            elif percentile <= 50 and signed:
                assert (scale < widest.flatten().numpy()).all()


def test_percentile_clips_an_outlier(randn):
    t = randn(1000)
    t[17] = 1e30
    quantizer = UniformQuantizer(8, clipping="percentile", percentile=99)
    codes, back = quantizer.quantize(t), quantizer.quantize_dequantize(t)
    assert int(codes[17]) == 127
    assert float((back - t)[:17].norm() / t[:17].norm()) < 0.5
    assert UniformQuantizer(8).quantize_dequantize(t)[:17].norm() == 0  # aux extrêmes, tout le reste est écrasé
    t = t * 1e-30
    t[17] = 1e30  # le quotient par l'échelle déborde : il s'écrête comme un autre
    assert int(quantizer.quantize(t)[17]) == 127
    fake = quantizer.fake_quantize(t, *quantizer.compute_scale_zero_point(t))
    assert torch.equal(fake, quantizer.quantize_dequantize(t))


@pytest.mark.parametrize("n_bits", [5, 8])  # à 2 bits, un niveau déborderait, et le pas est réduit
def test_percentile_between_opposite_extremes_does_not_overflow(n_bits):
    """De −3·10³⁸ à 3·10³⁸, l'écart que l'interpolation parcourt dépasse le plus grand float32."""
    t = torch.tensor([-3e38, 3e38])
    for percentile in (100, 99):
        scale, _ = UniformQuantizer(
            n_bits, False, clipping="percentile", percentile=percentile
        ).compute_scale_zero_point(t)
        expected = numpy_scale(t.double().numpy(), n_bits, False, True, percentile)
        assert float(scale) == pytest.approx(expected, rel=1e-5)


def brute_force(values, n_bits, symmetric, signed):
    """L'erreur quadratique des cent grilles, en float64 : (échelle, erreur) de chacune."""
    low, high = grid_bounds(n_bits, symmetric, signed)
    left, right = min(values.min(), 0), max(values.max(), 0)
    if symmetric:
        left, right = (-np.abs(values).max(), np.abs(values).max()) if signed else (0, right)
    found = []
    for share in np.arange(1, 101) / 100:
        scale = share * (right - left) / (high - low)
        zero_point = 0 if symmetric else np.clip(np.round(low - share * left / scale), low, high)
        codes = np.clip(np.round(values / scale) + zero_point, low, high)
        found.append((scale, (((codes - zero_point) * scale - values) ** 2).sum()))
    return np.array(found)


@pytest.mark.parametrize("n_bits", BITS)
@pytest.mark.parametrize("symmetric", SYMMETRIC)
@pytest.mark.parametrize("signed", SIGNED)
def test_mse_is_the_best_of_a_hundred_grids(n_bits, symmetric, signed, rng):
    if n_bits == 1 and symmetric and signed:
        pytest.skip("à 1 bit, la moyenne de abs(t) est déjà le minimum")
    size = 60
    t = torch.tensor(rng.standard_t(2, (4, size)) * 10.0 ** rng.uniform(-25, 25, (4, 1)), dtype=torch.float32)
    t = t.abs() if symmetric and not signed else t  # sinon, l'erreur est surtout celle des négatifs
    quantizer = UniformQuantizer(n_bits, symmetric, signed, PerGroup(size), "mse")
    scale, _ = quantizer.compute_scale_zero_point(t)
    back = quantizer.quantize_dequantize(t).double().numpy()
    widest = UniformQuantizer(n_bits, symmetric, signed, PerGroup(size)).quantize_dequantize(t).double().numpy()
    for i, values in enumerate(t.double().numpy()):
        scales, errors = brute_force(values, n_bits, symmetric, signed).T
        error = ((back[i] - values) ** 2).sum()
        assert error <= errors.min() * (1 + 1e-4)
        assert error >= errors.min() * (1 - 1e-4)
        assert error <= ((widest[i] - values) ** 2).sum() * (1 + 1e-5)
        assert np.abs(float(scale[i, 0]) / scales - 1).min() < 1e-5, "une échelle qui n'est pas des cent"
        assert errors.max() > 1.01 * errors.min(), "toutes les grilles se valent : ce test ne prouve rien"


def test_mse_beats_the_extremes_on_heavy_tails(rng):
    t = torch.tensor(rng.laplace(size=(4, 500)), dtype=torch.float32)
    for n_bits in (2, 3, 4):
        errors = {c: UniformQuantizer(n_bits, clipping=c).quantization_error(t) for c in CLIPPINGS}
        assert errors["mse"] < 0.9 * errors["min_max"]


def test_quantization_error_is_that_of_numpy(randn):
    t = randn(6, 10)
    quantizer = UniformQuantizer(3, False)
    back = quantizer.quantize_dequantize(t).double().numpy()
    expected = np.linalg.norm(back - t.double().numpy()) / np.linalg.norm(t.double().numpy())
    assert quantizer.quantization_error(t) == pytest.approx(expected, rel=1e-12)
    assert quantizer.quantization_error(torch.zeros(3)) == 0
    assert 0 < quantizer.quantization_error(t * 1e30) < 1


# --- ce qui est rangé -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_bits", BITS)
@pytest.mark.parametrize("symmetric", SYMMETRIC)
@pytest.mark.parametrize("signed", SIGNED)
def test_stored_bytes_are_the_claimed_bits(n_bits, symmetric, signed, randn, rng):
    """Le fichier safetensors, moins son en-tête, pèse b bits par nombre, 32 par échelle et 8 par point zéro."""
    for rows, columns in [(64, 64), (int(rng.integers(65, 90)), 96)]:
        t = randn(rows, columns)
        for granularity, scales in ((PerTensor(), 1), (PerChannel(0), rows), (PerGroup(32), rows * columns // 32)):
            stored = UniformQuantizer(n_bits, symmetric, signed, granularity).compress(t)
            tensors = {"codes": stored.packed, "échelles": stored.scale}
            if stored.zero_point is not None:
                tensors["points zéro"] = stored.zero_point
            assert symmetric == (stored.zero_point is None)
            file = safetensors.torch.save(tensors)
            content = len(file) - 8 - int.from_bytes(file[:8], "little")
            claimed = n_bits * t.numel() + 32 * scales + (0 if symmetric else 8 * scales)
            assert content == stored.nbytes() == sum(x.nbytes for x in tensors.values())
            assert 8 * content == pytest.approx(claimed, rel=0.01)
            assert n_bits == 8 or 8 * t.numel() > 1.01 * claimed or scales > 1, "un code par octet aurait passé aussi"


@pytest.mark.parametrize("n_bits", BITS)
@pytest.mark.parametrize("symmetric", SYMMETRIC)
@pytest.mark.parametrize("signed", SIGNED)
def test_stored_tensor_gives_back_the_same_bits(n_bits, symmetric, signed, randn, rng):
    shape = (int(rng.integers(1, 4)), int(rng.integers(1, 6)), 8)
    for granularity in GRANULARITIES:
        t = randn(*shape) + 0.5
        quantizer = UniformQuantizer(n_bits, symmetric, signed, granularity)
        stored, expected = quantizer.compress(t), quantizer.quantize_dequantize(t)
        assert torch.equal(stored.dequantize(), expected)
        loaded = safetensors.torch.load(safetensors.torch.save({"packed": stored.packed, "scale": stored.scale}))
        assert torch.equal(loaded["packed"], stored.packed)
        assert torch.equal(loaded["scale"], stored.scale)
        assert stored.packed.nbytes == math.ceil(t.numel() * n_bits / 8)


def test_every_scale_and_zero_point_is_needed(randn):
    """L'un ou l'autre changé, le tenseur n'est plus le même."""
    t = randn(4, 8)
    quantizer = UniformQuantizer(4, False, granularity=PerChannel(0))
    scale, zero_point = quantizer.compute_scale_zero_point(t)
    codes, expected = quantizer.quantize(t), quantizer.quantize_dequantize(t)
    assert torch.equal(quantizer.dequantize(codes, scale, zero_point), expected)
    assert not torch.equal(quantizer.dequantize(codes, scale), expected)
    assert not torch.equal(quantizer.dequantize(codes, scale.roll(1, 0), zero_point), expected)
    assert not torch.equal(quantizer.dequantize(codes, scale, zero_point.roll(1, 0) + 1), expected)


# --- rien n'est suivi, rien n'est changé ------------------------------------------------------------------------------


@pytest.mark.parametrize("n_bits", [1, 4])
@pytest.mark.parametrize("symmetric", SYMMETRIC)
@pytest.mark.parametrize("signed", SIGNED)
@pytest.mark.parametrize("clipping", CLIPPINGS)
def test_nothing_is_changed_nor_followed(n_bits, symmetric, signed, clipping, randn, rng):
    t = torch.nn.Parameter(randn(4, 8))
    copy = t.detach().clone()
    for granularity in some(rng, [PerTensor(), PerChannel(1), PerGroup(4)], 1):
        quantizer = UniformQuantizer(n_bits, symmetric, signed, granularity, clipping)
        scale, zero_point = quantizer.compute_scale_zero_point(t)
        kept = scale.clone(), zero_point.clone()
        followed = torch.nn.Parameter(scale.clone())
        codes = quantizer.quantize(t, followed, zero_point)
        codes_copy = codes.clone()
        stored = quantizer.compress(t)
        results = [scale, zero_point, codes, quantizer.quantize_dequantize(t), stored.packed, stored.dequantize()]
        results.append(quantizer.dequantize(codes, followed, zero_point))
        quantizer.quantization_error(t)
        quantizer.fake_quantize(t, scale, zero_point)
        assert not any(x.requires_grad for x in results)
        assert torch.equal(t, copy)
        assert torch.equal(codes, codes_copy)
        assert torch.equal(scale, kept[0])
        assert torch.equal(zero_point, kept[1])


# --- quantize_symmetric et dequantize ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n_bits", range(2, 9))
@pytest.mark.parametrize("dim", [None, 0, 1, -1])
def test_error_is_at_most_half_a_step(n_bits, dim, randn, rng):
    t = randn(12, 20, dtype=torch.float64) * float(10 ** rng.uniform(-4, 4))
    codes, scale = quantize_symmetric(t, n_bits, dim)
    gap = (t - dequantize(codes, scale)).abs()
    assert (gap <= scale / 2 * (1 + 1e-9)).all()
    assert (gap.amax() > 0.3 * scale).any(), "un pas trois fois plus fin aurait passé aussi"


@pytest.mark.parametrize("n_bits", range(2, 9))
def test_grid_is_symmetric_and_reaches_the_extremes(n_bits, randn):
    t = randn(300)
    codes, scale = quantize_symmetric(t, n_bits)
    q = 2 ** (n_bits - 1) - 1
    assert codes.dtype == torch.int8
    assert int(codes.abs().max()) == q  # jamais −2^(b−1), qui n'aurait pas d'opposé
    assert float(scale) == pytest.approx(float(t.abs().max()) / q)
    opposite, same_scale = quantize_symmetric(-t, n_bits)
    assert torch.equal(opposite, -codes)
    assert torch.equal(same_scale, scale)


def test_codes_are_the_nearest_ones(randn):
    t = randn(100, dtype=torch.float64)
    codes, scale = quantize_symmetric(t, 4)
    grid = float(scale) * np.arange(-7, 8)
    nearest = np.abs(t.numpy()[:, None] - grid).argmin(1) - 7
    assert codes.tolist() == nearest.tolist()


@pytest.mark.parametrize("n_bits", BITS)
def test_error_shrinks_with_bits(n_bits, randn):
    t = randn(4000)

    def mean_square(b):
        return float(((t - dequantize(*quantize_symmetric(t, b))) ** 2).mean())

    if n_bits > 2:  # à 1 et 2 bits, la grille n'a que deux et trois niveaux
        assert mean_square(n_bits) < 0.5 * mean_square(n_bits - 1)
        step = float(quantize_symmetric(t, n_bits)[1])
        if n_bits >= 4:
            assert mean_square(n_bits) == pytest.approx(step**2 / 12, rel=0.15)  # bruit uniforme : Δ²/12


def test_one_bit_is_the_sign_times_the_mean(randn):
    t = randn(9, 50, dtype=torch.float64)
    codes, scale = quantize_symmetric(t, 1)
    assert float(scale) == pytest.approx(np.abs(t.numpy()).mean(), rel=1e-12)
    assert torch.equal(codes.double(), t.sign())
    _, rows = quantize_symmetric(t, 1, dim=0)
    np.testing.assert_allclose(rows.numpy(), np.abs(t.numpy()).mean(1, keepdims=True), rtol=1e-12)


def test_one_bit_is_optimal(randn, rng):
    t = randn(40, dtype=torch.float64)
    codes, scale = quantize_symmetric(t, 1)
    best = ((t - codes * scale) ** 2).sum()
    for factor in (0.9, 0.99, 1.01, 1.1):  # une autre échelle
        assert ((t - codes * scale * factor) ** 2).sum() > best
    for i in rng.integers(0, 40, 10):  # un autre signe
        other = codes.clone()
        other[i] *= -1
        assert ((t - other * scale) ** 2).sum() > best


@pytest.mark.parametrize("n_bits", BITS)
def test_per_row_scales_are_those_of_each_row_alone(n_bits, randn):
    t = randn(6, 11) * torch.tensor([1e-3, 1e-2, 0.1, 1, 10, 100])[:, None]
    codes, scale = quantize_symmetric(t, n_bits, dim=0)
    assert scale.shape == (6, 1)
    for i in range(6):
        row_codes, row_scale = quantize_symmetric(t[i], n_bits)
        assert torch.equal(codes[i], row_codes)
        torch.testing.assert_close(scale[i, 0], row_scale)
    whole = dequantize(*quantize_symmetric(t, n_bits))
    assert (t[0] - dequantize(codes, scale)[0]).norm() < (
        t[0] - whole[0]
    ).norm()  # une échelle écrase les petites lignes


def test_scales_of_any_dimension(randn):
    t = randn(3, 4, 5)
    for dim, shape in [(0, (3, 1, 1)), (1, (1, 4, 1)), (2, (1, 1, 5)), (-1, (1, 1, 5)), (-3, (3, 1, 1)), (None, ())]:
        assert quantize_symmetric(t, 8, dim)[1].shape == shape
    codes, scale = quantize_symmetric(t[0, 0], 8, dim=0)  # un vecteur : une échelle par élément, donc aucune erreur
    assert scale.shape == (5,)
    torch.testing.assert_close(dequantize(codes, scale), t[0, 0])


@pytest.mark.parametrize("n_bits", BITS)
@pytest.mark.parametrize("dim", [None, 0])
def test_zero_tensor_stays_zero(n_bits, dim):
    codes, scale = quantize_symmetric(torch.zeros(3, 4), n_bits, dim)
    assert torch.isfinite(scale).all()
    assert torch.equal(dequantize(codes, scale), torch.zeros(3, 4))


def test_zero_row_beside_others(randn):
    t = randn(3, 8)
    t[1] = 0
    for n_bits in BITS:
        back = dequantize(*quantize_symmetric(t, n_bits, dim=0))
        assert torch.isfinite(back).all()
        assert torch.equal(back[1], t[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_scale_is_float32_or_float64(dtype, randn):
    t = randn(50, dtype=dtype)
    codes, scale = quantize_symmetric(t, 8)
    assert scale.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    wide, wide_scale = quantize_symmetric(t.to(scale.dtype), 8)
    assert torch.equal(codes, wide)
    assert torch.equal(scale, wide_scale)


@pytest.mark.parametrize("magnitude", [1e30, 1e-30])
def test_huge_and_tiny_values(magnitude, randn):
    t = randn(64) * magnitude
    for n_bits in range(2, 9):
        codes, scale = quantize_symmetric(t, n_bits)
        assert ((t - dequantize(codes, scale)).abs() <= scale / 2 * (1 + 1e-4)).all()


def test_input_is_unchanged_and_not_followed(randn):
    t = torch.nn.Parameter(randn(5, 5))
    copy = t.detach().clone()
    codes, scale = quantize_symmetric(t, 4)
    assert torch.equal(t, copy)
    assert not codes.requires_grad
    assert not scale.requires_grad


# --- mauvaises entrées ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda b: quantize_symmetric(torch.ones(3), b), id="quantize_symmetric"),
        pytest.param(UniformQuantizer, id="UniformQuantizer"),
        pytest.param(lambda b: pack_bits(torch.ones(3, dtype=torch.int8), b), id="pack_bits"),
        pytest.param(lambda b: unpack_bits(torch.ones(3, dtype=torch.uint8), b, (3,)), id="unpack_bits"),
    ],
)
@pytest.mark.parametrize(
    ("n_bits", "error", "shown"),
    [
        (0, ValueError, "0"),
        (9, ValueError, "9"),
        (-1, ValueError, "-1"),
        (2.5, TypeError, r"2\.5"),
        (True, TypeError, "True"),
        ("4", TypeError, "'4'"),
        (None, TypeError, "None"),
    ],
)
def test_bad_number_of_bits_is_named(function, n_bits, error, shown):
    with pytest.raises(error, match=f"^n_bits : reçu {shown}, attendu un entier entre 1 et 8"):
        function(n_bits)


@pytest.mark.parametrize(
    ("t", "error", "message"),
    [
        (torch.zeros(0, 4), ValueError, r"reçu un tenseur \(0, 4\) vide ou non fini"),
        (torch.tensor([1.0, math.nan]), ValueError, r"reçu un tenseur \(2,\) vide ou non fini"),
        (torch.tensor([math.inf]), ValueError, r"reçu un tenseur \(1,\) vide ou non fini"),
        ([1.0, 2.0], TypeError, "reçu list, attendu un tenseur"),
        (torch.ones(2, dtype=torch.complex64), TypeError, "complex64, attendu des nombres réels"),
    ],
)
def test_bad_tensor_is_named(t, error, message):
    with pytest.raises(error, match=f"^t : .*{message}"):
        quantize_symmetric(t)


@pytest.mark.parametrize(
    ("dim", "error", "shown"), [(2, ValueError, "2"), (-3, ValueError, "-3"), (0.5, TypeError, r"0\.5")]
)
def test_bad_dimension_is_named(dim, error, shown):
    with pytest.raises(error, match=f"^dim : reçu {shown}, attendu un entier entre -2 et 1"):
        quantize_symmetric(torch.ones(3, 4), 8, dim)


def test_dequantize_names_what_is_no_tensor():
    with pytest.raises(TypeError, match=r"^codes : reçu list"):
        dequantize([1, 2], torch.tensor(1.0))
    with pytest.raises(TypeError, match=r"^scale : reçu float"):
        dequantize(torch.ones(2, dtype=torch.int8), 0.5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"clipping": "kl"}, ValueError, "clipping : reçu 'kl', attendu 'min_max' ou 'percentile' ou 'mse'"),
        ({"clipping": None}, ValueError, "clipping : reçu None, attendu 'min_max' ou 'percentile' ou 'mse'"),
        ({"percentile": 0}, ValueError, "percentile : reçu 0, attendu un pourcentage dans ]0, 100]"),
        ({"percentile": 101}, ValueError, "percentile : reçu 101, attendu un pourcentage dans ]0, 100]"),
        ({"percentile": math.nan}, ValueError, "percentile : reçu nan, attendu un pourcentage dans ]0, 100]"),
        ({"percentile": "x"}, TypeError, "percentile : reçu 'x', attendu un pourcentage dans ]0, 100]"),
        ({"granularity": "channel"}, TypeError, "granularity : reçu 'channel', attendu PerTensor(), PerChannel(dim)"),
        ({"granularity": ""}, TypeError, "granularity : reçu '', attendu PerTensor(), PerChannel(dim)"),
        ({"granularity": 0}, TypeError, "granularity : reçu 0, attendu PerTensor(), PerChannel(dim)"),
        ({"granularity": PerChannel}, TypeError, "granularity : reçu <class"),
    ],
    ids=str,
)
def test_bad_settings_are_named(arguments, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        UniformQuantizer(**arguments)


@pytest.mark.parametrize("call", ["compute_scale_zero_point", "quantize", "quantize_dequantize", "compress"])
@pytest.mark.parametrize(
    ("t", "error", "message"),
    [
        (torch.zeros(0, 4), ValueError, r"reçu un tenseur \(0, 4\) vide ou non fini"),
        (torch.tensor([1.0, math.nan]), ValueError, "vide ou non fini"),
        (torch.tensor([-math.inf, 1]), ValueError, "vide ou non fini"),
        (np.ones(3), TypeError, "reçu ndarray, attendu un tenseur"),
        (torch.ones(2, dtype=torch.bool), TypeError, "torch.bool, attendu des nombres réels"),
    ],
)
def test_quantizers_refuse_the_same_tensors(call, t, error, message):
    for quantizer in (UniformQuantizer(), UniformQuantizer(1), UniformQuantizer(4, False, clipping="mse")):
        with pytest.raises(error, match=f"^t : .*{message}"):
            getattr(quantizer, call)(t)


@pytest.mark.parametrize(
    ("granularity", "shape", "error", "message"),
    [
        (PerChannel(2), (3, 4), ValueError, "dim : reçu 2, attendu un entier entre -2 et 1"),
        (PerChannel(-3), (3, 4), ValueError, "dim : reçu -3, attendu un entier entre -2 et 1"),
        (PerChannel("0"), (3, 4), TypeError, "dim : reçu '0', attendu un entier"),
        (PerChannel(0), (), ValueError, "dim : reçu 0 pour un scalaire"),
        (PerGroup(3), (3, 4), ValueError, "size : reçu 3, attendu un diviseur de la dernière dimension"),
        (PerGroup(8), (3, 4), ValueError, r"size : reçu 8, attendu un diviseur .* tenseur \(3, 4\)"),
        (PerGroup(1), (), ValueError, r"size : reçu 1, attendu un diviseur .* tenseur \(\)"),
        (PerGroup(0), (3, 4), ValueError, "size : reçu 0, attendu un entier ≥ 1"),
        (PerGroup(2.0), (3, 4), TypeError, r"size : reçu 2\.0, attendu un entier"),
        (PerGroup(True), (3, 4), TypeError, "size : reçu True, attendu un entier"),
    ],
    ids=str,
)
def test_blocks_that_do_not_fit_are_refused(granularity, shape, error, message):
    quantizer = UniformQuantizer(4, granularity=granularity)
    for call in (quantizer.compute_scale_zero_point, quantizer.quantize_dequantize, quantizer.compress):
        with pytest.raises(error, match=f"^{message}"):
            call(torch.ones(shape))
    with pytest.raises(error, match=f"^{message}"):
        quantizer.dequantize(torch.ones(shape), torch.tensor(1.0))


@pytest.mark.parametrize(
    ("granularity", "wrong", "expected"),
    [
        (PerTensor(), (1,), "()"),
        (PerTensor(), (4, 1), "()"),
        (PerChannel(0), (4,), "(4, 1)"),
        (PerChannel(0), (), "(4, 1)"),
        (PerChannel(0), (1, 4), "(4, 1)"),
        (PerChannel(1), (4, 1), "(1, 4)"),
        (PerGroup(2), (4, 1), "(4, 2)"),
        (PerGroup(2), (2, 4), "(4, 2)"),
    ],
    ids=str,
)
def test_scales_of_another_shape_are_refused(granularity, wrong, expected):
    """Un tenseur 4×4 accepterait chacune d'elles sans un mot : (4,) s'y diffuse par colonnes, et non par lignes."""
    quantizer = UniformQuantizer(4, False, granularity=granularity)
    t = torch.eye(4)
    scale, zero_point = quantizer.compute_scale_zero_point(t)
    message = re.escape(f"reçu la forme {wrong}, attendu {expected} pour un tenseur (4, 4)")
    for call in (quantizer.quantize, quantizer.dequantize, quantizer.fake_quantize):
        with pytest.raises(ValueError, match=f"^scale : {message}"):
            call(t, torch.ones(wrong), zero_point)
        with pytest.raises(ValueError, match=f"^zero_point : {message}"):
            call(t, scale, torch.zeros(wrong))


@pytest.mark.parametrize("scale", [-0.5, math.nan])
def test_negative_scales_are_refused(scale):
    with pytest.raises(ValueError, match=rf"^scale : reçu un minimum de {scale}, attendu des échelles positives"):
        UniformQuantizer().quantize(torch.ones(3), torch.tensor(scale))


def test_what_is_no_tensor_is_refused():
    quantizer = UniformQuantizer()
    with pytest.raises(TypeError, match=r"^scale : reçu float, attendu un tenseur"):
        quantizer.quantize(torch.ones(3), 0.5)
    with pytest.raises(TypeError, match=r"^scale : reçu float, attendu un tenseur"):
        quantizer.dequantize(torch.ones(3), 0.5)
    with pytest.raises(TypeError, match=r"^zero_point : reçu int, attendu un tenseur"):
        quantizer.dequantize(torch.ones(3), torch.tensor(1.0), 3)
    with pytest.raises(TypeError, match=r"^q : reçu list, attendu un tenseur"):
        quantizer.dequantize([1, 2], torch.tensor(1.0))


@pytest.mark.parametrize(
    ("scale", "zero_point", "error", "message"),
    [
        (torch.tensor(2), None, TypeError, "^scale : reçu des éléments torch.int64, attendu des flottants"),
        (torch.tensor(math.inf), None, ValueError, "^scale : .*attendu des échelles positives ou nulles, et finies"),
        (None, torch.tensor(3), ValueError, "^zero_point : reçu sans scale"),
    ],
)
def test_a_grid_that_is_no_grid_is_refused(scale, zero_point, error, message):
    with pytest.raises(error, match=message):
        UniformQuantizer().quantize(torch.ones(3), scale, zero_point)


# --- des échelles sur deux octets -------------------------------------------------------------------------------------


def two_bytes(*args, **options):
    return UniformQuantizer(*args, scale_dtype=torch.bfloat16, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_byte_scales_serve_every_dtype(dtype, randn):
    t, quantizer = randn(6, 8, dtype=dtype), two_bytes(4, granularity=PerGroup(4))
    rounded = quantizer.compress(t).dequantize()
    assert rounded.dtype == dtype
    assert torch.equal(rounded, quantizer.quantize_dequantize(t))


@combinations
def test_codes_aim_at_the_rounded_scale(n_bits, symmetric, signed, clipping, randn, rng):
    """L'échelle est un bfloat16, à un arrondi près celle de quatre octets ; les codes sont les plus proches d'elle."""
    t = (randn(4, 3, 8) + float(rng.normal())) * float(10 ** rng.uniform(-30, 30))
    for granularity in some(rng, GRANULARITIES, 2 if clipping == "mse" else 4):
        options = {"granularity": granularity, "clipping": clipping, "percentile": float(rng.uniform(50, 100))}
        quantizer = two_bytes(n_bits, symmetric, signed, **options)
        _, step, _ = check_grid(quantizer, t)
        scale, zero_point = quantizer.compute_scale_zero_point(t)
        assert torch.equal(scale, scale.bfloat16().float())
        if clipping != "mse":  # qui choisit une autre grille, si celle-là est meilleure une fois arrondie
            exact, _ = UniformQuantizer(n_bits, symmetric, signed, **options).compute_scale_zero_point(t)
            torch.testing.assert_close(scale, exact, rtol=2**-8, atol=0)
        stored = quantizer.compress(t)
        assert stored.scale.dtype == torch.bfloat16
        assert torch.equal(stored.codes(), quantizer.quantize(t, scale, zero_point))
        assert step.size == t.numel()


@pytest.mark.parametrize("symmetric", SYMMETRIC)
@pytest.mark.parametrize("n_bits", [1, 3, 4])
def test_two_byte_scales_weigh_two_bytes(symmetric, n_bits, randn):
    t = randn(16, 32)
    wide, narrow = (
        cls(n_bits, symmetric, granularity=PerGroup(8)).compress(t) for cls in (UniformQuantizer, two_bytes)
    )
    assert wide.nbytes() - narrow.nbytes() == 2 * 64
    assert narrow.nbytes() == t.numel() * n_bits // 8 + 64 * (2 if symmetric else 3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("convert", ["half", "double", "bfloat16", "float", "to", "requires_grad_", "share_memory"])
def test_two_byte_scales_follow_no_conversion(dtype, convert, randn):
    """De si petites échelles que float16 annulerait ; seul change le type du tenseur rendu."""
    t = randn(4, 8, dtype=torch.float32) * 1e-7
    quantizer = two_bytes(5, False, granularity=PerGroup(4))
    kept = PackedTensor.from_tensor(t.to(dtype), quantizer)
    before = kept.scale.clone()
    expected = kept.dequantize().double()
    kept = kept.to(torch.float64) if convert == "to" else getattr(kept, convert)()
    assert kept.scale.dtype == torch.bfloat16
    assert torch.equal(kept.scale, before)
    wanted = {"half": torch.float16, "double": torch.float64, "bfloat16": torch.bfloat16, "float": torch.float32}
    assert kept.dtype == kept.dequantize().dtype == wanted.get(convert, torch.float64 if convert == "to" else dtype)
    if kept.dtype == torch.float64:
        assert torch.allclose(kept.dequantize(), expected, rtol=2**-7)
    assert kept.scale.any()


@pytest.mark.parametrize("n_bits", BITS)
@pytest.mark.parametrize("symmetric", SYMMETRIC)
@pytest.mark.parametrize("clipping", CLIPPINGS)
def test_two_byte_scales_of_the_largest_numbers_are_finite(n_bits, symmetric, clipping, rng):
    most = torch.finfo(torch.float32).max
    for t in (torch.full((2, 4), most), torch.tensor([[-most, most, 0, 1]]), -torch.full((2, 4), most)):
        check_grid(two_bytes(n_bits, symmetric, granularity=PerChannel(0), clipping=clipping), t)
    t = torch.tensor(rng.uniform(-3.4e38, 3.4e38, (3, 8)), dtype=torch.float32)
    check_grid(two_bytes(n_bits, symmetric, granularity=PerChannel(0), clipping=clipping), t)


def test_two_byte_scales_of_numbers_that_bfloat16_lacks_are_refused():
    with pytest.raises(ValueError, match="scale : reçu un minimum de inf"):
        two_bytes(4).compress(torch.full((3,), 1e60, dtype=torch.float64))


@pytest.mark.parametrize("symmetric", SYMMETRIC)
def test_two_byte_scales_go_through_a_file(symmetric, randn, tmp_path):
    t, quantizer = randn(6, 8), two_bytes(4, symmetric, granularity=PerGroup(4))
    kept, blank = PackedTensor.from_tensor(t, quantizer), PackedTensor(quantizer, (6, 8))
    safetensors.torch.save_file(kept.state_dict(), tmp_path / "codes")
    blank.load_state_dict(safetensors.torch.load_file(tmp_path / "codes"))
    assert torch.equal(blank.dequantize(), kept.dequantize())
    assert blank.scale.dtype == torch.bfloat16
    assert blank.nbytes() == kept.nbytes() == quantizer.compress(t).nbytes()
    assert torch.equal(kept.rows(torch.tensor([3, 0])), kept.dequantize()[[3, 0]])
    assert "bfloat16" in kept.layout()
    assert kept.layout() != PackedTensor(UniformQuantizer(4, symmetric, granularity=PerGroup(4)), (6, 8)).layout()


def test_a_given_scale_is_rounded_too(randn):
    t, scale = randn(5), torch.tensor(0.1234567)
    stored = two_bytes(4).compress(t, scale)
    assert torch.equal(stored.scale, scale.bfloat16())
    assert torch.equal(stored.codes(), UniformQuantizer(4).quantize(t, scale.bfloat16().float()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, "bfloat16", 2])
def test_other_scale_types_are_refused(dtype):
    with pytest.raises(ValueError, match=re.escape(f"scale_dtype : reçu {dtype!r}, attendu torch.bfloat16 ou None")):
        UniformQuantizer(scale_dtype=dtype)
