"""`{etages}` : le paquet dessiné étage par étage, d'après la table que les tests comparent à ses imports."""

from __future__ import annotations

import textwrap
from html import escape
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

# Du plus haut au plus bas : ce que fait l'étage, puis ses pièces, qui n'importent que d'étages plus bas.
FLOORS: list[tuple[str, tuple[str, ...]]] = [
    ("tous les noms publics", ("lrq",)),
    ("du côté du lecteur", ("exercises", "widgets", "data", "__main__")),
    ("entraîner des adaptateurs", ("lora_training",)),
    ("comprimer un réseau entier, parler à PEFT", ("compression", "peft_files")),
    ("réseaux réels, adaptateurs, figures", ("models", "adapters", "plots")),
    ("prédire l’erreur, ranger, entraîner, montrer", ("errors", "storage", "training", "display")),
    ("une couche, un fichier", ("layers",)),
    ("choisir les facteurs, arrondir selon l’entrée", ("gauge", "gptq", "histogram", "tensor_quantizers")),
    ("quantifier, tirer au hasard, contracter", ("quantizers", "randomized", "tt_product", "tucker")),
    (
        "décomposer, répartir, serrer les codes",
        ("spectrum", "activation", "allocation", "tensor_train", "packing", "integer"),
    ),
    ("la décomposition en valeurs singulières", ("svd",)),
    ("les refus, la version", ("validation", "version")),
]
RULE = "Les imports ne font que descendre"

WIDTH, LEFT, LINE, CAPTION, GAP = 320, 24, 19, 17, 7  # à 360 px, une unité par pixel ou presque
COLUMNS = 35  # ce qui tient dans un étage


def described() -> str:
    """Le dessin, en toutes lettres."""
    floors = " ; ".join(f"{caption} ({', '.join(rooms)})" for caption, rooms in FLOORS)
    return f"{RULE}. De haut en bas : {floors}."


def drawing() -> str:
    """Le SVG, aux couleurs de la page (les classes sont dans lrq.css)."""
    parts, y = [], 1
    for caption, rooms in FLOORS:
        lines = textwrap.wrap("  ".join(rooms), COLUMNS, break_on_hyphens=False)
        height = CAPTION + LINE * len(lines) + 8
        parts.append(f'<rect x="{LEFT}" y="{y}" width="{WIDTH - LEFT - 1}" height="{height}" rx="5"/>')
        parts.append(f'<text x="{LEFT + 10}" y="{y + 17}">{escape(caption)}</text>')
        for i, line in enumerate(lines, 1):
            names = escape(line).replace("  ", "&#160;&#160;")
            parts.append(f'<text class="pieces" x="{LEFT + 10}" y="{y + 16 + LINE * i}">{names}</text>')
        y += height + GAP
    bottom = y - GAP
    parts.append(f'<path d="M10 6V{bottom - 3}M4 {bottom - 11}l6 8l6 -8"/>')
    return (
        f'<svg class="lrq-etages" viewBox="0 0 {WIDTH} {bottom + 1}" role="img" aria-label="{escape(described())}">'
        f"{''.join(parts)}</svg>"
    )


class EtagesDirective(SphinxDirective):
    """`{etages}` : le dessin, dans les pages HTML."""

    def run(self) -> list[nodes.Node]:
        """Le SVG, tel quel."""
        return [nodes.raw("", drawing(), format="html")]


def setup(app: Any) -> dict[str, Any]:
    """Déclare la directive."""
    app.add_directive("etages", EtagesDirective)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
