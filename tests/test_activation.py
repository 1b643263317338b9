"""La SVD consciente des entrées : rien de même rang ne rend des sorties plus proches, et ce qu'on n'a pas vu se dit."""

import copy
import math
import warnings

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from lrq import (
    Calibration,
    CompactSVDLinear,
    FactorizedLinear,
    QuantizedLowRankLayer,
    SVDCompressedLinear,
    TruncatedSVDLinear,
    activation,
    activation_aware_svd,
    calibrate,
    replace_linears,
    truncated_svd,
)

SHAPES = [(24, 9), (9, 24), (13, 13), (1, 7), (7, 1)]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.fixture
def inputs(randn, rng):
    """Des entrées corrélées, d'échelles très différentes selon la direction : (N, n), float64."""

    def draw(count, n, spread=3.0):
        scales = torch.tensor(spread ** -rng.permutation(n).astype(float))
        rotation = torch.tensor(scipy.linalg.qr(rng.standard_normal((n, n)))[0])
        return randn(count, n, dtype=torch.float64) * scales @ rotation + 0.3 * scales

    return draw


def output_error(X, W, svd):
    """‖X(W − Ŵ)ᵀ‖ en float64, par NumPy."""
    X, W, U, S, Vh = (t.detach().double().numpy() for t in (X, W, *svd))
    return np.linalg.norm(X @ (W - (U * S) @ Vh).T)


def best_output_error(X, W, r):
    """L'oracle : ‖XWᵀ − Y‖ pour la meilleure matrice Y de rang r, par SciPy et sans covariance."""
    return math.sqrt((scipy.linalg.svdvals((X @ W.T).numpy())[r:] ** 2).sum())


def reduced_rank_regression(X, W, r):
    """L'oracle de Ŵ : les moindres carrés sur les sorties tronquées."""
    U, S, Vh = np.linalg.svd((X @ W.T).numpy(), full_matrices=False)
    return np.linalg.lstsq(X.numpy(), (U[:, :r] * S[:r]) @ Vh[:r], rcond=None)[0].T


def rebuilt(svd):
    U, S, Vh = svd
    return (U * S) @ Vh


# --- optimalité -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_every_rank_reaches_the_best_possible_output_error(m, n, randn, inputs):
    W, X = randn(m, n, dtype=torch.float64), inputs(200, n, 1.5)
    scale = float((X @ W.T).norm())
    for r in range(1, min(m, n) + 1):
        svd = activation_aware_svd(W, r, X)
        assert output_error(X, W, svd) == pytest.approx(best_output_error(X, W, r), rel=1e-6, abs=1e-9 * scale)
        np.testing.assert_allclose(rebuilt(svd).numpy(), reduced_rank_regression(X, W, r), atol=1e-6)


def test_it_beats_the_plain_svd_on_outputs_and_loses_on_weights(randn, inputs):
    W, X = randn(30, 20, dtype=torch.float64), inputs(500, 20, 1.3)
    for r in (2, 5, 10, 15):
        aware, plain = activation_aware_svd(W, r, X), truncated_svd(W, r)
        assert output_error(X, W, aware) < 0.9 * output_error(X, W, plain)
        assert (W - rebuilt(aware)).norm() > (W - rebuilt(plain)).norm()


def test_no_neighbour_and_no_competitor_does_better(randn, inputs):
    W, X = randn(14, 11, dtype=torch.float64), inputs(100, 11, 1.4)
    U, S, Vh = activation_aware_svd(W, 4, X)
    best = output_error(X, W, (U, S, Vh))
    for step in (1e-1, 1e-2, 1e-3):
        for _ in range(30):
            near = U + step * randn(14, 4, dtype=torch.float64), S, Vh + step * randn(4, 11, dtype=torch.float64)
            assert output_error(X, W, near) >= best
    for _ in range(100):
        A = torch.linalg.qr(randn(14, 4, dtype=torch.float64)).Q  # pour cette image, A Aᵀ W est le meilleur choix
        assert output_error(X, W, (A, torch.ones(4), A.T @ W)) >= best


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_white_inputs_give_the_plain_svd(m, n, randn):
    W = randn(m, n, dtype=torch.float64)
    r = max(1, min(m, n) // 2)
    X = 3 * torch.linalg.qr(randn(60, n, dtype=torch.float64)).Q  # XᵀX = 9 I
    aware, plain = activation_aware_svd(W, r, X), truncated_svd(W, r)
    torch.testing.assert_close(rebuilt(aware), rebuilt(plain))
    torch.testing.assert_close(aware[1], plain[1])


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_factors_are_a_true_svd(m, n, randn, inputs):
    r = max(1, min(m, n) // 2)
    U, S, Vh = activation_aware_svd(randn(m, n, dtype=torch.float64), r, inputs(100, n, 1.3))
    assert (U.shape, S.shape, Vh.shape) == ((m, r), (r,), (r, n))
    torch.testing.assert_close(U.T @ U, torch.eye(r, dtype=torch.float64))
    torch.testing.assert_close(Vh @ Vh.T, torch.eye(r, dtype=torch.float64))
    assert (S.diff() <= 0).all()


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_full_rank_gives_the_matrix_back(m, n, randn, inputs):
    W = randn(m, n, dtype=torch.float64)
    torch.testing.assert_close(rebuilt(activation_aware_svd(W, min(m, n), inputs(200, n, 1.5))), W)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e30])
def test_the_scale_of_the_inputs_does_not_matter(scale, randn, inputs):
    W, X = randn(12, 9, dtype=torch.float64), inputs(100, 9, 1.5)
    torch.testing.assert_close(rebuilt(activation_aware_svd(W, 4, X * scale)), rebuilt(activation_aware_svd(W, 4, X)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtype_is_kept_and_rounded_once(dtype, randn, inputs):
    W, X = randn(14, 10).to(dtype), inputs(100, 10, 1.4)
    svd = activation_aware_svd(W, 4, X)
    assert {t.dtype for t in svd} == {dtype}
    exact = activation_aware_svd(W.double(), 4, X)
    assert all(torch.equal(a, b.to(dtype)) for a, b in zip(svd, exact, strict=True))
    assert not any(t.requires_grad for t in activation_aware_svd(nn.Parameter(W), 4, X.to(dtype).requires_grad_()))


def test_inputs_may_have_any_leading_dimensions(randn):
    W, X = randn(7, 6), randn(4, 5, 6)
    flat = activation_aware_svd(W, 3, X.reshape(20, 6))
    assert all(torch.equal(a, b) for a, b in zip(flat, activation_aware_svd(W, 3, X), strict=True))


# --- directions jamais vues -------------------------------------------------------------------------------------------


def constant(X):
    return X[:1].expand(50, -1)


def dead(X):
    return X * (torch.arange(X.shape[1]) % 3 > 0)


def few(X):
    return X[:4]


@pytest.mark.parametrize(("starve", "known"), [(constant, 1), (few, 4), (dead, 8)])
@pytest.mark.parametrize("m", [9, 20])
def test_unseen_directions_are_said_and_follow_the_plain_svd(starve, known, m, randn, inputs):
    W = randn(m, 12, dtype=torch.float64)
    X = starve(inputs(60, 12, 1.3))
    message = rf"^calibration : ses {len(X)} entrées n'occupent que {known} direction\(s\) sur 12 ; hors d'elles"
    for r in range(1, min(m, 12) + 1):
        with pytest.warns(UserWarning, match=message) as caught:
            svd = activation_aware_svd(W, r, X)
        assert caught[0].filename == __file__  # l'avertissement montre la ligne du lecteur
        assert all(t.isfinite().all() for t in svd)
        scale = float((X @ W.T).norm())
        assert output_error(X, W, svd) == pytest.approx(best_output_error(X, W, r), rel=1e-5, abs=1e-5 * scale)
        if r > known:  # les entrées vues sont rendues ; de ce qui reste de W, rien de rang r − k ne fait mieux
            seen = torch.tensor(scipy.linalg.orth((W @ X.T).numpy(), rcond=1e-9))
            left = W - seen @ (seen.T @ W)
            tail = math.sqrt((scipy.linalg.svdvals(left.numpy())[r - known :] ** 2).sum())
            assert float((W - rebuilt(svd)).norm()) == pytest.approx(tail, rel=1e-4, abs=1e-6)


def test_enough_inputs_do_not_warn(randn, inputs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        activation_aware_svd(randn(5, 8), 2, inputs(8, 8, 1.5))


@pytest.mark.filterwarnings("ignore:calibration")
def test_nothing_seen_is_the_plain_svd(randn):
    W = randn(9, 7, dtype=torch.float64)
    nothing = Calibration(torch.zeros(7, 7, dtype=torch.float64), 10)
    torch.testing.assert_close(rebuilt(activation_aware_svd(W, 3, nothing)), rebuilt(truncated_svd(W, 3)))


def test_a_zero_matrix_stays_zero(inputs):
    svd = activation_aware_svd(torch.zeros(6, 4), 2, inputs(20, 4, 1.5))
    assert not rebuilt(svd).any()
    assert all(t.isfinite().all() for t in svd)


# --- Calibration ------------------------------------------------------------------------------------------------------


def test_second_moment_by_hand(randn):
    X = randn(5, 3, 4)
    seen = Calibration.from_inputs(X)
    x = X.double().numpy().reshape(15, 4)
    np.testing.assert_allclose(seen.second_moment.numpy(), x.T @ x / 15, rtol=1e-12)
    assert seen.count == 15
    assert seen.second_moment.dtype == torch.float64


def test_root_is_a_root(inputs):
    seen = Calibration.from_inputs(inputs(200, 8, 1.5))
    torch.testing.assert_close(seen.root @ seen.root.T, seen.second_moment)


# --- calibrate --------------------------------------------------------------------------------------------------------


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 5)), nn.Linear(5, 3))


def hooks_of(model):
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("chunk", [1, 7, 2048])
def test_calibrate_by_hand(chunk, network, randn, monkeypatch):
    monkeypatch.setattr(activation, "CHUNK", chunk)
    batches = [randn(4, 6), randn(2, 3, 6), randn(6)]
    before, training = copy.deepcopy(network.state_dict()), network.training
    seen = calibrate(network, ["2.0", "0"], lambda: [network(x) for x in batches])
    assert list(seen) == ["2.0", "0"]
    x = torch.cat([batch.reshape(-1, 6) for batch in batches])
    with torch.no_grad():
        for name, expected in (("0", x), ("2.0", network[0](x).relu())):
            assert seen[name].count == 11
            torch.testing.assert_close(seen[name].second_moment, Calibration.from_inputs(expected).second_moment)
    assert hooks_of(network) == 0
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert network.training == training
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


def test_inputs_rewritten_in_place_are_kept(randn):
    layer, batches, buffer = nn.Linear(4, 4), randn(3, 5, 4), torch.empty(5, 4)

    def run():
        for batch in batches:
            buffer.copy_(batch)  # un seul tampon, réutilisé
            buffer.add_(layer(buffer))  # une connexion résiduelle, sur place

    seen = calibrate(layer, [""], run)[""]
    torch.testing.assert_close(seen.second_moment, Calibration.from_inputs(batches).second_moment)


def test_an_idle_start_or_an_empty_batch_is_no_error(randn, monkeypatch):
    monkeypatch.setattr(activation, "CHUNK", 4)
    layer, x = nn.Linear(3, 2), randn(5, 3)
    seen = calibrate(layer, [""], lambda: [layer(batch) for batch in (torch.zeros(5, 3), x, torch.zeros(0, 3))])[""]
    assert seen.count == 10
    torch.testing.assert_close(seen.second_moment, Calibration.from_inputs(x).second_moment / 2)


def test_hooks_are_removed_even_after_a_failure(network, randn):
    def run():
        network(randn(2, 6))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(network, ["0", "3"], run)
    assert hooks_of(network) == 0


def test_a_name_given_twice_counts_once_and_a_shared_layer_sees_all(randn):
    shared = nn.Linear(4, 4)
    model, x = nn.Sequential(shared, shared), randn(5, 4)
    seen = calibrate(model, ["0", "0", "1"], lambda: model(x))
    assert {name: found.count for name, found in seen.items()} == {"0": 10, "1": 10}


def test_calibrate_names_what_is_wrong(network, randn):
    x = randn(2, 6)
    with pytest.raises(ValueError, match=r"^names : 'absent' n'est pas un module du réseau"):
        calibrate(network, ["0", "absent"], lambda: network(x))
    with pytest.raises(ValueError, match=r"^run : la couche '2\.0' n'a reçu aucune entrée"):
        calibrate(network, ["0", "2.0"], lambda: network[0](x))
    with pytest.raises(ValueError, match=r"^run : la couche '0' n'a reçu aucune entrée"):
        calibrate(network, ["0"], lambda: network(x[:0]))
    with pytest.raises(ValueError, match=r"^run, couche '0' : toutes les entrées sont nulles"):
        calibrate(network, ["0"], lambda: network(0 * x))
    with pytest.raises(ValueError, match=r"^run, couche '3' : NaN ou infini"):
        calibrate(network, ["3"], lambda: network(math.nan * x))
    assert hooks_of(network) == 0


# --- les couches ------------------------------------------------------------------------------------------------------

LAYERS = [FactorizedLinear, SVDCompressedLinear, TruncatedSVDLinear, CompactSVDLinear]


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("wrap", [lambda X: X, Calibration.from_inputs, lambda X: X.reshape(4, 25, 9)])
def test_layers_follow_the_calibration(kind, wrap, randn, inputs):
    source, X = nn.Linear(9, 12, dtype=torch.float64), inputs(100, 9, 1.4)
    W = source.weight.detach()
    for layer in (kind.from_linear(source, 4, wrap(X)), kind.from_weight_matrix(W, 4, calibration=wrap(X))):
        error = float((X @ (W - layer.reconstruct_weight().detach()).T).norm())
        assert error == pytest.approx(best_output_error(X, W, 4), rel=1e-6)
    assert torch.equal(kind.from_linear(source, 4, X).bias, source.bias)


def test_the_quantized_layer_follows_it_too(randn, inputs):
    source, X = nn.Linear(9, 12), inputs(100, 9, 1.4).float()
    aware, plain = (QuantizedLowRankLayer.from_linear(source, 4, 8, calibration=c) for c in (X, None))
    assert (aware(X) - source(X)).norm() < 0.9 * (plain(X) - source(X)).norm()


# --- mauvaises entrées ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        (torch.ones(5, 3), ValueError, "reçu des entrées de largeur 3, attendu 4"),
        (Calibration(torch.eye(3, dtype=torch.float64), 5), ValueError, "reçu des entrées de largeur 3, attendu 4"),
        (torch.zeros(0, 4), ValueError, r"reçu la forme \(0, 4\), attendu au moins une entrée"),
        (torch.tensor(1.0), ValueError, r"reçu la forme \(\), attendu au moins une entrée"),
        (torch.zeros(5, 4), ValueError, "toutes les entrées sont nulles"),
        (torch.tensor([[1.0, math.nan, 0, 0]]), ValueError, "NaN ou infini dans les entrées"),
        (torch.tensor([[1.0, math.inf, 0, 0]]), ValueError, "NaN ou infini dans les entrées"),
        ([[1.0] * 4], TypeError, "reçu list, attendu un tenseur"),
        (np.ones((5, 4)), TypeError, "reçu ndarray, attendu un tenseur"),
        (torch.ones(5, 4, dtype=torch.complex64), TypeError, "attendu des nombres réels"),
    ],
)
def test_bad_calibration_is_named(X, error, message):
    for function in (
        lambda: activation_aware_svd(torch.ones(6, 4), 2, X),
        lambda: CompactSVDLinear.from_linear(nn.Linear(4, 6), 2, X),
        lambda: TruncatedSVDLinear.from_weight_matrix(torch.ones(6, 4), 2, X),
    ):
        with pytest.raises(error, match=f"^calibration : .*{message}"):
            function()


@pytest.mark.parametrize(("rank", "error"), [(0, ValueError), (5, ValueError), (2.5, TypeError), (True, TypeError)])
def test_bad_rank_is_named(rank, error):
    with pytest.raises(error, match=r"^rank : reçu"):
        activation_aware_svd(torch.ones(6, 4), rank, torch.ones(3, 4))


def test_inputs_given_by_keyword_are_heard(randn):
    layer, x = torch.nn.Linear(5, 3), randn(20, 5)
    seen = calibrate(torch.nn.Sequential(layer), ["0"], lambda: layer(input=x))["0"]
    torch.testing.assert_close(seen.second_moment, x.double().T @ x.double() / 20)


def test_a_text_is_not_a_list_of_names(randn):
    network = torch.nn.Sequential(torch.nn.Linear(5, 3))
    with pytest.raises(TypeError, match=r"^names : reçu le texte '0', attendu une liste de noms"):
        calibrate(network, "0", lambda: network(randn(4, 5)))
    with pytest.raises(TypeError, match=r"^names : reçu le texte '0', attendu une liste de noms"):
        replace_linears(network, lambda layer: layer, "0")
