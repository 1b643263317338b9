"""Le temps que prennent les carnets, et les deux commandes du README."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from .table import Row, duration, number

ROOT = Path(__file__).parents[1]
NOTEBOOK, LONG = 60.0, 180.0  # secondes
LONGER = ("11_03", "12_03")  # ceux qui entraînent, ou compriment, un réseau entier
BOOK, UNCHANGED, TEST = 360.0, 60.0, 1200.0


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


def copied(folder: Path) -> Path:
    """Une copie du dépôt, sans ce qu'il a déjà construit."""
    built = shutil.ignore_patterns(".git", ".venv", "_build", "exercices", "__pycache__", ".*_cache")
    return Path(shutil.copytree(ROOT, folder / "depot", ignore=built))


def make(copy: Path, target: str) -> float:
    """Durée d'une commande du README dans cette copie, l'environnement déjà là."""
    tools = [f"BIN={Path(sys.executable).parent}", f"ENV={ROOT / '.venv' / '.pret'}"]
    start = time.perf_counter()
    command = ["make", target, *tools]
    environment = os.environ | {"PYTHONPATH": str(copy)}  # le paquet de la copie, pas celui qui est installé
    run = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if run.returncode:
        raise RuntimeError(f"make {target} a échoué :\n{run.stdout[-3000:]}\n{run.stderr[-3000:]}")
    return seconds


def measure(quick: bool) -> Iterator[Row]:
    """Chaque carnet, le livre, le livre quand rien n'a changé, tous les tests ; rien de tout cela en mode rapide."""
    if quick:
        return
    for path in notebooks():
        target = LONG if path.stem[:5] in LONGER else NOTEBOOK
        yield row(f"carnet {path.relative_to(ROOT / 'notebooks')}", partial(execute, path), target)
    with tempfile.TemporaryDirectory() as folder:
        copy = copied(Path(folder))
        yield row("make livre, environnement déjà là", partial(make, copy, "livre"), BOOK)
        yield row("make livre, quand rien n'a changé", partial(make, copy, "livre"), UNCHANGED)
        yield row(f"make test, {os.cpu_count()} cœurs", partial(make, copy, "test"), TEST)
