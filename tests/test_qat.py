"""Apprendre avec l'arrondi : la couche QAT vaut celle qu'on en tire, et l'entraînement ne perd jamais de bons poids."""

import copy
import math
import re
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lrq import (
    FactorizedLinear,
    FakeQuantizeModule,
    LearnedStepQuantize,
    QATLowRankLinear,
    QuantizedLowRankLinear,
    balanced_factors,
    train_qat_low_rank,
)
from lrq.training import mean_loss

BITS = range(1, 9)
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
N, M, R = 20, 12, 6
SETTINGS = {
    "tenseur": {},
    "lignes": {"per_channel": True},
    "pas appris": {"learned_step": True},
    "pas appris, lignes": {"per_channel": True, "learned_step": True},
}
settings = pytest.mark.parametrize("options", [pytest.param(o, id=name) for name, o in SETTINGS.items()])


def snapshot(module):
    return {name: t.detach().clone() for name, t in module.state_dict().items()}


def unchanged(module, before):
    now = module.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in before)


def bits_allowed(options, wanted=BITS):
    return [b for b in wanted if b > 1 or not options.get("learned_step")]


# --- la couche --------------------------------------------------------------------------------------------------------


@settings
@pytest.mark.parametrize("bias", [True, False], ids=["biais", "sans biais"])
@pytest.mark.parametrize("leading", [(), (0,), (2, 0, 3), (5,), (2, 3)], ids=str)
def test_forward_applies_the_rounded_factors(options, bias, leading, linear, randn):
    layer, x = QATLowRankLinear.from_linear(linear(bias=bias), R, 4, **options), randn(*leading, N)
    U, V = layer.dequantize()
    assert not torch.equal(U, layer.U), "rien n'est arrondi"
    y = layer(x)
    assert y.shape == (*leading, M)
    torch.testing.assert_close(y, F.linear(x, U @ V.T, layer.bias), rtol=1e-4, atol=1e-4)
    assert torch.equal(layer.reconstruct_weight(), U @ V.T)


@settings
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_it_learns_is_what_is_stored_to_the_bit(options, dtype, linear, randn):
    for bits in bits_allowed(options):
        layer = QATLowRankLinear.from_linear(linear(dtype=dtype), R, bits, **options)
        if options.get("learned_step"):  # un pas appris peut changer de signe
            with torch.no_grad():
                layer.U_fake_quant.scale.mul_(-0.7)
        stored, x = layer.to_quantized(), randn(7, N, dtype=dtype)
        assert isinstance(stored, QuantizedLowRankLinear)
        assert stored.quantized
        assert (stored.n_bits, stored.rank) == (bits, R)
        for ours, theirs in zip(layer.dequantize(), stored.dequantize(), strict=True):
            assert torch.equal(ours, theirs)
        assert torch.equal(layer(x), stored(x))
        assert (stored.U_scale >= 0).all()


@settings
def test_a_layer_converted_to_half_precision_is_stored_to_the_bit_too(options, linear, randn):
    for bits in bits_allowed(options, [1, 3, 8]):
        layer = QATLowRankLinear.from_linear(linear(), R, bits, **options).half()
        x = randn(7, N, dtype=torch.float16)
        stored = layer.to_quantized()
        assert torch.equal(layer(x), stored(x))
        assert stored.U_scale.dtype == torch.float32


def test_rounding_is_that_of_torch(linear, randn):
    for bits in range(2, 9):
        layer, q = QATLowRankLinear.from_linear(linear(), R, bits), 2 ** (bits - 1) - 1
        factors = []
        for factor in (layer.U.detach(), layer.V.detach()):
            scale = float(factor.abs().max() / q)
            factors.append(torch.fake_quantize_per_tensor_affine(factor, scale, 0, -q, q))
        x = randn(5, N)
        torch.testing.assert_close(layer(x), F.linear(x @ factors[1], factors[0], layer.bias))


@settings
def test_stored_factors_share_nothing(options, linear):
    layer = QATLowRankLinear.from_linear(linear(), R, 4, **options)
    before = snapshot(layer)
    stored = layer.to_quantized()
    mine = snapshot(stored)
    with torch.no_grad():
        for t in layer.state_dict().values():
            t.fill_(7)
    assert unchanged(stored, mine)
    layer.load_state_dict(before)
    with torch.no_grad():
        for t in stored.state_dict().values():
            t.zero_()
    assert unchanged(layer, before)


@settings
def test_gradients_go_straight_through(options, linear, randn):
    layer, x = QATLowRankLinear.from_linear(linear(dtype=torch.float64), R, 4, **options), randn(5, N).double()
    layer(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())
    # les gradients des facteurs arrondis, là où la grille les contient : ici, partout quand l'échelle suit l'extrême
    U, V = (t.detach().requires_grad_() for t in layer.dequantize())
    F.linear(x @ V, U, layer.bias.detach()).square().sum().backward()
    for name, exact in (("U", U.grad), ("V", V.grad)):
        factor, fake = getattr(layer, name), getattr(layer, f"{name}_fake_quant")
        scale = (
            fake.scale if options.get("learned_step") else fake.quantizer.compute_scale_zero_point(factor)[0]
        ).detach()
        inside = factor.detach().abs() <= 7 * scale * (1 + 1e-12)
        assert inside.any()
        assert inside.all() or options.get("learned_step")
        torch.testing.assert_close(factor.grad[inside], exact[inside], rtol=1e-9, atol=1e-9)
        assert (factor.grad[~inside] == 0).all()


def test_learned_steps_learn_and_help(linear, randn):
    source, x = linear(bias=False), randn(200, N)
    layer = QATLowRankLinear.from_linear(source, R, 3, learned_step=True)
    steps = [layer.U_fake_quant.scale.detach().clone(), layer.V_fake_quant.scale.detach().clone()]
    target = FactorizedLinear.from_linear(source, R)(x).detach()
    start = F.mse_loss(layer(x), target).item()
    optimizer = torch.optim.Adam(layer.parameters(), 1e-2)
    losses = []  # la perte monte et descend, quand des coefficients sautent d'un code à l'autre : on garde la meilleure
    for _ in range(150):
        optimizer.zero_grad()
        loss = F.mse_loss(layer(x), target)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    assert min(losses) < 0.9 * start
    assert not torch.equal(layer.U_fake_quant.scale, steps[0])
    assert not torch.equal(layer.V_fake_quant.scale, steps[1])


@settings
def test_it_starts_from_the_truncated_svd(options, linear):
    source = linear()
    before = snapshot(source)
    state = torch.get_rng_state()
    layer = QATLowRankLinear.from_linear(source, R, 4, **options)
    assert torch.equal(torch.get_rng_state(), state)
    assert unchanged(source, before)
    U, V = balanced_factors(source.weight, R)
    assert torch.equal(layer.U, U)
    assert torch.equal(layer.V, V)
    assert torch.equal(layer.bias, source.bias)
    with torch.no_grad():
        source.bias.fill_(7)
    assert not torch.equal(layer.bias, source.bias)
    kind = LearnedStepQuantize if options.get("learned_step") else FakeQuantizeModule
    assert type(layer.U_fake_quant) is type(layer.V_fake_quant) is kind
    assert {p.device.type for p in layer.parameters()} == {"cpu"}


def test_calibration_is_heard(linear, randn):
    source, X = linear(), randn(300, N) * torch.logspace(0, -2, N)
    layer, start = QATLowRankLinear.from_linear(source, R, 8, X), FactorizedLinear.from_linear(source, R, X)
    assert torch.equal(layer.U, start.U)
    assert not torch.equal(layer.U, FactorizedLinear.from_linear(source, R).U)


@settings
@pytest.mark.parametrize("bias", [True, False], ids=["biais", "sans biais"])
def test_a_factorized_layer_is_copied(options, bias, linear):
    start = FactorizedLinear.from_linear(linear(bias=bias, dtype=torch.float64), R)
    with torch.no_grad():
        start.U += 1  # ce qu'une SVD ne rendrait pas
    before = snapshot(start)
    layer = QATLowRankLinear.from_factorized(start, 4, **options)
    assert torch.equal(layer.U, start.U)
    assert torch.equal(layer.V, start.V)
    assert (layer.bias is not None) == bias
    assert layer.U.dtype == torch.float64
    with torch.no_grad():
        for p in layer.parameters():
            p.zero_()
    assert unchanged(start, before)


@settings
def test_another_qat_layer_is_a_start_too(options, linear):
    """Changer de bits en route : les facteurs restent, les pas repartent."""
    for other in SETTINGS.values():
        first = QATLowRankLinear.from_linear(linear(), R, 8, **other)
        layer = QATLowRankLinear.from_factorized(first, 3, **options)
        assert torch.equal(layer.U, first.U)
        assert layer.n_bits == layer.U_fake_quant.quantizer.n_bits == 3
        if options.get("learned_step"):
            assert torch.equal(layer.U_fake_quant.scale, LearnedStepQuantize(first.U, 3, layer.per_channel).scale)


def test_sizes_are_those_of_the_floats_until_it_is_stored(linear):
    layer = QATLowRankLinear.from_linear(linear(), R, 4)
    assert layer.count_parameters() == R * (M + N)
    assert layer.nbytes() == 4 * (R * (M + N) + M)
    assert layer.to_quantized().nbytes() == R * (M + N) // 2 + 8 + 4 * M


def test_constructors_follow_manual_seed():
    drawn = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        drawn.append(QATLowRankLinear(N, M, R, learned_step=True))
    assert unchanged(drawn[1], snapshot(drawn[0]))
    assert not unchanged(drawn[2], snapshot(drawn[0]))
    built = QATLowRankLinear(N, M, R)
    assert (built.n_bits, built.bias, built.per_channel, built.learned_step) == (8, None, False, False)


@settings
def test_null_layers_stay_null(options, randn):
    source = nn.Linear(N, M, bias=False)
    nn.init.zeros_(source.weight)
    layer, x = QATLowRankLinear.from_linear(source, R, 4, **options), randn(3, N)
    assert torch.equal(layer(x), torch.zeros(3, M))
    assert torch.equal(layer.to_quantized()(x), torch.zeros(3, M))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: QATLowRankLinear(N, M, 0), ValueError, "rank : reçu 0"),
        (lambda: QATLowRankLinear(N, M, 13), ValueError, r"rank : reçu 13, attendu au plus min\(m, n\) = 12"),
        (lambda: QATLowRankLinear(N, M, R, 9), ValueError, "n_bits : reçu 9, attendu un entier entre 1 et 8"),
        (lambda: QATLowRankLinear(N, M, R, 2.5), TypeError, r"n_bits : reçu 2\.5"),
        (lambda: QATLowRankLinear(N, M, R, 1, learned_step=True), ValueError, "n_bits : reçu 1, .* entre 2 et 8"),
        (lambda: QATLowRankLinear.from_linear(nn.Linear(N, M), R, 0), ValueError, "n_bits : reçu 0"),
        (
            lambda: QATLowRankLinear.from_linear(nn.Linear(N, M), R, 1, learned_step=True),
            ValueError,
            "n_bits : reçu 1, .* entre 2 et 8",
        ),
        (lambda: QATLowRankLinear.from_linear(nn.Linear(N, M), 13), ValueError, "rank : reçu 13"),
        (lambda: QATLowRankLinear.from_linear(nn.ReLU(), R), TypeError, "linear_layer : reçu ReLU"),
        (lambda: QATLowRankLinear.from_factorized(nn.Linear(N, M)), TypeError, "layer : reçu Linear, attendu Fact"),
        (
            lambda: QATLowRankLinear.from_factorized(QuantizedLowRankLinear.from_linear(nn.Linear(N, M), R)),
            ValueError,
            "layer : reçu une couche déjà quantifiée, attendu des facteurs flottants",
        ),
        (lambda: QATLowRankLinear(N, M, R)(torch.ones(2, 3)), ValueError, r"x : reçu la forme \(2, 3\)"),
    ],
)
def test_bad_arguments_are_named(make, error, message):
    with pytest.raises(error, match=f"^{message}"):
        make()


def test_sick_sources_are_named(linear):
    source = linear()
    source.weight.data[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"^linear_layer\.weight : 1 élément"):
        QATLowRankLinear.from_linear(source, R)
    layer = QATLowRankLinear.from_linear(linear(), R)
    layer.U.data[0, 0] = math.inf
    for call in (layer.to_quantized, layer.dequantize):
        with pytest.raises(ValueError, match="vide ou non fini"):
            call()


# --- l'entraînement ---------------------------------------------------------------------------------------------------


@pytest.fixture
def task(randn):
    """Deux classes séparées par une droite, en lots ; le second jeu sert à valider."""

    def draw(count=96, batch=32):
        x = randn(count, 4)
        y = (x[:, 0] > x[:, 1]).long()
        return list(zip(x.split(batch), y.split(batch), strict=True))

    return draw


@pytest.fixture
def network(randn):
    def draw(bits=4, **options):
        layer = QATLowRankLinear(4, 8, 3, bits, bias=True, **options)
        return nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 2))

    return draw


def loss_on(model, loader):
    """Perte moyenne par exemple, refaite par NumPy."""
    total, count = 0.0, 0
    with torch.no_grad():
        for x, y in loader:
            logits = model(x).double().numpy()
            shifted = logits - logits.max(1, keepdims=True)
            total -= (shifted[np.arange(len(y)), y.numpy()] - np.log(np.exp(shifted).sum(1))).sum()
            count += len(y)
    return total / count


class Scripted(nn.Module):
    """Un réseau dont la perte en validation suit un scénario ; il retient ce que w vaut à chaque fois."""

    def __init__(self, losses):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))
        self.losses, self.seen = list(losses), []

    def forward(self, x):
        if self.training:
            return self.w.expand(len(x), 2)
        self.seen.append(self.w.detach().clone())
        # des scores dont l'entropie croisée, pour la classe 1, vaut exactement la perte voulue
        p = torch.tensor(math.exp(-self.losses[len(self.seen) - 1]))
        return torch.stack([(1 - p).log(), p.log()]).expand(len(x), 2)


SCRIPT = [(torch.zeros(4, 1), torch.ones(4, dtype=torch.long))]


@pytest.mark.parametrize("options", [{}, {"learned_step": True}, {"per_channel": True}], ids=str)
def test_it_learns(options, network, task):
    model, train = network(3, **options), task()
    start = loss_on(model, train)
    before = snapshot(model)
    assert train_qat_low_rank(model, train, epochs=8, lr=2e-2) is model
    assert not model.training
    assert loss_on(model, train) < 0.8 * start
    moved = {name for name, t in model.state_dict().items() if not torch.equal(t, before[name])}
    assert moved == set(before)  # les pas appris aussi


def test_it_is_adam_on_the_cross_entropy(task):
    """Trois époques refaites à la main."""
    model = nn.Linear(4, 2)
    twin, train = copy.deepcopy(model), task()
    train_qat_low_rank(model, train, epochs=3, lr=3e-3)
    optimizer = torch.optim.Adam(twin.parameters(), lr=3e-3)
    for _ in range(3):
        for x, y in train:
            optimizer.zero_grad()
            nn.CrossEntropyLoss()(twin(x), y).backward()
            optimizer.step()
    assert unchanged(model, snapshot(twin))


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ([1.0, 0.5, 0.2, 0.9], 2),  # la dernière époque est pire
        ([0.3, 0.5, 0.9, 0.4], 0),  # rien ne vaut le départ
        ([0.9, 0.5, 0.3, 0.2], 3),
        ([0.9, 0.2, 0.5, 0.2], 1),  # à égalité, la première
    ],
)
def test_the_best_weights_on_validation_are_kept(losses, best):
    model = Scripted(losses)
    train_qat_low_rank(model, SCRIPT, epochs=3, val_loader=SCRIPT, lr=0.1)
    assert len(model.seen) == 4
    assert len({tuple(w.tolist()) for w in model.seen}) == 4, "w n'a pas bougé : ce test ne prouve rien"
    assert torch.equal(model.w, model.seen[best])


def test_without_validation_the_last_weights_are_kept(task):
    model = Scripted([])
    train_qat_low_rank(model, SCRIPT, epochs=3, lr=0.1)
    assert model.seen == []
    assert model.w[1].item() == pytest.approx(0.3, rel=0.02)  # trois pas d'Adam


def test_validation_averages_over_examples_not_batches(network, task):
    model, uneven = network().eval(), [*task(90, 90), *task(2, 2)]
    by_batch = sum(loss_on(model, [batch]) for batch in uneven) / 2
    found = mean_loss(model, uneven, "val_loader")
    assert found == pytest.approx(loss_on(model, uneven), rel=1e-5)
    assert abs(found - by_batch) > 1e-4 * found


def test_a_loss_that_diverges_stops_with_a_warning_and_gives_back_the_best():
    model = Scripted([1.0, 0.5, math.nan, 0.1])
    with pytest.warns(UserWarning, match=r"^époque 2 : la perte ou son gradient vaut nan.*lr plus petit") as caught:
        train_qat_low_rank(model, SCRIPT, epochs=3, val_loader=SCRIPT, lr=0.1)
    assert caught[0].filename == __file__
    assert len(model.seen) == 3
    assert torch.equal(model.w, model.seen[1])
    assert not model.training


def test_a_sick_batch_gives_back_the_last_finite_weights(network, task):
    model, train = network(), task()
    once = copy.deepcopy(model)
    sick = Sick(train)
    with pytest.warns(UserWarning, match="^époque 2 : la perte"):
        train_qat_low_rank(model, sick, epochs=5)
    train_qat_low_rank(once, train, epochs=1)
    assert unchanged(model, snapshot(once))
    assert sick.epochs == 2


class Sick:
    """Un chargeur sain à la première époque, puis dont le deuxième lot contient NaN."""

    def __init__(self, batches):
        self.batches, self.epochs = batches, 0

    def __iter__(self):
        self.epochs += 1
        for i, (x, y) in enumerate(self.batches):
            yield (x * math.nan if self.epochs > 1 and i == 1 else x), y


class Rooted(nn.Module):
    """Une perte finie dont le gradient ne l'est pas : √w en zéro."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return x[:, :2] * (self.w - self.w.detach()).abs().sqrt() + x[:, 2:]


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_sick_gradient_never_reaches_the_weights(epochs, task):
    model = Rooted()
    with pytest.warns(UserWarning, match="^époque 1 : la perte ou son gradient vaut nan"):
        train_qat_low_rank(model, task(), epochs=epochs)
    assert torch.equal(model.w, torch.zeros(2))


@pytest.mark.parametrize("epochs", [1, 6])
def test_a_learning_rate_beyond_reason_never_leaves_sick_weights(epochs, network, task):
    model = network()
    before = snapshot(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train_qat_low_rank(model, task(), epochs=epochs, lr=1e30, val_loader=task())
    assert all(torch.isfinite(t).all() for t in model.state_dict().values())
    assert unchanged(model, before)


def test_frozen_parameters_do_not_move(network, task):
    model = network()
    model[2].requires_grad_(False)
    before = snapshot(model)
    train_qat_low_rank(model, task(), epochs=2)
    moved = {name for name, t in model.state_dict().items() if not torch.equal(t, before[name])}
    assert moved == {"0.U", "0.V", "0.bias"}
    assert model[2].weight.grad is None
    assert [p.requires_grad for p in model.parameters()] == [True, True, True, False, False]


def test_statistics_of_normalization_come_back_with_the_weights(task):
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
    before = snapshot(model)
    train_qat_low_rank(model, task(), epochs=0, val_loader=task())
    assert unchanged(model, before)
    train_qat_low_rank(model, task(), epochs=1)
    assert model[1].num_batches_tracked == 3


def test_no_epoch_changes_nothing(network, task):
    model = network()
    before = snapshot(model)
    assert train_qat_low_rank(model, task(), epochs=0) is model
    assert unchanged(model, before)


def test_training_is_reproducible_and_draws_nothing(network, task):
    model, train = network(), task()
    twin, state = copy.deepcopy(model), torch.get_rng_state()
    train_qat_low_rank(model, train, epochs=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert unchanged(train_qat_low_rank(twin, train, epochs=3), snapshot(model))


def test_a_shuffling_loader_draws_what_it_would_draw_by_hand(network, task):
    x, y = (torch.cat(parts) for parts in zip(*task(), strict=True))
    loader = DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)
    model = network()
    twin = copy.deepcopy(model)
    torch.manual_seed(5)
    train_qat_low_rank(model, loader, epochs=2, lr=1e-2)
    torch.manual_seed(5)
    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-2)
    for _ in range(2):
        for inputs, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(twin(inputs), labels).backward()
            optimizer.step()
    assert unchanged(model, snapshot(twin))


def test_it_prints_only_when_asked(network, task, capsys):
    train_qat_low_rank(network(), task(), epochs=2, val_loader=task())
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
    train_qat_low_rank(network(), task(), epochs=2, val_loader=task(), verbose=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "2/2" in captured.err
    assert re.search(r"perte=\d\.\d{4}, validation=\d\.\d{4}", captured.err)


@pytest.mark.parametrize("validated", [True, False], ids=["validé", "sans validation"])
def test_an_interruption_keeps_the_best_weights_and_the_mode(validated, network, task):
    model = network().train()
    model[1].eval()  # un mode par module, et non un seul pour tous
    train, once = task(), copy.deepcopy(model)

    class Interrupted(Sick):
        def __iter__(self):
            self.epochs += 1
            for i, batch in enumerate(self.batches):
                if self.epochs == 2 and i == 1:
                    raise KeyboardInterrupt
                yield batch

    val = task() if validated else None
    with pytest.raises(KeyboardInterrupt):
        train_qat_low_rank(model, Interrupted(train), epochs=5, val_loader=val)
    assert [module.training for module in model.modules()] == [True, True, True, True, False, True]
    train_qat_low_rank(once, train, epochs=1, val_loader=val)
    assert unchanged(model, snapshot(once))


def test_empty_or_spent_loaders_are_refused_and_nothing_has_changed(network, task):
    batches = task()
    for train, val, error, message in [
        ([], None, ValueError, r"train_loader : aucun exemple, attendu au moins un lot"),
        (batches, [], ValueError, r"val_loader : aucun exemple, attendu au moins un lot"),
        (iter(batches), None, TypeError, "train_loader : reçu un itérateur, qui s'épuise"),
        (batches, (b for b in batches), TypeError, "val_loader : reçu un itérateur, qui s'épuise"),
        (None, None, TypeError, "train_loader : reçu NoneType, attendu un DataLoader ou une liste de lots"),
        (batches, 3, TypeError, "val_loader : reçu int, attendu un DataLoader ou une liste de lots"),
    ]:
        model = network()
        model[0].eval()
        before, modes = snapshot(model), [module.training for module in model.modules()]
        with pytest.raises(error, match=f"^{message}"):
            train_qat_low_rank(model, train, epochs=2, val_loader=val)
        assert unchanged(model, before)
        assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"epochs": -1}, ValueError, "epochs : reçu -1"),
        ({"epochs": 2.5}, TypeError, r"epochs : reçu 2\.5"),
        ({"lr": 0}, ValueError, "lr : reçu 0, attendu un nombre strictement positif"),
        ({"lr": math.nan}, ValueError, "lr : reçu nan"),
        ({"lr": "1e-3"}, TypeError, "lr : reçu '1e-3'"),
    ],
)
def test_bad_training_settings_are_named(options, error, message, network, task):
    model = network()
    before = snapshot(model)
    with pytest.raises(error, match=f"^{message}"):
        train_qat_low_rank(model, task(), **options)
    assert unchanged(model, before)
    assert model.training


def test_what_cannot_be_trained_is_named(task):
    with pytest.raises(TypeError, match=r"^model : reçu list, attendu nn\.Module"):
        train_qat_low_rank([nn.Linear(4, 2)], task())
    stored = nn.Sequential(QuantizedLowRankLinear(4, 2, 2))
    stored[0].quantize_weights()
    for model in (nn.Sequential(nn.Linear(4, 2).requires_grad_(False)), stored):
        with pytest.raises(
            ValueError, match=r"^model : aucun paramètre à entraîner, attendu au moins un requires_grad\."
        ):
            train_qat_low_rank(model, task())


def test_learning_with_the_rounding_beats_rounding_afterwards(rng):
    """Exercice 11.4.2 : à 2 bits, apprendre avec l'arrondi et son pas fait mieux qu'arrondir après."""
    x = torch.tensor(rng.standard_normal((256, 16)), dtype=torch.float32)
    teacher = torch.tensor(rng.standard_normal((16, 4)), dtype=torch.float32)
    loader = list(zip(x.split(64), (x @ teacher).argmax(1).split(64), strict=True))
    model = nn.Sequential(FactorizedLinear(16, 4, 4, bias=True))
    train_qat_low_rank(model, loader, epochs=12, lr=2e-2)
    after = nn.Sequential(QATLowRankLinear.from_factorized(model[0], 2).to_quantized())
    aware = nn.Sequential(QATLowRankLinear.from_factorized(model[0], 2, learned_step=True))
    train_qat_low_rank(aware, loader, epochs=12, lr=1e-2, val_loader=loader)
    assert loss_on(aware, loader) < 0.95 * loss_on(after, loader)
    assert loss_on(nn.Sequential(aware[0].to_quantized()), loader) == loss_on(aware, loader)
