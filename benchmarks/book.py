"""Le temps que prennent les carnets et la construction du livre."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from .table import Row, duration, number

ROOT = Path(__file__).parents[1]
NOTEBOOK_TARGET, BOOK_TARGET = 60.0, 120.0
BUILD = "import sys; from jupyter_book.cli.main import main; main(sys.argv[1:])"


def notebooks() -> list[Path]:
    """Les carnets du livre, puis leurs solutions."""
    return [*sorted(ROOT.glob("notebooks/*.ipynb")), *sorted(ROOT.glob("notebooks/solutions/*.ipynb"))]


def row(name: str, task: Callable[[], float], target: float) -> Row:
    """Une ligne ; un échec en est une aussi, pour ne pas perdre les autres mesures."""
    try:
        seconds = task()
    except Exception as error:
        print(f"{name} : {error}", file=sys.stderr)
        return Row(name, "échec", "—", "—", f"≤ {number(target)} s", False)
    return Row(name, duration(seconds), "—", "—", f"≤ {number(target)} s", seconds <= target)


def execute(path: Path) -> float:
    """Durée d'exécution d'un carnet, noyau compris ; le fichier n'est pas récrit."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()
    return time.perf_counter() - start


def build() -> float:
    """Durée d'une construction complète du livre, sans cache, dans un dossier temporaire."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", BUILD, "build", ".", "--path-output", folder, "-W", "--keep-going"]
        start = time.perf_counter()
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - start
    if run.returncode:
        raise RuntimeError(f"la construction du livre a échoué :\n{run.stdout[-3000:]}\n{run.stderr[-3000:]}")
    return seconds


def measure(quick: bool) -> Iterator[Row]:
    """Chaque carnet, puis le livre ; rien de tout cela en mode rapide."""
    if quick:
        return
    for path in notebooks():
        yield row(f"carnet {path.relative_to(ROOT / 'notebooks')}", partial(execute, path), NOTEBOOK_TARGET)
    yield row("construction du livre, environnement déjà là", build, BOOK_TARGET)
