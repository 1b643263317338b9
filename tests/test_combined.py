"""Les pipelines : chaque couche remplacée, l'original intact, et des octets annoncés qui sont ceux du réseau."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from lrq import (
    CombinedCompressionPipeline,
    FactorizedLinear,
    PerChannel,
    PerGroup,
    PerTensor,
    QuantizedLowRankLinear,
    QuantizedResidualLinear,
    UniformQuantizer,
    analyze_combined_compression,
    calibrate,
    linear_names,
    models,
    save_weights,
)
from lrq.layers import meta_copy

BITS = range(1, 9)
METHODS = {
    "rang puis bits": lambda p, **o: p.apply_low_rank_then_quantize(**{"rank": 5, "n_bits": 4, **o}),
    "bits puis rang": lambda p, **o: p.apply_quantize_then_low_rank(**{"rank": 5, "n_bits": 4, **o}),
    "bits puis rang, flottant": lambda p, **o: p.apply_quantize_then_low_rank(
        **{"rank": 5, "n_bits": 4, "requantize": False, **o}
    ),
    "bits plus rang": lambda p, **o: p.apply_quantize_plus_low_rank(
        **{"rank": 5, "n_bits": 4, "granularity": PerGroup(4), **o}
    ),
}
KINDS = [QuantizedLowRankLinear, QuantizedLowRankLinear, FactorizedLinear, QuantizedResidualLinear]
methods = pytest.mark.parametrize("apply", [pytest.param(f, id=name) for name, f in METHODS.items()])
kinds = pytest.mark.parametrize(
    ("apply", "kind"), [pytest.param(f, kind, id=name) for (name, f), kind in zip(METHODS.items(), KINDS, strict=True)]
)


class Network(nn.Module):
    """De tout : un plongement lié à la sortie, une convolution, des normes, une couche partagée, un tampon."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.conv = nn.Conv1d(16, 16, 3, padding=1)
        self.body = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16, bias=False), nn.LayerNorm(16))
        self.twice = nn.Linear(16, 16)
        self.again = self.twice
        self.register_buffer("mask", torch.ones(3))
        self.head = nn.Linear(16, 20)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        x = self.conv(self.embedding(tokens).transpose(1, 2)).transpose(1, 2)
        return self.head(self.again(self.twice(self.body(x)).tanh()))


NAMES = ["body.0", "body.2", "twice", "again", "head"]


@pytest.fixture
def network(rng):
    return Network().eval()


@pytest.fixture
def tokens(rng):
    return torch.tensor(rng.integers(0, 20, (6, 7)))


def snapshot(module):
    return {name: t.detach().clone() for name, t in module.state_dict().items()}


def unchanged(module, before):
    now = module.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in before)


def stored(model):
    """Octets des tenseurs du réseau, chacun une fois."""
    return sum(t.nbytes for t in {id(t): t for t in [*model.parameters(), *model.buffers()]}.values())


# --- toutes les couches, sur une copie --------------------------------------------------------------------------------


@kinds
def test_every_linear_is_replaced_and_the_original_left_alone(apply, kind, network, tokens):
    assert linear_names(network) == NAMES
    before, classes, state = snapshot(network), [type(m) for m in network.modules()], torch.get_rng_state()
    y = network(tokens)
    compressed = apply(CombinedCompressionPipeline(network))
    assert torch.equal(torch.get_rng_state(), state)
    assert linear_names(compressed) == []
    assert all(type(compressed.get_submodule(name)) is kind for name in NAMES)
    assert isinstance(compressed.conv, nn.Conv1d)
    assert not any(module.training for module in compressed.modules())
    z = compressed(tokens)
    assert z.shape == y.shape
    assert not torch.allclose(z, y)
    with torch.no_grad():
        for t in compressed.state_dict().values():
            t.zero_()
    assert unchanged(network, before)
    assert [type(m) for m in network.modules()] == classes
    assert network.head.weight is network.embedding.weight
    assert torch.equal(network(tokens), y)


@methods
def test_a_layer_read_without_being_called_is_left(apply, rng):
    """L'attention de PyTorch lit des poids : les ôter casserait ses appels, en entraînement comme en évaluation."""
    block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    network, x = nn.Sequential(block, nn.Linear(16, 8)).eval(), torch.randn(2, 5, 16)
    pipeline = CombinedCompressionPipeline(network)
    compressed = apply(pipeline)
    for mode in (True, False):
        assert compressed.train(mode)(x).isfinite().all()
    assert linear_names(compressed) == [name for name in linear_names(network) if name.startswith("0.")]
    left = {line.name for line in pipeline.report if line.note.startswith("laissée : TransformerEncoderLayer lit ses")}
    assert left == set(linear_names(compressed))


def test_a_shared_block_is_left_under_all_its_names(rng):
    block, x = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), torch.randn(2, 5, 16)
    network = nn.Sequential(nn.Linear(16, 16), block, block, nn.Linear(16, 8)).eval()
    pipeline = CombinedCompressionPipeline(network)
    compressed = pipeline.apply_low_rank_then_quantize(4)
    assert compressed(x).isfinite().all()
    assert compressed[1] is compressed[2]
    kept = ["1.self_attn.out_proj", "1.linear1", "1.linear2"]
    assert [line.name for line in pipeline.report] == ["0", *kept, "3"], "dans l'ordre, une fois chacune"
    assert analyze_combined_compression(network, 4, 8) == stored(network) / stored(compressed)


def test_the_report_says_which_dense_weight_remains(network):
    pipeline = CombinedCompressionPipeline(network)
    pipeline.apply_low_rank_then_quantize(4)
    assert {line.name: line.note for line in pipeline.report if line.note} == {
        "head": "le poids dense demeure : 'embedding' a le même"
    }
    twins = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    twins[1].weight = twins[0].weight
    pipeline = CombinedCompressionPipeline(twins)
    pipeline.apply_low_rank_then_quantize(4)
    assert [line.note for line in pipeline.report] == ["", ""], "comprimées toutes deux : il n'en demeure aucun"


@pytest.mark.parametrize("requantize", [False, True])
def test_recomputed_weights_are_rounded_first_too(requantize, linear):
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(linear(16, 12)))
    source = nn.Sequential(linear(16, 12))
    source[0].load_state_dict({"weight": normed[0].weight.detach(), "bias": normed[0].bias})
    plain, other = (
        CombinedCompressionPipeline(model).apply_quantize_then_low_rank(12, 2, requantize=requantize)
        for model in (source, normed)
    )
    torch.testing.assert_close(plain[0].reconstruct_weight(), other[0].reconstruct_weight())
    assert plain[0].reconstruction_error(source[0].weight) > 0.05, "2 bits n'ont rien changé"


@methods
def test_a_shared_layer_stays_shared_and_is_reported_once(apply, network):
    pipeline = CombinedCompressionPipeline(network)
    compressed = apply(pipeline)
    assert compressed.twice is compressed.again
    assert [line.name for line in pipeline.report] == ["body.0", "body.2", "twice", "head"]


@methods
def test_fine_bits_and_full_rank_are_the_original(apply, network, tokens):
    compressed = apply(CombinedCompressionPipeline(network), rank=16, n_bits=8)
    y, z = network(tokens), compressed(tokens)
    assert (z - y).norm() < 0.05 * y.norm()


def test_each_layer_is_the_one_its_constructor_makes(network):
    pipeline = CombinedCompressionPipeline(network)
    options = {"granularity": PerChannel(0), "clipping": "mse", "rotate": True}
    compressed = pipeline.apply_low_rank_then_quantize(5, 3, **options)
    expected = QuantizedLowRankLinear.from_linear(network.body[0], 5, 3, **options)
    assert unchanged(compressed.body[0], snapshot(expected))
    compressed = pipeline.apply_quantize_then_low_rank(5, 3, **options)
    rounded = copy.deepcopy(network.body[0])
    rounded.weight.data = UniformQuantizer(3, granularity=PerChannel(0), clipping="mse").quantize_dequantize(
        rounded.weight
    )
    assert unchanged(compressed.body[0], snapshot(QuantizedLowRankLinear.from_linear(rounded, 5, 3, **options)))
    compressed = pipeline.apply_quantize_plus_low_rank(5, 3, granularity=PerGroup(4), factor_bits=None)
    expected = QuantizedResidualLinear.from_linear(network.body[0], 5, 3, granularity=PerGroup(4), factor_bits=None)
    assert unchanged(compressed.body[0], snapshot(expected))


def test_the_two_orders_really_differ(network):
    pipeline = CombinedCompressionPipeline(network)
    first, second = pipeline.apply_low_rank_then_quantize(5, 3), pipeline.apply_quantize_then_low_rank(5, 3)
    for name in NAMES:
        a, b = first.get_submodule(name), second.get_submodule(name)
        assert a.nbytes() == b.nbytes()  # la même place…
        assert not torch.equal(a.reconstruct_weight(), b.reconstruct_weight())  # … pour d'autres poids


def test_low_rank_first_loses_less_at_few_bits(matrix):
    """Le point clé du cours, sur un spectre qui décroît : à 2 bits et à taille égale."""
    model = nn.Sequential(nn.Linear(60, 50))
    model[0].weight.data = matrix(50, 60, np.arange(1, 51.0) ** -1.0)
    pipeline = CombinedCompressionPipeline(model)
    errors = []
    for apply in (pipeline.apply_low_rank_then_quantize, pipeline.apply_quantize_then_low_rank):
        apply(20, 2, granularity=PerChannel(0), rotate=True)
        errors.append(pipeline.report[0].error)
    assert errors[0] < errors[1]


def test_without_requantizing_nothing_is_gained(network):
    """La SVD des poids quantifiés sort de la grille : ses facteurs flottants pèsent ce que pèse le rang seul."""
    compressed = CombinedCompressionPipeline(network).apply_quantize_then_low_rank(5, 4, requantize=False)
    layer = compressed.body[0]
    assert type(layer) is FactorizedLinear
    assert layer.nbytes() == 4 * (5 * (16 + 24) + 24)
    rounded = UniformQuantizer(4).quantize_dequantize(network.body[0].weight)
    S = np.linalg.svd(rounded.detach().numpy(), compute_uv=False)
    error = np.linalg.norm((rounded - layer.reconstruct_weight()).detach().numpy())
    assert error == pytest.approx(math.sqrt((S[5:] ** 2).sum()), rel=1e-4)


def test_defaults_are_those_of_the_course(network):
    pipeline = CombinedCompressionPipeline(network)
    for apply in (pipeline.apply_low_rank_then_quantize, pipeline.apply_quantize_then_low_rank):
        layer = apply().body[0]
        assert (layer.rank, layer.n_bits) == (16, 8)  # 64, ramené à min(16, 24)
        assert [line.clamped for line in pipeline.report] == [True] * 4


# --- le rapport -------------------------------------------------------------------------------------------------------


@methods
def test_the_report_is_that_of_each_layer(apply, network):
    pipeline = CombinedCompressionPipeline(network)
    assert pipeline.report == []
    compressed = apply(pipeline, rank=16)
    for line in pipeline.report:
        dense, layer = network.get_submodule(line.name), compressed.get_submodule(line.name)
        assert line.shape == tuple(dense.weight.shape)
        assert (line.rank, line.clamped) == (16, False)
        assert line.nbytes == layer.nbytes() == stored(layer)
        assert line.dense_nbytes == 4 * (dense.weight.numel() + (0 if dense.bias is None else dense.bias.numel()))
        W, back = dense.weight.detach().double().numpy(), layer.reconstruct_weight().detach().double().numpy()
        assert line.error == pytest.approx(np.linalg.norm(W - back) / np.linalg.norm(W), rel=1e-6)


@methods
def test_a_rank_too_large_is_clamped_layer_by_layer_and_said(apply, network):
    network.body[2] = nn.Linear(24, 4)
    network.body[3] = nn.Linear(4, 16)
    pipeline = CombinedCompressionPipeline(network)
    apply(pipeline, rank=10)
    found = {line.name: (line.rank, line.clamped) for line in pipeline.report}
    assert found == {
        "body.0": (10, False),
        "body.2": (4, True),
        "body.3": (4, True),
        "twice": (10, False),
        "head": (10, False),
    }


def test_the_report_is_that_of_the_last_success(network):
    pipeline = CombinedCompressionPipeline(network)
    pipeline.apply_low_rank_then_quantize(5, 4)
    kept = pipeline.report
    with pytest.raises(ValueError, match=r"^size : reçu 7"):
        pipeline.apply_low_rank_then_quantize(5, 4, granularity=PerGroup(7))
    assert pipeline.report is kept
    pipeline.apply_low_rank_then_quantize(3, 4)
    assert [line.rank for line in kept] == [5] * 4, "un rapport déjà rendu a changé"
    assert [line.rank for line in pipeline.report] == [3] * 4


# --- noms et calibration ----------------------------------------------------------------------------------------------


@methods
def test_only_the_named_layers_are_compressed(apply, network):
    pipeline = CombinedCompressionPipeline(network)
    compressed = apply(pipeline, names=["body.2", "head"])
    assert linear_names(compressed) == ["body.0", "twice", "again"]
    assert [line.name for line in pipeline.report] == ["body.2", "head"]
    assert torch.equal(compressed.body[0].weight, network.body[0].weight)
    assert linear_names(apply(pipeline, names=[])) == NAMES
    assert pipeline.report == []


@methods
def test_naming_one_of_two_breaks_the_sharing(apply, network):
    compressed = apply(CombinedCompressionPipeline(network), names=["again"])
    assert isinstance(compressed.twice, nn.Linear)
    assert compressed.again is not compressed.twice


@methods
def test_calibration_reaches_the_layers_it_names(apply, network, tokens):
    seen = calibrate(network, ["body.0", "body.2"], lambda: network(tokens))
    pipeline = CombinedCompressionPipeline(network)
    plain, aware = apply(pipeline), apply(pipeline, calibration=seen)
    for name, differs in {"body.0": True, "body.2": True, "twice": False, "head": False}.items():
        a, b = (m.get_submodule(name).reconstruct_weight() for m in (plain, aware))
        assert torch.equal(a, b) != differs, name

    def loss(compressed, name):
        E = (network.get_submodule(name).weight - compressed.get_submodule(name).reconstruct_weight()).double()
        return (E @ seen[name].second_moment @ E.T).trace().item()

    exact = apply(pipeline, calibration=seen, n_bits=8), apply(pipeline, n_bits=8)
    assert loss(exact[0], "body.0") < loss(exact[1], "body.0")


def test_calibration_is_that_of_the_constructor(network, tokens):
    seen = calibrate(network, ["body.0"], lambda: network(tokens))
    compressed = CombinedCompressionPipeline(network).apply_low_rank_then_quantize(5, 4, calibration=seen)
    expected = QuantizedLowRankLinear.from_linear(network.body[0], 5, 4, seen["body.0"])
    assert unchanged(compressed.body[0], snapshot(expected))


@methods
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"names": ["absent"]}, ValueError, r"names : 'absent' n'est pas une nn\.Linear du réseau, qui a : body\.0"),
        ({"names": ["conv"]}, ValueError, "names : 'conv'"),
        ({"names": "head"}, TypeError, "names : reçu le texte 'head', attendu une liste"),
        ({"calibration": {"absent": None}}, ValueError, "names : 'absent'"),
        ({"rank": 0}, ValueError, "rank : reçu 0, attendu un entier ≥ 1"),
        ({"rank": 2.5}, TypeError, r"rank : reçu 2\.5"),
        ({"rank": True}, TypeError, "rank : reçu True"),
        ({"n_bits": 0}, ValueError, "n_bits : reçu 0, attendu un entier entre 1 et 8"),
        ({"n_bits": 9}, ValueError, "n_bits : reçu 9"),
        ({"n_bits": "8"}, TypeError, "n_bits : reçu '8'"),
        ({"clipping": "max"}, ValueError, "clipping : reçu 'max', attendu 'min_max' ou"),
        ({"granularity": "row"}, TypeError, "granularity : reçu 'row'"),
        ({"granularite": 3}, TypeError, ".*granularite"),
    ],
)
def test_bad_arguments_are_named_and_nothing_has_changed(apply, options, error, message, network):
    if apply is METHODS["bits puis rang, flottant"] and "granularite" in options:
        message = "granularite : sans effet quand requantize est faux"
    pipeline, before = CombinedCompressionPipeline(network), snapshot(network)
    with pytest.raises(error, match=f"^{message}"):
        apply(pipeline, **options)
    assert pipeline.report == []
    assert unchanged(network, before)
    assert linear_names(network) == NAMES


def test_an_option_without_effect_is_refused(network):
    pipeline = CombinedCompressionPipeline(network)
    with pytest.raises(TypeError, match=r"^rotate : sans effet quand requantize est faux"):
        pipeline.apply_quantize_then_low_rank(5, 4, requantize=False, rotate=True)


@methods
def test_the_layer_that_is_refused_is_named(apply, network):
    network.body[2].weight.data[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"NaN|non fini") as refusal:
        apply(CombinedCompressionPipeline(network))
    assert refusal.value.__notes__ == ["Couche refusée : 'body.2'."]


def test_a_bad_residual_precision_is_named(network):
    with pytest.raises(ValueError, match=r"^factor_bits : reçu 9"):
        CombinedCompressionPipeline(network).apply_quantize_plus_low_rank(granularity=PerTensor(), factor_bits=9)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (None, TypeError, r"model : reçu NoneType, attendu nn\.Module"),
        ([nn.Linear(2, 2)], TypeError, "model : reçu list"),
        (nn.Sequential(nn.Conv2d(1, 1, 1)), ValueError, r"model : aucune nn\.Linear à comprimer"),
    ],
)
def test_what_cannot_be_compressed_is_named(model, error, message):
    with pytest.raises(error, match=f"^{message}"):
        CombinedCompressionPipeline(model)
    with pytest.raises(error, match=f"^(original_)?{message}"):
        analyze_combined_compression(model, 2, 8)


@methods
def test_a_model_that_is_itself_a_linear(apply, randn):
    source = nn.Linear(16, 12)
    pipeline = CombinedCompressionPipeline(source)
    compressed = apply(pipeline)
    assert not isinstance(compressed, nn.Linear)
    assert compressed(randn(3, 16)).shape == (3, 12)
    assert [line.name for line in pipeline.report] == [""]


# --- l'analyse --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_bits", BITS)
@pytest.mark.parametrize("granularity", [None, PerChannel(0), PerChannel(1), PerGroup(1), PerGroup(4)], ids=str)
@pytest.mark.parametrize("rank", [4, 12, 1000])
def test_the_analysis_is_that_of_the_network_really_built(n_bits, granularity, rank, network):
    compressed = CombinedCompressionPipeline(network).apply_low_rank_then_quantize(
        rank, n_bits, granularity=granularity
    )
    ratio = analyze_combined_compression(network, rank, n_bits, granularity)
    assert isinstance(ratio, float)
    assert ratio == stored(network) / stored(compressed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_the_analysis_in_other_precisions(dtype, network):
    network.to(dtype)
    compressed = CombinedCompressionPipeline(network).apply_low_rank_then_quantize(6, 4)
    assert analyze_combined_compression(network, 6, 4) == stored(network) / stored(compressed)


def test_the_analysis_by_hand():
    model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 6), nn.Conv1d(1, 2, 3), nn.Linear(6, 4, bias=False))
    dense = 80 * 4 + 8 * 4
    original = dense + (48 + 6 + 24) * 4
    small = dense + math.ceil(3 * 6 * 5 / 8) + math.ceil(3 * 8 * 5 / 8) + 6 * 4 + 8
    small += math.ceil(3 * 4 * 5 / 8) + math.ceil(3 * 6 * 5 / 8) + 8
    assert analyze_combined_compression(model, 3, 5) == pytest.approx(original / small, rel=1e-12)


def test_the_analysis_is_what_the_disk_holds(network, tmp_path):
    compressed = CombinedCompressionPipeline(network).apply_low_rank_then_quantize(6, 4)
    sizes = []
    for model in (network, compressed):
        save_weights(model, tmp_path / "réseau")
        sizes.append((tmp_path / "réseau").stat().st_size)
        with (tmp_path / "réseau").open("rb") as file:
            header = 8 + int.from_bytes(file.read(8), "little")
    ratio = analyze_combined_compression(network, 6, 4)
    assert sizes[0] / sizes[1] < ratio  # les en-têtes ne maigrissent pas
    assert sizes[1] - stored(compressed) == header


def test_bits_and_ranks_both_count():
    """Le cours divise toujours par un octet par code, et ne compte rien d'autre que les couches linéaires."""
    model = nn.Sequential(nn.Linear(64, 64, bias=False))
    ratios = [analyze_combined_compression(model, 16, bits) for bits in BITS]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[3] == pytest.approx(2 * ratios[7], rel=0.01)
    assert analyze_combined_compression(model, 8, 8) == pytest.approx(2 * ratios[7], rel=0.01)
    assert ratios[7] == pytest.approx(4 * 2, rel=0.01)  # 4 par les bits, 2 par le rang
    heavy = nn.Sequential(nn.Embedding(1000, 64), *model)
    assert analyze_combined_compression(heavy, 16, 8) < 1.1


def test_the_analysis_decomposes_nothing_draws_nothing_and_changes_nothing(network, monkeypatch, capsys):
    before, state = snapshot(network), torch.get_rng_state()
    monkeypatch.setattr(torch.linalg, "svd", None)
    analyze_combined_compression(network, 5, 4)
    assert unchanged(network, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert capsys.readouterr().out == ""


def test_the_detail_is_printed_when_asked(network, capsys):
    ratio = analyze_combined_compression(network, 5, 4, verbose=True)
    out = capsys.readouterr().out
    left = (16 * 16 * 3 + 16 + 32 + 3) * 4
    assert f"original : {stored(network)} octets, dont {left} hors des couches linéaires\n" in out
    assert f"comprimé : {round(stored(network) / ratio)} octets, {ratio:.2f} fois moins" in out


def test_a_real_network_is_measured_too():
    network = models.load_digits_network("cnn")
    compressed = CombinedCompressionPipeline(network).apply_low_rank_then_quantize(4, 4)
    assert analyze_combined_compression(network, 4, 4) == stored(network) / stored(compressed)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 8), ValueError, "rank : reçu 0"),
        ((2.5, 8), TypeError, r"rank : reçu 2\.5"),
        ((4, 0), ValueError, "n_bits : reçu 0"),
        ((4, 9), ValueError, "n_bits : reçu 9"),
        ((4, 8, PerGroup(3)), ValueError, "size : reçu 3, attendu un diviseur"),
        ((4, 8, "row"), TypeError, "granularity : reçu 'row'"),
    ],
)
def test_bad_arguments_of_the_analysis_are_named(arguments, error, message, network):
    with pytest.raises(error, match=f"^{message}"):
        analyze_combined_compression(network, *arguments)


# --- une copie sans nombres -------------------------------------------------------------------------------------------


def test_a_meta_copy_has_the_shapes_and_no_numbers(network):
    network.twice.requires_grad_(False)
    before = snapshot(network)
    blank = meta_copy(network)
    assert unchanged(network, before)
    assert all(t.is_meta for t in [*blank.parameters(), *blank.buffers()])
    for name, t in network.state_dict().items():
        twin = blank.state_dict()[name]
        assert (twin.shape, twin.dtype) == (t.shape, t.dtype)
    assert blank.head.weight is blank.embedding.weight
    assert blank.twice is blank.again
    assert [p.requires_grad for p in blank.parameters()] == [p.requires_grad for p in network.parameters()]
    assert not blank.training
