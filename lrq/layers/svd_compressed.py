"""Section 11.0 : la couche comprimée par SVD, sous la convention de l'introduction (V de forme (r, in))."""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..svd import balanced_factors
from ..validation import check_input, check_integer, check_linear, check_matrix, check_rank
from .base import CompressedLinear
from .factorized import copy_bias


class SVDCompressedLinear(CompressedLinear):
    """Couche linéaire de rang r : W = U V, avec V déjà transposée.

    Parameters
    ----------
    in_features, out_features : int
    rank : int, entre 1 et min(in, out)
    bias : bool

    Attributes
    ----------
    U : Parameter, (out, r)
    V : Parameter, (r, in)
    bias : Parameter, (out,), ou None
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.in_features = check_integer(in_features, "in_features")
        self.out_features = check_integer(out_features, "out_features")
        self.rank = check_rank(rank, out_features, in_features)
        self.U = nn.Parameter(torch.empty(out_features, rank, device=device, dtype=dtype))
        self.V = nn.Parameter(torch.empty(rank, in_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None
        nn.init.xavier_uniform_(self.U)
        nn.init.xavier_uniform_(self.V)

    def forward(self, x: Tensor) -> Tensor:
        """y = (x Vᵀ) Uᵀ + b."""
        h = F.linear(check_input(x, self.in_features), self.V)  # (..., n) @ (n, r) -> (..., r)
        return F.linear(h, self.U, self.bias)  # (..., r) @ (r, m) -> (..., m)

    def reconstruct_weight(self) -> Tensor:
        return self.U @ self.V  # (m, r) @ (r, n) -> (m, n)

    def count_parameters(self) -> int:
        return self.U.numel() + self.V.numel()  # r (m + n)

    @classmethod
    def from_linear(cls, linear_layer: nn.Linear, rank: int) -> Self:
        """SVD tronquée des poids, √S partagé entre les deux facteurs, biais recopié.

        Parameters
        ----------
        linear_layer : nn.Linear
        rank : int, entre 1 et min(in, out)

        Returns
        -------
        SVDCompressedLinear
            Même dtype, même appareil ; la couche d'origine n'est ni changée ni partagée.
        """
        U, V = balanced_factors(check_linear(linear_layer).weight, rank)
        layer = cls(linear_layer.in_features, linear_layer.out_features, rank, device="meta")
        layer.U, layer.V, layer.bias = nn.Parameter(U), nn.Parameter(V.T.contiguous()), copy_bias(linear_layer)
        return layer

    def reconstruction_error(self, original_weight: Tensor) -> float:
        """Erreur relative ‖W − U V‖/‖W‖ (Frobenius) ; 0 pour une matrice nulle bien rendue.

        Parameters
        ----------
        original_weight : Tensor, (out, in)

        Returns
        -------
        float
        """
        W = check_matrix(original_weight, "original_weight").double()
        if W.shape != (self.out_features, self.in_features):
            raise ValueError(
                f"original_weight : reçu {tuple(W.shape)}, attendu {(self.out_features, self.in_features)}."
            )
        error = torch.linalg.norm(W - self.reconstruct_weight().detach().double())
        return float(error / torch.linalg.norm(W)) if error != 0 else 0.0

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, rank={self.rank}, bias={self.bias is not None}"
