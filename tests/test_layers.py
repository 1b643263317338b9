"""Une couche comprimée calcule ce que dit sa matrice, pèse ce qu'elle annonce, et ne partage rien avec sa source."""

import copy
import itertools
import json
import math
import struct
import warnings

import numpy as np
import pytest
import scipy.linalg
import torch
from safetensors.torch import load, load_file, save, save_file
from torch import nn
from torch.nn import functional as F

from lrq import (
    CompactSVDLinear,
    FactorizedLinear,
    LoRALayer,
    MultiStageFactorizedLinear,
    QuantizedLowRankLayer,
    SVDCompressedLinear,
    TruncatedSVDLinear,
    compare_factorized_vs_standard,
    linear_names,
    replace_linears,
)

# Chaque couche, convertie d'une nn.Linear au rang r, et construite seule : (in, out, r) -> couche
CONVERT = {
    "FactorizedLinear": FactorizedLinear.from_linear,
    "FactorizedLinear.svd": FactorizedLinear.from_linear_svd,
    "FactorizedLinear.random": FactorizedLinear.from_linear_random,
    "SVDCompressedLinear": SVDCompressedLinear.from_linear,
    "TruncatedSVDLinear": TruncatedSVDLinear.from_linear,
    "CompactSVDLinear": CompactSVDLinear.from_linear,
    "MultiStage[r]": lambda layer, r: MultiStageFactorizedLinear.from_linear(layer, [r]),
    "MultiStage[r, r, r]": lambda layer, r: MultiStageFactorizedLinear.from_linear(layer, [r, r, r]),
    "Quantized8": QuantizedLowRankLayer.from_linear,
    "Quantized3": lambda layer, r: QuantizedLowRankLayer.from_linear(layer, r, n_bits=3),
}
BUILD = {
    "FactorizedLinear": FactorizedLinear,
    "SVDCompressedLinear": SVDCompressedLinear,
    "TruncatedSVDLinear": TruncatedSVDLinear,
    "CompactSVDLinear": CompactSVDLinear,
    "MultiStage": lambda n, m, r, **options: MultiStageFactorizedLinear(n, m, [r, r], **options),
    "Quantized": QuantizedLowRankLayer,
}
BY_SVD = [name for name in CONVERT if "random" not in name]
EXACT = [name for name in BY_SVD if "Quantized" not in name]
LEADING = [(), (0,), (2, 0, 3), (5,), (2, 3)]
SHAPES = [(12, 7), (7, 12), (9, 9)]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]

converted = pytest.mark.parametrize("convert", [pytest.param(f, id=name) for name, f in CONVERT.items()])
by_svd = pytest.mark.parametrize("convert", [pytest.param(CONVERT[name], id=name) for name in BY_SVD])
built = pytest.mark.parametrize("build", [pytest.param(f, id=name) for name, f in BUILD.items()])
with_or_without_bias = pytest.mark.parametrize("bias", [True, False], ids=["biais", "sans biais"])


def snapshot(module):
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def unchanged(module, before):
    now = module.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in before)


def saved_bytes(module):
    """Les octets qu'occupe vraiment la couche sur le disque, l'en-tête safetensors mis à part."""
    data = save(module.state_dict())
    return len(data) - 8 - struct.unpack("<Q", data[:8])[0]


# --- y = x Ŵᵀ + b -----------------------------------------------------------------------------------------------------


@converted
@with_or_without_bias
@pytest.mark.parametrize("leading", LEADING, ids=str)
@pytest.mark.parametrize(("n", "m"), SHAPES)
def test_forward_applies_the_reconstructed_weight(convert, bias, leading, n, m, linear, randn):
    layer = convert(linear(n, m, bias), 4)
    x = randn(*leading, n)
    W = layer.reconstruct_weight()
    assert W.shape == (m, n)
    assert (layer.bias is not None) == bias
    y = layer(x)
    assert y.shape == (*leading, m)
    torch.testing.assert_close(y, F.linear(x, W, layer.bias), rtol=1e-4, atol=1e-4)


@built
@with_or_without_bias
def test_a_layer_built_alone_works_too(build, bias, randn):
    layer = build(7, 5, 3, bias=bias)
    x = randn(4, 7)
    torch.testing.assert_close(layer(x), F.linear(x, layer.reconstruct_weight(), layer.bias), rtol=1e-4, atol=1e-5)
    assert np.linalg.matrix_rank(layer.reconstruct_weight().detach().double().numpy(), tol=1e-5) == 3
    assert (layer.bias is not None) == bias


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize(("n", "m"), SHAPES)
def test_full_rank_conversion_is_the_original(name, n, m, linear, randn):
    source = linear(n, m, dtype=torch.float64)
    layer = CONVERT[name](source, min(m, n))
    x = randn(6, n, dtype=torch.float64)
    torch.testing.assert_close(layer(x), source(x))
    torch.testing.assert_close(layer.reconstruct_weight(), source.weight)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize(("n", "m"), SHAPES)
def test_conversion_reaches_the_eckart_young_error(name, n, m, linear):
    source = linear(n, m, dtype=torch.float64)
    W = source.weight.detach().numpy()
    tail = scipy.linalg.svdvals(W)[3:]
    layer = CONVERT[name](source, 3)
    error = np.linalg.norm(W - layer.reconstruct_weight().detach().numpy())
    assert error == pytest.approx(math.sqrt((tail**2).sum()), rel=1e-9)


def test_random_conversion_is_far_from_it(linear):
    source = linear(20, 20)
    layer = FactorizedLinear.from_linear_random(source, 19)
    relative = layer.reconstruct_weight().sub(source.weight).norm().item() / source.weight.norm().item()
    assert relative > 0.5
    assert torch.equal(layer.bias, source.bias)


@converted
def test_an_input_of_the_wrong_width_is_named(convert, linear, randn):
    layer = convert(linear(7, 5), 3)
    for x, shape in [(randn(2, 6), r"\(2, 6\)"), (torch.tensor(1.0), r"\(\)"), (randn(7, 2), r"\(7, 2\)")]:
        with pytest.raises(ValueError, match=rf"^x : reçu la forme {shape}, attendu \(\.\.\., 7\)"):
            layer(x)
    with pytest.raises(TypeError, match=r"^x : reçu list, attendu un tenseur"):
        layer([1.0] * 7)


# --- ce que la conversion garde, copie et laisse ----------------------------------------------------------------------


@converted
@with_or_without_bias
def test_the_source_is_neither_changed_nor_shared(convert, bias, linear):
    source = linear(7, 5, bias)
    before, grads = snapshot(source), [p.requires_grad for p in source.parameters()]
    layer = convert(source, 3)
    assert unchanged(source, before)
    assert [p.requires_grad for p in source.parameters()] == grads
    mine = snapshot(layer)
    with torch.no_grad():
        for p in source.parameters():
            p.fill_(7.0)
    assert unchanged(layer, mine), "la couche partage la mémoire de sa source"
    with torch.no_grad():
        for p in layer.parameters():
            p.zero_()
    assert all((p == 7).all() for p in source.parameters())


@converted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtype_and_device_are_kept(convert, dtype, linear, randn):
    source = linear(10, 8, dtype=dtype)
    layer = convert(source, 4)
    assert {p.dtype for p in layer.parameters()} == {dtype}
    assert {p.device for p in layer.parameters()} == {source.weight.device}
    W = layer.reconstruct_weight()
    assert W.dtype == dtype
    x = randn(3, 10, dtype=dtype)
    y = layer(x)
    assert y.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(y, F.linear(x, W, layer.bias), rtol=16 * eps, atol=64 * eps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", EXACT)
def test_half_precision_is_decomposed_in_float32(name, dtype, linear):
    source = linear(20, 16, dtype=dtype)
    wide = nn.Linear(20, 16)
    wide.load_state_dict({key: value.float() for key, value in source.state_dict().items()})
    for found, exact in zip(CONVERT[name](source, 5).parameters(), CONVERT[name](wide, 5).parameters(), strict=True):
        torch.testing.assert_close(found, exact.to(dtype), rtol=0, atol=0)


@by_svd
def test_conversion_by_svd_leaves_the_global_generator_alone(convert, linear):
    source = linear(7, 5)
    state = torch.get_rng_state()
    first = snapshot(convert(source, 3))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert unchanged(convert(source, 3), first)


@built
def test_constructors_follow_manual_seed(build, rng):
    seed = int(rng.integers(2**31))
    draws = []
    for s in (seed, seed, seed + 1):
        torch.manual_seed(s)
        draws.append(build(7, 5, 3).reconstruct_weight())
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_random_conversion_follows_manual_seed(linear):
    source = linear(7, 5)
    torch.manual_seed(3)
    first = FactorizedLinear.from_linear_random(source, 3)
    torch.manual_seed(3)
    assert torch.equal(first.U, FactorizedLinear.from_linear_random(source, 3).U)
    assert not torch.equal(first.U, FactorizedLinear.from_linear_random(source, 3).U)


@converted
def test_subclasses_convert_to_themselves(convert, linear):
    kind = type(convert(linear(7, 5), 3))

    class Mine(kind):
        pass

    argument = [3] if issubclass(kind, MultiStageFactorizedLinear) else 3
    assert type(Mine.from_linear(linear(7, 5), argument)) is Mine


# --- tailles ----------------------------------------------------------------------------------------------------------


def test_parameters_and_ratio_by_hand(rng):
    for n, m in rng.integers(2, 40, (10, 2)).tolist():
        r = int(rng.integers(1, min(m, n) + 1))
        for kind in (FactorizedLinear, SVDCompressedLinear, CompactSVDLinear):
            layer = kind(n, m, r, bias=True)
            assert layer.count_parameters() == r * (m + n)  # le biais n'en est pas
            assert layer.compression_ratio() == pytest.approx(m * n / (r * (m + n)))
            assert layer.nbytes() == 4 * (r * (m + n) + m)
        kept = TruncatedSVDLinear(n, m, r, bias=True)  # garde S à part : r nombres de plus
        assert kept.count_parameters() == r * (m + n + 1)
        assert kept.compression_ratio() == pytest.approx(m * n / (r * (m + n + 1)))
        assert kept.nbytes() == 4 * (r * (m + n + 1) + m)
        chain = MultiStageFactorizedLinear(n, m, [r, 1, r])
        assert chain.count_parameters() == n * r + r + r + r * m
        assert chain.compression_ratio() == pytest.approx(m * n / (r * (m + n) + 2 * r))
        assert chain.nbytes() == 4 * chain.count_parameters()


@converted
@with_or_without_bias
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nbytes_is_what_safetensors_writes(convert, bias, dtype, linear):
    layer = convert(linear(13, 9, bias, dtype), 5)
    exact = sum(t.numel() * t.element_size() for t in layer.state_dict().values())
    assert layer.nbytes() == exact
    assert 0 <= saved_bytes(layer) - exact < 8 * len(layer.state_dict())  # safetensors peut aligner ses tenseurs


@converted
@pytest.mark.parametrize("rank", [1, 4, 9])
def test_parameters_hold_no_more_memory_than_they_say(convert, rank, linear):
    for p in convert(linear(13, 9), rank).parameters():  # une vue garderait en vie, et sauverait, toute la SVD
        assert p.is_contiguous()
        assert p.untyped_storage().nbytes() == p.nbytes


def test_a_rank_pays_only_under_break_even():
    assert FactorizedLinear(384, 384, 191).compression_ratio() > 1
    assert FactorizedLinear(384, 384, 192).compression_ratio() == 1
    assert FactorizedLinear(384, 384, 193).compression_ratio() < 1


# --- dérivées, copies, sauvegardes ------------------------------------------------------------------------------------


@built
def test_gradients_reach_every_parameter(build, randn):
    layer = build(7, 5, 3, bias=True)
    layer(randn(4, 7)).pow(2).sum().backward()
    for name, p in layer.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name


@built
def test_gradients_are_those_of_finite_differences(build, randn):
    layer = build(5, 4, 2, bias=True, dtype=torch.float64)
    x = randn(3, 5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *layer.parameters()))


def test_gradients_of_the_factors_come_from_that_of_the_weight(randn):
    layer = FactorizedLinear(7, 5, 3)
    x = randn(4, 7)
    W = layer.reconstruct_weight().detach().requires_grad_()
    F.linear(x, W).pow(2).sum().backward()
    layer(x).pow(2).sum().backward()
    torch.testing.assert_close(layer.U.grad, W.grad @ layer.V.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.V.grad, W.grad.T @ layer.U.detach(), rtol=1e-4, atol=1e-4)


@converted
@with_or_without_bias
def test_state_dict_round_trip(convert, bias, linear, randn, tmp_path):
    layer, other = convert(linear(11, 6, bias), 4), convert(linear(11, 6, bias), 4)
    x = randn(3, 11)
    assert not torch.equal(layer(x), other(x))
    save_file(layer.state_dict(), tmp_path / "couche.safetensors")
    other.load_state_dict(load_file(tmp_path / "couche.safetensors"))
    assert torch.equal(layer(x), other(x))


@converted
def test_deepcopy_is_equal_and_independent(convert, linear, randn):
    layer = convert(linear(11, 6), 4)
    twin, x = copy.deepcopy(layer), randn(3, 11)
    y = layer(x)
    assert torch.equal(twin(x), y)
    with torch.no_grad():
        for tensor in twin.state_dict().values():
            tensor.zero_()
    assert torch.equal(layer(x), y)


@converted
def test_representation_gives_the_sizes(convert, linear):
    text = repr(convert(linear(11, 6), 4))
    assert "11" in text
    assert "6" in text
    assert "0x" not in text  # une adresse changerait à chaque exécution


# --- SVDCompressedLinear ----------------------------------------------------------------------------------------------


def test_v_has_the_shape_of_the_introduction():
    layer = SVDCompressedLinear(7, 5, 3)
    assert layer.U.shape == (5, 3)
    assert layer.V.shape == (3, 7)
    assert FactorizedLinear(7, 5, 3).V.shape == (7, 3)


def test_reconstruction_error_is_relative_frobenius(linear):
    source = linear(12, 9)
    W = source.weight.detach().double().numpy()
    S = scipy.linalg.svdvals(W)
    layer = SVDCompressedLinear.from_linear(source, 4)
    expected = math.sqrt((S[4:] ** 2).sum() / (S**2).sum())
    assert layer.reconstruction_error(source.weight) == pytest.approx(expected, rel=1e-5)
    assert layer.reconstruction_error(layer.reconstruct_weight()) == 0.0


def test_reconstruction_error_of_extremes(linear):
    zero = nn.Linear(4, 3)
    nn.init.zeros_(zero.weight)
    layer = SVDCompressedLinear.from_linear(zero, 2)
    assert layer.reconstruction_error(zero.weight) == 0.0
    assert layer.reconstruction_error(torch.ones(3, 4)) == 1.0
    assert SVDCompressedLinear(4, 3, 2).reconstruction_error(zero.weight) == math.inf
    source = linear(4, 3)
    source.weight.data *= 1e30  # le carré déborderait en float32
    assert 0 < SVDCompressedLinear.from_linear(source, 2).reconstruction_error(source.weight) < 1
    with torch.no_grad():
        layer.U.fill_(math.nan)
    assert math.isnan(layer.reconstruction_error(torch.ones(3, 4))), "un facteur NaN n'a pas une erreur nulle"


def test_reconstruction_error_refuses_another_shape():
    with pytest.raises(ValueError, match=r"^original_weight : reçu \(4, 3\), attendu \(3, 4\)"):
        SVDCompressedLinear(4, 3, 2).reconstruction_error(torch.ones(4, 3))


# --- TruncatedSVDLinear, CompactSVDLinear, from_weight_matrix ---------------------------------------------------------

BY_MATRIX = [FactorizedLinear, SVDCompressedLinear, TruncatedSVDLinear, CompactSVDLinear]


@pytest.mark.parametrize(("n", "m"), SHAPES)
def test_the_truncated_layer_keeps_its_svd(n, m, linear):
    source = linear(n, m, dtype=torch.float64)
    layer = TruncatedSVDLinear.from_linear(source, 4)
    assert (layer.U.shape, layer.S.shape, layer.V.shape) == ((m, 4), (4,), (n, 4))
    torch.testing.assert_close(layer.U.T @ layer.U, torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(layer.V.T @ layer.V, torch.eye(4, dtype=torch.float64))
    np.testing.assert_allclose(layer.S.detach().numpy(), scipy.linalg.svdvals(source.weight.detach().numpy())[:4])


def test_zeroing_a_singular_value_lowers_the_rank(linear):
    source = linear(12, 9, dtype=torch.float64)
    layer = TruncatedSVDLinear.from_linear(source, 5)
    with torch.no_grad():
        layer.S[3:] = 0
    smaller = TruncatedSVDLinear.from_linear(source, 3)
    torch.testing.assert_close(layer.reconstruct_weight(), smaller.reconstruct_weight())


@pytest.mark.parametrize(("n", "m"), SHAPES)
def test_the_compact_layer_shares_its_singular_values(n, m, linear):
    source = linear(n, m, dtype=torch.float64)
    layer, kept = CompactSVDLinear.from_linear(source, 4), TruncatedSVDLinear.from_linear(source, 4)
    assert (layer.A.shape, layer.B.shape) == ((m, 4), (4, n))
    torch.testing.assert_close(layer.A.T @ layer.A, kept.S.diag())
    torch.testing.assert_close(layer.B @ layer.B.T, kept.S.diag())
    torch.testing.assert_close(layer.reconstruct_weight(), kept.reconstruct_weight())
    assert kept.count_parameters() - layer.count_parameters() == 4  # tout ce que la forme compacte épargne


@pytest.mark.parametrize("kind", BY_MATRIX)
@pytest.mark.parametrize("make", [lambda W: W, lambda W: W.numpy(), nn.Parameter, lambda W: W.half(), lambda W: W.T])
def test_from_a_matrix_as_from_a_layer(kind, make, randn, linear):
    W = make(randn(9, 9))
    layer = kind.from_weight_matrix(W, 4)
    source = linear(9, 9, bias=False)
    source.weight = nn.Parameter(torch.as_tensor(W).detach().clone())
    assert layer.bias is None
    assert unchanged(layer, snapshot(kind.from_linear(source, 4)))
    assert all(p.requires_grad for p in layer.parameters())


@pytest.mark.parametrize("kind", BY_MATRIX)
def test_a_bad_matrix_is_named(kind):
    for W, error, message in [
        (torch.ones(3), ValueError, r"reçu un tenseur de forme \(3,\)"),
        (torch.full((6, 4), math.nan), ValueError, r"24 élément\(s\) sur 24 sont NaN"),
        (nn.Linear(4, 6), TypeError, "reçu une couche Linear, attendu sa matrice"),
        ([[1.0]], TypeError, "reçu list"),
    ]:
        with pytest.raises(error, match=rf"^W : {message}"):
            kind.from_weight_matrix(W, 2)
    for rank, error in [(0, ValueError), (5, ValueError), (2.5, TypeError), (True, TypeError)]:
        with pytest.raises(error, match=r"^rank : reçu"):
            kind.from_weight_matrix(torch.ones(6, 4), rank)


# --- MultiStageFactorizedLinear ---------------------------------------------------------------------------------------


def test_every_rank_counts(rng):
    ranks = rng.integers(2, 10, 3).tolist()
    base = MultiStageFactorizedLinear(12, 11, ranks)
    dims = [12, *ranks, 11]
    assert [tuple(f.weight.shape) for f in base.factors] == [(b, a) for a, b in itertools.pairwise(dims)]
    for i in range(3):  # le dernier aussi, que le cours ignore
        other = MultiStageFactorizedLinear(12, 11, [r + (j == i) for j, r in enumerate(ranks)])
        assert other.count_parameters() == base.count_parameters() + dims[i] + dims[i + 2]


def test_product_has_the_smallest_rank(rng, randn):
    ranks = rng.integers(2, 8, 3).tolist()
    for layer in (
        MultiStageFactorizedLinear(12, 11, ranks, dtype=torch.float64),
        MultiStageFactorizedLinear.from_linear(nn.Linear(12, 11, dtype=torch.float64), ranks),
    ):
        assert np.linalg.matrix_rank(layer.reconstruct_weight().detach().numpy()) == min(ranks)


def test_only_the_last_factor_carries_the_bias():
    layer = MultiStageFactorizedLinear(7, 5, [3, 4], bias=True)
    assert [factor.bias is not None for factor in layer.factors] == [False, False, True]
    assert layer.bias is layer.factors[-1].bias


def test_stages_share_the_spectrum_evenly(linear):
    layer = MultiStageFactorizedLinear.from_linear(linear(9, 9, dtype=torch.float64), [4, 4])
    norms = [factor.weight.norm().item() for factor in layer.factors]
    assert norms == pytest.approx([norms[0]] * 3)


# --- QuantizedLowRankLayer --------------------------------------------------------------------------------------------


def test_before_quantization_it_computes_with_its_float_factors(linear, randn):
    layer, x = QuantizedLowRankLayer(12, 9, 4, n_bits=2), randn(5, 12)
    assert not layer.quantized
    torch.testing.assert_close(layer(x), x @ layer.V.T @ layer.U.T)
    layer.quantize()
    assert layer.quantized
    assert layer.U is None
    assert layer.V is None


def test_forward_quantized_before_quantize_says_what_to_call(randn):
    layer = QuantizedLowRankLayer(12, 9, 4)
    for ask in (lambda: layer.forward_quantized(randn(5, 12)), lambda: layer.U_q, lambda: layer.V_q):
        with pytest.raises(
            RuntimeError, match=r"^[UV] : la couche n'est pas quantifiée, appelez d'abord quantize_weights\(\)"
        ):
            ask()


@pytest.mark.parametrize("n_bits", range(1, 9))
@with_or_without_bias
def test_packed_sizes_are_real(n_bits, bias, linear):
    m, n, r = 9, 13, 3
    layer = QuantizedLowRankLayer.from_linear(linear(n, m, bias), r, n_bits)
    factors = math.ceil(m * r * n_bits / 8) + math.ceil(r * n * n_bits / 8) + 2 * 4  # deux échelles float32
    assert layer.nbytes() == factors + 4 * m * bias
    assert layer.compression_ratio() == pytest.approx(4 * m * n / factors)
    assert layer.count_parameters() == r * (m + n)  # les facteurs seuls, quel que soit le nombre de bits
    assert not any(p.numel() for name, p in layer.named_parameters() if name != "bias")


@pytest.mark.parametrize("n_bits", range(1, 9))
def test_codes_are_those_of_the_factors(n_bits, randn):
    layer = QuantizedLowRankLayer(13, 9, 3, n_bits)
    U, V = layer.U.detach().clone(), layer.V.detach().clone()
    layer.quantize()
    for factor, codes, scale in [(U, layer.U_q, layer.U_scale), (V, layer.V_q, layer.V_scale)]:
        assert codes.dtype == torch.int8
        assert codes.shape == factor.shape
        if n_bits == 1:
            torch.testing.assert_close(codes * scale, factor.sign() * factor.abs().mean())
        else:
            assert ((factor - codes * scale).abs() <= scale / 2 * (1 + 1e-4)).all()
    torch.testing.assert_close(layer.reconstruct_weight(), (layer.U_q * layer.U_scale) @ (layer.V_q * layer.V_scale))


def test_error_shrinks_with_bits(linear):
    source = linear(60, 50)
    best = SVDCompressedLinear.from_linear(source, 20).reconstruction_error(source.weight)
    errors = [
        QuantizedLowRankLayer.from_linear(source, 20, bits).reconstruction_error(source.weight) for bits in range(2, 9)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] > best  # quantifier ne répare rien
    assert errors[-1] == pytest.approx(best, rel=0.02)
    assert errors[0] > 1.2 * best


def test_quantize_twice_changes_nothing(linear, randn):
    layer = QuantizedLowRankLayer.from_linear(linear(13, 9), 3, 4)
    before = snapshot(layer)
    layer.quantize()
    assert unchanged(layer, before)
    x = randn(2, 13)
    assert torch.equal(layer(x), layer.forward_quantized(x))


def test_zero_layer_stays_zero():
    source = nn.Linear(6, 4)
    nn.init.zeros_(source.weight)
    for bits in range(1, 9):
        W = QuantizedLowRankLayer.from_linear(source, 2, bits).reconstruct_weight()
        assert torch.equal(W, torch.zeros(4, 6))


def test_failed_quantization_leaves_the_layer_whole(randn):
    layer = QuantizedLowRankLayer(12, 9, 4)
    with torch.no_grad():
        layer.V[0, 0] = math.nan
    with pytest.raises(ValueError, match="vide ou non fini"):
        layer.quantize()
    assert not layer.quantized
    assert layer.U is not None
    assert layer(randn(2, 12)).shape == (2, 9)


@pytest.mark.parametrize("n_bits", [1, 3, 8])
def test_a_file_of_codes_loads_into_a_fresh_layer(n_bits, linear, randn):
    layer = QuantizedLowRankLayer.from_linear(linear(13, 9), 3, n_bits)
    fresh = QuantizedLowRankLayer(13, 9, 3, n_bits, bias=True)
    fresh.load_state_dict(load(save(layer.state_dict())))
    x = randn(4, 13)
    assert fresh.quantized
    assert torch.equal(fresh(x), layer(x))
    nested = nn.Sequential(QuantizedLowRankLayer(13, 9, 3, n_bits, bias=True))
    nested.load_state_dict(nn.Sequential(layer).state_dict())
    assert torch.equal(nested(x), layer(x))


def test_float_factors_load_into_a_fresh_layer(randn):
    layer, fresh, x = QuantizedLowRankLayer(13, 9, 3), QuantizedLowRankLayer(13, 9, 3), randn(4, 13)
    fresh.load_state_dict(layer.state_dict())
    assert not fresh.quantized
    assert torch.equal(fresh(x), layer(x))


def test_converting_the_dtype_after_quantization(linear, randn):
    layer = QuantizedLowRankLayer.from_linear(linear(13, 9), 3).double()
    assert layer.reconstruct_weight().dtype == torch.float64
    assert layer(randn(2, 13, dtype=torch.float64)).dtype == torch.float64
    assert layer.U_packed.packed.dtype == torch.uint8


# --- compare_factorized_vs_standard -----------------------------------------------------------------------------------


def test_comparison_by_hand(linear):
    source = linear(30, 20)
    result = compare_factorized_vs_standard(30, 20, 5, num_tests=7, linear_layer=source, seed=4)
    x = torch.randn(7, 30, generator=torch.Generator().manual_seed(4)).double().numpy()
    W, b = source.weight.detach().double().numpy(), source.bias.detach().double().numpy()
    U, S, Vh = scipy.linalg.svd(W, full_matrices=False)
    y, y_r = x @ W.T + b, x @ ((U[:, :5] * S[:5]) @ Vh[:5]).T + b
    assert result["compression"] == pytest.approx(600 / 250)
    assert result["error"] == pytest.approx(np.linalg.norm(y - y_r) / np.linalg.norm(y), rel=1e-4)
    assert {"compression", "error"} <= result.keys()


def test_comparison_is_reproducible_and_leaves_the_generator_alone(capsys):
    state = torch.get_rng_state()
    first = compare_factorized_vs_standard(30, 20, 5)
    torch.rand(1)
    assert compare_factorized_vs_standard(30, 20, 5) == first
    assert compare_factorized_vs_standard(30, 20, 5, seed=1) != first
    torch.set_rng_state(state)
    compare_factorized_vs_standard(30, 20, 5)
    assert torch.equal(torch.get_rng_state(), state)
    assert capsys.readouterr().out == ""
    compare_factorized_vs_standard(30, 20, 5, verbose=True)
    assert capsys.readouterr().out.startswith("30 → 20, rang 5 : ×2.40, erreur 0.")


def test_comparison_of_extreme_layers(linear):
    zero = nn.Linear(6, 4, bias=False)
    nn.init.zeros_(zero.weight)
    assert compare_factorized_vs_standard(6, 4, 2, linear_layer=zero)["error"] == 0.0
    source = linear(6, 4, bias=False)
    plain = compare_factorized_vs_standard(6, 4, 2, linear_layer=source)["error"]
    source.weight.data *= 1e30
    assert compare_factorized_vs_standard(6, 4, 2, linear_layer=source)["error"] == pytest.approx(plain, rel=1e-3)
    assert compare_factorized_vs_standard(6, 4, 4)["error"] < 1e-5


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ((0, 4, 1), {}, ValueError, "in_features : reçu 0"),
        ((6, -1, 1), {}, ValueError, "out_features : reçu -1"),
        ((6, 4, 5), {}, ValueError, "rank : reçu 5"),
        ((6, 4, 2), {"num_tests": 0}, ValueError, "num_tests : reçu 0"),
        ((6, 4, 2), {"linear_layer": nn.Linear(5, 4)}, ValueError, "linear_layer : reçu 5 → 4, attendu 6 → 4"),
        ((6, 4, 2), {"linear_layer": nn.Conv2d(6, 4, 1)}, TypeError, "linear_layer : reçu Conv2d"),
    ],
)
def test_comparison_names_what_is_wrong(args, options, error, message):
    with pytest.raises(error, match=f"^{message}"):
        compare_factorized_vs_standard(*args, **options)


# --- replace_linears --------------------------------------------------------------------------------------------------


@pytest.fixture
def network():
    return nn.Sequential(
        nn.Linear(8, 12), nn.ReLU(), nn.Sequential(nn.Linear(12, 12), nn.Conv1d(1, 1, 1)), nn.Linear(12, 5)
    )


def test_replacement_works_on_a_copy(network, randn):
    x, before = randn(3, 8), snapshot(network)
    kinds = [type(module) for module in network.modules()]
    compressed = replace_linears(network, lambda layer: FactorizedLinear.from_linear(layer, 4))
    assert unchanged(network, before)
    assert [type(module) for module in network.modules()] == kinds
    assert linear_names(compressed) == []
    assert isinstance(compressed[2][0], FactorizedLinear)
    with torch.no_grad():
        for p in compressed.parameters():
            p.zero_()
    assert unchanged(network, before)
    assert network[0](x).abs().sum() > 0


def test_full_rank_replacement_computes_the_same(network, randn):
    network[2] = network[2][0]
    exact = replace_linears(network, lambda layer: SVDCompressedLinear.from_linear(layer, min(layer.weight.shape)))
    x = randn(3, 8)
    torch.testing.assert_close(exact(x), network(x), rtol=1e-4, atol=1e-5)


def test_only_the_named_layers_are_replaced(network):
    assert linear_names(network) == ["0", "2.0", "3"]
    compressed = replace_linears(network, lambda layer: FactorizedLinear.from_linear(layer, 4), ["2.0"])
    assert linear_names(compressed) == ["0", "3"]
    assert linear_names(replace_linears(network, FactorizedLinear.from_linear, [])) == ["0", "2.0", "3"]


@pytest.mark.parametrize("names", [["absent"], ["2.1"], ["0", "1"], [""]])
def test_unknown_names_are_refused(network, names):
    with pytest.raises(ValueError, match=r"^names : '.*' n'est pas une nn\.Linear du réseau, qui a : 0, 2\.0, 3"):
        replace_linears(network, lambda layer: FactorizedLinear.from_linear(layer, 4), names)


def test_a_model_that_is_itself_a_linear(linear):
    source = linear(8, 6)
    adapted = replace_linears(source, lambda layer: LoRALayer(layer, 2))  # LoRALayer gèle la couche qu'on lui donne
    assert isinstance(adapted, LoRALayer)
    assert adapted.original is not source
    assert all(p.requires_grad for p in source.parameters())
    with pytest.raises(ValueError, match=r"^names : 'absent'"):
        replace_linears(source, lambda layer: LoRALayer(layer, 2), ["absent"])


def test_a_shared_layer_stays_shared():
    shared = nn.Linear(6, 6)

    def shrink(layer):
        return FactorizedLinear.from_linear(layer, 2)

    compressed = replace_linears(nn.Sequential(shared, nn.ReLU(), shared), shrink)
    assert isinstance(compressed[0], FactorizedLinear)
    assert compressed[0] is compressed[2]


def test_the_evaluation_mode_is_kept(network):
    compressed = replace_linears(network.eval(), lambda layer: FactorizedLinear.from_linear(layer, 4))
    assert not any(module.training for module in compressed.modules())


def test_a_conversion_that_fails_leaves_the_network_whole(network):
    before = snapshot(network)
    with pytest.raises(ValueError, match=r"^rank : reçu 8"):
        replace_linears(network, lambda layer: FactorizedLinear.from_linear(layer, 8))  # la dernière n'a que 5 sorties
    assert unchanged(network, before)


@pytest.mark.parametrize("function", [linear_names, lambda model: replace_linears(model, nn.Identity)])
def test_what_is_no_model_is_named(function):
    with pytest.raises(TypeError, match=r"^model : reçu list, attendu nn\.Module"):
        function([nn.Linear(2, 2)])


# --- mauvaises entrées ------------------------------------------------------------------------------------------------

BAD_RANKS = [
    (0, ValueError, "reçu 0, attendu un entier ≥ 1"),
    (-1, ValueError, "reçu -1, attendu un entier ≥ 1"),
    (5, ValueError, r"reçu 5, attendu au plus min\(m, n\) = 4 pour une matrice 4×6"),
    (2.5, TypeError, r"reçu 2\.5, attendu un entier"),
    (True, TypeError, "reçu True, attendu un entier"),
    ("4", TypeError, "reçu '4', attendu un entier"),
    (None, TypeError, "reçu None, attendu un entier"),
]
RANKED = {
    **{f"{name}()": build for name, build in BUILD.items()},
    **{f"{name}.from_linear": lambda n, m, r, f=f: f(nn.Linear(n, m), r) for name, f in CONVERT.items()},
    "LoRALayer": lambda n, m, r: LoRALayer(nn.Linear(n, m), r),
}


@pytest.mark.parametrize("make", [pytest.param(f, id=name) for name, f in RANKED.items()])
@pytest.mark.parametrize(("rank", "error", "message"), BAD_RANKS)
def test_bad_rank_is_named(make, rank, error, message):
    with pytest.raises(error, match=rf"^ranks?(\[\d\])? : {message}"):
        make(6, 4, rank)


@pytest.mark.parametrize("ranks", [3, [], "34", None, {2: 3}])
def test_bad_list_of_ranks_is_named(ranks):
    for make in (
        lambda: MultiStageFactorizedLinear(6, 4, ranks),
        lambda: MultiStageFactorizedLinear.from_linear(nn.Linear(6, 4), ranks),
    ):
        with pytest.raises(ValueError, match=r"^ranks : reçu .*, attendu une liste non vide de rangs"):
            make()


@pytest.mark.parametrize("build", BUILD.values(), ids=BUILD)
@pytest.mark.parametrize(
    ("n", "m", "error", "message"),
    [
        (0, 4, ValueError, "in_features : reçu 0"),
        (6, -1, ValueError, "out_features : reçu -1"),
        (2.5, 4, TypeError, r"in_features : reçu 2\.5"),
        (6, "4", TypeError, "out_features : reçu '4'"),
        (True, 4, TypeError, "in_features : reçu True"),
    ],
)
def test_bad_dimension_is_named(build, n, m, error, message):
    with pytest.raises(error, match=f"^{message}, attendu un entier ≥ 1"):
        build(n, m, 1)


@pytest.mark.parametrize(
    ("n_bits", "error", "shown"),
    [(0, ValueError, "0"), (9, ValueError, "9"), (2.5, TypeError, r"2\.5"), (True, TypeError, "True")],
)
def test_bad_number_of_bits_is_named(n_bits, error, shown):
    for make in (
        lambda: QuantizedLowRankLayer(6, 4, 2, n_bits),
        lambda: QuantizedLowRankLayer.from_linear(nn.Linear(6, 4), 2, n_bits),
    ):
        with pytest.raises(error, match=f"^n_bits : reçu {shown}, attendu un entier entre 1 et 8"):
            make()


SOURCED = {
    **{name: (lambda layer, f=f: f(layer, 2), "linear_layer") for name, f in CONVERT.items()},
    "LoRALayer": (lambda layer: LoRALayer(layer, 2), "original_layer"),
}
sourced = pytest.mark.parametrize(("make", "name"), [pytest.param(*pair, id=key) for key, pair in SOURCED.items()])


@sourced
@pytest.mark.parametrize("layer", [nn.Conv1d(4, 4, 1), nn.ReLU(), torch.ones(4, 4), [1.0], None])
def test_a_layer_of_another_class_is_named(make, name, layer):
    with pytest.raises(TypeError, match=rf"^{name} : reçu {type(layer).__name__}, attendu nn\.Linear"):
        make(layer)


@converted
def test_a_convolution_is_no_linear_layer(convert):
    with pytest.raises(TypeError, match=r"^linear_layer : reçu Conv2d, attendu nn\.Linear"):
        convert(nn.Conv2d(4, 4, 1), 2)


@sourced
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_sick_weights_and_biases_are_named(make, name, bad, linear):
    source = linear(6, 4)
    source.weight.data[1, 2] = bad
    grads = [p.requires_grad for p in source.parameters()]
    with pytest.raises(ValueError, match=rf"^{name}\.weight : 1 élément\(s\) sur 24 sont NaN ou infinis"):
        make(source)
    source = linear(6, 4)
    source.bias.data[1] = bad
    with pytest.raises(ValueError, match=rf"^{name}\.bias : NaN ou infini"):
        make(source)
    assert [p.requires_grad for p in source.parameters()] == grads


@sourced
def test_an_empty_layer_is_named(make, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch avertit qu'il n'a rien à initialiser
        source = nn.Linear(4, 0)
    with pytest.raises(ValueError, match=rf"^{name}\.weight : reçu une matrice vide \(0, 4\)"):
        make(source)


def test_safetensors_header_is_the_only_overhead():
    data = save(FactorizedLinear(7, 5, 3).state_dict())
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    assert header["U"]["shape"] == [5, 3]
    assert len(data) - 8 - size == FactorizedLinear(7, 5, 3).nbytes()
