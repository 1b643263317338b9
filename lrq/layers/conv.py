"""Section 11.2 : une convolution de rang r, en deux convolutions plus étroites."""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..activation import Calibration, decompose
from ..svd import share_singular_values
from ..validation import check_conv, check_integer, check_rank
from .base import CompressedLayer, copy_bias


class SVDConv2d(CompressedLayer):
    """Convolution de rang r : r filtres k×k par groupe, puis une convolution 1×1 qui les recombine.

    Les noyaux `(out, in, kh, kw)` se lisent comme une matrice `(out, in·kh·kw)`, une par groupe ; on tronque sa SVD.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size : int ou (int, int)
    rank : int, entre 1 et min(out/g, in/g·kh·kw)
        Par groupe.
    stride, padding, dilation, groups, bias, padding_mode, device, dtype : comme pour ``nn.Conv2d``

    Attributes
    ----------
    filters : nn.Conv2d, in → g·r, k×k, sans biais
    mixer : nn.Conv2d, g·r → out, 1×1
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        rank: int,
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.kernel_size = kh, kw = check_window(in_channels, out_channels, kernel_size, groups)
        self.in_channels, self.out_channels, self.groups = int(in_channels), int(out_channels), int(groups)
        self.rank = check_rank(rank, out_channels // groups, in_channels // groups * kh * kw)
        r, options = groups * rank, {"device": device, "dtype": dtype}
        window = ((kh, kw), stride, padding, dilation, groups, False, padding_mode)
        self.filters = nn.Conv2d(in_channels, r, *window, **options)  # type: ignore[arg-type]
        self.stride, self.padding, self.dilation = self.filters.stride, self.filters.padding, self.filters.dilation
        self.padding_mode = self.filters.padding_mode
        self.mixer = nn.Conv2d(r, out_channels, 1, groups=groups, bias=bias, device=device, dtype=dtype)

    @property
    def bias(self) -> nn.Parameter | None:
        """Le biais, (out,), ou None : celui de `mixer`."""
        return self.mixer.bias  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """De x (B, in, H, W) à (B, g·r, H', W'), puis à (B, out, H', W')."""
        return self.mixer(self.filters(check_images(x, self.in_channels)))

    def reconstruct_weight(self) -> Tensor:
        A = self.mixer.weight.reshape(self.groups, -1, self.rank)  # (g, out/g, r)
        B = self.filters.weight.reshape(self.groups, self.rank, -1)  # (g, r, in/g·kh·kw)
        return (A @ B).view(self.out_channels, -1, *self.kernel_size)

    def count_parameters(self) -> int:
        return self.filters.weight.numel() + self.mixer.weight.numel()  # r (in·kh·kw + out), par groupe ou non

    def dense_parameters(self) -> int:
        return self.out_channels * self.in_channels // self.groups * self.kernel_size[0] * self.kernel_size[1]

    @classmethod
    def from_conv2d(cls, conv_layer: nn.Conv2d, rank: int, calibration: Tensor | None = None) -> Self:
        """Remplace une convolution par sa meilleure approximation de rang r, une SVD par groupe, biais recopié.

        Parameters
        ----------
        conv_layer : nn.Conv2d
            Ni changée, ni partagée.
        rank : int, entre 1 et min(out/g, in/g·kh·kw)
        calibration : Tensor (B, in, H, W) d'entrées, optionnel
            La meilleure pour les sorties de ces images (:func:`~lrq.activation_aware_svd`) ; sinon pour les noyaux.

        Returns
        -------
        SVDConv2d
            Mêmes options, même dtype, même appareil ; au rang plein, la même fonction.

        Raises
        ------
        TypeError
            `conv_layer` n'est pas une nn.Conv2d.
        ValueError
            Rang hors des bornes, poids NaN ou infinis, calibration d'une autre forme, vide ou non finie.
        """
        conv = check_conv(conv_layer)
        g, weight = conv.groups, conv.weight.detach()
        window = (conv.stride, conv.padding, conv.dilation, g, False, conv.padding_mode)
        layer = cls(conv.in_channels, conv.out_channels, conv.kernel_size, rank, *window, device="meta")
        patches = [None] * g if calibration is None else conv_patches(conv, calibration)
        pairs = [
            share_singular_values(*decompose(kernels, rank, seen))  # (out/g, in/g·kh·kw)
            for kernels, seen in zip(weight.flatten(1).chunk(g), patches, strict=True)
        ]
        mixer, filters = torch.cat([A for A, _ in pairs]), torch.cat([V.T for _, V in pairs])
        layer.mixer.weight = nn.Parameter(mixer[:, :, None, None].to(weight.dtype).contiguous())
        layer.filters.weight = nn.Parameter(filters.view(layer.filters.weight.shape).to(weight.dtype).contiguous())
        layer.mixer.register_parameter("bias", copy_bias(conv))
        return layer

    def extra_repr(self) -> str:
        return f"rank={self.rank}, groups={self.groups}"


def conv_patches(conv: nn.Conv2d, x: Tensor) -> list[Calibration]:
    """Ce que chaque groupe d'une convolution voit passer : les fenêtres de l'image, à plat, `(B·L, in/g·kh·kw)`."""
    if isinstance(x, Tensor) and not x.is_floating_point() and not x.is_complex():
        x = x.float()  # des octets, comme une image les donne
    x = check_images(x, conv.in_channels, "calibration").detach()
    Calibration.from_inputs(x)  # refuse des images vides, nulles ou non finies ; un groupe, lui, peut n'avoir rien vu
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    x = F.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
    columns = F.unfold(x.double(), conv.kernel_size, conv.dilation, stride=conv.stride)  # (B, in·kh·kw, L)
    windows = columns.mT.reshape(-1, columns.shape[-2]).chunk(conv.groups, dim=1)  # (B·L, in/g·kh·kw)
    return [Calibration(seen.T @ seen / len(seen), len(seen)) for seen in windows]


def check_window(
    in_channels: int, out_channels: int, kernel_size: int | tuple[int, ...], groups: int
) -> tuple[int, int]:
    """Rend la taille du noyau, (kh, kw), après avoir exigé des entiers, et des canaux que les groupes se partagent.

    Raises
    ------
    TypeError, ValueError
        Sinon.
    """
    check_integer(in_channels, "in_channels")
    check_integer(out_channels, "out_channels")
    check_integer(groups, "groups")
    for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
        if channels % groups:
            raise ValueError(f"{name} : reçu {channels}, attendu un multiple de groups = {groups}.")
    kernel = kernel_size if isinstance(kernel_size, tuple | list) else (kernel_size, kernel_size)
    if len(kernel) != 2:
        raise ValueError(f"kernel_size : reçu {kernel_size!r}, attendu un entier ou deux.")
    kh, kw = (check_integer(size, "kernel_size") for size in kernel)
    return kh, kw


def check_images(x: Tensor, channels: int, name: str = "x") -> Tensor:
    """Rend `x` si c'est une image de ce nombre de canaux, ou un lot d'images.

    Raises
    ------
    TypeError, ValueError
        Sinon.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} : reçu {type(x).__name__}, attendu un tenseur (B, {channels}, H, W).")
    if not x.is_floating_point():
        raise TypeError(f"{name} : reçu des éléments {x.dtype}, attendu des flottants.")
    if x.ndim not in (3, 4) or x.shape[-3] != channels:
        raise ValueError(f"{name} : reçu la forme {tuple(x.shape)}, attendu (B, {channels}, H, W).")
    return x
