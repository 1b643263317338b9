"""La convolution quantifiée est une nn.Conv2d dont les noyaux sont arrondis, quelles que soient ses options."""

import copy
import math

import pytest
import torch
from test_conv import every_option
from torch import nn

from lrq import ActivationQuantizer, PerChannel, PerGroup, PerTensor, QuantizedConv2d, UniformQuantizer
from lrq.quantizers import CLIPPINGS

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
GRANULARITIES = [PerTensor(), PerChannel(0), PerChannel(1), PerGroup(3)]


def rounded(source, quantizer):
    """La même convolution, noyaux arrondis : une nn.Conv2d ordinaire."""
    expected = copy.deepcopy(source)
    expected.weight.data = quantizer.quantize_dequantize(source.weight)
    return expected


@every_option
@pytest.mark.parametrize("bias", [True, False], ids=["biais", "sans biais"])
def test_it_is_the_convolution_of_the_rounded_kernels(n, m, kernel, options, bias, conv, randn):
    source = conv(n, m, kernel, bias=bias, **options)
    quantizer = UniformQuantizer(4, granularity=PerChannel(0))
    layer, expected = QuantizedConv2d.from_conv2d(source, 4), rounded(source, quantizer)
    for shape in [(2, n, 9, 8), (n, 9, 8)]:
        x = randn(*shape)
        assert torch.equal(layer(x), expected(x))
    assert torch.equal(layer.reconstruct_weight(), expected.weight)
    assert (layer.bias is not None) == bias
    assert not torch.equal(expected.weight, source.weight)


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("clipping", CLIPPINGS)
@pytest.mark.parametrize("n_bits", [1, 3, 8])
def test_the_options_reach_the_quantizer(granularity, clipping, n_bits, conv, randn):
    source, x = conv(4, 6, 3, padding=1, groups=2), randn(2, 4, 7, 5)
    quantizer = UniformQuantizer(n_bits, granularity=granularity, clipping=clipping)
    layer = QuantizedConv2d.from_conv2d(source, n_bits, granularity, clipping)
    assert torch.equal(layer(x), rounded(source, quantizer)(x))
    fine = UniformQuantizer(5, symmetric=False, granularity=granularity, scale_dtype=torch.bfloat16)
    assert torch.equal(QuantizedConv2d.from_conv2d(source, quantizer=fine)(x), rounded(source, fine)(x))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtype_is_kept_and_the_source_is_not_shared(dtype, conv, randn):
    source = conv(3, 4, 3, dtype=dtype, padding=1)
    layer, x = QuantizedConv2d.from_conv2d(source, 5), randn(2, 3, 6, 6, dtype=dtype)
    expected = rounded(source, UniformQuantizer(5, granularity=PerChannel(0)))(x)
    with torch.no_grad():
        for p in source.parameters():
            p.zero_()
    y = layer(x)
    assert {y.dtype, layer.reconstruct_weight().dtype, layer.bias.dtype} == {dtype}
    assert torch.equal(y, expected)


def test_empty_batches_and_null_kernels(conv, randn):
    source = conv(4, 6, 3, padding=1)
    assert QuantizedConv2d.from_conv2d(source)(randn(0, 4, 5, 5)).shape == (0, 6, 5, 5)
    nn.init.zeros_(source.weight)
    layer = QuantizedConv2d.from_conv2d(source, 2)
    assert torch.equal(layer(randn(2, 4, 5, 5)), source.bias[:, None, None].expand(2, 6, 5, 5))
    assert layer.reconstruction_error(source.weight) == 0.0


def test_inputs_are_rounded_too_when_asked(conv, randn):
    source, x = conv(4, 6, 3, padding=1, padding_mode="circular"), randn(2, 4, 7, 5)
    layer = QuantizedConv2d.from_conv2d(source, 8)
    plain = layer(x)
    layer.input_quantizer = ActivationQuantizer(3, -2.0, 2.0)
    expected = rounded(source, UniformQuantizer(8, granularity=PerChannel(0)))(layer.input_quantizer(x))
    assert torch.equal(layer(x), expected)
    assert not torch.equal(layer(x), plain)


def test_it_weighs_its_bits_and_its_scales(conv):
    for n_bits in range(1, 9):
        source = conv(4, 6, (3, 5), groups=2)
        layer = QuantizedConv2d.from_conv2d(source, n_bits)
        exact = math.ceil(source.weight.numel() * n_bits / 8) + 4 * 6
        assert layer.nbytes() == exact + 4 * 6
        assert layer.count_parameters() == layer.dense_parameters() == source.weight.numel()
        assert layer.compression_ratio() == pytest.approx(4 * source.weight.numel() / exact)


def test_held_kernels_and_fresh_ones(conv, randn):
    source, x = conv(4, 6, 3, stride=2, groups=2), randn(2, 4, 7, 5)
    quantizer = UniformQuantizer(4, symmetric=False, granularity=PerGroup(3))
    layer = QuantizedConv2d.hold(quantizer.compress(source.weight), source)
    assert torch.equal(layer(x), rounded(source, quantizer)(x))
    fresh = QuantizedConv2d(4, 6, 3, stride=2, groups=2, quantizer=quantizer)
    assert torch.equal(fresh(x), torch.zeros_like(layer(x)))
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x), layer(x))
    assert repr(fresh) == repr(layer)
    assert "4, 6, kernel_size=(3, 3), stride=(2, 2), groups=2, bias=True" in repr(layer)


def test_gradients_reach_the_input_and_the_bias(conv, randn):
    source = conv(3, 4, 3, dtype=torch.float64)
    layer, x = QuantizedConv2d.from_conv2d(source, 4), randn(2, 3, 6, 6, dtype=torch.float64).requires_grad_()
    twin, expected = x.detach().clone().requires_grad_(), rounded(source, layer.packed.quantizer)
    layer(x).square().sum().backward()
    expected(twin).square().sum().backward()
    torch.testing.assert_close(x.grad, twin.grad)
    torch.testing.assert_close(layer.bias.grad, expected.bias.grad)


def test_refusals_are_named(conv, linear, randn):
    source = conv(4, 6, 3)
    with pytest.raises(TypeError, match=r"^conv_layer : reçu Linear, attendu nn\.Conv2d"):
        QuantizedConv2d.from_conv2d(linear())
    with pytest.raises(ValueError, match=r"^n_bits : reçu 9"):
        QuantizedConv2d.from_conv2d(source, 9)
    with pytest.raises(ValueError, match=r"^size : reçu 2, attendu un diviseur"):
        QuantizedConv2d.from_conv2d(source, granularity=PerGroup(2))
    with pytest.raises(ValueError, match=r"^x : reçu la forme \(2, 3, 9, 9\), attendu \(B, 4, H, W\)"):
        QuantizedConv2d.from_conv2d(source)(randn(2, 3, 9, 9))
    with pytest.raises(ValueError, match=r"^out_channels : reçu 5, attendu un multiple de groups = 2"):
        QuantizedConv2d(4, 5, 3, groups=2)
    with pytest.raises(ValueError, match=r"^kernel_size : reçu \(3,\), attendu un entier ou deux"):
        QuantizedConv2d(4, 6, (3,))
    with pytest.raises(ValueError, match=r"^stored : reçu la forme \(2, 2\), attendu \(6, 4, 3, 3\)"):
        QuantizedConv2d.hold(UniformQuantizer().compress(randn(2, 2)), source)
    source.weight.data[0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match=r"^conv_layer.weight : 1 élément"):
        QuantizedConv2d.from_conv2d(source)
