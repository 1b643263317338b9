"""Chaque nombre de la prose est dans une phrase prouvée, et chaque phrase prouvée est dans la prose."""

import ast
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

import preuves as module  # noqa: E402
from preuves import missing, nombres, preuves, uncovered  # noqa: E402

FOUND = (ROOT / "notebooks").glob("**/*.ipynb")
NOTEBOOKS = sorted(path for path in FOUND if ".ipynb_checkpoints" not in path.parts)


def write(folder, *cells):
    """Écrit un carnet : un texte est une cellule Markdown, un couple (source, étiquette) du code."""
    notebook = nbformat.v4.new_notebook()
    for cell in cells:
        if isinstance(cell, str):
            notebook.cells.append(nbformat.v4.new_markdown_cell(cell))
        else:
            source, tag = cell
            notebook.cells.append(nbformat.v4.new_code_cell(source, metadata={"tags": [tag] if tag else []}))
    path = folder / "carnet.ipynb"
    nbformat.write(notebook, path)
    return path


def proof(condition, phrase):
    return f"assert {condition}, {phrase!r}", "remove-cell"


def names(condition):
    return [node for node in ast.walk(ast.parse(f"({condition})")) if isinstance(node, ast.Name)]


def texts(path):
    return [nombre.text for nombre in nombres(path)]


# --- Les nombres de la prose ---


@pytest.mark.parametrize(
    ("prose", "expected"),
    [
        ("Un cosinus de 0,954.", ["0,954"]),
        ("Soit 10\u202f616\u202f832 paramètres.", ["10 616 832"]),
        ("Garder 99\u00a0% de l'énergie.", ["99 %"]),
        ("C'est ×8 plus petit.", ["×8"]),
        ("Un écart de −3 points.", ["−3"]),
        ("Elle pèse 2,5\u00a0Mo.", ["2,5"]),
        ("Entre 250–298 sur 384.", ["250", "298", "384"]),
        ("Une erreur de 10⁻³, au 3e essai.", ["10⁻³", "3"]),
        ("Les rangs 4, 8 et 16 (soit 1/2).", ["4", "8", "16", "1/2"]),
        ("- puce de 12 éléments", ["12"]),
        ("1. premier point", []),
        ("Sans aucun chiffre : quatre-vingts.", []),
        ("Du **gras à 42 %** et un [lien à 7](https://exemple.org/2024/31).", ["42 %", "7"]),
        ("Le code `rank=8`, la formule $r = 12$ et $$x = 3$$ ne comptent pas.", []),
        ("Le rôle {ref}`sec-12` et {math}`x = 3` non plus.", []),
        ("```python\nx = 3\n```", []),
        ("```{code-block} python\nx = 3\n```", []),
        ("$$\nx = 3\n$$ (eq-4)", []),
        ("(sec-33)=\nUn texte.", []),
        ("% un commentaire 33", []),
        ("INT8, fp16, MiniLM-L6-v2, GPT-2 et 2D sont des noms.", []),
        ("<https://exemple.org/12>", []),
        ("| a | b |\n|---|---|\n| 1,5 | texte |", ["1,5"]),
        ("<div class='x12'>Un bloc <b>HTML</b> de 5 lignes</div>", ["5"]),
    ],
)
def test_numbers_of_the_prose(tmp_path, prose, expected):
    assert texts(write(tmp_path, prose)) == expected


@pytest.mark.parametrize(
    ("prose", "expected"),
    [
        ("# 11.1 Factorisation", []),
        ("## 11.1.2 Le rang 8", ["8"]),
        ("Voir la section 11.2 et l'exercice 11.1.1.", []),
        ("Voir les sections 11.2, 11.3 et 11.5.", []),
        ("Comme en 11.1, puis en 9.6.2.", []),
        ("Le chapitre 12 suit.", []),
        ("La section 11.2 garde 12 valeurs.", ["12"]),
        ("La section 11.2 et 12 autres.", ["12"]),
        ("Un gain de 11,1 points.", ["11,1"]),
        ("Écrit à l'anglaise, 0.954 reste un nombre.", ["0.954"]),
    ],
)
def test_references_to_sections_are_not_numbers(tmp_path, prose, expected):
    assert texts(write(tmp_path, prose)) == expected


@pytest.mark.parametrize(
    ("prose", "expected"),
    [
        ("Le théorème d'Eckart et Young (1936) le dit.", []),
        ("On l'a vu (Hu et al., 2022 ; Mirsky, 1960).", []),
        ("À ICLR 2022.", []),
        ("Un vecteur (2000 valeurs).", ["2000"]),
        ("On a utilisé 1936 phrases.", ["1936"]),
    ],
)
def test_years_of_citations_are_not_numbers(tmp_path, prose, expected):
    assert texts(write(tmp_path, prose)) == expected


@pytest.mark.parametrize("fence", ["```", ":::"])
def test_directives_are_prose_without_their_options(tmp_path, fence):
    prose = f"{fence}{{admonition}} Le rang 5\n:class: marge-12\n:name: th-3\n\nUn texte de 7 mots.\n{fence}"
    assert texts(write(tmp_path, prose)) == ["5", "7"]


def test_path_of_a_figure_is_not_prose(tmp_path):
    prose = "```{figure} image_12.png\n---\nwidth: 300px\n---\nLégende : 64 valeurs.\n```"
    assert texts(write(tmp_path, prose)) == ["64"]


def test_nested_directives_are_read(tmp_path):
    assert texts(write(tmp_path, "::::{dropdown} Aide\n:::{note}\nEncore 9.\n:::\n::::")) == ["9"]


def test_code_and_hidden_cells_are_not_prose(tmp_path):
    path = write(tmp_path, ("print(12)", ""), "Rien.")
    assert nombres(path) == []


def test_number_carries_its_sentence_and_cell(tmp_path):
    [nombre] = nombres(write(tmp_path, "# Titre", "Avant. Le rang vaut 8 ici. Après."))
    assert (nombre.sentence, nombre.cell) == ("Le rang vaut 8 ici.", 1)


# --- Les phrases prouvées ---


def test_proof_has_condition_cell_and_anchor(tmp_path):
    prose = "# Titre général\n\n## L'idée à retenir\n\nLe rang vaut 8."
    path = write(tmp_path, prose, proof("rank == 8", "rang vaut 8"))
    [found] = preuves(path)
    assert (found.phrase, found.condition, found.cell) == ("rang vaut 8", "rank == 8", 1)
    assert found.anchor == "l-idee-a-retenir"
    assert uncovered(path) == missing(path) == []


def test_anchor_follows_the_phrase_not_the_assert(tmp_path):
    path = write(tmp_path, "# Un\n\nLe rang vaut 8.", "# Deux", proof("r == 8", "rang vaut 8"))
    assert preuves(path)[0].anchor == "un"


@pytest.mark.parametrize(
    "phrase",
    [
        "cosinus de 0,954",
        "**cosinus de 0,954**",
        "cosinus de 0,954**, à",
        "un  cosinus\nde 0,954",
        "à 99\u00a0% près",
        "avec $r = 12$ et `rank=3`",
    ],
)
def test_phrase_matches_up_to_spaces_and_emphasis(tmp_path, phrase):
    prose = "On a un **cosinus de 0,954**,\nà 99\u202f% près, avec $r = 12$ et `rank=3`."
    assert missing(write(tmp_path, prose, proof("x", phrase))) == []


@pytest.mark.parametrize("phrase", ["rang vaut 9", "Rang vaut 8", "vaut 8 ou 9", "3 % des cas", "8 puis 1"])
def test_absent_phrase_is_missing(tmp_path, phrase):
    """« 3 % » n'est pas dans « 13 % », ni « 1 » dans « 16 » : une phrase ne coupe pas un nombre."""
    path = write(tmp_path, "Le rang vaut 8 puis 16 dans 13 % des cas.", proof("x", phrase))
    assert [p.phrase for p in missing(path)] == [phrase]


def test_number_outside_every_phrase_is_uncovered(tmp_path):
    path = write(tmp_path, "Le rang vaut 8 et la taille 384.", proof("r == 8", "rang vaut 8"))
    assert [n.text for n in uncovered(path)] == ["384"]


def test_unit_belongs_to_the_number(tmp_path):
    path = write(tmp_path, "On garde 99 % ici.", proof("x", "On garde 99"))
    assert [n.text for n in uncovered(path)] == ["99 %"]


def test_phrase_may_span_a_table_row(tmp_path):
    path = write(tmp_path, "| a | b |\n|---|---|\n| INT8 | 0,9996 |", proof("x", "INT8 | 0,9996"))
    assert uncovered(path) == missing(path) == []


def test_only_hidden_cells_prove(tmp_path):
    path = write(tmp_path, "Le rang vaut 8.", ("assert r == 8, 'rang vaut 8'", "hide-input"))
    assert preuves(path) == []
    assert len(uncovered(path)) == 1


def test_assert_without_phrase_and_magics_are_tolerated(tmp_path):
    source = """%matplotlib inline
assert data.sum() > 0
assert ok, f"{x} inattendu"
for r in (1, 2):
    assert (
        r < 3
    ), "sous 3"
"""
    path = write(tmp_path, "Reste sous 3.", (source, "remove-cell"))
    assert [(p.phrase, p.condition) for p in preuves(path)] == [("sous 3", "r < 3")]


# --- Les pages qui ne sont pas des carnets ---


def test_a_page_is_proved_by_the_test_of_its_name(tmp_path, monkeypatch):
    page, tests = tmp_path / "Une-page.md", tmp_path / "test_prose.py"
    page.write_text("# Le rang 8\n\nIl vaut 8, et la taille 384 (CC BY 4.0, en 1 h 30).", encoding="utf-8")
    monkeypatch.setattr(module, "PROSE", tests)
    assert preuves(page) == []  # aucun fichier de preuves
    tests.write_text(
        "def test_autre():\n    assert n == 384, 'la taille 384'\n\n\n"
        "def test_une_page():\n    r = rang()\n    assert r == 8, 'Le rang 8'\n    assert r == 8, 'vaut 9'\n",
        encoding="utf-8",
    )
    assert [(p.phrase, p.condition, p.anchor) for p in preuves(page)] == [
        ("Le rang 8", "r == 8", "le-rang-8"),
        ("vaut 9", "r == 8", "le-rang-8"),
    ]
    assert [p.phrase for p in missing(page)] == ["vaut 9"]
    assert [n.text for n in uncovered(page)] == ["8", "384"]


# --- Les carnets du livre ---


def test_book_has_notebooks():
    assert NOTEBOOKS, "aucun carnet dans notebooks/"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_proved_phrase_is_in_the_prose(path):
    lines = [f"{path.name}, cellule {p.cell} : « {p.phrase} » n'est pas dans la prose" for p in missing(path)]
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_number_is_proved(path):
    bare = uncovered(path)
    lines = [f"{path.name}, cellule {n.cell} : {n.text} sans preuve dans « {n.sentence} »" for n in bare]
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_conditions_depend_on_a_computed_value(path):
    """`assert True, "…"` ne prouve rien."""
    lines = [f"{path.name} : « {p.phrase} » : {p.condition}" for p in preuves(path) if not names(p.condition)]
    assert not lines, "\n".join(lines)
