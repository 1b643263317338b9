"""Le livre en français jusqu'au bout : ses espaces, et les mots que le thème et les extensions laissent en anglais.

Ces mots sont écrits en dur dans des gabarits, des scripts et des attributs pour lecteurs d'écran, hors de tout
catalogue : on les remplace dans les pages construites. Les redéfinir un à un figerait des copies du thème.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx import addnodes
from sphinx.transforms import SphinxTransform
from sphinx.util.docutils import SphinxDirective
from sphinx_proof.nodes import proof_node

TRANSLATIONS = {
    'title="Toggle primary sidebar"': 'title="Afficher ou masquer le sommaire"',
    'title="Toggle secondary sidebar"': 'title="Afficher ou masquer le plan de la page"',
    'aria-label="Main"': 'aria-label="Sommaire du livre"',
    'aria-label="Page"': 'aria-label="Plan de la page"',
    ' aria-label="Toggle hidden content"': "",  # le texte visible (« Afficher le code ») est le meilleur nom
    'placeholder="Search this book..."': 'placeholder="Chercher dans le livre…"',
    'aria-label="Search this book..."': 'aria-label="Chercher dans le livre"',
    'aria-label="Téléchargez cette page"': 'aria-label="Télécharger cette page"',
    # Le nom d'un bouton commence par son texte : le raccourci, qui suit « Recherche », ne se lit pas à voix haute.
    '<span class="search-button__kbd-shortcut">': '<span class="search-button__kbd-shortcut" aria-hidden="true">',
    "<title>Recherche - ": "<title>Recherche — ",
    "<title>Vue d&#39;ensemble : code du module": "<title>Code des modules",
    "© Copyright ": "© ",
    # Les boutons du dépôt (depot.py) : le thème en laisse presque tous les mots en anglais.
    'title="Source repositories"': 'title="Le dépôt du livre"',
    'aria-label="Source repositories"': 'aria-label="Le dépôt du livre"',
    'title="Launch interactive content"': 'title="Ouvrir ce carnet en ligne"',
    'aria-label="Launch interactive content"': 'aria-label="Ouvrir ce carnet en ligne"',
    "Launch on": "Ouvrir dans",
    "Suggest edit": "Modifier la page",
    "Open issue": "Signaler un problème",
    "Ouvrez un problème": "Signaler un problème",
    '<span class="btn__text-container">Repository</span>': '<span class="btn__text-container">Dépôt</span>',
    "title=Issue%20on%20page%20%2F": "title=Page%20",
    "&body=Your%20issue%20content%20here.": "",
    "'Copié !'": "'Copié\N{NARROW NO-BREAK SPACE}!'",
    "'Copier dans le presse-papier'": "'Copier dans le presse-papiers'",
}
SCRIPTS = ["togglebutton.js", "copybutton.js"]


def translate(text: str) -> str:
    """Remplace chaque morceau anglais ; un texte déjà traduit n'est pas changé."""
    for english, french in TRANSLATIONS.items():
        text = text.replace(english, french)
    return text


def _translate_build(app: Any, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    folder = Path(app.outdir)
    for path in [*folder.rglob("*.html"), *(folder / "_static" / name for name in SCRIPTS)]:
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            if (french := translate(text)) != text:
                path.write_text(french, encoding="utf-8")


# --- Les espaces ---

NBSP, NARROW = "\N{NO-BREAK SPACE}", "\N{NARROW NO-BREAK SPACE}"
SPACES: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"[ \n](?=[;:!?%»](?!\w))"), NBSP),
    (re.compile(r"(?<=«)[ \n]"), NBSP),
    (re.compile(r"(?<![\d.,])(\d{1,3})((?: \d{3})+)(?!\.?\d)"), lambda found: found[0].replace(" ", NARROW)),
]
NOT_PROSE = (nodes.FixedTextElement, nodes.literal, nodes.math, nodes.raw, addnodes.desc_signature)


def space(text: str) -> str:
    """Le texte, ses espaces rendues insécables là où le français n'en veut pas d'autres."""
    for pattern, replacement in SPACES:
        text = pattern.sub(replacement, text)
    return text


class Spaces(SphinxTransform):
    """Les espaces de la prose : l'auteur en tape d'ordinaires, le livre ne coupe pas une ligne devant « : »."""

    default_priority = 760  # juste après les guillemets et apostrophes de Sphinx, avant que les titres soient relevés

    def apply(self, **kwargs: Any) -> None:
        """Chaque texte, hors du code et des formules."""
        for text in list(self.document.findall(nodes.Text)):
            if (spaced := space(str(text))) != text and not any(map(_is_not_prose, _ancestors(text))):
                text.parent.replace(text, nodes.Text(spaced))


class EnglishTerms(SphinxTransform):
    """Le mot anglais, en italique, qui ouvre une définition du glossaire : docutils en fait un attribut `lang`."""

    default_priority = 760

    def apply(self, **kwargs: Any) -> None:
        """La première emphase de chaque définition."""
        for glossary in self.document.findall(addnodes.glossary):
            for definition in glossary.findall(nodes.definition):
                if isinstance(first := definition[0][0], nodes.emphasis):
                    first["classes"].append("language-en")


def _is_not_prose(node: nodes.Node) -> bool:
    return isinstance(node, NOT_PROSE)


def _ancestors(node: nodes.Node) -> Iterator[nodes.Node]:
    while (node := node.parent) is not None:
        yield node


# --- Les mots ---


class Demonstration(SphinxDirective):
    """`{prf:proof}` : sphinx-proof y écrit « Proof. » en dur, et le même identifiant à toutes."""

    has_content = True
    option_spec = {"class": directives.class_option}  # noqa: RUF012 - docutils le veut ainsi

    def run(self) -> list[nodes.Node]:
        """Le texte, ouvert par « Démonstration. »."""
        self.assert_has_content()
        proof = nodes.admonition(classes=["proof", *self.options.get("class", [])])
        self.state.nested_parse(self.content, self.content_offset, proof)
        if not isinstance(proof[0], nodes.paragraph):  # une démonstration qui s'ouvre sur une formule
            proof.insert(0, nodes.paragraph())
        proof[0].insert(0, [nodes.emphasis(text="Démonstration."), nodes.Text(" ")])
        return [proof_node("", proof)]


def _drop_english_docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Une méthode sans docstring hérite celle de PyTorch, en anglais et qui ne dit rien de la couche."""
    from torch import nn

    inherited = inspect.getdoc(getattr(nn.Module, name.rpartition(".")[2], None))
    if inherited and "\n".join(lines).strip() == inherited:
        lines.clear()


def _replace_directive(app: Any, _config: Any) -> None:
    app.add_directive_to_domain("prf", "proof", Demonstration, override=True)


def setup(app: Any) -> dict[str, Any]:
    """Corrige les espaces et les démonstrations à la lecture, traduit le reste une fois le livre construit."""
    app.add_transform(Spaces)
    app.add_transform(EnglishTerms)
    app.connect("config-inited", _replace_directive)  # le domaine existe alors, quel que soit l'ordre des extensions
    app.connect("autodoc-process-docstring", _drop_english_docstring, priority=400)  # avant napoleon
    app.connect("build-finished", _translate_build)
    return {"version": "2", "parallel_read_safe": True, "parallel_write_safe": True}
