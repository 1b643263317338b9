"""Les pages du livre disent tout ce qui existe, et rien d'autre."""

import importlib
import inspect
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from pybtex.database import parse_string

import lrq
from lrq import widgets
from lrq.exercises import EXERCISES

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

from accessible import nest, repair  # noqa: E402
from bibliographie import Style  # noqa: E402
from description import LENGTH, describe, opening  # noqa: E402
from francais import TRANSLATIONS, space, translate  # noqa: E402


def page(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_api_page_names_every_public_object():
    documented = set(re.findall(r"auto(?:class|function):: lrq\.([\w.]+)", page("book/api.md")))
    assert set(lrq.__all__) <= documented
    for name in documented:
        module, _, attribute = f"lrq.{name}".rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


def test_api_page_names_every_figure():
    documented = set(re.findall(r"auto(?:class|function):: lrq\.widgets\.(\w+)", page("book/api.md")))
    assert documented == set(widgets.__all__)


@pytest.mark.parametrize("name", ["lrq.models", "lrq.plots", "lrq.display"])
def test_modules_documented_whole_have_docstrings(name):
    assert f"automodule:: {name}" in page("book/api.md")
    module = importlib.import_module(name)
    own = inspect.getmembers(module, lambda o: getattr(o, "__module__", None) == name and callable(o))
    assert [key for key, value in own if not key.startswith("_") and not inspect.getdoc(value)] == []


def test_welcome_page_names_every_section_and_exercise():
    welcome = page("book/index.md")
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"../notebooks/{notebook.name}" in welcome
    for number in EXERCISES:
        assert re.search(rf"(?<![\d.]){re.escape(number)}(?!\.?\d)", welcome), number


@pytest.mark.parametrize(
    "name", [*(path.name for path in ROOT.glob("*.md")), "book/index.md", "book/architecture.md"], ids=str
)
def test_files_that_the_pages_name_exist(name):
    names = re.findall(r"`((?:lrq|book|tests|notebooks)/[\w./-]*)`", page(name))
    names += [
        url.partition("#")[0]
        for url in re.findall(r"\]\(([^)]+)\)", re.sub(r"(?ms)^ *```.*?^ *```", "", page(name)))
        if "://" not in url
    ]
    folder = (ROOT / name).parent
    missing = [path for path in names if not ((ROOT / path).exists() or (folder / path).exists())]
    assert missing == []


def test_makefile_targets_named_by_the_pages_exist():
    targets = set(re.findall(r"^([a-z]+):", page("Makefile"), re.MULTILINE))
    for name in ("README.md", "CONTRIBUTING.md", "book/index.md", "book/architecture.md"):
        assert set(re.findall(r"`make ([a-z]+)", page(name))) <= targets


def test_torch_version_is_the_same_everywhere():
    pinned = re.search(r"^torch==(\S+)$", page("requirements.txt"), re.MULTILINE)[1]
    assert f"torch=={pinned}" in page("README.md")


def test_version_is_the_same_everywhere():
    """Celle du paquet est dans lrq/version.py, que lit pyproject.toml ; CITATION et le journal la suivent."""
    project = tomllib.loads(page("pyproject.toml"))
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "lrq.version.__version__"}
    citation = yaml.safe_load(page("CITATION.cff"))
    released = re.findall(r"^## \[([\d.]+)\] - (\d{4}-\d\d-\d\d)$", page("CHANGELOG.md"), re.MULTILINE)
    assert released[0] == (lrq.__version__, str(citation["date-released"]))
    assert str(citation["version"]) == lrq.__version__
    assert [when for _, when in released] == sorted((when for _, when in released), reverse=True)


def test_the_wheel_carries_every_file_of_the_package():
    """Tables, phrases, poids, modules JavaScript : un fichier d'un genre nouveau doit être annoncé à setuptools."""
    patterns = tomllib.loads(page("pyproject.toml"))["tool"]["setuptools"]["package-data"]["lrq"]
    package = ROOT / "lrq"
    files = {path for path in package.rglob("*") if path.is_file() and path.suffix not in {".py", ".pyc"}}
    assert files - {path for pattern in patterns for path in package.glob(pattern)} == set()
    assert all(any(package.glob(pattern)) for pattern in patterns), "un motif ne désigne plus rien"


def test_citation_is_that_of_the_book():
    citation, book = yaml.safe_load(page("CITATION.cff")), yaml.safe_load(page("_config.yml"))
    assert citation["authors"] == [{"name": book["author"]}]
    assert citation["license"] == tomllib.loads(page("pyproject.toml"))["project"]["license"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)  # ce que le format exige
    assert "://" not in page("CITATION.cff"), "aucune adresse inventée"


def test_requirements_are_exact():
    lines = [line.split("#")[0].strip() for line in page("requirements.txt").splitlines()]
    assert [line for line in lines if line and not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []


def test_translation_is_complete_and_stable():
    english = "<a " + " ".join(TRANSLATIONS) + ">"
    french = translate(english)
    assert not any(text in french for text in TRANSLATIONS)
    assert translate(french) == french


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("deux cas : un", "deux cas\u00a0: un"),
        (" ; sinon", "\u00a0; sinon"),  # après une formule ou du code
        ("pourquoi\n?", "pourquoi\u00a0?"),
        ("« rang » à 99 %", "«\u00a0rang\u00a0» à 99\u00a0%"),
        ("10 616 832 nombres, 250 lignes", "10\u202f616\u202f832 nombres, 250 lignes"),
        ("au lieu de 2 320. Puis 147 456.", "au lieu de 2\u202f320. Puis 147\u202f456."),
        ("en 2013 400 phrases, 11.1 128", "en 2013 400 phrases, 11.1 128"),
        ("déjà\u202f: 12:30, lrq::svd", "déjà\u202f: 12:30, lrq::svd"),
    ],
)
def test_spaces_that_do_not_break(typed, shown):
    assert space(typed) == shown
    assert space(shown) == shown


ENTRY = """
@{kind}{{cle, author={{Hu, Edward and Shen, Yelong and Wallis, Phillip}}, title={{The Title}}, {fields}, year={{2020}}}}
"""


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        (
            "article",
            "journal={A Journal}, volume={1}, number={3}, pages={2--4}",
            "A Journal, vol. 1, nᵒ 3, p. 2–4, 2020.",
        ),
        (
            "inproceedings",
            "booktitle={A Book}, volume={9}, series={S}, pages={2--4}",
            "Dans A Book, vol. 9 de S, p. 2–4, 2020.",
        ),
        ("book", "publisher={P}, edition={4}", "P, 4ᵉ édition, 2020."),
        ("phdthesis", "school={S}", "Thèse de doctorat, S, 2020."),
        ("misc", "url={https://exemple.fr}", "2020. URL : https://exemple.fr."),
    ],
)
def test_bibliography_is_french(kind, fields, words):
    data = parse_string(ENTRY.format(kind=kind, fields=fields), "bibtex")
    [entry] = Style().format_bibliography(data)
    text = entry.text.render_as("text").replace("\u00a0", " ")
    assert text.startswith("Edward Hu, Yelong Shen et Phillip Wallis. The ")
    assert text.endswith(words)
    assert entry.label == "HSW20"


def test_foreign_titles_are_marked_unless_french():
    for fields, count in (("journal={J}", 2), ("journal={J}, langid={french}", 0)):
        data = parse_string(ENTRY.format(kind="article", fields=fields), "bibtex")
        [entry] = Style().format_bibliography(data)
        assert repr(entry.text).count("Tag('foreign'") == count


def test_long_signatures_are_not_lists():
    broken = (
        '<dt>(\n<dl>\n<dd><em class="sig-param">W</em>,</dd>\n<dd><em class="sig-param">r</em>,</dd>\n</dl>\n)</dt>'
    )
    mended = repair(broken)
    assert "<dl>" not in mended
    assert mended.count("<span>") == 2
    assert repair(mended) == mended
    assert repair("<dl>\n<dt>r</dt><dd>le rang</dd></dl>") == "<dl>\n<dt>r</dt><dd>le rang</dd></dl>"


def test_list_of_modules_nests():
    broken = "<ul><li>a</li>\n<li>b</li>\n<ul><li>b.c</li>\n</ul><li>d</li>\n</ul>\n"
    assert nest(broken) == "<ul><li>a</li>\n<li>b\n<ul><li>b.c</li>\n</ul></li><li>d</li>\n</ul>\n"
    assert nest("<ul><li>a</li>\n</ul>") == "<ul><li>a</li>\n</ul>"


def test_descriptions_hold_whole_sentences():
    assert opening("Un rang.\nUne énergie ! Et \\(W = U V^\\top\\).") == "Un rang. Une énergie !"
    long = opening("mot " * 200)
    assert long.endswith("mot…")
    assert len(long) <= LENGTH
    assert opening("Le rang de \\times deux.") == "Le rang de deux…"


def test_pages_without_a_text_are_described_too():
    described = describe("<code>lrq.svd</code> &amp; co", None, "Un livre")
    assert described == "lrq.svd & co, une page du livre «\u00a0Un livre\u00a0»."
