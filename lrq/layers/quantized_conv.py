"""Section 12.3 : la convolution dont les noyaux sont gardés en codes serrés."""

import math
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..quantizers import Granularity, QuantizedTensor, UniformQuantizer
from ..validation import check_conv
from .base import copy_bias, in_dtype_of
from .conv import check_images, check_window
from .packed import PackedTensor, PackedWeight, row_quantizer


class QuantizedConv2d(PackedWeight):
    """Convolution dont les noyaux sont gardés sur `n_bits` bits.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size : int ou (int, int)
    stride, padding, dilation, groups, bias, padding_mode : comme pour ``nn.Conv2d``
    n_bits : int, entre 1 et 8
    granularity : PerTensor, PerChannel ou PerGroup, optionnel
        Qui partage une échelle, des noyaux (out, in/g, kh, kw) ; par défaut, un canal de sortie.
    clipping : "min_max", "percentile" ou "mse"
        Voir :class:`~lrq.UniformQuantizer`.
    quantizer : UniformQuantizer, optionnel
        À la place des trois précédents.
    input_quantizer : ActivationQuantizer, optionnel
    device, dtype : comme pour ``nn.Conv2d``

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
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        n_bits: int = 8,
        granularity: Granularity | None = None,
        clipping: str = "min_max",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        quantizer: UniformQuantizer | None = None,
        input_quantizer: nn.Module | None = None,
    ):
        super().__init__()
        self.kernel_size = check_window(in_channels, out_channels, kernel_size, groups)
        self.in_channels, self.out_channels, self.groups = int(in_channels), int(out_channels), int(groups)
        window = (self.kernel_size, stride, padding, dilation, groups, False, padding_mode)
        conv = nn.Conv2d(in_channels, out_channels, *window, device="meta")  # type: ignore[arg-type]
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation
        self.padding_mode, self._borders = conv.padding_mode, conv._reversed_padding_repeated_twice
        quantizer = row_quantizer(n_bits, granularity, clipping, quantizer)
        self.packed = PackedTensor(quantizer, conv.weight.shape, device, dtype)
        self.bias = nn.Parameter(torch.zeros(out_channels, device=device, dtype=dtype)) if bias else None
        self.input_quantizer = input_quantizer

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H', W'), noyaux déquantifiés, et x arrondie s'il y a de quoi."""
        x = check_images(x, self.in_channels)
        if self.input_quantizer is not None:
            x = self.input_quantizer(x)
        padding: int | tuple[int, ...] | str = self.padding
        if self.padding_mode != "zeros":  # les bords d'abord
            x, padding = F.pad(x, self._borders, mode=self.padding_mode), 0
        W = self.packed.dequantize().to(x.dtype)
        return F.conv2d(x, W, in_dtype_of(x, self.bias), self.stride, padding, self.dilation, self.groups)

    def dense_parameters(self) -> int:
        return self.out_channels * self.in_channels // self.groups * math.prod(self.kernel_size)

    @classmethod
    def from_conv2d(
        cls,
        conv_layer: nn.Conv2d,
        n_bits: int = 8,
        granularity: Granularity | None = None,
        clipping: str = "min_max",
        quantizer: UniformQuantizer | None = None,
    ) -> Self:
        """Quantifie les noyaux d'une convolution, biais recopié.

        Parameters
        ----------
        conv_layer : nn.Conv2d
            Ni changée, ni partagée.
        n_bits : int, entre 1 et 8
        granularity, clipping : optionnels
        quantizer : UniformQuantizer, optionnel
            À la place des trois précédents.

        Returns
        -------
        QuantizedConv2d
            Mêmes options, même dtype, même appareil.
        """
        conv = check_conv(conv_layer)
        quantizer = row_quantizer(n_bits, granularity, clipping, quantizer)
        return cls.hold(quantizer.compress(conv.weight), conv)

    @classmethod
    def hold(cls, stored: QuantizedTensor, conv_layer: nn.Conv2d) -> Self:
        """La couche qui garde les noyaux `stored`, quantifiés, avec les options et une copie du biais de `conv_layer`.

        Raises
        ------
        ValueError
            `stored` n'a pas la forme des noyaux de `conv_layer`.
        """
        conv = check_conv(conv_layer)
        if stored.shape != conv.weight.shape:
            raise ValueError(f"stored : reçu la forme {tuple(stored.shape)}, attendu {tuple(conv.weight.shape)}.")
        window = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, False, conv.padding_mode)
        layer = cls(conv.in_channels, conv.out_channels, *window, device="meta", quantizer=stored.quantizer)
        layer.packed = PackedTensor.hold(stored)
        layer.bias = copy_bias(conv)
        return layer

    def extra_repr(self) -> str:
        options = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}
        said = [f"{name}={getattr(self, name)!r}" for name, usual in options.items() if getattr(self, name) != usual]
        first = [str(self.in_channels), str(self.out_channels), f"kernel_size={self.kernel_size}"]
        return ", ".join([*first, *said, f"bias={self.bias is not None}"])
