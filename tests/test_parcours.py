"""La carte, les parcours, le mémento et la page des enseignants ne disent que ce que disent les carnets."""

import contextlib
import json
import re
import sys
import zlib
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from docutils import nodes

from lrq.exercises import EXERCISES, SECTIONS

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

import parcours  # noqa: E402
import preuves  # noqa: E402

COURSE = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
DIRECTIVE = re.compile(r"(?ms)^:::\{(\w+)\} ?([^\n]*)\n(.*?)^:::$")


def header(path):
    return "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])


def page(name):
    return (ROOT / "book" / f"{name}.md").read_text(encoding="utf-8")


def number(path):
    return f"{int(path.name[:2])}.{int(path.name[3:5])}"


def prerequisites(path):
    """Les sections citées entre « Prérequis » et « Durée », lues autrement que par la directive : par leur texte."""
    cited = header(path).split("**Prérequis.**")[1].split("**Durée.**")[0]
    return set(re.findall(r"(?<![\d.])(?:9|11|12)\.\d(?![\d.])", cited))


def built(book, name):
    return BeautifulSoup((book / "book" / f"{name}.html").read_text(encoding="utf-8"), "html.parser")


# --- les durées -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Une heure de lecture", 60),
        ("une heure et demie", 90),
        ("Deux heures de lecture", 120),
        ("une demi-heure", 30),
        ("(quinze minutes)", 15),
        ("tient en vingt-cinq minutes", 25),
        ("1 h 30", 90),
        ("2 h de lecture", 120),
        ("45 min", 45),
    ],
)
def test_durations_are_read(text, expected):
    assert parcours.minutes(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "longtemps", "une page", "trente", "trente-cinq minutes", "une heure dix", "une heure et quart", "1 h 5"],
)
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match="durée : reçu"):
        parcours.minutes(text)


def test_durations_are_written_as_they_are_read(rng):
    for duration in {int(d) for d in rng.integers(1, 600, 40)}:
        assert parcours.minutes(parcours.written(duration).replace("\u00a0", " ")) == duration


@pytest.mark.parametrize("path", COURSE, ids=number)
def test_the_welcome_page_gives_the_same_durations(path):
    row = next(line for line in page("index").splitlines() if line.startswith(f"| [{number(path)} "))
    section = parcours.sections()[number(path)]
    assert parcours.durations(row.split("|")[3]) == (section.reading, section.practice), row.split("|")[3]


@pytest.mark.parametrize("path", COURSE, ids=number)
def test_the_classroom_exercise_is_one_of_the_section(path):
    exercise, minutes = parcours.sections()[number(path)].classroom
    assert exercise in [e.number for e in SECTIONS[number(path)]]
    assert 5 <= minutes <= 60


def test_a_header_without_its_parts_is_refused(tmp_path):
    notebook = tmp_path / "11_09_rien.ipynb"
    notebook.write_text(json.dumps({"cells": [{"source": ["# 11.9 Rien\n", "\n", "**Durée.** Une heure."]}]}))
    with pytest.raises(ValueError, match=r"11_09_rien\.ipynb : titre, prérequis"):
        parcours.read_section(notebook)


# --- la carte ---------------------------------------------------------------------------------------------------------


def arrows(soup):
    return {(g["data-de"], g["data-vers"]): g["class"][1] for g in soup.select(".lrq-carte .fleche")}


def everything_before(section, needs):
    return set().union(*({need} | everything_before(need, needs) for need in needs[section]))


def test_every_prerequisite_is_an_arrow_and_every_arrow_a_prerequisite(book):
    found = arrows(built(book, "parcours"))
    assert set(found) == {(need, number(path)) for path in COURSE for need in prerequisites(path)}


def test_thick_arrows_lead_through_everything_that_is_needed(book):
    found = arrows(built(book, "parcours"))
    thick = {
        number(path): {a for (a, b), kind in found.items() if b == number(path) and kind == "pas"} for path in COURSE
    }
    whole = {
        number(path): {a for (a, b), kind in found.items() if b == number(path) and kind != "partie"} for path in COURSE
    }
    for section in whole:
        assert everything_before(section, thick) == everything_before(section, whole)
        assert section not in everything_before(section, whole)
    for a, b in ((a, b) for (a, b), kind in found.items() if kind == "pas"):
        others = thick | {b: thick[b] - {a}}
        assert a not in everything_before(b, others), f"la flèche de {a} à {b} est de trop"


def test_boxes_lead_to_their_sections_and_say_what_they_need(book):
    svg = built(book, "parcours").select_one("svg.lrq-carte")
    boxes = {a["href"]: a for a in svg.select("a")}
    assert set(boxes) == {f"../notebooks/{path.stem}.html" for path in COURSE}
    for path in COURSE:
        label = boxes[f"../notebooks/{path.stem}.html"]["aria-label"]
        assert label.startswith(f"{number(path)} ")
        sentence = label.rpartition(" (")[2].partition("). ")[2]
        assert set(re.findall(r"(?:9|11|12)\.\d(?=\D)", sentence)) == {number(path), *prerequisites(path)}
        assert sentence in svg.desc.get_text()


def test_the_map_refuses_what_the_headers_do_not_say():
    places = {section: parcours.Place("milieu", row, section) for row, section in enumerate(SECTIONS)}
    assert "<svg" in parcours.drawing(places, {("9.6", "11.2")}, lambda section: section.file)
    with pytest.raises(ValueError, match=r"la section 11\.1 ne cite pas la 12\.3"):
        parcours.drawing(places, {("11.1", "12.3")}, lambda section: section.file)
    del places["9.6"]
    with pytest.raises(ValueError, match="carte : sections"):
        parcours.drawing(places, set(), lambda section: section.file)


# --- les parcours -----------------------------------------------------------------------------------------------------


class Alone(parcours.PathDirective):
    """La directive, sans Sphinx autour."""

    def __init__(self, total, lines):
        self.arguments, self.content = [total], lines


def paths():
    return [
        (name, total, body)
        for name in ("parcours", "enseigner")
        for kind, total, body in DIRECTIVE.findall(page(name))
        if kind == "parcours"
    ]


def test_announced_totals_are_the_sums():
    assert len(paths()) == 6
    for _, total, body in paths():
        assert Alone(total, body.splitlines()).markdown().endswith(f"**{parcours.written(parcours.minutes(total))}** |")
        assert {"Lire", "Toucher", "Résoudre"} <= set(re.findall(r"^\w+", body, re.MULTILINE)) or "L’exercice" in body


def test_a_total_that_is_not_the_sum_is_refused():
    steps = ["Lire | lecture 11.1 | tout", "Résoudre | salle 11.1 | un exercice", "Essayer | 10 min | seul"]
    assert "1 h 25".replace(" ", "\u00a0") in Alone("1 h 25", steps).markdown()
    with pytest.raises(ValueError, match="annoncé 1 h 30, la somme"):
        Alone("1 h 30", steps).markdown()
    with pytest.raises(ValueError, match=r"ligne 'Lire \| 10 min' : 2 morceau\(x\), attendu 3"):
        Alone("10 min", ["Lire | 10 min"]).markdown()


def test_titles_that_the_paths_quote_are_those_of_the_sections():
    """« Quatre spectres » : un titre de la section citée dans la même étape, ou dans l'une des précédentes."""
    titles = {}
    for path in COURSE:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        titles[path.name] = re.findall(r"(?m)^#{2,3} (.+)$", text.replace("\u00a0", " "))
    quoted = 0
    for name, _, body in paths():
        where = None
        for line in body.splitlines():
            cited = re.findall(r"notebooks/(\w+\.ipynb)", line)
            where = cited[0] if cited else where or "11_00_introduction.ipynb"
            for title in re.findall(r"« (.+?) »", line):
                if name == "parcours":
                    assert title in titles[where], f"{title!r} n'est pas un titre de {where}"
                    quoted += 1
    assert quoted > 20


# --- le mémento -------------------------------------------------------------------------------------------------------


def test_every_number_of_the_memo_is_taken_from_a_proved_sentence():
    """Un nombre hors d'une formule, du code et du rôle `preuve` est de trop ; le rôle refuse le reste."""
    reader = preuves._Reader()
    reader.read(page("memento"))
    assert [b.text[start:end] for b in reader.blocks for start, end in b.numbers() if not b.heading] == []
    quotes = re.findall(r"\{preuve\}`([\d.]+) : ([^`]+)`", page("memento"))
    assert len(quotes) >= 15
    for section, phrase in quotes:
        assert parcours.proved(ROOT / "notebooks" / parcours.known(section).file, phrase) is not None, phrase


@pytest.mark.parametrize("phrase", ["0,991 au plus près, 0,971 avec le report", "71 au plus près", ""])
def test_what_is_not_proved_is_not_quoted(phrase):
    path = ROOT / "notebooks" / parcours.known("12.3").file
    assert parcours.proved(path, "0,971 au plus près, 0,991 avec le report") is not None
    assert parcours.proved(path, phrase) is None


def test_quotes_of_the_memo_lead_to_their_sentences(book):
    soup = built(book, "memento")
    links = [a for a in soup.select("article a.reference.internal") if "#preuve-" in a["href"]]
    assert len(links) == page("memento").count("{preuve}")
    for link in links:
        file, _, anchor = link["href"].partition("#")
        target = BeautifulSoup((book / "book" / file).resolve().read_text(encoding="utf-8"), "html.parser")
        place = target.find(id=anchor)
        text = place.get_text() or place.parent.get_text()  # un paragraphe qui porte deux preuves a deux repères
        assert plain(link.get_text()) in plain(text), link.get_text()


def test_names_of_the_memo_are_those_of_the_package():
    import lrq

    names = set(re.findall(r"`(\w+)`", page("memento"))) - {"lrq", "activation_aware"}
    assert names
    assert [name for name in names if not hasattr(lrq, name)] == []


def scale_of(pdf):
    """L'échelle de la première page : un pixel de CSS y fait 300/96 des unités de Chromium, moins s'il a rétréci."""
    for found in re.finditer(rb"stream\r?\n", pdf):
        with contextlib.suppress(zlib.error):
            content = zlib.decompressobj().decompress(pdf[found.end() :])
            if b" Tf" in content:
                return float(re.search(rb"\nq\n([\d.]+) 0 0 \1 ", content)[1]) * 96 / 300
    raise AssertionError("aucun texte dans le PDF")


def test_the_memo_prints_on_one_page(book, browser):
    tab = browser.new_page(viewport={"width": 1200, "height": 900})
    tab.goto((book / "book" / "memento.html").as_uri())
    tab.wait_for_function("document.querySelectorAll('article mjx-container').length > 10")
    tab.evaluate("document.fonts.ready")
    printed = tab.pdf(format="A4", prefer_css_page_size=True)
    tab.emulate_media(media="print")
    sizes = tab.evaluate(
        """() => {
            const walk = document.createTreeWalker(document.querySelector("article"), NodeFilter.SHOW_TEXT);
            const sizes = [];
            while (walk.nextNode()) {
                const parent = walk.currentNode.parentElement;
                if (walk.currentNode.data.trim() && !parent.closest("mjx-container, .headerlink, button, script"))
                    sizes.push(parseFloat(getComputedStyle(parent).fontSize) * 0.75);
            }
            return sizes;
        }"""
    )
    hidden = tab.evaluate(
        "[...document.querySelectorAll('.bd-sidebar-primary, .bd-header-article')].every(e => !e.offsetHeight)"
    )
    tab.close()
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) == 1
    assert min(sizes) >= 8, "des caractères de moins de 8 points"
    assert scale_of(printed) == pytest.approx(1), "quelque chose déborde : Chromium a rétréci la page pour l'y loger"
    assert hidden


# --- la page des enseignants ------------------------------------------------------------------------------------------


def test_every_section_is_taught():
    taught = [argument for kind, argument, _ in DIRECTIVE.findall(page("enseigner")) if kind == "seance"]
    assert taught == list(SECTIONS)


def plain(text):
    return re.sub(r"\W+", "", text)


def test_every_mistake_is_on_the_page_beside_its_solution(book):
    folds = built(book, "enseigner").select("article details")
    assert len(folds) == len(EXERCISES)
    shown = {re.search(r"exercice ([\d.]+),", fold.summary.get_text())[1]: fold for fold in folds}
    for exercise in EXERCISES.values():
        fold = shown[exercise.number]
        items = [plain(item.get_text()) for item in fold.select("li")]
        assert items == [plain(f"{mistake.name} : {mistake.explanation}") for mistake in exercise.mistakes]
        anchor = exercise.number.replace(".", "-")
        urls = [a["href"] for a in fold.select("a")]
        assert any(url.endswith(f"#exercice-{anchor}") for url in urls)
        assert any("/solutions/" in url and url.endswith(f"#solution-{anchor}") for url in urls)


def test_the_classroom_exercise_comes_first(book):
    soup = built(book, "enseigner")
    for section in parcours.sections().values():
        title = next(h for h in soup.select("article h3") if h.get_text().startswith(f"{section.number} "))
        first = title.find_next("details").summary.get_text()
        assert f"exercice {section.classroom[0]}," in first


def test_mistakes_are_not_read_as_markdown():
    directive = parcours.MistakesDirective.__new__(parcours.MistakesDirective)
    directive.arguments = ["9.6.1"]
    (items,) = directive.run()
    assert isinstance(items, nodes.bullet_list)
    assert [item.astext() for item in items.children] == [
        f"{mistake.name} : {mistake.explanation}" for mistake in EXERCISES["9.6.1"].mistakes
    ]


def test_the_number_of_files_to_touch_is_that_of_the_recipe():
    recipe = page("architecture").split("## Ajouter un exercice")[1].split("\n## ")[0]
    files = [
        "lrq/exercises/section_",
        "lrq/exercises/__init__.py",
        "tests/test_exercises.py",
        "Le carnet de la section",
    ]
    files += ["Le carnet de `notebooks/solutions/`", "`book/index.md`"]
    assert [name for name in files if name not in recipe] == []
    assert "| ajouter un exercice | six fichiers :" in page("enseigner")
    assert len(files) == 6
