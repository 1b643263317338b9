"""La jauge : le même produit, des facteurs qui se quantifient mieux ; NumPy et SciPy refont les comptes."""

import math

import numpy as np
import pytest
import scipy.fft
import scipy.linalg
import torch

from lrq import (
    PerChannel,
    TTLinear,
    UniformQuantizer,
    balance_cores,
    balance_factors,
    balanced_factors,
    core_noise_bound,
    regauge,
    rotate_cores,
    rotate_factors,
    rotate_tucker,
    tt_contract,
    tt_matrix_contract,
    tt_matrix_svd,
    tt_orthogonalize,
    tt_ranks,
    tucker,
    tucker_contract,
)
from lrq.gauge import GAUGES, cosine_rotation

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


# --- les liens d'un train de tenseurs ---------------------------------------------------------------------------------

CHAINS = [[4, 5, 3], [6], [2, 7], [(2, 3), (3, 2), (2, 2), (1, 4)], [1, 5, 1, 3]]
chains = pytest.mark.parametrize("dims", CHAINS, ids=str)
CHAINED = [balance_cores, rotate_cores, *(lambda cores, gauge=gauge: regauge(cores, gauge) for gauge in GAUGES)]
chained = pytest.mark.parametrize("function", CHAINED)


def arbitrary(cores, randn):
    """Le même tenseur dans une jauge quelconque : à chaque lien, R et son inverse."""
    cores = [core.double() for core in cores]
    for k in range(len(cores) - 1):
        R = randn(cores[k].shape[-1], cores[k].shape[-1], dtype=torch.float64)
        cores[k], cores[k + 1] = cores[k] @ R, torch.tensordot(torch.linalg.inv(R), cores[k + 1], 1)
    return cores


def noisy(cores, n_bits):
    return [UniformQuantizer(n_bits).quantize_dequantize(core) for core in cores]


@chained
@chains
def test_the_tensor_does_not_change(function, dims, chain, randn):
    cores = arbitrary(chain(dims, 3, torch.float64), randn)
    whole = tt_contract(cores)
    found = function(cores)
    torch.testing.assert_close(tt_contract(found), whole, rtol=1e-8, atol=1e-8 * float(whole.norm()))
    assert [core.shape[1:-1] for core in found] == [core.shape[1:-1] for core in cores]
    assert all(core.is_contiguous() for core in found)


@chained
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_cores_keep_their_dtype_and_are_new(function, dtype, chain):
    cores = [core.requires_grad_() for core in chain([4, 5, 3], 3, dtype)]
    before = [core.detach().clone() for core in cores]
    found = function(cores)
    assert {core.dtype for core in found} == {dtype}
    assert not any(core.requires_grad for core in found)
    owned = {core.untyped_storage().data_ptr() for core in cores}
    assert owned.isdisjoint(core.untyped_storage().data_ptr() for core in found)
    assert all(torch.equal(core, kept) for core, kept in zip(cores, before, strict=True))
    whole = tt_contract([core.double() for core in before])
    gap = float((tt_contract([core.double() for core in found]) - whole).norm() / whole.norm())
    assert gap < 64 * torch.finfo(dtype).eps


@chains
def test_balanced_cores_share_the_singular_values_of_each_bond(dims, chain, randn):
    cores = [core.flatten(1, -2) for core in balance_cores(arbitrary(chain(dims, 3, torch.float64), randn))]
    T = tt_contract(cores)
    for k in range(1, len(cores)):
        S = np.linalg.svd(T.reshape(T.shape[:k].numel(), -1).numpy(), compute_uv=False)[: cores[k].shape[0]]
        left = tt_contract([*cores[:k], torch.eye(len(S), dtype=torch.float64)[..., None]]).reshape(-1, len(S)).numpy()
        right = tt_contract([torch.eye(len(S), dtype=torch.float64)[None], *cores[k:]]).reshape(len(S), -1).numpy()
        np.testing.assert_allclose(left.T @ left, np.diag(S), atol=1e-8 * S[0])
        np.testing.assert_allclose(right @ right.T, np.diag(S), atol=1e-8 * S[0])


def test_two_balanced_cores_are_the_balanced_factors(factors):
    U, V = factors(12, 9, 4)
    X, Y = balance_factors(U, V)
    first, last = balance_cores([U[None], V.T[..., None]])
    torch.testing.assert_close(first[0].abs(), X.abs(), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(last[..., 0].T.abs(), Y.abs(), rtol=1e-8, atol=1e-9)


def test_directions_that_the_tensor_does_not_use_are_dropped(chain):
    cores = chain([4, 5, 3], [2, 2], torch.float64)
    wide = [torch.cat([cores[0], cores[0]], 2), *cores[1:]]  # la même direction, deux fois
    wide[1] = torch.cat([cores[1], torch.zeros_like(cores[1])])
    assert tt_ranks(wide) == [4, 2]
    found = balance_cores(wide)
    assert tt_ranks(found) == [2, 2]
    torch.testing.assert_close(tt_contract(found), tt_contract(cores))


@chained
def test_a_null_chain_stays_null(function, chain):
    found = function([torch.zeros_like(core) for core in chain([4, 5, 3], 2)])
    assert not tt_contract(found).any()
    assert all(core.isfinite().all() for core in found)


def test_names_are_those_of_the_gauges(chain):
    cores = chain([(2, 3), (3, 2), (2, 2)], 3, torch.float64)
    expected = {
        "orthogonal": tt_orthogonalize(cores, 2),
        "balanced": balance_cores(cores),
        "rotated": rotate_cores(balance_cores(cores)),
    }
    assert tuple(expected) == GAUGES
    for gauge, kept in expected.items():
        assert all(torch.equal(a, b) for a, b in zip(regauge(cores, gauge), kept, strict=True))


@pytest.mark.parametrize("gauge", ["balanced", "rotated"])
def test_a_hair_does_not_change_the_gauge_of_a_symmetric_matrix(gauge, randn):
    """Ses vecteurs antisymétriques ont deux plus grands coefficients, opposés : le signe ne se joue pas à l'arrondi."""
    W = randn(15, 15, dtype=torch.float64)
    W = W + W.T
    expected = regauge(tt_matrix_svd(W, (3, 5), (3, 5), 9), gauge)
    for _ in range(5):
        found = regauge(tt_matrix_svd(W + 1e-12 * randn(15, 15, dtype=torch.float64), (3, 5), (3, 5), 9), gauge)
        for core, same in zip(found, expected, strict=True):
            torch.testing.assert_close(core, same, rtol=0, atol=1e-6)


def test_rotated_cores_spread_each_bond(chain):
    """Une direction sur r, à chaque lien, ne porte plus toute l'énergie."""
    cores = balance_cores([core * 0.2 ** torch.arange(core.shape[-1]) for core in chain([9, 9, 9], 8, torch.float64)])
    for before, after in zip(cores[:-1], rotate_cores(cores), strict=False):
        each, spread = (core.square().sum((0, 1)) for core in (before, after))
        assert each.max() / each.mean() > 4
        assert spread.max() / spread.mean() < 2.5


# --- le bruit des cœurs -----------------------------------------------------------------------------------------------


@chains
@pytest.mark.parametrize("n_bits", [2, 4, 8])
def test_the_bound_is_never_exceeded(n_bits, dims, chain, randn):
    for cores in (
        chain(dims, 3, torch.float64),
        arbitrary(chain(dims, 3), randn),
        *(regauge(chain(dims, 3, torch.float64), gauge) for gauge in GAUGES),
    ):
        rounded = noisy(cores, n_bits)
        assert float((tt_contract(rounded) - tt_contract(cores)).norm()) <= core_noise_bound(cores, rounded) * (
            1 + 1e-12
        )


def test_the_bound_is_the_gap_where_only_the_last_of_orthonormal_cores_moves(chain, randn):
    for dims in CHAINS:
        cores = regauge(chain(dims, 3, torch.float64), "orthogonal")
        moved = [*cores[:-1], cores[-1] + randn(*cores[-1].shape, dtype=torch.float64)]
        gap = float((moved[-1] - cores[-1]).norm())
        assert core_noise_bound(cores, moved) == pytest.approx(gap, rel=1e-9)
        assert float((tt_contract(moved) - tt_contract(cores)).norm()) == pytest.approx(gap, rel=1e-9)


def test_of_vectors_that_grow_the_bound_is_the_gap(chain):
    """Des rangs 1, des cœurs qui grandissent : ‖T̂ − T‖ = Π (a_k + e_k) − Π a_k, exactement."""
    cores = chain([4, 5, 3], 1, torch.float64)
    grown = [core * (1 + share) for core, share in zip(cores, (0.1, 0.2, 0.3), strict=True)]
    gap = float((tt_contract(grown) - tt_contract(cores)).norm())
    assert core_noise_bound(cores, grown) == pytest.approx(gap, rel=1e-9)


def test_the_bound_of_nothing_is_zero(chain):
    cores = chain([4, 5, 3], 3)
    assert core_noise_bound(cores, cores) == 0.0


@pytest.mark.filterwarnings("error")
def test_the_bound_takes_parameters_and_two_dtypes(linear):
    layer = TTLinear.from_linear(linear(24, 12), [4, 6], [3, 4], 3)
    half = [core.half() for core in layer.cores]
    found = core_noise_bound(half, layer.cores)  # l'écart n'est pas arrondi au dtype des premiers
    exact = core_noise_bound([core.double() for core in half], [core.detach().double() for core in layer.cores])
    assert 0 < found == pytest.approx(exact)


def test_an_arbitrary_gauge_loses_more_to_quantization(matrix, randn):
    """Mêmes bits, même matrice : c'est la jauge qui fait l'erreur."""
    errors = dict.fromkeys((*GAUGES, "arbitrary"), 0.0)
    for _ in range(10):
        W = matrix(36, 64, np.arange(1, 37.0) ** -1.0, dtype=torch.float64)
        cores = tt_matrix_svd(W, [4, 4, 4], [3, 3, 4], 8)
        whole = tt_matrix_contract(cores)
        for name in errors:
            chain = arbitrary(cores, randn) if name == "arbitrary" else regauge(cores, name)
            errors[name] += float((tt_matrix_contract(noisy(chain, 4)) - whole).norm() / whole.norm())
    assert errors["rotated"] < errors["orthogonal"]
    assert errors.pop("arbitrary") > 1.5 * max(errors.values())


def test_what_float16_cannot_hold_is_refused():
    """Mêler ou équilibrer agrandit : 65 504 passé, ce serait l'infini."""
    half = torch.full((5, 2), 6e4).half()
    for function in (balance_factors, rotate_factors):
        with pytest.raises(
            ValueError, match=r"^[UV] : sa décomposition va jusqu'à \S+, que torch.float16 ne peut garder"
        ):
            function(half, half)
    cores = [torch.full((1, 4, 3), 6e4).half(), torch.full((3, 4, 1), 6e4).half()]
    for function in CHAINED:
        with pytest.raises(ValueError, match=r"que torch.float16 ne peut garder"):
            function(cores)
    with pytest.raises(ValueError, match=r"^core : sa décomposition va jusqu'à"):
        rotate_tucker(torch.full((2, 2), 6e4).half(), [torch.eye(2).half(), torch.eye(2).half()])
    with pytest.raises(ValueError, match=r"^factors\[0\] : sa décomposition va jusqu'à"):
        rotate_tucker(torch.ones(2, 2).half(), [torch.full((3, 2), 6e4).half(), torch.eye(2).half()])


def test_bad_gauges_and_chains_are_named(chain, randn):
    cores = chain([4, 5], 3)
    with pytest.raises(ValueError, match=r"^gauge : reçu 'polar', attendu 'orthogonal' ou 'balanced' ou 'rotated'"):
        regauge(cores, "polar")
    for function in CHAINED:
        with pytest.raises(ValueError, match=r"^cores\[1\] : reçu la forme \(2, 5, 1\), attendu \(3, n, r\)"):
            function([cores[0], randn(2, 5, 1)])
        with pytest.raises(ValueError, match=r"^cores\[0\] : NaN ou infini"):
            function([cores[0] * math.nan, cores[1]])
    with pytest.raises(ValueError, match=r"^noisy\[1\] : reçu la forme"):
        core_noise_bound(cores, [cores[0], randn(2, 5, 1)])
    with pytest.raises(ValueError, match=r"^noisy : reçu \[\(1, 4, 1\), \(1, 5, 1\)\], attendu \[\(1, 4, 3\)"):
        core_noise_bound(cores, chain([4, 5], 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_rotated_tucker_is_the_same_tensor_with_a_flatter_core(dtype, randn, rng):
    T = randn(7, 6, 5, dtype=torch.float64) * torch.linspace(3, 0.1, 7, dtype=torch.float64)[:, None, None]
    core, factors = tucker(T, [4, 3, 2])
    core, factors = core.to(dtype), [U.to(dtype) for U in factors]
    turned, rotated = rotate_tucker(core, factors)
    assert turned.dtype == dtype
    assert [U.shape for U in rotated] == [U.shape for U in factors]
    before, after = tucker_contract(core, factors).double(), tucker_contract(turned, rotated).double()
    assert float((after - before).norm() / before.norm()) < 20 * torch.finfo(dtype).eps
    for U in rotated:
        torch.testing.assert_close(
            U.T @ U, torch.eye(U.shape[1], dtype=dtype), atol=32 * torch.finfo(dtype).eps, rtol=0
        )
    corner = torch.zeros(4, 3, 2, dtype=torch.float64)
    corner[0, 0, 0] = 1.0  # toute l'énergie dans un coin : la rotation la répartit
    flat = rotate_tucker(corner, [torch.eye(n, dtype=torch.float64) for n in corner.shape])[0]
    assert flat.abs().max() < 0.5
    torch.testing.assert_close(flat.norm(), corner.norm())
