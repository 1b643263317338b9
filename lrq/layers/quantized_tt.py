"""Section 9.6 : une couche en train de tenseurs dont les cœurs sont gardés en codes serrés."""

from collections.abc import Iterable, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from ..gauge import regauge
from ..quantizers import Granularity, UniformQuantizer, check_quantizer
from ..tensor_train import check_cores
from ..validation import check_integers
from .base import copy_bias
from .packed import PackedTensor
from .tt import TTLinear, TTMatrixLinear


class QuantizedTTLinear(TTMatrixLinear):
    """Couche linéaire en train de tenseurs, dont chaque cœur est gardé sur `n_bits` bits.

    Parameters
    ----------
    input_dims, output_dims : d entiers chacun, d ≥ 2
    rank : int, ou un par lien
        Ramené à ce que permettent les dimensions.
    n_bits : int, entre 1 et 8, ou un par cœur
        Les cœurs des bouts sont petits : quelques bits de plus n'y coûtent presque rien.
    bias : bool
    granularity : PerTensor ou PerChannel, optionnel
        Qui partage une échelle ; par défaut, tout un cœur. ``PerChannel(-1)`` : une par direction du lien suivant.
    clipping : "min_max", "percentile" ou "mse"
        Voir :class:`~lrq.UniformQuantizer`.
    quantizer : UniformQuantizer, ou un par cœur, optionnel
        À la place de `n_bits`, `granularity` et `clipping`.
    clamp : bool
        Faux, les rangs restent ceux qu'on donne.
    device, dtype : comme pour ``nn.Linear``

    Attributes
    ----------
    cores : ModuleList de d PackedTensor
    bias : Parameter, (out,), ou None

    Raises
    ------
    TypeError, ValueError
        Dimensions, rang ou bits impossibles ; plusieurs grilles, qui ne sont pas une par cœur.
    """

    def __init__(
        self,
        input_dims: Sequence[int],
        output_dims: Sequence[int],
        rank: int | Sequence[int],
        n_bits: int | Sequence[int] = 8,
        bias: bool = False,
        granularity: Granularity | None = None,
        clipping: str = "min_max",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        quantizer: UniformQuantizer | Sequence[UniformQuantizer] | None = None,
        clamp: bool = True,
    ):
        super().__init__()
        self.set_shapes(input_dims, output_dims, rank, clamp)
        if quantizer is None:
            quantizer = core_quantizers(n_bits, len(self.input_dims), granularity, clipping)
        given = quantizer if isinstance(quantizer, Sequence) else [quantizer] * len(self.input_dims)
        quantizers = [check_quantizer(each) for each in given]
        if len(quantizers) != len(self.input_dims):
            raise ValueError(f"quantizer : reçu {len(quantizers)}, attendu un seul, ou {len(self.input_dims)}.")
        self.cores = nn.ModuleList(
            PackedTensor(quantizer, shape, device, dtype)
            for quantizer, shape in zip(quantizers, self.core_shapes(), strict=True)
        )
        self.bias = nn.Parameter(torch.zeros(self.out_features, device=device, dtype=dtype)) if bias else None

    @property
    def quantizer(self) -> list[UniformQuantizer]:
        """La grille de chaque cœur."""
        return [core.quantizer for core in self.cores]  # type: ignore[misc]

    @property
    def dtype(self) -> torch.dtype:
        return self.cores[0].dtype  # type: ignore[return-value]

    @property
    def n_bits(self) -> list[int]:
        """Les bits de chaque cœur."""
        return [core.quantizer.n_bits for core in self.cores]  # type: ignore[union-attr, misc]

    def chain(self) -> list[Tensor]:
        return [core.dequantize() for core in self.cores]  # type: ignore[operator]

    def compression_ratio(self) -> float:
        """Octets de W en float32 divisés par ceux des cœurs tels qu'ils sont rangés, échelles comprises."""
        return 4 * self.dense_parameters() / sum(core.nbytes() for core in self.cores)  # type: ignore[operator]

    @classmethod
    def from_cores(
        cls,
        cores: Iterable[Tensor],
        n_bits: int | Sequence[int] = 8,
        granularity: Granularity | None = None,
        clipping: str = "min_max",
        gauge: str | None = "rotated",
    ) -> Self:
        """Quantifie des cœurs, après les avoir mis dans une jauge où l'arrondi coûte peu ; sans biais.

        Parameters
        ----------
        cores : list de d Tensor, (r_{k−1}, in_k, out_k, r_k), d ≥ 2
        n_bits : int, entre 1 et 8, ou un par cœur
        granularity, clipping : optionnels
        gauge : "orthogonal", "balanced", "rotated", ou None
            Voir :func:`~lrq.regauge` ; None les laisse tels quels.

        Returns
        -------
        QuantizedTTLinear
        """
        cores = check_cores(cores, order=4)
        cores = cores if gauge is None else regauge(cores, gauge)
        quantizers = core_quantizers(n_bits, len(cores), granularity, clipping)
        return cls.hold([PackedTensor.from_tensor(core, q) for core, q in zip(cores, quantizers, strict=True)])

    @classmethod
    def from_tt(
        cls,
        layer: TTLinear,
        n_bits: int | Sequence[int] = 8,
        granularity: Granularity | None = None,
        clipping: str = "min_max",
        gauge: str | None = "rotated",
    ) -> Self:
        """Quantifie une couche en train de tenseurs, apprise ou non, biais recopié.

        Parameters
        ----------
        layer : TTLinear
            Ni changée, ni partagée.
        n_bits, granularity, clipping, gauge : optionnels
            Comme pour :meth:`from_cores`.

        Returns
        -------
        QuantizedTTLinear

        Raises
        ------
        TypeError
            `layer` n'est pas une TTLinear, ou en est une dont l'arrondi s'apprend.
        """
        if not isinstance(layer, TTLinear):
            raise TypeError(f"layer : reçu {type(layer).__name__}, attendu TTLinear.")
        if hasattr(layer, "to_quantized"):
            raise TypeError(f"layer : reçu {type(layer).__name__}, dont to_quantized() garde l'arrondi appris.")
        quantized = cls.from_cores(layer.cores, n_bits, granularity, clipping, gauge)
        quantized.bias = copy_bias(layer)
        return quantized

    @classmethod
    def hold(cls, packed: Sequence[PackedTensor]) -> Self:
        """La couche sans biais qui garde les cœurs `packed`, déjà quantifiés."""
        inputs, outputs = ([core.shape[axis] for core in packed] for axis in (1, 2))
        layer = cls(inputs, outputs, 1, device="meta")
        layer.ranks = [core.shape[3] for core in packed[:-1]]  # même plus grands qu'il ne faut
        layer.cores = nn.ModuleList(packed)
        return layer

    @classmethod
    def from_linear(
        cls,
        linear_layer: nn.Linear,
        input_dims: Sequence[int],
        output_dims: Sequence[int],
        rank: int | Sequence[int],
        n_bits: int | Sequence[int] = 8,
        granularity: Granularity | None = None,
        clipping: str = "min_max",
        gauge: str | None = "rotated",
    ) -> Self:
        """TT-SVD des poids d'une couche, puis quantification des cœurs, biais recopié.

        Parameters
        ----------
        linear_layer : nn.Linear
        input_dims, output_dims : d entiers chacun, de produits in et out
        rank : int, ou un par lien
        n_bits : int, entre 1 et 8, ou un par cœur
        granularity, clipping, gauge : optionnels
            Comme pour :meth:`from_cores`.

        Returns
        -------
        QuantizedTTLinear
        """
        start = TTLinear.from_linear(linear_layer, input_dims, output_dims, rank)
        return cls.from_tt(start, n_bits, granularity, clipping, gauge)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, n_bits={self.n_bits}"


def core_quantizers(
    n_bits: int | Sequence[int], cores: int, granularity: Granularity | None, clipping: str
) -> list[UniformQuantizer]:
    """Un quantificateur par cœur."""
    each = check_integers(n_bits, "n_bits", cores, "cœur", maximum=8)
    return [UniformQuantizer(bits, granularity=granularity, clipping=clipping) for bits in each]
