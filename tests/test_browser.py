"""Les pages telles qu'on les lit, dans un vrai navigateur : servies ou ouvertes d'un dossier, claires ou sombres, sur
un téléphone, au clavier. Et les explorateurs : chaque réglage y agit, chaque extrait de code dit vrai.
"""

import contextlib
import io
import itertools
import json
import math
import re
from pathlib import Path
from urllib.parse import urlsplit

import ipywidgets
import nbformat
import pytest
import torch
import yaml
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup
from ipywidgets.embed import embed_data
from playwright.sync_api import TimeoutError as Late

from benchmarks.page import state_target
from lrq.widgets import (
    BudgetExplorer,
    LoRAExplorer,
    NetworkExplorer,
    PhotoExplorer,
    PropagationExplorer,
    QuantizerExplorer,
    RandomizedExplorer,
    RankBitsExplorer,
    RateDistortionExplorer,
    SelfTest,
    SpectrumExplorer,
    TensorTrainExplorer,
    propagation,
    tensor_train,
)
from lrq.widgets import budget as sharing
from lrq.widgets.network import BITS as NETWORK_BITS
from lrq.widgets.network import WHOLE
from lrq.widgets.self_test import SECTIONS

ROOT = Path(__file__).parents[1]
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
# Le code source de lrq fait une page par module cité : seul le livre construit en connaît la liste.
MODULES = "_modules"
PAGES = [TOC["root"], *(page["file"] for part in TOC["parts"] for page in part["chapters"]), "search", MODULES]


def has_explorer(page):
    """Vrai si la page est un carnet qui montre un explorateur."""
    path = ROOT / f"{page}.ipynb"
    if not path.is_file():
        return False
    cells = nbformat.read(path, as_version=4).cells
    return any("lrq.widgets" in cell.source for cell in cells if cell.cell_type == "code")


EXPLORED = [page for page in PAGES if has_explorer(page)]
explored = pytest.mark.parametrize("page_name", EXPLORED)

STATE, VIEW = "application/vnd.jupyter.widget-state+json", "application/vnd.jupyter.widget-view+json"
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
CONTRAST = ["color-contrast", "link-in-text-block"]
PHONE = {"width": 360, "height": 740}
TOUCH = 44  # pixels CSS : la plus petite cible qu'un doigt atteint sans viser
CONTROLS = 'input, select, button, summary, [role="slider"]'
RANK, CUT, CODE = '[data-control="rank"]', '[data-control="cut"]', '[data-control="code"]'
RANGE, POINT = 'input[type="range"]', '[data-control="point"]'
BITS, BITS_POINT = '[data-control="n_bits"]', '[data-control="bits-point"]'
CHAINED = '[data-explorer="propagation"]'
ADAPTED = '[data-explorer="lora"]'
TRAIN, TRAIN_POINT = '[data-explorer="tensor-train"]', '[data-control="train-point"]'
NETWORK, PAD = '[data-explorer="network"]', ".lrq-pad"
SELF_TEST, ANSWER, AGAIN = "self-test", '[data-control="answer"]', '[data-control="again"]'
SHARED, SHARED_POINT = '[data-explorer="budget"]', '[data-control="budget-point"]'
MAP_POINT, BUDGET = '[data-control="map-point"]', '[data-control="budget"]'
RATE_POINT, RECIPE = '[data-control="rate-point"]', '[data-control="recipe"]'
TWO_FRAMES = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
STILL = f"{TWO_FRAMES}.then(() => document.getAnimations().forEach(fade => fade.finish()))"  # sans attendre les fondus
SETTLED = f"async () => {{ await window.MathJax?.startup?.promise; await document.fonts.ready; await {TWO_FRAMES}; }}"
MOUNTED = """count => document.querySelectorAll('.lrq-explorer[data-ready], .lrq-absent').length >= count"""
SIDEWAYS = """() => {
  const page = document.scrollingElement, room = page.clientWidth;
  if (page.scrollWidth <= room) return null;
  const wide = [...page.querySelectorAll('main *')].filter(child => child.getBoundingClientRect().right > room + 1);
  const names = wide.slice(0, 6).map(child => `${child.localName}.${child.className}`);
  return `${page.scrollWidth} px : ${names.join(', ')}`;
}"""
UNFOLD = """() => {
  for (const fold of document.querySelectorAll('details')) fold.open = true;
  for (const fold of document.querySelectorAll('.toggle-hidden')) fold.classList.remove('toggle-hidden');
}"""
# De ce qui se répète plus de `keep` fois dans un même élément, n'en laisse qu'à peu près autant, pris à intervalles ;
# moins encore tant que la page a plus de `most` éléments. Un terme ne va pas sans sa définition.
THIN = """({keep, most, offset}) => {
  for (let left = Infinity; left > most && keep > 0; keep -= 5) {
    for (const parent of document.querySelectorAll('main *')) {
      const groups = [];
      for (const child of parent.children) {
        if (groups.length && child.matches('dd, dt + dt')) groups.at(-1).push(child); else groups.push([child]);
      }
      const step = Math.ceil(groups.length / keep);
      groups.forEach((group, i) => { if (i && (i + offset) % step) group.forEach(child => child.remove()); });
    }
    left = document.querySelectorAll('main *').length;
  }
}"""
INK = """canvas => {
  const points = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  let fullest = 3;
  for (let i = 3; i < points.length; i += 4) if (points[i] > points[fullest]) fullest = i;
  return [...points.slice(fullest - 3, fullest)];
}"""
# Ce qui se voit d'un explorateur : ni les attributs de sa racine, ni la position d'un curseur, ni la phrase lue à voix
# haute, qui suit avec un temps de retard.
SHOWN = """root => {
  const spoken = [...root.querySelectorAll('[aria-live]')];
  for (const sentence of spoken) sentence.style.display = 'none';
  const text = root.innerText;
  for (const sentence of spoken) sentence.style.display = '';
  return JSON.stringify([
    text,
    [...root.querySelectorAll('svg')].map(drawing => drawing.outerHTML),
    [...root.querySelectorAll('canvas')].map(drawing => drawing.toDataURL()),
    [...root.querySelectorAll('img')].map(image => image.src),
  ]);
}"""
COLOURS = """root => [root, ...root.querySelectorAll('*')].map(element => {
  if (element.localName === 'canvas') return element.toDataURL();
  const style = getComputedStyle(element);
  return [style.color, style.backgroundColor, style.borderTopColor, style.fill, style.stroke].join(' ');
})"""
# Les étiquettes qui se couvrent, et celles qui sortent de la figure ; les deux lignes d'une même se touchent.
OVERLAPS = """root => {
  const frame = root.getBoundingClientRect();
  const labels = [...root.querySelectorAll('svg .lrq-label')]
    .filter(text => text.textContent && getComputedStyle(text).visibility === 'visible')
    .map(text => ({text: text.textContent, box: text.getBoundingClientRect()}));
  const out = labels.filter(({box}) => box.left < frame.left - 1 || box.right > frame.right + 1);
  const pairs = labels.flatMap((one, i) => labels.slice(i + 1).map(other => [one, other]));
  const covered = pairs.filter(([{box: a}, {box: b}]) =>
    a.left < b.right - 1 && a.right > b.left + 1 && a.top < b.bottom - 4 && a.bottom > b.top + 4);
  return [...out.map(({text}) => text), ...covered.map(pair => pair.map(({text}) => text).join(' / '))];
}"""
# Un geste laisse la page courir sur son élan : on attend que rien ne bouge depuis six images.
AT_REST = """() => new Promise(done => {
  let before = NaN, still = 0;
  const look = () => {
    still = scrollY === before ? still + 1 : 0;
    before = scrollY;
    if (still < 6) requestAnimationFrame(look); else done();
  };
  look();
})"""
NEVER = "NaN|Infinity|undefined|∞"  # ce qu'une figure n'écrit jamais
# Des réglages au hasard, en un seul aller-retour et sans attendre que l'écran batte, puisque la mise en page se calcule
# quand on la demande ; rend ce qu'on voit à chacun. Un pas : des nombres dans [0, 1[, puis des places imposées.
STROLL = """async (root, {steps, never}) => {
  const change = (control, value) => {
    control.value = value;
    for (const name of ['input', 'change']) control.dispatchEvent(new Event(name, {bubbles: true}));
  };
  const frame = window.requestAnimationFrame, seen = [];
  window.requestAnimationFrame = act => (queueMicrotask(() => act(performance.now())), 1);
  const drawn = () => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
  for (const {draws, forced} of steps) {
    for (const select of root.querySelectorAll('select:enabled')) {
      const options = select.querySelectorAll('option:enabled');
      change(select, options[Math.floor(draws.pop() * options.length)].value);
    }
    await drawn(); // le plus grand rang dépend de la matrice
    for (const slider of root.querySelectorAll('input[type="range"]:enabled')) {
      const [low, high, step] = [Number(slider.min), Number(slider.max), Number(slider.step) || 1];
      const value = low + step * Math.floor(draws.pop() * (Math.floor((high - low) / step) + 1));
      change(slider, forced[slider.dataset.control] ?? value);
    }
    await drawn();
    const written = root.innerText + [...root.querySelectorAll('svg')].map(drawing => drawing.outerHTML).join('');
    seen.push({
      controls: [...root.querySelectorAll('select, input[type="range"]')].map(c => `${c.dataset.control} ${c.value}`),
      height: Math.round(root.getBoundingClientRect().height),
      overlaps: (OVERLAPS)(root),
      sideways: (SIDEWAYS)(),
      odd: written.match(new RegExp(never)),
    });
  }
  window.requestAnimationFrame = frame;
  return seen;
}""".replace("OVERLAPS", OVERLAPS).replace("SIDEWAYS", SIDEWAYS)
SET = """(input, value) => {
  input.value = value;
  input.dispatchEvent(new Event('input', {bubbles: true}));
  input.dispatchEvent(new Event('change', {bubbles: true}));
}"""


# --- ouvrir une page --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def contexts(browser):
    """Les fenêtres où s'ouvrent les pages, une par façon de lire, gardées d'une page à l'autre."""
    opened = {}

    def context(kind):
        if kind not in opened:
            phone = {"viewport": PHONE, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
            system = "dark" if kind == "dark" else "light"
            opened[kind] = browser.new_context(
                locale="fr-FR", color_scheme=system, **(phone if kind == "phone" else {})
            )
            opened[kind].grant_permissions(["clipboard-read", "clipboard-write"])
        return opened[kind]

    return context


@pytest.fixture(scope="module")
def opened(contexts, site, book):
    """Ouvre une page du livre, ``opened("book/index", "phone")``, ou la reprend telle qu'un autre test l'a laissée.

    Ouvrir une page prend une seconde. Un test règle donc d'abord ce dont il dépend, ou demande une page fraîche.
    """
    pages = {}

    def visit(name, kind="light", fresh=False):
        if (name, kind) not in pages:
            pages[name, kind] = contexts(kind).new_page()
            fresh = True
        page = pages[name, kind]
        page.bring_to_front()  # un onglet caché ne dessine pas
        if fresh:
            page.goto(f"{site}/{name}.html")
            settle(page, views(book / f"{name}.html"))
        return page

    return visit


def settle(page, count=0):
    """Attend que la page soit lisible : formules, polices, explorateurs."""
    page.evaluate(SETTLED)
    page.wait_for_function(MOUNTED, arg=count, timeout=10_000)


def views(path):
    """Combien d'explorateurs la page construite annonce."""
    soup = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
    return len(soup.find_all("script", type=VIEW))


def files(book, name):
    """Les pages construites que désigne un nom de la liste."""
    return sorted(book.glob("_modules/**/*.html")) if name == MODULES else [book / f"{name}.html"]


def sampled(book, name, rng):
    """Celles qu'on ouvre : du code source, qui n'a qu'un gabarit, la liste, la plus longue et trois au hasard."""
    found = files(book, name)
    if name != MODULES:
        return found
    longest = max(found, key=lambda path: path.stat().st_size)
    return [book / "_modules/index.html", longest, *rng.choice(found, 3, replace=False)]


def listen(page, origin):
    """La liste, tenue à jour, de ce qu'une page fait de trop : requêtes ailleurs, erreurs, messages en console."""
    faults = []

    def asked(request):
        if not request.url.startswith((origin, "data:", "blob:")):
            faults.append(f"requête vers {request.url}")

    def said(message):
        if message.type in {"warning", "error", "assert"}:
            faults.append(f"console ({message.type}) : {message.text[:300]}")

    def answered(response):
        if urlsplit(response.url).scheme.startswith("http") and response.status >= 400:
            faults.append(f"réponse {response.status} : {response.url}")

    page.on("request", asked)
    page.on("requestfailed", lambda request: faults.append(f"requête sans réponse : {request.url} ({request.failure})"))
    page.on("response", answered)
    page.on("console", said)
    page.on("pageerror", lambda error: faults.append(f"erreur : {error}"))
    return faults


def wear(page, theme):
    """Passe la page en clair ou en sombre, comme le ferait le bouton du thème, fondus achevés."""
    page.evaluate("theme => { document.documentElement.dataset.theme = theme; }", theme)
    page.evaluate(STILL)


def axe(page, only):
    """Ce que reproche axe à la page, une ligne par élément."""
    # preload : axe relirait les feuilles de style par des requêtes à lui, en pure perte.
    options = {"runOnly": only, "resultTypes": ["violations"], "preload": False}
    return [
        f"{violation['id']} : {violation['help']}\n      {node['html'][:160]}\n      {node['failureSummary'][:300]}"
        for violation in Axe().run(page, options=options).response["violations"]
        for node in violation["nodes"][:4]
    ]


# --- toutes les pages -------------------------------------------------------------------------------------------------


def test_list_of_pages_is_complete(book):
    found = {path for path in book.rglob("*.html") if path.relative_to(book).parts[0] != "_static"}
    found.discard(book / "index.html")  # elle renvoie à l'accueil
    assert {path for name in PAGES for path in files(book, name)} == found


def test_list_of_pages_with_explorers_is_complete(book):
    found = [name for name in PAGES if name != MODULES and views(book / f"{name}.html")]
    assert found == EXPLORED


@pytest.mark.parametrize("page_name", PAGES)
def test_page_is_quiet_accessible_and_fits_a_phone(contexts, site, book, page_name, rng):
    """Une seule visite pour tout ce qui s'observe d'une page servie ; en sombre, seuls les contrastes sont à revoir."""
    faults = []
    for path in sampled(book, page_name, rng):
        name = path.relative_to(book).as_posix()
        page = contexts("light").new_page()
        noise = listen(page, f"{site}/")
        page.goto(f"{site}/{name}")
        settle(page, views(path))
        found = [*noise, *unmounted(page, path), *overflow(page)]
        # axe met une minute à lire mille noms
        page.evaluate(THIN, {"keep": 20, "most": 8000, "offset": int(rng.integers(1000))})
        found += axe(page, WCAG)
        wear(page, "dark")
        found += [f"en sombre, {fault}" for fault in axe(page, {"type": "rule", "values": CONTRAST})]
        faults += [f"{name} : {fault}" for fault in found]
        page.close()
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("page_name", PAGES)
def test_page_is_quiet_when_opened_from_a_folder(contexts, book, page_name, rng):
    """Sans serveur, le navigateur refuse modules et requêtes d'un fichier à l'autre : rien ne doit en dépendre."""
    faults = []
    for path in sampled(book, page_name, rng):
        page = contexts("file").new_page()
        noise = listen(page, book.as_uri())
        page.goto(path.as_uri())
        settle(page, views(path))
        faults += [f"{path.relative_to(book)} : {fault}" for fault in [*noise, *unmounted(page, path)]]
        page.close()
    assert not faults, "\n".join(faults)


def unmounted(page, path):
    """Les explorateurs annoncés par le fichier qui ne sont pas dans la page."""
    ready, absent = page.locator(".lrq-explorer[data-ready]").count(), page.locator(".lrq-absent").all_inner_texts()
    missing = [f"{ready} explorateur(s) sur {views(path)}"] if ready != views(path) else []
    return [*missing, *(f"explorateur absent : {text}" for text in absent)]


def overflow(page):
    """Ce qui déborde à la largeur d'un téléphone, replié puis déplié."""
    faults, size = [], page.viewport_size
    page.set_viewport_size(PHONE)
    for state in ("replié", "déplié"):
        page.evaluate(TWO_FRAMES)
        if wide := page.evaluate(SIDEWAYS):
            faults.append(f"déborde sur un téléphone, {state} : {wide}")
        page.evaluate(UNFOLD)
    page.set_viewport_size(size)
    page.evaluate(STILL)
    return faults


# --- les explorateurs -------------------------------------------------------------------------------------------------


def explorers(page, needs=""):
    """Les explorateurs de la page, ou ceux qui contiennent `needs`."""
    found = page.locator(".lrq-explorer[data-ready]").all()
    assert found, "aucun explorateur dans cette page"
    return [root for root in found if not needs or root.locator(needs).count()]


def label(root, control=None):
    """De quoi reconnaître un explorateur, ou l'un de ses réglages, dans un message."""
    name = f"explorateur {root.get_attribute('data-explorer')}"
    return name if control is None else f"{name}, {control.evaluate('c => c.outerHTML.slice(0, 140)')}"


def rank(root):
    return int(root.get_attribute("data-rank"))


def bounds(root):
    """Le plus petit et le plus grand rang que le curseur permet."""
    return tuple(int(root.locator(RANK).get_attribute(side)) for side in ("min", "max"))


def waits(root, condition, expected, patience=10):
    """Vrai si la condition, une fonction JavaScript de la racine et d'une valeur, tient avant `patience` secondes."""
    arguments = [root.element_handle(), expected]
    try:
        root.page.wait_for_function(
            f"([root, value]) => ({condition})(root, value)", arg=arguments, timeout=1000 * patience
        )
    except Late:
        return False
    return True


def rank_after(root, expected):
    """Le rang affiché après un geste : celui qu'on attend, ou celui qui est resté."""
    waits(root, "(root, rank) => root.dataset.rank === String(rank)", expected)
    return rank(root)


def changes(root, act, patience=10):
    """Vrai si ce que montre l'explorateur change après `act()`."""
    before = root.evaluate(SHOWN)
    act()
    return waits(root, f"(root, before) => ({SHOWN})(root) !== before", before, patience)


def in_turn(gestures):
    """Des gestes dont l'un au moins doit agir, et les secondes à attendre de chacun.

    L'un peut n'y rien pouvoir, comme une flèche vers le bord où est déjà un curseur : tant qu'il en reste d'autres, on
    n'attend qu'une seconde ; puis on les reprend tous, sans hâte.
    """
    first, last = gestures[:-1], gestures[-1]
    return [*((each, 1) for each in first), *((each, 10) for each in (last, *first))]


def controls(root):
    """Les réglages que le lecteur peut atteindre, tout déplié."""
    root.page.evaluate(UNFOLD)
    found = [control for control in root.locator(CONTROLS).all() if control.is_visible() and control.is_enabled()]
    return [control for control in found if not control.evaluate("c => c.type === 'radio' && c.checked")]


def kind(control):
    """`range`, `checkbox`, `select`, `button`, `summary` ou `slider`."""
    return control.evaluate(
        "c => c.getAttribute('role') === 'slider' ? 'slider' : c.type?.split('-')[0] || c.localName"
    )


def drag(control, dx):
    """Prend un élément à la souris et le tire de `dx` pixels."""
    control.scroll_into_view_if_needed()
    box, mouse = control.bounding_box(), control.page.mouse
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    mouse.move(x, y)
    mouse.down()
    for part in (0.3, 0.7, 1):
        mouse.move(x + dx * part, y)
    mouse.up()


def by_mouse(control):
    """Les gestes de souris dont l'un au moins doit agir."""
    if kind(control) == "slider":
        return [lambda: drag(control, 50), lambda: drag(control, -50)]
    if kind(control) == "range":
        box = control.bounding_box()
        return [
            lambda part=part: control.click(position={"x": box["width"] * part, "y": box["height"] / 2})
            for part in (0.3, 0.7)
        ]
    if kind(control) == "select":  # sa liste est dessinée par le système : la souris n'y a pas prise ici
        last = control.locator("option").count() - 1
        return [lambda: control.select_option(index=last), lambda: control.select_option(index=0)]
    return [control.click]


def by_keyboard(control):
    """Les touches dont l'une au moins doit agir."""
    keys = {
        **dict.fromkeys(("range", "slider"), ("ArrowRight", "ArrowLeft")),
        **dict.fromkeys(("select", "radio"), ("ArrowDown", "ArrowUp")),
        **dict.fromkeys(("checkbox",), ("Space",)),
    }
    return [lambda key=key: control.press(key) for key in keys.get(kind(control), ("Enter",))]


@explored
@pytest.mark.parametrize("gestures", [by_mouse, by_keyboard])
def test_every_control_changes_what_is_shown(opened, page_name, gestures):
    page = opened(page_name, fresh=True)  # un bouton « Copier » ne dit qu'une fois « Copié »
    idle, count = [], 0
    for root in explorers(page):
        if root.get_attribute("data-explorer") == SELF_TEST:  # une réponse n'y change rien avant « Répondre »
            continue
        for control in controls(root):
            count += 1
            page.evaluate(UNFOLD)  # replier le code est un des réglages
            # Un bouton qui mène au rang où l'on est déjà ne change rien : deux départs, aux deux bouts.
            ends = bounds(root) if kind(control) in {"button", "submit"} and root.locator(RANK).count() else [None]
            for (end, act), patience in in_turn(list(itertools.product(ends, gestures(control)))):
                if end is not None:
                    root.locator(RANK).evaluate(SET, end)
                    rank_after(root, end)
                if changes(root, act, patience):
                    break
            else:
                idle.append(label(root, control))
    assert count
    assert not idle, f"sans effet : {idle}"


@explored
def test_every_control_has_a_name(opened, page_name):
    page = opened(page_name)
    nameless = []
    for root in explorers(page):
        for control in controls(root):
            spoken = control.inner_text() if kind(control) == "summary" else control.aria_snapshot()
            named = spoken.strip() if kind(control) == "summary" else re.match(r'- \w+ "\s*[\w−].*"', spoken)
            if not named:
                nameless.append(f"{label(root, control)} : {spoken}")
        for control in root.locator(RANK).all():
            assert 'slider "Rang r"' in control.aria_snapshot()
    assert not nameless, "\n".join(nameless)


@explored
def test_every_control_is_large_enough_for_a_finger(opened, page_name):
    page = opened(page_name, "phone")
    small = []
    for root in explorers(page):
        for control in controls(root):
            sides = control.evaluate(
                "c => { const b = (c.type === 'checkbox' || c.type === 'radio') && c.labels?.[0] || c;"
                "       const {width, height} = b.getBoundingClientRect(); return [width, height]; }"
            )
            if min(sides) < TOUCH - 0.5:
                small.append(f"{label(root, control)} : {sides[0]:.0f} × {sides[1]:.0f} px")
    assert not small, "\n".join(small)


@explored
def test_page_fits_a_phone_whatever_the_setting(opened, page_name):
    """Un nombre plus long, une étiquette poussée au bord : aucun réglage ne doit faire défiler de côté."""
    page = opened(page_name, "phone")
    page.evaluate(UNFOLD)
    for root in explorers(page, RANGE):
        for control, value in itertools.product(root.locator(RANGE).all(), ("min", "max")):
            control.evaluate(SET, control.get_attribute(value))
            page.evaluate(TWO_FRAMES)
            wide = page.evaluate(SIDEWAYS)
            assert wide is None, f"{label(root, control)}, {value} : {wide}"


@explored
def test_cut_follows_the_mouse(opened, page_name):
    page = opened(page_name)
    for root in explorers(page, CUT):
        low, high = bounds(root)
        root.locator(RANK).evaluate(SET, (low + high) // 4)
        ranks = [rank_after(root, (low + high) // 4)]
        for dx in (60, 60, -90):
            assert changes(root, lambda root=root, dx=dx: drag(root.locator(CUT), dx)), label(root)
            ranks.append(rank(root))
        assert ranks[0] < ranks[1] < ranks[2], f"{label(root)} : {ranks}"
        assert ranks[0] < ranks[3] < ranks[2], f"{label(root)} : {ranks}"
        assert root.locator(RANK).input_value() == str(ranks[3]), "le curseur n'a pas suivi la coupure"


@explored
@pytest.mark.parametrize("handle", [RANK, CUT], ids=["curseur", "coupure"])
def test_keys_move_the_rank(opened, page_name, handle):
    page = opened(page_name)
    for root in explorers(page, handle):
        low, high = bounds(root)
        start = min(low + 12, high - 1)
        root.locator(RANK).evaluate(SET, start)
        assert rank_after(root, start) == start
        control = root.locator(handle)
        for key, expected in [
            ("ArrowRight", start + 1),
            ("ArrowUp", start + 2),
            ("ArrowLeft", start + 1),
            ("ArrowDown", start),
            ("PageUp", min(start + 10, high)),
            ("PageDown", max(min(start + 10, high) - 10, low)),
            ("End", high),
            ("ArrowRight", high),
            ("Home", low),
            ("ArrowLeft", low),
        ]:
            control.press(key)
            assert rank_after(root, expected) == expected, f"{label(root)} : {key}"


def settings(root):
    """Ce que disent les curseurs d'un explorateur, par réglage."""
    return {control.get_attribute("data-control"): int(control.input_value()) for control in root.locator(RANGE).all()}


def settings_after(root, expected):
    """Ce qu'ils disent après un geste : ce qu'on attend, ou ce qui est resté."""
    shown = "(root, all) => Object.entries(all).every(([name, place]) =>"
    waits(root, f"{shown} root.querySelector(`[data-control=${{name}}]`).value === String(place))", expected)
    return settings(root)


@explored
def test_keys_move_the_point(opened, page_name):
    page = opened(page_name)
    for root in explorers(page, POINT):
        for name in ("oversample", "n_iter"):
            root.locator(f'[data-control="{name}"]').evaluate(SET, 2)
        expected = settings_after(root, {"oversample": 2, "n_iter": 2})
        last = {name: int(root.locator(f'[data-control="{name}"]').get_attribute("max")) for name in expected}
        for key, change in [
            ("ArrowRight", {"oversample": 3}),
            ("ArrowDown", {"n_iter": 3}),
            ("ArrowLeft", {"oversample": 2}),
            ("ArrowUp", {"n_iter": 2}),
            ("End", {"oversample": last["oversample"], "n_iter": last["n_iter"]}),
            ("ArrowRight", {}),
            ("Home", {"oversample": 0, "n_iter": 0}),
            ("ArrowUp", {}),
        ]:
            root.locator(POINT).press(key)
            expected |= change
            assert settings_after(root, expected) == expected, f"{label(root)} : {key}"


@explored
def test_point_is_picked_by_hand(opened, page_name):
    """Un clic prend le point le plus proche ; tirer passe de l'un à l'autre."""
    page = opened(page_name)
    for root in explorers(page, POINT):
        for name, place in (("oversample", 0), ("n_iter", 0)):
            root.locator(f'[data-control="{name}"]').evaluate(SET, place)
        first = settings_after(root, {"oversample": 0, "n_iter": 0})
        for gesture in ("click", "drag"):
            root.locator(POINT).scroll_into_view_if_needed()
            points = root.locator("svg circle:not([role=slider] *)")
            boxes = [point.bounding_box() for point in points.all()]
            lowest = max(boxes, key=lambda box: box["y"])
            x, y = lowest["x"] + lowest["width"] / 2, lowest["y"] + lowest["height"] / 2
            if gesture == "click":
                page.mouse.click(x + 1, y + 1)
            else:
                box = root.locator(POINT).bounding_box()
                page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
                page.mouse.down()
                page.mouse.move(x, y, steps=4)
                page.mouse.up()
            page.evaluate(TWO_FRAMES)
            picked = settings(root)
            assert min(picked["n_iter"], picked["oversample"]) > 2, f"{label(root)}, {gesture} : {picked}"
            root.locator(POINT).press("Home")
            assert settings_after(root, first) == first


@explored
def test_bits_are_picked_on_the_drawing(opened, page_name):
    """Au clavier, d'un clic près d'un point, ou en tirant le cercle : le curseur suit."""
    page = opened(page_name)
    for root in explorers(page, BITS_POINT):
        point = root.locator(BITS_POINT)
        root.locator(BITS).evaluate(SET, 4)
        for key, expected in [
            ("ArrowRight", 5),
            ("ArrowUp", 6),
            ("ArrowLeft", 5),
            ("ArrowDown", 4),
            ("PageUp", 6),
            ("PageDown", 4),
            ("End", 8),
            ("ArrowRight", 8),
            ("Home", 1),
            ("ArrowLeft", 1),
        ]:
            point.press(key)
            assert settings_after(root, {"n_bits": expected})["n_bits"] == expected, f"{label(root)} : {key}"
            assert point.get_attribute("aria-valuenow") == str(expected)
        point.scroll_into_view_if_needed()
        dots = [dot.bounding_box() for dot in root.locator(".lrq-map circle:not([role=slider] *)").all()]
        places = [(dot["x"] + dot["width"] / 2, dot["y"] + dot["height"] / 2) for dot in dots]
        page.mouse.click(places[5][0] + 3, places[5][1] + 40)
        assert settings_after(root, {"n_bits": 6})["n_bits"] == 6
        page.mouse.move(*places[5])
        page.mouse.down()
        page.mouse.move(*places[1], steps=4)
        page.mouse.up()
        assert settings_after(root, {"n_bits": 2})["n_bits"] == 2


def cell(root, column, row):
    """Le milieu d'une case de la carte rang × bits, comptée à partir de 0 depuis le coin bas gauche."""
    cells = root.locator(".lrq-map .lrq-cell")
    box = cells.nth(7 * column + row).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def put_on_map(root, column, row):
    """Pose le point sur cette case, par les curseurs."""
    place = {"listed-rank": column, "n_bits": row}
    for name, value in place.items():
        root.locator(f'[data-control="{name}"]').evaluate(SET, value)
    return settings_after(root, place)


def check_map_keys(root):
    last = int(root.locator('[data-control="listed-rank"]').get_attribute("max"))
    expected = put_on_map(root, 2, 2)
    for key, change in [
        ("ArrowRight", {"listed-rank": 3}),
        ("ArrowUp", {"n_bits": 3}),
        ("ArrowLeft", {"listed-rank": 2}),
        ("ArrowDown", {"n_bits": 2}),
        ("End", {"listed-rank": last, "n_bits": 6}),
        ("ArrowRight", {}),
        ("ArrowUp", {}),
        ("Home", {"listed-rank": 0, "n_bits": 0}),
        ("ArrowLeft", {}),
        ("ArrowDown", {}),
    ]:
        root.locator(MAP_POINT).press(key)
        expected |= change
        assert settings_after(root, expected) == expected, f"{label(root)} : {key}"


def check_map_picking(root):
    mouse = root.page.mouse
    put_on_map(root, 0, 0)
    root.locator(MAP_POINT).scroll_into_view_if_needed()
    last = int(root.locator('[data-control="listed-rank"]').get_attribute("max"))
    for column, row in [(3, 5), (last, 0), (last, 6), (0, 3)]:
        mouse.click(*cell(root, column, row))
        expected = {"listed-rank": column, "n_bits": row}
        assert settings_after(root, expected).items() >= expected.items(), f"{label(root)} : {column}, {row}"
    mouse.move(*cell(root, 0, 3))
    mouse.down()
    mouse.move(*cell(root, 4, 1), steps=4)
    mouse.up()
    expected = {"listed-rank": 4, "n_bits": 1}
    assert settings_after(root, expected).items() >= expected.items()


@explored
def test_pairs_are_picked_on_the_map(opened, page_name):
    """Au clavier, d'un clic sur une case, ou en tirant le point : les curseurs suivent."""
    page = opened(page_name)
    for root in explorers(page, MAP_POINT):
        check_map_keys(root)
        check_map_picking(root)


def check_rate_keys(root):
    root.locator(BUDGET).evaluate(SET, 41)
    settings_after(root, {"budget": 41})
    for key, expected in [
        ("ArrowRight", 42),
        ("ArrowUp", 43),
        ("ArrowLeft", 42),
        ("ArrowDown", 41),
        ("PageUp", 51),
        ("PageDown", 41),
        ("End", 100),
        ("ArrowRight", 100),
        ("Home", 5),
        ("ArrowLeft", 5),
    ]:
        root.locator(RATE_POINT).press(key)
        assert settings_after(root, {"budget": expected})["budget"] == expected, f"{label(root)} : {key}"
        assert float(root.locator(RATE_POINT).get_attribute("aria-valuenow")) == expected / 10


def check_rate_picking(root):
    root.locator(BUDGET).evaluate(SET, 20)
    settings_after(root, {"budget": 20})
    root.locator(RATE_POINT).scroll_into_view_if_needed()
    plot = root.locator(".lrq-plot").bounding_box()
    mouse, (x, y) = root.page.mouse, (plot["x"] + 0.7 * plot["width"], plot["y"] + 0.5 * plot["height"])
    mouse.click(x, y)
    assert waits(root, "(root, low) => Number(root.querySelector('[data-control=budget]').value) > low", 60)
    far = settings(root)["budget"]
    mouse.move(x, y)
    mouse.down()
    mouse.move(plot["x"] + 0.3 * plot["width"], y, steps=4)
    mouse.up()
    assert waits(root, "(root, high) => Number(root.querySelector('[data-control=budget]').value) < high", far - 20)


@explored
def test_rates_are_picked_on_the_drawing(opened, page_name):
    """Au clavier, d'un clic, ou en tirant le budget : le curseur suit."""
    page = opened(page_name)
    for root in explorers(page, RATE_POINT):
        check_rate_keys(root)
        check_rate_picking(root)


@explored
def test_labels_stay_in_the_drawing_and_apart(opened, page_name, rng):
    """Des réglages au hasard, sur un téléphone : aucune étiquette n'en couvre une autre ni ne sort de la figure."""
    page = opened(page_name, "phone")
    for root in explorers(page, f"{POINT}, {BITS_POINT}, {MAP_POINT}, {RATE_POINT}"):
        check_stroll(root, rng, 20)


@explored
def test_new_verdict_is_announced(opened, page_name):
    page = opened(page_name)
    for root in explorers(page, RANGE):
        live = root.locator('[aria-live="polite"]')
        assert live.count() == 1, label(root)
        control = root.locator(RANGE).first
        for value in (control.get_attribute(side) for side in ("min", "max")):  # l'un des deux n'est pas le départ
            before, moved = live.text_content(), control.input_value() != value
            control.evaluate(SET, value)
            if moved:
                changed = "(root, before) => root.querySelector('[aria-live]').textContent !== before"
                assert waits(root, changed, before), f"{label(root)}, {value} : « {before} » est resté"


def choose(page, mode):
    """Clique le bouton du thème jusqu'au mode voulu : clair, sombre ou comme le système, dans l'ordre du thème."""
    for _ in range(3):
        if page.evaluate("document.documentElement.dataset.mode") == mode:
            break
        page.locator(".theme-switch-button:visible").first.click()
    assert page.evaluate("document.documentElement.dataset.mode") == mode


@explored
def test_colours_follow_the_switch_not_the_system(opened, page_name):
    """Le lecteur choisit clair ou sombre ; le système peut préférer l'inverse, et ne doit alors rien changer."""
    page = opened(page_name)
    seen = {}
    for theme in ("dark", "light"):
        choose(page, theme)
        for system in ("dark", "light"):
            page.emulate_media(color_scheme=system)
            seen[theme, system] = [root.evaluate(COLOURS) for root in explorers(page)]
    page.evaluate("localStorage.clear()")
    assert seen["light", "light"] == seen["light", "dark"]
    assert seen["dark", "dark"] == seen["dark", "light"]
    for light, dark in zip(seen["light", "light"], seen["dark", "dark"], strict=True):
        assert light[0] != dark[0], "les couleurs de l'explorateur ne changent pas avec le thème"


def test_choice_of_theme_is_kept(contexts, site):
    """Un clic sur le bouton du thème suffit, et vaut pour les pages suivantes, dès leur premier affichage."""
    page = contexts("light").new_page()
    page.goto(f"{site}/{PAGES[0]}.html")
    settle(page)
    choose(page, "dark")
    page.goto(f"{site}/{PAGES[1]}.html")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.evaluate("localStorage.clear()")
    page.close()


@pytest.mark.parametrize("system", ["light", "dark"])
def test_a_first_visit_follows_the_system(contexts, site, system):
    page = contexts(system).new_page()
    page.goto(f"{site}/{PAGES[0]}.html")
    assert page.evaluate("document.documentElement.dataset.theme") == system
    page.close()


# --- « Voir le code » -------------------------------------------------------------------------------------------------

EXPECTED = re.compile(r"#\s*→\s?(.*?)\s*$", re.MULTILINE)
MEASURED = re.compile(r"\d+\.\d+(?:e[+-]?\d+)?|\d+(?= (?:%|/ 450$))")


def promised(snippet):
    """Les lignes que l'extrait dit imprimer."""
    return EXPECTED.findall(snippet)


def printed(snippet):
    """Les lignes que l'extrait imprime, exécuté seul."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(snippet, "extrait", "exec"), {"__name__": "__main__"})
    return [line.rstrip() for line in output.getvalue().splitlines()]


def agree(one, other):
    """Les mêmes mots et les mêmes nombres ; à une unité près du dernier chiffre écrit, ce que l'on mesure.

    Le navigateur et PyTorch s'accordent à 1e-5 près : un arrondi peut tomber de part et d'autre, le code d'un poids à
    mi-chemin de deux autres aussi, et avec lui l'image que deux chiffres se disputent.
    """
    if MEASURED.sub("0", one) != MEASURED.sub("0", other):
        return False
    for a, b in zip(MEASURED.findall(one), MEASURED.findall(other), strict=True):
        mantissa, _, exponent = a.partition("e")
        unit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
        if abs(float(a) - float(b)) > 1.001 * unit:
            return False
    return True


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("0.954", "0.954", True),
        ("0.954", "0.955", True),
        ("0.954", "0.956", False),
        ("rang 12", "rang 13", False),
        ("12 %, 90 octets", "13 %, 90 octets", True),
        ("12 %, 90 octets", "14 %, 90 octets", False),
        ("12 %, 90 octets", "12 %, 91 octets", False),
        ("448 / 450", "449 / 450", True),
        ("448 / 450", "446 / 450", False),
        ("449 / 450 octets", "448 / 450 octets", False),
        ("1.20e-03", "1.21e-03", True),
        ("1.20e-03", "1.20e-02", False),
        ("gauss 0.5", "value 0.5", False),
    ],
)
def test_numbers_that_agree(one, other, same):
    assert agree(one, other) is same


def randomize(root, rng):
    """Met chaque réglage de l'explorateur dans un état tiré au hasard."""
    for select in root.locator("select:enabled").all():
        select.select_option(index=int(rng.integers(select.locator("option").count())))
    root.page.evaluate(TWO_FRAMES)  # le plus grand rang dépend de la matrice
    for slider in root.locator('input[type="range"]').all():
        low, high, step = slider.evaluate("i => [Number(i.min), Number(i.max), Number(i.step) || 1]")
        slider.evaluate(SET, low + step * int(rng.integers(int((high - low) / step) + 1)))
    root.page.evaluate(TWO_FRAMES)


def check_stroll(root, rng, turns, forced=(), never=NEVER):
    """À des réglages au hasard, rien ne déborde ni ne se couvre, rien d'infini ne s'écrit ; rend les hauteurs vues.

    `forced` impose aux premiers pas des places de curseurs : ``[{"rank": 3}]``.
    """
    places = [*forced, *({} for _ in range(turns - len(forced)))]
    steps = [{"draws": rng.random(16).tolist(), "forced": place} for place in places]
    seen = root.evaluate(STROLL, {"steps": steps, "never": never})
    width = root.page.viewport_size["width"]
    for step in seen:
        assert (step["overlaps"], step["sideways"], step["odd"]) == ([], None, None), f"{width} px, {step}"
    return {step["height"] for step in seen}


def check_widths(page, root, rng, widths, turns, forced=(), never=NEVER):
    """À chaque largeur, une promenade au hasard, et une seule hauteur."""
    for width in widths:
        page.set_viewport_size({"width": width, "height": 900})
        page.evaluate(TWO_FRAMES)
        heights = check_stroll(root, rng, turns, forced, never)
        assert len(heights) == 1, f"{width} px : {heights}"


@explored
def test_code_prints_what_it_says(opened, page_name, rng):
    """Trois états au hasard par explorateur : l'extrait montré, exécuté, imprime ce qu'il annonce."""
    page = opened(page_name)
    page.evaluate(UNFOLD)
    snippets = []
    for root in explorers(page, CODE):
        for _ in range(3 if root.locator("input, select").count() else 1):
            randomize(root, rng)
            snippets.append(root.locator(f"{CODE} pre code").text_content())
    assert snippets
    for snippet in snippets:
        said, got = promised(snippet), printed(snippet)
        assert said, f"l'extrait n'annonce rien :\n{snippet}"
        assert len(said) == len(got), f"{snippet}\nimprime {got}"
        assert all(map(agree, said, got)), f"{snippet}\nimprime {got}"


# Le code montré à l'instant du clic : une figure qui calcule encore le récrit aussitôt après.
SHOWN_AT_CLICK = """(root, code) => {
  const keep = () => { window.shown = root.querySelector(code).textContent; };
  root.addEventListener('click', keep, { capture: true, once: true });
}"""


@explored
def test_code_can_be_copied(opened, page_name):
    page = opened(page_name)
    page.evaluate(UNFOLD)
    for root in explorers(page, CODE):
        page.evaluate("navigator.clipboard.writeText('')")
        root.evaluate(SHOWN_AT_CLICK, f"{CODE} pre code")
        root.locator(f"{CODE} button").first.click()
        page.wait_for_function("async () => (await navigator.clipboard.readText()) !== ''", timeout=10_000)
        copied, shown = page.evaluate("async () => [await navigator.clipboard.readText(), window.shown]")
        assert copied.strip() == shown.strip()


# --- les pages abîmées ------------------------------------------------------------------------------------------------


def scripts(kind):
    return re.compile(rf'(<script[^>]*type="{re.escape(kind)}"[^>]*>)(.*?)(</script>)', re.DOTALL)


def rewrite(html, kind, change):
    """La page, le contenu de ses scripts d'un type passé par `change` ; elle ne doit pas rester la même."""
    altered = scripts(kind).sub(lambda match: match[1] + change(match[2]) + match[3], html)
    assert altered != html, "cette page n'est pas abîmée"
    return altered


def without_state(html):
    return scripts(STATE).sub("", html)


def with_another_version(html):
    return rewrite(html, STATE, lambda text: re.sub(r'"version_major":\s*\d+', '"version_major": 99', text))


def with_another_module(html):
    return rewrite(html, STATE, lambda text: re.sub(r'"model_module":\s*"[^"]*"', '"model_module": "autre"', text))


def with_truncated_state(html):
    return rewrite(html, STATE, lambda text: text[: len(text) // 2])


def with_truncated_view(html):
    return rewrite(html, VIEW, lambda text: text[: len(text) // 2])


def with_unknown_model(html):
    return rewrite(html, VIEW, lambda text: re.sub(r'"model_id":\s*"[^"]*"', '"model_id": "inconnu"', text))


def with_broken_code(html):
    def spoil(text):
        state = json.loads(text)
        for model in state["state"].values():
            if "_esm" in model["state"]:
                model["state"]["_esm"] = "export default {"
        return json.dumps(state).replace("</", r"<\/")

    return rewrite(html, STATE, spoil)


ALTERATIONS = [
    without_state,
    with_another_version,
    with_another_module,
    with_truncated_state,
    with_truncated_view,
    with_unknown_model,
    with_broken_code,
]


@pytest.mark.parametrize("alter", ALTERATIONS)
@pytest.mark.parametrize("page_name", EXPLORED[:1])
def test_altered_page_says_what_is_missing(contexts, site, book, page_name, alter):
    """Un explorateur qui ne peut pas se dessiner laisse une phrase, pas un trou, et le reste de la page vit."""
    path = book / f"{page_name}.html"
    page = contexts("light").new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    altered = alter(path.read_text(encoding="utf-8"))
    page.route(f"{site}/{page_name}.html", lambda route: route.fulfill(body=altered, content_type="text/html"))
    page.goto(f"{site}/{page_name}.html")
    settle(page, views(path))
    texts = page.locator(".lrq-absent").all_inner_texts()
    page.close()
    assert errors == []
    assert len(texts) == views(path)
    for text in texts:
        assert len(text.split()) > 4, text
        assert text.strip().endswith((".", "…")), text
        assert re.search(r"\b(figure|explorateur|contrôle|carnet)\b", text, re.IGNORECASE), text


# --- des figures hors du livre ----------------------------------------------------------------------------------------

HOST = ROOT / "book" / "_static" / "figures" / "host.js"


@pytest.fixture
def mounted(contexts, tmp_path):
    """Monte des widgets dans une page nue, le premier modèle passé par `alter` ; rend la page, et son bruit."""

    def mount(widgets, alter=lambda model: None, kind="file"):
        data = embed_data(widgets, drop_defaults=False)
        shown = "".join(f'<script type="{VIEW}">{json.dumps(spec)}</script>' for spec in data["view_specs"])
        alter(data["manager_state"]["state"][data["view_specs"][0]["model_id"]])
        # Les clés triées, comme dans l'état qu'écrit une page construite.
        state = json.dumps(data["manager_state"], sort_keys=True).replace("</", r"<\/")
        script = f"<script>{HOST.read_text(encoding='utf-8')}</script>"
        path = tmp_path / "page.html"
        head = '<!doctype html><html lang="fr"><meta charset="utf-8"><title>Essai</title>'
        head += '<meta name="viewport" content="width=device-width"><body>'
        path.write_text(f'{head}{shown}<script type="{STATE}">{state}</script>{script}', encoding="utf-8")
        page = contexts(kind).new_page()
        noise = listen(page, tmp_path.as_uri())
        page.goto(path.as_uri())
        page.wait_for_function(MOUNTED, arg=len(widgets), timeout=10_000)
        return page, noise

    return mount


def test_degenerate_matrices_are_drawn(mounted, rng):
    """Nulle, constante, d'un seul nombre, d'unité extravagante : la figure se dessine, finie à tous les rangs."""
    W = torch.tensor(rng.standard_normal((7, 5)))
    cases = [torch.zeros(3, 4), torch.ones(4, 3), torch.ones(1, 1), torch.ones(1, 9), W * 1e-300, W * 1e300]
    page, noise = mounted([explorer(case, rank=1) for case in cases for explorer in (SpectrumExplorer, PhotoExplorer)])
    assert page.locator(".lrq-explorer[data-ready]").count() == 2 * len(cases)
    for root in explorers(page):
        for value in bounds(root):
            root.locator(RANK).evaluate(SET, value)
            page.evaluate(TWO_FRAMES)
            assert not re.search(r"NaN|Infinity|undefined|∞", root.evaluate(SHOWN)), label(root)
    page.close()
    assert noise == []


def test_any_weights_are_quantized(mounted, rng):
    """Nuls, constants, d'un seul nombre, sans groupes de 32, d'unité extravagante : tous les réglages se dessinent."""
    W = torch.tensor(rng.standard_normal((3, 32)), dtype=torch.float32)
    wild = {"minuscule": W * 1e-36, "énorme": W * 1e36, "constante": torch.ones(2, 64), "nulle": torch.zeros(2, 32)}
    cases = [wild, {"seul": torch.full((1, 1), -0.5)}, {"sans groupes": W[:, :20]}, W.abs()]
    page, noise = mounted([QuantizerExplorer(case, n_bits=1) for case in cases])
    page.set_viewport_size(PHONE)
    for root in explorers(page):
        check_stroll(root, rng, 25)
    assert page.locator('[data-control="matrix"]').count() == 1  # une matrice seule n'a pas de menu
    page.close()
    assert noise == []


@pytest.fixture(scope="module")
def rank_bits():
    """La carte rang × bits du livre ; ses tables prennent quelques secondes."""
    return RankBitsExplorer.of_minilm()


def test_any_matrix_has_a_map(mounted, rng):
    """Nulle, constante, d'un seul nombre, d'unité extravagante, sans place dans le budget : toujours un dessin fini."""
    W = torch.tensor(rng.standard_normal((12, 32)), dtype=torch.float32)
    wild = {"minuscule": W * 1e-36, "énorme": W * 1e36, "constante": torch.ones(40, 64), "nulle": torch.zeros(9, 32)}
    cases = (wild, torch.ones(1, 1), torch.ones(1, 9), W[:, :7])
    page, noise = mounted([RankBitsExplorer(case) for case in cases])
    page.set_viewport_size(PHONE)
    for root in explorers(page):
        check_stroll(root, rng, 25)
    assert page.locator('[data-control="matrix"]').count() == 1
    page.close()
    assert noise == []


def test_the_map_keeps_its_height_and_its_labels_apart(mounted, rank_bits, rng):
    page, noise = mounted([rank_bits])
    check_widths(page, page.locator(".lrq-explorer"), rng, (760, 704, 697, 640, 560, 360, 320), 25)
    page.close()
    assert noise == []


def test_the_map_is_moved_by_hand(mounted, randn):
    """Même sans le livre : au clavier, à la souris, et par le bouton qui mène à la meilleure paire."""
    page, noise = mounted([RankBitsExplorer(randn(48, 64), budget=30)])
    root = page.locator(".lrq-explorer")
    check_map_keys(root)
    check_map_picking(root)
    button = root.locator('[data-control="best"]')
    button.click()
    page.evaluate(TWO_FRAMES)
    assert "C’est la meilleure paire" in root.locator('[data-readout="point"]').inner_text()
    assert button.is_disabled()
    root.locator(BUDGET).evaluate(SET, 1)
    page.evaluate(TWO_FRAMES)
    assert root.locator('[data-readout="verdict"]').inner_text().startswith("Aucune paire ne tient")
    assert button.is_disabled()
    page.close()
    assert noise == []


def test_the_map_and_python_choose_alike(mounted, rank_bits, rng):
    """À des réglages au hasard, le code montré annonce le point et la façon que Python choisit, et il dit vrai."""
    page, noise = mounted([rank_bits])
    root, ran = page.locator(".lrq-explorer"), 0
    page.evaluate(UNFOLD)
    for turn in range(40):
        randomize(root, rng)
        rank_bits.matrix = root.locator('[data-control="matrix"]').input_value()
        place = settings(root)
        rank_bits.rank = rank_bits.table.ranks[place["listed-rank"]]
        rank_bits.n_bits, rank_bits.budget = place["n_bits"] + 2, place["budget"]
        best = rank_bits.orders[rank_bits.winner]
        expected = [rank_bits.point, *([best] if best is not rank_bits.point else [])]
        snippet = root.locator(f"{CODE} pre code").text_content()
        said = [f"{100 * candidate.error:.2f} %, {candidate.nbytes} octets" for candidate in expected]
        assert promised(snippet) == said, rank_bits
        if turn % 8 == 0:
            ran += 1
            assert all(map(agree, said, printed(snippet))), snippet
    assert ran
    page.close()
    assert noise == []


@pytest.fixture(scope="module")
def rate_distortion():
    """Les courbes du livre ; elles prennent quelques secondes."""
    return RateDistortionExplorer.of_minilm()


def test_any_matrix_has_its_curves(mounted, rng):
    """Nulle, constante, d'un seul nombre, d'unité extravagante, sans groupes : toujours un dessin fini."""
    W = torch.tensor(rng.standard_normal((12, 32)), dtype=torch.float32)
    wild = {"minuscule": W * 1e-36, "énorme": W * 1e36, "constante": torch.ones(40, 64), "nulle": torch.zeros(9, 32)}
    cases = (wild, torch.ones(1, 1), torch.ones(1, 9), W[:, :7])
    page, noise = mounted([RateDistortionExplorer(case) for case in cases])
    page.set_viewport_size(PHONE)
    for root in explorers(page):
        check_stroll(root, rng, 25)
    assert page.locator('[data-control="matrix"]').count() == 1
    page.close()
    assert noise == []


def test_the_curves_keep_their_height_and_their_labels_apart(mounted, rate_distortion, rng):
    page, noise = mounted([rate_distortion])
    check_widths(page, page.locator(".lrq-explorer"), rng, (760, 704, 676, 640, 576, 560, 360, 344, 320), 25)
    page.close()
    assert noise == []


def test_the_curves_are_explored_by_hand(mounted, randn):
    """Au clavier, à la souris, et par le menu qui met une recette en avant."""
    page, noise = mounted([RateDistortionExplorer(randn(48, 32))])  # chaque ligne est un groupe
    root = page.locator(".lrq-explorer")
    check_rate_keys(root)
    check_rate_picking(root)
    for recipe, name in (("float32", "Rang faible, float32"), ("group", "Par groupe")):
        root.locator(RECIPE).select_option(recipe)
        page.evaluate(TWO_FRAMES)
        assert root.locator(".lrq-shown th").inner_text().startswith(name)
    root.locator(BUDGET).evaluate(SET, 100)
    page.evaluate(TWO_FRAMES)
    assert root.locator(".lrq-shown th").inner_text().replace("\u00a0", " ").endswith("de 32, 8 bits")
    root.locator(BUDGET).evaluate(SET, 5)
    page.evaluate(TWO_FRAMES)
    assert root.locator('[data-readout="verdict"]').inner_text().startswith("Rien ne tient dans 0,5")
    assert root.locator(".lrq-winner").count() == 0
    page.close()
    assert noise == []


def test_the_curves_and_python_choose_alike(mounted, rate_distortion, rng):
    """À des réglages au hasard, la page montre la recette et les nombres de Python, et son code dit vrai."""
    page, noise = mounted([rate_distortion])
    root, ran = page.locator(".lrq-explorer"), 0
    page.evaluate(UNFOLD)
    for turn in range(48):
        randomize(root, rng)
        for trait in ("matrix", "recipe"):
            setattr(rate_distortion, trait, root.locator(f'[data-control="{trait}"]').input_value())
        budget = rate_distortion.budget = settings(root)["budget"] / 10
        error, kept = rate_distortion.water
        said = [f"{100 * 2**-budget:.2f} %, {100 * error:.2f} %, {kept} directions"]
        if rate_distortion.point is not None:
            found = f"{100 * rate_distortion.error:.2f} %, {rate_distortion.rate:.2f} bits"
            said.insert(0, f"{found}, {rate_distortion.wasted:+.2f}")
        snippet = root.locator(f"{CODE} pre code").text_content()
        promises = promised(snippet)
        assert len(promises) == len(said)
        assert all(map(agree, promises, said)), f"{rate_distortion}\n{snippet}"
        if turn % 6 == 0:
            ran += 1
            assert all(map(agree, promises, printed(snippet))), snippet
    assert ran
    page.close()
    assert noise == []


def chained_state(root, explorer):
    """Donne à l'objet Python les rangs que montrent les curseurs."""
    for trait, place in settings(root).items():
        setattr(explorer, trait, propagation.GRIDS[trait][place])


def test_the_chain_keeps_its_height_and_its_labels_apart(mounted, rng):
    page, noise = mounted([PropagationExplorer()])
    ends = [(9, 9, 6), (0, 0, 0), (9, 8, 6), (9, 9, 0), (0, 9, 6)]
    ends = [dict(zip(propagation.GRIDS, end, strict=True)) for end in ends]
    widths = (760, 704, 676, 640, 576, 560, 360, 344, 320)
    check_widths(page, page.locator(CHAINED), rng, widths, 25, ends, NEVER + "|−")
    page.close()
    assert noise == []


def test_the_chain_is_explored_by_hand(mounted):
    """Au clavier, et par les boutons qui tronquent une couche à la fois."""
    page, noise = mounted([PropagationExplorer()])
    root = page.locator(CHAINED)
    buttons, seen = root.locator('[data-control="preset"]').all(), []
    for button in buttons:
        button.click()
        page.evaluate(TWO_FRAMES)
        assert [one.get_attribute("aria-pressed") for one in buttons].count("true") == 1
        assert button.get_attribute("aria-pressed") == "true"
        seen.append([propagation.GRIDS[trait][place] for trait, place in settings(root).items()])
    assert seen == [[16, 16, 10], [16, 256, 10], [64, 16, 10], [64, 256, 8]]
    first = root.locator('[data-control="rank1"]')
    for key, place, text in [
        ("ArrowLeft", 8, "rang\u00a048"),
        ("PageDown", 6, "rang\u00a024"),
        ("Home", 0, "rang\u00a01"),
        ("End", 9, "entière"),
        ("ArrowRight", 9, "entière"),
    ]:
        first.press(key)
        assert settings_after(root, {"rank1": place})["rank1"] == place
        page.evaluate(TWO_FRAMES)
        assert first.get_attribute("aria-valuetext") == text
    root.locator('[data-control="rank3"]').press("End")
    assert waits(root, "(root, start) => root.querySelector('.lrq-verdict').innerText.startsWith(start)", "Rien n’est")
    page.close()
    assert noise == []


def test_the_chain_and_python_measure_alike(mounted, rng):
    """À des rangs au hasard, la page montre les nombres de Python, et son code, exécuté, les retrouve."""
    explorer = PropagationExplorer()
    page, noise = mounted([explorer])
    root = page.locator(CHAINED)
    page.evaluate(UNFOLD)
    for turn in range(30):
        randomize(root, rng)
        if turn == 0:
            for slider in root.locator(RANGE).all():
                slider.evaluate(SET, slider.get_attribute("max"))
        page.evaluate(TWO_FRAMES)
        chained_state(root, explorer)
        said = [
            ", ".join(f"{100 * error:.2f} %" for error in explorer.errors),
            f"{100 * explorer.accuracy:.1f} %",
            ", ".join(f"{100 * bound:.1f} %" for bound in explorer.bounds),
            f"{100 * explorer.quadrature:.2f} %",
        ]
        snippet = root.locator(f"{CODE} pre code").text_content()
        promises = promised(snippet)
        assert len(promises) == len(said)
        assert all(map(agree, promises, said)), f"{explorer}\n{snippet}"
        if turn % 5 == 0:
            assert all(map(agree, promises, printed(snippet))), snippet
            assert len(promises) == len(printed(snippet))
    page.close()
    assert noise == []


def adapted_state(root, explorer):
    """Donne à l'objet Python ce que montrent les contrôles."""
    explorer.rank = explorer._allowed["rank"][settings(root)["listed-rank"]]
    for name, convert in (("scaling", str), ("lr", float), ("network", str)):
        setattr(explorer, name, convert(root.locator(f'[data-control="{name}"]').input_value()))


def test_lora_keeps_its_height_and_its_labels_apart(mounted, rng):
    page, noise = mounted([LoRAExplorer()])
    check_widths(
        page, page.locator(ADAPTED), rng, (760, 704, 676, 640, 576, 560, 420, 360, 344, 320), 25, never=NEVER + "|−"
    )
    page.close()
    assert noise == []


def test_lora_is_explored_by_hand(mounted):
    """Au clavier, et par les boutons « à essayer »."""
    explorer = LoRAExplorer()
    page, noise = mounted([explorer])
    root = page.locator(ADAPTED)
    buttons, seen = root.locator('[data-control="preset"]').all(), []
    for button in buttons:
        button.click()
        page.evaluate(TWO_FRAMES)
        assert [one.get_attribute("aria-pressed") for one in buttons].count("true") == 1
        assert button.get_attribute("aria-pressed") == "true"
        adapted_state(root, explorer)
        seen.append((explorer.rank, explorer.scaling, explorer.lr))
    assert seen == [(16, scaling, lr) for lr in (0.001, 0.01) for scaling in ("alpha/r", "alpha")]
    slider = root.locator('[data-control="listed-rank"]')
    for key, place, text in [
        ("ArrowLeft", 3, "8"),
        ("PageDown", 1, "2"),
        ("Home", 0, "1"),
        ("End", 5, "32"),
        ("ArrowRight", 5, "32"),
    ]:
        slider.press(key)
        assert settings_after(root, {"listed-rank": place})["listed-rank"] == place
        page.evaluate(TWO_FRAMES)
        assert slider.get_attribute("aria-valuetext") == text
    for name in ("scaling", "lr", "network"):
        control = root.locator(f'[data-control="{name}"]')
        assert any(
            changes(root, lambda key=key, control=control: control.press(key), patience)
            for key, patience in in_turn(["ArrowDown", "ArrowUp"])
        )
    page.close()
    assert noise == []


@pytest.mark.filterwarnings("ignore:rank")
def test_lora_and_python_measure_alike(mounted, rng):
    """À des réglages au hasard, la page dit les nombres de Python ; son code, exécuté, les retrouve."""
    explorer = LoRAExplorer()
    page, noise = mounted([explorer])
    root = page.locator(ADAPTED)
    page.evaluate(UNFOLD)
    for turn in range(30):
        if turn:
            randomize(root, rng)
        adapted_state(root, explorer)
        verdict = root.locator(".lrq-verdict").inner_text()
        shown = [float(word.replace(",", ".")) for word in re.findall(r"\d+(?:,\d+)?(?=\u00a0%)", verdict)]
        expected = [100 * explorer.accuracy, 100 * explorer.full_accuracy, 100 * explorer.share]
        assert shown == pytest.approx(expected, abs=0.051), f"{explorer} : {verdict}"
        snippet = root.locator(f"{CODE} pre code").text_content()
        accuracy, *said = promised(snippet)
        assert accuracy == "True" or agree(accuracy, f"{explorer.accuracy:.2f}")
        memory = [explorer.nbytes, explorer.full_nbytes]
        assert said == [f"{explorer.trained} {explorer.total}", *(" ".join(map(str, parts)) for parts in memory)]
        if turn % 12 == 0:
            got = printed(snippet)
            assert len(got) == len(said) + 1
            assert all(map(agree, promised(snippet), got)), f"{snippet}\nimprime {got}"
    page.close()
    assert noise == []


def train_state(root, explorer):
    """Donne à l'objet Python ce que montrent les contrôles."""
    explorer.matrix = root.locator('[data-control="matrix"]').input_value()
    explorer.n_cores = int(root.locator('[data-control="n_cores"]').input_value())
    place = settings(root)
    explorer.rank = explorer._train["rangs"][place["listed-rank"]]
    explorer.n_bits = tensor_train.BITS[place["n_bits"]]


def test_the_train_keeps_its_height_and_its_labels_apart(mounted, rng):
    page, noise = mounted([TensorTrainExplorer()])
    widest = [{"listed-rank": 99}] * 10  # au plus haut rang, les boîtes sont les plus grandes
    widths = (760, 704, 676, 640, 576, 560, 480, 420, 360, 344, 320)
    check_widths(page, page.locator(TRAIN), rng, widths, 40, widest, NEVER + "|−")
    page.close()
    assert noise == []


AREAS = "boxes => boxes.map(box => box.getAttribute('width') * box.getAttribute('height'))"


def test_the_chain_of_cores_is_drawn_to_scale(mounted, rng):
    """L'aire d'une boîte compte ses nombres, sa partie pleine ses octets ; un lien au plus haut est en tirets."""
    explorer = TensorTrainExplorer()
    page, noise = mounted([explorer])
    root = page.locator(TRAIN)
    for _ in range(20):
        randomize(root, rng)
        train_state(root, explorer)
        m, n = explorer.shape
        shapes = list(zip([1, *explorer.ranks], *explorer.dims, [*explorer.ranks, 1], strict=True))
        boxes, inks = (root.locator(kind).evaluate_all(AREAS) for kind in (".lrq-box", ".lrq-ink"))
        assert len(boxes) == len(inks) == 1 + explorer.n_cores
        for shape, nbytes, box, ink in zip(shapes, explorer.core_nbytes, boxes[1:], inks[1:], strict=True):
            numbers = math.prod(shape)
            if box > 100:  # plus petite, un dixième de pixel compte
                assert box / boxes[0] == pytest.approx(numbers / (m * n), rel=0.03), explorer
                assert abs(ink / box - nbytes / (4 * numbers)) < 0.02, explorer
        legs = root.locator(".lrq-leg").count()
        assert legs == 2 + sum(size > 1 for sizes in explorer.dims for size in sizes)
        links = root.locator(".lrq-link").all()
        highest = tensor_train.clamped_ranks(*explorer.dims, m * n)
        assert [link.get_attribute("stroke-dasharray") is not None for link in links] == [
            rank == most for rank, most in zip(explorer.ranks, highest, strict=True)
        ]
        spoken = root.locator('[data-readout="chain"]').get_attribute("aria-label")
        assert all(f"({', '.join(map(str, shape))})" in spoken for shape in shapes)
    page.close()
    assert noise == []


def test_the_train_is_explored_by_hand(mounted):
    """Au clavier, d'un clic, ou en tirant le point ; une autre matrice, un autre découpage : le rang le plus proche."""
    page, noise = mounted([TensorTrainExplorer()])
    root, point = page.locator(TRAIN), page.locator(TRAIN_POINT)
    for key, place, text in [
        ("ArrowRight", 10, "rang 48"),
        ("ArrowUp", 11, "rang 64"),
        ("ArrowRight", 11, "rang 64"),
        ("ArrowLeft", 10, "rang 48"),
        ("ArrowDown", 9, "rang 32"),
        ("PageDown", 7, "rang 16"),
        ("PageUp", 9, "rang 32"),
        ("Home", 0, "rang 1 "),
        ("ArrowLeft", 0, "rang 1 "),
        ("End", 11, "rang 64"),
    ]:
        point.press(key)
        assert settings_after(root, {"listed-rank": place})["listed-rank"] == place, key
        page.evaluate(TWO_FRAMES)
        assert point.get_attribute("aria-valuetext").startswith(text)
        assert point.get_attribute("aria-valuenow") == str(place + 1)
    point.scroll_into_view_if_needed()
    plot = root.locator(".lrq-plot").last.bounding_box()
    mouse, y = page.mouse, plot["y"] + 0.5 * plot["height"]
    mouse.click(plot["x"] + 0.2 * plot["width"], y)
    assert waits(root, "(root, most) => root.querySelector('[data-control=listed-rank]').value <= most", 3)
    box = point.bounding_box()
    mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    mouse.down()
    mouse.move(plot["x"] + 0.6 * plot["width"], y, steps=4)
    mouse.up()
    assert waits(root, "(root, least) => root.querySelector('[data-control=listed-rank]').value >= least", 7)
    point.press("End")
    root.locator('[data-control="n_cores"]').select_option("2")
    assert waits(
        root, "(root, text) => root.querySelector('.lrq-verdict').innerText.startsWith(text)", "2 cœurs, rang\u00a064"
    )
    point.press("End")
    root.locator('[data-control="matrix"]').select_option("noyau lisse")
    assert waits(
        root, "(root, text) => root.querySelector('.lrq-verdict').innerText.startsWith(text)", "2 cœurs, rang\u00a03"
    )
    root.locator('[data-control="n_cores"]').select_option("4")
    assert waits(
        root, "(root, text) => root.querySelector('.lrq-verdict').innerText.includes(text)", "Aucune SVD ne tient"
    )
    page.close()
    assert noise == []


def test_the_train_and_python_measure_alike(mounted, rng):
    """À des réglages au hasard, la page dit les nombres de Python ; son code, exécuté, les retrouve."""
    explorer = TensorTrainExplorer()
    page, noise = mounted([explorer])
    root = page.locator(TRAIN)
    page.evaluate(UNFOLD)
    for turn in range(40):
        if turn:
            randomize(root, rng)
        train_state(root, explorer)
        verdict = root.locator(".lrq-verdict").inner_text()
        shown = [float(word.replace(",", ".")) for word in re.findall(r"\d+(?:,\d+)?(?=\u00a0%)", verdict)]
        svd = TensorTrainExplorer(explorer.matrix, 2, 1, explorer.n_bits)
        lightest = svd._record["svd"]["erreurs"][0][tensor_train.BITS.index(explorer.n_bits)]
        errors = [explorer.error, lightest if explorer.svd_error is None else explorer.svd_error]
        assert shown[:2] == pytest.approx([max(100 * error, 0.01) for error in errors], abs=0.051), (
            f"{explorer} : {verdict}"
        )
        snippet = root.locator(f"{CODE} pre code").text_content()
        promises = promised(snippet)
        weighed = explorer.svd_nbytes or tensor_train.svd_nbytes(*explorer.shape, 1, explorer.n_bits)
        assert promises[0] == f"{explorer.ranks} {explorer.parameters}"
        lost, sizes = zip(*(line.split(" %, ") for line in promises[1:]), strict=True)
        assert [float(each) for each in lost] == pytest.approx([100 * error for error in errors], abs=0.51)
        assert list(sizes) == [f"{explorer.nbytes} octets", f"{weighed} octets"]
        if turn % 5 == 0:
            got = printed(snippet)
            assert len(got) == len(promises)
            assert all(map(agree, promises, got)), f"{snippet}\nimprime {got}"
    page.close()
    assert noise == []


BUDGETS = [line["budget"] for line in sharing.load_table()["budgets"]]
LISTED = '[data-control="listed-budget"]'


def test_the_budget_keeps_its_height_and_its_labels_apart(mounted, rng):
    page, noise = mounted([BudgetExplorer()])
    every = [{"listed-budget": place} for place in range(len(BUDGETS))]
    widths = (760, 704, 676, 640, 576, 560, 480, 420, 360, 344, 320)
    check_widths(page, page.locator(SHARED), rng, widths, len(every), every, NEVER + "|−")
    page.close()
    assert noise == []


def test_the_budget_is_explored_by_hand(mounted):
    """Au clavier, d'un clic sur la carte, ou en tirant le point."""
    page, noise = mounted([BudgetExplorer(BUDGETS[3])])
    root, point = page.locator(SHARED), page.locator(SHARED_POINT)
    last = len(BUDGETS) - 1
    for key, place in [
        ("ArrowRight", 4),
        ("ArrowUp", 5),
        ("ArrowLeft", 4),
        ("ArrowDown", 3),
        ("PageUp", 5),
        ("PageDown", 3),
        ("Home", 0),
        ("ArrowLeft", 0),
        ("End", last),
        ("ArrowRight", last),
    ]:
        point.press(key)
        assert settings_after(root, {"listed-budget": place})["listed-budget"] == place, key
        page.evaluate(TWO_FRAMES)
        assert point.get_attribute("aria-valuenow") == str(place + 1)
        assert "fidélité 0," in point.get_attribute("aria-valuetext")
    point.scroll_into_view_if_needed()
    plot = root.locator(".lrq-plot").bounding_box()
    mouse, y = page.mouse, plot["y"] + 0.5 * plot["height"]
    mouse.click(plot["x"] + 0.2 * plot["width"], y)
    assert waits(root, "(root, most) => root.querySelector('[data-control=listed-budget]').value <= most", 3)
    box = point.bounding_box()
    mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    mouse.down()
    mouse.move(plot["x"] + 0.6 * plot["width"], y, steps=4)
    mouse.up()
    assert waits(root, "(root, least) => root.querySelector('[data-control=listed-budget]').value >= least", last - 3)
    page.close()
    assert noise == []


def test_the_budget_and_python_say_alike(mounted):
    """À tous les budgets : la grille, la phrase et le code sont ceux de Python ; le code, exécuté, dit vrai."""
    explorer = BudgetExplorer()
    page, noise = mounted([explorer])
    root = page.locator(SHARED)
    page.evaluate(UNFOLD)
    for place, explorer.budget in enumerate(BUDGETS):
        root.locator(LISTED).evaluate(SET, place)
        page.evaluate(TWO_FRAMES)
        cells = root.locator('[data-readout="layers"] td').evaluate_all("cells => cells.map(cell => cell.textContent)")
        given = zip(explorer.bits.values(), explorer.ranks.values(), strict=True)
        assert cells == [f"{bits}+{rank}" if rank else str(bits) for bits, rank in given]
        verdict = root.locator(".lrq-verdict").inner_text()
        numbers = [float(word.replace(",", ".")) for word in re.findall(r"\d+(?:,\d+)?", verdict)]
        weight = explorer.bits_per_weight
        assert numbers[:3] == pytest.approx([explorer.nbytes / 1e6, weight, 32 / weight], abs=0.051)
        assert numbers[3] == pytest.approx(explorer.fidelity, abs=6e-4)
        beaten = "répartir ôte" in verdict
        assert beaten == (explorer.fidelity > explorer.uniform["cosine"])
        if beaten:
            gained = 1 - (1 - explorer.fidelity) / (1 - explorer.uniform["cosine"])
            assert numbers[-1] == pytest.approx(100 * gained, abs=0.51)
        snippet = root.locator(f"{CODE} pre code").text_content()
        said, got = promised(snippet), printed(snippet)
        assert len(said) == len(got) == 3
        assert all(map(agree, said, got)), f"{snippet}\nimprime {got}"
        assert said[0].startswith(f"{explorer.nbytes} octets")
    page.close()
    assert noise == []


def network_state(root, explorer):
    """Attend que la figure ait lu les 450 images aux réglages présents, et les donne à l'objet Python."""
    place = settings(root)
    rank, n_bits = place["rank"], NETWORK_BITS[place["n_bits"]]
    granularity = root.locator('[data-control="granularity"]').input_value()
    key = f"{rank} {n_bits} {granularity}"
    root.page.wait_for_function(f"document.querySelector('{NETWORK}').dataset.shown === '{key}'", timeout=20_000)
    root.page.evaluate(TWO_FRAMES)
    explorer.rank, explorer.n_bits, explorer.granularity = rank, n_bits, granularity


def readout(root, name):
    return root.locator(f'[data-readout="{name}"]').inner_text().replace("\u202f", "").replace("\u00a0", " ")


def set_network(root, rank, n_bits):
    root.locator(RANK).evaluate(SET, rank)
    root.locator(BITS).evaluate(SET, NETWORK_BITS.index(n_bits))


def test_the_network_and_python_read_alike(mounted, rng):
    """À des réglages au hasard : verdict, matrice, tailles et scores de Python ; le code affiché dit vrai."""
    explorer = NetworkExplorer()
    page, noise = mounted([explorer])
    root = page.locator(NETWORK)
    page.evaluate(UNFOLD)
    for turn in range(12):
        if turn:
            randomize(root, rng)
        network_state(root, explorer)
        verdict = readout(root, "verdict")
        assert f"{explorer.nbytes} octets" in verdict, explorer
        cells = root.locator('[data-readout="confusion"] td').evaluate_all("all => all.map(cell => cell.textContent)")
        confusion = torch.tensor([0 if cell == "·" else int(cell) for cell in cells]).view(10, 10)
        right = int(confusion.trace())
        assert f"{right} chiffres sur 450" in verdict, explorer
        assert agree(f"{right} / 450", f"{explorer.correct} / 450"), explorer
        assert (confusion - explorer.confusion).abs().sum() <= 2, explorer  # une image passe d'une case à une autre
        sizes = root.locator('[data-readout="layers"] td:last-child').evaluate_all("all => all.map(c => c.textContent)")
        assert sum(int(re.sub(r"\D", "", size)) for size in sizes) == explorer.nbytes
        scores = root.locator('[data-readout="scores"] td:last-child').evaluate_all(
            "all => all.map(c => c.textContent)"
        )
        shown = [float(score.replace(",", ".").replace("−", "-").replace("\u202f", "")) for score in scores]
        assert shown == pytest.approx(explorer.scores.tolist(), abs=0.07), explorer  # l'arrondi, et un code voisin
        snippet = root.locator(f"{CODE} pre code").text_content()
        said = promised(snippet)
        best = explorer.scores.max()
        assert said[:2] == [f"{right} / 450", f"{explorer.nbytes} / 85544 octets"]
        assert agree(said[2], f"{int(explorer.scores.argmax())} {best:.2f}"), explorer
        if turn % 2 == 0:
            got = printed(snippet)
            assert len(got) == len(said)
            assert all(map(agree, said, got)), f"{snippet}\nimprime {got}"
    page.close()
    assert noise == []


def test_the_network_says_what_the_last_gesture_changed(mounted):
    """Images perdues, retrouvées et octets : d'un réglage au suivant ; d'un curseur tiré, depuis le début du geste."""
    explorer = NetworkExplorer(20, 6)
    page, noise = mounted([explorer])
    root = page.locator(NETWORK)
    network_state(root, explorer)
    assert readout(root, "gesture").startswith("Bougez un curseur")

    def expected(before):
        was, now = (predictions == explorer._answers for predictions in (before[0], explorer.predictions))
        lost, found = int((was & ~now).sum()), int((now & ~was).sum())
        text = readout(root, "gesture")
        for count, word in ((lost, "perdue"), (found, "retrouvée")):
            plural = "s" if count > 1 else ""
            assert (f"{count} image{plural} {word}{plural}" in text) == (count > 0), text
        change = explorer.nbytes - before[1]
        assert f"{abs(change)} octets de {'moins' if change < 0 else 'plus'}" in text

    for rank, n_bits in ((20, 4), (20, 5), (53, 5)):
        before = explorer.predictions, explorer.nbytes
        set_network(root, rank, n_bits)
        network_state(root, explorer)
        expected(before)
    before = explorer.predictions, explorer.nbytes
    root.locator(RANK).scroll_into_view_if_needed()
    box = root.locator(RANK).bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] - 14, y)
    page.mouse.down()
    for share in (0.8, 0.5, 0.3):
        page.mouse.move(box["x"] + share * box["width"], y)
        network_state(root, explorer)
    page.mouse.up()
    expected(before)
    page.close()
    assert noise == []


DIGITS = {  # des chiffres tracés d'un geste ou deux, dans un carré de 100
    0: [[(50, 15), (33, 25), (28, 50), (33, 75), (50, 85), (67, 75), (72, 50), (67, 25), (50, 15)]],
    3: [[(32, 22), (48, 14), (64, 22), (64, 40), (48, 50), (66, 58), (68, 76), (50, 86), (32, 78)]],
    4: [[(35, 15), (32, 50), (70, 50)], [(65, 15), (65, 85)]],
    7: [[(28, 18), (72, 18), (42, 85)]],
}


def test_the_reader_draws_a_digit_with_the_mouse(mounted):
    explorer = NetworkExplorer(WHOLE, 32)
    page, noise = mounted([explorer])
    root = page.locator(NETWORK)
    page.evaluate(UNFOLD)
    pad = root.locator(PAD)
    for digit, strokes in DIGITS.items():
        root.locator('[data-control="clear"]').click()
        page.evaluate(TWO_FRAMES)
        assert readout(root, "reading").startswith("Dessinez un chiffre")
        pad.scroll_into_view_if_needed()
        box = pad.bounding_box()
        for stroke in strokes:
            at = [(box["x"] + x * box["width"] / 100, box["y"] + y * box["height"] / 100) for x, y in stroke]
            page.mouse.move(*at[0])
            page.mouse.down()
            for point in at[1:]:
                page.mouse.move(*point, steps=4)
            page.mouse.up()
        page.evaluate(TWO_FRAMES)
        assert f"y lit un {digit}," in readout(root, "reading"), digit
    network_state(root, explorer)
    snippet = root.locator(f"{CODE} pre code").text_content()
    assert "image = torch.tensor(" in snippet
    assert all(map(agree, promised(snippet), printed(snippet))), snippet
    root.locator('[data-control="next"]').click()
    page.evaluate(TWO_FRAMES)
    assert "du test" in readout(root, "reading")
    page.close()
    assert noise == []


def test_the_digit_is_drawn_with_the_keyboard(mounted):
    """Dans la grille 8×8, les flèches vont d'une case à l'autre, espace en noircit une ou l'efface."""
    page, noise = mounted([NetworkExplorer(WHOLE, 32)])
    root = page.locator(NETWORK)
    root.locator('[data-control="clear"]').click()
    grid = root.locator('[data-readout="seen"]')
    grid.locator("[tabindex='0']").focus()
    for key in ["ArrowRight", "ArrowRight", "ArrowRight", *["Space", "ArrowDown"] * 8]:  # une barre : un 1
        page.keyboard.press(key)
    page.keyboard.press("ArrowDown")  # déjà en bas
    page.evaluate(TWO_FRAMES)
    labels = grid.locator('[role="gridcell"]').evaluate_all("all => all.map(cell => cell.getAttribute('aria-label'))")
    assert [label.endswith(": 16 sur 16") for label in labels] == [i % 8 == 3 for i in range(64)]
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("ligne 8, colonne 4")
    page.keyboard.press("Space")
    page.evaluate(TWO_FRAMES)
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").endswith(": 0 sur 16")
    page.close()
    assert noise == []


def test_confused_images_are_shown_and_read_again(mounted):
    """Une case cliquée, ou atteinte aux flèches, montre ses images ; l'une d'elles, choisie, se fait relire."""
    explorer = NetworkExplorer()
    page, noise = mounted([explorer])
    root = page.locator(NETWORK)
    network_state(root, explorer)
    confusion = explorer.confusion.clone().fill_diagonal_(0)
    worst = divmod(int(confusion.flatten().argmax()), 10)
    table, strip = root.locator(".lrq-confusion"), root.locator(".lrq-strip")
    chosen = table.locator('[aria-selected="true"]')
    assert chosen.get_attribute("aria-label").startswith(f"{worst[0]} lu {worst[1]} :")

    def images(row, column):
        return [
            i
            for i, (y, p) in enumerate(zip(explorer._answers, explorer.predictions, strict=True))
            if (y, p) == (row, column)
        ]

    for row, column in [(5, 3), (1, 8), (0, 0), (0, 9)]:
        table.locator("td").nth(10 * row + column).click()
        page.evaluate(TWO_FRAMES)
        assert chosen.get_attribute("aria-label") == (f"{row} lu {column} : {fr_count(len(images(row, column)))}")
        shown = strip.locator('[role="option"]:not([hidden])')
        assert shown.evaluate_all("all => all.map(option => option.getAttribute('aria-label').split(',')[0])") == [
            f"image {i}" for i in images(row, column)[:12]
        ]
    assert (readout(root, "cell") == "Aucun 0 lu 9.") == (not images(0, 9))
    table.locator("td").nth(13).click()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.evaluate(TWO_FRAMES)
    assert chosen.get_attribute("aria-label").startswith("2 lu 4 :")
    table.locator("td").nth(18).click()
    page.evaluate(TWO_FRAMES)
    strip.locator("[tabindex='0']").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.evaluate(TWO_FRAMES)
    assert readout(root, "reading").startswith("Un 1 du test : ce réseau y lit un 8")
    assert strip.locator('[aria-selected="true"]').get_attribute("aria-label").startswith(f"image {images(1, 8)[1]},")
    page.close()
    assert noise == []


def fr_count(count):
    return f"{count}\u00a0image{'s' if count > 1 else ''}"


def test_the_network_never_holds_the_page(mounted):
    """450 images se lisent par tranches : entre le geste et le verdict, la page dessine plusieurs fois."""
    page, noise = mounted([NetworkExplorer()])
    root = page.locator(NETWORK)
    network_state(root, NetworkExplorer())
    frames = root.evaluate(
        """async root => {
          const input = root.querySelector('[data-control="rank"]');
          input.value = 52;
          input.dispatchEvent(new Event('input', { bubbles: true }));
          let frames = 0;
          const key = '52 4 row';
          while (root.dataset.shown !== key && frames < 2000) {
            await new Promise(requestAnimationFrame);
            frames += 1;
            if (frames === 2 && root.dataset.rank !== '52') return -1; // le curseur n'a pas attendu
          }
          return frames;
        }"""
    )
    assert 4 < frames < 2000
    page.close()
    assert noise == []


def test_the_ink_follows_the_theme_even_if_the_figure_had_no_colour_yet(mounted):
    """Dessinée avant d'être dans la page (JupyterLab), une figure n'a pas de couleur : elle ne doit pas le retenir."""
    page, _ = mounted([NetworkExplorer()])
    root = page.locator(NETWORK)
    before = root.locator("canvas").first.evaluate(INK)
    page.evaluate(
        """() => {
          window.lrqReal = window.getComputedStyle;
          window.getComputedStyle = (node, part) => node.localName === 'canvas' ? {color: ''} : lrqReal(node, part);
          document.documentElement.dataset.theme = 'dark';
        }"""
    )
    page.evaluate(TWO_FRAMES)
    page.evaluate("() => { window.getComputedStyle = window.lrqReal; }")
    root.locator(RANGE).first.evaluate(SET, 7)
    page.evaluate(TWO_FRAMES)
    after = root.locator("canvas").first.evaluate(INK)
    page.close()
    assert max(before) < 100 < 200 < min(after)


def test_the_network_keeps_its_height(mounted, rng):
    page, noise = mounted([NetworkExplorer()])
    root = page.locator(NETWORK)
    network_state(root, NetworkExplorer())
    states = [(53, 32), (53, 1), (1, 1), (1, 32), (20, 4), (9, 2), (52, 8), (40, 6)]
    for width in (760, 704, 640, 576, 560, 480, 420, 360, 344, 320):
        page.set_viewport_size({"width": width, "height": 900})
        page.evaluate(TWO_FRAMES)
        heights = set()
        for rank, n_bits in states:
            set_network(root, rank, n_bits)
            network_state(root, NetworkExplorer())
            if rank == 40:
                root.locator('[data-control="clear"]').click()
            elif rank == 9:
                root.locator('[data-control="next"]').click()
                root.locator(".lrq-confusion td").nth(int(rng.integers(100))).click()
            page.evaluate(TWO_FRAMES)
            heights.add(round(root.bounding_box()["height"]))
            assert not re.search(r"NaN|Infinity|undefined|∞", root.inner_text())
            assert page.evaluate(SIDEWAYS) is None, f"{width} px"
        assert len(heights) == 1, f"{width} px : {heights}"
    page.close()
    assert noise == []


def test_drawing_with_a_finger_does_not_scroll(contexts, mounted):
    """Sur le dessin, un doigt trace ; à côté, sur la matrice comme sur le texte, il fait défiler la page."""
    page, noise = mounted([NetworkExplorer(WHOLE, 32)], kind="phone")
    root, wire = page.locator(NETWORK), page.context.new_cdp_session(page)

    def swipe(target, dy):
        target.evaluate("part => part.scrollIntoView({block: 'center', behavior: 'instant'})")
        page.evaluate(AT_REST)
        box, start = target.bounding_box(), page.evaluate("scrollY")
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2 - dy / 2
        wire.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
        for part in (0.1, 0.4, 0.7, 1):
            wire.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [{"x": x, "y": y + dy * part}]})
        wire.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        page.evaluate(AT_REST)
        return page.evaluate("scrollY") - start

    root.locator('[data-control="clear"]').click()
    page.evaluate(TWO_FRAMES)
    before = readout(root, "scores")
    assert swipe(root.locator(PAD), -120) == 0
    assert readout(root, "scores") != before
    assert readout(root, "reading").startswith("Ce dessin")
    for place in (".lrq-confusion", '[data-readout="scores"]'):
        assert swipe(root.locator(place), -120) > 60, place
    page.close()
    assert noise == []


def test_a_quantizer_without_groups_goes_back_to_rows(mounted, randn):
    """Choisir une matrice dont les lignes ne font pas de groupes entiers : le menu les refuse, la figure le suit."""
    page, noise = mounted(
        [QuantizerExplorer({"avec": randn(4, 64), "sans": randn(4, 20)}, granularity="group", block=8)]
    )
    root = page.locator(".lrq-explorer")
    root.locator('[data-control="matrix"]').select_option("sans")
    page.evaluate(TWO_FRAMES)
    assert root.locator('[data-control="granularity"]').input_value() == "row"
    assert root.locator('[data-control="granularity"] option[value="group"]').is_disabled()
    assert root.locator('[data-control="block"]').get_attribute("max") == "4"
    page.close()
    assert noise == []


def test_a_quantizer_keeps_its_height(mounted, rng):
    """Rien ne saute : quels que soient les réglages, ce qui suit la figure reste à sa place."""
    page, noise = mounted([QuantizerExplorer.of_minilm()])
    check_widths(page, page.locator(".lrq-explorer"), rng, (760, 360, 320), 40)
    page.close()
    assert noise == []


def test_a_damaged_figure_leaves_the_others(mounted, randn):
    """Des données écourtées ne dessinent pas un spectre faux : la phrase, et les autres figures vivent."""

    def cut(model):
        for buffer in model["buffers"]:
            buffer["data"] = buffer["data"][: len(buffer["data"]) // 8 * 4]  # la moitié, et encore du base64

    def spoil(model):
        model["buffers"][0]["data"] = "!"

    for alter in (cut, spoil):
        page, _ = mounted([SpectrumExplorer(randn(8, 8)), SpectrumExplorer(randn(8, 8))], alter)
        assert page.locator(".lrq-absent").count() == 1
        assert page.locator(".lrq-explorer[data-ready]").count() == 1
        page.close()


def test_linked_figures_share_the_smaller_limit(mounted, randn):
    small, large = SpectrumExplorer(randn(6, 6), rank=2), SpectrumExplorer(randn(20, 20), rank=2)
    _link = ipywidgets.jslink((small, "rank"), (large, "rank"))
    page, noise = mounted([small, large])
    roots = page.locator(".lrq-explorer").all()
    roots[1].locator(RANK).evaluate(SET, 4)
    assert [rank_after(root, 4) for root in roots] == [4, 4]
    roots[1].locator(RANK).evaluate(SET, 15)
    assert [rank_after(root, 6) for root in roots] == [6, 6]
    page.close()
    assert noise == []


def test_a_linked_figure_takes_the_closest_measured_rank(mounted, randn):
    spectrum, measured = SpectrumExplorer(randn(40, 40), rank=8), RandomizedExplorer(rank=8)
    _link = ipywidgets.jslink((spectrum, "rank"), (measured, "rank"))
    page, noise = mounted([spectrum, measured])
    roots = page.locator(".lrq-explorer").all()
    roots[0].locator(RANK).evaluate(SET, 20)
    assert [rank_after(root, 16) for root in roots] == [16, 16]
    page.close()
    assert noise == []


@explored
def test_scrolling_with_a_thumb_changes_nothing(opened, page_name):
    """Un doigt posé sur une figure pour faire défiler la page ne déplace pas la coupe ; glissé de côté, il la tire."""
    page = opened(page_name, "phone")
    wire = page.context.new_cdp_session(page)

    def swipe(x, y, dx, dy):
        wire.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
        for part in (0.1, 0.4, 0.7, 1):
            point = {"x": x + dx * part, "y": y + dy * part}
            wire.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [point]})
        wire.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        page.evaluate(AT_REST)

    def middle(target):
        target.evaluate("part => part.scrollIntoView({block: 'center', behavior: 'instant'})")
        page.evaluate(AT_REST)
        box = target.bounding_box()
        return box["x"], box["width"], box["y"] + box["height"] / 2

    for root in explorers(page, RANK):
        low, high = bounds(root)
        start = (low + high) // 4

        def reset(root=root, start=start):
            root.locator(RANK).evaluate(SET, start)
            assert rank_after(root, start) == start

        for place in [".lrq-plot", RANK]:
            for target in root.locator(place).all():
                reset()
                x, width, y = middle(target)
                swipe(x + 0.8 * width, y, 3, -150)
                assert rank(root) == start, f"{label(root)}, {place}"
        for target in root.locator(".lrq-plot").all():
            reset()
            x, width, y = middle(target)
            swipe(x + 0.4 * width, y, 60, 0)
            assert waits(root, "(root, start) => Number(root.dataset.rank) > start", start), label(root)
    for root in explorers(page, POINT):
        before = {"oversample": 2, "n_iter": 2}
        for name, place in before.items():
            root.locator(f'[data-control="{name}"]').evaluate(SET, place)
        before = settings_after(root, before)
        for target in [root.locator(".lrq-plot"), *root.locator(RANGE).all()]:
            x, width, y = middle(target)
            swipe(x + 0.8 * width, y, 3, -150)
            assert settings(root) == before, label(root, target)
        x, width, y = middle(root.locator(".lrq-plot"))
        swipe(x + 0.3 * width, y, 60, 0)
        page.evaluate(TWO_FRAMES)
        assert settings(root) != before, label(root)
    for root in explorers(page, BITS_POINT):
        root.locator(BITS).evaluate(SET, 3)
        before = settings_after(root, {"n_bits": 3})
        for target in [*root.locator(".lrq-plot").all(), root.locator(BITS)]:
            x, width, y = middle(target)
            swipe(x + 0.8 * width, y, 3, -150)
            assert settings(root) == before, label(root, target)
        x, width, y = middle(root.locator(".lrq-map"))
        swipe(x + 0.5 * width, y, 60, 0)
        assert settings_after(root, {"n_bits": 6})["n_bits"] > 4, label(root)
    for root in explorers(page, RATE_POINT):
        root.locator(BUDGET).evaluate(SET, 30)
        before = settings_after(root, {"budget": 30})
        for target in [root.locator(".lrq-plot"), root.locator(BUDGET)]:
            x, width, y = middle(target)
            swipe(x + 0.8 * width, y, 3, -150)
            assert settings(root) == before, label(root, target)
        x, width, y = middle(root.locator(".lrq-plot"))
        swipe(x + 0.5 * width, y, 60, 0)
        page.evaluate(TWO_FRAMES)
        assert settings(root)["budget"] > 40, label(root)
    for root in explorers(page, TRAIN_POINT):
        root.locator('[data-control="listed-rank"]').evaluate(SET, 2)
        before = settings_after(root, {"listed-rank": 2})
        for target in [*root.locator(".lrq-plot").all(), *root.locator(RANGE).all()]:
            x, width, y = middle(target)
            swipe(x + 0.8 * width, y, 3, -150)
            assert settings(root) == before, label(root, target)
        x, width, y = middle(root.locator(".lrq-plot").last)
        swipe(x + 0.5 * width, y, 60, 0)
        page.evaluate(TWO_FRAMES)
        assert settings(root)["listed-rank"] > 3, label(root)
    for root in explorers(page, MAP_POINT):
        root.locator(BUDGET).evaluate(SET, 10)
        put_on_map(root, 1, 1)
        before = settings_after(root, {"budget": 10})
        for target in [*root.locator(".lrq-plot").all(), *root.locator(RANGE).all()]:
            x, width, y = middle(target)
            swipe(x + 0.8 * width, y, 3, -150)
            assert settings(root) == before, label(root, target)
        x, width, y = middle(root.locator(".lrq-map"))
        swipe(x + 0.5 * width, y, 60, 0)
        page.evaluate(TWO_FRAMES)
        assert settings(root)["listed-rank"] > 3, label(root)


def test_states_are_light(book):
    for name in EXPLORED:
        soup = BeautifulSoup((book / f"{name}.html").read_text(encoding="utf-8"), "html.parser")
        models = json.loads(soup.find("script", type=STATE).string)["state"].values()
        for model in models:
            assert len(json.dumps(model)) <= state_target(model["state"]), name


# --- le certificat ----------------------------------------------------------------------------------------------------


def test_browser_computes_what_pytorch_computes(opened):
    page = opened("notebooks/figures")
    gaps = [float(root.get_attribute("data-gap")) for root in page.locator('[data-explorer="certificate"]').all()]
    assert gaps
    assert 0 <= max(gaps) <= 1e-5


@pytest.fixture(
    params=["rate_distortion", NetworkExplorer, PropagationExplorer, LoRAExplorer, TensorTrainExplorer, BudgetExplorer],
    ids=str,
)
def explorer(request):
    return request.getfixturevalue(request.param) if isinstance(request.param, str) else request.param()


def test_an_explorer_is_accessible(mounted, explorer):
    page, _ = mounted([explorer])
    page.evaluate(UNFOLD)
    assert axe(page, WCAG) == []
    wear(page, "dark")
    assert axe(page, {"type": "rule", "values": CONTRAST}) == []
    for control in controls(page.locator(".lrq-explorer")):
        assert kind(control) == "summary" or re.match(r'- \w+ "\s*\w.*"', control.aria_snapshot()), label(page, control)
    page.close()


def test_an_explorer_fits_a_finger(contexts, mounted, explorer):
    page, _ = mounted([explorer])
    page.set_viewport_size(PHONE)
    page.evaluate(TWO_FRAMES)
    small = [
        control for control in controls(page.locator(".lrq-explorer")) if control.bounding_box()["height"] < TOUCH - 0.5
    ]
    page.close()
    assert small == []


# --- les autotests ----------------------------------------------------------------------------------------------------


def answer(form, place=0, text="2,5"):
    """Répond à une question : un choix, ou un nombre."""
    choices = form.locator("input[type=radio]")
    if choices.count():
        choices.nth(place).check()
    else:
        form.locator("input").fill(text)
    form.locator(ANSWER).click()


def self_test_readout(form, name):
    return form.locator(f'[data-readout="{name}"]').text_content()


def test_self_tests_are_accessible_and_fit_a_phone(mounted):
    """Les quarante questions, posées puis répondues."""
    page, noise = mounted([SelfTest(section) for section in SECTIONS])
    forms = page.locator("form").all()
    assert len(forms) == 5 * len(SECTIONS)
    for answered in (False, True):
        if answered:
            for form in forms:
                answer(form)
        page.set_viewport_size({"width": 1000, "height": 900})
        wear(page, "light")
        assert axe(page, WCAG) == []
        wear(page, "dark")
        assert axe(page, {"type": "rule", "values": CONTRAST}) == []
        for width in (PHONE["width"], 320):
            page.set_viewport_size({"width": width, "height": 740})
            page.evaluate(TWO_FRAMES)
            assert page.evaluate(SIDEWAYS) is None
        for form in forms:
            for control in form.locator("label.lrq-choice, input[type=text], button:visible").all():
                assert control.bounding_box()["height"] >= TOUCH - 0.5, control.inner_text()
    for form in forms:
        assert re.match(r"(Juste|Faux)\.", self_test_readout(form, "verdict")), self_test_readout(form, "verdict")
        assert len(self_test_readout(form, "work")) > 40
        assert form.locator("fieldset").aria_snapshot().startswith('- group "'), "la question n'a pas de nom"
    page.close()
    assert noise == []


@pytest.mark.parametrize("section", SECTIONS)
def test_nothing_tells_the_right_choice(mounted, section):
    """Avant la réponse, deux choix ne diffèrent que par ce qu'ils écrivent ; après, un seul est juste."""
    page, noise = mounted([SelfTest(section)])
    for form in page.locator("form").all():
        choices = form.locator(".lrq-choice")
        if not choices.count():
            continue
        markup = [choice.evaluate("c => c.outerHTML") for choice in choices.all()]
        texts = [choice.evaluate("c => c.lastChild.innerHTML") for choice in choices.all()]
        bare = [html.replace(f"<span>{text}</span>", "") for html, text in zip(markup, texts, strict=True)]
        assert len(set(texts)) == len(texts)
        assert {html.replace(f'value="{place}"', "") for place, html in enumerate(bare)} == {
            bare[0].replace('value="0"', "")
        }
        answers = []
        for place in range(choices.count()):
            answer(form, place)
            answers.append(self_test_readout(form, "verdict"))
        assert sum(text.startswith("Juste.") for text in answers) == 1, answers
        wrong = [text for text in answers if not text.startswith("Juste.")]
        assert len(set(wrong)) == len(wrong), "chaque faute a sa propre explication"
    page.close()
    assert noise == []


def test_a_self_test_is_answered_by_keyboard(mounted):
    page, noise = mounted([SelfTest("11.0")])
    form, score = page.locator("form").first, page.locator('[data-readout="score"]')
    focused = "() => document.activeElement.dataset.control ?? document.activeElement.className"
    assert "Rien de ce que vous répondez" in score.text_content()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")  # « Répondre », sans choix
    page.keyboard.press("Enter")
    assert self_test_readout(form, "verdict") == "Choisissez d’abord une réponse."
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Space")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert re.match(r"(Juste|Faux)\.", self_test_readout(form, "verdict"))
    assert form.locator('[aria-live="polite"]').text_content() == self_test_readout(form, "verdict")
    assert page.evaluate(focused) == "answer", "le bouton garde le focus : la suite s'atteint d'une tabulation"
    first = score.text_content()
    assert re.search(r"[01] sur 1\.", first)
    for choice in form.locator("input").all():  # se raviser ne change pas le premier coup
        choice.check()
        form.locator(ANSWER).click()
        assert score.text_content() == first
    before = form.locator(".lrq-statement").text_content()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate(focused) == "lrq-statement", "on reprend à l'énoncé"
    assert form.locator(".lrq-statement").text_content() != before
    assert self_test_readout(form, "verdict") == self_test_readout(form, "work") == ""
    assert not form.locator("input:checked").count()
    assert not form.locator(AGAIN).is_visible()
    assert "sur" not in score.text_content()
    page.close()
    assert noise == []


def test_a_number_is_written_with_a_comma_or_a_point(mounted):
    """Le rang stable, à 1 % près : la bonne valeur, lue dans le calcul, puis d'autres écritures."""
    page, noise = mounted([SelfTest("11.0")])
    form = page.locator("form").nth(4)
    for text in ("", "deux", "1,2,3", "1e3"):
        answer(form, text=text)
        assert self_test_readout(form, "verdict").startswith("Écrivez un nombre"), text
    answer(form, text="1000")
    assert self_test_readout(form, "verdict").startswith("Faux. Cette valeur"), self_test_readout(form, "verdict")
    right = form.locator("[data-readout=verdict] strong").last.text_content()
    value = float(right.replace(",", "."))
    for text in (right, right.replace(",", "."), f" {right} ", f"{1.004 * value:.4f}", f"{0.996 * value:.4f}"):
        answer(form, text=text)
        assert self_test_readout(form, "verdict") == "Juste. ", text
    for text in (f"{1.02 * value:.4f}", f"{0.98 * value:.4f}", f"-{right}"):
        answer(form, text=text)
        assert self_test_readout(form, "verdict").startswith("Faux."), text
    form.locator("input").fill(right)
    form.locator("input").press("Enter")
    assert self_test_readout(form, "verdict") == "Juste. "
    page.close()
    assert noise == []


def test_two_visits_differ_unless_they_share_a_seed(mounted):
    page, noise = mounted([SelfTest("11.4", seed) for seed in (None, None, 3, 3, 4)])
    texts = [root.inner_text() for root in explorers(page)]
    assert len(set(texts)) == 4
    assert texts[2] == texts[3]
    page.close()
    assert noise == []
