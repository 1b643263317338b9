"""Section 11.4 : la couche dense quantifiée, et celle qu'un résidu de rang faible corrige."""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..activation import Calibration
from ..quantizers import Granularity, PerChannel, PerGroup, QuantizedTensor, UniformQuantizer
from ..validation import check_bits, check_input, check_integer, check_linear
from .base import CompressedLinear, LowRankLinear, copy_bias, in_dtype_of
from .factorized import FactorizedLinear
from .packed import PackedTensor, PackedWeight, row_quantizer
from .quantized import QuantizedLowRankLinear


class QuantizedLinear(PackedWeight, CompressedLinear):
    """Couche linéaire dont les poids sont gardés sur `n_bits` bits.

    Parameters
    ----------
    in_features, out_features : int
    n_bits : int, entre 1 et 8
    bias : bool
    granularity : PerTensor, PerChannel ou PerGroup, optionnel
        Qui partage une échelle ; par défaut, une ligne.
    clipping : "min_max", "percentile" ou "mse"
        Voir :class:`~lrq.UniformQuantizer`.
    quantizer : UniformQuantizer, optionnel
        À la place des trois précédents : une grille asymétrique, des échelles sur deux octets.
    input_quantizer : ActivationQuantizer, optionnel
    device, dtype : comme pour ``nn.Linear``

    Attributes
    ----------
    packed : PackedTensor
    bias : Parameter, (out,), ou None
    input_quantizer : ActivationQuantizer ou None
        Ce qui arrondit aussi les entrées.
    """

    input_quantizer: nn.Module | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        n_bits: int = 8,
        bias: bool = False,
        granularity: Granularity | None = None,
        clipping: str = "min_max",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        quantizer: UniformQuantizer | None = None,
        input_quantizer: nn.Module | None = None,
    ):
        super().__init__()
        self.in_features = check_integer(in_features, "in_features")
        self.out_features = check_integer(out_features, "out_features")
        quantizer = row_quantizer(n_bits, granularity, clipping, quantizer)
        self.packed = PackedTensor(quantizer, (out_features, in_features), device, dtype)
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None
        self.input_quantizer = input_quantizer

    def forward(self, x: Tensor) -> Tensor:
        """y = x Ŵᵀ + b, Ŵ déquantifiée, et x arrondie s'il y a de quoi."""
        x = check_input(x, self.in_features)
        if self.input_quantizer is not None:
            x = self.input_quantizer(x)
        return F.linear(x, self.packed.dequantize().to(x.dtype), in_dtype_of(x, self.bias))

    @classmethod
    def from_linear(
        cls,
        linear_layer: nn.Linear,
        n_bits: int = 8,
        granularity: Granularity | None = None,
        clipping: str = "min_max",
        quantizer: UniformQuantizer | None = None,
    ) -> Self:
        """Quantifie les poids d'une couche, biais recopié.

        Parameters
        ----------
        linear_layer : nn.Linear
        n_bits : int, entre 1 et 8
        granularity, clipping : optionnels
        quantizer : UniformQuantizer, optionnel
            À la place des trois précédents.

        Returns
        -------
        QuantizedLinear
        """
        W = check_linear(linear_layer).weight
        m, n = W.shape
        layer = cls(n, m, n_bits, False, granularity, clipping, device="meta", quantizer=quantizer)
        layer.packed = PackedTensor.from_tensor(W, layer.packed.quantizer)
        layer.bias = copy_bias(linear_layer)
        return layer

    @classmethod
    def hold(cls, stored: QuantizedTensor, bias: nn.Parameter | None = None) -> Self:
        """La couche qui garde `stored`, des poids (out, in) déjà quantifiés, et le biais `bias`, sans copie."""
        m, n = stored.shape
        layer = cls(n, m, device="meta", quantizer=stored.quantizer)
        layer.packed = PackedTensor.hold(stored)
        layer.bias = bias
        return layer

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


class QuantizedResidualLinear(CompressedLinear):
    """Couche linéaire quantifiée, plus ce que la quantification a perdu, en rang faible : Ŵ = Q(W) + U Vᵀ.

    Parameters
    ----------
    base : QuantizedLinear
        Q(W), avec le biais.
    residual : couche de rang r
        U Vᵀ, la meilleure approximation de W − Q(W).

    Raises
    ------
    TypeError, ValueError
        `base` ou `residual` d'une autre sorte ; `residual` d'une autre forme, ou avec un biais.
    """

    def __init__(self, base: QuantizedLinear, residual: LowRankLinear):
        super().__init__()
        if not isinstance(base, QuantizedLinear):
            raise TypeError(f"base : reçu {type(base).__name__}, attendu QuantizedLinear.")
        if not isinstance(residual, LowRankLinear):
            raise TypeError(f"residual : reçu {type(residual).__name__}, attendu une couche de rang r.")
        self.in_features, self.out_features = base.in_features, base.out_features
        shape = (residual.out_features, residual.in_features)
        if shape != (base.out_features, base.in_features) or residual.bias is not None:
            expected = f"{base.out_features}×{base.in_features}, sans biais"
            raise ValueError(f"residual : reçu {residual}, attendu une couche {expected}, comme base.")
        self.base, self.residual = base, residual

    @property
    def bias(self) -> nn.Parameter | None:
        """Le biais, (out,), ou None : celui de `base`."""
        return self.base.bias

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    def forward(self, x: Tensor) -> Tensor:
        """y = x Q(W)ᵀ + b + (x V) Uᵀ."""
        return self.base(x) + self.residual(x)

    def reconstruct_weight(self) -> Tensor:
        return self.base.reconstruct_weight() + self.residual.reconstruct_weight()

    def count_parameters(self) -> int:
        return self.base.count_parameters() + self.residual.count_parameters()

    def compression_ratio(self) -> float:
        """Octets de W en float32 divisés par ceux des codes, des échelles et des facteurs."""
        bias = 0 if self.bias is None else self.bias.nbytes
        return 4 * self.dense_parameters() / (self.nbytes() - bias)

    @classmethod
    def from_linear(
        cls,
        linear_layer: nn.Linear,
        rank: int = 8,
        n_bits: int = 4,
        calibration: Tensor | Calibration | None = None,
        granularity: Granularity | None = None,
        clipping: str = "min_max",
        factor_bits: int | None = 8,
        rotate: bool = False,
    ) -> Self:
        """Quantifie les poids, puis approche ce qui manque par une matrice de rang r ; biais recopié.

        Parameters
        ----------
        linear_layer : nn.Linear
        rank : int, entre 1 et min(in, out)
        n_bits : int, entre 1 et 8
        calibration : Tensor (..., in) d'entrées, ou Calibration, optionnel
            Le résidu est alors celui qui rapproche le plus les sorties de ces entrées.
        granularity : Granularity, optionnel
            Des groupes de 32 par défaut.
        clipping : str
        factor_bits : int entre 1 et 8, ou None
            Bits des facteurs du résidu, à une échelle par ligne, écrêtés comme la base ; None les garde flottants.
        rotate : bool
            Tourner d'abord ces facteurs (:func:`~lrq.rotate_factors`) : utile à 4 bits et au-dessous.

        Returns
        -------
        QuantizedResidualLinear

        Raises
        ------
        TypeError, ValueError
            Comme :meth:`QuantizedLinear.from_linear` et :meth:`QuantizedLowRankLinear.from_linear`.
        """
        granularity = PerGroup(32) if granularity is None else granularity
        if factor_bits is not None:
            check_bits(factor_bits, "factor_bits")
        base = QuantizedLinear.from_linear(linear_layer, n_bits, granularity, clipping)
        lost = linear_layer.weight.detach() - base.reconstruct_weight()
        if factor_bits is None:
            return cls(base, FactorizedLinear.from_weight_matrix(lost, rank, calibration))
        shared = PerChannel(0)
        return cls(
            base,
            QuantizedLowRankLinear.from_weight_matrix(lost, rank, factor_bits, calibration, shared, clipping, rotate),
        )
