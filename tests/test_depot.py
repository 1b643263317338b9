"""Une adresse de dépôt, et rien d'autre, donne au livre ses boutons, et aux carnets de quoi marcher dans Colab."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import carnets
import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup
from conftest import BUILD
from sphinx.errors import ConfigError
from test_book import english

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

from depot import _set_buttons, site  # noqa: E402

ADDRESS, BRANCH = "https://github.com/Compte/depot.de-livre", "travail"
NOTEBOOK = "notebooks/solutions/11_00_solutions"
FORGES = ("github.com", "gitlab", "mybinder.org", "colab.research.google.com")


def configured(folder, url):
    """Une copie de `_config.yml` où seule l'adresse, et sa branche, sont changées."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    config["repository"] |= {"url": url, "branch": BRANCH}
    config["execute"]["execute_notebooks"] = "off"
    path = folder / "_config.yml"
    path.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    return path


# --- les boutons ------------------------------------------------------------------------------------------------------


def external(page):
    """Les adresses du dépôt, de Binder et de Colab qu'offre la barre d'une page : texte → adresse."""
    links = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser").select(".article-header-buttons a[href]")
    return {link.get_text(strip=True): link["href"] for link in links if link["href"].startswith("http")}


@pytest.fixture(scope="module")
def addressed(tmp_path_factory):
    """Deux pages construites sans exécution, avec une adresse, et la cellule que celle-ci donne au carnet."""
    folder = tmp_path_factory.mktemp("depot")
    config = configured(folder, ADDRESS)
    shutil.copytree(ROOT / "book", folder / "book", ignore=shutil.ignore_patterns("*.md"))
    (folder / "book" / "index.md").write_text("# Un livre\n\nUne page, et un carnet.\n", encoding="utf-8")
    notebook = nbformat.v4.new_notebook(metadata=nbformat.read(ROOT / f"{NOTEBOOK}.ipynb", 4).metadata)
    notebook.cells = [nbformat.v4.new_markdown_cell("# Un carnet"), nbformat.v4.new_code_cell("2 + 2")]
    path = folder / f"{NOTEBOOK}.ipynb"
    path.parent.mkdir(parents=True)
    nbformat.write(notebook, path)
    carnets.set_installation(path, carnets.installation_source(config))
    toc = {"format": "jb-book", "root": "book/index", "chapters": [{"file": NOTEBOOK}]}
    (folder / "_toc.yml").write_text(yaml.safe_dump(toc), encoding="utf-8")
    command = [sys.executable, "-c", BUILD, "build", str(folder), "-W", "--keep-going"]
    build = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert build.returncode == 0, f"{build.stdout[-3000:]}\n{build.stderr[-3000:]}"
    return folder / "_build" / "html"


def test_an_address_gives_every_button(addressed):
    found = external(addressed / f"{NOTEBOOK}.html")
    tree = f"{BRANCH}/{NOTEBOOK}.ipynb"
    issue = found.pop("Signaler un problème")
    assert found == {
        "Binder": f"https://mybinder.org/v2/gh/Compte/depot.de-livre/{BRANCH}?urlpath=lab/tree/{NOTEBOOK}.ipynb",
        "Colab": f"https://colab.research.google.com/github/Compte/depot.de-livre/blob/{tree}",
        "Dépôt": ADDRESS,
        "Modifier la page": f"{ADDRESS}/edit/{tree}",
        "Livre entier (.zip)": "https://compte.github.io/depot.de-livre/lrq-livre.zip",
    }
    assert issue.startswith(f"{ADDRESS}/issues/new?title=Page%20")
    assert NOTEBOOK in issue


def test_a_page_that_is_no_notebook_is_not_launched(addressed):
    found = external(addressed / "book" / "index.html")
    assert found["Modifier la page"] == f"{ADDRESS}/edit/{BRANCH}/book/index.md"
    assert not {"Binder", "Colab"} & set(found)


def test_the_buttons_speak_french(addressed):
    for name in ("book/index", NOTEBOOK):
        html = (addressed / f"{name}.html").read_text(encoding="utf-8")
        assert english(html) == []
        assert not any(word in html for word in ("Suggest edit", "Launch", "Repository", "Issue%20on", "Source repo"))


def test_the_page_does_not_show_the_installation(addressed):
    assert "subprocess" not in (addressed / f"{NOTEBOOK}.html").read_text(encoding="utf-8")


def test_no_address_no_button(book):
    """Le livre, lui, suit `_config.yml` : tel qu'on le livre, aucune adresse et aucun bouton."""
    address = carnets.installation_source() is not None
    for name in ("book/index", "notebooks/11_00_introduction"):
        assert bool(external(book / f"{name}.html")) is address
        assert ("source-buttons" in (book / f"{name}.html").read_text(encoding="utf-8")) is address


class Config:
    """Ce que l'extension lit de la configuration de Sphinx."""

    def __init__(self, url):
        self.html_theme_options = {"repository_url": url}


@pytest.mark.parametrize(
    ("received", "address", "launched"),
    [
        ("https://github.com/a/b/", "https://github.com/a/b", True),
        ("https://github.com/a/b.git", "https://github.com/a/b", True),
        ("https://gitlab.com/groupe/sous-groupe/b", "https://gitlab.com/groupe/sous-groupe/b", False),
        ("https://gitlab.univ.fr/a/b", "https://gitlab.univ.fr/a/b", False),
    ],
)
def test_addresses_that_are_understood(received, address, launched):
    config = Config(received)
    _set_buttons(None, config)
    options = config.html_theme_options
    assert options["repository_url"] == address
    assert options["use_issues_button"]
    assert ("launch_buttons" in options) is launched


@pytest.mark.parametrize("received", ["github.com/a/b", "https://github.com/a", "https://exemple.fr/a/b", "a/b"])
def test_addresses_that_are_refused(received):
    with pytest.raises(
        ConfigError, match=r"^repository.url : reçu '.*', attendu l'adresse d'un dépôt GitHub ou GitLab"
    ):
        _set_buttons(None, Config(received))


def test_the_published_address():
    assert site("https://github.com/Moi/livre") == "https://moi.github.io/livre/"
    assert site("https://github.com/Moi/moi.github.io") == "https://moi.github.io/"
    assert site("https://gitlab.com/moi/livre") is None


# --- la cellule de Colab ----------------------------------------------------------------------------------------------


def tiny(folder):
    """Un petit carnet exécuté."""
    result = nbformat.v4.new_output("execute_result", {"text/plain": "4"}, execution_count=1)
    cells = [
        nbformat.v4.new_markdown_cell("# Un titre"),
        nbformat.v4.new_code_cell("2 + 2", execution_count=1, outputs=[result]),
    ]
    kernel = nbformat.read(ROOT / f"{NOTEBOOK}.ipynb", 4).metadata
    path = folder / "petit.ipynb"
    path.write_text(nbformat.writes(nbformat.v4.new_notebook(cells=cells, metadata=kernel)) + "\n", encoding="utf-8")
    return path


def test_installation_is_what_executing_would_write_and_comes_off(tmp_path):
    path = tiny(tmp_path)
    carnets.execute(path)
    before = path.read_text(encoding="utf-8")
    source = carnets.installation_source(configured(tmp_path, ADDRESS))
    assert f"lrq[livre] @ git+{ADDRESS}.git@{BRANCH}" in source
    assert carnets.set_installation(path, source)
    assert not carnets.set_installation(path, source)  # une seule, au même endroit
    assert not carnets.execute(path)  # les numéros d'exécution sont ceux-là, et la cellule ne dit rien
    assert [cell.cell_type for cell in nbformat.read(path, 4).cells] == ["markdown", "code", "code"]
    assert carnets.set_installation(path, carnets.installation_source(configured(tmp_path, "")))
    assert path.read_text(encoding="utf-8") == before


def test_installation_acts_only_without_lrq(tmp_path, monkeypatch):
    """Où `lrq` s'importe, rien n'est lancé ; où il manque, pip reçoit l'adresse, et torch n'est pas nommé."""
    calls = []
    monkeypatch.setattr(subprocess, "check_call", calls.append)
    source = carnets.installation_source(configured(tmp_path, ADDRESS))
    exec(source, {})
    assert calls == []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    exec(source, {})
    assert len(calls) == 1
    assert calls[0][-1] == f"lrq[livre] @ git+{ADDRESS}.git@{BRANCH}"


def test_notebooks_follow_the_configuration():
    """L'adresse vient d'être écrite, changée ou ôtée ? `make installation`."""
    source = carnets.installation_source()
    for path in carnets.book_notebooks():
        found = [cell.source for cell in nbformat.read(path, 4).cells if cell.id == carnets.INSTALLATION]
        assert found == ([source] if source else []), f"{path.name} : make installation"


def test_copies_for_exercises_do_without_it(tmp_path):
    path = tiny(tmp_path)
    carnets.set_installation(path, carnets.installation_source(configured(tmp_path, ADDRESS)))
    carnets.copy_for_exercises(path, tmp_path / "copies")
    assert [cell.source for cell in nbformat.read(tmp_path / "copies" / path.name, 4).cells] == ["# Un titre", "2 + 2"]
