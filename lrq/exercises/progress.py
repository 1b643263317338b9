"""Ma progression : ce que le lecteur a résolu, dans un fichier à lui, sur sa machine ; rien n'est envoyé.

`verifier` n'y écrit que si le fichier existe déjà, dans le dossier du carnet, ou si le lecteur l'a ouvert : les carnets
du livre, leurs tests et leurs solutions n'écrivent donc rien. Deux carnets ouverts à la fois se relaient par un verrou,
et chacun relit le fichier avant d'y ajouter ce qu'il sait.
"""

import html
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..storage import write_whole
from .engine import Bilan, Exercise

NAME = "progression.json"
FORMAT = 1
PATIENCE = 5.0  # secondes à attendre qu'un autre carnet ait fini d'écrire

_opened: Path | None = None  # le fichier que le lecteur a nommé, pour le reste de la session


@dataclass(frozen=True)
class Entry:
    """Un exercice commencé : les essais jusqu'à la première réussite, et le jour de celle-ci."""

    essais: int = 0
    reussi: date | None = None

    def after(self, solved: bool) -> "Entry":
        """L'entrée après un essai de plus ; une fois l'exercice résolu, elle ne change plus."""
        if self.reussi:
            return self
        return Entry(self.essais + 1, date.today() if solved else None)

    def __str__(self) -> str:
        tries = f"{self.essais} essai{'s' if self.essais > 1 else ''}"
        return f"résolu le {self.reussi:%d/%m/%Y}, {tries}" if self.reussi else f"à résoudre, {tries}"


# --- le fichier -------------------------------------------------------------------------------------------------------


def current() -> Path | None:
    """Le fichier de progression : celui que le lecteur a ouvert ou, à défaut, celui du dossier courant."""
    here = Path.cwd() / NAME
    return _opened or (here if here.is_file() else None)


def load(path: Path) -> dict[str, Entry]:
    """Relit un fichier de progression.

    Raises
    ------
    ValueError
        Le fichier est illisible, ou d'une autre version.
    OSError
        Le fichier ne s'ouvre pas.
    """
    try:
        content = json.loads(path.read_bytes())
        if (found := content["format"]) == FORMAT:
            return {number: read_entry(entry) for number, entry in content["exercices"].items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(
            f"{path} : ce n'est pas un fichier de progression lisible. Il est laissé tel quel ; renommez-le pour en "
            "commencer un autre."
        ) from None
    raise ValueError(
        f"{path} : progression au format {found!r}, attendu {FORMAT} ; une autre version de lrq l'a écrite. "
        "Il est laissé tel quel."
    )


def read_entry(entry: Mapping[str, Any]) -> Entry:
    """Une entrée du fichier."""
    day = entry["reussi"]
    return Entry(int(entry["essais"]), date.fromisoformat(day) if day else None)


def save(path: Path, entries: Mapping[str, Entry]) -> None:
    """Écrit la progression à côté, puis la met à sa place."""
    exercises = {
        number: {"essais": entry.essais, "reussi": entry.reussi and entry.reussi.isoformat()}
        for number, entry in entries.items()
    }
    text = json.dumps({"format": FORMAT, "exercices": exercises}, ensure_ascii=False, indent=2)
    write_whole({path: f"{text}\n".encode()})


def locked(path: Path) -> FileLock:
    """Le verrou que se passent les carnets ouverts sur le même fichier ; le système le rend si l'un d'eux s'arrête."""
    return FileLock(path.with_name(f".{path.name}.verrou"), timeout=PATIENCE)


def create(path: Path) -> bool:
    """Commence une progression vide ; rend False, sans y toucher, si le fichier existe."""
    if path.exists():
        return False
    with locked(path):
        if path.exists():
            return False
        save(path, {})
        return True


def record(path: Path, number: str, solved: bool) -> dict[str, Entry]:
    """Ajoute un essai, et rend toute la progression."""
    with locked(path):
        entries = load(path)
        before = entries.get(number, Entry())
        entries[number] = before.after(solved)
        if entries[number] != before:
            save(path, entries)
        return entries


def note(bilan: Bilan, known: Sequence[str]) -> str:
    """Note un essai, s'il y a où, et rend ce que le bilan en dit ; ne lève rien, quoi qu'il arrive au fichier."""
    if bilan.verdict not in ("réussi", "à revoir"):
        return ""
    try:
        path = current()
        if path is None:
            return ""
        entries = record(path, bilan.number, bilan.reussi)
    except ValueError as error:
        return f"progression non notée — {error}"
    except (OSError, RuntimeError) as error:  # dossier en lecture seule, disque plein, verrou impossible ou gardé
        return f"progression non notée : {NAME} est inaccessible ({type(error).__name__})"
    solved = sum(number in entries and entries[number].reussi is not None for number in known)
    return f"noté dans votre progression ({solved} sur {len(known)})" if bilan.reussi else ""


# --- ce que le lecteur en voit ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Progression:
    """Ce qui est résolu, section par section, et l'exercice qui suit.

    Attributes
    ----------
    sections : section → ses exercices, dans l'ordre du livre
    entries : numéro → essais et date, pour les exercices commencés
    path : le fichier, ou None si aucun n'est ouvert
    """

    sections: Mapping[str, Sequence[Exercise]]
    entries: Mapping[str, Entry]
    path: Path | None

    @property
    def resolus(self) -> list[str]:
        """Les numéros des exercices résolus, dans l'ordre du livre."""
        return [exercise.number for _, exercise in self._all() if self._entry(exercise).reussi]

    @property
    def suivant(self) -> str | None:
        """Le premier exercice à résoudre, dans l'ordre du livre, ou None s'il n'en reste pas."""
        return next((exercise.number for _, exercise in self._all() if not self._entry(exercise).reussi), None)

    def _all(self) -> list[tuple[str, Exercise]]:
        return [(section, exercise) for section, exercises in self.sections.items() for exercise in exercises]

    def _entry(self, exercise: Exercise) -> Entry:
        return self.entries.get(exercise.number, Entry())

    def _head(self) -> str:
        count = len(self.resolus)
        s = "s" if count > 1 else ""
        return f"Ma progression : {count} exercice{s} résolu{s} sur {len(self._all())}"

    def _foot(self) -> str:
        if self.path is None:
            return f'Rien n\'est noté ici : ma_progression("{NAME}") ouvre un fichier, sur votre machine.'
        for section, exercise in self._all():
            if exercise.number == self.suivant:
                return f"À suivre : exercice {exercise.number}, {exercise.title} (section {section})."
        return "Tout est résolu."

    def _state(self, exercise: Exercise) -> str:
        return str(self._entry(exercise)) if exercise.number in self.entries else "à résoudre"

    def _mark(self, exercise: Exercise) -> str:
        return "✓" if self._entry(exercise).reussi else "·"

    def __repr__(self) -> str:
        lines = [self._head()]
        for section, exercises in self.sections.items():
            lines.append(f"  Section {section}")
            for exercise in exercises:
                state = self._state(exercise)
                lines.append(f"    {self._mark(exercise)} {exercise.number:<7} {exercise.title} ({state})")
        return "\n".join([*lines, self._foot()])

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><td style="text-align:left">{section}</td><td style="text-align:left">{exercise.number}</td>'
            f'<td style="text-align:left">{html.escape(exercise.title)}</td>'
            f'<td style="text-align:left">{self._mark(exercise)} {self._state(exercise)}</td></tr>'
            for section, exercise in self._all()
        )
        titles = "".join(
            f'<th scope="col" style="text-align:left">{title}</th>'
            for title in ("Section", "Exercice", "Titre", "Où vous en êtes")
        )
        count, whole = len(self.resolus), len(self._all())
        return (
            f'<div class="lrq-progression"><p><strong>{self._head()}</strong> '
            f'<progress value="{count}" max="{whole}" aria-label="exercices résolus"></progress></p>'
            f"<p>{html.escape(self._foot(), quote=False)}</p>"
            f"<details open><summary>Les exercices, section par section</summary>"
            f"<table><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table></details></div>"
        )


def open_progress(path: str | os.PathLike[str]) -> Path:
    """Ouvre, et crée au besoin, le fichier où `verifier` notera la suite de la session.

    Raises
    ------
    TypeError, ValueError
        Autre chose qu'un chemin ; un fichier illisible, d'une autre version, ou dans un dossier qui n'existe pas.
    """
    global _opened
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"fichier : reçu {path!r}, attendu un chemin, par exemple 'progression.json'.")
    chosen = Path(path).expanduser().absolute()
    if chosen.is_dir():
        raise ValueError(f"fichier : reçu le dossier {chosen}, attendu un fichier, par exemple {chosen / NAME}.")
    if not chosen.parent.is_dir():
        raise ValueError(f"fichier : reçu {chosen}, attendu un fichier dans un dossier qui existe.")
    create(chosen)
    load(chosen)
    _opened = chosen
    return chosen
