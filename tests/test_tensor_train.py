"""TT-SVD : la borne √Σε_k², l'optimalité à √(d − 1) près, et les cœurs contre NumPy et TensorLy."""

import math

import numpy as np
import pytest
import torch

from lrq import tt_contract, tt_svd, unfoldings


def shapes(rng):
    """Un ordre de 2 à 5, des dimensions de 1 à 6."""
    return tuple(int(n) for n in rng.integers(1, 7, int(rng.integers(2, 6))))


def contracted(cores):
    """L'oracle : une somme d'Einstein sur tous les liens à la fois, par NumPy."""
    d = len(cores)
    operands = []
    for k, core in enumerate(cores):
        operands += [np.asarray(core, dtype=np.float64), [d + k, k, d + k + 1]]
    return np.einsum(*operands, [d, *range(d), 2 * d]).squeeze((0, -1))


def from_cores(rng, shape, ranks):
    """Un tenseur de rangs TT donnés."""
    bonds = [1, *ranks, 1]
    cores = [rng.standard_normal((bonds[k], n, bonds[k + 1])) for k, n in enumerate(shape)]
    return torch.tensor(contracted(cores))


def tails(T, rank):
    """ε_k : l'erreur de la SVD tronquée du k-ième dépliement, par NumPy."""
    array, found = T.double().numpy(), []
    for k in range(1, array.ndim):
        S = np.linalg.svd(array.reshape(math.prod(array.shape[:k]), -1), compute_uv=False)
        found.append(float(np.linalg.norm(S[rank:])))
    return found


def bonds(cores):
    return [core.shape[2] for core in cores[:-1]]


def test_unfoldings_put_the_first_indices_in_rows(rng, randn):
    T = randn(2, 3, 4, 5)
    found = unfoldings(T)
    assert [tuple(matrix.shape) for matrix in found] == [(2, 60), (6, 20), (24, 5)]
    i, j, k, ell = 1, 2, 3, 4
    assert found[0][i, (j * 4 + k) * 5 + ell] == T[i, j, k, ell]
    assert found[1][i * 3 + j, k * 5 + ell] == T[i, j, k, ell]
    assert found[2][(i * 3 + j) * 4 + k, ell] == T[i, j, k, ell]
    for given, plain in zip(unfoldings(T.permute(3, 1, 0, 2)), unfoldings(T.permute(3, 1, 0, 2).clone()), strict=True):
        assert torch.equal(given, plain)  # une vue, en désordre dans la mémoire
    assert torch.equal(unfoldings(T[0, 0])[0], T[0, 0])  # une matrice est son seul dépliement


def test_the_error_is_below_the_root_of_the_squares_and_above_the_largest(rng, randn):
    for _ in range(60):
        T, rank = randn(*shapes(rng), dtype=torch.float64), int(rng.integers(1, 8))
        cores = tt_svd(T, rank)
        error = float((T - tt_contract(cores)).norm())
        each = tails(T, rank)
        assert error <= math.hypot(*each) * (1 + 1e-9) + 1e-12
        assert error >= max(each) * (1 - 1e-9) - 1e-12  # aucun train de ces rangs ne ferait mieux
        assert error <= math.sqrt(T.ndim - 1) * max(each) * (1 + 1e-9) + 1e-12


def test_no_train_of_these_ranks_is_below_the_largest_tail(rng, randn):
    for _ in range(20):
        shape, rank = (3, 4, 3, 4), int(rng.integers(1, 4))
        T, other = randn(*shape, dtype=torch.float64), from_cores(rng, shape, [rank] * 3)
        best = other * float((T * other).sum() / other.norm() ** 2)  # le meilleur multiple d'un train quelconque
        assert float((T - best).norm()) >= max(tails(T, rank)) * (1 - 1e-9)


def test_the_shapes_and_the_ranks_of_the_cores(rng, randn):
    for _ in range(30):
        shape, rank = shapes(rng), int(rng.integers(1, 8))
        cores = tt_svd(randn(*shape), rank)
        assert [core.shape[1] for core in cores] == list(shape)
        assert cores[0].shape[0] == cores[-1].shape[2] == 1
        allowed = [min(rank, math.prod(shape[:k]), math.prod(shape[k:])) for k in range(1, len(shape))]
        assert bonds(cores) == allowed
        for core in cores[:-1]:  # orthonormés à gauche : toute l'énergie est dans le dernier
            left = core.flatten(0, 1)
            torch.testing.assert_close(left.T @ left, torch.eye(core.shape[2]), atol=1e-5, rtol=0)


def test_a_tensor_of_these_ranks_is_recovered(rng):
    for _ in range(20):
        shape, ranks = (4, 5, 3, 4), [int(r) for r in rng.integers(1, 4, 3)]
        T = from_cores(rng, shape, ranks)
        torch.testing.assert_close(tt_contract(tt_svd(T, max(ranks))), T, rtol=0, atol=1e-10 * float(T.norm()))


def test_whole_ranks_lose_nothing(randn):
    T = randn(3, 4, 2, 5, dtype=torch.float64)
    assert float((T - tt_contract(tt_svd(T, 12))).norm()) < 1e-12
    assert float((T - tt_contract(tt_svd(T, 1))).norm()) > 0.1 * float(T.norm())  # le rang 1, lui, perd


def test_of_a_matrix_it_is_the_truncated_svd(randn):
    W = randn(9, 7, dtype=torch.float64)
    U, S, Vh = np.linalg.svd(W.numpy(), full_matrices=False)
    np.testing.assert_allclose(tt_contract(tt_svd(W, 3)).numpy(), (U[:, :3] * S[:3]) @ Vh[:3], atol=1e-12)


def test_a_chain_equals_an_einstein_sum(rng, randn):
    for _ in range(20):
        shape = shapes(rng)
        ranks = [1, *(int(r) for r in rng.integers(1, 5, len(shape) - 1)), 1]
        cores = [randn(ranks[k], n, ranks[k + 1], dtype=torch.float64) for k, n in enumerate(shape)]
        found = tt_contract(cores)
        assert found.shape == shape
        np.testing.assert_allclose(found.numpy(), contracted(cores), atol=1e-10)
    core = randn(1, 6, 1)
    assert torch.equal(tt_contract([core]), core.flatten())  # un seul cœur : un vecteur


def sequential(array, rank):
    """L'oracle de TT-SVD, par NumPy."""
    cores, left, rest = [], 1, array
    for n in array.shape[:-1]:
        U, S, Vh = np.linalg.svd(rest.reshape(left * n, -1), full_matrices=False)
        kept = min(rank, len(S))
        cores.append(U[:, :kept].reshape(left, n, kept))
        rest, left = S[:kept, None] * Vh[:kept], kept
    return [*cores, rest.reshape(left, -1, 1)]


def test_the_tensor_equals_that_of_numpy(rng, randn):
    for _ in range(20):
        T, rank = randn(*shapes(rng), dtype=torch.float64), int(rng.integers(1, 6))
        expected = contracted(sequential(T.numpy(), rank))
        np.testing.assert_allclose(tt_contract(tt_svd(T, rank)).numpy(), expected, atol=1e-9)


def test_the_tensor_equals_that_of_tensorly(rng, randn):
    decomposition = pytest.importorskip("tensorly.decomposition")
    for _ in range(10):
        T, rank = randn(4, 5, 3, 4, dtype=torch.float64), int(rng.integers(1, 6))
        cores = tt_svd(T, rank)
        theirs = decomposition.tensor_train(T.numpy(), rank=[1, *bonds(cores), 1])
        np.testing.assert_allclose(tt_contract(cores).numpy(), contracted(list(theirs)), atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_is_kept_and_the_computation_is_not_coarser(dtype, rng):
    T = from_cores(rng, (3, 4, 5), [2, 2]).to(dtype)
    cores = tt_svd(T, 2)
    assert {core.dtype for core in cores} == {dtype}
    exact = torch.tensor(contracted([core.double() for core in cores]))
    assert float((exact - T.double()).norm() / T.double().norm()) < 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_zero_tensor_remains_zero(dtype):
    cores = tt_svd(torch.zeros(3, 2, 4, dtype=dtype), 2)
    assert not tt_contract(cores).any()  # NaN serait vrai
    assert all(core.isfinite().all() for core in cores)


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_the_error_follows_the_scale(scale, randn):
    T = randn(4, 3, 5)
    expected = tt_contract(tt_svd(T, 2))
    torch.testing.assert_close(tt_contract(tt_svd(T * scale, 2)) / scale, expected, rtol=1e-3, atol=1e-4)


def test_the_tensor_is_neither_changed_nor_followed(randn):
    T = randn(3, 4, 5).requires_grad_()
    kept, before = T.detach().clone(), torch.get_rng_state()
    cores = tt_svd(T, 2)
    assert torch.equal(T.detach(), kept)
    assert torch.equal(before, torch.get_rng_state())
    assert not any(core.requires_grad for core in cores)


@pytest.mark.parametrize("function", [unfoldings, lambda T: tt_svd(T, 2)])
def test_bad_tensors_are_named(function, randn):
    for bad in (randn(4), torch.tensor(1.0), randn(2, 0, 3)):
        with pytest.raises(ValueError, match=r"^T : reçu la forme .*, attendu \(n₁, …, n_d\), d ≥ 2"):
            function(bad)
    for bad in (np.ones((2, 2)), [[1.0]], torch.ones(2, 2, dtype=torch.long), torch.ones(2, 2, dtype=torch.complex64)):
        with pytest.raises(TypeError, match=r"^T : reçu"):
            function(bad)
    for bad in (randn(2, 2) / 0, randn(2, 2) * math.nan):
        with pytest.raises(ValueError, match=r"^T : NaN ou infini"):
            function(bad)


def test_bad_ranks_are_named(randn):
    with pytest.raises(ValueError, match=r"^rank : reçu 0, attendu un entier ≥ 1"):
        tt_svd(randn(2, 2), 0)
    for bad in (1.5, True):
        with pytest.raises(TypeError, match=r"^rank : reçu"):
            tt_svd(randn(2, 2), bad)
    with pytest.raises(ValueError, match=r"^rank : reçu \[1, 2\], attendu un entier, ou 1, un par lien"):
        tt_svd(randn(2, 2), [1, 2])
    for given in ({}, {"rank": 1, "error": 0.5}):
        with pytest.raises(ValueError, match=r"^rank, error : reçu .*, attendu l'un ou l'autre"):
            tt_svd(randn(2, 2), **given)


def test_bad_chains_are_named(randn):
    for bad in ([], (), None, randn(1, 2, 1)):
        with pytest.raises(ValueError, match=r"^cores : reçu .*, attendu une liste d'au moins un cœur"):
            tt_contract(bad)
    with pytest.raises(TypeError, match=r"^cores\[1\] : reçu str, attendu un tenseur"):
        tt_contract([randn(1, 2, 1), "cœur"])
    with pytest.raises(ValueError, match=r"^cores\[1\] : reçu la forme \(3, 2, 1\), attendu \(2, n, r\)"):
        tt_contract([randn(1, 2, 2), randn(3, 2, 1)])
    with pytest.raises(ValueError, match=r"^cores\[0\] : reçu la forme \(2, 2\), attendu \(1, n, r\)"):
        tt_contract([randn(2, 2)])
    with pytest.raises(ValueError, match=r"^cores\[0\] : reçu la forme \(2, 2, 1\), attendu \(1, n, r\)"):
        tt_contract([randn(2, 2, 1)])
    with pytest.raises(ValueError, match=r"^cores : le dernier rang est 2, attendu 1"):
        tt_contract([randn(1, 2, 2)])
