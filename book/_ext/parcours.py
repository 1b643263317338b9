"""Le livre vu de haut : ce que chaque section demande, ce qu'elle prend de temps, les fautes de ses exercices.

Rien n'est écrit deux fois. Prérequis, durées et exercice pour la salle viennent de l'en-tête des carnets, les fautes
de `lrq.exercises`, un nombre mesuré de la phrase prouvée qui le porte. Ce que ces directives ne trouvent pas les fait
échouer, et la construction du livre avec elles.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from preuves import plain, preuves
from sphinx.util.docutils import SphinxDirective, SphinxRole

ROOT = Path(__file__).parents[2]
NUMBERS = {"une": 1, "deux": 2, "trois": 3, "quatre": 4, "cinq": 5, "dix": 10, "quinze": 15, "vingt": 20}
NUMBERS |= {"vingt-cinq": 25, "trente": 30, "quarante": 40, "quarante-cinq": 45, "cinquante": 50}
ANY = rf"\d+|{'|'.join(sorted(NUMBERS, key=len, reverse=True))}"
COUNT = f"({ANY})"
TIME = re.compile(
    rf"(?<![\w-])(?:{COUNT} h(?:eures?)?(?: (\d\d)\b| et (demie))?|(demi-heure)|{COUNT} min(?:utes?)?)\b"
    rf"(?! (?:et|{ANY})\b)",  # rien de la durée ne se perd : « une heure et quart » est refusé
    re.IGNORECASE,
)
HEADER = re.compile(
    r"\*\*Prérequis\.\*\* (?P<needs>.+?) \*\*Durée\.\*\* (?P<time>.+?) \*\*Pour la classe\.\*\* (?P<room>.+)"
)
NOTEBOOK_LINK = re.compile(r"\]\((\d\d)_(\d\d)_\w+\.ipynb\)")
LINK = re.compile(r"\]\(([^)]*)\)")
CODE = re.compile(r"(\b[A-Za-z]\w*(?:(?:\.[A-Za-z]\w*)+(?:\([^() ]*\))?|\[[^\]]*\]|\([^() ]*\))|\b[A-Za-z]\w*_\w+)")


def minutes(text: str) -> int:
    """Les minutes d'une durée écrite en français : « une heure et demie », « 1 h 30 », « vingt minutes »."""
    found = TIME.search(text.replace("\N{NO-BREAK SPACE}", " "))
    if found is None:
        raise ValueError(f"durée : reçu {text!r}, attendu des heures ou des minutes.")
    hours, past, half, half_hour, short = found.groups()

    def count(word: str | None) -> int:
        return NUMBERS.get((word or "").lower()) or int(word or 0)

    return 60 * count(hours) + int(past or 0) + 30 * bool(half or half_hour) + count(short)


def written(duration: int) -> str:
    """Une durée en heures et minutes : « 1 h 30 », « 45 min », sans coupure possible."""
    hours, rest = divmod(duration, 60)
    text = f"{hours} h {rest:02d}" if hours and rest else f"{hours} h" if hours else f"{rest} min"
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def durations(text: str) -> tuple[int, int]:
    """Minutes de lecture et d'exercices ; si l'exercice est compris, la lecture est le tout."""
    reading, _, rest = text.partition(";")[0].partition(",")
    return minutes(reading), minutes(rest) if "d’exercices" in rest else 0


@dataclass(frozen=True)
class Section:
    """Une section du cours, telle que son carnet la présente."""

    number: str
    title: str
    file: str  # nom du carnet, sans dossier
    needs: tuple[str, ...]  # les sections que cite « Prérequis »
    header: dict[str, str]  # needs, time, room : le Markdown de l'en-tête
    reading: int
    practice: int

    @property
    def name(self) -> str:
        """Le titre, sans ce qui le commente : « LoRA »."""
        return self.title.partition(" : ")[0]

    @property
    def classroom(self) -> tuple[str, int]:
        """L'exercice pour la salle, et ses minutes."""
        found = re.search(r"\[exercice ([\d.]+)\]", self.header["room"])
        if found is None:
            raise ValueError(f"{self.file} : « Pour la classe » ne nomme aucun exercice.")
        return found[1], minutes(self.header["room"][found.end() :])

    def link(self, label: str = "", anchor: str = "") -> str:
        """Un lien vers la section, depuis une page de book/."""
        return f"[{label or self.number}](../notebooks/{self.file}{anchor})"

    def solution(self, exercise: str) -> str:
        """Un lien vers la solution d'un exercice."""
        target = f"{self.file[:5]}_solutions.ipynb#solution-{exercise.replace('.', '-')}"
        return f"[solution](../notebooks/solutions/{target})"

    def moved(self, part: str) -> str:
        """Un morceau de l'en-tête, ses liens refaits pour une page de book/."""

        def move(found: re.Match[str]) -> str:
            url = self.file + found[1] if found[1].startswith("#") else found[1]
            return f"]({url.removeprefix('../book/') if url.startswith('../') else f'../notebooks/{url}'})"

        return LINK.sub(move, self.header[part])


def read_section(path: Path) -> Section:
    """La section d'un carnet, d'après sa première cellule."""
    text = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
    title = re.match(r"# ([\d.]+) (.+)", text)
    header = HEADER.search(text)
    if title is None or header is None:
        raise ValueError(f"{path.name} : titre, prérequis, durée ou exercice pour la classe absents de l'en-tête.")
    needs = dict.fromkeys(f"{int(chapter)}.{int(part)}" for chapter, part in NOTEBOOK_LINK.findall(header["needs"]))
    return Section(title[1], title[2], path.name, tuple(needs), header.groupdict(), *durations(header["time"]))


@cache
def sections() -> dict[str, Section]:
    """Les sections du cours, dans l'ordre du livre."""
    from lrq.exercises import SECTIONS

    found = {section.number: section for section in map(read_section, sorted(ROOT.glob("notebooks/[0-9]*.ipynb")))}
    if found.keys() != SECTIONS.keys():
        raise ValueError(f"sections : {sorted(found)} dans notebooks/, {sorted(SECTIONS)} dans lrq.exercises.")
    return {number: found[number] for number in SECTIONS}


def known(number: str) -> Section:
    """La section de ce numéro."""
    if number not in sections():
        raise ValueError(f"section : reçu {number!r}, attendu l'une de {', '.join(sections())}.")
    return sections()[number]


def parts(line: str, count: int, separator: str | None = "|") -> list[str]:
    """Les morceaux d'une ligne de directive ; ValueError s'il n'y en a pas `count`."""
    found = [part.strip() for part in line.split(separator)]
    if len(found) != count:
        raise ValueError(f"ligne {line!r} : {len(found)} morceau(x), attendu {count}.")
    return found


def listed(words: Iterable[str]) -> str:
    """« a », « a et b », « a, b et c »."""
    *first, last = words
    return f"{', '.join(first)} et {last}" if first else last


# --- la carte ---------------------------------------------------------------------------------------------------------

PITCH, HEIGHT = 88, 56  # d'une rangée à la suivante ; hauteur d'une section
COLUMNS = {"marge": (1, 104), "milieu": (128, 128)}  # abscisse et largeur, sur 360
WIDTH = 360


@dataclass(frozen=True)
class Place:
    """Une section sur la carte : sa colonne, sa rangée, son nom court."""

    column: str
    row: int
    name: str

    @property
    def left(self) -> int:
        return COLUMNS[self.column][0]

    @property
    def width(self) -> int:
        return COLUMNS[self.column][1]

    @property
    def right(self) -> int:
        return self.left + self.width

    @property
    def top(self) -> int:
        return 1 + self.row * PITCH


def arrow(start: Place, end: Place, rank: int, blocked: bool) -> str:
    """Le trait et la pointe d'une flèche.

    `rank` écarte les flèches qui arrivent au même endroit ; `blocked` dit qu'une boîte de la marge est sur le chemin,
    et la flèche passe alors entre les deux colonnes.
    """
    if start.column == end.column and end.row == start.row + 1:
        x, y, down = start.left + start.width // 2, end.top, True
        line = f"M{x} {start.top + HEIGHT}V{y - 6}"
    elif start.column == end.column:
        x, y, down = end.right, end.top + 12 + 14 * rank, False
        y1, far = start.top + HEIGHT - 14, x + 30 * (end.row - start.row)
        line = f"M{x} {y1}C{far} {y1} {far} {y} {x + 6} {y}"
    elif start.row == end.row:
        x, y, down = end.right, end.top + HEIGHT // 2, False
        line = f"M{start.left} {y}H{x + 6}"
    elif blocked:
        x, y, down = end.left + 40 + 40 * rank, end.top, True
        y1, gap = start.top + HEIGHT - 8, end.right + 8 + 8 * rank
        line = f"M{start.left} {y1}C{gap} {y1} {gap} {y1 + 6} {gap} {y1 + 12}V{y - 24}"
        line += f"C{gap} {y - 10} {x} {y - 22} {x} {y - 6}"
    else:
        x, y, down = end.left + 20 + 48 * rank, end.top, True
        y1 = start.top + HEIGHT // 2
        line = f"M{start.left} {y1}C{x} {y1} {x} {y1 + 10} {x} {y - 6}"
    point = f"M{x} {y}l-5 -9h10z" if down else f"M{x} {y}l9 -5v10z"
    return f'<path class="trait" d="{line}"/><path class="pointe" d="{point}"/>'


def implied(needs: dict[str, tuple[str, ...]], start: str, end: str) -> bool:
    """Vrai si `start` est déjà un prérequis d'un autre prérequis de `end`."""

    def reaches(number: str) -> bool:
        return any(need == start or reaches(need) for need in needs[number])

    return any(reaches(other) for other in needs[end] if other != start)


def drawing(places: dict[str, Place], partial: set[tuple[str, str]], address: Callable[[Section], str]) -> str:
    """La carte, en SVG : une boîte par section, une flèche par prérequis."""
    course = sections()
    if places.keys() != course.keys():
        raise ValueError(f"carte : sections {sorted(places)}, attendu {sorted(course)}.")
    for number, need in partial:
        if need not in known(number).needs:
            raise ValueError(f"carte : la section {number} ne cite pas la {need} parmi ses prérequis.")
    whole = {number: tuple(n for n in s.needs if (number, n) not in partial) for number, s in course.items()}
    groups, phrases = [], []
    for number, section in course.items():
        place, arrows = places[number], []
        rank = {False: 0, True: 0}
        for need in sorted(section.needs, key=lambda need: places[need].row):
            origin = places[need]
            kind = "partie" if (number, need) in partial else "detour" if implied(whole, need, number) else "pas"
            sideways = origin.column != place.column
            blocked = any(p.column == place.column and origin.row <= p.row < place.row for p in places.values())
            arrows.append(
                f'<g class="fleche {kind}" data-de="{need}" data-vers="{number}">'
                f"{arrow(origin, place, rank[sideways], blocked)}</g>"
            )
            rank[sideways] += sideways or kind != "pas"
        needs = [need + (" en partie" if (number, need) in partial else "") for need in section.needs]
        phrase = (
            f"La section {number} s’appuie sur {listed(needs)}." if needs else f"La section {number} ouvre le cours."
        )
        phrases.append(phrase)
        time = written(section.reading + section.practice)
        lines = ((number, 19, "numero"), (place.name, 34, "nom"), (time, 48, "duree"))
        texts = "".join(
            f'<text class="{kind}" x="{place.left + place.width // 2}" y="{place.top + y}">{html.escape(text)}</text>'
            for text, y, kind in lines
        )
        groups.append(
            f'<g class="section">{"".join(arrows)}<a href="{html.escape(address(section))}" '
            f'aria-label="{html.escape(f"{number} {section.title} ({time}). {phrase}")}">'
            f'<rect x="{place.left}" y="{place.top}" width="{place.width}" height="{HEIGHT}" rx="7"/>{texts}</a></g>'
        )
    height = 2 + PITCH * max(place.row for place in places.values()) + HEIGHT
    return (
        f'<svg class="lrq-carte" viewBox="0 0 {WIDTH} {height}" role="group" aria-labelledby="carte-nom carte-texte">'
        f'<title id="carte-nom">La carte du cours</title><desc id="carte-texte">{" ".join(phrases)}</desc>'
        f"{''.join(groups)}</svg>"
    )


# --- les directives ---------------------------------------------------------------------------------------------------


class FromNotebooks(SphinxDirective):
    """Une directive qui lit les carnets : sa page est relue quand l'un d'eux change."""

    def run(self) -> list[nodes.Node]:
        """Les nœuds de la page ; une erreur y devient celle de la construction."""
        for section in sections().values():
            self.env.note_dependency(str(ROOT / "notebooks" / section.file))
        try:
            return self.build()
        except ValueError as error:
            raise self.error(str(error)) from error

    def build(self) -> list[nodes.Node]:
        """Les nœuds de la page."""
        return self.parsed(self.markdown().splitlines())

    def markdown(self) -> str:
        """Le Markdown de la directive."""
        raise NotImplementedError

    def parsed(self, lines: list[str]) -> list[nodes.Node]:
        """Du Markdown, lu comme s'il était dans la page."""
        box = nodes.Element()
        self.state.nested_parse(StringList(lines, self.env.docname), self.content_offset, box)
        return box.children


class MapDirective(FromNotebooks):
    """`{carte}`, par section : « numéro | colonne rangée | nom court » ; `partie`, les flèches en pointillés."""

    has_content = True
    option_spec = {"partie": directives.unchanged}  # noqa: RUF012 - docutils le veut ainsi

    def build(self) -> list[nodes.Node]:
        """Le SVG."""
        places = {}
        for line in self.content:
            number, where, name = parts(line, 3)
            column, row = parts(where, 2, None)
            places[number] = Place(column, int(row), name)
        pairs = [pair.split() for pair in self.options.get("partie", "").split(",") if pair.strip()]
        builder, page = self.env.app.builder, self.env.docname

        def address(section: Section) -> str:
            return builder.get_relative_uri(page, f"notebooks/{section.file.removesuffix('.ipynb')}")

        svg = drawing(places, {(number, need) for number, need in pairs}, address)
        return [nodes.raw("", svg, format="html")]


class SectionsDirective(FromNotebooks):
    """`{sections}` : ce que chaque section demande et le temps qu'elle prend."""

    def markdown(self) -> str:
        """Un tableau, une ligne par section, et la somme."""
        rows = ["| Section | Après | Lecture | Exercices |", "|---|---|---|---|"]
        for section in sections().values():
            needs = ", ".join(known(need).link() for need in section.needs) or "—"
            practice = written(section.practice) if section.practice else "compris"
            rows.append(
                f"| {section.link(f'{section.number} {section.name}')} | {needs} | {written(section.reading)} "
                f"| {practice} |"
            )
        reading, practice = (sum(getattr(s, part) for s in sections().values()) for part in ("reading", "practice"))
        return "\n".join([*rows, f"| **En tout** | | **{written(reading)}** | **{written(practice)}** |"])


class PathDirective(FromNotebooks):
    """`{parcours} durée totale` : une ligne par étape, « action | durée | quoi » ; la somme doit être le total annoncé.

    Une durée s'écrit en minutes, ou se prend d'une section : « lecture 11.2 », « exercices 11.2 », « salle 11.2 ».
    """

    has_content = True
    required_arguments = 1
    final_argument_whitespace = True

    def markdown(self) -> str:
        """Un tableau des étapes, et leur somme."""
        rows, total = ["| Étape | Quoi | Durée |", "|---|---|---|"], 0
        for line in self.content:
            action, time, what = parts(line, 3)
            word, _, number = time.partition(" ")
            taken = {"lecture": "reading", "exercices": "practice"}.get(word)
            if word == "salle":
                spent = known(number).classroom[1]
            else:
                spent = getattr(known(number), taken) if taken else minutes(time)
            total += spent
            rows.append(f"| **{action}** | {what} | {written(spent)} |")
        if total != minutes(self.arguments[0]):
            raise ValueError(f"parcours : annoncé {self.arguments[0]}, la somme des étapes fait {written(total)}.")
        return "\n".join([*rows, f"| | **En tout** | **{written(total)}** |"])


class LessonDirective(FromNotebooks):
    """`{seance} 11.2` : la section vue par qui l'enseigne ; le corps dit comment ouvrir la séance."""

    has_content = True
    required_arguments = 1

    def markdown(self) -> str:
        """L'en-tête du carnet, l'ouverture, puis chaque exercice et ses fautes."""
        from lrq.exercises import EXERCISES, SECTIONS

        section = known(self.arguments[0])
        room, _ = section.classroom
        lines = [
            f"{section.link('Le carnet')}. **Durée.** {section.header['time']} **Prérequis.** {section.moved('needs')}",
            "",
            f"**Dans la salle.** {section.moved('room')}",
            "",
            "**Ouvrir la séance.** " + " ".join(self.content),
            "",
        ]
        for number in sorted((e.number for e in SECTIONS[section.number]), key=lambda number: number != room):
            anchor = f"#exercice-{number.replace('.', '-')}"
            lines += [
                f"::::{{dropdown}} Les fautes habituelles de l’exercice {number}, {plain(EXERCISES[number].title)}",
                f"{section.link('Énoncé', anchor)}, {section.solution(number)}.",
                "",
                f":::{{fautes}} {number}",
                ":::",
                "::::",
                "",
            ]
        return "\n".join(lines)


class MistakesDirective(SphinxDirective):
    """`{fautes} 11.1.1` : les fautes que `verifier` reconnaît à cet exercice, dans ses mots."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Une liste ; le texte n'est pas du Markdown, un astérisque y est un astérisque."""
        from lrq.exercises import EXERCISES

        if self.arguments[0] not in EXERCISES:
            raise self.error(f"fautes : reçu {self.arguments[0]!r}, attendu le numéro d'un exercice.")
        items = nodes.bullet_list()
        for mistake in EXERCISES[self.arguments[0]].mistakes:
            text = coded(f" : {mistake.explanation}")
            items += nodes.list_item("", nodes.paragraph("", "", nodes.strong("", "", *coded(mistake.name)), *text))
        return [items]


def coded(text: str) -> list[nodes.Node]:
    """Le texte, ses noms de Python rendus comme du code : `torch.svd`, `V[:r]`, `erreur_max`."""
    return [
        nodes.literal(text=part) if index % 2 else nodes.Text(part)
        for index, part in enumerate(CODE.split(text))
        if part
    ]


class ProofRole(SphinxRole):
    """``{preuve}`11.4 : quatre bits seuls…` `` : un extrait d'une phrase prouvée, un lien vers elle, et sa section."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Le lien, dont `preuves.py` posera l'adresse."""
        number, _, phrase = self.text.partition(" : ")
        section = sections().get(number)
        path = ROOT / "notebooks" / (section.file if section else "")
        index = proved(path, phrase) if section else None
        if section is None or index is None:
            message = self.inliner.reporter.error(
                f"preuve : aucune phrase prouvée de {number!r} ne contient {phrase!r}."
            )
            return [self.inliner.problematic(self.rawtext, self.rawtext, message)], [message]
        env: Any = self.env
        env.note_dependency(str(path))
        env.preuves_pages.add(env.docname)
        target = (f"notebooks/{path.stem}", index)
        return [nodes.reference("", plain(phrase), internal=True, preuve=target), nodes.Text(f" ({number})")], []


def proved(path: Path, phrase: str) -> int | None:
    """Le rang de la première preuve dont la phrase contient celle-ci sans couper un nombre, ou None."""
    from preuves import Block

    for index, proof in enumerate(preuves(path)):
        block = Block(0, "")
        block.add(plain(proof.phrase))
        if any(block.find(plain(phrase))):
            return index
    return None


def setup(app: Any) -> dict[str, Any]:
    """Déclare les directives et le rôle."""
    app.add_directive("carte", MapDirective)
    app.add_directive("sections", SectionsDirective)
    app.add_directive("parcours", PathDirective)
    app.add_directive("seance", LessonDirective)
    app.add_directive("fautes", MistakesDirective)
    app.add_role("preuve", ProofRole())
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
