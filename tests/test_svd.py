"""Eckart–Young : rien de même rang ne fait mieux que la SVD tronquée, ni le hasard ni la descente de gradient."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.decomposition import TruncatedSVD

import lrq
from lrq import balanced_factors, truncated_svd
from lrq.svd import share_singular_values

SHAPES = [(24, 9), (9, 24), (13, 13), (1, 7), (7, 1)]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def best_error(W, r):
    """L'oracle : la queue du spectre de SciPy, en float64."""
    return math.sqrt((scipy.linalg.svdvals(W.double().numpy())[r:] ** 2).sum())


def rebuilt(U, S, Vh):
    return (U * S) @ Vh


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_error_of_every_rank_is_the_best_possible(m, n, randn):
    W = randn(m, n, dtype=torch.float64)
    for r in range(1, min(m, n) + 1):
        error = float(torch.linalg.norm(W - rebuilt(*truncated_svd(W, r))))
        assert error == pytest.approx(best_error(W, r), abs=1e-12)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_factors_are_orthonormal_sorted_and_shaped(m, n, randn):
    W = randn(m, n, dtype=torch.float64)
    r = max(1, min(m, n) // 2)
    U, S, Vh = truncated_svd(W, r)
    assert (U.shape, S.shape, Vh.shape) == ((m, r), (r,), (r, n))
    torch.testing.assert_close(U.T @ U, torch.eye(r, dtype=torch.float64))
    torch.testing.assert_close(Vh @ Vh.T, torch.eye(r, dtype=torch.float64))
    assert (S.diff() <= 0).all()
    np.testing.assert_allclose(S.numpy(), scipy.linalg.svdvals(W.numpy())[:r], rtol=1e-12)


def test_vh_is_already_transposed(randn):
    W = randn(12, 12, dtype=torch.float64)  # carrée : prendre V pour Vh ne lève rien, mais ne reconstruit rien
    U, S, Vh = truncated_svd(W, 12)
    torch.testing.assert_close(rebuilt(U, S, Vh), W)
    assert float(torch.linalg.norm(W - rebuilt(U, S, Vh.T))) > 0.1 * float(torch.linalg.norm(W))


@pytest.mark.parametrize(("m", "n"), [(20, 8), (8, 20)])
def test_agrees_with_scikit_learn(m, n, randn):
    W = randn(m, n, dtype=torch.float64)
    oracle = TruncatedSVD(5, algorithm="arpack", random_state=0).fit(W.numpy())
    expected = oracle.transform(W.numpy()) @ oracle.components_
    np.testing.assert_allclose(rebuilt(*truncated_svd(W, 5)).numpy(), expected, atol=1e-8)


def test_no_random_competitor_of_the_same_rank_does_better(matrix, randn):
    W = matrix(20, 14, dtype=torch.float64)
    best = best_error(W, 4)
    for _ in range(200):
        A = randn(20, 4, dtype=torch.float64)
        competitor = A @ torch.linalg.lstsq(A, W).solution  # la meilleure matrice dont l'image est celle de A
        assert float(torch.linalg.norm(W - competitor)) >= best - 1e-12


def test_no_neighbour_does_better(matrix, randn):
    W = matrix(20, 14, dtype=torch.float64)
    U, V = balanced_factors(W, 4)
    best = float(torch.linalg.norm(W - U @ V.T))
    for step in (1e-1, 1e-2, 1e-3):
        for _ in range(50):
            E, F = randn(20, 4, dtype=torch.float64), randn(14, 4, dtype=torch.float64)
            assert float(torch.linalg.norm(W - (U + step * E) @ (V + step * F).T)) >= best


def test_gradient_descent_never_does_better(randn):
    W = randn(16, 12, dtype=torch.float64)
    best = best_error(W, 3)
    A = randn(16, 3, dtype=torch.float64).requires_grad_()
    B = randn(12, 3, dtype=torch.float64).requires_grad_()
    optimizer = torch.optim.LBFGS([A, B], max_iter=300, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = torch.linalg.norm(W - A @ B.T) ** 2
        value.backward()
        return value

    optimizer.step(loss)
    reached = float(torch.linalg.norm(W - A.detach() @ B.detach().T))
    assert reached >= best * (1 - 1e-12)
    assert reached < 1.3 * best, "un concurrent qui n'a pas convergé ne prouve rien"


def test_it_also_wins_in_spectral_norm(randn):
    W = randn(15, 11, dtype=torch.float64)
    values = scipy.linalg.svdvals(W.numpy())
    error = np.linalg.norm((W - rebuilt(*truncated_svd(W, 4))).numpy(), 2)
    assert error == pytest.approx(values[4])
    A = randn(15, 4, dtype=torch.float64)
    assert np.linalg.norm((W - A @ torch.linalg.lstsq(A, W).solution).numpy(), 2) >= values[4]


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_balanced_factors_rebuild_the_truncation_and_share_its_norm(m, n, randn):
    W = randn(m, n, dtype=torch.float64)
    r = max(1, min(m, n) // 2)
    U, V = balanced_factors(W, r)
    assert (U.shape, V.shape) == ((m, r), (n, r))
    torch.testing.assert_close(U @ V.T, rebuilt(*truncated_svd(W, r)))
    torch.testing.assert_close(U.T @ U, V.T @ V)  # équilibrés : √S de chaque côté
    assert U.is_contiguous()
    assert V.is_contiguous()


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_shared_singular_values_rebuild_and_balance(m, n, randn):
    r = max(1, min(m, n) // 2)
    svd = truncated_svd(randn(m, n, dtype=torch.float64), r)
    U, V = share_singular_values(*svd)
    torch.testing.assert_close(U @ V.T, rebuilt(*svd))
    torch.testing.assert_close(U.T @ U, svd[1].diag())
    torch.testing.assert_close(V.T @ V, svd[1].diag())
    assert (U.shape, V.shape, U.is_contiguous(), V.is_contiguous()) == ((m, r), (n, r), True, True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtype_is_kept(dtype, matrix):
    W = matrix(14, 10, dtype=dtype)
    assert {t.dtype for t in (*truncated_svd(W, 4), *balanced_factors(W, 4))} == {dtype}
    U, V = balanced_factors(W, 4)
    eps = torch.finfo(dtype).eps
    error = float(torch.linalg.norm(W.double() - U.double() @ V.double().T))
    assert error == pytest.approx(best_error(W, 4), abs=4 * eps * float(torch.linalg.norm(W.double())))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_once_at_the_end(dtype, matrix):
    W = matrix(14, 10, dtype=dtype)
    exact = balanced_factors(W.float(), 4)
    for found, expected in zip(balanced_factors(W, 4), exact, strict=True):
        torch.testing.assert_close(found, expected.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_huge_and_tiny_matrices(scale, matrix):
    W = matrix(15, 10) * scale
    U, V = balanced_factors(W, 4)
    assert torch.isfinite(U).all()
    assert torch.isfinite(V).all()
    error = torch.linalg.norm(W.double() - U.double() @ V.double().T)
    assert float(error) == pytest.approx(best_error(W, 4), rel=1e-3)


def test_zero_matrix():
    U, V = balanced_factors(torch.zeros(6, 4), 2)
    assert torch.equal(U @ V.T, torch.zeros(6, 4))
    assert torch.isfinite(torch.cat([U, V])).all()


def test_full_rank_gives_the_matrix_back(randn):
    for m, n in SHAPES:
        W = randn(m, n)
        U, V = balanced_factors(W, min(m, n))
        torch.testing.assert_close(U @ V.T, W, rtol=1e-4, atol=1e-5)


def test_the_input_and_the_global_generator_are_left_alone(randn):
    W = torch.nn.Parameter(randn(9, 7))
    copy, state = W.detach().clone(), torch.get_rng_state()
    factors = (*truncated_svd(W, 3), *balanced_factors(W, 3))
    assert torch.equal(W, copy)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(t.requires_grad for t in factors)


def test_a_decomposition_that_the_dtype_cannot_hold_is_refused(randn):
    W = torch.full((40, 40), 3e4, dtype=torch.float16) + randn(40, 40).half()  # σ₁ = 1,2e6, et 65504 en float16
    said = r"^{} : sa décomposition va jusqu'à \d\S+, que torch\.float16 ne peut garder"
    linear = torch.nn.Linear(40, 40, dtype=torch.float16)
    linear.weight.data = W
    for refused in (
        lambda: truncated_svd(W, 3),
        lambda: lrq.approximate_svd_large(W, 3),
        lambda: lrq.adaptive_svd(W, 0.5),
        lambda: lrq.activation_aware_svd(W, 3, randn(50, 40)),
        lambda: lrq.TruncatedSVDLinear.from_linear(linear, 3),
    ):
        with pytest.raises(ValueError, match=said.format("W")):
            refused()
    for refused in (lambda: lrq.tt_svd(W.view(4, 10, 40), 99), lambda: lrq.tucker(W.view(4, 10, 40), 9)):
        with pytest.raises(ValueError, match=said.format("T")):
            refused()
    cores = [W[None], W[:, :, None]]
    for refused in (lambda: lrq.tt_orthogonalize(cores, 1), lambda: lrq.tt_round(cores, 3)):
        with pytest.raises(ValueError, match=said.format("cores")):
            refused()
    assert float(truncated_svd(W.float(), 3)[1][0]) == pytest.approx(1.2e6, rel=1e-3)
    assert lrq.CompactSVDLinear.from_linear(linear, 3).reconstruction_error(W) < 1e-3  # √σ₁, lui, tient
    with pytest.raises(ValueError, match="à une autre échelle"):
        truncated_svd(torch.full((9, 9), 1e308, dtype=torch.float64), 1)


@pytest.mark.parametrize("power", [-700, -300, 300, 600])
def test_no_error_depends_on_the_scale(power, randn):
    W, x = randn(6, 8, dtype=torch.float64), randn(5, 8, dtype=torch.float64)
    scale, linear = 2.0**power, torch.nn.Linear(8, 6, bias=False, dtype=torch.float64)

    def errors(factor):  # les carrés de 2^600 débordent de float64, ceux de 2^−700 s'y annulent
        linear.weight.data = W * factor
        layer = lrq.FactorizedLinear.from_linear(linear, 2)
        yield layer.reconstruction_error(linear.weight)
        yield lrq.UniformQuantizer(4).quantization_error(linear.weight)
        yield lrq.compare_factorized_vs_standard(8, 6, 2, 5, linear)["error"]
        cores = lrq.tt_svd((W * factor).view(2, 3, 2, 4), error=0.5)
        yield from lrq.tt_ranks(cores)
        yield from lrq.tt_ranks(lrq.tt_round(cores, error=0.6))
        method = lrq.SVDCompression({"rank": 2})
        method.compress(torch.nn.Sequential(linear), None, [x])
        yield method.report.output_error

    assert list(errors(scale)) == pytest.approx(list(errors(1.0)), rel=1e-9)


@pytest.mark.parametrize("function", [truncated_svd, balanced_factors])
@pytest.mark.parametrize(
    ("rank", "error", "message"),
    [
        (0, ValueError, "reçu 0, attendu un entier ≥ 1"),
        (-1, ValueError, "reçu -1, attendu un entier ≥ 1"),
        (5, ValueError, r"reçu 5, attendu au plus min\(m, n\) = 4 pour une matrice 6×4"),
        (2.5, TypeError, r"reçu 2\.5, attendu un entier"),
        (True, TypeError, "reçu True, attendu un entier"),
        ("4", TypeError, "reçu '4', attendu un entier"),
        (None, TypeError, "reçu None, attendu un entier"),
    ],
)
def test_bad_rank_is_named(function, rank, error, message):
    with pytest.raises(error, match=f"^rank : {message}"):
        function(torch.ones(6, 4), rank)
