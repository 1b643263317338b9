"""L'erreur d'un réseau tronqué, couche après couche : celle qu'on mesure, et celle que la théorie craint."""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import anywidget
import torch
import traitlets
from torch import Tensor, nn

from ..display import fr
from ..errors import propagation_bound
from ..layers import FactorizedLinear
from ..models import load_digits_data, load_digits_network
from ..svd import norm, relative, singular_values
from .explorer import CSS, Integer, esm, to_bytes
from .randomized import UNBROKEN, check_setting

GRIDS = {  # réglage → rangs mesurés ; le dernier est celui de la couche entière
    "rank1": (1, 2, 4, 8, 12, 16, 24, 32, 48, 64),
    "rank2": (1, 2, 4, 8, 12, 16, 24, 32, 64, 256),
    "rank3": (1, 2, 4, 6, 8, 9, 10),
}
NAMES = ("fc1", "fc2", "fc3")  # des couches du réseau, dans l'ordre des réglages
WHOLE = tuple(ranks[-1] for ranks in GRIDS.values())

PROMPT = (
    "Aux rangs 16 et 16, l’erreur baisse de couche en couche, et la borne monte. Laquelle des deux troncatures fait "
    "presque toute l’erreur de sortie ? Rendez entière l’une, puis l’autre."
)


@dataclass(frozen=True)
class Layer:
    """Ce que la borne demande d'une couche.

    Parameters
    ----------
    shape : (m, n)
    S : Tensor, (min(m, n),)
        Ses valeurs singulières.
    input_norm, output_norm : float
        ‖h‖ et ‖z‖ de toutes les images, dans le réseau d'origine (Frobenius) ; z est la sortie, avant l'activation.
    """

    shape: tuple[int, int]
    S: Tensor
    input_norm: float
    output_norm: float

    @property
    def gain(self) -> float:
        """‖Ŵ‖₂ : tronquée ou non, la couche garde sa plus grande valeur singulière."""
        return float(self.S[0])

    def dropped(self, rank: int) -> float:
        """‖W − Ŵ‖₂ : σ_{r+1}, ou 0 si la couche est entière."""
        return float(self.S[rank]) if rank < len(self.S) else 0.0


@dataclass(frozen=True)
class Measures:
    """Le réseau tronqué à tous les rangs des grilles.

    Parameters
    ----------
    layers : list de Layer
    errors : list de Tensor, (10,), (10, 10), (10, 10, 7)
        L'erreur relative après chaque couche ; elle ne dépend que des rangs des couches déjà traversées.
    correct : Tensor, (10, 10, 7)
        Combien d'images sont bien classées.
    images : int
    """

    layers: list[Layer]
    errors: list[Tensor]
    correct: Tensor
    images: int


@cache
@torch.no_grad()
def measure() -> Measures:
    """Tronque le réseau dense des chiffres de toutes les façons, et mesure ; une seconde, une fois par processus."""
    network = load_digits_network("mlp")
    _, (x, y) = load_digits_data()
    linears: list[nn.Linear] = [getattr(network, name) for name in NAMES]
    layers, expected, h = [], [], x.flatten(1)  # (450, 64)
    for linear in linears:
        z = linear(h)  # (N, n) -> (N, m)
        m, n = linear.weight.shape
        layers.append(Layer((m, n), singular_values(linear.weight), norm(h), norm(z)))
        expected.append(z)
        h = z.relu()
    truncated = [
        [linear if rank == ranks[-1] else FactorizedLinear.from_linear(linear, rank) for rank in ranks]
        for linear, ranks in zip(linears, GRIDS.values(), strict=True)
    ]
    errors: list[list[float]] = [[], [], []]
    correct: list[int] = []

    def go_through(place: int, h: Tensor) -> None:
        """Toutes les troncatures de cette couche et des suivantes, pour l'entrée `h` que les précédentes ont abîmée."""
        for layer in truncated[place]:
            z = layer(h)
            difference = z.double() - expected[place].double()
            errors[place].append(relative(norm(difference), layers[place].output_norm))
            if place + 1 < len(linears):
                go_through(place + 1, z.relu())
            else:
                correct.append(int((z.argmax(-1) == y).sum()))

    go_through(0, x.flatten(1))
    sizes = [len(ranks) for ranks in GRIDS.values()]
    return Measures(
        layers,
        [torch.tensor(found).reshape(sizes[: place + 1]) for place, found in enumerate(errors)],
        torch.tensor(correct).reshape(sizes),
        len(y),
    )


class PropagationExplorer(anywidget.AnyWidget):
    """L'erreur qui traverse un réseau dont les trois couches sont tronquées : mesurée, bornée, estimée en quadrature.

    Le réseau dense des chiffres manuscrits, 64 → 256 → 256 → 10, sur ses 450 images de test.

    Parameters
    ----------
    rank1, rank2, rank3 : int
        Les rangs montrés d'abord. Le plus grand de chacun, 64, 256 ou 10, laisse la couche entière, par défaut celui de
        la troisième.

    Attributes
    ----------
    rank1, rank2, rank3 : int
        Python et le lecteur les lisent et les changent. Un rang qui n'a pas été mesuré est refusé (TraitError), et la
        figure ne bouge pas.

    Raises
    ------
    TraitError
        Un rang qui n'a pas été mesuré.

    Notes
    -----
    Les erreurs et les taux de réussite des 700 réseaux sont mesurés à la première construction, en une seconde ; la
    page ne recalcule que la borne. Les couches sont celles de :meth:`lrq.FactorizedLinear.from_linear`, et les erreurs
    celles de :func:`lrq.analyze_cumulative_error`, avant l'activation.
    """

    _esm = esm("propagation.js")
    _css = CSS

    rank1 = Integer(16).tag(sync=True)
    rank2 = Integer(16).tag(sync=True)
    rank3 = Integer(10).tag(sync=True)
    _layers: traitlets.List[Any] = traitlets.List().tag(sync=True)
    _images = traitlets.Int().tag(sync=True)
    _prompt = traitlets.Unicode().tag(sync=True)
    _values = traitlets.Bytes().tag(sync=True)

    def __init__(self, rank1: int = 16, rank2: int = 16, rank3: int = 10):
        self._measures = measures = measure()
        super().__init__(
            rank1=rank1,
            rank2=rank2,
            rank3=rank3,
            _layers=[
                {
                    "name": name,
                    "shape": layer.shape,
                    "ranks": ranks,
                    "gain": layer.gain,
                    "dropped": [layer.dropped(rank) for rank in ranks],
                    "input": layer.input_norm,
                    "output": layer.output_norm,
                }
                for name, layer, ranks in zip(NAMES, measures.layers, GRIDS.values(), strict=True)
            ],
            _images=measures.images,
            _prompt=UNBROKEN.sub("\u00a0", PROMPT),
            _values=to_bytes([values.flatten() for values in (*measures.errors, measures.correct)]),
        )

    @traitlets.validate(*GRIDS)
    def _check_rank(self, proposal: Any) -> int:
        name = proposal["trait"].name
        return check_setting(proposal["value"], name, GRIDS[name])

    @property
    def ranks(self) -> tuple[int, int, int]:
        """Les trois rangs montrés."""
        return self.rank1, self.rank2, self.rank3

    @property
    def errors(self) -> list[float]:
        """Erreur relative (Frobenius) mesurée après chaque couche."""
        return self._errors(self.ranks)

    @property
    def error(self) -> float:
        """Erreur relative mesurée à la sortie du réseau."""
        return self.errors[-1]

    @property
    def bounds(self) -> list[float]:
        """Borne de l'erreur relative après chaque couche, par :func:`lrq.propagation_bound`."""
        layers = self._measures.layers
        own = [layer.dropped(rank) * layer.input_norm for layer, rank in zip(layers, self.ranks, strict=True)]
        bounds = propagation_bound([layer.gain for layer in layers], own)
        return [bound / layer.output_norm for bound, layer in zip(bounds, layers, strict=True)]

    @property
    def excess(self) -> float:
        """Combien de fois la borne dépasse l'erreur de sortie ; 1 si rien n'est tronqué : elles sont nulles."""
        return self.bounds[-1] / self.error if self.error > 0 else 1.0

    @property
    def alone(self) -> list[float]:
        """Erreur relative de sortie quand chaque couche, à son tour, est seule tronquée."""
        return [
            self._errors(tuple(rank if i == place else whole for i, whole in enumerate(WHOLE)))[-1]
            for place, rank in enumerate(self.ranks)
        ]

    @property
    def quadrature(self) -> float:
        """L'erreur de sortie, si celles que chaque couche cause seule étaient orthogonales : la racine des carrés."""
        return math.hypot(*self.alone)

    @property
    def accuracy(self) -> float:
        """Part des images bien classées par le réseau tronqué."""
        return int(self._measures.correct[self._places(self.ranks)]) / self._measures.images

    @property
    def original_accuracy(self) -> float:
        """Part des images bien classées par le réseau d'origine."""
        return int(self._measures.correct[-1, -1, -1]) / self._measures.images

    def _places(self, ranks: tuple[int, ...]) -> tuple[int, ...]:
        """La place de chaque rang dans sa grille."""
        return tuple(grid.index(rank) for grid, rank in zip(GRIDS.values(), ranks, strict=True))

    def _errors(self, ranks: tuple[int, ...]) -> list[float]:
        places = self._places(ranks)
        return [float(errors[places[: i + 1]]) for i, errors in enumerate(self._measures.errors)]

    def __repr__(self) -> str:  # sans adresse, et le même d'une exécution à l'autre : nbval le compare
        ranks = ", ".join("entière" if r == whole else str(r) for r, whole in zip(self.ranks, WHOLE, strict=True))
        found = f"erreur {fr(100 * self.error, 1)} % en sortie (borne {fr(100 * self.bounds[-1], 0)} %, "
        found += f"quadrature {fr(100 * self.quadrature, 1)} %)"
        return f"PropagationExplorer, rangs {ranks} : {found}, {fr(100 * self.accuracy, 1)} % des chiffres reconnus"
