"""Section 9.6 : une couche linéaire dont les poids sont une matrice en train de tenseurs."""

import math
import operator
from collections.abc import Iterable, Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..tensor_train import check_cores, check_dims, clamped_ranks, tt_matrix_contract, tt_matrix_svd, tt_ranks
from ..tt_product import apply_cores
from ..validation import check_input, check_integers, check_linear
from .base import CompressedLinear, copy_bias

VERSION = operator.attrgetter("_version")  # qu'augmente tout changement sur place


class TTMatrixLinear(CompressedLinear):
    """Ce que partagent les couches dont Ŵ est une matrice en train : des formes, et `chain`, qui donne les cœurs.

    Attributes
    ----------
    input_dims, output_dims : list[int], de produits in et out
    ranks : list[int], un par lien
    """

    bias: nn.Parameter | None

    def set_shapes(
        self, input_dims: Sequence[int], output_dims: Sequence[int], rank: int | Sequence[int], clamp: bool = True
    ) -> None:
        """Retient les dimensions, et les rangs, ramenés à ce qu'elles permettent si `clamp`."""
        self.input_dims, self.output_dims = check_dims(input_dims, output_dims)
        self.in_features, self.out_features = math.prod(self.input_dims), math.prod(self.output_dims)
        links = len(self.input_dims) - 1
        dims = self.input_dims, self.output_dims
        self.ranks = clamped_ranks(*dims, rank) if clamp else check_integers(rank, "rank", links, "lien")

    @property
    def rank(self) -> list[int]:
        """Les rangs, sous le nom de l'argument qui les donne."""
        return self.ranks

    @property
    def clamp(self) -> bool:
        """Faux si un rang dépasse ce que permettent les dimensions."""
        return self.ranks == clamped_ranks(self.input_dims, self.output_dims, self.ranks)

    def core_shapes(self) -> list[tuple[int, int, int, int]]:
        """Les formes des cœurs, (r_{k−1}, in_k, out_k, r_k)."""
        bonds = zip([1, *self.ranks], self.input_dims, self.output_dims, [*self.ranks, 1], strict=True)
        return list(bonds)

    def chain(self) -> list[Tensor]:
        """Les cœurs tels que la couche les applique."""
        raise TypeError(f"{type(self).__name__} doit définir chain().")

    def forward(self, x: Tensor) -> Tensor:
        """y = x Ŵᵀ + b, cœur après cœur (:func:`~lrq.tt_product`)."""
        y = apply_cores(check_input(x, self.in_features), self.chain())
        return y if self.bias is None else y + self.bias.to(y.dtype)  # un autre, sous torch.autocast

    def reconstruct_weight(self) -> Tensor:
        return tt_matrix_contract(self.chain())

    def count_parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.core_shapes())

    def extra_repr(self) -> str:
        return f"{self.input_dims}, {self.output_dims}, ranks={self.ranks}, bias={self.bias is not None}"


class TTLinear(TTMatrixLinear):
    """Couche linéaire dont les poids sont une matrice en train de tenseurs, de rang au plus `rank` à chaque lien.

    Parameters
    ----------
    input_dims, output_dims : d entiers chacun, d ≥ 2
        De produits in et out.
    rank : int, ou un par lien
        Ramené, lien par lien, à ce que permettent les dimensions.
    bias : bool
        Un biais, nul au départ ; absent par défaut.
    cache : bool
        Hors apprentissage, garder Ŵ dense d'un appel à l'autre : le temps d'une nn.Linear, et sa mémoire. Changer un
        cœur la fait recalculer, sauf sur place par ``.data`` (``core.data.mul_(2)``), que PyTorch ne laisse pas voir.
    clamp : bool
        Faux, les rangs restent ceux qu'on donne.
    device, dtype : comme pour ``nn.Linear``

    Attributes
    ----------
    cores : ParameterList de d cœurs (r_{k−1}, in_k, out_k, r_k)
    ranks : list[int], un par lien
    bias : Parameter, (out,), ou None
    """

    def __init__(
        self,
        input_dims: Sequence[int],
        output_dims: Sequence[int],
        rank: int | Sequence[int],
        bias: bool = False,
        cache: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        clamp: bool = True,
    ):
        super().__init__()
        self.set_shapes(input_dims, output_dims, rank, clamp)
        self.cache = cache
        self._dense: tuple[list[int], Tensor, list[Tensor]] | None = None
        # des poids de variance 2/(in + out), comme ceux de Xavier : ici, la somme de Π r_k produits de d nombres
        paths = math.prod(self.ranks)
        std = (2 / (self.in_features + self.out_features) / paths) ** (1 / (2 * len(self.input_dims)))
        self.cores = nn.ParameterList(
            nn.Parameter(nn.init.normal_(torch.empty(shape, device=device, dtype=dtype), std=std))
            for shape in self.core_shapes()
        )
        self.bias = nn.Parameter(torch.zeros(self.out_features, device=device, dtype=dtype)) if bias else None

    def chain(self) -> list[Tensor]:
        # lus dans les dictionnaires, bien plus vite que par list(self.cores)
        return list(self._modules["cores"]._parameters.values())  # type: ignore[union-attr, arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """y = x Ŵᵀ + b, cœur après cœur, ou par Ŵ gardée dense si `cache`, hors apprentissage."""
        if not self.cache or (torch.is_grad_enabled() and any(core.requires_grad for core in self.chain())):
            return super().forward(x)
        return F.linear(check_input(x, self.in_features), self.dense_weight(), self.bias)

    def dense_weight(self) -> Tensor:
        """Ŵ, gardée tant qu'aucun cœur ne change."""
        cores = self.chain()
        try:
            key = [*map(Tensor.data_ptr, cores), *map(VERSION, cores)]
        except RuntimeError:  # nés sous inference_mode, ils changent sans le dire
            return self.reconstruct_weight()
        if self._dense is None or self._dense[0] != key:
            # gardée pour d'autres appels, qui peut-être dériveront, et sans autocast
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(cores[0].device.type, enabled=False):
                held = [core.detach() for core in cores]  # aucun autre cœur ne prendra leur adresse
                self._dense = key, self.reconstruct_weight(), held
        return self._dense[1]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_dense": None}  # ni les copies ni les fichiers n'emportent Ŵ

    @classmethod
    def from_linear(
        cls,
        linear_layer: nn.Linear,
        input_dims: Sequence[int],
        output_dims: Sequence[int],
        rank: int | Sequence[int] | None = None,
        error: float | None = None,
        cache: bool = False,
    ) -> Self:
        """Remplace une couche par la TT-SVD de ses poids, biais recopié.

        Parameters
        ----------
        linear_layer : nn.Linear
            Ni changée, ni partagée.
        input_dims, output_dims : d entiers chacun, de produits in et out
        rank, error : l'un ou l'autre
            Comme pour :func:`~lrq.tt_svd`.
        cache : bool

        Returns
        -------
        La couche, dans le même dtype et sur le même appareil.

        Raises
        ------
        TypeError, ValueError
            Comme :func:`~lrq.tt_matrix_svd` ; `linear_layer` n'est pas une nn.Linear.
        """
        cores = tt_matrix_svd(check_linear(linear_layer).weight, input_dims, output_dims, rank, error)
        layer = cls.from_cores(cores, cache)
        layer.bias = copy_bias(linear_layer)
        return layer

    @classmethod
    def from_cores(cls, cores: Iterable[Tensor], cache: bool = False) -> Self:
        """La couche sans biais que décrivent ces cœurs, recopiés.

        Parameters
        ----------
        cores : list de d Tensor, (r_{k−1}, in_k, out_k, r_k), d ≥ 2
        cache : bool

        Returns
        -------
        La couche, dans leur dtype et sur leur appareil.
        """
        cores = check_cores(cores, order=4)
        layer = cls([core.shape[1] for core in cores], [core.shape[2] for core in cores], 1, device="meta")
        layer.cache = cache
        layer.ranks = tt_ranks(cores)
        layer.cores = nn.ParameterList(
            nn.Parameter(core.detach().clone(memory_format=torch.contiguous_format)) for core in cores
        )
        return layer
