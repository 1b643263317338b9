"""Le livre se construit sans un avertissement, ne demande rien à personne, et tous ses liens mènent."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup

ROOT = Path(__file__).parents[1]
FOUND = (ROOT / "notebooks").glob("**/*.ipynb")
NOTEBOOKS = sorted(path for path in FOUND if ".ipynb_checkpoints" not in path.parts)
BUILD = "import sys; from jupyter_book.cli.main import main; main(sys.argv[1:])"
CSS_URL = re.compile(r"""url\(\s*['"]?([^'")]+)['"]?\s*\)|@import\s+['"]([^'"]+)['"]""")
SCRIPT_TYPES = {None, "module", "text/javascript"}
FILE_NAME = re.compile(r"\.(png|svg|jpe?g|gif|webp)$", re.IGNORECASE)


def repository_caches():
    """Les traces qu'une construction laisserait dans le dépôt, avec leur date."""
    paths = [ROOT / "_build", *(ROOT / "_build").glob("*"), *(ROOT / "_build").glob(".jupyter_cache/*")]
    paths += [*ROOT.glob("notebooks/**/.jupyter_cache"), *ROOT.glob("notebooks/**/_build")]
    return {path: path.stat().st_mtime_ns for path in paths if path.exists()}


@pytest.fixture(scope="session")
def book(tmp_path_factory):
    """Le dossier HTML du livre, construit une fois, cache d'exécution compris, hors du dépôt."""
    folder = tmp_path_factory.mktemp("livre")
    before = repository_caches()
    command = [sys.executable, "-c", BUILD, "build", ".", "--path-output", str(folder), "-W", "--keep-going"]
    build = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    log = f"{build.stdout[-6000:]}\n{build.stderr[-6000:]}"
    assert build.returncode == 0, log
    assert repository_caches() == before, "la construction a écrit dans le dépôt"
    return folder / "_build" / "html"


@cache
def soup(path):
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


@cache
def anchors(path):
    return {tag.get("id") for tag in soup(path).find_all(id=True)} | {
        tag["name"] for tag in soup(path).find_all("a", attrs={"name": True})
    }


def has_anchor(path, name):
    return path.suffix != ".html" or name in anchors(path)


def is_redirect(path):
    return soup(path).find("meta", attrs={"http-equiv": re.compile("refresh", re.IGNORECASE)}) is not None


def pages(book):
    found = (path for path in sorted(book.rglob("*.html")) if path.relative_to(book).parts[0] != "_static")
    return [page for page in found if not is_redirect(page)]


def links(page):
    """Toutes les adresses d'une page : (balise, adresse)."""
    for tag in soup(page).find_all(True):
        for name in ("src", "href", "poster", "data", "xlink:href"):
            if tag.get(name):
                yield tag, tag[name]
        for candidate in tag.get("srcset", "").split(","):
            if candidate.strip():
                yield tag, candidate.split()[0]
        for url in css_urls(tag.get("style", "")):
            yield tag, url
    for style in soup(page).find_all("style"):
        for url in css_urls(style.string or ""):
            yield style, url


def css_urls(text):
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    return [match[1] or match[2] for match in CSS_URL.finditer(text)]


def is_elsewhere(url):
    return bool(urlsplit(url).netloc) or urlsplit(url).scheme in {"http", "https", "ftp"}


def page_of(book, notebook):
    return book / notebook.relative_to(ROOT).with_suffix(".html")


def test_every_page_of_the_table_of_contents_is_built(book):
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    files = [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]
    assert [name for name in files if not (book / f"{name}.html").is_file()] == []


def test_index_leads_to_the_welcome_page(book):
    index = book / "index.html"
    if is_redirect(index):
        target = soup(index).find("meta")["content"].partition("url=")[2]
        assert (book / target).is_file()


def test_pages_are_french_and_titled(book):
    for page in pages(book):
        assert soup(page).html["lang"] == "fr", page
        assert soup(page).title.get_text().strip(), page


def test_pages_ask_nothing_of_another_origin(book):
    asked = [
        f"{page.relative_to(book)} : <{tag.name}> {url}"
        for page in pages(book)
        for tag, url in links(page)
        if tag.name != "a" and is_elsewhere(url)
    ]
    inline = [
        f"{page.relative_to(book)} : {script.string.strip()[:200]}"
        for page in pages(book)
        for script in soup(page).find_all("script", src=False)
        if script.get("type") in SCRIPT_TYPES and re.search(r"https?://", script.string or "")
    ]
    assert asked + inline == []


def test_style_sheets_ask_only_for_local_files(book):
    wrong = []
    for sheet in book.rglob("*.css"):
        for url in css_urls(sheet.read_text(encoding="utf-8")):
            if url.startswith(("data:", "#")):
                continue
            if is_elsewhere(url) or not (sheet.parent / unquote(urlsplit(url).path)).is_file():
                wrong.append(f"{sheet.relative_to(book)} : {url}")
    assert wrong == []


def test_local_links_resolve(book):
    broken = []
    for page in pages(book):
        for tag, url in links(page):
            parts = urlsplit(url)
            if is_elsewhere(url) or parts.scheme in {"mailto", "data", "javascript"}:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            fragment = unquote(parts.fragment)
            if not target.is_file():
                broken.append(f"{page.relative_to(book)} : {url} (fichier absent)")
            elif tag.name == "a" and fragment and not has_anchor(target, fragment):
                broken.append(f"{page.relative_to(book)} : {url} (ancre absente)")
    assert broken == []


def test_formulas_are_drawn_by_the_local_mathjax(book):
    script = book / "_static" / "mathjax" / "tex-chtml.js"
    assert script.is_file()
    fonts = set(re.findall(r"/(MathJax_[\w-]+)\.woff", script.read_text(encoding="utf-8")))
    folder = script.parent / "output" / "chtml" / "fonts" / "woff-v2"
    assert fonts
    assert fonts <= {path.stem for path in folder.glob("*.woff")}
    for page in pages(book):
        if soup(page).select(".math"):
            assert soup(page).select('script[src*="mathjax/tex-chtml.js"]'), page


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_hidden_cells_stay_hidden(book, notebook):
    shown = [cell.get_text().strip() for cell in soup(page_of(book, notebook)).select("div.cell_input")]
    for cell in nbformat.read(notebook, as_version=4).cells:
        if "remove-cell" in cell.metadata.get("tags", []) and cell.source.strip():
            assert cell.source.strip() not in shown


def test_images_say_what_they_show(book):
    silent = [
        f"{page.relative_to(book)} : {image.get('src', '')[:80]} (alt : {image.get('alt')!r})"
        for page in pages(book)
        for image in soup(page).find_all("img")
        if not (image.get("alt") or "").strip() or FILE_NAME.search(image["alt"].strip())
    ]
    assert silent == []
