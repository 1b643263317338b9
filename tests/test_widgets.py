"""Les figures interactives vues de Python : ce qu'elles transportent, refusent et disent d'elles-mêmes."""

import itertools
import json
import math
import re
import tomllib

import numpy as np
import pytest
import torch
import traitlets

import lrq
from benchmarks import lora_study, model_study, randomized_study, tt_study
from lrq import models, plots
from lrq.widgets import (
    BudgetExplorer,
    Certificate,
    Choice,
    LoRAExplorer,
    PhotoExplorer,
    PropagationExplorer,
    QuantizerExplorer,
    RandomizedExplorer,
    RankBitsExplorer,
    RateDistortionExplorer,
    SpectrumExplorer,
    TensorTrainExplorer,
    lora,
    minilm_choices,
    photo,
    propagation,
    quantizer,
    randomized,
    rank_bits,
    rate_distortion,
    shrink,
    spectrum,
    tensor_train,
)
from lrq.widgets import budget as sharing
from lrq.widgets.certificate import golden_cases
from lrq.widgets.explorer import CSS, FOLDER, esm, only

STATE_LIMIT = 150_000
BOOK_CSS = (FOLDER.parents[2] / "book" / "_static" / "lrq.css").read_text(encoding="utf-8")


def state_size(widget):
    """Taille de l'état tel que la page l'écrit, base64 compris."""
    state, buffers = {}, 0
    for key, value in widget.get_state(drop_defaults=False).items():
        if isinstance(value, bytes | memoryview):
            buffers += -(-len(value) // 3) * 4
        else:
            state[key] = value
    return len(json.dumps(state, default=str)) + buffers


@pytest.fixture(scope="module")
def minilm():
    return SpectrumExplorer.of_minilm()


@pytest.fixture(scope="module")
def photograph():
    return PhotoExplorer.of_photograph()


# --- le rang et la matrice --------------------------------------------------------------------------------------------


def test_the_first_state_halves_the_size(matrix, rng):
    m, n = (int(x) for x in rng.integers(4, 40, 2))
    explorer = SpectrumExplorer(matrix(m, n))
    assert explorer.rank == max(1, int(lrq.break_even_rank(m, n) / 2))


def test_numbers_are_those_of_lrq(matrix, rng):
    W = matrix(20, 12)
    explorer = SpectrumExplorer({"la mienne": W}, rank=int(rng.integers(1, 13)))
    U, S, Vh = lrq.truncated_svd(W, explorer.rank)
    assert explorer.error == pytest.approx(float((W - U * S @ Vh).norm() / W.norm()), abs=1e-5)
    assert explorer.energy == pytest.approx(1 - explorer.error**2)


@pytest.mark.parametrize("rank", [0, -1, 13, 2.5, "3", None, True, float("nan")])
def test_impossible_ranks_are_refused_and_change_nothing(matrix, rank):
    for explorer in (SpectrumExplorer(matrix(20, 12), rank=5), PhotoExplorer(matrix(20, 12), rank=5)):
        before = explorer.get_state()
        with pytest.raises(traitlets.TraitError, match=r"^rank : reçu .*attendu"):
            explorer.rank = rank
        assert explorer.get_state() == before


@pytest.mark.parametrize("name", ["ailleurs", "", 3, None])
def test_impossible_matrices_are_refused_and_change_nothing(matrix, name):
    explorer = SpectrumExplorer({"a": matrix(9, 7), "b": matrix(5, 5)}, rank=7)
    with pytest.raises(traitlets.TraitError, match=r"^matrix : reçu .*attendu"):
        explorer.matrix = name
    assert (explorer.matrix, explorer.rank) == ("a", 7)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rank": 8}, "^rank : reçu 8"),
        ({"rank": 0}, "^rank : reçu 0"),
        ({"matrix": "c"}, "^matrix : reçu 'c'"),
        ({"matrix": "c", "rank": 3}, "^matrix : reçu 'c'"),
        ({"matrix": ["a"]}, r"^matrix : reçu \['a'\]"),
    ],
)
def test_impossible_first_states_are_refused(matrix, arguments, words):
    with pytest.raises(traitlets.TraitError, match=words):
        SpectrumExplorer({"a": matrix(9, 7), "b": matrix(5, 5)}, **arguments)


def test_an_impossible_message_of_the_page_changes_nothing(matrix):
    explorer = SpectrumExplorer({"a": matrix(9, 7), "b": matrix(5, 5)}, rank=3)
    with pytest.raises(traitlets.TraitError, match="matrix"):
        explorer.set_state({"rank": 4, "matrix": "c"})
    assert (explorer.matrix, explorer.rank) == ("a", 3)


def test_a_smaller_matrix_brings_the_rank_down(matrix):
    explorer = SpectrumExplorer({"grande": matrix(9, 9), "petite": matrix(4, 6)}, rank=9)
    explorer.matrix = "petite"
    assert explorer.rank == 4
    explorer.matrix = "grande"
    assert explorer.rank == 4


def test_messages_of_the_page_are_checked_together(matrix):
    """Le menu change la matrice et le rang d'un coup : l'ordre des deux n'importe pas."""
    explorer = SpectrumExplorer({"petite": matrix(4, 6), "grande": matrix(9, 9)}, rank=2)
    explorer.set_state({"rank": 8, "matrix": "grande"})
    assert (explorer.matrix, explorer.rank) == ("grande", 8)


def test_python_is_told_of_every_change(matrix):
    explorer, seen = SpectrumExplorer(matrix(9, 9), rank=3), []
    explorer.observe(lambda change: seen.append(change["new"]), "rank")
    explorer.rank = 5
    explorer.set_state({"rank": 7})
    assert seen == [5, 7]


# --- les matrices refusées, les matrices trop grandes -----------------------------------------------------------------


@pytest.mark.parametrize(
    "explorer", [SpectrumExplorer, PhotoExplorer, QuantizerExplorer, RankBitsExplorer, RateDistortionExplorer]
)
@pytest.mark.parametrize(
    ("W", "error", "words"),
    [
        (torch.ones(3), ValueError, "forme"),
        (torch.ones(2, 3, 3), ValueError, "forme"),
        (torch.ones(0, 3), ValueError, "vide"),
        (torch.tensor([[1.0, float("nan")]]), ValueError, "NaN"),
        (torch.tensor([[1.0, float("inf")]]), ValueError, "infinis"),
        (torch.ones(2, 2, dtype=torch.complex64), TypeError, "réels"),
        (torch.ones(2, 2, dtype=torch.bool), TypeError, "réels"),
        ("une matrice", TypeError, "matrice"),
        (None, TypeError, "matrice"),
    ],
)
def test_what_is_not_a_matrix_is_refused(explorer, W, error, words):
    with pytest.raises(error, match=words):
        explorer(W)


@pytest.mark.parametrize(
    "matrices",
    [
        {},
        {"a": torch.ones(3)},
        {"a": Choice(torch.ones(0, 2))},
        {1: torch.ones(2, 2), "1": torch.ones(2, 2)},
        {i: torch.ones(1, 1) for i in range(65)},
    ],
)
def test_a_bad_collection_is_refused(matrices):
    with pytest.raises(ValueError, match="matrices"):
        SpectrumExplorer(matrices)
    with pytest.raises(ValueError, match="matrices"):
        QuantizerExplorer(matrices)
    with pytest.raises(ValueError, match="matrices"):
        RankBitsExplorer(matrices)
    with pytest.raises(ValueError, match="matrices"):
        RateDistortionExplorer(matrices)


def test_colour_images_are_told_how_to_become_grey():
    with pytest.raises(ValueError, match=r"image\.mean\(-1\)"):
        PhotoExplorer(torch.ones(4, 4, 3))
    with pytest.raises(ValueError, match=r"image\.mean\(0\)"):
        PhotoExplorer(torch.ones(3, 40, 40))


def test_a_layer_is_told_to_give_its_weight():
    with pytest.raises(TypeError, match="weight"):
        SpectrumExplorer(torch.nn.Linear(3, 2))


@pytest.mark.parametrize("W", [torch.zeros(3, 4), torch.full((4, 3), 0.5), torch.ones(1, 1), torch.ones(1, 7)])
def test_degenerate_matrices_are_shown(W):
    assert np.isfinite([SpectrumExplorer(W).error, PhotoExplorer(W).error]).all()
    assert "nan" not in repr(PhotoExplorer(W))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_every_real_dtype_is_shown(randn, dtype):
    W = (10 * randn(9, 6)).to(dtype)
    expected = lrq.truncation_errors(lrq.singular_values(W))[1]
    assert SpectrumExplorer(W, rank=2).error == pytest.approx(float(expected), abs=1e-6)
    assert PhotoExplorer(W, rank=2).error == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize("scale", [1e-300, 1e-40, 1e40, 1e300])
def test_the_unit_of_a_matrix_does_not_matter(matrix, scale):
    """Ce qui voyage est rapporté à σ₁ : ni débordement, ni zéro, même au-delà des float32."""
    W = matrix(12, 9, dtype=torch.float64)
    explorer, far = SpectrumExplorer(W, rank=4), SpectrumExplorer(W * scale, rank=4)
    assert far.error == pytest.approx(explorer.error)
    for name in ("_values", "_chance"):
        near_values, far_values = (np.frombuffer(getattr(one, name), "<f4") for one in (explorer, far))
        assert np.allclose(near_values, far_values, atol=1e-6)
    assert far._choices[0]["top"] == pytest.approx(scale * explorer._choices[0]["top"])
    assert PhotoExplorer(W * scale, rank=4).error == pytest.approx(explorer.error)


def test_numpy_arrays_and_parameters_are_matrices(rng):
    assert SpectrumExplorer(rng.standard_normal((4, 5))[::-1]).shown()[1] == (4, 5)
    assert SpectrumExplorer(rng.standard_normal((4, 5))).shown()[1] == (4, 5)
    assert PhotoExplorer(torch.nn.Linear(5, 4).weight).image.shape == (4, 5)


def test_too_many_values_are_cut_said_and_still_counted(matrix, monkeypatch):
    monkeypatch.setattr(spectrum, "MAX_VALUES", 10)
    W = matrix(30, 12)
    explorer = SpectrumExplorer({"a": W, "petite": matrix(3, 3)}, rank=4)
    record = explorer._choices[0]
    carried = np.frombuffer(explorer._values, "<f4")[: record["carried"]].astype(float)
    assert record["carried"] == 5
    assert "« a » (5 sur 12)" in explorer._note
    assert "petite" not in explorer._note
    energies = (carried / carried[0]) ** 2
    error = np.sqrt((energies[4:].sum() + record["tail"]) / (energies.sum() + record["tail"]))
    assert error == pytest.approx(explorer.error, rel=1e-5)
    with pytest.raises(
        traitlets.TraitError, match=r"rank : reçu 6, attendu au plus 5, ce que la figure montre de « a »"
    ):
        explorer.rank = 6


def test_shrinking_keeps_the_proportions_and_fits(rng, randn):
    for _ in range(30):
        m, n = (int(x) for x in 10 ** rng.uniform(0, 3.3, 2))
        small = shrink(torch.zeros(m, n))
        h, w = small.shape
        assert h * w + 2 * h * min(h, w) <= photo.MAX_BYTES
        if min(h, w) > 20 and (h, w) != (m, n):
            assert h / w == pytest.approx(m / n, rel=0.1)
            assert h * w + 2 * h * min(h, w) > 0.85 * photo.MAX_BYTES  # réduite, mais pas plus qu'il ne faut
    W = randn(20, 30)
    assert torch.equal(shrink(W), W)


def test_shrinking_averages_neighbours(randn, monkeypatch):
    monkeypatch.setattr(photo, "MAX_BYTES", 8 * 12 + 2 * 8 * 8)
    W = randn(16, 24)
    assert torch.allclose(shrink(W), W.view(8, 2, 12, 2).mean((1, 3)), atol=1e-6)


def test_a_large_image_is_said_to_be_reduced(photograph):
    assert photograph._note.startswith("Image réduite de 427 × 640 à 150 × 225 points")
    assert PhotoExplorer(torch.zeros(5, 5))._note == ""


def test_the_photograph_travels_almost_exact(photograph):
    """L'image sur 8 bits et ses vecteurs sur 16 suffisent à la reconstruire à deux niveaux de gris près."""
    m, n = photograph.image.shape
    pixels = np.frombuffer(photograph._pixels, np.uint8).reshape(m, n) / 255
    U = np.frombuffer(photograph._vectors, "<i2").reshape(m, m) / 32767
    for rank in (5, 20, m):
        exact = lrq.truncated_svd(photograph.image, rank)
        expected = (exact[0] * exact[1] @ exact[2]).numpy()
        assert np.abs(U[:, :rank] @ (U[:, :rank].T @ pixels) - expected).max() < 2 / 255


# --- l'objet ----------------------------------------------------------------------------------------------------------


def test_repr_is_stable_and_tells_the_state(matrix):
    W = matrix(20, 12)
    first, second = SpectrumExplorer({"a": W}, rank=3), SpectrumExplorer({"a": W}, rank=3)
    assert repr(first) == repr(second)
    assert re.fullmatch(r"SpectrumExplorer « a », 20 × 12 : rang 3, énergie [\d,]+ %, erreur [\d,]+ %", repr(first))
    second.rank = 4
    assert repr(first) != repr(second)
    bundle = first._repr_mimebundle_()
    bundle = bundle[0] if isinstance(bundle, tuple) else bundle
    assert bundle["text/plain"] == repr(first)
    assert "application/vnd.jupyter.widget-view+json" in bundle


def test_state_is_light(minilm, photograph):
    largest = SpectrumExplorer({f"matrice {i}": torch.eye(150) for i in range(64)})
    weights = (QuantizerExplorer.of_minilm(), QuantizerExplorer({f"matrice {i}": torch.eye(150) for i in range(64)}))
    others = (Certificate(), RandomizedExplorer(), PhotoExplorer(torch.zeros(5000, 4000)), *weights)
    for widget in (minilm, photograph, largest, *others):
        assert state_size(widget) <= STATE_LIMIT, type(widget)


def test_every_file_of_the_package_is_in_the_wheel():
    project = tomllib.loads((FOLDER.parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["lrq"]
    package = FOLDER.parents[1]
    files = [
        path.relative_to(package) for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    left = [path for path in files if path.suffix != ".py" and not any(path.match(pattern) for pattern in patterns)]
    assert left == []


@pytest.mark.parametrize("name", [path.name for path in sorted(FOLDER.glob("*.js"))])
def test_modules_import_nothing_from_elsewhere(name):
    found = re.findall(r"""(?:from|import)\s*\(?["']([^"']{0,40})""", esm(name))
    assert [source for source in found if not source.startswith("data:text/javascript;base64,")] == []


def test_a_figure_carries_only_what_it_uses():
    code = "import x;\nconst a = 1;\nexport function f() {\n  return g(2);\n}\nfunction g(b) {\n  return a;\n}\n"
    assert only(code + "let h = f;\n", {"f"}) == code
    assert only(code, {"g"}) == "import x;\nconst a = 1;\nfunction g(b) {\n  return a;\n}\n"
    assert only(code, {"a"}) == "import x;\nconst a = 1;\n"


def test_golden_cases_are_fresh_and_repeatable():
    first, again, other = (golden_cases(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert json.loads(json.dumps(first)) == first


# --- la SVD aléatoire et sa table -------------------------------------------------------------------------------------


TABLE = randomized.load_table()
RECORDS = {record["nom"]: record for record in TABLE["matrices"]}
SETTINGS = list(itertools.product(*(TABLE["réglages"][name] for name in randomized.SETTINGS)))
MEASURED = {(name, *row[:3]): row[3:] for name, record in RECORDS.items() for row in record["mesures"]}


@pytest.fixture(scope="module")
def measured_matrices():
    """Les matrices de la table, par les lignes que montre « Voir le code »."""
    matrices = {}
    for record in RandomizedExplorer()._choices:
        exec(record["code"], names := {})
        matrices[record["name"]] = names["W"]
    return matrices


def state(explorer):
    return (explorer.matrix, explorer.rank, explorer.oversample, explorer.n_iter)


def surplus(name, rank, oversample, n_iter):
    """L'excès que montre la figure à ce réglage."""
    return RandomizedExplorer(name, rank, oversample, n_iter).excess


@pytest.mark.parametrize(
    ("trait", "values"),
    [
        ("rank", [0, 7, 384, 2.5, "8", None, True, float("nan")]),
        ("oversample", [-1, 3, 41, 2.5, "2", None, False]),
        ("n_iter", [-1, 5, 0.5, "2", None, True]),
        ("matrix", ["ailleurs", "", 3, None, ["photographie"]]),
    ],
)
def test_what_was_not_measured_is_refused_and_changes_nothing(trait, values):
    explorer = RandomizedExplorer(rank=16)
    for value in values:
        before = explorer.get_state()
        with pytest.raises(traitlets.TraitError, match=rf"^{trait} : reçu .*attendu"):
            setattr(explorer, trait, value)
        assert explorer.get_state() == before
        if (trait, value) != ("matrix", None):  # sans nom : la première
            with pytest.raises(traitlets.TraitError, match=rf"^{trait} : reçu .*attendu"):
                RandomizedExplorer(**{trait: value})


def test_python_reads_sets_and_observes_the_settings():
    explorer, seen = RandomizedExplorer(), []
    explorer.observe(lambda change: seen.append((change["name"], change["new"])), ["matrix", *randomized.SETTINGS])
    explorer.rank = 64
    explorer.set_state({"matrix": "photographie", "oversample": 0, "n_iter": 3})
    assert state(explorer) == ("photographie", 64, 0, 3)
    assert set(seen) == {("rank", 64), ("matrix", "photographie"), ("oversample", 0), ("n_iter", 3)}
    with pytest.raises(traitlets.TraitError, match="n_iter"):
        explorer.set_state({"rank": 8, "n_iter": 12})
    assert state(explorer) == ("photographie", 64, 0, 3)


def test_random_rows_of_the_table_are_found_again(measured_matrices, rng):
    """La ligne de « Voir le code » retrouve l'erreur, l'optimum et la borne."""
    for name, W in measured_matrices.items():
        S = lrq.singular_values(W)
        errors = lrq.truncation_errors(S)
        for rank, oversample, n_iter in rng.choice(SETTINGS, 3, replace=False).tolist():
            explorer = RandomizedExplorer(name, rank, oversample, n_iter)
            found = lrq.approximate_svd_large(W, rank, oversample, n_iter, seed=0).error
            assert found == pytest.approx(explorer.error, rel=1e-5), explorer
            assert float(errors[rank - 1]) == pytest.approx(explorer.optimum, rel=1e-6), explorer
            assert explorer.excess == explorer.error / explorer.optimum - 1
            if n_iter == 0 and oversample >= 2:
                assert explorer.error < lrq.halko_bound(S, rank, oversample)
        seed = int(rng.choice(TABLE["réglages"]["seed"]))
        rank, oversample, n_iter = SETTINGS[int(rng.integers(len(SETTINGS)))]
        _, low, high, _ = MEASURED[name, rank, oversample, n_iter]
        found = lrq.approximate_svd_large(W, rank, oversample, n_iter, seed).error
        assert low * (1 - 1e-5) <= found <= high * (1 + 1e-5)


def test_the_table_is_whole_small_and_about_these_matrices(measured_matrices):
    assert list(RECORDS) == list(randomized.PROMPTS)
    for name, record in RECORDS.items():
        W = measured_matrices[name]
        assert [tuple(row[:3]) for row in record["mesures"]] == SETTINGS
        assert (record["forme"], record["sha256"]) == (list(W.shape), randomized_study.sha256(W))
    assert randomized_study.TABLE.stat().st_size < 100_000
    assert TABLE["commande"].endswith(randomized_study.__name__)


def test_the_study_writes_what_the_figure_reads(matrix, tmp_path, monkeypatch):
    monkeypatch.setattr(randomized_study, "OVERSAMPLES", (0, 5))
    monkeypatch.setattr(randomized_study, "ITERATIONS", (0, 2))
    threads, W = torch.get_num_threads(), matrix(40, 30)
    found = randomized_study.study(W, 3, (2, 4))
    assert torch.get_num_threads() == threads
    rows = {tuple(row[:3]): row[3:] for row in found["mesures"]}
    assert list(rows) == list(itertools.product((2, 4), (0, 5), (0, 2)))
    errors = [lrq.approximate_svd_large(W, 4, 5, 2, seed).error for seed in range(3)]
    assert rows[4, 5, 2][:3] == pytest.approx([errors[0], min(errors), max(errors)], rel=1e-5)
    assert found["optimum"] == pytest.approx(lrq.truncation_errors(lrq.singular_values(W))[[1, 3]].tolist(), rel=1e-6)
    randomized_study.write({"matrices": [found]}, tmp_path / "table.json")
    text = (tmp_path / "table.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"matrices": [found]}
    assert len(text.splitlines()) < 30


def test_measures_are_sane():
    for name, record in RECORDS.items():
        assert record["svd_complete_ms"] > 0
        for rank, *_, error, low, high, spent in record["mesures"]:
            optimum = record["optimum"][TABLE["réglages"]["rank"].index(rank)]
            assert optimum * (1 - 1e-6) <= low <= error <= high < 1, name
            assert 0 < spent < math.inf


def test_randomized_repr_is_stable_and_tells_no_time():
    text = repr(RandomizedExplorer("photographie", 8, 2, 1))
    assert re.fullmatch(
        r"RandomizedExplorer « photographie », 427 × 640 : rang 8, oversample 2, n_iter 1, "
        r"erreur \d+,\d\d % \(optimum \d+,\d\d %\)",
        text,
    )
    assert text == repr(RandomizedExplorer("photographie", 8, 2, 1))
    assert text != repr(RandomizedExplorer("photographie", 8, 2, 2))


def test_the_page_gets_the_measures_of_the_table():
    explorer = RandomizedExplorer("photographie", 8, 0, 1)
    values = np.frombuffer(explorer._values, "<f4").reshape(len(RECORDS), len(SETTINGS), 4)
    place = list(RECORDS).index("photographie"), SETTINGS.index((8, 0, 1))
    expected = [explorer.error, *MEASURED["photographie", 8, 0, 1][1:3], explorer.milliseconds]
    assert values[place] == pytest.approx(expected, rel=1e-6)
    assert explorer._choices[place[0]]["full"] == explorer.full_milliseconds


@pytest.mark.parametrize("prompt", randomized.PROMPTS.values())
def test_lines_break_where_they_may(prompt):
    shown = randomized.UNBROKEN.sub("\u00a0", prompt)
    assert not re.search(r" [:;?=]|= ", shown)
    assert shown.replace("\u00a0", " ") == prompt


# --- la quantification ------------------------------------------------------------------------------------------------


QUANTIZED = list(itertools.product(quantizer.GRANULARITIES, (True, False), lrq.quantizers.CLIPPINGS))


@pytest.fixture(scope="module")
def quantized():
    return QuantizerExplorer.of_minilm()


def reset(explorer, **settings):
    """L'explorateur, ramené au réglage le plus simple, puis aux réglages donnés."""
    simplest = {"n_bits": 4, "granularity": "tensor", "symmetric": True, "clipping": "min_max", "block": 0}
    for name, value in (simplest | settings).items():
        setattr(explorer, name, value)
    return explorer


def test_quantized_numbers_are_those_of_lrq(randn, rng):
    """L'erreur, la taille et l'écrêtage, recomptés en NumPy sur les niveaux de la grille."""
    W = randn(6, 64) * randn(6, 1).exp() + 0.3
    for granularity, symmetric, clipping in QUANTIZED:
        bits = int(rng.integers(1, 9))
        explorer = QuantizerExplorer(W, None, bits, granularity, symmetric, clipping)
        shared = {"tensor": lrq.PerTensor(), "row": lrq.PerChannel(0), "group": lrq.PerGroup(32)}[granularity]
        expected = lrq.UniformQuantizer(bits, symmetric, granularity=shared, clipping=clipping)
        back, truth = expected.quantize_dequantize(W).double().numpy(), W.double().numpy()
        assert explorer.error == pytest.approx(np.linalg.norm(back - truth) / np.linalg.norm(truth))
        assert explorer.decibels == pytest.approx(-20 * math.log10(explorer.error))
        blocks = {"tensor": 1, "row": 6, "group": 12}[granularity]
        octets = W.numel() * bits / 8 + blocks * (4 if symmetric else 5)
        assert explorer.bits_per_weight == pytest.approx(8 * octets / W.numel())
        scale = expected.compute_scale_zero_point(W)[0].double().numpy().repeat(W.numel() // blocks)
        gap = np.abs(back - truth).ravel() / scale  # qui s'arrondit ne s'écarte que d'un demi-pas
        least, most = (0, 0) if bits == 1 and symmetric else ((gap > 0.5001).mean(), (gap > 0.4999).mean())
        assert least <= explorer.clipped <= most
        noise = math.sqrt((scale**2).mean() / 12 / (truth**2).mean())
        assert explorer.predicted_error == pytest.approx(noise)


def test_uniform_noise_is_what_eight_bits_measure(quantized):
    """Là où part la droite des 6,02 dB : à 8 bits, sans écrêtage, la théorie et la mesure s'accordent."""
    for name in list(quantizer.MINILM)[1:]:
        quantized.matrix = name
        for granularity in quantizer.GRANULARITIES:
            reset(quantized, n_bits=8, granularity=granularity)
            assert quantized.predicted_error == pytest.approx(quantized.error, rel=0.05)


@pytest.mark.parametrize(
    ("trait", "values"),
    [
        ("n_bits", [0, 9, -1, 4.5, "4", None, True]),
        ("granularity", ["", "PerTensor", "column", 3, None, lrq.PerTensor()]),
        ("symmetric", [None, "oui", 2, 0.5]),
        ("clipping", ["max", "", 3, None]),
        ("block", [-1, 2, 0.5, "1", None, True]),
        ("matrix", ["ailleurs", "", 3, ["W"]]),
    ],
)
def test_impossible_quantizers_are_refused_and_change_nothing(randn, trait, values):
    W = randn(3, 32)
    explorer = QuantizerExplorer(W, n_bits=5)
    for value in values:
        before = explorer.get_state()
        with pytest.raises(traitlets.TraitError, match=rf"^{trait} : reçu .*attendu"):
            setattr(explorer, trait, value)
        assert explorer.get_state() == before
        with pytest.raises(traitlets.TraitError, match=rf"^{trait} : reçu .*attendu"):
            QuantizerExplorer(W, **{trait: value})


def test_groups_need_whole_groups(randn):
    explorer = QuantizerExplorer({"par 32": randn(3, 64), "non": randn(3, 40)}, granularity="group", block=6)
    explorer.matrix = "non"
    assert (explorer.granularity, explorer.block) == ("row", 0)
    with pytest.raises(traitlets.TraitError, match=r"^granularity : reçu 'group', attendu 'tensor' ou 'row'"):
        explorer.granularity = "group"
    explorer.block = 3
    explorer.set_state({"matrix": "par 32", "granularity": "group", "block": 5})  # l'ordre n'importe pas
    assert (explorer.matrix, explorer.granularity, explorer.block) == ("par 32", "group", 5)
    with pytest.raises(traitlets.TraitError, match="block"):
        explorer.set_state({"n_bits": 2, "block": 7})
    assert (explorer.n_bits, explorer.block) == (4, 5)


def test_the_page_gets_the_weights(randn, monkeypatch):
    """Tels quels s'ils tiennent ; sinon, les premières lignes et colonnes, que le code montré reprend."""
    monkeypatch.setattr(quantizer, "MAX_WEIGHTS", 2 * 600)
    small, tall, wide = randn(20, 30), randn(300, 10), randn(2, 5000)
    for given, shape in [(small, (20, 30)), (tall, (60, 10)), (wide, (2, 288)), (randn(50, 200), (4, 128))]:
        explorer = QuantizerExplorer({"grande": Choice(given, code="W = 0"), "autre": torch.zeros(1, 1)})
        assert torch.equal(explorer.W, given[: shape[0], : shape[1]])
        values = np.frombuffer(explorer._values, "<f4")[: shape[0] * shape[1]]
        assert (values.reshape(shape) == explorer.W.numpy()).all()
        line, record = f"W = W[:{shape[0]}, :{shape[1]}]", explorer._choices[0]
        assert (record["rows"], record["columns"]) == shape
        assert (line in record["code"]) == ("«\u00a0grande\u00a0»" in explorer._note) == (shape != tuple(given.shape))
        assert "autre" not in explorer._note


def test_extracts_are_as_large_as_they_may(rng):
    for _ in range(200):
        m, n, limit = (int(x) for x in 10 ** rng.uniform((0, 0, 2.3), (4, 4, 4)))
        rows, columns = quantizer.extract_shape(torch.Size((m, n)), limit)
        assert 1 <= rows <= m
        assert 1 <= columns <= n
        assert rows * columns <= limit
        assert columns == n or columns % 32 == 0
        assert rows == m or (rows + 1) * columns > limit


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_every_real_dtype_is_quantized(randn, dtype):
    W = (10 * randn(9, 6)).to(dtype)
    expected = lrq.UniformQuantizer(4).quantization_error(W.float())
    assert QuantizerExplorer(W).error == pytest.approx(expected)
    assert QuantizerExplorer(W.float().numpy()).error == pytest.approx(expected)


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_numbers_beyond_float32_are_refused(randn, scale):
    with pytest.raises(ValueError, match=r"^matrices\['W'\] : .*float32"):
        QuantizerExplorer(randn(4, 5, dtype=torch.float64) * scale)


def test_a_zero_matrix_has_no_error():
    for settings in QUANTIZED:
        explorer = QuantizerExplorer(torch.zeros(2, 32), None, 3, *settings)
        assert (explorer.error, explorer.decibels, explorer.clipped, explorer.predicted_error) == (0, math.inf, 0, 0)


def test_quantizer_repr_is_stable_and_tells_the_state(quantized):
    quantized.matrix = "query, bloc 1"
    reset(quantized, n_bits=1, granularity="group", clipping="mse")
    assert repr(quantized) == (
        "QuantizerExplorer « query, bloc 1 », 32 × 96 : 1 bit, PerGroup(size=32), symétrique, mse, "
        "erreur 59,1 %, 2,00 bits par poids"
    )


def test_two_bits_are_no_worse_than_four_because_of_one_weight(quantized):
    quantized.matrix = "dense 2, bloc 1"
    errors = {bits: reset(quantized, n_bits=bits).error for bits in (2, 4)}
    assert errors[2] == pytest.approx(errors[4], rel=1e-4)
    W = quantized.W.clone()
    assert W.abs().max() == models.load_minilm_weights()["encoder.layer.0.output.dense.weight"].abs().max()
    assert (quantized.quantizer.quantize(W) != 0).sum() == 1  # tous les autres tombent à zéro
    W.view(-1)[W.abs().argmax()] = 0
    scale = quantized.quantizer.compute_scale_zero_point
    assert scale(quantized.W)[0] > 30 * scale(W)[0]
    assert reset(quantized, granularity="group").error < errors[4] / 8


def test_one_bit_is_better_than_two_unless_clipped(quantized):
    quantized.matrix = "query, bloc 1"
    one, two = (reset(quantized, n_bits=bits).error for bits in (1, 2))
    assert reset(quantized, n_bits=2, clipping="mse").error < one < 0.7 * two


def test_three_clipped_weights_spoil_eight_bits(quantized):
    quantized.matrix = "dense 1, bloc 1"
    few = [reset(quantized, n_bits=4, clipping=clipping).error for clipping in ("percentile", "min_max")]
    many = [reset(quantized, n_bits=8, clipping=clipping).error for clipping in ("percentile", "min_max")]
    assert few[0] < few[1]
    assert many[0] > many[1]
    reset(quantized, n_bits=8, clipping="percentile")
    W = quantized.W
    assert quantized.clipped * W.numel() == pytest.approx(3)
    lost = (quantized.quantizer.quantize_dequantize(W) - W).flatten()
    lost[lost.abs().topk(3).indices] = 0
    assert float(lost.norm() / W.norm()) < many[1]


def test_the_largest_words_weights_are_on_one_side(quantized):
    quantized.matrix = "vecteurs de mots"
    W = quantized.W.flatten()
    assert (W[W.abs().topk(10).indices] > 0).all()
    symmetric, asymmetric = (reset(quantized, symmetric=value).error for value in (True, False))
    assert asymmetric < 0.7 * symmetric
    assert quantized.bits_per_weight < 4.02
    tokenizer = models.load_minilm().tokenizer
    assert tokenizer.convert_ids_to_tokens([1996, 1997, 1998]) == ["the", "of", "and"]


# --- rang et bits -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mapped():
    """La figure du livre ; ses tables se calculent une fois."""
    return RankBitsExplorer.of_minilm()


def small_map(randn, shape=(24, 64)):
    return RankBitsExplorer(randn(*shape), budget=30)


def made(W, order, candidate):
    """La couche que décrit un candidat, faite par lrq."""
    linear = torch.nn.Linear(W.shape[1], W.shape[0], bias=False)
    linear.weight.data = W
    rank, bits, shared = candidate.rank, candidate.n_bits, {"granularity": candidate.granularity}
    if order == "low_rank":
        return lrq.QuantizedLowRankLinear.from_linear(linear, rank, bits, **shared, rotate=True)
    if order == "alone":
        return lrq.QuantizedLinear.from_linear(linear, bits, **shared)
    return lrq.QuantizedResidualLinear.from_linear(linear, rank, bits, **shared)


def agrees(W, table, order, place):
    """Ce que dit la table d'un candidat est ce que fait la couche."""
    candidate = table.candidates[order][int(place)]
    layer = made(W, order, candidate)
    assert layer.nbytes() == candidate.nbytes, candidate
    assert layer.reconstruction_error(W) == pytest.approx(candidate.error, rel=1e-5, abs=1e-7), candidate


def test_the_map_says_what_the_layers_do(mapped, rng):
    """Sur les vraies matrices, des candidats au hasard de chaque façon."""
    for name in rank_bits.PROMPTS:
        mapped.matrix = name
        record = next(choice for choice in mapped._choices if choice["name"] == name)
        exec(record["code"], names := {})
        for order, candidates in mapped.table.candidates.items():
            for place in rng.choice(len(candidates), 4, replace=False):
                agrees(names["W"], mapped.table, order, place)


def test_small_maps_say_what_the_layers_do(randn, rng):
    """Tous les rangs, tous les bits, des dimensions qui ne tombent pas juste."""
    for _ in range(12):
        m, n = (int(x) for x in rng.integers(1, 20, 2))
        W = randn(m, n * int(rng.choice([1, 32])))
        table = RankBitsExplorer(W).table
        for order, candidates in table.candidates.items():
            for place in rng.integers(len(candidates), size=8):
                agrees(W, table, order, place)


def test_the_grid_goes_from_one_to_the_largest_rank():
    assert rank_bits.grid(384) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384]
    assert rank_bits.grid(384, coarse=True) == [1, 2, 4, 8, 16, 32, 64, 128, 256, 384]
    for p in range(1, 300):
        ranks = rank_bits.grid(p)
        assert (ranks[0], ranks[-1]) == (1, p)
        assert ranks == sorted(set(ranks))
        assert len(ranks) == 1 or p >= 1.2 * ranks[-2]


def test_a_large_matrix_has_a_coarser_map(randn, monkeypatch):
    monkeypatch.setattr(rank_bits, "LARGE", 63 * 64)
    coarse, fine = (RankBitsExplorer(randn(m, 64)).table for m in (64, 63))
    assert coarse.ranks == [1, 2, 4, 8, 16, 32, 64]
    assert coarse.granularities == [lrq.PerChannel(0), lrq.PerGroup(64)]
    assert len(fine.ranks) > len(coarse.ranks)
    assert fine.granularities == [lrq.PerChannel(0), lrq.PerGroup(32), lrq.PerGroup(64)]


def test_the_best_within_a_budget(rng):
    for _ in range(50):
        errors, sizes = rng.integers(1, 9, (2, 20)).tolist()
        limit = int(rng.integers(0, 9))
        place = rank_bits.best_within(errors, sizes, limit)
        allowed = [(error, size) for error, size in zip(errors, sizes, strict=True) if size <= limit]
        assert ((errors[place], sizes[place]) if place >= 0 else None) == min(allowed, default=None)


def test_nothing_beats_the_front(rng):
    for _ in range(50):
        errors, sizes = rng.integers(1, 9, (2, 20)).tolist()
        pairs = list(zip(errors, sizes, strict=True))
        front = [pairs[i] for i in rank_bits.pareto_front(errors, sizes)]
        unbeaten = {p for p in pairs if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in pairs)}
        assert len(front) == len(set(front))
        assert set(front) == unbeaten
        assert [size for _, size in front] == sorted(size for _, size in front)


def test_the_best_pair_is_on_the_front_and_in_the_budget(randn, rng):
    explorer = small_map(randn)
    for budget in rng.choice(list(rank_bits.BUDGETS), 8, replace=False).tolist():
        explorer.budget = budget
        assert explorer.limit == pytest.approx(24 * 64 * 4 * budget / 100)
        if explorer.best is None:
            assert min(pair.nbytes for pair in explorer.front) > explorer.limit
        else:
            assert explorer.best in explorer.front
            assert explorer.best.nbytes <= explorer.limit
        found = {order: best.error for order, best in explorer.orders.items() if best}
        assert (explorer.winner is None) == (not found)
        assert all(found[explorer.winner] <= error for error in found.values())


def test_a_tiny_budget_holds_nothing(randn):
    explorer = RankBitsExplorer(randn(8, 8), budget=1)
    assert (explorer.best, explorer.winner) == (None, None)
    assert "meilleure paire dans 1 % de W : aucune" in repr(explorer)


@pytest.mark.parametrize(
    ("trait", "values"),
    [
        ("rank", [0, 5, 25, -1, 2.5, "8", None, True, float("nan")]),
        ("n_bits", [1, 9, 0, 4.5, "4", None, True]),
        ("budget", [0, 41, -1, 12.5, "14", None, True]),
        ("matrix", ["ailleurs", "", 3, ["W"]]),
    ],
)
def test_impossible_pairs_are_refused_and_change_nothing(randn, trait, values):
    explorer = small_map(randn)
    for value in values:
        before = explorer.get_state()
        with pytest.raises(traitlets.TraitError, match=rf"^{trait} : reçu .*attendu"):
            setattr(explorer, trait, value)
        assert explorer.get_state() == before
        if (trait, value) != ("rank", None):  # sans rang : le quart du plus grand
            with pytest.raises(traitlets.TraitError, match=rf"^{trait} : reçu .*attendu"):
                RankBitsExplorer(torch.ones(24, 64), **{trait: value})


def test_another_matrix_takes_the_closest_rank(randn):
    explorer = RankBitsExplorer({"grande": randn(64, 48), "petite": randn(7, 9)}, rank=32)
    explorer.matrix = "petite"
    assert explorer.rank == 7
    explorer.set_state({"rank": 48, "matrix": "grande", "budget": 3})  # l'ordre n'importe pas
    assert (explorer.matrix, explorer.rank, explorer.budget) == ("grande", 48, 3)
    with pytest.raises(traitlets.TraitError, match="rank"):
        explorer.set_state({"budget": 4, "rank": 33})
    assert (explorer.rank, explorer.budget) == (48, 3)


def test_the_page_gets_the_errors_in_the_order_of_the_table(randn):
    explorer = RankBitsExplorer({"a": randn(6, 32), "b": Choice(randn(5, 5), code="W = 0")})
    values = np.frombuffer(explorer._values, "<f4")
    expected = [
        candidate.error
        for table in explorer._tables.values()
        for order in rank_bits.ORDERS
        for candidate in table.candidates[order]
    ]
    assert values.tolist() == expected
    first, second = explorer._choices
    assert (first["groups"], second["groups"]) == ([0, 32], [0])
    assert (first["code"], second["code"]) == ("# W : votre matrice, en tenseur float32", "W = 0")


@pytest.mark.parametrize("W", [torch.zeros(3, 4), torch.full((4, 3), 0.5), torch.ones(1, 1), torch.ones(1, 7)])
def test_degenerate_matrices_have_a_map(W):
    errors = [candidate.error for all_ in RankBitsExplorer(W).table.candidates.values() for candidate in all_]
    assert np.isfinite(errors).all()
    assert W.any() or max(errors) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_every_real_dtype_has_a_map(randn, dtype):
    W = (10 * randn(9, 6)).to(dtype)
    assert repr(RankBitsExplorer(W)) == repr(RankBitsExplorer(W.float())) == repr(RankBitsExplorer(W.float().numpy()))


def test_the_state_of_the_map_is_light_and_its_matrices_few(mapped, monkeypatch):
    assert state_size(mapped) <= STATE_LIMIT
    table = mapped._tables["query, bloc 1"]
    monkeypatch.setattr(rank_bits, "Table", lambda W: table)
    many = {f"matrice {i}": torch.ones(1, 1) for i in range(rank_bits.MAX_MATRICES)}
    assert state_size(RankBitsExplorer(many)) <= STATE_LIMIT
    with pytest.raises(ValueError, match="matrices : reçu 25 matrices, attendu au plus 24"):
        RankBitsExplorer(many | {"une de trop": torch.ones(1, 1)})


def test_rank_bits_repr_is_stable_and_tells_the_state(mapped):
    mapped.matrix, mapped.rank, mapped.n_bits, mapped.budget = "query, bloc 1", 96, 8, 14
    assert repr(mapped) == (
        "RankBitsExplorer « query, bloc 1 », 384 × 384 : rang 96, 8 bits, erreur 46,3 %, 76\u202f800 octets ; "
        "meilleure paire dans 14 % de W : (192, 4), erreur 25,3 %"
    )


def winners(mapped, name):
    """La façon la plus fidèle et toutes les erreurs, à chaque budget."""
    mapped.matrix, found = name, {}
    for budget in rank_bits.BUDGETS:
        mapped.budget = budget
        found[budget] = mapped.winner, {order: best.error for order, best in mapped.orders.items() if best}
    return found


def test_fewer_bits_and_a_higher_rank_weigh_the_same_and_lose_less(mapped):
    pairs = {(pair.rank, pair.n_bits): pair for pair in mapped._tables["query, bloc 1"].candidates["low_rank"]}
    assert pairs[96, 8].nbytes == pairs[192, 4].nbytes
    assert pairs[192, 4].error < 0.6 * pairs[96, 8].error


def test_a_low_rank_only_wins_on_query_by_losing_a_third_of_it(mapped):
    won = [errors["low_rank"] for winner, errors in winners(mapped, "query, bloc 1").values() if winner == "low_rank"]
    assert min(won) > 1 / 3
    found = winners(mapped, "query, bloc 1")
    assert [budget for budget, (winner, _) in found.items() if winner == "low_rank"] == [1, 2, 3, 7, 8, 9]
    assert [budget for budget, (_, errors) in found.items() if len(errors) == 1] == [1, 2, 3]


def test_a_low_rank_never_wins_on_dense_2_once_something_else_fits(mapped):
    found = winners(mapped, "dense 2, bloc 1")
    assert [budget for budget, (winner, _) in found.items() if winner == "low_rank"] == [1, 2, 3]
    assert [budget for budget, (_, errors) in found.items() if len(errors) == 1] == [1, 2, 3]
    gaps = {
        budget: errors["low_rank"] / min(error for order, error in errors.items() if order != "low_rank")
        for budget, (_, errors) in found.items()
        if len(errors) > 1
    }
    assert min(gaps, key=gaps.get) == 9
    assert 1 < gaps[9] < 1.01


def test_a_low_rank_wins_on_positions_up_to_a_fifth(mapped):
    found = winners(mapped, "vecteurs de position")
    assert [budget for budget, (winner, _) in found.items() if winner == "low_rank"] == list(range(1, 20))
    assert found[2][1].keys() == {"low_rank"}
    assert found[2][1]["low_rank"] < 0.16
    assert found[19][1]["low_rank"] < 0.05


def test_noise_loses_more_than_query_at_the_same_pair(mapped):
    pairs = {}
    for name in ("query, bloc 1", "hasard gaussien"):
        mapped.matrix, mapped.budget = name, 14
        pairs[name] = mapped.best
        assert (mapped.best.rank, mapped.best.n_bits) == (192, 4)
    assert pairs["hasard gaussien"].error > 1.4 * pairs["query, bloc 1"].error
    won = [budget for budget, (winner, _) in winners(mapped, "hasard gaussien").items() if winner == "low_rank"]
    assert won == [1, 2, 3]


@pytest.mark.parametrize("prompt", rank_bits.PROMPTS.values())
def test_lines_of_the_map_break_where_they_may(prompt):
    assert not re.search(r" [:;?=]|= ", rank_bits.UNBROKEN.sub("\u00a0", prompt))


# --- débit et distorsion ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rated():
    """La figure du livre ; ses courbes se calculent une fois."""
    return RateDistortionExplorer.of_minilm()


def recipe_layer(W, recipe, candidate):
    """La couche que décrit un point d'une courbe, faite par lrq."""
    linear = torch.nn.Linear(W.shape[1], W.shape[0], bias=False)
    linear.weight.data = W
    if recipe == "float32":
        return lrq.SVDCompressedLinear.from_linear(linear, candidate.rank)
    if recipe in ("low_rank", "residual"):
        return made(W, recipe, candidate)
    clipping = "mse" if recipe == "mse" else "min_max"
    granularity = {"tensor": lrq.PerTensor(), "group": candidate.granularity}.get(recipe, lrq.PerChannel(0))
    return lrq.QuantizedLinear.from_linear(linear, candidate.n_bits, granularity, clipping)


def check_curve(W, curves, recipe, place):
    """Un point d'une courbe dit ce que fait la couche ; à peine moins bien au rang plein, où rien ne devrait rester."""
    candidate = curves.points[recipe][int(place)]
    layer = recipe_layer(W, recipe, candidate)
    assert layer.nbytes() == candidate.nbytes, candidate
    assert layer.reconstruction_error(W) == pytest.approx(candidate.error, rel=1e-5, abs=1e-6), candidate


def test_the_curves_say_what_the_layers_do(rated, rng):
    """Sur les vraies matrices, des points au hasard de chaque recette."""
    for name in rate_distortion.PROMPTS:
        rated.matrix = name
        record = next(choice for choice in rated._choices if choice["name"] == name)
        exec(record["code"], names := {})
        for recipe, points in rated.curves.points.items():
            for place in rng.choice(len(points), 2, replace=False):
                check_curve(names["W"], rated.curves, recipe, place)


def test_small_curves_say_what_the_layers_do(randn, rng):
    for _ in range(8):
        m, n = (int(x) for x in rng.integers(1, 20, 2))
        W = randn(m, n * int(rng.choice([1, 32])))
        curves = RateDistortionExplorer(W).curves
        assert set(curves.points) == set(rate_distortion.RECIPES) - (set() if W.shape[1] % 32 == 0 else {"group"})
        for recipe, points in curves.points.items():
            for place in rng.integers(len(points), size=4):
                check_curve(W, curves, recipe, place)


def test_groups_are_of_32_when_they_may_be(randn):
    sizes = {n: RateDistortionExplorer(randn(6, n)).curves.points["group"][0].granularity.size for n in (32, 64, 96)}
    assert sizes == {32: 32, 64: 32, 96: 32}


def test_the_best_of_each_recipe_fits_the_budget(randn, rng):
    explorer = RateDistortionExplorer(randn(24, 64))
    table = rank_bits.Table(explorer.curves.W)
    for tenths in rng.choice(list(rate_distortion.BUDGETS), 12, replace=False).tolist():
        explorer.budget = tenths / 10
        allowed = {
            recipe: [c for c in points if 80 * c.nbytes <= tenths * 24 * 64]
            for recipe, points in explorer.curves.points.items()
        }
        for recipe, best in explorer.bests.items():
            assert (best is None) == (not allowed[recipe])
            assert best is None or best.error == min(c.error for c in allowed[recipe])
            assert best is None or explorer.curves.rate(best) <= explorer.budget + 1e-9
        for order in ("low_rank", "residual"):  # l'enveloppe n'a rien perdu de la table
            assert explorer.bests[order] == table.best(order, tenths * 24 * 64 / 80)
        found = [best.error for best in explorer.bests.values() if best]
        assert explorer.error == (min(found) if found else 1.0)
        if explorer.point is not None:
            assert explorer.point == explorer.bests[explorer.winner]
            assert explorer.wasted == pytest.approx(explorer.rate - math.log2(1 / explorer.error))


def test_a_budget_exactly_reached_is_enough(randn):
    """32 bits d'échelle pour 320 poids : 4 bits par poids en font 4,1."""
    explorer = RateDistortionExplorer(randn(10, 32), budget=4.1, recipe="tensor")
    assert (explorer.point.n_bits, explorer.rate) == (4, 4.1)
    explorer.budget = 4
    assert explorer.point.n_bits == 3


def test_the_theory_is_that_of_lrq(rated):
    for name in rate_distortion.PROMPTS:
        rated.matrix = name
        S = lrq.singular_values(rated.curves.W)
        for budget in (0.5, 2.0, 7.3):
            rated.budget = budget
            error, allocation = lrq.water_filling(S, budget)
            assert rated.water[0] == pytest.approx(error, rel=1e-5)
            assert abs(rated.water[1] - int((allocation > 0).sum())) <= 1
    for bits in (0.0, 1.5, 8.0):
        assert rate_distortion.wasted_bits(bits, 2**-bits) == pytest.approx(0)
        assert rate_distortion.wasted_bits(bits, 0.0) == -math.inf


@pytest.mark.parametrize(
    ("trait", "values"),
    [
        ("budget", [0.4, 10.1, 4.15, 0, -1, float("nan"), float("inf"), None, "4", True]),
        ("recipe", ["ailleurs", "", 3, None, ["row"]]),
        ("matrix", ["ailleurs", "", 3, ["W"]]),
    ],
)
def test_impossible_rates_are_refused_and_change_nothing(randn, trait, values):
    W = randn(6, 32)
    explorer = RateDistortionExplorer(W, budget=3)
    for value in values:
        before = explorer.get_state()
        with pytest.raises(traitlets.TraitError, match=rf"^{trait} : reçu .*attendu"):
            setattr(explorer, trait, value)
        assert explorer.get_state() == before
        with pytest.raises(traitlets.TraitError, match=rf"^{trait} : reçu .*attendu"):
            RateDistortionExplorer(W, **{trait: value})


def test_python_and_the_page_set_the_rate(randn):
    explorer, seen = RateDistortionExplorer({"a": randn(6, 32), "b": randn(5, 7)}), []
    explorer.observe(lambda change: seen.append((change["name"], change["new"])), ["matrix", "budget", "recipe"])
    explorer.budget = 0.1 + 0.2 + 4  # 4,3 à l'arrondi près
    explorer.set_state({"matrix": "b", "budget": 6, "recipe": "group"})
    assert seen == [("budget", 4.3), ("matrix", "b"), ("budget", 6.0), ("recipe", "group")]
    assert explorer.point is None  # 7 colonnes ne font pas de groupes
    assert "rien n'y tient" in repr(explorer)
    with pytest.raises(traitlets.TraitError, match="budget"):
        explorer.set_state({"recipe": "row", "budget": 40})
    assert (explorer.recipe, explorer.budget) == ("group", 6.0)


def test_the_page_gets_the_curves_in_order(randn):
    explorer = RateDistortionExplorer({"a": randn(6, 32), "b": Choice(randn(5, 5), code="W = 0")})
    values, expected = np.frombuffer(explorer._values, "<f4").tolist(), []
    for curves in explorer._curves.values():
        expected += curves.S.tolist()
        expected += [c.error for recipe, points in curves.points.items() if recipe != "float32" for c in points]
    assert values == expected
    first, second = explorer._choices
    assert ("group" in first["points"], "group" in second["points"]) == (True, False)
    assert first["points"]["tensor"] == [[bits, 0, 1] for bits in range(1, 9)]
    assert first["points"]["row"] == [[bits, 0, 6] for bits in range(1, 9)]
    assert (first["code"], second["code"]) == ("# W : votre matrice, en tenseur float32", "W = 0")


@pytest.mark.parametrize("W", [torch.zeros(3, 4), torch.full((4, 3), 0.5), torch.ones(1, 1), torch.ones(1, 7)])
def test_degenerate_matrices_have_curves(W):
    explorer = RateDistortionExplorer(W)
    assert np.isfinite([c.error for points in explorer.curves.points.values() for c in points]).all()
    assert "nan" not in repr(explorer)
    assert "inf" not in repr(explorer)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_every_real_dtype_has_curves(randn, dtype):
    W = (10 * randn(9, 6)).to(dtype)
    shown = {repr(RateDistortionExplorer(form, budget=9)) for form in (W, W.float(), W.float().numpy())}
    assert len(shown) == 1


def test_the_state_of_the_curves_is_light_and_its_matrices_few(rated, monkeypatch):
    assert state_size(rated) <= STATE_LIMIT
    longest = max(rated._curves.values(), key=lambda curves: len(str(curves.record())))
    monkeypatch.setattr(rate_distortion, "Curves", lambda W: longest)
    many = {f"matrice {i}": torch.ones(1, 1) for i in range(rate_distortion.MAX_MATRICES)}
    assert state_size(RateDistortionExplorer(many)) <= STATE_LIMIT
    with pytest.raises(ValueError, match="matrices : reçu 13 matrices, attendu au plus 12"):
        RateDistortionExplorer(many | {"une de trop": torch.ones(1, 1)})
    with pytest.raises(ValueError, match="matrices : reçu 9000 valeurs singulières en tout, attendu au plus 8000"):
        RateDistortionExplorer({i: torch.ones(4500, 4500) for i in range(2)})


def test_rate_distortion_repr_is_stable_and_tells_the_state(rated):
    rated.matrix, rated.budget, rated.recipe = "query, bloc 1", 4.1, "best"
    assert repr(rated) == (
        "RateDistortionExplorer « query, bloc 1 », 384 × 384, 4,1 bits par poids : une échelle par ligne, au moindre "
        "carré, erreur 11,6 % pour 4,08 bits, à 0,98 bit de la droite"
    )


def rates(rated, name):
    """Erreur, bits de trop et façon la plus fidèle, à chaque budget d'une matrice."""
    rated.matrix, rated.recipe, found = name, "best", {}
    for tenths in rate_distortion.BUDGETS:
        rated.budget = tenths / 10
        errors = {recipe: best.error for recipe, best in rated.bests.items() if best}
        wasted = {
            recipe: rate_distortion.wasted_bits(rated.curves.rate(best), best.error)
            for recipe, best in rated.bests.items()
            if best
        }
        found[tenths] = errors, wasted, rated.winner
    return found


def test_groups_of_query_do_not_pay_for_their_scales(rated):
    found = rates(rated, "query, bloc 1")
    assert found[50][2] == "group"
    for tenths in range(51, 58):  # un dixième de bit de plus, et les lignes ont un bit de plus
        errors = found[tenths][0]
        assert errors["mse"] < errors["row"] < 0.7 * errors["group"]


def test_a_giant_weight_makes_six_bits_worse_than_one(rated):
    found = rates(rated, "dense 2, bloc 1")
    one, *_, six, _, _ = (c.error for c in rated.curves.points["tensor"])
    assert one < 0.66 < 0.94 < six
    ahead = [t for t, (errors, _, _) in found.items() if "group" in errors and errors["group"] < errors["mse"]]
    assert set(range(60, 101)) <= set(ahead)
    assert not set(ahead) & set(range(51, 60))
    assert all(found[tenths][0]["mse"] <= found[tenths][0]["row"] for tenths in range(60, 101))


def test_positions_pass_under_the_line_up_to_four_bits(rated):
    found = rates(rated, "vecteurs de position")
    assert [t for t, (_, wasted, _) in found.items() if wasted["low_rank"] < 0] == list(range(5, 43))
    assert [t for t, (_, _, winner) in found.items() if winner == "low_rank"] == list(range(5, 63))


def test_nothing_passes_under_the_line_of_noise_but_water(rated):
    found = rates(rated, "hasard gaussien")
    points = [c for all_ in rated.curves.points.values() for c in all_ if rated.curves.rate(c) <= 10]
    assert min(rate_distortion.wasted_bits(rated.curves.rate(c), c.error) for c in points) > 0
    assert min(found[11][1], key=found[11][1].get) == "tensor"
    for tenths in rate_distortion.BUDGETS:
        rated.budget = tenths / 10
        assert rated.water[0] < 2**-rated.budget


@pytest.mark.parametrize("prompt", rate_distortion.PROMPTS.values())
def test_lines_of_the_curves_break_where_they_may(prompt):
    assert not re.search(r" [:;?=!]|= ", rank_bits.UNBROKEN.sub("\u00a0", prompt))


# --- la propagation d'une erreur --------------------------------------------------------------------------------------


DIGITS = models.load_digits_network("mlp").requires_grad_(False)
TEST_X, TEST_Y = models.load_digits_data()[1]
WHOLE = propagation.WHOLE


def truncated_digits(ranks):
    """Le réseau dont chaque couche qui n'est pas entière est remplacée par sa SVD tronquée."""
    cut = {name: r for name, r, whole in zip(propagation.NAMES, ranks, WHOLE, strict=True) if r < whole}
    convert = {name: lambda layer, r=r: lrq.FactorizedLinear.from_linear(layer, r) for name, r in cut.items()}
    return lrq.replace_linears(DIGITS, convert)


def drawn_ranks(rng):
    """Trois rangs des grilles, au hasard."""
    return tuple(int(rng.choice(grid)) for grid in propagation.GRIDS.values())


def test_propagated_errors_are_those_of_lrq(rng):
    for ranks in [WHOLE, (16, 16, 10), *(drawn_ranks(rng) for _ in range(12))]:
        explorer, network = PropagationExplorer(*ranks), truncated_digits(ranks)
        report = lrq.analyze_cumulative_error(DIGITS, network, TEST_X)
        assert explorer.errors == pytest.approx(list(report["layer_errors"].values()), rel=1e-5, abs=1e-9), ranks
        assert explorer.error == pytest.approx(report["relative_error"], rel=1e-5, abs=1e-9)
        assert explorer.accuracy == pytest.approx(models.accuracy(network, TEST_X, TEST_Y), abs=1e-12)
        alone = [
            lrq.analyze_cumulative_error(
                DIGITS, truncated_digits([r if i == j else WHOLE[j] for j in range(3)]), TEST_X
            )["relative_error"]
            for i, r in enumerate(ranks)
        ]
        assert explorer.alone == pytest.approx(alone, rel=1e-5, abs=1e-9)
        assert explorer.quadrature == pytest.approx(math.hypot(*alone), rel=1e-5, abs=1e-9)
    assert explorer.original_accuracy == models.accuracy(DIGITS, TEST_X, TEST_Y)


def test_the_bound_uses_the_norms_of_the_truncated_layers(rng):
    """‖Ŵ‖₂ et ‖W − Ŵ‖₂ des matrices tronquées elles-mêmes, non lues sur le spectre."""
    for ranks in [(16, 16, 10), *(drawn_ranks(rng) for _ in range(4))]:
        network, h, gains, own, sizes = truncated_digits(ranks), TEST_X.flatten(1), [], [], []
        for name in propagation.NAMES:
            linear, layer = DIGITS.get_submodule(name), network.get_submodule(name)
            W, W_hat = linear.weight, lrq.errors.dense_weight(layer).detach()
            gains.append(float(torch.linalg.matrix_norm(W_hat, 2)))
            own.append(float(torch.linalg.matrix_norm(W - W_hat, 2) * h.norm()))
            sizes.append(float(linear(h).norm()))
            h = linear(h).relu()
        expected = [b / size for b, size in zip(lrq.propagation_bound(gains, own), sizes, strict=True)]
        explorer = PropagationExplorer(*ranks)
        assert explorer.bounds == pytest.approx(expected, rel=1e-4, abs=1e-9), ranks
        assert explorer.excess == (explorer.bounds[-1] / explorer.error if explorer.error else 1)


def test_the_bound_holds_everywhere_and_only_whole_layers_are_exact():
    explorer = PropagationExplorer()
    for ranks in itertools.product(*propagation.GRIDS.values()):
        explorer.rank1, explorer.rank2, explorer.rank3 = ranks
        for place, (error, bound) in enumerate(zip(explorer.errors, explorer.bounds, strict=True)):
            assert error <= bound
            assert (error == 0) == (bound == 0) == (ranks[: place + 1] == WHOLE[: place + 1])


@pytest.mark.parametrize("trait", propagation.GRIDS)
@pytest.mark.parametrize("value", [0, 3, 257, -1, 2.5, "16", None, True, float("nan")])
def test_ranks_that_were_not_measured_are_refused(trait, value):
    explorer = PropagationExplorer(8, 12, 9)
    before = explorer.get_state()
    with pytest.raises(traitlets.TraitError, match=rf"^{trait} : reçu .*attendu"):
        setattr(explorer, trait, value)
    assert explorer.get_state() == before
    with pytest.raises(traitlets.TraitError, match=rf"^{trait} : reçu .*attendu"):
        PropagationExplorer(**{trait: value})


def test_python_and_the_page_set_the_three_ranks():
    explorer, seen = PropagationExplorer(), []
    explorer.observe(lambda change: seen.append((change["name"], change["new"])), list(propagation.GRIDS))
    explorer.rank1 = 64
    explorer.set_state({"rank2": 256, "rank3": 8})
    assert seen == [("rank1", 64), ("rank2", 256), ("rank3", 8)]
    with pytest.raises(traitlets.TraitError, match="rank3 : reçu 16"):
        explorer.set_state({"rank1": 8, "rank3": 16})
    assert explorer.ranks == (64, 256, 8)


def test_the_network_is_measured_once_and_its_state_is_light():
    assert PropagationExplorer()._measures is PropagationExplorer(1, 1, 1)._measures
    assert state_size(PropagationExplorer()) <= STATE_LIMIT


def test_propagation_repr_is_stable_and_tells_the_state():
    assert repr(PropagationExplorer()) == (
        "PropagationExplorer, rangs 16, 16, entière : erreur 37,7 % en sortie (borne 773 %, quadrature 37,9 %), "
        "82,4 % des chiffres reconnus"
    )


def test_the_error_falls_while_the_bound_climbs():
    """Ce que dit l'invitation : les deux mouvements, et la première couche qui fait presque toute l'erreur."""
    explorer = PropagationExplorer()
    assert explorer.errors == sorted(explorer.errors, reverse=True)
    assert explorer.bounds == sorted(explorer.bounds)
    first, second, third = explorer.alone
    assert third == 0
    assert first > 0.99 * explorer.error > 10 * second
    assert not re.search(r" [:;?=!]|= ", explorer._prompt)


# --- LoRA et sa table -------------------------------------------------------------------------------------------------


LORA = lora.load_table()
LORA_SETTINGS = list(itertools.product(*(LORA["réglages"][name] for name in lora.SETTINGS)))
TURNED = lora_study.turned_digits()


def learned(scaling, lr, rank):
    """Ce que montre la figure à ce réglage."""
    return LoRAExplorer(rank, scaling, lr)


def check_curve_of_lora(network, lr, seed, stored):
    """Les deux premières époques, refaites : aux pas 0,001 et 0,003, une autre machine s'en écarte à peine."""
    found = lora_study.follow(network, *TURNED, lr, seed, 2)
    assert found == pytest.approx(stored[:3], abs=9), (lr, seed)


def test_random_curves_of_lora_are_found_again(rng):
    rows = [row for row in LORA["lora"] if row["lr"] < 0.01]
    for place in rng.choice(len(rows), 2, replace=False):
        row, seed = rows[place], int(rng.choice(LORA["réglages"]["seed"]))
        network = lora_study.adapted(row["rank"], row["scaling"], seed)
        check_curve_of_lora(network, row["lr"], seed, row["justes"][seed])
    whole, seed = LORA["complet"], int(rng.choice(LORA["réglages"]["seed"]))
    check_curve_of_lora(models.load_digits_network("mlp"), whole["lr"], seed, whole["justes"][seed])


def test_the_study_of_lora_trains_as_fit_does():
    """« Voir le code » appelle models.fit ; la table, elle, se lit à chaque époque."""
    train, (x, y) = TURNED
    before = torch.get_rng_state()
    found = lora_study.follow(lora_study.adapted(4, "alpha", 3), train, (x, y), 0.003, 3, 2)
    assert torch.equal(before, torch.get_rng_state())
    network = models.fit(lora_study.adapted(4, "alpha", 3), *train, epochs=2, lr=0.003, seed=3)
    assert len(found) == 3
    assert found[-1] == round(models.accuracy(network, x, y) * len(y))
    assert found[0] == LORA["lora"][0]["justes"][0][0], "avant d'apprendre, c'est le réseau d'origine"


def test_the_table_of_lora_is_whole_and_small():
    assert [tuple(row[name] for name in lora.SETTINGS) for row in LORA["lora"]] == LORA_SETTINGS
    size = (len(LORA["réglages"]["seed"]), LORA["réglages"]["epochs"] + 1)
    for row in (LORA["complet"], *LORA["lora"]):
        assert np.shape(row["justes"]) == size
        assert 0 <= np.min(row["justes"]) <= np.max(row["justes"]) <= LORA["images"] == len(TURNED[1][1])
    for scaling in LORA["réglages"]["scaling"]:  # au rang 1, les trois échelles n'en font qu'une
        assert np.array_equal(learned(scaling, 0.003, 1).runs, learned("alpha", 0.003, 1).runs)
    assert lora_study.TABLE.stat().st_size < 100_000
    assert LORA["commande"].endswith(lora_study.__name__)


def test_full_training_has_the_best_of_its_rates():
    tried = dict(LORA["complet"]["pas_essayés"])
    assert tuple(tried) == lora_study.FULL_RATES
    assert LORA["complet"]["lr"] == max(tried, key=tried.get)
    assert min(tried) < LORA["complet"]["lr"] < max(tried), "le meilleur pas n'est pas au bord de ceux qu'on essaie"


def test_the_study_of_lora_writes_a_curve_a_line(tmp_path):
    table = {"lora": [{"scaling": "alpha/r", "justes": [[1, 2, 3], [4, 5, 6]]}], "lr": 0.001}
    lora_study.write(table, tmp_path / "table.json")
    text = (tmp_path / "table.json").read_text(encoding="utf-8")
    assert json.loads(text) == table
    assert "[1, 2, 3],\n" in text


@pytest.mark.filterwarnings("ignore:rank")
def test_networks_are_weighed_as_lrq_counts_them(rng):
    """Toutes les formes, tous les paramètres : ceux de vrais réseaux adaptés."""
    digits, encoder = models.load_digits_network("mlp"), models.load_minilm()
    targets = {
        "MLP des chiffres": (digits, None),
        "MiniLM, 36 couches": (encoder, models.encoder_linears(encoder)),
        "MiniLM, query et value": (encoder, ["query", "value"]),
    }
    assert [record["nom"] for record in LORA["réseaux"]] == list(targets) == list(lora.CODES)
    for name, (network, layers) in targets.items():
        rank = int(rng.choice(LORA["réglages"]["rank"]))
        found = lrq.convert_model_to_lora(network, layers, rank=rank)
        explorer = LoRAExplorer(rank, network=name)
        assert explorer.trained == sum(p.numel() for p in found.parameters() if p.requires_grad)
        assert explorer.total == sum(p.numel() for p in network.parameters())
        assert explorer.share == explorer.trained / explorer.total
        place = LORA["réglages"]["rank"].index(rank)
        assert [each["trained"][place] for each in explorer._networks if each["name"] == name] == [explorer.trained]


@pytest.mark.filterwarnings("ignore:rank")
def test_memory_is_what_training_allocates(rng):
    """Poids, gradients et moments, pesés après un pas d'Adam."""
    rank = int(rng.choice(LORA["réglages"]["rank"]))
    explorer, (x, y) = LoRAExplorer(rank), TURNED[0]
    networks = {
        explorer.nbytes: lora_study.adapted(rank, "alpha", 0),
        explorer.full_nbytes: models.load_digits_network("mlp"),
    }
    for expected, network in networks.items():
        learning = [p for p in network.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(learning)
        torch.nn.functional.cross_entropy(network(x[:8]), y[:8]).backward()
        optimizer.step()
        moments = [p for state in optimizer.state.values() for p in (state["exp_avg"], state["exp_avg_sq"])]
        parts = (network.parameters(), [p.grad for p in learning], moments)
        assert tuple(sum(p.nbytes for p in part) for part in parts) == expected


@pytest.mark.parametrize(
    ("trait", "values"),
    [
        ("rank", [0, 3, 64, 2.5, "8", None, True, float("nan")]),
        ("scaling", ["beta", "", 3, None, ["alpha"]]),
        ("lr", [0, 0.002, -0.001, "0.001", None, True, float("nan")]),
        ("network", ["ailleurs", "", 3, None]),
    ],
)
def test_what_lora_did_not_measure_is_refused_and_changes_nothing(trait, values):
    explorer = LoRAExplorer()
    for value in values:
        before = explorer.get_state()
        with pytest.raises(traitlets.TraitError, match=rf"^{trait} : reçu .*attendu"):
            setattr(explorer, trait, value)
        assert explorer.get_state() == before
        if (trait, value) != ("network", None):  # sans nom : le réseau des mesures
            with pytest.raises(traitlets.TraitError, match=rf"^{trait} : reçu .*attendu"):
                LoRAExplorer(**{trait: value})


def test_python_and_the_page_set_lora():
    explorer, seen = LoRAExplorer(), []
    explorer.observe(lambda change: seen.append((change["name"], change["new"])), [*lora.SETTINGS, "network"])
    explorer.rank = 32
    explorer.set_state({"scaling": "alpha", "lr": 0.01, "network": "MiniLM, 36 couches"})
    assert set(seen) == {("rank", 32), ("scaling", "alpha"), ("lr", 0.01), ("network", "MiniLM, 36 couches")}
    with pytest.raises(traitlets.TraitError, match=r"lr : reçu 0\.5"):
        explorer.set_state({"rank": 1, "lr": 0.5})
    assert (explorer.rank, explorer.lr) == (32, 0.01)


def test_the_page_gets_the_curves_of_the_table(rng):
    explorer = LoRAExplorer()
    values = np.frombuffer(explorer._values, "<u2").reshape(len(LORA_SETTINGS) + 1, *explorer.runs.shape)
    for place in rng.choice(len(LORA_SETTINGS), 3, replace=False):
        assert np.array_equal(values[place] / LORA["images"], learned(*LORA_SETTINGS[place]).runs)
    assert np.array_equal(values[-1], LORA["complet"]["justes"])
    assert (values[-1].mean(0) / LORA["images"]).tolist() == pytest.approx(explorer.full_curve)
    assert explorer.spread == (explorer.runs[:, -1].min(), explorer.runs[:, -1].max())
    assert explorer.accuracy == pytest.approx(explorer.runs[:, -1].mean())
    assert state_size(explorer) <= STATE_LIMIT


def test_lora_repr_is_stable_and_tells_the_state():
    text = repr(LoRAExplorer(network="MiniLM, 36 couches"))
    assert text == repr(LoRAExplorer(network="MiniLM, 36 couches"))
    assert re.fullmatch(
        r"LoRAExplorer, rang 8, échelle α/r \(LoRA\), pas 0,001 : 9\d,\d % reconnus \(tout ajuster : 9\d,\d %\) ; "
        r"« MiniLM, 36 couches », 1,46 % entraînés",
        text,
    )


def test_lines_of_lora_break_where_they_may():
    prompt = LoRAExplorer()._prompt
    assert not re.search(r" [:;?=]|= ", prompt)
    assert prompt.replace("\u00a0", " ") == lora.PROMPT


def test_with_lora_scale_a_larger_rank_is_hardly_faster():
    """Ce que dit l'invitation, au pas 0,001 : de 4 à 32, l'échelle α/r n'accélère presque rien ; l'échelle α, beaucoup.

    Après 20 époques, le rang gagne autant aux deux échelles, moins de trois points et demi ; mais l'échelle α/r reste
    loin de l'ajustement complet, que l'échelle α rejoint.
    """
    divided, plain = ([learned(s, 0.001, rank) for rank in (4, 8, 16, 32)] for s in ("alpha/r", "alpha"))
    for epoch in range(6):
        found = [explorer.curve[epoch] for explorer in divided]
        assert max(found) - min(found) < 0.06
    for four in (divided, plain):
        assert 0.02 < four[-1].accuracy - four[0].accuracy < 0.035
    assert plain[-1].curve[1] - plain[0].curve[1] > 0.5
    assert plain[-1].curve[5] - plain[0].curve[5] > 0.1
    assert all(explorer.accuracy < explorer.full_accuracy - 0.03 for explorer in divided)
    assert abs(plain[2].accuracy - plain[2].full_accuracy) < 0.01


def test_with_the_course_scale_a_large_rate_ruins_large_ranks():
    """La suite de l'invitation : au pas 0,01, l'échelle α s'effondre aux rangs 16 et 32 ; l'échelle α/r tient."""
    for rank in (16, 32):
        assert learned("alpha", 0.01, rank).accuracy < 0.85
        assert learned("alpha/r", 0.01, rank).accuracy > 0.95
    low, high = learned("alpha", 0.01, 16).spread
    assert high - low > 0.5


def test_lora_never_weighs_less_than_a_quarter():
    """Les poids gelés restent : 4 octets par paramètre, sur les 16 d'un ajustement complet."""
    explorer = LoRAExplorer(1)
    for network in lora.CODES:
        explorer.network = network
        for explorer.rank in LORA["réglages"]["rank"]:
            part = sum(explorer.nbytes) / sum(explorer.full_nbytes)
            assert part == pytest.approx(0.25 + explorer.share)


# --- le train de tenseurs et sa table ---------------------------------------------------------------------------------


TRAINS = {record["nom"]: record for record in tensor_train.load_table()["matrices"]}
CLOSE = 0.05  # d'une machine à l'autre, quelques codes changent


@pytest.fixture(scope="module")
def train_matrices():
    """Les matrices des trains, telles que les définit le code montré."""
    return {name: tt_study.load(record["code"]) for name, record in TRAINS.items()}


def train_states(name, bits=tensor_train.BITS):
    """Tous les états de la figure pour cette matrice, l'un après l'autre."""
    explorer = TensorTrainExplorer(name)
    for train in TRAINS[name]["trains"]:
        explorer.n_cores = len(train["entrées"])
        for explorer.rank, explorer.n_bits in itertools.product(train["rangs"], bits):
            yield explorer


def layer_of(W):
    layer = torch.nn.Linear(W.shape[1], W.shape[0], bias=False)
    layer.weight.data = W
    return layer


def train_layers(W, inputs, outputs, rank, n_bits, svd_rank):
    """Les couches que dit « Voir le code » : le train, la SVD."""
    linear = layer_of(W)
    if n_bits == 32:
        return lrq.TTLinear.from_linear(linear, inputs, outputs, rank), lrq.CompactSVDLinear.from_linear(
            linear, svd_rank
        )
    train = lrq.QuantizedTTLinear.from_linear(linear, inputs, outputs, rank, n_bits)
    return train, lrq.QuantizedLowRankLinear.from_linear(linear, svd_rank, n_bits, rotate=True)


def test_random_trains_of_the_table_are_found_again(train_matrices, rng):
    for name, W in train_matrices.items():
        for n_bits in (int(rng.choice(tensor_train.BITS[:-1])), 32):
            train = TRAINS[name]["trains"][int(rng.integers(3))]
            explorer = TensorTrainExplorer(name, len(train["entrées"]), int(rng.choice(train["rangs"])), n_bits)
            found, svd = train_layers(W, *explorer.dims, explorer.rank, n_bits, explorer.svd_rank or 1)
            close = {"rel": CLOSE} if n_bits < 32 else {"abs": 2e-5}
            assert found.reconstruction_error(W) == pytest.approx(explorer.error, **close), explorer
            assert (found.ranks, found.count_parameters()) == (explorer.ranks, explorer.parameters)
            assert (found.nbytes(), lrq.stored_bytes(found.cores[0])) == (explorer.nbytes, explorer.core_nbytes[0])
            assert [core.shape for core in found.chain()] == found.core_shapes()
            if explorer.svd_rank:
                assert svd.reconstruction_error(W) == pytest.approx(explorer.svd_error, **close), explorer
                assert svd.nbytes() == explorer.svd_nbytes <= explorer.nbytes
            if n_bits < 32:
                alone = lrq.QuantizedLinear.from_linear(layer_of(W), n_bits)
                assert alone.reconstruction_error(W) == pytest.approx(explorer.alone_error, rel=1e-4), explorer


def test_the_study_of_trains_does_what_the_layers_do(randn, tmp_path):
    """Couche par couche ; la table fait une seule TT-SVD pour tous les bits, une seule SVD pour tous les rangs."""
    W, splits = randn(24, 32), (((4, 8), (6, 4)), ((2, 4, 4), (2, 3, 4)))
    found = tt_study.study(W, splits)
    assert found["forme"] == [24, 32]
    for train, split in zip(found["trains"], splits, strict=True):
        assert (train["entrées"], train["sorties"]) == split
        for rank, row in zip(train["rangs"], train["erreurs"], strict=True):
            for n_bits, error in zip(tensor_train.BITS, row, strict=True):
                layer, _ = train_layers(W, *split, rank, n_bits, 1)
                assert layer.reconstruction_error(W) == pytest.approx(error, abs=2e-6)
    for rank, row in zip(found["svd"]["rangs"], found["svd"]["erreurs"], strict=True):
        for n_bits, error in zip(tensor_train.BITS, row, strict=True):
            _, svd = train_layers(W, *splits[0], 1, n_bits, rank)
            assert svd.reconstruction_error(W) == pytest.approx(error, abs=2e-6)
    for n_bits, error in zip(tensor_train.BITS[:-1], found["seule"], strict=True):
        assert lrq.QuantizedLinear.from_linear(layer_of(W), n_bits).reconstruction_error(W) == pytest.approx(
            error, abs=2e-6
        )
    tt_study.write({"matrices": [found]}, tmp_path / "table.json")
    text = (tmp_path / "table.json").read_text(encoding="utf-8")
    assert json.loads(text) == json.loads(json.dumps({"matrices": [found]}))
    assert f"[{', '.join(map(str, found['seule']))}]" in text


def test_the_study_stops_where_the_train_is_exact(randn):
    """Au rang exact ; au-delà, les directions en trop ne sont que des arrondis, que la jauge ôte, et l'étude refuse."""
    cores = [randn(1, 4, 3, 2), randn(2, 4, 5, 1)]
    W = lrq.tt_matrix_contract(cores)
    train = tt_study.train_study(W, (4, 4), (3, 5))
    assert train["rangs"] == [1, 2]
    assert train["erreurs"][1][-1] < tt_study.EXACT < train["erreurs"][0][-1]
    with pytest.raises(ValueError, match="rank : reçu 5, attendu des liens"):
        tt_study.train_errors(W, (4, 4), (3, 5), 5)


def test_the_table_of_trains_is_whole_and_small(train_matrices):
    assert list(TRAINS) == list(tt_study.MATRICES) == list(tensor_train.PROMPTS)
    for name, record in TRAINS.items():
        assert record["forme"] == list(train_matrices[name].shape)
        assert [len(train["entrées"]) for train in record["trains"]] == [2, 3, 4]
        for part in (*record["trains"], record["svd"]):
            assert part["rangs"] == sorted(set(part["rangs"]))
            assert np.shape(part["erreurs"]) == (len(part["rangs"]), len(tensor_train.BITS))
        for train in record["trains"]:  # au dernier rang, sans arrondi, rien ne manque
            assert train["erreurs"][-1][-1] < tt_study.EXACT < train["erreurs"][-2][-1]
        for explorer in train_states(name):
            assert 0 <= explorer.error < 1.5
            assert (explorer.svd_error is None) == (explorer.svd_rank == 0)
    assert tt_study.TABLE.stat().st_size < 90_000
    assert tensor_train.load_table()["commande"].endswith(tt_study.__name__)
    assert state_size(TensorTrainExplorer()) <= STATE_LIMIT


def test_no_larger_svd_fits_in_the_bytes_of_a_train(rng):
    """Pesées par lrq : celle qu'on montre tient, la suivante non."""
    for n_bits in tensor_train.BITS:
        m, n, limit = (int(rng.integers(low, high)) for low, high in ((2, 9), (2, 9), (1, 400)))
        found = tensor_train.rank_within(m, n, n_bits, limit)
        for rank in range(1, min(m, n) + 1):
            if n_bits == 32:
                layer = lrq.CompactSVDLinear(n, m, rank, bias=False)
            else:
                layer = lrq.QuantizedLowRankLinear.from_weight_matrix(torch.ones(m, n), rank, n_bits)
            assert layer.nbytes() == tensor_train.svd_nbytes(m, n, rank, n_bits)
            assert (layer.nbytes() <= limit) == (rank <= found)


@pytest.mark.parametrize(
    ("trait", "values"),
    [
        ("matrix", ["ailleurs", "", 3, None]),
        ("n_cores", [0, 1, 5, 2.5, "3", None, True]),
        ("rank", [0, 5, 65, -1, 2.5, "32", None, True, float("nan")]),
        ("n_bits", [0, 1, 9, 16, 2.5, "4", None, True]),
    ],
)
def test_trains_that_were_not_measured_are_refused(trait, values):
    explorer = TensorTrainExplorer()
    for value in values:
        before = explorer.get_state()
        with pytest.raises(traitlets.TraitError, match=rf"^{trait} : reçu .*attendu"):
            setattr(explorer, trait, value)
        assert explorer.get_state() == before
        if value is not None:  # rank=None, matrix=None : au choix de la figure
            with pytest.raises(traitlets.TraitError, match=rf"^{trait} : reçu .*attendu"):
                TensorTrainExplorer(**{trait: value})


def test_python_and_the_page_set_the_train():
    explorer, seen = TensorTrainExplorer(), []
    names = ["matrix", "n_cores", "rank", "n_bits"]
    explorer.observe(lambda change: seen.append((change["name"], change["new"])), names)
    explorer.n_bits = 8
    explorer.set_state({"matrix": "dense 2, bloc 1", "n_cores": 2, "rank": 512})
    assert set(seen) == {("n_bits", 8), ("matrix", "dense 2, bloc 1"), ("n_cores", 2), ("rank", 512)}
    with pytest.raises(traitlets.TraitError, match="rank : reçu 96"):
        explorer.set_state({"matrix": "query, bloc 1", "n_cores": 3, "rank": 96})
    with pytest.raises(traitlets.TraitError, match="matrix : reçu 'ailleurs'"):
        explorer.set_state({"matrix": "ailleurs", "n_cores": 3, "rank": 96})
    assert [getattr(explorer, name) for name in names] == ["dense 2, bloc 1", 2, 512, 8]


def test_another_split_takes_the_closest_rank():
    explorer = TensorTrainExplorer(n_cores=2, rank=256)
    explorer.n_cores = 3
    assert (explorer.rank, explorer.ranks) == (64, [36, 64])
    explorer.matrix = "noyau lisse"
    assert (explorer.rank, explorer.ranks) == (3, [3, 3])
    assert TensorTrainExplorer("noyau lisse").rank == 3
    assert TensorTrainExplorer("noyaux de convolution").rank == 32


def test_the_page_gets_the_errors_of_the_trains_in_order(rng):
    """Par matrice : ses trois découpages, la SVD, puis W seule ; autant de colonnes que de bits, moins une à la fin."""
    values, bits = np.frombuffer(TensorTrainExplorer()._values, "<f4"), len(tensor_train.BITS)
    place = 0
    for record in TRAINS.values():
        for part in (*record["trains"], record["svd"]):
            rows = values[place : place + bits * len(part["rangs"])].reshape(-1, bits)
            assert rows == pytest.approx(np.array(part["erreurs"]), rel=1e-6)
            place += rows.size
        assert values[place : place + bits - 1] == pytest.approx(record["seule"], rel=1e-6)
        place += bits - 1
    assert place == len(values)


def test_train_repr_is_stable_and_tells_the_state():
    text = repr(TensorTrainExplorer("noyau lisse", 4, 3, 8))
    assert text == repr(TensorTrainExplorer("noyau lisse", 4, 3, 8))
    assert re.fullmatch(
        r"TensorTrainExplorer « noyau lisse », 384 × 384 : 4 cœurs, rangs \(3, 3, 3\), 8 bits : 460 octets, "
        r"erreur 0,\d % \(aucune SVD n'y tient\)",
        text,
    )
    assert "SVD de rang 89 : " in repr(TensorTrainExplorer())


@pytest.mark.parametrize("name", tensor_train.PROMPTS)
def test_lines_of_the_trains_break_where_they_may(name):
    prompt = tensor_train.choice(TRAINS[name])["prompt"]
    assert not re.search(r" [:;?=!]|= ", prompt)
    assert prompt.replace("\u00a0", " ") == tensor_train.PROMPTS[name].replace("\u00a0", " ")


def test_cutting_query_into_a_train_is_never_worth_an_svd():
    """Ce que cherche l'invitation n'existe pas ; les trains exacts gagnent, mais pèsent plus que W, qui perd moins."""
    heavy = []
    for explorer in train_states("query, bloc 1"):
        m, n = explorer.shape
        whole = 4 * m * n if explorer.n_bits == 32 else m * n * explorer.n_bits // 8 + 4 * m
        if explorer.nbytes < whole:
            assert explorer.error > (1 if explorer.svd_error is None else explorer.svd_error) - 0.01, explorer
        elif explorer.n_bits > 2 and explorer.svd_error > explorer.error:
            heavy.append((explorer.n_cores, explorer.rank, explorer.n_bits))
            assert explorer.alone_error < explorer.error
    assert {(3, 64, n_bits) for n_bits in (4, 6, 8, 32)} < set(heavy)
    first = [TensorTrainExplorer(n_cores=d, n_bits=32) for d in (2, 3, 4)]
    assert all(explorer.error - explorer.svd_error > 0.07 for explorer in first)


def test_a_giant_weight_stretches_the_scale_of_every_core(train_matrices):
    """Deux cœurs sur 4 bits : le rang fait monter l'erreur ; pas sur 8 bits, ni sans ce poids."""
    explorer = TensorTrainExplorer("dense 2, bloc 1", 2, 2, 4)
    low = explorer.error
    explorer.rank = 12
    assert explorer.error > low + 0.005
    explorer.n_bits = 8
    high = explorer.error
    explorer.rank = 2
    assert explorer.error > high + 0.02
    W = train_matrices["dense 2, bloc 1"].clone()
    giant = W.abs().argmax()
    assert W.flatten()[giant].abs() > 170 * W.std()
    W.view(-1)[giant] = 0
    rows = [tt_study.train_errors(W, *explorer.dims, rank)[tensor_train.BITS.index(4)] for rank in (2, 12)]
    assert rows[0] > rows[1] + 0.01


def test_two_cores_of_kernels_are_an_svd_and_three_are_better():
    for explorer in train_states("noyaux de convolution", (32,)):
        if explorer.n_cores == 2:
            assert explorer.svd_rank == explorer.rank
            assert explorer.error == pytest.approx(explorer.svd_error, abs=2e-6)
    three = TensorTrainExplorer("noyaux de convolution", 3, 16)
    assert 0.07 < three.svd_error - three.error < 0.11
    three.rank = 32
    assert three.svd_error < three.error + 0.005


def test_a_smooth_matrix_is_a_tiny_train():
    four = TensorTrainExplorer("noyau lisse", 4, 3, 32)
    assert (four.parameters, four.svd_rank) == (444, 0)
    assert four.error < tt_study.EXACT
    assert 4 * math.prod(four.shape) > 300 * four.nbytes
    svd = TRAINS["noyau lisse"]["svd"]
    fine = min(rank for rank, row in zip(svd["rangs"], svd["erreurs"], strict=True) if row[-1] < 0.01)
    assert tensor_train.svd_nbytes(*four.shape, fine, 32) > 50 * four.nbytes


def test_noise_tells_what_the_split_does_not_see_in_query():
    """Deux cœurs, à tous les rangs qui allègent W : sur le bruit, ils se valent ; sur « query », la SVD gagne plus."""
    for rank in (8, 16, 32, 64, 128):
        noise, query = (TensorTrainExplorer(name, 2, rank, 32) for name in ("hasard gaussien", "query, bloc 1"))
        assert abs(noise.error - noise.svd_error) < 0.005
        assert noise.svd_error - query.svd_error > 2 * (noise.error - query.error) > 0


# --- le réseau entier et sa table -------------------------------------------------------------------------------------


MODEL = sharing.load_table()
RECIPES = {row["id"]: row for row in MODEL["recipes"]}
FOUND_AGAIN = 2e-3  # d'un processeur à l'autre, quelques codes changent


@pytest.fixture(scope="module")
def judge():
    with torch.no_grad():
        return model_study.Judge()


QUICK = (
    "nearest_8_row",
    "nearest_4_row",
    "nearest_4_g32",
    "nearest_4_g64",
    "nearest_4_g64_r8",
    "svd_half",
    "train_half",
)


def test_a_random_recipe_of_the_table_is_found_again(judge, rng):
    """Une de celles qui se passent de calibration : les autres demandent qu'on écoute 400 phrases."""
    builds = {name: build for name, _, _, build in model_study.recipes(judge)}
    name = str(rng.choice(QUICK))
    with torch.no_grad():
        found = judge.row(builds[name]())
    assert found["bytes"] == RECIPES[name]["bytes"]
    assert found["cosine"] == pytest.approx(RECIPES[name]["cosine"], abs=FOUND_AGAIN)
    assert set(QUICK) < builds.keys() < RECIPES.keys()


def test_options_weigh_what_layers_do_and_lose_less_for_more(judge, rng):
    """Une couche au hasard : ses octets, au bit près ; plus de bits, ou un plus grand résidu, perdent moins."""
    settings, options = sharing.load_options()
    name = str(rng.choice(judge.names))
    layer = judge.encoder.get_submodule(name)
    found = dict(zip(settings, options[name], strict=True))
    bits, rank = settings[int(rng.integers(len(settings)))]
    recipe = {"bits": bits, "residual_rank": rank, "rounding": "nearest"}
    with torch.no_grad():
        smaller = lrq.GPTQCompression(recipe).compress_layer(layer)
    assert smaller.nbytes() - layer.bias.nbytes == found[bits, rank][0]
    table = [[found[bits, rank] for rank in model_study.RANKS] for bits in model_study.BITS]
    for line in [*table, *zip(*table, strict=True)]:
        assert sorted(line) == list(line)
        losses = [loss for _, loss in line]
        assert losses == sorted(losses, reverse=True)
        assert losses[-1] > 0


def test_the_table_of_the_whole_model_is_whole_and_small(judge):
    assert model_study.TABLE.stat().st_size < 100_000
    assert MODEL["commande"].endswith(model_study.__name__)
    assert MODEL["sha256"] == models.MINILM_SHA256
    weights = MODEL["réseau"]["poids"]
    assert (len(judge.names), judge.weights) == (36, weights)
    assert MODEL["réseau"]["octets_biais"] == sum(judge.encoder.get_submodule(name).bias.nbytes for name in judge.names)
    for row in [*RECIPES.values(), *MODEL["budgets"]]:
        assert row["bits_per_weight"] == pytest.approx(8 * row["bytes"] / weights, abs=1e-4)
        assert 0 < row["cosine"] < 1
    front = lrq.errors.pareto_front(
        [-row["cosine"] for row in RECIPES.values()], [row["bytes"] for row in RECIPES.values()]
    )
    assert [i for i, row in enumerate(RECIPES.values()) if row["front"]] == sorted(front)
    assert {row["family"] for row in RECIPES.values()} == {"nearest", "gptq", "low_rank", "activations", "elsewhere"}


def test_the_given_budgets_follow_from_the_options():
    """La répartition de la table se refait de ses options ; son uniforme est le meilleur qui tienne."""
    settings, options = sharing.load_options()
    assert len(options) == 36
    predicted = MODEL["options"]["erreurs_prévues"]
    for place, (name, error) in enumerate(predicted.items()):
        assert error == pytest.approx(math.sqrt(sum(found[place][1] for found in options.values())), rel=1e-4)
        assert RECIPES[name]["bytes"] == sum(found[place][0] for found in options.values())
    assert len(predicted) == len(settings)
    for line in MODEL["budgets"]:
        chosen = lrq.allocate_budget(options, line["budget"])
        given = [settings[chosen[name]] for name in options]
        assert given == list(zip(line["bits"], line["rangs"], strict=True))
        assert line["bytes"] == sum(options[name][i][0] for name, i in chosen.items()) <= line["budget"]
        loss = sum(options[name][i][1] for name, i in chosen.items())
        assert line["predicted_error"] == pytest.approx(math.sqrt(loss), rel=1e-4)
        best = max((row for row in RECIPES.values() if row["bytes"] <= line["budget"]), key=lambda row: row["cosine"])
        assert {key: best[key] for key in ("id", "label", "bytes", "cosine")}.items() <= line["uniforme"].items()


def test_sharing_a_budget_is_never_worse_and_gains_most_between_round_sizes():
    """Ce que cherche l'invitation : value et sortie du dernier bloc gardent leurs bits ; le gain aux deux tailles."""
    lines = {round(line["budget"] / 1e6, 2): line for line in MODEL["budgets"]}
    inner = list(lines.values())[1:-1]
    for line in inner:
        assert line["cosine"] > line["uniforme"]["cosine"]
        assert min(line["bits"][32:34]) == max(line["bits"])
        assert (
            1.1 < line["measured_error"] / line["predicted_error"] < 1.25
        )  # l'erreur est sous-estimée, partout pareil
    for line in (MODEL["budgets"][0], MODEL["budgets"][-1]):  # aux deux bouts, tout est pareil
        assert len(set(line["bits"])) == 1
        assert line["cosine"] == line["uniforme"]["cosine"]
    gains = {size: 1 - (1 - line["cosine"]) / (1 - line["uniforme"]["cosine"]) for size, line in lines.items()}
    assert gains[6.64] > 2 * gains[5.81] > 0.2


def test_the_scaling_of_the_table_adds_up():
    scaling = MODEL["scaling"]
    llama = scaling["llama_7b"]
    assert llama["paramètres"] == sum(m * n * count for m, n, count in llama["formes"])
    assert llama["octets_16_bits"] == 2 * llama["paramètres"]
    assert llama["octets_4_375_bits"] == pytest.approx(4.375 / 8 * llama["paramètres"])
    assert 6.7e9 < llama["paramètres"] < 6.8e9

    def hours(name, *law):
        return sum(model_study.extrapolated(name, m, n, *law) * count for m, n, count in llama["formes"][:-1]) / 3600

    for name, seconds in scaling["secondes"].items():
        exponent, constant = model_study.fit(scaling["tailles"][1:], seconds[1:])
        assert exponent == pytest.approx(scaling["exposants"][name], abs=1e-3)
        assert hours(name, exponent, constant) == pytest.approx(llama["heures"][name], rel=0.01)
        if name in llama["heures_si_cubique"]:
            cubic = hours(name, 3, seconds[-1] / scaling["tailles"][-1] ** 3)
            assert cubic == pytest.approx(llama["heures_si_cubique"][name], rel=0.01)


def test_fit_finds_the_exponent_of_a_power(rng):
    exponent, constant = float(rng.uniform(1, 4)), float(rng.uniform(1e-9, 1))
    sizes = [64, 100, 300]
    assert model_study.fit(sizes, [constant * n**exponent for n in sizes]) == pytest.approx((exponent, constant))


@pytest.mark.parametrize("value", [0, -1, 5_806_081, 2.5, "5806080", True, float("nan")])
def test_budgets_that_were_not_measured_are_refused(value):
    explorer = BudgetExplorer()
    before = explorer.get_state()
    with pytest.raises(traitlets.TraitError, match=r"^budget : reçu .*attendu"):
        explorer.budget = value
    assert explorer.get_state() == before
    with pytest.raises(traitlets.TraitError, match=r"^budget : reçu .*attendu"):
        BudgetExplorer(value)


def test_the_budget_is_that_of_the_table(rng):
    line = MODEL["budgets"][int(rng.integers(len(MODEL["budgets"])))]
    explorer, seen = BudgetExplorer(), []
    explorer.observe(lambda change: seen.append(change["new"]), "budget")
    assert explorer.bits_per_weight == pytest.approx(4.375, abs=0.01)
    explorer.set_state({"budget": line["budget"]})
    assert seen in ([], [line["budget"]])
    assert [*explorer.bits.values()] == line["bits"]
    assert [*explorer.ranks.values()] == line["rangs"]
    assert list(explorer.bits) == list(explorer.ranks) == list(sharing.load_options()[1])
    assert (explorer.nbytes, explorer.fidelity) == (line["bytes"], line["cosine"])
    assert explorer.measured_error == pytest.approx(line["measured_error"], rel=1e-3)
    assert explorer.predicted_error == line["predicted_error"]
    assert explorer.uniform == line["uniforme"]
    given = np.frombuffer(explorer._given, np.uint8).reshape(2, len(MODEL["budgets"]), 36)
    place = MODEL["budgets"].index(line)
    assert given[:, place].tolist() == [line["bits"], line["rangs"]]
    assert state_size(explorer) <= STATE_LIMIT


def test_budget_repr_is_stable_and_tells_the_state():
    text = repr(BudgetExplorer(MODEL["budgets"][0]["budget"]))
    assert text == repr(BudgetExplorer(MODEL["budgets"][0]["budget"]))
    assert re.fullmatch(
        r"BudgetExplorer, [\d\s]+ octets : 2,\d\d bits par poids, fidélité 0,\d{4} \(GPTQ 2 bits g64 : 0,\d{4}\)", text
    )


# --- ce que disent les invitations ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def choices():
    return minilm_choices()


def test_query_bears_the_cut_better_than_value(choices):
    errors = [float(lrq.truncation_errors(lrq.singular_values(choices[name].W))[95]) for name in list(choices)[:2]]
    assert list(choices)[:2] == ["query, bloc 1", "value, bloc 1"]
    assert errors[0] < errors[1]


def test_one_weight_explains_the_first_singular_value(choices):
    W = choices["dense 2, bloc 1"].W
    assert f"{W.numel():,}".replace(",", " ") in choices["dense 2, bloc 1"].prompt.replace("\u202f", " ")
    S = lrq.singular_values(W)
    assert S[0] > 1.6 * S[1]
    without = W.clone()
    without.view(-1)[W.abs().argmax()] = 0
    assert lrq.singular_values(without)[0] < 1.01 * S[1]


def test_half_of_the_first_tokens_are_unused_and_alike(choices):
    W = choices["2 000 premiers jetons"].W
    tokenizer = models.load_minilm().tokenizer
    unused = torch.tensor([word.startswith("[unused") for word in tokenizer.convert_ids_to_tokens(range(2000))])
    assert 0.45 < unused.double().mean() < 0.5
    first = [float(lrq.cumulative_energy(lrq.singular_values(rows))[0]) for rows in (W, W[unused], W[~unused])]
    assert 0.41 < first[0] < 0.43
    assert first[1] > 0.8
    assert first[2] < 0.3


def test_the_sentence_model_never_uses_the_pooler(choices):
    encoder, sentences = models.load_minilm(), models.load_sentences("test")[:4]
    before = encoder.encode(sentences)
    encoder.bert.pooler.dense.weight.data.zero_()
    assert torch.equal(before, encoder.encode(sentences))


def test_the_pooler_looks_like_chance_and_query_does_not(choices):
    def distance(name):
        W = choices[name].W
        S = lrq.singular_values(W)
        return float((S - spectrum.random_spectrum(*W.shape, S)).norm() / S.norm())

    assert distance("pooler") < 0.05 < 0.15 < distance("query, bloc 1")


def test_positions_are_cut_far_below_break_even(choices):
    W = choices["vecteurs de position"].W
    assert lrq.find_optimal_rank(W, target_error=0.1) < lrq.break_even_rank(*W.shape) / 2


def test_one_iteration_is_worth_more_than_forty_columns():
    for rank in TABLE["réglages"]["rank"]:
        assert surplus("query, bloc 1", rank, 0, 1) < surplus("query, bloc 1", rank, 40, 0)


def test_ten_columns_are_worth_three_iterations():
    few, many = surplus("dense 1, bloc 1", 8, 0, 4), surplus("dense 1, bloc 1", 8, 10, 1)
    assert abs(few - many) < 0.05 * few  # presque le même excès : dix lectures de W, ou quatre


def test_the_lead_over_the_full_svd_melts_as_the_rank_grows():
    leads = [
        explorer.full_milliseconds / explorer.milliseconds
        for explorer in (RandomizedExplorer("vecteurs de mots", rank, 10, 2) for rank in TABLE["réglages"]["rank"])
    ]
    assert leads == sorted(leads, reverse=True)
    assert leads[0] > 3 * leads[-1]


def test_more_columns_make_the_draw_matter_less():
    widths = []
    for oversample in (0, 40):
        _, low, high, _ = MEASURED["photographie", 8, oversample, 0]
        widths.append((high - low) / RandomizedExplorer("photographie", 8).optimum)
    assert widths[0] > 10 * widths[1]


def test_narrow_products_were_slower():
    """Ce que dit la note sous les curseurs, à moins de douze colonnes en tout."""
    for name, n_iter in itertools.product(RECORDS, (1, 2, 3, 4)):
        assert MEASURED[name, 8, 2, n_iter][3] > MEASURED[name, 8, 5, n_iter][3], name


def test_a_random_matrix_stops_at_the_edge(rng):
    W = torch.tensor(rng.standard_normal((400, 300)))
    edge = lrq.marchenko_pastur_edge(400, 300, float(W.norm()))
    assert float(lrq.singular_values(W)[0]) == pytest.approx(edge, rel=0.03)


# --- la palette -------------------------------------------------------------------------------------------------------


def palette(css, selector):
    """Les variables de couleur d'un bloc de lrq.css."""
    block = re.search(re.escape(selector) + r"[^{]*\{([^}]*)\}", css)[1]
    return dict(re.findall(r"--lrq-([a-z]+):\s*(#[0-9a-f]{6})", block))


PAIRS = re.findall(r"--lrq-([a-z]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)", CSS)
LIGHT, DARK = ({name: pair[theme] for name, *pair in PAIRS} for theme in (0, 1))
NOTIONS = ("rank", "error", "budget", "bits", "theory")


def linear_rgb(colour):
    values = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    first, second = sorted((linear_rgb(colour) @ [0.2126, 0.7152, 0.0722] for colour in (one, other)), reverse=True)
    return (first + 0.05) / (second + 0.05)


# Machado, Oliveira et Fernandes (2009), sévérité 1 : ce que voit un œil sans l'un des cônes.
BLIND = {
    "vision ordinaire": np.eye(3),
    "protanopie": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutéranopie": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopie": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def lab(rgb):
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ rgb
    t = np.clip(xyz / [0.9505, 1, 1.089], 0, None)
    f = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_one_colour_per_notion_everywhere():
    assert palette(BOOK_CSS, ":root").items() >= LIGHT.items()
    assert palette(BOOK_CSS, 'html[data-theme="dark"]').items() >= DARK.items()
    darkened = [selectors for selectors, body in re.findall(r"([^{}]+)\{([^{}]*)\}", CSS) if "scheme: dark" in body]
    assert ["data-theme=" in text or ":not([data-theme])" in text for text in darkened] == [True, True]
    drawn = {"rank": plots.RANK, "error": plots.ERROR, "budget": plots.BUDGET, "bits": plots.BITS}
    assert drawn.items() <= LIGHT.items()
    assert (LIGHT["theory"], LIGHT["ink"]) == (plots.THEORY, plots.INK)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["clair", "sombre"])
def test_colours_are_readable_on_their_surface(colours):
    for name in (*NOTIONS, "ink", "soft"):
        assert contrast(colours[name], colours["surface"]) >= 4.5, name
    for name in ("ink", "soft"):
        assert contrast(colours[name], colours["chip"]) >= 4.5, name


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["clair", "sombre"])
@pytest.mark.parametrize("eye", BLIND)
def test_colour_blind_readers_tell_notions_apart(colours, eye):
    seen = {name: lab(np.clip(np.array(BLIND[eye]) @ linear_rgb(colours[name]), 0, 1)) for name in NOTIONS}
    closest = min(itertools.combinations(NOTIONS, 2), key=lambda pair: np.linalg.norm(seen[pair[0]] - seen[pair[1]]))
    assert np.linalg.norm(seen[closest[0]] - seen[closest[1]]) > 15, closest


def test_as_many_spectra_as_one_likes(randn):
    """Quatre couleurs, puis on recommence : une cinquième matrice ne fait pas échouer la figure."""
    figure = plots.plot_spectra({f"matrice {i}": torch.linalg.svdvals(randn(8, 8)) for i in range(6)}, "six")
    assert len(figure.axes[0].get_lines()) == 6
    plots.plt.close(figure)
