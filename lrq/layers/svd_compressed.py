"""Section 11.0 : la couche comprimée par SVD, sous la convention de l'introduction (V de forme (r, in))."""

from torch import Tensor
from torch.nn import functional as F

from ..svd import share_singular_values
from ..validation import check_input
from .base import LowRankLinear


class SVDCompressedLinear(LowRankLinear):
    """Couche linéaire de rang r : W = U V, avec V déjà transposée.

    Parameters
    ----------
    in_features, out_features : int
    rank : int, entre 1 et min(in, out)
    bias : bool
    device, dtype : comme pour ``nn.Linear``

    Attributes
    ----------
    U : Parameter, (out, r)
    V : Parameter, (r, in)
    bias : Parameter, (out,), ou None
    """

    U: Tensor
    V: Tensor

    def shape_factors(self) -> dict[str, tuple[int, ...]]:
        return {"U": (self.out_features, self.rank), "V": (self.rank, self.in_features)}

    def forward(self, x: Tensor) -> Tensor:
        """y = (x Vᵀ) Uᵀ + b."""
        h = F.linear(check_input(x, self.in_features), self.V)  # (..., n) @ (n, r) -> (..., r)
        return F.linear(h, self.U, self.bias)  # (..., r) @ (r, m) -> (..., m)

    def reconstruct_weight(self) -> Tensor:
        return self.U @ self.V  # (m, r) @ (r, n) -> (m, n)

    @staticmethod
    def split(U: Tensor, S: Tensor, Vh: Tensor) -> dict[str, Tensor]:
        """√S partagé entre les deux facteurs."""
        U, V = share_singular_values(U, S, Vh)
        return {"U": U, "V": V.T}
