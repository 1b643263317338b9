"""Le livre en un fichier : les mêmes octets pour le même livre, rien de la machine, et tout y vit depuis le disque."""

import os
import re
from pathlib import Path
from zipfile import ZipFile

import paquet
import pytest

ROOT = Path(__file__).parents[1]
EXTRA = {"LISEZMOI.txt": b"Ouvrez index.html.", "LICENSE": b"MIT"}
READY = ".lrq-explorer[data-ready]"
MACHINE = re.compile(rb"/(?:home|root|tmp|work|Users)/\w|[A-Z]:\\\\Users|site-packages")


@pytest.fixture
def small(tmp_path):
    """Un petit livre : du texte, des octets au hasard, et ce qui n'a rien à faire dans l'archive."""
    written = {
        "index.html": b"<p>Rang</p>" * 500,
        "book/préface.html": "é".encode(),
        "_static/image.png": os.urandom(3000),
        "_static/scripts/theme.js": b"1",
        **dict.fromkeys(
            ["objects.inv", ".buildinfo", "_static/scripts/theme.js.map", "_static/webpack-macros.html"], b""
        ),
        **dict.fromkeys(["_static/locales/fr/sphinx.mo", "_static/vendor/fontawesome/webfonts/fa.ttf"], b""),
    }
    for name, content in written.items():
        path = tmp_path / "html" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "html"


def test_one_folder_holds_the_book_and_nothing_useless(small, tmp_path):
    target = paquet.pack(small, tmp_path / "livre-1.0.zip", EXTRA)
    with ZipFile(target) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert names == sorted(names)
        assert {name.partition("/")[0] for name in names} == {"livre-1.0"}
        inside = {name.partition("/")[2]: archive.read(name) for name in names}
    kept = ["index.html", "book/préface.html", "_static/image.png", "_static/scripts/theme.js"]
    assert inside == {name: (small / name).read_bytes() for name in kept} | EXTRA
    assert target.stat().st_size < 4500  # le texte est compressé
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [target.name]


def test_the_same_book_gives_the_same_bytes(small, tmp_path):
    """Ni la date des fichiers, ni leurs droits, ni l'ordre où on les donne n'y changent rien ; un octet, si."""
    (tmp_path / "a").mkdir()
    first = paquet.pack(small, tmp_path / "a" / "livre.zip", EXTRA)
    for path in small.rglob("*.html"):
        os.utime(path, (1e9, 1e9))
        path.chmod(0o600)
    (tmp_path / "b").mkdir()
    second = paquet.pack(small, tmp_path / "b" / "livre.zip", dict(reversed(EXTRA.items())))
    assert first.read_bytes() == second.read_bytes()
    (small / "index.html").write_bytes(b"autre")
    assert paquet.pack(small, second, EXTRA).read_bytes() != first.read_bytes()


def test_without_a_book_it_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^book : reçu '.*vide', attendu le dossier d'un livre construit"):
        paquet.pack(tmp_path / "vide", tmp_path / "livre.zip", {})
    assert list(tmp_path.iterdir()) == []


# --- le livre entier --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unpacked(book, tmp_path_factory):
    """Le livre entier, empaqueté, décompressé ailleurs, dans un dossier au nom difficile."""
    folder = tmp_path_factory.mktemp("déjà lu")
    with ZipFile(paquet.pack(book, folder / "lrq-livre-0.zip", paquet.extras())) as archive:
        archive.extractall(folder)
    return folder / "lrq-livre-0"


def test_nothing_names_the_machine(unpacked):
    texts = [path for path in unpacked.rglob("*") if path.suffix in {".html", ".js", ".css", ".ipynb", ".txt", ".md"}]
    assert len(texts) > 100
    found = [(path.name, match[0]) for path in texts for match in MACHINE.finditer(path.read_bytes())]
    assert found == []
    assert not any(str(ROOT).encode() in path.read_bytes() for path in texts)


def test_the_reader_finds_where_to_start(unpacked):
    assert "index.html" in (unpacked / "LISEZMOI.txt").read_text(encoding="utf-8")
    assert {"LICENSE", "LICENCES.md", "index.html"} <= {path.name for path in unpacked.iterdir()}
    assert not [path for path in unpacked.rglob("*") if "doctree" in path.name]


def test_the_unpacked_book_lives(unpacked, browser):
    """Depuis le disque : l'accueil, une figure qui répond, les formules, la recherche ; rien n'est demandé ailleurs."""
    page = browser.new_page()
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("requestfailed", lambda request: faults.append(request.url))
    page.on(
        "request",
        lambda request: None if request.url.startswith(("file:", "data:", "blob:")) else faults.append(request.url),
    )
    page.goto((unpacked / "index.html").as_uri())
    page.wait_for_url("**/book/index.html")
    page.locator("article a[href*='11_00_introduction']").first.click()
    page.wait_for_selector(READY)
    root = page.locator(f"{READY}:has([data-control='rank'])").first
    before = root.get_attribute("data-rank")
    root.locator("[data-control='rank']").press("ArrowLeft")
    page.wait_for_function("([root, before]) => root.dataset.rank !== before", arg=[root.element_handle(), before])
    page.evaluate("window.MathJax.startup.promise")
    assert page.locator("mjx-container").count() > 10
    page.goto(f"{(unpacked / 'search.html').as_uri()}?q=singulieres")
    page.wait_for_selector("#search-results li a[href*='11_00_introduction']")
    page.close()
    assert faults == []
