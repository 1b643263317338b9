"""Ce que chaque couche d'un réseau est devenue : une ligne par couche, un tableau, une figure."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from ..display import fr


@dataclass(frozen=True)
class LayerReport:
    """Ce qu'est devenue une couche.

    Attributes
    ----------
    name : str
        Son nom complet ; le premier, si elle en a plusieurs.
    shape : tuple
        Celle de ses poids : (out, in) d'une couche linéaire.
    rank : int, list[int] ou None
        Celui des facteurs ou du résidu, un par lien d'un train ; jamais plus que les dimensions ne permettent.
    clamped : bool
        Vrai si l'on en demandait davantage, fût-ce pour un seul lien.
    nbytes : int
        Octets de la nouvelle couche, biais et échelles compris ; si d'autres ont le même poids, de toutes ensemble.
    dense_nbytes : int
        Octets de l'ancienne.
    error : float
        Erreur relative des poids (Frobenius).
    bits : int, list[int] ou None
        Par nombre gardé ; None s'ils restent flottants.
    seconds : float
        Temps de calcul ; zéro si la couche vient d'un cache.
    note : str
        Ce qu'il faut savoir de plus.
    """

    name: str
    shape: tuple[int, ...]
    rank: int | list[int] | None
    clamped: bool
    nbytes: int
    dense_nbytes: int
    error: float
    bits: int | list[int] | None = None
    seconds: float = 0.0
    note: str = ""

    @classmethod
    def left(cls, name: str, shape: tuple[int, ...], nbytes: int, note: str) -> "LayerReport":
        """La ligne d'une couche laissée telle quelle : son nom, sa forme, ses octets, et pourquoi (`note`)."""
        return cls(name, shape, None, False, nbytes, nbytes, 0.0, note=note)

    @property
    def compressed(self) -> bool:
        """Faux si la couche a été laissée telle quelle ; `note` dit pourquoi."""
        return self.nbytes != self.dense_nbytes or self.error > 0 or self.rank is not None or self.bits is not None


class CompressionReport(list[LayerReport]):
    """Les lignes d'un réseau, dans l'ordre des couches ; s'imprime comme un tableau.

    Attributes
    ----------
    output_error : float ou None
        Erreur relative des sorties sur les lots de validation, s'il y en avait.
    unknown : str
        Les couches à poids que lrq ne sait pas comprimer, « 12 Conv1D » par exemple ; vide s'il n'y en a pas.
    """

    output_error: float | None = None
    unknown: str = ""

    def __repr__(self) -> str:
        return self.table()

    def table(self, times: bool = False) -> str:
        """Le tableau, en texte ; `times` ajoute les secondes, qui changent d'une fois à l'autre."""
        if not self:
            return "aucune couche"
        heads = ["couche", "forme", "rang", "bits", "octets", "fois moins", "erreur"] + ["secondes"] * times
        rows = [cells(line, times) for line in self]
        before, after = self.nbytes()
        total = ["en tout", "", "", "", fr(after), fr(before / after, 2), ""]
        rows.append(total + [fr(sum(line.seconds for line in self), 2)] * times)
        widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]

        def write(row: list[str]) -> str:
            return "  ".join(
                text.ljust(width) if i == 0 else text.rjust(width)
                for i, (text, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()

        notes = [f"{line.name} : {line.note}" for line in self if line.note]
        if self.unknown:
            notes.append(f"laissées, d'une sorte que lrq ne connaît pas : {self.unknown}")
        if self.output_error is not None:
            notes.append(f"erreur des sorties sur la validation : {fr(100 * self.output_error, 2)} %")
        return "\n".join([write(heads), *map(write, rows), *notes])

    def nbytes(self) -> tuple[int, int]:
        """Octets avant et après ; d'une couche traitée deux fois, avant la première et après la dernière."""
        first = {line.name: line.dense_nbytes for line in reversed(self)}
        last = {line.name: line.nbytes for line in self}
        return sum(first.values()), sum(last.values())

    def plot(self) -> Any:
        """Ce que chaque couche pèse avant et après, et l'erreur de ses poids : une figure matplotlib."""
        from ..plots import plot_report

        return plot_report(self)


def cells(line: LayerReport, times: bool) -> list[str]:
    """Les cases d'une ligne du tableau."""
    rank = "–" if line.rank is None else several(line.rank) + ("*" if line.clamped else "")
    return [
        line.name or "(le réseau)",
        "×".join(map(str, line.shape)),
        rank,
        "–" if line.bits is None else several(line.bits),
        fr(line.nbytes),
        fr(line.dense_nbytes / line.nbytes, 2),
        fr(100 * line.error, 1) + " %",
    ] + [fr(line.seconds, 2)] * times


def several(value: int | list[int]) -> str:
    """Un nombre, ou ceux d'une liste."""
    return str(value) if isinstance(value, int) else ", ".join(map(str, value))


def ranks_and_bits(layer: nn.Module) -> tuple[Any, Any]:
    """Le rang et les bits d'une couche comprimée, None pour ce qu'elle n'a pas."""
    base, residual = getattr(layer, "base", layer), getattr(layer, "residual", layer)
    rank = getattr(residual, "rank", getattr(residual, "ranks", None))
    packed = getattr(base, "packed", None)
    bits = packed.quantizer.n_bits if packed is not None else getattr(base, "n_bits", None)
    return rank, bits
