"""L'entraînement ne touche qu'aux adaptateurs, se reprend au bit près, garde les meilleurs, et suit les bons rangs."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lrq import (
    AdaptiveLoRA,
    LoRAPlus,
    LoRATrainer,
    convert_model_to_lora,
    load_adapter,
    merge_adapters,
    models,
    save_weights,
    set_adapter,
)
from lrq.adapters import lora_layers

OPTIMIZERS = {
    "Adam": None,
    "LoRA+": LoRAPlus,
    "SGD": lambda model, lr: torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr, momentum=0.9),
}


@pytest.fixture
def net(rng):
    """Une base dont l'entraînement bougerait tout : des statistiques de lots, un dropout."""
    net = nn.Sequential(
        nn.Linear(8, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4)
    )
    net(torch.randn(50, 8))  # des statistiques quelconques
    return net.eval()


@pytest.fixture
def batches(rng, randn):
    """Des lots que l'on peut apprendre."""

    def draw(count=3, size=16):
        W = randn(4, 8)
        return [(x, (x @ W.T).argmax(1)) for x in (randn(size, 8) for _ in range(count))]

    return draw


@pytest.fixture
def adapted(net):
    model = convert_model_to_lora(net, rank=3)
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.lora_B, std=0.1)
    return model


def twin(trainer):
    """Un entraînement tout neuf, d'une copie du réseau de `trainer`."""
    return type(trainer)(
        copy.deepcopy(trainer.model),
        trainer.train_loader,
        trainer.val_loader,
        trainer.lr,
        optimizer=trainer.make_optimizer,
    )


def values(trainer):
    return [p.detach().clone() for p in trainer.parameters()]


def same(left, right):
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def base_state(model):
    return {name: t.clone() for name, t in model.state_dict().items() if ".adapters." not in name}


class Interrupted(list):
    """Des lots dont le n-ième, en tout, interrompt l'entraînement."""

    def __init__(self, batches, at, error):
        super().__init__(batches)
        self.count, self.at, self.error = 0, at, error

    def __iter__(self):
        for batch in super().__iter__():
            self.count += 1
            if self.count == self.at:
                raise self.error
            yield batch


# --- entraîner --------------------------------------------------------------------------------------------------------


def test_only_adapters_move(adapted, batches):
    base, before = base_state(adapted), values(LoRATrainer(adapted, batches(), None))
    trainer = LoRATrainer(adapted, batches(), None, lr=1e-2)
    history = trainer.train(4)
    after = base_state(adapted)  # statistiques de BatchNorm comprises
    assert all(torch.equal(after[name], base[name]) for name in base)
    assert not any(torch.equal(a, b) for a, b in zip(before, values(trainer), strict=True))
    assert not any(module.training for module in adapted.modules())
    assert history is trainer.history
    assert [line["epoch"] for line in history] == [1, 2, 3, 4]
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert all(line.keys() == {"epoch", "train_loss", "val_loss"} for line in history)


def test_neither_the_dropout_nor_the_mode_of_the_base_matters(adapted, batches):
    trainer = LoRATrainer(adapted, batches(), None, lr=1e-2)
    other = twin(trainer)
    other.model.train()
    trainer.train(2)
    torch.manual_seed(1)  # le dropout de la base, s'il agissait, ferait deux résultats
    other.train(2)
    assert same(values(trainer), values(other))


def test_the_dropout_of_the_adapter_does_act(net, batches):
    model = convert_model_to_lora(net, rank=3, dropout=0.5)
    trainer = LoRATrainer(model, batches(), None, lr=1e-2)
    other = twin(trainer)
    trainer.train(2)
    other.train(2)
    assert not same(values(trainer), values(other))


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("judged", [True, False], ids=["jugé", "sans juge"])
def test_it_resumes_to_the_bit(optimizer, judged, adapted, batches, tmp_path):
    whole = LoRATrainer(adapted, batches(), batches(1) if judged else None, lr=0.05, optimizer=optimizer)
    halves, moved, fresh = twin(whole), twin(whole), twin(whole)
    whole.train(5)
    halves.train(3)
    halves.train(2)
    moved.train(3)
    moved.save(tmp_path / "reprise")
    fresh.load(tmp_path / "reprise")
    assert same(values(fresh), values(moved))
    assert fresh.history == moved.history
    fresh.train(2)
    for other in (halves, fresh):
        assert other.history == whole.history
        assert same(values(other), values(whole))
        assert same(list(other.last.values()), list(whole.last.values()))
    forgetful = twin(whole)  # sans l'état de l'optimiseur, ce serait autre chose
    forgetful.restore(moved.last)
    forgetful.last = forgetful.snapshot()
    forgetful.train(2)
    assert not same(list(forgetful.last.values()), list(whole.last.values()))


def test_epochs_run_by_hand_count(adapted, batches):
    whole = LoRATrainer(adapted, batches(), None, lr=0.05)
    by_hand = twin(whole)
    whole.train(3)
    first, second = by_hand.train_epoch(), by_hand.train_epoch()
    assert [first, second] == [line["train_loss"] for line in whole.history[:2]]
    by_hand.train(1)
    assert same(values(by_hand), values(whole))


def test_the_best_adapters_are_kept(adapted, batches):
    trainer = LoRATrainer(adapted, batches(), batches(2), lr=1.0, max_norm=1e9)  # un pas qui fait des bonds
    start = trainer.validate()
    trainer.train(6)
    scores = [start, *(line["val_loss"] for line in trainer.history)]
    assert trainer.validate() == pytest.approx(min(scores))
    assert trainer.least == min(scores)
    trainer.restore(trainer.last)
    assert trainer.validate() == pytest.approx(scores[-1])


def test_without_a_judge_the_last_are_kept(adapted, batches):
    trainer = LoRATrainer(adapted, batches(), None, lr=1.0, max_norm=1e9)
    trainer.train(3)
    assert same(values(trainer), list(trainer.last.values()))
    assert [line["val_loss"] for line in trainer.history] == [None] * 3
    with pytest.raises(ValueError, match=r"^val_loader : reçu None"):
        trainer.validate()


def test_a_useless_training_leaves_the_start(adapted, batches):
    judge = [(x, torch.randint(0, 4, y.shape)) for x, y in batches(2)]
    trainer = LoRATrainer(adapted, batches(), judge, lr=5.0, max_norm=1e9)
    before = values(trainer)
    trainer.train(2)
    if trainer.least < min(line["val_loss"] for line in trainer.history):
        assert same(values(trainer), before)


@pytest.mark.parametrize("judged", [True, False], ids=["jugé", "sans juge"])
def test_nan_stops_and_changes_nothing(judged, adapted, batches):
    good = batches()
    whole = LoRATrainer(adapted, good, batches(1) if judged else None, lr=0.05)
    sick = twin(whole)
    whole.train(2)
    sick.train(2)
    before, last = values(sick), list(sick.last.values())
    sick.train_loader = [good[0], (good[1][0] * math.nan, good[1][1]), good[2]]
    with pytest.warns(UserWarning, match=r"^époque 3 : la perte ou son gradient n'est plus fini") as caught:
        sick.train(3)
    assert caught[0].filename == __file__
    assert len(sick.history) == 2
    assert same(values(sick), before)
    if not judged:
        assert same(list(sick.last.values()), last)
        sick.train_loader = good
        sick.train(2)  # ni les moments d'Adam, ni les adaptateurs n'en gardent trace
        whole.train(2)
        assert same(values(sick), values(whole))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("disque plein")], ids=["clavier", "panne"])
def test_an_interruption_costs_the_current_epoch_only(error, adapted, batches):
    good = batches()
    whole = LoRATrainer(adapted, good, batches(1), lr=0.05)
    stopped = twin(whole)
    stopped.train_loader = Interrupted(good, 3 * 2 + 2, error)  # au milieu de la troisième époque
    with pytest.raises(type(error)):
        stopped.train(5)
    assert len(stopped.history) == 2
    assert not any(module.training for module in stopped.model.modules())
    whole.train(2)
    assert same(values(stopped), values(whole))
    stopped.train(3)
    whole.train(3)
    assert same(values(stopped), values(whole))


def test_the_gradient_is_brought_back_to_max_norm(adapted, batches):
    def sgd(model, lr):
        return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr)

    trainer = LoRATrainer(adapted, batches(1), None, lr=1.0, optimizer=sgd, max_norm=1e-3)
    before = values(trainer)
    trainer.train(1)
    step = torch.cat([(a - b).flatten() for a, b in zip(values(trainer), before, strict=True)])
    assert step.norm().item() == pytest.approx(1e-3, rel=1e-2)


def test_several_active_adapters_train_together(adapted, batches):
    for layer in lora_layers(adapted).values():
        layer.add_adapter("b", 1)
    set_adapter(adapted, {"default": 1, "b": 0.5})
    trainer = LoRATrainer(adapted, batches(), None, lr=0.05)
    assert len(trainer.adapters) == 6
    before = values(trainer)
    trainer.train(2)
    assert not any(torch.equal(a, b) for a, b in zip(before, values(trainer), strict=True))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x, scale):
        return self.layer(x) * scale


@pytest.mark.parametrize("wrap", [lambda x: (x, 2.0), lambda x: [x, 2.0], lambda x: {"scale": 2.0, "x": x}])
def test_inputs_in_a_tuple_or_a_dictionary(wrap, batches):
    model = convert_model_to_lora(TwoInputs(), rank=2)
    loader = [*((wrap(x), y) for x, y in batches()), (wrap(torch.ones(0, 8)), torch.ones(0, dtype=torch.int64))]
    trainer = LoRATrainer(model, loader, loader, lr=1e-2)  # un lot vide ne compte pas
    assert all(math.isfinite(line["val_loss"]) for line in trainer.train(2))


def test_the_loss_is_a_mean_over_examples(adapted, batches):
    x, y = batches(1, 20)[0]
    trainer = LoRATrainer(adapted, [(x, y)], [(x[:3], y[:3]), (x[3:], y[3:])])
    assert trainer.validate() == pytest.approx(F.cross_entropy(adapted(x), y).item(), rel=1e-5)
    squared = LoRATrainer(adapted, [(x, adapted(x).detach() + 2)], None, loss=F.mse_loss)
    assert squared.train_epoch() == pytest.approx(4, rel=1e-5)


def test_the_saved_adapter_is_enough(net, adapted, batches, tmp_path, randn):
    trainer = LoRATrainer(adapted, batches(), batches(1), lr=0.05)
    trainer.train(2)
    trainer.save_adapter(tmp_path)
    x = randn(5, 8)
    assert torch.equal(load_adapter(copy.deepcopy(net), tmp_path)(x), adapted(x))


def test_on_real_digits(rng):
    (x, y), (x_test, y_test) = models.load_digits_data()
    x, x_test = (torch.rot90(images, 1, (-2, -1)) for images in (x, x_test))
    model = convert_model_to_lora(models.load_digits_network("cnn"), rank=8)
    before = models.accuracy(model, x_test, y_test)
    loader = list(zip(x.split(64), y.split(64), strict=True))
    LoRATrainer(model, loader, None, lr=5e-3).train(4)
    assert before < 0.5 < 0.75 < models.accuracy(model, x_test, y_test)


# --- refus ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"train_loader": iter([])}, TypeError, "train_loader : reçu un itérateur, qui s'épuise"),
        ({"val_loader": itertools.repeat(1)}, TypeError, "val_loader : reçu un itérateur"),
        ({"train_loader": 3}, TypeError, "train_loader : reçu int, attendu un DataLoader"),
        ({"train_loader": torch.ones(8, 16)}, TypeError, "train_loader : reçu Tensor, attendu un DataLoader"),
        ({"lr": 0}, ValueError, "lr : reçu 0, attendu un nombre strictement positif"),
        ({"lr": math.nan}, ValueError, "lr : reçu nan"),
        ({"max_norm": -1}, ValueError, "max_norm : reçu -1"),
        ({"lora_model": nn.Linear(2, 2)}, ValueError, "model : aucun adaptateur"),
        ({"lora_model": None}, TypeError, r"model : reçu NoneType, attendu nn\.Module"),
    ],
)
def test_bad_arguments_are_named(options, error, message, adapted, batches):
    arguments = {"lora_model": adapted, "train_loader": batches(), "val_loader": None} | options
    with pytest.raises(error, match=f"^{message}"):
        LoRATrainer(**arguments)


def test_states_that_cannot_be_trained(adapted, batches):
    set_adapter(adapted, {})
    with pytest.raises(ValueError, match=r"^lora_model : aucun adaptateur actif"):
        LoRATrainer(adapted, batches(), None)
    with pytest.raises(ValueError, match=r"^lora_model : aucun adaptateur actif"):
        LoRAPlus(adapted)
    set_adapter(adapted, "default")
    for epochs, error in ((-1, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match=r"^epochs : reçu"):
            LoRATrainer(adapted, batches(), None).train(epochs)
    for empty in ([], [(torch.ones(0, 8), torch.ones(0, dtype=torch.int64))]):
        with pytest.raises(ValueError, match=r"^train_loader : aucun exemple"):
            LoRATrainer(adapted, empty, None).train(1)
        with pytest.raises(ValueError, match=r"^val_loader : aucun exemple"):
            LoRATrainer(adapted, batches(), empty).train(1)
    merge_adapters(adapted)
    with pytest.raises(ValueError, match=r"^lora_model : ses adaptateurs sont fusionnés"):
        LoRATrainer(adapted, batches(), None)


def test_files_that_do_not_fit_change_nothing(net, adapted, batches, tmp_path):
    trainer = LoRATrainer(adapted, batches(), None, lr=0.05)
    trainer.train(1)
    trainer.save(tmp_path / "bon")
    save_weights(net, tmp_path / "poids")
    (tmp_path / "tronqué").write_bytes((tmp_path / "bon").read_bytes()[:-5])
    LoRATrainer(convert_model_to_lora(net, ["0"], rank=2), batches(), None).save(tmp_path / "autre réseau")
    LoRATrainer(adapted, batches(), None, optimizer=LoRAPlus).save(tmp_path / "autre optimiseur")
    trainer.train(1)
    before, history, moments = values(trainer), list(trainer.history), copy.deepcopy(trainer.optimizer.state_dict())
    for name, message in {
        "poids": r"attendu un fichier de LoRATrainer\.save",
        "tronqué": "tronqué",
        "autre réseau": "ne correspond pas aux adaptateurs du réseau",
        "autre optimiseur": "reçu l'état d'un autre optimiseur, attendu Adam",
    }.items():
        with pytest.raises(ValueError, match=message):
            trainer.load(tmp_path / name)
        assert same(values(trainer), before)
        assert trainer.history == history
        assert trainer.optimizer.state_dict()["param_groups"] == moments["param_groups"]
    with pytest.raises(FileNotFoundError, match="absent : fichier introuvable"):
        trainer.load(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="nulle part : dossier introuvable"):
        trainer.save(tmp_path / "nulle part" / "x")
    with pytest.raises(ValueError, match=r"attendu un fichier de AdaptiveLoRA\.save"):
        AdaptiveLoRA(adapted, batches(), None).load(tmp_path / "bon")  # l'importance y manque
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "autre optimiseur",
        "autre réseau",
        "bon",
        "poids",
        "tronqué",
    ]


# --- LoRA+ ------------------------------------------------------------------------------------------------------------


def test_lora_plus_by_hand(adapted, batches):
    lr, ratio = 1e-3, 7.0
    x, y = batches(1)[0]
    optimizer = LoRAPlus(adapted, lr, ratio, betas=(0.8, 0.9))
    factors = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in factors.items()}
    for t in range(1, 4):
        optimizer.zero_grad()
        F.cross_entropy(adapted(x), y).backward()
        expected = {}
        for name, p in factors.items():
            m = 0.8 * moments[name][0] + 0.2 * p.grad
            v = 0.9 * moments[name][1] + 0.1 * p.grad**2
            moments[name] = m, v
            pace = lr * ratio if name.endswith(".B") else lr
            expected[name] = p.detach() - pace * (m / (1 - 0.8**t)) / ((v / (1 - 0.9**t)).sqrt() + 1e-8)
        optimizer.step()
        for name, p in factors.items():
            torch.testing.assert_close(p.detach(), expected[name])


@pytest.mark.parametrize("bad", [{"lr": 0}, {"ratio": -1}, {"ratio": math.nan}])
def test_lora_plus_refuses_bad_paces(bad, adapted):
    with pytest.raises(ValueError, match=f"^{next(iter(bad))} : reçu"):
        LoRAPlus(adapted, **bad)


# --- des rangs qui suivent les gradients ------------------------------------------------------------------------------


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(4, 6, 3, groups=2), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.conv(x).mean((-1, -2)))


@pytest.fixture
def grouped(rng):
    model = convert_model_to_lora(Grouped(), rank=3, alpha=0.7)
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.lora_B)
    return model.double()


def test_the_three_faces_of_importance(grouped, randn):
    trainer = AdaptiveLoRA(grouped, [], None)
    for layer in lora_layers(grouped).values():
        layer.original.requires_grad_(True)  # pour lire ∂L/∂W
    F.cross_entropy(grouped(randn(5, 4, 6, 6, dtype=torch.float64)), torch.arange(5) % 3).backward()
    trainer.after_backward()
    for name, layer in lora_layers(grouped).items():
        adapter, G = layer.adapters["default"], layer.original.weight.grad.flatten(1)
        groups = 2 if name == "conv" else 1
        A, B = adapter.A.detach().reshape(groups, 3, -1), adapter.B.detach().reshape(groups, -1, 3)
        A_grad, slopes = adapter.A.grad.reshape(groups, 3, -1), G.reshape(groups, B.shape[1], -1)
        by_A = (A * A_grad).sum((0, 2))
        by_W = torch.stack([0.7 * (B[:, :, k, None] * A[:, k, None] * slopes).sum() for k in range(3)])
        torch.testing.assert_close(trainer.importance[f"{name}.default"].double(), by_A.abs())
        torch.testing.assert_close(by_A.abs(), by_W.abs())


def test_removing_a_component_costs_its_importance(grouped, randn):
    x, y = randn(5, 4, 6, 6, dtype=torch.float64), torch.arange(5) % 3
    trainer = AdaptiveLoRA(grouped, [], None)
    loss = F.cross_entropy(grouped(x), y)
    loss.backward()
    trainer.after_backward()
    for key, adapter in trainer.adapters.items():
        for k in range(3):
            kept = adapter.B.detach().clone()
            adapter.B.data[:, k] *= 1 - 1e-5  # un pas vers son retrait
            slope = abs(F.cross_entropy(grouped(x), y).item() - loss.item()) / 1e-5
            adapter.B.data = kept
            assert slope == pytest.approx(trainer.importance[key][k].item(), rel=1e-2, abs=1e-6)


@pytest.mark.parametrize("budget", [None, "minimum", 90, 10**6])
def test_the_budget_is_respected(budget, grouped, rng):
    trainer = AdaptiveLoRA(grouped, [], None)
    sizes = {key: trainer.component_size(adapter) for key, adapter in trainer.adapters.items()}
    assert sizes == {"conv.default": 2 * 2 * 9 + 6, "head.default": 6 + 3}
    floor = sum(sizes.values())
    trainer = AdaptiveLoRA(grouped, [], None, budget=floor if budget == "minimum" else budget)
    for key in trainer.importance:
        trainer.importance[key] = torch.tensor(rng.random(3))
    before = {key: copy.deepcopy(adapter) for key, adapter in trainer.adapters.items()}
    importance = {key: scores.clone() for key, scores in trainer.importance.items()}
    ranks = trainer.prune()
    used = sum(p.numel() for p in trainer.parameters())
    optimized = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in optimized} == {id(p) for p in trainer.parameters()}
    assert used == sum(ranks[key] * sizes[key] for key in ranks)
    assert used <= trainer.budget
    assert trainer.ranks() == ranks
    if budget == "minimum":
        assert set(ranks.values()) == {1}
    if budget == 10**6:
        assert set(ranks.values()) == {3}
    for key, adapter in trainer.adapters.items():
        order = (
            importance[key].argsort(descending=True)[: ranks[key]].sort().values
        )  # les plus importantes de la couche
        A, B = before[key].blocks()
        torch.testing.assert_close(adapter.blocks()[0], A[:, order])
        torch.testing.assert_close(adapter.blocks()[1], B[:, :, order])
        torch.testing.assert_close(trainer.importance[key], importance[key][order])
        kept = before[key].scale * (B[:, :, order] @ A[:, order]).flatten(0, 1)
        torch.testing.assert_close(adapter.delta(), kept)  # ΔW des composantes gardées n'a pas bougé


def test_ranks_follow_what_matters(batches, rng):
    """Une tâche que seule la première couche peut apprendre : c'est à elle que va le budget."""
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 4))
    net[2].weight.data.zero_()
    model = convert_model_to_lora(net, ["0", "2"], rank=4)
    model[2].original.weight.data.copy_(torch.eye(16))
    with torch.no_grad():
        model[2].lora_A.zero_()  # rien ne passe dans cet adaptateur : aucune de ses composantes n'importe
        nn.init.normal_(model[0].lora_B, std=0.3)
    trainer = AdaptiveLoRA(model, batches(), None, lr=1e-3, budget=4 * 24 + 32)
    trainer.train(1)
    assert trainer.ranks() == {"0.default": 4, "2.default": 1}


def test_pruning_happens_at_the_end_of_warmup_and_training_goes_on(adapted, batches):
    trainer = AdaptiveLoRA(adapted, batches(), batches(1), lr=0.02, warmup=2)
    start = trainer.ranks()
    trainer.train(1)
    assert trainer.ranks() == start
    optimizer = trainer.optimizer
    trainer.train(1)
    assert sum(trainer.ranks().values()) < sum(start.values())
    assert trainer.optimizer is not optimizer
    assert sum(p.numel() for p in trainer.parameters()) <= trainer.budget
    history = trainer.train(3)
    assert len(history) == 5
    assert trainer.validate() == pytest.approx(trainer.least)
    assert trainer.least == min(line["val_loss"] for line in history[1:])  # d'avant, les rangs étaient autres


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_adaptive_training_resumes_to_the_bit(cut, adapted, batches, tmp_path):
    whole = AdaptiveLoRA(adapted, batches(), batches(1), lr=0.05, warmup=2)
    first, second, halves = (
        AdaptiveLoRA(copy.deepcopy(adapted), whole.train_loader, whole.val_loader, lr=0.05, warmup=2) for _ in range(3)
    )
    whole.train(4)
    first.train(cut)
    first.save(tmp_path / "reprise")
    second.load(tmp_path / "reprise")
    second.train(4 - cut)
    halves.train(cut)
    halves.train(4 - cut)
    for other in (second, halves):
        assert other.ranks() == whole.ranks()
        assert other.history == whole.history
        assert same(values(other), values(whole))
        assert all(torch.equal(other.importance[key], whole.importance[key]) for key in whole.importance)


def test_pruned_adapters_are_saved_with_their_ranks(net, adapted, batches, tmp_path, randn):
    trainer = AdaptiveLoRA(adapted, batches(), None, lr=0.05)
    trainer.train(2)
    trainer.save_adapter(tmp_path)
    loaded, x = load_adapter(copy.deepcopy(net), tmp_path), randn(5, 8)
    assert [layer.rank for layer in lora_layers(loaded).values()] == list(trainer.ranks().values())
    for ours, theirs in zip(lora_layers(loaded).values(), lora_layers(adapted).values(), strict=True):
        assert torch.equal(ours.lora_A, theirs.lora_A)
        assert torch.equal(ours.lora_B, theirs.lora_B)
    assert torch.allclose(loaded(x), adapted(x), rtol=1e-5, atol=1e-6)  # au bit près, cela dépend des adresses


def test_neither_nan_nor_an_interruption_soils_the_importance(adapted, batches):
    good = batches()
    whole = AdaptiveLoRA(adapted, good, None, lr=0.05, warmup=2)
    sick, stopped = (AdaptiveLoRA(copy.deepcopy(adapted), good, None, lr=0.05, warmup=2) for _ in range(2))
    sick.train_loader = [*good, (good[0][0] * math.nan, good[0][1])]
    with pytest.warns(UserWarning, match="époque 1"):
        sick.train(3)
    stopped.train_loader = Interrupted(good, 5, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        stopped.train(3)
    whole.train(3)
    for trainer in (sick, stopped):
        trainer.train_loader = good
        trainer.train(3 - len(trainer.history))
        assert trainer.ranks() == whole.ranks()
        assert same(values(trainer), values(whole))


def test_a_layer_out_of_use_has_no_importance(batches):
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(8, 4), nn.Linear(8, 4)

        def forward(self, x):
            return self.used(x)

    trainer = AdaptiveLoRA(convert_model_to_lora(Idle(), rank=3), batches(), None, lr=0.05, budget=4 * 12)
    trainer.train(2)
    assert trainer.ranks() == {"used.default": 3, "idle.default": 1}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"budget": 5}, ValueError, r"budget : reçu 5, attendu un entier ≥ 56"),
        ({"budget": 100.0}, TypeError, r"budget : reçu 100\.0"),
        ({"warmup": 0}, ValueError, "warmup : reçu 0"),
    ],
)
def test_adaptive_arguments_are_named(options, error, message, adapted, batches):
    with pytest.raises(error, match=f"^{message}"):
        AdaptiveLoRA(adapted, batches(), None, **options)


def test_a_trainer_whose_adapter_is_no_longer_active_refuses(randn):
    model = convert_model_to_lora(nn.Linear(6, 4), rank=2)
    loader = [(randn(8, 6), torch.arange(8) % 4)]
    trainer = LoRATrainer(model, loader, None)
    model.add_adapter("autre", 2)
    model.set_adapter("autre")
    with pytest.raises(ValueError, match=r"^lora_model : d'autres adaptateurs sont actifs"):
        trainer.train(1)
    model.set_adapter("default")
    assert len(trainer.train(1)) == 1
