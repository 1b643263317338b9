"""Statistiques d'activations en flux : un histogramme dont la portée double au besoin, et les bornes qu'on en tire.

Les cases de [−2^k, 2^k[ sont dyadiques : doubler la portée les réunit deux à deux, exactement. L'histogramme ne dépend
donc que des valeurs vues, ni de leur ordre ni de leur découpage en lots.
"""

import math

import torch
from torch import Tensor

from .quantizers import UniformQuantizer
from .validation import check_choice, check_integer, check_percentile, check_tensor

METHODS = ("min_max", "percentile", "mse", "entropy")
SMALLEST = -1000  # l'exposant de départ : en deçà de 2^−1000, une seule portée


class ActivationHistogram:
    """Ce qu'il faut retenir d'activations pour leur choisir une grille, en une mémoire fixe.

    Parameters
    ----------
    bins : int
        Nombre de cases, une puissance de 2.

    Attributes
    ----------
    counts : Tensor, (bins,), int64
    zeros : int
        Combien de ces valeurs sont exactement nulles.
    exponent : int
        k : les cases partagent [−2^k, 2^k[, la plus petite portée qui contienne tout.
    low, high : float
        Les extrêmes vus, exacts.

    Raises
    ------
    TypeError, ValueError
        `bins` n'est pas une puissance de 2, entre 4 et 2^16.
    """

    def __init__(self, bins: int = 2048):
        self.bins = check_integer(bins, "bins", 4, 2**16)
        if bins & (bins - 1):
            raise ValueError(f"bins : reçu {bins}, attendu une puissance de 2.")
        self.counts = torch.zeros(bins, dtype=torch.int64)
        self.zeros = 0
        self.exponent = SMALLEST
        self.low, self.high = math.inf, -math.inf

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Compte les valeurs de `x`, de forme quelconque ; un tenseur vide ne change rien.

        Parameters
        ----------
        x : Tensor

        Raises
        ------
        TypeError
            `x` n'est pas un tenseur de nombres réels.
        ValueError
            `x` contient NaN ou l'infini ; rien n'a alors changé.
        """
        x = check_tensor(x, "x").detach().flatten().double()  # exact depuis float16, bfloat16 et float32
        if x.numel() == 0:
            return
        low, high = (float(extreme) for extreme in x.aminmax())  # NaN les contamine
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("x : NaN ou infini dans les activations, attendu des nombres finis.")
        peak = max(-low, high)
        exponent = max(self.exponent, math.frexp(peak)[1]) if peak else self.exponent  # abs(x) < 2^exponent
        half = self.bins // 2
        place = (x * 2.0 ** (self.bins.bit_length() - 2 - exponent)).floor()  # en cases, comptées depuis zéro
        place = torch.where(x < 0, place.clamp_max(-1), place).long() + half  # même si le produit s'annule
        doublings = min(exponent - self.exponent, self.bins.bit_length())  # au-delà, il ne reste que deux cases
        merged = (torch.arange(-half, half) >> doublings) + half
        counts = torch.bincount(place, minlength=self.bins).cpu()
        self.counts = counts.index_add(0, merged, self.counts)
        self.zeros += int((x == 0).sum())
        self.exponent, self.low, self.high = exponent, min(self.low, low), max(self.high, high)

    @property
    def count(self) -> int:
        """Combien de valeurs ont été vues."""
        return int(self.counts.sum())

    @property
    def width(self) -> float:
        """La largeur d'une case."""
        return 2.0 ** (self.exponent + 2 - self.bins.bit_length())

    def centers(self) -> Tensor:
        """Les centres des cases, ramenés à [min, max], en float64."""
        half = self.bins // 2
        middles = (torch.arange(-half, half, dtype=torch.float64) + 0.5) * self.width
        return middles.clamp(self.low, self.high)

    def range(self, method: str = "min_max", n_bits: int = 8, percentile: float = 99.9) -> tuple[float, float]:
        """Les bornes d'une grille pour ces activations ; zéro en est toujours.

        Parameters
        ----------
        method : "min_max", "percentile", "mse" ou "entropy"
            Les extrêmes ; les centiles, à une case près ; ou, parmi cent réductions régulières des extrêmes, celle dont
            l'erreur quadratique est la plus petite, ou celle dont la distribution arrondie s'écarte le moins de la
            vraie, au sens de Kullback et Leibler. Les valeurs nulles, exactes sur toute grille, n'y comptent pas.
        n_bits : int, entre 1 et 8
            De la grille, asymétrique et non signée, que jugent ``"mse"`` et ``"entropy"``.
        percentile : float, dans ]0, 100]
            Part centrale des valeurs, en %, que garde ``"percentile"``.

        Returns
        -------
        low, high : float
            low ≤ 0 ≤ high ; (0.0, 0.0) si tout est nul.

        Raises
        ------
        TypeError, ValueError
            Aucune donnée vue, méthode inconnue, `n_bits` hors de 1 … 8, `percentile` hors de ]0, 100].

        References
        ----------
        Migacz (2017), pour l'entropie.
        """
        check_choice(method, "method", METHODS)
        quantizer = UniformQuantizer(n_bits, symmetric=False, signed=False)
        tail = (100 - check_percentile(percentile, "percentile")) / 200
        if not self.counts.any():
            raise ValueError("range : aucune activation vue, attendu au moins un update().")
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        if method == "percentile":
            return min(self._quantile(tail), 0.0), max(self._quantile(1 - tail), 0.0)
        if method == "min_max" or low == high:
            return low, high
        shares = torch.linspace(0.01, 1, 100, dtype=torch.float64)
        peak = max(-low, high)  # tout en part du pic : rien ne déborde
        counts = self.counts.clone()
        counts[self.bins // 2] -= self.zeros
        seen = counts > 0
        x, counts = self.centers()[seen] / peak, counts[seen].double()  # les cases vides ne comptent pas
        bounds = shares * (low / peak), shares * (high / peak)
        losses = (squared_errors if method == "mse" else divergences)(x, counts, quantizer, *bounds)
        best = float(shares[losses == losses.min()][-1])  # à égalité, la grille la plus large
        return low * best, high * best

    def _quantile(self, share: float) -> float:
        """Quantile par interpolation linéaire, à une demi-case près."""
        last = self.count - 1
        position = share * last
        ranks = torch.tensor([math.floor(position), math.ceil(position)])
        found = self.centers()[torch.searchsorted(self.counts.cumsum(0), ranks, right=True)]
        found[ranks == 0], found[ranks == last] = self.low, self.high  # les extrêmes sont connus
        below, above = found.tolist()
        part = position - math.floor(position)
        return below * (1 - part) + above * part


def squared_errors(x: Tensor, counts: Tensor, quantizer: UniformQuantizer, low: Tensor, high: Tensor) -> Tensor:
    """Σ effectif·(x − Q(x))² de chaque grille, (grilles,)."""
    scale, zero_point = (t[:, None] for t in quantizer._grid(low, high))
    rounded = (quantizer.codes(x, scale, zero_point) - zero_point) * scale  # (grilles, cases)
    return (rounded - x).square() @ counts


def divergences(x: Tensor, counts: Tensor, quantizer: UniformQuantizer, low: Tensor, high: Tensor) -> Tensor:
    """KL(P ‖ Q) de chaque grille, (grilles,). Aucune case de `x` n'est vide.

    P ramène ce qui dépasse aux cases du bord. Q n'a que ce que la grille contient, étalé également sur les cases de
    chaque niveau. Une grille qui contient moins de cases que de niveaux, ou que `x` n'en a, leur donnerait à chacune
    le sien : elle ne perdrait rien, quoi qu'elle écrête. Sa divergence est donc infinie.
    """
    fewest = min(2**quantizer.n_bits, len(x))
    scales, zero_points = quantizer._grid(low, high)
    losses = torch.full_like(low, torch.inf)
    for k, (scale, zero_point) in enumerate(zip(scales, zero_points, strict=True)):
        kept = (low[k] <= x) & (x <= high[k])
        inside = counts[kept]
        if len(inside) >= fewest:
            P = inside.clone()
            P[0] += counts[x < low[k]].sum()
            P[-1] += counts[x > high[k]].sum()
            _, level = quantizer.codes(x[kept], scale, zero_point).unique(return_inverse=True)
            Q = (level.bincount(inside) / level.bincount())[level]
            losses[k] = torch.special.xlogy(P, P / Q * (inside.sum() / P.sum())).sum() / P.sum()
    return losses
