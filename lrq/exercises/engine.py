"""Le moteur des exercices : exécuter la fonction du lecteur, éprouver des propriétés, expliquer ce qui manque.

Un exercice ne compare jamais à une réponse rangée d'avance. Il tire des instances fraîches, vérifie sur chacune des
propriétés qui *certifient* la réponse, et, si elles échouent, cherche parmi les fautes classiques celle qui donne
exactement le résultat du lecteur.
"""

import contextlib
import copy
import ctypes
import html
import operator
import random
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

TIME_LIMIT = 5.0  # secondes par appel


# --- ce qu'un exercice déclare ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """Une instance : les arguments à donner, comment la nommer au lecteur, et le refus attendu s'il y en a un."""

    label: str
    args: tuple[Any, ...]
    refusal: type[Exception] | None = None


@dataclass(frozen=True)
class Property:
    """Ce qui doit être vrai d'un résultat ; `why` dit, chiffres à l'appui, pourquoi ce ne l'est pas."""

    text: str
    holds: bool
    why: str = ""
    always: bool = False  # jugée sur toute instance, même quand la fonction n'a rien rendu d'exploitable


@dataclass(frozen=True)
class Mistake:
    """Une faute classique, reconnue à son effet : une des fonctions de `wrong` donne le résultat du lecteur."""

    name: str
    explanation: str
    wrong: tuple[Callable[..., Any], ...]


@dataclass(frozen=True)
class Exercise:
    """Un exercice : ses instances, ses propriétés, ses fautes classiques.

    Attributes
    ----------
    number, title : str
    cases : fonction d'un générateur vers des instances fraîches
    properties : fonction d'un résultat et d'une instance vers des propriétés, de la plus simple à la plus exigeante
    mistakes : fautes classiques
    across : fonction de toutes les instances et de tous les résultats vers des propriétés qui les comparent
    signature : la partie du résultat qui ne dépend d'aucun tirage, pour reconnaître une faute
    portrait : fonction de cette partie et de l'instance vers ce qui reconnaît une faute, quand la méthode est libre
    trial : l'épreuve, fonction de la réponse du lecteur et des arguments vers le résultat ; un simple appel par défaut
    """

    number: str
    title: str
    cases: Callable[[torch.Generator], list[Case]]
    properties: Callable[[Any, Case], Iterable[Property]]
    mistakes: tuple[Mistake, ...]
    across: Callable[[Sequence[Case], Sequence[Any]], Iterable[Property]] = field(default=lambda cases, results: ())
    signature: Callable[[Any], Any] = field(default=lambda result: result)
    portrait: Callable[[Any, Case], Any] = field(default=lambda result, case: result)
    trial: Callable[[Callable[..., Any], tuple[Any, ...]], Any] = field(default=lambda function, args: function(*args))


# --- exécuter sans se laisser enfermer --------------------------------------------------------------------------------


class TooLong(BaseException):
    """Le temps est écoulé. Dérive de BaseException : un « except Exception » du lecteur ne l'arrête pas."""


def run_within(exercise: Exercise, function: Callable[..., Any], args: tuple[Any, ...], seconds: float) -> Any:
    """Éprouve `function` dans un fil à part, et lève TooLong (avec la ligne en cause) si le temps passe.

    Le fil reçoit alors TooLong à son tour, plusieurs fois ; une boucle qui avale jusqu'à cette exception est
    abandonnée, et le lecteur a sa réponse dans tous les cas.
    """
    values: list[Any] = []
    errors: list[BaseException] = []
    threads = torch.get_num_threads()

    def work() -> None:
        torch.set_num_threads(threads)  # un fil neuf l'oublie, et deux calculs voisins s'attendent
        with contextlib.suppress(TooLong):
            try:
                values.append(exercise.trial(function, args))
            except BaseException as error:
                errors.append(error)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    worker.join(seconds)
    if worker.is_alive():
        place = line_at_fault(traceback.extract_stack(sys._current_frames().get(worker.ident or 0)), function)
        for _ in range(20):
            if worker.is_alive():
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(worker.ident or 0), ctypes.py_object(TooLong))
                worker.join(0.05)
        raise TooLong(place)
    if errors:
        raise errors[0]
    return values[0]


def line_at_fault(stack: traceback.StackSummary, function: Callable[..., Any]) -> str:
    """« ligne 3 : … » : la ligne la plus profonde de la pile qui appartient au fichier (ou à la cellule) du lecteur."""
    filename = getattr(getattr(function, "__code__", None), "co_filename", None)
    own = [frame for frame in stack if frame.filename == filename]
    return f"ligne {own[-1].lineno} : {own[-1].line}" if own else ""


def copy_of(value: Any) -> Any:
    """Copie des arguments, pour que le lecteur ne puisse pas abîmer les nôtres."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, list):
        return [copy_of(item) for item in value]
    if isinstance(value, tuple):
        return tuple(copy_of(item) for item in value)
    return copy.deepcopy(value) if isinstance(value, nn.Module) else value


def same(a: Any, b: Any) -> bool:
    """Égalité à l'arrondi près, dans les tenseurs, les couches, les dictionnaires et les suites."""
    if isinstance(a, nn.Module) and isinstance(b, nn.Module):
        return same(a.state_dict(), b.state_dict())
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, BaseException) or isinstance(b, BaseException):
        return type(a) is type(b)
    try:
        x, y = torch.as_tensor(a).detach().double(), torch.as_tensor(b).detach().double()
        scale = float(y.abs().nan_to_num(0, 0).max()) if y.numel() else 0.0  # l'arrondi suit le plus grand coefficient
        return x.shape == y.shape and torch.allclose(x, y, rtol=1e-4, atol=1e-7 + 1e-5 * scale, equal_nan=True)
    except (TypeError, ValueError, RuntimeError):
        try:
            return bool(a == b)
        except Exception:  # un objet qui ne se compare pas, ou un tableau d'objets
            return False


def as_integer(value: Any) -> int | None:
    """L'entier que porte `value` (int, entier NumPy, tenseur à un élément), ou None ; un booléen n'en est pas un."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


# --- le compte rendu --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bilan:
    """Ce que `verifier` répond : un verdict, ce qui a été essayé, ce qui tient, ce qui ne tient pas et pourquoi.

    Attributes
    ----------
    number, title : str
        L'exercice.
    verdict : "réussi", "à revoir", "à compléter" ou "erreur"
    lines : suite de (« ✓ », « ✗ » ou « • », texte)
    """

    number: str
    title: str
    verdict: str
    lines: tuple[tuple[str, str], ...]

    @property
    def reussi(self) -> bool:
        """Vrai si toutes les propriétés tiennent."""
        return self.verdict == "réussi"

    def __repr__(self) -> str:
        body = "\n".join(f"  {mark} {text}" for mark, text in self.lines)
        return f"Exercice {self.number} — {self.title} : {self.verdict}\n{body}"

    def _repr_html_(self) -> str:
        style = {"réussi": "reussi", "à compléter": "a-completer"}.get(self.verdict, "a-revoir")
        items = "".join(f"<li><span>{mark}</span> {html.escape(text)}</li>" for mark, text in self.lines)
        head = f"Exercice {html.escape(self.number)} — {html.escape(self.title)} : {self.verdict}"
        colour = {"reussi": "#1a7f37", "a-completer": "#9a6700", "a-revoir": "#d14300"}[style]
        return (
            f'<div class="lrq-bilan lrq-{style}" role="status" style="border-left:4px solid {colour};padding:0 1em">'
            f'<p><strong>{head}</strong></p><ul style="list-style:none;padding:0">{items}</ul></div>'
        )


# --- vérifier ---------------------------------------------------------------------------------------------------------


def random_states() -> tuple[Any, Any, Any]:
    """États des générateurs globaux de PyTorch, de NumPy et de Python."""
    return torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002


def same_states(a: tuple[Any, Any, Any], b: tuple[Any, Any, Any]) -> bool:
    """Vrai si aucun des trois générateurs n'a servi."""
    return torch.equal(a[0], b[0]) and np.array_equal(a[1][1], b[1][1]) and a[1][2] == b[1][2] and a[2] == b[2]


def attempt(exercise: Exercise, function: Callable[..., Any], case: Case) -> tuple[Any, list[Property]]:
    """Un appel surveillé : le résultat (ou l'exception), et les propriétés exigées de toute fonction."""
    args = tuple(copy_of(argument) for argument in case.args)
    before = random_states()
    try:
        result = run_within(exercise, function, args, TIME_LIMIT)
    except (Exception, TooLong, SystemExit) as error:  # sys.exit() n'est pas une réponse
        result = error
    finally:
        consumed = not same_states(before, random_states())
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002 — c'est le générateur global qu'on rétablit
        random.setstate(before[2])
    properties = [
        Property(
            "la fonction va au bout", not isinstance(result, BaseException), explain(result, function), always=True
        ),
        Property(
            "les arguments ne sont pas modifiés",
            same(args, case.args),
            "un argument a changé pendant l'appel : travaillez sur une copie (clone), sans opération en place",
            True,
        ),
        Property(
            "le générateur aléatoire global n'est pas touché",
            not consumed,
            "l'appel a consommé un générateur global (PyTorch, NumPy ou Python) : passez un torch.Generator "
            "à vos tirages, sinon le reste du programme n'est plus reproductible",
            True,
        ),
    ]
    if case.refusal is not None:
        name = case.refusal.__name__
        refused = isinstance(result, case.refusal)
        properties[0] = Property(
            f"l'impossible est refusé par {name}", refused, f"attendu {name}, reçu {result!r}", True
        )
    return result, properties


def explain(result: Any, function: Callable[..., Any]) -> str:
    """Ce qui a interrompu la fonction, avec la ligne du lecteur en cause."""
    if not isinstance(result, BaseException):
        return ""
    if isinstance(result, TooLong):
        return f"arrêtée après {TIME_LIMIT:.0f} s, boucle sans fin ou travail refait pour rien — {result}"
    place = line_at_fault(traceback.extract_tb(result.__traceback__), function)
    return f"{type(result).__name__} : {result}" + (f" — {place}" if place else "")


# Ce que donne une faute sur une instance : exercice, graine, faute, instance → son effet. Pour qui rejoue une graine.
EFFECTS: dict[tuple[str, int, Callable[..., Any], int], Any] = {}
KEPT = 2000


def diagnose(exercise: Exercise, seed: int, cases: Sequence[Case], results: Sequence[Any]) -> Mistake | None:
    """La faute classique dont l'effet coïncide, instance par instance, avec les résultats du lecteur."""
    if len(EFFECTS) > KEPT:
        EFFECTS.clear()

    def portrait(result: Any, case: Case) -> Any:
        try:
            return result if isinstance(result, BaseException) else exercise.portrait(exercise.signature(result), case)
        except Exception as error:
            return error

    def effect(wrong: Callable[..., Any], index: int) -> Any:
        key = (exercise.number, seed, wrong, index)
        if key not in EFFECTS:
            try:
                args = tuple(map(copy_of, cases[index].args))
                EFFECTS[key] = portrait(exercise.trial(wrong, args), cases[index])
            except Exception as error:
                EFFECTS[key] = error
        return EFFECTS[key]

    def matches(wrong: Callable[..., Any]) -> bool:
        return all(same(effect(wrong, i), portrait(result, cases[i])) for i, result in enumerate(results))

    return next((mistake for mistake in exercise.mistakes if any(matches(wrong) for wrong in mistake.wrong)), None)


def judge(exercise: Exercise, result: Any, case: Case) -> Iterable[Property]:
    """Les propriétés de l'exercice, si la fonction a rendu quelque chose d'exploitable."""
    if isinstance(result, BaseException) or case.refusal is not None:
        return []
    try:
        return list(exercise.properties(result, case))
    except Exception:
        return [Property("le résultat a la forme demandée", False, f"reçu {result!r}")]


def verify(exercise: Exercise, function: Callable[..., Any], seed: int | None = None) -> Bilan:
    """Éprouve `function` sur des instances fraîches de l'exercice.

    Parameters
    ----------
    exercise : Exercise
    function : la réponse du lecteur
    seed : int, optionnel
        Graine des instances ; tirée au hasard par défaut, et dite quand quelque chose échoue.

    Returns
    -------
    Bilan
    """

    def report(verdict: str, lines: Iterable[tuple[str, str]]) -> Bilan:
        return Bilan(exercise.number, exercise.title, verdict, tuple(lines))

    if not callable(function):
        return report("erreur", [("✗", f"reçu {type(function).__name__}, attendu votre fonction, sans parenthèses")])
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    cases = exercise.cases(torch.Generator().manual_seed(seed))
    results: list[Any] = []
    judged: dict[str, int] = {}  # dans l'ordre d'apparition des propriétés, sur combien d'instances
    failed: dict[str, str] = {}
    for case in cases:
        result, properties = attempt(exercise, function, case)
        if not results and (result is None or result is Ellipsis):
            hint = "la fonction ne rend rien : écrivez-la, ou ajoutez le « return » qui manque"
            return report("à compléter", [("•", hint)])
        results.append(result)
        for item in [*properties, *judge(exercise, result, case)]:
            judged[item.text] = len(cases) if item.always else judged.get(item.text, 0) + 1
            if not item.holds:
                failed.setdefault(item.text, f"sur {case.label} : {item.why}")
        if isinstance(result, TooLong):
            break  # les autres instances prendraient aussi tout leur temps
    overall = [] if failed else list(exercise.across(cases, results))
    if not isinstance(results[0], BaseException):
        again, _ = attempt(exercise, function, cases[0])
        text = "deux appels identiques rendent la même chose"
        overall.insert(0, Property(text, same(again, results[0]), f"reçu {again!r}"))
    for item in overall:
        judged[item.text] = len(cases)
        if not item.holds:
            failed[item.text] = item.why
    if not failed:
        return report("réussi", [("•", f"{len(cases)} instances neuves essayées"), *(("✓", text) for text in judged)])
    lines = [("•", f"{len(results)} instance(s) tirée(s) au hasard ; la première : {cases[0].label}")]
    expected = sum(case.refusal is None for case in cases)  # une propriété que rien n'a interrompue
    for text, count in judged.items():
        if text in failed:
            lines.append(("✗", f"{text} — {failed[text]}"))
        else:
            lines.append(("✓", text) if count >= expected else ("–", f"{text} (non jugé partout)"))
    mistake = diagnose(exercise, seed, cases, results)
    if mistake is not None:
        lines.append(("→", f"{mistake.name} : {mistake.explanation}"))
    lines.append(("•", f'pour rejouer ces instances : verifier("{exercise.number}", votre_fonction, graine={seed})'))
    return report("à revoir", lines)
