"""Rang et bits à la fois : l'erreur de chaque paire, ce qu'elle pèse, et les deux autres façons de dépenser autant."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import anywidget
import torch
import traitlets
from torch import Tensor

from ..display import fr
from ..errors import pareto_front
from ..gauge import rotate_factors
from ..quantizers import Granularity, PerChannel, PerGroup, UniformQuantizer
from ..svd import share_singular_values, truncated_svd
from ..validation import check_integer
from .choices import Choice, minilm_choices
from .explorer import CSS, YOURS, Integer, Text, esm, to_bytes
from .quantizer import extract
from .randomized import UNBROKEN
from .spectrum import check_name, named

BITS = range(2, 9)  # de la carte
ALONE_BITS = range(1, 9)  # des codes de W, sans rang faible ou sous un résidu
RESIDUAL_RANKS = (1, 2, 4, 8, 16, 32, 64)
RESIDUAL_BITS = 8  # de ses facteurs
GROUPS = (32, 64)
BUDGETS = range(1, 41)  # en centièmes de W en float32
ORDERS = ("low_rank", "alone", "residual")
MAX_MATRICES = 24
LARGE = 600_000  # nombres : au-delà, deux fois moins de rangs, et deux façons de partager une échelle

PROMPTS = {
    "query, bloc 1": "r = 96 sur 8 bits et r = 192 sur 4 bits pèsent autant : laquelle est la plus fidèle ? Cherchez "
    "ensuite un budget où le rang faible l’emporte : que perd-il alors de W ?",
    "dense 2, bloc 1": "Dès que W quantifiée tient dans le budget, à 4 %, le rang faible ne l’emporte plus jamais. Où "
    "s’en faut-il de peu ?",
    "vecteurs de position": "À 2 %, seul le rang faible tient dans le budget : que perd-il ? Montez le budget : "
    "jusqu’où reste-t-il devant ?",
    "hasard gaussien": "Du bruit. À 14 %, la meilleure paire est la même que pour « query » : que perd-elle de plus, "
    "faute d’un spectre qui décroît ?",
}


@dataclass(frozen=True)
class Candidate:
    """Une façon de garder W : son erreur, son poids, ses réglages.

    Attributes
    ----------
    error : float
        Erreur relative (Frobenius).
    nbytes : int
        Octets rangés, codes et échelles.
    n_bits : int
        Des facteurs ou, sans eux, de W.
    rank : int
        0 si W est quantifiée seule.
    granularity : Granularity
        Qui partage une échelle, dans les facteurs ou, pour les deux autres façons, dans W.
    """

    error: float
    nbytes: int
    n_bits: int
    rank: int
    granularity: Granularity


class Table:
    """Tout ce que la figure sait d'une matrice (m, n) : l'erreur et le poids de chaque réglage.

    Parameters
    ----------
    W : Tensor, (m, n), float32

    Attributes
    ----------
    ranks : list d'int
        Ceux de la carte.
    candidates : dict façon → liste de Candidate
        ``"low_rank"``, les paires de la carte (:class:`lrq.QuantizedLowRankLinear`, facteurs tournés, une échelle par
        ligne) ; ``"alone"`` (:class:`lrq.QuantizedLinear`) ; ``"residual"`` (:class:`lrq.QuantizedResidualLinear`).
    """

    def __init__(self, W: Tensor):
        m, n = self.shape = W.shape[0], W.shape[1]
        p, large = min(m, n), W.numel() > LARGE
        self.ranks = grid(p, coarse=large)
        self.residual_ranks = [rank for rank in RESIDUAL_RANKS if rank <= p]
        groups = [size for size in GROUPS if n % size == 0]
        self.granularities: list[Granularity] = [PerChannel(0), *map(PerGroup, groups[-1:] if large else groups)]
        self.norm = W.norm(dtype=torch.float64)
        self.candidates = {"low_rank": self._low_rank(W)} | self._quantized(W)

    def _error(self, W: Tensor, approximation: Tensor) -> float:
        """‖W − Ŵ‖/‖W‖ (Frobenius), arrondie au float32 que la page reçoit ; 0 pour une matrice nulle bien rendue."""
        error = (W - approximation).norm(dtype=torch.float64)
        return float((error / self.norm).float()) if error > 0 else 0.0

    def _low_rank(self, W: Tensor) -> list[Candidate]:
        """Les paires de la carte : une seule SVD, puis les facteurs de chaque rang, tournés et quantifiés."""
        factors, found = leading_factors(W), []
        for rank in self.ranks:
            U, V = rotate_factors(*(factor[:, :rank] for factor in factors))  # (m, r), (n, r)
            for bits in BITS:
                error = self._error(W, rounded(U, bits) @ rounded(V, bits).T)
                found.append(Candidate(error, factors_nbytes(*self.shape, rank, bits), bits, rank, PerChannel(0)))
        return found

    def _quantized(self, W: Tensor) -> dict[str, list[Candidate]]:
        """W quantifiée seule, puis avec un résidu de rang faible : une SVD de ce qui manque par quantification."""
        alone, residual = [], []
        for granularity in self.granularities:
            for bits in ALONE_BITS:
                base = rounded(W, bits, granularity)
                size = -(-W.numel() * bits // 8) + 4 * len(granularity.blocks(W))
                alone.append(Candidate(self._error(W, base), size, bits, 0, granularity))
                U, V = leading_factors(W - base)
                for rank in self.residual_ranks:
                    kept = base + rounded(U[:, :rank], RESIDUAL_BITS) @ rounded(V[:, :rank], RESIDUAL_BITS).T
                    total = size + factors_nbytes(*self.shape, rank, RESIDUAL_BITS)
                    residual.append(Candidate(self._error(W, kept), total, bits, rank, granularity))
        return {"alone": alone, "residual": residual}

    def best(self, order: str, limit: float) -> Candidate | None:
        """Le plus fidèle d'une façon, parmi ceux qui pèsent au plus `limit` octets ; None si aucun n'y tient."""
        candidates = self.candidates[order]
        place = best_within([c.error for c in candidates], [c.nbytes for c in candidates], limit)
        return candidates[place] if place >= 0 else None

    def errors(self) -> Tensor:
        """Les erreurs, dans l'ordre où la page les lit."""
        return torch.tensor([candidate.error for order in ORDERS for candidate in self.candidates[order]])

    def record(self) -> dict[str, Any]:
        """Ce que la page reçoit, erreurs à part ; les poids, elle les recalcule."""
        return {
            "rows": self.shape[0],
            "columns": self.shape[1],
            "ranks": self.ranks,
            "residualRanks": self.residual_ranks,
            "groups": [getattr(granularity, "size", 0) for granularity in self.granularities],  # 0 : une ligne
        }


class RankBitsExplorer(anywidget.AnyWidget):
    """La carte rang × bits d'une matrice : l'erreur de chaque paire, son poids exact et, à poids égal, ce qui la bat.

    Parameters
    ----------
    matrices : Tensor (m, n), ou dict nom → Tensor ou :class:`Choice`
        Tout tableau réel à deux dimensions convient. Ses nombres sont ramenés en float32.
    matrix : str, optionnel
        Celle qu'on montre d'abord ; par défaut, la première.
    rank : int, optionnel
        Un rang de la carte (1, 2, 3, 4, 6, 8, 12… et le plus grand) ; par défaut, le plus proche du quart du plus
        grand.
    n_bits : int, entre 2 et 8
    budget : int, entre 1 et 40
        La taille permise, en centièmes de celle de W en float32.

    Attributes
    ----------
    matrix : str
    rank, n_bits : int
        Le point choisi sur la carte.
    budget : int
        Python et le lecteur les lisent et les changent. Une valeur impossible est refusée (TraitError), et la figure ne
        bouge pas ; un rang que la carte de la nouvelle matrice n'a pas devient le plus proche qu'elle ait.

    Raises
    ------
    TypeError, ValueError
        Une matrice n'est pas à deux dimensions, est vide, non finie ou hors de float32 ; aucune matrice, ou plus de 24.
    TraitError
        Un réglage impossible.

    Notes
    -----
    Toutes les erreurs sont calculées à la construction : une SVD de W et, par quantification, une de ce qu'elle a
    perdu. Une matrice 384 × 1536 demande trois secondes ; au-delà de 600 000 nombres, la carte a deux fois moins de
    rangs, et une matrice 1024 × 1024 demande une dizaine de secondes.
    """

    _esm = esm("rank_bits.js")
    _css = CSS

    matrix = Text().tag(sync=True)
    rank = Integer().tag(sync=True)
    n_bits = Integer().tag(sync=True)
    budget = Integer().tag(sync=True)
    _choices: traitlets.List[Any] = traitlets.List().tag(sync=True)
    _values = traitlets.Bytes().tag(sync=True)

    def __init__(
        self,
        matrices: Tensor | Mapping[str, Tensor | Choice],
        matrix: str | None = None,
        rank: int | None = None,
        n_bits: int = 8,
        budget: int = 14,
    ):
        choices = named(matrices)
        if len(choices) > MAX_MATRICES:
            raise ValueError(f"matrices : reçu {len(choices)} matrices, attendu au plus {MAX_MATRICES}.")
        first = check_name(next(iter(choices)) if matrix is None else matrix, choices)
        weights = {
            name: extract(choice.W, (choice.W.shape[0], choice.W.shape[1]), name) for name, choice in choices.items()
        }
        self._tables = {name: Table(W) for name, W in weights.items()}
        if rank is None:
            rank = closest(self._tables[first].ranks, self._tables[first].ranks[-1] / 4)
        super().__init__(
            matrix=first,
            rank=rank,
            n_bits=n_bits,
            budget=budget,
            _choices=[introduce(name, choice) | self._tables[name].record() for name, choice in choices.items()],
            _values=to_bytes([table.errors() for table in self._tables.values()]),
        )

    @classmethod
    def of_minilm(cls, matrix: str | None = None, **options: Any) -> Self:
        """Trois matrices de MiniLM et, pour témoin, une matrice gaussienne, chacune avec ce qu'on peut y découvrir.

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
        return check_name(proposal["value"], self._tables)

    @traitlets.validate("rank", "n_bits", "budget")
    def _check_setting(self, proposal: Any) -> int:
        value, name = proposal["value"], proposal["trait"].name
        try:
            if name == "rank":
                return check_listed(value, self._tables[check_name(self.matrix, self._tables)].ranks)
            allowed = BITS if name == "n_bits" else BUDGETS
            return check_integer(value, name, allowed[0], allowed[-1])
        except ValueError as error:
            raise traitlets.TraitError(str(error)) from None

    @traitlets.observe("matrix")
    def _keep_rank_possible(self, change: Any) -> None:
        self.rank = closest(self._tables[self.matrix].ranks, self.rank)

    @property
    def table(self) -> Table:
        """Tout ce que la figure sait de la matrice montrée."""
        return self._tables[self.matrix]

    @property
    def point(self) -> Candidate:
        """Le point choisi : la couche de rang `rank`, aux facteurs de `n_bits` bits."""
        return next(c for c in self.table.candidates["low_rank"] if (c.rank, c.n_bits) == (self.rank, self.n_bits))

    @property
    def error(self) -> float:
        """Erreur relative (Frobenius) au point choisi."""
        return self.point.error

    @property
    def nbytes(self) -> int:
        """Octets que pèse le point choisi, échelles comprises."""
        return self.point.nbytes

    @property
    def limit(self) -> float:
        """Le budget, en octets."""
        m, n = self.table.shape
        return 4 * m * n * self.budget / 100

    @property
    def best(self) -> Candidate | None:
        """La meilleure paire (rang, bits) dans le budget ; None si aucune n'y tient."""
        return self.orders["low_rank"]

    @property
    def orders(self) -> dict[str, Candidate | None]:
        """Le plus fidèle de chaque façon, dans le budget."""
        return {order: self.table.best(order, self.limit) for order in ORDERS}

    @property
    def winner(self) -> str | None:
        """La plus fidèle des trois façons : ``"low_rank"``, ``"alone"`` ou ``"residual"``."""
        found = {order: best.error for order, best in self.orders.items() if best is not None}
        return min(found, key=lambda order: found[order]) if found else None

    @property
    def front(self) -> list[Candidate]:
        """Le front de Pareto de la carte : les paires que nulle autre ne bat à la fois en erreur et en poids."""
        pairs = self.table.candidates["low_rank"]
        return [pairs[i] for i in pareto_front([pair.error for pair in pairs], [pair.nbytes for pair in pairs])]

    def __repr__(self) -> str:  # sans adresse, et le même d'une exécution à l'autre : nbval le compare
        m, n = self.table.shape
        state = f"rang {self.rank}, {self.n_bits} bits, erreur {fr(100 * self.error, 1)} %, {fr(self.nbytes)} octets"
        best = self.best
        found = "aucune" if best is None else f"({best.rank}, {best.n_bits}), erreur {fr(100 * best.error, 1)} %"
        budget = f"meilleure paire dans {self.budget} % de W : {found}"
        return f"RankBitsExplorer « {self.matrix} », {fr(m)} × {fr(n)} : {state} ; {budget}"


def grid(p: int, coarse: bool = False) -> list[int]:
    """Les rangs de la carte, de 1 à p : 1, 2, 3, 4, 6, 8, 12… ; un sur deux si elle est grossière.

    Le dernier avant p en reste à distance : leurs colonnes ont de la largeur.
    """
    doubling = [2**k for k in range(p.bit_length())]
    between = [] if coarse else [3 * power for power in doubling]
    return [*sorted(rank for rank in {*doubling, *between} if 1.2 * rank < p), p]


def closest(values: Sequence[int], wanted: float) -> int:
    """De plusieurs valeurs, la plus proche ; à égalité, la première."""
    return min(values, key=lambda value: abs(value - wanted))


def check_listed(rank: Any, ranks: Sequence[int]) -> int:
    """Rend le rang s'il est de la carte.

    Raises
    ------
    ValueError
    """
    if rank not in ranks:
        listed = [*map(str, ranks)]
        expected = f"{', '.join(listed[:-1])} ou {listed[-1]}" if len(listed) > 1 else listed[0]
        raise ValueError(f"rank : reçu {rank}, attendu {expected}, les rangs de la carte.")
    return rank


def leading_factors(W: Tensor) -> tuple[Tensor, Tensor]:
    """Les facteurs équilibrés de W, (m, p) et (n, p) : leurs r premières colonnes sont ceux du rang r."""
    return share_singular_values(*truncated_svd(W, min(W.shape)))


def rounded(t: Tensor, n_bits: int, granularity: Granularity | None = None) -> Tensor:
    """`t` arrondi à la grille de ces bits, une échelle par ligne sauf demande contraire."""
    return UniformQuantizer(n_bits, granularity=granularity or PerChannel(0)).quantize_dequantize(t)


def factors_nbytes(m: int, n: int, rank: int, n_bits: int) -> int:
    """Octets de deux facteurs quantifiés, (m, r) et (n, r), une échelle float32 par ligne de chacun."""
    return -(-m * rank * n_bits // 8) + -(-n * rank * n_bits // 8) + 4 * (m + n)


def introduce(name: str, choice: Choice) -> dict[str, Any]:
    """Ce que la page dit d'une matrice : son nom, son invitation, les lignes qui la définissent."""
    code = f"{YOURS}, en tenseur float32" if choice.code == YOURS else choice.code
    return {"name": name, "prompt": UNBROKEN.sub("\u00a0", choice.prompt), "code": code}


def best_within(errors: Sequence[float], sizes: Sequence[float], limit: float) -> int:
    """La place de la plus petite erreur parmi les tailles permises ; à égalité, la plus légère ; −1 s'il n'y en a pas.

    Parameters
    ----------
    errors, sizes : suites de même longueur
    limit : float
        La plus grande taille permise, dans l'unité de `sizes`.
    """
    allowed = [i for i, size in enumerate(sizes) if size <= limit]
    return min(allowed, key=lambda i: (errors[i], sizes[i]), default=-1)
