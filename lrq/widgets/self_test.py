"""Cinq questions sur une section, aux nombres toujours neufs, que la page du livre pose et corrige sans noyau."""

from typing import Any

import anywidget
import traitlets

from ..validation import check_choice
from .explorer import CSS, Integer, css, esm

SECTIONS = ("11.0", "11.1", "11.2", "11.3", "11.4", "11.5", "9.6", "12.3")


class Seed(Integer):
    """Une graine, ou rien."""

    expected = "un entier de 0 à 2³² − 1, ou None"

    def validate(self, obj: Any, value: Any) -> int:
        if not 0 <= super().validate(obj, value) < 2**32:
            self.error(obj, value)
        return value


class SelfTest(anywidget.AnyWidget):
    """Cinq questions sur une section, chacune avec ses fautes classiques expliquées et son calcul.

    Parameters
    ----------
    section : str
        « 11.0 » à « 11.5 », « 9.6 » ou « 12.3 ».
    seed : int, optionnel
        La même graine, de 0 à 2³² − 1, pose les mêmes questions. Sans graine, le navigateur en tire de neuves à chaque
        visite.

    Attributes
    ----------
    seed : int ou None
        Python peut la changer : les cinq questions sont alors tirées de nouveau.

    Raises
    ------
    ValueError
        Une section sans questions.
    TraitError
        Une graine hors de ses bornes.

    Notes
    -----
    La page ne reçoit ni énoncé rempli, ni réponse : elle tire les nombres, calcule la réponse par ``js/numerics.js``,
    que PyTorch certifie, et oublie tout à la fermeture.
    """

    _css = CSS + css("self_test.css")
    _esm = traitlets.Unicode().tag(sync=True)

    seed = Seed(None, allow_none=True).tag(sync=True)

    def __init__(self, section: str, seed: int | None = None):
        self._section = check_choice(section, "section", SECTIONS)
        super().__init__(_esm=esm(f"questions_{section.replace('.', '_')}.js"), seed=seed)

    @property
    def section(self) -> str:
        """La section dont ce sont les questions."""
        return self._section

    def __repr__(self) -> str:  # sans adresse, et le même d'une exécution à l'autre : nbval le compare
        return f"SelfTest {self.section} : cinq questions, aux nombres neufs à chaque visite"
