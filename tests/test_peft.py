"""Nos adaptateurs et ceux de PEFT se lisent l'un l'autre, et calculent la même chose ; ce qui ne va pas est refusé."""

import copy
import json
import math
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lrq import (
    LoRALayer,
    add_adapter,
    convert_model_to_lora,
    load_adapter,
    merge_adapters,
    models,
    save_adapter,
    set_adapter,
)
from lrq.adapters import lora_layers

try:
    import peft
except ImportError:  # en intégration continue, un test sauté serait un test oublié
    peft = None
    if os.environ.get("CI"):
        raise

needs_peft = pytest.mark.skipif(peft is None, reason="peft n'est pas installé")
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class Net(nn.Module):
    """Une convolution, des couches dont l'une a pour nom la fin du nom d'une autre, des rangs bornés diversement."""

    def __init__(self, **options):
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, **options)
        self.body = nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 8, bias=False))
        self.head = nn.Linear(8, 5)
        self(torch.zeros(1, 4, 5, 5))

    def forward(self, x):
        return self.head(self.body(self.conv(x)))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = self.b = nn.Linear(6, 6)

    def forward(self, x):
        return self.b(self.a(x).relu())


@pytest.fixture
def net(rng):
    return Net().eval()


@pytest.fixture
def x(randn):
    return randn(3, 4, 5, 5)


@pytest.fixture
def adapted(net, train):
    """Des rangs et des échelles différents d'une couche à l'autre."""
    model = convert_model_to_lora(net, rank=4, alpha=0.7)
    for name, rank in (("body.1", 2), ("head", 5)):
        layer = lora_layers(model)[name]
        layer.discard_adapter("default")
        layer.add_adapter("default", rank, 1.3, scaling="alpha/sqrt(r)")
        layer.set_adapter("default")
    return train(model)


def snapshot(module):
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def unchanged(module, before):
    now = module.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in before)


def read_by_peft(net, folder):
    return peft.PeftModel.from_pretrained(copy.deepcopy(net), folder).eval()


def rewrite(folder, **changes):
    """Change la configuration ; None ôte une entrée."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8")) | changes
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")


# --- aller et retour --------------------------------------------------------------------------------------------------


def test_round_trip_without_peft(adapted, net, x, tmp_path):
    save_adapter(adapted, tmp_path / "a" / "b")
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == [CONFIG, WEIGHTS]
    loaded = load_adapter(copy.deepcopy(net), tmp_path / "a" / "b", "venu d'ailleurs")
    assert torch.equal(loaded(x), adapted(x))
    trained = {name for name, p in loaded.named_parameters() if p.requires_grad}
    assert len(trained) == 8  # la base, elle, est gelée
    assert all("adapters.venu d'ailleurs" in name for name in trained)
    again = load_adapter(convert_model_to_lora(net, rank=1), tmp_path / "a" / "b")  # remplace l'adaptateur du même nom
    assert torch.equal(again(x), adapted(x))


@needs_peft
def test_peft_reads_ours(adapted, net, x, tmp_path):
    save_adapter(adapted, tmp_path)
    theirs = read_by_peft(net, tmp_path)
    torch.testing.assert_close(theirs(x), adapted(x))
    assert not torch.allclose(theirs(x), net(x), atol=1e-2)
    assert {name: p.shape for name, p in theirs.named_parameters() if "lora_" in name}.keys() == {
        f"base_model.model.{key}.lora_{factor}.default.weight" for key in lora_layers(adapted) for factor in "AB"
    }
    merged = theirs.merge_and_unload()
    merge_adapters(adapted)
    torch.testing.assert_close(merged(x), adapted(x))


@needs_peft
@pytest.mark.parametrize(
    "options",
    [
        {"r": 4, "lora_alpha": 3},
        {"r": 4, "lora_alpha": 3, "use_rslora": True, "lora_dropout": 0.25},
        {"r": 4, "rank_pattern": {"conv": 2, r"body\.\d": 3, "^head": 5}, "alpha_pattern": {"3": 9.5}},
        {"r": 4, "init_lora_weights": "gaussian", "layers_to_transform": None, "bias": "none"},
    ],
    ids=["α/r", "rsLoRA", "motifs", "gaussien"],
)
def test_ours_reads_peft(options, net, x, tmp_path):
    config = peft.LoraConfig(target_modules=["conv", "1", "3", "head"], **options)
    theirs = peft.get_peft_model(copy.deepcopy(net), config).eval()
    for name, p in theirs.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p)
    theirs.save_pretrained(tmp_path)
    ours = load_adapter(copy.deepcopy(net), tmp_path)
    torch.testing.assert_close(ours(x), theirs(x))
    assert not torch.allclose(ours(x), net(x), atol=1e-2)
    assert {layer.adapters["default"].dropout for layer in lora_layers(ours).values()} == {
        options.get("lora_dropout", 0.0)
    }


@needs_peft
@pytest.mark.parametrize(
    "options", [{"groups": 2}, {"groups": 2, "padding": "same"}, {"stride": 2, "padding": (1, 0)}], ids=str
)
def test_convolutions_that_both_can_do(options, train, x, tmp_path):
    net = Net(**options).eval()
    model = train(convert_model_to_lora(net, ["conv"], rank=2, alpha=0.7))
    save_adapter(model, tmp_path)
    torch.testing.assert_close(read_by_peft(net, tmp_path)(x), model(x))
    torch.testing.assert_close(load_adapter(copy.deepcopy(net), tmp_path)(x), model(x))


@pytest.mark.parametrize("options", [{"dilation": 2}, {"padding": 1, "padding_mode": "circular"}], ids=str)
def test_convolutions_that_peft_does_not_follow(options, train, x, tmp_path):
    net = Net(**options).eval()
    model = train(convert_model_to_lora(net, ["conv"], rank=2))
    with pytest.warns(UserWarning, match=rf"^conv : PEFT oublie {list(options)[-1]}=.* ; seul lrq") as caught:
        save_adapter(model, tmp_path)
    assert caught[0].filename == __file__
    torch.testing.assert_close(load_adapter(copy.deepcopy(net), tmp_path)(x), model(x))
    rewrite(tmp_path, peft_version="0.21.2")
    with pytest.raises(ValueError, match=r"conv : PEFT oublie .*, que cette convolution a"):
        load_adapter(net, tmp_path)


@needs_peft
def test_a_grouped_convolution_of_peft_may_mix_its_groups(x, tmp_path):
    net = Net(groups=2).eval()  # A de PEFT voit tous les canaux : ΔW n'a plus la forme de W
    config = peft.LoraConfig(r=4, target_modules=["conv"], init_lora_weights=False)
    peft.get_peft_model(copy.deepcopy(net), config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"conv\.lora_A\.weight : mélange les 2 groupes"):
        load_adapter(net, tmp_path)
    assert not any(isinstance(module, LoRALayer) for module in net.modules())


@needs_peft
def test_names_that_peft_would_read_as_endings(randn, train, tmp_path):
    net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 4))).eval()
    model, x = train(convert_model_to_lora(net, ["0", "1.1"], rank=2)), randn(3, 4)  # « 1.0 » finit par « .0 »
    save_adapter(model, tmp_path)
    torch.testing.assert_close(read_by_peft(net, tmp_path)(x), model(x))
    assert list(lora_layers(load_adapter(copy.deepcopy(net), tmp_path))) == ["0", "1.1"]


@needs_peft
@pytest.mark.parametrize("scaling", ["alpha", "alpha/r"])
def test_pissa_is_written_against_the_original(scaling, net, x, train, tmp_path):
    model = convert_model_to_lora(net, rank=3, alpha=0.5, create=LoRALayer.from_pissa, scaling=scaling)
    train(model)
    save_adapter(model, tmp_path)
    torch.testing.assert_close(load_adapter(copy.deepcopy(net), tmp_path)(x), model(x), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(read_by_peft(net, tmp_path)(x), model(x), rtol=1e-3, atol=1e-4)
    assert {layer.rank for layer in lora_layers(load_adapter(copy.deepcopy(net), tmp_path)).values()} == {6}


def test_a_shared_layer_stays_shared(train, randn, tmp_path):
    net, x = Twice(), randn(3, 6)
    model = train(convert_model_to_lora(net, rank=2))
    save_adapter(model, tmp_path)
    loaded = load_adapter(copy.deepcopy(net), tmp_path)
    assert torch.equal(loaded(x), model(x))
    assert loaded.a is loaded.b


def test_a_single_layer(train, randn, tmp_path):
    source, x = nn.Linear(6, 5), randn(3, 6)
    model = train(convert_model_to_lora(source, rank=2))
    save_adapter(model, tmp_path)
    assert torch.equal(load_adapter(copy.deepcopy(source), tmp_path)(x), model(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_the_dtype_of_the_base_is_taken(dtype, adapted, net, x, tmp_path):
    save_adapter(adapted.to(dtype), tmp_path)
    assert {t.dtype for t in load_file(tmp_path / WEIGHTS).values()} == {dtype}
    loaded = load_adapter(copy.deepcopy(net), tmp_path)
    assert {layer.lora_A.dtype for layer in lora_layers(loaded).values()} == {torch.float32}
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(loaded(x), adapted.float()(x), rtol=30 * eps + 1e-5, atol=30 * eps + 1e-5)


def test_which_adapter_is_written(adapted, net, x, train, tmp_path):
    add_adapter(adapted, "b", 1)
    train(adapted)
    set_adapter(adapted, {"default": 0.5, "b": 0.5})
    with pytest.raises(ValueError, match=r"^name : 2 adaptateurs actifs, attendu un seul ; .* 'default', 'b'"):
        save_adapter(adapted, tmp_path)
    with pytest.raises(ValueError, match=r"^name : pas d'adaptateur 'c' ; noms : 'default', 'b'"):
        save_adapter(adapted, tmp_path, "c")
    assert list(tmp_path.iterdir()) == []
    save_adapter(adapted, tmp_path, "b")
    set_adapter(adapted, "b")
    assert torch.equal(load_adapter(copy.deepcopy(net), tmp_path)(x), adapted(x))
    set_adapter(adapted, {})
    with pytest.raises(ValueError, match=r"^name : 0 adaptateurs actifs"):
        save_adapter(adapted, tmp_path)


def test_a_merged_model_writes_its_adapter(adapted, net, x, tmp_path):
    y = adapted(x)
    merge_adapters(adapted)
    save_adapter(adapted, tmp_path)
    torch.testing.assert_close(load_adapter(copy.deepcopy(net), tmp_path)(x), y)
    before = snapshot(adapted)
    with pytest.raises(ValueError, match=r"^model : ses adaptateurs sont fusionnés"):
        load_adapter(adapted, tmp_path)
    assert unchanged(adapted, before)


@pytest.mark.parametrize("sick", [math.nan, math.inf])
def test_nothing_sick_is_written(sick, adapted, tmp_path):
    save_adapter(adapted, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    lora_layers(adapted)["head"].lora_B.data[0, 0] = sick
    with pytest.raises(ValueError, match=r"^head : NaN ou infini dans lora_B"):
        save_adapter(adapted, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_file_weighs_its_numbers(tmp_path):
    encoder = models.load_minilm()
    model = convert_model_to_lora(encoder, models.encoder_linears(encoder), rank=16)
    save_adapter(model, tmp_path)
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    assert trained <= (tmp_path / WEIGHTS).stat().st_size <= 1.02 * trained
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1.02 * trained


# --- refus ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(adapted, tmp_path):
    save_adapter(adapted, tmp_path)
    return tmp_path


def refused(net, folder, error, message):
    """Le refus, après lequel rien n'a changé : ni les poids, ni les classes des couches, ni ce qui s'entraîne."""
    before, kinds = snapshot(net), [type(module) for module in net.modules()]
    grads = [p.requires_grad for p in net.parameters()]
    with pytest.raises(error, match=message):
        load_adapter(net, folder)
    assert unchanged(net, before)
    assert [type(module) for module in net.modules()] == kinds
    assert [p.requires_grad for p in net.parameters()] == grads


@pytest.mark.parametrize("missing", [CONFIG, WEIGHTS])
def test_a_missing_file_is_named(missing, net, folder):
    (folder / missing).unlink()
    refused(net, folder, FileNotFoundError, f"{missing} : fichier introuvable")


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_truncated_file_is_refused(kept, net, folder):
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:kept])
    refused(net, folder, ValueError, "tronqué ou qui n'est pas un safetensors")


@pytest.mark.parametrize("text", ["", "[1, 2]", "3", "{", "null", b"\xff\xfe"])
def test_a_configuration_that_is_no_object_is_refused(text, net, folder):
    (folder / CONFIG).write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(net, folder, ValueError, f"{CONFIG} : attendu un objet JSON")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"peft_type": "IA3"}, ValueError, "peft_type : reçu 'IA3', attendu 'LORA'"),
        ({"use_dora": True}, ValueError, "use_dora : reçu True, un réglage de PEFT que lrq ne sait pas rejouer"),
        ({"bias": "all"}, ValueError, "bias : reçu 'all', attendu 'none'"),
        ({"init_lora_weights": "pissa"}, ValueError, "init_lora_weights : reçu 'pissa', qui change aussi les poids"),
        ({"init_lora_weights": "loftq"}, ValueError, "init_lora_weights : reçu 'loftq'"),
        ({"modules_to_save": ["head"]}, ValueError, r"modules_to_save : reçu \['head'\]"),
        ({"fan_in_fan_out": True}, ValueError, "fan_in_fan_out : reçu True"),
        ({"invention": 1}, ValueError, "invention : reçu 1, un réglage de PEFT"),
        ({"r": 0}, ValueError, "r : reçu 0"),
        ({"r": None}, TypeError, "r : reçu None, attendu un entier"),
        ({"r": 3}, ValueError, r"lora_A\.weight : reçu la forme \(4, .*, attendu \(3, "),
        ({"lora_alpha": "4"}, TypeError, "lora_alpha : reçu '4'"),
        ({"lora_dropout": 1.0}, ValueError, "lora_dropout : reçu 1.0"),
        ({"rank_pattern": {".*": "4"}}, TypeError, "rang de '.*' : reçu '4'"),
        ({"rank_pattern": ["head"]}, ValueError, r"rank_pattern : reçu \['head'\], attendu motif → valeur"),
        ({"alpha_pattern": {"(": 2}}, ValueError, r"alpha_pattern : reçu .*, attendu motif → valeur"),
        ({"alpha_pattern": {"head": math.inf}}, ValueError, "alpha de 'head' : reçu inf"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_setting_that_cannot_be_replayed_is_refused(changes, error, message, net, folder):
    rewrite(folder, **changes)
    refused(net, folder, error, message)


def test_settings_that_change_nothing_are_accepted(net, adapted, x, folder):
    rewrite(folder, use_dora=False, loftq_config={}, megatron_core="megatron.core", invention=None, revision="main")
    assert torch.equal(load_adapter(net, folder)(x), adapted(x))


HEAD_A, HEAD_B = (f"base_model.model.head.lora_{factor}.weight" for factor in "AB")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(HEAD_B), rf"il y manque {HEAD_B}, \(5, 5\)"),
        (lambda t: t.pop(HEAD_A), rf"il y manque {HEAD_A}, \(5, 8\)"),
        (lambda t: t.update({"base_model.model.tail.lora_A.weight": t[HEAD_A] + 0}), "ne désigne aucune couche"),
        (lambda t: t.update({"base_model.model.head.lora_C.weight": t[HEAD_A] + 0}), "ne désigne aucune couche"),
        (lambda t: t.update({"head.weight": t[HEAD_A] + 0}), "head.weight ne désigne aucune couche"),
        (lambda t: t.update({HEAD_A: t[HEAD_A][:, :7].clone()}), r"reçu la forme \(5, 7\), attendu \(5, 8\)"),
        (lambda t: t.update({HEAD_B: t[HEAD_B][:3].clone()}), r"reçu la forme \(3, 5\), attendu \(5, 5\)"),
        (lambda t: t.update({HEAD_B: t[HEAD_B].fill_(math.nan)}), "ni NaN ni infinis"),
        (lambda t: t.update({HEAD_B: t[HEAD_B].double().fill_(1e300)}), "ni NaN ni infinis en torch.float32"),
        (lambda t: t.update({HEAD_B: t[HEAD_B].int()}), "attendu des nombres réels"),
        (lambda t: t.clear(), "aucun adaptateur dans ce fichier"),
    ],
    ids=[
        "sans B",
        "sans A",
        "autre couche",
        "autre facteur",
        "autre nom",
        "A étroit",
        "B étroit",
        "NaN",
        "débordement",
        "entiers",
        "vide",
    ],
)
def test_a_file_that_does_not_fit_is_refused(change, message, net, folder):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    refused(net, folder, ValueError, message)
    refused(convert_model_to_lora(net, rank=1), folder, ValueError, message)


def test_other_bad_arguments(net, folder):
    with pytest.raises(ValueError, match=r"^name : reçu 'a\.b', attendu un nom sans point"):
        load_adapter(net, folder, "a.b")
    assert not any(isinstance(module, LoRALayer) for module in net.modules())
    with pytest.raises(TypeError, match=r"^model : reçu NoneType, attendu nn\.Module"):
        load_adapter(None, folder)
    with pytest.raises(ValueError, match=r"^model : aucun adaptateur"):
        save_adapter(net, folder)
