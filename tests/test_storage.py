"""Ce qu'on écrit est ce qu'on relit, au bit près ; ce qui est abîmé ou étranger est refusé, le réseau intact."""

import copy
import hashlib
import math
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lrq import (
    CombinedCompressionPipeline,
    CompactSVDLinear,
    FactorizedLinear,
    LoRALayer,
    MultiStageFactorizedLinear,
    PerChannel,
    PerGroup,
    QATLowRankLinear,
    QuantizedLinear,
    QuantizedLowRankLayer,
    QuantizedLowRankLinear,
    QuantizedResidualLinear,
    SVDCompressedLinear,
    SVDConv2d,
    TruncatedSVDLinear,
    load_weights,
    save_weights,
)
from lrq.storage import read_safetensors

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
GROUPS = PerGroup(4)
# Chaque couche, construite d'après une nn.Linear (12 → 8) ; le second appel donne d'autres nombres
MAKE = {
    "Linear": copy.deepcopy,
    "FactorizedLinear": lambda layer: FactorizedLinear.from_linear(layer, 4),
    "SVDCompressedLinear": lambda layer: SVDCompressedLinear.from_linear(layer, 4),
    "TruncatedSVDLinear": lambda layer: TruncatedSVDLinear.from_linear(layer, 4),
    "CompactSVDLinear": lambda layer: CompactSVDLinear.from_linear(layer, 4),
    "MultiStage": lambda layer: MultiStageFactorizedLinear.from_linear(layer, [4, 5]),
    "LoRALayer": lambda layer: LoRALayer(copy.deepcopy(layer), 4),
    "QAT": lambda layer: QATLowRankLinear.from_linear(layer, 4, 3),
    "QAT, pas appris": lambda layer: QATLowRankLinear.from_linear(layer, 4, 3, per_channel=True, learned_step=True),
    "QuantizedLowRankLayer": lambda layer: QuantizedLowRankLayer.from_linear(layer, 4, 3),
    "QuantizedLowRankLinear": lambda layer: QuantizedLowRankLinear.from_linear(layer, 4, 5, granularity=GROUPS),
    "QuantizedLinear": lambda layer: QuantizedLinear.from_linear(layer, 7),
    "résidu en codes": lambda layer: QuantizedResidualLinear.from_linear(layer, 4, 2, granularity=GROUPS),
    "résidu flottant": lambda layer: QuantizedResidualLinear.from_linear(
        layer, 4, 2, granularity=GROUPS, factor_bits=None
    ),
}
made = pytest.mark.parametrize("make", [pytest.param(f, id=name) for name, f in MAKE.items()])


@pytest.fixture
def source(linear):
    return lambda n=12, m=8, *options, **named: linear(n, m, *options, **named)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "réseau.safetensors"


def snapshot(module):
    return {name: t.detach().clone() for name, t in module.state_dict().items()}


def bits(t):
    return t.reshape(-1).view(torch.uint8).tolist()


def same(module, before):
    """Mêmes noms, mêmes types, mêmes formes, mêmes octets : un NaN est égal à lui-même."""
    now = module.state_dict()
    return now.keys() == before.keys() and all(
        now[name].dtype == t.dtype and now[name].shape == t.shape and bits(now[name]) == bits(t)
        for name, t in before.items()
    )


def refused(model, path, message, error=ValueError):
    """Le fichier est refusé ; le réseau, quantifié ou non, reste ce qu'il était."""
    before, kinds = snapshot(model), [type(module) for module in model.modules()]
    with pytest.raises(error, match=message):
        load_weights(model, path)
    assert same(model, before)
    assert [type(module) for module in model.modules()] == kinds


# --- aller et retour --------------------------------------------------------------------------------------------------


@made
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["biais", "sans biais"])
def test_what_is_written_comes_back_to_the_bit(make, dtype, bias, source, randn, path):
    model, other = (nn.Sequential(make(source(bias=bias, dtype=dtype)), nn.Tanh()) for _ in range(2))
    before = snapshot(model)
    assert not same(other, before)
    assert save_weights(model, path) is None
    assert same(model, before)
    assert load_weights(other, path) is other
    assert same(other, before)
    x = randn(3, 12, dtype=dtype)
    assert torch.equal(other(x), model(x))


@pytest.mark.parametrize("n_bits", range(1, 9))
@pytest.mark.parametrize("granularity", [None, PerChannel(0), GROUPS], ids=str)
@pytest.mark.parametrize("kind", [QuantizedLowRankLayer, QuantizedLowRankLinear])
def test_codes_load_into_a_layer_that_is_not_quantized_yet(n_bits, granularity, kind, source, randn, path):
    layer = kind.from_linear(source(), 4, n_bits, granularity=granularity)
    fresh = kind(12, 8, 4, n_bits, bias=True, granularity=granularity)
    save_weights(layer, path)
    load_weights(fresh, path)
    assert fresh.quantized
    assert fresh.U is None
    assert same(fresh, snapshot(layer))
    x = randn(3, 12)
    assert torch.equal(fresh(x), layer(x))


def test_loading_shares_nothing_with_the_file(source, path):
    layer, other = source(), source()
    save_weights(layer, path)
    load_weights(other, path)
    with torch.no_grad():
        other.weight.zero_()
    assert same(load_weights(source(), path), snapshot(layer))


def test_numbers_that_are_not_numbers_and_signs_of_zero(source, path):
    layer = source()
    layer.weight.data[0, :4] = torch.tensor([math.nan, -math.inf, -0.0, 1e-45])
    save_weights(layer, path)
    assert same(load_weights(source(), path), snapshot(layer))


def test_whole_networks(randn, path):
    def network():
        return nn.Sequential(
            nn.Conv2d(1, 3, 3),
            SVDConv2d(3, 4, 3, 2),
            nn.BatchNorm2d(4),  # un compteur int64 parmi ses tampons
            nn.Flatten(),
            nn.Linear(16, 6),
            QuantizedLowRankLinear(6, 6, 2, 4),
        )

    model, other = network(), network()
    model(randn(5, 1, 6, 6))
    model[5].quantize_weights()
    save_weights(model, path)
    load_weights(other, path)
    assert same(other, snapshot(model))
    assert other[2].num_batches_tracked == 1
    x = randn(5, 1, 6, 6)
    assert torch.equal(other.eval()(x), model.eval()(x))
    recurrent, twin = nn.LSTM(3, 4), nn.LSTM(3, 4)
    save_weights(recurrent, path)
    assert same(load_weights(twin, path), snapshot(recurrent))


def test_a_merged_adapter_and_an_unmerged_one(source, path, randn):
    layer, other = (LoRALayer(source(), 3, 0.5) for _ in range(2))
    layer.lora_B.data = randn(8, 3)
    layer.merge_weights()
    save_weights(layer, path)
    load_weights(other, path)
    assert other.merged
    assert same(other, snapshot(layer))
    layer.unmerge_weights()
    other.unmerge_weights()
    assert same(other, snapshot(layer))


def test_the_mode_the_gradients_and_the_generator_are_left_alone(source, path):
    model = nn.Sequential(source(), source()).eval()
    model[0].requires_grad_(False)
    state = torch.get_rng_state()
    save_weights(model, path)
    load_weights(model, path)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]


def test_the_file_is_the_state_and_little_more(source, path):
    model = nn.Sequential(QuantizedLowRankLinear.from_linear(source(256, 128), 32, 4), source(8, 8))
    save_weights(model, path)
    state = model.state_dict()
    read = load_file(path)  # un safetensors comme un autre
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) for name in state)
    exact = sum(t.nbytes for t in state.values())
    assert exact <= path.stat().st_size < exact + 2000
    assert exact == 32 * (256 + 128) // 2 + 8 + 128 * 4 + 72 * 4


def test_the_same_network_gives_the_same_file(source, path, tmp_path):
    model = nn.Sequential(source(), source())
    files = set()
    for i in range(8):
        save_weights(copy.deepcopy(model), tmp_path / f"{i}")
        files.add((tmp_path / f"{i}").read_bytes())
    assert len(files) == 1


# --- tenseurs partagés ------------------------------------------------------------------------------------------------


def tied(layer):
    """Trois noms pour un poids : une couche reprise telle quelle, et une autre qui n'en prend que la matrice."""
    other = nn.Linear(8, 8)
    other.weight = layer.weight
    return nn.Sequential(layer, nn.Tanh(), layer, other)


def test_shared_tensors_are_written_once_and_stay_shared(source, path):
    model, other = tied(source(8, 8)), tied(source(8, 8))
    save_weights(model, path)
    assert load_file(path).keys() == {"0.weight", "0.bias", "3.bias"}
    load_weights(other, path)
    assert same(other, snapshot(model))
    assert other[0] is other[2]
    assert other[3].weight is other[0].weight


def test_shared_tensors_load_into_a_network_that_does_not_share(source, path):
    model = tied(source(8, 8))
    other = nn.Sequential(source(8, 8), nn.Tanh(), source(8, 8), source(8, 8))
    save_weights(model, path)
    load_weights(other, path)
    assert same(other, snapshot(model))


def test_different_tensors_do_not_load_into_a_network_that_shares(source, path):
    model = nn.Sequential(source(8, 8), nn.Tanh(), source(8, 8), source(8, 8))
    save_weights(model, path)
    refused(tied(source(8, 8)), path, r"2\.weight et 0\.weight diffèrent, mais le réseau n'en fait qu'un tenseur")
    model[2], model[3].weight = copy.deepcopy(model[0]), nn.Parameter(model[0].weight.detach().clone())
    save_weights(model, path)  # égaux sans être partagés : rien ne se perd
    load_weights(tied(source(8, 8)), path)


def test_views_of_one_storage_are_not_confused(randn, path):
    model, other = nn.Module(), nn.Module()
    whole = randn(6, 6)
    for module, t in ((model, whole), (other, randn(6, 6))):
        for name, view in (("haut", t[:3]), ("bas", t[3:]), ("droit", t), ("couché", t.T)):
            module.register_buffer(name, view)
    save_weights(model, path)
    separate = nn.Module()
    for name, t in model.state_dict().items():
        separate.register_buffer(name, torch.zeros_like(t))
    load_weights(separate, path)
    assert all(torch.equal(separate.state_dict()[name], t) for name, t in model.state_dict().items())


def test_compressed_networks_keep_their_shared_layers(source, path):
    pipeline = CombinedCompressionPipeline(tied(source(8, 8)))
    model = pipeline.apply_low_rank_then_quantize(rank=3, n_bits=4)
    other = CombinedCompressionPipeline(tied(source(8, 8))).apply_low_rank_then_quantize(rank=3, n_bits=4)
    save_weights(model, path)
    load_weights(other, path)
    assert same(other, snapshot(model))
    assert other[0] is other[2]


# --- fichiers abîmés --------------------------------------------------------------------------------------------------


@pytest.fixture
def example(source):
    """Un petit réseau qui a de tout : des codes, des flottants, un tenseur partagé."""

    def draw():
        shared = source(8, 8)
        return nn.Sequential(QuantizedLowRankLinear.from_linear(source(), 3, 4), shared, shared, nn.BatchNorm1d(8))

    return draw


def test_truncated_files_are_refused(example, path, rng):
    save_weights(example(), path)
    data, model = path.read_bytes(), example()
    for kept in [0, 1, 8, 9, len(data) - 1, *rng.integers(10, len(data), 20).tolist()]:
        path.write_bytes(data[:kept])
        refused(model, path, "fichier tronqué ou qui n'est pas un safetensors")
    path.write_bytes(data + b"\0")
    refused(model, path, "fichier tronqué ou qui n'est pas un safetensors")


def test_no_flipped_bit_goes_unnoticed(example, path, rng):
    saved, model = example(), example()
    save_weights(saved, path)
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    before, good = snapshot(model), snapshot(saved)
    places = [*range(header), *rng.choice(np.arange(header, len(data)), 100, replace=False).tolist()]
    silent, messages = [], []
    for place in places:
        bad = bytearray(data)
        bad[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bad)
        try:
            load_weights(model, path)
        except ValueError as error:
            messages.append(str(error))
            assert same(model, before), place
        else:  # un bit sans effet, comme une espace de l'en-tête : ce qu'on lit doit être ce qu'on avait écrit
            silent.append(place)
            assert same(model, good), place
            model.load_state_dict(before)
    assert all(message.startswith(f"{path} : ") for message in messages)
    assert all(place < header for place in silent)
    assert len(silent) < 20


def test_numbers_rewritten_by_someone_else_are_refused(example, path):
    save_weights(example(), path)
    tensors, metadata = read_safetensors(path)
    tensors["1.bias"] = tensors["1.bias"] + 1
    save_file(tensors, path, metadata)
    refused(example(), path, "le contenu ne correspond pas à son empreinte")
    save_file(tensors, path)
    refused(example(), path, "il n'est pas de save_weights, ou a été modifié")


@pytest.mark.parametrize("content", [b"", b"bonjour", b"\xff" * 100, b"\x80\x04K*."], ids=str)
def test_what_is_no_safetensors_is_refused(content, example, path):
    path.write_bytes(content)
    refused(example(), path, r"réseau\.safetensors : fichier tronqué ou qui n'est pas un safetensors")


def test_missing_files_are_named(example, tmp_path):
    refused(example(), tmp_path / "absent", r"absent : fichier introuvable", FileNotFoundError)
    refused(example(), tmp_path, "fichier introuvable", FileNotFoundError)


# --- réseaux étrangers ------------------------------------------------------------------------------------------------


def low_rank(n_bits=4, rank=4, granularity=None, bias=False, n=12, m=8, dtype=torch.float32, quantized=True):
    layer = QuantizedLowRankLinear(n, m, rank, n_bits, bias, granularity, dtype=dtype)
    if quantized:
        layer.quantize_weights()
    return nn.Sequential(layer)


@pytest.mark.parametrize("quantized", [True, False], ids=["quantifiée", "flottante"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_bits": 5}, r"0\.U_packed : reçu des codes rangés en 8×4 sur 4 bit\(s\).*, attendu en 8×4 sur 5 bit"),
        ({"rank": 3}, r"0\.U_packed : reçu des codes rangés en 8×4 sur .*, attendu en 8×3 sur"),
        ({"n": 8, "m": 12}, r"reçu des codes rangés en 8×4 .*, attendu en 12×4"),  # autant d'octets
        ({"n": 24, "m": 16, "rank": 2}, r"attendu en 16×2"),  # autant d'octets aussi
        ({"granularity": PerChannel(0)}, r"PerTensor\(\), attendu .*PerChannel\(dim=0\)"),
        ({"granularity": GROUPS}, r"PerTensor\(\), attendu .*PerGroup\(size=4\)"),
        ({"bias": True}, r"il y manque 0\.bias, \(8,\)"),
        ({"dtype": torch.float64}, r"0\.U_packed\.scale : reçu des éléments torch\.float32, attendu torch\.float64"),
    ],
)
def test_codes_stored_otherwise_are_refused(quantized, options, message, path):
    save_weights(low_rank(), path)
    refused(low_rank(**options, quantized=quantized), path, message)


@pytest.mark.parametrize(
    ("written", "wanted", "message"),
    [
        (nn.Linear(12, 8), nn.Linear(12, 8, bias=False), "bias n'existe pas dans le réseau"),
        (nn.Linear(12, 8, bias=False), nn.Linear(12, 8), r"il y manque bias, \(8,\)"),
        (nn.Linear(12, 8), nn.Linear(8, 12), r"weight : reçu la forme \(8, 12\), attendu \(12, 8\)"),
        (
            nn.Linear(12, 8),
            nn.Linear(12, 8).half(),
            r"weight : reçu des éléments torch\.float32, attendu torch\.float16",
        ),
        (nn.Linear(12, 8), FactorizedLinear(12, 8, 3, bias=True), r"il y manque U, \(8, 3\)"),
        (QuantizedLinear(12, 8, 4), FactorizedLinear(12, 8, 3), r"il y manque U, \(8, 3\)"),
        (FactorizedLinear(12, 8, 3), nn.Sequential(FactorizedLinear(12, 8, 3)), r"il y manque 0\.U"),
        (FactorizedLinear(12, 8, 3), low_rank(rank=3)[0], r"il y manque U_packed\.packed"),
        (nn.Linear(1, 8), nn.Linear(8, 1), r"weight : reçu la forme \(8, 1\), attendu \(1, 8\)"),
        (nn.BatchNorm1d(3), nn.BatchNorm1d(3, affine=False), "bias n'existe pas dans le réseau"),
    ],
)
def test_another_network_is_refused(written, wanted, message, path):
    save_weights(written, path)
    refused(wanted, path, message)


@made
def test_every_layer_refuses_a_wider_one(make, source, path):
    save_weights(nn.Sequential(make(source(16, 8))), path)
    refused(nn.Sequential(make(source())), path, "reçu (la forme|des codes rangés)")


@pytest.mark.parametrize("model", [None, "réseau", {"a": torch.ones(2)}, [nn.Linear(2, 2)]])
def test_what_is_no_model_is_named(model, path):
    for function in (save_weights, load_weights):
        with pytest.raises(TypeError, match=rf"^model : reçu {type(model).__name__}, attendu nn\.Module"):
            function(model, path)
    assert not path.exists()


def test_what_a_file_cannot_hold_is_named(path):
    """Un état qui n'est pas un tenseur, un paramètre creux : rien n'est écrit."""

    class Counted(nn.Linear):
        def get_extra_state(self):
            return {"pas": 3}

    sparse = nn.Linear(2, 2)
    sparse.weight = nn.Parameter(torch.eye(2).to_sparse())
    for model, name in (
        (Counted(2, 2), "_extra_state est de sorte dict"),
        (sparse, "weight est de sorte torch.sparse"),
    ):
        with pytest.raises(TypeError, match=rf"^model : {name}"):
            save_weights(model, path)
    assert not path.exists()


# --- écritures qui échouent -------------------------------------------------------------------------------------------


def test_an_existing_file_is_replaced(source, path):
    save_weights(source(), path)
    last = source()
    save_weights(last, str(path))
    assert same(load_weights(source(), str(path)), snapshot(last))
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("error", [OSError("disque plein"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("step", ["replace", "write"])
def test_a_failed_write_leaves_the_old_file_and_no_other(step, error, source, path, monkeypatch):
    old = source()
    save_weights(old, path)

    def fail(*args, **kwargs):
        raise error

    if step == "replace":
        monkeypatch.setattr(os, "replace", fail)
    else:
        monkeypatch.setattr("lrq.storage.secrets.token_hex", lambda size: "temporaire")
        monkeypatch.setattr("pathlib.Path.open", lambda self, mode: Half(self, error))
    with pytest.raises(type(error)):
        save_weights(source(), path)
    monkeypatch.undo()
    assert os.listdir(path.parent) == [path.name]
    assert same(load_weights(source(), path), snapshot(old))


class Half:
    """Un fichier qui n'accepte que la moitié de ce qu'on lui donne."""

    def __init__(self, path, error):
        self.file, self.error = open(path, "xb"), error  # noqa: SIM115

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.file.close()

    def write(self, content):
        self.file.write(content[: len(content) // 2])
        raise self.error


def test_a_missing_folder_is_named_and_not_made(source, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent : dossier introuvable"):
        save_weights(source(), tmp_path / "absent" / "réseau.safetensors")
    assert os.listdir(tmp_path) == []


def test_the_file_can_be_read_by_whom_the_umask_allows(source, path):
    save_weights(source(), path)
    (path.parent / "autre").touch()
    assert path.stat().st_mode == (path.parent / "autre").stat().st_mode


# --- lire un fichier de poids -----------------------------------------------------------------------------------------


def test_weights_written_are_weights_read(tmp_path, randn):
    weights = {"a": randn(3, 4), "b": randn(5, dtype=torch.float16)}
    save_file(weights, tmp_path / "poids.safetensors", {"source": "ici"})
    digest = hashlib.sha256((tmp_path / "poids.safetensors").read_bytes()).hexdigest()
    read, metadata = read_safetensors(tmp_path / "poids.safetensors", digest)
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[name], weights[name]) for name in weights)
    assert read["b"].dtype == torch.float16
    assert metadata == {"source": "ici"}
    save_file(weights, tmp_path / "poids.safetensors")
    assert read_safetensors(tmp_path / "poids.safetensors")[1] == {}


def test_one_flipped_bit_is_refused(tmp_path, randn):
    path = tmp_path / "poids.safetensors"
    save_file({"a": randn(3, 4)}, path)
    data = bytearray(path.read_bytes())
    digest = hashlib.sha256(data).hexdigest()
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"poids\.safetensors : empreinte sha256 [0-9a-f]{{64}}, attendu {digest}"):
        read_safetensors(path, digest)


@pytest.mark.parametrize("kept", [0, 4, 50, -1])
def test_truncated_file_is_refused(kept, tmp_path, randn):
    path = tmp_path / "poids.safetensors"
    save_file({"a": randn(30, 40)}, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"poids\.safetensors : fichier tronqué ou qui n'est pas un safetensors"):
        read_safetensors(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors : fichier introuvable"):
        read_safetensors(tmp_path / "absent.safetensors")
