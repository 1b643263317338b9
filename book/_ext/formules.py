"""La place de chaque formule, gardée dans la page en attendant MathJax : le texte ne saute pas quand elle s'y écrit.

Le code LaTeX est bien plus long que la formule qu'il donne : affiché d'abord, il occuperait des lignes qui se referment
ensuite sous les yeux du lecteur. La place est estimée d'après ce code : chaque glyphe a une largeur moyenne, ajustée
sur toutes les formules du livre. `lrq.css` s'en sert, et `livre/formules.js` écrit les formules.
"""

from __future__ import annotations

import re
from html import unescape
from typing import Any

INLINE = re.compile(r'(?s)<span class="math notranslate nohighlight">(?=\\\((.*?)\\\)</span>)')
DISPLAY = re.compile(r'(?s)<div class="math notranslate nohighlight"([^>]*)>(?=\n?\\\[(.*?)\\\]</div>)')

# Ce qui ne laisse pas d'encre : la mise en forme, les accolades, les espaces.
SILENT = re.compile(
    r"\\(?:left|right|[bB]ig+[lr]?|math\w+|operatorname|text\w*|hat|bar|tilde|widehat|displaystyle|quad|[td]?frac|sqrt)\b"
    r"|\\[,;:!() ]|\\(?:begin|end)\{\w+\*?\}|[{}$&\s]"
)
GLYPH = re.compile(r"\\[a-zA-Z]+|\\.|.")
SCRIPT = re.compile(r"[\^_](\{(?:[^{}]|\{[^{}]*\})*\}|\\[a-zA-Z]+|.)")
RELATION = re.compile(
    r"[=<>]|\\(?:[lg]eq?|neq?|approx|sim(?:eq)?|equiv|propto|ll|gg|in|to|times|cdot|pm|mapsto|\w*rightarrow)\b"
    r"|(?<=[\w})\]]) *[-+](?= *[\w\\(])"
)
TALL = re.compile(r"\\(?:d?frac|sum|prod|max|min|underbrace)\b")


def width(tex: str) -> float:
    """La largeur d'une formule dans le texte, en cadratins : ses glyphes, ses indices, l'air de ses relations."""
    line = SCRIPT.sub("", tex)
    glyphs = GLYPH.findall(SILENT.sub("", line))
    capitals = sum(glyph.isupper() for glyph in glyphs)
    small = sum(len(GLYPH.findall(SILENT.sub("", found[1]))) for found in SCRIPT.finditer(tex))
    return round(0.7 * len(glyphs) + 0.3 * capitals + 0.62 * small + 1.05 * len(RELATION.findall(line)), 1)


def height(tex: str) -> float:
    """La hauteur d'une formule à part, en cadratins : des lignes simples, ou hautes d'une fraction ou d'une somme."""
    return sum(3.2 if TALL.search(line) else 1.7 for line in re.split(r"\\\\", tex))


def reserve(body: str) -> str:
    """Le corps d'une page, où chaque formule dit la place qu'elle prendra."""
    body = INLINE.sub(lambda found: f'{found[0][:-1]} style="--lrq-place:{width(unescape(found[1]))}em">', body)
    return DISPLAY.sub(lambda found: f'{found[0][:-1]} style="--lrq-place:{height(unescape(found[2])):.1f}em">', body)


def _reserve_page(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    if "body" in context:
        context["body"] = reserve(context["body"])


def setup(app: Any) -> dict[str, Any]:
    """Garde la place des formules à l'instant d'écrire la page ; leur script passe avant MathJax, qu'il règle."""
    app.connect("html-page-context", _reserve_page)
    app.add_js_file("livre/formules.js", priority=100, loading_method="defer")
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
