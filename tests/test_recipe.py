"""La recette d'une couche comprimée la refait, vide de ses nombres ; son state_dict la rend telle quelle."""

import copy
import inspect

import pytest
import torch
from torch import nn

import lrq
from lrq import (
    ActivationQuantizer,
    CompactSVDLinear,
    FactorizedLinear,
    MultiStageFactorizedLinear,
    PerChannel,
    PerGroup,
    QATLowRankLinear,
    QATTTLinear,
    QuantizedConv2d,
    QuantizedEmbedding,
    QuantizedLinear,
    QuantizedLowRankLayer,
    QuantizedLowRankLinear,
    QuantizedResidualLinear,
    QuantizedTTLinear,
    SVDCompressedLinear,
    SVDConv2d,
    TruncatedSVDLinear,
    TTLinear,
    UniformQuantizer,
)
from lrq.layers import CompressedLayer, CompressedLinear, LowRankLinear, QuantizedFactors

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
N, M, R = 24, 12, 4
IN, OUT = [4, 6], [3, 4]
AFFINE = UniformQuantizer(5, symmetric=False, signed=False, granularity=PerGroup(4), scale_dtype=torch.bfloat16)
CENTILES = UniformQuantizer(3, granularity=PerChannel(0), clipping="percentile", percentile=98.0)
WINDOW = {"stride": (2, 1), "padding": "valid", "groups": 2}


def with_inputs(layer):
    """La couche, entrées arrondies."""
    layer.input_quantizer = ActivationQuantizer(4, -1.0, 2.0)
    return layer


def fresh(kind, **options):
    """Une couche de rang r qui garde ses facteurs flottants."""
    return lambda source: kind(N, M, R, bias=source.bias is not None, dtype=source.weight.dtype, **options)


def wide_cores(source):
    """Une couche en train dont le rang dépasse ce que permettent les dimensions."""
    return [torch.randn(1, 2, 2, 9, dtype=source.weight.dtype), torch.randn(9, 12, 6, 1, dtype=source.weight.dtype)]


LINEAR = {
    "SVDCompressedLinear": lambda s: SVDCompressedLinear.from_linear(s, R),
    "FactorizedLinear": lambda s: FactorizedLinear.from_linear(s, R),
    "TruncatedSVDLinear": lambda s: TruncatedSVDLinear.from_linear(s, R),
    "CompactSVDLinear": lambda s: CompactSVDLinear.from_linear(s, R),
    "MultiStageFactorizedLinear": lambda s: MultiStageFactorizedLinear.from_linear(s, [R, 6]),
    "QuantizedLowRankLayer": lambda s: QuantizedLowRankLayer.from_linear(s, R, 3),
    "QuantizedLowRankLayer, flottante": fresh(QuantizedLowRankLayer, n_bits=5, granularity=PerGroup(4)),
    "QuantizedLowRankLinear": lambda s: QuantizedLowRankLinear.from_linear(s, R, 4, granularity=PerChannel(1)),
    "QuantizedLowRankLinear, flottante": fresh(QuantizedLowRankLinear, quantizer=CENTILES),
    "QuantizedLinear": lambda s: QuantizedLinear.from_linear(s, 4),
    "QuantizedLinear, affine": lambda s: QuantizedLinear.from_linear(s, quantizer=AFFINE),
    "QuantizedLinear, entrées": lambda s: with_inputs(QuantizedLinear.from_linear(s, quantizer=CENTILES)),
    "QuantizedResidualLinear": lambda s: QuantizedResidualLinear.from_linear(s, R, 3, granularity=PerGroup(8)),
    "QuantizedResidualLinear, flottante": lambda s: QuantizedResidualLinear(
        with_inputs(QuantizedLinear.from_linear(s)), FactorizedLinear.from_weight_matrix(s.weight, R)
    ),
    "QATLowRankLinear": lambda s: QATLowRankLinear.from_linear(s, R, 4, per_channel=True),
    "QATLowRankLinear, au pas appris": lambda s: QATLowRankLinear.from_linear(s, R, 4, learned_step=True),
    "TTLinear": lambda s: TTLinear.from_linear(s, IN, OUT, 5, cache=True),
    "TTLinear, rangs en trop": lambda s: TTLinear.from_cores(wide_cores(s)),
    "QuantizedTTLinear": lambda s: QuantizedTTLinear.from_linear(s, IN, OUT, 5, [8, 3], PerChannel(-1)),
    "QuantizedTTLinear, rangs en trop": lambda s: QuantizedTTLinear.from_cores(wide_cores(s), 4, gauge=None),
    "QATTTLinear": lambda s: QATTTLinear.from_linear(s, IN, OUT, 5, [8, 4]),
    "QATTTLinear, au pas appris": lambda s: QATTTLinear.from_linear(s, IN, OUT, 5, 4, True, True),
}
CONV = {
    "SVDConv2d": lambda s: SVDConv2d.from_conv2d(s, 3),
    "QuantizedConv2d": lambda s: QuantizedConv2d.from_conv2d(s, 4),
    "QuantizedConv2d, entrées": lambda s: with_inputs(QuantizedConv2d.from_conv2d(s, quantizer=CENTILES)),
}
EMBEDDING = {
    "QuantizedEmbedding": lambda s: QuantizedEmbedding.from_embedding(s, 4),
    "QuantizedEmbedding, affine": lambda s: QuantizedEmbedding.from_embedding(s, quantizer=AFFINE),
}
EVERY = {**LINEAR, **CONV, **EMBEDDING}
ABSTRACT = {CompressedLayer, CompressedLinear, LowRankLinear, QuantizedFactors}
every_layer = pytest.mark.parametrize("name", EVERY)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture
def build(linear, conv, randn, rng):
    """La couche de ce nom et une entrée : ``build("TTLinear", torch.float16)``."""

    def draw(name, dtype=torch.float32, bias=True):
        if name in CONV:
            return CONV[name](conv(4, 6, (3, 2), dtype, bias=bias, **WINDOW)), randn(2, 4, 7, 8, dtype=dtype)
        if name in EMBEDDING:
            source = nn.Embedding(30, N, padding_idx=3, dtype=dtype)
            return EMBEDDING[name](source), torch.tensor(rng.integers(0, 30, (2, 5)))
        return LINEAR[name](linear(N, M, bias, dtype)), randn(3, N, dtype=dtype)

    return draw


def remake(layer):
    """La couche que dit sa recette, sur l'appareil `meta`, les modules de la recette refaits d'abord."""
    made = {name: remake(value) if isinstance(value, nn.Module) else value for name, value in layer.recipe().items()}
    device = {"device": "meta"} if "device" in inspect.signature(type(layer)).parameters else {}
    return type(layer)(**made, **device)


def described(layer):
    return [(name, t.shape, t.dtype) for name, t in layer.state_dict().items()]


def test_every_compressed_layer_is_there():
    exported = {value for value in vars(lrq.layers).values() if inspect.isclass(value)}
    concrete = {kind for kind in exported if issubclass(kind, CompressedLayer)} - ABSTRACT
    assert {kind.__name__ for kind in concrete} == {name.partition(",")[0] for name in EVERY}


@every_layer
@every_dtype
@pytest.mark.parametrize("bias", [True, False], ids=["biais", "sans biais"])
def test_the_recipe_and_the_state_make_the_layer_again(name, dtype, bias, build):
    layer, x = build(name, dtype, bias)
    again = remake(layer)
    assert described(again) == described(layer)
    assert all(t.is_meta for t in again.state_dict().values())
    again.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(again(x), layer(x))
    assert torch.equal(again.reconstruct_weight(), layer.reconstruct_weight())
    assert again.dtype == layer.dtype == again.reconstruct_weight().dtype == dtype
    assert not any(t.is_meta for t in [*again.parameters(), *again.buffers()])
    assert (again.nbytes(), repr(again)) == (layer.nbytes(), repr(layer))
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in layer.parameters()]


@every_layer
def test_what_is_remade_lives_on(name, build):
    layer, x = build(name)
    again = remake(layer)
    again.load_state_dict(layer.state_dict(), assign=True)
    again = remake(copy.deepcopy(again))  # une recette de recette
    again.load_state_dict(layer.state_dict(), assign=True)
    moved = again.to("cpu").double()
    twin = layer.double()
    x = x.double() if x.is_floating_point() else x
    assert torch.equal(moved(x), twin(x))
    assert described(moved) == described(twin)


@every_layer
def test_a_recipe_holds_no_number_of_the_layer(name, build):
    recipe = build(name)[0].recipe()
    assert "device" not in recipe
    assert not any(isinstance(value, torch.Tensor) for value in recipe.values())


@pytest.mark.parametrize("quantizer", [AFFINE, CENTILES, UniformQuantizer()], ids=str)
def test_a_quantizer_is_its_recipe(quantizer, randn):
    again, t = UniformQuantizer(**quantizer.recipe()), randn(6, 8)
    assert vars(again) == vars(quantizer)
    assert again.recipe() == quantizer.recipe()
    assert torch.equal(again.quantize_dequantize(t), quantizer.quantize_dequantize(t))


def test_new_arguments_refuse_in_french():
    with pytest.raises(ValueError, match=r"^quantizer : reçu .*, attendu une grille symétrique et signée"):
        QuantizedLowRankLinear(N, M, R, quantizer=AFFINE)
    with pytest.raises(ValueError, match=r"^quantizer : reçu .*, attendu une grille symétrique et signée"):
        QuantizedLowRankLinear.from_weight_matrix(torch.ones(M, N), R, quantizer=AFFINE)
    with pytest.raises(ValueError, match=r"^quantizer : reçu 3, attendu un seul, ou 2"):
        QuantizedTTLinear(IN, OUT, 2, quantizer=[CENTILES] * 3)
    with pytest.raises(ValueError, match=r"^rank : reçu \[2, 2\], attendu un entier, ou 1"):
        TTLinear(IN, OUT, [2, 2], clamp=False)
    assert TTLinear(IN, OUT, 99).ranks == [12]
    assert TTLinear(IN, OUT, 99, clamp=False).ranks == [99]
