"""Ce que lrq promet, éprouvé sur des instances que hypothesis tire et réduit : formes, types et spectres extrêmes.

Une propriété par idée. Ce qui la juge ne vient pas de lrq : NumPy, une formule, ou une recherche exhaustive.
``LRQ_GRAINE=123`` refait les mêmes tirages. ``LRQ_PROFIL=endurance`` en fait bien davantage : voir tests/endurance.py.
"""

import functools
import itertools
import json
import math
import os
import tempfile
import warnings
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import lrq

GRAINE = int(os.environ["LRQ_GRAINE"])  # que conftest.py a fixée
PATIENT = {
    "deadline": None,
    "database": None,  # LRQ_GRAINE suffit à rejouer, et rien ne s'écrit dans le dépôt
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
}
settings.register_profile("court", max_examples=10, **PATIENT)
settings.register_profile("endurance", max_examples=136, **PATIENT)
settings.load_profile(os.environ.get("LRQ_PROFIL", "court"))

CASES = Counter()


def prop(*, heavy=False, **strategies):
    """Une propriété : ``given``, à la graine des autres tests, dont on compte les cas ; moins nombreux si `heavy`."""

    def wrap(test):
        @functools.wraps(test)
        def counted(*values, **named):
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                torch.manual_seed(GRAINE)  # que suivent les constructeurs de modules
                warnings.simplefilter("error")  # ni division par zéro ni débordement ne reste inaperçu
                warnings.simplefilter("ignore", UserWarning)  # ce que lrq annonce en français
                test(*values, **named)
            CASES[test.__name__] += 1

        count = settings.default.max_examples // (4 if heavy else 1)
        return settings(max_examples=count)(hypothesis.seed(GRAINE)(given(**strategies)(counted)))

    return wrap


@pytest.fixture(autouse=True)
def count_cases(request, record_property):
    """Dit au rapport de pytest combien de cas ce test a vus."""
    yield
    record_property("cas", CASES.pop(request.node.name.partition("[")[0], 0))


# --- des instances ----------------------------------------------------------------------------------------------------

HALVES, FLOATS = [torch.float16, torch.bfloat16], [torch.float32, torch.float64]
SEEDS = st.integers(0, 2**32 - 1)
KINDS = ["quelconque", "décroissante", "rang déficient", "valeurs égales", "constante", "nulle", "éparse"]
PRECISION = {dtype: torch.finfo(dtype).eps for dtype in HALVES + FLOATS}


def fill(rng, m, n, kind):
    """Une matrice (m, n) de cette sorte, en float64, dont le plus grand coefficient vaut 1 (ou 0)."""
    p = min(m, n)
    if kind in ("décroissante", "valeurs égales"):
        left, right = (np.linalg.qr(rng.standard_normal((size, p)))[0] for size in (m, n))
        W = left * (1.0 if kind == "valeurs égales" else 0.5 ** np.arange(p)) @ right.T
    elif kind == "rang déficient":
        r = max(1, p // 2)
        W = rng.standard_normal((m, r)) @ rng.standard_normal((r, n))
    elif kind == "éparse":
        W = rng.standard_normal((m, n)) * (rng.random((m, n)) < 0.3)
    else:
        W = {"quelconque": rng.standard_normal((m, n)), "constante": np.ones((m, n)), "nulle": np.zeros((m, n))}[kind]
    return W / (np.abs(W).max() or 1.0)


@st.composite
def matrices(draw, most=10, dtypes=(*HALVES, *FLOATS), kinds=KINDS, scaled=True, m=None, n=None):
    """Une matrice : 1×1, large ou haute ; de tout dtype ; au spectre parfois dégénéré ; parfois à l'échelle 10^±30."""
    m, n = m or draw(st.integers(1, most)), n or draw(st.integers(1, most))
    dtype, kind = draw(st.sampled_from(dtypes)), draw(st.sampled_from(kinds))
    powers = [0, -2, 2] if dtype == torch.float16 else [0, -30, 30]
    scale = 10.0 ** draw(st.sampled_from(powers)) if scaled else 1.0
    return torch.tensor(fill(np.random.default_rng(draw(SEEDS)), m, n, kind) * scale, dtype=dtype)


@st.composite
def matrices_and_ranks(draw, **options):
    """Une matrice, et un rang qu'elle permet ; 1 et le rang plein, souvent."""
    W = draw(matrices(**options))
    p = min(W.shape)
    return W, draw(st.sampled_from([1, p]) | st.integers(1, p))


@st.composite
def batches(draw, width, dtype=torch.float32):
    """Des entrées (..., width) : un vecteur, un lot, un lot de lots, un lot vide."""
    shape = draw(st.sampled_from([(), (1,), (5,), (2, 3), (0,), (3, 0), (2, 1, 4)]))
    return torch.tensor(np.random.default_rng(draw(SEEDS)).standard_normal((*shape, width)), dtype=dtype)


@st.composite
def linears(draw, most=10, dtypes=(*HALVES, *FLOATS), m=None, n=None, scaled=True, kinds=KINDS):
    """Une nn.Linear, avec ou sans biais."""
    W = draw(matrices(most, dtypes, kinds, scaled, m, n))
    layer = nn.Linear(W.shape[1], W.shape[0], draw(st.booleans()), dtype=W.dtype)
    layer.weight.data = W
    return layer


@st.composite
def quantizers(draw, shape=None, n_bits=None, symmetric=None, signed=None):
    """Un quantificateur ; avec `shape`, d'une granularité qui découpe ce tenseur."""
    granularities = [lrq.PerTensor()]
    if shape:
        granularities += [lrq.PerChannel(draw(st.integers(-len(shape), len(shape) - 1)))]
        granularities += [lrq.PerGroup(draw(st.sampled_from([d for d in (1, 2, 3, 4, 8) if shape[-1] % d == 0])))]
    return lrq.UniformQuantizer(
        draw(st.integers(1, 8)) if n_bits is None else n_bits,
        draw(st.booleans()) if symmetric is None else symmetric,
        draw(st.booleans()) if signed is None else signed,
        draw(st.sampled_from(granularities)),
        draw(st.sampled_from(["min_max", "percentile", "mse"])),
        draw(st.sampled_from([50.0, 99.0, 100.0])),
        draw(st.sampled_from([None, torch.bfloat16])),
    )


def exact(t):
    """Un tenseur en float64, par NumPy."""
    return t.detach().double().numpy()


def norm(t):
    """Norme de Frobenius, rapportée au plus grand coefficient : ni 10^−30 ni 10^30 ne la trompent."""
    a = np.abs(exact(t) if isinstance(t, torch.Tensor) else t)
    largest = a.max(initial=0.0)
    return largest * np.sqrt(((a / largest) ** 2).sum()) if largest > 0 else 0.0


def gap(found, expected):
    """‖trouvé − attendu‖/‖attendu‖ ; 0 si les deux sont nuls."""
    found, expected = (exact(t) if isinstance(t, torch.Tensor) else t for t in (found, expected))
    assert found.shape == expected.shape
    error, size = norm(found - expected), norm(expected)
    return error / size if size else (0.0 if error == 0 else math.inf)


def dropped(W, rank):
    """L'erreur relative d'Eckart–Young, par NumPy."""
    S = np.linalg.svd(exact(W) if isinstance(W, torch.Tensor) else W, compute_uv=False)
    return norm(S[rank:]) / norm(S) if norm(S) else 0.0


@contextmanager
def untouched(*things, draws=False):
    """Rien de ce qu'on donne à lrq ne change, ni le générateur global de NumPy ou, sauf si `draws`, de PyTorch."""

    def picture(thing):
        if isinstance(thing, nn.Module):
            return [(name, t.clone(), t.requires_grad) for name, t in thing.state_dict(keep_vars=True).items()]
        return [("", t.clone(), t.requires_grad) for t in ([thing] if isinstance(thing, torch.Tensor) else thing)]

    before, state, numbers = (
        list(map(picture, things)),
        torch.get_rng_state(),
        np.random.mtrand._rand.get_state()[1].copy(),
    )
    yield
    assert draws or torch.equal(state, torch.get_rng_state()), "le générateur de PyTorch a bougé"
    assert np.array_equal(numbers, np.random.mtrand._rand.get_state()[1]), "le générateur de NumPy a bougé"
    for kept, after in zip(before, map(picture, things), strict=True):
        assert [name for name, _, _ in kept] == [name for name, _, _ in after]
        for (name, t, grad), (_, now, grad_now) in zip(kept, after, strict=True):
            assert torch.equal(t, now), f"{name or 'une entrée'} a changé"
            assert grad == grad_now


# --- SVD, énergie, rangs ----------------------------------------------------------------------------------------------


@prop(instance=matrices_and_ranks(), seed=SEEDS)
def test_no_matrix_of_rank_r_does_better_than_the_truncated_svd(instance, seed):
    (W, rank), rng = instance, np.random.default_rng(seed)
    with untouched(W):
        U, S, Vh = lrq.truncated_svd(W, rank)
        A, B = lrq.balanced_factors(W, rank)
        triplet = lrq.efficient_truncated_svd(W, rank)
    assert U.dtype == A.dtype == W.dtype
    assert all(torch.equal(*pair) for pair in zip(triplet, (U, S, Vh), strict=True))
    best, slack = dropped(W, rank), 30 * PRECISION[W.dtype]
    assert gap(exact(U) * exact(S) @ exact(Vh), exact(W)) == pytest.approx(best, abs=slack)
    assert gap(exact(A) @ exact(B).T, exact(W)) == pytest.approx(best, abs=slack)
    assert norm(A) == pytest.approx(norm(B), rel=slack)  # équilibrés
    for _ in range(5):  # la meilleure matrice de rang r dont les colonnes sont dans un espace tiré au hasard
        Q = np.linalg.qr(rng.standard_normal((len(W), rank)))[0]
        assert gap(Q @ (Q.T @ exact(W)), exact(W)) >= best - slack


@prop(W=matrices(), share=st.floats(1e-3, 1))
def test_energies_and_ranks_are_those_of_the_formulas(W, share):
    with untouched(W):
        S = lrq.singular_values(W)
        rank, kept = lrq.rank_for_error(S, share), lrq.rank_for_energy(S, share)
        told = lrq.LowRankAnalysis.analyze_weight_matrix(W, share)
        rows = lrq.analyze_svd_approximation_error(W)
        found = lrq.find_optimal_rank(W, target_error=share), lrq.energy_analysis(W, share)
    sigma = np.linalg.svd(exact(W.to(S.dtype)), compute_uv=False)
    assert np.abs(exact(S) - sigma).max() <= 20 * PRECISION[S.dtype] * sigma[0]
    sigma = exact(S) / (exact(S)[0] or 1.0)
    energy = (sigma**2).cumsum()
    total = energy[-1] or 1.0
    errors = np.sqrt(np.maximum(0, np.append((sigma**2)[::-1].cumsum()[::-1][1:], 0)) / total)
    assert exact(lrq.truncation_errors(S)) == pytest.approx(errors, abs=1e-12)
    whole = energy / total if energy[-1] else np.ones_like(energy)
    assert exact(lrq.cumulative_energy(S)) == pytest.approx(whole, abs=1e-12)
    assert [row["error"] for row in rows] == pytest.approx(errors, abs=1e-12)
    assert [row["energy"] for row in rows] == pytest.approx(1 - errors**2 if energy[-1] else whole, abs=1e-12)
    # minimaux : le rang trouvé tient, celui d'avant non (à l'arrondi d'une égalité près)
    assert errors[rank - 1] <= share + 1e-12
    assert rank == 1 or errors[rank - 2] > share - 1e-12
    assert whole[kept - 1] >= share - 1e-12
    assert kept == 1 or whole[kept - 2] < share + 1e-12
    assert (told["effective_rank"], *found) == (kept, rank, kept)
    m, n = W.shape
    assert told["compression_ratio"] == pytest.approx(m * n / (kept * (m + n)))
    assert told["break_even_rank"] == lrq.break_even_rank(m, n) == pytest.approx(1 / (1 / m + 1 / n))
    p = sigma / sigma.sum() if energy[-1] else sigma[:0]
    entropy = math.exp(-sum(x * math.log(x) for x in p if x > 0)) if energy[-1] else 0.0
    assert lrq.entropy_rank(S) == pytest.approx(entropy, abs=1e-9)
    assert lrq.stable_rank(S) == pytest.approx(energy[-1], abs=1e-9)


@prop(instance=matrices_and_ranks())
def test_predicted_errors_are_the_measured_ones(instance):
    W, rank = instance
    with untouched(W):
        told = lrq.ApproximationErrorAnalysis.svd_reconstruction_error(W, rank)
        rows = lrq.ApproximationErrorAnalysis.analyze_error_vs_rank(W)
    eps = PRECISION[told["singular_values"].dtype]
    assert told["empirical_relative"] == pytest.approx(told["theoretical_relative"], abs=30 * eps)
    assert told["theoretical_relative"] == pytest.approx(dropped(W, rank), abs=30 * eps)
    assert told["theoretical_relative"] == pytest.approx(rows[rank - 1]["relative_error"], abs=30 * eps)
    size = norm(W)
    assert told["empirical_frobenius"] == pytest.approx(told["empirical_relative"] * size, rel=1e-5)
    assert told["empirical_spectral"] == pytest.approx(told["theoretical_spectral"], abs=30 * eps * size)


def sketch_condition(n, seed, dtype):
    """Le conditionnement des vecteurs gaussiens que tire ``torch.svd_lowrank`` quand il en tire autant que W en a."""
    torch.manual_seed(seed)
    return float(torch.linalg.cond(torch.randn(n, n, dtype=dtype).double()))


@prop(
    instance=matrices_and_ranks(most=40),
    oversample=st.integers(0, 12),
    n_iter=st.integers(0, 3),
    seed=st.integers(0, 99),
    target=st.floats(0.01, 1),
)
def test_randomized_svds_tell_the_error_they_make(instance, oversample, n_iter, seed, target):
    W, rank = instance
    with untouched(W):
        svd = lrq.approximate_svd_large(W, rank, oversample, n_iter, seed)
        again = lrq.approximate_svd_large(W, rank, oversample, n_iter, seed)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            enough = lrq.adaptive_svd(W, target, oversample, n_iter, seed)
        measured = lrq.low_rank_error(W, *svd)
        quick = lrq.efficient_truncated_svd(W, rank, "randomized")
    assert all(torch.equal(*pair) for pair in zip(svd, again, strict=True))
    assert isinstance(svd, lrq.ApproximateSVD)
    usual = lrq.approximate_svd_large(W, rank)
    assert all(torch.equal(*pair) for pair in zip(quick, usual, strict=True))
    assert {t.dtype for t in quick} == {W.dtype}
    eps = PRECISION[W.dtype]
    for found in (svd, enough):
        error = gap(exact(found.U) * exact(found.S) @ exact(found.Vh), exact(W))
        assert found.error == pytest.approx(error, abs=30 * PRECISION[torch.float32 if eps > 1e-10 else W.dtype])
        assert found.error >= dropped(W, len(found.S)) - 30 * eps
    assert measured == pytest.approx(svd.error, abs=30 * eps)
    assert enough.error <= target or told
    if rank + oversample >= min(W.shape):  # tout l'espace est vu : rien n'est perdu
        worst = 1.0 if n_iter else sketch_condition(min(W.shape), seed, W.dtype)
        assert svd.error == pytest.approx(dropped(W, rank), abs=50 * eps * worst)
    if min(W.shape) >= 2 and oversample >= 2:
        formula = math.sqrt(2 + rank / (oversample - 1)) * dropped(W, rank)
        assert lrq.halko_bound(lrq.singular_values(W), rank, oversample) == pytest.approx(formula, abs=100 * eps)


@prop(W=matrices(dtypes=FLOATS), noise=st.floats(0.01, 10), power=st.integers(-40, 40))
def test_noise_thresholds_follow_the_scale_and_their_order(W, noise, power):
    (m, n), S = W.shape, lrq.singular_values(W)
    scale, unit = 2.0**power, noise * float(S[0] or 1.0) / math.sqrt(max(m, n))
    kept = lrq.gavish_donoho_rank(S, m, n, unit)
    above = lrq.marchenko_pastur_rank(S, m, n, unit)
    assert 0 <= kept <= above <= min(m, n)  # débruiter demande plus que dépasser du bruit
    edge = unit * (math.sqrt(m) + math.sqrt(n))
    assert abs(above - int((exact(S) > edge).sum())) <= int((np.abs(exact(S) / edge - 1) < 1e-9).sum())
    assert lrq.marchenko_pastur_edge(m, n, unit * math.sqrt(m * n)) == pytest.approx(edge)
    for rank in (lrq.gavish_donoho_rank, lrq.marchenko_pastur_rank):
        assert rank(S.double() * scale, m, n, unit * scale) == rank(S.double(), m, n, unit)
        assert rank(S.double() * scale, m, n) == rank(S.double(), m, n)


# --- des budgets ------------------------------------------------------------------------------------------------------


@prop(data=st.data(), count=st.integers(1, 3), equal=st.booleans())
def test_ranks_share_a_budget_as_well_as_an_exhaustive_search(data, count, equal):
    shapes = {f"c{k}": (4, 3) if equal else data.draw(st.tuples(*[st.integers(1, 6)] * 2)) for k in range(count)}
    spectra = {
        name: lrq.singular_values(data.draw(matrices(dtypes=FLOATS, m=m, n=n))) for name, (m, n) in shapes.items()
    }
    costs, least = {name: sum(shape) for name, shape in shapes.items()}, sum(map(sum, shapes.values()))
    budget = data.draw(st.integers(least, 3 * least))
    ranks = lrq.allocate_ranks(spectra, shapes, budget)
    energies = {name: exact(S) ** 2 for name, S in spectra.items()}

    def energy(chosen):
        return sum(energies[name][:rank].sum() for name, rank in chosen.items())

    assert all(1 <= ranks[name] <= min(shapes[name]) for name in shapes)
    assert sum(ranks[name] * costs[name] for name in shapes) <= budget
    every = itertools.product(*(range(1, min(shape) + 1) for shape in shapes.values()))
    every = [dict(zip(shapes, chosen, strict=True)) for chosen in every]
    best = max(energy(each) for each in every if sum(each[name] * costs[name] for name in each) <= budget)
    one = max((energies[name][rank:].max(initial=0) for name, rank in ranks.items()), default=0)  # une composante
    assert energy(ranks) >= best - (0 if equal else one) - 1e-9 * best


@prop(data=st.data(), layers=st.integers(1, 4))
def test_a_budget_is_kept_and_spent_as_well_as_an_exhaustive_search(data, layers):
    option = st.tuples(st.integers(1, 30), st.floats(0, 100))
    options = {f"c{k}": data.draw(st.lists(option, min_size=1, max_size=5)) for k in range(layers)}
    least = sum(min(choices)[0] for choices in options.values())
    budget = data.draw(st.integers(least, least + 60))

    def total(chosen):
        return tuple(sum(options[name][i][k] for name, i in chosen.items()) for k in (0, 1))

    chosen, more = lrq.allocate_budget(options, budget), lrq.allocate_budget(options, budget + 7)
    (cost, loss), (_, less) = total(chosen), total(more)
    assert cost <= budget
    assert less <= loss + 1e-9  # plus de budget ne fait jamais perdre davantage
    every = itertools.product(*(range(len(choices)) for choices in options.values()))
    every = [total(dict(zip(options, each, strict=True))) for each in every]
    best = min(loss for cost, loss in every if cost <= budget)
    gains = [a[1] - b[1] for choices in options.values() for a in choices for b in choices]
    assert best - 1e-9 <= loss <= best + max(gains) + 1e-9  # à une amélioration près


@prop(W=matrices(dtypes=FLOATS), bits=st.floats(0, 12), seed=SEEDS)
def test_water_filling_is_the_optimum(W, bits, seed):
    S = lrq.singular_values(W)
    with untouched(S):
        error, allocation = lrq.water_filling(S, bits)
    given_bits, sigma = exact(allocation), exact(S) / (exact(S)[0] or 1.0)
    if not sigma.any():
        assert (error, given_bits.any()) == (0.0, False)
        return
    rate, energy = bits * len(S), sigma**2
    assert (given_bits >= 0).all()
    assert given_bits.sum() == pytest.approx(rate, abs=1e-6)

    def left(spent):
        return math.sqrt((energy * 2.0 ** (-2 * spent)).sum() / energy.sum())

    assert error == pytest.approx(left(given_bits), rel=1e-6, abs=1e-12)
    rng = np.random.default_rng(seed)
    for _ in range(5):  # aucun autre partage des mêmes bits ne fait mieux
        other = rng.dirichlet(np.ones(len(S)) * rng.choice([0.1, 1, 10])) * rate
        assert left(other) >= error - 1e-9
    theta = [0.0, float(energy.max())]  # le niveau de l'eau, par dichotomie
    for _ in range(200):
        level = sum(theta) / 2
        dry = energy > level
        theta[0 if level > 0 and (np.log2(energy[dry] / level) / 2).sum() > rate else 1] = level
    if bits:
        assert error == pytest.approx(math.sqrt(np.minimum(energy, theta[1]).sum() / energy.sum()), abs=1e-6)


# --- quantifier -------------------------------------------------------------------------------------------------------


@st.composite
def tensors(draw, **options):
    """Un tenseur de deux à quatre dimensions, aux mêmes extrêmes que les matrices."""
    W = draw(matrices(**options))
    m, n = W.shape
    return W.reshape(draw(st.sampled_from([(m, n), (1, m, n), (m, 1, n), (m, n, 1, 1)])))


def per_value(values, quantizer, t):
    """Une échelle ou un point zéro, répété pour chaque nombre de `t`, par NumPy."""
    values = exact(values)
    if isinstance(quantizer.granularity, lrq.PerGroup):
        values = values.repeat(quantizer.granularity.size, -1)
    return np.broadcast_to(values, t.shape)


@prop(data=st.data(), t=tensors())
def test_rounding_stays_within_half_a_step_on_the_grid(data, t):
    q = data.draw(quantizers(t.shape))
    with untouched(t):
        scale, zero_point = q.compute_scale_zero_point(t)
        codes = q.quantize(t, scale, zero_point)
        rounded = q.dequantize(codes, scale, zero_point)
        error = q.quantization_error(t)
    assert codes.dtype == (torch.int8 if q.signed else torch.uint8)
    whole, x = codes.long().numpy(), exact(t)
    assert whole.min() >= -(2 ** (q.n_bits - 1)) * q.signed
    assert whole.max() <= (1 if q.binary else 2 ** (q.n_bits - q.signed) - 1)
    step, zero = per_value(scale, q, t), per_value(zero_point, q, t)
    assert (step >= 0).all()
    eps = PRECISION[scale.dtype]
    assert np.allclose(exact(rounded), (whole - zero) * step, rtol=4 * eps, atol=0)
    inside = (whole > q.low) & (whole < q.high) & (not q.binary)
    far = 1e-30 if scale.dtype == torch.float32 else 1e-290  # un pas si petit que son inverse déborde rend zéro
    slack = 4 * eps * np.abs(x)
    assert (np.abs(exact(rounded) - x) <= step / 2 + slack)[inside & (step > far)].all()
    unclipped = q.clipping != "mse" and (q.clipping == "min_max" or q.percentile == 100) and q.scale_dtype is None
    if unclipped and not q.binary and (q.signed or not q.symmetric):  # la grille couvre tout
        assert (np.abs(exact(rounded) - x) <= step / 2 * (1 + 1e-3) + slack)[step > far].all()
    kept = q.quantize_dequantize(t)
    assert kept.dtype == t.dtype
    assert error == pytest.approx(gap(kept, t), rel=1e-6)


@prop(data=st.data(), t=tensors())
def test_rounding_is_idempotent_monotone_and_keeps_zero(data, t):
    q = data.draw(quantizers(t.shape))
    scale, zero_point = q.compute_scale_zero_point(t)
    codes = q.quantize(t, scale, zero_point)
    rounded = q.dequantize(codes, scale, zero_point)
    assert torch.equal(q.quantize(rounded, scale, zero_point), codes) or (scale < 1e-30).any()
    assert torch.equal(q.dequantize(q.quantize(rounded, scale, zero_point), scale, zero_point), rounded)
    flat = lrq.UniformQuantizer(q.n_bits, q.symmetric, q.signed, clipping=q.clipping, percentile=q.percentile)
    one = flat.compute_scale_zero_point(t)
    order = t.flatten().double().argsort()
    assert (flat.quantize(t.flatten(), *one)[order].long().diff() >= 0).all()
    if not q.binary:
        zeros = torch.zeros_like(t)
        assert not flat.dequantize(flat.quantize(zeros, *one), *one).any()
    codes, scale = lrq.quantize_symmetric(t, q.n_bits)
    plain = lrq.UniformQuantizer(q.n_bits)
    assert torch.equal(codes, plain.quantize(t))
    assert torch.equal(lrq.dequantize(codes, scale), plain.dequantize(codes, scale))


@prop(
    data=st.data(), t=tensors(dtypes=[torch.float32, torch.float64]), n_bits=st.integers(1, 8), symmetric=st.booleans()
)
def test_searched_grids_never_do_worse_than_the_widest(data, t, n_bits, symmetric):
    granularity = data.draw(quantizers(t.shape)).granularity
    make = functools.partial(lrq.UniformQuantizer, n_bits, symmetric, granularity=granularity)
    wide, searched = make().quantize_dequantize(t), make(clipping="mse").quantize_dequantize(t)
    assert norm(exact(searched) - exact(t)) <= norm(exact(wide) - exact(t)) * (1 + 1e-5)
    assert torch.equal(make(clipping="percentile", percentile=100.0).quantize_dequantize(t), wide)
    if n_bits == 1 and symmetric:  # ±Δ : aucun autre Δ ne fait mieux
        share = data.draw(st.floats(0, 3))
        assert norm(exact(wide * share) - exact(t)) >= norm(exact(wide) - exact(t)) * (1 - 1e-5)


@prop(data=st.data(), n_bits=st.integers(1, 8), signed=st.booleans())
def test_packed_codes_come_back_exactly(data, n_bits, signed):
    low = -(2 ** (n_bits - 1)) if signed else 0
    levels = [-1, 1] if signed and n_bits == 1 else range(low, low + 2**n_bits)
    shape = data.draw(st.sampled_from([(), (0,), (1,), (3, 5), (2, 0, 3), (7, 3), (2, 3, 4), (33,)]))
    size = math.prod(shape)
    drawn = data.draw(st.lists(st.sampled_from(levels), min_size=size, max_size=size))
    codes = torch.tensor(drawn, dtype=data.draw(st.sampled_from([torch.int16, torch.int64]))).reshape(shape)
    with untouched(codes):
        packed = lrq.pack_bits(codes, n_bits, signed)
        back = lrq.unpack_bits(packed, n_bits, shape, signed)
    assert packed.nbytes == math.ceil(size * n_bits / 8)
    assert back.dtype == (torch.int8 if signed else torch.uint8)
    assert back.shape == shape
    assert torch.equal(back.long(), codes.long())
    stream = "".join(f"{(code > 0 if levels == [-1, 1] else code % 2**n_bits):0{n_bits}b}"[::-1] for code in drawn)
    octets = [int(stream[i : i + 8][::-1], 2) for i in range(0, len(stream), 8)]  # le premier code, en bits faibles
    assert packed.tolist() == octets


@prop(data=st.data(), t=tensors())
def test_a_compressed_tensor_weighs_what_it_says_and_says_what_it_holds(data, t):
    q = data.draw(quantizers(t.shape))
    with untouched(t):
        stored = q.compress(t)
    assert isinstance(stored, lrq.QuantizedTensor)
    assert torch.equal(stored.codes(), q.quantize(t))
    assert torch.equal(stored.dequantize(), q.quantize_dequantize(t))
    assert stored.dequantize().dtype == t.dtype
    scales = math.prod(q.granularity.scale_shape(t.shape))
    each = 2 if q.scale_dtype else 8 if t.dtype == torch.float64 else 4
    size = math.ceil(t.numel() * q.n_bits / 8) + scales * (each + (not q.symmetric))
    assert stored.nbytes() == lrq.stored_bytes(stored) == size


@prop(data=st.data(), x=matrices(most=12), n_bits=st.integers(1, 8))
def test_activations_are_counted_whatever_their_order_and_rounded_within_half_a_step(data, x, n_bits):
    cut = data.draw(st.integers(0, len(x)))
    order = torch.tensor(data.draw(st.permutations(range(len(x)))))
    one, two = lrq.ActivationHistogram(64), lrq.ActivationHistogram(64)
    with untouched(x):
        one.update(x)
        for part in (x[order][:cut], x[order][cut:]):  # un lot vide ne change rien
            two.update(part)
    assert torch.equal(one.counts, two.counts)
    assert (one.low, one.high, one.zeros, one.exponent) == (two.low, two.high, two.zeros, two.exponent)
    assert one.count == x.numel()
    low, high = float(x.min()), float(x.max())
    assert one.range("min_max") == (min(low, 0), max(high, 0))
    for method in ("percentile", "mse", "entropy"):
        bounds = one.range(method, n_bits, 90.0)
        assert min(low, 0) <= bounds[0] <= 0 <= bounds[1] <= max(high, 0)
    low, high = one.range()
    if max(-low, high) < 3e38:
        layer = lrq.ActivationQuantizer(n_bits, low, high)
        rounded = layer(x)
        assert rounded.dtype == x.dtype
        assert torch.equal(layer(rounded), rounded) or x.dtype in HALVES
        if (step := float(layer.scale)) > 1e-30:
            within = step / 2 + 4 * (PRECISION[x.dtype] + 1e-7) * max(-low, high)
            assert np.abs(exact(rounded) - exact(x)).max() <= within
        assert layer(x[:0]).shape == x[:0].shape


# --- les couches ------------------------------------------------------------------------------------------------------

LOW_RANK = ["SVDCompressedLinear", "FactorizedLinear", "TruncatedSVDLinear", "CompactSVDLinear"]
PACKED = ["QuantizedLowRankLayer", "QuantizedLowRankLinear", "QuantizedLinear", "QuantizedResidualLinear"]
CHAINS = ["TTLinear", "QATTTLinear", "QuantizedTTLinear"]


@st.composite
def cuts(draw, d=None):
    """Des dimensions d'entrée et de sortie, d de chaque côté, des uns compris."""
    d = d or draw(st.integers(2, 4))
    return tuple(draw(st.lists(st.integers(1, 3), min_size=d, max_size=d)) for _ in range(2))


@st.composite
def compressed(draw, dtypes=(*HALVES, *FLOATS)):
    """Une nn.Linear et sa version comprimée, de n'importe quelle classe, aux réglages tirés au hasard."""
    name = draw(st.sampled_from([*LOW_RANK, *PACKED, *CHAINS, "QATLowRankLinear", "MultiStageFactorizedLinear"]))
    bits, symmetric = draw(st.integers(2, 8)), {"n_bits": draw(st.integers(1, 8)), "symmetric": True, "signed": True}
    learned = draw(st.booleans())
    if name in CHAINS:
        inputs, outputs = draw(cuts())
        linear = draw(linears(dtypes=dtypes, m=math.prod(outputs), n=math.prod(inputs)))
        options = {
            "TTLinear": {"cache": learned},
            "QATTTLinear": {"n_bits": bits, "learned_step": learned},
            "QuantizedTTLinear": {"n_bits": symmetric["n_bits"], "gauge": draw(st.sampled_from(GAUGES))},
        }[name]
        rank = draw(st.integers(1, 6))
        return linear, getattr(lrq, name).from_linear(linear, inputs, outputs, rank, **options)
    linear = draw(linears(dtypes=dtypes))
    m, n = linear.weight.shape
    rank = draw(st.integers(1, min(m, n)))
    if name == "MultiStageFactorizedLinear":
        ranks = draw(st.lists(st.integers(1, min(m, n)), min_size=1, max_size=3))
        return linear, lrq.MultiStageFactorizedLinear.from_linear(linear, ranks)
    if name == "QuantizedLinear":
        q = draw(quantizers((m, n)))
        return linear, lrq.QuantizedLinear.from_linear(linear, quantizer=q)
    if name == "QuantizedResidualLinear":
        granularity = lrq.PerGroup(draw(st.sampled_from([d for d in (1, 2, 3, 4, 5, 7) if n % d == 0])))
        factors = draw(st.sampled_from([None, 4, 8]))
        options = {"granularity": granularity, "factor_bits": factors, "rotate": learned and factors is not None}
        return linear, lrq.QuantizedResidualLinear.from_linear(linear, rank, bits, **options)
    options = {"learned_step": learned} if "QAT" in name else {"rotate": learned} if name in PACKED else {}
    bits = (bits,) if name in PACKED or "QAT" in name else ()
    return linear, getattr(lrq, name).from_linear(linear, rank, *bits, **options)


GAUGES = ["orthogonal", "balanced", "rotated"]


@prop(data=st.data(), pair=compressed())
def test_every_layer_computes_with_the_weight_it_reconstructs(data, pair):
    linear, layer = pair
    x = data.draw(batches(linear.in_features, linear.weight.dtype))
    with untouched(x, linear, layer):
        y, W = layer(x), layer.reconstruct_weight()
        bare = layer(x[..., :0, :]) if x.ndim > 1 else None
    assert y.dtype == W.dtype == layer.dtype == linear.weight.dtype
    assert W.shape == linear.weight.shape
    assert y.shape == (*x.shape[:-1], linear.out_features)
    assert bare is None or bare.shape == (*x.shape[:-2], 0, linear.out_features)
    bias = 0.0 if linear.bias is None else exact(linear.bias)
    expected = exact(x) @ exact(W).T + bias
    size = norm(np.abs(exact(x)) @ np.abs(exact(W)).T + np.abs(bias)) + 1e-30
    slack = {"TTLinear": 8, "QATTTLinear": 8, "QuantizedTTLinear": 8}.get(type(layer).__name__, 4)
    assert norm(exact(y) - expected) <= slack * 8 * PRECISION[x.dtype] * max(size, norm(exact(x)) * norm(linear.weight))
    assert (layer.bias is None) == (linear.bias is None)
    if linear.bias is not None:
        assert torch.equal(layer.bias, linear.bias)
        assert layer.bias is not linear.bias
        assert layer.bias.data_ptr() != linear.bias.data_ptr()
    assert layer.dense_parameters() == linear.weight.numel()
    assert layer.reconstruction_error(linear.weight) == pytest.approx(gap(W, linear.weight), rel=1e-6)


@prop(pair=compressed(), data=st.data())
def test_files_hold_what_a_layer_weighs_and_bring_it_back_exactly(pair, data):
    linear, layer = pair
    network, plain = nn.Sequential(layer, nn.ReLU()).eval(), nn.Sequential(linear, nn.ReLU())
    x = data.draw(batches(linear.in_features, linear.weight.dtype))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "poids.safetensors")
        with untouched(network, plain, x):
            lrq.save_weights(network, path)
            again = lrq.load_compressed(plain, path)
        header = int.from_bytes(path.read_bytes()[:8], "little")
        stored = path.stat().st_size - 8 - header
        other = data.draw(st.sampled_from([again, lrq.load_compressed(again_blank(plain), path)]))
        assert lrq.load_weights(other, path) is other
    assert stored == layer.nbytes() == lrq.stored_bytes(layer)
    assert type(again[0]) is type(layer)
    assert again[0].dtype == layer.dtype
    for name, t in layer.state_dict().items():
        assert torch.equal(t, again[0].state_dict()[name])
        assert t.dtype == again[0].state_dict()[name].dtype
    assert torch.equal(network(x), again(x))
    assert torch.equal(network(x), other(x))
    assert layer.count_parameters() == again[0].count_parameters() > 0
    assert layer.compression_ratio() == again[0].compression_ratio() > 0


def again_blank(network):
    """Le même réseau, aux poids quelconques."""
    return nn.Sequential(nn.Linear(network[0].in_features, network[0].out_features, network[0].bias is not None,
                                   dtype=network[0].weight.dtype), nn.ReLU())  # fmt: skip


@prop(data=st.data(), name=st.sampled_from(LOW_RANK), dtype=st.sampled_from(FLOATS), seed=SEEDS)
def test_a_layer_of_rank_r_is_the_best_one_for_weights_or_for_outputs(data, name, dtype, seed):
    linear, rng = data.draw(linears(dtypes=[dtype])), np.random.default_rng(seed)
    W, cls = exact(linear.weight), getattr(lrq, name)
    m, n = W.shape
    rank = data.draw(st.integers(1, min(m, n)))
    X = torch.tensor(rng.standard_normal((3 * n, n)) * rng.exponential(1, n), dtype=dtype)
    with untouched(linear, X):
        plain, aware = cls.from_linear(linear, rank), cls.from_linear(linear, rank, X)
        factors = lrq.activation_aware_svd(linear.weight, rank, lrq.Calibration.from_inputs(X))
    slack = 50 * PRECISION[dtype]
    assert plain.reconstruction_error(linear.weight) == pytest.approx(dropped(W, rank), abs=slack)
    outputs = exact(X) @ W.T
    found = gap(exact(X) @ exact(aware.reconstruct_weight()).T, outputs)
    assert found == pytest.approx(dropped(outputs, rank), abs=slack)  # Eckart–Young, sur les sorties
    assert found <= gap(exact(X) @ exact(plain.reconstruct_weight()).T, outputs) + slack
    U, S, Vh = map(exact, factors)
    assert gap(U * S @ Vh, exact(aware.reconstruct_weight())) <= slack
    assert torch.equal(cls.from_weight_matrix(linear.weight, rank).reconstruct_weight(), plain.reconstruct_weight())
    assert plain.count_parameters() == rank * (m + n) + (rank if name == "TruncatedSVDLinear" else 0)
    assert plain.compression_ratio() == m * n / plain.count_parameters()
    assert cls(n, m, rank)(torch.randn(2, n)).shape == (2, m)
    told = lrq.compare_factorized_vs_standard(n, m, rank, 4, linear)
    x = torch.randn(4, n, generator=torch.Generator().manual_seed(0)).to(dtype)
    linear_y, low_rank = linear(x), lrq.FactorizedLinear.from_linear_svd(linear, rank)
    assert told["error"] == pytest.approx(gap(low_rank(x), linear_y), abs=slack)
    assert lrq.FactorizedLinear.from_linear_random(linear, rank).bias is not linear.bias or linear.bias is None


@st.composite
def convs(draw, dtypes=(*HALVES, *FLOATS)):
    """Une convolution : groupes, pas, marge, dilatation, noyau non carré, bords, biais ou non ; et des images."""
    groups = draw(st.integers(1, 3))
    channels = [groups * draw(st.integers(1, 3)) for _ in range(2)]
    kernel, stride, dilation = (draw(st.tuples(*[st.integers(1, 3)] * 2)) for _ in range(3))
    padding = draw(st.tuples(*[st.integers(0, 2)] * 2))
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    options = {"groups": groups, "stride": stride, "padding": padding, "dilation": dilation, "padding_mode": mode}
    # en bfloat16, sur processeur, PyTorch 2.13 lit parfois de la mémoire jamais écrite (groupes, pas et dilatation)
    dtype = draw(st.sampled_from([dtype for dtype in dtypes if dtype != torch.bfloat16]))
    conv = nn.Conv2d(*channels, kernel, bias=draw(st.booleans()), dtype=dtype, **options)
    shape = draw(st.sampled_from([(2,), (1,), ()] + [(0,)] * (mode == "zeros")))
    sides = [draw(st.integers(max(3, d * (k - 1) + 1), 9)) for d, k in zip(dilation, kernel, strict=True)]
    x = torch.tensor(np.random.default_rng(draw(SEEDS)).standard_normal((*shape, channels[0], *sides)), dtype=dtype)
    return conv, x


@prop(data=st.data(), drawn=convs())
def test_compressed_convolutions_are_convolutions_with_the_kernels_they_reconstruct(data, drawn):
    conv, x = drawn
    matrix = conv.weight.flatten(1).chunk(conv.groups)
    full = min(matrix[0].shape)
    rank = data.draw(st.integers(1, full))
    q = data.draw(quantizers(conv.weight.shape))
    with untouched(conv, x):
        layers = [lrq.SVDConv2d.from_conv2d(conv, rank), lrq.QuantizedConv2d.from_conv2d(conv, quantizer=q)]
        found = [layer(x) for layer in layers]
    for layer, y in zip(layers, found, strict=True):
        W = layer.reconstruct_weight()
        assert W.shape == conv.weight.shape
        with torch.no_grad():
            oracle = nn.Conv2d(**{name: getattr(conv, name) for name in CONV}, bias=conv.bias is not None).double()
            oracle.weight.copy_(W)
            if conv.bias is not None:
                oracle.bias.copy_(conv.bias)
            expected = oracle(x.double())
        assert y.dtype == x.dtype
        assert norm(exact(y) - exact(expected)) <= 60 * PRECISION[x.dtype] * (
            norm(expected) + norm(x) * norm(conv.weight)
        )
        assert layer.nbytes() == lrq.stored_bytes(layer)
        assert layer.dense_parameters() == conv.weight.numel()
        assert layer.reconstruction_error(conv.weight) == pytest.approx(gap(W, conv.weight), rel=1e-6)
    error = math.sqrt(sum((dropped(block, rank) * norm(block)) ** 2 for block in matrix)) / norm(conv.weight)
    assert layers[0].reconstruction_error(conv.weight) == pytest.approx(error, abs=30 * PRECISION[x.dtype])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "poids.safetensors")
        lrq.save_weights(nn.Sequential(*layers[:1]), path)
        again = lrq.load_compressed(nn.Sequential(conv), path)
        assert torch.equal(again(x), layers[0](x))
        lrq.save_weights(nn.Sequential(layers[1]), path)
        assert torch.equal(lrq.load_compressed(nn.Sequential(conv), path)(x), found[1])


CONV = ["in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"]


@prop(data=st.data(), table=matrices())
def test_quantized_embeddings_are_rows_of_the_table_they_reconstruct(data, table):
    embedding = nn.Embedding.from_pretrained(table)
    q = data.draw(quantizers(table.shape))
    with untouched(embedding):
        layer = lrq.QuantizedEmbedding.from_embedding(embedding, quantizer=q)
    shape = data.draw(st.sampled_from([(), (3,), (0,), (2, 2), (2, 0), (30,)]))
    size = math.prod(shape)
    ids = data.draw(st.lists(st.integers(0, len(table) - 1), min_size=size, max_size=size))
    ids = torch.tensor(ids, dtype=data.draw(st.sampled_from([torch.int32, torch.int64]))).reshape(shape)
    W = layer.reconstruct_weight()
    assert torch.equal(W, q.quantize_dequantize(table))
    assert torch.equal(layer(ids), W[ids.long()])
    assert layer(ids).dtype == table.dtype
    assert layer.nbytes() == q.compress(table).nbytes()


# --- trains de tenseurs, Tucker, jauge --------------------------------------------------------------------------------


@st.composite
def arrays(draw, least=2, most=4, dtypes=(*HALVES, *FLOATS), size=4):
    """Un tenseur d'ordre 2 à 4, aux mêmes extrêmes que les matrices."""
    shape = draw(st.lists(st.integers(1, size), min_size=least, max_size=most))
    return draw(matrices(dtypes=dtypes, m=shape[0], n=math.prod(shape[1:]))).reshape(shape)


@st.composite
def chains(draw, order=None, dtypes=FLOATS, scaled=True):
    """Des cœurs, dont les rangs dépassent parfois ce que permettent les dimensions ; certains liens sont inutiles."""
    d = draw(st.integers(1, 4))
    order = order or draw(st.sampled_from([3, 4]))
    bonds, dtype = [1, *(draw(st.integers(1, 4)) for _ in range(d - 1)), 1], draw(st.sampled_from(dtypes))
    shapes = [(bonds[k], *draw(st.tuples(*[st.integers(1, 3)] * (order - 2))), bonds[k + 1]) for k in range(d)]
    rng, kind = np.random.default_rng(draw(SEEDS)), draw(st.sampled_from(KINDS))
    scale = 10.0 ** (draw(st.sampled_from([0, -30, 30])) / d) if scaled else 1.0
    return [torch.tensor(fill(rng, s[0], math.prod(s[1:]), kind).reshape(s) * scale, dtype=dtype) for s in shapes]


def contract(cores):
    """Le tenseur d'une chaîne, par NumPy, indice après indice."""
    whole = np.ones(1)
    for core in map(exact, cores):
        whole = np.tensordot(whole, core, 1)
    return whole[..., 0]


def cores_precision(cores):
    """Ce que l'arrondi de la chaîne peut coûter, rapporté aux cœurs : leurs produits peuvent se compenser."""
    return 60 * PRECISION[cores[0].dtype] * math.prod(map(norm, cores))


def bonds_of(T, ranks):
    """L'erreur de la SVD de chaque dépliement au rang du lien, par NumPy."""
    return [dropped(exact(T).reshape(math.prod(T.shape[:k]), -1), r) for k, r in enumerate(ranks, 1)]


@prop(data=st.data(), T=arrays(), error=st.floats(1e-3, 1))
def test_tt_svd_keeps_its_bound_and_its_error(data, T, error):
    rank = data.draw(st.integers(1, 9) | st.lists(st.integers(1, 9), min_size=T.ndim - 1, max_size=T.ndim - 1))
    with untouched(T):
        cores, asked = lrq.tt_svd(T, rank), lrq.tt_svd(T, error=error)
        unfolded = lrq.unfoldings(T)
    slack = 60 * PRECISION[T.dtype]
    for k, matrix in enumerate(unfolded, 1):
        assert np.array_equal(exact(matrix), exact(T).reshape(math.prod(T.shape[:k]), -1))
    for found in (cores, asked):
        assert [core.dtype for core in found] == [T.dtype] * T.ndim
        assert [core.shape[1] for core in found] == list(T.shape)
        assert gap(lrq.tt_contract(found), contract(found)) <= slack
        for core in found[:-1]:
            G = exact(core).reshape(-1, core.shape[-1])
            assert np.abs(G.T @ G - np.eye(G.shape[1])).max() <= slack
    ranks = lrq.tt_ranks(cores)
    assert all(
        r <= asked for r, asked in zip(ranks, rank if isinstance(rank, list) else [rank] * len(ranks), strict=True)
    )
    parts, measured = bonds_of(T, ranks), gap(contract(cores), exact(T))
    assert max(parts) - slack <= measured <= math.sqrt(sum(part**2 for part in parts)) + slack
    assert measured <= math.sqrt(T.ndim - 1) * max(parts) + slack
    assert gap(contract(asked), exact(T)) <= error + slack


@prop(data=st.data(), cores=chains(), error=st.floats(1e-3, 1))
def test_tt_rounding_keeps_the_promised_error(data, cores, error):
    assume(len(cores) > 1)
    with untouched(*cores):
        asked, same = lrq.tt_round(cores, error=error), lrq.tt_round(cores, 99)
        fewer = lrq.tt_round(cores, 1)
    T, slack = contract(cores), cores_precision(cores)
    assert norm(contract(asked) - T) <= error * norm(T) + slack
    assert norm(contract(same) - T) <= slack
    assert lrq.tt_ranks(fewer) == [1] * (len(cores) - 1)
    assert all(a <= b for a, b in zip(lrq.tt_ranks(asked), lrq.tt_ranks(same), strict=True))
    parts = [dropped(T.reshape(math.prod(T.shape[: k * (cores[0].ndim - 2)]), -1), 1) for k in range(1, len(cores))]
    assert norm(contract(fewer) - T) <= math.sqrt(sum(part**2 for part in parts)) * norm(T) + slack


@prop(data=st.data(), cores=chains())
def test_no_gauge_changes_the_tensor(data, cores):
    centre = data.draw(st.integers(0, len(cores) - 1))
    gauge = data.draw(st.sampled_from(GAUGES))
    with untouched(*cores):
        found = {
            "centre": lrq.tt_orthogonalize(cores, centre),
            "équilibre": lrq.balance_cores(cores),
            "rotation": lrq.rotate_cores(cores),
            "jauge": lrq.regauge(cores, gauge),
        }
    T, slack = contract(cores), cores_precision(cores)
    for which, chain in found.items():
        assert norm(contract(chain) - T) <= slack, which
        assert {core.dtype for core in chain} == {cores[0].dtype}
    eps = 60 * PRECISION[cores[0].dtype]
    for k, core in enumerate(map(exact, found["centre"])):
        G = core.reshape(-1, core.shape[-1]) if k < centre else core.reshape(len(core), -1).T
        assert k == centre or np.abs(G.T @ G - np.eye(G.shape[1])).max() <= eps
    noisy = [core + 1e-3 * core.abs().max() * torch.randn_like(core) for core in cores]
    bound = lrq.core_noise_bound(cores, noisy)
    assert norm(contract(noisy) - T) <= bound * (1 + 1e-9)


@prop(data=st.data(), drawn=cuts(), error=st.floats(1e-3, 1))
def test_a_matrix_in_a_train_multiplies_as_the_dense_one(data, drawn, error):
    inputs, outputs = drawn
    W = data.draw(matrices(dtypes=FLOATS, m=math.prod(outputs), n=math.prod(inputs)))
    x = data.draw(batches(W.shape[1], W.dtype))
    with untouched(W, x):
        cores = lrq.tt_matrix_svd(W, inputs, outputs, error=error)
        dense, y = lrq.tt_matrix_contract(cores), lrq.tt_product(x, cores)
    d, slack = len(inputs), 60 * PRECISION[W.dtype]
    whole = contract(cores).transpose([*range(1, 2 * d, 2), *range(0, 2 * d, 2)])  # (out₁ …, in₁ …)
    assert gap(dense, whole.reshape(W.shape)) <= slack
    assert gap(dense, W) <= error + slack
    assert y.shape == (*x.shape[:-1], len(W))
    assert norm(exact(y) - exact(x) @ exact(dense).T) <= slack * norm(x) * norm(W) + 1e-300
    assert torch.equal(lrq.TTLinear.from_cores(cores)(x), y)


@prop(data=st.data(), T=arrays(dtypes=(*HALVES, *FLOATS)))
def test_tucker_keeps_its_bound(data, T):
    rank = data.draw(st.integers(1, 5) | st.lists(st.integers(1, 5), min_size=T.ndim, max_size=T.ndim))
    with untouched(T):
        core, factors = lrq.tucker(T, rank, data.draw(st.sampled_from([0, 20])))
    slack = 100 * PRECISION[T.dtype]
    assert core.dtype == T.dtype
    for U in map(exact, factors):
        assert np.abs(U.T @ U - np.eye(U.shape[1])).max() <= slack
    found, parts = lrq.tucker_contract(core, factors), []
    letters = "abcdefgh"[: T.ndim]
    spec = ",".join([letters, *(f"{a.upper()}{a}" for a in letters)]) + "->" + letters.upper()
    assert gap(found, np.einsum(spec, exact(core), *map(exact, factors))) <= slack
    for k, r in enumerate(core.shape):
        parts.append(dropped(np.moveaxis(exact(T), k, 0).reshape(T.shape[k], -1), r))
    measured = gap(found, T)
    assert max(parts) - slack <= measured <= math.sqrt(sum(part**2 for part in parts)) + slack
    with untouched(core, *factors):
        turned = lrq.rotate_tucker(core, factors)
    assert gap(lrq.tucker_contract(*turned), found) <= slack


@prop(data=st.data(), W=matrices(dtypes=FLOATS), seed=SEEDS)
def test_a_gauge_never_changes_the_product_and_the_balanced_one_is_the_smallest(data, W, seed):
    r, rng = data.draw(st.integers(1, min(W.shape))), np.random.default_rng(seed)
    U, V = (torch.tensor(fill(rng, size, r, data.draw(st.sampled_from(KINDS))), dtype=W.dtype) for size in W.shape)
    U = U * float(W.abs().max())
    product, slack = exact(U) @ exact(V).T, 60 * PRECISION[W.dtype] * norm(U) * norm(V)
    with untouched(U, V):
        balanced, rotated = lrq.balance_factors(U, V), lrq.rotate_factors(U, V)
    for A, B in (balanced, rotated):
        assert norm(exact(A) @ exact(B).T - product) <= slack
    A, B = map(exact, balanced)
    assert np.abs(A.T @ A - B.T @ B).max() <= slack
    sigma = np.linalg.svd(product, compute_uv=False).sum()
    assert norm(A) * norm(B) == pytest.approx(sigma, abs=10 * slack)  # le plus petit possible, sur toutes les jauges
    R = rng.standard_normal((r, r)) + 3 * np.eye(r)
    assert norm(exact(U) @ R) * norm(exact(V) @ np.linalg.inv(R).T) >= sigma - 10 * slack


@prop(data=st.data(), cores=chains(), n_bits=st.integers(1, 8), symmetric=st.booleans())
def test_quantized_tensor_networks_weigh_and_hold_what_they_say(data, cores, n_bits, symmetric):
    granularity = data.draw(st.sampled_from([None, lrq.PerChannel(-1), lrq.PerChannel(0)]))
    quantizer = lrq.TTQuantizer(n_bits, symmetric, granularity)
    with untouched(*cores):
        codes, scales, zero_points = quantizer.quantize_tt_cores(cores)
        back = quantizer.dequantize_tt_cores(codes, scales, zero_points)
        packed = quantizer.compress(cores)
        bound = lrq.core_noise_bound(cores, back)
    assert [tuple(c.shape) for c in codes] == [tuple(c.shape) for c in cores]
    for core, one, kept, scale in zip(cores, back, packed, scales, strict=True):
        assert torch.equal(kept.dequantize(), one)
        if n_bits > 1 or not symmetric:
            assert ((one - core).abs() <= scale / 2 * (1 + 1e-3) + 1e-6 * core.abs().max()).all()
    assert norm(contract(back) - contract(cores)) <= bound * (1 + 1e-9)
    before, after = sum(core.nbytes for core in cores), sum(one.nbytes() for one in packed)
    assert lrq.analyze_tn_quantization_impact(cores, packed) == before / after == before / lrq.stored_bytes(packed)
    shape = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    core = torch.tensor(np.random.default_rng(data.draw(SEEDS)).standard_normal(shape), dtype=cores[0].dtype)
    factors = [torch.randn(r + 1, r, dtype=core.dtype) for r in shape]
    tucker = lrq.TuckerQuantizer(symmetric)
    with untouched(core, *factors):
        told = tucker.quantize_tucker(core, factors, n_bits)
        again, others = tucker.dequantize_tucker(told)
        kept = tucker.compress(core, factors, n_bits)
    for one, stored in zip([again, *others], kept, strict=True):
        assert torch.equal(one, stored.dequantize())


# --- entrées vues, GPTQ -----------------------------------------------------------------------------------------------


@prop(data=st.data(), n=st.integers(1, 8), seed=SEEDS)
def test_a_calibration_is_the_second_moment_of_what_was_seen(data, n, seed):
    rng = np.random.default_rng(seed)
    X = torch.tensor(rng.standard_normal((data.draw(st.integers(1, 20)), n)), dtype=torch.float32)
    network = nn.Sequential(nn.Linear(n, 4), nn.Tanh(), nn.Linear(4, 2))
    parts = X.split(data.draw(st.lists(st.integers(1, 3), min_size=1).map(lambda cut: pieces(cut, len(X)))))
    with untouched(X, network):
        seen = lrq.Calibration.from_inputs(X)
        heard = lrq.calibrate(network, ["0", "2"], lambda: [network(part) for part in parts])
    hidden = network[0](X).tanh().double()
    for found, inputs in ((seen, X), (heard["0"], X), (heard["2"], hidden)):
        assert found.count == len(X)
        moment = exact(inputs).T @ exact(inputs) / len(X)
        assert np.abs(exact(found.second_moment) - moment).max() <= 1e-5 * np.abs(moment).max()
        assert gap(exact(found.root) @ exact(found.root).T, exact(found.second_moment)) <= 1e-5


def pieces(sizes, total):
    """Ces tailles, répétées ou coupées jusqu'au total."""
    kept = []
    for size in itertools.cycle(sizes):
        if sum(kept) == total:
            break
        kept.append(min(size, total - sum(kept)))
    return kept


@prop(data=st.data(), W=matrices(dtypes=[*HALVES, *FLOATS]), seed=SEEDS, damping=st.sampled_from([0.01, 0.1, 1.0]))
def test_gptq_is_nearest_rounding_on_separate_inputs_and_keeps_its_bound_on_others(data, W, seed, damping):
    q, rng, n = data.draw(quantizers(W.shape)), np.random.default_rng(seed), W.shape[1]
    assume(not q.binary)
    separate = lrq.Calibration(torch.diag(torch.tensor(rng.exponential(1, n) + 1e-3)), 9)
    X = torch.tensor(rng.standard_normal((2 * n, n)) @ (np.eye(n) + rng.standard_normal((n, n)) / 2))
    with untouched(W, X, separate.second_moment):
        alone, stored = lrq.gptq(W, separate, q, damping), lrq.gptq(W, X, q, damping)
    nearest = q.compress(W)
    assert torch.equal(alone.dequantize(), nearest.dequantize())  # rien à rattraper ailleurs
    assert torch.equal(stored.scale, nearest.scale)
    assert stored.nbytes() == nearest.nbytes()
    codes, (scale, zero) = stored.codes().long().numpy(), q.compute_scale_zero_point(W)
    step, zero = per_value(scale, q, W), per_value(zero, q, W)
    if (step <= 1e-30).any() or q.scale_dtype is not None:
        return
    C = exact(X).T @ exact(X) / len(X)
    H = C / C.diagonal().mean() + damping * np.eye(n)
    order = np.argsort(-C.diagonal(), kind="stable")
    pivots = 1 / np.array([np.linalg.inv(H[np.ix_(order[j:], order[j:])])[0, 0] for j in range(n)])
    E = (codes - zero) * step - exact(W)
    for i in np.flatnonzero(((codes > q.low) & (codes < q.high)).all(1)):  # une ligne où rien n'est écrêté
        bound = (step[i, order] ** 2 / 4 * pivots).sum()  # chaque colonne perd au plus Δ²/4 fois son pivot
        assert E[i] @ H @ E[i] <= bound * (1 + 1e-3) + (100 * PRECISION[scale.dtype] * norm(W)) ** 2


# --- LoRA -------------------------------------------------------------------------------------------------------------


@st.composite
def adapted(draw, dtypes=(*HALVES, *FLOATS)):
    """Une couche linéaire ou convolutive adaptée, B rempli, et des entrées."""
    if draw(st.booleans()):
        layer = draw(linears(dtypes=dtypes, scaled=False))
        x = draw(batches(layer.in_features, layer.weight.dtype))
    else:
        layer, x = draw(convs(dtypes))
    full = min(layer.weight.flatten(1).shape[1], len(layer.weight) // getattr(layer, "groups", 1))
    lora = lrq.LoRALayer(layer, draw(st.integers(1, full)), draw(st.sampled_from([0.0, 0.5, 2.0])),
                         scaling=draw(st.sampled_from(["alpha", "alpha/r", "alpha/sqrt(r)"])))  # fmt: skip
    with torch.no_grad():
        lora.lora_B.normal_()
    return lora, x


def delta(adapter, weight):
    """ΔW = s B A, groupe par groupe, par NumPy."""
    A, B = exact(adapter.A), exact(adapter.B)
    groups = len(A) // B.shape[1]
    blocks = zip(np.split(A.reshape(len(A), -1), groups), np.split(B.reshape(len(B), -1), groups), strict=True)
    return adapter.scale * np.concatenate([b @ a for a, b in blocks]).reshape(weight.shape)


@prop(data=st.data(), drawn=adapted())
def test_an_adapter_counts_once_merged_or_not_and_unmerging_is_exact(data, drawn):
    lora, x = drawn
    assert isinstance(lora.adapters["default"], lrq.LoRAAdapter)
    W, adapter, eps = lora.original.weight, lora.adapters["default"], PRECISION[x.dtype]
    before, y = W.clone(), lora(x)
    assert not W.requires_grad
    assert lora.trainable_parameters() == adapter.A.numel() + adapter.B.numel()
    assert lora.total_parameters() == sum(p.numel() for p in lora.parameters())
    whole = exact(W) + delta(adapter, W)
    assert gap(lora.reconstruct_weight(), whole) <= 30 * eps
    lora.merge_weights()
    assert W.dtype == x.dtype
    assert gap(W, whole) <= 30 * eps
    assert torch.equal(lora(x), lora.original(x))
    size = norm(x) * (norm(before) + norm(delta(adapter, W))) + norm(y)
    assert norm(exact(lora(x)) - exact(y)) <= 60 * eps * size
    with pytest.warns(UserWarning, match="déjà fusionné"):
        lora.merge_weights()
    state = {name: t.clone() for name, t in lora.state_dict().items()}
    lora.unmerge_weights()
    assert torch.equal(W, before)
    assert torch.equal(lora(x), y)
    lora.load_state_dict(state)  # la couche reprend l'état du fichier, fusionnée
    assert lora.merged
    with lora.disabled():
        assert gap(lora(x), lora._dense(x, before)) == 0
    lora.unmerge_weights()
    assert torch.equal(W, before)
    assert torch.equal(lora(x), y)


@prop(data=st.data(), dtype=st.sampled_from(FLOATS), weights=st.tuples(*[st.floats(-2, 2)] * 2), seed=SEEDS)
def test_adapters_add_up_without_cross_terms_and_survive_a_file(data, dtype, weights, seed):
    network = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)).to(dtype).requires_grad_(True)
    x = data.draw(batches(6, dtype))
    ranks = data.draw(st.tuples(*[st.integers(1, 5)] * 2))
    with untouched(network, x, draws=True):  # A se tire au hasard
        model = lrq.convert_model_to_lora(network, data.draw(st.sampled_from([None, ["0", "2"], r"\d"])), ranks[0], 0.5)
    assert torch.equal(model(x), network(x))  # B = 0
    lrq.add_adapter(model, "autre", min(ranks[1], 4), 2.0)
    for layer in lrq.lora_layers(model).values():
        for adapter in layer.adapters.values():
            adapter.B.data.normal_()
    assert lrq.adapter_names(model) == ["default", "autre"]
    chosen = dict(zip(["default", "autre"], weights, strict=True))
    lrq.set_adapter(model, chosen)
    oracle = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)).double()
    oracle.load_state_dict(network.state_dict())
    for name, layer in lrq.lora_layers(model).items():
        parts = [w * delta(layer.adapters[each], layer.original.weight) for each, w in chosen.items()]
        oracle.get_submodule(name).weight.data += torch.tensor(sum(parts))
    slack = 1e3 * PRECISION[dtype] * (1 + norm(oracle(x.double())))
    y = model(x)
    assert norm(exact(y) - exact(oracle(x.double()))) <= slack
    with untouched(model):
        merged = lrq.merged_model(model)
    assert not any(isinstance(module, lrq.LoRALayer) for module in merged.modules())
    assert norm(exact(merged(x)) - exact(y)) <= slack
    with lrq.disabled_adapters(model):
        assert torch.equal(model(x), network(x))
    lrq.merge_adapters(model)
    lrq.unmerge_adapters(model)
    assert torch.equal(model(x), y)
    lrq.set_adapter(model, "autre")
    alone = model(x)
    with tempfile.TemporaryDirectory() as folder:
        lrq.save_adapter(model, folder)
        config = json.loads(Path(folder, "adapter_config.json").read_text())
        fresh = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)).to(dtype)
        fresh.load_state_dict(network.state_dict())
        loaded = lrq.load_adapter(fresh, folder, "relu")
    assert config["peft_type"] == "LORA"
    assert norm(exact(loaded(x)) - exact(alone)) <= slack
    lrq.set_adapter(model, "default")
    lrq.delete_adapter(model, "autre")
    assert lrq.adapter_names(model) == ["default"]


@prop(data=st.data(), linear=linears(dtypes=FLOATS), alpha=st.floats(0.1, 10))
def test_adapters_that_start_elsewhere_start_from_the_same_function(data, linear, alpha):
    m, n = linear.weight.shape
    rank, bits = data.draw(st.integers(1, min(m, n))), data.draw(st.integers(1, 8))
    x = torch.randn(3, n, dtype=linear.weight.dtype)
    with untouched(linear, x, draws=True):
        pissa = lrq.LoRALayer.from_pissa(linear, rank, alpha)
        loftq = lrq.LoRALayer.from_quantized(linear, rank, bits, alpha)
    W, eps = exact(linear.weight), PRECISION[linear.weight.dtype]
    assert gap(pissa.reconstruct_weight(), W) <= 60 * eps
    assert gap(pissa.original.weight, W) == pytest.approx(
        math.sqrt(max(0, 1 - dropped(W, rank) ** 2)), abs=60 * eps
    ) or (not W.any())
    base = loftq.original.reconstruct_weight()
    error = dropped(W - exact(base), rank) * norm(W - exact(base))  # le mieux qu'un adaptateur de ce rang rattrape
    assert norm(exact(loftq.reconstruct_weight()) - W) == pytest.approx(error, abs=60 * eps * norm(W))
    assert isinstance(loftq.original, lrq.QuantizedLinear)


# --- apprendre --------------------------------------------------------------------------------------------------------


def classes(rng, n, count=12):
    """Des lots (entrées, étiquettes)."""
    x, y = torch.tensor(rng.standard_normal((count, n)), dtype=torch.float32), torch.tensor(rng.integers(0, 3, count))
    return [(x[:5], y[:5]), (x[:0], y[:0]), (x[5:], y[5:])]


@prop(data=st.data(), n=st.integers(2, 6), seed=SEEDS, lr=st.sampled_from([1e-4, 1e-2, 1.0]))
def test_training_touches_only_adapters_and_never_ends_worse(data, n, seed, lr):
    rng = np.random.default_rng(seed)
    network = nn.Sequential(nn.Linear(n, 5), nn.ReLU(), nn.Linear(5, 3))
    train, val, rank = classes(rng, n), classes(rng, n), data.draw(st.integers(1, min(n, 3)))
    model = lrq.convert_model_to_lora(network, None, rank)
    base = {name: t.clone() for name, t in model.named_parameters() if ".original." in name}
    adaptive = data.draw(st.booleans())
    budget = data.draw(st.integers(n + 5 + 8, rank * (n + 5 + 8)))
    options = {"budget": budget} if adaptive else {}
    kind = lrq.AdaptiveLoRA if adaptive else lrq.LoRATrainer
    trainer = kind(model, train, val, lr, optimizer=data.draw(st.sampled_from([None, lrq.LoRAPlus])), **options)
    start = trainer.validate()
    history = trainer.train(2)
    assert all(torch.equal(t, model.get_parameter(name)) for name, t in base.items())
    assert [row["epoch"] for row in history] == list(range(1, len(history) + 1))
    if adaptive:  # élaguer change de fonction : la meilleure se juge après
        assert sum(p.numel() for p in trainer.parameters()) <= budget
        assert all(r >= 1 for r in trainer.ranks().values())
    else:
        assert trainer.validate() <= start + 1e-6
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "reprise.safetensors")
        trainer.save(path)
        other = kind(lrq.convert_model_to_lora(network, None, rank), train, val, lr, **options)
        if trainer.make_optimizer is not lrq.LoRAPlus:
            other.load(path)
            x = torch.randn(4, n)
            assert torch.equal(other.model(x), model(x))


@prop(data=st.data(), linear=linears(dtypes=[torch.float32, torch.float64], kinds=KINDS[:4], scaled=False), seed=SEEDS)
def test_what_is_learned_with_rounding_is_what_is_kept(data, linear, seed):
    m, n = linear.weight.shape
    bits, learned, channels = data.draw(st.integers(2, 8)), data.draw(st.booleans()), data.draw(st.booleans())
    x = data.draw(batches(n, linear.weight.dtype))
    qat = lrq.QATLowRankLinear.from_linear(linear, data.draw(st.integers(1, min(m, n))), bits, None, channels, learned)
    inputs, outputs = data.draw(cuts())
    wide = nn.Linear(math.prod(inputs), math.prod(outputs), dtype=linear.weight.dtype)
    chain = lrq.QATTTLinear.from_linear(wide, inputs, outputs, 3, bits, channels, learned)
    for layer, z in ((qat, x), (chain, torch.randn(3, wide.in_features, dtype=wide.weight.dtype))):
        optimizer = torch.optim.SGD(layer.parameters(), 1e-3)
        layer(z).square().sum().backward()
        optimizer.step()
        with untouched(layer):
            kept = layer.to_quantized()
        assert gap(kept.reconstruct_weight(), layer.reconstruct_weight()) <= 30 * PRECISION[z.dtype]
        size = norm(z) * max(norm(layer.reconstruct_weight()), 1.0) + norm(layer(z))
        assert norm(exact(kept(z)) - exact(layer(z))) <= 30 * PRECISION[z.dtype] * size


@prop(data=st.data(), t=tensors(dtypes=FLOATS, scaled=False))
def test_fake_quantization_rounds_forward_and_lets_the_gradient_through(data, t):
    bits, symmetric, channels = data.draw(st.integers(1, 8)), data.draw(st.booleans()), data.draw(st.booleans())
    fake = lrq.FakeQuantizeModule(bits, symmetric, channels, data.draw(st.integers(0, t.ndim - 1)))
    t = t.clone().requires_grad_()
    y = fake(t)
    assert torch.equal(y, fake.quantizer.quantize_dequantize(t.detach()))
    y.sum().backward()
    q, slack = fake.quantizer, 10 * PRECISION[t.dtype]
    if not q.binary:
        codes = q.quantize(t.detach())
        passed = ((t.grad - 1).abs() <= slack) | ((t.grad == 0) & ((codes == q.low) | (codes == q.high)))
        assert passed.all()
        assert not q.symmetric or (t.grad - 1).abs().max() <= slack  # la grille min_max, centrée, n'écrête rien
    assert (t.grad[t == 0] == 1).all() or t.any()  # un tenseur nul apprend
    if bits == 1:
        return
    step = lrq.LearnedStepQuantize(t.detach(), bits, channels)
    x = t.detach().clone().requires_grad_()
    step(x).sum().backward()
    v, most = x.detach() / step.scale.detach().abs(), 2 ** (bits - 1) - 1
    sure = ((v.abs() - most).abs() > 1e-4) & ((v.abs() - v.abs().floor() - 0.5).abs() > 1e-4)  # loin des bords
    inside = v.abs() <= most
    assert ((x.grad - inside.to(x.dtype)).abs() <= slack)[sure].all()
    if sure.all():
        slope = torch.where(inside, v.round() - v, v.sign() * most)  # q − t/Δ, puis ±q
        slope = slope.flatten(1).sum(1).view_as(step.scale) if channels else slope.sum()
        assert torch.allclose(step.scale.grad, slope * step.share, rtol=1e-3, atol=1e-4)


@prop(n=st.integers(2, 6), seed=SEEDS, lr=st.sampled_from([1e-3, 1e-1, 1e3]), epochs=st.integers(0, 2))
def test_qat_never_ends_worse_on_validation(n, seed, lr, epochs):
    rng = np.random.default_rng(seed)
    network = nn.Sequential(nn.Linear(n, 5), nn.ReLU(), nn.Linear(5, 3))
    model = lrq.replace_linears(network, lambda layer: lrq.QATLowRankLinear.from_linear(layer, 2, 4))
    train, val = classes(rng, n), classes(rng, n)

    def loss():
        x, y = (torch.cat([batch[k] for batch in val]) for k in (0, 1))
        with torch.no_grad():
            return float(F.cross_entropy(model(x), y))

    before, start = {k: t.clone() for k, t in model.state_dict().items()}, loss()
    with untouched(*[t for batch in train + val for t in batch]):
        assert lrq.train_qat_low_rank(model, train, epochs, val, lr) is model
    assert not model.training
    assert loss() <= start + 1e-6
    assert epochs or all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


# --- un réseau entier -------------------------------------------------------------------------------------------------


class Small(nn.Module):
    """Plongement, deux couches de même poids, une convolution facultative, un bloc gelé : de quoi gêner une méthode."""

    def __init__(self, n, tied, convolution):
        super().__init__()
        self.embed = nn.Embedding(9, n)
        self.conv = nn.Conv2d(1, 2, 3, padding=1) if convolution else None
        self.first, self.second = nn.Linear(n, 6), nn.Linear(6, 8, bias=False)
        self.twin = nn.Linear(n, 6) if tied else nn.Identity()
        if tied:
            self.twin.weight = self.first.weight

    def forward(self, ids):
        h = self.embed(ids)  # (B, T, n)
        if self.conv is not None:
            h = h + self.conv(h[:, None]).sum(1)
        other = self.twin(h)
        return self.second(torch.tanh(self.first(h)) + (other if other.shape[-1] == 6 else 0)).flatten(1)


@st.composite
def networks(draw):
    """Un petit réseau et des lots pour le calibrer."""
    model = Small(draw(st.sampled_from([4, 6, 8])), draw(st.booleans()), draw(st.booleans()))
    rng = np.random.default_rng(draw(SEEDS))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.tensor(rng.standard_normal(p.shape) / 2))
    return model, [torch.tensor(rng.integers(0, 9, (k, 5))) for k in (4, 3)]


@st.composite
def methods(draw):
    """Une méthode de compression, à la configuration tirée au hasard."""
    kind = draw(st.sampled_from([*OPTIONS]))
    return kind({key: draw(strategy) for key, strategy in OPTIONS[kind].items()})


BITS, RANKS, YES = st.integers(1, 8), st.integers(1, 12), st.booleans()
OPTIONS = {
    lrq.SVDCompression: {
        "rank": RANKS, "optimize_rank": YES, "activation_aware": YES, "error_threshold": st.floats(0.01, 1),
    },
    lrq.TensorTrainCompression: {"rank": RANKS, "factorize_dimensions": YES, "train_after_compression": YES},
    lrq.PTQCompression: {
        "bits": BITS, "per_channel": YES, "activations": YES, "embeddings": YES,
        "calibration_method": st.sampled_from(["min_max", "percentile", "mse", "entropy"]),
    },
    lrq.GPTQCompression: {
        "bits": BITS, "group_size": st.sampled_from([None, 2, 4]), "symmetric": YES, "embeddings": YES,
        "rounding": st.sampled_from(["gptq", "nearest"]), "residual_rank": st.integers(0, 3),
    },
}  # fmt: skip


@prop(heavy=True, drawn=networks(), method=methods())
def test_a_method_leaves_the_network_alone_and_reports_what_it_made(drawn, method):
    model, batches = drawn
    with untouched(model, *batches):
        compressed = method.compress(model, batches, batches)
        info = method.get_compression_info(model, compressed)
        y = compressed(batches[0])
    assert y.shape == model(batches[0]).shape
    assert isinstance(method, lrq.CompressionMethod)
    assert isinstance(method.report, lrq.CompressionReport)
    assert all(isinstance(line, lrq.LayerReport) for line in method.report)
    sizes = [
        sum({id(t): t.nbytes for t in [*net.parameters(), *net.buffers()]}.values()) for net in (model, compressed)
    ]
    assert [info["original_bytes"], info["compressed_bytes"]] == sizes
    assert info["compression_ratio"] == sizes[0] / sizes[1]
    before, after = method.report.nbytes()
    assert sizes[0] - sizes[1] == before - after  # ce que le rapport compte, et rien d'autre, a changé
    wrong = math.sqrt(sum(norm(exact(compressed(x)) - exact(model(x))) ** 2 for x in batches))
    size = math.sqrt(sum(norm(model(x)) ** 2 for x in batches))
    assert method.report.output_error == pytest.approx(wrong / size, rel=1e-4, abs=1e-6)
    own = {id(t) for t in [*model.parameters(), *model.buffers()]}
    assert not own & {id(t) for t in [*compressed.parameters(), *compressed.buffers()]}
    for line in method.report:
        old, new = model.get_submodule(line.name), compressed.get_submodule(line.name)
        if line.compressed and hasattr(new, "reconstruct_weight"):
            assert line.error == pytest.approx(gap(new.reconstruct_weight(), old.weight), rel=1e-5)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "reseau.safetensors")
        lrq.save_weights(compressed, path)
        assert torch.equal(lrq.load_compressed(model, path)(batches[0]), compressed.eval()(batches[0]))


@prop(heavy=True, drawn=networks(), method=methods())
def test_in_place_shared_and_cached_compressions_are_the_same(drawn, method):
    model, batches = drawn
    expected = method.compress(model, batches)(batches[0])
    with tempfile.TemporaryDirectory() as folder, untouched(model):
        cache = lrq.CompressionCache(folder)
        for _ in range(2):  # calculées, puis relues
            shared = lrq.ParallelCompression(cache).compress_parallel(model, method, 1, batches)
            assert torch.equal(shared(batches[0]), expected)
    pipeline = lrq.CompressionPipeline([method])
    assert torch.equal(pipeline.compress(model, batches)(batches[0]), expected)
    if not method.learns:
        other = lrq.MemoryEfficientCompression.compress_inplace(model, method, batches)
        assert other is model
        assert torch.equal(other(batches[0]), expected)


@prop(heavy=True, data=st.data(), drawn=networks(), ratio=st.floats(1.5, 6))
def test_a_budget_in_bytes_is_kept(data, drawn, ratio):
    model, batches = drawn
    choices = {"bit_choices": (2, 4, 8), "rank_choices": (0, 1, 2), "group_size": data.draw(st.sampled_from([None, 2]))}
    dense = sum(layer.weight.nbytes for layer in (model.first, model.second))
    budget = int(dense / ratio) + 200
    method = lrq.BudgetCompression({"budget": budget, **choices})
    with untouched(model, *batches):
        compressed = method.compress(model, batches)
    assert method.report.nbytes()[1] <= budget
    names = [name for line in method.report for name in [line.name] if line.compressed]
    assert (
        lrq.stored_bytes([compressed.get_submodule(name) for name in lrq.linear_names(model) if name in names])
        <= budget
    )
    assert math.isfinite(method.predicted_error)
    lora = lrq.LoRACompression({"rank": data.draw(RANKS), "alpha": 2.0})
    with untouched(model, draws=True):
        adapted = lora.compress(model)
    assert torch.equal(adapted(batches[0]), model(batches[0]))
    adapters = {id(p) for layer in lrq.lora_layers(adapted).values() for p in layer.adapters.parameters()}
    assert {id(p) for p in adapted.parameters() if p.requires_grad} == adapters


@prop(data=st.data(), rank=RANKS, n_bits=BITS, seed=SEEDS)
def test_both_orders_really_replace_every_linear_and_weigh_what_is_told(data, rank, n_bits, seed):
    rng = np.random.default_rng(seed)
    model = nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 4, bias=False))
    for p in model.parameters():
        p.data = torch.tensor(rng.standard_normal(p.shape), dtype=torch.float32)
    pipeline, x = lrq.CombinedCompressionPipeline(model), torch.randn(3, 7)
    with untouched(model, x):
        first = pipeline.apply_low_rank_then_quantize(rank, n_bits)
        told = lrq.analyze_combined_compression(model, rank, n_bits)
        found = [first, pipeline.apply_quantize_then_low_rank(rank, n_bits)]
        residual = pipeline.apply_quantize_plus_low_rank(rank, n_bits, granularity=lrq.PerChannel(0))
    assert told == lrq.stored_bytes(model) / lrq.stored_bytes(first)
    assert lrq.stored_bytes(found[0]) == lrq.stored_bytes(found[1])
    for name in ("0", "2"):
        W = model.get_submodule(name).weight
        limit = min(rank, *W.shape)
        for other in found:
            layer = other.get_submodule(name)
            assert isinstance(layer, lrq.QuantizedLowRankLinear)
            assert np.linalg.matrix_rank(exact(layer.reconstruct_weight()), tol=1e-5) <= limit
            assert layer.reconstruction_error(W) >= dropped(W, limit) - 1e-5
        assert isinstance(residual.get_submodule(name), lrq.QuantizedResidualLinear)
    half = lrq.replace_linears(model, lambda linear: lrq.QuantizedLinear.from_linear(linear, n_bits), ["2"])
    assert lrq.linear_names(half) == ["0"]


# --- les erreurs, d'une couche à l'autre ------------------------------------------------------------------------------


@prop(data=st.data(), seed=SEEDS, depth=st.integers(1, 4))
def test_the_propagated_error_never_passes_its_bound(data, seed, depth):
    rng = np.random.default_rng(seed)
    sizes = [data.draw(st.integers(1, 8)) for _ in range(depth + 1)]
    layers = [nn.Linear(n, m).double() for n, m in itertools.pairwise(sizes)]
    for layer in layers:
        layer.weight.data = torch.tensor(rng.standard_normal(layer.weight.shape))
    activation = data.draw(st.sampled_from([nn.ReLU(), nn.Tanh(), nn.LeakyReLU(0.2)]))
    model = nn.Sequential(*[module for layer in layers for module in (layer, activation)][:-1])
    rank, bits = data.draw(st.integers(1, 8)), data.draw(st.integers(2, 8))

    def smaller(layer):
        if data.draw(st.booleans()):
            return lrq.QuantizedLinear.from_linear(layer, bits)
        return lrq.CompactSVDLinear.from_linear(layer, min(rank, *layer.weight.shape))

    compressed = lrq.replace_linears(model, smaller)
    x = torch.tensor(rng.standard_normal((1, sizes[0])))
    with untouched(model, compressed, x):
        told = lrq.analyze_cumulative_error(model, compressed, x)
    h, gains, own = exact(x)[0], [], []
    for k, layer in enumerate(layers):
        W, W_hat = exact(layer.weight), exact(compressed[2 * k].reconstruct_weight())
        gains.append(np.linalg.norm(W_hat, 2))
        own.append(np.linalg.norm(W - W_hat, 2) * np.linalg.norm(h))
        with torch.no_grad():
            h = exact(activation(layer(torch.tensor(h))))
        forward = lrq.analyze_forward_error(
            compressed[2 * k], torch.tensor(rng.standard_normal((6, sizes[k]))), layer.weight
        )
        assert forward["mean_error"] <= forward["error_bound"] * (1 + 1e-9) + 1e-9
    bounds = lrq.propagation_bound(gains, own)
    for k, bound in enumerate(bounds):
        recursion = own[k] + (gains[k] * bounds[k - 1] if k else 0)
        assert bound == pytest.approx(recursion)
    assert told["final_error"] == pytest.approx(norm(exact(compressed(x)) - exact(model(x))), abs=1e-9)
    assert told["final_error"] <= bounds[-1] * (1 + 1e-9) + 1e-9
    with torch.no_grad():
        size = norm(model(x))
    assert told["relative_error"] == pytest.approx(told["final_error"] / size if size else 0.0, abs=1e-9)
    assert set(told["layer_errors"]) == {str(k) for k in range(len(model))}


@prop(instance=matrices_and_ranks(dtypes=FLOATS), n_bits=BITS)
def test_combined_errors_are_measured_and_the_best_choices_are_marked(instance, n_bits):
    W, rank = instance
    with untouched(W):
        told = lrq.combined_error_analysis(W, rank, n_bits)
        rows = lrq.compression_error_tradeoff(W, None, [2, n_bits])
    slack = 50 * PRECISION[W.dtype]
    assert told["svd_error"] == pytest.approx(dropped(W, rank), abs=slack)
    assert told["estimated_combined"] == pytest.approx(math.hypot(told["svd_error"], told["quant_error"]))
    layer = lrq.QuantizedLowRankLinear.from_weight_matrix(W, rank, n_bits)
    assert told["actual_combined"] == pytest.approx(gap(layer.reconstruct_weight(), W), abs=slack)
    lower, upper = (told["svd_error"] + sign * told["quant_error"] for sign in (-1, 1))
    assert lower - slack <= told["actual_combined"] <= upper + slack
    for row in rows:
        rivals = [(r["actual_combined"], 1 / r["compression_ratio"]) for r in rows]
        mine = (row["actual_combined"], 1 / row["compression_ratio"])
        beaten = any(a <= mine[0] and b <= mine[1] and (a, b) != mine for a, b in rivals)
        assert row["optimal"] != beaten


# --- les refus --------------------------------------------------------------------------------------------------------

BAD = {
    "matrice": [
        None, "W", 3.0, torch.zeros(3), torch.zeros(2, 2, 2), torch.zeros(0, 3), torch.tensor([[math.nan, 1]]),
        torch.tensor([[1.0, math.inf]]), torch.zeros(2, 2, dtype=torch.complex64), torch.zeros(2, 2, dtype=torch.bool),
    ],
    "rang": [0, -1, 99, 1.5, "2", None, True, [1]],
    "entier": [0, -1, 1.5, "2", None, True, math.nan],
    "bits": [0, 9, -1, 2.5, "8", None, True],
    "part": [0, -0.5, 1.5, math.nan, math.inf, "x", None, True],
    "spectre": [None, "S", torch.zeros(0), torch.zeros(2, 2), torch.tensor([1.0, 2.0]), torch.tensor([1.0, -1.0]),
                torch.tensor([math.nan])],
    "couche": [None, nn.ReLU(), torch.zeros(2, 2), nn.Conv1d(1, 1, 1)],
    "réseau": [None, "réseau", torch.zeros(2, 2)],
    "entrée": [None, torch.zeros(2, 99), torch.zeros(4, dtype=torch.int64), torch.tensor(1.0)],
    "tenseur": [None, "t", torch.zeros(0), torch.tensor([math.nan]), torch.zeros(2, dtype=torch.complex64)],
    "chaîne": [None, [], torch.zeros(1, 2, 1), [torch.zeros(2, 2, 1)], [torch.full((1, 2, 1), math.nan)]],
    "nom": ["", "inconnu", 3],
}  # fmt: skip


def refusals():
    """Appel → (l'argument qu'il nomme, ce qu'on lui donne de faux, l'appel lui-même)."""
    W, S, linear = torch.eye(4) + 1, torch.tensor([3.0, 1.0]), nn.Linear(4, 4)
    model, q = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)), lrq.UniformQuantizer()
    cores, seen = lrq.tt_svd(torch.rand(2, 3, 2), 2), torch.rand(9, 4)
    layer, ids = lrq.FactorizedLinear.from_linear(linear, 2), nn.Embedding(5, 4)
    yield from [
        ("W", "matrice", lambda x: lrq.singular_values(x)),
        ("W", "matrice", lambda x: lrq.truncated_svd(x, 1)),
        ("W", "matrice", lambda x: lrq.balanced_factors(x, 1)),
        ("W", "matrice", lambda x: lrq.approximate_svd_large(x, 1)),
        ("W", "matrice", lambda x: lrq.adaptive_svd(x)),
        ("W", "matrice", lambda x: lrq.low_rank_error(x, W, S, W)),
        ("W", "matrice", lambda x: lrq.LowRankAnalysis.analyze_weight_matrix(x)),
        ("W", "matrice", lambda x: lrq.ApproximationErrorAnalysis.svd_reconstruction_error(x, 1)),
        ("W", "matrice", lambda x: lrq.combined_error_analysis(x, 1, 8)),
        ("W", "matrice", lambda x: lrq.compression_error_tradeoff(x)),
        ("W", "matrice", lambda x: lrq.gptq(x, seen, q)),
        ("W", "matrice", lambda x: lrq.activation_aware_svd(x, 1, seen)),
        ("W", "matrice", lambda x: lrq.tt_matrix_svd(x, [2, 2], [2, 2], 2)),
        ("W", "matrice", lambda x: lrq.FactorizedLinear.from_weight_matrix(x, 1)),
        ("weight_matrix", "matrice", lambda x: lrq.find_optimal_rank(x)),
        ("weight_matrix", "matrice", lambda x: lrq.energy_analysis(x)),
        ("original_weight", "matrice", lambda x: layer.reconstruction_error(x)),
        ("original_weight", "matrice", lambda x: lrq.analyze_forward_error(linear, seen, x)),
        ("U", "matrice", lambda x: lrq.balance_factors(x, W)),
        ("V", "matrice", lambda x: lrq.rotate_factors(W, x)),
        ("rank", "rang", lambda x: lrq.truncated_svd(W, x)),
        ("rank", "rang", lambda x: lrq.approximate_svd_large(W, x)),
        ("rank", "rang", lambda x: lrq.efficient_truncated_svd(W, x)),
        ("rank", "rang", lambda x: lrq.ApproximationErrorAnalysis.svd_reconstruction_error(W, x)),
        ("rank", "rang", lambda x: lrq.combined_error_analysis(W, x, 8)),
        ("rank", "rang", lambda x: lrq.activation_aware_svd(W, x, seen)),
        ("rank", "rang", lambda x: lrq.halko_bound(S, x)),
        ("rank", "rang", lambda x: lrq.TruncatedSVDLinear.from_linear(linear, x)),
        ("rank", "rang", lambda x: lrq.SVDCompressedLinear(4, 4, x)),
        ("rank", "rang", lambda x: lrq.CompactSVDLinear(4, 4, x)),
        ("rank", "rang", lambda x: lrq.QuantizedLowRankLinear.from_linear(linear, x)),
        ("rank", "rang", lambda x: lrq.QuantizedLowRankLayer(4, 4, x)),
        ("rank", "rang", lambda x: lrq.QATLowRankLinear.from_linear(linear, x)),
        ("rank", "rang", lambda x: lrq.LoRALayer(nn.Linear(4, 4), x)),
        ("rank", "rang", lambda x: lrq.compare_factorized_vs_standard(4, 4, x)),
        ("rank", "rang", lambda x: lrq.SVDConv2d(4, 4, 1, x)),
        ("rank", "rang", lambda x: lrq.convert_model_to_lora(model, None, x)),
        ("ranks", "rang", lambda x: lrq.MultiStageFactorizedLinear(4, 4, [2, x])),
        ("max_rank", "rang", lambda x: lrq.find_optimal_rank(W, x or 0)),
        ("rank", "entier", lambda x: lrq.tt_svd(torch.rand(2, 2), x)),
        ("rank", "entier", lambda x: lrq.SVDCompression({"rank": x})),
        ("rank", "entier", lambda x: lrq.tucker(torch.rand(2, 2), x)),
        ("rank", "entier", lambda x: lrq.TTLinear([2, 2], [2, 2], x)),
        ("rank", "entier", lambda x: lrq.QuantizedTTLinear([2, 2], [2, 2], x)),
        ("rank", "entier", lambda x: lrq.QATTTLinear([2, 2], [2, 2], x)),
        ("rank", "entier", lambda x: lrq.LoRACompression({"rank": x})),
        ("rank", "entier", lambda x: lrq.TensorTrainCompression({"rank": x})),
        ("rank", "entier", lambda x: lrq.CombinedCompressionPipeline(model).apply_low_rank_then_quantize(x)),
        ("rank", "entier", lambda x: lrq.analyze_combined_compression(model, x, 8)),
        ("m", "entier", lambda x: lrq.break_even_rank(x, 4)),
        ("n", "entier", lambda x: lrq.marchenko_pastur_edge(4, x, 1.0)),
        ("m", "entier", lambda x: lrq.gavish_donoho_rank(S, x, 2)),
        ("n", "entier", lambda x: lrq.marchenko_pastur_rank(S, 2, x)),
        ("budget", "entier", lambda x: lrq.allocate_ranks({"a": S}, {"a": (2, 2)}, x)),
        ("budget", "entier", lambda x: lrq.allocate_budget({"a": [(1, 1.0)]}, x)),
        ("budget", "entier", lambda x: lrq.BudgetCompression({"budget": x})),
        (
            "num_workers",
            "entier",
            lambda x: lrq.ParallelCompression().compress_parallel(model, lrq.SVDCompression(), x),
        ),
        ("bins", "entier", lambda x: lrq.ActivationHistogram(x)),
        ("size", "entier", lambda x: lrq.UniformQuantizer(granularity=lrq.PerGroup(x)).compress(W)),
        ("n_bits", "bits", lambda x: lrq.UniformQuantizer(x)),
        ("n_bits", "bits", lambda x: lrq.quantize_symmetric(W, x)),
        ("n_bits", "bits", lambda x: lrq.pack_bits(torch.zeros(3, dtype=torch.int8), x)),
        ("n_bits", "bits", lambda x: lrq.unpack_bits(torch.zeros(3, dtype=torch.uint8), x, (3,))),
        ("n_bits", "bits", lambda x: lrq.FakeQuantizeModule(x)),
        ("n_bits", "bits", lambda x: lrq.LearnedStepQuantize(W, x)),
        ("n_bits", "bits", lambda x: lrq.ActivationQuantizer(x)),
        ("n_bits", "bits", lambda x: lrq.QuantizedLinear.from_linear(linear, x)),
        ("n_bits", "bits", lambda x: lrq.QuantizedConv2d(1, 1, 1, n_bits=x)),
        ("n_bits", "bits", lambda x: lrq.QuantizedEmbedding.from_embedding(ids, x)),
        ("n_bits", "bits", lambda x: lrq.TTQuantizer(x)),
        ("n_bits", "bits", lambda x: lrq.TuckerQuantizer().quantize_tucker(W, [W, W], x)),
        ("n_bits", "bits", lambda x: lrq.combined_error_analysis(W, 1, x)),
        ("n_bits_range", "bits", lambda x: lrq.compression_error_tradeoff(W, [1], [x])),
        ("bits", "bits", lambda x: lrq.PTQCompression({"bits": x})),
        ("bits", "bits", lambda x: lrq.GPTQCompression({"bits": x})),
        ("threshold", "part", lambda x: lrq.rank_for_energy(S, x)),
        ("target_error", "part", lambda x: lrq.rank_for_error(S, x)),
        ("target_error", "part", lambda x: lrq.find_optimal_rank(W, None, x)),
        ("target_error", "part", lambda x: lrq.adaptive_svd(W, x)),
        ("energy_threshold", "part", lambda x: lrq.energy_analysis(W, x)),
        ("error", "part", lambda x: lrq.tt_svd(torch.rand(2, 2), error=x)),
        ("error", "part", lambda x: lrq.tt_round(cores, error=x)),
        ("error_threshold", "part", lambda x: lrq.SVDCompression({"error_threshold": x})),
        ("S", "spectre", lambda x: lrq.truncation_errors(x)),
        ("S", "spectre", lambda x: lrq.cumulative_energy(x)),
        ("S", "spectre", lambda x: lrq.entropy_rank(x)),
        ("S", "spectre", lambda x: lrq.stable_rank(x)),
        ("S", "spectre", lambda x: lrq.water_filling(x, 1.0)),
        ("linear_layer", "couche", lambda x: lrq.FactorizedLinear.from_linear_svd(x, 1)),
        ("linear_layer", "couche", lambda x: lrq.FactorizedLinear.from_linear_random(x, 1)),
        ("linear_layer", "couche", lambda x: lrq.QuantizedResidualLinear.from_linear(x)),
        ("conv_layer", "couche", lambda x: lrq.SVDConv2d.from_conv2d(x, 1)),
        ("conv_layer", "couche", lambda x: lrq.QuantizedConv2d.from_conv2d(x)),
        ("embedding", "couche", lambda x: lrq.QuantizedEmbedding.from_embedding(x)),
        ("original_layer", "couche", lambda x: lrq.LoRALayer(x)),
        ("layer", "couche", lambda x: lrq.analyze_forward_error(x, seen, W)),
        ("model", "réseau", lambda x: lrq.linear_names(x)),
        ("model", "réseau", lambda x: lrq.replace_linears(x, lambda layer: layer)),
        ("model", "réseau", lambda x: lrq.CombinedCompressionPipeline(x)),
        ("model", "réseau", lambda x: lrq.lora_layers(x)),
        ("model", "réseau", lambda x: lrq.SVDCompression().compress(x)),
        ("model", "réseau", lambda x: lrq.MemoryEfficientCompression.compress_inplace(x, lrq.SVDCompression())),
        ("model", "réseau", lambda x: lrq.train_qat_low_rank(x, [])),
        ("model", "réseau", lambda x: lrq.save_weights(x, "nulle/part")),
        ("model_original", "réseau", lambda x: lrq.analyze_cumulative_error(x, model, seen)),
        ("compression_method", "réseau", lambda x: lrq.ParallelCompression().compress_parallel(model, x)),
        ("x", "entrée", lambda x: layer(x)),
        ("x", "entrée", lambda x: lrq.QuantizedLinear.from_linear(linear)(x)),
        ("x", "entrée", lambda x: lrq.TTLinear([2, 2], [2, 2], 2)(x)),
        ("x", "entrée", lambda x: lrq.LoRALayer(nn.Linear(4, 4), 2)(x)),
        ("test_inputs", "entrée", lambda x: lrq.analyze_forward_error(linear, x, W)),
        ("t", "tenseur", lambda x: q.quantize(x)),
        ("t", "tenseur", lambda x: q.compress(x)),
        ("t", "tenseur", lambda x: q.quantization_error(x)),
        ("t", "tenseur", lambda x: lrq.FakeQuantizeModule()(x)),
        ("t", "tenseur", lambda x: lrq.LearnedStepQuantize(x)),
        ("calibration", "tenseur", lambda x: lrq.Calibration.from_inputs(x)),
        ("cores", "chaîne", lambda x: lrq.tt_contract(x)),
        ("cores", "chaîne", lambda x: lrq.tt_ranks(x)),
        ("cores", "chaîne", lambda x: lrq.tt_orthogonalize(x, 0)),
        ("cores", "chaîne", lambda x: lrq.balance_cores(x)),
        ("cores", "chaîne", lambda x: lrq.rotate_cores(x)),
        ("cores", "chaîne", lambda x: lrq.regauge(x, "balanced")),
        ("cores", "chaîne", lambda x: lrq.TTQuantizer().quantize_tt_cores(x)),
        ("noisy", "chaîne", lambda x: lrq.core_noise_bound(cores, x)),
        ("method", "nom", lambda x: lrq.efficient_truncated_svd(W, 1, x)),
        ("clipping", "nom", lambda x: lrq.UniformQuantizer(clipping=x)),
        ("gauge", "nom", lambda x: lrq.regauge(cores, x)),
        ("scaling", "nom", lambda x: lrq.LoRALayer(nn.Linear(4, 4), 2, scaling=x)),
        ("calibration_method", "nom", lambda x: lrq.PTQCompression({"calibration_method": x})),
        ("name", "nom", lambda x: lrq.set_adapter(lrq.convert_model_to_lora(model, None, 2), x)),
        ("name", "nom", lambda x: lrq.delete_adapter(lrq.convert_model_to_lora(model, None, 2), x)),
    ]


REFUSALS = list(refusals())
ENGLISH = {"the", "must", "should", "expected", "got", "invalid", "of", "not", "is", "argument", "tensor"}


@prop(data=st.data(), call=st.sampled_from(REFUSALS))
def test_whatever_is_wrong_is_refused_in_french_by_its_name(data, call):
    name, kind, attempt = call
    value = data.draw(st.sampled_from(BAD[kind]))
    with pytest.raises((ValueError, TypeError)) as refusal:
        attempt(value)
    said = str(refusal.value)
    assert name in said.partition(" : ")[0], said
    assert type(refusal.value) in (ValueError, TypeError)
    assert not ENGLISH & set(said.replace(",", " ").split()), said


# --- rien n'est oublié ------------------------------------------------------------------------------------------------


def test_every_public_name_has_its_property():
    text = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in lrq.__all__ if f"lrq.{name}" not in text and f'"{name}"' not in text] == []
