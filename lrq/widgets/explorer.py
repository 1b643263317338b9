"""Ce que partagent les figures interactives : assembler le JavaScript, vérifier le rang, se décrire en une ligne."""

import base64
import re
from pathlib import Path
from typing import Any, NoReturn

import anywidget
import torch
import traitlets
from torch import Tensor

from ..display import fr
from ..spectrum import cumulative_energy, truncation_errors
from ..validation import check_rank

FOLDER = Path(__file__).parent / "js"
COMMENT = re.compile(r"^[ \t]*(?://.*|/\*\*(?:(?!\*/)[\s\S])*\*/)[ \t]*\n", re.MULTILINE)  # des lignes entières
IMPORT = re.compile(r'import (\* as \w+|\{[^}]*\}) from "\./([\w.]+)"')
DECLARATION = re.compile(r"^(?:export )?(?:function|const|let) (\w+)", re.MULTILINE)  # au bord de la ligne


def css(name: str) -> str:
    """Une feuille de style de ``js/``, sans commentaires ni marges."""
    return re.sub(r"/\*.*?\*/\s*|(?<=\n)\s+", "", (FOLDER / name).read_text(encoding="utf-8"), flags=re.DOTALL)


CSS = css("explorers.css")

YOURS = "# W : votre matrice"  # « Voir le code » d'une matrice que le lecteur a donnée


def esm(name: str) -> str:
    """Un module JavaScript qui se suffit : sans commentaires, ses imports relatifs changés en adresses « data: ».

    Des modules communs, il n'emporte que ce dont il se sert : chaque figure en paie le poids dans la page.
    """

    def inline(match: re.Match[str]) -> str:
        imported, code = match[1], esm(match[2])
        if imported.startswith("{"):
            code = only(code, set(re.findall(r"\w+", imported)))
        return f'import {imported} from "data:text/javascript;base64,{base64.b64encode(code.encode()).decode()}"'

    return IMPORT.sub(inline, COMMENT.sub("", (FOLDER / name).read_text(encoding="utf-8")))


def only(code: str, wanted: set[str]) -> str:
    """Les déclarations d'un module qu'on lui demande, et celles qu'elles nomment, de proche en proche."""
    starts = [match.start() for match in DECLARATION.finditer(code)]
    parts = {
        DECLARATION.match(part)[1]: part  # type: ignore[index]
        for part in (code[start:end] for start, end in zip(starts, [*starts[1:], len(code)], strict=True))
    }
    named = {name: set(re.findall(r"\w+", part)) & parts.keys() for name, part in parts.items()}
    kept: set[str] = set()
    while wanted:
        kept |= wanted
        wanted = set().union(*(named[name] for name in wanted)) - kept
    return code[: starts[0]] + "".join(part for name, part in parts.items() if name in kept)


def relative_to_first(S: Tensor) -> Tensor:
    """σᵢ/σ₁ : ce qui voyage, pour que float32 suffise quelle que soit l'unité ; nul pour une matrice nulle."""
    return S / S[0] if S[0] > 0 else S


def to_bytes(spectra: list[Tensor]) -> bytes:
    """Des spectres mis bout à bout, en float32 petit-boutiste."""
    return torch.cat(spectra).to(torch.float32).cpu().numpy().astype("<f4").tobytes()


class French:
    """Un trait dont les refus sont en français."""

    expected = ""
    name: str | None

    def error(self, obj: Any, value: Any, error: Any = None, info: Any = None) -> NoReturn:
        raise traitlets.TraitError(f"{self.name} : reçu {value!r}, attendu {self.expected}.")


class Integer(French, traitlets.Int[int, int]):
    """Un entier ; un booléen n'en est pas un."""

    expected = "un entier"

    def validate(self, obj: Any, value: Any) -> int:
        if isinstance(value, bool):
            self.error(obj, value)
        return super().validate(obj, value)


class Number(French, traitlets.Float[float, float]):
    """Un nombre ; un booléen n'en est pas un."""

    expected = "un nombre"

    def validate(self, obj: Any, value: Any) -> float:
        if isinstance(value, bool):
            self.error(obj, value)
        return super().validate(obj, value)


class Text(French, traitlets.Unicode[str, str]):
    """Un texte."""

    expected = "un texte"


class Flag(French, traitlets.Bool[bool, bool]):
    """Un oui ou un non."""

    expected = "True ou False"


class Explorer(anywidget.AnyWidget):
    """Une figure interactive réglée par un rang.

    Attributes
    ----------
    rank : int
        Le rang montré ; Python et le lecteur le lisent et le changent. Hors de 1 … p, il est refusé (TraitError) et la
        figure ne bouge pas.
    """

    _css = CSS

    rank = Integer(1).tag(sync=True)
    _note = traitlets.Unicode().tag(sync=True)  # ce que la figure ne transporte pas, dit au lecteur

    def shown(self) -> tuple[str, tuple[int, int], Tensor]:
        """Nom, dimensions et valeurs singulières de la matrice montrée ; sans eux, NotImplementedError."""
        raise NotImplementedError

    @traitlets.validate("rank")
    def _check_rank(self, proposal: Any) -> int:
        try:
            return self.check_shown_rank(proposal["value"])
        except (TypeError, ValueError) as error:
            raise traitlets.TraitError(str(error)) from None

    def check_shown_rank(self, rank: Any) -> int:
        """Le rang `rank`, s'il peut être montré ; sinon ValueError ou TypeError."""
        return check_rank(rank, *self.shown()[1])

    @property
    def energy(self) -> float:
        """Part de l'énergie gardée au rang montré."""
        return float(cumulative_energy(self.shown()[2])[self.rank - 1])

    @property
    def error(self) -> float:
        """Erreur relative (Frobenius) au rang montré."""
        return float(truncation_errors(self.shown()[2])[self.rank - 1])

    def __repr__(self) -> str:  # sans adresse, et le même d'une exécution à l'autre : nbval le compare
        name, (m, n), _ = self.shown()
        state = f"rang {self.rank}, énergie {fr(100 * self.energy, 1)} %, erreur {fr(100 * self.error, 1)} %"
        return f"{type(self).__name__} « {name} », {m} × {n} : {state}"
