"""La description que montre un moteur de recherche : le titre de la page et ses premières phrases.

Elle est lue dans la page : rien à écrire, rien qui puisse ne plus lui ressembler.
"""

from __future__ import annotations

import html
import re
from typing import Any

from docutils import nodes

LENGTH = 200  # au-delà, les moteurs coupent
SENTENCE_END = re.compile(r"(?<=[.!?…])\s+(?=[A-ZÀ-Ý«])")


def opening(text: str, length: int = LENGTH) -> str:
    """Les premières phrases d'un texte, entières et sans formule ; la toute première, trop longue, est coupée."""
    kept = ""
    for sentence in SENTENCE_END.split(" ".join(text.split())):
        if "\\" in sentence or len(kept) + len(sentence) > length:
            break
        kept = f"{kept} {sentence}".strip()
    if kept:
        return kept
    words = re.sub(r"\\\w+\s*|[{}\\]", "", text).split()
    while words and len(" ".join(words)) >= length:
        words.pop()
    return f"{' '.join(words).rstrip(' ,;:.')}…"


def describe(title: str, doctree: nodes.document | None, book: str) -> str:
    """La description d'une page ; une page que Sphinx engendre n'a pas de texte, seulement un titre et un livre."""
    title = html.unescape(re.sub(r"<[^>]+>", "", title))
    first = next(doctree.findall(nodes.paragraph), None) if doctree else None
    return f"{title}. {opening(first.astext())}" if first else f"{title}, une page du livre «\u00a0{book}\u00a0»."


def _add_description(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    if 'name="description"' not in context.get("metatags", ""):
        text = html.escape(describe(context.get("title") or "Recherche", doctree, app.config.html_title))
        context["metatags"] = f'{context.get("metatags", "")}\n<meta name="description" content="{text}" />'


def setup(app: Any) -> dict[str, Any]:
    """Décrit chaque page à l'instant de l'écrire."""
    app.connect("html-page-context", _add_description)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
