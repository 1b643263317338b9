"""Les points clés du cours, jugés : la directive `{affirmations}` réunit les tableaux des carnets.

La seule source est le tableau « Ce que dit le cours, ce que dit l’expérience » de chaque section, dont les cellules
cachées du carnet prouvent les nombres. Une ligne y dit le point clé, le verdict en gras, puis la mesure : un fragment
en gras, le nombre décisif, et pour finir « Voir [l’expérience](#ancre). »
"""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from preuves import cells_of, parser
from sphinx.util.docutils import SphinxDirective

# Combien de points clés le cours donne à chaque section, dans l'ordre du livre.
POINTS = {"11.0": 4, "11.1": 5, "11.2": 5, "11.3": 5, "11.4": 4, "11.5": 5, "9.6": 4, "12.3": 4}
VERDICTS = {"confirmé": "confirme", "nuancé": "nuance", "réfuté": "refute"}  # le mot, et la classe de sa ligne
COLUMNS = ("Le cours affirme", "Verdict", "Ce que nous avons mesuré", "Où")
TITLE = "Ce que dit le cours, ce que dit l’expérience"

VERDICT = re.compile(rf"\*\*({'|'.join(VERDICTS)})(?: [^*]+)?\*\*")  # « réfuté en l’état » est un réfuté
MEASURE = re.compile(r"(?P<measure>.+) Voir (?P<where>\[.+\]\(\S+\))\.")
DECISIVE = re.compile(r"\*\*([^*]+)\*\*")
TARGET = re.compile(r"(?<=\]\()(?!\w+:)([^)\s#]*)(?=[)#])")  # la page d'un lien, vide pour `#ancre`


@dataclass(frozen=True)
class Affirmation:
    """Un point clé du cours, en Markdown : ce qu'il affirme, son verdict, la mesure et le lien qui la montre."""

    claim: str
    verdict: str
    shown: str  # le verdict tel qu'il est écrit
    measure: str
    decisive: str
    where: str


def affirmations(path: Path) -> list[Affirmation]:
    """Les points clés d'un carnet, dans l'ordre de son tableau.

    Lève `ValueError`, en nommant le carnet et la ligne, si le tableau manque ou si une ligne n'a pas la forme voulue.
    """
    sources = (cell["source"] for cell in cells_of(path) if cell["cell_type"] == "markdown")
    source = next((text for text in sources if f"## {TITLE}" in text), None)
    if source is None:
        raise ValueError(f"{path.name} : aucun tableau sous « {TITLE} ».")
    rows: list[list[str]] = []
    for token in parser().parse(source):
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and rows:
            rows[-1].append(re.sub(r"\s", " ", token.content))
    return [_read(path, row) for row in rows[1:]]  # la première est l'en-tête


def _read(path: Path, row: list[str]) -> Affirmation:
    place = f"{path.name}, « {row[0]} »"
    verdict = VERDICT.fullmatch(row[1])
    if verdict is None:
        raise ValueError(f"{place} : verdict reçu {row[1]!r}, attendu l'un de {', '.join(VERDICTS)}, en gras.")
    found = MEASURE.fullmatch(row[2])
    if found is None:
        raise ValueError(f"{place} : la mesure doit finir par « Voir [l’expérience](#ancre). »")
    decisive = DECISIVE.findall(found["measure"])
    if len(decisive) != 1:
        raise ValueError(f"{place} : {len(decisive)} fragments en gras, attendu un seul, le nombre décisif.")
    return Affirmation(row[0], verdict[1], row[1], found["measure"], decisive[0], found["where"])


def notebook_of(section: str, folder: Path) -> Path:
    """Le carnet d'une section : « 9.6 » est dans `09_06_….ipynb`."""
    chapter, number = section.split(".")
    found = next(folder.glob(f"{int(chapter):02}_{int(number):02}_*.ipynb"), None)
    if found is None:
        raise ValueError(f"Section {section} : aucun carnet dans {folder}.")
    return found


def every_claim(folder: Path) -> dict[str, list[Affirmation]]:
    """Les points clés de toutes les sections ; lève `ValueError` s'il en manque un."""
    found = {section: affirmations(notebook_of(section, folder)) for section in POINTS}
    for section, claims in found.items():
        if len(claims) != POINTS[section]:
            raise ValueError(f"Section {section} : {len(claims)} points clés jugés, le cours en a {POINTS[section]}.")
    return found


def tally(claims: list[Affirmation]) -> str:
    """« 2 confirmés, 1 nuancé »."""
    counts = Counter(claim.verdict for claim in claims)
    return ", ".join(f"{counts[word]} {word}{'s' * (counts[word] > 1)}" for word in VERDICTS if counts[word])


def _filter(counts: Counter[str]) -> nodes.raw:
    """Une case par verdict ; le style cache les lignes dont la case est vide, sans script."""
    boxes = "".join(
        f'<label class="lrq-verdict lrq-{name}"><input type="checkbox" id="montrer-{name}" checked> '
        f"{word} ({counts[word]})</label>"
        for word, name in VERDICTS.items()
    )
    return nodes.raw("", f'<fieldset class="lrq-filtre"><legend>Montrer</legend>{boxes}</fieldset>', format="html")


class AffirmationsDirective(SphinxDirective):
    """`{affirmations}` : le bilan, une case par verdict, puis un tableau par section."""

    def run(self) -> list[nodes.Node]:
        """Construit la page ; un tableau de carnet mal formé est une erreur de construction."""
        folder = Path(self.env.srcdir) / "notebooks"
        try:
            sections = every_claim(folder)
        except ValueError as problem:
            raise self.error(str(problem)) from None
        claims = [claim for found in sections.values() for claim in found]
        summary = nodes.paragraph(text=f"Sur les {len(claims)} points clés du cours : {tally(claims)}.")
        filters = _filter(Counter(claim.verdict for claim in claims))
        return [summary, filters, *(self._section(section, folder, found) for section, found in sections.items())]

    def _section(self, section: str, folder: Path, claims: list[Affirmation]) -> nodes.section:
        path = notebook_of(section, folder)
        self.env.note_dependency(str(path))
        here = Path(self.env.doc2path(self.env.docname)).parent
        heading = cells_of(path)[0]["source"].partition("\n")[0].removeprefix("# ")
        node = nodes.section(ids=[nodes.make_id(f"points-{section}")], names=[])
        node += nodes.title(heading, heading)
        node += self._markdown(f"{tally(claims)} ; [lire la section]({os.path.relpath(path, here)}).")
        table = nodes.table(classes=["lrq-affirmations"])
        group = nodes.tgroup(cols=len(COLUMNS))
        table += group
        group += [nodes.colspec(colwidth=1) for _ in COLUMNS]
        head = nodes.row("", *(nodes.entry("", nodes.paragraph(text=column)) for column in COLUMNS))
        body = nodes.tbody()
        group += [nodes.thead("", head), body]
        for claim in claims:
            cells = (claim.claim, claim.shown, claim.measure, claim.where)
            row = nodes.row("", *(nodes.entry("", *self._markdown(_moved(text, path, here))) for text in cells))
            row["classes"].append(f"lrq-{VERDICTS[claim.verdict]}")
            body += row
        node += table
        return node

    def _markdown(self, text: str) -> list[nodes.Node]:
        holder = nodes.Element()
        self.state.nested_parse(StringList([text], self.env.docname), self.content_offset, holder)
        return holder.children


def _moved(text: str, path: Path, here: Path) -> str:
    """Le Markdown d'un carnet, lu depuis une autre page : ses liens y sont récrits."""

    def move(found: re.Match[str]) -> str:
        return os.path.relpath(path.parent / found[1] if found[1] else path, here)

    return TARGET.sub(move, text)


def setup(app: Any) -> dict[str, Any]:
    """Déclare la directive."""
    app.add_directive("affirmations", AffirmationsDirective)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
