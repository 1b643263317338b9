"""Les trains de tenseurs : erreur garantie, rangs les plus petits, formes canoniques ; NumPy et TensorLy en oracles."""

import math

import numpy as np
import pytest
import tensorly
import tensorly.decomposition
import torch

from lrq import (
    tt_contract,
    tt_matrix_contract,
    tt_matrix_svd,
    tt_orthogonalize,
    tt_ranks,
    tt_round,
    tt_svd,
    unfoldings,
)
from lrq.tensor_train import clamped_ranks, merge_cores

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


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


def fading(rng, shape, rank, dtype):
    """Un tenseur dont chaque dépliement a des valeurs singulières bien séparées, qui décroissent."""
    d, fade = len(shape), 0.3 ** np.arange(rank)
    cores = [rng.standard_normal((rank if k else 1, n, rank if k < d - 1 else 1)) for k, n in enumerate(shape)]
    T = contracted([core * fade if k < d - 1 else core for k, core in enumerate(cores)])
    return torch.tensor(T / np.linalg.norm(T), dtype=dtype)


@pytest.mark.parametrize(("dtype", "gap"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=str)
def test_the_tensor_equals_that_of_tensorly(dtype, gap, rng):
    for _ in range(10):
        T, rank = fading(rng, (4, 5, 3, 4), 6, dtype), int(rng.integers(1, 4))
        cores = tt_svd(T, rank)
        with tensorly.backend_context("numpy", local_threadsafe=True):
            theirs = tensorly.decomposition.tensor_train(T.numpy(), rank=[1, *bonds(cores), 1])
            rebuilt = tensorly.tt_to_tensor(list(theirs))
        assert rebuilt.dtype == T.numpy().dtype
        assert float((tt_contract(cores) - torch.tensor(rebuilt)).norm()) <= gap


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_dtype_is_kept_and_the_computation_is_not_coarser(dtype, rng):
    T = from_cores(rng, (3, 4, 5), [2, 2]).to(dtype)
    cores = tt_svd(T, 2)
    assert {core.dtype for core in cores} == {dtype}
    exact = torch.tensor(contracted([core.double() for core in cores]))
    assert float((exact - T.double()).norm() / T.double().norm()) < 32 * torch.finfo(dtype).eps


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
    with pytest.raises(ValueError, match=r"^rank\[1\] : reçu 0, attendu un entier ≥ 1"):
        tt_svd(randn(2, 2, 2), [1, 0])
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


# --- une erreur garantie ----------------------------------------------------------------------------------------------


def running_tails(T, cores):
    """Pour chaque lien, ce que sa SVD abandonne au rang gardé, et à un rang de moins ; par NumPy, en float64."""
    rest, left, found = T.double().numpy(), 1, []
    for core in cores[:-1]:
        _, S, Vh = np.linalg.svd(rest.reshape(left * core.shape[1], -1), full_matrices=False)
        left = core.shape[2]
        found.append((np.linalg.norm(S[left:]), np.linalg.norm(S[left - 1 :])))
        rest = S[:left, None] * Vh[:left]
    return found


def test_the_error_asked_for_is_never_exceeded(rng, randn):
    for _ in range(200):
        shape = tuple(int(n) for n in rng.integers(1, 6, int(rng.integers(2, 7))))
        T, error = randn(*shape, dtype=torch.float64), float(10 ** rng.uniform(-3, 0))
        cores = tt_svd(T, error=error)
        assert float((T - tt_contract(cores)).norm()) <= error * float(T.norm()) * (1 + 1e-12)


def test_ranks_are_the_smallest_that_keep_to_the_share_of_each_bond(rng, randn):
    larger = 0
    for _ in range(60):
        T, error = randn(*shapes(rng), dtype=torch.float64), float(rng.uniform(0.05, 1))
        cores = tt_svd(T, error=error)
        share = error * float(T.norm()) / math.sqrt(T.ndim - 1)
        for core, (kept, one_less) in zip(cores, running_tails(T, cores), strict=False):
            assert kept <= share * (1 + 1e-9)
            assert core.shape[2] == 1 or one_less > share * (1 - 1e-9)
            larger += core.shape[2] > 1
    assert larger > 20, "aucun rang à diminuer : ce test ne prouve rien"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_guarantee_holds_to_the_precision_of_the_dtype(dtype, rng, randn):
    for _ in range(20):
        T, error = randn(4, 3, 5, 2).to(dtype), float(rng.uniform(0.05, 0.9))
        exact = torch.tensor(contracted([core.double() for core in tt_svd(T, error=error)]))
        assert float((T.double() - exact).norm() / T.double().norm()) <= error + 4 * torch.finfo(dtype).eps


def test_an_exact_train_is_found_by_its_error(rng):
    for _ in range(10):
        ranks = [int(r) for r in rng.integers(1, 4, 3)]
        assert tt_ranks(tt_svd(from_cores(rng, (4, 5, 4, 3), ranks), error=1e-8)) == ranks


def test_each_bond_has_its_rank(randn):
    T = randn(4, 5, 6, 3)
    cores = tt_svd(T, [2, 7, 3])
    assert tt_ranks(cores) == [2, 7, 3]
    assert tt_ranks(tt_svd(T, [2, 100, 100])) == [2, 10, 3]  # 2 · 5 lignes au deuxième lien
    for given, one in zip(tt_svd(T, (4, 4, 3)), tt_svd(T, 4), strict=True):
        assert torch.equal(given, one)


@pytest.mark.parametrize("function", [tt_svd, lambda T, error: tt_round(tt_svd(T, 2), error=error)])
@pytest.mark.parametrize(
    ("error", "kind"),
    [(0.0, ValueError), (1.5, ValueError), (math.nan, ValueError), ("1", TypeError), (True, TypeError)],
)
def test_bad_errors_are_named(function, error, kind, randn):
    with pytest.raises(kind, match=rf"^error : reçu {error!r}, attendu un nombre dans \]0, 1\]"):
        function(randn(2, 3, 2), error=error)


# --- une chaîne : ranger, réduire -------------------------------------------------------------------------------------


def dims_of(rng, kind):
    """Les dimensions d'un tenseur, ou celles d'une matrice, par paires."""
    d = int(rng.integers(1, 6))
    return [int(n) if kind == 3 else (int(n), int(m)) for n, m in rng.integers(1, 5, (d, 2))]


@pytest.mark.parametrize("order", [3, 4])
def test_a_canonical_form_is_orthonormal_but_for_its_centre(order, rng, chain):
    for _ in range(20):
        dims = dims_of(rng, order)
        cores = chain(dims, int(rng.integers(1, 6)), torch.float64)
        whole = tt_contract(cores)
        for centre in range(len(dims)):
            found = tt_orthogonalize(cores, centre)
            torch.testing.assert_close(tt_contract(found), whole, atol=1e-10 * float(whole.norm()), rtol=1e-9)
            assert [core.shape[1:-1] for core in found] == [core.shape[1:-1] for core in cores]
            assert all(core.is_contiguous() for core in found)
            assert float(found[centre].norm()) == pytest.approx(float(whole.norm()), rel=1e-9)
            for core in found[:centre]:
                left = core.flatten(0, -2)
                torch.testing.assert_close(left.T @ left, torch.eye(core.shape[-1], dtype=torch.float64))
            for core in found[centre + 1 :]:
                right = core.flatten(1)
                torch.testing.assert_close(right @ right.T, torch.eye(len(core), dtype=torch.float64))


def test_rounding_to_the_same_ranks_is_as_good_as_tt_svd(rng):
    for _ in range(20):
        shape, ranks = (4, 5, 4, 3), [4, 6, 3]
        T = from_cores(rng, shape, ranks)
        cores, kept = tt_svd(T, ranks), [int(r) for r in rng.integers(1, 3, 3)]
        rounded, direct = (float((T - tt_contract(chain)).norm()) for chain in (tt_round(cores, kept), tt_svd(T, kept)))
        assert direct > 1e-3 * float(T.norm())
        assert rounded <= 1.0001 * direct


@pytest.mark.parametrize("order", [3, 4])
def test_rounding_keeps_the_error_asked_for_and_the_smallest_ranks(order, rng, chain):
    for _ in range(30):
        dims = dims_of(rng, order)
        cores = chain(dims, 4, torch.float64)
        whole, error = tt_contract(cores), float(rng.uniform(0.01, 0.9))
        found = tt_round(cores, error=error)
        assert float((tt_contract(found) - whole).norm()) <= error * float(whole.norm()) * (1 + 1e-12)
        if len(dims) > 1:  # sa garantie, et ses rangs, sont ceux de TT-SVD
            direct = tt_svd(whole.reshape([core.shape[1:-1].numel() for core in cores]), error=error)
            assert tt_ranks(found) == tt_ranks(direct)
        for core in found[:-1]:
            left = core.flatten(0, -2)
            torch.testing.assert_close(left.T @ left, torch.eye(core.shape[-1], dtype=torch.float64))


def test_a_sum_of_a_train_with_itself_is_rounded_back(rng, chain):
    """La somme de deux trains a des cœurs diagonaux par blocs : des rangs doubles, dont la moitié ne sert à rien."""
    G = chain([4, 5, 4, 3], [2, 3, 2], torch.float64)
    double = [torch.cat([G[0], G[0]], 2)]
    for core in G[1:-1]:
        zero = torch.zeros_like(core)
        double.append(torch.cat([torch.cat([core, zero], 2), torch.cat([zero, core], 2)]))
    double.append(torch.cat([G[-1], G[-1]]))
    assert tt_ranks(double) == [4, 6, 4]
    found = tt_round(double, error=1e-10)
    assert tt_ranks(found) == [2, 3, 2]
    torch.testing.assert_close(tt_contract(found), 2 * tt_contract(G))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "function", [lambda c: tt_orthogonalize(c, 1), lambda c: tt_round(c, 3), lambda c: tt_round(c, error=0.5)]
)
def test_chains_keep_their_dtype_and_are_new(function, dtype, chain):
    cores = [core.requires_grad_() for core in chain([(2, 3), (3, 2), (2, 2)], 3, dtype)]
    before = [core.detach().clone() for core in cores]
    found = function(cores)
    assert {core.dtype for core in found} == {dtype}
    assert not any(core.requires_grad for core in found)
    assert all(core.is_contiguous() for core in found)
    owned = {core.untyped_storage().data_ptr() for core in cores}
    assert owned.isdisjoint(core.untyped_storage().data_ptr() for core in found)
    assert all(torch.equal(core, kept) for core, kept in zip(cores, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_chains_are_rounded_in_float32(dtype, chain):
    cores = chain([4, 5, 4], 4, dtype)
    exact = tt_round([core.float() for core in cores], 3)
    for found, core in zip(tt_round(cores, 3), exact, strict=True):
        torch.testing.assert_close(found, core.to(dtype), rtol=0, atol=0)


def test_a_null_chain_stays_null(chain):
    cores = [torch.zeros_like(core) for core in chain([3, 4, 2], 2)]
    for found in (tt_orthogonalize(cores, 1), tt_round(cores, 1), tt_round(cores, error=0.1)):
        assert not tt_contract(found).any()
        assert all(core.isfinite().all() for core in found)
    assert tt_ranks(tt_round(cores, error=0.1)) == [1, 1]


def test_a_single_core_has_nothing_to_round(chain):
    cores = chain([5], 1)
    assert torch.equal(tt_round(cores, 3)[0], cores[0])
    assert torch.equal(tt_round(cores, error=0.5)[0], cores[0])


@pytest.mark.parametrize("centre", [-1, 3])
def test_a_bad_centre_is_named(centre, chain):
    with pytest.raises(ValueError, match=rf"^centre : reçu {centre}, attendu un entier entre 0 et 2"):
        tt_orthogonalize(chain([2, 2, 2], 2), centre)


# --- une matrice ------------------------------------------------------------------------------------------------------

SPLITS = [
    ([4, 5], [3, 2]),
    ([2, 3, 2], [3, 1, 4]),
    ([1, 6], [5, 1]),
    ([2, 2, 2, 3], [3, 2, 1, 2]),
    ([4, 1, 3], [1, 5, 2]),
]
splits = pytest.mark.parametrize(("inputs", "outputs"), SPLITS)


def entry(cores, i, o):
    """W[o₁…o_d, i₁…i_d] = G₁[i₁, o₁] ⋯ G_d[i_d, o_d]."""
    total = np.eye(1)
    for core, each_in, each_out in zip(cores, i, o, strict=True):
        total = total @ core[:, each_in, each_out].double().numpy()
    return total.item()


@splits
def test_an_entry_of_the_matrix_is_a_product_of_slices(inputs, outputs, rng, chain):
    cores = chain(list(zip(inputs, outputs, strict=True)), 3, torch.float64)
    W = tt_matrix_contract(cores)
    assert W.shape == (math.prod(outputs), math.prod(inputs))
    assert W.is_contiguous()
    for _ in range(20):
        i, o = (tuple(int(rng.integers(n)) for n in dims) for dims in (inputs, outputs))
        place = np.ravel_multi_index(o, outputs), np.ravel_multi_index(i, inputs)
        assert float(W[place]) == pytest.approx(entry(cores, i, o), rel=1e-9, abs=1e-9)


@splits
def test_whole_ranks_give_the_matrix_back(inputs, outputs, randn):
    W = randn(math.prod(outputs), math.prod(inputs), dtype=torch.float64)
    cores = tt_matrix_svd(W, inputs, outputs, 1000)
    assert [tuple(core.shape[1:3]) for core in cores] == list(zip(inputs, outputs, strict=True))
    torch.testing.assert_close(tt_matrix_contract(cores), W)
    assert tt_ranks(cores) == clamped_ranks(inputs, outputs, 1000)


@splits
def test_the_error_of_a_matrix_is_guaranteed_too(inputs, outputs, rng, randn):
    for _ in range(10):
        W, error = randn(math.prod(outputs), math.prod(inputs), dtype=torch.float64), float(rng.uniform(0.01, 1))
        found = tt_matrix_contract(tt_matrix_svd(W, inputs, outputs, error=error))
        assert float((W - found).norm()) <= error * float(W.norm()) * (1 + 1e-12)


def test_with_rows_first_it_is_the_truncated_svd(randn):
    W = randn(7, 9, dtype=torch.float64)
    U, S, Vh = np.linalg.svd(W.numpy(), full_matrices=False)
    found = tt_matrix_contract(tt_matrix_svd(W, [1, 9], [7, 1], 3))
    np.testing.assert_allclose(found.numpy(), (U[:, :3] * S[:3]) @ Vh[:3], atol=1e-12)


@splits
@pytest.mark.parametrize(("dtype", "gap"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=str)
def test_the_matrix_is_that_of_tensorly(dtype, gap, inputs, outputs, rng, randn):
    """Leur cœur est (r, ligne, colonne, s) ; le nôtre (r, in, out, s), dont les lignes de W sont les sorties."""
    T = fading(rng, [i * o for i, o in zip(inputs, outputs, strict=True)], 4, dtype)
    pairs = [n for pair in zip(inputs, outputs, strict=True) for n in pair]
    d = len(inputs)
    W = T.reshape(pairs).permute([*range(1, 2 * d, 2), *range(0, 2 * d, 2)]).reshape(math.prod(outputs), -1)
    cores = tt_matrix_svd(W, inputs, outputs, 2)
    with tensorly.backend_context("numpy", local_threadsafe=True):
        rebuilt = tensorly.tt_matrix.tt_matrix_to_matrix([core.transpose(1, 2).numpy() for core in cores])
        whole = W.reshape(*outputs, *inputs).numpy()
        theirs = tensorly.decomposition.tensor_train_matrix(whole, rank=[1, *tt_ranks(cores), 1]).to_matrix()
    assert float((torch.tensor(rebuilt) - tt_matrix_contract(cores)).norm()) <= gap
    assert float((torch.tensor(theirs) - tt_matrix_contract(cores)).norm()) <= gap


def test_merged_cores_are_one_core_of_the_same_matrix(chain):
    cores = chain([(2, 3), (3, 2), (2, 2), (1, 4), (3, 1)], [2, 3, 4, 2], torch.float64)
    merged = [merge_cores(cores[:2]), merge_cores(cores[2:])]
    assert [tuple(core.shape) for core in merged] == [(1, 6, 6, 3), (3, 6, 8, 1)]
    torch.testing.assert_close(tt_matrix_contract(merged), tt_matrix_contract(cores))


def test_ranks_are_clamped_as_tt_svd_does(rng, randn):
    for _ in range(30):
        d = int(rng.integers(2, 6))
        inputs, outputs = (rng.integers(1, 4, d).tolist() for _ in range(2))
        asked = rng.integers(1, 20, d - 1).tolist()
        W = randn(math.prod(outputs), math.prod(inputs))
        assert clamped_ranks(inputs, outputs, asked) == tt_ranks(tt_matrix_svd(W, inputs, outputs, asked))


def test_bad_splits_are_named(randn):
    W = randn(6, 20)
    for dims, message in [
        (([4, 6], [3, 2]), r"input_dims : reçu \[4, 6\], de produit 24, attendu 20"),
        (([4, 5], [3, 3]), r"output_dims : reçu \[3, 3\], de produit 9, attendu 6"),
        (([4, 5], [3, 2, 1]), r"output_dims : reçu 3 dimensions, attendu 2 comme en entrée \(ajoutez des 1\)"),
        (([20], [6]), r"input_dims : reçu \[20\], attendu une liste d'au moins deux entiers"),
        ((20, [6, 1]), r"input_dims : reçu 20, attendu une liste d'au moins deux entiers"),
        (([4, 5], "32"), r"output_dims : reçu '32', attendu une liste d'au moins deux entiers"),
        (([0, 5], [3, 2]), r"input_dims\[0\] : reçu 0, attendu un entier ≥ 1"),
    ]:
        with pytest.raises(ValueError, match=f"^{message}"):
            tt_matrix_svd(W, *dims, 2)
    with pytest.raises(TypeError, match=r"^output_dims\[1\] : reçu 2\.0, attendu un entier ≥ 1"):
        tt_matrix_svd(W, [4, 5], [3, 2.0], 2)
    with pytest.raises(ValueError, match=r"^W : 120 élément\(s\) sur 120 sont NaN"):
        tt_matrix_svd(W * math.nan, [4, 5], [3, 2], 2)


CHAINED = [tt_contract, tt_ranks, lambda c: tt_orthogonalize(c, 0), lambda c: tt_round(c, 2)]


@pytest.mark.parametrize("function", [*CHAINED, tt_matrix_contract])
def test_every_function_refuses_a_broken_chain(function, randn):
    four = function is tt_matrix_contract
    middle, shape = ((2, 2), "in, out") if four else ((2,), "n")
    good = [randn(1, *middle, 3), randn(3, *middle, 1)]
    function(good)
    with pytest.raises(ValueError, match=rf"^cores\[1\] : reçu la forme .*, attendu \(3, {shape}, r\)"):
        function([good[0], randn(2, *middle, 1)])
    with pytest.raises(ValueError, match=rf"^cores\[0\] : reçu la forme .*, attendu \(1, {shape}, r\)"):
        function([randn(2, *middle, 3), good[1]])
    with pytest.raises(ValueError, match=r"^cores : le dernier rang est 3, attendu 1"):
        function(good[:1])
    with pytest.raises(ValueError, match=rf"^cores\[1\] : reçu la forme .*, attendu \(3, {shape}, r\)"):
        function([good[0], randn(3, *middle, 2, 1)])  # d'un autre ordre
    with pytest.raises(ValueError, match=r"^cores\[1\] : reçu la forme .* attendu"):
        function([good[0], torch.zeros(3, *middle[:-1], 0, 1)])
    for other in (torch.float64, torch.int64):
        with pytest.raises(TypeError, match=rf"^cores\[1\] : reçu des éléments {other}, attendu des flottants"):
            function([good[0], good[1].to(other)])
    with pytest.raises(ValueError, match=r"^cores\[1\] : NaN ou infini"):
        function([good[0], good[1] * math.inf])


def test_a_chain_of_three_indices_is_no_matrix(randn):
    with pytest.raises(ValueError, match=r"^cores\[0\] : reçu la forme \(1, 2, 1\), attendu \(1, in, out, r\)"):
        tt_matrix_contract([randn(1, 2, 1)])
