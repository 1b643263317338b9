"""Les carnets du dépôt : exécutés, propres, sur le même plan, et nbval s'aperçoit de ce qui change."""

import ast
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import carnets
import nbformat
import pytest
from jupyter_cache import get_cache
from nbval.plugin import IPyNbFile, coalesce_streams

from lrq.exercises import EXERCISES

ROOT = Path(__file__).parents[1]
FOUND = (ROOT / "notebooks").glob("**/*.ipynb")
NOTEBOOKS = sorted(path for path in FOUND if ".ipynb_checkpoints" not in path.parts)
COURSE = [path for path in NOTEBOOKS if path.parent.name == "notebooks" and path.stem[0].isdigit()]
SOLUTIONS = [path for path in NOTEBOOKS if path.parent.name == "solutions"]

PLAN = [
    r"objectifs|ce que vous saurez",
    r"l'idée",
    r"définitions",
    r"expérience",
    r"ce que dit le cours, ce que dit l'expérience",
    r"cinq questions",
    r"exercices?",
    r"à retenir",
    r"références",
]
SILENT_METHODS = {  # rendent None
    *("append", "extend", "update", "remove", "clear", "sort", "add", "close"),
    *("use_style", "set_printoptions", "set_num_threads", "filterwarnings", "simplefilter"),
}
IMAGES = {"image/png", "image/jpeg", "image/svg+xml"}
CELL_METADATA = {"tags", "mystnb", "editable", "deletable"}
MACHINE = re.compile(r"/(?:home|root|tmp|work|Users)/|ipykernel_\d|site-packages|[A-Z]:\\\\| at 0x[0-9a-f]+")
LINK = re.compile(r"\]\(([^)\s]*)\)")
LABEL = re.compile(r"^\(([\w.-]+)\)=\s*$", re.MULTILINE)
HEADING = re.compile(r"^(#{1,6}) +(.+?) *$", re.MULTILINE)
EXERCISE = re.compile(r"\bexercice ([0-9]+(?:\.[0-9]+)+)", re.IGNORECASE)

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
every_course_notebook = pytest.mark.parametrize("path", COURSE, ids=lambda path: path.stem)


@cache
def read(path):
    return nbformat.read(path, as_version=4)


def tags(cell):
    return cell.metadata.get("tags", [])


def code_cells(notebook):
    return [(i, cell) for i, cell in enumerate(notebook.cells) if cell.cell_type == "code" and cell.source.strip()]


def markdown(notebook):
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def python(source):
    """Le code d'une cellule, les commandes d'IPython ôtées."""
    return ast.parse(re.sub(r"(?m)^\s*[%!].*$", "", source))


def speaks(source):
    """Vrai si la cellule montre forcément quelque chose : elle finit par une expression, ou imprime hors fonction."""
    body = python(source).body
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"print", "display"}:
                return True
    if not body or not isinstance(body[-1], ast.Expr) or source.rstrip().endswith(";"):
        return False
    last = body[-1].value
    return not (isinstance(last, ast.Call) and getattr(last.func, "attr", "") in SILENT_METHODS)


def output_faults(path):
    """Ce qui manque aux sorties d'un carnet pour qu'on sache qu'il a été exécuté, de haut en bas, sans erreur."""
    notebook = nbformat.read(path, as_version=4)
    faults, shown = [], 0
    for count, (index, cell) in enumerate(code_cells(notebook), 1):
        where = f"{path.name}, cellule {index}"
        if cell.execution_count != count:
            faults.append(f"{where} : numéro d'exécution {cell.execution_count}, attendu {count}")
        if any(output.output_type == "error" for output in cell.outputs):
            faults.append(f"{where} : une erreur est dans les sorties")
        if any(output.get("name") == "stderr" for output in cell.outputs):
            faults.append(f"{where} : un avertissement est dans les sorties")
        if "remove-cell" not in tags(cell) and speaks(cell.source) and not cell.outputs:
            faults.append(f"{where} : aucune sortie")
        shown += bool(cell.outputs)
    least = 2 if path.parent.name == "solutions" else 5
    if shown < least:
        faults.append(f"{path.name} : {shown} cellule(s) avec sortie, attendu {least} au moins")
    return faults


# --- ce que gardent les fichiers --------------------------------------------------------------------------------------


def test_each_section_has_its_solutions():
    assert COURSE, "aucun carnet dans notebooks/"
    assert [path.stem[:5] for path in COURSE] == [path.stem[:5] for path in SOLUTIONS]


@every_notebook
def test_outputs_are_there(path):
    faults = output_faults(path)
    assert not faults, "\n".join(faults)


@every_notebook
def test_file_is_light_and_clean(path):
    assert path.stat().st_size < 1_000_000
    notebook = read(path)
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}, "métadonnées étrangères : make notebooks"
    assert notebook.metadata.kernelspec == {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert "version" not in notebook.metadata.get("language_info", {}), "version de Python : make notebooks"
    extra = {key for cell in notebook.cells for key in cell.metadata} - CELL_METADATA
    assert not extra, f"métadonnées de cellule {extra} : make notebooks"
    identifiers = [cell.id for cell in notebook.cells]
    assert len(set(identifiers)) == len(identifiers)


@every_notebook
def test_outputs_name_no_machine(path):
    for index, cell in code_cells(read(path)):
        for output in cell.outputs:
            texts = [output.get("text", ""), *map(str, output.get("data", {}).values())]
            found = [m[0] for text in texts if len(text) < 50_000 for m in MACHINE.finditer(text)]
            assert not found, f"{path.name}, cellule {index} : {found[:3]}"


@every_notebook
def test_figures_say_what_they_show(path):
    for index, cell in code_cells(read(path)):
        if any(IMAGES & set(output.get("data", {})) for output in cell.outputs):
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            assert len(alt) >= 30, (
                f"{path.name}, cellule {index} : texte de remplacement absent ou trop court ({alt!r})"
            )


@every_notebook
def test_hidden_cells_only_check(path):
    for index, cell in code_cells(read(path)):
        if "remove-cell" in tags(cell) and cell.id != "installation":
            has_assert = any(isinstance(node, ast.Assert) for node in ast.walk(python(cell.source)))
            assert has_assert, f"{path.name}, cellule {index} : cachée sans rien vérifier"
            assert not cell.outputs, f"{path.name}, cellule {index} : cachée, elle imprime quelque chose"


@every_notebook
def test_visible_cells_do_not_need_hidden_ones(path):
    """Les copies d'exercices n'ont pas les cellules cachées, et le lecteur de la page ne les voit pas."""
    visible, used = set(), {}
    hidden = set()
    for index, cell in code_cells(read(path)):
        bound, loaded = set(), set()
        for node in ast.walk(python(cell.source)):
            if isinstance(node, ast.Name):
                (loaded if isinstance(node.ctx, ast.Load) else bound).add(node.id)
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                bound.add(node.name)
                bound |= {argument.arg for argument in getattr(node, "args", ast.arguments([], [], None, [], [])).args}
            elif isinstance(node, ast.alias):
                bound.add((node.asname or node.name).split(".")[0])
        if "remove-cell" in tags(cell):
            hidden |= bound
        else:
            visible |= bound
            used |= dict.fromkeys(loaded, index)
    needed = {name: used[name] for name in hidden - visible if name in used}
    assert not needed, f"{path.name} : noms définis dans une cellule cachée (nom : cellule) : {needed}"


# --- le plan, les exercices, les liens --------------------------------------------------------------------------------


def titles(notebook, level):
    return [text.replace("’", "'") for marks, text in HEADING.findall(markdown(notebook)) if len(marks) == level]


@every_course_notebook
def test_plan_is_the_common_one(path):
    found = titles(read(path), 2)
    assert len(found) == len(PLAN), f"{path.name} : {found}"
    for title, pattern in zip(found, PLAN, strict=True):
        assert re.search(pattern, title, re.IGNORECASE), f"{path.name} : « {title} », attendu {pattern}"


@every_course_notebook
def test_questions_are_those_of_the_section(path):
    """Sous « Cinq questions », l'autotest de cette section, et rien qui le calcule d'avance."""
    section = ".".join(str(int(part)) for part in path.stem.split("_")[:2])
    sources = [cell.source for cell in read(path).cells]
    at = next(i for i, source in enumerate(sources) if source.startswith("## Cinq questions"))
    assert sources[at + 1].splitlines()[-1] == f'SelfTest("{section}")'
    assert "remove-input" in tags(read(path).cells[at + 1])


def sections(notebook, word=EXERCISE):
    """Les exercices d'un carnet : numéro → (Markdown, code) de son titre au titre suivant."""
    found, number = {}, None
    for cell in notebook.cells:
        if cell.cell_type == "code":
            if number:
                found[number][1].append(cell)
            continue
        start = 0
        pieces = [*HEADING.finditer(cell.source), None]
        for heading in pieces:
            end = heading.start() if heading else len(cell.source)
            if number:
                found[number][0].append(cell.source[start:end])
            if heading:
                match = word.search(heading[2])
                number = match[1] if match else None
                if number:
                    found.setdefault(number, ([], []))
                start = heading.start()
    return {number: ("\n".join(texts), cells) for number, (texts, cells) in found.items()}


def anchors(notebook):
    """Les cibles d'un carnet : `(cible)=` et titres."""
    text = markdown(notebook)
    slug = [re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for _, title in HEADING.findall(text)]
    return {*LABEL.findall(text), *slug}


def links(path, text):
    """Les liens d'un texte vers un carnet ou une page : (fichier, cible)."""
    for url in LINK.findall(text):
        if url.startswith(("http:", "https:", "mailto:")):
            continue
        file, _, anchor = url.partition("#")
        yield (path.parent / file).resolve() if file else path, anchor


@every_notebook
def test_links_lead_somewhere(path):
    pages = markdown(read(path))
    labels = set().union(*(anchors(read(other)) for other in NOTEBOOKS))
    for target, anchor in links(path, pages):
        assert target.is_file(), f"{path.name} : {target.name} n'existe pas"
        if anchor and target.suffix == ".ipynb":
            known = labels if target == path else anchors(read(target))
            assert anchor in known, f"{path.name} : {target.name}#{anchor} n'existe pas"


def test_every_exercise_has_its_statement_and_its_solution():
    assert sorted(n for path in COURSE for n in exercises_checked(path)) == sorted(EXERCISES)
    assert sorted(n for path in SOLUTIONS for n in exercises_checked(path)) == sorted(EXERCISES)


def exercises_checked(path):
    """Numéros des exercices dont la section appelle `verifier`."""
    calls = {}
    for number, (_, cells) in sections(read(path)).items():
        calls[number] = any(re.search(rf"""verifier\(\s*["']{re.escape(number)}["']""", cell.source) for cell in cells)
    missing = [number for number in calls if number in EXERCISES and not calls[number]]
    assert not missing, f"{path.name} : l'exercice {missing} n'appelle pas verifier"
    return [number for number, called in calls.items() if called]


@pytest.mark.parametrize("solutions", SOLUTIONS, ids=lambda path: path.stem)
def test_solutions_succeed(solutions):
    for number, (_, cells) in sections(read(solutions)).items():
        if number in EXERCISES:
            text = "".join(
                str(output.get("data", {}).get("text/plain", "")) for cell in cells for output in cell.outputs
            )
            assert ": réussi" in text, f"{solutions.name} : l'exercice {number} n'affiche pas « réussi »"


@every_course_notebook
def test_statement_and_solution_are_linked(path):
    solutions = next(other for other in SOLUTIONS if other.stem[:5] == path.stem[:5])
    there, back = sections(read(path)), sections(read(solutions))
    for number in exercises_checked(path):
        to_solution = [anchor for target, anchor in links(path, there[number][0]) if target == solutions]
        to_statement = [anchor for target, anchor in links(solutions, back[number][0]) if target == path]
        assert any(to_solution), f"{path.name}, exercice {number} : aucun lien précis vers sa solution"
        assert any(to_statement), f"{solutions.name}, exercice {number} : aucun lien précis vers son énoncé"


# --- nbval, et les tests des tests ------------------------------------------------------------------------------------


def nbval(*targets, **environment):
    """`pytest --nbval …` comme un lecteur le tape, sous la configuration du projet."""
    command = [sys.executable, "-m", "pytest", "--nbval", "-q", "-p", "no:cacheprovider"]
    command += ["-c", str(ROOT / "pyproject.toml"), *map(str, targets)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | environment, timeout=1200, check=False
    )


def tiny(folder, output="4\n"):
    """Un petit carnet exécuté, dont la sortie peut être fausse."""
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": read(COURSE[0]).metadata.kernelspec})
    for i in range(5):
        outputs = [nbformat.v4.new_output("stream", name="stdout", text=output if i == 2 else "4\n")]
        notebook.cells.append(nbformat.v4.new_code_cell("print(2 + 2)", execution_count=i + 1, outputs=outputs))
    path = folder / "petit.ipynb"
    nbformat.write(notebook, path)
    return path


def differences(path, cache, session):
    """Les cellules dont les sorties gardées par le cache du livre ne sont pas celles du fichier, au sens de nbval."""
    _, executed = get_cache(cache).merge_match_into_notebook(nbformat.read(path, as_version=4))
    outputs = [cell.outputs for cell in executed.cells if cell.cell_type == "code"]
    checked = IPyNbFile.from_parent(session, path=path).collect()
    return {
        cell.name: "\n".join(cell.comparison_traceback)
        for cell, found in zip(checked, outputs, strict=True)
        if not cell.compare_outputs(coalesce_streams(found), coalesce_streams(cell.cell.outputs))
    }


@every_notebook
def test_nbval_passes_with_one_thread(path, book, request):
    """L'exécution principale a le nombre de fils par défaut, celle du livre un seul ; les sorties n'en changent pas."""
    assert differences(path, book.parent / ".jupyter_cache", request.session) == {}


def test_an_altered_output_of_the_book_is_noticed(tmp_path, request):
    path = tiny(tmp_path)
    get_cache(tmp_path / "cache").cache_notebook_file(path)
    assert differences(path, tmp_path / "cache", request.session) == {}
    assert list(differences(tiny(tmp_path, output="5\n"), tmp_path / "cache", request.session)) == ["Cell 2"]


def test_nbval_notices_an_altered_output(tmp_path):
    path = tiny(tmp_path)
    run = nbval(path)
    assert run.returncode == 0, run.stdout
    run = nbval(tiny(tmp_path, output="5\n"))
    assert run.returncode == 1, run.stdout
    assert "1 failed, 4 passed" in run.stdout


@pytest.mark.parametrize("threads", ["1", "2"])
def test_kernels_get_the_number_of_threads(threads, tmp_path):
    """Celui que fixe ``make endurance`` : les carnets y sont rejoués sur un fil, puis sur deux."""
    path = tiny(tmp_path)
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[2].source = "import torch\n\nprint(torch.get_num_threads())"
    notebook.cells[2].outputs[0].text = f"{threads}\n"
    nbformat.write(notebook, path)
    run = nbval("-n", "1", "--dist", "loadfile", path, OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads)
    assert run.returncode == 0, run.stdout


def test_stripped_notebook_is_refused_here_though_nbval_accepts_it(tmp_path):
    path = tiny(tmp_path)
    assert output_faults(path) == []
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, path)
    assert len(output_faults(path)) == 11  # cinq cellules non exécutées et muettes, et trop peu de sorties
    assert nbval(path).returncode == 0, "nbval s'aperçoit désormais des sorties absentes : ce garde-fou est superflu"


@every_notebook
def test_stripping_a_real_notebook_is_noticed(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    for _, cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, tmp_path / path.name)
    assert output_faults(tmp_path / path.name)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("print(1)", True),
        ("for i in x:\n    print(i)", True),
        ("x", True),
        ("f(x)", True),
        ("x;", False),
        ("x = 1", False),
        ("xs.append(1)", False),
        ("def f():\n    print(1)", False),
        ("%matplotlib inline\nx = 1", False),
    ],
)
def test_cells_that_must_speak(source, expected):
    assert speaks(source) is expected


# --- carnets.py -------------------------------------------------------------------------------------------------------


def test_execution_is_repeatable_and_clean(tmp_path):
    path = tiny(tmp_path, output="faux\n")
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.kernelspec.display_name = "mon noyau"
    notebook.cells[0].metadata = {"collapsed": True, "tags": ["hide-input"]}
    nbformat.write(notebook, path)
    assert carnets.execute(path)
    first = path.read_bytes()
    assert not carnets.execute(path)
    assert path.read_bytes() == first
    notebook = nbformat.read(path, as_version=4)
    assert output_faults(path) == []
    assert notebook.cells[2].outputs[0].text == "4\n"
    assert notebook.cells[0].metadata == {"tags": ["hide-input"]}
    assert notebook.metadata.kernelspec.display_name == "Python 3"
    assert "version" not in notebook.metadata.language_info


def test_an_absent_notebook_is_named(tmp_path, capsys):
    assert carnets.main(["executer", str(tmp_path / "absent.ipynb")]) == 1
    assert "absent.ipynb : ce carnet n'existe pas" in capsys.readouterr().err


def test_a_failing_cell_leaves_the_file_untouched(tmp_path, capsys):
    path = tiny(tmp_path)
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].source = "1 / 0"
    nbformat.write(notebook, path)
    before = path.read_bytes()
    assert carnets.main(["executer", str(path)]) == 1
    assert path.read_bytes() == before
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_the_cache_of_the_book_is_filled_but_for_what_fails(tmp_path, monkeypatch, capsys):
    figure = "import ipywidgets\nipywidgets.IntSlider(3)"
    paths = [tmp_path / f"{name}.ipynb" for name in ("sain", "faux")]
    for path, source in zip(paths, (figure, "1 / 0"), strict=True):
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), path)
    before = paths[0].read_bytes()
    monkeypatch.setattr(carnets, "book_notebooks", lambda: paths)
    cache = tmp_path / "cache"
    assert not carnets.fill_cache(cache)
    assert "faux.ipynb : une cellule échoue" in capsys.readouterr().err
    assert [carnets.is_kept(path, cache) for path in paths] == [True, False]
    _, kept = get_cache(cache).merge_match_into_notebook(nbformat.read(paths[0], as_version=4))
    states = kept.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"].values()
    assert 3 in [state["state"].get("value") for state in states]
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("2 / 1")]), paths[1])
    assert carnets.fill_cache(cache)  # le premier n'est pas réexécuté
    printed = capsys.readouterr().out
    assert "faux.ipynb : exécuté" in printed
    assert "sain" not in printed
    assert paths[0].read_bytes() == before


@every_course_notebook
def test_copies_are_empty_and_never_overwrite(path, tmp_path):
    assert carnets.copy_for_exercises(path, tmp_path)
    copy = nbformat.read(tmp_path / path.name, as_version=4)
    assert all(not cell.outputs for _, cell in code_cells(copy))
    assert not any("remove-cell" in tags(cell) for cell in copy.cells)
    for target, _ in links(ROOT / "exercices" / path.name, markdown(copy)):
        assert target.is_file() or target.parent.name == "exercices", target
    assert copy.cells[0].source.startswith("# ")
    assert copy.cells[1].source == carnets.PROGRESS
    (tmp_path / path.name).write_text("mon travail", encoding="utf-8")
    assert not carnets.copy_for_exercises(path, tmp_path)
    assert (tmp_path / path.name).read_text(encoding="utf-8") == "mon travail"


def test_making_copies_begins_a_progress_file_once(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "exercices"
    monkeypatch.setattr(carnets, "COPIES", folder)
    monkeypatch.setattr(carnets.copy_for_exercises, "__defaults__", (folder,))
    monkeypatch.setattr(carnets.start_progress, "__defaults__", (folder,))
    assert carnets.main(["exercices"]) == 0
    assert "progression.json : commencée" in capsys.readouterr().out
    begun = sorted(path.name for path in folder.glob("*.*") if not path.name.startswith("."))
    assert begun == sorted([*(path.name for path in (ROOT / "notebooks").glob("*.ipynb")), "progression.json"])
    (folder / "progression.json").write_text("ma progression", encoding="utf-8")
    assert carnets.main(["exercices"]) == 0
    assert "progression.json : existe déjà" in capsys.readouterr().out
    assert (folder / "progression.json").read_text(encoding="utf-8") == "ma progression"


@every_notebook
def test_no_output_hangs_on_a_semicolon(path):
    """Un « ; » final tait une sortie dans Jupyter, mais pas sous nbval, qui verrait une différence."""
    cells = nbformat.read(path, as_version=4).cells
    assert [cell.source for cell in cells if cell.cell_type == "code" and cell.source.rstrip().endswith(";")] == []
