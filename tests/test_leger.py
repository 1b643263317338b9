"""Les pages sont légères sans rien perdre : icônes, images et formules à leur place, et peu d'octets en tout."""

import json
import math
import re
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
from bs4 import BeautifulSoup
from fontTools.ttLib import TTFont
from PIL import Image

from benchmarks import page as weighing

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

from formules import height, reserve, width  # noqa: E402
from leger import LEAST_SEEN, STATE, VIEW, drop_hidden_figures, lighten_scripts, shrink_image  # noqa: E402

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


def test_images_shrink_without_being_changed(tmp_path, rng):
    """Une courbe aux mille nuances tient sur 256 couleurs ; un bruit où elles comptent toutes reste tel quel."""
    drawn = np.full((200, 300, 3), 255.0)
    for x in range(300):
        drawn[:, x] -= np.outer(np.exp(-(((np.arange(200) - 90 - 60 * math.sin(x / 40)) / 2) ** 2)), [210, 148, 27])
    noise = rng.integers(0, 256, (200, 300, 3))
    for name, pixels, lighter in (("courbe.png", drawn, True), ("bruit.png", noise, False)):
        path = tmp_path / name
        Image.fromarray(pixels.astype(np.uint8)).convert("RGBA").save(path)
        before, size = np.asarray(Image.open(path).convert("RGB"), dtype=int), path.stat().st_size
        shrink_image(path)
        after = np.asarray(Image.open(path).convert("RGB"), dtype=int)
        assert np.abs(after - before).max() <= LEAST_SEEN
        assert (path.stat().st_size < 0.7 * size) is lighter
        written = path.read_bytes()
        shrink_image(path)
        assert path.read_bytes() == written or not lighter


# --- les scripts ------------------------------------------------------------------------------------------------------


def scripts(page):
    return page.select("script[src]")


def test_only_the_search_page_carries_the_search(book, pages):
    """L'index de la recherche grossit avec le livre : sur chaque page, il retarderait un texte qui n'en a que faire."""
    carriers = {path.name for path, page in pages.items() for script in scripts(page) if "searchindex" in script["src"]}
    assert carriers == {"search.html"}


def test_no_script_holds_the_text_back(pages):
    held = {
        script["src"].partition("?")[0].rpartition("/")[2]
        for path, page in pages.items()
        for script in scripts(page)
        if path.name != "search.html" and not script.has_attr("defer")
    }
    assert held <= {"documentation_options.js"}


def test_scripts_lightened_once_or_twice_are_the_same():
    first, inline = '<script src="../_static/documentation_options.js?v=1"></script>', "<script>let a;</script>"
    page = f'{first}\n <script src="a.js"></script><script data-x="b" src="c.js"></script>'
    page += f'\n <script src="../searchindex.js?v=2"></script>{inline}<script defer src="d.js"></script>'
    light = lighten_scripts(page)
    assert light == (
        f'{first}\n <script defer src="a.js"></script><script defer data-x="b" src="c.js"></script>'
        f'{inline}<script defer src="d.js"></script>'
    )
    assert lighten_scripts(light) == light


# --- les figures ------------------------------------------------------------------------------------------------------


def saved(models, *views):
    """Une page, telle que myst-nb l'écrit : modèle → (son nom, ceux qu'il nomme)."""
    state = {
        key: {"model_name": name, "state": {"children": [f"IPY_MODEL_{other}" for other in others]}}
        for key, (name, others) in models.items()
    }
    shown = "".join(
        f'<script type="application/vnd.jupyter.widget-view+json">{{"model_id": "{view}"}}</script>' for view in views
    )
    held = json.dumps({"state": state, "version_major": 2})
    return f'<p>Rang</p>{shown}<script type="application/vnd.jupyter.widget-state+json">{held}</script><p>Fin</p>'


def test_figures_that_are_not_shown_leave_the_page():
    models = {
        "a": ("BoxModel", "bc"),
        "b": ("AnyModel", ""),
        "c": ("LayoutModel", ""),
        "d": ("AnyModel", "e"),  # créée dans une cellule cachée…
        "e": ("LayoutModel", ""),
        "f": ("LinkModel", "ab"),
        "g": ("LinkModel", "bd"),  # … et liée à une figure montrée
    }
    kept = {key: models[key] for key in "abcf"}
    assert drop_hidden_figures(saved(models, "a")) == saved(kept, "a")
    assert drop_hidden_figures(saved(models, "a", "d")) == saved(models, "a", "d")
    assert drop_hidden_figures("<p>Sans figure</p>") == "<p>Sans figure</p>"


def test_no_page_carries_a_figure_that_it_does_not_show(book):
    found = 0
    for path in book.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        if state := STATE.search(text):
            figures = {key for key, model in json.loads(state[2])["state"].items() if "_esm" in model["state"]}
            assert figures == {json.loads(view)["model_id"] for view in VIEW.findall(text)}, path
            found += len(figures)
    assert found > 10


# --- les formules -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["notebooks/11_00_introduction", "notebooks/11_05_erreurs"])
def test_formulas_take_the_place_kept_for_them(book, site, browser, name):
    """La place gardée à une formule est, en moyenne, à moins d'un cadratin de celle qu'elle prend."""
    text = BeautifulSoup((book / f"{name}.html").read_text(encoding="utf-8"), "html.parser")
    inline = text.select(".bd-article span.math")
    kept = [float(re.search(r"--lrq-place:([\d.]+)em", span["style"])[1]) for span in inline]
    page = browser.new_page()
    page.goto(f"{site}/{name}.html")
    page.evaluate("async () => { await window.MathJax.startup.promise; await document.fonts.ready; }")
    taken = page.evaluate(
        """[...document.querySelectorAll('.bd-article span.math')].map((span) =>
             span.querySelector('mjx-math').getBoundingClientRect().width
             / parseFloat(getComputedStyle(span).fontSize))"""
    )
    page.close()
    assert len(taken) == len(kept) > 30
    shown = [
        (k, t) for k, t in zip(kept, taken, strict=True) if t > 0
    ]  # une formule dans un bloc replié ne se mesure pas
    assert len(shown) > 30
    assert statistics.mean(abs(k - t) for k, t in shown) < 1


def test_longer_formulas_keep_more_room():
    assert width("W") < width("W_r") < width("W = U V^\\top") < width("W = U V^\\top + \\alpha B A")
    assert width("\\mathrm{rang}") == width("rang")
    assert height("r < 3") < height("\\frac{mn}{m+n}") < height("a \\\\ \\frac{1}{2}")
    body = '<span class="math notranslate nohighlight">\\(r &lt; 3\\)</span>'
    assert (
        reserve(body)
        == f'<span class="math notranslate nohighlight" style="--lrq-place:{width("r < 3")}em">\\(r &lt; 3\\)</span>'
    )
    assert reserve(reserve(body)) == reserve(body)


@pytest.mark.parametrize(
    "name", ["notebooks/11_00_introduction", "notebooks/reseau_vivant", "book/notation", "book/memento"]
)
def test_page_does_not_jump_while_it_opens(site, browser, name):
    """Ce que Lighthouse appelle CLS, à la première visite, polices comprises ; au-delà de 0,1, on perd sa ligne."""
    page = browser.new_context(viewport={"width": 1350, "height": 940}).new_page()
    page.add_init_script(
        """window.lrqShift = 0;
        new PerformanceObserver((list) => { for (const shift of list.getEntries()) window.lrqShift += shift.value; })
          .observe({type: 'layout-shift', buffered: true});"""
    )
    page.goto(f"{site}/{name}.html")
    page.evaluate("async () => { await window.MathJax.startup.promise; await document.fonts.ready; }")
    page.wait_for_timeout(300)
    assert page.evaluate("window.lrqShift") < 0.1
    page.context.close()


# --- le poids ---------------------------------------------------------------------------------------------------------


def test_first_visit_of_any_page_is_light(book, site, browser):
    """Tout ce que la page demande à son ouverture, chaque fichier compressé par gzip, figures comprises."""
    names = weighing.pages(book)
    assert {"book/index", "search", "notebooks/11_00_introduction", "notebooks/solutions/11_00_solutions"} <= {*names}
    loads = weighing.first_loads(browser, site, names, book)
    sizes = {name: weighing.total(files) for name, files in loads.items()}
    assert min(sizes.values()) > 50_000  # un livre sans style ni police ne pèserait rien
    assert {name: size for name, size in sizes.items() if size > weighing.WEIGHT_TARGET} == {}
