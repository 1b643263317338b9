"""Les pages du livre construit, dans un navigateur : leur poids, leur attente, la réponse de leurs curseurs."""

import gzip
import json
import random
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from . import browser
from .table import Row, duration, number

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "_build" / "html"
SOURCES = ("notebooks/*.ipynb", "lrq/widgets/**/*", "book/_static/**/*", "book/_ext/*.py", "_config.yml")
PAGE, CERTIFICATE = "notebooks/11_00_introduction", "notebooks/figures"

WEIGHT_TARGET, STATE_TARGET = 700_000, 150_000  # octets
HEAVIER = {"lrq.widgets.network.NetworkExplorer": 240_000}  # elle emporte un réseau entier et 450 images
TOGETHER = 4  # pages qu'on pèse ensemble : le silence qu'on attend de l'une passe pendant qu'une autre s'ouvre
READY_TARGET = 1.5  # secondes après `load`
FRAME = 1 / 60
PAINT_TARGET, SLOW_TARGET = 0.034, 0.067  # deux images ; quatre, sur un processeur quatre fois plus lent
GAP_TARGET = 1e-5

COMPRESSED = ("image/png", "image/jpeg", "image/webp", "image/gif", "font/woff", "application/font-woff")
STATE = '<script type="application/vnd.jupyter.widget-state+json">'
VIEW = '<script type="application/vnd.jupyter.widget-view+json">'
WATCH = """new MutationObserver(() => {
  const ready = document.querySelectorAll('.lrq-explorer[data-ready]').length;
  if (ready > (window.lrqCount ?? 0)) { window.lrqCount = ready; window.lrqReady = performance.now(); }
}).observe(document, {subtree: true, childList: true, attributes: true, attributeFilter: ['data-ready']})"""
TIMES = """() => [window.lrqReady / 1000, performance.getEntriesByType('navigation')[0].loadEventStart / 1000]"""
# Du geste à la fin du dessin : la première tâche qui suit le dessin de l'image où le geste est pris en compte.
MOVE = """async (root, moves) => {
  const input = root.querySelector('[data-control="rank"]');
  const painted = () => new Promise(done => requestAnimationFrame(() => {
    const {port1, port2} = new MessageChannel();
    port1.onmessage = done;
    port2.postMessage(null);
  }));
  const durations = [];
  for (const [share, pause] of moves) {
    await new Promise(done => setTimeout(done, pause));
    const rank = 1 + Math.round(share * (input.max - 1));
    const start = performance.now();
    input.value = rank;
    input.dispatchEvent(new Event('input', {bubbles: true}));
    await painted();
    durations.push((performance.now() - start) / 1000);
    if (root.dataset.rank !== String(rank)) throw new Error(`rang ${root.dataset.rank} dessiné au lieu de ${rank}`);
  }
  return durations;
}"""


def measure(quick: bool) -> Iterator[Row]:
    """Toutes les mesures d'un livre déjà construit ; sans livre ou sans navigateur, un message et rien."""
    executable = browser.find()
    if executable is None:
        print(f"Pages : pas de mesure, {browser.ABSENT}. {browser.ADVICE}", file=sys.stderr)
        return
    if not {PAGE, CERTIFICATE} <= {*explored()}:
        print("Pages : pas de mesure, le livre n'est pas construit, ou sans ses figures : make livre", file=sys.stderr)
        return
    if (BOOK / f"{PAGE}.html").stat().st_mtime < newest_source():
        print(
            "Pages : le livre construit est plus ancien que ses sources : make livre, puis recommencez", file=sys.stderr
        )
    with browser.launched(executable) as opened, browser.served(BOOK) as site:
        yield weight(opened, site, [PAGE, CERTIFICATE] if quick else pages())
        yield ready(opened, site, 3 if quick else 5)
        yield from paint(opened, site, 40 if quick else 100)
        yield states()
        yield gap(opened, site)


def newest_source() -> float:
    return max(path.stat().st_mtime for pattern in SOURCES for path in ROOT.glob(pattern) if path.is_file())


def explored() -> list[str]:
    """Les pages qui montrent un explorateur."""
    pages = sorted(BOOK.glob("notebooks/*.html"))
    return [path.relative_to(BOOK).with_suffix("").as_posix() for path in pages if count(path)]


def count(path: Path) -> int:
    """Combien d'explorateurs une page annonce."""
    return path.read_text(encoding="utf-8").count(VIEW)


def pages(book: Path = BOOK) -> list[str]:
    """Les pages du livre. De celles du code source, qui ne diffèrent que par leur texte, la plus longue seulement."""
    found = [path for path in sorted(book.rglob("*.html")) if path.relative_to(book).parts[0] != "_static"]
    source = [path for path in found if path.is_relative_to(book / "_modules")]
    left_out = {book / "index.html", *source} - {max(source, key=lambda path: path.stat().st_size, default=None)}
    return [path.relative_to(book).with_suffix("").as_posix() for path in found if path not in left_out]


def visit(page: Any, site: str, name: str, book: Path = BOOK) -> None:
    """Ouvre une page et attend son dernier explorateur."""
    page.goto(f"{site}/{name}.html")
    expected = count(book / f"{name}.html")
    page.wait_for_function("n => document.querySelectorAll('.lrq-explorer[data-ready]').length === n", arg=expected)


def first_loads(opened: Any, site: str, names: list[str], book: Path = BOOK) -> dict[str, dict[str, tuple[int, bool]]]:
    """Ce que la première visite de chaque page télécharge : page → adresse → (octets, est-ce une image).

    Chaque fichier est compressé comme le ferait un serveur, par gzip, s'il ne l'est déjà.
    """
    loads, sizes = {}, {}  # presque toutes les pages demandent les mêmes fichiers : chacun n'est pesé qu'une fois
    for start in range(0, len(names), TOGETHER):
        visits: list[tuple[str, Any, dict[str, Any]]] = []
        for name in names[start : start + TOGETHER]:
            page, answers = opened.new_context().new_page(), {}
            page.on("response", lambda answer, answers=answers: answers.setdefault(answer.url, answer))
            visit(page, site, name, book)
            visits.append((name, page, answers))
        for name, page, answers in visits:
            page.evaluate("async () => { await window.MathJax?.startup?.promise; await document.fonts.ready; }")
            page.wait_for_load_state("networkidle")
            found = {url: answer for url, answer in answers.items() if urlsplit(url).scheme.startswith("http")}
            sizes |= {url: weighed(answer) for url, answer in found.items() if url not in sizes}
            loads[name] = {
                url.removeprefix(site): (sizes[url], answer.request.resource_type == "image")
                for url, answer in found.items()
            }
            page.context.close()
    return loads


def weighed(answer: Any) -> int:
    """Les octets d'un fichier, compressé."""
    body = answer.body()
    kind = answer.headers.get("content-type", "").partition(";")[0]
    packed = kind.startswith(COMPRESSED) or answer.url.endswith((".woff", ".woff2"))
    return len(body) if packed else len(gzip.compress(body, 6))


def total(files: dict[str, tuple[int, bool]]) -> int:
    """Les octets d'une première visite."""
    return sum(size for size, _ in files.values())


def weight(opened: Any, site: str, names: list[str]) -> Row:
    """La plus lourde première visite."""
    loads = first_loads(opened, site, names)
    worst = max(loads, key=lambda name: total(loads[name]))
    heaviest = sorted(loads[worst].items(), key=lambda item: item[1], reverse=True)[:6]
    print("  le plus lourd : " + ", ".join(f"{url} {kilobytes(size)}" for url, (size, _) in heaviest), file=sys.stderr)
    text = sum(size for size, is_image in loads[worst].values() if not is_image)
    return Row(
        f"première visite, gzip, la pire de {len(names)} pages ({worst})",
        kilobytes(total(loads[worst])),
        f"{kilobytes(text)} sans images",
        "—",
        f"≤ {kilobytes(WEIGHT_TARGET)}",
        total(loads[worst]) <= WEIGHT_TARGET,
    )


def kilobytes(size: float) -> str:
    return f"{number(size / 1000)} ko"


def ready(opened: Any, site: str, repeats: int) -> Row:
    """Du début de la navigation au dernier explorateur dessiné, sans cache ; et ce qu'il en reste après `load`."""
    times = []
    for _ in range(repeats):
        context = opened.new_context()
        page = context.new_page()
        page.add_init_script(WATCH)
        visit(page, site, PAGE)
        page.wait_for_function("performance.getEntriesByType('navigation')[0].loadEventStart > 0")
        times.append(page.evaluate(TIMES))
        context.close()
    last = statistics.median(explorer for explorer, _ in times)
    wait = statistics.median(max(0.0, explorer - load) for explorer, load in times)
    return Row(
        f"explorateurs de {PAGE}, prêts après load",
        duration(wait) if wait else "avant load",
        f"{duration(last)} en tout",
        "—",
        f"≤ {number(READY_TARGET, 2)} s",
        wait <= READY_TARGET,
    )


def paint(opened: Any, site: str, moves: int) -> Iterator[Row]:
    """Du curseur au dessin : le 95e centile, pour chaque explorateur, puis sur un processeur quatre fois plus lent."""
    draw = random.Random(0)
    context = opened.new_context()
    page = context.new_page()
    session = context.new_cdp_session(page)
    for name in explored():
        visit(page, site, name)
        for place, root in enumerate(page.locator(".lrq-explorer:has([data-control='rank'])").all(), 1):
            title = f"{name.rpartition('/')[2]}, figure {place} ({root.get_attribute('data-explorer')})"
            for slowdown, target in ((1, PAINT_TARGET), (4, SLOW_TARGET)):
                session.send("Emulation.setCPUThrottlingRate", {"rate": slowdown})
                # Des gestes à n'importe quel moment d'une image : sinon chacun attendrait une image entière.
                gestures = [(draw.random(), draw.uniform(0, 1000 * FRAME)) for _ in range(moves)]
                found = sorted(root.evaluate(MOVE, gestures))
                slow = found[int(0.95 * len(found))]
                yield Row(
                    f"curseur → dessin, {title}" + (f", processeur ×1/{slowdown}" if slowdown > 1 else ""),
                    duration(slow),
                    f"{duration(statistics.median(found))} (médiane)",
                    f"{number(slow / FRAME, 2)} images",
                    f"≤ {duration(target)}",
                    slow <= target,
                )
            session.send("Emulation.setCPUThrottlingRate", {"rate": 1})
    context.close()


def states() -> Row:
    """Le plus gros état d'un explorateur au regard de sa limite, tel que la page l'écrit, code et tableaux compris."""
    sizes = []
    for name in explored():
        text = (BOOK / f"{name}.html").read_text(encoding="utf-8").split(STATE)[1].split("</script>")[0]
        for model in json.loads(text)["state"].values():
            if model["model_module"] == "anywidget":
                size, target = len(json.dumps(model).encode()), state_target(model["state"])
                sizes.append((size / target, size, target, name))
    _, size, target, name = max(sizes)
    return Row(
        f"état du plus gros explorateur ({name})",
        kilobytes(size),
        f"{len(sizes)} explorateurs",
        "—",
        f"≤ {kilobytes(target)}",
        size <= target,
    )


def state_target(state: dict[str, Any]) -> int:
    """Ce que peut peser l'état d'une figure, en octets."""
    return HEAVIER.get(state.get("_anywidget_id", ""), STATE_TARGET)


def gap(opened: Any, site: str) -> Row:
    """L'écart que le certificat trouve dans ce navigateur."""
    page = opened.new_page()
    visit(page, site, CERTIFICATE)
    certificates = page.locator("[data-explorer='certificate']").all()
    largest = max(float(root.get_attribute("data-gap")) for root in certificates)
    page.close()
    return Row(
        "écart relatif JavaScript–PyTorch, le plus grand",
        scientific(largest),
        "—",
        "—",
        f"≤ {scientific(GAP_TARGET)}",
        largest <= GAP_TARGET,
    )


def scientific(value: float) -> str:
    return f"{value:.1e}".replace(".", ",")
