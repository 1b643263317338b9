"""Les preuves du livre : chaque nombre de la prose est adossé à un `assert` caché.

Convention : une cellule de code marquée `remove-cell` contient des instructions
`assert <condition>, "<phrase>"`, où la phrase est un extrait exact de la prose Markdown du carnet (aux blancs
près ; l'emphase peut y être écrite ou omise). Un `assert` sans phrase vérifie sans rien prouver au lecteur.

Une page qui n'est pas un carnet suit la même convention : ses `assert` sont dans la fonction de `tests/test_prose.py`
qui porte son nom, `test_glossaire` pour `book/glossaire.md`.

Ce module a deux lecteurs : les tests (`preuves`, `nombres`, `missing`, `uncovered`) et Sphinx, à qui il donne
la directive `{preuves}`.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

from docutils import nodes
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from myst_parser.config.main import MdParserConfig
from myst_parser.parsers.mdit import create_md_parser
from sphinx.util.docutils import SphinxDirective

TAG = "remove-cell"
PROSE = Path(__file__).parents[2] / "tests" / "test_prose.py"  # les preuves des pages qui ne sont pas des carnets

# Les extensions de `_config.yml` : le carnet doit être lu ici comme il l'est par le livre.
MYST_EXTENSIONS = {"amsmath", "attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath"}

# Directives sans prose ; toute autre est lue comme de la prose, son titre compris.
NOT_PROSE = {
    *("bibliography", "code", "code-block", "code-cell", "contents", "eval-rst", "image", "include"),
    *("literalinclude", "math", "mermaid", "preuves", "raw", "sourcecode", "toctree"),
}
# Directives dont l'argument n'est pas un titre (un chemin, un nombre de colonnes).
ARGUMENT_NOT_PROSE = {"figure", "glossary", "grid", "grid-item", "tab-set", "div", "prf:proof"}

SPACES = re.compile(r"\s+")  # en Python, \s comprend U+00A0, U+2009 et U+202F

NUMBER = re.compile(
    r"""
    (?<![0-9A-Za-zÀ-ÿ_])(?<![0-9A-Za-zÀ-ÿ][-.])        # ni INT8, ni GPT-2
    (?:(?<![\w)])[−+±-]|×)?                             # −3, ×8
    (?:[0-9]{1,3}(?:[ ][0-9]{3})+(?![0-9])(?:,[0-9]+)?  # 10 616 832
      |[0-9]+(?:[.,][0-9]+)*(?:/[0-9]+)?)               # 0,954 ; 1/2
    [⁻⁰¹²³⁴-⁹]*                                         # 10⁻³
    (?:[ ]?%)?
    (?![Dd]\b)                                          # 2D
    """,
    re.VERBOSE,
)

_LABEL = r"[0-9]+(?:\.[0-9]+){0,2}"
_DOTTED = r"[0-9]+(?:\.[0-9]+){1,2}"
_YEAR = r"(?:19[0-9]{2}|20[0-2][0-9])[a-z]?"
EXCLUDED = [
    # « section 11.2 », « sections 11.2 et 11.3 », « exercice 11.1.1 », « § 3 », « chapitre 11 »
    re.compile(
        rf"(?:§|\b(?:sections?|exercices?|chapitres?)) ?{_LABEL}(?:(?:, | et | ou | à |–|-){_DOTTED})*"
        r"(?![0-9]|,[0-9]| ?%)",
        re.IGNORECASE,
    ),
    # « 11.1 », « 9.6.2 » : une section du cours, jamais un décimal (la prose écrit 11,1)
    re.compile(r"(?<![0-9.,])(?:9\.6|11\.[0-5]|12\.3)(?:\.[0-9]+)?(?![0-9]|[.,][0-9]| ?%)"),
    # « Eckart et Young (1936) », « (Hu et al., 2022) », « ICLR 2022 »
    re.compile(rf"(?:\b[A-ZÉÈ][a-zà-ÿ]+|\bal\.),? \(?{_YEAR}(?= ?[),.;:]|$)"),
    # « CC BY 4.0 », « Apache 2.0 » ; « 1 h 30 », une durée que l'on propose
    re.compile(r"\b(?:CC BY|CC0|Apache) [0-9]\.0\b|\b[0-9]+ h(?: [0-9]{2})?\b"),
    re.compile(rf"\b(?:AISTATS|CVPR|EMNLP|EUSIPCO|ICLR|ICML|NeurIPS) {_YEAR}\b"),
]
HEADING_NUMBER = re.compile(r"^[0-9]+(?:\.[0-9]+)*\.?(?= )")
HTML_MARKUP = re.compile(r"(?is)<!--.*?-->|<(pre|code|script|style|svg)\b.*?</\1>|<[^>]+>")
SENTENCE_END = re.compile(r"(?<=[.!?…]) (?=[A-ZÀ-Ý«(])")


@dataclass(frozen=True)
class Preuve:
    """Une phrase du carnet et la condition qui la vérifie."""

    phrase: str
    condition: str
    cell: int
    anchor: str


@dataclass(frozen=True)
class Nombre:
    """Un nombre de la prose, la phrase qui le porte et sa place."""

    text: str
    sentence: str
    cell: int
    proved: bool


@dataclass
class Block:
    """Un paragraphe, un titre ou une ligne de tableau ; `masked` marque ce qui n'est pas de la prose."""

    cell: int
    anchor: str
    heading: bool = False
    text: str = ""
    masked: list[bool] = field(default_factory=list)

    def add(self, text: str, *, masked: bool = False) -> None:
        """Ajoute un texte, les blancs réduits à une espace et les marques d'emphase ôtées."""
        text = SPACES.sub(" ", text if masked else text.replace("*", ""))
        if text.startswith(" ") and (not self.text or self.text.endswith(" ")):
            text = text[1:]
        self.text += text
        self.masked += [masked] * len(text)

    def close(self) -> Block:
        """Ôte l'espace finale et masque ce qui n'est pas un nombre à prouver."""
        self.text = self.text.rstrip()
        del self.masked[len(self.text) :]
        patterns = [HEADING_NUMBER, *EXCLUDED] if self.heading else EXCLUDED
        for pattern in patterns:
            for match in pattern.finditer(self.text):
                self.masked[match.start() : match.end()] = [True] * (match.end() - match.start())
        return self

    def numbers(self) -> Iterator[tuple[int, int]]:
        """Place de chaque nombre de la prose."""
        for match in NUMBER.finditer(self.text):
            if not any(self.masked[match.start() : match.end()]):
                yield match.span()

    def find(self, phrase: str) -> Iterator[tuple[int, int]]:
        """Place de chaque occurrence qui ne coupe aucun nombre (« 3 % » n'est pas dans « 13 % »)."""
        numbers = [match.span() for match in NUMBER.finditer(self.text)]
        start = self.text.find(phrase) if phrase else -1
        while start >= 0:
            end = start + len(phrase)
            if not any(a < start < b or a < end < b for a, b in numbers):
                yield start, end
            start = self.text.find(phrase, start + 1)

    def sentence(self, position: int) -> str:
        """La phrase du bloc qui contient cette position."""
        start = 0
        for match in SENTENCE_END.finditer(self.text):
            if match.start() >= position:
                return self.text[start : match.start()]
            start = match.end()
        return self.text[start:]


@cache
def parser() -> MarkdownIt:
    """L'analyseur du Markdown, réglé comme celui du livre."""
    return create_md_parser(MdParserConfig(enable_extensions=MYST_EXTENSIONS), RendererHTML)


def _add_inline(block: Block, children: list[Token]) -> None:
    """Verse un texte en ligne dans le bloc, sans emphase ni cible de lien ; code et formules sont masqués."""
    in_url = False
    for token in children:
        if token.type == "link_open":
            in_url = token.info == "auto" or token.markup in {"autolink", "linkify"}
        elif token.type == "link_close":
            in_url = False
        elif token.type == "text":
            block.add(token.content, masked=in_url)
        elif token.type in {"softbreak", "hardbreak"}:
            block.add(" ")
        elif token.type == "code_inline":
            block.add(f"`{token.content}`", masked=True)
        elif token.type.startswith("math"):
            block.add(f"${token.content}$", masked=True)
        elif token.type == "myst_role":
            block.add(f"{{{token.meta['name']}}}`{token.content}`", masked=True)
        elif token.type == "image":
            _add_inline(block, token.children or [])


def _directive_parts(token: Token) -> tuple[str, str, str]:
    """Nom, argument et corps d'une directive, les lignes d'options ôtées."""
    name, _, argument = token.info.strip()[1:].partition("}")
    lines = token.content.splitlines()
    if lines and lines[0].strip() == "---":
        closing = next((i for i, line in enumerate(lines[1:], 1) if line.strip() == "---"), 0)
        lines = lines[closing + 1 :]
    else:
        while lines and re.match(r"\s*:[\w-]+:", lines[0]):
            lines.pop(0)
    return name, argument.strip(), "\n".join(lines)


class _Reader:
    """Parcourt les cellules d'un carnet et en tire les blocs de prose."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.anchors: dict[int, str] = {}
        self.anchor = ""
        self.seen: set[str] = set()
        self.row: Block | None = None
        self.cell = 0

    def _text(self, source: str) -> None:
        """Un texte en ligne hors paragraphe : le titre d'une directive."""
        block = Block(self.cell, self.anchor)
        for token in parser().parseInline(source):
            _add_inline(block, token.children or [])
        self.blocks.append(block.close())

    def _heading(self, children: list[Token]) -> None:
        title = "".join(t.content for t in children if t.type not in {"html_inline", "softbreak"})
        anchor = nodes.make_id(title)
        if anchor and anchor not in self.seen:  # un titre répété a un id numéroté : on garde le précédent
            self.anchor = anchor
            self.seen.add(anchor)
        block = Block(self.cell, self.anchor, heading=True)
        _add_inline(block, children)
        self.blocks.append(block.close())

    def read(self, source: str) -> None:
        """Lit le Markdown d'une cellule ou d'une directive."""
        previous = ""
        for token in parser().parse(source):
            if token.type == "tr_open":
                self.row = Block(self.cell, self.anchor)
            elif token.type == "tr_close" and self.row is not None:
                self.blocks.append(self.row.close())
                self.row = None
            elif token.type == "inline":
                children = token.children or []
                if previous == "heading_open":
                    self._heading(children)
                elif self.row is not None:
                    self.row.add(" | " if self.row.text else "")
                    _add_inline(self.row, children)
                else:
                    block = Block(self.cell, self.anchor)
                    _add_inline(block, children)
                    self.blocks.append(block.close())
            elif token.type in {"fence", "colon_fence"} and token.info.strip().startswith("{"):
                name, argument, body = _directive_parts(token)
                if name not in NOT_PROSE and not name.startswith("auto"):
                    if name not in ARGUMENT_NOT_PROSE:
                        self._text(argument)
                    self.read(body)
            elif token.type == "html_block":
                block = Block(self.cell, self.anchor)
                block.add(HTML_MARKUP.sub(" ", token.content))
                self.blocks.append(block.close())
            previous = token.type


def cells_of(path: Path | str) -> list[dict[str, Any]]:
    """Les cellules d'un carnet, leur source d'un seul tenant ; une page est une cellule, suivie de sa preuve."""
    if Path(path).suffix == ".md":
        prose = {"cell_type": "markdown", "source": Path(path).read_text(encoding="utf-8")}
        proof = {"cell_type": "code", "source": _proof_of_page(Path(path)), "metadata": {"tags": [TAG]}}
        return [prose, proof]
    cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
    return [{**cell, "source": "".join(cell["source"])} for cell in cells]


def _proof_of_page(path: Path) -> str:
    """La fonction de `PROSE` qui porte le nom de la page, ou rien."""
    source = PROSE.read_text(encoding="utf-8") if PROSE.exists() else ""
    name = f"test_{re.sub(r'[^a-z0-9]', '_', path.stem.lower())}"
    functions = (node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == name)
    return next((ast.get_source_segment(source, node) or "" for node in functions), "")


def _is_hidden(cell: dict[str, Any]) -> bool:
    return TAG in cell.get("metadata", {}).get("tags", [])


def _read(path: Path | str) -> _Reader:
    reader = _Reader()
    for index, cell in enumerate(cells_of(path)):
        reader.cell = index
        if cell["cell_type"] == "markdown" and not _is_hidden(cell):
            reader.read(cell["source"])
        reader.anchors[index] = reader.anchor
    reader.blocks = [block for block in reader.blocks if block.text]
    return reader


@cache
def plain(phrase: str) -> str:
    """La phrase telle que la prose la rend : blancs réduits, emphase et cibles de liens ôtées."""
    block = Block(0, "")
    for token in parser().parseInline(phrase):
        _add_inline(block, token.children or [])
    return block.close().text


def preuves(path: Path | str) -> list[Preuve]:
    """Les phrases prouvées d'un carnet ou d'une page, dans l'ordre des `assert`.

    L'ancre est l'identifiant du titre qui précède la phrase (à défaut, la cellule). Une cellule illisible
    lève `SyntaxError`.
    """
    written = (file.read_text(encoding="utf-8") for file in (Path(path), PROSE) if file.exists())
    return [*_preuves(Path(path), *written)]


@cache
def _preuves(path: Path, *_written: str) -> list[Preuve]:
    """Celles d'un fichier, tel qu'il est écrit : plusieurs pages du livre les demandent."""
    reader = _read(path)
    found = []
    for index, cell in enumerate(cells_of(path)):
        if cell["cell_type"] != "code" or not _is_hidden(cell):
            continue
        # Les commandes d'IPython ne sont pas du Python : une ligne vide garde les numéros de ligne.
        source = re.sub(r"(?m)^[%!].*$", "", cell["source"])
        asserts = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assert)]
        for node in sorted(asserts, key=lambda node: (node.lineno, node.col_offset)):
            if isinstance(node.msg, ast.Constant) and isinstance(node.msg.value, str):
                phrase = node.msg.value
                places = (block.anchor for block in reader.blocks if any(block.find(plain(phrase))))
                anchor = next(places, reader.anchors[index])
                condition = ast.get_source_segment(source, node.test) or ast.unparse(node.test)
                found.append(Preuve(phrase, condition, index, anchor))
    return found


def nombres(path: Path | str) -> list[Nombre]:
    """Les nombres en chiffres de la prose d'un carnet, chacun avec sa phrase.

    N'en sont pas : le code, les formules, les options de directives, les cibles de liens, les numéros de
    sections et d'exercices, les années des citations, les numéros de listes, les noms comme INT8 ou 2D.
    """
    phrases = [plain(preuve.phrase) for preuve in preuves(path)]
    found = []
    for block in _read(path).blocks:
        proved = [span for phrase in phrases for span in block.find(phrase)]
        for start, end in block.numbers():
            covered = any(a <= start and end <= b for a, b in proved)
            found.append(Nombre(block.text[start:end], block.sentence(start), block.cell, covered))
    return found


def missing(path: Path | str) -> list[Preuve]:
    """Les preuves dont la phrase n'est pas dans la prose du carnet."""
    blocks = _read(path).blocks
    return [p for p in preuves(path) if not any(any(block.find(plain(p.phrase))) for block in blocks)]


def uncovered(path: Path | str) -> list[Nombre]:
    """Les nombres de la prose qu'aucune phrase prouvée ne contient."""
    return [nombre for nombre in nombres(path) if not nombre.proved]


# --- Sphinx ---


def _skeleton(text: str) -> str:
    """Les mots du texte, sans ponctuation : insensible aux guillemets et apostrophes que Sphinx embellit."""
    text = re.sub(r"\{[\w:-]+\}(?=`)", "", text)
    words = re.findall(r"[^\W_]+", text)
    return f" {' '.join(words)} "


def _is_page(env: Any, docname: str) -> bool:
    """Vrai d'une page qui n'est pas un carnet."""
    return not str(env.doc2path(docname)).endswith(".ipynb")


class PreuvesDirective(SphinxDirective):
    """`{preuves}` : un tableau par carnet, puis par page ; l'argument facultatif est un motif (`notebooks/11_00*`)."""

    optional_arguments = 1
    final_argument_whitespace = False

    def run(self) -> list[nodes.Node]:
        """Construit les tableaux ; les liens sont posés une fois tous les carnets lus."""
        pattern = self.arguments[0] if self.arguments else "*"
        env: Any = self.env
        env.preuves_pages.add(env.docname)
        self.env.note_dependency(str(PROSE))
        tables = []
        for docname in sorted(self.env.found_docs, key=lambda name: (_is_page(self.env, name), name)):
            if not fnmatch(docname, pattern):
                continue
            path = self.env.doc2path(docname)
            self.env.note_dependency(str(path))
            if proofs := preuves(path):
                tables.append(self._section(docname, path, proofs))
        return tables or [nodes.paragraph(text="Aucune preuve.")]

    def _section(self, docname: str, path: Path | str, proofs: list[Preuve]) -> nodes.section:
        title = next((block.text for block in _read(path).blocks if block.heading), docname)
        section = nodes.section(ids=[nodes.make_id(f"preuves-{docname}")], names=[])
        section += nodes.title(title, title)
        table = nodes.table(classes=["lrq-preuves", "colwidths-auto"])
        group = nodes.tgroup(cols=2)
        table += group
        group += [nodes.colspec(colwidth=1), nodes.colspec(colwidth=1)]
        titles = (nodes.paragraph(text=text) for text in ("Phrase", "Condition vérifiée"))
        head = nodes.row("", *(self._entry(title) for title in titles))
        body = nodes.tbody()
        group += [nodes.thead("", head), body]
        for index, proof in enumerate(proofs):
            link = nodes.reference("", plain(proof.phrase), internal=True, preuve=(docname, index))
            code = nodes.literal_block(proof.condition, proof.condition, language="python")
            body += nodes.row("", self._entry(nodes.paragraph("", "", link)), self._entry(code))
        section += table
        return section

    @staticmethod
    def _entry(child: nodes.Node) -> nodes.entry:
        return nodes.entry("", child)


def _init_env(app: Any) -> None:
    for name, value in (("preuves_pages", set()), ("preuves_anchors", {})):
        if not hasattr(app.env, name):
            setattr(app.env, name, value)


def _place_anchors(app: Any, doctree: nodes.document) -> None:
    """Pose un identifiant sur le paragraphe qui porte chaque phrase prouvée."""
    env = app.env
    proofs = preuves(env.doc2path(env.docname))
    if not proofs:
        return
    places = [(_skeleton(n.astext()), n) for n in doctree.findall(nodes.TextElement) if _can_hold(n)]
    places += [(_skeleton(row.astext()), row) for row in doctree.findall(nodes.row)]
    known = {i for section in doctree.findall(nodes.section) for i in section["ids"]}
    anchors = []
    for index, proof in enumerate(proofs, start=1):
        words = _skeleton(plain(proof.phrase))
        node = next((node for text, node in places if words in text), None)
        if node is None:
            anchors.append(proof.anchor if proof.anchor in known else "")
        elif isinstance(node, nodes.title):
            anchors.append(node.parent["ids"][0] if node.parent["ids"] else "")
        else:
            node["ids"].append(f"preuve-{index}")
            anchors.append(f"preuve-{index}")
    env.preuves_anchors[env.docname] = anchors


def _can_hold(node: nodes.Node) -> bool:
    return isinstance(node, (nodes.paragraph, nodes.title, nodes.term))


def _link(app: Any, doctree: nodes.document, docname: str) -> None:
    """Donne à chaque phrase de la page des preuves l'adresse de son paragraphe."""
    for node in list(doctree.findall(nodes.reference)):
        if "preuve" in node:
            target, index = node["preuve"]
            del node["preuve"]
            anchors = app.env.preuves_anchors.get(target, [])
            anchor = anchors[index] if index < len(anchors) else ""
            uri = app.builder.get_relative_uri(docname, target)
            node["refuri"] = f"{uri}#{anchor}" if anchor else uri


def _purge(app: Any, env: Any, docname: str) -> None:
    _init_env(app)
    env.preuves_pages.discard(docname)
    env.preuves_anchors.pop(docname, None)


def _merge(app: Any, env: Any, docnames: set[str], other: Any) -> None:
    env.preuves_pages |= other.preuves_pages & set(docnames)
    env.preuves_anchors.update({k: v for k, v in other.preuves_anchors.items() if k in docnames})


def _outdated(app: Any, env: Any, added: set[str], changed: set[str], removed: set[str]) -> list[str]:
    """Relit la page des preuves dès qu'un carnet paraît, change ou disparaît."""
    _init_env(app)
    if added | changed | removed:
        return sorted(env.preuves_pages - removed)
    return []


def setup(app: Any) -> dict[str, Any]:
    """Déclare la directive et les étapes qui posent les liens."""
    app.add_directive("preuves", PreuvesDirective)
    app.connect("builder-inited", _init_env)
    app.connect("env-get-outdated", _outdated)
    app.connect("env-purge-doc", _purge)
    app.connect("env-merge-info", _merge)
    app.connect("doctree-read", _place_anchors)
    app.connect("doctree-resolved", _link)
    return {"version": "1", "env_version": 1, "parallel_read_safe": True, "parallel_write_safe": True}
