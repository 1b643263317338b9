"""Section 9.6 : apprendre les cœurs d'un train de tenseurs en sachant qu'ils seront quantifiés."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from ..gauge import regauge
from ..validation import check_integers
from .base import copy_bias
from .fake_quantize import FakeQuantizeModule, LearnedStepQuantize
from .packed import PackedTensor
from .quantized_tt import QuantizedTTLinear
from .tt import TTLinear, TTMatrixLinear


class QATTTLinear(TTLinear):
    """Couche linéaire en train de tenseurs dont les cœurs passent par une fausse quantification avant de servir.

    :meth:`to_quantized` rend la couche aux codes serrés qui calcule la même chose.

    Parameters
    ----------
    input_dims, output_dims : d entiers chacun, d ≥ 2
        De produits in et out.
    tt_ranks : int, ou un par lien
        Ramené à ce que permettent les dimensions.
    n_bits : int, entre 1 et 8 (2 à 8 avec `learned_step`), ou un par cœur
    bias : bool
    per_channel : bool
        Une échelle par direction du lien suivant ; sinon, une par cœur.
    learned_step : bool
        Apprendre aussi les échelles (:class:`~lrq.LearnedStepQuantize`) ; sinon, elles suivent les cœurs.
    clamp : bool
        Faux, les rangs restent ceux qu'on donne.
    device, dtype : comme pour ``nn.Linear``

    Attributes
    ----------
    cores : ParameterList de d cœurs (r_{k−1}, in_k, out_k, r_k)
    fake_quants : ModuleList de d FakeQuantizeModule
    """

    def __init__(
        self,
        input_dims: Sequence[int],
        output_dims: Sequence[int],
        tt_ranks: int | Sequence[int],
        n_bits: int | Sequence[int] = 8,
        bias: bool = False,
        per_channel: bool = False,
        learned_step: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        clamp: bool = True,
    ):
        super().__init__(input_dims, output_dims, tt_ranks, bias, device=device, dtype=dtype, clamp=clamp)
        self.observe(n_bits, per_channel, learned_step)

    @property
    def tt_ranks(self) -> list[int]:
        """Les rangs, sous le nom de l'argument qui les donne."""
        return self.ranks

    def observe(self, n_bits: int | Sequence[int], per_channel: bool, learned_step: bool) -> None:
        """Une fausse quantification par cœur ; celles dont le pas s'apprend partent des cœurs présents."""
        self.n_bits = check_integers(n_bits, "n_bits", len(self.cores), "cœur", maximum=8)
        self.per_channel, self.learned_step = per_channel, learned_step
        self.fake_quants = nn.ModuleList(
            LearnedStepQuantize(core, bits, per_channel, -1)
            if learned_step
            else FakeQuantizeModule(bits, per_channel=per_channel, channel_dim=-1)
            for core, bits in zip(self.cores, self.n_bits, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """y = x Ŵᵀ + b, par les cœurs arrondis ; jamais par une Ŵ gardée, les échelles changeant sans les cœurs."""
        return TTMatrixLinear.forward(self, x)

    def chain(self) -> list[Tensor]:
        """Les cœurs arrondis à leur grille, dérivables."""
        return [fake(core) for fake, core in zip(self.fake_quants, super().chain(), strict=True)]

    @classmethod
    def from_linear(  # type: ignore[override]
        cls,
        linear_layer: nn.Linear,
        input_dims: Sequence[int],
        output_dims: Sequence[int],
        tt_ranks: int | Sequence[int],
        n_bits: int | Sequence[int] = 8,
        per_channel: bool = False,
        learned_step: bool = False,
        gauge: str | None = "rotated",
    ) -> Self:
        """Part de la TT-SVD des poids, biais recopié.

        Parameters
        ----------
        linear_layer : nn.Linear
        input_dims, output_dims : d entiers chacun, de produits in et out
        tt_ranks : int, ou un par lien
        n_bits : int, entre 1 et 8, ou un par cœur
        per_channel, learned_step : bool
        gauge : "orthogonal", "balanced", "rotated", ou None
            La jauge de départ (:func:`~lrq.regauge`).

        Returns
        -------
        QATTTLinear
        """
        start = TTLinear.from_linear(linear_layer, input_dims, output_dims, tt_ranks)
        return cls.from_tt(start, n_bits, per_channel, learned_step, gauge)

    @classmethod
    def from_tt(
        cls,
        layer: TTLinear,
        n_bits: int | Sequence[int] = 8,
        per_channel: bool = False,
        learned_step: bool = False,
        gauge: str | None = "rotated",
    ) -> Self:
        """Part d'une couche en train de tenseurs, dont elle recopie les cœurs et le biais.

        Parameters
        ----------
        layer : TTLinear
        n_bits, per_channel, learned_step, gauge : optionnels
            Comme pour :meth:`from_linear`.

        Returns
        -------
        QATTTLinear

        Raises
        ------
        TypeError
            `layer` n'est pas une TTLinear.
        """
        if not isinstance(layer, TTLinear):
            raise TypeError(f"layer : reçu {type(layer).__name__}, attendu TTLinear.")
        cores = list(layer.cores) if gauge is None else regauge(layer.cores, gauge)
        qat = cls.from_cores(cores)
        qat.bias = copy_bias(layer)
        qat.observe(n_bits, per_channel, learned_step)
        return qat

    @torch.no_grad()
    def to_quantized(self) -> QuantizedTTLinear:
        """La même fonction, gardée en codes serrés.

        Returns
        -------
        QuantizedTTLinear
        """
        packed = []
        for core, fake in zip(self.cores, self.fake_quants, strict=True):
            scale = fake.scale.abs() if isinstance(fake, LearnedStepQuantize) else None
            packed.append(PackedTensor.from_tensor(core, fake.quantizer, scale))  # type: ignore[arg-type]
        layer = QuantizedTTLinear.hold(packed)
        layer.bias = copy_bias(self)
        return layer

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, n_bits={self.n_bits}"
