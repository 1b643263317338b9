"""La structure que Sphinx et ses extensions écrivent mal pour un lecteur d'écran, réparée en écrivant la page."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

REPAIRS: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    # Une signature sur plusieurs lignes : une liste de définitions sans rien à définir, dans un titre de définition.
    (
        re.compile(r'<dl>\n((?:<dd><em class="sig-param">.*</dd>\n)+)</dl>'),
        lambda found: (
            '<span class="lrq-parametres">\n'
            + found[1].replace("<dd>", "<span>").replace("</dd>", "</span>")
            + "</span>"
        ),
    ),
    # Les sources : une liste d'éléments dont le rôle n'existe plus.
    (re.compile(' role="doc-biblioentry"'), ' role="listitem"'),
    # Tous les théorèmes d'une page portent le même identifiant.
    (re.compile(' id="proof-content"'), ""),
]


def repair(body: str) -> str:
    """Le corps d'une page, réparé."""
    for pattern, replacement in REPAIRS:
        body = pattern.sub(replacement, body)
    return body


def nest(body: str) -> str:
    """La liste des modules : une sous-liste appartient à l'élément qui la précède, pas à la liste."""
    inside, end, after = body.replace("</li>\n<ul>", "\n<ul>").rpartition("</ul>")
    return inside.replace("</ul>", "</ul></li>") + end + after


def _repair_page(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    if "body" in context:
        context["body"] = repair(context["body"])
        if pagename == "_modules/index":
            context["body"] = nest(context["body"])


def setup(app: Any) -> dict[str, Any]:
    """Répare chaque page à l'instant de l'écrire."""
    app.connect("html-page-context", _repair_page)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
