"""Le réseau des chiffres, comprimé et exécuté dans la page : ce que le lecteur règle, et ce qu'il dessine."""

from functools import cached_property
from typing import Any

import anywidget
import torch
import traitlets
from torch import Tensor, nn

from ..compression import stored_bytes
from ..display import fr
from ..layers import QuantizedConv2d, QuantizedLinear, QuantizedLowRankLayer, SVDCompressedLinear, SVDConv2d
from ..models import load_digits_data, load_digits_network
from ..packing import pack_bits
from ..quantizers import Granularity, PerChannel, PerTensor
from ..spectrum import break_even_rank
from ..svd import balanced_factors
from ..validation import check_choice, check_integer
from .explorer import CSS, Integer, Text, css, esm, to_bytes

LAYERS = ("conv1", "conv2", "fc")
WHOLE = 53  # le rang à partir duquel aucune couche ne gagne à être tronquée
BITS = (1, 2, 3, 4, 5, 6, 7, 8, 32)
GRANULARITIES: dict[str, Granularity] = {"tensor": PerTensor(), "row": PerChannel(0)}
PIXEL_BITS = 5  # une image compte 17 niveaux, de 0 à 16
FINE, PEN, BODY = 32, 5.5, 24  # en points : le côté de la grille fine, la plume, la largeur d'un chiffre


def truncated(shape: tuple[int, int], rank: int) -> bool:
    """Vrai si une couche de cette forme gagne à être tronquée : r < mn/(m + n)."""
    return rank < break_even_rank(*shape)


def compress(network: nn.Module, rank: int, n_bits: int, granularity: Granularity) -> nn.Module:
    """Comprime sur place un réseau de chiffres : chaque couche tronquée si elle y gagne, puis quantifiée.

    Parameters
    ----------
    network : DigitsCNN
    rank : int, au moins 1
        D'une couche pour laquelle r < mn/(m + n), il reste une SVD de ce rang ; les autres restent entières.
    n_bits : int, entre 1 et 8, ou 32
        À 32, les nombres restent réels.
    granularity : PerTensor ou PerChannel
        Qui partage une échelle, dans chaque matrice.

    Returns
    -------
    nn.Module
        `network`.

    Raises
    ------
    TypeError, ValueError
        `rank` ou `n_bits` impossible ; le réseau est alors intact.
    """
    rank = check_integer(rank, "rank")
    if n_bits not in BITS:
        raise ValueError(f"n_bits : reçu {n_bits!r}, attendu un entier entre 1 et 8, ou 32.")
    real = n_bits > 8

    def rounded(conv: nn.Conv2d) -> nn.Module:
        return conv if real else QuantizedConv2d.from_conv2d(conv, n_bits, granularity)

    for name in LAYERS:
        layer: Any = network.get_submodule(name)
        cut = truncated(layer.weight.flatten(1).shape, rank)
        smaller: Any
        if isinstance(layer, nn.Conv2d) and cut:
            smaller = SVDConv2d.from_conv2d(layer, rank)
            smaller.filters, smaller.mixer = rounded(smaller.filters), rounded(smaller.mixer)
        elif isinstance(layer, nn.Conv2d):
            smaller = rounded(layer)
        elif cut and real:
            smaller = SVDCompressedLinear.from_linear(layer, rank)
        elif cut:
            smaller = QuantizedLowRankLayer.from_linear(layer, rank, n_bits, granularity=granularity)
        else:
            smaller = layer if real else QuantizedLinear.from_linear(layer, n_bits, granularity)
        setattr(network, name, smaller)
    return network


def ink(strokes: list[Tensor]) -> Tensor:
    """Ce que le réseau voit d'un dessin : les chiffres de scikit-learn furent préparés ainsi, ou presque.

    Le dessin est agrandi jusqu'en haut et en bas d'une grille de 32×32 points, resserré s'il y fait plus de 24 points
    de large (comme eux), tracé d'une plume ronde, puis compté par carrés de 4×4 points.

    Parameters
    ----------
    strokes : liste de Tensor (k, 2)
        Des traits : la suite de leurs points (x, y), y vers le bas, dans une unité quelconque.

    Returns
    -------
    Tensor, (8, 8), int64
        De 0 à 16 points noircis par carré.

    Raises
    ------
    ValueError
        Aucun trait, ou un trait sans point.
    """
    if not strokes or not all(len(stroke) for stroke in strokes):
        counts = [len(stroke) for stroke in strokes]
        raise ValueError(f"strokes : reçu des traits de {counts} points, attendu un trait au moins, aucun vide.")
    points = torch.cat(strokes).double()
    low, high = points.aminmax(dim=0)
    width, height = (high - low).tolist()
    tall = (FINE - PEN) / max(height, width / 2, 1e-9)  # un trait couché ne s'étire pas de haut en bas
    wide = min((BODY - PEN) / max(width, 1e-9), tall)
    scale = torch.tensor([wide, tall], dtype=torch.float64)
    centres = torch.arange(FINE, dtype=torch.float64) + 0.5
    grid = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), dim=-1)  # (32, 32, 2), des (x, y)
    inked = torch.zeros(FINE, FINE, dtype=torch.bool)
    for stroke in strokes:
        path = FINE / 2 + (stroke.double() - (low + high) / 2) * scale  # (k, 2)
        for start, end in zip(path, torch.cat([path[1:], path[-1:]]), strict=True):
            step, away = end - start, grid - start
            length = float(step @ step)
            along = ((away @ step) / length).clamp(0, 1) if length > 0 else torch.zeros(FINE, FINE)
            inked |= (away - along[..., None] * step).square().sum(-1) <= (PEN / 2) ** 2
    return inked.view(8, 4, 8, 4).sum((1, 3))


class NetworkExplorer(anywidget.AnyWidget):
    """Un vrai réseau, comprimé dans la page : il y classe 450 chiffres de test, et celui que le lecteur dessine.

    Parameters
    ----------
    rank : int, entre 1 et 53
        Rang des SVD. Une couche (m, n) n'est tronquée que si elle y gagne, r < mn/(m + n) ; à 53, aucune ne l'est.
    n_bits : int, entre 1 et 8, ou 32
        Bits par nombre gardé ; à 32, rien n'est arrondi.
    granularity : "tensor" ou "row"
        Une échelle pour chaque matrice, ou pour chacune de ses lignes.
    digit : int, entre 0 et 449
        Le chiffre de test montré d'abord.

    Attributes
    ----------
    rank, n_bits, digit : int
    granularity : str
        Python et le lecteur les lisent et les changent. Une valeur impossible est refusée (TraitError), et la figure ne
        bouge pas.

    Raises
    ------
    TraitError
        Un réglage impossible.

    Notes
    -----
    La figure emporte le réseau (``models.load_digits_network("cnn")``), le premier facteur de la SVD de chaque couche
    et les 450 images ; la page en refait tout le reste.
    """

    _esm = esm("network.js")
    _css = CSS + css("network.css")

    rank = Integer().tag(sync=True)
    n_bits = Integer().tag(sync=True)
    granularity = Text().tag(sync=True)
    digit = Integer().tag(sync=True)
    _drawing: traitlets.List[Any] = traitlets.List().tag(sync=True)  # 64 comptes, ou rien si l'on montre un chiffre
    _layers: traitlets.List[Any] = traitlets.List().tag(sync=True)
    _weights = traitlets.Bytes().tag(sync=True)
    _images = traitlets.Bytes().tag(sync=True)
    _labels = traitlets.Unicode().tag(sync=True)

    def __init__(self, rank: int = 20, n_bits: int = 4, granularity: str = "row", digit: int = 110):
        network = load_digits_network("cnn")
        layers: list[Any] = [network.get_submodule(name) for name in LAYERS]
        weights = [layer.weight.detach().flatten(1) for layer in layers]
        ranks = [max(r for r in range(1, min(W.shape) + 1) if truncated(W.shape, r)) for W in weights]
        factors = [balanced_factors(W, r)[0] for W, r in zip(weights, ranks, strict=True)]
        biases = [layer.bias.detach() for layer in layers]
        _, (images, self._answers) = load_digits_data()
        self._test = images
        super().__init__(
            rank=rank,
            n_bits=n_bits,
            granularity=granularity,
            digit=digit,
            _layers=[
                {"name": name, "rows": W.shape[0], "columns": W.shape[1], "most": r}
                for name, W, r in zip(LAYERS, weights, ranks, strict=True)
            ],
            _weights=to_bytes([t.flatten() for t in (*weights, *factors, *biases)]),
            _images=pack_bits((16 * images).byte(), PIXEL_BITS, signed=False).numpy().tobytes(),
            _labels="".join(map(str, self._answers.tolist())),
        )

    @traitlets.validate("rank", "n_bits", "granularity", "digit")
    def _check_setting(self, proposal: Any) -> Any:
        value, name = proposal["value"], proposal["trait"].name
        try:
            if name == "n_bits" and value not in BITS:
                raise ValueError(f"n_bits : reçu {value}, attendu un entier de 1 à 8, ou 32.")
            if name == "granularity":
                return check_choice(value, name, list(GRANULARITIES))
            if name == "rank":
                return check_integer(value, name, 1, WHOLE)
            if name == "digit":
                return check_integer(value, name, 0, len(self._answers) - 1)
            return value
        except ValueError as error:
            raise traitlets.TraitError(str(error)) from None

    @traitlets.validate("_drawing")
    def _check_drawing(self, proposal: Any) -> list[int]:
        counts = proposal["value"]
        if counts and (len(counts) != 64 or any(count not in range(17) for count in counts)):
            raise traitlets.TraitError(f"_drawing : reçu {counts!r}, attendu 64 entiers de 0 à 16.")
        return counts

    @traitlets.observe("rank", "n_bits", "granularity")
    def _forget(self, change: Any) -> None:  # ce qu'on avait calculé des réglages d'avant
        for name in ("network", "predictions"):
            self.__dict__.pop(name, None)

    @traitlets.observe("digit")
    def _show_digit(self, change: Any) -> None:
        self._drawing = []

    @cached_property
    def network(self) -> nn.Module:
        """Le réseau montré, fait des couches de ``lrq``."""
        return compress(load_digits_network("cnn"), self.rank, self.n_bits, GRANULARITIES[self.granularity])

    @property
    def nbytes(self) -> int:
        """Octets du réseau montré, échelles et biais compris."""
        return stored_bytes(self.network)

    @property
    def original_nbytes(self) -> int:
        """Octets de l'original, en float32."""
        return stored_bytes(load_digits_network("cnn"))

    @cached_property
    @torch.no_grad()
    def predictions(self) -> Tensor:
        """Ce que le réseau montré lit des 450 images, (450,)."""
        return self.network(self._test).argmax(-1)

    @property
    def correct(self) -> int:
        """Combien de ces images il lit bien."""
        return int((self.predictions == self._answers).sum())

    @property
    def accuracy(self) -> float:
        """La part qu'il lit bien."""
        return self.correct / len(self._answers)

    @property
    def confusion(self) -> Tensor:
        """Combien d'images de chaque chiffre (ligne) il a lues comme chaque chiffre (colonne), (10, 10)."""
        return torch.bincount(10 * self._answers + self.predictions, minlength=100).view(10, 10)

    @property
    def image(self) -> Tensor:
        """L'image montrée, (1, 1, 8, 8), entre 0 et 1 : le chiffre de test, ou le dessin du lecteur."""
        if self._drawing:
            return torch.tensor(self._drawing, dtype=torch.float32).view(1, 1, 8, 8) / 16
        return self._test[self.digit][None]

    @property
    @torch.no_grad()
    def scores(self) -> Tensor:
        """Les dix scores que le réseau montré donne à cette image, (10,)."""
        return self.network(self.image)[0]

    def __repr__(self) -> str:  # sans adresse, et le même d'une exécution à l'autre : nbval le compare
        rank = "sans tronquer" if self.rank == WHOLE else f"rang {self.rank}"
        bits = f"{self.n_bits} bit{'s' if self.n_bits > 1 else ''}"
        found = f"{self.correct} chiffres sur {len(self._answers)}, {fr(self.nbytes)} octets"
        return f"NetworkExplorer, {rank}, {bits}, {self.granularity} : {found}"
