"""Les couches quantifiées calculent avec ce qu'elles gardent, et n'occupent que les bits qu'elles annoncent."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lrq import (
    FactorizedLinear,
    PerChannel,
    PerGroup,
    PerTensor,
    QuantizedLinear,
    QuantizedLowRankLayer,
    QuantizedLowRankLinear,
    QuantizedResidualLinear,
    UniformQuantizer,
    activation_aware_svd,
    balanced_factors,
    unpack_bits,
)
from lrq.layers import PackedTensor
from lrq.quantizers import CLIPPINGS

BITS = range(1, 9)
GRANULARITIES = [PerTensor(), PerChannel(0), PerChannel(1), PerGroup(4)]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
LEADING = [(), (0,), (2, 0, 3), (5,), (2, 3)]
N, M, R = 20, 12, 8  # in, out, rang

# (couche, bits, granularité) -> couche quantifiée
CONVERT = {
    "QuantizedLowRankLinear": lambda layer, b, g: QuantizedLowRankLinear.from_linear(layer, R, b, granularity=g),
    "QuantizedLowRankLayer": lambda layer, b, g: QuantizedLowRankLayer.from_linear(layer, R, b, granularity=g),
    "QuantizedLinear": lambda layer, b, g: QuantizedLinear.from_linear(layer, b, g),
    "QuantizedResidualLinear": lambda layer, b, g: QuantizedResidualLinear.from_linear(layer, R, b, granularity=g),
    "résidu flottant": lambda layer, b, g: QuantizedResidualLinear.from_linear(
        layer, R, b, granularity=g, factor_bits=None
    ),
}
FACTORED = [QuantizedLowRankLinear, QuantizedLowRankLayer]
converted = pytest.mark.parametrize("convert", [pytest.param(f, id=name) for name, f in CONVERT.items()])
factored = pytest.mark.parametrize("kind", FACTORED)
granular = pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
with_or_without_bias = pytest.mark.parametrize("bias", [True, False], ids=["biais", "sans biais"])


def snapshot(module):
    return {name: t.detach().clone() for name, t in module.state_dict().items()}


def unchanged(module, before):
    now = module.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in before)


def scales(shape, granularity):
    """Combien d'échelles demande une matrice."""
    match granularity:
        case PerChannel(dim):
            return shape[dim]
        case PerGroup(size):
            return shape[0] * shape[1] // size
    return 1


# --- y = x Ŵᵀ + b -----------------------------------------------------------------------------------------------------


@converted
@granular
@with_or_without_bias
def test_forward_applies_the_quantized_weight(convert, granularity, bias, linear, randn):
    for n_bits in BITS:
        layer = convert(linear(bias=bias), n_bits, granularity)
        W = layer.reconstruct_weight()
        assert W.shape == (M, N)
        assert (layer.bias is not None) == bias
        for leading in LEADING:
            x = randn(*leading, N)
            y = layer(x)
            assert y.shape == (*leading, M)
            torch.testing.assert_close(y, F.linear(x, W, layer.bias), rtol=1e-4, atol=2e-4)


@converted
@granular
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtype_is_kept(convert, granularity, dtype, linear, randn):
    layer = convert(linear(dtype=dtype), 5, granularity)
    W, x = layer.reconstruct_weight(), randn(3, N, dtype=dtype)
    y = layer(x)
    assert {W.dtype, y.dtype, layer.bias.dtype} == {dtype}
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(y, F.linear(x, W, layer.bias), rtol=16 * eps, atol=128 * eps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n_bits", [1, 4, 8])
def test_half_precision_weights_are_quantized_in_float32(dtype, n_bits, linear):
    source = linear(dtype=dtype)
    codes = QuantizedLinear.from_linear(source, n_bits).packed
    exact = QuantizedLinear.from_linear(copy.deepcopy(source).float(), n_bits).packed
    assert codes.scale.dtype == torch.float32
    assert torch.equal(codes.packed, exact.packed)
    assert torch.equal(codes.scale, exact.scale)


@converted
@granular
@pytest.mark.parametrize("n_bits", [1, 2, 4, 8])
def test_null_weights_stay_null(convert, granularity, n_bits, linear, randn):
    source = linear()
    nn.init.zeros_(source.weight)
    layer = convert(source, n_bits, granularity)
    assert torch.equal(layer.reconstruct_weight(), torch.zeros(M, N))
    assert layer.reconstruction_error(source.weight) == 0.0
    assert torch.equal(layer(randn(3, N)), source.bias.expand(3, M))


@converted
def test_gradients_reach_the_input_and_the_bias(convert, linear, randn):
    layer = convert(linear(dtype=torch.float64), 4, PerTensor())
    x = randn(3, N, dtype=torch.float64).requires_grad_()
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.reconstruct_weight().sum(0).expand(3, N).detach())
    torch.testing.assert_close(layer.bias.grad, torch.full((M,), 3.0, dtype=torch.float64))


@converted
def test_an_input_of_the_wrong_width_is_named(convert, linear, randn):
    layer = convert(linear(), 4, PerTensor())
    with pytest.raises(ValueError, match=rf"^x : reçu la forme \(2, {N - 1}\), attendu \(\.\.\., {N}\)"):
        layer(randn(2, N - 1))
    with pytest.raises(TypeError, match=r"^x : reçu list"):
        layer([1.0] * N)


@pytest.mark.parametrize("name", [name for name in CONVERT if "flottant" not in name])
def test_the_bias_follows_the_input(name, linear, randn):
    """Les poids déquantifiés prennent le dtype de l'entrée ; le biais aussi."""
    layer, x = CONVERT[name](linear(), 8, PerTensor()), randn(3, N)
    for dtype in (torch.float64, torch.bfloat16):
        y = layer(x.to(dtype))
        assert y.dtype == dtype
        torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.2)


@pytest.mark.parametrize("kind", [QuantizedLowRankLinear, QuantizedLowRankLayer])
def test_codes_of_another_shape_do_not_erase_the_factors(kind, randn):
    """D'autres dimensions, d'autres bits, d'autres échelles, rien qu'un facteur : le refus nomme ce qui ne va pas."""
    layer, x = kind(16, 16, 4), randn(3, 16)
    y, states = layer(x), []
    for other in (kind(16, 8, 4), kind(16, 16, 4, 4), kind(16, 16, 4, granularity=PerChannel(0))):
        other.quantize_weights()
        states.append(other.state_dict())
    states.append({"U_packed.packed": torch.zeros(64, dtype=torch.uint8)})
    for state, strict in itertools.product(states, (True, False)):
        with pytest.raises(RuntimeError, match=r"[UV]_packed\.(packed|scale) : reçu .*, attendu la forme"):
            layer.load_state_dict(state, strict=strict)
        assert not layer.quantized
        assert torch.equal(layer(x), y)


@pytest.mark.parametrize("kind", [QuantizedLowRankLinear, QuantizedLowRankLayer])
def test_blank_codes_draw_nothing(kind):
    state = torch.get_rng_state()
    layer = kind(16, 12, 4, bias=True, quantized=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert layer.quantized
    assert {t.device.type for t in layer.state_dict().values()} == {"cpu"}
    assert not layer.reconstruct_weight().any()


# --- avant la quantification ------------------------------------------------------------------------------------------


@factored
def test_before_quantization_the_float_factors_compute_and_learn(kind, randn):
    layer, x = kind(N, M, R, n_bits=2, bias=True), randn(3, N)
    assert not layer.quantized
    U, V = layer.dequantize()
    assert U is layer.U
    assert V is layer.V
    W = layer.reconstruct_weight()
    torch.testing.assert_close(layer(x), F.linear(x, W, layer.bias), rtol=1e-4, atol=1e-5)
    layer(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in (layer.U, layer.V, layer.bias))
    layer.quantize_weights()
    assert (layer.quantized, layer.U, layer.V) == (True, None, None)
    assert (layer.reconstruct_weight() - W).norm() > 0.1 * W.norm(), "2 bits n'ont rien changé"


@factored
def test_quantizing_twice_changes_nothing(kind, randn):
    layer = kind(N, M, R, n_bits=3)
    layer.quantize_weights()
    before = snapshot(layer)
    layer.quantize_weights()
    assert unchanged(layer, before)


@factored
@granular
@pytest.mark.parametrize("n_bits", BITS)
def test_codes_scales_and_zero_points_are_those_of_each_factor(kind, granularity, n_bits, randn):
    layer = kind(N, M, R, n_bits, granularity=granularity)
    factors = {name: getattr(layer, name).detach().clone() for name in "UV"}
    layer.quantize_weights()
    quantizer = UniformQuantizer(n_bits, granularity=granularity)
    for name, factor in factors.items():
        codes, scale = getattr(layer, f"{name}_q"), getattr(layer, f"{name}_scale")
        zero_point = getattr(layer, f"{name}_zero_point")
        expected, _ = quantizer.compute_scale_zero_point(factor)
        assert codes.dtype == torch.int8
        assert zero_point.dtype == torch.int32
        assert codes.shape == factor.shape
        assert torch.equal(scale, expected)
        assert torch.equal(codes, quantizer.quantize(factor))
        assert torch.equal(zero_point, torch.zeros_like(scale, dtype=torch.int32))
        packed = getattr(layer, f"{name}_packed")
        assert torch.equal(unpack_bits(packed.packed, n_bits, factor.shape), codes)
        assert torch.equal(dict(zip("UV", layer.dequantize(), strict=True))[name], packed.dequantize())
        spread = np.repeat(scale.numpy(), 4, -1) if granularity == PerGroup(4) else scale.numpy()
        np.testing.assert_array_equal(packed.dequantize().numpy(), codes.numpy().astype(np.float32) * spread)


def test_the_formula_of_the_course_gives_the_same_codes(linear):
    """Échelle max/q, arrondi, bornes symétriques : celles du cours, où torch.svd est remplacée par la bonne SVD."""
    source = linear(dtype=torch.float64)
    U, V = balanced_factors(source.weight, R)
    layer = QuantizedLowRankLinear.from_linear(source, R, 8)
    for factor, codes, scale in ((U, layer.U_q, layer.U_scale), (V, layer.V_q, layer.V_scale)):
        step = max(abs(factor.min().item()), abs(factor.max().item())) / 127
        assert float(scale) == pytest.approx(step, rel=1e-9)
        assert torch.equal(torch.round(factor / step).clamp(-127, 127).to(torch.int8), codes)


@factored
def test_codes_asked_too_soon_say_what_to_call(kind):
    layer = kind(N, M, R)
    for name in ("U_q", "V_q", "U_scale", "V_scale", "U_zero_point", "V_zero_point"):
        with pytest.raises(RuntimeError, match=r"^[UV] : la couche n'est pas quantifiée, .* quantize_weights\(\)"):
            getattr(layer, name)


# --- tailles ----------------------------------------------------------------------------------------------------------


def held(module):
    """Les octets que la couche tient vraiment en mémoire, chaque stockage compté une fois, en entier."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in module.state_dict().values()}
    return sum(storage.nbytes() for storage in storages.values())


@factored
@granular
@with_or_without_bias
@pytest.mark.parametrize("n_bits", [1, 2, 3, 4, 5, 7, 8])
def test_factors_weigh_their_bits_and_their_scales(kind, granularity, n_bits, bias, linear):
    layer = CONVERT[kind.__name__](linear(bias=bias), n_bits, granularity)
    shapes = layer.shape_factors().values()
    exact = sum(math.ceil(a * b * n_bits / 8) + 4 * scales((a, b), granularity) for a, b in shapes)
    assert layer.nbytes() == held(layer) == exact + 4 * M * bias
    assert layer.compression_ratio() == pytest.approx(4 * M * N / exact)
    assert layer.count_parameters() == R * (M + N)
    assert sum(p.numel() for p in layer.parameters()) == M * bias


@granular
@pytest.mark.parametrize("n_bits", BITS)
@with_or_without_bias
def test_dense_codes_weigh_their_bits_and_their_scales(granularity, n_bits, bias, linear):
    layer = QuantizedLinear.from_linear(linear(bias=bias), n_bits, granularity)
    exact = math.ceil(M * N * n_bits / 8) + 4 * scales((M, N), granularity)
    assert layer.nbytes() == held(layer) == exact + 4 * M * bias
    assert layer.compression_ratio() == pytest.approx(4 * M * N / exact)
    assert layer.count_parameters() == M * N


@pytest.mark.parametrize("factor_bits", [None, 1, 4, 8])
@with_or_without_bias
def test_a_residual_weighs_its_base_and_its_factors(factor_bits, bias, linear):
    layer = QuantizedResidualLinear.from_linear(linear(64, M, bias), 3, 4, factor_bits=factor_bits)
    base = M * 64 // 2 + 4 * M * 2  # deux groupes de 32 par ligne
    per_row = 4 * (M + 64)
    factors = (
        4 * 3 * (M + 64) if factor_bits is None else math.ceil(3 * M * factor_bits / 8) + 24 * factor_bits + per_row
    )
    assert layer.nbytes() == held(layer) == base + factors + 4 * M * bias
    assert layer.compression_ratio() == pytest.approx(4 * M * 64 / (base + factors))
    assert layer.count_parameters() == M * 64 + 3 * (M + 64)


def test_before_quantization_the_ratio_is_that_of_the_floats():
    for kind in FACTORED:
        assert kind(N, M, 3, 4, bias=True).compression_ratio() == pytest.approx(M * N / (3 * (M + N)))


def test_the_example_of_the_course():
    layer = QuantizedLowRankLinear.from_linear(nn.Linear(1024, 512), rank=64, n_bits=8)
    assert layer.count_parameters() == 98304
    assert layer.compression_ratio() == pytest.approx(4 * 1024 * 512 / (98304 + 8))  # 21,3 : deux échelles de plus
    four = QuantizedLowRankLinear.from_linear(nn.Linear(1024, 512), rank=64, n_bits=4)
    assert four.compression_ratio() == pytest.approx(2 * layer.compression_ratio(), rel=1e-3)  # le cours dit 21,3


# --- erreurs ----------------------------------------------------------------------------------------------------------


@converted
def test_more_bits_lose_less(convert, linear):
    source = linear(60, 52)
    errors = [convert(source, b, PerChannel(0)).reconstruction_error(source.weight) for b in range(2, 9)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]


@pytest.mark.parametrize("clipping", CLIPPINGS)
@granular
def test_the_options_reach_the_quantizer(clipping, granularity, linear):
    source = linear()
    W, quantizer = source.weight, UniformQuantizer(3, granularity=granularity, clipping=clipping)
    dense = QuantizedLinear.from_linear(source, 3, granularity, clipping)
    assert torch.equal(dense.reconstruct_weight(), quantizer.quantize_dequantize(W))
    low = QuantizedLowRankLinear.from_linear(source, R, 3, granularity=granularity, clipping=clipping)
    for factor, kept in zip(balanced_factors(W, R), low.dequantize(), strict=True):
        assert torch.equal(kept, quantizer.quantize_dequantize(factor))


def test_defaults_are_one_scale_a_factor_one_a_row_and_groups_of_32(linear):
    assert QuantizedLowRankLinear.from_linear(linear(), R).U_scale.shape == ()
    assert QuantizedLinear.from_linear(linear()).packed.scale.shape == (M, 1)
    layer = QuantizedResidualLinear.from_linear(linear(64, M))
    assert (layer.base.packed.scale.shape, layer.base.packed.quantizer.n_bits) == ((M, 2), 4)
    assert (layer.residual.rank, layer.residual.n_bits, layer.residual.V_scale.shape) == (8, 8, (64, 1))


@factored
def test_rotation_keeps_the_product_and_then_loses_less(kind, linear, matrix):
    source = linear(150, 120)
    source.weight.data = matrix(120, 150, np.arange(1, 121.0) ** -1.5)
    layer = kind(150, 120, 32)
    best = FactorizedLinear.from_linear(source, 32)
    U, V = best.U.detach(), best.V.detach()
    layer.U, layer.V = nn.Parameter(U), nn.Parameter(V if kind is QuantizedLowRankLinear else V.T.contiguous())
    before = snapshot(layer)
    layer.rotate()
    assert not unchanged(layer, before)
    torch.testing.assert_close(layer.reconstruct_weight(), best.reconstruct_weight(), rtol=0, atol=1e-5)
    for bits in (3, 4, 6):
        plain, turned = (kind.from_linear(source, 32, bits, rotate=rotate) for rotate in (False, True))
        target = best.reconstruct_weight().detach()
        assert turned.reconstruction_error(target) < 0.9 * plain.reconstruction_error(target)
        assert turned.nbytes() == plain.nbytes()


@factored
def test_calibration_brings_the_outputs_closer(kind, linear, randn):
    source, X = linear(bias=False), randn(400, N) * torch.logspace(0, -2, N)
    layer, plain = kind.from_linear(source, 4, 8, calibration=X), kind.from_linear(source, 4, 8)

    def gap(layer):
        return (layer(X) - source(X)).norm().item()

    assert gap(layer) < 0.9 * gap(plain)
    U, S, Vh = activation_aware_svd(source.weight, 4, X)
    exact = U * S @ Vh
    assert float((layer.reconstruct_weight() - exact).norm()) < 0.05 * float(exact.norm())


@pytest.mark.parametrize("factor_bits", [None, 8])
def test_the_residual_is_the_best_approximation_of_what_was_lost(factor_bits, linear):
    source = linear(64, 48, dtype=torch.float64)
    layer = QuantizedResidualLinear.from_linear(source, 6, 3, factor_bits=factor_bits)
    base = QuantizedLinear.from_linear(source, 3, PerGroup(32))
    assert torch.equal(layer.base.reconstruct_weight(), base.reconstruct_weight())
    lost = (source.weight - base.reconstruct_weight()).detach().numpy()
    S = np.linalg.svd(lost, compute_uv=False)
    best = math.sqrt((S[6:] ** 2).sum()) / np.linalg.norm(source.weight.detach().numpy())
    error = layer.reconstruction_error(source.weight)
    assert error == pytest.approx(best, rel=1e-9 if factor_bits is None else 0.01)
    assert best * (1 - 1e-9) <= error < base.reconstruction_error(source.weight)


def test_the_residual_hears_the_calibration(linear, randn):
    source, X = linear(64, 48, bias=False), randn(400, 64) * torch.logspace(0, -2, 64)
    gaps = [
        (QuantizedResidualLinear.from_linear(source, 6, 3, seen)(X) - source(X)).norm().item() for seen in (None, X)
    ]
    assert gaps[1] < 0.9 * gaps[0]


def test_nothing_lost_nothing_to_add(linear):
    source = linear(32, M)
    source.weight.data = source.weight.sign() * 3  # exactement sur la grille
    layer = QuantizedResidualLinear.from_linear(source, 2, 2)
    assert layer.reconstruction_error(source.weight) == pytest.approx(0, abs=1e-6)


# --- ni partage, ni hasard, ni moitié de changement -------------------------------------------------------------------


@converted
@with_or_without_bias
def test_the_source_is_neither_changed_nor_shared(convert, bias, linear):
    source = linear(bias=bias)
    source.weight.requires_grad_(False)
    before = snapshot(source)
    state = torch.get_rng_state()
    layer = convert(source, 5, PerTensor())
    assert torch.equal(torch.get_rng_state(), state)
    assert unchanged(source, before)
    assert not source.weight.requires_grad
    mine = snapshot(layer)
    with torch.no_grad():
        for p in source.parameters():
            p.fill_(7.0)
    assert unchanged(layer, mine)
    with torch.no_grad():
        for t in layer.state_dict().values():
            t.zero_()
    assert all((p == 7).all() for p in source.parameters())


@converted
def test_copies_are_independent(convert, linear, randn):
    layer, x = convert(linear(), 4, PerTensor()), randn(3, N)
    twin, y = copy.deepcopy(layer), layer(x)
    assert torch.equal(twin(x), y)
    with torch.no_grad():
        for t in twin.state_dict().values():
            t.zero_()
    assert torch.equal(layer(x), y)


@pytest.mark.parametrize("kind", [*FACTORED, QuantizedLinear, QuantizedResidualLinear])
def test_subclasses_convert_to_themselves(kind, linear):
    class Mine(kind):
        pass

    arguments = (4,) if kind is QuantizedLinear else (4, 4)
    assert type(Mine.from_linear(linear(32, M), *arguments)) is Mine


@factored
def test_a_sick_factor_is_refused_and_the_layer_left_whole(kind, randn):
    for name in "UV":
        layer = kind(N, M, R)
        with torch.no_grad():
            getattr(layer, name)[1, 2] = math.nan
        before = {key: t.clone() for key, t in layer.state_dict().items()}
        with pytest.raises(ValueError, match="vide ou non fini"):
            layer.quantize_weights()
        assert not layer.quantized
        assert all(torch.equal(t.nan_to_num(9), before[key].nan_to_num(9)) for key, t in layer.state_dict().items())
        assert layer(randn(2, N)).shape == (2, M)


@converted
def test_sick_sources_are_named(convert, linear):
    for bad in (math.nan, math.inf):
        source = linear()
        source.weight.data[1, 2] = bad
        with pytest.raises(ValueError, match=r"^linear_layer\.weight : 1 élément\(s\) sur 240 sont NaN"):
            convert(source, 4, PerTensor())
        source = linear()
        source.bias.data[1] = bad
        with pytest.raises(ValueError, match=r"^linear_layer\.bias : NaN"):
            convert(source, 4, PerTensor())
    for layer in (nn.Conv2d(4, 4, 1), torch.ones(M, N), None):
        with pytest.raises(TypeError, match=rf"^linear_layer : reçu {type(layer).__name__}, attendu nn\.Linear"):
            convert(layer, 4, PerTensor())


@pytest.mark.parametrize(
    ("n_bits", "error", "shown"),
    [
        (0, ValueError, "0"),
        (9, ValueError, "9"),
        (2.5, TypeError, r"2\.5"),
        (True, TypeError, "True"),
        ("4", TypeError, "'4'"),
    ],
)
def test_bad_numbers_of_bits_are_named(n_bits, error, shown, linear):
    source = linear(32, M)
    made = [lambda convert=convert: convert(source, n_bits, PerTensor()) for convert in CONVERT.values()]
    built = [lambda: QuantizedLinear(N, M, n_bits), *(lambda kind=kind: kind(N, M, R, n_bits) for kind in FACTORED)]
    for make in [*made, *built]:
        with pytest.raises(error, match=f"^n_bits : reçu {shown}, attendu un entier entre 1 et 8"):
            make()
    with pytest.raises(error, match=f"^factor_bits : reçu {shown}, attendu un entier entre 1 et 8"):
        QuantizedResidualLinear.from_linear(source, 2, factor_bits=n_bits)


@pytest.mark.parametrize(
    ("rank", "error", "message"),
    [
        (0, ValueError, "reçu 0, attendu un entier ≥ 1"),
        (13, ValueError, r"reçu 13, attendu au plus min\(m, n\) = 12"),
        (2.5, TypeError, r"reçu 2\.5"),
        (True, TypeError, "reçu True"),
    ],
)
def test_bad_ranks_are_named(rank, error, message, linear):
    for make in (
        lambda: QuantizedLowRankLinear(N, M, rank),
        lambda: QuantizedLowRankLinear.from_linear(linear(), rank),
        lambda: QuantizedLowRankLinear.from_weight_matrix(torch.ones(M, N), rank),
        lambda: QuantizedResidualLinear.from_linear(linear(), rank, granularity=PerTensor()),
    ):
        with pytest.raises(error, match=f"^rank : {message}"):
            make()


@pytest.mark.parametrize(
    ("granularity", "error", "message"),
    [
        (PerGroup(3), ValueError, "size : reçu 3, attendu un diviseur de la dernière dimension d'un tenseur"),
        (PerGroup(0), ValueError, "size : reçu 0"),
        (PerChannel(2), ValueError, "dim : reçu 2"),
        ("channel", TypeError, r"granularity : reçu 'channel', attendu PerTensor\(\)"),
        (32, TypeError, "granularity : reçu 32"),
    ],
)
def test_blocks_that_do_not_fit_are_named(granularity, error, message, linear):
    source = linear()
    made = [lambda convert=convert: convert(source, 4, granularity) for convert in CONVERT.values()]
    built = [lambda: QuantizedLinear(N, M, granularity=granularity)]
    built += [lambda kind=kind: kind(N, M, R, granularity=granularity) for kind in FACTORED]
    for make in [*made, *built]:
        with pytest.raises(error, match=f"^{message}"):
            make()


def test_an_unknown_clipping_is_named(linear):
    for make in (
        lambda: QuantizedLinear.from_linear(linear(), clipping="max"),
        lambda: QuantizedLowRankLinear(N, M, R, clipping="max"),
        lambda: QuantizedLowRankLinear.from_linear(linear(), R, clipping="max"),
        lambda: QuantizedResidualLinear.from_linear(linear(), R, granularity=PerTensor(), clipping="max"),
    ):
        with pytest.raises(ValueError, match=r"^clipping : reçu 'max', attendu 'min_max' ou"):
            make()


@pytest.mark.parametrize(("n", "m", "name"), [(0, 4, "in_features"), (4, -1, "out_features")])
def test_bad_dimensions_are_named(n, m, name):
    with pytest.raises(ValueError, match=f"^{name} : reçu"):
        QuantizedLinear(n, m)


def test_rotating_what_is_quantized_says_so(linear):
    for kind in FACTORED:
        layer = kind.from_linear(linear(), R)
        before = snapshot(layer)
        with pytest.raises(RuntimeError, match=r"^rotate : la couche est déjà quantifiée"):
            layer.rotate()
        assert unchanged(layer, before)


# --- conversions de type, tenseurs rangés -----------------------------------------------------------------------------


@converted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_converting_a_quantized_layer_keeps_its_codes_and_its_scales(convert, dtype, linear):
    source = linear()
    source.weight.data *= 1e-8  # en float16, de telles échelles s'annuleraient
    layer = convert(source, 8, PerTensor())
    kept, before = snapshot(layer), layer.reconstruct_weight().detach()
    assert layer.to(dtype) is layer
    for name, t in layer.state_dict().items():
        if name.endswith((".packed", ".scale")):
            assert torch.equal(t.double(), kept[name].double()), name
            assert t.dtype in (torch.uint8, torch.float64 if dtype == torch.float64 else torch.float32)
    assert layer.reconstruct_weight().dtype == dtype
    assert layer.bias.dtype == dtype
    again = layer.float().reconstruct_weight()  # des facteurs flottants ont perdu des chiffres, les codes non
    assert (again - before).norm() <= (0.02 if "residual.U" in kept else 1e-6) * before.norm()


def test_moving_to_meta_and_back_to_memory(linear):
    layer = QuantizedLowRankLinear.from_linear(linear(), R, 4)
    shape = {name: (t.shape, t.dtype) for name, t in layer.state_dict().items()}
    layer.to("meta")
    assert all(t.is_meta for t in layer.state_dict().values())
    layer.to_empty(device="cpu")
    assert {name: (t.shape, t.dtype) for name, t in layer.state_dict().items()} == shape


@pytest.mark.parametrize("n_bits", BITS)
@pytest.mark.parametrize("symmetric", [True, False], ids=["symétrique", "asymétrique"])
@pytest.mark.parametrize("signed", [True, False], ids=["signée", "non signée"])
def test_a_packed_tensor_is_the_compressed_tensor(n_bits, symmetric, signed, randn):
    t = randn(6, 8)
    quantizer = UniformQuantizer(n_bits, symmetric, signed, PerGroup(4))
    packed, stored = PackedTensor.from_tensor(t, quantizer), quantizer.compress(t)
    assert torch.equal(packed.codes(), stored.codes())
    assert torch.equal(packed.codes(), quantizer.quantize(t))
    assert packed.codes().dtype == (torch.int8 if signed else torch.uint8)
    assert torch.equal(packed.dequantize(), quantizer.quantize_dequantize(t))
    assert packed.nbytes() == stored.nbytes() == held(packed)
    empty = PackedTensor(quantizer, t.shape)  # la même place, à remplir
    assert empty.nbytes() == packed.nbytes()
    empty.load_state_dict(packed.state_dict())
    assert torch.equal(empty.dequantize(), packed.dequantize())


@pytest.mark.parametrize("n_bits", BITS)
def test_given_scales_are_kept_as_a_copy(n_bits, randn):
    t, quantizer = randn(6, 8), UniformQuantizer(n_bits, granularity=PerChannel(0))
    scale = nn.Parameter(torch.rand(6, 1) + 0.1)
    stored = quantizer.compress(t, scale)
    expected = quantizer.fake_quantize(t, scale, torch.zeros(6, 1)).detach()
    assert torch.equal(stored.dequantize(), expected)
    assert not stored.scale.requires_grad
    with torch.no_grad():
        scale.zero_()
    assert torch.equal(stored.dequantize(), expected)
    half = quantizer.compress(t, torch.full((6, 1), 0.1).half())
    assert half.scale.dtype == torch.float32


def test_given_scales_that_do_not_fit_are_refused(randn):
    t = randn(6, 8)
    with pytest.raises(ValueError, match=r"^scale : reçu pour une grille asymétrique"):
        UniformQuantizer(4, symmetric=False).compress(t, torch.tensor(0.1))
    for scale, error, message in [
        (torch.ones(2), ValueError, r"reçu la forme \(2,\), attendu \(\)"),
        (torch.tensor(-1.0), ValueError, r"reçu un minimum de -1\.0"),
        (torch.tensor(math.nan), ValueError, "reçu un minimum de nan"),
        (0.1, TypeError, "reçu float, attendu un tenseur"),
    ]:
        with pytest.raises(error, match=f"^scale : {message}"):
            UniformQuantizer(4).compress(t, scale)
