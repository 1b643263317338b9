"""Les 36 points clés : chacun jugé, chiffré, prouvé, et montré quelque part."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

from affirmations import POINTS, VERDICTS, affirmations, every_claim, notebook_of, tally  # noqa: E402
from preuves import plain, preuves  # noqa: E402

NOTEBOOKS = ROOT / "notebooks"
LINK = re.compile(r"\]\(([^)#]*)#([\w-]+)\)")
SECTIONS = list(POINTS)


@pytest.fixture(scope="module")
def claims():
    return every_claim(NOTEBOOKS)


def test_every_key_point_of_the_course_is_judged(claims):
    """Le compte est celui du cours, écrit une seconde fois ici : l'oublier d'un côté ne suffit pas."""
    counts = {section: len(found) for section, found in claims.items()}
    assert counts == {"11.0": 4, "11.1": 5, "11.2": 5, "11.3": 5, "11.4": 4, "11.5": 5, "9.6": 4, "12.3": 4}
    title = (ROOT / "book" / "affirmations.md").read_text(encoding="utf-8").splitlines()[0]
    assert title == f"# Les {sum(counts.values())} points clés, jugés"
    words = [claim.claim for found in claims.values() for claim in found]
    assert len(set(words)) == len(words)


def test_every_section_has_its_verdicts():
    numbers = {"{}.{}".format(*map(int, path.name.split("_")[:2])) for path in NOTEBOOKS.glob("[0-9]*.ipynb")}
    assert numbers == set(POINTS)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_decisive_number_is_proved(claims, section):
    """Le fragment en gras est dans une phrase qu'un `assert` caché vérifie."""
    proved = [plain(preuve.phrase).lower() for preuve in preuves(notebook_of(section, NOTEBOOKS))]
    bare = [claim.decisive for claim in claims[section] if not any(plain(claim.decisive).lower() in p for p in proved)]
    assert not bare, f"section {section}, sans preuve : {bare}"


@pytest.mark.parametrize("section", SECTIONS)
def test_every_link_leads_to_a_heading(claims, section):
    path = notebook_of(section, NOTEBOOKS)
    for claim in claims[section]:
        links = LINK.findall(claim.where)
        assert links, claim
        for name, anchor in links:
            cells = json.loads((NOTEBOOKS / (name or path.name)).read_text(encoding="utf-8"))["cells"]
            text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
            assert re.search(rf"^\({anchor}\)=\n##", text, re.MULTILINE), f"{path.name} : {name}#{anchor}"


def test_a_section_without_notebook_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"Section 9\.6 : aucun carnet dans"):
        notebook_of("9.6", tmp_path)


ROW = "| Un point. | **nuancé** | On mesure **8** fois. Voir [là](#la). |"


def notebook(folder, section, *rows):
    """Un carnet réduit à son tableau."""
    chapter, number = section.split(".")
    head = ["## Ce que dit le cours, ce que dit l’expérience", "", "| Point | Verdict | Mesure |", "|---|---|---|"]
    cell = {"cell_type": "markdown", "metadata": {}, "source": "\n".join([*head, *rows])}
    path = folder / f"{int(chapter):02}_{int(number):02}_section.ipynb"
    path.write_text(json.dumps({"cells": [cell]}), encoding="utf-8")
    return path


@pytest.mark.parametrize("word", VERDICTS)
@pytest.mark.parametrize("shade", ["", " en l’état"])
def test_a_verdict_may_be_shaded(tmp_path, word, shade):
    [claim] = affirmations(notebook(tmp_path, "11.0", ROW.replace("nuancé", word + shade)))
    assert (claim.verdict, claim.shown, claim.decisive) == (word, f"**{word}{shade}**", "8")
    assert (claim.measure, claim.where) == ("On mesure **8** fois.", "[là](#la)")
    assert tally([claim]) == f"1 {word}"
    assert tally([claim, claim]) == f"2 {word}s"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("**nuancé**", "**vrai**", r"« Un point\. » : verdict reçu '\*\*vrai\*\*', attendu l'un de confirmé, nuancé"),
        ("**nuancé**", "nuancé", "en gras"),
        (" Voir [là](#la).", "", r"doit finir par « Voir \[l’expérience\]\(#ancre\)\. »"),
        ("**8**", "8", "0 fragments en gras, attendu un seul"),
        ("fois", "**fois**", "2 fragments en gras, attendu un seul"),
    ],
)
def test_a_bad_line_is_told_in_a_sentence(tmp_path, old, new, message):
    path = notebook(tmp_path, "11.0", ROW, ROW.replace(old, new))
    with pytest.raises(ValueError, match=rf"^11_00_section\.ipynb.*{message}"):
        affirmations(path)


def test_a_missing_line_is_told_in_a_sentence(tmp_path, rng):
    for section, count in POINTS.items():
        notebook(tmp_path, section, *[ROW] * count)
    assert sum(map(len, every_claim(tmp_path).values())) == sum(POINTS.values())
    section = str(rng.choice(SECTIONS))
    notebook(tmp_path, section, *[ROW] * (POINTS[section] - 1))
    with pytest.raises(ValueError, match=f"Section {section} : {POINTS[section] - 1} points clés jugés, le cours en a"):
        every_claim(tmp_path)


def test_a_missing_table_is_told_in_a_sentence(tmp_path):
    path = tmp_path / "11_00_section.ipynb"
    path.write_text(json.dumps({"cells": []}), encoding="utf-8")
    with pytest.raises(ValueError, match="aucun tableau sous « Ce que dit le cours"):
        affirmations(path)


# --- La page construite ---


def test_unchecked_verdicts_leave_the_page(book, browser, claims):
    """Au clavier : décocher un verdict cache ses lignes, et les tableaux qui n'en ont pas d'autres."""
    page = browser.new_page(viewport={"width": 360, "height": 740})
    page.goto((book / "book" / "affirmations.html").as_uri())
    verdicts = [claim.verdict for found in claims.values() for claim in found]
    shown = dict.fromkeys(VERDICTS, True)
    for word, name in VERDICTS.items():
        seen = {w: page.locator(f"tr.lrq-{n}:visible").count() for w, n in VERDICTS.items()}
        assert seen == {w: verdicts.count(w) * shown[w] for w in VERDICTS}
        tables = sum(any(shown[claim.verdict] for claim in found) for found in claims.values())
        assert page.locator("table.lrq-affirmations:visible").count() == tables
        page.get_by_role("checkbox", name=f"{word} ({verdicts.count(word)})").focus()
        page.keyboard.press("Space")
        shown[word] = False
        assert not page.locator(f"#montrer-{name}").is_checked()
    assert page.locator("table.lrq-affirmations tbody tr:visible").count() == 0
    page.close()


def test_cards_fit_a_phone(book, browser):
    page = browser.new_page(viewport={"width": 360, "height": 740})
    page.goto((book / "book" / "affirmations.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    boxes = [cell.bounding_box() for cell in page.locator("tr.lrq-refute td").all()]
    page.close()
    assert len(boxes) == 12
    assert all(box["x"] >= 0 and 250 < box["width"] <= 360 for box in boxes)
