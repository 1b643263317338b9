"""Une ligne de mesure, et le tableau qui s'aligne dans un terminal."""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

HEADER = ("mesure", "lrq", "référence", "rapport", "cible", "tenu ?")


@dataclass(frozen=True)
class Row:
    """Une mesure, déjà mise en mots ; `held` vaut None quand aucune cible n'est fixée."""

    name: str
    lrq: str
    reference: str
    ratio: str
    target: str
    held: bool | None

    def cells(self) -> tuple[str, ...]:
        verdict = {True: "oui", False: "NON", None: "—"}[self.held]
        return self.name, self.lrq, self.reference, self.ratio, self.target, verdict


def number(value: float, digits: int = 3) -> str:
    """Un nombre à la française, à `digits` chiffres significatifs, sans notation scientifique."""
    decimals = 0 if value == 0 else max(0, digits - 1 - int(f"{value:e}".partition("e")[2]))
    return f"{value:.{decimals}f}".replace(".", ",")


def duration(seconds: float) -> str:
    """Une durée dans l'unité qui la rend lisible."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{number(seconds / size)} {unit}"
    return f"{number(seconds * 1e6)} µs"


def width(text: str) -> int:
    """Nombre de colonnes qu'un texte occupe dans un terminal."""
    return sum(not unicodedata.combining(char) for char in text)


def render(rows: Iterable[Row]) -> str:
    """Le tableau : la première colonne à gauche, les autres à droite."""
    lines = [HEADER, *(row.cells() for row in rows)]
    widths = [max(width(line[i]) for line in lines) for i in range(len(HEADER))]

    def pad(cells: tuple[str, ...]) -> str:
        padded = [" " * (w - width(cell)) + cell for cell, w in zip(cells, widths, strict=True)]
        padded[0] = cells[0] + " " * (widths[0] - width(cells[0]))
        return " │ ".join(padded)

    rule = "─┼─".join("─" * w for w in widths)
    return "\n".join([pad(lines[0]), rule, *(pad(line) for line in lines[1:])])
