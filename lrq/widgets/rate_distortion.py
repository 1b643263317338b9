"""Débit et distorsion : l'erreur de chaque recette du cours selon ses bits par poids, et ce que la théorie permet."""

import math
from collections.abc import Mapping
from typing import Any, Self

import anywidget
import torch
import traitlets
from torch import Tensor

from ..display import fr
from ..errors import pareto_front, water_filling
from ..quantizers import Granularity, PerTensor, UniformQuantizer
from ..spectrum import truncation_errors
from ..svd import singular_values
from .choices import Choice, minilm_choices
from .explorer import CSS, Number, Text, esm, relative_to_first, to_bytes
from .quantizer import extract
from .rank_bits import ALONE_BITS, Candidate, Table, best_within, introduce
from .spectrum import check_name, named

RECIPES = {  # nom → ce qu'en dit la description d'une ligne
    "tensor": "une échelle en tout",
    "row": "une échelle par ligne",
    "group": "une échelle par groupe",
    "mse": "une échelle par ligne, au moindre carré",
    "low_rank": "rang faible quantifié",
    "float32": "rang faible en float32",
    "residual": "quantification et résidu",
}
BEST = "best"  # met en avant la recette la plus fidèle
BUDGETS = range(5, 101)  # en dixièmes de bit par poids
MAX_MATRICES = 12
MAX_VALUES = 8_000  # valeurs singulières en tout, 4 octets chacune : le remplissage d'eau les demande toutes

PROMPTS = {
    "query, bloc 1": "Une échelle de 32 bits par groupe de 32 coûte 1 bit par poids : le rend-elle ? Comparez les "
    "groupes et les lignes, à 5 bits, puis à 5,1.",
    "dense 2, bloc 1": "Un poids géant étire la grille : avec une échelle unique, 6 bits valent moins qu’un "
    "seul\u00a0! À partir d’où les groupes de 32, qui l’isolent, battent-ils toujours les lignes ?",
    "vecteurs de position": "Sous la droite : W n’est pas blanche. Jusqu’à combien de bits le rang faible quantifié y "
    "reste-t-il ? Et jusqu’où est-il le plus fidèle ?",
    "hasard gaussien": "Ici la droite est une loi : nulle recette ne passe dessous. À 1,1 bit, laquelle s’en approche "
    "le plus ? L’eau, elle, y passe : que sait-elle de plus ?",
}


class Curves:
    """Ce que la figure sait d'une matrice (m, n) : ses valeurs singulières et, par recette, erreurs et poids.

    Parameters
    ----------
    W : Tensor, (m, n), float32

    Attributes
    ----------
    S : Tensor, (p,)
        Rapportées à la première.
    points : dict recette → liste de :class:`~lrq.widgets.rank_bits.Candidate`
        ``"tensor"``, ``"row"``, ``"group"`` (si des groupes divisent les lignes) et ``"mse"``
        (:class:`lrq.QuantizedLinear`), de 1 à 8 bits ; ``"low_rank"`` (:class:`lrq.QuantizedLowRankLinear`) et
        ``"residual"`` (:class:`lrq.QuantizedResidualLinear`), les meilleurs réglages de chaque taille ; ``"float32"``
        (:class:`lrq.SVDCompressedLinear`), tous les rangs.
    """

    def __init__(self, W: Tensor):
        self.W, table = W, Table(W)
        self.shape = table.shape
        self.S = relative_to_first(singular_values(W)).float()
        by_row, *groups = table.granularities
        alone = {
            shared: [c for c in table.candidates["alone"] if c.granularity == shared] for shared in (by_row, *groups)
        }
        self.points: dict[str, list[Candidate]] = {
            "tensor": self._quantized(table, PerTensor()),
            "row": alone[by_row],
            **({"group": alone[groups[0]]} if groups else {}),
            "mse": self._quantized(table, by_row, "mse"),
            "low_rank": envelope(table.candidates["low_rank"]),
            "float32": [
                Candidate(error, 4 * rank * sum(self.shape), 32, rank, PerTensor())
                for rank, error in enumerate(truncation_errors(self.S).tolist(), 1)
            ],
            "residual": envelope(table.candidates["residual"]),
        }

    def _quantized(self, table: Table, granularity: Granularity, clipping: str = "min_max") -> list[Candidate]:
        """W quantifiée sur 1 à 8 bits."""
        found = []
        for bits in ALONE_BITS:
            approximation = UniformQuantizer(bits, granularity=granularity, clipping=clipping).quantize_dequantize(
                self.W
            )
            nbytes = -(-self.W.numel() * bits // 8) + 4 * len(granularity.blocks(self.W))
            found.append(Candidate(table._error(self.W, approximation), nbytes, bits, 0, granularity))
        return found

    def rate(self, candidate: Candidate) -> float:
        """Bits par poids, codes et échelles comptés."""
        return 8 * candidate.nbytes / self.W.numel()

    def best(self, recipe: str, tenths: int) -> Candidate | None:
        """Le plus fidèle d'une recette, à `tenths` dixièmes de bit par poids au plus ; None si aucun n'y tient."""
        points = self.points.get(recipe, [])
        place = best_within([c.error for c in points], [80 * c.nbytes for c in points], tenths * self.W.numel())
        return points[place] if place >= 0 else None

    def blocks(self, candidate: Candidate) -> int:
        """Combien d'échelles ont les codes de W ; 0 s'il n'y a que des facteurs."""
        return len(candidate.granularity.blocks(self.W))

    def record(self) -> dict[str, Any]:
        """Ce que la page reçoit, erreurs et spectre à part : [bits, rang, échelles de W] ; elle recompte les octets."""
        return {
            "rows": self.shape[0],
            "columns": self.shape[1],
            "points": {
                recipe: [[c.n_bits, c.rank, 0 if recipe == "low_rank" else self.blocks(c)] for c in points]
                for recipe, points in self.points.items()
                if recipe != "float32"  # elle le tire du spectre
            },
        }

    def values(self) -> list[Tensor]:
        """Le spectre, puis les erreurs, dans l'ordre où la page les lit."""
        sent = [points for recipe, points in self.points.items() if recipe != "float32"]
        return [self.S, *(torch.tensor([c.error for c in points]) for points in sent)]


class RateDistortionExplorer(anywidget.AnyWidget):
    """L'erreur d'une matrice selon ses bits par poids : sept recettes du cours, la droite de Shannon, l'eau qui monte.

    Parameters
    ----------
    matrices : Tensor (m, n), ou dict nom → Tensor ou :class:`Choice`
        Tout tableau réel à deux dimensions convient. Ses nombres sont ramenés en float32.
    matrix : str, optionnel
        Celle qu'on montre d'abord ; par défaut, la première.
    budget : float, de 0,5 à 10, à un dixième près
        Les bits permis par poids, codes et échelles comptés.
    recipe : str
        La recette mise en avant : ``"tensor"``, ``"row"``, ``"group"``, ``"mse"``, ``"low_rank"``, ``"float32"``,
        ``"residual"`` ou, par défaut, ``"best"``, la plus fidèle dans le budget.

    Attributes
    ----------
    matrix, recipe : str
    budget : float
        Python et le lecteur les lisent et les changent. Une valeur impossible est refusée (TraitError), et la figure ne
        bouge pas.

    Raises
    ------
    TypeError, ValueError
        Une matrice n'est pas à deux dimensions, est vide, non finie ou hors de float32 ; aucune matrice, ou plus de
        12 ; plus de 8 000 valeurs singulières en tout.
    TraitError
        Un réglage impossible.

    Notes
    -----
    Toutes les erreurs sont calculées à la construction : celles de :class:`RankBitsExplorer`, et les cent grilles que
    le moindre carré essaie pour chaque ligne. Une matrice 384 × 1536 demande cinq secondes.
    """

    _esm = esm("rate_distortion.js")
    _css = CSS

    matrix = Text().tag(sync=True)
    budget = Number(4.1).tag(sync=True)
    recipe = Text(BEST).tag(sync=True)
    _choices: traitlets.List[Any] = traitlets.List().tag(sync=True)
    _values = traitlets.Bytes().tag(sync=True)

    def __init__(
        self,
        matrices: Tensor | Mapping[str, Tensor | Choice],
        matrix: str | None = None,
        budget: float = 4.1,
        recipe: str = BEST,
    ):
        choices = named(matrices)
        if len(choices) > MAX_MATRICES:
            raise ValueError(f"matrices : reçu {len(choices)} matrices, attendu au plus {MAX_MATRICES}.")
        total = sum(min(choice.W.shape) for choice in choices.values())
        if total > MAX_VALUES:
            raise ValueError(f"matrices : reçu {total} valeurs singulières en tout, attendu au plus {MAX_VALUES}.")
        first = check_name(next(iter(choices)) if matrix is None else matrix, choices)
        weights = {
            name: extract(choice.W, (choice.W.shape[0], choice.W.shape[1]), name) for name, choice in choices.items()
        }
        self._curves = {name: Curves(W) for name, W in weights.items()}
        super().__init__(
            matrix=first,
            budget=budget,
            recipe=recipe,
            _choices=[introduce(name, choice) | self._curves[name].record() for name, choice in choices.items()],
            _values=to_bytes([values for curves in self._curves.values() for values in curves.values()]),
        )

    @classmethod
    def of_minilm(cls, matrix: str | None = None, **options: Any) -> Self:
        """Trois matrices de MiniLM et une matrice gaussienne, où la droite est une loi ; chacune avec sa découverte.

        Parameters
        ----------
        matrix : str, optionnel
            « query, bloc 1 », « dense 2, bloc 1 », « vecteurs de position » ou « hasard gaussien ».
        **options : réglages
            Les autres réglages de départ.
        """
        return cls(minilm_choices(PROMPTS), matrix, **options)

    @traitlets.validate("matrix")
    def _check_matrix(self, proposal: Any) -> str:
        return check_name(proposal["value"], self._curves)

    @traitlets.validate("budget")
    def _check_budget(self, proposal: Any) -> float:
        value = proposal["value"]
        tenths = round(10 * value) if math.isfinite(value) else 0
        if tenths not in BUDGETS or abs(10 * value - tenths) > 1e-6:
            limits = f"{fr(BUDGETS[0] / 10)} et {BUDGETS[-1] // 10}"
            raise traitlets.TraitError(f"budget : reçu {value!r}, attendu un multiple de 0,1 entre {limits}.")
        return tenths / 10

    @traitlets.validate("recipe")
    def _check_recipe(self, proposal: Any) -> str:
        value = proposal["value"]
        if value not in (BEST, *RECIPES):
            expected = ", ".join(map(repr, (BEST, *RECIPES)))
            raise traitlets.TraitError(f"recipe : reçu {value!r}, attendu l'un de ces noms : {expected}.")
        return value

    @property
    def curves(self) -> Curves:
        """Ce que la figure sait de la matrice montrée."""
        return self._curves[self.matrix]

    @property
    def bests(self) -> dict[str, Candidate | None]:
        """Le plus fidèle de chaque recette, dans le budget."""
        return {recipe: self.curves.best(recipe, round(10 * self.budget)) for recipe in RECIPES}

    @property
    def winner(self) -> str | None:
        """La recette la plus fidèle dans le budget ; à égalité, la première ; None si rien n'y tient."""
        found = {recipe: best.error for recipe, best in self.bests.items() if best is not None}
        return min(found, key=lambda recipe: found[recipe]) if found else None

    @property
    def shown(self) -> str | None:
        """La recette mise en avant : celle qu'on a choisie, ou la plus fidèle."""
        return self.winner if self.recipe == BEST else self.recipe

    @property
    def point(self) -> Candidate | None:
        """Le réglage mis en avant ; None si rien ne tient dans le budget."""
        return None if self.shown is None else self.bests[self.shown]

    @property
    def error(self) -> float:
        """Erreur relative (Frobenius) du réglage mis en avant ; 1 s'il n'y en a pas : tout est perdu."""
        return 1.0 if self.point is None else self.point.error

    @property
    def rate(self) -> float:
        """Bits par poids de ce réglage, codes et échelles comptés ; 0 s'il n'y en a pas."""
        return 0.0 if self.point is None else self.curves.rate(self.point)

    @property
    def wasted(self) -> float:
        """Bits par poids de trop, par rapport à la droite 2^(−R) ; négatif au-dessous d'elle."""
        return wasted_bits(self.rate, self.error)

    @property
    def water(self) -> tuple[float, int]:
        """Le remplissage d'eau de tout le budget : l'erreur, et combien de directions reçoivent des bits."""
        error, allocation = water_filling(self.curves.S, self.budget)
        return error, int((allocation > 0).sum())

    def __repr__(self) -> str:  # sans adresse, et le même d'une exécution à l'autre : nbval le compare
        m, n = self.curves.shape
        head = f"RateDistortionExplorer « {self.matrix} », {fr(m)} × {fr(n)}, {fr(self.budget, 1)} bits par poids"
        if self.shown is None or self.point is None:
            return f"{head} : rien n'y tient"
        found = f"erreur {fr(100 * self.error, 1)} % pour {fr(self.rate, 2)} bits"
        if self.error > 0:
            found += f", à {fr(self.wasted, 2)} bit de la droite"
        return f"{head} : {RECIPES[self.shown]}, {found}"


def envelope(candidates: list[Candidate]) -> list[Candidate]:
    """Ceux que nul autre ne bat à la fois en erreur et en poids, du plus léger au plus lourd."""
    return [candidates[i] for i in pareto_front([c.error for c in candidates], [c.nbytes for c in candidates])]


def wasted_bits(rate: float, error: float) -> float:
    """Les bits de trop : R + log₂(erreur), puisque la droite atteint cette erreur avec −log₂(erreur) bits.

    Parameters
    ----------
    rate : float
        Bits par poids.
    error : float
        Erreur relative (Frobenius).

    Returns
    -------
    float
        Négatif au-dessous de la droite ; −∞ si l'erreur est nulle.
    """
    return rate + math.log2(error) if error > 0 else -math.inf
