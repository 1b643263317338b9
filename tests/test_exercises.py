"""Les exercices : les solutions passent, chaque faute classique est nommée, rien n'enferme ni ne salit."""

import contextlib
import math
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from lrq.exercises import EXERCISES, engine, verifier
from lrq.exercises.engine import same


def rank_for_layer(couche, erreur_max):
    energy = torch.linalg.svdvals(couche.weight.detach().double()) ** 2
    kept = energy.cumsum(0) / energy.sum()
    return next(r + 1 for r in range(len(energy)) if math.sqrt(max(0, 1 - float(kept[r]))) <= erreur_max)


def rank_for_compression(m, n, compression):
    best = [r for r in range(1, min(m, n) + 1) if m * n >= compression * r * (m + n)]
    if not best:
        raise ValueError("contrainte impossible")
    return best[-1]


def compare_initialisations(couche, rang, graine):
    generator = torch.Generator().manual_seed(graine)
    W = couche.weight.detach()
    m, n = W.shape
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    bound_u, bound_v = math.sqrt(6 / (m + rang)), math.sqrt(6 / (n + rang))
    factors = {
        "aleatoire": (torch.randn(m, rang, generator=generator), torch.randn(n, rang, generator=generator)),
        "xavier": (
            (2 * torch.rand(m, rang, generator=generator) - 1) * bound_u,
            (2 * torch.rand(n, rang, generator=generator) - 1) * bound_v,
        ),
        "svd": (U[:, :rang] * S[:rang], Vh[:rang].T),
    }
    return {key: float((W - a @ b.T).norm() / W.norm()) for key, (a, b) in factors.items()}


def gradients(U, V, G):
    dU, dV = torch.einsum("ij,jk->ik", G, V), torch.einsum("ij,ik->jk", G, U)
    return dU, dV, dU @ V.T + U @ dV.T


SOLUTIONS = {
    "11.1": rank_for_layer,
    "11.1.1": rank_for_compression,
    "11.1.2": compare_initialisations,
    "11.1.3": gradients,
}


@pytest.mark.parametrize("number", EXERCISES)
@pytest.mark.parametrize("seed", range(5))
def test_independent_solution_passes(number, seed):
    bilan = verifier(number, SOLUTIONS[number], graine=seed)
    assert bilan.reussi, bilan


WRONG_ANSWERS = [
    pytest.param(number, mistake, wrong, id=f"{number}-{mistake.name}-{i}")
    for number, exercise in EXERCISES.items()
    for mistake in exercise.mistakes
    for i, wrong in enumerate(mistake.wrong)
]


def blend(number, wrong, args):
    """Une réponse de lecteur : la faute, et le reste (les clés tirées au hasard) bien fait."""
    result = wrong(*args)
    return {**compare_initialisations(*args), **result} if number == "11.1.2" else result


@pytest.mark.parametrize(("number", "mistake", "wrong"), WRONG_ANSWERS)
def test_each_mistake_is_refused_and_named(number, mistake, wrong):
    for seed in range(3):
        bilan = verifier(number, lambda *args: blend(number, wrong, args), graine=seed)
        assert bilan.verdict == "à revoir"
        arrows = [text for mark, text in bilan.lines if mark == "→"]
        assert arrows == [f"{mistake.name} : {mistake.explanation}"]


def initialisations(bound, generator_of):
    """Une réponse à 11.1.2 dont on choisit la borne de Xavier et le générateur."""

    def answer(couche, rang, graine):
        W = couche.weight.detach()
        m, n = W.shape
        g = generator_of(graine)
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
        uniform = [(2 * torch.rand(k, rang, generator=g) - 1) * bound(k, rang, m, n) for k in (m, n)]
        factors = {
            "aleatoire": (torch.randn(m, rang, generator=g), torch.randn(n, rang, generator=g)),
            "xavier": uniform,
            "svd": (U[:, :rang] * S[:rang], Vh[:rang].T),
        }
        return {key: float((W - a @ b.T).norm() / W.norm()) for key, (a, b) in factors.items()}

    return answer


def seeded(graine):
    return torch.Generator().manual_seed(graine)


def right_bound(k, rang, m, n):
    return math.sqrt(6 / (k + rang))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    ("bound", "generator_of", "said"),
    [
        (lambda k, rang, m, n: math.sqrt(6 / (m + n)), seeded, "sur chaque facteur"),
        (lambda k, rang, m, n: math.sqrt(6 / k), seeded, "facteurs de Xavier — "),
        (lambda k, rang, m, n: 0.0, seeded, "facteurs de Xavier — "),
        (right_bound, lambda graine: seeded(0), "vos tirages l'ignorent"),
        (right_bound, lambda graine: (g := torch.Generator(), g.seed())[0], "deux appels identiques"),
    ],
)
def test_wrong_draws_are_refused(bound, generator_of, said, seed):
    bilan = verifier("11.1.2", initialisations(bound, generator_of), graine=seed)
    assert not bilan.reussi
    assert said in repr(bilan)


@pytest.mark.parametrize("seed", range(20))
def test_right_draws_are_accepted(seed):
    assert verifier("11.1.2", initialisations(right_bound, seeded), graine=seed).reussi


@pytest.mark.parametrize("convert", [np.int64, torch.tensor])
def test_integers_of_other_libraries_are_integers(convert):
    assert verifier("11.1", lambda *args: convert(rank_for_layer(*args))).reussi
    assert verifier("11.1.1", lambda *args: convert(rank_for_compression(*args))).reussi


@pytest.mark.parametrize("low", [True, False])
def test_extreme_ranks_are_tried(low):
    def clamped(couche, erreur_max):
        rank = rank_for_layer(couche, erreur_max)
        return max(rank, 2) if low else min(rank, min(couche.weight.shape) - 1)

    assert not verifier("11.1", clamped).reussi


def test_rank_one_is_reachable_in_11_1_1():
    def shy(m, n, compression):
        if (rank := rank_for_compression(m, n, compression)) == 1:
            raise ValueError("impossible")
        return rank

    assert not verifier("11.1.1", shy).reussi


def test_none_on_one_case_is_not_a_stub():
    def forgets_to_refuse(m, n, compression):
        try:
            return rank_for_compression(m, n, compression)
        except ValueError:
            return None

    assert verifier("11.1.1", forgets_to_refuse).verdict == "à revoir"


@pytest.mark.parametrize("number", EXERCISES)
def test_each_exercise_names_at_least_three_mistakes(number):
    assert len(EXERCISES[number].mistakes) >= 3


@pytest.mark.parametrize("number", EXERCISES)
@pytest.mark.parametrize("stub", [lambda *args: ..., lambda *args: None])
def test_untouched_stub_is_to_be_completed(number, stub):
    assert verifier(number, stub).verdict == "à compléter"


def test_exception_shows_the_line_at_fault():
    def answer(couche, erreur_max):
        W = couche.weight
        return W @ W @ W  # formes incompatibles

    bilan = verifier("11.1", answer)
    assert bilan.verdict == "à revoir"
    assert "return W @ W @ W" in repr(bilan)
    assert "RuntimeError" in repr(bilan)


def test_endless_loop_is_stopped_and_shown(monkeypatch):
    monkeypatch.setattr(engine, "TIME_LIMIT", 0.2)
    threads = threading.active_count()

    def answer(couche, erreur_max):
        rang = 0
        while True:
            rang += 1

    bilan = verifier("11.1", answer)
    assert bilan.verdict == "à revoir"
    assert "boucle sans fin" in repr(bilan)
    assert "rang += 1" in repr(bilan) or "while True" in repr(bilan)
    assert threading.active_count() == threads


def test_endless_loop_that_swallows_everything_is_abandoned(monkeypatch):
    monkeypatch.setattr(engine, "TIME_LIMIT", 0.1)
    stop = threading.Event()

    def answer(couche, erreur_max):
        while not stop.is_set():
            with contextlib.suppress(BaseException):  # le lecteur avale tout
                time.sleep(0.001)

    bilan = verifier("11.1", answer)
    stop.set()
    assert "boucle sans fin" in repr(bilan)
    assert "ligne" in repr(bilan)


def test_global_generator_consumed_is_said_and_restored():
    torch.manual_seed(0)
    state = torch.get_rng_state()

    def answer(couche, erreur_max):
        torch.randn(3)
        return rank_for_layer(couche, erreur_max)

    bilan = verifier("11.1", answer)
    assert not bilan.reussi
    assert "torch.Generator" in repr(bilan)
    assert torch.equal(state, torch.get_rng_state())


def test_modified_argument_is_said():
    def answer(U, V, G):
        result = gradients(U, V, G)
        G.mul_(2)
        return result

    bilan = verifier("11.1.3", answer)
    assert not bilan.reussi
    assert "clone" in repr(bilan)


@pytest.mark.parametrize("answer", [3, "rang", object()])
def test_not_a_function(answer):
    assert verifier("11.1", answer).verdict == "erreur"


@pytest.mark.parametrize("result", ["douze", 2.5, True, {"svd": "x"}, [1, 2], nn.Identity()])
@pytest.mark.parametrize("number", EXERCISES)
def test_any_other_type_gets_a_sentence(number, result):
    bilan = verifier(number, lambda *args: result)
    assert bilan.verdict == "à revoir"
    assert bilan._repr_html_().count("✗") >= 1


def test_unknown_exercise():
    with pytest.raises(ValueError, match=r"numero : reçu '11\.9'"):
        verifier("11.9", rank_for_layer)


def test_instances_change_and_can_be_replayed():
    seen = set()
    for _ in range(4):
        verifier("11.1.1", lambda m, n, c: seen.add((m, n)) or rank_for_compression(m, n, c))
    assert len(seen) > 16
    replay = [verifier("11.1.1", lambda m, n, c: 1, graine=7).lines for _ in range(2)]
    assert replay[0] == replay[1]


def test_html_escapes_what_the_reader_wrote():
    bilan = verifier("11.1", lambda couche, erreur_max: "<script>")
    assert "<script>" not in bilan._repr_html_()


def test_same_is_not_vacuous():
    assert same(torch.ones(3), torch.ones(3) + 1e-9)
    assert not same(torch.ones(3), torch.ones(3) * 1.01)
    assert not same({"a": 1}, {"a": 2})
    assert not same(nn.Linear(2, 2), nn.Linear(2, 2))


def test_checking_is_fast_and_silent(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        verifier("11.1.2", compare_initialisations)
    assert capsys.readouterr().out == ""
