"""x Ŵᵀ par les cœurs : le produit dense, quel que soit le découpage ; ses gradients ; un découpage du moindre prix."""

import importlib
import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lrq import tt_matrix_contract, tt_product
from lrq.tt_product import apply_cores, cheapest_groups, merge_price, pass_price

LEADING = [(), (0,), (2, 0, 3), (5,), (2, 3)]


def split(rng, d):
    """Des dimensions, des 1 parmi elles, et un rang par lien."""
    pairs = [(int(i), int(o)) for i, o in rng.integers(1, 5, (d, 2))]
    return pairs, [int(r) for r in rng.integers(1, 5, d - 1)]


def einstein(x, cores):
    """L'oracle : une somme sur tous les indices à la fois, par NumPy, en float64."""
    d = len(cores)
    inputs, outputs = ([core.shape[axis] for core in cores] for axis in (1, 2))
    operands = [x.detach().double().numpy().reshape(-1, *inputs), [3 * d + 1, *range(d)]]
    for k, core in enumerate(cores):
        operands += [core.detach().double().numpy(), [2 * d + k, k, d + k, 2 * d + k + 1]]
    y = np.einsum(*operands, [3 * d + 1, *range(d, 2 * d)], optimize="greedy")
    return torch.tensor(y).reshape(*x.shape[:-1], math.prod(outputs))


def groupings(d):
    """Les 2^(d − 1) façons de découper d cœurs en groupes de voisins."""
    for cuts in itertools.product([False, True], repeat=d - 1):
        ends = [0, *(k for k, cut in enumerate(cuts, 1) if cut), d]
        yield list(itertools.pairwise(ends))


@pytest.mark.parametrize("d", range(1, 7))
def test_it_equals_an_einstein_sum(d, rng, chain, randn):
    for leading in LEADING:
        cores = chain(*split(rng, d), torch.float64)
        x = randn(*leading, math.prod(core.shape[1] for core in cores), dtype=torch.float64)
        y = tt_product(x, cores)
        assert y.shape == (*leading, math.prod(core.shape[2] for core in cores))
        torch.testing.assert_close(y, einstein(x, cores), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(y, F.linear(x, tt_matrix_contract(cores)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "dims", [[(1, 1), (1, 1)], [(1, 4), (3, 1)], [(4, 1), (1, 1), (1, 5)], [(1, 3), (5, 2), (1, 1)]]
)
def test_dimensions_of_one_are_nothing_special(dims, chain, randn):
    cores = chain(dims, 3, torch.float64)
    x = randn(7, math.prod(i for i, _ in dims), dtype=torch.float64)
    torch.testing.assert_close(tt_product(x, cores), einstein(x, cores))


@pytest.mark.parametrize("d", [2, 3, 5])
def test_every_grouping_gives_the_same_product(d, rng, chain, randn, monkeypatch):
    module = importlib.import_module("lrq.tt_product")  # lrq.tt_product est la fonction
    cores = chain(*split(rng, d), torch.float64)
    x = randn(4, math.prod(core.shape[1] for core in cores), dtype=torch.float64)
    expected = einstein(x, cores)
    for groups in groupings(d):
        monkeypatch.setattr(module, "cheapest_groups", lambda shapes, batch, groups=groups: groups)
        torch.testing.assert_close(apply_cores(x, cores), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("batch", [0, 1, 30, 1000])
def test_the_grouping_is_the_cheapest_of_all(batch, rng):
    def price(shapes, groups):
        return sum(merge_price(shapes[i:j]) + pass_price(shapes, i, j, batch) for i, j in groups)

    for _ in range(20):
        d = int(rng.integers(1, 7))
        bonds = [1, *rng.integers(1, 40, d - 1).tolist(), 1]
        shapes = tuple((bonds[k], *rng.integers(1, 9, 2).tolist(), bonds[k + 1]) for k in range(d))
        found = cheapest_groups(shapes, batch)
        assert found in list(groupings(d))
        assert price(shapes, found) <= min(price(shapes, groups) for groups in groupings(d)) * (1 + 1e-12)


def test_the_grouping_follows_the_batch():
    shapes = ((1, 4, 4, 32), (32, 8, 8, 32), (32, 8, 8, 32), (32, 4, 4, 1))
    assert len(cheapest_groups(shapes, 1)) > 1
    assert cheapest_groups(shapes, 10**6) == [(0, 4)]  # pour un si grand lot, former Ŵ d'abord ne coûte rien


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_dtype_is_kept(dtype, rng, chain, randn):
    for d in (2, 4):
        cores = chain(*split(rng, d), dtype)
        x = randn(6, math.prod(core.shape[1] for core in cores), dtype=dtype)
        y, exact = tt_product(x, cores), einstein(x, cores)
        assert y.dtype == dtype
        size = einstein(x.abs(), [core.abs() for core in cores])  # ce que valent les termes, avant qu'ils s'annulent
        assert ((y.double() - exact).abs() <= 8 * d * torch.finfo(dtype).eps * size).all()


def test_views_and_permuted_cores_are_read_right(chain, randn):
    cores = [core.permute(3, 2, 1, 0) for core in chain([(3, 2), (2, 4), (5, 3)], [2, 3], torch.float64)[::-1]]
    assert not all(core.is_contiguous() for core in cores)
    x = randn(math.prod(core.shape[1] for core in cores), 6, dtype=torch.float64).T
    torch.testing.assert_close(tt_product(x, cores), einstein(x, cores))
    x = randn(4, 1, x.shape[1], dtype=torch.float64).expand(4, 3, -1)
    torch.testing.assert_close(tt_product(x, cores), einstein(x, cores))


@pytest.mark.parametrize("d", range(1, 5))
def test_gradients_are_those_of_the_dense_product(d, rng, chain, randn):
    cores = [core.requires_grad_() for core in chain(*split(rng, d), torch.float64)]
    x = randn(3, math.prod(core.shape[1] for core in cores), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *cores: tt_product(x, cores), (x, *cores))
    weights = randn(3, math.prod(core.shape[2] for core in cores), dtype=torch.float64)
    ours = torch.autograd.grad((tt_product(x, cores) * weights).sum(), (x, *cores))
    dense = torch.autograd.grad((F.linear(x, tt_matrix_contract(cores)) * weights).sum(), (x, *cores))
    for found, expected in zip(ours, dense, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_nothing_is_changed_nor_shared(chain, randn):
    cores, x = chain([(2, 3), (3, 2)], 2), randn(4, 6)
    before = [t.clone() for t in (x, *cores)]
    y = tt_product(x, cores)
    y.zero_()
    assert all(torch.equal(t, kept) for t, kept in zip((x, *cores), before, strict=True))


# --- mauvaises entrées ------------------------------------------------------------------------------------------------


def test_a_bad_input_is_named(chain, randn):
    cores = chain([(2, 3), (3, 2)], 2)
    for x, shape in [(randn(4, 5), r"\(4, 5\)"), (torch.tensor(1.0), r"\(\)"), (randn(6, 4), r"\(6, 4\)")]:
        with pytest.raises(ValueError, match=rf"^x : reçu la forme {shape}, attendu \(\.\.\., 6\)"):
            tt_product(x, cores)
    for x in ([1.0] * 6, torch.ones(4, 6, dtype=torch.int64)):
        with pytest.raises(TypeError, match=r"^x : reçu"):
            tt_product(x, cores)


def test_a_broken_chain_is_named(chain, randn):
    x, (first, last) = randn(4, 6), chain([(2, 3), (3, 2)], 2)
    for cores, message in [
        ([], "cores : reçu list, attendu une liste d'au moins un cœur"),
        ([first, randn(3, 3, 2, 1)], r"cores\[1\] : reçu la forme \(3, 3, 2, 1\), attendu \(2, in, out, r\)"),
        ([last, first], r"cores\[0\] : reçu la forme \(2, 3, 2, 1\), attendu \(1, in, out, r\)"),
        ([first], "cores : le dernier rang est 2, attendu 1"),
        ([randn(1, 6, 1)], r"cores\[0\] : reçu la forme \(1, 6, 1\), attendu \(1, in, out, r\)"),
        ([first, last * math.nan], r"cores\[1\] : NaN ou infini"),
    ]:
        with pytest.raises(ValueError, match=f"^{message}"):
            tt_product(x, cores)
    with pytest.raises(TypeError, match=r"^cores\[1\] : reçu des éléments torch\.float64"):
        tt_product(x, [first, last.double()])
