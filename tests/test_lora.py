"""Un adaptateur ajoute s B A et rien d'autre : calculé, fusionné, sommé, éteint, dérivé, quelle que soit la couche."""

import copy
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from lrq import (
    Calibration,
    CompactSVDLinear,
    FactorizedLinear,
    LoRALayer,
    MultiStageFactorizedLinear,
    PerChannel,
    QATLowRankLinear,
    QATTTLinear,
    QuantizedLinear,
    QuantizedLowRankLayer,
    QuantizedLowRankLinear,
    QuantizedResidualLinear,
    QuantizedTTLinear,
    SVDCompressedLinear,
    TruncatedSVDLinear,
    TTLinear,
    load_weights,
    save_weights,
)

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
LEADING = [(), (0,), (2, 0, 3), (5,), (2, 3), (2, 1, 3)]
CONVS = {
    "simple": {},
    "pas": {"stride": 2, "padding": (1, 0)},
    "dilatation": {"dilation": 2, "padding": 2},
    "groupes": {"groups": 2, "padding": 1},
    "groupes, même taille": {"groups": 2, "dilation": 2, "padding": "same"},
    "circulaire": {"padding": (1, 2), "padding_mode": "circular"},
    "reflet, groupes": {"padding": 1, "padding_mode": "reflect", "groups": 4},
    "1×1": {"kernel_size": 1},
    "3×2 sans biais": {"kernel_size": (3, 2), "bias": False},
}


def split(layer):
    """Les dimensions d'une couche, en deux, même premières."""
    return [layer.in_features, 1], [1, layer.out_features]


COMPRESSED = {
    "FactorizedLinear": lambda layer: FactorizedLinear.from_linear(layer, 3),
    "MultiStage": lambda layer: MultiStageFactorizedLinear.from_linear(layer, [3, 3]),
    "SVDCompressedLinear": lambda layer: SVDCompressedLinear.from_linear(layer, 3),
    "TruncatedSVDLinear": lambda layer: TruncatedSVDLinear.from_linear(layer, 3),
    "CompactSVDLinear": lambda layer: CompactSVDLinear.from_linear(layer, 3),
    "TTLinear": lambda layer: TTLinear.from_linear(layer, *split(layer), 3),
    "QATTTLinear": lambda layer: QATTTLinear.from_linear(layer, *split(layer), 3),
    "QuantizedTTLinear": lambda layer: QuantizedTTLinear.from_linear(layer, *split(layer), 3),
    "QATLowRankLinear": lambda layer: QATLowRankLinear.from_linear(layer, 3),
    "QuantizedLinear": lambda layer: QuantizedLinear.from_linear(layer, 4),
    "QuantizedLowRankLayer": lambda layer: QuantizedLowRankLayer.from_linear(layer, 3),
    "QuantizedLowRankLinear": lambda layer: QuantizedLowRankLinear.from_linear(layer, 3),
    "QuantizedResidualLinear": lambda layer: QuantizedResidualLinear.from_linear(layer, 3, 4, granularity=PerChannel()),
}
SIDE = 7
convolutions = pytest.mark.parametrize("options", CONVS.values(), ids=CONVS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture
def linear(linear):
    return lambda n=12, m=9, *options, **named: linear(n, m, *options, **named)


@pytest.fixture
def conv(randn):
    """Une convolution de 4 à 8 canaux."""

    def draw(dtype=torch.float32, **options):
        layer = nn.Conv2d(4, 8, **{"kernel_size": 3} | options, dtype=dtype)
        for p in layer.parameters():
            p.data = randn(*p.shape, dtype=dtype)
        return layer

    return draw


@pytest.fixture
def train(randn):
    """Donne à B des nombres au hasard, comme après un entraînement."""

    def fill(layer):
        for adapter in layer.adapters.values():
            adapter.B.data = randn(*adapter.B.shape, dtype=adapter.B.dtype)
        return layer

    return fill


@pytest.fixture
def lora(linear, train):
    def draw(rank=4, alpha=0.5, **options):
        return train(LoRALayer(linear(**options), rank, alpha))

    return draw


@pytest.fixture
def several(train):
    """Trois adaptateurs, de rangs et d'échelles quelconques, sur une couche ; deux actifs, dont un de poids négatif."""

    def draw(source):
        layer = LoRALayer(source, 1, 0.7)
        layer.add_adapter("b", 2, 3.0, scaling="alpha/r")
        layer.add_adapter("éteint", 1)
        layer.set_adapter({"default": 0.5, "b": -1.25})
        return train(layer)

    return draw


def snapshot(module):
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def unchanged(module, before):
    now = module.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in before)


def delta(adapter, shape):
    """s B A, groupe par groupe, en NumPy et en float64 : sans rien devoir au code."""
    B = adapter.B.detach().double().numpy()
    A = adapter.A.detach().double().numpy()
    out, r = B.shape[:2]
    groups = len(A) // r
    update = np.zeros((out, math.prod(shape[1:])))
    for g in range(groups):
        rows = slice(g * out // groups, (g + 1) * out // groups)
        update[rows] = B[rows].reshape(-1, r) @ A[g * r : (g + 1) * r].reshape(r, -1)
    return adapter.scale * update.reshape(shape)


def dense_twin(layer, weights):
    """La couche d'origine, en float64, de poids W₀ + Σ w s B A."""
    twin = copy.deepcopy(layer.original).double()
    total = twin.weight.detach().numpy().copy()
    for name, weight in weights.items():
        total += weight * delta(layer.adapters[name], total.shape)
    twin.weight.data = torch.from_numpy(total)
    return twin


# --- calculer ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False], ids=["biais", "sans biais"])
@pytest.mark.parametrize("leading", LEADING, ids=str)
def test_it_starts_identical(bias, leading, linear, randn):
    source, x = linear(bias=bias), randn(*leading, 12)
    y = source(x)
    layer = LoRALayer(source, 4, alpha=3.0)
    assert layer(x).shape == (*leading, 9)
    assert torch.equal(layer(x), y)


@convolutions
@pytest.mark.parametrize("leading", [(), (0,), (3,)], ids=str)
def test_a_convolution_starts_identical(options, leading, conv, randn):
    source, x = conv(**options), randn(*leading, 4, SIDE, SIDE)
    y = source(x)
    assert torch.equal(LoRALayer(source, 1, alpha=3.0)(x), y)


def test_default_rank_is_that_of_the_contract():
    layer = LoRALayer(nn.Linear(32, 20))
    assert (layer.rank, layer.scale, layer.active) == (16, 1.0, {"default": 1.0})
    assert layer.lora_A.shape == (16, 32)
    assert layer.lora_B.shape == (20, 16)


@pytest.mark.parametrize("leading", LEADING, ids=str)
def test_forward_is_the_dense_sum_without_cross_terms(leading, linear, several, randn):
    layer, x = several(linear(dtype=torch.float64)), randn(*leading, 12, dtype=torch.float64)
    expected = dense_twin(layer, layer.active)
    torch.testing.assert_close(layer(x), expected(x))
    torch.testing.assert_close(layer.reconstruct_weight(), expected.weight)
    torch.testing.assert_close(layer.weight, expected.weight)
    assert torch.equal(layer.bias, layer.original.bias)


def test_averaging_factors_is_not_averaging_updates(linear, train):
    layer = LoRALayer(linear(), 2)
    layer.add_adapter("b", 2)
    train(layer).set_adapter({"default": 0.5, "b": 0.5})
    a, b = layer.adapters.values()
    crossed = (a.B + b.B) @ (a.A + b.A) / 4  # la moyenne des facteurs, dont le produit a des termes croisés
    update = layer.reconstruct_weight() - layer.base_weight()
    assert torch.linalg.norm(update - crossed) > 0.1 * torch.linalg.norm(update)
    assert np.linalg.matrix_rank(update.detach().double().numpy(), tol=1e-4) == 4  # 2 + 2, que la moyenne n'a pas


@convolutions
@pytest.mark.parametrize("leading", [(), (0,), (3,)], ids=str)
def test_a_convolution_is_the_dense_sum(options, leading, conv, several, randn):
    layer, x = several(conv(**options, dtype=torch.float64)), randn(*leading, 4, SIDE, SIDE, dtype=torch.float64)
    expected = dense_twin(layer, layer.active)
    torch.testing.assert_close(layer(x), expected(x))
    torch.testing.assert_close(layer.weight, expected.weight)


@every_dtype
def test_the_dtype_is_kept(dtype, linear, conv, several, randn):
    tolerance = {"rtol": 30 * torch.finfo(dtype).eps, "atol": 100 * torch.finfo(dtype).eps}
    for source, shape in ((linear(dtype=dtype), (5, 12)), (conv(dtype=dtype), (2, 4, SIDE, SIDE))):
        layer, x = several(source), randn(*shape, dtype=dtype)
        y = layer(x)
        assert y.dtype == dtype
        torch.testing.assert_close(y.double(), dense_twin(layer, layer.active)(x.double()), **tolerance)


@pytest.mark.parametrize(
    ("scaling", "scale"), [("alpha", 3.0), ("alpha/r", 0.75), ("alpha/sqrt(r)", 1.5)], ids=["cours", "LoRA", "rsLoRA"]
)
def test_the_three_scalings(scaling, scale, linear, randn):
    layer = LoRALayer(linear(), 4, 3.0, scaling=scaling)
    nn.init.normal_(layer.lora_B)
    assert layer.scale == pytest.approx(scale)
    torch.testing.assert_close(layer.weight - layer.original.weight, scale * layer.lora_B @ layer.lora_A)


@pytest.mark.parametrize("options", [{}, {"groups": 2}], ids=["sans groupes", "groupes"])
def test_initial_spread(options, randn):
    assert LoRALayer(nn.Linear(400, 300), 100).lora_A.std().item() == pytest.approx(1 / 20, rel=0.05)  # 1/√in
    layer = LoRALayer(nn.Conv2d(64, 64, 3, **options), 32)
    fan = 64 * 9 // options.get("groups", 1)
    assert layer.lora_A.std().item() == pytest.approx(fan**-0.5, rel=0.05)


def test_dropout_hides_inputs_from_the_adapter_only(linear, train, randn):
    layer, x = train(LoRALayer(linear(), 4, 0.5, dropout=0.4)), randn(20, 12)
    torch.manual_seed(3)
    y = layer(x)
    torch.manual_seed(3)
    hidden = F.dropout(x, 0.4)
    torch.testing.assert_close(y, layer.original(x) + 0.5 * hidden @ layer.lora_A.T @ layer.lora_B.T)
    layer.eval()
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
    assert not torch.equal(layer(x), y)


@pytest.mark.parametrize("make", COMPRESSED.values(), ids=COMPRESSED)
def test_a_compressed_layer_takes_an_adapter(make, linear, train, randn):
    base, x = make(linear()), randn(2, 5, 12)
    y = base(x)
    layer = LoRALayer(base, 2, 0.5)
    assert torch.equal(layer(x), y)
    nn.init.normal_(layer.lora_B)
    torch.testing.assert_close(layer(x), y + 0.5 * x @ layer.lora_A.T @ layer.lora_B.T)
    layer(x).sum().backward()
    assert {name for name, p in layer.named_parameters() if p.grad is not None} == {
        "adapters.default.A",
        "adapters.default.B",
    }
    before = snapshot(layer)
    with pytest.raises(TypeError, match=rf"^original : {type(base).__name__} garde des poids comprimés"):
        layer.merge_weights()
    assert unchanged(layer, before)
    with layer.disabled():
        assert torch.equal(layer(x), y)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_autocast(kind, linear, conv, several, randn):
    layer, x = (several(linear()), randn(2, 5, 12)) if kind == "linear" else (several(conv()), randn(2, 4, SIDE, SIDE))
    full = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), full, rtol=0.1, atol=0.3)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_hooks_see_what_the_frozen_layer_computes(kind, linear, conv, several, randn):
    layer, x = (several(linear()), randn(5, 12)) if kind == "linear" else (several(conv()), randn(2, 4, SIDE, SIDE))
    alone, whole = copy.deepcopy(layer.original)(x), layer(x)
    seen = []
    layer.original.register_forward_hook(lambda module, args, output: seen.append(output))
    torch.testing.assert_close(layer(x), whole)
    assert torch.equal(seen[0], alone)  # et non ce que l'adaptateur y ajoute sur place
    layer.original.register_full_backward_hook(lambda module, given, received: seen.append(received))
    layer(x.requires_grad_()).sum().backward()
    assert len(seen) == 3


@pytest.mark.parametrize("norm_first", [False, True])
def test_weights_that_pytorch_reads_without_calling(norm_first, randn):
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first).eval()
    x = randn(3, 5, 8)
    for name in ("linear1", "linear2"):
        setattr(block, name, LoRALayer(getattr(block, name), 2))
    block.self_attn.out_proj = LoRALayer(block.self_attn.out_proj, 2)
    adapted = [module for module in block.modules() if isinstance(module, LoRALayer)]
    before = block(x)
    for layer in adapted:
        nn.init.normal_(layer.lora_B)
    slow = block(x)
    with torch.no_grad():
        fast = block(x)  # le chemin rapide, qui lit linear1.weight
    assert torch.linalg.norm(slow - before) > 0.1
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-4)
    slow.sum().backward()
    assert all(layer.lora_A.grad is not None for layer in adapted)
    for layer in adapted:
        layer.merge_weights()
    torch.testing.assert_close(block(x), slow, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.ones(2, 3), ValueError, r"reçu la forme \(2, 3\), attendu \(\.\.\., 12\)"),
        (torch.ones(2, 12, dtype=torch.int64), TypeError, r"reçu des éléments torch\.int64"),
        ([1.0] * 12, TypeError, "reçu list"),
    ],
)
def test_bad_inputs_are_named(x, error, message, lora):
    with pytest.raises(error, match=rf"^x : {message}"):
        lora()(x)


@pytest.mark.parametrize("shape", [(4,), (SIDE, SIDE), (2, 3, SIDE, SIDE), (1, 2, 4, SIDE, SIDE)], ids=str)
def test_bad_images_are_named(shape, conv):
    with pytest.raises(ValueError, match=r"^x : reçu la forme .*, attendu \(B, 4, H, W\)"):
        LoRALayer(conv(), 2)(torch.ones(shape))


# --- dériver ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "linear 1-D", "linear 3-D", *CONVS])
def test_gradients_are_those_of_finite_differences(kind, linear, conv, several, randn):
    if kind in CONVS:
        layer = several(conv(**CONVS[kind], dtype=torch.float64))
        x = randn(2, 4, 5, 5, dtype=torch.float64)
    else:
        layer = several(linear(4, 3, dtype=torch.float64))
        x = randn(*{"linear": (2,), "linear 1-D": (), "linear 3-D": (2, 2)}[kind], 4, dtype=torch.float64)
    trained = {name: p for name, p in layer.named_parameters() if p.requires_grad}
    assert len(trained) == 4

    def call(x, *values):
        return torch.func.functional_call(layer, dict(zip(trained, values, strict=True)), (x,))

    values = [p.detach().requires_grad_() for p in trained.values()]
    assert torch.autograd.gradcheck(call, (x.requires_grad_(), *values), fast_mode=True)


def test_it_trains_its_active_adapters_only(linear, several, randn):
    layer = several(linear())
    base, idle = snapshot(layer.original), snapshot(layer.adapters["éteint"])
    layer(randn(5, 12)).pow(2).sum().backward()
    trained = {name for name, p in layer.named_parameters() if p.grad is not None}
    assert trained == {f"adapters.{name}.{factor}" for name in ("default", "b") for factor in "AB"}
    before = snapshot(layer)
    torch.optim.SGD([p for p in layer.parameters() if p.requires_grad], lr=0.1).step()
    assert unchanged(layer.original, base)
    assert unchanged(layer.adapters["éteint"], idle)
    assert not any(torch.equal(layer.state_dict()[name], before[name]) for name in trained)


def test_at_the_start_only_B_has_a_slope(linear, randn):
    layer = LoRALayer(linear(), 4)
    layer(randn(5, 12)).pow(2).sum().backward()
    assert not layer.lora_A.grad.any()
    assert layer.lora_B.grad.any()


# --- fusionner --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["linear", "conv", "groupes"])
def adapted(request, linear, conv, several, randn):
    """Une couche adaptée par deux adaptateurs, et une entrée."""
    if request.param == "linear":
        return several(linear()), randn(5, 12)
    return several(conv(padding=1, groups=2 if request.param == "groupes" else 1)), randn(2, 4, SIDE, SIDE)


def test_merged_live_and_unmerged_agree(adapted):
    layer, x = adapted
    live, W = layer(x), layer.weight
    layer.merge_weights()
    assert layer.merged
    torch.testing.assert_close(layer(x), live, rtol=1e-4, atol=1e-4)
    assert torch.equal(layer(x), layer.original(x))  # l'adaptateur ne compte pas deux fois
    assert torch.equal(layer.weight, W)
    layer.unmerge_weights()
    assert not layer.merged
    assert torch.equal(layer(x), live)


@pytest.mark.parametrize("merged", [False, True])
def test_disabled_is_the_original_merged_or_not(merged, adapted):
    layer, x = adapted
    alone, live, W = layer.original(x), layer(x), layer.original.weight.clone()
    if merged:
        layer.merge_weights()
    with layer.disabled():
        assert torch.equal(layer(x), alone)
        assert torch.equal(layer.weight, W)
        with layer.disabled():
            pass
        assert torch.equal(layer(x), alone)  # le bloc intérieur a rendu l'état d'avant lui
    torch.testing.assert_close(layer(x), live, rtol=1e-4, atol=1e-4)
    with pytest.raises(RuntimeError, match="au milieu"), layer.disabled():
        raise RuntimeError("au milieu")
    assert layer.enabled


def test_a_merge_while_disabled_is_whole(adapted):
    layer, x = adapted
    live = layer(x)
    with layer.disabled():
        layer.merge_weights()
    torch.testing.assert_close(layer(x), live, rtol=1e-4, atol=1e-4)


@every_dtype
def test_unmerge_is_exact_to_the_bit(dtype, lora):
    layer = lora(alpha=100.0, dtype=dtype)  # W + ΔW − ΔW perdrait ici des bits
    before = layer.original.weight.detach().clone()
    layer.merge_weights()
    merged = layer.original.weight.detach().clone()
    assert merged.dtype == dtype
    expected = before.double() + torch.from_numpy(delta(layer.adapters["default"], before.shape))
    torch.testing.assert_close(merged.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-4)
    layer.unmerge_weights()
    assert torch.equal(layer.original.weight, before)
    if dtype != torch.float64:
        update = (merged - before).to(dtype)
        assert not torch.equal(merged - update, before)  # retrancher ΔW, lui, ne rendrait pas les bits


def test_second_merge_and_unmerge_warn_and_change_nothing(lora):
    layer = lora()
    with pytest.warns(UserWarning, match="non fusionné : rien n'a changé") as caught:
        layer.unmerge_weights()
    assert caught[0].filename == __file__
    base = snapshot(layer)
    layer.merge_weights()
    merged = snapshot(layer)
    with pytest.warns(UserWarning, match="déjà fusionné : rien n'a changé"):
        layer.merge_weights()
    assert unchanged(layer, merged)
    layer.unmerge_weights()
    with pytest.warns(UserWarning, match="non fusionné"):
        layer.unmerge_weights()
    assert unchanged(layer, base)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_sick_adapter_is_refused_and_the_base_left_alone(bad, lora):
    layer = lora()
    layer.lora_B.data[2, 1] = bad
    base = snapshot(layer.original)
    with pytest.raises(ValueError, match=r"^lora_A, lora_B : .*fusion est refusée"):
        layer.merge_weights()
    assert unchanged(layer.original, base)
    assert not layer.merged


def test_a_merge_that_overflows_is_refused(lora):
    layer = lora(alpha=1e5, dtype=torch.float16)
    base = snapshot(layer.original)
    with pytest.raises(ValueError, match="fusion est refusée"):
        layer.merge_weights()
    assert unchanged(layer.original, base)


def test_weights_that_are_recomputed_cannot_be_merged(linear, train, randn):
    source = nn.utils.parametrizations.weight_norm(linear())
    layer, x = train(LoRALayer(source, 2)), randn(5, 12)
    y = layer(x)
    with pytest.raises(TypeError, match=r"^original : ParametrizedLinear garde des poids comprimés ou paramétrés"):
        layer.merge_weights()  # écrire dans une valeur recalculée n'aurait rien changé
    assert torch.equal(layer(x), y)
    with pytest.raises(TypeError, match=r"^original : ParametrizedLinear"):
        LoRALayer.from_pissa(source, 2)


@pytest.mark.parametrize("from_merged", [True, False])
@pytest.mark.parametrize("into_merged", [True, False])
@pytest.mark.parametrize("ours", [True, False], ids=["save_weights", "safetensors"])
def test_a_saved_adapter_counts_once(from_merged, into_merged, ours, linear, several, randn, tmp_path):
    layer, other, x = several(linear()), several(linear()), randn(5, 12)
    y = layer(x)
    base = layer.original.weight.detach().clone()
    if from_merged:
        layer.merge_weights()
    if into_merged:
        other.merge_weights()
    if ours:
        save_weights(layer, tmp_path / "lora")
        load_weights(other, tmp_path / "lora")
    else:
        save_file(layer.state_dict(), tmp_path / "lora")
        other.load_state_dict(load_file(tmp_path / "lora"))
    assert other.merged == from_merged
    torch.testing.assert_close(other(x), y, rtol=1e-4, atol=1e-4)
    if from_merged:
        other.unmerge_weights()
    assert torch.equal(other.original.weight, base)


@pytest.mark.parametrize("merged", [False, True])
def test_a_refused_state_keeps_the_merge(merged, lora, randn):
    """Un dictionnaire vide, un fichier d'autres formes : W₀ et la fusion demeurent."""
    layer, other, x = lora(), lora(n=10, m=7), randn(3, 12)
    other.merge_weights()
    start = layer.original.weight.detach().clone()
    if merged:
        layer.merge_weights()
    before, y = snapshot(layer), layer(x)
    for state in ({}, other.state_dict()):
        with pytest.raises(RuntimeError, match="LoRALayer"):
            layer.load_state_dict(state)
    assert unchanged(layer, before)
    assert torch.equal(layer(x), y)
    if merged:
        layer.unmerge_weights()
    assert torch.equal(layer.original.weight, start)


def test_other_adapters_alone_replace_the_merged_ones(lora, randn):
    """Chargés sans la base dans une couche fusionnée : W₀ reprend ses bits, et seuls les nouveaux comptent."""
    layer, other, x = lora(), lora(), randn(3, 12)
    start = layer.original.weight.detach().clone()
    layer.merge_weights()
    adapters = {name: t for name, t in other.state_dict().items() if name.startswith("adapters.")}
    layer.load_state_dict(adapters, strict=False)
    assert torch.equal(layer.original.weight, start)
    W = start + other.lora_B @ other.lora_A * other.scale
    torch.testing.assert_close(layer(x), F.linear(x, W, layer.bias), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.weight, W)


def test_deepcopy_of_a_merged_adapter(adapted):
    layer, x = adapted
    base = layer.original.weight.detach().clone()
    layer.merge_weights()
    twin = copy.deepcopy(layer)
    layer.unmerge_weights()
    assert twin.merged
    twin.unmerge_weights()
    assert torch.equal(twin.original.weight, base)
    twin.set_adapter("éteint")
    assert set(layer.active) == {"default", "b"}  # rien n'est partagé
    assert torch.equal(layer(x), copy.deepcopy(layer)(x))


# --- plusieurs adaptateurs --------------------------------------------------------------------------------------------


def test_switching_adapters(linear, several, randn):
    layer, x = several(linear()), randn(5, 12)
    for name in layer.adapters:
        layer.set_adapter(name)
        assert layer.active == {name: 1.0}
        torch.testing.assert_close(layer(x).double(), dense_twin(layer, {name: 1.0})(x.double()), rtol=1e-4, atol=1e-4)
        assert layer.lora_A is layer.adapters[name].A
        assert layer.lora_B is layer.adapters[name].B
        assert layer.rank == layer.adapters[name].rank
        trained = {each for each, adapter in layer.adapters.items() if adapter.A.requires_grad}
        assert trained == {name}
        assert layer.trainable_parameters() == sum(p.numel() for p in layer.parameters() if p.requires_grad)
    layer.set_adapter({})
    assert torch.equal(layer(x), layer.original(x))
    assert layer.trainable_parameters() == 0
    with pytest.raises(ValueError, match=r"^active : 0 adaptateurs actifs, attendu un seul"):
        _ = layer.lora_A


def test_counts(lora):
    layer = lora()
    assert layer.trainable_parameters() == 4 * (12 + 9)
    assert layer.total_parameters() == 12 * 9 + 9 + 4 * (12 + 9)
    layer.merge_weights()
    assert layer.total_parameters() == 12 * 9 + 9 + 4 * (12 + 9)
    layer.add_adapter("b", 2)
    assert layer.trainable_parameters() == 4 * (12 + 9)
    assert layer.total_parameters() == 12 * 9 + 9 + 6 * (12 + 9)


def test_a_convolution_counts_per_group(conv):
    layer = LoRALayer(conv(groups=2), 3)
    assert layer.lora_A.shape == (2 * 3, 2, 3, 3)
    assert layer.lora_B.shape == (8, 3, 1, 1)
    assert layer.trainable_parameters() == 3 * (4 * 9 + 8)


def test_deleting_an_adapter(linear, several, randn):
    layer, x = several(linear()), randn(5, 12)
    y = layer(x)
    with pytest.raises(ValueError, match=r"^name : l'adaptateur 'b' est actif"):
        layer.delete_adapter("b")
    layer.delete_adapter("éteint")
    assert list(layer.adapters) == ["default", "b"]
    assert torch.equal(layer(x), y)
    for absent in ("éteint", ["b"], None):
        with pytest.raises(ValueError, match=r"^name : pas d'adaptateur .* ; noms : default, b\."):
            layer.delete_adapter(absent)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("default", ValueError, "name : l'adaptateur 'default' existe déjà"),
        ("", ValueError, "name : reçu '', attendu un nom sans point"),
        ("a.b", ValueError, r"name : reçu 'a\.b', attendu un nom sans point"),
        ("keys", ValueError, "name : reçu 'keys', attendu un nom sans point, qui ne soit pas celui d'une méthode"),
        (3, TypeError, "name : reçu 3, attendu le nom d'un adaptateur"),
    ],
)
def test_bad_names_are_refused_and_nothing_changes(name, error, message, lora):
    layer = lora()
    before = snapshot(layer)
    with pytest.raises(error, match=f"^{message}"):
        layer.add_adapter(name, 2)
    assert unchanged(layer, before)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rank": 0}, ValueError, "rank : reçu 0"),
        ({"rank": 10}, ValueError, r"rank : reçu 10, attendu au plus min\(m, n\) = 9"),
        ({"alpha": math.inf}, ValueError, "alpha : reçu inf, attendu un nombre fini"),
        ({"alpha": "1"}, TypeError, "alpha : reçu '1', attendu un nombre"),
        ({"dropout": 1.0}, ValueError, r"dropout : reçu 1\.0, attendu un nombre dans \[0, 1\["),
        ({"dropout": None}, TypeError, "dropout : reçu None"),
        ({"scaling": "r"}, ValueError, "scaling : reçu 'r', attendu 'alpha' ou 'alpha/r' ou"),
    ],
)
def test_bad_arguments_leave_the_layer_alone(options, error, message, linear, lora):
    source = linear()
    with pytest.raises(error, match=f"^{message}"):
        LoRALayer(source, **{"rank": 2} | options)
    assert all(p.requires_grad for p in source.parameters())
    layer = lora()
    before = snapshot(layer)
    with pytest.raises(error, match=f"^{message}"):
        layer.add_adapter("b", **{"rank": 2} | options)
    assert unchanged(layer, before)


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ("absent", ValueError, "name : pas d'adaptateur 'absent' ; noms : default, b, éteint"),
        ({"default": 1, "absent": 1}, ValueError, "name : pas d'adaptateur 'absent'"),
        ({"b": math.nan}, ValueError, "poids de 'b' : reçu nan, attendu un nombre fini"),
        ({"b": "1"}, TypeError, "poids de 'b' : reçu '1'"),
        (["b"], TypeError, r"name : reçu \['b'\], attendu le nom d'un adaptateur, ou un dictionnaire"),
        (None, TypeError, "name : reçu None"),
    ],
)
def test_bad_choices_change_nothing(weights, error, message, linear, several):
    layer = several(linear())
    active = dict(layer.active)
    with pytest.raises(error, match=f"^{message}"):
        layer.set_adapter(weights)
    assert layer.active == active
    layer.merge_weights()
    with pytest.raises(ValueError, match=r"^merged : l'adaptateur est fusionné"):
        layer.set_adapter("b")
    assert layer.active == active


@pytest.mark.parametrize("layer", [nn.ReLU(), nn.Conv1d(4, 4, 1), nn.ConvTranspose2d(4, 4, 1), torch.ones(2, 2), None])
def test_a_layer_of_another_class_is_named(layer):
    with pytest.raises(
        TypeError, match=rf"^original_layer : reçu {type(layer).__name__}, attendu nn\.Linear, nn\.Conv"
    ):
        LoRALayer(layer, 1)


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_a_sick_convolution_is_named(bad, conv):
    source = conv()
    source.weight.data[1, 2, 0, 1] = bad
    with pytest.raises(ValueError, match=r"^original_layer\.weight : 1 élément\(s\) sur 288"):
        LoRALayer(source, 1)
    assert source.weight.requires_grad


def test_the_rank_of_a_convolution_is_bounded_by_its_groups(conv):
    with pytest.raises(ValueError, match=r"^rank : reçu 5, attendu au plus min\(m, n\) = 4 pour une matrice 4×18"):
        LoRALayer(conv(groups=2), 5)


def test_it_shows_what_is_active(lora):
    layer = lora()
    assert "active={'default': 1.0}" in repr(layer)
    assert "rank=4, scale=0.5, dropout=0" in repr(layer)
    layer.merge_weights()
    assert "merged" in repr(layer)


# --- partir d'ailleurs que de B = 0 -----------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [1.0, 0.3, -2.0])
def test_pissa_takes_the_first_singular_triplets(alpha, linear, randn):
    source, x = linear(dtype=torch.float64), randn(5, 12, dtype=torch.float64)
    before = snapshot(source)
    layer = LoRALayer.from_pissa(source, 3, alpha)
    torch.testing.assert_close(layer(x), source(x))
    assert unchanged(source, before)
    assert all(p.requires_grad for p in source.parameters())
    S = scipy.linalg.svdvals(source.weight.detach().numpy())
    frozen = scipy.linalg.svdvals(layer.original.weight.detach().numpy())
    taken = scipy.linalg.svdvals(layer.scale * (layer.lora_B @ layer.lora_A).detach().numpy())
    np.testing.assert_allclose(taken[:3], S[:3])
    np.testing.assert_allclose(frozen[: len(S) - 3], S[3:])
    assert frozen[0] < S[0] * (1 - 1e-6)
    norms = layer.lora_A.norm().item(), layer.lora_B.norm().item() * abs(alpha)
    assert norms[0] == pytest.approx(norms[1])  # √Σ partagé


@convolutions
def test_pissa_keeps_what_a_convolution_computes(options, conv, randn):
    source, x = conv(**options), randn(2, 4, SIDE, SIDE)
    layer = LoRALayer.from_pissa(source, 1, scaling="alpha/r")
    torch.testing.assert_close(layer(x), source(x), rtol=1e-4, atol=1e-4)
    W = source.weight.detach().double().numpy()
    groups = source.groups
    blocks = W.reshape(groups, len(W) // groups, -1)
    residual = layer.original.weight.detach().double().numpy().reshape(blocks.shape)
    for block, rest in zip(blocks, residual, strict=True):
        tail = scipy.linalg.svdvals(block)[1:]
        assert np.linalg.norm(rest) == pytest.approx(np.linalg.norm(tail), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_pissa_in_half_precision_rounds_once(dtype, linear, randn):
    source = linear(dtype=dtype)
    layer = LoRALayer.from_pissa(source, 3)
    assert layer.original.weight.dtype == layer.lora_A.dtype == dtype
    eps = torch.finfo(dtype).eps  # ce qui est retiré est ce que l'adaptateur arrondi ajoute : reste l'arrondi de W − ΔW
    torch.testing.assert_close(layer.weight, source.weight, rtol=eps, atol=4 * eps)


@pytest.mark.parametrize("make", ["from_pissa", "from_quantized"])
def test_other_starts_refuse_what_they_cannot_keep(make, linear):
    source = linear()
    with pytest.raises(ValueError, match=r"^alpha : reçu 0, attendu un nombre non nul"):
        getattr(LoRALayer, make)(source, 2, alpha=0)
    with pytest.raises(ValueError, match=r"^rank : reçu 10"):
        getattr(LoRALayer, make)(source, 10)
    assert all(p.requires_grad for p in source.parameters())
    with pytest.raises(TypeError, match="QuantizedLinear"):  # son reste ne peut pas se ranger dans des codes
        getattr(LoRALayer, make)(QuantizedLinear.from_linear(source, 4), 2)


def test_a_quantized_base_is_repaired(matrix, linear, randn):
    source = linear(48, 32)
    source.weight.data = matrix(32, 48)
    W = source.weight.detach()
    before = snapshot(source)
    plain = torch.linalg.norm(W - QuantizedLinear.from_linear(source, 3).reconstruct_weight())
    errors = []
    for rank in (1, 4, 16, 32):
        layer = LoRALayer.from_quantized(source, rank, 3, alpha=0.7, scaling="alpha/r")
        errors.append(torch.linalg.norm(W - layer.weight).item())
    assert errors[0] < plain
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-4 * plain  # au rang plein, il ne reste rien
    assert unchanged(source, before)
    lost = scipy.linalg.svdvals((W - layer.original.reconstruct_weight()).double().numpy())
    rank4 = LoRALayer.from_quantized(source, 4, 3)
    expected = math.sqrt((lost[4:] ** 2).sum())  # Eckart–Young, appliqué à ce que la quantification a perdu
    assert torch.linalg.norm(W - rank4.weight).item() == pytest.approx(expected, rel=1e-3)
    torch.testing.assert_close(rank4.bias, source.bias)
    assert sum(p.requires_grad for p in rank4.parameters()) == 2


def test_a_calibration_serves_the_outputs(matrix, linear, randn):
    source = linear(48, 32)
    x = randn(400, 48) @ torch.diag(torch.linspace(0.05, 3, 48)) @ matrix(48, 48, np.ones(48))
    layers = {
        name: LoRALayer.from_quantized(source, 4, 3, calibration=seen)
        for name, seen in {"poids": None, "entrées": x, "moment": Calibration.from_inputs(x)}.items()
    }
    errors = {name: torch.linalg.norm(layer(x) - source(x)).item() for name, layer in layers.items()}
    alone = torch.linalg.norm(layers["poids"].original(x) - source(x)).item()
    assert errors["entrées"] < errors["poids"] < alone
    assert errors["moment"] == pytest.approx(errors["entrées"], rel=1e-3)
    weights = {name: torch.linalg.norm(layer.weight - source.weight).item() for name, layer in layers.items()}
    assert weights["poids"] < weights["entrées"]  # chacun gagne ce qu'il minimise


@pytest.mark.parametrize("make", ["from_pissa", "from_quantized"])
def test_other_starts_draw_nothing(make, linear):
    source, state = linear(), torch.get_rng_state()
    first = getattr(LoRALayer, make)(source, 2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(first.weight, getattr(LoRALayer, make)(source, 2).weight)


def test_recomputed_weights_are_repaired_too(linear):
    """Plusieurs tours lisent W, sans jamais l'écrire : des poids paramétrés font comme les autres."""
    source = linear(32, 24)
    normed = nn.utils.parametrizations.weight_norm(copy.deepcopy(source))
    plain, other = (LoRALayer.from_quantized(layer, 4, 3, clipping="mse", iterations=4) for layer in (source, normed))
    torch.testing.assert_close(plain.weight, other.weight)


@pytest.mark.parametrize("heard", [False, True])
def test_more_turns_never_harm(heard, linear, randn):
    """À 2 bits, un tour éloigne : chaque extrême élargit la grille du suivant. Le meilleur est gardé."""
    source, x = linear(64, 48), randn(200, 64) * torch.linspace(0.1, 3, 64)
    far = x if heard else torch.eye(64)  # de quoi mesurer : les sorties, ou les poids
    errors = []
    for turns in (1, 2, 5):
        layer = LoRALayer.from_quantized(source, 8, 2, calibration=x if heard else None, iterations=turns)
        errors.append(float((far @ (layer.weight - source.weight).T).norm()))
    assert errors[2] <= 1.0001 * errors[1] <= 1.0002 * errors[0]
    with pytest.raises(ValueError, match=r"^iterations : reçu 0"):
        LoRALayer.from_quantized(source, 8, 3, iterations=0)
    with pytest.raises(TypeError, match=r"^layer : reçu Conv2d, attendu nn\.Linear"):
        LoRALayer.from_quantized(nn.Conv2d(4, 4, 1), 2)
