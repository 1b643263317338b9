"""Un budget pour tout un réseau : ce que chaque couche en reçoit, et ce que valent toutes les recettes mesurées."""

import json
import math
from functools import cache
from typing import Any

import anywidget
import numpy as np
import traitlets

from ..allocation import Option
from ..display import fr
from ..models import DATA
from .explorer import CSS, Integer, css, esm
from .randomized import check_setting

FIRST = 4.375  # bits par poids du budget montré d'abord : ce que pèsent 4 bits par groupe de 64


@cache
def load_table() -> dict[str, Any]:
    """La table mesurée par ``python -m benchmarks.model_study``."""
    return json.loads((DATA / "whole_model.json").read_text(encoding="utf-8"))


def load_options() -> tuple[list[tuple[int, int]], dict[str, list[Option]]]:
    """Ce que chaque réglage de chaque couche de l'encodeur de MiniLM pèse, et ce qu'il coûterait aux sorties.

    Returns
    -------
    list[(bits, rang)], dict nom → list[(octets, perte)]
        Les réglages ; puis, couche par couche, une option par réglage, comme les veut :func:`lrq.allocate_budget`. Les
        octets ne comptent pas les biais ; une perte est un carré d'erreur relative.
    """
    table = load_table()["options"]
    options = {
        name: list(zip(table["octets"]["×".join(map(str, shape))], losses, strict=True))
        for name, shape, losses in zip(table["couches"], table["formes"], table["pertes"], strict=True)
    }
    return [(bits, rank) for bits, rank in table["réglages"]], options


class BudgetExplorer(anywidget.AnyWidget):
    """Un budget d'octets pour l'encodeur de MiniLM : les bits et le rang que reçoit chacune de ses 36 couches.

    Parameters
    ----------
    budget : int, optionnel
        En octets, biais non compris ; un de ceux qu'a mesurés la table. Par défaut, 4,375 bits par poids.

    Attributes
    ----------
    budget : int
        Python et le lecteur le lisent et le changent. Une valeur que la table n'a pas est refusée (TraitError), et la
        figure ne bouge pas.

    Raises
    ------
    TraitError
        Un budget que la table n'a pas.

    Notes
    -----
    Tout a été mesuré une fois pour toutes, et rangé dans ``lrq/data/whole_model.json`` : la page n'y ajoute rien. La
    fidélité est le cosinus moyen, sur 400 phrases, des plongements du réseau comprimé avec ceux de l'original.
    """

    _esm = esm("budget.js")
    _css = CSS + css("budget.css")

    budget = Integer().tag(sync=True)
    _network: "traitlets.Dict[str, Any]" = traitlets.Dict().tag(sync=True)
    _recipes: traitlets.List[Any] = traitlets.List().tag(sync=True)
    _lines: traitlets.List[Any] = traitlets.List().tag(sync=True)
    _given = traitlets.Bytes().tag(sync=True)

    def __init__(self, budget: int | None = None):
        table = load_table()
        self._rows = {line["budget"]: line for line in table["budgets"]}
        if budget is None:
            budget = min(self._rows, key=lambda size: abs(8 * size / table["réseau"]["poids"] - FIRST))
        layers = zip(*((line["bits"], line["rangs"]) for line in self._rows.values()), strict=True)
        super().__init__(
            budget=budget,
            _network={
                "weights": table["réseau"]["poids"],
                "names": table["options"]["couches"],
                "bias": table["réseau"]["octets_biais"],
            },
            _recipes=[
                [row["label"], row["family"], row["bytes"], row["cosine"], row["front"]] for row in table["recipes"]
            ],
            _lines=[
                {
                    "budget": line["budget"],
                    "bytes": line["bytes"],
                    "cosine": line["cosine"],
                    "predicted": line["predicted_error"],
                    "uniform": [line["uniforme"][key] for key in ("label", "bytes", "cosine")],
                }
                for line in self._rows.values()
            ],
            _given=np.array(list(layers), dtype=np.uint8).tobytes(),  # (bits ou rangs, budgets, couches)
        )

    @traitlets.validate("budget")
    def _check_budget(self, proposal: Any) -> int:
        return check_setting(proposal["value"], "budget", [*self._rows])

    @property
    def _line(self) -> dict[str, Any]:
        return self._rows[self.budget]

    @property
    def bits(self) -> dict[str, int]:
        """Les bits de chaque couche."""
        return dict(zip(load_table()["options"]["couches"], self._line["bits"], strict=True))

    @property
    def ranks(self) -> dict[str, int]:
        """Le rang du résidu de chaque couche ; zéro si elle n'en a pas."""
        return dict(zip(load_table()["options"]["couches"], self._line["rangs"], strict=True))

    @property
    def nbytes(self) -> int:
        """Octets des 36 couches, biais non compris : le budget, à ce près qu'aucune amélioration n'emploierait."""
        return self._line["bytes"]

    @property
    def bits_per_weight(self) -> float:
        """Bits par poids, échelles et résidus compris."""
        return 8 * self.nbytes / load_table()["réseau"]["poids"]

    @property
    def fidelity(self) -> float:
        """Le cosinus mesuré."""
        return self._line["cosine"]

    @property
    def predicted_error(self) -> float:
        """L'erreur relative des sorties que la répartition prévoyait."""
        return self._line["predicted_error"]

    @property
    def measured_error(self) -> float:
        """Celle qu'on mesure ; de vecteurs unitaires, c'est √(2 (1 − cosinus))."""
        return math.sqrt(2 * (1 - self.fidelity))

    @property
    def uniform(self) -> dict[str, Any]:
        """La plus fidèle des recettes pareilles dans toutes les couches qui tienne dans le budget."""
        return dict(self._line["uniforme"])

    def __repr__(self) -> str:  # sans adresse, et le même d'une exécution à l'autre : nbval le compare
        found = f"{fr(self.bits_per_weight, 2)} bits par poids, fidélité {fr(self.fidelity, 4)}"
        return (
            f"BudgetExplorer, {fr(self.budget)} octets : {found} ({self.uniform['label']} : "
            f"{fr(self.uniform['cosine'], 4)})"
        )
