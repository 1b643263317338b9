"""Fausse quantification : des poids arrondis à la grille à l'aller, un gradient qui passe au retour."""

import math

import torch
from torch import Tensor, nn

from ..quantizers import (
    PerChannel,
    PerTensor,
    UniformQuantizer,
    check_values,
    divisor,
    mean_magnitude,
    restore,
    straight_through,
)
from ..svd import working_dtype
from ..validation import check_integer, check_tensor


class FakeQuantizeModule(nn.Module):
    """Arrondit son entrée à la grille, en flottants, pour apprendre avec l'arrondi.

    L'échelle suit le tenseur à chaque appel. Au retour, l'arrondi est traité comme l'identité là où la grille contient
    la valeur, comme une constante là où elle l'écrête. Un bloc nul, dont la grille n'est que zéro, apprend donc.

    Parameters
    ----------
    n_bits : int, entre 1 et 8
    symmetric : bool
    per_channel : bool
        Une échelle par indice de la dimension `channel_dim` ; sinon une seule.
    channel_dim : int
    clipping : "min_max", "percentile" ou "mse"
        Voir :class:`~lrq.UniformQuantizer`.

    Attributes
    ----------
    quantizer : UniformQuantizer
    """

    def __init__(
        self,
        n_bits: int = 8,
        symmetric: bool = True,
        per_channel: bool = False,
        channel_dim: int = 0,
        clipping: str = "min_max",
    ):
        super().__init__()
        granularity = PerChannel(channel_dim) if per_channel else PerTensor()
        self.quantizer = UniformQuantizer(n_bits, symmetric, granularity=granularity, clipping=clipping)

    def forward(self, t: Tensor) -> Tensor:
        """t̂ = (code − point zéro) · échelle, dans le dtype de t."""
        scale, zero_point = self.quantizer.compute_scale_zero_point(t)
        x = t.to(scale.dtype)
        y = self.quantizer.fake_quantize(x, scale, zero_point)
        if not scale.all():  # y = 0 · Δ n'a pas de gradient en x quand Δ est nul
            null = (self.quantizer.spread(scale, t.shape) == 0) & (x == 0)
            y = torch.where(null, x, y)
        return restore(y, t.dtype)

    def extra_repr(self) -> str:
        return repr(self.quantizer)


class LearnedStepQuantize(FakeQuantizeModule):
    """Fausse quantification symétrique dont le pas s'apprend (LSQ).

    Le gradient du pas est q − t/Δ là où la grille contient t, et son bord là où elle l'écrête ; divisé par √(n·q), il
    est du même ordre que celui des poids.

    Parameters
    ----------
    t : Tensor
        Le tenseur à quantifier, qui donne le pas de départ, 2·moyenne(abs(t))/√q, et la forme des échelles.
    n_bits : int, entre 2 et 8
    per_channel : bool
    channel_dim : int

    Attributes
    ----------
    scale : Parameter, forme des échelles
        Son signe ne compte pas.

    References
    ----------
    Esser et al. (2020).
    """

    def __init__(self, t: Tensor, n_bits: int = 8, per_channel: bool = False, channel_dim: int = 0):
        super().__init__(check_integer(n_bits, "n_bits", 2, 8), True, per_channel, channel_dim)
        x = t.detach().to(working_dtype(t)) if check_tensor(t, "t").is_meta else check_values(t)
        blocks = self.quantizer.granularity.blocks(x)
        start = mean_magnitude(blocks) * (2 / math.sqrt(self.quantizer.high))
        start = torch.where(start > 0, start, 1)  # un bloc nul : n'importe quel pas, mais un pas qui apprend
        self.scale = nn.Parameter(self.quantizer.granularity.arrange(start, x.shape))
        self.share = 1 / math.sqrt(blocks.shape[1] * self.quantizer.high)

    def forward(self, t: Tensor) -> Tensor:
        """t̂ = code · Δ ; le gradient va à t et à Δ."""
        check_values(t)
        scale = straight_through(self.scale, self.scale * self.share).abs().to(working_dtype(t))
        scale, q = self.quantizer.spread(scale, t.shape), self.quantizer.high
        v = t.to(scale.dtype) * divisor(scale).reciprocal()
        v = v.clamp(-q, q)  # avant d'arrondir : au-delà du bord, ∂t̂/∂Δ = ±q
        return restore(straight_through(v.round(), v) * scale, t.dtype)
