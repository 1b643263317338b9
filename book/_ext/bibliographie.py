"""La bibliographie en français : le style « alpha » de pybtex, ses mots traduits, les titres anglais déclarés tels.

Le style de pybtex écrit ses mots en dur, dans des arbres de gabarits : ici, on les relit et on les traduit. Un titre
est en anglais sauf si sa notice porte `langid = {french}` ; un lecteur d'écran le prononce alors comme il faut.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from pybtex.plugin import register_plugin
from pybtex.richtext import Text
from pybtex.style import FormattedEntry
from pybtex.style.formatting import toplevel
from pybtex.style.formatting.alpha import Style as AlphaStyle
from pybtex.style.formatting.unsrt import date, pages
from pybtex.style.template import Node, field, first_of, join, names, optional, optional_field, sentence, tag, words
from pybtex_docutils import Backend

NBSP = "\N{NO-BREAK SPACE}"

WORDS = {
    "In": "Dans",
    "in": "dans",
    "of": "de",
    "Number": "Numéro",
    "number": "numéro",
    "Volume": "Vol.",
    "volume": "vol.",
    "chapter": "chapitre",
    "editor": "éditeur",
    "editors": "éditeurs",
    "edition": "édition",
    "Master's thesis": "Mémoire de master",
    "PhD thesis": "Thèse de doctorat",
    "Technical Report": "Rapport technique",
    " (visited on ": " (consulté le ",
    "URL:": f"URL{NBSP}:",
}
FOREIGN = {"title", "booktitle", "journal", "series"}


def ordinal(number: Text) -> Text:
    """« 4 » devient « 4ᵉ » ; un nombre déjà écrit en lettres n'est pas changé."""
    digits = str(number)
    if not digits.isdigit():
        return number
    return Text(digits, "ʳᵉ" if digits == "1" else "ᵉ")


def french(template: Any, foreign: bool) -> Any:
    """Copie d'un gabarit de pybtex : ses mots traduits, ses titres marqués s'ils sont en langue étrangère."""
    if isinstance(template, str):
        return WORDS.get(template, template)
    if isinstance(template, (list, tuple)):
        return [french(child, foreign) for child in template]
    if not isinstance(template, Node):
        return template
    copy = template._clone()
    copy.children = [french(child, foreign) for child in template.children]
    if foreign and template.name == "field" and template.args[0] in FOREIGN:
        return tag("foreign")[copy]
    return copy


class Style(AlphaStyle):
    """Le style « alpha », en français."""

    def format_names(self, role: str, as_sentence: bool = True) -> Node:
        """« A, B et C »."""
        formatted = names(role, sep=", ", sep2=" et ", last_sep=" et ")
        return sentence[formatted] if as_sentence else formatted

    def format_edition(self, e: Any) -> Node:
        """« 4ᵉ édition »."""
        return optional[words[field("edition", apply_func=ordinal), "édition"]]

    def get_article_template(self, e: Any) -> Node:
        """« vol. 1, nᵒ 3, p. 211–218 », et non « 1(3):211–218 »."""
        return toplevel[
            self.format_names("author"),
            self.format_title(e, "title"),
            sentence[
                tag("em")[field("journal")],
                optional[join["vol.", NBSP, field("volume")]],
                optional[join["n", "ᵒ", NBSP, field("number")]],
                optional[join["p.", NBSP, pages]],
                date,
            ],
            sentence[optional_field("note")],
            self.format_web_refs(e),
        ]

    def get_inproceedings_template(self, e: Any) -> Node:
        """Comme pybtex, avec « p. » devant les pages."""
        return toplevel[
            sentence[self.format_names("author")],
            self.format_title(e, "title"),
            sentence[
                words[
                    "In",
                    join(sep=", ")[
                        optional[self.format_editor(e, as_sentence=False)],
                        self.format_btitle(e, "booktitle", as_sentence=False),
                        self.format_volume_and_series(e, as_sentence=False),
                        optional[join["p.", NBSP, pages]],
                    ],
                ],
                first_of[optional[field("organization")], optional_field("publisher")],
                optional_field("address"),
                date,
            ],
            sentence[optional_field("note")],
            self.format_web_refs(e),
        ]

    def format_entry(self, label: str, entry: Any, bib_data: Any = None) -> FormattedEntry:
        """La notice mise en forme, par son gabarit traduit."""
        template = french(
            getattr(self, f"get_{entry.type}_template")(entry),
            foreign=entry.fields.get("langid", "english") != "french",
        )
        context = {"entry": entry, "style": self, "bib_data": bib_data}
        return FormattedEntry(entry.key, template.format_data(context), label)


def _foreign(rawsource: str, text: str, *children: nodes.Node) -> nodes.inline:
    """Un titre anglais : docutils fait de cette classe l'attribut `lang`."""
    return nodes.inline(rawsource, text, *children, classes=["language-en"])


def setup(app: Any) -> dict[str, Any]:
    """Déclare le style, que `bibtex_default_style` nomme, et ce que devient un titre étranger."""
    register_plugin("pybtex.style.formatting", "francais", Style)
    Backend.tags["foreign"] = _foreign
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
