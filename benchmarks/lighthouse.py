"""Les notes que Lighthouse donne aux pages du livre construit, sur un ordinateur de bureau."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

from . import browser
from .page import BOOK, CERTIFICATE, PAGE, pages
from .table import Row

TARGET = 95
CATEGORIES = {
    "performance": "performance",
    "accessibility": "accessibilité",
    "best-practices": "bonnes pratiques",
    "seo": "référencement",
}
QUICK = ("book/index", PAGE, CERTIFICATE)
OPTIONS = ("--preset=desktop", "--output=json", "--quiet", "--chrome-flags=--headless " + " ".join(browser.FLAGS))
TRIES = 3  # une machine occupée ne fait que baisser la note : la meilleure des trois
INSTALL = "npm install --global lighthouse"


def command() -> list[str] | None:
    """De quoi lancer Lighthouse, s'il est installé ; rien n'est téléchargé."""
    if program := shutil.which("lighthouse"):
        return [program]
    if program := shutil.which("npx"):
        found = subprocess.run([program, "--no-install", "lighthouse", "--version"], capture_output=True, check=False)
        if found.returncode == 0:
            return [program, "--no-install", "lighthouse"]
    return None


def scores(lighthouse: list[str], chromium: str, address: str) -> dict[str, int]:
    """Les notes d'une page, sur 100."""
    environment = os.environ | {"CHROME_PATH": chromium}
    run = subprocess.run(
        [*lighthouse, address, *OPTIONS], capture_output=True, text=True, env=environment, timeout=300, check=True
    )
    return {name: round(100 * (found["score"] or 0)) for name, found in json.loads(run.stdout)["categories"].items()}


def best_scores(lighthouse: list[str], chromium: str, address: str) -> dict[str, int]:
    """La meilleure note de chaque catégorie, en s'arrêtant dès qu'elles tiennent toutes."""
    best = dict.fromkeys(CATEGORIES, 0)
    for _ in range(TRIES):
        found = scores(lighthouse, chromium, address)
        best = {name: max(best[name], found[name]) for name in CATEGORIES}
        if min(best.values()) >= TARGET:
            break
    return best


def measure(quick: bool) -> Iterator[Row]:
    """La pire page de chaque catégorie ; ou une ligne qui dit ce qu'il manque pour la connaître."""
    lighthouse, chromium = command(), browser.find()
    if lighthouse is None or chromium is None or not (BOOK / f"{PAGE}.html").is_file():
        missing = [INSTALL] * (lighthouse is None) + [browser.ABSENT] * (chromium is None)
        reason = " ; ".join(missing) or "make livre"
        yield Row(f"Lighthouse, pire page ({reason})", "non mesuré", "—", "—", f"≥ {TARGET}", None)
        return
    names = QUICK if quick else pages()
    with browser.served(BOOK, browser.Compressed) as site:
        found = {}
        for name in names:
            try:
                found[name] = best_scores(lighthouse, chromium, f"{site}/{name}.html")
            except (subprocess.SubprocessError, ValueError) as error:  # une page sans note n'efface pas les autres
                print(f"  {name} : {error}", file=sys.stderr)
                found[name] = dict.fromkeys(CATEGORIES, 0)
            print(f"  {name} : {', '.join(map(str, found[name].values()))}", file=sys.stderr)
    for category, label in CATEGORIES.items():
        worst = min(names, key=lambda name: found[name][category])
        score = found[worst][category]
        yield Row(
            f"Lighthouse, {label}, la pire de {len(names)} pages ({worst})",
            str(score),
            "100",
            "—",
            f"≥ {TARGET}",
            score >= TARGET,
        )
