"""Les exercices du livre : ``verifier("11.1.1", ma_fonction)`` répond en français, et dit pourquoi."""

from collections.abc import Callable
from typing import Any

from .engine import Bilan, Exercise, verify
from .section_09_06 import EXERCISE_9_6_1, EXERCISE_9_6_2
from .section_11_00 import EXERCISE_11_1
from .section_11_01 import EXERCISE_11_1_1, EXERCISE_11_1_2, EXERCISE_11_1_3
from .section_11_02 import EXERCISE_11_2_1, EXERCISE_11_2_2, EXERCISE_11_2_3
from .section_11_03 import EXERCISE_11_2, EXERCISE_11_3_1, EXERCISE_11_3_2, EXERCISE_11_3_3
from .section_11_04 import EXERCISE_11_3, EXERCISE_11_4_1, EXERCISE_11_4_2
from .section_11_05 import EXERCISE_11_5_1, EXERCISE_11_5_2, EXERCISE_11_5_3
from .section_12_03 import EXERCISE_12_3_1, EXERCISE_12_3_2

EXERCISES: dict[str, Exercise] = {
    exercise.number: exercise
    for exercise in (
        EXERCISE_9_6_1,
        EXERCISE_9_6_2,
        EXERCISE_11_1,
        EXERCISE_11_2,
        EXERCISE_11_1_1,
        EXERCISE_11_1_2,
        EXERCISE_11_1_3,
        EXERCISE_11_2_1,
        EXERCISE_11_2_2,
        EXERCISE_11_2_3,
        EXERCISE_11_3,
        EXERCISE_11_3_1,
        EXERCISE_11_3_2,
        EXERCISE_11_3_3,
        EXERCISE_11_4_1,
        EXERCISE_11_4_2,
        EXERCISE_11_5_1,
        EXERCISE_11_5_2,
        EXERCISE_11_5_3,
        EXERCISE_12_3_1,
        EXERCISE_12_3_2,
    )
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
        Affiché tel quel dans un notebook ; ``bilan.reussi`` vaut True ou False.

    Raises
    ------
    ValueError
        Aucun exercice ne porte ce numéro.
    """
    if numero not in EXERCISES:
        raise ValueError(f"numero : reçu {numero!r}, attendu l'un de {', '.join(map(repr, EXERCISES))}.")
    return verify(EXERCISES[numero], fonction, graine)


__all__ = ["EXERCISES", "Bilan", "verifier"]
