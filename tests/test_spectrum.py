"""Les valeurs singulières répondent pour tous les rangs : chaque réponse est comparée à une reconstruction."""

import math
import warnings

import numpy as np
import pytest
import scipy.linalg
import torch

import lrq
from lrq import (
    LowRankAnalysis,
    analyze_svd_approximation_error,
    break_even_rank,
    cumulative_energy,
    energy_analysis,
    entropy_rank,
    find_optimal_rank,
    rank_for_energy,
    rank_for_error,
    singular_values,
    stable_rank,
    truncation_errors,
)

SHAPES = [(24, 9), (9, 24), (13, 13), (1, 7), (7, 1), (1, 1)]


def reconstruction_errors(W):
    """L'oracle : pour chaque rang, reconstruire en float64 par SciPy et mesurer l'écart."""
    W = np.asarray(W, dtype=np.float64)
    U, S, Vh = scipy.linalg.svd(W, full_matrices=False)
    return np.array([np.linalg.norm(W - (U[:, :r] * S[:r]) @ Vh[:r]) for r in range(1, len(S) + 1)]) / np.linalg.norm(W)


def explicit_rank(W, target):
    """L'oracle du plus petit rang : essayer 1, puis 2, puis 3…"""
    return next(r for r, error in enumerate(reconstruction_errors(W), 1) if error <= target)


def descending(rng, p):
    return torch.tensor(np.sort(rng.random(p))[::-1].copy(), dtype=torch.float64)


# --- erreurs et énergies ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_errors_of_every_rank_equal_explicit_reconstruction(m, n, randn):
    W = randn(m, n, dtype=torch.float64)
    expected = reconstruction_errors(W)
    np.testing.assert_allclose(truncation_errors(singular_values(W)).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_energies_of_every_rank_equal_explicit_reconstruction(m, n, randn):
    W = randn(m, n, dtype=torch.float64)
    expected = 1 - reconstruction_errors(W) ** 2
    energies = cumulative_energy(singular_values(W)).numpy()
    np.testing.assert_allclose(energies, expected, atol=1e-12)
    assert energies[-1] == 1
    assert (np.diff(energies) >= 0).all()


def test_the_dropped_values_add_in_quadrature_and_not_plainly(rng):
    S = descending(rng, 8)
    norm = math.sqrt(float((S**2).sum()))
    found = float(truncation_errors(S)[2])
    assert found == pytest.approx(math.hypot(*S[3:].tolist()) / norm, rel=1e-12)
    assert found < 0.999 * float(S[3:].sum()) / norm  # la somme simple, que dit le cours, est toujours trop grande


def test_small_errors_are_not_lost_in_a_subtraction():
    S = torch.tensor([1.0, 1e-10, 1e-12], dtype=torch.float64)
    errors = truncation_errors(S)
    assert float(errors[0]) == pytest.approx(math.hypot(1e-10, 1e-12), rel=1e-9)  # 1 − énergie rendrait 0
    assert float(errors[1]) == pytest.approx(1e-12, rel=1e-9)
    assert float(errors[2]) == 0


def test_singular_values_equal_scipy(randn):
    for shape in SHAPES:
        W = randn(*shape, dtype=torch.float64)
        np.testing.assert_allclose(singular_values(W).numpy(), scipy.linalg.svdvals(W.numpy()), rtol=1e-12, atol=1e-14)


def test_a_wide_matrix_has_the_spectrum_of_its_transpose(randn):
    W = randn(7, 31, dtype=torch.float64)
    torch.testing.assert_close(singular_values(W), singular_values(W.T))


# --- rangs ------------------------------------------------------------------------------------------------------------


def test_rank_for_error_is_minimal(rng):
    for _ in range(20):
        S = descending(rng, int(rng.integers(2, 30)))
        target = float(rng.uniform(0.01, 0.9))
        r, errors = rank_for_error(S, target), truncation_errors(S)
        assert errors[r - 1] <= target
        assert r == 1 or errors[r - 2] > target, "le rang d'avant suffisait"


def test_rank_for_energy_is_minimal(rng):
    for _ in range(20):
        S = descending(rng, int(rng.integers(2, 30)))
        threshold = float(rng.uniform(0.1, 0.999))
        r, energy = rank_for_energy(S, threshold), cumulative_energy(S)
        assert energy[r - 1] >= threshold
        assert r == 1 or energy[r - 2] < threshold, "le rang d'avant suffisait"


@pytest.mark.parametrize(("m", "n"), [(40, 16), (16, 40), (20, 20)])
@pytest.mark.parametrize("target", [0.5, 0.1, 0.01])
def test_find_optimal_rank_is_the_first_rank_that_reconstructs_well(m, n, target, matrix):
    W = matrix(m, n, dtype=torch.float64)
    assert find_optimal_rank(W, target_error=target) == explicit_rank(W, target)


def test_find_optimal_rank_is_not_the_one_of_the_course_on_a_known_spectrum(matrix):
    W = matrix(30, 20, [4.0, 3.0, 2.0, 1.0], torch.float64)
    assert find_optimal_rank(W, target_error=0.2) == 3  # √(1/30) ≈ 0,183 ; au rang 2, √(5/30) ≈ 0,408
    assert find_optimal_rank(W, target_error=0.01) == 4


def test_energy_and_error_ranks_agree(matrix):
    W = matrix(25, 18, dtype=torch.float64)
    for threshold in (0.5, 0.9, 0.99):  # garder 99 % d'énergie, c'est une erreur de 10 %, et non de 1 %
        assert energy_analysis(W, threshold) == find_optimal_rank(W, target_error=math.sqrt(1 - threshold))


def test_rank_one_and_whole_rank(randn):
    W = torch.outer(randn(9), randn(6))
    assert find_optimal_rank(W) == 1
    assert energy_analysis(W) == 1
    Q = torch.linalg.qr(randn(12, 12, dtype=torch.float64)).Q
    assert find_optimal_rank(Q) == 12  # toutes les valeurs égales : aucune n'est négligeable
    assert energy_analysis(Q, 1.0) == 12


def test_ranks_ignore_the_scale(matrix, rng):
    W = matrix(20, 12, dtype=torch.float64)
    factor = float(10 ** rng.uniform(-6, 6))
    for function in (find_optimal_rank, energy_analysis):
        assert function(W) == function(factor * W) == function(-W) == function(W.T)
    for function in (entropy_rank, stable_rank):
        assert function(singular_values(factor * W)) == pytest.approx(function(singular_values(W)), rel=1e-9)


def test_ranks_are_invariant_under_rotations(matrix, randn):
    W = matrix(20, 12, dtype=torch.float64)
    Q = torch.linalg.qr(randn(20, 20, dtype=torch.float64)).Q
    assert find_optimal_rank(Q @ W, target_error=0.05) == find_optimal_rank(W, target_error=0.05)


def test_entropy_rank_of_k_equal_values_is_k(rng):
    for k in range(1, 9):
        S = torch.zeros(10, dtype=torch.float64)
        S[:k] = float(rng.uniform(1e-3, 1e3))
        assert entropy_rank(S) == pytest.approx(k, rel=1e-12)


def test_entropy_rank_equals_its_definition(rng):
    S = descending(rng, 12)
    p = S.numpy() / S.numpy().sum()
    assert entropy_rank(S) == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-12)
    q = S.numpy() ** 2 / (S.numpy() ** 2).sum()  # l'autre usage, sur les énergies, donne autre chose
    assert entropy_rank(S) != pytest.approx(math.exp(-(q * np.log(q)).sum()), rel=1e-3)


def test_stable_rank_equals_norms_and_is_bounded(matrix):
    W = matrix(20, 12, dtype=torch.float64)
    array = W.numpy()
    found = stable_rank(singular_values(W))
    assert found == pytest.approx(np.linalg.norm(array, "fro") ** 2 / np.linalg.norm(array, 2) ** 2, rel=1e-10)
    assert 1 <= found <= np.linalg.matrix_rank(array)


def test_stable_and_entropy_ranks_are_one_for_one_value():
    S = torch.tensor([3.0, 0.0, 0.0])
    assert stable_rank(S) == 1
    assert entropy_rank(S) == pytest.approx(1)


def test_break_even_rank_is_where_the_factors_weigh_the_matrix(rng):
    for m, n in rng.integers(1, 500, (20, 2)).tolist():
        r = break_even_rank(m, n)
        assert r * (m + n) == pytest.approx(m * n, rel=1e-12)
    assert break_even_rank(384, 384) == 192
    assert break_even_rank(1, 1) == 0.5  # même le rang 1 pèse plus


# --- matrices extrêmes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_zero_matrix(dtype):
    W = torch.zeros(6, 4, dtype=dtype)
    S = singular_values(W)
    assert torch.equal(truncation_errors(S), torch.zeros(4, dtype=torch.float64))
    assert torch.equal(cumulative_energy(S), torch.ones(4, dtype=torch.float64))
    assert find_optimal_rank(W) == energy_analysis(W) == 1
    assert entropy_rank(S) == stable_rank(S) == 0.0
    report = LowRankAnalysis.analyze_weight_matrix(W)
    assert all(np.isfinite(value).all() for value in report.values())


@pytest.mark.parametrize("scale", [1e30, 1e-30, 1e15, 1e-15])
def test_huge_and_tiny_matrices(scale, matrix):
    W = matrix(15, 10)
    big = (W.double() * scale).float()
    np.testing.assert_allclose(
        truncation_errors(singular_values(big)).numpy(), reconstruction_errors(big.double()), atol=2e-6
    )
    assert find_optimal_rank(big, target_error=0.1) == explicit_rank(big.double(), 0.1)
    assert stable_rank(singular_values(big)) == pytest.approx(stable_rank(singular_values(W)), rel=1e-4)
    assert entropy_rank(singular_values(big)) == pytest.approx(entropy_rank(singular_values(W)), rel=1e-4)


@pytest.mark.parametrize("scale", [1e200, 1e-200])
def test_float64_extremes_do_not_overflow(scale, matrix):
    W = matrix(8, 6, [3.0, 2.0, 1.0], torch.float64) * scale
    assert find_optimal_rank(W, target_error=0.3) == 2
    assert stable_rank(singular_values(W)) == pytest.approx(14 / 9)


def test_float64_is_not_narrowed(matrix):
    spectrum = [1.0, 1e-3, 1e-6, 1e-9, 1e-12]
    W = matrix(20, 15, spectrum, torch.float64)
    S = singular_values(W)
    assert S.dtype == torch.float64
    np.testing.assert_allclose(S[:5].numpy(), spectrum, rtol=1e-3)  # en float32, tout ce qui suit 1e-7 serait perdu
    assert find_optimal_rank(W, target_error=1e-10) == 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype, matrix):
    W = matrix(30, 20, dtype=dtype)
    S = singular_values(W)
    assert S.dtype == torch.float32
    np.testing.assert_allclose(S.numpy(), scipy.linalg.svdvals(W.double().numpy()), atol=1e-6)
    assert find_optimal_rank(W, target_error=0.2) == explicit_rank(W.double(), 0.2)


def test_numpy_arrays_and_integers_are_matrices_too(rng):
    array = rng.integers(-5, 6, (6, 4))
    expected = explicit_rank(array, 0.3)
    assert find_optimal_rank(array, target_error=0.3) == find_optimal_rank(torch.tensor(array), target_error=0.3)
    assert find_optimal_rank(array.astype(np.float64), target_error=0.3) == expected


def test_a_parameter_and_a_strided_view_are_matrices_too(randn):
    W = torch.nn.Parameter(randn(20, 30))
    view = W.detach()[::2, 1::3]
    assert find_optimal_rank(W) == find_optimal_rank(W.detach())
    assert find_optimal_rank(view) == find_optimal_rank(view.clone())
    assert W.grad is None


# --- une décomposition par question -----------------------------------------------------------------------------------


@pytest.fixture
def decompositions(monkeypatch):
    """Compte les appels à chaque décomposition."""
    calls = dict.fromkeys(["svdvals", "svd"], 0)
    for name in calls:
        original = getattr(torch.linalg, name)

        def counted(*args, _name=name, _original=original, **kwargs):
            calls[_name] += 1
            return _original(*args, **kwargs)

        monkeypatch.setattr(torch.linalg, name, counted)
    return calls


@pytest.mark.parametrize(
    "function",
    [find_optimal_rank, energy_analysis, LowRankAnalysis.analyze_weight_matrix, analyze_svd_approximation_error],
)
def test_one_decomposition_without_vectors_per_question(function, decompositions, randn):
    function(randn(30, 40))
    assert decompositions == {"svdvals": 1, "svd": 0}


@pytest.mark.parametrize(
    "function",
    [find_optimal_rank, energy_analysis, LowRankAnalysis.analyze_weight_matrix, analyze_svd_approximation_error],
)
def test_the_global_generator_and_the_input_are_left_alone(function, randn):
    W = randn(12, 9)
    copy, state = W.clone(), torch.get_rng_state()
    function(W)
    assert torch.equal(W, copy)
    assert torch.equal(torch.get_rng_state(), state)


# --- find_optimal_rank, energy_analysis, analyze_weight_matrix : ce que le cours demande ------------------------------


def test_max_rank_that_misses_is_returned_with_a_warning(randn):
    W = randn(20, 20)
    with pytest.warns(UserWarning, match=r"max_rank = 3 .* target_error = 0\.01 .* rang \d+") as caught:
        assert find_optimal_rank(W, max_rank=3) == 3
    assert caught[0].filename == __file__  # l'avertissement montre la ligne du lecteur


def test_max_rank_that_suffices_changes_nothing(matrix):
    W = matrix(20, 20, [4.0, 3.0, 2.0, 1.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_optimal_rank(W, max_rank=3, target_error=0.2) == find_optimal_rank(W, target_error=0.2) == 3


def test_silent_unless_verbose(matrix, capsys):
    W = matrix(20, 20, [4.0, 3.0, 2.0, 1.0], torch.float64)
    find_optimal_rank(W, target_error=0.2)
    energy_analysis(W)
    LowRankAnalysis.analyze_weight_matrix(W)
    assert capsys.readouterr().out == ""
    find_optimal_rank(W, target_error=0.2, verbose=True)
    assert capsys.readouterr().out == "rang 3 : erreur relative 0.1826\n"
    energy_analysis(W, 0.9, verbose=True)
    assert capsys.readouterr().out == "rang 3 : 96.67% de l'énergie\n"


@pytest.mark.parametrize(("m", "n"), [(30, 12), (12, 30)])
def test_analysis_answers_with_the_keys_of_the_course(m, n, matrix):
    W = matrix(m, n, dtype=torch.float64)
    report = LowRankAnalysis.analyze_weight_matrix(W, threshold=0.95)
    r = explicit_rank(W, math.sqrt(0.05))
    assert report["original_params"] == m * n
    assert report["effective_rank"] == r
    assert report["full_rank"] == 12
    assert report["compressed_params"] == r * (m + n)
    assert report["compression_ratio"] == pytest.approx(m * n / (r * (m + n)))
    assert report["energy_captured"] == pytest.approx(1 - reconstruction_errors(W)[r - 1] ** 2)
    assert report["break_even_rank"] == pytest.approx(360 / 42)
    assert isinstance(report["singular_values"], np.ndarray)
    np.testing.assert_allclose(report["singular_values"], scipy.linalg.svdvals(W.numpy()), atol=1e-12)
    assert {"entropy_rank", "stable_rank"} <= report.keys()


def test_analysis_agrees_with_pca_explained_variance(randn):
    from sklearn.decomposition import PCA

    W = randn(40, 10, dtype=torch.float64)
    W -= W.mean(0)  # l'ACP centre : sur une matrice centrée, sa variance expliquée est notre énergie
    explained = np.cumsum(PCA().fit(W.numpy()).explained_variance_ratio_)
    np.testing.assert_allclose(cumulative_energy(singular_values(W)).numpy(), explained, atol=1e-10)


# --- analyze_svd_approximation_error ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_every_rank_is_analysed(m, n, randn):
    W = randn(m, n, dtype=torch.float64)
    expected = reconstruction_errors(W)
    rows = analyze_svd_approximation_error(W)
    assert [row["rank"] for row in rows] == list(range(1, min(m, n) + 1))
    np.testing.assert_allclose([row["error"] for row in rows], expected, atol=1e-12)
    np.testing.assert_allclose([row["energy"] for row in rows], 1 - expected**2, atol=1e-12)
    assert {type(value) for row in rows for value in row.values()} == {int, float}


def test_the_analysis_stops_at_max_rank(randn):
    W = randn(8, 6)
    assert analyze_svd_approximation_error(W, max_rank=4) == analyze_svd_approximation_error(W)[:4]
    for max_rank, error in [(0, ValueError), (7, ValueError), (1.5, TypeError), (True, TypeError)]:
        with pytest.raises(error, match=r"^max_rank : reçu"):
            analyze_svd_approximation_error(W, max_rank)


def test_a_zero_matrix_is_analysed():
    assert [tuple(row.values()) for row in analyze_svd_approximation_error(torch.zeros(3, 2))] == [(1, 0, 1), (2, 0, 1)]


# --- mauvaises entrées ------------------------------------------------------------------------------------------------

MATRIX_FUNCTIONS = [
    pytest.param(find_optimal_rank, "weight_matrix", id="find_optimal_rank"),
    pytest.param(energy_analysis, "weight_matrix", id="energy_analysis"),
    pytest.param(LowRankAnalysis.analyze_weight_matrix, "W", id="analyze_weight_matrix"),
    pytest.param(singular_values, "W", id="singular_values"),
    pytest.param(analyze_svd_approximation_error, "W", id="analyze_svd_approximation_error"),
    pytest.param(lambda W: lrq.approximate_svd_large(W, 1), "W", id="approximate_svd_large"),
    pytest.param(lrq.adaptive_svd, "W", id="adaptive_svd"),
    pytest.param(lambda W: lrq.efficient_truncated_svd(W, 1), "W", id="efficient_truncated_svd"),
    pytest.param(lambda W: lrq.activation_aware_svd(W, 1, torch.ones(1, 2)), "W", id="activation_aware_svd"),
    pytest.param(
        lambda W: lrq.low_rank_error(W, torch.ones(2, 1), torch.ones(1), torch.ones(1, 2)), "W", id="low_rank_error"
    ),
    pytest.param(lambda W: lrq.truncated_svd(W, 1), "W", id="truncated_svd"),
    pytest.param(lambda W: lrq.balanced_factors(W, 1), "W", id="balanced_factors"),
]
BAD_MATRICES = [
    pytest.param(torch.ones(3), ValueError, r"reçu un tenseur de forme \(3,\), attendu une matrice", id="1-D"),
    pytest.param(torch.ones(2, 3, 4), ValueError, r"reçu un tenseur de forme \(2, 3, 4\)", id="3-D"),
    pytest.param(torch.tensor(1.0), ValueError, r"reçu un tenseur de forme \(\)", id="scalaire"),
    pytest.param(torch.zeros(0, 4), ValueError, r"reçu une matrice vide \(0, 4\)", id="vide"),
    pytest.param(torch.zeros(4, 0), ValueError, r"reçu une matrice vide \(4, 0\)", id="sans colonne"),
    pytest.param(torch.tensor([[1.0, math.nan]]), ValueError, r"1 élément\(s\) sur 2 sont NaN", id="NaN"),
    pytest.param(torch.tensor([[math.inf, -math.inf]]), ValueError, r"2 élément\(s\) sur 2 sont", id="inf"),
    pytest.param(torch.ones(2, 2, dtype=torch.complex64), TypeError, "complex64, attendu des nombres réels", id="C"),
    pytest.param(torch.ones(2, 2, dtype=torch.bool), TypeError, "bool, attendu des nombres réels", id="booléens"),
    pytest.param([[1.0, 2.0], [3.0, 4.0]], TypeError, "reçu list, attendu une matrice", id="liste"),
    pytest.param(None, TypeError, "reçu NoneType, attendu une matrice", id="None"),
    pytest.param("W", TypeError, "reçu str, attendu une matrice", id="texte"),
]


@pytest.mark.parametrize(("function", "name"), MATRIX_FUNCTIONS)
@pytest.mark.parametrize(("W", "error", "message"), BAD_MATRICES)
def test_bad_matrix_is_named(function, name, W, error, message):
    with pytest.raises(error, match=f"^{name} : .*{message}"):
        function(W)


FRACTION_FUNCTIONS = [
    pytest.param(lambda t: find_optimal_rank(torch.eye(4), target_error=t), "target_error", id="find_optimal_rank"),
    pytest.param(lambda t: rank_for_error(torch.ones(3), t), "target_error", id="rank_for_error"),
    pytest.param(lambda t: rank_for_energy(torch.ones(3), t), "threshold", id="rank_for_energy"),
    pytest.param(lambda t: energy_analysis(torch.eye(4), t), "energy_threshold", id="energy_analysis"),
    pytest.param(
        lambda t: LowRankAnalysis.analyze_weight_matrix(torch.eye(4), t), "threshold", id="analyze_weight_matrix"
    ),
]


@pytest.mark.parametrize(("function", "name"), FRACTION_FUNCTIONS)
@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [
        (0, ValueError, "0"),
        (-0.1, ValueError, r"-0\.1"),
        (1.01, ValueError, r"1\.01"),
        (math.nan, ValueError, "nan"),
        (math.inf, ValueError, "inf"),
        ("a", TypeError, "'a'"),
        ("0.5", TypeError, r"'0\.5'"),
        (True, TypeError, "True"),
        (None, TypeError, "None"),
        ([0.5], TypeError, r"\[0\.5\]"),
    ],
)
def test_bad_threshold_is_named(function, name, value, error, shown):
    with pytest.raises(error, match=rf"^{name} : reçu {shown}, attendu un nombre dans \]0, 1\]"):
        function(value)


@pytest.mark.parametrize(
    ("rank", "error", "message"),
    [
        (0, ValueError, "reçu 0, attendu un entier ≥ 1"),
        (-1, ValueError, "reçu -1, attendu un entier ≥ 1"),
        (5, ValueError, r"reçu 5, attendu au plus min\(m, n\) = 4"),
        (2.5, TypeError, r"reçu 2\.5, attendu un entier"),
        (True, TypeError, "reçu True, attendu un entier"),
        ("4", TypeError, "reçu '4', attendu un entier"),
    ],
)
def test_bad_max_rank_is_named(rank, error, message):
    with pytest.raises(error, match=f"^max_rank : {message}"):
        find_optimal_rank(torch.ones(6, 4), max_rank=rank)


SPECTRUM_FUNCTIONS = [
    cumulative_energy,
    truncation_errors,
    rank_for_energy,
    rank_for_error,
    entropy_rank,
    stable_rank,
]


@pytest.mark.parametrize("function", SPECTRUM_FUNCTIONS)
@pytest.mark.parametrize(
    ("S", "error"),
    [
        (torch.ones(2, 2), ValueError),
        (torch.ones(0), ValueError),
        (torch.tensor(1.0), ValueError),
        (torch.tensor([1.0, 2.0]), ValueError),  # croissant
        (torch.tensor([1.0, -1.0]), ValueError),
        (torch.tensor([math.nan, 1.0]), ValueError),
        (torch.tensor([math.inf, 1.0]), ValueError),
        ("abc", TypeError),
        (None, TypeError),
        (torch.ones(2, dtype=torch.complex64), TypeError),
    ],
)
def test_bad_spectrum_is_named(function, S, error):
    with pytest.raises(error, match=r"^S : .*attendu"):
        function(S)


@pytest.mark.parametrize(
    ("m", "n", "error", "message"),
    [
        (0, 4, ValueError, "m : reçu 0"),
        (4, -1, ValueError, "n : reçu -1"),
        (2.5, 4, TypeError, r"m : reçu 2\.5"),
        (4, "4", TypeError, "n : reçu '4'"),
        (True, 4, TypeError, "m : reçu True"),
    ],
)
def test_bad_dimension_is_named(m, n, error, message):
    with pytest.raises(error, match=f"^{message}, attendu un entier ≥ 1"):
        break_even_rank(m, n)
