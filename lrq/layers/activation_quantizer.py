"""L'arrondi des entrées d'une couche, à des bornes choisies d'avance."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..quantizers import UniformQuantizer, restore
from ..svd import working_dtype
from ..validation import check_finite_number


class ActivationQuantizer(nn.Module):
    """Arrondit un tenseur à une grille fixe, asymétrique et non signée, la même pour tout le tenseur.

    Parameters
    ----------
    n_bits : int, entre 1 et 8
    low, high : float
        Ce que la grille couvre, zéro compris : ``low`` ≤ 0 ≤ ``high`` (:meth:`~lrq.ActivationHistogram.range`). Ce qui
        en sort est écrêté ; [0, 0] ne laisse que zéro.
    device : optionnel
        Où vivent l'échelle et le point zéro.

    Attributes
    ----------
    scale : Tensor, (), float32
    zero_point : Tensor, (), int32
        Aucun des deux ne suit les conversions (``layer.half()``) : en float16, de petites échelles s'annuleraient.

    Raises
    ------
    TypeError, ValueError
        `n_bits` hors de 1 … 8, bornes non finies, ou qui n'entourent pas zéro.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, n_bits: int = 8, low: float = 0.0, high: float = 0.0, device: torch.device | str | None = None):
        super().__init__()
        self.quantizer = UniformQuantizer(n_bits, symmetric=False, signed=False)
        low, high = check_finite_number(low, "low"), check_finite_number(high, "high")
        if not low <= 0 <= high:
            raise ValueError(f"low, high : reçu [{low}, {high}], attendu des bornes qui entourent zéro.")
        most = torch.finfo(torch.float32).max
        bounds = torch.tensor([[low, high]], dtype=torch.float64).clamp(-most, most).float()
        scale, zero_point = self.quantizer.compute_scale_zero_point(bounds)
        self.register_buffer("scale", scale.to(device))
        self.register_buffer("zero_point", zero_point.to(device))

    @property
    def n_bits(self) -> int:
        """Les bits de la grille."""
        return self.quantizer.n_bits

    def forward(self, x: Tensor) -> Tensor:
        """x arrondie à la grille, dans son dtype ; le gradient passe là où la grille n'écrête pas."""
        dtype = working_dtype(x)
        return restore(self.quantizer.fake_quantize(x.to(dtype), self.scale.to(dtype), self.zero_point), x.dtype)

    def recipe(self) -> dict[str, Any]:
        """Les arguments qui refont ce module, sans ses nombres : l'échelle et le point zéro sont des tampons."""
        return {"n_bits": self.n_bits}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.scale = self.scale.view(torch.int32)
        try:
            super()._apply(fn, recurse)  # half() laisse les entiers
        finally:
            self.scale = self.scale.view(torch.float32)
        return self

    def extra_repr(self) -> str:
        if self.scale.is_meta:
            return f"n_bits={self.n_bits}"
        low, high = ((code - self.zero_point) * self.scale for code in (0, self.quantizer.high))
        return f"n_bits={self.n_bits}, de {float(low):.4g} à {float(high):.4g}"
