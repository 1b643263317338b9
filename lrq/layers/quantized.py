"""Section 11.0 : deux facteurs de rang r, quantifiés et rangés bit contre bit."""

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..activation import Calibration
from ..packing import pack_bits, unpack_bits
from ..quantizers import dequantize, quantize_symmetric
from ..validation import check_bits, check_input
from .svd_compressed import SVDCompressedLinear


class QuantizedLowRankLayer(SVDCompressedLinear):
    """Couche linéaire W = U V dont les facteurs sont gardés sur `n_bits` bits.

    Tant que :meth:`quantize` n'a pas été appelée, la couche calcule avec ses facteurs flottants ; ensuite ils sont
    libérés, et seuls restent les codes serrés et une échelle par facteur.

    Parameters
    ----------
    in_features, out_features : int
    rank : int, entre 1 et min(in, out)
    n_bits : int, entre 1 et 8
    bias : bool

    Attributes
    ----------
    U : Parameter, (out, r), ou None une fois quantifiée
    V : Parameter, (r, in), ou None une fois quantifiée
    U_scale, V_scale : Tensor, scalaires, ou None avant la quantification
    """

    _like: Tensor  # vide : garde le dtype des poids une fois les facteurs libérés
    U_packed: Tensor
    V_packed: Tensor
    U_scale: Tensor
    V_scale: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        n_bits: int = 8,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(in_features, out_features, rank, bias, device, dtype)
        self.n_bits = check_bits(n_bits)
        for name in ("U_packed", "U_scale", "V_packed", "V_scale"):
            self.register_buffer(name, None)
        self.register_buffer("_like", torch.empty(0, device=device, dtype=dtype), persistent=False)

    @property
    def quantized(self) -> bool:
        return self.U_packed is not None

    @torch.no_grad()
    def quantize(self) -> None:
        """Remplace les facteurs flottants par leurs codes ; un second appel ne change rien."""
        if self.quantized:
            return
        codes = {"U": quantize_symmetric(self.U, self.n_bits), "V": quantize_symmetric(self.V, self.n_bits)}
        self._like = self.U.new_empty(0)
        for name, (q, scale) in codes.items():
            setattr(self, f"{name}_packed", pack_bits(q, self.n_bits))
            setattr(self, f"{name}_scale", scale)
            setattr(self, name, None)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if f"{prefix}U_packed" in state_dict:  # un fichier de codes se charge dans une couche quantifiée
            self.quantize()
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def U_q(self) -> Tensor:
        """Codes de U, (out, r), int8."""
        return self._codes("U_packed", (self.out_features, self.rank))

    @property
    def V_q(self) -> Tensor:
        """Codes de V, (r, in), int8."""
        return self._codes("V_packed", (self.rank, self.in_features))

    def _codes(self, packed: str, shape: tuple[int, int]) -> Tensor:
        if not self.quantized:
            raise RuntimeError("la couche n'est pas quantifiée : appelez d'abord quantize().")
        return unpack_bits(getattr(self, packed), self.n_bits, shape)

    def forward(self, x: Tensor) -> Tensor:
        """y = (x Vᵀ) Uᵀ + b, avec les facteurs flottants ou, après quantize(), déquantifiés."""
        return self.forward_quantized(x) if self.quantized else super().forward(x)

    def forward_quantized(self, x: Tensor) -> Tensor:
        """Déquantifie les facteurs, puis multiplie : les bits économisent la mémoire, pas les calculs."""
        check_input(x, self.in_features)
        U = dequantize(self.U_q, self.U_scale).to(x.dtype)  # (m, r)
        V = dequantize(self.V_q, self.V_scale).to(x.dtype)  # (r, n)
        h = F.linear(x, V)  # (..., n) @ (n, r) -> (..., r)
        return F.linear(h, U, self.bias)  # (..., r) @ (r, m) -> (..., m)

    def reconstruct_weight(self) -> Tensor:
        if not self.quantized:
            return super().reconstruct_weight()
        W = dequantize(self.U_q, self.U_scale) @ dequantize(self.V_q, self.V_scale)  # (m, r) @ (r, n) -> (m, n)
        return W.to(self._like.dtype)

    def count_parameters(self) -> int:
        return self.rank * (self.in_features + self.out_features)

    def compression_ratio(self) -> float:
        """Octets de W en float32 divisés par ceux des facteurs tels qu'ils sont rangés, échelles comprises."""
        bias = 0 if self.bias is None else self.bias.nbytes
        return 4 * self.in_features * self.out_features / (self.nbytes() - bias)

    @classmethod
    def from_linear(  # type: ignore[override]
        cls,
        linear_layer: nn.Linear,
        rank: int,
        n_bits: int = 8,
        calibration: Tensor | Calibration | None = None,
    ) -> Self:
        """SVD tronquée puis quantification des deux facteurs, biais recopié.

        Parameters
        ----------
        linear_layer : nn.Linear
        rank : int, entre 1 et min(in, out)
        n_bits : int, entre 1 et 8
        calibration : Tensor (..., in) d'entrées, ou Calibration, optionnel
            La meilleure approximation pour les sorties de ces entrées, et non pour les poids.

        Returns
        -------
        QuantizedLowRankLayer
            Déjà quantifiée.
        """
        check_bits(n_bits)
        layer = super().from_linear(linear_layer, rank, calibration)
        layer.n_bits = n_bits
        layer.quantize()
        return layer

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, n_bits={self.n_bits}"
