"""Le train de tenseurs d'une matrice : sa chaîne de cœurs, ce qu'elle pèse, ce qu'elle perd, à côté de la SVD."""

import json
import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import anywidget
import torch
import traitlets

from ..display import fr
from ..models import DATA
from ..tensor_train import clamped_ranks
from .explorer import CSS, Integer, Text, esm, to_bytes
from .randomized import UNBROKEN, check_setting
from .rank_bits import closest
from .spectrum import check_name

FLOAT = 32  # bits d'un nombre qu'on ne quantifie pas
BITS = (2, 3, 4, 5, 6, 7, 8, FLOAT)
PROMPTS = {
    "query, bloc 1": "Cherchez, parmi les trois découpages, un rang où le train fasse nettement mieux que la SVD sans "
    "peser plus que W sur autant de bits.",
    "dense 2, bloc 1": "Avec deux cœurs sur 4\u00a0bits, montez le rang de 2 à 12 : l’erreur augmente. Refaites-le sur "
    "8\u00a0bits. Un poids géant étire l’échelle, unique, de chaque cœur.",
    "noyaux de convolution": "Un vrai tenseur. Avec deux cœurs, le train est la SVD elle-même, aux arrondis près. "
    "Passez à trois, au rang\u00a016 : de combien gagne-t-il ? Et au rang\u00a032 ?",
    "noyau lisse": "Au rang\u00a03, sur 32\u00a0bits, le train est exact : en combien de nombres, avec quatre cœurs ? "
    "Et combien d’octets faut-il à la SVD pour passer sous 1\u00a0% ?",
    "hasard gaussien": "Du bruit : avec deux cœurs, le train et la SVD s’y valent. À réglages égaux, sur "
    "«\u00a0query\u00a0», de combien chacun fait-il mieux ?",
}


@cache
def load_table() -> dict[str, Any]:
    """La table mesurée par ``python -m benchmarks.tt_study``."""
    return json.loads((DATA / "tensor_train.json").read_text(encoding="utf-8"))


def train_nbytes(inputs: Sequence[int], outputs: Sequence[int], rank: int, n_bits: int) -> list[int]:
    """Octets de chaque cœur : des codes serrés et une échelle float32 ou, sur 32 bits, des float32.

    Parameters
    ----------
    inputs, outputs : d entiers chacun
    rank : int
        Ramené, lien par lien, à ce que permettent les dimensions.
    n_bits : int
    """
    bonds = [1, *clamped_ranks(inputs, outputs, rank), 1]
    counts = [r * i * o * s for r, i, o, s in zip(bonds, inputs, outputs, bonds[1:], strict=False)]
    return [4 * count if n_bits == FLOAT else -(-count * n_bits // 8) + 4 for count in counts]


def svd_nbytes(m: int, n: int, rank: int, n_bits: int) -> int:
    """Octets de deux facteurs, (m, r) et (n, r) : des codes et une échelle chacun ou, sur 32 bits, des float32."""
    if n_bits == FLOAT:
        return 4 * rank * (m + n)
    return -(-m * rank * n_bits // 8) + -(-n * rank * n_bits // 8) + 8


def rank_within(m: int, n: int, n_bits: int, limit: int) -> int:
    """Le plus grand rang dont les deux facteurs pèsent au plus `limit` octets ; 0 si aucun n'y tient.

    Parameters
    ----------
    m, n : int
        Dimensions de W.
    n_bits : int
    limit : int
        En octets.
    """
    fitting = (rank for rank in range(1, min(m, n) + 1) if svd_nbytes(m, n, rank, n_bits) <= limit)
    return max(fitting, default=0)


class TensorTrainExplorer(anywidget.AnyWidget):
    """Le train de tenseurs d'une matrice, dessiné et pesé cœur par cœur, à côté de la SVD qui tient dans ses octets.

    Parameters
    ----------
    matrix : str, optionnel
        Le nom de la matrice montrée d'abord ; par défaut, la première de la table.
    n_cores : 2, 3 ou 4
        Le découpage : chaque matrice en a un par nombre de cœurs.
    rank : int, optionnel
        Le rang de tous les liens, ramené à ce que permettent les dimensions ; un de ceux qu'a mesurés la table. Par
        défaut, le plus proche de 32.
    n_bits : int, entre 2 et 8, ou 32
        Bits des cœurs, et des facteurs de la SVD ; 32 pour ne rien quantifier.

    Attributes
    ----------
    matrix : str
    n_cores, rank, n_bits : int
        Python et le lecteur les lisent et les changent. Une valeur que la table n'a pas est refusée (TraitError), et la
        figure ne bouge pas ; un rang que le nouveau découpage n'a pas devient le plus proche qu'il ait.

    Raises
    ------
    TraitError
        Une matrice ou un réglage que la table n'a pas.

    Notes
    -----
    Les erreurs ont été mesurées une fois pour toutes, et rangées dans ``lrq/data/tensor_train.json`` ; la page n'y
    ajoute que les octets. Les cœurs sont équilibrés et tournés (:class:`lrq.QuantizedTTLinear`), les facteurs de la SVD
    tournés (:class:`lrq.QuantizedLowRankLinear`), avec une échelle par cœur et par facteur.
    """

    _esm = esm("tensor_train.js")
    _css = CSS

    matrix = Text().tag(sync=True)
    n_cores = Integer().tag(sync=True)
    rank = Integer().tag(sync=True)
    n_bits = Integer().tag(sync=True)
    _choices: traitlets.List[Any] = traitlets.List().tag(sync=True)
    _values = traitlets.Bytes().tag(sync=True)

    def __init__(self, matrix: str | None = None, n_cores: int = 3, rank: int | None = None, n_bits: int = 4):
        self._records = {record["nom"]: record for record in load_table()["matrices"]}
        name = check_name(next(iter(self._records)) if matrix is None else matrix, self._records)
        if rank is None:
            rank = closest(find_train(self._records[name], n_cores)["rangs"], 32)
        super().__init__(
            matrix=name,
            n_cores=n_cores,
            rank=rank,
            n_bits=n_bits,
            _choices=[choice(record) for record in self._records.values()],
            _values=to_bytes([torch.tensor(errors(record)) for record in self._records.values()]),
        )

    @traitlets.validate("matrix")
    def _check_matrix(self, proposal: Any) -> str:
        return check_name(proposal["value"], self._records)

    @traitlets.validate("n_cores")
    def _check_cores(self, proposal: Any) -> int:
        find_train(self._record, proposal["value"])
        return proposal["value"]

    @traitlets.validate("rank")
    def _check_rank(self, proposal: Any) -> int:
        return check_setting(proposal["value"], "rank", self._train["rangs"])

    @traitlets.validate("n_bits")
    def _check_bits(self, proposal: Any) -> int:
        return check_setting(proposal["value"], "n_bits", BITS)

    @traitlets.observe("matrix", "n_cores")
    def _keep_rank_possible(self, change: Any) -> None:
        self.rank = closest(self._train["rangs"], self.rank)

    @property
    def _record(self) -> dict[str, Any]:
        return self._records[check_name(self.matrix, self._records)]

    @property
    def _train(self) -> dict[str, Any]:
        return find_train(self._record, self.n_cores)

    # --- le train -----------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, int]:
        """Dimensions de W, (out, in)."""
        m, n = self._record["forme"]
        return m, n

    @property
    def dims(self) -> tuple[list[int], list[int]]:
        """Les dimensions des indices d'entrée, puis de sortie, cœur par cœur."""
        return self._train["entrées"], self._train["sorties"]

    @property
    def ranks(self) -> list[int]:
        """Le rang de chaque lien."""
        return clamped_ranks(*self.dims, self.rank)

    @property
    def parameters(self) -> int:
        """Combien de nombres décrivent le train."""
        return sum(math.prod(core) for core in zip([1, *self.ranks], *self.dims, [*self.ranks, 1], strict=True))

    @property
    def core_nbytes(self) -> list[int]:
        """Octets de chaque cœur, échelle comprise."""
        return train_nbytes(*self.dims, self.rank, self.n_bits)

    @property
    def nbytes(self) -> int:
        """Octets du train."""
        return sum(self.core_nbytes)

    @property
    def error(self) -> float:
        """Erreur relative (Frobenius) du train."""
        return self._train["erreurs"][self._train["rangs"].index(self.rank)][BITS.index(self.n_bits)]

    # --- à côté -------------------------------------------------------------------------------------------------------

    @property
    def svd_rank(self) -> int:
        """Le plus grand rang d'une SVD qui tienne dans les octets du train, à bits égaux ; 0 si aucun n'y tient."""
        return rank_within(*self.shape, self.n_bits, self.nbytes)

    @property
    def svd_nbytes(self) -> int:
        """Octets de cette SVD."""
        return svd_nbytes(*self.shape, self.svd_rank, self.n_bits) if self.svd_rank else 0

    @property
    def svd_error(self) -> float | None:
        """Son erreur relative ; None si aucune n'y tient."""
        svd = self._record["svd"]
        return svd["erreurs"][svd["rangs"].index(self.svd_rank)][BITS.index(self.n_bits)] if self.svd_rank else None

    @property
    def alone_error(self) -> float:
        """Erreur relative de W quantifiée seule sur autant de bits, une échelle par ligne ; nulle sur 32 bits."""
        return 0.0 if self.n_bits == FLOAT else self._record["seule"][BITS.index(self.n_bits)]

    def __repr__(self) -> str:  # sans adresse, et le même d'une exécution à l'autre : nbval le compare
        m, n = self.shape
        links = ", ".join(map(str, self.ranks))
        train = f"{self.n_cores} cœurs, rangs ({links}), {self.n_bits} bits : {fr(self.nbytes)} octets"
        svd = "aucune SVD n'y tient"
        if self.svd_error is not None:
            svd = f"SVD de rang {self.svd_rank} : {fr(100 * self.svd_error, 1)} %"
        found = f"erreur {fr(100 * self.error, 1)} % ({svd})"
        return f"TensorTrainExplorer « {self.matrix} », {fr(m)} × {fr(n)} : {train}, {found}"


def find_train(record: dict[str, Any], n_cores: int) -> dict[str, Any]:
    """Le découpage d'une matrice en autant de cœurs.

    Raises
    ------
    TraitError
    """
    trains = {len(train["entrées"]): train for train in record["trains"]}
    return trains[check_setting(n_cores, "n_cores", [*trains])]


def errors(record: dict[str, Any]) -> list[float]:
    """Les erreurs d'une matrice, dans l'ordre où la page les lit : ses trains, ses SVD, W quantifiée seule."""
    rows = [row for part in [*record["trains"], record["svd"]] for row in part["erreurs"]]
    return [error for row in [*rows, record["seule"]] for error in row]


def choice(record: dict[str, Any]) -> dict[str, Any]:
    """Ce que la page reçoit d'une matrice, erreurs à part ; les octets, elle les recalcule."""
    m, n = record["forme"]
    return {
        "name": record["nom"],
        "rows": m,
        "columns": n,
        "trains": [
            {"inputs": train["entrées"], "outputs": train["sorties"], "ranks": train["rangs"]}
            for train in record["trains"]
        ],
        "svdRanks": record["svd"]["rangs"],
        "prompt": UNBROKEN.sub("\u00a0", PROMPTS[record["nom"]]),
        "code": record["code"],
    }
