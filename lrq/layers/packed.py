"""Un tenseur quantifié, gardé en codes serrés parmi les tampons d'une couche."""

import math
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..quantizers import Granularity, PerChannel, QuantizedTensor, UniformQuantizer, check_quantizer
from ..svd import working_dtype
from .base import CompressedLayer

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class PackedTensor(nn.Module):
    """Les codes serrés d'un tenseur, ses échelles et ses points zéro ; il suit la couche d'un appareil à l'autre.

    Parameters
    ----------
    quantizer : UniformQuantizer
    shape : tuple
        Forme du tenseur.
    dtype : torch.dtype
        Celui du tenseur rendu ; il suit les conversions de la couche (``layer.half()``).

    Attributes
    ----------
    packed : Tensor, (⌈numel · b / 8⌉,), uint8
    scale : Tensor, forme des échelles, float32 (float64 si le tenseur rendu l'est), ou `quantizer.scale_dtype`
    zero_point : Tensor d'octets, même forme, ou None si la grille est symétrique
    """

    packed: Tensor
    scale: Tensor
    zero_point: Tensor | None
    _like: Tensor  # vide : porte le dtype du tenseur rendu

    def __init__(
        self,
        quantizer: UniformQuantizer,
        shape: tuple[int, ...],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.quantizer, self.shape = quantizer, torch.Size(shape)
        self.register_buffer("_like", torch.empty(0, device=device, dtype=dtype), persistent=False)
        scales = quantizer.granularity.scale_shape(self.shape)
        size = -(-self.shape.numel() * quantizer.n_bits // 8)
        self.register_buffer("packed", torch.zeros(size, device=device, dtype=torch.uint8))
        kept = quantizer.scale_dtype or working_dtype(self._like)
        self.register_buffer("scale", torch.zeros(scales, device=device, dtype=kept))
        zero_point = torch.zeros(scales, device=device, dtype=torch.int8 if quantizer.signed else torch.uint8)
        self.register_buffer("zero_point", None if quantizer.symmetric else zero_point)

    @classmethod
    def from_tensor(cls, t: Tensor, quantizer: UniformQuantizer, scale: Tensor | None = None) -> "PackedTensor":
        """Quantifie `t`, aux échelles données ou, sinon, à celles que `quantizer` lui trouve."""
        return cls.hold(quantizer.compress(t, scale))

    @classmethod
    def hold(cls, stored: QuantizedTensor) -> "PackedTensor":
        """Garde un tenseur déjà quantifié."""
        kept = cls(stored.quantizer, stored.shape, device=stored.packed.device, dtype=stored.dtype)
        kept.packed, kept.scale, kept.zero_point = stored.packed, stored.scale, stored.zero_point
        return kept

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        scale = self.scale
        self.scale = scale.view(INTEGERS[scale.itemsize])
        try:
            super()._apply(fn, recurse)  # half() laisse les entiers : en float16, de petites échelles s'annuleraient
        finally:
            self.scale = self.scale.view(scale.dtype).to(self.quantizer.scale_dtype or working_dtype(self._like))
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._like = torch.empty_like(self._like, device=self.packed.device)  # le fichier ne le dit pas

    @property
    def dtype(self) -> torch.dtype:
        """Celui du tenseur rendu."""
        return self._like.dtype

    def codes(self) -> Tensor:
        """Les codes, int8 (uint8 s'ils ne sont pas signés)."""
        if self.quantizer.n_bits == 8 and self.quantizer.signed:
            return self.packed.view(torch.int8).view(self.shape)  # à chaque appel d'une couche : rien à déballer
        return self.stored().codes()

    def dequantize(self) -> Tensor:
        """Le tenseur arrondi à la grille."""
        return self.stored().dequantize()

    def rows(self, index: Tensor) -> Tensor:
        """Les lignes demandées du tenseur arrondi : les mêmes nombres que ``dequantize()[index]``.

        Seules ces lignes sont déballées si chacune tient un nombre entier d'octets, et si elles ne sont pas plus
        nombreuses que celles du tenseur ; sinon, le tenseur entier.
        """
        q, (count, *row) = self.quantizer, self.shape
        bits = math.prod(row) * q.n_bits
        if bits % 8 or index.numel() >= count:
            return self.dequantize()[index]
        places = index.flatten()
        shared = q.granularity.scale_shape(torch.Size((2, *row)))[:1] != (2,)  # par toutes les lignes
        scale = self.scale if shared else self.scale[places]
        zero_point = self.zero_point if shared or self.zero_point is None else self.zero_point[places]
        packed = self.packed.view(count, bits // 8)[places].flatten()
        shape = torch.Size((len(places), *row))
        found = QuantizedTensor(q, packed, scale, zero_point, shape, self._like.dtype).dequantize()
        return found.view(*index.shape, *row)

    def nbytes(self) -> int:
        """Octets occupés : codes, échelles et points zéro."""
        return self.stored().nbytes()

    def stored(self) -> QuantizedTensor:
        """Le tenseur quantifié, hors du module : les mêmes octets."""
        return QuantizedTensor(self.quantizer, self.packed, self.scale, self.zero_point, self.shape, self._like.dtype)

    def layout(self) -> str:
        """Comment les codes sont rangés : ce qu'il faut savoir pour les relire."""
        q = self.quantizer
        kind = f"{'symétriques' if q.symmetric else 'asymétriques'}, {'signés' if q.signed else 'non signés'}"
        scales = "" if q.scale_dtype is None else f", échelles {q.scale_dtype}"
        return f"en {'×'.join(map(str, self.shape))} sur {q.n_bits} bit(s), {kind}, {q.granularity}{scales}"

    def extra_repr(self) -> str:
        return f"{tuple(self.shape)}, {self.quantizer}"


class PackedWeight(CompressedLayer):
    """Ce que partagent les couches dont le poids entier se garde en codes serrés : linéaire, convolutive, plongements.

    Attributes
    ----------
    packed : PackedTensor
    """

    packed: PackedTensor

    @property
    def quantizer(self) -> UniformQuantizer:
        """La grille des codes."""
        return self.packed.quantizer

    @property
    def dtype(self) -> torch.dtype:
        return self.packed.dtype

    def reconstruct_weight(self) -> Tensor:
        return self.packed.dequantize()

    def count_parameters(self) -> int:
        return self.dense_parameters()

    def compression_ratio(self) -> float:
        """Octets des poids en float32 divisés par ceux des codes et des échelles."""
        return 4 * self.dense_parameters() / self.packed.nbytes()


def row_quantizer(
    n_bits: int, granularity: Granularity | None, clipping: str, quantizer: UniformQuantizer | None = None
) -> UniformQuantizer:
    """`quantizer` s'il est donné ; sinon une grille symétrique, par ligne si rien d'autre n'est dit."""
    if quantizer is not None:
        return check_quantizer(quantizer)
    return UniformQuantizer(
        n_bits, granularity=PerChannel(0) if granularity is None else granularity, clipping=clipping
    )
