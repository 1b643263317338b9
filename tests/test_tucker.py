"""Tucker : la HOSVD et HOOI de TensorLy, leurs bornes et leurs rangs ; NumPy refait les comptes."""

import math
import subprocess
import sys

import numpy as np
import pytest
import tensorly
import torch

from lrq import tucker, tucker_contract

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
ITERATIONS = [0, 1, 100]


def shapes(rng):
    """Un ordre de 2 à 4, des dimensions de 1 à 6."""
    return tuple(int(n) for n in rng.integers(1, 7, int(rng.integers(2, 5))))


def unfolding(array, k):
    """Le dépliement de Tucker : l'indice k en lignes, tous les autres en colonnes."""
    return np.moveaxis(array, k, 0).reshape(array.shape[k], -1)


def contracted(core, factors):
    """L'oracle : une somme d'Einstein sur tous les indices à la fois, par NumPy."""
    d = core.ndim
    operands = [core.double().numpy(), [*range(d)]]
    for k, U in enumerate(factors):
        operands += [U.double().numpy(), [d + k, k]]
    return np.einsum(*operands, [*range(d, 2 * d)])


def tails(T, ranks):
    """Pour chaque indice, l'erreur de la SVD tronquée de son dépliement, par NumPy."""
    array = T.double().numpy()
    spectra = [np.linalg.svd(unfolding(array, k), compute_uv=False) for k in range(array.ndim)]
    return [float(np.linalg.norm(S[r:])) for S, r in zip(spectra, ranks, strict=True)]


def hosvd(T, ranks):
    """L'oracle de la HOSVD tronquée, par NumPy."""
    array = T.double().numpy()
    for k, r in enumerate(ranks):
        U = np.linalg.svd(unfolding(T.double().numpy(), k), full_matrices=False)[0][:, :r]
        array = np.moveaxis(np.tensordot(U @ U.T, array, (1, k)), 0, k)
    return array


def gap(T, core, factors):
    return float(np.linalg.norm(T.double().numpy() - contracted(core, factors)))


# --- la décomposition -------------------------------------------------------------------------------------------------


def test_without_iterations_it_is_the_truncated_hosvd(rng, randn):
    for _ in range(20):
        T, rank = randn(*shapes(rng), dtype=torch.float64), int(rng.integers(1, 5))
        core, factors = tucker(T, rank, iterations=0)
        np.testing.assert_allclose(contracted(core, factors), hosvd(T, core.shape), atol=1e-9)


def test_iterations_never_add_to_the_error(rng, randn):
    better = 0
    for _ in range(20):
        T, rank = randn(*shapes(rng), dtype=torch.float64), int(rng.integers(1, 5))
        errors = [gap(T, *tucker(T, rank, iterations)) for iterations in ITERATIONS]
        assert errors[1] <= errors[0] + 1e-10
        assert errors[2] <= errors[1] + 1e-10
        better += errors[2] < errors[0] - 1e-4
    assert better, "HOOI n'a jamais rien gagné : ce test ne prouve rien"


@pytest.mark.parametrize("iterations", ITERATIONS)
def test_the_error_is_between_the_largest_tail_and_the_root_of_the_squares(iterations, rng, randn):
    for _ in range(20):
        T, rank = randn(*shapes(rng), dtype=torch.float64), int(rng.integers(1, 5))
        core, factors = tucker(T, rank, iterations)
        error, each = gap(T, core, factors), tails(T, core.shape)
        assert max(each) * (1 - 1e-9) - 1e-10 <= error <= math.hypot(*each) * (1 + 1e-9) + 1e-10


@pytest.mark.parametrize("iterations", ITERATIONS)
def test_factors_are_orthonormal_and_the_core_carries_the_norm(iterations, rng, randn):
    for _ in range(10):
        T, rank = randn(*shapes(rng), dtype=torch.float64), int(rng.integers(1, 5))
        core, factors = tucker(T, rank, iterations)
        for U in factors:
            torch.testing.assert_close(U.T @ U, torch.eye(U.shape[1], dtype=torch.float64))
        # Pythagore : ‖T‖² = ‖C‖² + ‖T − T̂‖²
        assert float(core.norm()) ** 2 + gap(T, core, factors) ** 2 == pytest.approx(float(T.norm()) ** 2)


def test_ranks_are_those_that_the_dimensions_allow(rng, randn):
    for _ in range(30):
        T = randn(*shapes(rng))
        asked = [int(r) for r in rng.integers(1, 9, T.ndim)]
        core, factors = tucker(T, asked, iterations=2)
        assert [U.shape for U in factors] == [(n, r) for n, r in zip(T.shape, core.shape, strict=True)]
        for k, r in enumerate(core.shape):
            others = math.prod(core.shape) // r
            assert r <= min(asked[k], T.shape[k], others)
    assert tucker(randn(4, 5, 6), [4, 5, 1])[0].shape == (4, 4, 1)  # un noyau 4×5×1 n'a que 4 directions
    assert tucker(randn(4, 5, 6), 2)[0].shape == (2, 2, 2)


def test_a_tensor_of_these_ranks_is_recovered(rng, randn):
    for _ in range(10):
        shape, ranks = (5, 6, 4), [int(r) for r in rng.integers(2, 4, 3)]
        T = tucker_contract(
            randn(*ranks, dtype=torch.float64),
            [randn(n, r, dtype=torch.float64) for n, r in zip(shape, ranks, strict=True)],
        )
        core, factors = tucker(T, ranks)
        assert gap(T, core, factors) < 1e-9 * float(T.norm())


def test_of_a_matrix_it_is_the_truncated_svd(randn):
    W = randn(9, 7, dtype=torch.float64)
    U, S, Vh = np.linalg.svd(W.numpy(), full_matrices=False)
    np.testing.assert_allclose(tucker_contract(*tucker(W, 3)).numpy(), (U[:, :3] * S[:3]) @ Vh[:3], atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_dtype_is_kept_and_the_computation_is_not_coarser(dtype, randn):
    T = randn(5, 4, 6).to(dtype)
    core, factors = tucker(T, 3)
    assert {t.dtype for t in (core, *factors)} == {dtype}
    assert all(t.is_contiguous() for t in (core, *factors))
    exact = gap(T, *tucker(T.double(), 3))
    assert gap(T, core, factors) <= exact + 8 * torch.finfo(dtype).eps * float(T.double().norm())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("iterations", ITERATIONS)
@pytest.mark.filterwarnings("error")
def test_a_null_tensor_stays_null(iterations, dtype):
    core, factors = tucker(torch.zeros(3, 2, 4, dtype=dtype), 2, iterations)
    assert not tucker_contract(core, factors).any()
    assert all(t.isfinite().all() for t in (core, *factors))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("power", [-100, -40, 40, 100])
@pytest.mark.filterwarnings("error")
def test_neither_tiny_nor_huge_tensors_overflow(power, dtype, randn):
    T, ranks = randn(4, 3, 5, dtype=dtype), (2, 2, 3)
    core, factors = tucker(T, ranks)
    scaled, others = tucker(T * 2.0**power, ranks)  # les carrés de 2^±100 sortent de float32
    assert torch.equal(scaled, core * 2.0**power)
    assert all(torch.equal(*pair) for pair in zip(factors, others, strict=True))


def test_nothing_is_drawn_nor_changed(randn):
    T = randn(4, 5, 3).requires_grad_()
    kept, before, state = T.detach().clone(), torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = tucker(T, 2), tucker(T, 2)
    assert torch.equal(T.detach(), kept)
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(first[0], second[0])
    assert not any(t.requires_grad for t in (first[0], *first[1]))


# --- TensorLy ---------------------------------------------------------------------------------------------------------


def test_the_backend_of_tensorly_is_neither_needed_nor_changed(randn):
    """`import tltorch` met TensorLy en mode PyTorch pour tout le processus."""
    T = randn(4, 5, 3, dtype=torch.float64)
    expected = tucker(T, 2)
    before = tensorly.get_backend()
    try:
        for backend in ("pytorch", "numpy"):
            tensorly.set_backend(backend)
            core, factors = tucker(T, 2)
            assert tensorly.get_backend() == backend
            for found, kept in zip((core, *factors), (expected[0], *expected[1]), strict=True):
                assert torch.equal(found, kept)
    finally:
        tensorly.set_backend(before)


def test_tucker_works_after_tltorch_is_imported():
    code = """
import tltorch, tensorly, torch
from lrq import tucker, tucker_contract
T = torch.arange(24.0).reshape(2, 3, 4)
assert tensorly.get_backend() == "pytorch"
core, factors = tucker(T, 4)
torch.testing.assert_close(tucker_contract(core, factors), T)
assert tensorly.get_backend() == "pytorch"
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)


def test_without_tensorly_it_says_what_to_install(randn, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorly", None)
    with pytest.raises(ImportError, match=r"^tucker demande TensorLy : pip install tensorly"):
        tucker(randn(2, 2), 1)


# --- le tenseur -------------------------------------------------------------------------------------------------------


def test_the_tensor_equals_an_einstein_sum(rng, randn):
    for _ in range(20):
        shape = shapes(rng)
        ranks = [int(r) for r in rng.integers(1, 5, len(shape))]
        core = randn(*ranks, dtype=torch.float64)
        factors = [randn(n, r, dtype=torch.float64) for n, r in zip(shape, ranks, strict=True)]
        found = tucker_contract(core, factors)
        assert found.shape == shape
        np.testing.assert_allclose(found.numpy(), contracted(core, factors), atol=1e-10)


def test_the_tensor_is_differentiable(randn):
    core = randn(2, 3, 2, dtype=torch.float64).requires_grad_()
    factors = [randn(4, r, dtype=torch.float64).requires_grad_() for r in (2, 3, 2)]
    assert torch.autograd.gradcheck(lambda core, *factors: tucker_contract(core, factors), (core, *factors))


# --- mauvaises entrées ------------------------------------------------------------------------------------------------


def test_bad_tensors_are_named(randn):
    for bad in (randn(4), torch.tensor(1.0), randn(2, 0, 3)):
        with pytest.raises(ValueError, match=r"^T : reçu la forme .*, attendu \(n₁, …, n_d\), d ≥ 2"):
            tucker(bad, 1)
    for bad in (np.ones((2, 2)), torch.ones(2, 2, dtype=torch.long), torch.ones(2, 2, dtype=torch.complex64)):
        with pytest.raises(TypeError, match=r"^T : reçu"):
            tucker(bad, 1)
    with pytest.raises(ValueError, match=r"^T : NaN ou infini"):
        tucker(randn(2, 2) * math.nan, 1)


@pytest.mark.parametrize(
    ("rank", "error", "message"),
    [
        (0, ValueError, "rank : reçu 0, attendu un entier ≥ 1"),
        (1.5, TypeError, r"rank : reçu 1\.5, attendu un entier ≥ 1"),
        ([1, 0, 2], ValueError, r"rank\[1\] : reçu 0, attendu un entier ≥ 1"),
        ([1, 2], ValueError, r"rank : reçu \[1, 2\], attendu un entier, ou 3, un par indice"),
    ],
)
def test_bad_ranks_are_named(rank, error, message, randn):
    with pytest.raises(error, match=f"^{message}"):
        tucker(randn(2, 3, 2), rank)


def test_bad_iterations_are_named(randn):
    with pytest.raises(ValueError, match=r"^iterations : reçu -1, attendu un entier ≥ 0"):
        tucker(randn(2, 2), 1, -1)
    with pytest.raises(TypeError, match=r"^iterations : reçu 2\.5, attendu un entier ≥ 0"):
        tucker(randn(2, 2), 1, 2.5)


CORE, FACTORS = torch.ones(2, 3), [torch.ones(4, 2), torch.ones(5, 3)]


@pytest.mark.parametrize(
    ("core", "factors", "error", "message"),
    [
        (
            CORE,
            FACTORS[:1],
            ValueError,
            "factors : reçu 1 facteur\\(s\\), attendu une liste de 2, un par indice du noyau",
        ),
        (CORE, torch.ones(2, 4, 2), ValueError, "factors : reçu Tensor, attendu une liste de 2"),
        (CORE, None, ValueError, "factors : reçu NoneType, attendu une liste de 2"),
        (CORE, FACTORS[::-1], ValueError, r"factors\[0\] : reçu la forme \(5, 3\), attendu \(n, 2\)"),
        (CORE, [FACTORS[0], torch.ones(3)], ValueError, r"factors\[1\] : reçu la forme \(3,\), attendu \(n, 3\)"),
        (CORE, [FACTORS[0], "U"], TypeError, r"factors\[1\] : reçu str, attendu un tenseur"),
        (CORE, [FACTORS[0], FACTORS[1].double()], TypeError, r"factors\[1\] : reçu des éléments torch\.float64"),
        (CORE.long(), FACTORS, TypeError, r"core : reçu des éléments torch\.int64, attendu des flottants"),
        (CORE * math.nan, FACTORS, ValueError, r"core : reçu un tenseur \(2, 3\) vide ou non fini"),
        (CORE, [FACTORS[0] * math.inf, FACTORS[1]], ValueError, r"factors\[0\] : reçu un tenseur \(4, 2\) vide ou non"),
        (torch.tensor(1.0), [], ValueError, r"core : reçu un scalaire, attendu un noyau \(r₁, …, r_d\)"),
        ([[1.0]], FACTORS, TypeError, "core : reçu list, attendu un tenseur"),
    ],
)
def test_bad_decompositions_are_named(core, factors, error, message):
    with pytest.raises(error, match=f"^{message}"):
        tucker_contract(core, factors)
