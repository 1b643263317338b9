"""La jauge : le même produit, des facteurs qui se quantifient mieux ; NumPy et SciPy refont les comptes."""

import math

import numpy as np
import pytest
import scipy.fft
import scipy.linalg
import torch

from lrq import PerChannel, UniformQuantizer, balance_factors, balanced_factors, rotate_factors
from lrq.gauge import cosine_rotation

FUNCTIONS = [balance_factors, rotate_factors]
SHAPES = [(12, 9, 4), (9, 12, 9), (5, 5, 1), (7, 20, 7), (1, 1, 1)]


@pytest.fixture
def factors(randn):
    """Deux facteurs quelconques, très déséquilibrés : U est mille fois plus grand que V."""

    def draw(m, n, r, dtype=torch.float64):
        return 30 * randn(m, r, dtype=dtype), randn(n, r, dtype=dtype) / 30

    return draw


def frobenius(U, V):
    return np.linalg.norm(U.double().numpy()) * np.linalg.norm(V.double().numpy())


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(("m", "n", "r"), SHAPES)
def test_the_product_does_not_change(function, m, n, r, factors):
    U, V = factors(m, n, r)
    X, Y = function(U, V)
    assert (X.shape, Y.shape) == (U.shape, V.shape)
    torch.testing.assert_close(X @ Y.T, U @ V.T)
    assert r == 1 or not torch.allclose(X, U), "rien n'a tourné : ce test ne prouve rien"


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_factors_keep_their_dtype_and_are_new(function, dtype, randn):
    U, V = randn(12, 4, dtype=dtype), randn(9, 4, dtype=dtype)
    before = U.clone(), V.clone()
    X, Y = function(U.requires_grad_(), V)
    assert X.dtype == Y.dtype == dtype
    assert not X.requires_grad
    assert X.is_contiguous()
    assert Y.is_contiguous()
    assert {X.untyped_storage().data_ptr(), Y.untyped_storage().data_ptr()}.isdisjoint(
        {U.untyped_storage().data_ptr(), V.untyped_storage().data_ptr()}
    )
    assert torch.equal(U, before[0])
    assert torch.equal(V, before[1])
    rounding = 16 * torch.finfo(dtype).eps * float((U.norm() * V.norm()).detach())
    torch.testing.assert_close((X @ Y.T).double(), (U @ V.T).detach().double(), rtol=0, atol=rounding)


@pytest.mark.parametrize(("m", "n", "r"), SHAPES)
def test_balanced_norms_reach_the_nuclear_norm_and_no_other_gauge_does_better(m, n, r, factors, randn):
    U, V = factors(m, n, r)
    X, Y = balance_factors(U, V)
    nuclear = scipy.linalg.svdvals((U @ V.T).numpy())[:r].sum()
    assert frobenius(X, Y) == pytest.approx(nuclear, rel=1e-9)
    for _ in range(20):  # ‖U R‖ ‖V R⁻ᵀ‖ ≥ Σσ, quelle que soit R
        R = randn(r, r, dtype=torch.float64)
        assert frobenius(X @ R, Y @ torch.linalg.inv(R).T) >= nuclear * (1 - 1e-9)
    if r > 1:
        assert frobenius(U, V) > nuclear * 1.0001  # ce dont on partait


def test_balanced_factors_have_the_same_diagonal_gram(factors):
    U, V = factors(12, 9, 4)
    X, Y = balance_factors(U, V)
    S = scipy.linalg.svdvals((U @ V.T).numpy())[:4]
    np.testing.assert_allclose((X.T @ X).numpy(), np.diag(S), atol=1e-9 * S[0])
    np.testing.assert_allclose((Y.T @ Y).numpy(), np.diag(S), atol=1e-9 * S[0])


def test_balancing_what_is_balanced_changes_signs_only(matrix):
    U, V = balanced_factors(matrix(12, 9, spectrum=[5, 4, 2, 1], dtype=torch.float64), 4)
    X, Y = balance_factors(U, V)
    torch.testing.assert_close(X.abs(), U.abs(), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(Y.abs(), V.abs(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_null_and_deficient_factors(function, randn):
    X, Y = function(torch.zeros(6, 3), torch.zeros(5, 3))
    assert torch.equal(X @ Y.T, torch.zeros(6, 5))
    U, V = randn(6, 3, dtype=torch.float64), randn(5, 3, dtype=torch.float64)
    U[:, 2] = U[:, 0]
    V[:, 1] = 0
    X, Y = function(U, V)
    torch.testing.assert_close(X @ Y.T, U @ V.T)


# --- la rotation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 3, 7, 64, 384])
def test_the_rotation_is_scipys_cosine_transform(rank):
    R = cosine_rotation(rank)
    assert R.dtype == torch.float64
    np.testing.assert_allclose(R.numpy(), scipy.fft.dct(np.eye(rank), norm="ortho"), atol=1e-12)
    np.testing.assert_allclose((R.T @ R).numpy(), np.eye(rank), atol=1e-12)
    assert R.abs().max() <= math.sqrt(2 / rank) + 1e-12 or rank == 1


@pytest.mark.parametrize(("m", "n", "r"), SHAPES)
def test_norms_are_kept_by_the_rotation(m, n, r, factors):
    U, V = factors(m, n, r)
    for before, after in zip((U, V), rotate_factors(U, V), strict=True):
        assert float(after.norm()) == pytest.approx(float(before.norm()))
        torch.testing.assert_close(after @ after.T, before @ before.T)


def test_the_rotation_draws_nothing_at_random(factors):
    U, V = factors(12, 9, 4)
    state = torch.get_rng_state()
    X, _ = rotate_factors(U, V)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(rotate_factors(U, V)[0], X)


def test_the_rotation_levels_the_energy_of_the_columns(matrix):
    r = 32
    U, V = balanced_factors(matrix(200, 150, np.arange(1, 151.0) ** -1.5, dtype=torch.float64), r)
    for before, after in zip((U, V), rotate_factors(U, V), strict=True):
        before, after = before.square().sum(0), after.square().sum(0)
        assert before.max() / before.mean() > 8  # une colonne portait presque tout
        assert after.max() / after.mean() < 3
        assert after.min() / after.mean() > before.min() / before.mean()


@pytest.mark.parametrize("n_bits", [3, 4, 8])
def test_rotated_factors_lose_less_to_quantization(n_bits, matrix):
    W = matrix(200, 150, np.arange(1, 151.0) ** -1.5, dtype=torch.float64)
    U, V = balanced_factors(W, 32)
    X, Y = rotate_factors(U, V)
    for granularity in (None, PerChannel(0)):
        q = UniformQuantizer(n_bits, granularity=granularity).quantize_dequantize
        assert (q(X) @ q(Y).T - U @ V.T).norm() < 0.9 * (q(U) @ q(V).T - U @ V.T).norm()


# --- mauvaises entrées ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("U", "V", "error", "message"),
    [
        (torch.ones(6, 3), torch.ones(5, 2), ValueError, "V : reçu 2 colonnes, attendu 3, autant que U"),
        (torch.ones(6, 6), torch.ones(5, 6), ValueError, "U : reçu le rang 6, attendu au plus 5"),
        (torch.ones(6), torch.ones(5, 2), ValueError, r"U : reçu un tenseur de forme \(6,\)"),
        (torch.ones(6, 2), torch.ones(0, 2), ValueError, "V : reçu une matrice vide"),
        (torch.full((6, 2), math.nan), torch.ones(5, 2), ValueError, r"U : 12 élément\(s\) sur 12 sont NaN"),
        (torch.ones(6, 2), torch.full((5, 2), math.inf), ValueError, r"V : 10 élément\(s\) sur 10 sont NaN"),
        (None, torch.ones(5, 2), TypeError, "U : reçu NoneType"),
        (torch.ones(6, 2), [[1.0]], TypeError, "V : reçu list"),
    ],
)
def test_bad_factors_are_named(function, U, V, error, message):
    with pytest.raises(error, match=f"^{message}"):
        function(U, V)


@pytest.mark.parametrize(("rank", "error"), [(0, ValueError), (2.5, TypeError), (True, TypeError)])
def test_bad_rotation_rank_is_named(rank, error):
    with pytest.raises(error, match=r"^rank : reçu"):
        cosine_rotation(rank)
