"""Les méthodes de la section 12.3 : quelles couches, par quoi remplacées, et un rapport qui pèse comme le fichier."""

import copy
import math
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from transformers.pytorch_utils import Conv1D

from lrq import (
    BudgetCompression,
    CompressionMethod,
    CompressionPipeline,
    CompressionReport,
    FactorizedLinear,
    GPTQCompression,
    LayerReport,
    LoRACompression,
    LoRALayer,
    MemoryEfficientCompression,
    PTQCompression,
    QuantizedEmbedding,
    QuantizedLinear,
    QuantizedResidualLinear,
    SVDCompression,
    TensorTrainCompression,
    TruncatedSVDLinear,
    TTLinear,
    load_compressed,
    rank_for_error,
    save_weights,
    stored_bytes,
)
from lrq.compression.tt_compression import balanced_dims

TARGETS = ["body", "twice", "left", "head", "attention.out", "encoder.linear"]
NEAREST = {"rounding": "nearest", "group_size": 8}
METHODS = {
    "svd": lambda **config: SVDCompression({"rank": 5} | config),
    "svd, erreur": lambda **config: SVDCompression({"optimize_rank": True, "error_threshold": 0.4} | config),
    "svd, entrées": lambda **config: SVDCompression({"rank": 5, "activation_aware": True} | config),
    "tt": lambda **config: TensorTrainCompression({"rank": 6} | config),
    "ptq": lambda **config: PTQCompression({"bits": 6} | config),
    "ptq, poids": lambda **config: PTQCompression({"bits": 5, "activations": False, "per_channel": True} | config),
    "gptq": lambda **config: GPTQCompression({"group_size": 8} | config),
    "au plus près": lambda **config: GPTQCompression(NEAREST | config),
    "résidu": lambda **config: GPTQCompression({"bits": 3, "group_size": 8, "residual_rank": 2} | config),
    "budget": lambda **config: BudgetCompression({"budget": 6000, "group_size": 8, "rank_choices": (0, 2)} | config),
    "lora": lambda **config: LoRACompression({"rank": 3, "target_modules": TARGETS} | config),
}
EMBEDDED = ["ptq", "ptq, poids", "gptq", "au plus près", "résidu", "budget"]
every_method = pytest.mark.parametrize("make", [pytest.param(f, id=name) for name, f in METHODS.items()])
every_true_one = pytest.mark.parametrize(
    "make", [pytest.param(f, id=name) for name, f in METHODS.items() if name != "lora"]
)
embedded = pytest.mark.parametrize("make", [pytest.param(METHODS[name], id=name) for name in EMBEDDED])


class Network(nn.Module):
    """Un plongement lié à la tête, une couche appelée deux fois, deux de même poids, et de quoi s'y prendre mal."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 16, padding_idx=0)
        self.body = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Dropout(0.5), nn.Linear(24, 16, bias=False))
        self.twice = nn.Linear(16, 16)
        self.again = self.twice
        self.left, self.right = nn.Linear(16, 16, bias=False), nn.Linear(16, 16)
        self.right.weight = self.left.weight
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
        self.register_buffer("mask", torch.ones(3), persistent=False)
        self.head = nn.Linear(16, 20)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        x = self.body(self.embedding(tokens))
        x = self.again(self.twice(x).tanh())
        x = self.right(self.left(x).tanh())
        x = self.encoder(x + self.attention(x, x, x, need_weights=False)[0])
        return self.head(x)


KEPT = ["attention.out_proj", "encoder.self_attn.out_proj", "encoder.linear1", "encoder.linear2"]
DONE = ["body.0", "body.3", "twice", "left"]


@pytest.fixture
def network(rng):
    model = Network().eval()
    for p in model.parameters():  # des nombres ordinaires, et tous différents
        p.data = torch.tensor(rng.standard_normal(p.shape) / math.sqrt(p.shape[-1]), dtype=p.dtype)
    return model


@pytest.fixture
def tokens(rng):
    return torch.tensor(rng.integers(0, 20, (6, 7)))


@pytest.fixture
def loader(rng):
    return [torch.tensor(rng.integers(0, 20, (4, 9))) for _ in range(3)]


def picture(model):
    """Tout ce qu'une méthode pourrait déranger."""
    modules = [(name, id(m), type(m), m.training) for name, m in model.named_modules(remove_duplicate=False)]
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    grads = [(name, t.requires_grad, t.grad) for name, t in tensors]
    return modules, hooks, grads, [(name, id(t), t.detach().clone()) for name, t in tensors]


def untouched(model, before):
    now = picture(model)
    assert now[:3] == before[:3]
    assert [row[:2] for row in now[3]] == [row[:2] for row in before[3]]
    assert all(torch.equal(a[2], b[2]) for a, b in zip(now[3], before[3], strict=True))


def stored(*modules):
    """Octets des tenseurs, chacun une fois, vus par leur mémoire."""
    tensors = [t for module in modules for t in [*module.parameters(), *module.buffers()]]
    return sum({t.untyped_storage().data_ptr(): t.nbytes for t in tensors if t.numel()}.values())


def content(path):
    """Octets d'un fichier safetensors, moins son en-tête."""
    return path.stat().st_size - 8 - int.from_bytes(path.read_bytes()[:8], "little")


# --- les couches que l'on prend ---------------------------------------------------------------------------------------


@every_true_one
def test_layers_are_replaced_and_the_network_left_alone(make, network, loader, tokens):
    before, state = picture(network), torch.get_rng_state()
    method = make()
    assert method.report == []
    compressed = method.compress(network, loader)
    untouched(network, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert [line.name for line in method.report] == [*DONE, *KEPT, "head"]
    assert [line.name for line in method.report if not line.compressed] == [*KEPT, "head"]
    for name in [*DONE, "again", "right"]:
        assert not isinstance(compressed.get_submodule(name), nn.Linear)
    assert compressed.twice is compressed.again
    assert compressed.left is not compressed.right
    assert compressed.head.weight is compressed.embedding.weight
    y, z = network(tokens), compressed(tokens)
    assert 0 < (y - z).norm() < 1.2 * y.norm(), "deux réseaux sans rapport s'écartent de √2 fois"
    with torch.no_grad():
        for t in [*compressed.parameters(), *compressed.buffers()]:
            t.zero_()
    untouched(network, before)


@every_true_one
def test_each_line_is_the_layer(make, network, loader, tmp_path):
    """Formes, rangs, bits, erreurs et octets du rapport, relus dans le réseau ; et le tout, dans le fichier."""
    method = make()
    compressed = method.compress(network, loader)
    twins = {"left": ["left", "right"]}
    for line in method.report:
        names = twins.get(line.name, [line.name])
        old, new = ([model.get_submodule(name) for name in names] for model in (network, compressed))
        assert line.shape == tuple(old[0].weight.shape)
        assert line.dense_nbytes == stored(*old)
        assert line.nbytes == stored(*new)
        W = old[0].weight.detach().double()
        found = new[0].reconstruct_weight().detach().double() if line.compressed else new[0].weight.detach().double()
        assert line.error == pytest.approx(float((W - found).norm() / W.norm()), rel=1e-6, abs=1e-12)
        assert (line.error > 0) == line.compressed
        assert line.compressed == (not line.note.startswith("laissée"))
        assert (line.seconds > 0) == line.compressed
    outside = stored(network) - sum(line.dense_nbytes for line in method.report)
    assert stored(compressed) == sum(line.nbytes for line in method.report) + outside
    save_weights(compressed, tmp_path / "réseau")
    assert content(tmp_path / "réseau") == stored(compressed) - network.mask.nbytes
    info = method.get_compression_info(network, compressed)
    assert info["original_bytes"] == stored(network)
    assert info["compressed_bytes"] == stored(compressed)
    assert info["compression_ratio"] == stored(network) / stored(compressed)
    count = sum(p.numel() for p in network.parameters())
    assert info["bits_per_weight"] == pytest.approx(8 * stored(compressed) / count)
    assert (info["method"], info["layers"]) == (type(method).__name__, list(method.report))
    assert info["config"] == method.config


@every_true_one
def test_layers_of_one_weight_stay_tied(make, network, loader, tokens, tmp_path):
    """Après la compression, une copie, un aller-retour par le disque : un seul poids, et chacune son biais."""
    compressed = make().compress(network, loader)
    save_weights(compressed, tmp_path / "réseau")
    weight, y = stored(compressed), compressed(tokens)
    for model in (compressed, copy.deepcopy(compressed), load_compressed(network, tmp_path / "réseau")):
        assert stored(model) == stored_bytes(model) == weight
        assert model.twice is model.again
        assert torch.equal(model.left.reconstruct_weight(), model.right.reconstruct_weight())
        assert model.left.bias is None
        assert torch.equal(model.right.bias, network.right.bias)
        assert model.head.weight is model.embedding.weight
        assert torch.equal(model(tokens), y)
        with torch.no_grad():
            for t in [*model.left.parameters(), *model.left.buffers()]:
                t.zero_()
        assert not model.right.reconstruct_weight().any(), "left et right ont chacune leur poids"
        assert model.right.bias.any()


@embedded
@pytest.mark.parametrize("first", ["embedding", "head"])
def test_an_embedding_tied_to_its_head_is_done_once(make, first, network, loader, tokens, tmp_path):
    """Que la tête soit nommée avant ou après le plongement."""
    if first == "head":
        network._modules = {"head": network._modules["head"]} | network._modules
    method = make(embeddings=True)
    compressed = method.compress(network, loader)
    [line] = [line for line in method.report if line.name in ("head", "embedding")]
    assert line.name == first
    assert line.compressed
    assert line.dense_nbytes == stored(network.embedding, network.head)
    assert line.nbytes == stored(compressed.embedding, compressed.head)
    save_weights(compressed, tmp_path / "réseau")
    weight, y = stored(compressed), compressed(tokens)
    assert content(tmp_path / "réseau") == weight - network.mask.nbytes
    for model in (compressed, copy.deepcopy(compressed), load_compressed(network, tmp_path / "réseau")):
        assert isinstance(model.embedding, QuantizedEmbedding)
        assert isinstance(model.head, QuantizedLinear)
        assert model.embedding.padding_idx == 0
        assert torch.equal(model.head.reconstruct_weight(), model.embedding.reconstruct_weight())
        assert torch.equal(model.head.bias, network.head.bias)
        assert torch.equal(model(tokens), y)
        model.embedding.packed.packed.zero_()
        assert torch.equal(model.head.reconstruct_weight(), model.embedding.reconstruct_weight())
        assert stored(model) == weight


@every_method
def test_the_note_says_why_a_layer_is_left(make, network, loader):
    method = make()
    method.compress(network, loader)
    notes = {line.name: line.note for line in method.report}
    assert notes["attention.out_proj"] == "laissée : MultiheadAttention lit ses poids sans l'appeler"
    assert notes["encoder.linear1"] == "laissée : TransformerEncoderLayer lit ses poids sans l'appeler"
    assert notes["head"] == "laissée : 'embedding' a le même poids, et resterait dense"
    assert "head : laissée" in str(method.report)


@every_true_one
@pytest.mark.parametrize("bias", [True, False], ids=["biais", "sans biais"])
def test_a_network_that_is_one_layer(make, bias, linear, randn, tmp_path):
    model, loader = linear(16, 12, bias), [randn(50, 16)]
    method = make()
    compressed = method.compress(model, loader)
    assert not isinstance(compressed, nn.Linear)
    assert [line.name for line in method.report] == [""]
    assert "(le réseau)" in str(method.report)
    assert (compressed.bias is not None) == bias
    assert method.report[0].dense_nbytes == stored(model)
    assert method.report[0].nbytes == stored(compressed)
    save_weights(compressed, tmp_path / "couche")
    assert torch.equal(load_compressed(model, tmp_path / "couche")(loader[0]), compressed(loader[0]))


@every_method
def test_training_modes_are_kept(make, network, loader):
    network.train()
    network.twice.eval()
    network.body[2].eval()
    compressed = make().compress(network, loader)
    assert compressed.training
    assert compressed.body[0].training
    assert compressed.right.training
    assert not any(m.training for m in [*compressed.twice.modules(), compressed.body[2]])
    assert network.training


@every_true_one
def test_other_precisions(make, network, loader, tokens):
    for dtype in (torch.bfloat16, torch.float64):
        model = copy.deepcopy(network).to(dtype)
        method = make()
        compressed = method.compress(model, loader)
        assert compressed(tokens).dtype == dtype
        assert [line.nbytes for line in method.report] == [
            stored(
                *[compressed.get_submodule(n) for n in ([line.name, "right"] if line.name == "left" else [line.name])]
            )
            for line in method.report
        ]


def test_weights_computed_when_read_are_not_confused(network, tokens):
    """Une couche paramétrée n'a pas de poids, mais de quoi le calculer : son adresse change à chaque lecture."""
    model = nn.Sequential(*(weight_norm(nn.Linear(16, 16)) for _ in range(4)), nn.Linear(16, 3)).eval()
    before = [layer.weight.detach().clone() for layer in model]
    method = SVDCompression({"rank": 16})
    compressed = method.compress(model)
    assert [line.name for line in method.report] == ["0", "1", "2", "3", "4"]
    for layer, W in zip(compressed, before, strict=True):
        torch.testing.assert_close(layer.reconstruct_weight(), W, rtol=1e-4, atol=1e-5)
    assert compressed[0] is not compressed[1]


def test_two_convolutions_of_one_kernel_keep_their_own_steps(conv, randn):
    first, second = conv(3, 3, 3, padding=1), conv(3, 3, 3, stride=2, padding=1)
    second.weight = first.weight
    model, x = nn.Sequential(first, second), randn(2, 3, 8, 8)
    method = PTQCompression({"bits": 8})
    compressed = method.compress(model, [x])
    assert compressed(x).shape == model(x).shape
    assert (compressed(x) - model(x)).norm() < 0.05 * model(x).norm()
    assert compressed[0].packed is compressed[1].packed
    assert method.report[0].nbytes == stored(compressed)


# --- les motifs, la configuration -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "exclude", "expected"),
    [
        (None, ("attention*", "encoder*", "head"), DONE),
        (["body.*"], (), ["body.0", "body.3"]),
        ("body.[0-2]", (), ["body.0"]),
        (["body.*", "twice", "again"], ["*.3"], ["body.0", "twice"]),
        (["left", "right"], [], ["left"]),
    ],
)
def test_patterns_choose_by_whole_name(layers, exclude, expected, network):
    method = SVDCompression({"rank": 5, "layers": layers, "exclude": exclude})
    compressed = method.compress(network)
    assert [line.name for line in method.report] == expected
    replaced = [name for name, m in compressed.named_modules() if isinstance(m, TruncatedSVDLinear)]
    assert [name for name in replaced if name != "right"] == expected


@pytest.mark.parametrize("name", ["twice", "left"])
def test_half_of_a_tied_pair_is_left(name, network):
    """Comprimer l'une sans l'autre la rangerait deux fois."""
    method = SVDCompression({"rank": 5, "layers": [name, "body.0"]})
    compressed = method.compress(network)
    other = {"twice": "again", "left": "right"}[name]
    assert {line.name: line.note for line in method.report}[
        name
    ] == f"laissée : {other!r} a le même poids, et resterait dense"
    assert compressed.get_submodule(name).weight is compressed.get_submodule(other).weight


@every_method
@pytest.mark.parametrize("key", ["layers", "exclude"])
def test_a_pattern_without_effect_is_refused(make, key, network, loader):
    method = make(**{key: ["body.*", "corps.*"]})
    with pytest.raises(
        ValueError, match=rf"^{key} : le motif 'corps\.\*' ne désigne aucune couche ; noms : 'body.0', 'body"
    ):
        method.compress(network, loader)
    assert method.report == []


def test_excluding_everything_is_refused(network):
    with pytest.raises(ValueError, match=r"^exclude : \['\*'\] ne laisse aucune couche à comprimer"):
        SVDCompression({"exclude": "*"}).compress(network)


@every_method
def test_a_network_without_layers_is_refused(make, loader):
    with pytest.raises(ValueError, match=r"^model : Sequential n'a aucune couche à comprimer \(Linear"):
        make().compress(nn.Sequential(nn.ReLU()), loader)
    with pytest.raises(TypeError, match=r"^model : reçu str, attendu nn\.Module"):
        make().compress("réseau", loader)


@pytest.mark.parametrize(
    ("method", "key", "close"),
    [
        (SVDCompression, "rang", "rank"),
        (SVDCompression, "error_treshold", "error_threshold"),
        (PTQCompression, "bit", "bits"),
        (PTQCompression, "per_chanel", "per_channel"),
        (TensorTrainCompression, "train_after", "train_after_compression"),
        (LoRACompression, "target_module", "target_modules"),
        (GPTQCompression, "groupsize", "group_size"),
        (BudgetCompression, "budgets", "budget"),
        (SVDCompression, "layer", "layers"),
    ],
)
def test_an_unknown_key_is_named_with_the_closest(method, key, close):
    with pytest.raises(
        ValueError, match=rf"^config : {method.__name__} ne connaît pas '{key}', .* Vouliez-vous dire '{close}' \?$"
    ):
        method({key: 4})


def test_an_unknown_key_that_resembles_nothing():
    with pytest.raises(
        ValueError, match=r"^config : SVDCompression ne connaît pas 'zzz', attendu layers, .*activation_aware\.$"
    ):
        SVDCompression({"zzz": 4})
    with pytest.raises(ValueError, match=r"ne connaît pas 'bits', attendu .*budget"):
        BudgetCompression({"budget": 10, "bits": 4})  # que le budget décide


@pytest.mark.parametrize(
    ("method", "config", "error", "message"),
    [
        (SVDCompression, [("rank", 4)], TypeError, "config : reçu list, attendu un dictionnaire"),
        (SVDCompression, {"rank": 0}, ValueError, "rank : reçu 0, attendu un entier ≥ 1"),
        (SVDCompression, {"rank": 2.5}, TypeError, "rank : reçu 2.5"),
        (SVDCompression, {"error_threshold": 1.5}, ValueError, "error_threshold : reçu 1.5"),
        (SVDCompression, {"layers": 4}, TypeError, "layers : reçu 4, attendu des motifs"),
        (SVDCompression, {"exclude": [4]}, TypeError, "exclude : reçu [4], attendu des motifs"),
        (TensorTrainCompression, {"rank": -1}, ValueError, "rank : reçu -1"),
        (TensorTrainCompression, {"epochs": -1}, ValueError, "epochs : reçu -1"),
        (TensorTrainCompression, {"lr": 0}, ValueError, "lr : reçu 0"),
        (PTQCompression, {"bits": 9}, ValueError, "bits : reçu 9, attendu un entier entre 1 et 8"),
        (
            PTQCompression,
            {"calibration_method": "max"},
            ValueError,
            "calibration_method : reçu 'max', attendu 'min_max' ou",
        ),
        (PTQCompression, {"percentile": 0}, ValueError, "percentile : reçu 0"),
        (LoRACompression, {"rank": 0}, ValueError, "rank : reçu 0"),
        (LoRACompression, {"alpha": math.nan}, ValueError, "alpha : reçu nan"),
        (LoRACompression, {"target_modules": "query"}, TypeError, "target_modules : reçu 'query', attendu une liste"),
        (LoRACompression, {"target_modules": []}, TypeError, "target_modules : reçu []"),
        (LoRACompression, {"target_modules": None}, TypeError, "target_modules : reçu None"),
        (GPTQCompression, {"bits": 0}, ValueError, "bits : reçu 0"),
        (GPTQCompression, {"group_size": 0}, ValueError, "group_size : reçu 0"),
        (GPTQCompression, {"clipping": "max"}, ValueError, "clipping : reçu 'max'"),
        (GPTQCompression, {"rounding": "up"}, ValueError, "rounding : reçu 'up', attendu 'gptq' ou 'nearest'"),
        (GPTQCompression, {"damping": 0}, ValueError, "damping : reçu 0"),
        (GPTQCompression, {"residual_rank": -1}, ValueError, "residual_rank : reçu -1"),
        (BudgetCompression, {}, ValueError, "budget : reçu None, attendu les octets"),
        (BudgetCompression, {"budget": 0}, ValueError, "budget : reçu 0"),
        (BudgetCompression, {"budget": 9, "bit_choices": ()}, TypeError, "bit_choices : reçu ()"),
        (BudgetCompression, {"budget": 9, "bit_choices": (4, 9)}, ValueError, "bit_choices : reçu 9"),
        (BudgetCompression, {"budget": 9, "rank_choices": (-1,)}, ValueError, "rank_choices : reçu -1"),
        (BudgetCompression, {"budget": 9, "probe_bits": 0}, ValueError, "probe_bits : reçu 0"),
        (BudgetCompression, {"budget": 9, "clipping": "max"}, ValueError, "clipping : reçu 'max'"),
    ],
)
def test_impossible_settings_are_named(method, config, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        method(config)


@every_method
def test_a_method_keeps_its_own_settings(make):
    """Ni les listes du lecteur, ni celles de la classe."""
    patterns = ["body.*"]
    method = make(layers=patterns)
    patterns.append("head")
    assert method.config["layers"] == ["body.*"]
    for value in method.config.values():
        if isinstance(value, list):
            value.append("autre")
    assert "autre" not in str(make().config)
    assert set(make().config) == set(CompressionMethod.common) | set(type(method).defaults)
    assert repr(make(exclude=["x"])).startswith(f"{type(method).__name__}({{")
    assert "'exclude': ['x']" in repr(make(exclude=["x"]))


def test_a_single_pattern_may_be_a_text(network, loader):
    for make in METHODS.values():
        assert make(layers="body.*", exclude="*.3").config["layers"] == ["body.*"]
    compressed = METHODS["budget"](layers="body.*").compress(network, loader)
    assert not isinstance(compressed.body[0], nn.Linear)


# --- une seule couche -------------------------------------------------------------------------------------------------


@every_method
def test_one_layer_alone(make, linear, randn):
    layer, x = linear(16, 12), randn(9, 16)
    before = copy.deepcopy(layer.state_dict())
    if isinstance(make(), BudgetCompression):
        with pytest.raises(ValueError, match=r"^seen : rien reçu ; le budget se répartit sur un réseau entier"):
            make().compress_layer(layer)
        return
    smaller = make().compress_layer(layer)
    assert smaller(x).shape == (9, 12)
    with torch.no_grad():
        for t in [*smaller.parameters(), *smaller.buffers()]:
            t.zero_()
    assert all(torch.equal(layer.state_dict()[name], t) for name, t in before.items())
    for wrong in (nn.LayerNorm(4), None, torch.ones(3, 3)):
        with pytest.raises(TypeError, match="reçu"):
            make().compress_layer(wrong)


@every_method
def test_weights_that_are_no_numbers_are_refused_by_name(make, network, loader):
    with torch.no_grad():
        network.twice.weight[0, 0] = math.nan
    if make().observes:
        loader = [torch.zeros(2, 3, dtype=torch.long)]
    before, method = picture(network), make()
    with pytest.raises(ValueError) as refusal:
        method.compress(network, loader)
    assert re.search("NaN ou infini", str(refusal.value))
    assert method.observes or refusal.value.__notes__ == ["Couche refusée : 'twice'."]
    assert method.report == []
    assert picture(network)[:2] == before[:2]


# --- la SVD -----------------------------------------------------------------------------------------------------------


def test_svd_of_fixed_rank_is_clamped_and_says_so(network):
    method = SVDCompression({"rank": 20, "layers": ["body.*", "twice", "again"]})
    compressed = method.compress(network)
    assert [(line.rank, line.clamped) for line in method.report] == [(16, True), (16, True), (16, True)]
    assert "16*" in str(method.report)
    torch.testing.assert_close(compressed.twice.reconstruct_weight(), network.twice.weight, rtol=1e-4, atol=1e-5)
    assert all(line.note == "plus lourde qu'elle n'était" for line in method.report)


@pytest.mark.parametrize("threshold", [0.1, 0.4, 1.0])
def test_svd_finds_the_smallest_rank_for_an_error(threshold, network):
    method = SVDCompression({"optimize_rank": True, "error_threshold": threshold})
    method.compress(network)
    for line in method.report:
        if line.compressed:
            S = torch.linalg.svdvals(network.get_submodule(line.name).weight.detach().double())
            assert line.rank == rank_for_error(S, threshold)
            assert not line.clamped
            assert line.error <= threshold * (1 + 1e-6)
            assert line.rank == 1 or float(S[line.rank - 1 :].norm() / S.norm()) > threshold


def test_svd_that_listens_loses_less_of_the_outputs(network, loader, tokens):
    plain, aware = (
        SVDCompression({"rank": 4, "activation_aware": aware, "layers": ["body.*"]}) for aware in (False, True)
    )
    losses = []
    for method in (plain, aware):
        compressed = method.compress(network, loader, loader)
        x = network.embedding(torch.cat(loader))
        losses.append(float((compressed.body[0](x) - network.body[0](x)).detach().norm()))
        assert method.report.output_error is not None
    assert losses[1] < losses[0]
    threshold = SVDCompression({"optimize_rank": True, "error_threshold": 0.3, "activation_aware": True})
    compressed = threshold.compress(network, loader)
    x = network.embedding(torch.cat(loader))
    y, z = (model.body[0](x) - network.body[0].bias for model in (network, compressed))
    assert (y - z).norm() <= 0.3 * y.norm() * (1 + 1e-5)


# --- le train de tenseurs ---------------------------------------------------------------------------------------------


def partitions(n, count):
    """Toutes les suites croissantes de `count` entiers de produit n."""
    if count == 1:
        return [(n,)]
    return [(d, *rest) for d in range(1, n + 1) if n % d == 0 for rest in partitions(n // d, count - 1) if d <= rest[0]]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_balanced_dimensions_are_the_closest(count, rng):
    for n in [1, 2, 64, 72, 97, 384, 1536, *rng.integers(1, 2000, 10).tolist()]:
        dims = balanced_dims(n, count)
        assert math.prod(dims) == n
        assert len(dims) == count
        assert dims == sorted(dims)
        assert sum(dims) == min(map(sum, partitions(n, count)))


def test_balanced_dimensions_by_hand():
    assert balanced_dims(384, 3) == [6, 8, 8]
    assert balanced_dims(72, 2) == [8, 9]
    assert balanced_dims(97, 3) == [1, 1, 97]
    assert balanced_dims(30522, 2) == [6, 5087]
    with pytest.raises(ValueError, match="n : reçu 0"):
        balanced_dims(0, 2)


@pytest.mark.parametrize(("n", "m"), [(64, 64), (30, 512), (97, 8), (7, 5)])
def test_trains_have_as_many_factors_on_both_sides(n, m, linear):
    layer = linear(n, m)
    train = TensorTrainCompression({"rank": 3}).compress_layer(layer)
    assert isinstance(train, TTLinear)
    assert len(train.input_dims) == len(train.output_dims) == max(2, round(math.log(max(n, m), 8)))
    assert (math.prod(train.input_dims), math.prod(train.output_dims)) == (n, m)
    assert max(train.ranks) <= 3
    two = TensorTrainCompression({"rank": 3, "factorize_dimensions": False}).compress_layer(layer)
    assert (two.input_dims, two.output_dims) == (balanced_dims(n, 2), balanced_dims(m, 2))
    exact = TensorTrainCompression({"rank": 10**6}).compress_layer(layer)
    torch.testing.assert_close(exact.reconstruct_weight(), layer.weight, rtol=1e-4, atol=1e-4)


def test_a_train_says_which_ranks_were_cut(network):
    method = TensorTrainCompression({"rank": 30, "layers": ["body.*"]})
    method.compress(network)
    assert all(line.clamped and isinstance(line.rank, list) and max(line.rank) < 30 for line in method.report)
    method = TensorTrainCompression({"rank": 2, "layers": ["body.*"]})
    method.compress(network)
    assert not any(line.clamped for line in method.report)


def gap(model, other, loader):
    with torch.no_grad():
        return float(np.mean([float((model(x) - other(x)).square().mean()) for x in loader]))


def test_training_after_compression_closes_the_gap(network, loader, tokens):
    before, state = picture(network), torch.get_rng_state()
    settings = {"rank": 2, "layers": ["body.*", "left", "right"]}
    plain, taught = (
        TensorTrainCompression(settings),
        TensorTrainCompression(settings | {"train_after_compression": True, "epochs": 8, "lr": 3e-3}),
    )
    first, second = plain.compress(network), taught.compress(network, loader)
    untouched(network, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert gap(network, second, loader) < 0.9 * gap(network, first, loader)
    trained = [name for name, p in first.named_parameters() if not torch.equal(p, second.get_parameter(name))]
    assert trained
    assert all(name.startswith(("body.", "left.", "right.")) for name in trained)
    assert all(p.grad is None for p in second.parameters())
    assert torch.equal(second.left.reconstruct_weight(), second.right.reconstruct_weight())
    for line in taught.report:  # l'erreur est celle des poids appris
        W = network.get_submodule(line.name).weight.detach().double()
        found = second.get_submodule(line.name).reconstruct_weight().detach().double()
        assert line.error == pytest.approx(float((W - found).norm() / W.norm()), rel=1e-6)


@pytest.mark.parametrize("lr", [1e3, 1e30])
def test_training_that_helps_nothing_changes_nothing(lr, network, loader):
    settings = {"rank": 2, "layers": ["body.*"]}
    plain = TensorTrainCompression(settings).compress(network)
    method = TensorTrainCompression(settings | {"train_after_compression": True, "lr": lr})
    with pytest.warns(UserWarning, match="les poids d'avant sont gardés. Essayez un lr plus petit"):
        kept = method.compress(network, loader)
    assert all(torch.equal(t, plain.state_dict()[name]) for name, t in kept.state_dict().items())
    none = TensorTrainCompression(settings | {"train_after_compression": True, "epochs": 0}).compress(network, loader)
    assert all(torch.equal(t, plain.state_dict()[name]) for name, t in none.state_dict().items())


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (None, ValueError, "train_loader : reçu None, attendu des lots à imiter"),
        ([], ValueError, "train_loader : aucun lot"),
        (5, TypeError, "train_loader : reçu int"),
        (iter([torch.zeros(1, 2, dtype=torch.long)]), TypeError, "train_loader : reçu un itérateur, qui s'épuise"),
        ([torch.full((1, 2), 99)], ValueError, "train_loader : lot 0 : le réseau refuse des entrées de forme"),
    ],
)
def test_nothing_to_imitate_is_refused(data, error, message, network):
    method = TensorTrainCompression({"train_after_compression": True, "layers": ["body.*"]})
    with pytest.raises(error, match=f"^{message}"):
        method.compress(network, data)
    assert method.report == []


# --- LoRA -------------------------------------------------------------------------------------------------------------


def test_lora_adapts_what_the_course_names(linear):
    model = nn.ModuleDict({"attention": linear(8, 8), "sortie": linear(8, 8), "Linear_1": linear(8, 8)})
    method = LoRACompression()
    adapted = method.compress(model)
    assert isinstance(adapted["attention"], LoRALayer)
    assert isinstance(adapted["Linear_1"], LoRALayer)
    assert isinstance(adapted["sortie"], nn.Linear)
    assert [line.name for line in method.report] == ["attention", "Linear_1"]


def test_lora_adapts_everything_where_nothing_is_named_so(linear, randn):
    model = nn.Sequential(linear(8, 6), nn.ReLU(), linear(6, 4))
    method = LoRACompression({"rank": 5, "alpha": 2.0})
    adapted, x = method.compress(model), randn(3, 8)
    assert torch.equal(adapted(x), model(x))
    free = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert free == {name for name, _ in adapted.named_parameters() if ".A" in name or ".B" in name}
    assert all(p.requires_grad for p in model.parameters())
    assert [(line.rank, line.clamped, line.error, line.bits) for line in method.report] == [
        (5, False, 0.0, None),
        (4, True, 0.0, None),
    ]
    assert [line.nbytes for line in method.report] == [stored(adapted[0]), stored(adapted[2])]
    assert method.report[0].note == f"{5 * (8 + 6)} nombres à entraîner"
    adapted(x).sum().backward()
    assert {name for name, p in adapted.named_parameters() if p.grad is not None} == free


def test_a_target_without_effect_is_refused(network):
    with pytest.raises(ValueError, match=r"^target_modules : 'query' ne désigne aucune couche ; noms : 'body.0'"):
        LoRACompression({"target_modules": ["body", "query"]}).compress(network)
    method = LoRACompression({"target_modules": ["BODY.0"]})
    adapted = method.compress(network)
    assert [name for name, m in adapted.named_modules() if isinstance(m, LoRALayer)] == ["body.0"]


def test_lora_leaves_what_is_tied(network):
    method = LoRACompression()  # MultiheadAttention est nommée « attention », mais ne s'adapte pas
    adapted = method.compress(network)
    notes = {line.name: line.note for line in method.report}
    assert notes["left"] == "laissée : plusieurs couches ont ce poids"
    assert adapted.left.weight is adapted.right.weight
    assert isinstance(adapted.twice, LoRALayer)
    assert adapted.twice is adapted.again


# --- GPTQ -------------------------------------------------------------------------------------------------------------


def test_gptq_layers_are_those_of_the_function(network, loader):
    from lrq import calibrate, gptq

    method = GPTQCompression({"bits": 3, "group_size": 8})
    compressed = method.compress(network, loader)
    seen = calibrate(network, ["body.0", "twice"], lambda: [network(x) for x in loader])
    for name in ("body.0", "twice"):
        W = network.get_submodule(name).weight
        expected = gptq(W, seen[name], method.quantizer(W.shape[1]))
        assert torch.equal(compressed.get_submodule(name).packed.packed, expected.packed)
    assert all(line.bits == 3 for line in method.report if line.compressed)
    nearest = GPTQCompression({"bits": 3, **NEAREST}).compress(network)
    assert not torch.equal(nearest.twice.packed.packed, compressed.twice.packed.packed)
    assert torch.equal(nearest.twice.packed.packed, method.quantizer(16).compress(network.twice.weight).packed)


def test_a_width_that_groups_do_not_divide_is_noted(network, loader):
    method = GPTQCompression({"group_size": 16, "rounding": "nearest", "layers": ["body.*"]})
    compressed = method.compress(network)
    assert [line.note for line in method.report] == ["", "une échelle par ligne : 24 n'est pas un multiple de 16"]
    assert compressed.body[3].packed.scale.shape == (16, 1)
    whole = GPTQCompression({"group_size": None, "rounding": "nearest", "layers": ["body.*"]})
    assert whole.compress(network).body[0].packed.scale.shape == (24, 1)
    assert [line.note for line in whole.report] == ["", ""]


def test_a_residual_wins_back_some_of_the_outputs(network, loader):
    losses, x = [], network.embedding(torch.cat(loader)).detach()
    for rank in (0, 2, 6, 12):
        method = GPTQCompression({"bits": 2, "group_size": 8, "residual_rank": rank})
        compressed = method.compress(network, loader)
        assert isinstance(compressed.twice, QuantizedResidualLinear if rank else QuantizedLinear)
        assert [line.rank for line in method.report if line.compressed] == [rank or None] * len(DONE)
        losses.append(float((compressed.body[0](x) - network.body[0](x)).detach().norm()))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] / 2
    method = GPTQCompression({"bits": 2, "group_size": 8, "residual_rank": 99})
    method.compress(network, loader)
    assert all(line.clamped and line.rank == 16 for line in method.report if line.compressed)


# --- enchaîner --------------------------------------------------------------------------------------------------------


def test_a_pipeline_quantizes_the_factors(network, loader, tokens):
    pipeline = CompressionPipeline([SVDCompression({"rank": 6}), PTQCompression({"bits": 8, "per_channel": True})])
    before = picture(network)
    compressed = pipeline.compress(network, loader, [tokens])
    untouched(network, before)
    half = SVDCompression({"rank": 6}).compress(network)
    for name in DONE:
        layer = compressed.get_submodule(name)
        assert (layer.rank, layer.n_bits, layer.quantized) == (6, 8, True)
        W = half.get_submodule(name).reconstruct_weight()
        assert (layer.reconstruct_weight() - W).norm() < 0.02 * W.norm()
    assert compressed.twice is compressed.again
    assert torch.equal(compressed.right.bias, network.right.bias)
    first, second = pipeline.report[: len(DONE)], pipeline.report[len(DONE) + 5 :][: len(DONE)]
    assert [line.name for line in first] == [line.name for line in second] == DONE
    assert [line.nbytes for line in first] == [line.dense_nbytes for line in second]
    dense, after = pipeline.report.nbytes()
    outside = stored(network) - dense
    assert stored(compressed) == after + outside
    y, z = network(tokens), compressed(tokens)
    assert pipeline.report.output_error == pytest.approx(float((y - z).norm() / y.norm()), rel=1e-5)
    info = pipeline.get_compression_info(network, compressed)
    assert info["method"] == ["SVDCompression", "PTQCompression"]
    assert info["compressed_bytes"] == stored(compressed)
    assert len(info["config"]) == 2


def test_a_pipeline_quantizes_the_cores(network, loader):
    pipeline = CompressionPipeline([TensorTrainCompression({"rank": 8}), PTQCompression({"bits": 7})])
    compressed = pipeline.compress(network, iter(loader))  # la seconde en a besoin aussi
    assert all(compressed.get_submodule(name).n_bits == [7] * 2 for name in DONE)
    both = CompressionPipeline([SVDCompression({"activation_aware": True, "rank": 9}), PTQCompression()])
    assert both.compress(network, iter(loader)).twice.rank == 9


def test_percentiles_reach_the_factors(network):
    """Le réglage de PTQ vaut aussi pour les facteurs."""
    half = SVDCompression({"rank": 6, "layers": ["body.*"]}).compress(network)
    settings = {"activations": False, "calibration_method": "percentile", "layers": ["body.*"]}
    wide, narrow = (PTQCompression(settings | {"percentile": p}).compress(half).body[0] for p in (100, 60))
    assert narrow.U_packed.scale < wide.U_packed.scale


@pytest.mark.parametrize(
    ("methods", "error", "message"),
    [
        ([], ValueError, "methods : reçu une liste vide"),
        ([SVDCompression], TypeError, "methods : reçu ABCMeta, attendu des CompressionMethod"),
        ([SVDCompression(), "ptq"], TypeError, "methods : reçu str"),
    ],
)
def test_a_pipeline_of_something_else_is_refused(methods, error, message):
    with pytest.raises(error, match=f"^{message}"):
        CompressionPipeline(methods)


# --- le rapport, les octets -------------------------------------------------------------------------------------------


def test_a_report_is_a_table(network):
    method = SVDCompression({"rank": 5, "layers": ["body.*"]})
    assert str(method.report) == "aucune couche"
    method.compress(network, None, [torch.zeros(2, 3, dtype=torch.long)])
    lines = str(method.report).splitlines()
    assert lines[0].split() == ["couche", "forme", "rang", "bits", "octets", "fois", "moins", "erreur"]
    assert lines[1].split()[:4] == ["body.0", "24×16", "5", "–"]
    assert lines[3].startswith("en tout")
    assert lines[-1].startswith("erreur des sorties sur la validation :")
    assert "secondes" in method.report.table(times=True)
    assert method.report.plot().axes


def test_a_layer_done_twice_counts_once():
    lines = [LayerReport("a", (2, 2), 1, False, 60, 100, 0.1), LayerReport("b", (2, 2), 1, False, 50, 70, 0.1)]
    lines += [LayerReport("a", (2, 2), 1, False, 20, 60, 0.1, 4)]
    assert CompressionReport(lines).nbytes() == (170, 70)


@pytest.mark.parametrize("wrong", [None, "réseau", [nn.Linear(2, 2)]])
def test_information_on_something_else_is_refused(wrong, network):
    for models, name in (((wrong, network), "original_model"), ((network, wrong), "compressed_model")):
        with pytest.raises(TypeError, match=rf"^{name} : reçu {type(wrong).__name__}, attendu nn\.Module"):
            SVDCompression().get_compression_info(*models)
    with pytest.raises(ValueError, match="un réseau qui ne pèse rien"):
        SVDCompression().get_compression_info(nn.ReLU(), nn.ReLU())


def test_a_method_of_ones_own(network, tokens):
    """Il suffit de dire comment traiter une couche."""

    class Halved(CompressionMethod):
        defaults = {"part": 0.5}  # noqa: RUF012

        def compress_layer(self, layer, seen=None):
            return FactorizedLinear.from_linear(layer, max(1, int(self.config["part"] * min(layer.weight.shape))))

    method = Halved({"part": 0.25, "exclude": ["body.3"]})
    compressed = method.compress(network)
    assert [line.rank for line in method.report if line.compressed] == [4, 4, 4]
    assert isinstance(compressed.right, FactorizedLinear)
    assert isinstance(compressed.body[3], nn.Linear)
    with pytest.raises(TypeError, match="abstract"):
        CompressionMethod()


# --- ce que lrq ne connaît pas ----------------------------------------------------------------------------------------


class Own(nn.Module):
    """Une couche écrite ailleurs, qui tient sa matrice."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))

    def forward(self, x):
        return x @ self.weight


def test_layers_of_an_unknown_kind_are_told(linear, network):
    """Une Conv1D de GPT-2 garde Wᵀ : aucune méthode ne la traite, et le rapport ne s'en tait pas."""
    model = nn.Sequential(Conv1D(6, 4), linear(6, 4), Own(), Conv1D(4, 4))
    chain = CompressionPipeline([SVDCompression({"rank": 2}), PTQCompression()])
    for method in (SVDCompression({"rank": 2}), chain):
        method.compress(model)
        assert method.report.unknown == "2 Conv1D, 1 Own"
        assert str(method.report).endswith("laissées, d'une sorte que lrq ne connaît pas : 2 Conv1D, 1 Own")
    inplace = SVDCompression({"rank": 2})
    MemoryEfficientCompression.compress_inplace(copy.deepcopy(model), inplace)
    assert inplace.report.unknown == "2 Conv1D, 1 Own"
    with pytest.raises(ValueError, match=r"aucune couche à comprimer \(Linear\)\. Il y a 1 Own, que lrq"):
        SVDCompression().compress(nn.Sequential(Own()))


def test_what_torch_and_lrq_know_is_not_told(network, loader):
    """Ni un plongement, ni une attention, ni ce qu'une première méthode a rendu, ni une couche qui hérite des leurs."""
    for layer in (type("Mine", (nn.Embedding,), {})(5, 4), type("Also", (nn.Linear,), {})(4, 4)):
        network.extra = layer
        method = SVDCompression({"rank": 3})
        method.compress(method.compress(network))
        assert method.report.unknown == ""
