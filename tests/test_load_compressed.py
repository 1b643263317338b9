"""Un réseau comprimé se refait de son fichier et de son architecture, au bit près ; ce qui ne va pas est refusé."""

import copy
import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_methods import METHODS, Network, loader, network, tokens  # noqa: F401
from test_ptq import Image
from test_storage import bits, snapshot
from torch import nn
from transformers import BertConfig, BertModel

from lrq import (
    CompressionPipeline,
    GPTQCompression,
    PTQCompression,
    SVDCompression,
    TruncatedSVDLinear,
    load_compressed,
    save_weights,
)
from lrq.storage import read_safetensors, sealed

WAYS = {name: make for name, make in METHODS.items() if name != "lora"}
WAYS |= {f"{name}, plongements": lambda make=METHODS[name]: make(embeddings=True) for name in ("ptq", "gptq", "budget")}
WAYS |= {
    "svd puis ptq": lambda: CompressionPipeline([SVDCompression({"rank": 6}), PTQCompression({"bits": 5})]),
    "tt puis ptq": lambda: CompressionPipeline([METHODS["tt"](), PTQCompression({"bits": 5})]),
}
every_way = pytest.mark.parametrize("make", [pytest.param(f, id=name) for name, f in WAYS.items()])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "réseau.safetensors"


def described(model):
    return [(name, type(m), m.extra_repr()) for name, m in model.named_modules(remove_duplicate=False)]


@every_way
def test_there_and_back_to_the_bit(make, network, loader, tokens, path):  # noqa: F811
    compressed = make().compress(network, loader)
    save_weights(compressed, path)
    blank = Network()  # d'autres nombres
    before = snapshot(blank)
    found = load_compressed(blank, path)
    assert found.state_dict().keys() == compressed.state_dict().keys()
    for name, t in compressed.state_dict().items():
        assert bits(found.state_dict()[name]) == bits(t), name
        assert found.state_dict()[name].dtype == t.dtype
    assert described(found) == described(compressed)
    assert not any(m.training for m in found.modules())
    assert torch.equal(found(tokens), compressed(tokens))
    assert all(torch.equal(t, before[name]) for name, t in blank.state_dict().items())
    assert {name: p.requires_grad for name, p in found.named_parameters()} == {
        name: p.requires_grad for name, p in compressed.named_parameters()
    }
    save_weights(found, path.with_name("deux"))
    assert path.with_name("deux").read_bytes() == path.read_bytes()


@every_way
def test_no_weight_of_the_original_is_in_the_file(make, network, loader, path):  # noqa: F811
    method = make()
    compressed = method.compress(network, loader)
    save_weights(compressed, path)
    content = path.read_bytes()
    for name in ("body.0", "body.3", "twice", "left"):
        row = network.get_submodule(name).weight.detach()[0]
        assert row[:4].numpy().tobytes() not in content
    assert network.body[0].bias.detach().numpy().tobytes() in content
    assert network.encoder.linear1.weight.detach().numpy().tobytes() in content


def test_images_and_their_options(randn, path):
    model, batches = Image().eval(), [randn(3, 2, 8, 8)]
    compressed = PTQCompression({"per_channel": True, "bits": 6}).compress(model, batches)
    save_weights(compressed, path)
    found = load_compressed(Image(), path)
    assert described(found) == described(compressed)
    assert torch.equal(found(batches[0]), compressed(batches[0]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_every_precision(dtype, network, loader, path):  # noqa: F811
    for make in (METHODS["svd"], METHODS["tt"], METHODS["résidu"], METHODS["ptq"]):
        compressed = make().compress(network, loader).to(dtype)
        save_weights(compressed, path)
        found = load_compressed(Network().to(dtype), path)
        assert {layer.dtype for layer in (found.twice, found.left)} == {dtype}
        assert all(bits(found.state_dict()[name]) == bits(t) for name, t in compressed.state_dict().items())


# --- l'architecture seule ---------------------------------------------------------------------------------------------


def test_an_architecture_without_numbers(network, loader, tokens, path):  # noqa: F811
    """Sur l'appareil meta ; un tampon qu'aucun fichier ne garde doit avoir sa valeur quelque part."""
    compressed = METHODS["gptq"]().compress(network, loader)
    save_weights(compressed, path)
    with torch.device("meta"):
        blank = Network()
    with pytest.raises(ValueError, match=r"^model : mask n'est dans aucun fichier, et n'a pas de valeur ici non plus"):
        load_compressed(blank, path)
    assert all(t.is_meta for t in blank.state_dict().values())
    blank.mask = torch.ones(3)
    found = load_compressed(blank, path)
    assert torch.equal(found(tokens), compressed(tokens))
    assert torch.equal(found.mask, blank.mask)
    assert found.mask.data_ptr() != blank.mask.data_ptr()
    del blank._buffers["mask"]
    assert torch.equal(load_compressed(blank, path)(tokens), compressed(tokens))


@pytest.fixture(scope="module")
def bert():
    config = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    return BertConfig(vocab_size=30, max_position_embeddings=12, **config)


def test_bert_and_its_buffers(bert, rng, path):
    model, ids = BertModel(bert).eval(), torch.tensor(rng.integers(0, 30, (2, 5)))
    compressed = GPTQCompression({"rounding": "nearest", "group_size": 8, "embeddings": True}).compress(model)
    save_weights(compressed, path)
    found = load_compressed(BertModel(bert), path)
    assert torch.equal(found(ids).last_hidden_state, compressed(ids).last_hidden_state)
    tensors, metadata = read_safetensors(path)
    position_ids = {"embeddings.position_ids": torch.arange(12)[None]}  # que d'anciens fichiers gardaient
    path.write_bytes(sealed(tensors | position_ids, json.loads(metadata["lrq"][:-64])))
    assert torch.equal(load_compressed(BertModel(bert), path)(ids).last_hidden_state, found(ids).last_hidden_state)


def test_the_network_holds_nothing_of_the_file(network, loader, tokens, path):  # noqa: F811
    """Réécrire le fichier sur place ne change pas le réseau qui en vient."""
    save_weights(METHODS["gptq"]().compress(network, loader), path)
    found = load_compressed(Network(), path)
    before = snapshot(found)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert all(torch.equal(t, before[name]) for name, t in found.state_dict().items())


def test_a_network_not_compressed_at_all(network, tokens, path):  # noqa: F811
    save_weights(network, path)
    assert torch.equal(load_compressed(Network(), path)(tokens), network(tokens))


# --- ce qui ne va pas -------------------------------------------------------------------------------------------------


@pytest.fixture
def written(linear, path):
    model = nn.Sequential(linear(8, 6), nn.Tanh(), linear(6, 4))
    save_weights(SVDCompression({"rank": 2}).compress(model), path)
    return model


def rewrite(path, change):
    """Le même fichier, bien scellé, sa description changée par quelqu'un d'autre."""
    tensors, metadata = read_safetensors(path)
    description = json.loads(metadata["lrq"][:-64])
    changed = change(description)
    path.write_bytes(sealed(tensors, description if changed is None else changed))


def refused(model, path, message, error=ValueError):
    before = snapshot(model)
    with pytest.raises(error, match="^" + re.escape(f"{path} : ") + message):
        load_compressed(model, path)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def at(layer="0", **changes):
    def change(description):
        description["layers"][layer] |= changes

    return change


def argument(name, value):
    def change(description):
        description["layers"]["0"]["arguments"][name] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        at(**{"class": "Popen"}),
        at(**{"class": "Linear"}),
        at(**{"class": "PackedTensor"}),
        at(**{"class": 3}),
        at(**{"class": ["TTLinear"]}),
        at(arguments=[]),
        at(arguments=None),
        at(arguments={}),
        argument("surprise", 1),
        argument("rank", 99),
        argument("rank", "deux"),
        argument("rank", None),
        argument("in_features", -8),
        argument("device", "cuda"),
        argument("dtype", {"class": "dtype", "arguments": {"name": "load"}}),
        argument("dtype", {"class": "dtype", "arguments": {}}),
        argument("dtype", {"class": "os.system", "arguments": {"command": "true"}}),
        argument("dtype", "float32"),
        lambda d: d["layers"].update({"0": 5}),
        lambda d: d["layers"].update({"0": []}),
        lambda d: d["layers"].update({"0": {"class": "PerGroup", "arguments": {"size": 4}}}),
        lambda d: d["layers"].update({"0": {"class": "UniformQuantizer", "arguments": {}}}),
        lambda d: d["layers"].update({"0": {"arguments": {}}}),
    ],
)
def test_a_hostile_recipe_is_refused(change, written, path):
    rewrite(path, change)
    refused(written, path, "0 : recette (que cette version de lrq ne sait pas suivre|d'autre chose)")


def nested(depth):
    value = {"class": "PerTensor", "arguments": {}}
    for _ in range(depth):
        value = [value]
    return value


def test_a_recipe_without_end_is_refused(written, path):
    rewrite(path, argument("rank", nested(400)))
    refused(written, path, "0 : recette que cette version")


@pytest.mark.parametrize(
    "change",
    [
        lambda d: [],
        lambda d: 3,
        lambda d: {"codes": {}, "layers": {}},
        lambda d: {"alias": {}, "layers": {}},
        lambda d: {"alias": {"a": "absent"}, "codes": {}, "layers": {}},
        lambda d: {"alias": 3, "codes": {}, "layers": {}},
        lambda d: {"alias": {}, "codes": 4, "layers": {}},
        lambda d: {"alias": {}, "codes": {}, "layers": "aucune"},
    ],
)
def test_a_description_that_says_nothing_is_refused(change, written, path):
    rewrite(path, change)
    refused(written, path, "description illisible")


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(kept, written, path):
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    refused(written, path, "fichier tronqué ou qui n'est pas un safetensors")


def test_a_changed_file_is_refused(written, path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    refused(written, path, "le contenu ne correspond pas à son empreinte")
    save_file(load_file(path), path)
    refused(written, path, "le contenu ne correspond pas à son empreinte")
    refused(written, path.with_name("absent"), "fichier introuvable", FileNotFoundError)
    with pytest.raises(TypeError, match=r"^model : reçu str, attendu nn\.Module"):
        load_compressed("réseau", path)


def wider():
    return nn.Sequential(nn.Linear(9, 6), nn.Tanh(), nn.Linear(6, 4))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(8, 6)), "la couche '2' n'existe pas dans le réseau"),
        (nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Conv2d(6, 4, 1)), "2 : reçu TruncatedSVDLinear, qui remplace"),
        (nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Embedding(6, 4)), "2 : reçu TruncatedSVDLinear, qui remplace"),
        (wider(), "0 : reçu in_features = 8, attendu 9"),
        (nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 5)), "2 : reçu out_features = 4, attendu 5"),
        (nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4), nn.Linear(4, 4)), "il y manque 3.weight"),
        (nn.Sequential(nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 4)), "il y manque 1.weight"),
    ],
    ids=str,
)
def test_another_architecture_is_refused(model, message, written, path):
    refused(model, path, message)


def test_other_convolutions_are_refused(conv, randn, path):
    save_weights(PTQCompression().compress(nn.Sequential(conv(2, 4, 3)), [randn(2, 2, 5, 5)]), path)
    for wrong, message in (
        ({"stride": 2}, "stride"),
        ({"padding": 1}, "padding"),
        ({"padding_mode": "circular"}, "padding"),
    ):
        refused(nn.Sequential(nn.Conv2d(2, 4, 3, **wrong)), path, f"0 : reçu {message}")


def test_weights_that_are_not_asked_for_are_refused(randn, linear, path):
    """MultiheadAttention lit les poids de sa sortie sans l'appeler : une autre couche y serait ignorée, ou pire."""
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
    smaller = copy.deepcopy(model)
    smaller["attention"].out_proj = TruncatedSVDLinear.from_linear(model["attention"].out_proj, 3)
    save_weights(smaller, path)
    refused(model, path, "attention.out_proj : MultiheadAttention en lit les poids sans l'appeler")


def test_bits_that_differ_from_the_recipe_are_refused(linear, path):
    model = nn.Sequential(linear(8, 6))
    save_weights(GPTQCompression({"rounding": "nearest", "group_size": 4}).compress(model), path)

    def change(description):
        description["layers"]["0"]["arguments"]["quantizer"]["arguments"]["n_bits"] = 5

    rewrite(path, change)
    refused(model, path, r"0\.packed : reçu des codes rangés en 6×8 sur 4 bit\(s\)")
