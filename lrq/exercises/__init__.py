"""Les exercices du livre : ``verifier("11.1.1", ma_fonction)`` répond en français, et dit pourquoi."""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..validation import check_integer
from . import progress
from .engine import Bilan, Exercise, verify
from .progress import Progression
from .section_09_06 import EXERCISE_9_6_1, EXERCISE_9_6_2
from .section_11_00 import EXERCISE_11_1
from .section_11_01 import EXERCISE_11_1_1, EXERCISE_11_1_2, EXERCISE_11_1_3
from .section_11_02 import EXERCISE_11_2_1, EXERCISE_11_2_2, EXERCISE_11_2_3
from .section_11_03 import EXERCISE_11_2, EXERCISE_11_3_1, EXERCISE_11_3_2, EXERCISE_11_3_3
from .section_11_04 import EXERCISE_11_3, EXERCISE_11_4_1, EXERCISE_11_4_2
from .section_11_05 import EXERCISE_11_5_1, EXERCISE_11_5_2, EXERCISE_11_5_3
from .section_12_03 import EXERCISE_12_3_1, EXERCISE_12_3_2

# Dans l'ordre où le livre les donne : certains gardent le numéro d'un autre chapitre.
SECTIONS: dict[str, tuple[Exercise, ...]] = {
    "11.0": (EXERCISE_11_1,),
    "11.1": (EXERCISE_11_1_1, EXERCISE_11_1_2, EXERCISE_11_1_3),
    "11.2": (EXERCISE_11_2_1, EXERCISE_11_2_2, EXERCISE_11_2_3),
    "11.3": (EXERCISE_11_2, EXERCISE_11_3_1, EXERCISE_11_3_2, EXERCISE_11_3_3),
    "11.4": (EXERCISE_11_3, EXERCISE_11_4_1, EXERCISE_11_4_2),
    "11.5": (EXERCISE_11_5_1, EXERCISE_11_5_2, EXERCISE_11_5_3),
    "9.6": (EXERCISE_9_6_1, EXERCISE_9_6_2),
    "12.3": (EXERCISE_12_3_1, EXERCISE_12_3_2),
}
EXERCISES: dict[str, Exercise] = {
    exercise.number: exercise for exercises in SECTIONS.values() for exercise in exercises
}


def verifier(numero: str, fonction: Callable[..., Any], graine: int | None = None) -> Bilan:
    """Vérifie la réponse à un exercice.

    Parameters
    ----------
    numero : str
        Par exemple ``"11.1.1"``.
    fonction : callable
        Votre réponse, sans parenthèses.
    graine : int, optionnel
        Pour rejouer les instances d'un essai précédent ; par défaut, elles changent à chaque appel.

    Returns
    -------
    Bilan
        Affiché tel quel dans un notebook ; ``bilan.reussi`` vaut True ou False. Il dit aussi si l'essai a été noté dans
        votre progression (:func:`ma_progression`).

    Raises
    ------
    TypeError, ValueError
        Aucun exercice ne porte ce numéro ; une graine qui n'est pas un entier positif, sur 63 bits au plus.
    """
    if numero not in tuple(EXERCISES):
        raise ValueError(f"numero : reçu {numero!r}, attendu l'un de {', '.join(map(repr, EXERCISES))}.")
    if graine is not None:
        graine = check_integer(graine, "graine", 0, 2**63 - 1)
    bilan = verify(EXERCISES[numero], fonction, graine)
    note = progress.note(bilan, tuple(EXERCISES))
    return replace(bilan, lines=(*bilan.lines, ("•", note))) if note else bilan


def ma_progression(fichier: str | os.PathLike[str] | None = None) -> Progression:
    """Montre ce qui est résolu, et propose l'exercice suivant.

    Dans les copies de ``make exercices``, `verifier` note chaque essai dans ``exercices/progression.json``. Ailleurs
    (Colab, un dossier à soi), rien n'est noté tant que le lecteur n'a pas nommé un fichier. Rien n'est jamais envoyé.

    Parameters
    ----------
    fichier : str ou chemin, optionnel
        Le fichier où noter la suite de la session, créé s'il n'existe pas ; par défaut, le ``progression.json`` du
        dossier courant, s'il y en a un.

    Returns
    -------
    Progression
        Affichée telle quelle dans un notebook.

    Raises
    ------
    TypeError, ValueError
        `fichier` n'est pas un chemin ; il est illisible ou d'une autre version (il est laissé tel quel), ou son dossier
        n'existe pas.
    OSError
        Le dossier refuse l'écriture.
    """
    path = progress.current() if fichier is None else progress.open_progress(fichier)
    return Progression(SECTIONS, progress.load(path) if path else {}, path)


__all__ = ["EXERCISES", "SECTIONS", "Bilan", "Progression", "ma_progression", "verifier"]
