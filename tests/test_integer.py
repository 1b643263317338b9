"""Les produits en entiers : ceux de NumPy sur 64 bits, et à l'arrondi des entrées près, ceux des poids déquantifiés."""

import copy

import numpy as np
import pytest
import torch

from lrq import PerChannel, PerGroup, PerTensor, QuantizedLowRankLayer, QuantizedLowRankLinear
from lrq.integer import (
    BLOCK,
    ENOUGH,
    LONGEST,
    exact_product,
    has_integer_products,
    integer_low_rank,
    integer_pays,
    integer_product,
    quantize_rows,
    sums_exactly,
)

CPU = torch.device("cpu")
TINY = float(torch.finfo(torch.float32).tiny)
ODD = [(1, 1, 1), (3, 1, 5), (1, 17, 1), (2, 3, 70), (65, 33, 31), (5, 129, 2)]
SCALES = ["tenseur", "ligne", "colonne"]
instruction = pytest.mark.skipif(not has_integer_products(CPU), reason="ce processeur n'a pas de produits de 8 bits")


def rounded(x):
    """Les mêmes opérations, par NumPy en float32 : codes entiers et échelle par ligne."""
    scale = np.maximum(np.abs(x).max(1, keepdims=True) / np.float32(127), np.float32(TINY))
    return np.rint(x * (np.float32(1) / scale)).astype(np.int64), scale


def oracle_product(x, codes, scale):
    """x (codes · échelle) : l'arrondi des lignes, un produit exact en int64, puis les échelles, en float64."""
    if scale.shape == (len(codes), 1):
        x, scale = x * scale.T, np.float32(1)
    xq, row = rounded(x)
    return (xq @ codes.astype(np.int64)).astype(np.float64) * row * scale


@pytest.fixture
def codes(rng):
    def draw(n, k, scale="tenseur", high=127):
        q = torch.tensor(rng.integers(-high, high + 1, (n, k)), dtype=torch.int8)
        shape = {"tenseur": (), "ligne": (n, 1), "colonne": (1, k)}[scale]
        return q, torch.tensor(rng.uniform(0.5, 2, shape) * 1e-2, dtype=torch.float32)

    return draw


@pytest.fixture
def forced(monkeypatch):
    """Compte les passages en entiers, forcés là où le compte des opérations les refuserait."""
    calls = []

    def spy(*args):
        calls.append(args[0].shape)
        return integer_low_rank(*args)

    monkeypatch.setattr("lrq.layers.quantized.integer_pays", lambda *sizes: True)
    monkeypatch.setattr("lrq.layers.quantized.has_integer_products", lambda device: True)
    monkeypatch.setattr("lrq.layers.quantized.integer_low_rank", spy)
    return calls


@pytest.fixture
def layer(linear_layer):
    def build(n, m, r, n_bits=8, granularity=None, dtype=torch.float32, bias=True):
        made = QuantizedLowRankLinear.from_linear(linear_layer(n, m, bias, dtype), r, n_bits, granularity=granularity)
        made.integer = True
        return made

    return build


@pytest.fixture
def linear_layer(randn):
    def draw(n, m, bias=True, dtype=torch.float32):
        source = torch.nn.Linear(n, m, bias, dtype=dtype)
        for p in source.parameters():
            p.data = randn(*p.shape, dtype=dtype)
        return source

    return draw


# --- l'arrondi des lignes ---------------------------------------------------------------------------------------------


def test_rows_are_rounded_each_to_its_own_scale(randn, rng):
    x = randn(20, 31) * torch.tensor(10.0 ** rng.integers(-20, 20, (20, 1)), dtype=torch.float32)
    q, scale = quantize_rows(x)
    expected, expected_scale = rounded(x.numpy())
    assert q.dtype == torch.int8
    assert (q.numpy() == expected).all()
    np.testing.assert_array_equal(scale.numpy(), expected_scale)
    assert (q.abs().amax(1) == 127).all()  # chaque ligne occupe toute sa grille
    assert ((q * scale - x).abs() <= scale * 0.5001).all()


def test_null_and_minute_rows():
    x = torch.tensor([[0.0, 0.0], [1e-45, -1e-45], [TINY, 0.0], [3e38, -3e38]])
    q, scale = quantize_rows(x)
    assert q[0].tolist() == [0, 0]
    assert q[3].tolist() == [127, -127]
    assert torch.isfinite(q * scale).all()
    assert quantize_rows(torch.empty(0, 5))[0].shape == (0, 5)


def test_the_input_is_left_alone(randn, codes):
    x = randn(4, 6)
    before = x.clone()
    quantize_rows(x)
    for scale in SCALES:
        integer_product(x, *codes(6, 3, scale))
    assert torch.equal(x, before)


# --- le produit -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("rows", "n", "k"), ODD)
def test_products_are_those_of_numpy(scale, rows, n, k, randn, codes):
    x, (q, s) = randn(rows, n), codes(n, k, scale)
    y = integer_product(x, q, s)
    assert y.shape == (rows, k)
    expected = oracle_product(x.numpy(), q.numpy(), s.numpy())
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


@pytest.fixture
def saturating(monkeypatch):
    """Un processeur d'avant VNNI : deux produits voisins s'ajoutent sur 16 bits, et s'y écrêtent."""

    def product(a, b):
        a, b = a.long(), b.long()
        pairs = zip((a + 128).split(2, dim=1), b.split(2), strict=True)  # oneDNN rend le premier positif
        total = sum((left @ right).clamp(-(2**15), 2**15 - 1) for left, right in pairs)
        return (total - 128 * b.sum(0)).int()

    monkeypatch.setattr("torch._int_mm", product)
    sums_exactly.cache_clear()
    yield product
    monkeypatch.undo()
    sums_exactly.cache_clear()


@pytest.mark.parametrize("scale", SCALES)
def test_a_processor_that_saturates_changes_nothing(scale, saturating, randn, codes):
    """Sans cette précaution, une couche de MiniLM s'écarte de 14 % au lieu de 1 %."""
    assert not sums_exactly()
    assert not has_integer_products(CPU)
    x, (q, s) = randn(5, 64), codes(64, 9, scale)
    expected = oracle_product(x.numpy(), q.numpy(), s.numpy())
    np.testing.assert_allclose(
        integer_product(x, q, s).numpy(), expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max()
    )
    a, b = codes(5, 64)[0], codes(64, 9)[0]
    assert (exact_product(a, b) == (a.long() @ b.long())).all()
    assert (saturating(a, b) != (a.long() @ b.long())).any()


def test_the_sum_is_exact_where_float16_and_float32_would_not_be():
    n = 2**13  # 127² · 8192 > 2²⁴
    x, q = torch.ones(1, n), torch.full((n, 2), 127, dtype=torch.int8)
    q[0, 1] = 126
    y = integer_product(x, q, torch.tensor(1.0))
    assert float(y[0, 0] - y[0, 1]) == pytest.approx(1, abs=0.1)
    assert exact_product(torch.full((1, n), 127, dtype=torch.int8), q).tolist() == [[127**2 * n, 127**2 * n - 127]]


@pytest.mark.parametrize("scales", [(a, b) for a in SCALES for b in SCALES], ids=str)
@pytest.mark.parametrize("leading", [(), (0,), (2, 0, 3), (5,), (2, 3)], ids=str)
def test_both_products_are_those_of_numpy(scales, leading, randn, codes):
    x, V, U = randn(*leading, 19), codes(19, 5, scales[0]), codes(13, 5, scales[1])
    y = integer_low_rank(x, V, U)
    assert y.shape == (*leading, 13)
    h = oracle_product(x.reshape(-1, 19).numpy(), *(t.numpy() for t in V)).astype(np.float32)
    expected = oracle_product(h, *(t.numpy().T for t in U)) if len(h) else np.zeros((0, 13))
    gap = np.abs(y.reshape(-1, 13).numpy() - expected)
    # h s'arrondit après un float32 : au pire, quelques codes voisins changent d'un cran
    assert (gap <= 0.02 * np.abs(expected).max(initial=0) + 1e-6).all()
    assert gap.size == 0 or np.median(gap) <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_the_output_has_the_dtype_of_the_input(dtype, randn, codes):
    x, V, U = randn(4, 19, dtype=dtype), codes(19, 5), codes(13, 5)
    y = integer_low_rank(x, V, U)
    assert y.dtype == dtype
    torch.testing.assert_close(y, integer_low_rank(x.float(), V, U).to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("scale", SCALES)
def test_a_row_does_not_depend_on_the_others(scale, randn, codes, monkeypatch):
    V, U = codes(19, 5, scale), codes(13, 5, scale)
    x = randn(37, 19)
    x[3] *= 1e6
    x[5] = 0
    whole = integer_low_rank(x, V, U)
    assert torch.equal(torch.cat([integer_low_rank(row[None], V, U) for row in x]), whole)
    monkeypatch.setattr("lrq.integer.BLOCK", 19 * 4)  # quatre lignes à la fois
    assert torch.equal(integer_low_rank(x, V, U), whole)
    assert torch.equal(whole[5], torch.zeros(13))
    common = (x / x.abs().max() * 127).round()  # une échelle pour tout le lot : les petites lignes disparaissent
    assert common[0].abs().max() == 0 < whole[0].abs().max()


def test_a_sick_row_stays_sick_and_alone(randn, codes):
    V, U, x = codes(19, 5), codes(13, 5), randn(4, 19)
    good = integer_low_rank(x, V, U)
    for bad in (torch.nan, torch.inf):
        sick = x.clone()
        sick[2, 7] = bad
        y = integer_low_rank(sick, V, U)
        assert not torch.isfinite(y[2]).any()
        assert torch.equal(y[[0, 1, 3]], good[[0, 1, 3]])


def test_blocks_cover_more_rows_than_one_block_holds(randn, codes):
    n = BLOCK // 16
    x, V, U = randn(35, n), codes(n, 3), codes(4, 3)
    assert torch.equal(integer_low_rank(x, V, U)[-1:], integer_low_rank(x[-1:], V, U))


# --- dans la couche ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_bits", [2, 4, 8])
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0), PerChannel(1)], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["biais", "sans biais"])
def test_the_layer_stays_within_the_rounding_of_its_inputs(n_bits, granularity, bias, layer, randn, forced):
    made, x = layer(96, 80, 24, n_bits, granularity, bias=bias), randn(3, 7, 96)
    y = made(x)
    assert forced == [x.shape]
    made.integer = False
    expected = made(x)
    assert len(forced) == 1
    U, V = (t.double() for t in made.dequantize())
    b = 0 if made.bias is None else made.bias.detach().double()
    # ‖δx‖∞ ≤ δ/2 sur les entrées (pondérées par les échelles de lignes), puis autant sur h
    v_rows = made.V_scale.double() if granularity == PerChannel(0) else torch.ones(1, dtype=torch.float64)
    first = (x.double() * v_rows.squeeze()).abs().amax(-1, keepdim=True) / 254 * 1.01
    slack = (V / v_rows).abs().sum(0) * first  # (..., r)
    u_columns = made.U_scale.double() if granularity == PerChannel(1) else torch.ones(1, dtype=torch.float64)
    h = x.double() @ V
    second = (((h.abs() + slack) * u_columns.squeeze()).amax(-1, keepdim=True) / 254) * 1.01
    bound = slack @ U.abs().T + second * (U / u_columns).abs().sum(1)
    assert ((y.double() - (h @ U.T + b)).abs() <= bound + 1e-4).all()
    relative = (y - expected).norm() / expected.norm()
    assert 0 < relative < 0.02


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_the_layer_in_other_precisions(dtype, layer, randn, forced):
    made, x = layer(40, 30, 12, dtype=dtype), randn(5, 40, dtype=dtype)
    y = made(x)
    assert len(forced) == 1
    assert y.dtype == dtype
    made.integer = False
    assert (y - made(x)).double().norm() < 0.03 * y.double().norm()


def test_an_empty_batch_goes_through(layer, randn, forced):
    made = layer(40, 30, 12)
    for leading in [(0,), (2, 0, 3)]:
        assert made(randn(*leading, 40)).shape == (*leading, 30)
    assert len(forced) == 2


def test_gradients_and_groups_take_the_other_road(layer, randn, forced):
    made, x = layer(64, 32, 16), randn(4, 64)
    made(x.clone().requires_grad_()).sum().backward()
    assert forced == []
    with torch.no_grad():
        made(x.clone().requires_grad_())
    assert len(forced) == 1
    groups = layer(64, 32, 16, granularity=PerGroup(8))
    plain = copy.deepcopy(groups)
    plain.integer = False
    assert torch.equal(groups(x), plain(x))
    assert len(forced) == 1


def test_a_sum_that_could_overflow_takes_the_other_road(layer, randn, forced, monkeypatch):
    assert 127**2 * LONGEST < 2**31 <= 127**2 * (LONGEST + 1)
    made, x = layer(64, 32, 16), randn(4, 64)
    for longest, passed in ((64, 1), (63, 1)):
        monkeypatch.setattr("lrq.layers.quantized.LONGEST", longest)
        made(x)
        assert len(forced) == passed


def test_the_bias_still_learns(layer, randn, forced):
    made = layer(64, 32, 16)
    made(randn(4, 64)).sum().backward()
    assert len(forced) == 1
    torch.testing.assert_close(made.bias.grad, torch.full((32,), 4.0))


def test_without_the_instruction_or_the_gain_nothing_changes(layer, randn, monkeypatch, forced):
    made, x = layer(64, 32, 16), randn(4, 64)
    plain = copy.deepcopy(made)
    plain.integer = False
    for name in ("has_integer_products", "integer_pays"):
        with monkeypatch.context() as patch:
            patch.setattr(f"lrq.layers.quantized.{name}", lambda *args: False)
            assert torch.equal(made(x), plain(x))
    assert forced == []


def test_it_is_off_by_default_and_never_on_before_quantization(linear_layer, randn, forced):
    made, x = QuantizedLowRankLinear.from_linear(linear_layer(64, 32), 16), randn(4, 64)
    assert not made.integer
    made(x)
    fresh = QuantizedLowRankLinear(64, 32, 16)
    fresh.integer = True
    fresh(x)
    assert not hasattr(QuantizedLowRankLayer(64, 32, 16), "integer")
    assert forced == []


def test_it_pays_for_few_rows_of_a_large_layer_only():
    assert integer_pays(1, 256, ENOUGH)
    assert not integer_pays(1, 256, ENOUGH - 1)
    assert integer_pays(128, 256, ENOUGH)
    assert not integer_pays(129, 256, ENOUGH)
    assert not has_integer_products(torch.device("meta"))


@instruction
def test_the_real_rule_sends_a_large_layer_to_integers(randn, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "lrq.layers.quantized.integer_low_rank", lambda *args: calls.append(1) or integer_low_rank(*args)
    )
    made = QuantizedLowRankLinear(1024, 1024, 128)
    made.quantize_weights()
    made.integer = True
    made(randn(4, 1024))
    assert len(calls) == 1
    made(randn(65, 1024))  # trop de lignes pour ce rang
    assert len(calls) == 1
