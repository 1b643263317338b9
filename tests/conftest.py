"""Ce que les tests partagent : des instances fraîches et rejouables, le livre construit, un navigateur.

``LRQ_GRAINE=123 pytest`` refait exactement les mêmes instances. ``pytest -n 2`` répartit les tests entre deux ouvriers
(pytest-xdist), sans rien changer à ce qu'ils tirent.
"""

import os
import random
import re
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from threadpoolctl import threadpool_limits
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import lrq  # noqa: E402
from benchmarks import browser as chromium  # noqa: E402

BUILD = "import sys; from jupyter_book.cli.main import main; main(sys.argv[1:])"
GRAINE = int(os.environ.get("LRQ_GRAINE") or random.SystemRandom().randrange(2**31))
# Les ouvriers en héritent : mêmes tirages et, comme l'ordre d'un ensemble en dépend, mêmes noms de tests.
os.environ["LRQ_GRAINE"] = str(GRAINE)
os.environ.setdefault("PYTHONHASHSEED", str(GRAINE))


def pytest_report_header():
    return f"graine des instances : LRQ_GRAINE={GRAINE}"


@pytest.fixture
def rng(request):
    """Générateur NumPy propre au test ; sa graine est imprimée, donc montrée en cas d'échec.

    Le générateur global de PyTorch, que suivent les constructeurs de modules, reçoit la même graine, puis est rendu.
    """
    print(f"pour rejouer : LRQ_GRAINE={GRAINE} pytest '{request.node.nodeid}'")
    seed = [GRAINE, zlib.crc32(request.node.nodeid.encode())]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        yield np.random.default_rng(seed)


@pytest.fixture
def randn(rng):
    """Tenseur gaussien : ``randn(3, 4)``, float32 sauf demande contraire."""

    def draw(*shape, dtype=torch.float32):
        return torch.tensor(rng.standard_normal(shape), dtype=dtype)

    return draw


@pytest.fixture
def matrix(rng):
    """Matrice m×n de spectre donné (ou décroissant, tiré au hasard), de bases orthonormées quelconques."""

    def draw(m, n, spectrum=None, dtype=torch.float32):
        p = min(m, n)
        if spectrum is None:
            spectrum = np.sort(rng.random(p) * np.arange(1, p + 1, dtype=float) ** -1)[::-1]
        spectrum = np.concatenate([spectrum, np.zeros(p - len(spectrum))])
        left = np.linalg.qr(rng.standard_normal((m, p)))[0]
        right = np.linalg.qr(rng.standard_normal((n, p)))[0]
        return torch.tensor(left * spectrum @ right.T, dtype=dtype)

    return draw


@pytest.fixture
def linear(randn):
    """Une nn.Linear dont les poids et le biais sont tirés au hasard."""

    def draw(n=20, m=12, bias=True, dtype=torch.float32):
        layer = nn.Linear(n, m, bias, dtype=dtype)
        for p in layer.parameters():
            p.data = randn(*p.shape, dtype=dtype)
        return layer

    return draw


@pytest.fixture
def conv(randn):
    """Une nn.Conv2d dont les noyaux et le biais sont tirés au hasard."""

    def draw(n, m, kernel, dtype=torch.float32, **options):
        layer = nn.Conv2d(n, m, kernel, dtype=dtype, **options)
        with torch.no_grad():
            for p in layer.parameters():
                p.copy_(randn(*p.shape, dtype=dtype))
        return layer

    return draw


@pytest.fixture
def chain(randn):
    """Des cœurs gaussiens : ``chain([4, 5, 3], 2)``, ou ``chain([(4, 3), (5, 2)], [2])`` pour une matrice."""

    def draw(dims, ranks, dtype=torch.float32):
        bonds = [1, *([ranks] * (len(dims) - 1) if isinstance(ranks, int) else ranks), 1]
        return [randn(bonds[k], *np.atleast_1d(n), bonds[k + 1], dtype=dtype) for k, n in enumerate(dims)]

    return draw


@pytest.fixture
def train(randn):
    """Donne à chaque B d'un réseau adapté des nombres au hasard, comme après un apprentissage ; rend le réseau."""

    def fill(model):
        for layer in lrq.lora_layers(model).values():
            for adapter in layer.adapters.values():
                adapter.B.data = randn(*adapter.B.shape, dtype=adapter.B.dtype) / 2
        return model

    return fill


# --- des ouvriers -----------------------------------------------------------------------------------------------------

# L'ordre des parts, où chaque ouvrier qui a fini prend la suivante. D'abord la construction du livre, pendant laquelle
# les autres ont de quoi faire sans lui ; à la fin les fichiers légers, qui ne font attendre personne.
ORDER = ("test_book", "notebooks/", "test_exercises", "test_numerics", "test_orders", "test_jupyterlab", "test_widgets")
ORDER += ("test_browser", "test_search", "")
SPLIT = ("test_browser.py", "test_exercises.py")  # longs, et que rien n'oblige à suivre d'un trait
PAGE = re.compile(r"(?:book|notebooks)/[\w/]+")


def share(nodeid):
    """La part d'un test, qu'un seul ouvrier exécute d'un trait : son fichier, carnet compris.

    Dans les fichiers les plus longs, ce n'est que la page dont parle le test ; à défaut, sa fonction.
    """
    file, _, test = nodeid.partition("::")
    if not file.endswith(SPLIT):
        return file
    name, _, case = test.partition("[")
    page = PAGE.search(case)
    return f"{file}::{page[0] if page else name}"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Distribue des parts entières, dans l'ordre où les ouvriers les ont rangées, et sans toucher aux noms des tests.

    (Les groupes de ``--dist loadgroup`` s'ajoutent aux noms, dont les tirages dépendent.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class Shares(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return share(nodeid)

    config.option.loadscopereorder = False
    return Shares(config, log)


def pytest_configure(config):
    """Un ouvrier ne prend que sa part des cœurs. Les noyaux des carnets, eux, gardent leur nombre de fils."""
    if hasattr(config, "workerinput"):
        threads = max(1, (os.cpu_count() or 1) // config.workerinput["workercount"])
        torch.set_num_threads(threads)
        threadpool_limits(threads)


def pytest_collection_modifyitems(config, items):
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: next(i for i, name in enumerate(ORDER) if name in item.nodeid.partition("::")[0]))


# --- le livre et le navigateur ----------------------------------------------------------------------------------------


def repository_caches():
    """Les traces qu'une construction laisserait dans le dépôt, avec leur date."""
    paths = [ROOT / "_build", *(ROOT / "_build").glob("*"), *(ROOT / "_build").glob(".jupyter_cache/*")]
    paths += [*ROOT.glob("notebooks/**/.jupyter_cache"), *ROOT.glob("notebooks/**/_build")]
    return {path: path.stat().st_mtime_ns for path in paths if path.exists()}


@pytest.fixture(scope="session")
def book(tmp_path_factory):
    """Le dossier HTML du livre, construit une fois, cache d'exécution compris, hors du dépôt.

    Des ouvriers, le premier qui en a besoin le construit ; les autres l'attendent, et apprennent de même son échec.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "livre"
    told = folder / "echec.txt"
    with FileLock(f"{folder}.lock"):
        if not told.exists():
            folder.mkdir()
            told.write_text("la construction du livre s'est interrompue", encoding="utf-8")
            told.write_text(build_faults(folder), encoding="utf-8")
    faults = told.read_text(encoding="utf-8")
    assert not faults, faults
    return folder / "_build" / "html"


def build_faults(folder):
    """Construit le livre dans `folder`, les carnets sur un seul fil ; rend ce qu'il y a à y redire, ou rien."""
    before = repository_caches()
    command = [sys.executable, "-c", BUILD, "build", ".", "--path-output", str(folder), "-W", "--keep-going"]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    build = subprocess.run(command, cwd=ROOT, env=one_thread, capture_output=True, text=True, timeout=1800, check=False)
    if build.returncode:
        return f"{build.stdout[-6000:]}\n{build.stderr[-6000:]}"
    return "" if repository_caches() == before else "la construction a écrit dans le dépôt"


@pytest.fixture(scope="session")
def site(book):
    """L'adresse locale du livre, servi par HTTP."""
    with chromium.served(book) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    """Un Chromium ouvert le temps d'un module de tests.

    Pas de toute la session : tant que Playwright vit, sa boucle d'événements occupe le fil principal, or nbval et
    nbclient y lancent la leur.
    """
    executable = chromium.find()
    if executable is None:
        if os.environ.get("CI"):
            pytest.fail(f"{chromium.ABSENT}, et CI est défini.\n{chromium.ADVICE}", pytrace=False)
        pytest.skip(chromium.ABSENT)
    with chromium.launched(executable) as opened:
        yield opened


def pytest_terminal_summary(terminalreporter):
    """Des tests sautés faute de navigateur se voient : rien d'autre ne vérifie les pages telles qu'on les lit."""
    skipped = [
        report for report in terminalreporter.stats.get("skipped", []) if chromium.ABSENT in str(report.longrepr)
    ]
    if skipped:
        terminalreporter.section("AUCUN NAVIGATEUR : LES PAGES N'ONT PAS ÉTÉ VÉRIFIÉES", sep="!", red=True, bold=True)
        terminalreporter.line(f"{len(skipped)} test(s) sauté(s) : {chromium.ABSENT}.", red=True)
        terminalreporter.line(chromium.ADVICE)
