"""La convolution de rang r : mêmes options, même fonction au rang plein, et la meilleure approximation avant."""

import copy
import math
import struct

import numpy as np
import pytest
import scipy.linalg
import torch
from safetensors.torch import load_file, save, save_file
from torch import nn
from torch.nn import functional as F

from lrq import LoRALayer, QuantizedConv2d, SVDConv2d

# nom → (in, out, noyau, options de nn.Conv2d)
OPTIONS = {
    "nue": (4, 6, 3, {}),
    "1×1": (5, 7, 1, {}),
    "pas et bordure": (4, 6, 3, {"stride": 2, "padding": 1}),
    "pas rectangulaire": (4, 6, 3, {"stride": (1, 2), "padding": (2, 0)}),
    "noyau rectangulaire": (3, 8, (1, 5), {"padding": (0, 2)}),
    "dilatation": (4, 6, 3, {"dilation": (2, 1), "padding": 2}),
    "same": (4, 6, (3, 4), {"padding": "same", "dilation": 2}),
    "valid": (4, 6, 3, {"padding": "valid"}),
    "deux groupes": (4, 6, 3, {"groups": 2, "padding": 1}),
    "par canal": (6, 12, 3, {"groups": 6, "stride": 2}),
    "bordure circulaire": (4, 6, 3, {"padding": 1, "padding_mode": "circular"}),
    "bordure réfléchie": (4, 6, 3, {"padding": (1, 2), "padding_mode": "reflect", "stride": 2}),
    "bordure répétée": (4, 6, 3, {"padding": "same", "padding_mode": "replicate", "groups": 2}),
}
every_option = pytest.mark.parametrize(
    ("n", "m", "kernel", "options"), [pytest.param(*case, id=name) for name, case in OPTIONS.items()]
)


def groups_of(conv):
    """Les matrices (out/g, in/g·kh·kw) des groupes, par NumPy."""
    W = conv.weight.detach().double().numpy()
    return np.split(W.reshape(len(W), -1), conv.groups)


def full_rank(conv):
    return min(groups_of(conv)[0].shape)


# --- la même fonction -------------------------------------------------------------------------------------------------


@every_option
@pytest.mark.parametrize("bias", [True, False], ids=["biais", "sans biais"])
def test_full_rank_is_the_original(n, m, kernel, options, bias, conv, randn):
    source = conv(n, m, kernel, torch.float64, bias=bias, **options)
    layer = SVDConv2d.from_conv2d(source, full_rank(source))
    x = randn(2, n, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(x), source(x))
    torch.testing.assert_close(layer.reconstruct_weight(), source.weight)
    assert (layer.bias is not None) == bias


@every_option
def test_truncation_is_eckart_young_in_each_group(n, m, kernel, options, conv):
    source = conv(n, m, kernel, torch.float64, **options)
    for rank in range(1, full_rank(source) + 1):
        layer = SVDConv2d.from_conv2d(source, rank)
        rebuilt = layer.reconstruct_weight().detach().numpy().reshape(m, -1)
        tails = [(scipy.linalg.svdvals(W)[rank:] ** 2).sum() for W in groups_of(source)]
        for W, approximation, tail in zip(groups_of(source), np.split(rebuilt, source.groups), tails, strict=True):
            assert np.linalg.norm(W - approximation) == pytest.approx(math.sqrt(tail), abs=1e-12)
            assert np.linalg.matrix_rank(approximation, tol=1e-9) == rank
        norm = math.sqrt(sum((W**2).sum() for W in groups_of(source)))
        assert layer.reconstruction_error(source.weight) == pytest.approx(math.sqrt(sum(tails)) / norm, abs=1e-9)


@every_option
def test_forward_applies_the_reconstructed_weight(n, m, kernel, options, conv, randn):
    source = conv(n, m, kernel, torch.float64, **options)
    layer = SVDConv2d.from_conv2d(source, 1)
    source.weight.data = layer.reconstruct_weight().detach()
    x = randn(2, n, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(x), source(x))


def test_a_layer_built_alone_works_too(randn):
    layer = SVDConv2d(4, 6, (3, 2), 2, stride=2, padding=1, groups=2, bias=False)
    x = randn(2, 4, 8, 9)
    expected = F.conv2d(x, layer.reconstruct_weight(), stride=2, padding=1, groups=2)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    assert layer.bias is None
    assert SVDConv2d(3, 5, 3, 2).bias.shape == (5,)


def test_a_batch_of_zero_and_a_single_image(conv, randn):
    source = conv(4, 6, 3, padding=1)
    layer = SVDConv2d.from_conv2d(source, 6)
    assert layer(randn(0, 4, 5, 7)).shape == (0, 6, 5, 7)
    x = randn(4, 5, 7)
    torch.testing.assert_close(layer(x), source(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_dtype_is_kept(dtype, conv, randn):
    source = conv(4, 6, 3, dtype, groups=2)
    layer = SVDConv2d.from_conv2d(source, 3)
    assert {p.dtype for p in layer.parameters()} == {dtype}
    x = randn(2, 4, 6, 6, dtype=dtype)
    y = layer(x)
    assert y.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(y, source(x), rtol=64 * eps, atol=512 * eps)
    assert layer.reconstruction_error(source.weight) < 64 * eps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_decomposed_in_float32(dtype, conv):
    source = conv(4, 6, 3, dtype)
    wide = nn.Conv2d(4, 6, 3)
    wide.load_state_dict({key: value.float() for key, value in source.state_dict().items()})
    for found, exact in zip(
        SVDConv2d.from_conv2d(source, 2).parameters(), SVDConv2d.from_conv2d(wide, 2).parameters(), strict=True
    ):
        assert torch.equal(found, exact.to(dtype))


def test_the_channels_last_layout_works(conv, randn):
    source = conv(4, 6, 3).to(memory_format=torch.channels_last)
    layer = SVDConv2d.from_conv2d(source, 6).to(memory_format=torch.channels_last)
    x = randn(2, 4, 6, 6).to(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(x), source(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.reconstruct_weight(), source.weight, rtol=1e-4, atol=1e-4)


# --- calibration ------------------------------------------------------------------------------------------------------


def correlated(randn, rng, *shape):
    """Des images dont les canaux ont des échelles très différentes, et des pixels voisins liés."""
    x = randn(*shape, dtype=torch.float64).cumsum(-1)
    return x * torch.tensor(3.0 ** rng.permutation(shape[1]))[:, None, None]


def output_error(layer, source, x):
    """Par groupe, la norme de ce que les sorties perdent."""
    gap = (layer(x) - source(x)).detach()
    return [float(part.norm()) for part in gap.chunk(source.groups, dim=1)]


@every_option
def test_calibration_is_the_best_for_the_outputs_of_each_group(n, m, kernel, options, conv, randn, rng):
    source = conv(n, m, kernel, torch.float64, **options)
    x = correlated(randn, rng, 30, n, 9, 8)
    for rank in {1, full_rank(source) // 2 or 1}:
        aware = SVDConv2d.from_conv2d(source, rank, x)
        plain = SVDConv2d.from_conv2d(source, rank)
        found = output_error(aware, source, x)
        assert all(a <= p * (1 + 1e-9) + 1e-9 for a, p in zip(found, output_error(plain, source, x), strict=True))
        # L'oracle : les sorties sans biais d'un groupe, en matrice, ne peuvent perdre moins que la queue de leur
        # spectre, et l'atteignent.
        y = source(x) - (0 if source.bias is None else source.bias[:, None, None])
        for error, part in zip(found, y.chunk(source.groups, dim=1), strict=True):
            S = scipy.linalg.svdvals(part.detach().transpose(0, 1).flatten(1).numpy())
            assert error == pytest.approx(math.sqrt((S[rank:] ** 2).sum()), rel=1e-6, abs=1e-6 * S[0])


def test_calibration_really_helps(conv, randn, rng):
    source = conv(8, 8, 3, torch.float64)
    x = correlated(randn, rng, 20, 8, 9, 9)
    aware, plain = SVDConv2d.from_conv2d(source, 2, x), SVDConv2d.from_conv2d(source, 2)
    assert output_error(aware, source, x)[0] < 0.95 * output_error(plain, source, x)[0]
    assert aware.reconstruction_error(source.weight) > plain.reconstruction_error(source.weight)


@pytest.mark.filterwarnings("ignore:calibration")
def test_a_group_that_saw_nothing_falls_back_on_the_plain_svd(conv, randn):
    source = conv(4, 8, 3, torch.float64, groups=2)
    x = randn(20, 4, 8, 8, dtype=torch.float64)
    x[:, 2:] = 0  # le second groupe ne reçoit que des zéros
    aware, plain = SVDConv2d.from_conv2d(source, 2, x), SVDConv2d.from_conv2d(source, 2)
    torch.testing.assert_close(aware.reconstruct_weight()[4:], plain.reconstruct_weight()[4:])
    assert not torch.allclose(aware.reconstruct_weight()[:4], plain.reconstruct_weight()[:4])


def test_calibration_takes_other_dtypes_and_a_single_image(conv, randn):
    source = conv(3, 4, 2, torch.bfloat16)
    x = randn(3, 12, 12)
    layer = SVDConv2d.from_conv2d(source, 4, x)
    assert layer.reconstruction_error(source.weight) < 0.02
    torch.testing.assert_close(
        SVDConv2d.from_conv2d(source, 2, x[None]).reconstruct_weight(),
        SVDConv2d.from_conv2d(source, 2, x).reconstruct_weight(),
    )


# --- tailles, copies, sauvegardes -------------------------------------------------------------------------------------


@every_option
def test_sizes_by_hand(n, m, kernel, options, conv):
    source = conv(n, m, kernel, **options)
    area, g = source.weight[0, 0].numel(), source.groups
    for rank in range(1, full_rank(source) + 1):
        layer = SVDConv2d.from_conv2d(source, rank)
        assert layer.count_parameters() == rank * (n * area + m)
        assert layer.compression_ratio() == pytest.approx(m * n * area / g / (rank * (n * area + m)))
        assert layer.nbytes() == 4 * (layer.count_parameters() + m)
        data = save(layer.state_dict())
        assert layer.nbytes() == len(data) - 8 - struct.unpack("<Q", data[:8])[0]
        assert all(p.untyped_storage().nbytes() == p.nbytes for p in layer.parameters())


def test_the_source_is_neither_changed_nor_shared(conv):
    source = conv(4, 6, 3)
    before = copy.deepcopy(source.state_dict())
    layer = SVDConv2d.from_conv2d(source, 3)
    assert all(torch.equal(before[name], value) for name, value in source.state_dict().items())
    mine = copy.deepcopy(layer.state_dict())
    with torch.no_grad():
        for p in source.parameters():
            p.fill_(7.0)
    assert all(torch.equal(mine[name], value) for name, value in layer.state_dict().items())
    assert all(p.requires_grad for p in (*source.parameters(), *layer.parameters()))


def test_state_dict_and_deepcopy(conv, randn, tmp_path):
    layer, other = (SVDConv2d.from_conv2d(conv(4, 6, 3), 3) for _ in range(2))
    x = randn(2, 4, 5, 5)
    y = layer(x)
    save_file(layer.state_dict(), tmp_path / "conv.safetensors")
    other.load_state_dict(load_file(tmp_path / "conv.safetensors"))
    assert torch.equal(other(x), y)
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    assert torch.equal(layer(x), y)


def test_gradients_reach_every_parameter(randn):
    layer = SVDConv2d(4, 6, 3, 2)
    layer(randn(2, 4, 5, 5)).pow(2).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in layer.parameters())


def test_conversion_leaves_the_global_generator_alone(conv):
    source = conv(4, 6, 3)
    state = torch.get_rng_state()
    SVDConv2d.from_conv2d(source, 3)
    assert torch.equal(torch.get_rng_state(), state)


def test_subclasses_convert_to_themselves(conv):
    class Mine(SVDConv2d):
        pass

    assert type(Mine.from_conv2d(conv(4, 6, 3), 2)) is Mine


def test_representation_gives_the_rank():
    text = repr(SVDConv2d(4, 6, 3, 2))
    assert "rank=2" in text
    assert "0x" not in text


# --- mauvaises entrées ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rank", "error", "message"),
    [
        (0, ValueError, "reçu 0, attendu un entier ≥ 1"),
        (4, ValueError, r"reçu 4, attendu au plus min\(m, n\) = 3 pour une matrice 3×18"),  # par groupe
        (1.5, TypeError, r"reçu 1\.5"),
        (True, TypeError, "reçu True"),
    ],
)
def test_bad_rank_is_named(rank, error, message):
    for make in (
        lambda: SVDConv2d(4, 6, 3, rank, groups=2),
        lambda: SVDConv2d.from_conv2d(nn.Conv2d(4, 6, 3, groups=2), rank),
    ):
        with pytest.raises(error, match=f"^rank : {message}"):
            make()


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ((0, 6, 3, 2), {}, ValueError, "in_channels : reçu 0"),
        ((4, 2.5, 3, 2), {}, TypeError, r"out_channels : reçu 2\.5"),
        ((4, 6, 0, 2), {}, ValueError, "kernel_size : reçu 0"),
        ((4, 6, 2.5, 2), {}, TypeError, r"kernel_size : reçu 2\.5"),
        ((4, 6, (3, True), 2), {}, TypeError, "kernel_size : reçu True"),
        ((4, 6, (3,), 2), {}, ValueError, r"kernel_size : reçu \(3,\), attendu un entier ou deux"),
        ((4, 6, (3, 3, 3), 2), {}, ValueError, r"kernel_size : reçu \(3, 3, 3\), attendu un entier ou deux"),
        ((4, 6, "33", 2), {}, TypeError, "kernel_size : reçu '33'"),
        ((4, 6, 3, 2), {"groups": 0}, ValueError, "groups : reçu 0"),
        ((4, 6, 3, 1), {"groups": 3}, ValueError, "in_channels : reçu 4, attendu un multiple de groups = 3"),
        ((4, 6, 3, 1), {"groups": 4}, ValueError, "out_channels : reçu 6, attendu un multiple de groups = 4"),
    ],
)
def test_bad_argument_is_named(args, options, error, message):
    with pytest.raises(error, match=f"^{message}"):
        SVDConv2d(*args, **options)


@pytest.mark.parametrize("layer", [nn.Linear(4, 4), nn.ConvTranspose2d(4, 4, 3), nn.Conv1d(4, 4, 3), None])
def test_a_layer_of_another_class_is_named(layer):
    with pytest.raises(TypeError, match=rf"^conv_layer : reçu {type(layer).__name__}, attendu nn\.Conv2d"):
        SVDConv2d.from_conv2d(layer, 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_sick_weights_and_biases_are_named(bad, conv):
    source = conv(4, 6, 3)
    source.weight.data[1, 2, 0, 0] = bad
    with pytest.raises(ValueError, match=r"^conv_layer\.weight : 1 élément\(s\) sur 216 sont NaN ou infinis"):
        SVDConv2d.from_conv2d(source, 2)
    source = conv(4, 6, 3)
    source.bias.data[1] = bad
    with pytest.raises(ValueError, match=r"^conv_layer\.bias : NaN ou infini"):
        SVDConv2d.from_conv2d(source, 2)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.ones(2, 3, 8, 8), ValueError, r"reçu la forme \(2, 3, 8, 8\), attendu \(B, 4, H, W\)"),
        (torch.ones(5), ValueError, r"reçu la forme \(5,\)"),
        ([1.0], TypeError, "reçu list, attendu un tenseur"),
        (torch.zeros(0, 4, 8, 8), ValueError, r"reçu la forme \(0, 4, 8, 8\), attendu au moins une entrée"),
        (torch.zeros(2, 4, 8, 8), ValueError, "toutes les entrées sont nulles"),
        (torch.full((2, 4, 8, 8), math.nan), ValueError, "NaN ou infini"),
    ],
)
def test_bad_images_are_named(x, error, message):
    with pytest.raises(error, match=f"^calibration : .*{message}"):
        SVDConv2d.from_conv2d(nn.Conv2d(4, 6, 3), 2, x)


def test_calibration_images_may_be_bytes(conv, rng):
    source, x = conv(3, 6, 3), torch.tensor(rng.integers(0, 256, (10, 3, 8, 8)), dtype=torch.uint8)
    found, expected = (SVDConv2d.from_conv2d(source, 2, images) for images in (x, x.float()))
    assert torch.equal(found.reconstruct_weight(), expected.reconstruct_weight())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "make",
    [lambda c: SVDConv2d.from_conv2d(c, 2), QuantizedConv2d.from_conv2d, lambda c: LoRALayer(c, 2)],
    ids=["SVDConv2d", "QuantizedConv2d", "LoRALayer"],
)
def test_images_of_integers_are_refused(make, bias):
    """Des poids ramenés au dtype de l'image deviendraient des zéros, et la sortie avec eux."""
    layer = make(nn.Conv2d(3, 8, 3, bias=bias))
    for dtype in (torch.uint8, torch.int32):
        with pytest.raises(TypeError, match=rf"^x : reçu des éléments {dtype}, attendu des flottants"):
            layer(torch.ones(1, 3, 8, 8, dtype=dtype))


@pytest.mark.parametrize("x", [torch.ones(2, 3, 8, 8), torch.ones(8, 8), [1.0]])
def test_an_input_of_the_wrong_shape_is_named(x):
    with pytest.raises((TypeError, ValueError), match=r"^x : reçu .*, attendu .*\(B, 4, H, W\)"):
        SVDConv2d(4, 6, 3, 2)(x)
