"""Exécuter les carnets du livre, et en faire des copies pour les exercices.

    python notebooks/carnets.py executer [carnet …]   # sur place ; sans carnet : tous, solutions comprises
    python notebooks/carnets.py exercices             # copies sans sorties, dans exercices/
    python notebooks/carnets.py cache                 # plusieurs à la fois, dans le cache de jupyter-book
    python notebooks/carnets.py installation          # la cellule de Colab, d'après l'adresse de _config.yml

L'exécution est reproductible : un carnet déjà à jour n'est pas changé d'un octet.
"""

import argparse
import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import nbformat
import yaml
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

NOTEBOOKS = Path(__file__).parent
COPIES = NOTEBOOKS.parent / "exercices"
CACHE = NOTEBOOKS.parent / "_build" / ".jupyter_cache"  # celui que lit `jupyter-book build .`
LONG = ("11_03", "12_03", "11_04")  # les plus longs à exécuter : les commencer d'abord, c'est finir plus tôt
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
HIDDEN = "remove-cell"  # les preuves : des assert que la page ne montre pas
VIEW = "application/vnd.jupyter.widget-view+json"  # une figure interactive : un identifiant neuf à chaque exécution
KEPT = {"tags", "mystnb", "editable", "deletable"}  # métadonnées de cellule qui viennent d'un auteur
FAILURES = (CellExecutionError, CellTimeoutError, DeadKernelError)  # une cellule échoue, dure trop, tue son noyau
INSTALLATION = "installation"  # l'identifiant de la cellule qui installe lrq dans Colab
INSTALL = """\
# Dans Colab, où lrq n'est pas : l'installe, avec ce dont les carnets se servent. Ailleurs, ne fait rien.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("lrq") is None:
    subprocess.check_call([sys.executable, "-m", "pip", "install", "--quiet", "lrq[livre] @ git+{url}.git@{branch}"])
    importlib.invalidate_caches()"""
SOLUTION_LINK = re.compile(r"(?<=\]\()(?=solutions/)")
PROGRESS = """\
# Où vous en êtes : ce que `verifier` a noté dans progression.json, à côté de ce carnet. Rien n'est envoyé.
from lrq.exercises import ma_progression

ma_progression()"""


def book_notebooks() -> list[Path]:
    """Tous les carnets du livre, solutions comprises."""
    found = NOTEBOOKS.glob("**/*.ipynb")
    return sorted(path for path in found if ".ipynb_checkpoints" not in path.parts)


def normalise(notebook: NotebookNode) -> NotebookNode:
    """Ne garde que ce qui ne dépend ni de l'heure, ni de la machine, ni de l'interface où le carnet fut écrit."""
    language = {k: v for k, v in notebook.metadata.get("language_info", {}).items() if k != "version"}
    notebook.metadata = NotebookNode(kernelspec=NotebookNode(KERNEL))
    if language:
        notebook.metadata.language_info = NotebookNode(language)
    for cell in notebook.cells:
        cell.metadata = NotebookNode({k: v for k, v in cell.metadata.items() if k in KEPT})
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(VIEW, None)
    return notebook


def merge_streams(notebook: NotebookNode) -> NotebookNode:
    """Réunit les morceaux d'un même flux : leur découpage dépend de l'instant où le noyau les envoie."""
    for cell in notebook.cells:
        merged: list[NotebookNode] = []
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and merged and merged[-1].get("name") == output.name:
                merged[-1].text += output.text
            else:
                merged.append(output)
        if cell.cell_type == "code":
            cell.outputs = merged
    return notebook


def run(notebook: NotebookNode, folder: Path, widget_state: bool) -> NotebookNode:
    """Exécute un carnet dans ce dossier, et le rend ; CellExecutionError si une cellule échoue."""
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name=KERNEL["name"],
        record_timing=False,
        store_widget_state=widget_state,
        extra_arguments=["--log-level=ERROR"],  # sans l'avertissement que chaque noyau imprime à son départ
        resources={"metadata": {"path": str(folder)}},
    )
    return client.execute()


def execute(path: Path) -> bool:
    """Exécute un carnet dans son dossier et l'écrit sur place ; rend True s'il a changé."""
    before = path.read_text(encoding="utf-8")
    notebook = normalise(nbformat.reads(before, as_version=4))
    notebook = merge_streams(normalise(run(notebook, path.parent, widget_state=False)))
    nbformat.validate(notebook)
    after = nbformat.writes(notebook) + "\n"
    if after != before:
        path.write_text(after, encoding="utf-8")
    return after != before


def keep(notebook: NotebookNode, path: Path, cache: Path = CACHE) -> None:
    """Range dans le cache de jupyter-book un carnet exécuté, état des figures compris."""
    bundle = CacheBundleIn(notebook, str(path.resolve()))
    get_cache(cache).cache_notebook_bundle(bundle, check_validity=False, overwrite=True)


def is_kept(path: Path, cache: Path = CACHE) -> bool:
    """Vrai si le cache de jupyter-book connaît ce carnet : les mêmes cellules de code."""
    try:
        get_cache(cache).match_cache_notebook(nbformat.read(path, as_version=4))
    except KeyError:
        return False
    return True


def run_aside(path: Path, threads: int) -> NotebookNode:
    """Exécute un carnet depuis un autre processus, ses calculs sur `threads` fils."""
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    return run(nbformat.read(path, as_version=4), path.parent, widget_state=True)


def fill_cache(cache: Path = CACHE) -> bool:
    """Exécute les carnets qui manquent au cache, plusieurs à la fois ; rend False si une cellule échoue."""
    missing = [path for path in book_notebooks() if not is_kept(path, cache)]
    cores = os.cpu_count() or 1
    workers = max(1, min(cores, 4, len(missing)))  # plus de quatre ne se partageraient que la mémoire
    succeeded = True
    with ProcessPoolExecutor(workers) as pool:
        longest_first = sorted(missing, key=lambda path: not path.name.startswith(LONG))
        running = {pool.submit(run_aside, path, max(1, cores // workers)): path for path in longest_first}
        for future in as_completed(running):
            path = running[future]
            try:
                keep(future.result(), path, cache)
                print(f"{path.name} : exécuté.", flush=True)
            except FAILURES as error:
                print(f"{path.name} : une cellule échoue.\n{error}", file=sys.stderr)
                succeeded = False
    return succeeded


def copy_for_exercises(path: Path, folder: Path = COPIES) -> bool:
    """Copie un carnet sans ses sorties ni ses preuves cachées ; rend False si la copie existe déjà.

    Le lecteur change les cellules à son gré : les assert du livre n'ont rien à y redire. Les liens vers les solutions
    sont refaits, puisque celles-ci ne sont pas copiées. Là où il y a des exercices, une cellule montre, sous le titre,
    ceux qui sont résolus.
    """
    copy = folder / path.name
    if copy.exists():
        return False
    notebook = normalise(nbformat.read(path, as_version=4))
    notebook.cells = [cell for cell in notebook.cells if HIDDEN not in cell.metadata.get("tags", [])]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        elif cell.cell_type == "markdown":
            cell.source = SOLUTION_LINK.sub(f"../{NOTEBOOKS.name}/", cell.source)
    if any("verifier(" in cell.source for cell in notebook.cells if cell.cell_type == "code"):
        notebook.cells.insert(1, nbformat.v4.new_code_cell(PROGRESS))
    folder.mkdir(exist_ok=True)
    nbformat.write(notebook, copy)
    return True


def installation_source(config: Path = NOTEBOOKS.parent / "_config.yml") -> str | None:
    """Le code qui installe lrq depuis l'adresse de `_config.yml` ; None si elle est vide."""
    repository = yaml.safe_load(config.read_text(encoding="utf-8"))["repository"]
    url = repository["url"].rstrip("/").removesuffix(".git")
    return INSTALL.format(url=url, branch=repository["branch"]) if url else None


def set_installation(path: Path, source: str | None) -> bool:
    """Met cette cellule avant les autres cellules de code, la change ou l'ôte ; rend True si le carnet a changé.

    La page ne la montre pas. Les numéros d'exécution suivent : ce sont ceux que donnerait `executer`.
    """
    before = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(before, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if cell.id != INSTALLATION]
    if source is not None:
        place = next(i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code")
        cell = nbformat.v4.new_code_cell(source, id=INSTALLATION, metadata={"tags": [HIDDEN]})
        notebook.cells.insert(place, cell)
    executed = (cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip())
    for count, cell in enumerate(executed, 1):
        cell.execution_count = count
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = count
    after = nbformat.writes(notebook) + "\n"
    if after != before:
        path.write_text(after, encoding="utf-8")
    return after != before


def start_progress(folder: Path = COPIES) -> bool:
    """Commence la progression du lecteur, à côté de ses copies ; rend False si elle existe déjà."""
    from lrq.exercises import progress

    return progress.create(folder / progress.NAME)


def main(arguments: list[str] | None = None) -> int:
    """Les quatre commandes ; rend le code de sortie."""
    parser = argparse.ArgumentParser(description="Exécuter ou copier les carnets du livre.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="commande")
    one = commands.add_parser("executer", help="exécuter sur place")
    one.add_argument("notebooks", nargs="*", type=Path, metavar="carnet")
    commands.add_parser("exercices", help="copier les carnets du cours dans exercices/, sans sorties")
    commands.add_parser("cache", help="exécuter, pour le livre, les carnets que son cache n'a pas")
    commands.add_parser("installation", help="poser la cellule de Colab, ou l'ôter si _config.yml n'a pas d'adresse")
    options = parser.parse_args(arguments)
    if options.command == "executer":
        for path in options.notebooks or book_notebooks():
            if not path.is_file():
                print(f"{path} : ce carnet n'existe pas.", file=sys.stderr)
                return 1
            print(f"{path.name} : exécution…", flush=True)
            try:
                print(f"{path.name} : {'mis à jour' if execute(path.resolve()) else 'déjà à jour'}.", flush=True)
            except FAILURES as error:
                print(f"{path.name} : une cellule échoue, le fichier reste tel qu'il était.\n{error}", file=sys.stderr)
                return 1
    elif options.command == "cache":
        return 0 if fill_cache() else 1
    elif options.command == "installation":
        source = installation_source()
        changed = [path for path in book_notebooks() if set_installation(path, source)]
        state = "sans cellule d'installation : _config.yml n'a pas d'adresse" if source is None else "prêts pour Colab"
        print(f"Carnets {state} ({len(changed)} changé(s)).")
    else:
        for path in sorted(NOTEBOOKS.glob("*.ipynb")):
            written = copy_for_exercises(path)
            print(f"exercices/{path.name} : {'copié' if written else 'existe déjà, gardé tel quel'}.")
        print(
            f"exercices/progression.json : {'commencée' if start_progress() else 'existe déjà, gardée telle quelle'}."
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
