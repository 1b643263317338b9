"""Exécuter les carnets du livre, et en faire des copies pour les exercices.

    python notebooks/carnets.py executer [carnet …]   # sur place ; sans carnet : tous, solutions comprises
    python notebooks/carnets.py exercices             # copies sans sorties, dans exercices/

L'exécution est reproductible : un carnet déjà à jour n'est pas changé d'un octet.
"""

import argparse
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

NOTEBOOKS = Path(__file__).parent
COPIES = NOTEBOOKS.parent / "exercices"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
HIDDEN = "remove-cell"  # les preuves : des assert que la page ne montre pas
VIEW = "application/vnd.jupyter.widget-view+json"  # une figure interactive : un identifiant neuf à chaque exécution
KEPT = {"tags", "mystnb", "editable", "deletable"}  # métadonnées de cellule qui viennent d'un auteur
SOLUTION_LINK = re.compile(r"(?<=\]\()(?=solutions/)")


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


def execute(path: Path) -> bool:
    """Exécute un carnet dans son dossier et l'écrit sur place ; rend True s'il a changé."""
    before = path.read_text(encoding="utf-8")
    notebook = normalise(nbformat.reads(before, as_version=4))
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name=KERNEL["name"],
        record_timing=False,
        store_widget_state=False,
        resources={"metadata": {"path": str(path.parent)}},
    )
    notebook = merge_streams(normalise(client.execute()))
    nbformat.validate(notebook)
    after = nbformat.writes(notebook) + "\n"
    if after != before:
        path.write_text(after, encoding="utf-8")
    return after != before


def copy_for_exercises(path: Path, folder: Path = COPIES) -> bool:
    """Copie un carnet sans ses sorties ni ses preuves cachées ; rend False si la copie existe déjà.

    Le lecteur change les cellules à son gré : les assert du livre n'ont rien à y redire. Les liens vers les solutions
    sont refaits, puisque celles-ci ne sont pas copiées.
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
    folder.mkdir(exist_ok=True)
    nbformat.write(notebook, copy)
    return True


def main(arguments: list[str] | None = None) -> int:
    """Les deux commandes ; rend le code de sortie."""
    parser = argparse.ArgumentParser(description="Exécuter ou copier les carnets du livre.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("executer", help="exécuter sur place")
    run.add_argument("notebooks", nargs="*", type=Path, metavar="carnet")
    commands.add_parser("exercices", help="copier les carnets du cours dans exercices/, sans sorties")
    options = parser.parse_args(arguments)
    if options.command == "executer":
        for path in options.notebooks or book_notebooks():
            print(f"{path.name} : exécution…", flush=True)
            try:
                print(f"{path.name} : {'mis à jour' if execute(path.resolve()) else 'déjà à jour'}.", flush=True)
            except CellExecutionError as error:
                print(f"{path.name} : une cellule échoue, le fichier reste tel qu'il était.\n{error}", file=sys.stderr)
                return 1
    else:
        for path in sorted(NOTEBOOKS.glob("*.ipynb")):
            written = copy_for_exercises(path)
            print(f"exercices/{path.name} : {'copié' if written else 'existe déjà, gardé tel quel'}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
