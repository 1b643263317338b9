"""La quantification uniforme de poids réels : la grille sur l'histogramme, l'erreur bit par bit."""

import math
from collections.abc import Mapping
from typing import Any, Self

import anywidget
import torch
import traitlets
from torch import Tensor

from ..display import fr
from ..models import load_minilm_weights
from ..quantizers import CLIPPINGS, Granularity, PerChannel, PerGroup, PerTensor, UniformQuantizer, divisor
from ..validation import check_bits, check_choice, check_integer, is_finite
from .choices import Choice
from .explorer import CSS, YOURS, Flag, Integer, Text, esm, to_bytes
from .randomized import UNBROKEN
from .spectrum import check_name, named

GROUP = 32  # voisins d'une ligne qui partagent une échelle
GRANULARITIES: dict[str, Granularity] = {"tensor": PerTensor(), "row": PerChannel(0), "group": PerGroup(GROUP)}
MAX_WEIGHTS = 12_288  # en tout, quatre octets chacun : 49 ko
COLUMNS = 128  # ce qu'on garde au moins d'une ligne trop longue

MINILM = {  # nom → clé dans les poids, lignes et colonnes de l'extrait, invitation
    "dense 2, bloc 1": (
        "encoder.layer.0.output.dense.weight",
        (96, 768),
        "Descendez à 2 bits : que devient l’erreur, et à cause de quel poids ? Puis donnez une échelle "
        "à chaque groupe de 32.",
    ),
    "query, bloc 1": (
        "encoder.layer.0.attention.self.query.weight",
        (0, 0),
        "Passez de 2 bits à 1 : l’erreur diminue ! Revenez à 2, et écrêtez au moindre carré.",
    ),
    "dense 1, bloc 1": (
        "encoder.layer.0.intermediate.dense.weight",
        (0, 0),
        "Écrêtez aux centiles : à 4 bits, l’erreur diminue ; à 8 bits, elle augmente, à cause de trois poids.",
    ),
    "vecteurs de mots": (
        "embeddings.word_embeddings.weight",
        (1996, 0),
        "Les plus grands poids sont tous du même côté : à 4 bits, que gagne une grille asymétrique, et que coûte son "
        "point zéro ?",
    ),
}
ROWS, WIDTH = 32, 96  # d'un extrait de MiniLM


class QuantizerExplorer(anywidget.AnyWidget):
    """Des poids réels quantifiés par :class:`lrq.UniformQuantizer` : grille, erreur de 1 à 8 bits et taille exacte.

    Parameters
    ----------
    matrices : Tensor (m, n), ou dict nom → Tensor ou :class:`Choice`
        Tout tableau réel à deux dimensions convient. Ses nombres sont ramenés en float32.
    matrix : str, optionnel
        Celle qu'on montre d'abord ; par défaut, la première.
    n_bits : int, entre 1 et 8
    granularity : "tensor", "row" ou "group"
        Qui partage une échelle : tout le tenseur, chaque ligne, ou 32 voisins d'une ligne.
    symmetric : bool
    clipping : "min_max", "percentile" ou "mse"
        Comme pour :class:`lrq.UniformQuantizer` ; « percentile » garde 99,9 % des valeurs.
    block : int
        Le bloc, c'est-à-dire les poids d'une même échelle, dont on montre l'histogramme, compté à partir de 1 ; 0 pour
        celui dont le plus grand poids dépasse le plus sa valeur efficace.

    Attributes
    ----------
    matrix : str
    n_bits, block : int
    granularity, clipping : str
    symmetric : bool
        Python et le lecteur les lisent et les changent. Une valeur impossible est refusée (TraitError), et la figure ne
        bouge pas ; un bloc ou des groupes que la nouvelle matrice n'a pas redeviennent 0 ou ``"row"``.

    Raises
    ------
    TypeError, ValueError
        Une matrice n'est pas à deux dimensions, est vide, non finie ou hors de float32, ou il n'y en a aucune.
    TraitError
        Un réglage impossible.

    Notes
    -----
    La figure transporte les poids eux-mêmes, 12 288 en tout : d'une matrice plus grande, elle garde les premières
    lignes et colonnes, et le dit. Tout se calcule sur cet extrait.
    """

    _esm = esm("quantizer.js")
    _css = CSS

    matrix = Text().tag(sync=True)
    n_bits = Integer().tag(sync=True)
    granularity = Text().tag(sync=True)
    symmetric = Flag().tag(sync=True)
    clipping = Text().tag(sync=True)
    block = Integer().tag(sync=True)
    _choices: traitlets.List[Any] = traitlets.List().tag(sync=True)
    _values = traitlets.Bytes().tag(sync=True)
    _note = traitlets.Unicode().tag(sync=True)

    def __init__(
        self,
        matrices: Tensor | Mapping[str, Tensor | Choice],
        matrix: str | None = None,
        n_bits: int = 4,
        granularity: str = "tensor",
        symmetric: bool = True,
        clipping: str = "min_max",
        block: int = 0,
    ):
        choices = named(matrices)
        limit = MAX_WEIGHTS // len(choices)
        shapes = {name: extract_shape(choice.W.shape, limit) for name, choice in choices.items()}
        self._weights = {name: extract(choice.W, shapes[name], name) for name, choice in choices.items()}
        cut = [name for name, choice in choices.items() if shapes[name] != tuple(choice.W.shape)]
        super().__init__(
            matrix=check_name(next(iter(choices)) if matrix is None else matrix, choices),
            n_bits=n_bits,
            granularity=granularity,
            symmetric=symmetric,
            clipping=clipping,
            block=block,
            _choices=[
                {
                    "name": name,
                    "rows": shapes[name][0],
                    "columns": shapes[name][1],
                    "prompt": UNBROKEN.sub("\u00a0", choice.prompt),
                    "code": code(choice.code, shapes[name] if name in cut else None),
                }
                for name, choice in choices.items()
            ],
            _values=to_bytes([W.flatten() for W in self._weights.values()]),
            _note=left_out({name: (tuple(choices[name].W.shape), shapes[name]) for name in cut}),
        )

    @classmethod
    def of_minilm(cls, matrix: str | None = None, **options: Any) -> Self:
        """Quatre extraits de MiniLM, de 32 lignes et 96 colonnes, chacun avec ce qu'on peut y découvrir.

        Parameters
        ----------
        matrix : str, optionnel
            « dense 2, bloc 1 » (qui contient le plus grand poids de cette couche), « query, bloc 1 », « dense 1,
            bloc 1 » ou « vecteurs de mots ».
        **options : réglages
            Les autres réglages de départ.
        """
        weights = load_minilm_weights()
        choices = {}
        for name, (key, (row, column), prompt) in MINILM.items():
            part = f"{row}:{row + ROWS}, {column}:{column + WIDTH}"
            lines = f'from lrq import models\n\nW = models.load_minilm_weights()["{key}"][{part}]'
            choices[name] = Choice(weights[key][row : row + ROWS, column : column + WIDTH], prompt, lines)
        return cls(choices, matrix, **options)

    @traitlets.validate("matrix")
    def _check_matrix(self, proposal: Any) -> str:
        return check_name(proposal["value"], self._weights)

    @traitlets.validate("n_bits", "granularity", "clipping", "block")
    def _check_setting(self, proposal: Any) -> Any:
        value, name = proposal["value"], proposal["trait"].name
        try:
            if name == "n_bits":
                return check_bits(value)
            if name == "clipping":
                return check_choice(value, "clipping", CLIPPINGS)
            W = self._weights[check_name(self.matrix, self._weights)]
            if name == "granularity":
                return check_choice(value, "granularity", granularities(W))
            granularity = check_choice(self.granularity, "granularity", granularities(W))
            return check_integer(value, "block", 0, blocks(W, granularity))
        except ValueError as error:
            raise traitlets.TraitError(str(error)) from None

    @traitlets.observe("matrix", "granularity")
    def _keep_settings_possible(self, change: Any) -> None:
        W = self._weights[self.matrix]
        if self.granularity not in granularities(W):
            self.granularity = "row"
        if self.block > blocks(W, self.granularity):
            self.block = 0

    @property
    def W(self) -> Tensor:
        """Les poids de la figure, en float32."""
        return self._weights[self.matrix]

    @property
    def quantizer(self) -> UniformQuantizer:
        """Le quantificateur des réglages montrés."""
        return self.with_bits(self.n_bits)

    def with_bits(self, n_bits: int) -> UniformQuantizer:
        """Le même, à `n_bits` bits."""
        return UniformQuantizer(
            n_bits, self.symmetric, granularity=GRANULARITIES[self.granularity], clipping=self.clipping
        )

    @property
    def error(self) -> float:
        """Erreur relative (Frobenius)."""
        return self.quantizer.quantization_error(self.W)

    @property
    def decibels(self) -> float:
        """Rapport signal à bruit, −20 log₁₀ de l'erreur relative ; infini si elle est nulle."""
        return decibels(self.error)

    @property
    def predicted_error(self) -> float:
        """L'erreur relative que prédit un arrondi uniforme dans chaque pas, de carré moyen Δ²/12."""
        return uniform_noise(self.W, self.quantizer)

    @property
    def clipped(self) -> float:
        """Part des poids que la grille écrête : à plus d'un demi-pas de son dernier niveau."""
        return clipped_share(self.W, self.quantizer)

    @property
    def bits_per_weight(self) -> float:
        """Bits rangés par poids : codes, échelles et points zéro."""
        return 8 * self.quantizer.compress(self.W).nbytes() / self.W.numel()

    def __repr__(self) -> str:  # sans adresse, et le même d'une exécution à l'autre : nbval le compare
        m, n = self.W.shape
        quantizer = self.quantizer
        kind = "symétrique" if self.symmetric else "asymétrique"
        state = f"{self.n_bits} bit{'s' if self.n_bits > 1 else ''}, {quantizer.granularity}, {kind}, {self.clipping}"
        result = f"erreur {fr(100 * self.error, 1)} %, {fr(self.bits_per_weight, 2)} bits par poids"
        return f"QuantizerExplorer « {self.matrix} », {fr(m)} × {fr(n)} : {state}, {result}"


def granularities(W: Tensor) -> list[str]:
    """Les façons de partager une échelle que cette matrice permet."""
    return [name for name in GRANULARITIES if name != "group" or W.shape[1] % GROUP == 0]


def blocks(W: Tensor, granularity: str) -> int:
    """Combien d'échelles demande cette matrice."""
    return len(GRANULARITIES[granularity].blocks(W))


def extract_shape(shape: torch.Size, limit: int) -> tuple[int, int]:
    """Les premières lignes et colonnes que la figure garde d'une matrice m×n : `limit` nombres au plus.

    Une ligne qu'il faut couper l'est à un multiple de 32, pour que les groupes restent ceux de la matrice entière.
    """
    m, n = shape
    if m * n <= limit:
        return m, n
    widest = max(COLUMNS, limit // m)
    columns = n if n <= widest else widest - widest % GROUP
    return min(m, limit // columns), columns


def extract(W: Tensor, shape: tuple[int, int], name: str) -> Tensor:
    """Les premières lignes et colonnes de `W`, en float32."""
    kept = W[: shape[0], : shape[1]].detach().cpu()
    weights = kept.to(torch.float32).contiguous()
    if not is_finite(weights) or not torch.equal(weights != 0, kept != 0):
        raise ValueError(f"matrices[{name!r}] : attendu des nombres de la portée d'un float32, de 1e-45 à 3e38.")
    return weights


def left_out(cut: Mapping[str, tuple[tuple[int, ...], tuple[int, int]]]) -> str:
    """Ce que la figure ne montre pas, dit au lecteur."""
    if not cut:
        return ""
    parts = [
        f"«\u00a0{name}\u00a0» ({m} × {n} sur {fr(all_m)} × {fr(all_n)})"
        for name, ((all_m, all_n), (m, n)) in cut.items()
    ]
    return f"Trop de poids pour la figure : elle garde les premières lignes et colonnes de {', '.join(parts)}."


def code(lines: str, shape: tuple[int, int] | None) -> str:
    """Les lignes de « Voir le code » qui définissent l'extrait ; `shape` si la figure l'a coupé."""
    lines = f"{YOURS}, en tenseur" if lines == YOURS else lines
    return lines if shape is None else f"{lines}\nW = W[:{shape[0]}, :{shape[1]}]"


def decibels(error: float) -> float:
    """Rapport signal à bruit, en décibels, d'une erreur relative."""
    return -20 * math.log10(error) if error > 0 else math.inf


def uniform_noise(W: Tensor, quantizer: UniformQuantizer) -> float:
    """L'erreur relative d'un arrondi uniforme dans chaque pas, de carré moyen Δ²/12 : ce que prédit la théorie."""
    scale, _ = quantizer.compute_scale_zero_point(W)
    power = float(W.double().square().mean())
    return math.sqrt(float(scale.double().square().mean()) / 12 / power) if power > 0 else 0.0


def clipped_share(W: Tensor, quantizer: UniformQuantizer) -> float:
    """Part des nombres que la grille écrête, à plus d'un demi-pas de son dernier niveau ; aucun sur la grille ±Δ."""
    if quantizer.binary:
        return 0.0
    scale, zero_point = quantizer.compute_scale_zero_point(W)
    steps = W * divisor(quantizer.spread(scale, W.shape)).reciprocal()
    origin = quantizer.spread(zero_point, W.shape)
    outside = (steps < quantizer.low - origin - 0.5) | (steps > quantizer.high - origin + 0.5)
    return float(outside.double().mean())
