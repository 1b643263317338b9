"""Section 11.4 : apprendre les facteurs en sachant qu'ils seront quantifiés."""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..activation import Calibration
from ..validation import check_input
from .base import copy_bias
from .factorized import FactorizedLinear
from .fake_quantize import FakeQuantizeModule, LearnedStepQuantize
from .packed import PackedTensor
from .quantized import QuantizedLowRankLinear


class QATLowRankLinear(FactorizedLinear):
    """Couche linéaire de rang r dont U et V passent par une fausse quantification avant de servir.

    L'aller voit les facteurs arrondis ; le retour les corrige comme s'ils ne l'étaient pas, là où la grille les
    contient. :meth:`to_quantized` rend la couche aux codes serrés qui calcule la même chose.

    Parameters
    ----------
    in_features, out_features : int
    rank : int, entre 1 et min(in, out)
    n_bits : int, entre 1 et 8 (2 à 8 avec `learned_step`)
    bias : bool
    per_channel : bool
        Une échelle par ligne de U et de V ; sinon, une par facteur.
    learned_step : bool
        Apprendre aussi les échelles (:class:`~lrq.LearnedStepQuantize`) ; sinon, elles suivent les facteurs.
    device, dtype : comme pour ``nn.Linear``

    Attributes
    ----------
    U : Parameter, (out, r)
    V : Parameter, (in, r)
    U_fake_quant, V_fake_quant : FakeQuantizeModule
    """

    U_fake_quant: FakeQuantizeModule
    V_fake_quant: FakeQuantizeModule

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        n_bits: int = 8,
        bias: bool = False,
        per_channel: bool = False,
        learned_step: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(in_features, out_features, rank, bias, device, dtype)
        self.n_bits, self.per_channel, self.learned_step = n_bits, per_channel, learned_step
        self._observe()

    def _observe(self) -> None:
        """Les fausses quantifications ; celles dont le pas s'apprend partent des facteurs présents."""
        for name in self.shape_factors():
            fake = (
                LearnedStepQuantize(getattr(self, name), self.n_bits, self.per_channel)
                if self.learned_step
                else FakeQuantizeModule(self.n_bits, per_channel=self.per_channel)
            )
            setattr(self, f"{name}_fake_quant", fake)

    def dequantize(self) -> tuple[Tensor, Tensor]:
        """U et V arrondis à leur grille, dérivables."""
        return self.U_fake_quant(self.U), self.V_fake_quant(self.V)

    def forward(self, x: Tensor) -> Tensor:
        """y = (x V̂) Ûᵀ + b."""
        U, V = self.dequantize()
        h = check_input(x, self.in_features) @ V  # (..., n) @ (n, r) -> (..., r)
        return F.linear(h, U, self.bias)  # (..., r) @ (r, m) -> (..., m)

    def reconstruct_weight(self) -> Tensor:
        U, V = self.dequantize()
        return U @ V.T  # (m, r) @ (r, n) -> (m, n)

    @classmethod
    def from_linear(  # type: ignore[override]
        cls,
        linear_layer: nn.Linear,
        rank: int,
        n_bits: int = 8,
        calibration: Tensor | Calibration | None = None,
        per_channel: bool = False,
        learned_step: bool = False,
    ) -> Self:
        """Part de la SVD tronquée, biais recopié.

        Parameters
        ----------
        linear_layer : nn.Linear
        rank : int, entre 1 et min(in, out)
        n_bits : int, entre 1 et 8
        calibration, per_channel, learned_step : optionnels

        Returns
        -------
        QATLowRankLinear
        """
        start = FactorizedLinear.from_linear(linear_layer, rank, calibration)
        return cls.from_factorized(start, n_bits, per_channel, learned_step)

    @classmethod
    def from_factorized(
        cls, layer: FactorizedLinear, n_bits: int = 8, per_channel: bool = False, learned_step: bool = False
    ) -> Self:
        """Part d'une couche de rang r, dont elle recopie les facteurs et le biais.

        Parameters
        ----------
        layer : FactorizedLinear
        n_bits, per_channel, learned_step : optionnels
            Comme pour le constructeur.

        Returns
        -------
        QATLowRankLinear

        Raises
        ------
        TypeError
            `layer` n'est pas une FactorizedLinear.
        ValueError
            `layer` est déjà quantifiée : elle n'a plus de facteurs flottants.
        """
        if not isinstance(layer, FactorizedLinear):
            raise TypeError(f"layer : reçu {type(layer).__name__}, attendu FactorizedLinear.")
        if layer.U is None:
            raise ValueError("layer : reçu une couche déjà quantifiée, attendu des facteurs flottants.")
        qat = cls(layer.in_features, layer.out_features, layer.rank, n_bits, per_channel=per_channel, device="meta")
        qat.learned_step = learned_step
        for name in ("U", "V", "bias"):
            t = getattr(layer, name)
            setattr(qat, name, None if t is None else nn.Parameter(t.detach().clone()))
        qat._observe()
        return qat

    @torch.no_grad()
    def to_quantized(self) -> QuantizedLowRankLinear:
        """La même fonction, gardée en codes serrés.

        Returns
        -------
        QuantizedLowRankLinear
        """
        granularity = self.U_fake_quant.quantizer.granularity
        layer = QuantizedLowRankLinear(
            self.in_features, self.out_features, self.rank, self.n_bits, granularity=granularity, device="meta"
        )
        fakes = {"U": self.U_fake_quant, "V": self.V_fake_quant}
        scales = {
            name: fake.scale.abs() if isinstance(fake, LearnedStepQuantize) else None for name, fake in fakes.items()
        }
        layer.hold_codes(
            {name: PackedTensor.from_tensor(getattr(self, name), layer.quantizer, scales[name]) for name in fakes}
        )
        layer.bias = copy_bias(self)
        return layer

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, n_bits={self.n_bits}"
