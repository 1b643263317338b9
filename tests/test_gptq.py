"""GPTQ : égal au calcul qui refait tout à chaque colonne, et des sorties plus proches que celles de l'arrondi."""

import math
import re
import warnings

import numpy as np
import pytest
import torch

from lrq import Calibration, PerChannel, PerGroup, PerTensor, UniformQuantizer, calibrate, gptq, models
from lrq.gptq import BLOCK

BITS = range(1, 9)
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
GRANULARITIES = [PerTensor(), PerChannel(0), PerChannel(1), PerGroup(2), PerGroup(4)]


def levels(quantizer):
    """Les codes de la grille, un par niveau."""
    return np.array([-1, 1]) if quantizer.binary else np.arange(quantizer.low, quantizer.high + 1)


def expand(values, granularity, shape):
    """Une valeur par poids, par NumPy."""
    values = values.double().numpy()
    return np.broadcast_to(values.repeat(shape[1] // values.shape[1], 1) if values.ndim else values, shape)


def naive(W, C, quantizer, damping):
    """Les codes : à chaque colonne, le système des colonnes restantes résolu de nouveau, en float64."""
    scale, zero_point = quantizer.compute_scale_zero_point(W)
    steps, zeros = (expand(t, quantizer.granularity, W.shape) for t in (scale, zero_point))
    W, C, grid = W.double().numpy().copy(), C.numpy(), levels(quantizer)
    H = C + damping * np.trace(C) / len(C) * np.eye(len(C))
    free = sorted(range(len(C)), key=lambda j: -C[j, j])
    codes = np.zeros(W.shape)
    while free:
        j, *free = free
        values = (grid - zeros[:, j, None]) * steps[:, j, None]  # (m, niveaux)
        choice = np.abs(values - W[:, j, None]).argmin(1)
        codes[:, j] = grid[choice]
        lost = W[:, j] - values[np.arange(len(W)), choice]
        if free:
            W[:, free] += np.outer(lost, np.linalg.solve(H[np.ix_(free, free)], H[free, j]))
    return codes


def output_loss(W, stored, C):
    E = W.double() - stored.dequantize().double()
    return float(((E @ C) * E).sum())


@pytest.fixture
def correlated(randn):
    """Des entrées (N, n) qui vont ensemble, plus ou moins fort, et pas toutes avec la même énergie."""

    def draw(count, n, dtype=torch.float64):
        mix = randn(n, n, dtype=torch.float64) * torch.linspace(1, 3, n, dtype=torch.float64)
        return (randn(count, n, dtype=torch.float64) @ mix).to(dtype)

    return draw


@pytest.mark.parametrize("n_bits", BITS)
@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("symmetric", [True, False], ids=["symétrique", "asymétrique"])
def test_codes_are_those_of_the_naive_computation(n_bits, granularity, symmetric, correlated, randn, rng):
    m, n = int(rng.integers(1, 7)), 4 * int(rng.integers(2, 5))
    W, X, damping = randn(m, n, dtype=torch.float64), correlated(50, n), float(10 ** rng.uniform(-3, 0))
    quantizer = UniformQuantizer(n_bits, symmetric, symmetric, granularity)
    stored = gptq(W, X, quantizer, damping)
    C = X.T @ X / len(X)
    np.testing.assert_array_equal(stored.codes().numpy(), naive(W, C, quantizer, damping))
    scale, zero_point = quantizer.compute_scale_zero_point(W)
    assert torch.equal(stored.scale, scale)
    assert symmetric or torch.equal(stored.zero_point.int(), zero_point)


def test_blocks_of_columns_change_nothing(correlated, randn):
    n = 2 * BLOCK + 9
    W, X = randn(3, n, dtype=torch.float64), correlated(2 * n, n)
    quantizer = UniformQuantizer(4, granularity=PerChannel(0), scale_dtype=torch.bfloat16)
    stored = gptq(W, X, quantizer)
    np.testing.assert_array_equal(stored.codes().numpy(), naive(W, X.T @ X / len(X), quantizer, 0.01))
    assert not torch.equal(stored.codes(), quantizer.quantize(W))


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_inputs_that_do_not_go_together_leave_the_nearest_codes(granularity, randn, rng):
    quantizer = UniformQuantizer(3, symmetric=False, signed=False, granularity=granularity, clipping="mse")
    W = randn(5, 16)
    diagonal = torch.tensor(10 ** rng.uniform(-3, 3, 16))
    stored = gptq(W, Calibration(torch.diag(diagonal), 99), quantizer)
    assert torch.equal(stored.codes(), quantizer.quantize(W))
    assert torch.equal(stored.packed, quantizer.compress(W).packed)


@pytest.mark.parametrize("n_bits", [2, 3, 4])
def test_outputs_are_closer_than_those_of_rounding(n_bits, correlated, randn):
    quantizer, ratios = UniformQuantizer(n_bits, granularity=PerGroup(16)), []
    for _ in range(20):
        W, X = randn(24, 48), correlated(200, 48)
        C = X.T @ X / len(X)
        ratios.append(output_loss(W, gptq(W, X, quantizer), C) / output_loss(W, quantizer.compress(W), C))
    assert sum(ratio >= 1 for ratio in ratios) <= 1
    assert np.mean(ratios) < 0.5


def test_real_layers_lose_much_less(rng):
    minilm, quantizer = models.load_minilm(), UniformQuantizer(4, granularity=PerGroup(64))
    names = [f"bert.encoder.layer.{int(rng.integers(6))}.{end}" for end in ("attention.self.key", "output.dense")]
    seen = calibrate(minilm, names, lambda: minilm.encode(models.load_sentences("calibration")[:40]))
    for name in names:
        W, C = minilm.get_submodule(name).weight.detach(), seen[name].second_moment
        assert output_loss(W, gptq(W, seen[name], quantizer), C) < 0.6 * output_loss(W, quantizer.compress(W), C)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_every_magnitude(dtype, correlated, randn, rng):
    """Multiplier W ou X par une puissance de deux ne change pas les codes."""
    quantizer = UniformQuantizer(4, symmetric=False, granularity=PerGroup(4))
    W, X = randn(6, 16, dtype=dtype), correlated(60, 16)
    stored = gptq(W, X, quantizer)
    assert stored.dtype == dtype
    assert stored.dequantize().dtype == dtype
    assert stored.scale.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for power in (-110, 110):
        assert torch.equal(gptq(W, X * 2.0**power, quantizer).codes(), stored.codes())
    power = int(rng.integers(4, 9)) if dtype == torch.float16 else 100
    for large in (W * 2.0**power, W * 2.0**-power if dtype != torch.float16 else W / 4):
        assert torch.equal(gptq(large, X, quantizer).codes(), stored.codes())


@pytest.mark.parametrize("n_bits", BITS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_zero_weights_stay_zero(n_bits, symmetric, correlated):
    stored = gptq(torch.zeros(3, 8), correlated(20, 8), UniformQuantizer(n_bits, symmetric, granularity=PerChannel(0)))
    assert torch.equal(stored.dequantize(), torch.zeros(3, 8))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_input_and_dead_columns_are_enough(dtype, randn):
    """C de rang 1, dont une moitié est nulle : rien n'est infini, et les colonnes jamais vues sont au plus près.

    Un dernier poids écrêté peut coûter plus que l'arrondi : c'est sur dix tirages que le report gagne à coup sûr.
    """
    quantizer, losses = UniformQuantizer(4, granularity=PerGroup(4)), torch.zeros(2, dtype=torch.float64)
    for _ in range(10):
        W, x = randn(5, 12, dtype=dtype), randn(1, 12, dtype=torch.float64)
        x[:, ::2] = 0
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            stored = gptq(W, x, quantizer)
        nearest = quantizer.compress(W)
        assert torch.equal(stored.codes()[:, ::2], nearest.codes()[:, ::2])
        losses += torch.stack([((W.double() - t.dequantize().double()) @ x.T).norm() for t in (stored, nearest)])
    assert losses[0] < 0.5 * losses[1]


def test_damping_decides_how_much_is_carried_over(correlated, randn):
    """Très grand, il laisse l'arrondi au plus près ; petit, les sorties de calibration sont au plus près."""
    quantizer, losses = UniformQuantizer(3, granularity=PerChannel(0)), {}
    dampings = (1e-4, 1.0, 1e8)
    for damping in dampings:
        losses[damping] = 0.0
    for _ in range(10):
        W, X = randn(16, 32), correlated(100, 32)
        for damping in dampings:
            losses[damping] += output_loss(W, gptq(W, X, quantizer, damping), X.T @ X / len(X))
    assert torch.equal(gptq(W, X, quantizer, 1e8).codes(), quantizer.quantize(W))
    assert losses[1e-4] < losses[1.0] < losses[1e8]


def test_stored_bytes_and_two_byte_scales(correlated, randn):
    quantizer = UniformQuantizer(3, False, False, PerGroup(8), "mse", scale_dtype=torch.bfloat16)
    stored = gptq(randn(6, 16), correlated(40, 16), quantizer)
    assert stored.scale.dtype == torch.bfloat16
    assert stored.nbytes() == math.ceil(6 * 16 * 3 / 8) + 12 * 2 + 12
    assert torch.equal(
        stored.dequantize(), quantizer.dequantize(stored.codes(), stored.scale.float(), stored.zero_point)
    )


def test_inputs_or_their_moment_and_nothing_changed(correlated, randn):
    W, X, quantizer = randn(4, 8), correlated(30, 8, torch.float32), UniformQuantizer(4, granularity=PerChannel(0))
    seen = Calibration.from_inputs(X)
    before = W.clone(), X.clone(), seen.second_moment.clone(), torch.get_rng_state()
    stored = gptq(W.requires_grad_(), X, quantizer)
    assert torch.equal(stored.packed, gptq(W, X.view(5, 6, 8), quantizer).packed)
    assert torch.equal(stored.packed, gptq(W, seen, quantizer).packed)
    assert not stored.scale.requires_grad
    assert all(
        torch.equal(*pair) for pair in zip(before, (W, X, seen.second_moment, torch.get_rng_state()), strict=True)
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"W": torch.ones(8)}, ValueError, "W : reçu un tenseur de forme (8,)"),
        ({"W": torch.full((2, 8), math.nan)}, ValueError, "W : 16 élément(s) sur 16 sont NaN ou infinis"),
        ({"calibration": torch.ones(5, 7)}, ValueError, "calibration : reçu des entrées de largeur 7, attendu 8"),
        ({"calibration": torch.zeros(5, 8)}, ValueError, "calibration : toutes les entrées sont nulles"),
        ({"calibration": torch.full((5, 8), math.inf)}, ValueError, "calibration : NaN ou infini"),
        ({"calibration": None}, TypeError, "calibration : reçu NoneType"),
        ({"quantizer": UniformQuantizer(granularity=PerGroup(3))}, ValueError, "size : reçu 3, attendu un diviseur"),
        ({"damping": 0}, ValueError, "damping : reçu 0, attendu un nombre strictement positif"),
        ({"damping": "peu"}, TypeError, "damping : reçu 'peu', attendu un nombre"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message, randn):
    good = {"W": randn(2, 8), "calibration": randn(20, 8), "quantizer": UniformQuantizer(), "damping": 0.01}
    gptq(**good)
    with pytest.raises(error, match=re.escape(message)):
        gptq(**good | arguments)
