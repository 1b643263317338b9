"""Le réseau vivant : ce que la figure dit de lui, contre lrq et PyTorch, réglage par réglage."""

import base64
import copy

import pytest
import torch
import traitlets
from test_widgets import state_size
from torch.nn import functional as F

import lrq
from benchmarks.page import state_target
from lrq import models
from lrq.widgets import NetworkExplorer
from lrq.widgets.explorer import esm
from lrq.widgets.network import BITS, GRANULARITIES, LAYERS, WHOLE, compress, ink, truncated

DELTA = 5e-6  # du plus grand poids : de tant diffèrent les facteurs de PyTorch et de la page
RUN = """async ([module, state, settings]) => {
  const { unpack } = await import(module);
  const bytes = text => new DataView(Uint8Array.from(atob(text), char => char.charCodeAt(0)).buffer);
  const network = unpack(name => (typeof state[name] === 'object' && state[name].bytes ? bytes(state[name].bytes)
                                                                                     : state[name]));
  return settings.map(([rank, bits, granularity]) => {
    const kernels = network.compile({ rank, bits, granularity });
    const scores = network.labels.map((_, i) => Array.from(network.scoresOf(kernels, network.imageOf(i))));
    const sizes = network.weigh({ rank, bits, granularity }).map(size => size / 8);
    return [kernels.map(parts => parts.map(part => Array.from(part))), scores, sizes];
  });
}"""


@pytest.fixture(scope="module")
def explorer():
    return NetworkExplorer()


@pytest.fixture(scope="module")
def test_set():
    return models.load_digits_data()[1]


@pytest.fixture
def in_browser(browser, explorer):
    """Les noyaux du réseau, les scores des 450 images et les octets de chaque couche, calculés par la page."""
    page = browser.new_page()
    state = {
        name: {"bytes": base64.b64encode(value).decode()} if isinstance(value, bytes | memoryview) else value
        for name, value in explorer.get_state(["_layers", "_weights", "_images", "_labels"]).items()
    }
    module = f"data:text/javascript;base64,{base64.b64encode(esm('network.js').encode()).decode()}"
    yield lambda settings: page.evaluate(RUN, [module, state, settings])
    page.close()


def factors(W, rank):
    """W, ou les deux facteurs équilibrés de sa SVD, là où ils pèsent moins."""
    m, n = W.shape
    if rank * (m + n) >= m * n:
        return [W]
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    return [U[:, :rank] * S[:rank].sqrt(), S[:rank, None].sqrt() * Vh[:rank]]


def rounded(part, n_bits, granularity, shift=0.0):
    """Les poids arrondis à leur grille, après qu'on les a tous décalés de `shift`."""
    if n_bits == 32:
        return part + shift
    q = lrq.UniformQuantizer(n_bits, granularity=GRANULARITIES[granularity])
    grid = q.compute_scale_zero_point(part)
    return q.dequantize(q.quantize(part + shift, *grid), *grid)


def check(found, setting, x):
    """La page applique les matrices de la formule, et lit les images comme PyTorch le fait avec elles.

    Un poids au milieu de deux codes peut recevoir de la page l'autre code : elle refait du premier facteur d'une SVD le
    second, qui diffère du nôtre au dernier chiffre. Chaque poids est donc encadré par les arrondis de ses voisins.
    """
    rank, n_bits, granularity = setting
    kernels, scores, sizes = found
    network = models.load_digits_network("cnn")
    compressed = compress(copy.deepcopy(network), rank, n_bits, GRANULARITIES[granularity])
    assert sizes == [lrq.stored_bytes(compressed.get_submodule(name)) for name in LAYERS], setting
    inputs = 1
    for name, kernel in zip(LAYERS, kernels, strict=True):
        weight = network.get_submodule(name).weight
        parts, applied = factors(weight.detach().flatten(1), rank), torch.eye(weight[0].numel(), dtype=torch.float64)
        fans_in = (inputs, rank)[: len(parts)]  # les filtres d'abord, puis ce qui les recombine
        for part, fan_in, numbers in zip(reversed(parts), fans_in, kernel, strict=True):
            seen = torch.tensor(numbers, dtype=torch.float64).view(-1, fan_in, len(part)).permute(2, 1, 0).flatten(1)
            near = DELTA * part.abs().max()
            low, high = (rounded(part, n_bits, granularity, shift) for shift in (-near, near))
            assert ((low - near <= seen) & (seen <= high + near)).all(), (setting, name)
            applied = seen @ applied
        network.get_submodule(name).weight = torch.nn.Parameter(applied.view(weight.shape))
        inputs = len(weight)
    with torch.no_grad():
        expected = network.double()(x.double())
    scores = torch.tensor(scores, dtype=torch.float64)
    assert torch.allclose(scores, expected, rtol=0, atol=1e-9), setting
    assert torch.equal(scores.argmax(-1), expected.argmax(-1)), setting


EDGES = (1, 7, 8, 9, 10, 20, 52, WHOLE)  # de part et d'autre du rang où chaque couche redevient entière


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("n_bits", [1, 2, 4, 8, 32])
def test_the_page_classifies_as_lrq_does(in_browser, test_set, granularity, n_bits):
    settings = [(rank, n_bits, granularity) for rank in EDGES]
    for found, setting in zip(in_browser(settings), settings, strict=True):
        check(found, setting, test_set[0])


def test_the_page_classifies_as_lrq_does_at_random_settings(in_browser, test_set, rng):
    settings = [
        (int(rng.integers(1, WHOLE + 1)), int(rng.choice(BITS)), str(rng.choice([*GRANULARITIES]))) for _ in range(20)
    ]
    for found, setting in zip(in_browser(settings), settings, strict=True):
        check(found, setting, test_set[0])


def test_a_wrong_setting_would_be_noticed(in_browser, test_set):
    """Le témoin de `check` : un bit de moins, un rang de moins, une autre échelle ne passent pas."""
    [found] = in_browser([(20, 4, "row")])
    for other in ((20, 3, "row"), (19, 4, "row"), (20, 4, "tensor")):
        with pytest.raises(AssertionError):
            check(found, other, test_set[0])


# --- vu de Python -----------------------------------------------------------------------------------------------------


def by_hand(W, rank, n_bits, granularity):
    """La matrice qu'une couche applique, et ses octets, sans ses classes : SVD, arrondi, comptes."""
    parts = factors(W, rank)
    if n_bits == 32:
        size = sum(4 * part.numel() for part in parts)
    else:
        scales = [len(part) if granularity == "row" else 1 for part in parts]
        size = sum(-(-part.numel() * n_bits // 8) for part in parts) + 4 * sum(scales)
    parts = [rounded(part, n_bits, granularity) for part in parts]
    return parts[0] if len(parts) == 1 else parts[0] @ parts[1], size


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_compressed_network_is_its_formulas(test_set, rng, granularity):
    """Le réseau refait à la main, matrice par matrice, donne les mêmes scores et les mêmes octets."""
    x, y = test_set
    for _ in range(4):
        rank, n_bits = int(rng.integers(1, WHOLE + 1)), int(rng.choice(BITS))
        explorer = NetworkExplorer(rank, n_bits, granularity)
        network, size = models.load_digits_network("cnn"), 0
        for name in LAYERS:
            layer = network.get_submodule(name)
            W, weight = by_hand(layer.weight.detach().flatten(1), rank, n_bits, granularity)
            layer.weight.data = W.view(layer.weight.shape)
            size += weight + layer.bias.nbytes
        with torch.no_grad():
            expected, found = network(x), explorer.network(x)
        assert torch.allclose(found, expected, atol=1e-3)
        assert explorer.nbytes == size
        right = int((expected.argmax(-1) == y).sum())
        assert abs(explorer.correct - right) <= 1  # à deux scores égaux, à l'arrondi près
        assert explorer.accuracy == explorer.correct / 450
        assert explorer.confusion.sum() == 450
        assert explorer.confusion.diagonal().sum() == explorer.correct
        assert torch.equal(explorer.confusion.sum(1), torch.bincount(y))


def test_a_layer_is_truncated_only_where_it_gains():
    original = models.load_digits_network("cnn")
    for name in LAYERS:
        W = original.get_submodule(name).weight.flatten(1)
        m, n = W.shape
        ranks = range(1, min(m, n) + 1)
        assert [truncated((m, n), r) for r in ranks] == [r * (m + n) < m * n for r in ranks]
        assert not truncated((m, n), WHOLE)
    assert truncated((64, 288), WHOLE - 1)


def test_compress_keeps_the_biases_and_changes_nothing_at_the_end():
    network = models.load_digits_network("cnn")
    before = copy.deepcopy(network.state_dict())
    assert compress(network, WHOLE, 32, GRANULARITIES["row"]) is network
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("rank", "n_bits", "error", "message"),
    [
        (8, 16, ValueError, "n_bits : reçu 16, attendu un entier entre 1 et 8, ou 32"),
        (8, "4", ValueError, "n_bits : reçu '4'"),
        (0, 4, ValueError, "rank : reçu 0"),
        ("3", 4, TypeError, "rank : reçu '3'"),
    ],
)
def test_an_impossible_compression_leaves_the_network_alone(rank, n_bits, error, message):
    network = models.load_digits_network("cnn")
    before = list(network.named_modules())
    with pytest.raises(error, match=f"^{message}"):
        compress(network, rank, n_bits, GRANULARITIES["row"])
    assert list(network.named_modules()) == before


def test_the_first_state_is_worth_looking_at(explorer):
    """Treize fois plus léger au moins, quelques erreurs, et un chiffre que l'original lisait."""
    assert explorer.original_nbytes / explorer.nbytes > 13
    assert 430 <= explorer.correct < 440
    answer = int(explorer._answers[explorer.digit])
    assert int(explorer.scores.argmax()) != answer
    assert int(NetworkExplorer(WHOLE, 32, digit=explorer.digit).scores.argmax()) == answer
    assert int(NetworkExplorer(explorer.rank, 5, digit=explorer.digit).scores.argmax()) == answer


@pytest.mark.parametrize(
    ("trait", "values"),
    [
        ("rank", [0, WHOLE + 1, -1, 2.5, "3", None, True]),
        ("n_bits", [0, 9, 16, 33, -1, 4.5, "4", None, True]),
        ("granularity", ["group", "", None, 3]),
        ("digit", [-1, 450, 1.5, "0", None, True]),
        ("_drawing", [[1] * 63, [17] * 64, [-1] * 64, [0.5] * 64]),
    ],
)
def test_impossible_settings_are_refused_and_change_nothing(explorer, trait, values):
    before = explorer.get_state()
    for value in values:
        with pytest.raises(traitlets.TraitError, match=rf"^{trait} : reçu .*attendu"):
            setattr(explorer, trait, value)
        assert explorer.get_state() == before
        if trait != "_drawing":
            with pytest.raises(traitlets.TraitError, match=f"^{trait} : reçu"):
                NetworkExplorer(**{trait: value})


def test_python_and_the_page_set_and_observe(test_set):
    explorer, seen = NetworkExplorer(), []
    explorer.observe(lambda change: seen.append(change["new"]), "rank")
    before = explorer.nbytes, explorer.correct
    explorer.set_state({"rank": 30, "n_bits": 8})
    assert seen == [30]
    assert explorer.nbytes > before[0]
    assert explorer.correct > before[1]
    explorer.set_state({"_drawing": [16] * 64})
    assert torch.equal(explorer.image, torch.ones(1, 1, 8, 8))
    explorer.digit = 3
    assert torch.equal(explorer.image, test_set[0][3:4])


def test_the_images_travel_exactly(explorer, test_set):
    packed = torch.tensor(list(explorer._images), dtype=torch.uint8)
    images = lrq.unpack_bits(packed, 5, (450, 1, 8, 8), signed=False)
    assert torch.equal(images / 16, test_set[0])
    assert explorer._labels == "".join(map(str, test_set[1].tolist()))


def test_the_network_and_its_images_are_the_only_heavy_state(explorer):
    target = state_target(explorer.get_state())
    assert 150_000 < state_size(explorer) <= target
    assert state_target({"_anywidget_id": "lrq.widgets.spectrum.SpectrumExplorer"}) == 150_000


def test_repr_is_stable_and_tells_the_state():
    explorer = NetworkExplorer(WHOLE, 1, "tensor")
    assert repr(explorer) == repr(NetworkExplorer(WHOLE, 1, "tensor"))
    assert "sans tronquer, 1 bit, tensor" in repr(explorer)
    assert "rang 20, 4 bits, row : 432 chiffres sur 450, 5\u202f872 octets" in repr(NetworkExplorer())


# --- le dessin --------------------------------------------------------------------------------------------------------


def traced(image):
    """Un dessin synthétique : une image de test agrandie en 32×32, réduite au passage du centre de la plume."""
    big = F.interpolate(image[None], (32, 32), mode="bilinear")[0, 0] > 0.35
    reach = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3) if dy**2 + dx**2 <= 2.75**2]
    framed = F.pad(big, (2, 2, 2, 2))
    inside = torch.stack([framed[2 + dy : 34 + dy, 2 + dx : 34 + dx] for dy, dx in reach]).all(0)
    return [point[None] for point in inside.nonzero().flip(1).double()]


def test_a_traced_digit_is_recognised_wherever_it_is_drawn(test_set, rng):
    """Redessinées au quart ou au double, dans un coin, neuf images sur dix se lisent encore."""
    x, y = test_set
    network, drawn, answers = models.load_digits_network("cnn"), [], []
    for i in rng.choice(len(x), 90, replace=False):
        strokes = traced(x[i])
        if strokes:
            scale, shift = float(rng.uniform(0.25, 2)), torch.tensor(rng.uniform(-50, 50, 2))
            drawn.append(ink([stroke * scale + shift for stroke in strokes]))
            answers.append(y[i])
    assert len(drawn) > 80
    images = torch.stack(drawn)[:, None] / 16
    assert models.accuracy(network, images, torch.stack(answers)) > 0.8


def test_a_drawing_is_seen_the_same_whatever_its_size_and_place(randn, rng):
    for _ in range(5):
        strokes = [randn(int(rng.integers(1, 6)), 2, dtype=torch.float64) for _ in range(3)]
        seen = ink(strokes)
        moved = ink([4 * stroke + torch.tensor([12.0, -7.0]) for stroke in strokes])
        assert (seen - moved).abs().sum() <= 2  # un point juste au bord de la plume
        assert seen.shape == (8, 8)
        assert 0 <= seen.min() <= seen.max() <= 16


@pytest.mark.parametrize("strokes", [[], [torch.empty(0, 2)], [torch.zeros(3, 2), torch.empty(0, 2)]])
def test_a_drawing_has_points(strokes):
    with pytest.raises(ValueError, match=r"^strokes : reçu .*, attendu un trait"):
        ink(strokes)


@pytest.mark.parametrize(
    ("points", "rows", "columns"),
    [
        ([[0, 0], [0, 9]], range(8), [3, 4]),  # debout : de haut en bas, au milieu
        ([[0, 0], [9, 0]], [3, 4], range(1, 7)),  # couché : d'un bord à l'autre des six colonnes, sans s'épaissir
        ([[3, 3]], [3, 4], [3, 4]),  # un point
        ([[0, 0], [90, 0], [90, 60], [0, 60]], range(8), range(1, 7)),  # trop large : resserré
    ],
)
def test_a_drawing_fills_the_frame(points, rows, columns):
    seen = ink([torch.tensor(points)])
    assert [i for i in range(8) if seen[i].any()] == list(rows)
    assert [j for j in range(8) if seen[:, j].any()] == list(columns)
