"""Les pages sont légères sans rien perdre : chaque icône montrée est dans sa police, chaque image garde sa place."""

import re

import pytest
from bs4 import BeautifulSoup
from fontTools.ttLib import TTFont
from PIL import Image

FONTS = "_static/vendor/fontawesome/webfonts"


@pytest.fixture(scope="module")
def pages(book):
    found = [path for path in book.rglob("*.html") if "_static" not in path.relative_to(book).parts]
    return {path: BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser") for path in found}


def test_every_icon_of_the_pages_is_in_its_font(book, pages):
    css = (book / "_static/styles/pydata-sphinx-theme.css").read_text(encoding="utf-8")
    codes = {}
    for rule, code in re.findall(r'([^{}]*)\{content:"\\([0-9a-f]+)"\}', css):
        codes |= dict.fromkeys(re.findall(r"\.(fa-[\w-]+):", rule), int(code, 16))
    known = set(TTFont(book / FONTS / "fa-solid-900.woff2").getBestCmap())
    shown = {name for page in pages.values() for tag in page.select(".fa-solid, .fas") for name in tag["class"]}
    icons = {name for name in shown if name.startswith("fa-")} - {"fa-solid", "fa-lg", "fa-sm", "fa-fw"}
    assert {"fa-bars", "fa-magnifying-glass", "fa-download"} <= icons
    assert {name for name in icons if codes.get(name) not in known} == set()


def test_icons_of_style_sheets_are_in_their_font(book):
    css = (book / "_static/styles/pydata-sphinx-theme.css").read_text(encoding="utf-8")
    drawn = {ord(char) for char in re.findall(r'--pst-icon-[\w-]+:\s*"(.)"', css)}
    fonts = [TTFont(path).getBestCmap() for path in (book / FONTS).glob("*.woff2")]
    assert drawn
    assert {code for code in drawn if not any(code in font for font in fonts)} == set()


def test_icons_weigh_little(book):
    assert sum(path.stat().st_size for path in (book / FONTS).glob("*.woff2")) < 12_000


def test_images_wait_and_keep_their_place(pages):
    images = [(path, image) for path, page in pages.items() for image in page.select(".bd-article img")]
    images = [(path, image) for path, image in images if image["src"].endswith(".png")]
    assert len(images) >= 5
    for path, image in images:
        assert image.get("loading") == "lazy", (path, image)
        if not image.get("style"):
            width, height = Image.open(path.parent / image["src"]).size
            assert (image["width"], image["height"]) == (str(width), str(height)), (path, image)
