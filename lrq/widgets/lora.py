"""LoRA sur de vrais chiffres : ce qu'apprend chaque rang selon l'échelle et le pas, et la mémoire de l'entraînement."""

import itertools
import json
from functools import cache
from typing import Any

import anywidget
import numpy as np
import traitlets

from ..display import fr
from ..models import DATA
from .explorer import CSS, Integer, Number, Text, esm
from .randomized import UNBROKEN

SCALINGS = {"alpha": "α (cours)", "alpha/r": "α/r (LoRA)", "alpha/sqrt(r)": "α/√r (rsLoRA)"}
SETTINGS = ("scaling", "lr", "rank")  # dans l'ordre de la table

PROMPT = (
    "Au pas 0,001, à l’échelle α/r, montez le rang de 4 à 32 : il n’accélère presque rien ; à l’échelle α, beaucoup. "
    "Gardez celle-ci, et portez le pas à 0,01 : que deviennent les rangs 16 et 32 ?"
)
CODES = {  # réseau → les lignes qui le préparent, son nom, les couches à adapter
    "MLP des chiffres": ([], "base", ""),
    "MiniLM, 36 couches": (
        ["encoder = models.load_minilm()", "names = models.encoder_linears(encoder)"],
        "encoder",
        "names, ",
    ),
    "MiniLM, query et value": (["encoder = models.load_minilm()"], "encoder", '["query", "value"], '),
}


@cache
def load_table() -> dict[str, Any]:
    """La table mesurée par ``python -m benchmarks.lora_study``."""
    return json.loads((DATA / "lora.json").read_text(encoding="utf-8"))


def trained(network: dict[str, Any], rank: int) -> int:
    """Nombre de paramètres des adaptateurs : r (m + n) par couche, r ramené au plus petit de m et n."""
    return sum(count * min(rank, m, n) * (m + n) for m, n, count in network["formes"])


def training_bytes(frozen: int, trained: int) -> tuple[int, int, int]:
    """Octets qu'occupent, à l'entraînement en float32, les poids, leurs gradients et les deux moments d'Adam.

    Parameters
    ----------
    frozen, trained : int
        Nombres de paramètres gelés et entraînés ; seuls ces derniers ont un gradient et des moments.
    """
    return 4 * (frozen + trained), 4 * trained, 8 * trained


class LoRAExplorer(anywidget.AnyWidget):
    """Ce qu'apprend LoRA selon le rang, l'échelle et le pas, à côté d'un ajustement complet ; et la mémoire de chacun.

    Le réseau dense des chiffres, adapté aux chiffres tournés d'un quart de tour, jugé sur 450 images.

    Parameters
    ----------
    rank : int
    scaling : "alpha", "alpha/r" ou "alpha/sqrt(r)"
        Comment l'échelle s se tire de α = 16.
    lr : float
        Le pas d'Adam.
    network : str, optionnel
        Le réseau dont on compte la mémoire ; par défaut, celui des mesures.

    Attributes
    ----------
    rank : int
    scaling : str
    lr : float
    network : str
        Python et le lecteur les lisent et les changent. Une valeur que la table n'a pas est refusée (TraitError), et la
        figure ne bouge pas.

    Raises
    ------
    TraitError
        Un réglage ou un réseau que la table n'a pas.

    Notes
    -----
    Rien n'est entraîné ici : les mesures sont dans ``lrq/data/lora.json``, avec leurs réglages. L'ajustement complet
    est au meilleur des pas essayés, jugés sur des images tenues à l'écart.
    """

    _esm = esm("lora.js")
    _css = CSS

    rank = Integer().tag(sync=True)
    scaling = Text().tag(sync=True)
    lr = Number().tag(sync=True)
    network = Text().tag(sync=True)
    _settings: "traitlets.Dict[str, Any]" = traitlets.Dict().tag(sync=True)
    _networks: traitlets.List[Any] = traitlets.List().tag(sync=True)
    _prompt = traitlets.Unicode().tag(sync=True)
    _values = traitlets.Bytes().tag(sync=True)

    def __init__(self, rank: int = 8, scaling: str = "alpha/r", lr: float = 0.001, network: str | None = None):
        self._table = table = load_table()
        self._records = {record["nom"]: record for record in table["réseaux"]}
        self._allowed: dict[str, list[Any]] = {**table["réglages"], "network": list(self._records)}
        self._curves = {tuple(row[name] for name in SETTINGS): np.array(row["justes"]) for row in table["lora"]}
        self._full = np.array(table["complet"]["justes"])
        ordered = [self._curves[key] for key in itertools.product(*(self._allowed[name] for name in SETTINGS))]
        super().__init__(
            rank=rank,
            scaling=scaling,
            lr=lr,
            network=self._allowed["network"][0] if network is None else network,
            _settings={
                **{name: self._allowed[name] for name in ("rank", "lr", "alpha", "epochs")},
                "seeds": len(self._allowed["seed"]),
                "scalings": [[name, SCALINGS[name]] for name in self._allowed["scaling"]],
                "full": table["complet"]["lr"],
                "images": table["images"],
            },
            _networks=[
                {
                    "name": name,
                    "total": record["parametres"],
                    "trained": [trained(record, rank) for rank in self._allowed["rank"]],
                    "code": CODES[name],
                }
                for name, record in self._records.items()
            ],
            _prompt=UNBROKEN.sub("\u00a0", PROMPT),
            _values=np.stack([*ordered, self._full]).astype("<u2").tobytes(),
        )

    @traitlets.validate(*SETTINGS, "network")
    def _check_setting(self, proposal: Any) -> Any:
        name, value = proposal["trait"].name, proposal["value"]
        if value not in self._allowed[name]:
            *others, last = map(repr, self._allowed[name])
            raise traitlets.TraitError(f"{name} : reçu {value!r}, attendu {', '.join(others)} ou {last}.")
        return value

    # --- ce que mesure la table ---------------------------------------------------------------------------------------

    @property
    def runs(self) -> np.ndarray[Any, Any]:
        """Part des images bien classées au réglage montré, (graines, époques + 1)."""
        return self._curves[self.scaling, self.lr, self.rank] / self._table["images"]

    @property
    def curve(self) -> list[float]:
        """La même, en moyenne sur les graines, époque après époque ; la première, avant d'apprendre."""
        return self.runs.mean(0).tolist()

    @property
    def full_curve(self) -> list[float]:
        """De même quand tous les paramètres s'ajustent."""
        return (self._full.mean(0) / self._table["images"]).tolist()

    @property
    def accuracy(self) -> float:
        """Part des images bien classées après la dernière époque, en moyenne."""
        return self.curve[-1]

    @property
    def spread(self) -> tuple[float, float]:
        """La plus petite et la plus grande des graines, après la dernière époque."""
        last = self.runs[:, -1]
        return float(last.min()), float(last.max())

    @property
    def full_accuracy(self) -> float:
        """Part des images bien classées par l'ajustement complet."""
        return self.full_curve[-1]

    # --- ce que pèse l'entraînement -----------------------------------------------------------------------------------

    @property
    def trained(self) -> int:
        """Nombre de paramètres des adaptateurs, au rang montré."""
        return trained(self._records[self.network], self.rank)

    @property
    def total(self) -> int:
        """Nombre de paramètres du réseau, sans adaptateur."""
        return self._records[self.network]["parametres"]

    @property
    def share(self) -> float:
        """Part de paramètres entraînés : ceux des adaptateurs, rapportés à tous ceux du réseau."""
        return self.trained / self.total

    @property
    def nbytes(self) -> tuple[int, int, int]:
        """Octets des poids, des gradients et des moments d'Adam, avec LoRA ; les activations ne sont pas comptées."""
        return training_bytes(self.total, self.trained)

    @property
    def full_nbytes(self) -> tuple[int, int, int]:
        """Les mêmes, quand tous les paramètres s'ajustent."""
        return training_bytes(0, self.total)

    def __repr__(self) -> str:  # sans adresse, et le même d'une exécution à l'autre : nbval le compare
        state = f"rang {self.rank}, échelle {SCALINGS[self.scaling]}, pas {fr(self.lr)}"
        found = f"{fr(100 * self.accuracy, 1)} % reconnus (tout ajuster : {fr(100 * self.full_accuracy, 1)} %)"
        return f"LoRAExplorer, {state} : {found} ; « {self.network} », {fr(100 * self.share, 2)} % entraînés"
