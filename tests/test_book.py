"""Le livre se construit sans un avertissement, ne demande rien à personne, et tous ses liens mènent."""

import json
import re
import sys
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup
from jupyter_cache import get_cache

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

from recherche import SearchFolded, fold  # noqa: E402

FOUND = (ROOT / "notebooks").glob("**/*.ipynb")
NOTEBOOKS = sorted(path for path in FOUND if ".ipynb_checkpoints" not in path.parts)
CSS_URL = re.compile(r"""url\(\s*['"]?([^'")]+)['"]?\s*\)|@import\s+['"]([^'"]+)['"]""")
SCRIPT_TYPES = {None, "module", "text/javascript"}
FILE_NAME = re.compile(r"\.(png|svg|jpe?g|gif|webp)$", re.IGNORECASE)


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


def test_every_page_has_its_own_description(book):
    """Ce qu'un moteur de recherche montre d'une page : une phrase au moins, et jamais celle d'une autre."""
    found = Counter()
    for page in pages(book):
        described = soup(page).find_all("meta", attrs={"name": "description"})
        assert len(described) == 1, page
        found[described[0]["content"]] += 1
    assert [text for text, count in found.items() if count > 1 or not 25 <= len(text) <= 320 or "\\" in text] == []


def test_every_page_of_the_table_of_contents_is_built(book):
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    files = [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]
    assert [name for name in files if not (book / f"{name}.html").is_file()] == []


def test_the_book_shows_what_nbval_ran(book):
    """Un carnet que nbval vient d'exécuter ne l'est pas une seconde fois : la page montre ce qui fut comparé."""
    done = book.parents[2] / "executes"
    cache = get_cache(book.parents[1] / "_build" / ".jupyter_cache")
    for path in done.rglob("*.ipynb"):
        record = cache.match_cache_notebook(nbformat.read(ROOT / path.relative_to(done), as_version=4))
        assert "execution_seconds" not in record.data, path.name


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


# --- En français, et selon l'usage typographique ----------------------------------------------------------------------

NOT_PROSE = (
    "script, style, noscript, svg, pre, code, kbd, .math, .sig, [lang=en], div.cell_output, .headerlink, "
    ".viewcode-link, dl.field-list em, .colon, a.external"
)
SILENT = {"script", "style", "noscript", "svg"}
BLOCKS = re.compile(
    r"^(article|aside|br|button|caption|dd|details|div|dl|dt|figcaption|figure|footer|form|h[1-6]|header|li|nav|ol|p|"
    r"section|summary|table|td|th|tr|ul)$"
)
ATTRIBUTES = ("title", "aria-label", "aria-description", "alt", "placeholder", "data-tooltip", "data-bs-title")

# Des mots que le français n'a pas : les petits, qu'une phrase anglaise évite mal, et ceux des boutons.
ENGLISH = re.compile(
    r"\b([Tt]he|[Aa]nd|[Oo]f|[Ww]ith|[Ff]rom|[Tt]o|[Tt]his|[Tt]hat|[Ii]s|[Aa]re|[Ff]or|[Bb]y|[Nn]ot|[Ss]hould|[Yy]our|"
    r"[Ss]earch(?:ing)?|[Tt]oggle|[Ss]how|[Hh]ide|[Ss]kip|[Bb]ack|[Nn]ext|[Pp]revious|[Cc]opy|[Cc]opied|[Cc]lick|"
    r"[Cc]ontents|[Dd]ownload|[Ff]ile|[Ff]ullscreen|[Ll]ight|[Dd]ark|[Pp]rint|[Ss]idebar|[Ss]ettings|[Ss]ystem|[Tt]heme|"
    r"[Bb]uilt|[Cc]reated|[Pp]ermalink|[Ll]ink|[Hh]eading|[Rr]eturns?|[Rr]aises|[Pp]arameters|[Oo]ptional|[Dd]efault|"
    r"[Pp]roof|Definition|Theorem|Remark|Example|Corollary|Equation|[Ee]dition|[Ee]ditors?|[Pp]ages? \d|In [A-Z]|"
    r"[Vv]isited|[Oo]verview|[Mm]odule code|[Ss]ource code|By [A-Z]|Copyright)\b"
)
NAMES = re.compile(r"all-MiniLM-L6-v2|CC BY")

TYPOGRAPHY = {
    "une espace insécable avant ; ! ? »": re.compile(r"(?<![\u00a0\u202f!?])[;!?»](?!\w)"),
    "une espace insécable avant :": re.compile(r"(?<![\u00a0\u202f]):(?![\w/:])"),
    "une espace insécable avant %": re.compile(r"(?<![\u00a0\u202f])%(?!\w)"),
    "une espace insécable après «": re.compile(r"«(?![\u00a0\u202f])"),
    "l'apostrophe courbe": re.compile(r"'"),
    "les guillemets français": re.compile(r'"'),
    "une espace insécable entre les milliers": re.compile(r"\d \d{3}(?!\d)|(?<![\d.,/–-])\d{5,}"),
    "le caractère …": re.compile(r"\.\.\."),
}
# Ce que le code du cours imprime, cité tel quel.
PRINTED = re.compile(
    r"Compression: 0\.72x|Analyse d’Énergie \(9900%\):.»|Réduction: 95\.84%|"
    r"Rang optimal \(approximatif\): 1 \(erreur: nan\)"
)


@cache
@cache
def prose(html):
    """Les blocs de texte d'une page, le code et les formules remplacés par un signe."""
    page = BeautifulSoup(html, "html.parser")
    for tag in page.select("title"):
        tag.decompose()
    for tag in page.select(NOT_PROSE):
        if tag.decomposed:
            continue
        if tag.name in SILENT or {"headerlink", "colon"} & set(tag.get("class", [])):
            tag.decompose()
        else:
            tag.replace_with("￼")
    for tag in page.find_all(BLOCKS):
        tag.insert_before("¶")
        tag.insert_after("¶")
    blocks = (re.sub(r"[ \n\t]+", " ", block).strip(" ") for block in page.get_text().split("¶"))
    return [block for block in blocks if block.strip(" ￼")]


def spoken(page):
    """Les textes qui ne sont que dans un attribut ; ceux d'une citation portent le titre de l'article cité."""
    foreign = page.select('[lang=en], a[href*="bibliographie.html#"]')
    quoted = {id(tag) for root in foreign for tag in (root, *root.find_all(True))}
    return [tag[name] for tag in page.find_all(True) if id(tag) not in quoted for name in ATTRIBUTES if tag.get(name)]


def around(text, match):
    return text[max(0, match.start() - 30) : match.end() + 30]


def english(html, page=None):
    """Les mots anglais d'une page, chacun avec ce qui l'entoure ; `page`, si elle est déjà analysée."""
    page = page or BeautifulSoup(html, "html.parser")
    texts = [*prose(html), *spoken(page), *([page.title.get_text()] if page.title else [])]
    return [around(text, found) for text in (NAMES.sub("￼", t) for t in texts) for found in ENGLISH.finditer(text)]


def misprints(html):
    """Les fautes de typographie d'une page : (règle, ce qui entoure la faute)."""
    return [
        (rule, around(text, found))
        for text in (PRINTED.sub("￼", block) for block in prose(html))
        for rule, pattern in TYPOGRAPHY.items()
        for found in pattern.finditer(text)
    ]


def test_pages_hold_no_english_word(book):
    found = {str(page.relative_to(book)): english(page.read_text(encoding="utf-8"), soup(page)) for page in pages(book)}
    assert {name: words for name, words in found.items() if words} == {}


def test_scripts_hold_no_english_word(book):
    """Les textes que les scripts écrivent dans la page, que la page construite ne montre pas encore."""
    copy = (book / "_static" / "copybutton.js").read_text(encoding="utf-8")
    assert "'fr'" in copy
    assert "Copié !" not in copy  # l'espace y est insécable
    assert "aria-label" not in (book / "_static" / "togglebutton.js").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "html",
    [
        '<button title="Toggle primary sidebar"></button>',
        '<input placeholder="Search this book...">',
        '<a class="headerlink" title="Permalink to this heading">#</a>',
        '<button data-tooltip="Copy"></button>',
        "<p>By Les auteurs</p>",
        "<p>Skip to main content</p>",
        "<p>Proof. Il suffit de diviser.</p>",
        "<p>Sanjeev Arora and Elad Hazan. <span lang='en'>On the optimization</span>.</p>",
        "<p>In <em lang='en'>Proceedings</em>, 3. 4 edition.</p>",
        "<title>Overview: module code</title>",
    ],
)
def test_an_english_word_is_noticed(html):
    assert english(html)


def test_french_code_and_titles_are_not_english():
    html = (
        "<p>La page de code <code>from lrq import to</code> cite "
        "<span lang='en'>The approximation of one matrix by another</span> ; MiniLM est all-MiniLM-L6-v2.</p>"
        "<pre>print the file</pre><img alt='Une figure dont le titre est : à retenir'>"
    )
    assert english(html) == []


def test_pages_follow_french_typography(book):
    found = {str(page.relative_to(book)): misprints(page.read_text(encoding="utf-8")) for page in pages(book)}
    assert {name: words for name, words in found.items() if words} == {}


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("Deux cas : un", "Deux cas\u00a0: un"),
        ("Deux cas: un", "Deux cas\u00a0: un"),
        ("vaut <code>r</code> ; sinon", "vaut <code>r</code>\u00a0; sinon"),
        ("Pourquoi ?", "Pourquoi\u202f?"),
        ("99 % de l’énergie", "99\u00a0% de l’énergie"),
        ("99% de l’énergie", "99\u00a0% de l’énergie"),
        ("« rang »", "«\u00a0rang\u00a0»"),
        ("l'énergie", "l’énergie"),
        ('le "rang"', "le «\u00a0rang\u00a0»"),
        ("10 616 832 nombres", "10\u202f616\u202f832 nombres"),
        ("10616832 nombres", "10\u202f616\u202f832 nombres"),
        ("Ainsi de suite...", "Ainsi de suite…"),
    ],
)
def test_a_misprint_is_noticed(wrong, right):
    assert misprints(f"<p>{wrong}</p>")
    assert misprints(f"<p>{right}</p>") == []


# --- La structure, pour un lecteur d'écran ----------------------------------------------------------------------------


def test_headings_come_in_order(book):
    """Un seul titre de premier niveau, et aucun niveau sauté."""
    for page in pages(book):
        main = soup(page).select_one("main .bd-article, main .bd-search-container")
        levels = [int(tag.name[1]) for tag in main.find_all(re.compile(r"^h[1-6]$"))]
        assert levels[:1] == [1], page
        assert levels.count(1) == 1, page
        assert all(after <= before + 1 for before, after in pairwise(levels)), (page, levels)


def test_identifiers_are_unique(book):
    for page in pages(book):
        names = Counter(tag["id"] for tag in soup(page).find_all(id=True))
        assert [name for name, count in names.items() if count > 1] == [], page


def test_lists_hold_only_their_items(book):
    wrong = [
        f"{page.relative_to(book)} : <{child.name}> dans <{tag.name}>"
        for page in pages(book)
        for tag in soup(page).select("article ul, article ol, article dl")
        for child in tag.find_all(True, recursive=False)
        if child.name not in ({"dt", "dd", "div"} if tag.name == "dl" else {"li"})
    ]
    assert wrong == []


# --- La recherche -----------------------------------------------------------------------------------------------------


@cache
def search_index(book):
    text = (book / "searchindex.js").read_text(encoding="utf-8")
    return json.loads(text.removeprefix("Search.setIndex(").removesuffix(")"))


@pytest.mark.parametrize("word", ["singulières", "énergie", "décomposition", "théorème", "quantifiée", "couche"])
def test_search_index_folds_accents(book, word):
    """Une page qui contient le mot est trouvée, qu'on le tape avec ou sans ses accents."""
    index = search_index(book)
    holders = {
        number
        for number, name in enumerate(index["docnames"])
        if re.search(rf"(?i)\b{word}\b", soup(book / f"{name}.html").select_one("article").get_text())
    }
    assert holders
    for typed in (word, fold(word), word.upper()):
        root = SearchFolded({}).stem(typed.lower())
        found = [files for kind in ("terms", "titleterms") if (files := index[kind].get(root)) is not None]
        pages = {number for files in found for number in (files if isinstance(files, list) else [files])}
        assert holders <= pages, (typed, root)


def test_search_index_holds_no_accent(book):
    index = search_index(book)
    roots = [root for kind in ("terms", "titleterms") for root, files in index[kind].items() if files not in ([], None)]
    assert len(roots) > 1000
    assert [root for root in roots if fold(root) != root] == []


def test_search_page_folds_the_question(book):
    page = soup(book / "search.html")
    assert page.select('script[src*="livre/recherche.js"][defer]')
    assert not soup(book / "book" / "index.html").select('script[src*="recherche.js"]')


# --- Au doigt, sur le papier ------------------------------------------------------------------------------------------


def test_header_buttons_fit_a_finger(book, browser):
    page = browser.new_page(viewport={"width": 360, "height": 740})
    page.goto((book / "book" / "index.html").as_uri())
    boxes = [button.bounding_box() for button in page.locator(".bd-header-article button:visible").all()]
    page.close()
    assert len(boxes) >= 3
    assert [box for box in boxes if min(box["width"], box["height"]) < 44] == []


def test_printed_page_is_light_whole_and_bare(book, browser):
    """Dans le noir comme dans le clair, le papier est clair, tout y est déplié, et rien n'y reste qui se clique."""
    page = browser.new_page()
    page.add_init_script("localStorage.setItem('mode', 'dark'); localStorage.setItem('theme', 'dark')")
    page.goto((book / "notebooks" / "solutions" / "11_01_solutions.html").as_uri())
    page.wait_for_function("document.readyState === 'complete'")
    folded = page.locator("details:not([open])").count()
    assert folded > 0
    page.emulate_media(media="print")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    assert page.locator("html").get_attribute("data-theme") == "light"
    for selector in (".bd-sidebar-primary", ".bd-header-article", ".prev-next-footer", "button", "a.headerlink"):
        assert page.locator(f"{selector}:visible").count() == 0, selector
    cut = "codes => codes.filter(code => code.scrollWidth > code.clientWidth).length"
    assert page.locator(".bd-article pre").evaluate_all(cut) == 0
    page.emulate_media(media="screen")
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() == folded
    assert page.locator("html").get_attribute("data-theme") == "dark"
    page.close()
