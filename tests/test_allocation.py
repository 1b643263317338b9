"""Les rangs que dicte le bruit, et ceux qu'un budget permet : comparés à l'intégrale de la loi, et à tous les choix."""

import itertools
import math

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import torch

from lrq import allocate_budget, allocate_ranks, gavish_donoho_rank, marchenko_pastur_rank, singular_values
from lrq.allocation import marchenko_pastur_median

SIZES = [(120, 120), (200, 80), (80, 200)]
RANKS = pytest.mark.parametrize("function", [gavish_donoho_rank, marchenko_pastur_rank])


def spectrum(rng, m, n, noise, signal):
    """Valeurs singulières d'un signal de rang len(signal), en unités du bord du bruit, plus un bruit blanc."""
    left, right = (np.linalg.qr(rng.standard_normal((k, max(1, len(signal)))))[0] for k in (m, n))
    edge = noise * (math.sqrt(m) + math.sqrt(n))
    W = noise * rng.standard_normal((m, n))
    if signal:
        W += left * (edge * np.array(signal)) @ right.T
    return torch.tensor(np.linalg.svd(W, compute_uv=False))


# --- le bruit ---------------------------------------------------------------------------------------------------------


@RANKS
@pytest.mark.parametrize(("m", "n"), SIZES)
@pytest.mark.parametrize("noise", [1e-3, 1.0, 50.0])
def test_a_planted_signal_is_counted(function, m, n, noise, rng):
    for r in (1, 4, 8):
        S = spectrum(rng, m, n, noise, [2.0 + i for i in range(r)])
        for found in (function(S, m, n, noise), function(S, m, n)):
            fringe = 2 if function is marchenko_pastur_rank else 0  # au bord même, le bruit dépasse parfois
            assert r <= found <= r + fringe


@RANKS
@pytest.mark.parametrize(("m", "n"), SIZES)
def test_pure_noise_has_no_rank(function, m, n, rng):
    for _ in range(5):
        S = spectrum(rng, m, n, 0.7, [])
        assert function(S, m, n, 0.7) <= 2
        assert function(S, m, n) <= 2
    assert sum(gavish_donoho_rank(spectrum(rng, m, n, 1.0, []), m, n) for _ in range(5)) == 0


def test_the_square_threshold_is_four_over_root_three():
    n, noise = 100, 0.3
    threshold = 4 / math.sqrt(3) * math.sqrt(n) * noise
    S = torch.cat([torch.full((3,), threshold * 1.0001), torch.full((97,), threshold * 0.9999)]).double()
    assert gavish_donoho_rank(S, n, n, noise) == 3


@pytest.mark.parametrize(("m", "n"), SIZES)
def test_the_edge_is_that_of_marchenko_and_pastur(m, n):
    edge = 0.3 * (math.sqrt(m) + math.sqrt(n))
    S = torch.cat([torch.full((3,), edge * 1.0001), torch.full((min(m, n) - 3,), edge * 0.9999)]).double()
    assert marchenko_pastur_rank(S, m, n, 0.3) == 3
    assert gavish_donoho_rank(S, m, n, 0.3) == 0  # son seuil est au-dessus du bord : dépasser ne suffit pas à servir


def best_threshold(beta):
    """L'oracle : le signal x à partir duquel le garder coûte moins que l'ôter, par résolution numérique.

    Un signal x devient la valeur singulière y(x) ; la garder laisse x² + y² − 2 x y c(x), l'ôter laisse x².
    """

    def observed(x):
        return math.sqrt((x + 1 / x) * (x + beta / x))

    def gain(x):
        cosines = math.sqrt((x**4 - beta) / (x**4 + beta * x**2) * (x**4 - beta) / (x**4 + x**2))
        return observed(x) - 2 * x * cosines

    return observed(scipy.optimize.brentq(gain, beta**0.25 * 1.001, 10))


def median_of_law(beta):
    """L'oracle : la médiane de Marchenko–Pastur, par intégration de sa densité."""
    low, high = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2

    def mass(t):
        density = lambda x: math.sqrt(max(0.0, (high - x) * (x - low))) / (2 * math.pi * beta * x)  # noqa: E731
        return scipy.integrate.quad(density, low, t, limit=200)[0]

    return scipy.optimize.brentq(lambda t: mass(t) - 0.5, low + 1e-9, high)


@pytest.mark.parametrize("beta", [0.05, 0.25, 0.5, 0.9, 1.0])
def test_median_and_threshold_equal_an_independent_computation(beta):
    assert marchenko_pastur_median(beta) == pytest.approx(median_of_law(beta), rel=1e-4)
    n = 1000
    m = round(beta * n)
    limit = best_threshold(beta) * math.sqrt(n)
    for factor, rank in ((1.0001, m), (0.9999, 0)):
        assert gavish_donoho_rank(torch.full((m,), limit * factor, dtype=torch.float64), m, n, 1.0) == rank


@pytest.mark.parametrize(("beta", "published"), [(0.05, 1.5194), (0.1, 1.6089), (0.5, 2.1711), (1.0, 2.8582)])
def test_coefficients_are_those_of_the_article(beta, published):
    """ω(β), le seuil en unités de la valeur singulière médiane : table IV de Gavish et Donoho (2014)."""
    n = 2000
    m = round(beta * n)
    for factor, rank in ((1.001, 1), (0.999, 0)):
        S = torch.ones(m, dtype=torch.float64)
        S[0] = published * factor
        assert gavish_donoho_rank(S, m, n) == rank


def test_keeping_that_rank_denoises_best(rng):
    m = n = 150
    left, right = (np.linalg.qr(rng.standard_normal((k, 6)))[0] for k in (m, n))
    signal = left * (math.sqrt(n) * np.array([6.0, 5.0, 4.0, 3.0, 1.2, 1.1])) @ right.T
    U, S, Vh = np.linalg.svd(signal + rng.standard_normal((m, n)))
    losses = [np.linalg.norm(signal - (U[:, :r] * S[:r]) @ Vh[:r]) for r in range(20)]
    r = gavish_donoho_rank(torch.tensor(S), m, n, 1.0)
    assert losses[r] <= 1.02 * min(losses)
    assert r < 6  # les deux derniers signaux, noyés, coûteraient plus qu'ils n'apportent


@RANKS
def test_a_zero_matrix_has_no_rank(function):
    assert function(torch.zeros(5), 5, 9) == function(torch.zeros(5), 9, 5, 0.1) == 0


@RANKS
@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((torch.ones(4), 5, 6), ValueError, r"S : reçu 4 valeurs singulières, attendu min\(m, n\) = 5"),
        ((torch.tensor([1.0, 2.0]), 2, 2), ValueError, "S : attendu"),
        ((torch.ones(4), 0, 6), ValueError, "m : reçu 0"),
        ((torch.ones(4), 4, 2.5), TypeError, r"n : reçu 2\.5"),
        ((torch.ones(4), 4, 6, 0), ValueError, "noise : reçu 0, attendu un nombre strictement positif"),
        ((torch.ones(4), 4, 6, -1.0), ValueError, r"noise : reçu -1\.0"),
        ((torch.ones(4), 4, 6, "1"), TypeError, "noise : reçu '1'"),
    ],
)
def test_bad_arguments_are_named(function, args, error, message):
    with pytest.raises(error, match=f"^{message}"):
        function(*args)


# --- un budget --------------------------------------------------------------------------------------------------------


@pytest.fixture
def layers(rng):
    """Des couches de petites dimensions, et leurs spectres, tirés au hasard."""

    def draw(count=3, same_cost=False):
        shapes = {}
        for i in range(count):
            m = int(rng.integers(2, 6))
            shapes[f"couche {i}"] = (m, 9 - m if same_cost else int(rng.integers(2, 9)))
        spectra = {
            name: torch.tensor(np.sort(rng.random(min(shape)) * 3.0 ** rng.integers(-2, 2))[::-1].copy())
            for name, shape in shapes.items()
        }
        return spectra, shapes

    return draw


def energy(spectra, ranks):
    return sum(float((spectra[name][:r] ** 2).sum()) for name, r in ranks.items())


def cost(shapes, ranks):
    return sum(r * sum(shapes[name]) for name, r in ranks.items())


def exhaustive(spectra, shapes, budget):
    """L'oracle : la plus grande énergie parmi tous les choix de rangs que le budget permet."""
    choices = itertools.product(*(range(1, min(shape) + 1) for shape in shapes.values()))
    every = (dict(zip(shapes, ranks, strict=True)) for ranks in choices)
    return max(energy(spectra, ranks) for ranks in every if cost(shapes, ranks) <= budget)


def budgets(rng, shapes):
    least, most = sum(map(sum, shapes.values())), sum(min(s) * sum(s) for s in shapes.values())
    return [least, most, most + 10, *rng.integers(least, most + 1, 5).tolist()]


def test_equal_costs_give_the_best_allocation(layers, rng):
    for _ in range(15):
        spectra, shapes = layers(same_cost=True)
        for budget in budgets(rng, shapes):
            ranks = allocate_ranks(spectra, shapes, budget)
            assert cost(shapes, ranks) <= budget
            assert energy(spectra, ranks) == pytest.approx(exhaustive(spectra, shapes, budget), rel=1e-12)


def test_unequal_costs_lose_at_most_one_component(layers, rng):
    for _ in range(15):
        spectra, shapes = layers()
        for budget in budgets(rng, shapes):
            ranks = allocate_ranks(spectra, shapes, budget)
            assert list(ranks) == list(spectra)
            assert cost(shapes, ranks) <= budget
            assert all(1 <= r <= min(shapes[name]) for name, r in ranks.items())
            refused = [float(spectra[name][r]) ** 2 for name, r in ranks.items() if r < min(shapes[name])]
            assert energy(spectra, ranks) >= exhaustive(spectra, shapes, budget) - max(refused, default=0) - 1e-12


def test_energy_is_weighed_against_its_cost():
    spectra, shapes = (
        {"chère": torch.full((2,), 1.05), "bon marché": torch.ones(11)},
        {"chère": (2, 98), "bon marché": (11, 11)},
    )
    assert allocate_ranks(spectra, shapes, 100 + 22 + 5 * 22) == {"chère": 1, "bon marché": 6}


def test_the_budget_is_used_up(layers, rng):
    spectra, shapes = layers(5)
    for budget in budgets(rng, shapes):
        ranks = allocate_ranks(spectra, shapes, budget)
        left = budget - cost(shapes, ranks)
        assert all(ranks[name] == min(shape) or sum(shape) > left for name, shape in shapes.items())


def test_it_beats_the_same_share_for_all(matrix):
    weights = {"plate": matrix(20, 20, np.ones(20)), "pentue": matrix(20, 20, 0.5 ** np.arange(20.0))}
    spectra = {name: singular_values(W) for name, W in weights.items()}
    ranks = allocate_ranks(spectra, dict.fromkeys(weights, (20, 20)), 20 * 40)
    assert ranks["plate"] > 15
    assert ranks["plate"] + ranks["pentue"] == 20
    assert energy(spectra, ranks) > 1.3 * energy(spectra, {"plate": 10, "pentue": 10})


def test_a_truncated_spectrum_bounds_its_rank():
    assert allocate_ranks({"a": torch.ones(2)}, {"a": (5, 5)}, 1000) == {"a": 2}


@pytest.mark.parametrize(
    ("spectra", "shapes", "budget", "error", "message"),
    [
        ({"a": torch.ones(2)}, {"b": (2, 2)}, 100, ValueError, r"shapes : reçu les noms \['b'\], attendu .*\['a'\]"),
        ({}, {}, 100, ValueError, r"shapes : reçu les noms \[\]"),
        ({"a": torch.ones(2)}, {"a": (2, 3)}, 4, ValueError, "budget : reçu 4, attendu au moins 5, le rang 1 partout"),
        ({"a": torch.ones(2)}, {"a": (2, 3)}, 1.5, TypeError, r"budget : reçu 1\.5"),
        ({"a": torch.ones(2)}, {"a": (2, 3)}, -1, ValueError, "budget : reçu -1"),
        ({"a": torch.tensor([1.0, 2.0])}, {"a": (2, 3)}, 9, ValueError, r"spectra\['a'\] : attendu"),
        ({"a": torch.ones(3)}, {"a": (2, 3)}, 9, ValueError, r"spectra\['a'\] : reçu 3 valeurs .* attendu au plus"),
        ({"a": torch.ones(2)}, {"a": (2, 0)}, 9, ValueError, r"shapes\['a'\] : reçu 0"),
    ],
)
def test_a_bad_allocation_is_named(spectra, shapes, budget, error, message):
    with pytest.raises(error, match=f"^{message}"):
        allocate_ranks(spectra, shapes, budget)


@pytest.mark.parametrize("shape", [(2, 2, 4), 5, ()])
def test_a_shape_is_two_numbers(shape):
    with pytest.raises(ValueError, match=r"^shapes\['a'\] : reçu .*, attendu \(m, n\)"):
        allocate_ranks({"a": torch.ones(2)}, {"a": shape}, 100)


# --- un budget d'octets -----------------------------------------------------------------------------------------------


@pytest.fixture
def options(rng):
    """Quelques couches, et pour chacune des (octets, perte) ; certaines, plus chères, n'en perdent pas moins."""

    def draw(count=3):
        return {
            f"couche {i}": [
                (int(rng.integers(0, 40)), float(rng.random() * 10.0 ** rng.integers(-3, 2)))
                for _ in range(int(rng.integers(1, 7)))
            ]
            for i in range(count)
        }

    return draw


def spent(options, chosen):
    """Ce que coûte un choix, et ce qu'il perd."""
    assert chosen.keys() == options.keys()
    picked = [options[name][i] for name, i in chosen.items()]
    return sum(cost for cost, _ in picked), sum(loss for _, loss in picked)


def least_loss(options, budget):
    """L'oracle : la plus petite perte parmi tous les choix que le budget permet."""
    sums = ([sum(pair) for pair in zip(*picked, strict=True)] for picked in itertools.product(*options.values()))
    return min(loss for cost, loss in sums if cost <= budget)


def test_a_budget_is_held_and_loses_at_most_one_step(options, rng):
    exact = 0
    for _ in range(150):
        layers = options(int(rng.integers(1, 5)))
        least = sum(min(cost for cost, _ in choices) for choices in layers.values())
        most = sum(max(cost for cost, _ in choices) for choices in layers.values())
        for budget in {max(least, 1), most + 5, int(rng.integers(max(least, 1), most + 2))}:
            cost, loss = spent(layers, allocate_budget(layers, budget))
            best = least_loss(layers, budget)
            assert cost <= budget
            step = max(
                max(lost for _, lost in choices) - min(lost for _, lost in choices) for choices in layers.values()
            )
            assert best - 1e-12 <= loss <= best + step + 1e-12
            exact += loss <= best * (1 + 1e-12)
            if budget > most:
                assert loss == pytest.approx(best, rel=1e-12)
    assert exact > 150


def test_a_budget_that_is_used_up_is_spent_best(options, rng):
    """Pour un prix de l'octet, chaque couche choisit seule ; ce qu'elles dépensent ensemble ne peut perdre moins."""
    for _ in range(150):
        layers, price = options(4), float(10.0 ** rng.uniform(-4, 1))
        picked = {
            name: min(range(len(choices)), key=lambda i: choices[i][1] + price * choices[i][0])
            for name, choices in layers.items()
        }
        budget, expected = spent(layers, picked)
        if budget:
            assert spent(layers, allocate_budget(layers, budget)) == (budget, pytest.approx(expected, rel=1e-12))


def test_more_budget_never_loses_more(options):
    for _ in range(30):
        layers = options(4)
        least = max(1, sum(min(cost for cost, _ in choices) for choices in layers.values()))
        losses = [spent(layers, allocate_budget(layers, budget))[1] for budget in range(least, least + 120)]
        assert losses == sorted(losses, reverse=True)


def test_the_order_of_options_and_their_scale_do_not_matter(options, rng):
    for _ in range(30):
        layers = options(3)
        budget = 1 + sum(min(cost for cost, _ in choices) for choices in layers.values()) + int(rng.integers(40))
        shuffled = {name: [choices[i] for i in rng.permutation(len(choices))] for name, choices in layers.items()}
        larger = {name: [(cost, loss * 2.0**60) for cost, loss in choices] for name, choices in layers.items()}
        expected = spent(layers, allocate_budget(layers, budget))
        assert spent(shuffled, allocate_budget(shuffled, budget)) == pytest.approx(expected, rel=1e-12)
        assert allocate_budget(larger, budget) == allocate_budget(layers, budget)


def test_a_layer_that_matters_gets_the_bytes():
    layers = {"a": [(10, 1.0), (20, 0.9)], "b": [(10, 1.0), (20, 0.2)]}
    assert allocate_budget(layers, 20) == {"a": 0, "b": 0}
    assert allocate_budget(layers, 30) == {"a": 0, "b": 1}
    assert allocate_budget(layers, 40) == {"a": 1, "b": 1}
    assert allocate_budget({"a": [(10, 1.0), (10, 0.5), (12, 0.5)]}, 99) == {"a": 1}


@pytest.mark.parametrize(
    ("layers", "budget", "error", "message"),
    [
        ({}, 5, ValueError, "options : aucune couche"),
        ({"a": []}, 5, ValueError, r"options\['a'\] : aucune option"),
        ({"a": [(1, -0.1)]}, 5, ValueError, r"options\['a'\] : attendu des octets et des pertes finis, positifs"),
        ({"a": [(1, math.nan)]}, 5, ValueError, r"options\['a'\] : attendu"),
        ({"a": [(-1, 0.1)]}, 5, ValueError, r"options\['a'\] : attendu"),
        ({"a": [(5, 1.0), (9, 0.5)], "b": [(3, 1.0)]}, 7, ValueError, "budget : reçu 7, attendu au moins 8 octets"),
        ({"a": [(5, 1.0)]}, 0, ValueError, "budget : reçu 0"),
        ({"a": [(5, 1.0)]}, 5.5, TypeError, "budget : reçu 5.5"),
    ],
)
def test_a_bad_budget_is_named(layers, budget, error, message):
    with pytest.raises(error, match=f"^{message}"):
        allocate_budget(layers, budget)
