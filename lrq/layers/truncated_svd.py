"""Section 11.2 : la SVD tronquée gardée telle quelle, U diag(S) Vᵀ, puis sous sa forme compacte, A B."""

from torch import Tensor
from torch.nn import functional as F

from ..svd import share_singular_values
from ..validation import check_input
from .base import LowRankLinear


class TruncatedSVDLinear(LowRankLinear):
    """Couche linéaire de rang r qui garde sa SVD : W = U diag(S) Vᵀ.

    Les valeurs singulières restent lisibles, et peuvent être changées ou apprises.

    Parameters
    ----------
    in_features, out_features : int
    rank : int, entre 1 et min(in, out)
    bias : bool
    device, dtype : comme pour ``nn.Linear``

    Attributes
    ----------
    U : Parameter, (out, r)
    S : Parameter, (r,)
    V : Parameter, (in, r)
    bias : Parameter, (out,), ou None
    """

    U: Tensor
    S: Tensor
    V: Tensor

    def shape_factors(self) -> dict[str, tuple[int, ...]]:
        return {"U": (self.out_features, self.rank), "S": (self.rank,), "V": (self.in_features, self.rank)}

    def forward(self, x: Tensor) -> Tensor:
        """y = ((x V) · S) Uᵀ + b."""
        h = (check_input(x, self.in_features) @ self.V) * self.S  # (..., n) @ (n, r) -> (..., r)
        return F.linear(h, self.U, self.bias)  # (..., r) @ (r, m) -> (..., m)

    def reconstruct_weight(self) -> Tensor:
        return (self.U * self.S) @ self.V.T  # (m, r) @ (r, n) -> (m, n)

    @staticmethod
    def split(U: Tensor, S: Tensor, Vh: Tensor) -> dict[str, Tensor]:
        """Les trois facteurs, tels quels."""
        return {"U": U, "S": S, "V": Vh.T}


class CompactSVDLinear(LowRankLinear):
    """La même en deux facteurs : W = A B, avec A = U √S et B = √S Vᵀ.

    Parameters
    ----------
    in_features, out_features : int
    rank : int, entre 1 et min(in, out)
    bias : bool
    device, dtype : comme pour ``nn.Linear``

    Attributes
    ----------
    A : Parameter, (out, r)
    B : Parameter, (r, in)
    bias : Parameter, (out,), ou None
    """

    A: Tensor
    B: Tensor

    def shape_factors(self) -> dict[str, tuple[int, ...]]:
        return {"A": (self.out_features, self.rank), "B": (self.rank, self.in_features)}

    def forward(self, x: Tensor) -> Tensor:
        """y = (x Bᵀ) Aᵀ + b."""
        h = F.linear(check_input(x, self.in_features), self.B)  # (..., n) @ (n, r) -> (..., r)
        return F.linear(h, self.A, self.bias)  # (..., r) @ (r, m) -> (..., m)

    def reconstruct_weight(self) -> Tensor:
        return self.A @ self.B  # (m, r) @ (r, n) -> (m, n)

    @staticmethod
    def split(U: Tensor, S: Tensor, Vh: Tensor) -> dict[str, Tensor]:
        """√S de chaque côté."""
        A, V = share_singular_values(U, S, Vh)
        return {"A": A, "B": V.T}
