"""Ce que les tests partagent : des instances fraîches et rejouables, le livre construit, un navigateur.

``LRQ_GRAINE=123 pytest`` refait exactement les mêmes instances. ``pytest -n 2`` répartit les tests entre deux ouvriers
(pytest-xdist), sans rien changer à ce qu'ils tirent.
"""

import json
import os
import random
import re
import subprocess
import sys
import zlib
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from filelock import FileLock
from threadpoolctl import threadpool_limits
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "notebooks"), str(ROOT / "book")]  # carnets.py, paquet.py

import carnets  # noqa: E402

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

# L'ordre des parts, où chaque ouvrier qui a fini prend la suivante. D'abord les carnets, dont le livre reprend
# l'exécution ; puis de quoi laisser finir les derniers ; le livre, et ce qui l'attend ; à la fin les fichiers légers,
# qui ne font attendre personne.
ORDER = (
    *(f"notebooks/{name}" for name in carnets.LONG),
    "notebooks/",
    "test_style",
    "test_exercises",
    "test_widgets",
    "test_book",
    "test_numerics",
    "test_orders",
    "test_jupyterlab",
)
ORDER += ("test_browser", "test_search", "")
SPLIT = (
    "test_browser.py",
    "test_exercises.py",
    "test_properties.py",
)  # longs, et que rien n'oblige à suivre d'un trait
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
    """Un ouvrier ne prend que sa part des cœurs, comme les noyaux qu'il lance, sauf si l'on en décide autrement."""
    config.pluginmanager.register(Executed())
    if hasattr(config, "workerinput"):
        threads = max(1, (os.cpu_count() or 1) // config.workerinput["workercount"])
        torch.set_num_threads(threads)
        threadpool_limits(threads)
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ.setdefault(name, str(threads))


def pytest_collection_modifyitems(config, items):
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: next(i for i, name in enumerate(ORDER) if name in item.nodeid.partition("::")[0]))


# --- le livre et le navigateur ----------------------------------------------------------------------------------------

STATE = "application/vnd.jupyter.widget-state+json"
# À la fin d'un carnet, son noyau écrit l'état de ses figures, que nbval n'écoute pas.
WRITE_STATE = """
import json, sys
widgets = sys.modules.get("ipywidgets")
with open({path!r}, "w", encoding="utf-8") as file:
    json.dump(widgets.Widget.get_manager_state() if widgets else None, file)
"""


def common_folder(tmp_path_factory):
    """Le dossier temporaire que partagent les ouvriers."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


class Executed:
    """Garde pour le livre les carnets que nbval exécute : le livre éprouvé montre ce que nbval a comparé.

    Un greffon, parce que les crochets d'un conftest.py ne voient que les tests de leur dossier.
    """

    done = pytest.StashKey[int]()  # combien de cellules de ce carnet sont exécutées

    def pytest_runtest_teardown(self, item):
        if getattr(item, "test_outputs", None) is None:  # ni une cellule de carnet, ni une cellule exécutée
            return
        file = item.parent
        item.cell.execution_count, item.cell.outputs = item.cell_num + 1, item.test_outputs
        file.stash[self.done] = file.stash.get(self.done, 0) + 1
        codes = sum(cell.cell_type == "code" for cell in file.nb.cells)
        if file.stash[self.done] < codes or not file.kernel.is_alive():
            return
        folder = common_folder(item.config._tmp_path_factory) / "executes" / file.path.relative_to(ROOT).parent
        folder.mkdir(parents=True, exist_ok=True)
        state = folder / f"{file.path.stem}.json"
        file.kernel.await_reply(file.kernel.execute_cell_input(WRITE_STATE.format(path=str(state))), timeout=60)
        found = json.loads(state.read_text(encoding="utf-8"))
        if found and found["state"]:
            file.nb.metadata["widgets"] = {STATE: found}
        nbformat.write(file.nb, folder / file.path.name)


def repository_caches():
    """Les traces qu'une construction laisserait dans le dépôt, avec leur date."""
    paths = [ROOT / "_build", *(ROOT / "_build").glob("*"), *(ROOT / "_build").glob(".jupyter_cache/*")]
    paths += [*ROOT.glob("notebooks/**/.jupyter_cache"), *ROOT.glob("notebooks/**/_build")]
    return {path: path.stat().st_mtime_ns for path in paths if path.exists()}


@pytest.fixture(scope="session")
def book(tmp_path_factory):
    """Le dossier HTML du livre, construit une fois, cache d'exécution compris, hors du dépôt.

    Des ouvriers, le premier qui en a besoin le construit ; les autres l'attendent, et apprennent de même son échec.
    ``LRQ_LIVRE=_build/html pytest tests/test_browser.py`` éprouve un livre déjà construit.
    """
    if built := os.environ.get("LRQ_LIVRE"):
        return Path(built).resolve()
    folder = common_folder(tmp_path_factory) / "livre"
    told = folder / "echec.txt"
    with FileLock(f"{folder}.lock"):
        if not told.exists():
            folder.mkdir()
            told.write_text("la construction du livre s'est interrompue", encoding="utf-8")
            for path in sorted((folder.parent / "executes").rglob("*.ipynb")):
                source = ROOT / path.relative_to(folder.parent / "executes")
                carnets.keep(nbformat.read(path, as_version=4), source, folder / "_build" / ".jupyter_cache")
            told.write_text(build_faults(folder), encoding="utf-8")
    faults = told.read_text(encoding="utf-8")
    assert not faults, faults
    return folder / "_build" / "html"


def build_faults(folder):
    """Construit le livre dans `folder` ; rend ce qu'il y a à y redire, ou rien.

    Un carnet que nbval n'a pas exécuté l'est alors, sur un seul fil.
    """
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
