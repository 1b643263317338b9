"""La recherche ne fait pas cas des accents : « singulieres » trouve « singulières », et l'inverse.

Chaque mot accentué entre dans l'index deux fois, tel quel et sans accents, et toute racine y perd les siens : les
terminaisons du français (« -ière », « -ée ») ne se reconnaissent qu'accentuées. La plus courante se ramène à la main :
« singulieres » donne la racine « singuli », comme « singuliers » et « singulières ». `livre/recherche.js` fait de même
de la question posée.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache
from typing import Any

from sphinx.search.fr import SearchFrench

LIGATURES = str.maketrans({"œ": "oe", "æ": "ae", "Œ": "OE", "Æ": "AE"})


@cache
def fold(text: str) -> str:
    """Le texte sans accents ni ligatures ; la fonction `fold` de recherche.js doit lui rester égale."""
    letters = unicodedata.normalize("NFD", text.translate(LIGATURES))
    return "".join(letter for letter in letters if not unicodedata.combining(letter))


@cache
def root_of(word: str, stem: Callable[[str], str]) -> str:
    """La racine que `stem` donne du mot, sans accents ; celle de « singulieres » est d'abord « singulier »."""
    return re.sub("ier$", "i", fold(stem(word)))


class SearchFolded(SearchFrench):
    """Le français de Sphinx, accents repliés."""

    def split(self, input: str) -> list[str]:
        """Les mots du texte, et la forme sans accents de ceux qui en ont."""
        words = super().split(input)
        return words + [folded for word in words if (folded := fold(word)) != word]

    def word_filter(self, word: str) -> bool:
        """Faux pour un mot vide : « où » et « là » le sont comme « ou » et « la »."""
        return super().word_filter(fold(word.lower()))

    def stem(self, word: str) -> str:
        """La racine du mot, sans accents ; le mot entier si elle est un mot vide, comme « sur » pour « sûrement »."""
        root = root_of(word, super().stem)
        return root if self.word_filter(root) else fold(word)


def _add_script(app: Any, pagename: str, *_: Any) -> None:
    if pagename == "search":
        app.add_js_file("livre/recherche.js", loading_method="defer")


def setup(app: Any) -> dict[str, Any]:
    """Remplace la langue « fr » de l'index et complète la page de recherche."""
    app.add_search_language(SearchFolded)
    app.connect("html-page-context", _add_script)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
