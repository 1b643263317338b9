"""Les mots anglais que le thème écrit en dur, hors de tout catalogue de traduction, remplacés dans les pages.

Ils sont dans des gabarits et des attributs pour lecteurs d'écran ; les redéfinir un à un figerait des copies du thème.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

TRANSLATIONS = {
    'title="Toggle primary sidebar"': 'title="Afficher ou masquer le sommaire"',
    'title="Toggle secondary sidebar"': 'title="Afficher ou masquer le plan de la page"',
    'aria-label="Main"': 'aria-label="Sommaire du livre"',
    'aria-label="Page"': 'aria-label="Plan de la page"',
    ' aria-label="Toggle hidden content"': "",  # le texte visible (« Afficher le code ») est le meilleur nom
    'placeholder="Search this book..."': 'placeholder="Chercher dans le livre…"',
    'aria-label="Search this book..."': 'aria-label="Chercher dans le livre"',
}


def translate(text: str) -> str:
    """Remplace chaque morceau anglais ; un texte déjà traduit n'est pas changé."""
    for english, french in TRANSLATIONS.items():
        text = text.replace(english, french)
    return text


def _translate_build(app: Any, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    folder = Path(app.outdir)
    for path in [*folder.rglob("*.html"), folder / "_static" / "togglebutton.js"]:
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            if (french := translate(text)) != text:
                path.write_text(french, encoding="utf-8")


def setup(app: Any) -> dict[str, Any]:
    """Traduit les pages une fois le livre construit."""
    app.connect("build-finished", _translate_build)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
