"""Un budget d'octets : toujours tenu, en octets réels, et mieux dépensé que par des réglages uniformes."""

import copy
import math
import re

import numpy as np
import pytest
import torch
from test_methods import stored
from torch import nn

from lrq import BudgetCompression, GPTQCompression, models
from lrq.layers import CompressedLayer

SETTINGS = {"group_size": 16, "clipping": "min_max", "bit_choices": (2, 3, 4, 6, 8), "rank_choices": (0, 2, 4)}


@pytest.fixture
def uneven(randn, rng):
    """Un réseau dont une couche ne compte guère, une autre beaucoup, et de quoi le calibrer."""
    model = nn.Sequential(
        nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 16), nn.Linear(16, 8)
    )
    for i, size in ((0, 3.0), (2, 0.03), (4, 1.0), (5, 1.0)):
        model[i].weight.data = size * randn(*model[i].weight.shape) / math.sqrt(model[i].in_features)
    model[5].weight.data[:, 3:] *= 1e-2
    return model.eval(), [randn(40, 16) for _ in range(2)]


def spent(method):
    return sum(line.nbytes for line in method.report)


@pytest.mark.parametrize("extra", [{}, {"factor_bits": 4}, {"rank_choices": [0]}, {"rounding": "nearest"}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_budget_is_held_in_real_bytes(extra, dtype, uneven, rng):
    model, loader = copy.deepcopy(uneven[0]).to(dtype), [x.to(dtype) for x in uneven[1]]
    biases, weights = (sum(p.nbytes for p in model.parameters() if p.ndim == n) for n in (1, 2))
    count = weights // dtype.itemsize
    for budget in (biases + int(count * bits / 8) for bits in (3.6, float(rng.uniform(3.6, 9)), 6.0, 20.0)):
        method = BudgetCompression({"budget": budget, **SETTINGS, **extra})
        compressed = method.compress(model, loader)
        assert stored(compressed) == spent(method) <= budget
        assert all(line.bits in SETTINGS["bit_choices"] for line in method.report)
        assert {line.rank for line in method.report} <= {None, 2, 4}
    assert all(line.bits == 8 for line in method.report), "tout tenait"


def test_the_announced_bytes_are_those_of_the_layers(uneven, rng):
    model, loader = uneven
    method = BudgetCompression({"budget": 10**6, **SETTINGS, "factor_bits": int(rng.integers(1, 9))})
    tasks = method.select(model)
    GPTQCompression.observe(method, model, tasks, loader)
    for task in tasks:
        settings, found = method.settings(task), method.losses(task)
        assert len(settings) == len(found) == 15
        for (bits, rank), (size, loss) in zip(settings, found, strict=True):
            layer = method.assemble(task.layer, task.heard(0), bits, rank)
            assert size == stored(layer)
            assert rank or loss == pytest.approx(output_loss(layer, task), rel=1e-5)


def output_loss(layer, task):
    """Ce que les sorties perdent, en part de leur énergie, calculé sur les entrées elles-mêmes."""
    C, W = task.heard(0).second_moment, task.layer.weight.detach().double()
    E = layer.reconstruct_weight().detach().double() - W
    return float(((E @ C) * E).sum() / ((W @ C) * W).sum())


def test_the_announced_losses_are_those_of_the_layers(uneven):
    """Un résidu perd un peu plus que prévu : ses facteurs sont arrondis aussi."""
    model, loader = uneven
    method = BudgetCompression({"budget": 10**6, **SETTINGS})
    tasks = method.select(model)
    GPTQCompression.observe(method, model, tasks, loader)
    for task in tasks:
        alone = {}
        for (bits, rank), (_, loss) in zip(method.settings(task), method.losses(task), strict=True):
            real = output_loss(method.assemble(task.layer, task.heard(0), bits, rank), task)
            alone.setdefault(bits, real)
            assert loss * (1 - 1e-5) - 1e-12 <= real <= loss + 0.02 * alone[bits]


def test_a_budget_too_small_is_refused_with_the_least(uneven):
    model, loader = uneven
    method = BudgetCompression({"budget": 100, **SETTINGS})
    with pytest.raises(ValueError, match=r"^budget : reçu 100, attendu au moins \d+ octets") as refusal:
        method.compress(model, loader)
    assert method.report == []
    least = int(re.findall(r"\d+", str(refusal.value))[1])
    exact = BudgetCompression({"budget": least, **SETTINGS})
    exact.compress(model, loader)
    assert spent(exact) == least
    assert {(line.bits, line.rank) for line in exact.report} == {(2, None)}
    with pytest.raises(ValueError, match=f"attendu au moins {least} octets"):
        BudgetCompression({"budget": least - 1, **SETTINGS}).compress(model, loader)


def test_more_budget_is_closer(uneven):
    model, loader = uneven
    predicted, measured = [], []
    for budget in range(1400, 3500, 300):
        method = BudgetCompression({"budget": budget, **SETTINGS})
        method.compress(model, loader, loader)
        predicted.append(method.predicted_error)
        measured.append(method.report.output_error)
    assert predicted == sorted(predicted, reverse=True)
    assert measured[-1] < measured[0] / 3
    ratios = np.array(predicted) / np.array(measured)
    assert (ratios > 0.3).all()
    assert (ratios < 3).all()


class Branches(nn.Module):
    """Des branches de même taille, dont chacune compte trois fois moins que la précédente."""

    def __init__(self, count=8):
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(32, 32) for _ in range(count))

    def forward(self, x):
        return sum(branch(x).tanh() / 3.0**k for k, branch in enumerate(self.branches))


@pytest.mark.parametrize("bits", [3, 4])
def test_it_spends_better_than_the_same_bits_everywhere(bits, rng, randn):
    model, loader, fresh = Branches().eval(), [randn(60, 32)], [randn(300, 32)]
    uniform = GPTQCompression({"bits": bits, "group_size": 16, "clipping": "min_max"})
    uniform.compress(model, loader, fresh)
    method = BudgetCompression({"budget": spent(uniform), **SETTINGS})
    method.compress(model, loader, fresh)
    assert spent(method) <= spent(uniform)
    assert method.report[0].bits > bits > method.report[7].bits
    assert method.report.output_error < 0.8 * uniform.report.output_error


def test_a_layer_without_effect_gets_the_least(uneven):
    model, loader = uneven
    model[5].weight.data.zero_()
    model.append(nn.Linear(8, 8))
    method = BudgetCompression({"budget": 4000, **SETTINGS})
    method.compress(model, loader)
    assert [line.bits for line in method.report[:3]] == [2, 2, 2]  # rien de ce qu'elles font n'atteint la sortie


def test_rounding_and_settings_are_those_asked(uneven):
    model, loader = uneven
    nearest = BudgetCompression({"budget": 2000, **SETTINGS, "rank_choices": (0,), "rounding": "nearest"})
    compressed = nearest.compress(model, loader)
    for i in (0, 2, 4, 5):
        quantizer = nearest.quantizer(model[i].in_features, compressed[i].quantizer.n_bits)
        assert torch.equal(compressed[i].packed.packed, quantizer.compress(model[i].weight).packed)
    carried = BudgetCompression({"budget": 2000, **SETTINGS, "rank_choices": (0,)})
    before = copy.deepcopy(model.state_dict())
    carried.compress(model, (x for x in loader))
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert carried.predicted_error < nearest.predicted_error


@pytest.mark.parametrize(
    ("loader", "error", "message"),
    [
        (None, ValueError, "train_loader : reçu None, attendu des lots : ils disent ce que chaque couche coûte"),
        ([], ValueError, "train_loader : aucun lot"),
        (torch.ones(2, 16), TypeError, "train_loader : reçu Tensor"),
        ([torch.ones(2, 15)], ValueError, "train_loader : lot 0 : le réseau refuse"),
        ([torch.zeros(2, 16)], ValueError, "run, couche '0' : toutes les entrées sont nulles"),
    ],
)
def test_bad_calibration_is_named(loader, error, message, uneven):
    with pytest.raises(error, match=f"^{message}"):
        BudgetCompression({"budget": 4000, **SETTINGS}).compress(uneven[0], loader)


def test_a_network_that_computes_from_four_bits_is_its_dequantized_twin():
    """MiniLM, plongements compris : les phrases sont celles d'un réseau dense aux mêmes poids, déballés."""
    minilm = models.load_minilm()
    method = GPTQCompression({"rounding": "nearest", "clipping": "min_max", "embeddings": True, "progress": False})
    compressed, twin = method.compress(minilm), copy.deepcopy(minilm)
    assert sum(line.compressed for line in method.report) == 36 + 3 + 1
    before, after = method.report.nbytes()
    assert before / after > 7
    for name, layer in compressed.named_modules():
        if isinstance(layer, CompressedLayer):
            twin.get_submodule(name).weight.data = layer.reconstruct_weight()
    sentences = models.load_sentences("test")[:8]
    y, z = twin.encode(sentences), compressed.encode(sentences)
    assert (y - z).abs().max() < 1e-4
    assert torch.nn.functional.cosine_similarity(z, minilm.encode(sentences)).mean() > 0.8


def test_recomputed_weights_are_left(uneven):
    """Une couche paramétrée (weight_norm) ne peut être essayée à moins de bits : elle reste, le rapport le dit."""
    model, batches = uneven
    nn.utils.parametrizations.weight_norm(model[2])
    method = BudgetCompression(SETTINGS | {"budget": 2000, "group_size": 8})
    compressed = method.compress(model, batches)
    notes = {line.name: line.note for line in method.report if line.note}
    assert notes == {"2": "laissée : ses poids se recalculent à chaque appel"}
    assert torch.equal(compressed[2].weight, model[2].weight)
    assert isinstance(compressed[0], CompressedLayer)
