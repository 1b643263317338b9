"""Les autotests : dans un vrai navigateur, chaque réponse contre un oracle qui part des seules données de l'énoncé."""

import json
import math
import re
from collections import Counter

import pytest
import torch
import traitlets
from conftest import GRAINE
from test_numerics import data_url
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import lrq
from lrq.allocation import slope
from lrq.errors import pareto_front
from lrq.widgets import SelfTest
from lrq.widgets.explorer import esm
from lrq.widgets.lora import trained, training_bytes
from lrq.widgets.self_test import SECTIONS

DRAWS = 200
SEEDS = tuple((GRAINE + i) % 2**32 for i in range(DRAWS))
# Ce que le module pose, tel que le lecteur le lit : les nœuds de texte d'un énoncé, séparés par des espaces.
POSE = """async ([engine, module, seeds]) => {
  const [{ generator, pose }, { questions }] = [await import(engine), await import(module)];
  const read = html => {
    const box = document.createElement('div');
    box.innerHTML = html;
    const walk = document.createTreeWalker(box, NodeFilter.SHOW_TEXT), texts = [];
    while (walk.nextNode()) texts.push(walk.currentNode.data);
    return texts.join(' ');
  };
  const written = html => Object.assign(document.createElement('div'), {innerHTML: html}).textContent;
  return seeds.map(seed => {
    const random = generator(seed);
    return questions.map(question => {
      const posed = pose(question, random);
      const answer = question.answer(posed.data);
      const faults = question.faults(posed.data, answer).map(([value]) => value);
      const judge = value => {
        const { right, why, expected, work } = posed.verdict(value);
        return { value, right, why: written(why), expected: written(expected), work: read(work) };
      };
      return {
        title: posed.title, data: posed.data, statement: read(posed.statement), entry: posed.entry ?? null,
        apart: question.apart ?? 0.02, named: question.named ?? false, answer, faults,
        judged: [answer, ...faults].map(judge),
        choices: posed.choices.map(({ value, label }) => ({ value, label: written(label) })),
      };
    });
  });
}"""


def module(section):
    """Le fichier des questions d'une section."""
    return f"questions_{section.replace('.', '_')}.js"


@pytest.fixture(scope="module")
def drawn(browser):
    """Pour une section, des exemplaires de ses cinq questions, un par graine."""
    page, kept = browser.new_page(), {}

    def draw(section, seeds=SEEDS):
        if (section, seeds) not in kept:
            addresses = [data_url(esm("self_test.js")), data_url(esm(module(section)))]
            kept[section, seeds] = page.evaluate(POSE, [*addresses, list(seeds)])
        return kept[section, seeds]

    yield draw
    page.close()


# --- des oracles, qui ne savent que les données -----------------------------------------------------------------------


def numbers(layer):
    return layer.count_parameters()


def factorized(m, n, r):
    return lrq.FactorizedLinear(n, m, r, device="meta")


def last_saving_rank(m, n):
    r = (m * n - 1) // (m + n)
    assert numbers(factorized(m, n, r)) < m * n <= numbers(factorized(m, n, r + 1))
    return r


def octets(m, n, r, bits, granularity=None):
    """Octets de deux facteurs arrondis."""
    return lrq.QuantizedLowRankLinear(n, m, r, bits, granularity=granularity, device="meta", quantized=True).nbytes()


def stored(rows, columns, quantizer):
    """Octets par poids d'une matrice rangée par ce quantificateur, mesurés sur quelques lignes."""
    return quantizer.compress(torch.zeros(rows, columns)).nbytes() / (rows * columns)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def first_rank(ranks, energies, error):
    return next(r for r, energy in zip(ranks, energies, strict=True) if math.sqrt(1 - energy / 100) <= error / 100)


def aware_output_error(w1, w2, c1, c2):
    layer = nn.Linear(2, 2, bias=False).double().requires_grad_(False)
    layer.weight.data = torch.diag(tensor([w1, w2]))
    inputs = torch.diag((2 * tensor([c1, c2])).sqrt())  # deux entrées, de second moment diag(c1, c2)
    small = lrq.CompactSVDLinear.from_linear(layer, 1, calibration=inputs).reconstruct_weight().detach()
    outputs = inputs @ layer.weight.T
    return float((outputs - inputs @ small.T).norm() / outputs.norm())


def halko(error, r, p):
    count = r + p + 20
    tail = (error / 100) / math.sqrt(count - r)  # r valeurs égales, puis d'autres, plus petites, d'énergie error²
    head = math.sqrt((1 - (error / 100) ** 2) / r)
    S = tensor([head] * r + [tail] * (count - r)).sort(descending=True).values
    assert float(lrq.truncation_errors(S)[r - 1]) == pytest.approx(error / 100)
    return lrq.halko_bound(S, r, p)


def multiplications(m, n, r, lot):
    counter = FlopCounterMode(display=False)
    with counter:
        factorized(m, n, r)(torch.zeros(lot, n, device="meta"))
    return counter.get_total_flops() / 2


def scale(r, scaling, alpha=1.0):
    return lrq.LoRALayer(nn.Linear(256, 256), r, alpha, scaling=scaling).scale


def learned(m, n, r):
    return trained({"formes": [(m, n, 1)]}, r)


def memory(m, n, r):
    return sum(training_bytes(0, m * n)) / sum(training_bytes(m * n, learned(m, n, r)))


def growth(scaling, adam, **ranks):
    """La baisse de la perte au premier pas va comme s² r pour la descente, comme s r pour Adam."""
    falls = {end: r * scale(r, scaling) ** (1 if adam else 2) for end, r in ranks.items()}
    return falls["to"] / falls["from"]


def merged(W, A, B, s, row, column):
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.tensor(W).float().view(2, 2)
    lora = lrq.LoRALayer(layer, 1, s)
    lora.lora_A.data, lora.lora_B.data = torch.tensor([A]).float(), torch.tensor(B).float()[:, None]
    lora.merge_weights()
    return float(lora.original.weight[row - 1, column - 1])


def lightest(m, n, ra, rb, bits, g):
    whole = m * n * stored(8, g, lrq.UniformQuantizer(bits, granularity=lrq.PerGroup(g)))
    weighed = [4 * numbers(factorized(m, n, ra)), octets(m, n, rb, 8, lrq.PerChannel(0)), whole]
    return weighed.index(min(weighed))


def repaired(m, n, bits, g, r):
    return 8 * stored(8, g, lrq.UniformQuantizer(bits, granularity=lrq.PerGroup(g))) + 8 * r * (m + n) / (m * n)


def whole_network(layers, m, n, r, bits, words):
    return 4 * (layers * m * n + words * n) / (layers * octets(m, n, r, bits) + 4 * words * n)


def louder(ratio, **widths):
    x = tensor([1.0, -0.3])
    steps = {end: float(lrq.UniformQuantizer(bits).compute_scale_zero_point(x)[0]) for end, bits in widths.items()}
    return ratio + 20 * math.log10(steps["from"] / steps["to"])


def passed(S, length, worst):
    generator = torch.Generator().manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64)).Q for _ in range(2))
    E = U * tensor(S) @ V
    if worst:
        return length * float(torch.linalg.matrix_norm(E, 2))
    return length * float((E * E).sum(0).mean().sqrt())  # les quatre axes suffisent à cette moyenne


def kron_rank(sides, ranks):
    generator, product = torch.Generator().manual_seed(0), torch.ones(1, 1, dtype=torch.float64)
    for side, rank in zip(sides, ranks, strict=True):
        left, right = (torch.randn(side, rank, generator=generator, dtype=torch.float64) for _ in range(2))
        product = torch.kron(product, left @ right.T)
    return int(torch.linalg.matrix_rank(product, rtol=1e-9))


def bond(inputs, outputs, rank, k):
    return lrq.TTLinear(inputs, outputs, rank, device="meta").cores[k - 1].shape[-1]


def tucker(n, r, bits):
    core = lrq.UniformQuantizer(bits).compress(torch.zeros(*r)).nbytes()
    return core + 4 * sum(size * rank for size, rank in zip(n, r, strict=True))


def affine(bits, **options):
    return lrq.UniformQuantizer(bits, symmetric=False, signed=False, **options)


def first_purchase(layers):
    options = [[(1000, row["loss"] / 1e4), (1000 + row["cost"], row["after"] / 1e4)] for row in layers]
    slopes = [slope(pair, 0, 1) for pair in options]
    return slopes.index(max(slopes))


def more_bits(loss, weights):
    """Les bits de A moins ceux de B, quand la perte est la plus petite à budget égal : par essais successifs."""

    def lost(difference):  # weights · a + b = 8 (weights + 1), a − b = difference
        b = 8 - weights * difference / (weights + 1)
        return loss * 4 ** -(b + difference) + 4**-b

    low, high = -10.0, 10.0
    for _ in range(200):
        third = (high - low) / 3
        low, high = (low + third, high) if lost(low + third) > lost(high - third) else (low, high - third)
    return (low + high) / 2


ORACLES = {
    "11.0": [
        lambda S, threshold: lrq.rank_for_energy(tensor(S), threshold / 100),
        lambda energy: math.sqrt(1 - energy / 100),
        lambda m, n, r: numbers(lrq.SVDCompressedLinear(n, m, r, device="meta")) / (m * n),
        lambda m, n, bits: m * n * stored(8, n, lrq.UniformQuantizer(bits, granularity=lrq.PerChannel(0))),
        lambda S: lrq.stable_rank(tensor(S)),
    ],
    "11.1": [
        last_saving_rank,
        lambda m, n, c: max(r for r in range(1, min(m, n)) if c * r * (m + n) <= m * n),
        multiplications,
        lambda m, n, first, second: numbers(factorized(m, n, min(first, second))),
        first_rank,
    ],
    "11.2": [
        lambda S, r: float(lrq.truncation_errors(tensor(S))[r - 1]),
        lambda m, c, k, r: numbers(lrq.SVDConv2d(c, m, k, r, bias=False, device="meta")),
        aware_output_error,
        halko,
        lambda layers: max(range(3), key=lambda i: layers[i]["s"] ** 2 / (layers[i]["m"] + layers[i]["n"])),
    ],
    "11.3": [
        memory,
        lambda alpha, r, scaling: scale(r, scaling, alpha),
        growth,
        merged,
        lambda m, n, r: 32 * learned(m, n, r) / (m * n),
    ],
    "11.4": [
        lambda m, n, r, bits: 8 * octets(m, n, r, bits, lrq.PerChannel(0)),
        lightest,
        lambda top, bits, w: float(lrq.UniformQuantizer(bits).quantize_dequantize(tensor([top, w]))[1]),
        repaired,
        whole_network,
    ],
    "11.5": [
        lambda truncation, rounding: math.hypot(truncation, rounding),
        lambda gains, own: lrq.propagation_bound(gains, own)[-1],
        louder,
        passed,
        lambda rate, error: rate - math.log2(100 / error),
    ],
    "9.6": [
        bond,
        lambda inputs, outputs, rank: numbers(lrq.TTLinear(inputs, outputs, rank, device="meta")),
        kron_rank,
        lambda d, error: float((torch.full((d,), error, dtype=torch.float64)).norm()),
        tucker,
    ],
    "12.3": [
        lambda layers, m, n, bits, g: (
            layers * m * n * stored(8, g, affine(bits, granularity=lrq.PerGroup(g), scale_dtype=torch.bfloat16))
        ),
        first_purchase,
        lambda sizes, losses: next(i for i in range(4) if i not in pareto_front(losses, sizes)),
        lambda low, high, bits: int(affine(bits).compute_scale_zero_point(torch.tensor([low, high]))[1]),
        more_bits,
    ],
}

every_section = pytest.mark.parametrize("section", SECTIONS)


def written_numbers(text):
    """Les nombres qu'écrit un texte français."""
    plain = text.replace("\u202f", "").replace("\u00a0", " ").replace(",", ".")
    return {float(found.replace("−", "-")) for found in re.findall(r"−?\d+(?:\.\d+)?", plain)}


def given_numbers(data):
    """Les nombres d'une donnée, où qu'ils soient."""
    if isinstance(data, dict | list):
        values = data.values() if isinstance(data, dict) else data
        return [number for value in values for number in given_numbers(value)]
    return [] if isinstance(data, bool | str) else [float(data)]


# --- les réponses -----------------------------------------------------------------------------------------------------


@every_section
def test_answers_are_those_of_lrq(drawn, section):
    """L'oracle ne reçoit que les données que l'énoncé écrit ; l'étiquette juste écrit sa réponse."""
    for posed in drawn(section):
        for question, oracle in zip(posed, ORACLES[section], strict=True):
            where = f"{question['title']} : {question['data']}"
            assert question["answer"] == pytest.approx(oracle(**question["data"]), rel=1e-6, abs=1e-9), where
            written = set(given_numbers(question["data"])) - written_numbers(question["statement"])
            assert not written, f"{where} : l'énoncé n'écrit pas {written}"


def shown(text, section):
    """La valeur qu'écrit une étiquette, dans l'unité où la question compte, et son dernier chiffre."""
    (number,) = re.findall(r"−?[\d\u202f]+(?:,\d+)?", text.removesuffix(" de la taille de W").replace("W", ""))[:1]
    digit = 10.0 ** -len(number.partition(",")[2])
    (value,) = written_numbers(number)
    if "divisée" in text:
        return 1 / value, 1e-9
    if "%" in text and section not in {"11.5", "9.6"}:  # ces deux sections comptent en pourcentages
        return value / 100, digit / 100
    return (8 * value, 8 * digit) if "octets" in text and section == "11.4" else (value, digit)  # et celle-ci en bits


@every_section
def test_a_label_writes_its_value(drawn, section):
    """Une étiquette écrit sa valeur, arrondie à son dernier chiffre ; en toutes lettres, elle nomme la bonne place."""
    for question in (question for posed in drawn(section) for question in posed):
        right = {"value": question["answer"], "label": question["judged"][0]["expected"]}
        for choice in [right, *question["choices"]]:
            value, text = choice["value"], choice["label"]
            where = f"{question['title']} : « {text} » pour {value}"
            if re.search(r"\b[A-D]$", text):
                assert text.endswith("ABCD"[value]), where
            elif text == "ne change pas":
                assert value == pytest.approx(1), where
            else:
                found, digit = shown(text, section)
                assert abs(found - value) <= 0.5001 * digit, where


@every_section
def test_choices_are_distinct_and_explained(drawn, section):
    for question in (question for posed in drawn(section) for question in posed):
        where = f"{question['title']} : {question['data']}"
        values, labels = ([choice[key] for choice in question["choices"]] for key in ("value", "label"))
        assert len(question["faults"]) >= 2, where
        if not question["entry"]:
            assert 3 <= len(values) <= 4, where
            assert sorted(values) == sorted([question["answer"], *question["faults"]]), where
            assert len(set(labels)) == len(labels), where
            gaps = [abs(a - b) / max(abs(a), abs(b)) for i, a in enumerate(values) for b in values[:i]]
            assert min(gaps) > question["apart"], where
        assert [judged["right"] for judged in question["judged"]] == [True] + [False] * len(question["faults"]), where
        reasons = [judged["why"] for judged in question["judged"][1:]]
        assert all(len(reason) > 20 and reason.endswith((".", "!", ")")) for reason in reasons), where
        assert not any("faute habituelle" in reason for reason in reasons), where


@every_section
def test_what_is_shown_is_finite_french_and_complete(drawn, section):
    """Aucun trou de calcul, les espaces insécables là où il en faut, et un calcul qui aboutit à la bonne réponse."""
    for question in (question for posed in drawn(section) for question in posed):
        texts = [question["statement"], *(c["label"] for c in question["choices"])]
        for judged in question["judged"]:
            texts += [judged["why"], judged["expected"], judged["work"]]
        for text in texts:
            assert not re.search(r"NaN|undefined|\bnull\b|Infinity|\[object|∞|\d\.\d", text), text
            assert not re.search(r"[^\u00a0][:;?!%»](?: |$)", re.sub(r"\bp=2\b", "", text).replace("…", "")), text
        numbers = written_numbers(question["judged"][0]["expected"])
        if numbers and not re.search("divisée|multipliée", question["judged"][0]["expected"]):
            assert numbers <= written_numbers(question["judged"][0]["work"]), question["title"]


@every_section
def test_right_choice_has_no_place_of_its_own(drawn, section):
    """Elle est à chaque place, aussi souvent à l'une qu'à l'autre si l'ordre est mêlé."""
    for posed in zip(*drawn(section), strict=True):
        if posed[0]["entry"]:
            continue
        places = Counter([c["value"] for c in question["choices"]].index(question["answer"]) for question in posed)
        count = len(posed[0]["choices"])
        assert set(places) == set(range(count)), posed[0]["title"]
        assert posed[0]["named"] or min(places.values()) > DRAWS / count / 3, (posed[0]["title"], places)


@every_section
def test_numbers_are_new_at_each_visit_and_a_seed_brings_them_back(drawn, section):
    visits = drawn(section)
    for posed in zip(*visits, strict=True):
        different = {json.dumps(question["data"]) for question in posed}
        assert len(different) > DRAWS / 3, posed[0]["title"]
    assert len({json.dumps(visit) for visit in visits}) == DRAWS
    assert drawn(section, SEEDS[7:8]) == visits[7:8]


# --- vu de Python -----------------------------------------------------------------------------------------------------


@every_section
def test_a_state_is_light_and_holds_one_section(section):
    widget = SelfTest(section)
    state = widget.get_state()
    assert len(json.dumps(state, default=str)) < 60_000
    assert widget._esm == esm(module(section))
    titles = {other: re.findall(r'title: "(.+)"', esm(module(other))) for other in SECTIONS}
    assert [len(found) for found in titles.values()] == [5] * len(SECTIONS)
    assert {title for found in titles.values() for title in found if title in widget._esm} == set(titles[section])
    assert repr(widget) == f"SelfTest {section} : cinq questions, aux nombres neufs à chaque visite"


@pytest.mark.parametrize("section", ["11.6", "", 11.1, None, ["11.1"]])
def test_an_unknown_section_is_refused(section):
    with pytest.raises(ValueError, match=r"^section : reçu .*attendu"):
        SelfTest(section)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "3", True])
def test_an_impossible_seed_is_refused_and_changes_nothing(seed):
    with pytest.raises(traitlets.TraitError, match=r"^seed : reçu .*attendu un entier de 0 à"):
        SelfTest("11.1", seed)
    widget = SelfTest("11.1", 5)
    with pytest.raises(traitlets.TraitError, match=r"^seed : reçu .*attendu un entier de 0 à"):
        widget.seed = seed
    assert widget.seed == 5
    widget.seed = None
    assert widget.seed is None
