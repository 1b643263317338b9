"""Un réseau entier reçoit ses adaptateurs là où on le dit, en change, les somme, les éteint et les fond d'un bloc."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn

from lrq import (
    LoRALayer,
    QuantizedLinear,
    SVDConv2d,
    add_adapter,
    convert_model_to_lora,
    delete_adapter,
    disabled_adapters,
    merge_adapters,
    merged_model,
    replace_linears,
    set_adapter,
    unmerge_adapters,
)
from lrq.adapters import lora_layers


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.value = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        return self.norm(x + torch.sigmoid(self.query(x)) * self.value(x))


class Net(nn.Module):
    """Une convolution, deux blocs, une tête étroite."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, padding=1)
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.blocks(self.conv(x).flatten(1)[:, :8]))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(10, 6), nn.Linear(6, 10, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.embedding(tokens))


ALL = ["conv", "blocks.0.query", "blocks.0.value", "blocks.1.query", "blocks.1.value", "head"]


@pytest.fixture
def net(rng):
    return Net().eval()


@pytest.fixture
def x(randn):
    return randn(4, 3, 5, 5)


@pytest.fixture
def adapted(net, train):
    """Le réseau, deux adaptateurs de rangs différents, « default » actif."""
    model = convert_model_to_lora(net, rank=2, alpha=0.5)
    add_adapter(model, "b", 1, 0.7, scaling="alpha/r")
    return train(model)


def snapshot(module):
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def unchanged(module, before):
    now = module.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in before)


def dense(model, net, weights):
    """Le réseau d'origine, où chaque poids est W₀ + Σ w s B A, calculé à part."""
    twin = copy.deepcopy(net).double()
    for name, layer in lora_layers(model).items():
        target = twin.get_submodule(name)
        for key, weight in weights.items():
            adapter = layer.adapters[key]
            product = adapter.B.double().flatten(1) @ adapter.A.double().flatten(1)
            target.weight.data += weight * adapter.scale * product.view(target.weight.shape).detach()
    return twin


# --- convertir --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (None, ALL),
        (["query"], ["blocks.0.query", "blocks.1.query"]),
        (["0.query", "head"], ["blocks.0.query", "head"]),
        (("blocks.1.value",), ["blocks.1.value"]),
        ({"value", "query"}, ALL[1:5]),
        (r"blocks\.\d\.query|conv", ["conv", "blocks.0.query", "blocks.1.query"]),
        (".*", ALL),
        ("head", ["head"]),
    ],
    ids=str,
)
def test_targets(targets, expected, net, x):
    before, y = snapshot(net), net(x)
    model = convert_model_to_lora(net, targets, rank=2)
    assert list(lora_layers(model)) == expected
    assert torch.equal(model(x), y)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"{name}.adapters.default.{factor}" for name in expected for factor in "AB"}
    assert unchanged(net, before)
    assert all(p.requires_grad for p in net.parameters())
    assert {id(p) for p in model.parameters()}.isdisjoint(id(p) for p in net.parameters())


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        (["query", "absent"], ValueError, "'absent' ne désigne aucune couche ; noms : 'conv', 'blocks.0.query'"),
        (["uery"], ValueError, "'uery' ne désigne aucune couche"),
        (["norm"], ValueError, "'norm' ne désigne aucune couche"),
        ([], ValueError, r"\[\] ne désigne aucune couche"),
        ("absent", ValueError, "'absent' ne désigne aucune couche"),
        ("query", ValueError, r"'query' n'est le nom entier d'aucune couche ; essayez \['query'\]"),
        ("(", ValueError, r"'\(' n'est pas une expression rationnelle"),
        (3, TypeError, "reçu 3, attendu des noms, une expression rationnelle ou None"),
        ([3], TypeError, r"reçu \[3\], attendu des noms"),
    ],
)
def test_targets_that_match_nothing_are_refused(targets, error, message, net):
    with pytest.raises(error, match=f"^target_modules : {message}"):
        convert_model_to_lora(net, targets, rank=1)


def test_what_cannot_be_converted_is_refused(net):
    with pytest.raises(TypeError, match=r"^model : reçu list, attendu nn\.Module"):
        convert_model_to_lora([net])
    with pytest.raises(ValueError, match=r"^model : reçu un réseau déjà adapté"):
        convert_model_to_lora(convert_model_to_lora(net, rank=1), rank=1)
    with pytest.raises(ValueError, match=r"^model : rien à adapter, attendu au moins une nn\.Linear"):
        convert_model_to_lora(nn.Sequential(nn.ReLU()), rank=1)
    with pytest.raises(ValueError, match=r"^alpha : reçu nan"):
        convert_model_to_lora(net, rank=1, alpha=math.nan)
    assert all(p.requires_grad for p in net.parameters())


def test_the_rank_is_clamped_layer_by_layer_and_said(net):
    with pytest.warns(UserWarning, match=r"^rank : reçu 5, ramené à 2 pour 'conv', 3 pour 'head'\.$") as caught:
        model = convert_model_to_lora(net, rank=5)
    assert caught[0].filename == __file__
    ranks = {name: layer.rank for name, layer in lora_layers(model).items()}
    assert ranks == {name: {"conv": 2, "head": 3}.get(name, 5) for name in ALL}
    with pytest.warns(UserWarning, match="ramené à 2 pour 'conv'"):
        add_adapter(model, "b", 3)
    with pytest.raises(ValueError, match=r"^rank : reçu 9, attendu au plus 8, le plus grand rang de ces couches"):
        convert_model_to_lora(net, rank=9)
    for bad, error in ((0, ValueError), (2.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match=r"^rank : reçu"):
            convert_model_to_lora(net, rank=bad)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert_model_to_lora(net, rank=2)


def test_a_model_that_is_one_layer(randn):
    model = convert_model_to_lora(nn.Linear(4, 3), rank=2)
    assert isinstance(model, LoRALayer)
    assert list(lora_layers(model)) == [""]


def test_a_shared_layer_stays_shared(train, randn):
    shared = nn.Linear(6, 6)
    model = train(convert_model_to_lora(nn.Sequential(shared, nn.ReLU(), shared), rank=2))
    assert model[0] is model[2]
    x = randn(3, 6)
    y = model(x)
    merge_adapters(model)  # une fois, et non deux
    torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-4)
    unmerge_adapters(model)
    assert torch.equal(model(x), y)


def test_compressed_layers_are_adapted_too(net, x, train):
    quantized = replace_linears(net, lambda layer: QuantizedLinear.from_linear(layer, 4))
    quantized.conv = SVDConv2d.from_conv2d(quantized.conv, 1)
    y = quantized(x)
    model = convert_model_to_lora(quantized, rank=1)
    assert list(lora_layers(model)) == ["conv.filters", "conv.mixer", *ALL[1:]]  # et non ce qu'une couche contient
    assert torch.equal(model(x), y)
    before = snapshot(train(model))
    with pytest.raises(TypeError, match="garde des poids comprimés") as caught:
        merge_adapters(model)
    assert caught.value.__notes__ == ["Dans la couche 'blocks.0.query'."]
    assert unchanged(model, before)  # les convolutions, déjà fondues, sont revenues


@pytest.mark.parametrize("create", [LoRALayer.from_pissa, LoRALayer.from_quantized], ids=["PiSSA", "LoftQ"])
def test_other_starts(create, net, x):
    before = snapshot(net)
    model = convert_model_to_lora(net, ["query"], rank=8, create=create)
    torch.testing.assert_close(model(x), net(x), rtol=1e-3, atol=1e-3)  # au rang plein, rien n'est perdu
    assert unchanged(net, before)
    quantized = replace_linears(net, lambda layer: QuantizedLinear.from_linear(layer, 4))
    with pytest.raises(TypeError, match="QuantizedLinear"):
        convert_model_to_lora(quantized, ["query"], rank=2, create=create)


# --- plusieurs adaptateurs --------------------------------------------------------------------------------------------


def test_the_sum_has_no_cross_terms_in_any_layer(adapted, net, x):
    for weights in ("b", {"default": 0.5, "b": -1.5}, {"default": 2}, {}):
        set_adapter(adapted, weights)
        plain = weights if isinstance(weights, dict) else {weights: 1}
        expected = dense(adapted, net, plain)(x.double())
        torch.testing.assert_close(adapted(x).double(), expected, rtol=1e-3, atol=1e-4)
        trained = {name.split(".")[-2] for name, p in adapted.named_parameters() if p.requires_grad}
        assert trained == set(plain)


def test_disabled_adapters(adapted, net, x):
    y = adapted(x)
    with disabled_adapters(adapted):
        assert torch.equal(adapted(x), net(x))
    assert torch.equal(adapted(x), y)
    assert not torch.allclose(y, net(x), atol=1e-3)
    merge_adapters(adapted)
    with disabled_adapters(adapted):
        torch.testing.assert_close(adapted(x), net(x))


def test_merge_and_unmerge_the_whole(adapted, x):
    set_adapter(adapted, {"default": 0.5, "b": -1.5})
    y, before = adapted(x), snapshot(adapted)
    merge_adapters(adapted)
    torch.testing.assert_close(adapted(x), y, rtol=1e-4, atol=1e-4)
    with pytest.warns(UserWarning, match="déjà fusionnés : rien n'a changé") as caught:
        merge_adapters(adapted)
    assert caught[0].filename == __file__
    torch.testing.assert_close(adapted(x), y, rtol=1e-4, atol=1e-4)
    unmerge_adapters(adapted)
    assert unchanged(adapted, before)
    with pytest.warns(UserWarning, match="non fusionnés : rien n'a changé"):
        unmerge_adapters(adapted)


@pytest.mark.parametrize("sick", ALL)
def test_a_merge_is_all_or_nothing(sick, adapted):
    lora_layers(adapted)[sick].lora_B.data.view(-1)[0] = math.nan
    before = snapshot(adapted)
    with pytest.raises(ValueError, match="fusion est refusée") as caught:
        merge_adapters(adapted)
    assert caught.value.__notes__ == [f"Dans la couche '{sick}'."]
    now = snapshot(adapted)
    assert now.keys() == before.keys()
    assert all(torch.equal(now[name].nan_to_num(7), before[name].nan_to_num(7)) for name in before)


def test_a_merge_that_would_change_another_layer_is_refused(train, rng):
    source = Tied()
    model = train(convert_model_to_lora(source, rank=2))
    tokens = torch.arange(4)
    before, y = snapshot(model), model(tokens)
    with pytest.raises(ValueError, match=r"^model : 'head' partage ses poids avec une couche"):
        merge_adapters(model)
    assert unchanged(model, before)
    lora_layers(model)["head"].merge_weights()  # ce qui serait arrivé
    assert not torch.allclose(model(tokens), y, atol=1e-3)
    shared = nn.Linear(6, 6)
    half = train(convert_model_to_lora(nn.Sequential(shared, shared), ["0"], rank=2))  # l'autre nom reste nu
    with pytest.raises(ValueError, match=r"^model : '0' partage ses poids"):
        merge_adapters(half)


def test_add_and_delete_are_all_or_nothing(adapted, x):
    before = snapshot(adapted)
    for name, options in (("default", {}), ("a.b", {}), ("c", {"dropout": 2}), ("c", {"scaling": "r"})):
        with pytest.raises(ValueError):
            add_adapter(adapted, name, 1, **options)
        assert unchanged(adapted, before)
    lora_layers(adapted)["head"].add_adapter("c", 1)  # il manque aux autres couches
    with pytest.raises(ValueError, match="'c' existe déjà"):
        add_adapter(adapted, "c", 1)
    assert [name for name, layer in lora_layers(adapted).items() if "c" in layer.adapters] == ["head"]
    set_adapter(adapted, "c")
    with disabled_adapters(adapted):
        base = adapted.blocks(adapted.conv(x).flatten(1)[:, :8])
    assert torch.equal(adapted.blocks(adapted.conv(x).flatten(1)[:, :8]), base)  # ailleurs, rien n'est actif
    with pytest.raises(ValueError, match="'c' est actif"):
        delete_adapter(adapted, "c")
    set_adapter(adapted, "default")
    delete_adapter(adapted, "c")
    assert unchanged(adapted, before)


def test_a_deletion_refused_by_one_layer_deletes_nothing(adapted):
    lora_layers(adapted)["head"].set_adapter("b")
    with pytest.raises(ValueError, match="'b' est actif"):
        delete_adapter(adapted, "b")
    assert all("b" in layer.adapters for layer in lora_layers(adapted).values())
    with pytest.raises(ValueError, match=r"^name : pas d'adaptateur 'absent' ; noms : 'default', 'b'"):
        delete_adapter(adapted, "absent")


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ("absent", ValueError, "name : pas d'adaptateur 'absent' ; noms : 'default', 'b'"),
        ({"b": math.inf}, ValueError, "poids de 'b' : reçu inf"),
        (["b"], TypeError, r"name : reçu \['b'\]"),
    ],
)
def test_bad_choices_change_nothing(weights, error, message, adapted, x):
    y = adapted(x)
    with pytest.raises(error, match=f"^{message}"):
        set_adapter(adapted, weights)
    assert torch.equal(adapted(x), y)
    lora_layers(adapted)["head"].merge_weights()
    with pytest.raises(ValueError, match=r"^merged : l'adaptateur est fusionné"):
        set_adapter(adapted, "b")
    assert all(layer.active == {"default": 1.0} for layer in lora_layers(adapted).values())


@pytest.mark.parametrize(
    "function",
    [lora_layers, merge_adapters, unmerge_adapters, lambda m: set_adapter(m, "b"), lambda m: add_adapter(m, "b")],
)
def test_a_model_without_adapters_is_named(function, net):
    with pytest.raises(ValueError, match=r"^model : aucun adaptateur ; appelez d'abord convert_model_to_lora"):
        function(net)
    with pytest.raises(TypeError, match=r"^model : reçu NoneType, attendu nn\.Module"):
        function(None)


def test_a_merged_model_is_ordinary_again(randn):
    source = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4))
    model = convert_model_to_lora(source, rank=2)
    for layer in (model[0], model[2]):
        nn.init.normal_(layer.lora_B)
    x = randn(5, 6)
    before, y = {name: t.clone() for name, t in model.state_dict().items()}, model(x)
    plain = merged_model(model)
    assert [type(module) for module in plain] == [nn.Linear, nn.ReLU, nn.Linear]
    assert plain.state_dict().keys() == source.state_dict().keys()
    torch.testing.assert_close(plain(x), y, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(plain(x), source(x), atol=1e-3)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], t) for name, t in before.items())
    merge_adapters(model)
    assert torch.equal(merged_model(model)(x), plain(x))
    with pytest.raises(ValueError, match="aucun adaptateur"):
        merged_model(source)
