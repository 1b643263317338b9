"""Les questions auxquelles répond toute couche comprimée, et ce que partagent celles de rang r."""

import inspect
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..activation import Calibration, decompose
from ..svd import norm, relative, to_dtype
from ..validation import check_integer, check_linear, check_matrix, check_rank

REPLACED = ("n_bits", "granularity", "clipping")  # ce qu'un argument quantizer dit tout entier


class CompressedLayer(nn.Module):
    """Une couche dont les poids Ŵ sont rangés autrement qu'en un tenseur dense.

    Une sous-classe définit `forward`, `reconstruct_weight`, `count_parameters` et `dense_parameters` ; les tailles
    s'en déduisent.
    """

    def reconstruct_weight(self) -> Tensor:
        """Les poids Ŵ que la couche applique, rendus denses."""
        raise TypeError(f"{type(self).__name__} doit définir reconstruct_weight().")

    def count_parameters(self) -> int:
        """Nombre de nombres qui décrivent Ŵ ; le biais n'est pas compté, puisqu'il ne change pas."""
        raise TypeError(f"{type(self).__name__} doit définir count_parameters().")

    def dense_parameters(self) -> int:
        """Nombre de poids de la couche dense que celle-ci remplace, biais non compté."""
        raise TypeError(f"{type(self).__name__} doit définir dense_parameters().")

    def compression_ratio(self) -> float:
        """Taille des poids denses divisée par celle de leurs facteurs, à précision égale."""
        return self.dense_parameters() / self.count_parameters()

    def nbytes(self) -> int:
        """Octets réellement occupés : tous les paramètres et tampons, biais, échelles et points zéro compris."""
        return sum(t.nbytes for t in [*self.parameters(), *self.buffers()])

    @property
    def dtype(self) -> torch.dtype:
        """Le type des poids Ŵ."""
        return next(self.parameters()).dtype

    def recipe(self) -> dict[str, Any]:
        """Les arguments qui refont la couche, vide de ses nombres.

        ``type(layer)(**layer.recipe(), device="meta")`` a les mêmes tenseurs que `layer`, à remplir par
        ``load_state_dict(layer.state_dict(), assign=True)``. Un argument qui est lui-même un module se refait d'abord,
        de même ; :class:`~lrq.QuantizedResidualLinear`, qui n'est faite que de modules, ne prend pas `device`.

        Returns
        -------
        dict nom d'argument → valeur
        """
        names = inspect.signature(type(self)).parameters
        left = {"device", *(REPLACED if "quantizer" in names else ())}
        kept = {name: getattr(self, name) for name in names if name not in left}
        return kept | {"bias": self.bias is not None} if "bias" in kept else kept

    def reconstruction_error(self, original_weight: Tensor) -> float:
        """Erreur relative ‖W − Ŵ‖/‖W‖ (Frobenius) ; 0 pour des poids nuls bien rendus.

        Parameters
        ----------
        original_weight : Tensor
            Les poids denses, de la forme de :meth:`reconstruct_weight`.

        Returns
        -------
        float
        """
        flat = isinstance(original_weight, Tensor) and original_weight.ndim > 2  # les noyaux d'une convolution
        W = check_matrix(original_weight.flatten(1) if flat else original_weight, "original_weight").double()
        rebuilt = self.reconstruct_weight().detach()
        if original_weight.shape != rebuilt.shape:
            raise ValueError(f"original_weight : reçu {tuple(original_weight.shape)}, attendu {tuple(rebuilt.shape)}.")
        return relative(norm(W - rebuilt.view(W.shape).double()), norm(W))


class CompressedLinear(CompressedLayer):
    """Une couche linéaire y = x Ŵᵀ + b, où Ŵ (out, in) est comprimée.

    Attributes
    ----------
    in_features, out_features : int
    """

    in_features: int
    out_features: int

    def dense_parameters(self) -> int:
        return self.in_features * self.out_features


class LowRankLinear(CompressedLinear):
    """Une couche linéaire de rang r, construite depuis une SVD tronquée.

    Une sous-classe définit `shape_factors`, qui nomme ses facteurs et donne leurs formes, et `split`, qui les tire
    d'une SVD.

    Parameters
    ----------
    in_features, out_features : int
        Dimensions n et m de la couche.
    rank : int, entre 1 et min(m, n)
    bias : bool
        Un biais, nul au départ ; absent par défaut.
    device, dtype : comme pour ``nn.Linear``
    """

    bias: nn.Parameter | None

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
        for name, shape in self.shape_factors().items():
            factor = torch.empty(shape, device=device, dtype=dtype)
            fill = nn.init.xavier_uniform_ if factor.ndim == 2 else nn.init.ones_  # une matrice, ou des σ
            self.register_parameter(name, nn.Parameter(fill(factor)))
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None

    def shape_factors(self) -> dict[str, tuple[int, ...]]:
        """Nom et forme de chaque facteur."""
        raise TypeError(f"{type(self).__name__} doit définir shape_factors().")

    @staticmethod
    def split(U: Tensor, S: Tensor, Vh: Tensor) -> dict[str, Tensor]:
        """Les facteurs de la couche, tirés de U (m, r), S (r,) et Vh (r, n)."""
        raise TypeError("la couche doit définir split().")

    def count_parameters(self) -> int:
        return sum(torch.Size(shape).numel() for shape in self.shape_factors().values())

    @classmethod
    def from_weight_matrix(cls, W: Tensor, rank: int, calibration: Tensor | Calibration | None = None) -> Self:
        """La couche sans biais dont les poids sont la meilleure approximation de W de ce rang.

        Parameters
        ----------
        W : Tensor, (out, in)
        rank : int, entre 1 et min(out, in)
        calibration : Tensor (..., in) d'entrées, ou Calibration, optionnel
            La meilleure pour les sorties de ces entrées (:func:`~lrq.activation_aware_svd`) ; sinon pour les poids.

        Returns
        -------
        La couche, dans le dtype et sur l'appareil de W, dont elle ne partage rien.

        Raises
        ------
        TypeError, ValueError
            Rang hors de 1 … min(out, in), poids NaN ou infinis, calibration d'une autre largeur, vide ou non finie.
        """
        W = check_matrix(W)
        U, S, Vh = decompose(W, rank, calibration)
        layer = cls(W.shape[1], W.shape[0], rank, device="meta")
        for name, factor in layer.split(U, S, Vh).items():
            # une copie, par lignes : safetensors le veut, et une vue garderait toute la SVD en mémoire
            copied = factor.clone(memory_format=torch.contiguous_format)
            setattr(layer, name, nn.Parameter(to_dtype(copied, W.dtype)))
        return layer

    @classmethod
    def from_linear(cls, linear_layer: nn.Linear, rank: int, calibration: Tensor | Calibration | None = None) -> Self:
        """Remplace une couche par sa meilleure approximation de rang r, biais recopié.

        Parameters
        ----------
        linear_layer : nn.Linear
            Ni changée, ni partagée.
        rank : int, entre 1 et min(out, in)
        calibration : Tensor (..., in) d'entrées, ou Calibration, optionnel
            Comme pour :meth:`from_weight_matrix`.

        Returns
        -------
        La couche, dans le même dtype et sur le même appareil.

        Raises
        ------
        TypeError
            `linear_layer` n'est pas une nn.Linear.
        ValueError
            Comme :meth:`from_weight_matrix`.
        """
        layer = cls.from_weight_matrix(check_linear(linear_layer).weight, rank, calibration)
        layer.bias = copy_bias(linear_layer)
        return layer

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, rank={self.rank}, bias={self.bias is not None}"


def copy_bias(layer: Any) -> nn.Parameter | None:
    """Copie du biais d'une couche, jamais un alias ; None s'il n'y en a pas."""
    return None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())


def in_dtype_of(x: Tensor, bias: Tensor | None) -> Tensor | None:
    """Le biais dans le dtype de `x`, comme les poids déquantifiés ; None s'il n'y en a pas."""
    return None if bias is None else bias.to(x.dtype)
