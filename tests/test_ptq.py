"""PTQ : les grilles sont celles que l'on calcule à part, les sorties celles de PyTorch, les lots de toute forme."""

import re

import numpy as np
import pytest
import torch
from test_methods import stored
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from transformers import BatchEncoding

from lrq import (
    ActivationHistogram,
    PTQCompression,
    QATLowRankLinear,
    QuantizedConv2d,
    QuantizedEmbedding,
    QuantizedLinear,
    QuantizedLowRankLinear,
)
from lrq.compression.ptq import CALIBRATIONS


class Image(nn.Module):
    """Deux convolutions, deux couches linéaires, des entrées qui ne sont pas centrées."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 6, 3, stride=2, groups=2, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.third = nn.Linear(6 * 9, 10)
        self.last = nn.Linear(10, 5, bias=False)

    def forward(self, x):
        return self.last(self.third(self.norm(self.second(self.first(x).relu())).flatten(1)).relu())


RIGHT = torch.ones(4, 2, 8, 8)
LAYERS = ["first", "second", "third", "last"]


@pytest.fixture
def image(randn):
    model = Image()
    for p in model.parameters():
        p.data = randn(*p.shape) / p[0].numel() ** 0.5
    return model.eval()


@pytest.fixture
def batches(randn):
    return [randn(5, 2, 8, 8) + 0.5 for _ in range(4)]


def inputs_of(model, names, batches):
    """Ce que reçoit chaque couche, tous lots réunis."""
    seen = {name: [] for name in names}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: seen[name].append(args[0].clone())
        )
        for name in names
    ]
    with torch.no_grad():
        for x in batches:
            model(x)
    for handle in handles:
        handle.remove()
    return {name: torch.cat([x.flatten() for x in inputs]) for name, inputs in seen.items()}


def by_torch(model, bits, per_channel, ranges, x):
    """Le réseau, où PyTorch lui-même arrondit poids et entrées, couche après couche."""
    top, levels = 2 ** (bits - 1) - 1, 2**bits - 1

    def weight(layer):
        W = layer.weight.detach()
        if per_channel:
            scale = W.flatten(1).abs().amax(1) / top
            return torch.fake_quantize_per_channel_affine(
                W, scale, torch.zeros(len(W), dtype=torch.int32), 0, -top, top
            )
        return torch.fake_quantize_per_tensor_affine(W, float(W.abs().max() / top), 0, -top, top)

    def rounded(t, name):
        low, high = ranges[name]
        scale = np.float32((min(high.item(), 3e38) - low.item()) / levels)
        return torch.fake_quantize_per_tensor_affine(t, float(scale), int(np.round(-low.item() / scale)), 0, levels)

    first, second, third, last = (model.get_submodule(name) for name in LAYERS)
    x = F.conv2d(rounded(x, "first"), weight(first), first.bias, padding=1).relu()
    x = F.conv2d(rounded(x, "second"), weight(second), None, 2, groups=2)
    x = F.linear(rounded(model.norm(x).flatten(1), "third"), weight(third), third.bias).relu()
    return F.linear(rounded(x, "last"), weight(last))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("per_channel", [False, True], ids=["par couche", "par sortie"])
def test_outputs_are_those_of_torch(bits, per_channel, image, batches, randn):
    method = PTQCompression({"bits": bits, "per_channel": per_channel})
    compressed = method.compress(image, batches)
    seen = inputs_of(image, LAYERS, batches)
    ranges = {name: (x.min().clamp_max(0), x.max().clamp_min(0)) for name, x in seen.items()}
    x = randn(7, 2, 8, 8) * 2  # au-delà de ce que la calibration a vu : écrêté
    with torch.no_grad():
        y, expected = compressed(x), by_torch(image, bits, per_channel, ranges, x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(y, image(x), rtol=1e-3)
    assert [type(compressed.get_submodule(name)) for name in LAYERS] == [QuantizedConv2d] * 2 + [QuantizedLinear] * 2
    assert [line.bits for line in method.report] == [bits] * 4
    scales = [compressed.get_submodule(name).packed.scale.numel() for name in LAYERS]
    assert scales == ([4, 6, 10, 5] if per_channel else [1] * 4)
    assert torch.equal(compressed.norm.running_mean, image.norm.running_mean)


@pytest.mark.parametrize("calibration", CALIBRATIONS)
@pytest.mark.parametrize("percentile", [99.9, 90.0])
def test_grids_are_those_of_the_inputs_seen_at_once(calibration, percentile, image, batches):
    settings = {"bits": 5, "calibration_method": calibration, "percentile": percentile}
    compressed = PTQCompression(settings).compress(image, batches)
    for name, x in inputs_of(image, LAYERS, batches).items():
        histogram = ActivationHistogram()
        histogram.update(x)
        low, high = histogram.range(calibration, 5, percentile)
        grid = compressed.get_submodule(name).input_quantizer
        assert grid.n_bits == 5
        assert float(grid.scale) == pytest.approx((high - low) / 31, rel=1e-6)
        assert int(grid.zero_point) == round(-low / float(grid.scale))
        if calibration == "min_max":
            assert (low, high) == (min(0.0, float(x.min())), max(0.0, float(x.max())))
        weights = compressed.get_submodule(name).packed.quantizer
        assert weights.clipping == ("mse" if calibration == "entropy" else calibration)
        assert weights.percentile == percentile


@pytest.mark.parametrize("calibration", CALIBRATIONS)
def test_the_split_into_batches_changes_nothing(calibration, image, batches):
    """Les entrées de la première couche, au bit près ; les autres, à l'arrondi des produits près."""
    whole, order = torch.cat(batches), torch.randperm(20)
    splits = [[whole], list(whole.split(3)), list(whole[order].split(7))]
    method = PTQCompression({"calibration_method": calibration})
    first, *others = [method.compress(image, split).state_dict() for split in splits]
    for state in others:
        for name, t in state.items():
            if not name.endswith(("input_quantizer.scale", "input_quantizer.zero_point")) or name.startswith("first."):
                assert torch.equal(t, first[name]), name
            elif calibration in ("min_max", "percentile") and name.endswith("scale"):
                torch.testing.assert_close(t, first[name], rtol=1e-3, atol=0)


def test_every_kind_of_loader(image, batches):
    whole = torch.cat(batches)
    dataset = TensorDataset(whole, torch.zeros(len(whole), dtype=torch.long))
    loaders = {
        "tenseurs": batches,
        "tuples": [(x, torch.zeros(5)) for x in batches],
        "listes": [[x, torch.zeros(5)] for x in batches],
        "emboîtés": [((x, x), 3) for x in batches],
        "dictionnaires": [{"x": x, "labels": torch.zeros(5)} for x in batches],
        "BatchEncoding": [BatchEncoding({"x": x, "token_type_ids": x}) for x in batches],
        "générateur": (x for x in batches),
        "DataLoader": DataLoader(dataset, batch_size=5),
        "un seul passage": iter(batches),
        "tuple": tuple(batches),
    }
    states = {name: PTQCompression().compress(image, loader).state_dict() for name, loader in loaders.items()}
    expected = states["tenseurs"]
    for name, state in states.items():
        assert all(torch.equal(t, expected[key]) for key, t in state.items()), name


@pytest.mark.parametrize(
    ("loader", "error", "message"),
    [
        (None, ValueError, "reçu None, attendu des lots de calibration : ils fixent les grilles des"),
        ([], ValueError, "aucun lot, attendu au moins un"),
        (iter(()), ValueError, "aucun lot, attendu au moins un"),
        (RIGHT, TypeError, "reçu Tensor, attendu un DataLoader ou une liste de lots"),
        ({"x": RIGHT}, TypeError, "reçu dict"),
        ("lots", TypeError, "reçu str"),
        (7, TypeError, "reçu int"),
        ([RIGHT, RIGHT[:, :1]], ValueError, "lot 1 : le réseau refuse des entrées de forme [(4, 1, 8, 8)] :"),
        ([RIGHT.long()], ValueError, "lot 0 : le réseau refuse"),
        ([{"y": torch.ones(4)}], TypeError, "lot 0 : reçu dict, attendu un tenseur, (entrées, étiquettes)"),
        ([[]], TypeError, "lot 0 : reçu list"),
        ([3], TypeError, "lot 0 : reçu int"),
        (["phrase"], TypeError, "lot 0 : reçu str"),
        ([RIGHT / 0], ValueError, "lot 0 : le réseau refuse des entrées de forme [(4, 2, 8, 8)]"),
    ],
)
def test_bad_calibration_is_named(loader, error, message, image):
    image.train()
    before, method = {name: t.clone() for name, t in image.state_dict().items()}, PTQCompression()
    with pytest.raises(error, match="^train_loader : " + re.escape(message)):
        method.compress(image, loader)
    assert method.report == []
    assert all(m.training for m in image.modules())
    assert not any(m._forward_pre_hooks for m in image.modules())
    assert all(torch.equal(t, before[name]) for name, t in image.state_dict().items())


def test_a_missing_argument_is_said_by_the_network():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x, y):
            return self.layer(x + y)

    with pytest.raises(ValueError, match=r"train_loader : lot 0 : le réseau refuse .*missing 1 required") as refusal:
        PTQCompression().compress(Two(), [{"x": torch.ones(2, 3)}])
    assert isinstance(refusal.value.__cause__, TypeError)
    both = PTQCompression().compress(Two(), [{"x": torch.ones(2, 3), "y": torch.ones(2, 3), "z": 1}])
    assert both.layer.input_quantizer is not None


def test_a_layer_that_nothing_reaches_is_named(image, batches):
    image.unused = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="la couche 'unused' n'a reçu aucune entrée"):
        PTQCompression().compress(image, batches)
    assert PTQCompression({"exclude": "unused"}).compress(image, batches).unused.weight is not image.unused.weight


def test_weights_alone_need_no_data(image):
    compressed = PTQCompression({"activations": False, "bits": 3}).compress(image)
    assert all(compressed.get_submodule(name).input_quantizer is None for name in LAYERS)
    method = PTQCompression({"activations": False})
    assert torch.equal(method.compress_layer(image.third).packed.codes(), method.compress(image).third.packed.codes())


def test_inputs_that_are_all_zero(image):
    compressed = PTQCompression().compress(image, [torch.zeros(3, 2, 8, 8)])
    assert not compressed.first.input_quantizer(torch.ones(3)).any()
    assert compressed(torch.ones(3, 2, 8, 8)).isfinite().all()


def test_layers_of_one_weight_keep_their_own_grids(randn):
    """Deux couches liées n'entendent pas la même chose."""
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    compressed = PTQCompression().compress(model, [randn(20, 6) * 50])
    first, second = compressed[0].input_quantizer, compressed[2].input_quantizer
    assert first is not second
    assert float(first.scale) > 20 * float(second.scale)
    assert compressed[0].packed is compressed[2].packed


def test_a_head_tied_to_its_embedding_hears_its_own_inputs(randn):
    model = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 9))
    model[2].weight = model[0].weight
    method = PTQCompression({"embeddings": True})
    compressed = method.compress(model, [torch.arange(9)])
    assert isinstance(compressed[0], QuantizedEmbedding)
    x = model[1](model[0].weight).detach()
    grid = compressed[2].input_quantizer
    assert float(grid.scale) == pytest.approx(float(x.max().clamp_min(0) - x.min().clamp_max(0)) / 255, rel=1e-5)
    assert [line.nbytes for line in method.report] == [stored(compressed[0], compressed[2]), stored(compressed[1])]


def test_more_bits_are_closer(image, batches, randn):
    x, losses = torch.cat(batches), []
    for bits in range(2, 9):
        method = PTQCompression({"bits": bits, "per_channel": True})
        method.compress(image, batches, [x])
        losses.append(method.report.output_error)
    assert losses[0] > 5 * losses[-1]
    assert losses[-1] < 0.05
    assert np.argmin(losses) >= 5


# --- ce qui est déjà comprimé -----------------------------------------------------------------------------------------


def test_a_learned_grid_is_not_thrown_away(linear):
    model = nn.Sequential(QATLowRankLinear.from_linear(linear(16, 12), 4, 2))
    with pytest.raises(TypeError, match=r"^layer : reçu QATLowRankLinear, dont l'arrondi s'est appris"):
        PTQCompression({"activations": False, "bits": 2}).compress(model)


def test_codes_are_not_rounded_again(linear, randn):
    model, x = nn.Sequential(linear(16, 16), nn.ReLU(), linear(16, 4)), randn(5, 16)
    method = PTQCompression({"activations": False, "layers": ["0"]})
    model[0] = QuantizedLowRankLinear.from_linear(model[0], 4)
    with pytest.raises(ValueError, match=r"^layers : le motif '0' ne désigne aucune couche ; noms : '2'"):
        method.compress(model)
    rest = PTQCompression({"activations": False}).compress(model)
    assert torch.equal(rest[0](x), model[0](x))
    assert type(rest[2]) is QuantizedLinear
