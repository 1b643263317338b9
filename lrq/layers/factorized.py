"""Section 11.1 : la couche dense factorisée en deux matrices, ou en plusieurs."""

import itertools
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..svd import norm, relative, share_singular_values, truncated_svd, working_dtype
from ..validation import LAST_SEED, check_input, check_integer, check_linear, check_rank, check_ranks
from .base import CompressedLinear, LowRankLinear, copy_bias


class FactorizedLinear(LowRankLinear):
    """Couche linéaire de rang r : W = U Vᵀ.

    Parameters
    ----------
    in_features, out_features : int
        Dimensions n et m de la couche.
    rank : int, entre 1 et min(m, n)
    bias : bool
        Un biais, nul au départ ; absent par défaut.
    device, dtype : comme pour ``nn.Linear``

    Attributes
    ----------
    U : Parameter, (out, r)
    V : Parameter, (in, r)
    bias : Parameter, (out,), ou None
    """

    U: Tensor
    V: Tensor

    def shape_factors(self) -> dict[str, tuple[int, ...]]:
        return {"U": (self.out_features, self.rank), "V": (self.in_features, self.rank)}

    def forward(self, x: Tensor) -> Tensor:
        """y = (x V) Uᵀ + b : r(m + n) multiplications par vecteur, au lieu de mn."""
        h = check_input(x, self.in_features) @ self.V  # (..., n) @ (n, r) -> (..., r)
        return F.linear(h, self.U, self.bias)  # (..., r) @ (r, m) -> (..., m)

    def reconstruct_weight(self) -> Tensor:
        return self.U @ self.V.T  # (m, r) @ (r, n) -> (m, n)

    @staticmethod
    def split(U: Tensor, S: Tensor, Vh: Tensor) -> dict[str, Tensor]:
        """√S partagé : des facteurs équilibrés."""
        U, V = share_singular_values(U, S, Vh)
        return {"U": U, "V": V}

    @classmethod
    def from_linear_svd(cls, linear_layer: nn.Linear, rank: int) -> Self:
        """Facteurs équilibrés de la SVD tronquée, biais recopié : :meth:`from_linear`, sans calibration.

        Parameters
        ----------
        linear_layer : nn.Linear
        rank : int, entre 1 et min(m, n)

        Returns
        -------
        FactorizedLinear
        """
        return cls.from_linear(linear_layer, rank)

    @classmethod
    def from_linear_random(cls, linear_layer: nn.Linear, rank: int) -> Self:
        """Facteurs tirés au hasard (Xavier), biais recopié : le point de départ d'un entraînement.

        Parameters
        ----------
        linear_layer : nn.Linear
        rank : int, entre 1 et min(m, n)

        Returns
        -------
        FactorizedLinear
            Le tirage suit ``torch.manual_seed``.
        """
        weight = check_linear(linear_layer).weight
        layer = cls(linear_layer.in_features, linear_layer.out_features, rank, device=weight.device, dtype=weight.dtype)
        layer.bias = copy_bias(linear_layer)
        return layer


class MultiStageFactorizedLinear(CompressedLinear):
    """Couche linéaire en k + 1 facteurs : W = F_{k+1} ⋯ F₂ F₁, de dimensions in → r₁ → … → r_k → out.

    Sans non-linéarité entre les facteurs, W a le rang du plus petit des rᵢ.

    Parameters
    ----------
    in_features, out_features : int
    ranks : list[int]
        Les k dimensions intermédiaires ; toutes comptent.
    bias : bool
    device, dtype : comme pour ``nn.Linear``

    Attributes
    ----------
    factors : ModuleList
        Des nn.Linear ; seule la dernière porte le biais.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        ranks: list[int],
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.in_features = check_integer(in_features, "in_features")
        self.out_features = check_integer(out_features, "out_features")
        self.ranks = check_ranks(ranks, out_features, in_features)
        dims = [in_features, *self.ranks]
        chain = [nn.Linear(*pair, bias=False, device=device, dtype=dtype) for pair in itertools.pairwise(dims)]
        last = nn.Linear(dims[-1], out_features, bias=bias, device=device, dtype=dtype)
        self.factors = nn.ModuleList([*chain, last])

    @property
    def bias(self) -> nn.Parameter | None:
        """Le biais, (out,), ou None : celui de la dernière couche de `factors`."""
        return self.factors[-1].bias  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """y = F_{k+1}(… F₂(F₁ x)) + b."""
        h = check_input(x, self.in_features)
        for factor in self.factors:
            h = factor(h)  # (..., r_{i-1}) -> (..., r_i)
        return h

    def reconstruct_weight(self) -> Tensor:
        first, *others = [factor.get_parameter("weight") for factor in self.factors]
        W: Tensor = first  # (r_1, in)
        for weight in others:
            W = weight @ W  # (r_i, r_{i-1}) @ (r_{i-1}, in) -> (r_i, in)
        return W

    def count_parameters(self) -> int:
        return sum(factor.get_parameter("weight").numel() for factor in self.factors)

    @classmethod
    def from_linear(cls, linear_layer: nn.Linear, ranks: list[int]) -> Self:
        """La meilleure approximation de rang min(ranks), répartie à parts égales entre les facteurs.

        Parameters
        ----------
        linear_layer : nn.Linear
        ranks : list[int]

        Returns
        -------
        MultiStageFactorizedLinear
            Même dtype, même appareil, biais recopié.
        """
        weight = check_linear(linear_layer).weight
        layer = cls(linear_layer.in_features, linear_layer.out_features, ranks, device="meta")
        r = min(layer.ranks)
        U, S, Vh = truncated_svd(weight.detach().to(working_dtype(weight)), r)
        share = S ** (1 / len(layer.factors))  # chaque facteur reçoit S^{1/(k+1)}
        blocks = [share[:, None] * Vh, *[share.diag()] * (len(ranks) - 1), U * share]
        for factor, block in zip(layer.factors, blocks, strict=True):
            padded = block.new_zeros(factor.get_parameter("weight").shape)  # hors du bloc de rang r, des zéros
            padded[: block.shape[0], : block.shape[1]] = block
            factor.weight = nn.Parameter(padded.to(weight.dtype))
        layer.factors[-1].register_parameter("bias", copy_bias(linear_layer))
        return layer


def compare_factorized_vs_standard(
    in_features: int,
    out_features: int,
    rank: int,
    num_tests: int = 100,
    linear_layer: nn.Linear | None = None,
    seed: int = 0,
    verbose: bool = False,
) -> dict[str, float]:
    """Compare une couche dense et sa factorisation par SVD sur des entrées gaussiennes (section 11.1).

    Parameters
    ----------
    in_features, out_features : int
    rank : int
    num_tests : int
        Nombre d'entrées.
    linear_layer : nn.Linear, optionnel
        La couche à factoriser ; sinon une couche tout juste initialisée, comme le fait le cours.
    seed : int, au moins 0
        Graine des tirages ; le générateur global n'est pas touché.
    verbose : bool
        Imprime les résultats.

    Returns
    -------
    dict
        ``compression`` (paramètres) et ``error`` (erreur relative des sorties).

    Raises
    ------
    TypeError, ValueError
        `linear_layer` n'est pas une nn.Linear de ces dimensions, ou un nombre est impossible.
    """
    check_rank(rank, check_integer(out_features, "out_features"), check_integer(in_features, "in_features"))
    check_integer(num_tests, "num_tests")
    seed = check_integer(seed, "seed", 0, LAST_SEED)
    if linear_layer is None:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed toucherait aussi les générateurs CUDA
            linear_layer = nn.Linear(in_features, out_features)
    elif (check_linear(linear_layer).in_features, linear_layer.out_features) != (in_features, out_features):
        raise ValueError(
            f"linear_layer : reçu {linear_layer.in_features} → {linear_layer.out_features}, "
            f"attendu {in_features} → {out_features}."
        )
    factorized = FactorizedLinear.from_linear_svd(linear_layer, rank)
    weight = linear_layer.weight
    x = torch.randn(num_tests, in_features, generator=torch.Generator().manual_seed(seed))
    x = x.to(weight.device, weight.dtype)
    with torch.no_grad():
        y = linear_layer(x)
        error = relative(norm(y - factorized(x)), norm(y))
    result = {"compression": factorized.compression_ratio(), "error": error}
    if verbose:
        print(f"{in_features} → {out_features}, rang {rank} : ×{result['compression']:.2f}, erreur {error:.4f}")
    return result
