"""Les erreurs d'approximation : chaque prédiction contre un oracle (NumPy, SciPy, boucles), chaque refus nommé."""

import copy
import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

import lrq
from lrq import (
    ApproximationErrorAnalysis,
    FactorizedLinear,
    MultiStageFactorizedLinear,
    PerChannel,
    PerGroup,
    QATLowRankLinear,
    QuantizedLinear,
    QuantizedLowRankLayer,
    QuantizedLowRankLinear,
    QuantizedResidualLinear,
    SVDCompressedLinear,
    UniformQuantizer,
    analyze_cumulative_error,
    analyze_forward_error,
    combined_error_analysis,
    compression_error_tradeoff,
    propagation_bound,
    water_filling,
)
from lrq.errors import dense_weight
from lrq.models import encoder_linears, load_minilm, load_sentences

svd_error = ApproximationErrorAnalysis.svd_reconstruction_error
error_vs_rank = ApproximationErrorAnalysis.analyze_error_vs_rank

SHAPES = [(24, 9), (9, 24), (13, 13), (1, 7), (7, 1), (1, 1)]


def truncated(W, rank):
    """L'oracle d'Eckart–Young, par SciPy."""
    U, S, Vh = scipy.linalg.svd(np.asarray(W, dtype=np.float64), full_matrices=False)
    return (U[:, :rank] * S[:rank]) @ Vh[:rank]


def finite(values):
    return all(math.isfinite(v) for v in values)


# --- la SVD tronquée --------------------------------------------------------------------------------------------------

KEYS = {"empirical_frobenius", "empirical_relative", "theoretical_frobenius", "theoretical_relative"}
MORE = {"empirical_spectral", "theoretical_spectral"}


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_measured_errors_are_those_of_theory_and_of_scipy(m, n, randn):
    W = randn(m, n, dtype=torch.float64)
    S = scipy.linalg.svdvals(W.numpy())
    for rank in range(1, min(m, n) + 1):
        found = svd_error(W, rank)
        gap = W.numpy() - truncated(W, rank)
        assert set(found) == KEYS | MORE | {"singular_values"}
        assert all(type(found[key]) is float for key in KEYS | MORE)
        for side in ("empirical", "theoretical"):
            assert found[f"{side}_frobenius"] == pytest.approx(np.linalg.norm(gap), abs=1e-12)
            assert found[f"{side}_relative"] == pytest.approx(np.linalg.norm(gap) / np.linalg.norm(W), abs=1e-12)
            assert found[f"{side}_spectral"] == pytest.approx(np.linalg.norm(gap, 2), abs=1e-12)
        np.testing.assert_allclose(found["singular_values"].numpy(), S, rtol=1e-10, atol=1e-12)


def test_the_spectral_error_is_not_the_frobenius_one(matrix):
    found = svd_error(matrix(30, 20, [4.0, 3.0, 2.0, 2.0], torch.float64), 2)
    assert found["empirical_frobenius"] == pytest.approx(math.sqrt(8))
    assert found["empirical_spectral"] == pytest.approx(2)  # torch.norm(E, p=2) rendrait √8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_dtype_agrees_with_a_float64_computation(dtype, randn):
    W = randn(20, 12).to(dtype)
    found = svd_error(W, 5)
    exact = W.double().numpy()
    error = np.linalg.norm(exact - truncated(exact, 5)) / np.linalg.norm(exact)
    assert found["empirical_relative"] == pytest.approx(error, rel=1e-5)
    assert found["theoretical_relative"] == pytest.approx(found["empirical_relative"], rel=1e-5)
    assert found["singular_values"].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert error_vs_rank(W)[4]["relative_error"] == pytest.approx(error, rel=1e-5)
    (pair,) = compression_error_tradeoff(W, [5], [8])
    size = W.element_size() * W.numel()
    assert pair["compression_ratio"] == pytest.approx(size / (5 * (20 + 12) + 2 * (8 if dtype == torch.float64 else 4)))


def test_numpy_and_integer_matrices_are_accepted(rng, randn):
    W = rng.integers(-9, 9, (8, 6))
    W[0, 0] = 9  # jamais nulle
    for given in (W, torch.tensor(W), W.astype(np.float64), W.astype(np.float64)[::-1, ::-1]):
        gap = np.linalg.norm(W - truncated(W, 3)) / np.linalg.norm(W)
        assert svd_error(given, 3)["empirical_relative"] == pytest.approx(gap, rel=1e-4)
        assert error_vs_rank(given)[2]["relative_error"] == pytest.approx(gap, rel=1e-4)
        assert combined_error_analysis(given, 3, 8)["svd_error"] == pytest.approx(gap, rel=1e-4)
    parameter = nn.Parameter(randn(5, 4))
    assert not svd_error(parameter, 2)["singular_values"].requires_grad


@pytest.mark.parametrize(("scale", "dtype"), [(1e30, torch.float32), (1e-30, torch.float32), (1e-200, torch.float64)])
def test_nothing_depends_on_the_scale(scale, dtype, randn):
    W = randn(12, 9, dtype=torch.float64).to(dtype)
    tolerance = {"rel": 1e-4, "abs": 1e-6}
    for key in ("empirical_relative", "theoretical_relative"):
        assert svd_error(W * scale, 4)[key] == pytest.approx(svd_error(W, 4)[key], **tolerance)
    found, expected = svd_error(W * scale, 4), svd_error(W, 4)
    assert found["empirical_frobenius"] / scale == pytest.approx(expected["empirical_frobenius"], rel=1e-4)
    assert found["empirical_spectral"] / scale == pytest.approx(expected["empirical_spectral"], rel=1e-4)
    for a, b in zip(error_vs_rank(W * scale), error_vs_rank(W), strict=True):
        assert a == pytest.approx(b, **tolerance)
    for a, b in zip(compression_error_tradeoff(W * scale), compression_error_tradeoff(W), strict=True):
        assert a["actual_combined"] == pytest.approx(b["actual_combined"], rel=0.05)  # des codes à la frontière
        assert finite(a.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_zero_matrix_has_no_error_and_no_nan(dtype):
    W = torch.zeros(6, 4, dtype=dtype)
    found = svd_error(W, 2)
    assert all(found[key] == 0 for key in KEYS | MORE)
    assert not found["singular_values"].any()
    for row in error_vs_rank(W):
        assert row["relative_error"] == 0
        assert row["energy_captured"] == 1
    for row in compression_error_tradeoff(W):
        assert row["actual_combined"] == row["svd_error"] == row["quant_error"] == row["estimated_combined"] == 0
        assert finite(row.values())
    assert water_filling(torch.zeros(3), 2.0)[0] == 0


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_every_rank_equals_an_explicit_reconstruction(m, n, randn):
    W = randn(m, n, dtype=torch.float64)
    rows = error_vs_rank(W)
    assert [row["rank"] for row in rows] == list(range(1, min(m, n) + 1))
    for row in rows:
        assert set(row) == {"rank", "relative_error", "energy_captured", "compression_ratio"}
        error = np.linalg.norm(W.numpy() - truncated(W, row["rank"])) / np.linalg.norm(W)
        assert row["relative_error"] == pytest.approx(error, abs=1e-12)
        assert row["energy_captured"] == pytest.approx(1 - error**2, abs=1e-12)
        assert row["compression_ratio"] == m * n / (row["rank"] * (m + n))
    assert error_vs_rank(W, max_rank=1) == rows[:1]


def test_all_ranks_cost_one_decomposition_without_vectors(randn, monkeypatch):
    calls = []
    plain = torch.linalg.svdvals
    monkeypatch.setattr(torch.linalg, "svdvals", lambda *args: calls.append("svdvals") or plain(*args))
    monkeypatch.setattr(torch.linalg, "svd", lambda *args, **kwargs: calls.append("svd"))
    error_vs_rank(randn(20, 15))
    assert calls == ["svdvals"]


@pytest.mark.parametrize("function", [lambda W: svd_error(W, 1), error_vs_rank, compression_error_tradeoff])
def test_bad_matrices_are_named(function):
    with pytest.raises(ValueError, match=r"W : 1 élément.*NaN"):
        function(torch.tensor([[math.nan, 1.0]]))
    for bad in (torch.zeros(0, 3), torch.zeros(3)):
        with pytest.raises(ValueError, match=r"^W : reçu"):
            function(bad)
    for bad in ([[1.0]], nn.Linear(2, 2), torch.ones(2, 2, dtype=torch.bool)):
        with pytest.raises(TypeError, match=r"^W : reçu"):
            function(bad)


def test_bad_ranks_and_bits_are_named(randn):
    W = randn(6, 4)
    for call in (
        lambda: svd_error(W, 5),
        lambda: combined_error_analysis(W, 5, 4),
        lambda: error_vs_rank(W, max_rank=5),
        lambda: compression_error_tradeoff(W, [1, 5]),
    ):
        with pytest.raises(ValueError, match=r"rank.* : reçu 5, attendu au plus min\(m, n\) = 4"):
            call()
    with pytest.raises(ValueError, match=r"^rank : reçu 0"):
        svd_error(W, 0)
    with pytest.raises(TypeError, match=r"^rank : reçu 2.5"):
        combined_error_analysis(W, 2.5, 4)
    with pytest.raises(ValueError, match=r"^n_bits : reçu 9, attendu un entier entre 1 et 8"):
        combined_error_analysis(W, 2, 9)
    with pytest.raises(ValueError, match=r"^n_bits_range\[1\] : reçu 0"):
        compression_error_tradeoff(W, [2], [4, 0])
    for bad in ([], "48", 4, None):
        with pytest.raises(ValueError, match=r"^n_bits_range : reçu"):
            compression_error_tradeoff(W, [2], bad)
    with pytest.raises(ValueError, match=r"^rank_range : reçu"):
        compression_error_tradeoff(W, [])
    with pytest.raises(TypeError, match=r"^granularity : reçu 'channel'"):
        compression_error_tradeoff(W, [2], [4], "channel")


# --- tronquer et arrondir ---------------------------------------------------------------------------------------------


def rounded_factors(W, rank, n_bits, granularity=None):
    """Les facteurs équilibrés et leurs arrondis, en float64, par des fonctions indépendantes du module."""
    U, V = (t.double() for t in lrq.balanced_factors(W, rank))
    quantizer = UniformQuantizer(n_bits, granularity=granularity)
    return U, V, quantizer.quantize_dequantize(U), quantizer.quantize_dequantize(V)


@pytest.mark.parametrize("granularity", [None, PerChannel(0), PerChannel(1), PerGroup(2)])
def test_the_combined_errors_equal_their_definitions(granularity, matrix):
    W = matrix(17, 12, dtype=torch.float64)
    found = combined_error_analysis(W, 6, 3, granularity)
    U, V, U_hat, V_hat = rounded_factors(W, 6, 3, granularity)
    size = float(W.norm())
    assert set(found) == {"svd_error", "quant_error", "estimated_combined", "actual_combined"}
    assert found["svd_error"] == pytest.approx(float((W - U @ V.T).norm()) / size, rel=1e-9)
    assert found["quant_error"] == pytest.approx(float((U @ V.T - U_hat @ V_hat.T).norm()) / size, rel=1e-9)
    assert found["actual_combined"] == pytest.approx(float((W - U_hat @ V_hat.T).norm()) / size, rel=1e-9)
    assert found["estimated_combined"] == pytest.approx(math.hypot(found["svd_error"], found["quant_error"]), rel=1e-12)


def test_the_errors_are_those_of_the_layer(matrix):
    W = matrix(40, 24)
    layer = QuantizedLowRankLinear.from_weight_matrix(W, 8, 4)
    layer.quantize_weights()
    (row,) = compression_error_tradeoff(W, [8], [4])
    assert row["actual_combined"] == pytest.approx(layer.reconstruction_error(W), rel=1e-4)
    assert row["compression_ratio"] == W.nbytes / layer.nbytes()


def test_squares_add_up_to_the_product_of_the_roundings(rng, matrix):
    """⟨W − W_r, ·⟩ annule δU Vᵀ et U δVᵀ : il ne reste que δU δVᵀ, face à σ_{r+1}."""
    for _ in range(60):
        m, n = (int(k) for k in rng.integers(2, 25, 2))
        rank, n_bits = int(rng.integers(1, min(m, n) + 1)), int(rng.integers(1, 9))
        W = matrix(m, n, dtype=torch.float64)
        found = combined_error_analysis(W, rank, n_bits)
        U, V, U_hat, V_hat = rounded_factors(W, rank, n_bits)
        S = scipy.linalg.svdvals(W.numpy())
        following = S[rank] if rank < len(S) else 0.0
        allowed = 2 * following * float((U_hat - U).norm() * (V_hat - V).norm() / W.norm() ** 2)
        gap = found["actual_combined"] ** 2 - found["svd_error"] ** 2 - found["quant_error"] ** 2
        assert abs(gap) <= allowed + 1e-12


def test_the_plain_sum_overestimates(matrix):
    found = combined_error_analysis(matrix(64, 48, np.linspace(1, 0.2, 48)), 24, 4)
    assert found["actual_combined"] == pytest.approx(found["estimated_combined"], rel=0.02)
    assert found["svd_error"] + found["quant_error"] > 1.15 * found["actual_combined"]  # l'autre façon d'ajouter


def test_every_pair_is_in_the_trade_off(randn):
    rows = compression_error_tradeoff(randn(20, 12))
    assert [(row["rank"], row["n_bits"]) for row in rows] == [(r, b) for r in (1, 2, 4, 8) for b in (4, 6, 8)]
    for row in rows:
        assert set(row) == {
            "rank",
            "n_bits",
            "svd_error",
            "quant_error",
            "estimated_combined",
            "actual_combined",
            "compression_ratio",
            "optimal",
        }


def test_the_sizes_are_those_of_stored_bytes(randn):
    W = randn(20, 12)
    for row in compression_error_tradeoff(W, [3, 12], [1, 3, 8], PerChannel(0)):
        codes = sum(math.ceil(k * row["rank"] * row["n_bits"] / 8) for k in W.shape)
        assert row["compression_ratio"] == W.nbytes / (codes + 4 * sum(W.shape))  # une échelle par ligne


def test_the_optimal_pairs_are_the_pareto_front(matrix, rng):
    for _ in range(5):
        W = matrix(int(rng.integers(8, 30)), int(rng.integers(8, 30)))
        rows = compression_error_tradeoff(W, [1, 2, 3, 5, 8, 5], [2, 3, 4, 6, 8])
        points = np.array([[row["actual_combined"], 1 / row["compression_ratio"]] for row in rows])
        for row, point in zip(rows, points, strict=True):
            beaten = ((points <= point).all(1) & (points < point).any(1)).any()
            assert row["optimal"] is bool(not beaten)
        kept = sorted(tuple(p) for p, row in zip(points, rows, strict=True) if row["optimal"])
        assert all(a[1] >= b[1] for a, b in itertools.pairwise(kept))  # plus d'erreur, moins d'octets


def test_one_decomposition_serves_every_pair(randn, monkeypatch):
    calls = []
    plain = torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "svd", lambda *args, **kwargs: calls.append(1) or plain(*args, **kwargs))
    compression_error_tradeoff(randn(20, 16), [1, 2, 3, 4], [2, 4, 8])
    assert len(calls) == 1


# --- débit et distorsion ----------------------------------------------------------------------------------------------


def reverse_water_filling(S, bits):
    """L'oracle : chercher le niveau θ par dichotomie."""
    energies = np.asarray(S, dtype=np.float64) ** 2
    positive = energies[energies > 0]
    low, high = -1000.0, math.log2(positive.max())  # log₂ θ ; une seule direction peut recevoir 240 bits
    for _ in range(200):
        middle = (low + high) / 2
        spent = np.maximum(0, np.log2(positive) - middle).sum() / 2
        low, high = (middle, high) if spent > bits * len(S) else (low, middle)
    theta = 2.0**low
    rates = np.zeros(len(S))
    rates[energies > 0] = np.maximum(0, np.log2(positive / theta)) / 2
    return math.sqrt(np.minimum(energies, theta).sum() / energies.sum()), rates


def test_water_filling_equals_a_bisection(rng):
    for _ in range(60):
        p, bits = int(rng.integers(1, 40)), float(rng.uniform(0, 6))
        S = np.sort(rng.lognormal(0, rng.uniform(0, 3), p))[::-1].copy()
        S[p - int(rng.integers(0, p)) :] = 0  # parfois des zéros à la fin
        error, rates = water_filling(torch.tensor(S), bits)
        expected, expected_rates = reverse_water_filling(S, bits)
        assert error == pytest.approx(expected, rel=1e-9)
        np.testing.assert_allclose(rates.numpy(), expected_rates, atol=1e-9)
        assert float(rates.mean()) == pytest.approx(bits, abs=1e-9)
        assert (rates >= 0).all()


def test_a_flat_spectrum_gives_shannon_s_bound(rng):
    for bits in (0.0, 0.5, 1.0, 4.0, 20.0):
        error, rates = water_filling(torch.full((11,), float(rng.uniform(0.1, 9))), bits)
        assert error == pytest.approx(2.0**-bits, rel=1e-9)
        np.testing.assert_allclose(rates.numpy(), bits, atol=1e-9)


def test_no_bits_lose_everything_and_many_lose_nothing():
    S = torch.tensor([3.0, 2.0, 0.5, 0.0])
    error, rates = water_filling(S, 0)
    assert error == pytest.approx(1)
    assert not rates.any()
    error, rates = water_filling(S, 1e5)
    assert error == 0
    assert float(rates.mean()) == pytest.approx(1e5)
    assert rates[3] == 0
    assert rates.isfinite().all()


def test_water_filling_of_extreme_spectra():
    assert water_filling(torch.zeros(4), 3) == (0.0, pytest.approx(torch.zeros(4)))
    S = torch.tensor([1e300, 1e-300], dtype=torch.float64)
    error, rates = water_filling(S, 2000)  # le quotient des deux s'annulerait en float64
    assert rates[1] > 0
    assert float(rates.mean()) == pytest.approx(2000)
    assert math.isfinite(error)


def test_no_rounding_beats_the_bound(matrix, rng):
    """Moins de bits, plus d'erreur ; et aucun quantificateur de la matrice gaussienne ne descend sous 2^(−b)."""
    S = torch.tensor(np.sort(rng.random(20))[::-1].copy())
    found = [water_filling(S, bits)[0] for bits in (0, 0.5, 1, 2, 4)]
    assert found == sorted(found, reverse=True)
    W = torch.tensor(rng.standard_normal((200, 200)))
    for n_bits in range(1, 9):
        assert UniformQuantizer(n_bits).quantization_error(W) > 2.0**-n_bits


def test_bad_rates_and_spectra_are_named():
    with pytest.raises(ValueError, match=r"^bits : reçu -1"):
        water_filling(torch.ones(2), -1)
    with pytest.raises(ValueError, match=r"^bits : reçu nan"):
        water_filling(torch.ones(2), math.nan)
    with pytest.raises(TypeError, match=r"^bits : reçu '2'"):
        water_filling(torch.ones(2), "2")
    with pytest.raises(ValueError, match=r"^S : attendu des valeurs singulières"):
        water_filling(torch.tensor([1.0, 2.0]), 1)


# --- une couche -------------------------------------------------------------------------------------------------------


def linear_layer(m, n, bias=True, dtype=torch.float64):
    return nn.Linear(n, m, bias=bias, dtype=dtype)


def quantized(layer):
    layer.quantize_weights()
    return layer


BUILDERS = {
    "dense": lambda linear: copy.deepcopy(linear),
    "factorized": lambda linear: FactorizedLinear.from_linear(linear, 4),
    "random": lambda linear: FactorizedLinear.from_linear_random(linear, 4),
    "svd": lambda linear: SVDCompressedLinear.from_linear(linear, 4),
    "truncated": lambda linear: lrq.TruncatedSVDLinear.from_linear(linear, 4),
    "compact": lambda linear: lrq.CompactSVDLinear.from_linear(linear, 4),
    "multi": lambda linear: MultiStageFactorizedLinear.from_linear(linear, [6, 4]),
    "low rank": lambda linear: QuantizedLowRankLinear.from_linear(linear, 4, 4),
    "low rank, quantized": lambda linear: quantized(QuantizedLowRankLinear.from_linear(linear, 4, 4)),
    "course, quantized": lambda linear: quantized(QuantizedLowRankLayer.from_linear(linear, 4, 4)),
    "quantized": lambda linear: QuantizedLinear.from_linear(linear, 4, PerChannel(0)),
    "residual": lambda linear: QuantizedResidualLinear.from_linear(linear, 2, 3, granularity=PerGroup(4)),
    "residual, float": lambda linear: QuantizedResidualLinear.from_linear(
        linear, 2, 3, granularity=PerGroup(4), factor_bits=None
    ),
    "qat": lambda linear: QATLowRankLinear.from_linear(linear, 4, 4),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", BUILDERS)
def test_forward_error_equals_a_loop(name, bias, rng, randn):
    linear = linear_layer(10, 12, bias)
    layer = BUILDERS[name](linear)
    W, W_hat = linear.weight.detach(), dense_weight(layer).double()
    x = randn(2, 3, 12, dtype=torch.float64)
    found = analyze_forward_error(layer, x, W)
    absolute, relative, bounds = [], [], []
    for row in x.reshape(-1, 12).numpy():
        y, y_hat = W.numpy() @ row, W_hat.numpy() @ row
        absolute.append(np.linalg.norm(y_hat - y))
        relative.append(np.linalg.norm(y_hat - y) / np.linalg.norm(y))
        bounds.append(np.linalg.norm((W_hat - W).numpy(), 2) * np.linalg.norm(row))
    assert set(found) == {"mean_error", "mean_relative_error", "error_bound"}
    assert found["mean_error"] == pytest.approx(np.mean(absolute), rel=1e-5, abs=1e-12)
    assert found["mean_relative_error"] == pytest.approx(np.mean(relative), rel=1e-5, abs=1e-12)
    assert found["error_bound"] == pytest.approx(np.mean(bounds), rel=1e-5, abs=1e-12)
    assert found["mean_error"] <= found["error_bound"] * (1 + 1e-9) + 1e-12


def test_the_bound_is_reached_in_the_worst_direction_and_is_not_frobenius(randn):
    W, E = randn(9, 7, dtype=torch.float64), randn(9, 7, dtype=torch.float64)
    layer = linear_layer(9, 7)
    layer.weight.data = W + E
    worst = np.linalg.svd(E.numpy())[2][:1] * 3  # la première direction singulière de E
    found = analyze_forward_error(layer, torch.tensor(worst), W)
    assert found["mean_error"] == pytest.approx(found["error_bound"], rel=1e-9)
    assert found["error_bound"] == pytest.approx(3 * np.linalg.norm(E.numpy(), 2), rel=1e-9)
    assert found["error_bound"] < 0.95 * 3 * np.linalg.norm(E.numpy())  # ce que rendrait torch.norm(E, p=2)


def test_the_bound_is_never_below_the_mean(rng, randn):
    for _ in range(40):
        m, n = (int(k) for k in rng.integers(1, 12, 2))
        layer = linear_layer(m, n)
        found = analyze_forward_error(layer, randn(4, n, dtype=torch.float64), randn(m, n, dtype=torch.float64))
        assert found["mean_error"] <= found["error_bound"] * (1 + 1e-12)


def test_biases_are_left_out(randn):
    linear, x = linear_layer(6, 5), randn(8, 5, dtype=torch.float64)
    layer = FactorizedLinear.from_linear(linear, 3)
    bare = FactorizedLinear.from_weight_matrix(linear.weight, 3)
    expected = analyze_forward_error(bare, x, linear.weight)
    for bias in (layer.bias.detach(), torch.zeros(6), torch.full((6,), 7.0)):  # même un biais que la source n'a pas
        layer.bias.data = bias.double()
        assert analyze_forward_error(layer, x, linear.weight) == pytest.approx(expected, rel=1e-9)


def test_an_exact_layer_has_no_error(randn):
    layer = linear_layer(6, 5, bias=False)
    assert analyze_forward_error(layer, randn(5, dtype=torch.float64), layer.weight) == {
        "mean_error": pytest.approx(0, abs=1e-14),
        "mean_relative_error": pytest.approx(0, abs=1e-14),
        "error_bound": 0,
    }


def test_zero_inputs_and_zero_weights_give_no_nan(randn):
    layer = linear_layer(4, 3, bias=False)
    layer.weight.data.zero_()
    for W, x in [(torch.zeros(4, 3), randn(2, 3)), (randn(4, 3), torch.zeros(2, 3)), (torch.zeros(4, 3),) * 2]:
        x = x.reshape(-1, 3)
        found = analyze_forward_error(layer, x, W)
        assert found["mean_relative_error"] == (0 if not W.any() or not x.any() else 1)
        assert finite(found.values())
    layer.weight.data.fill_(1)
    assert analyze_forward_error(layer, torch.ones(2, 3), torch.zeros(4, 3))["mean_relative_error"] == math.inf


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_layer_may_have_another_dtype_than_its_inputs(dtype, randn):
    W = randn(8, 6)
    layer = FactorizedLinear.from_weight_matrix(W.to(dtype), 3)
    x = randn(30, 6)
    found = analyze_forward_error(layer, x, W)
    expected = (x @ (layer.reconstruct_weight().detach().float() - W).T).norm(dim=-1).mean()
    assert found["mean_error"] == pytest.approx(float(expected), rel=0.03)
    assert found["error_bound"] > found["mean_error"]


@pytest.mark.parametrize("training", [True, False])
def test_the_layer_is_judged_without_dropout_then_given_back(training, randn):
    class Dropping(nn.Linear):
        def __init__(self):
            super().__init__(5, 4)
            self.drop = nn.Dropout(0.9)

        def forward(self, x):
            return self.drop(super().forward(x))

    layer = Dropping().train(training)
    layer.drop.train(not training)
    before, x = torch.get_rng_state(), randn(3, 5, dtype=torch.float32)
    found = analyze_forward_error(layer, x, layer.weight)
    assert found["mean_error"] == pytest.approx(0, abs=1e-6)
    assert (layer.training, layer.drop.training) == (training, not training)
    assert torch.equal(before, torch.get_rng_state())
    assert layer.weight.grad is None


def test_bad_forward_arguments_are_named(randn):
    layer, W = nn.Linear(4, 3), randn(3, 4)
    for bad in (nn.Conv2d(1, 1, 2), nn.ReLU(), nn.Embedding(3, 4), nn.LayerNorm((3, 4)), "fc", None, W):
        with pytest.raises(TypeError, match=r"^layer : reçu .*, attendu nn.Linear ou une couche linéaire comprimée"):
            analyze_forward_error(bad, randn(2, 4), W)
    with pytest.raises(TypeError, match=r"^layer : reçu SVDConv2d"):
        analyze_forward_error(lrq.SVDConv2d.from_conv2d(nn.Conv2d(2, 3, 3), 2), randn(2, 4), W)
    with pytest.raises(ValueError, match=r"^original_weight : reçu \(4, 3\), attendu \(3, 4\)"):
        analyze_forward_error(layer, randn(2, 4), W.T)
    with pytest.raises(ValueError, match=r"^original_weight : .*NaN"):
        analyze_forward_error(layer, randn(2, 4), W * math.nan)
    with pytest.raises(ValueError, match=r"^test_inputs : reçu la forme \(2, 3\), attendu \(..., 4\)"):
        analyze_forward_error(layer, randn(2, 3), W)
    with pytest.raises(ValueError, match=r"^test_inputs : reçu un lot vide \(0, 4\)"):
        analyze_forward_error(layer, randn(0, 4), W)
    with pytest.raises(ValueError, match=r"^test_inputs : NaN ou infini"):
        analyze_forward_error(layer, randn(2, 4) / 0, W)
    for bad in (torch.ones(2, 4, dtype=torch.long), np.ones((2, 4))):
        with pytest.raises(TypeError, match=r"^test_inputs : reçu"):
            analyze_forward_error(layer, bad, W)
    layer.weight.data[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"^layer.weight : 1 élément"):
        analyze_forward_error(layer, randn(2, 4), W)


# --- une chaîne de couches --------------------------------------------------------------------------------------------


def test_the_propagated_bound_is_the_recurrence():
    assert propagation_bound([], []) == []
    assert propagation_bound([2, 3], [5, 7]) == [5, 3 * 5 + 7]
    gains, own = [0.5, 2.0, 1.5], [1.0, 0.1, 0.2]
    unrolled = [sum(own[j] * math.prod(gains[j + 1 : k + 1]) for j in range(k + 1)) for k in range(3)]
    assert propagation_bound(gains, own) == pytest.approx(unrolled)


def test_the_propagated_bound_holds_on_random_networks(rng):
    for _ in range(30):
        depth = int(rng.integers(1, 6))
        dims = rng.integers(1, 12, depth + 1)
        weights = [rng.standard_normal((dims[k + 1], dims[k])) for k in range(depth)]
        gaps = [0.1 * rng.standard_normal(W.shape) for W in weights]
        biases = [rng.standard_normal(W.shape[0]) for W in weights]
        activation = [np.tanh, lambda z: np.maximum(z, 0)][int(rng.integers(2))]
        h = h_hat = rng.standard_normal(dims[0])
        own, measured = [], []
        for W, E, b in zip(weights, gaps, biases, strict=True):
            own.append(np.linalg.norm(E, 2) * np.linalg.norm(h))
            h, h_hat = activation(W @ h + b), activation((W + E) @ h_hat + b)
            measured.append(np.linalg.norm(h_hat - h))
        gains = [np.linalg.norm(W + E, 2) for W, E in zip(weights, gaps, strict=True)]
        bounds = propagation_bound(gains, own)
        assert all(error <= bound * (1 + 1e-12) for error, bound in zip(measured, bounds, strict=True))


def test_bad_chains_are_named():
    with pytest.raises(ValueError, match=r"^own_errors : reçu 1 valeurs, attendu 2"):
        propagation_bound([1, 2], [1])
    with pytest.raises(ValueError, match=r"^gains\[1\] : reçu -2"):
        propagation_bound([1, -2], [1, 1])
    with pytest.raises(ValueError, match=r"^own_errors\[0\] : reçu nan"):
        propagation_bound([1], [math.nan])


# --- un réseau --------------------------------------------------------------------------------------------------------


def hooks(*models):
    """Combien de crochets portent des réseaux, module par module."""
    return [
        len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._forward_hooks_with_kwargs)
        for model in models
        for module in model.modules()
    ]


def modes(*models):
    return [module.training for model in models for module in model.modules()]


@pytest.fixture
def untouched():
    """Lance l'analyse, et vérifie que ni les crochets, ni les modes, ni les poids, ni le hasard n'ont bougé."""

    def run(original, compressed, inputs, error=None, match=""):
        models = (original, compressed)
        before = hooks(*models), modes(*models), torch.get_rng_state()
        states = [copy.deepcopy(model.state_dict()) for model in models]
        if error is None:
            found = analyze_cumulative_error(original, compressed, inputs)
        else:
            with pytest.raises(error, match=match) as caught:
                analyze_cumulative_error(original, compressed, inputs)
            found = caught.value
        assert (hooks(*models), modes(*models)) == before[:2]
        assert torch.equal(before[2], torch.get_rng_state())
        for state, model in zip(states, models, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True))
        return found

    return run


def network(*dims, activation=nn.ReLU):
    layers = []
    for n, m in itertools.pairwise(dims):
        layers += [nn.Linear(n, m), activation()]
    return nn.Sequential(*layers[:-1])


def perturbed(model, amount=0.1):
    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        parameter.data += amount * torch.randn_like(parameter)
    return twin


def test_the_errors_of_every_layer_equal_a_computation_by_hand(rng, randn, untouched):
    original = network(6, 9, 7, 4)
    compressed, x = perturbed(original), randn(5, 6)
    found = untouched(original, compressed, x)
    assert set(found) == {"final_error", "relative_error", "layer_errors"}
    assert list(found["layer_errors"]) == ["0", "1", "2", "3", "4"]
    h = h_hat = x
    with torch.no_grad():
        for (name, layer), twin in zip(original.named_children(), compressed.children(), strict=True):
            h, h_hat = layer(h), twin(h_hat)  # chacun nourri de ce que les précédents ont abîmé
            assert found["layer_errors"][name] == pytest.approx(float((h_hat - h).norm() / h.norm()), rel=1e-5)
    assert found["final_error"] == pytest.approx(float((h_hat - h).norm()), rel=1e-5)
    assert found["relative_error"] == pytest.approx(found["layer_errors"]["4"], rel=1e-12)


def test_identical_networks_have_exactly_no_error(rng, randn, untouched):
    model = network(6, 8, 3)
    found = untouched(model, copy.deepcopy(model), randn(4, 6))
    assert (found["final_error"], found["relative_error"]) == (0, 0)
    assert set(found["layer_errors"].values()) == {0}
    assert untouched(model, model, randn(4, 6))["final_error"] == 0  # lui-même


@pytest.mark.parametrize("activation", [lambda: nn.ReLU(inplace=True), lambda: nn.LeakyReLU(0.5, inplace=True)])
def test_layers_that_write_in_place_are_heard_before(activation, rng, randn, untouched):
    original = nn.Sequential(activation(), nn.Linear(6, 5), activation(), nn.Linear(5, 3), activation())
    compressed, x = perturbed(original), randn(4, 6)
    kept = x.clone()
    found = untouched(original, compressed, x)
    assert torch.equal(x, kept)
    assert found["layer_errors"]["0"] == 0  # le second réseau a reçu les mêmes entrées que le premier
    plain, twin = copy.deepcopy(original), copy.deepcopy(compressed)
    for model in (plain, twin):
        for module in model:
            if hasattr(module, "inplace"):
                module.inplace = False
    expected = untouched(plain, twin, x)
    assert found["final_error"] == pytest.approx(expected["final_error"], rel=1e-6)
    assert found["layer_errors"] == pytest.approx(expected["layer_errors"], rel=1e-6)


def test_a_module_used_twice_counts_all_its_calls(rng, randn, untouched):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(5, 5)
            self.same = self.fc

        def forward(self, x):
            return self.same(torch.relu(self.fc(x)))

    original = Twice()
    compressed = lrq.replace_linears(original, lambda layer: FactorizedLinear.from_linear(layer, 2))
    x = randn(3, 5)
    found = untouched(original, compressed, x)
    with torch.no_grad():
        outputs = []
        for layer in (original.fc, compressed.fc):
            first = layer(x)
            outputs.append(torch.cat([first, layer(torch.relu(first))]))
    expected = float((outputs[1] - outputs[0]).norm() / outputs[0].norm())
    assert found["layer_errors"] == {"fc": pytest.approx(expected), "same": pytest.approx(expected)}


class Block(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.inner = nn.ModuleDict({"up": nn.Linear(n, 2 * n), "down": nn.Linear(2 * n, n)})
        self.act = nn.GELU()
        self.norm = nn.BatchNorm1d(n)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.norm(x + self.drop(self.inner["down"](self.act(self.inner["up"](x)))))


@pytest.mark.parametrize(
    "convert",
    [
        lambda layer: FactorizedLinear.from_linear(layer, 3),
        lambda layer: MultiStageFactorizedLinear.from_linear(layer, [4, 3]),
        lambda layer: QuantizedLinear.from_linear(layer, 4),
        lambda layer: quantized(QuantizedLowRankLinear.from_linear(layer, 3, 4)),
        lambda layer: QuantizedResidualLinear.from_linear(layer, 2, 3, granularity=PerGroup(4)),
        lambda layer: QATLowRankLinear.from_linear(layer, 3, 4),
    ],
)
def test_compressed_layers_inside_nested_modules_both_ways(convert, rng, randn, untouched):
    original = nn.Sequential(Block(8), Block(8)).train()
    original[1].eval()  # des modes mêlés, à rendre tels quels
    compressed, x = lrq.replace_linears(original, convert), randn(6, 8)
    found = untouched(original, compressed, x)
    layers = ["inner.up", "act", "inner.down", "drop", "norm"]
    assert list(found["layer_errors"]) == [f"{block}.{name}" for block in "01" for name in layers]
    assert all(error > 0 for error in found["layer_errors"].values())
    back = untouched(compressed, original, x)
    assert back["final_error"] == found["final_error"]
    assert back["layer_errors"].keys() == found["layer_errors"].keys()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            lambda layer: quantized(QuantizedLowRankLinear.from_linear(layer, 3, 8)),
            lambda layer: quantized(QuantizedLowRankLinear.from_linear(layer, 3, 3)),
        ),
        (
            lambda layer: MultiStageFactorizedLinear.from_linear(layer, [4, 4]),
            lambda layer: MultiStageFactorizedLinear.from_linear(layer, [3]),
        ),
        (
            lambda layer: QuantizedResidualLinear.from_linear(layer, 2, 3, granularity=PerGroup(2)),
            lambda layer: QuantizedLinear.from_linear(layer, 3),
        ),
    ],
)
def test_two_compressed_networks_are_heard_layer_by_layer(one, other, rng, randn, untouched):
    """Les facteurs d'une couche comprimée ne sont pas des couches, même s'ils sont des modules."""
    model, x = network(8, 6, 4), randn(5, 8)
    found = untouched(lrq.replace_linears(model, one), lrq.replace_linears(model, other), x)
    assert list(found["layer_errors"]) == ["0", "1", "2"]
    assert found["layer_errors"]["2"] == found["relative_error"] > 0


def test_a_network_may_be_a_single_layer_or_be_replaced_whole(rng, randn, untouched):
    linear, x = nn.Linear(6, 4), randn(3, 6)
    residual = QuantizedResidualLinear.from_linear(linear, 2, 3, granularity=PerGroup(2))
    found = untouched(linear, residual, x)
    assert found["layer_errors"] == {"": found["relative_error"]}
    found = untouched(network(6, 5, 4), linear, x)  # tout un réseau pris pour une couche
    assert list(found["layer_errors"]) == [""]


def test_several_inputs_named_or_not(rng, randn, untouched):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(2, 3)

        def forward(self, x, z, scale=1.0):
            return scale * (self.a(x) + self.b(z))

    original = Sum()
    compressed, x, z = perturbed(original), randn(5, 4), randn(5, 2)
    found = untouched(original, compressed, (x, z))
    assert untouched(original, compressed, {"x": x, "z": z}) == found
    doubled = untouched(original, compressed, {"x": x, "z": z, "scale": 2.0})
    assert doubled["final_error"] == pytest.approx(2 * found["final_error"])
    untouched(original, compressed, {"x": x, "z": z[:0]}, ValueError, r"^test_inputs\['z'\] : reçu un lot vide")
    untouched(original, compressed, (x, z * math.nan), ValueError, r"^test_inputs\[1\] : NaN ou infini")


def test_networks_of_other_structures_are_refused_by_name(rng, randn, untouched):
    x, base = randn(3, 4), nn.Sequential()
    for name in ("fc1", "relu", "fc2"):
        base.add_module(name, nn.ReLU() if name == "relu" else nn.Linear(4, 4))
    missing, renamed, extra, wide = (copy.deepcopy(base) for _ in range(4))
    del missing.fc2
    renamed.add_module("head", renamed.fc2)
    del renamed.fc2
    extra.add_module("more", nn.Identity())
    wide.fc2 = nn.Linear(4, 5)
    untouched(base, missing, x, ValueError, "^model_compressed : aucune couche 'fc2', que model_original possède")
    untouched(missing, base, x, ValueError, "^model_original : aucune couche 'fc2', que model_compressed possède")
    untouched(base, renamed, x, ValueError, "^model_compressed : aucune couche 'fc2'")
    untouched(base, extra, x, ValueError, "^model_original : aucune couche 'more'")
    untouched(base, wide, x, ValueError, r"^model_compressed : la couche 'fc2' rend \[\(3, 5\)\], attendu \[\(3, 4\)\]")
    for one, other, which in ((base, x, "compressed"), (None, base, "original")):
        with pytest.raises(TypeError, match=f"^model_{which} : reçu .*, attendu nn.Module"):
            analyze_cumulative_error(one, other, x)


def test_a_layer_that_only_one_network_calls_is_refused(rng, randn, untouched):
    class Optional(nn.Module):
        def __init__(self, used):
            super().__init__()
            self.fc, self.other, self.used = nn.Linear(4, 4), nn.Linear(4, 4), used

        def forward(self, x):
            return self.other(self.fc(x)) if self.used else self.fc(x)

    used, unused = Optional(True), Optional(False)
    untouched(used, unused, randn(2, 4), ValueError, "la couche 'other' ne calcule que dans l'un des deux")
    assert list(untouched(unused, copy.deepcopy(unused), randn(2, 4))["layer_errors"]) == ["fc"]


def test_no_graph_is_built(rng, randn, untouched):
    class Witness(nn.Module):
        def forward(self, x):
            assert not torch.is_grad_enabled()
            return x

    original = nn.Sequential(nn.Linear(4, 3), Witness())
    inputs = randn(2, 4).requires_grad_()
    untouched(original, perturbed(original), inputs)
    assert inputs.grad is None


def test_an_output_that_is_not_a_tensor_is_refused(rng, randn, untouched):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(4, 3, batch_first=True)

        def forward(self, x):
            return self.rnn(x)

    untouched(Pair(), Pair(), randn(2, 5, 4), TypeError, "^model_original : rend tuple, attendu un tenseur")
    first = nn.Sequential(Pair().rnn)
    untouched(first, copy.deepcopy(first), randn(2, 5, 4), TypeError, "rend tuple")


def test_a_layer_whose_output_is_not_a_tensor_is_left_out(rng, randn, untouched):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.fc = nn.GRU(4, 3, batch_first=True), nn.Linear(3, 2)

        def forward(self, x):
            return self.fc(self.rnn(x)[0])

    original = Recurrent()
    found = untouched(original, perturbed(original), randn(2, 5, 4))
    assert list(found["layer_errors"]) == ["fc"]
    assert found["relative_error"] > 0


def test_integer_and_boolean_outputs_are_measured(rng, randn, untouched):
    class Positive(nn.Module):
        def forward(self, x):
            return x > 0

    class Choice(nn.Module):
        def forward(self, x):
            return x.double().argmax(-1)

    original = nn.Sequential(nn.Linear(5, 7), Positive(), Choice())
    found = untouched(original, perturbed(original, 1.0), randn(20, 5))
    assert set(found["layer_errors"]) == {"0", "1", "2"}
    assert finite(found["layer_errors"].values())


@pytest.mark.parametrize("broken", [0, 2, 4])
@pytest.mark.parametrize("which", ["original", "compressed"])
def test_hooks_are_removed_when_any_layer_fails(broken, which, rng, randn, untouched):
    class Boom(nn.Module):
        def forward(self, x):
            raise RuntimeError("boum")

    original = network(6, 5, 4, 3).train()
    compressed = perturbed(original)
    (original if which == "original" else compressed)[broken] = Boom()
    error = untouched(original, compressed, randn(2, 6), RuntimeError, "boum")
    assert error.__notes__ == [f"model_{which} a échoué sur test_inputs, dans la couche '{broken}' ou juste après."]


def test_a_failure_outside_any_layer_accuses_none(rng, randn, untouched):
    class Early(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            raise RuntimeError("boum")

    error = untouched(Early(), Early(), randn(2, 4), RuntimeError, "boum")
    assert error.__notes__ == ["model_original a échoué sur test_inputs."]


def test_bad_inputs_are_named(rng, randn, untouched):
    original = network(6, 5, 3)
    compressed = lrq.replace_linears(original, lambda layer: FactorizedLinear.from_linear(layer, 2))
    untouched(
        original,
        compressed,
        randn(2, 7),
        ValueError,
        r"^test_inputs, à l'entrée de la couche '0' : reçu la forme \(2, 7\), attendu \(\.\.\., 6\)",
    )
    error = untouched(compressed, original, randn(2, 7), ValueError, r"reçu la forme \(2, 7\), attendu \(\.\.\., 6\)")
    assert "'0'" in error.__notes__[0]
    untouched(original, compressed, randn(0, 6), ValueError, r"^test_inputs : reçu un lot vide \(0, 6\)")
    untouched(original, compressed, randn(2, 6) / 0, ValueError, "^test_inputs : NaN ou infini")
    untouched(original, compressed, torch.ones(2, 6, dtype=torch.long), TypeError, "couche '0' : reçu des éléments")
    for bad in (None, "phrase", [randn(2, 6)], (), {}, np.ones((2, 6))):
        untouched(original, compressed, bad, TypeError, "^test_inputs : reçu .* sans aucun tenseur")


def test_an_output_that_is_nan_is_not_an_exact_one(rng, randn, untouched):
    original = network(4, 3)
    broken = copy.deepcopy(original)
    broken[0].weight.data[0, 0] = math.nan
    with torch.no_grad():
        for pair in ((original, broken), (broken, original)):
            found = analyze_cumulative_error(*pair, randn(2, 4))
            assert math.isnan(found["relative_error"])  # et surtout pas 0


def test_zero_networks_give_no_nan(rng, randn, untouched):
    original = network(4, 5, 3)
    for parameter in original.parameters():
        parameter.data.zero_()
    found = untouched(original, copy.deepcopy(original), randn(3, 4))
    assert found["relative_error"] == found["final_error"] == 0
    assert untouched(original, network(4, 5, 3), randn(3, 4))["relative_error"] == math.inf


def test_the_propagated_bound_covers_the_cumulative_error(rng, randn, untouched):
    original = network(8, 10, 9, 5).double()
    compressed = lrq.replace_linears(original, lambda layer: FactorizedLinear.from_linear(layer, 4))
    x = randn(1, 8, dtype=torch.float64)
    own, gains, h = [], [], x
    with torch.no_grad():
        for k in (0, 2, 4):
            W_hat = compressed[k].reconstruct_weight()
            own.append(float(torch.linalg.matrix_norm(W_hat - original[k].weight, 2) * h.norm()))
            gains.append(float(torch.linalg.matrix_norm(W_hat, 2)))
            h = torch.relu(original[k](h))
    bounds = propagation_bound(gains, own)
    assert untouched(original, compressed, x)["final_error"] <= bounds[-1] * (1 + 1e-9)


def test_minilm_truncated():
    encoder = load_minilm()
    names = encoder_linears(encoder)[:6]  # le premier bloc
    compressed = lrq.replace_linears(encoder, lambda layer: FactorizedLinear.from_linear(layer, 64), names)
    sentences = load_sentences("test")[:4]
    tokens = encoder.tokenizer(sentences, padding=True, return_tensors="pt")
    inputs = {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}
    found = analyze_cumulative_error(encoder, compressed, inputs)
    assert set(hooks(encoder, compressed)) == {0}
    with torch.no_grad():
        y, y_hat = encoder(**inputs), compressed(**inputs)
    assert found["final_error"] == pytest.approx(float((y_hat - y).norm()), rel=1e-4)
    per_layer = found["layer_errors"]
    assert set(encoder_linears(encoder)) <= set(per_layer)
    assert per_layer["bert.embeddings.word_embeddings"] == 0  # rien n'est abîmé avant la première couche tronquée
    assert per_layer[names[0]] > 0
    assert finite(per_layer.values())
