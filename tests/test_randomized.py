"""La SVD aléatoire : ses facteurs, son erreur mesurée, sa borne, et ce qu'elle laisse intact."""

import math
import random
import warnings

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.utils.extmath import randomized_svd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lrq import (
    ApproximateSVD,
    adaptive_svd,
    approximate_svd_large,
    efficient_truncated_svd,
    find_optimal_rank,
    halko_bound,
    low_rank_error,
    randomized,
    truncated_svd,
)

SHAPES = [(90, 40), (40, 90), (64, 64)]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
DECAYS = {"i^-0,7": 0.7, "1/i": 1.0, "1/i²": 2.0}


def measured(W, svd):
    """L'oracle : ‖W − U diag(S) Vh‖/‖W‖ en float64, par NumPy."""
    W, U, S, Vh = (t.detach().double().numpy() for t in (W, *svd))
    return np.linalg.norm(W - (U * S) @ Vh) / np.linalg.norm(W)


def eckart_young(W, r):
    """L'oracle : la plus petite erreur relative de rang r, par SciPy."""
    S = scipy.linalg.svdvals(W.detach().double().numpy())
    return math.sqrt((S[r:] ** 2).sum() / (S**2).sum())


def power_law(p, decay):
    return np.arange(1, p + 1, dtype=float) ** -decay


# --- approximate_svd_large --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("r", [1, 9, 40])
def test_factors_are_orthonormal_sorted_and_shaped(m, n, r, matrix):
    U, S, Vh = approximate_svd_large(matrix(m, n, dtype=torch.float64), r)
    assert (U.shape, S.shape, Vh.shape) == ((m, r), (r,), (r, n))
    torch.testing.assert_close(U.T @ U, torch.eye(r, dtype=torch.float64))
    torch.testing.assert_close(Vh @ Vh.T, torch.eye(r, dtype=torch.float64))
    assert (S.diff() <= 0).all()
    assert (S >= 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_the_error_is_measured_on_the_factors_that_are_given(dtype, m, n, matrix):
    W = matrix(m, n, dtype=dtype)
    svd = approximate_svd_large(W, 12)
    assert {t.dtype for t in svd} == {dtype}
    assert isinstance(svd.error, float)
    assert svd.error == pytest.approx(measured(W, svd), rel=1e-4)
    assert svd.error >= eckart_young(W, 12) * (1 - 1e-6)


@pytest.mark.parametrize("decay", DECAYS.values(), ids=DECAYS)
@pytest.mark.parametrize(("m", "n"), [(300, 200), (200, 300)])
def test_within_one_percent_of_eckart_young_on_decaying_spectra(decay, m, n, matrix, rng):
    W = matrix(m, n, power_law(200, decay))
    best = eckart_young(W, 20)
    seed = int(rng.integers(1000))
    assert approximate_svd_large(W, 20, seed=seed).error <= 1.01 * best
    assert approximate_svd_large(W, 20, n_iter=0, seed=seed).error > 1.03 * best, "sans itération, on doit le voir"


def test_each_setting_helps(matrix):
    W = matrix(300, 200, power_law(200, 0.7))

    def mean(**settings):
        return np.mean([approximate_svd_large(W, 20, seed=seed, **settings).error for seed in range(8)])

    assert mean(n_iter=0) > mean(n_iter=1) > mean(n_iter=2) > mean(n_iter=4) >= eckart_young(W, 20)
    assert mean(oversample=0, n_iter=0) > mean(oversample=10, n_iter=0) > mean(oversample=40, n_iter=0)


@pytest.mark.parametrize("n_iter", [0, 2])
@pytest.mark.parametrize("true_rank", [4, 9, 14])
def test_exact_up_to_the_width_of_the_sketch(true_rank, n_iter, matrix):
    W = matrix(60, 50, power_law(true_rank, 0.5), torch.float64)
    svd = approximate_svd_large(W, 9, oversample=5, n_iter=n_iter)  # 9 + 5 colonnes voient 14 directions
    assert svd.error == pytest.approx(eckart_young(W, 9), abs=1e-13)
    np.testing.assert_allclose(svd.S.numpy(), scipy.linalg.svdvals(W.numpy())[:9], atol=1e-12)


def test_full_rank_is_the_whole_svd(randn):
    W = randn(30, 22, dtype=torch.float64)
    svd = approximate_svd_large(W, 22)
    assert svd.error < 1e-13
    np.testing.assert_allclose(svd.S.numpy(), scipy.linalg.svdvals(W.numpy()), rtol=1e-10)


def test_as_good_as_scikit_learn(matrix):
    W = matrix(200, 150, power_law(150, 0.7))
    U, S, Vh = randomized_svd(W.numpy(), 15, n_iter=2, random_state=0)
    theirs = measured(W, map(torch.tensor, (U, S, Vh)))
    assert approximate_svd_large(W, 15).error == pytest.approx(theirs, rel=0.01)


@pytest.mark.parametrize("function", [approximate_svd_large, adaptive_svd, efficient_truncated_svd])
def test_no_global_generator_moves(function, randn):
    W = randn(50, 40)
    state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    argument = {approximate_svd_large: (5,), adaptive_svd: (0.5,), efficient_truncated_svd: (5, "randomized")}
    function(W, *argument[function])
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002
    assert random.getstate() == python_state


def test_the_seed_alone_decides(randn):
    W = randn(60, 50)
    torch.manual_seed(1)
    first = approximate_svd_large(W, 5, n_iter=0, seed=3)
    torch.manual_seed(2)
    same, other = (approximate_svd_large(W, 5, n_iter=0, seed=seed) for seed in (3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert first.error == same.error
    assert not torch.allclose(first.S, other.S, rtol=1e-4)


@pytest.mark.parametrize("make", [lambda W: W.T, lambda W: W[::2, 1::3], torch.nn.Parameter, lambda W: W.numpy()])
def test_views_parameters_and_arrays_are_matrices_too(make, randn):
    W = make(randn(60, 90))
    before = torch.as_tensor(W).detach().clone()
    svd = approximate_svd_large(W, 7)
    exact = approximate_svd_large(before, 7)
    torch.testing.assert_close((svd.U * svd.S) @ svd.Vh, (exact.U * exact.S) @ exact.Vh, rtol=1e-3, atol=1e-4)
    assert not any(t.requires_grad for t in svd)
    assert torch.equal(torch.as_tensor(W), before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_zero_matrix_has_no_error(dtype):
    for svd in (approximate_svd_large(torch.zeros(40, 30, dtype=dtype), 4), adaptive_svd(torch.zeros(40, 30))):
        assert svd.error == 0
        assert not svd.S.any()
        assert all(t.isfinite().all() for t in svd)


@pytest.mark.parametrize(
    ("scale", "dtype"),
    [(s, torch.float32) for s in (1e25, 1e-25, 1e-35)] + [(s, torch.float64) for s in (1e200, 1e-200)],
)
def test_huge_and_tiny_matrices_have_the_same_error(scale, dtype, matrix):
    W = matrix(60, 40, dtype=torch.float64)
    expected = approximate_svd_large(W.to(dtype), 5).error
    svd = approximate_svd_large((W * scale).to(dtype), 5)
    assert svd.error == pytest.approx(expected, rel=1e-4)  # le carré de 1e25 déborde, celui de 1e-25 s'annule
    assert adaptive_svd((W * scale).to(dtype), 0.3).error == pytest.approx(
        adaptive_svd(W.to(dtype), 0.3).error, rel=1e-4
    )


class Largest(TorchDispatchMode):
    """Retient les octets du plus gros tenseur créé, les vues de W mises à part."""

    def __init__(self, W):
        super().__init__()
        self.W, self.nbytes = W, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage().data_ptr() != self.W.data_ptr():
                self.nbytes = max(self.nbytes, leaf.untyped_storage().nbytes())
        return result


def test_it_copies_no_large_matrix(randn, monkeypatch):
    W = randn(600, 500)
    monkeypatch.setattr(randomized, "BLOCK", 2**14)  # à l'échelle de cette petite matrice
    with Largest(W) as seen:
        approximate_svd_large(W, 8)
    assert 0 < seen.nbytes < W.nbytes / 10
    with Largest(W) as seen:
        adaptive_svd(W, 0.99)
    assert 0 < seen.nbytes < W.nbytes / 4
    with Largest(W) as seen:
        W.clone()
    assert seen.nbytes == W.nbytes  # la mesure voit une copie


# --- low_rank_error ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 50, 77, 333, 2**20])
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_blocks_change_nothing(block, m, n, matrix, monkeypatch):
    W = matrix(m, n, dtype=torch.float64)
    U, S, Vh = truncated_svd(W, 7)
    monkeypatch.setattr(randomized, "BLOCK", block)
    assert low_rank_error(W, U, S, Vh) == pytest.approx(measured(W, (U, S, Vh)), rel=1e-12)
    assert low_rank_error(W, U, 2 * S, Vh) == pytest.approx(measured(W, (U, 2 * S, Vh)), rel=1e-12)


@pytest.mark.parametrize("error", [1e-2, 1e-4, 1e-6])
def test_small_errors_are_not_lost_in_a_subtraction(error, matrix):
    W = matrix(120, 80, [1.0, 0.5, 0.25, error], torch.float64)
    assert low_rank_error(W, *truncated_svd(W, 3)) == pytest.approx(eckart_young(W, 3), rel=1e-9)
    W = W.float()  # ‖W‖² − ΣS² ne rendrait ici que du bruit
    svd = truncated_svd(W, 3)
    assert low_rank_error(W, *svd) == pytest.approx(measured(W, svd), rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_measured_in_float32(dtype, matrix):
    W = matrix(70, 50, dtype=dtype)
    svd = truncated_svd(W, 30)
    assert low_rank_error(W, *svd) == pytest.approx(measured(W, svd), rel=1e-4)


def test_long_rows_are_summed_accurately():
    W = torch.full((3, 200_000), 0.1)  # en float32, sommer 600 000 carrés égaux perd quatre chiffres
    U, S, Vh = torch.zeros(3, 1), torch.zeros(1), torch.zeros(1, 200_000)
    assert low_rank_error(W, U, S, Vh) == 1
    Vh[0, :100_000] = 1 / math.sqrt(100_000)
    U[:], S[:] = 1 / math.sqrt(3), 0.1 * math.sqrt(300_000)
    assert low_rank_error(W, U, S, Vh) == pytest.approx(math.sqrt(0.5), rel=1e-4)


# --- halko_bound ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize(("r", "p"), [(10, 2), (10, 10), (3, 5)])
def test_mean_error_respects_the_bound(decay, r, p, matrix):
    W = matrix(80, 60, power_law(60, decay))
    errors = [approximate_svd_large(W, r, p, n_iter=0, seed=seed).error for seed in range(50)]
    bound = halko_bound(torch.linalg.svdvals(W), r, p)
    assert bound == pytest.approx(math.sqrt(2 + r / (p - 1)) * eckart_young(W, r), rel=1e-4)
    assert np.mean(errors) <= bound
    assert np.mean(errors) >= bound / math.sqrt(2 + r / (p - 1)) * (1 - 1e-6)  # Eckart–Young, par-dessous


@pytest.mark.parametrize("p", [5, 10, 20])
def test_the_bound_is_not_loose(p, matrix):
    W = matrix(150, 100, [*np.ones(5), *np.full(95, 0.05)])  # un signal net, un bruit plat
    errors = [approximate_svd_large(W, 5, p, n_iter=0, seed=seed).error for seed in range(20)]
    assert halko_bound(torch.linalg.svdvals(W), 5, p) < 1.8 * np.mean(errors)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((torch.ones(4), 5), "rank : reçu 5"),
        ((torch.ones(4), 2, 1), "oversample : reçu 1, attendu un entier ≥ 2"),
        ((torch.tensor([1.0, 2.0]), 1), "S : attendu"),
    ],
)
def test_bound_names_what_is_wrong(args, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        halko_bound(*args)


# --- adaptive_svd -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize(("m", "n"), [(150, 120), (120, 150), (20, 30)])
def test_the_target_is_always_held(decay, m, n, matrix, rng):
    p = min(m, n)
    W = matrix(m, n, power_law(p, decay), torch.float64)
    for target in [*rng.uniform(0.001, 0.999, 4), 1e-6, 1.0]:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            svd = adaptive_svd(W, float(target), seed=int(rng.integers(100)))
        assert svd.error <= target
        assert svd.error == pytest.approx(measured(W, svd), rel=1e-9, abs=1e-14)
        best = find_optimal_rank(W, target_error=float(target))
        assert best <= len(svd.S) <= best + 3 + 0.15 * best


def test_a_fast_decay_gives_the_optimal_rank(matrix):
    W = matrix(200, 200, 0.7 ** np.arange(200))
    for target in (0.5, 0.1, 0.01, 1e-3):
        assert len(adaptive_svd(W, target).S) == find_optimal_rank(W, target_error=target)


@pytest.mark.parametrize(("dtype", "target"), [(torch.bfloat16, 1e-4), (torch.float16, 1e-5), (torch.float32, 1e-9)])
def test_what_rounding_forbids_is_said(dtype, target, matrix):
    W = matrix(90, 80, power_law(80, 0.5), dtype)
    with pytest.warns(UserWarning, match=r"^target_error = .* est hors d'atteinte en torch\.\w+ : l'erreur") as caught:
        svd = adaptive_svd(W, target)
    assert caught[0].filename == __file__  # l'avertissement montre la ligne du lecteur
    assert svd.error == pytest.approx(measured(W, svd), rel=0.1)
    assert svd.error > target


def test_out_of_reach_is_found_quickly(randn, monkeypatch):
    calls = []
    monkeypatch.setattr(randomized, "residual", lambda *args, f=randomized.residual: calls.append(1) or f(*args))
    W = (randn(560, 140) @ randn(140, 560)).bfloat16()  # de rang 140, à l'arrondi près ; celui des facteurs pèse plus
    with pytest.warns(UserWarning, match="hors d'atteinte"):
        adaptive_svd(W, 2.2e-3)
    assert len(calls) < 25, "essayer tous les rangs un à un prendrait des minutes sur une grande matrice"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_adaptive_keeps_the_dtype(dtype, matrix):
    W = matrix(100, 70, dtype=dtype)
    svd = adaptive_svd(W, 0.2)
    assert {t.dtype for t in svd} == {dtype}
    assert measured(W, svd) <= 0.2


# --- efficient_truncated_svd ------------------------------------------------------------------------------------------


def test_both_methods(matrix):
    W = matrix(90, 60, power_law(60, 1.0))
    for default in (efficient_truncated_svd(W, 8), efficient_truncated_svd(W, 8, "default")):
        assert all(torch.equal(a, b) for a, b in zip(default, truncated_svd(W, 8), strict=True))
    fast = efficient_truncated_svd(W, 8, method="randomized")
    assert isinstance(fast, tuple)
    assert all(torch.equal(a, b) for a, b in zip(fast, approximate_svd_large(W, 8), strict=True))
    assert eckart_young(W, 8) * (1 - 1e-6) <= measured(W, fast) <= 1.01 * eckart_young(W, 8)


@pytest.mark.parametrize("method", ["arpack", "", None, "Default"])
def test_an_unknown_method_lists_the_known_ones(method):
    with pytest.raises(ValueError, match=rf"^method : reçu {method!r}, attendu 'default' ou 'randomized'"):
        efficient_truncated_svd(torch.eye(4), 2, method)


# --- mauvaises entrées ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [approximate_svd_large, efficient_truncated_svd])
@pytest.mark.parametrize(
    ("rank", "error", "message"),
    [
        (0, ValueError, "reçu 0, attendu un entier ≥ 1"),
        (5, ValueError, r"reçu 5, attendu au plus min\(m, n\) = 4 pour une matrice 6×4"),
        (2.5, TypeError, r"reçu 2\.5, attendu un entier"),
        (True, TypeError, "reçu True"),
    ],
)
def test_bad_rank_is_named(function, rank, error, message):
    with pytest.raises(error, match=f"^rank : {message}"):
        function(torch.ones(6, 4), rank)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"oversample": -1}, ValueError, "oversample : reçu -1, attendu un entier ≥ 0"),
        ({"n_iter": -1}, ValueError, "n_iter : reçu -1, attendu un entier ≥ 0"),
        ({"n_iter": 1.5}, TypeError, r"n_iter : reçu 1\.5"),
        ({"seed": -1}, ValueError, "seed : reçu -1"),
        ({"seed": None}, TypeError, "seed : reçu None"),
    ],
)
def test_bad_settings_are_named(settings, error, message):
    state = torch.get_rng_state()
    with pytest.raises(error, match=f"^{message}"):
        approximate_svd_large(torch.ones(6, 4), 2, **settings)
    with pytest.raises(error, match=f"^{message}"):
        adaptive_svd(torch.ones(60, 40), 0.1, **settings)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("target", [0, 1.5, math.nan])
def test_bad_target_is_named(target):
    with pytest.raises(ValueError, match=r"^target_error : reçu .*, attendu un nombre dans \]0, 1\]"):
        adaptive_svd(torch.eye(4), target)


def test_the_result_unpacks_like_a_tuple():
    svd = ApproximateSVD(torch.ones(3, 1), torch.ones(1), torch.ones(1, 2), 0.5)
    U, S, Vh = svd
    assert (U is svd.U, S is svd.S, Vh is svd.Vh) == (True, True, True)


def test_half_precision_reaches_what_it_can(matrix):
    """Le rang se choisit sur les facteurs arrondis : seize triplets n'y suffisent pas, dix-huit si."""
    W = matrix(100, 100, [0.7**i for i in range(100)], torch.float32).bfloat16()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svd = adaptive_svd(W, 0.005)
    assert svd.error <= 0.005


def test_a_zero_matrix_badly_rebuilt_is_infinitely_wrong():
    assert low_rank_error(torch.zeros(4, 4), torch.ones(4, 1), torch.ones(1), torch.ones(1, 4)) == math.inf


@pytest.mark.parametrize(
    ("U", "S", "Vh", "message"),
    [
        (torch.ones(3, 2), torch.ones(2), torch.ones(2, 5), r"^U : reçu la forme \(3, 2\), attendu \(4, 2\)"),
        (torch.ones(4, 2), torch.ones(2), torch.ones(5, 2), r"^Vh : reçu la forme \(5, 2\), attendu \(2, 5\)"),
    ],
)
def test_factors_of_the_wrong_shape_are_refused(U, S, Vh, message):
    with pytest.raises(ValueError, match=message):
        low_rank_error(torch.ones(4, 5), U, S, Vh)
