"""La SVD aléatoire, réglage par réglage : ce que chacun coûte en temps, ce qui lui manque pour atteindre l'optimum."""

import json
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import anywidget
import torch
import traitlets

from ..display import fr
from ..models import DATA
from .explorer import CSS, Integer, Text, esm, to_bytes
from .spectrum import check_name

PROMPTS = {
    "query, bloc 1": "Sans itération, portez p de 0 à 40 ; puis revenez à p = 0 et donnez une seule itération : "
    "laquelle de ces deux dépenses approche le plus de l’optimum ?",
    "dense 1, bloc 1": "Au rang 8, comparez p = 0, q = 4 à p = 10, q = 1 : presque le même excès, en combien de "
    "lectures de W ?",
    "vecteurs de mots": "Gardez p = 10 et q = 2, et montez le rang : que devient l’avance sur la SVD complète ?",
    "photographie": "Au rang 8, sans itération, comparez l’étendue des dix tirages, sous les curseurs, à p = 0 et à "
    "p = 40.",
}
UNBROKEN = re.compile(r" (?=[:;?=])|(?<==) ")  # les espaces où une ligne ne se coupe pas
SETTINGS = ("rank", "oversample", "n_iter")


@cache
def load_table() -> dict[str, Any]:
    """La table mesurée par ``python -m benchmarks.randomized_study``."""
    return json.loads((DATA / "randomized_svd.json").read_text(encoding="utf-8"))


def excess(error: float, optimum: float) -> float:
    """Part d'erreur en trop, error/optimum − 1 ; nulle si l'optimum l'est.

    Parameters
    ----------
    error : float
    optimum : float
        L'erreur de la SVD tronquée (Eckart–Young), que nulle approximation de même rang ne bat.
    """
    return error / optimum - 1 if optimum > 0 else 0.0


class RandomizedExplorer(anywidget.AnyWidget):
    """Ce que mesure la SVD aléatoire sur de vraies matrices : erreur, temps et optimum, selon ses deux réglages.

    Parameters
    ----------
    matrix : str, optionnel
        Le nom de la matrice montrée d'abord ; par défaut, la première de la table.
    rank, oversample, n_iter : int
        Les arguments de :func:`lrq.approximate_svd_large` montrés d'abord.

    Attributes
    ----------
    matrix : str
    rank, oversample, n_iter : int
        Python et le lecteur les lisent et les changent. Une valeur que la table n'a pas est refusée (TraitError), et la
        figure ne bouge pas.

    Raises
    ------
    TraitError
        Une matrice ou un réglage que la table n'a pas.

    Notes
    -----
    Rien n'est calculé ici : les erreurs (graine 0) et les durées ont été mesurées une fois pour toutes, et rangées dans
    ``lrq/data/randomized_svd.json``. Une ligne de code retrouve les erreurs ; les durées sont celles d'une machine.
    """

    _esm = esm("randomized.js")
    _css = CSS

    matrix = Text().tag(sync=True)
    rank = Integer().tag(sync=True)
    oversample = Integer().tag(sync=True)
    n_iter = Integer().tag(sync=True)
    _choices: traitlets.List[Any] = traitlets.List().tag(sync=True)
    _settings: "traitlets.Dict[str, Any]" = traitlets.Dict().tag(sync=True)
    _values = traitlets.Bytes().tag(sync=True)

    def __init__(self, matrix: str | None = None, rank: int = 32, oversample: int = 10, n_iter: int = 0):
        table = load_table()
        self._allowed: dict[str, list[int]] = table["réglages"]
        self._records = {record["nom"]: record for record in table["matrices"]}
        super().__init__(
            matrix=check_name(next(iter(self._records)) if matrix is None else matrix, self._records),
            rank=rank,
            oversample=oversample,
            n_iter=n_iter,
            _choices=[choice(record) for record in table["matrices"]],
            _settings=self._allowed,
            _values=to_bytes(
                [torch.tensor([row[3:] for row in record["mesures"]]).flatten() for record in table["matrices"]]
            ),
        )

    @traitlets.validate("matrix")
    def _check_matrix(self, proposal: Any) -> str:
        return check_name(proposal["value"], self._records)

    @traitlets.validate(*SETTINGS)
    def _check_setting(self, proposal: Any) -> int:
        return check_setting(proposal["value"], proposal["trait"].name, self._allowed[proposal["trait"].name])

    @property
    def error(self) -> float:
        """Erreur relative (Frobenius) mesurée au réglage montré, graine 0."""
        return self._measured()[3]

    @property
    def optimum(self) -> float:
        """Erreur de la SVD tronquée au même rang : la plus petite possible."""
        return self._records[self.matrix]["optimum"][self._allowed["rank"].index(self.rank)]

    @property
    def excess(self) -> float:
        """Part d'erreur en trop : error/optimum − 1."""
        return excess(self.error, self.optimum)

    @property
    def milliseconds(self) -> float:
        """Durée médiane de l'appel, à un fil, mesure de l'erreur comprise."""
        return self._measured()[6]

    @property
    def full_milliseconds(self) -> float:
        """Durée médiane de la SVD complète, à un fil."""
        return self._records[self.matrix]["svd_complete_ms"]

    def _measured(self) -> list[float]:
        rows = self._records[self.matrix]["mesures"]
        return next(row for row in rows if row[:3] == [self.rank, self.oversample, self.n_iter])

    def __repr__(self) -> str:  # sans durée : nbval le compare
        m, n = self._records[self.matrix]["forme"]
        state = f"rang {self.rank}, oversample {self.oversample}, n_iter {self.n_iter}"
        errors = f"erreur {fr(100 * self.error, 2)} % (optimum {fr(100 * self.optimum, 2)} %)"
        return f"RandomizedExplorer « {self.matrix} », {fr(m)} × {fr(n)} : {state}, {errors}"


def check_setting(value: int, name: str, allowed: Sequence[int]) -> int:
    """Rend `value` si la table l'a.

    Raises
    ------
    TraitError
    """
    if value not in allowed:
        expected = f"{', '.join(map(str, allowed[:-1]))} ou {allowed[-1]}"
        raise traitlets.TraitError(f"{name} : reçu {value}, attendu {expected}, les valeurs mesurées.")
    return value


def choice(record: dict[str, Any]) -> dict[str, Any]:
    """Ce que la page reçoit d'une matrice, mesures à part."""
    m, n = record["forme"]
    return {
        "name": record["nom"],
        "rows": m,
        "columns": n,
        "full": record["svd_complete_ms"],
        "optimum": record["optimum"],
        "prompt": UNBROKEN.sub("\u00a0", PROMPTS[record["nom"]]),
        "code": f"from lrq import models\n\nW = {record['code']}",
    }
