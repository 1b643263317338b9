"""Les pages du livre disent tout ce qui existe, et rien d'autre."""

import importlib
import inspect
import re
import sys
from pathlib import Path

import pytest

import lrq
from lrq.exercises import EXERCISES

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

from francais import TRANSLATIONS, translate  # noqa: E402


def page(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_api_page_names_every_public_object():
    documented = set(re.findall(r"auto(?:class|function):: lrq\.([\w.]+)", page("book/api.md")))
    assert set(lrq.__all__) <= documented
    for name in documented:
        module, _, attribute = f"lrq.{name}".rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


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


@pytest.mark.parametrize("name", ["README.md", "book/index.md", "book/architecture.md", "LICENCES.md"])
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
    for name in ("README.md", "book/index.md", "book/architecture.md"):
        assert set(re.findall(r"`make ([a-z]+)", page(name))) <= targets


def test_torch_version_is_the_same_everywhere():
    pinned = re.search(r"^torch==(\S+)$", page("requirements.txt"), re.MULTILINE)[1]
    assert f"torch=={pinned}" in page("README.md")


def test_requirements_are_exact():
    lines = [line.split("#")[0].strip() for line in page("requirements.txt").splitlines()]
    assert [line for line in lines if line and not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []


def test_translation_is_complete_and_stable():
    english = "<a " + " ".join(TRANSLATIONS) + ">"
    french = translate(english)
    assert not any(text in french for text in TRANSLATIONS)
    assert translate(french) == french
