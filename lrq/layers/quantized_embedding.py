"""Section 12.3 : la table de plongements gardée en codes serrés, dont on ne déballe que les lignes demandées."""

from typing import Self

import torch
from torch import Tensor, nn

from ..quantizers import Granularity, QuantizedTensor, UniformQuantizer
from ..validation import check_integer, check_matrix
from .packed import PackedTensor, PackedWeight, row_quantizer


class QuantizedEmbedding(PackedWeight):
    """Table de plongements dont les lignes sont gardées sur `n_bits` bits.

    Chaque appel ne déballe que les lignes demandées, si une ligne tient un nombre entier d'octets (`embedding_dim` ×
    `n_bits` multiple de 8) ; sinon, toute la table.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
    padding_idx : int, optionnel
        Retenu, comme par ``nn.Embedding`` ; la table n'apprenant pas, il ne change rien.
    n_bits : int, entre 1 et 8
    granularity : PerTensor, PerChannel ou PerGroup, optionnel
        Qui partage une échelle ; par défaut, une ligne.
    clipping : "min_max", "percentile" ou "mse"
        Voir :class:`~lrq.UniformQuantizer`.
    quantizer : UniformQuantizer, optionnel
        À la place des trois précédents.
    device, dtype : comme pour ``nn.Embedding``

    Attributes
    ----------
    packed : PackedTensor
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        n_bits: int = 8,
        granularity: Granularity | None = None,
        clipping: str = "min_max",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        quantizer: UniformQuantizer | None = None,
    ):
        super().__init__()
        self.num_embeddings = check_integer(num_embeddings, "num_embeddings")
        self.embedding_dim = check_integer(embedding_dim, "embedding_dim")
        if padding_idx is not None:
            padding_idx = check_integer(padding_idx, "padding_idx", -num_embeddings, num_embeddings - 1)
            padding_idx %= num_embeddings
        self.padding_idx = padding_idx
        quantizer = row_quantizer(n_bits, granularity, clipping, quantizer)
        self.packed = PackedTensor(quantizer, (num_embeddings, embedding_dim), device, dtype)

    def forward(self, ids: Tensor) -> Tensor:
        """(...) -> (..., embedding_dim) : les lignes demandées, arrondies.

        Raises
        ------
        TypeError
            `ids` n'est pas un tenseur d'entiers.
        IndexError
            Un indice est hors de la table.
        """
        return self.packed.rows(check_ids(ids, self.num_embeddings))

    def dense_parameters(self) -> int:
        return self.num_embeddings * self.embedding_dim

    @classmethod
    def from_embedding(
        cls,
        embedding: nn.Embedding,
        n_bits: int = 8,
        granularity: Granularity | None = None,
        clipping: str = "min_max",
        quantizer: UniformQuantizer | None = None,
    ) -> Self:
        """Quantifie une table de plongements.

        Parameters
        ----------
        embedding : nn.Embedding
            Ni changée, ni partagée.
        n_bits : int, entre 1 et 8
        granularity, clipping : optionnels
        quantizer : UniformQuantizer, optionnel
            À la place des trois précédents.

        Returns
        -------
        QuantizedEmbedding

        Raises
        ------
        TypeError
            `embedding` n'est pas une nn.Embedding.
        ValueError
            Poids NaN ou infinis ; `max_norm`, qui change la table à chaque appel.
        """
        if not isinstance(embedding, nn.Embedding):
            raise TypeError(f"embedding : reçu {type(embedding).__name__}, attendu nn.Embedding.")
        if embedding.max_norm is not None:
            raise ValueError(
                f"embedding : reçu max_norm={embedding.max_norm}, qui change la table à chaque appel, attendu None."
            )
        weight = check_matrix(embedding.weight, "embedding.weight")
        quantizer = row_quantizer(n_bits, granularity, clipping, quantizer)
        return cls.hold(quantizer.compress(weight), embedding.padding_idx)

    @classmethod
    def hold(cls, stored: QuantizedTensor, padding_idx: int | None = None) -> Self:
        """La couche qui garde `stored`, une table (num_embeddings, embedding_dim) déjà quantifiée."""
        count, dim = stored.shape
        layer = cls(count, dim, padding_idx, device="meta", quantizer=stored.quantizer)
        layer.packed = PackedTensor.hold(stored)
        return layer

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"


def check_ids(ids: Tensor, count: int) -> Tensor:
    """Rend `ids` si ce sont des indices de 0 à `count` − 1.

    Raises
    ------
    TypeError
        `ids` n'est pas un tenseur d'entiers, int32 ou int64.
    IndexError
        Un indice est hors de la table.
    """
    if not isinstance(ids, Tensor):
        raise TypeError(f"ids : reçu {type(ids).__name__}, attendu un tenseur d'entiers.")
    if ids.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"ids : reçu des éléments {ids.dtype}, attendu torch.int32 ou torch.int64.")
    if ids.numel():
        low, high = (int(extreme) for extreme in ids.aminmax())
        if low < 0 or high >= count:
            raise IndexError(f"ids : reçu l'indice {low if low < 0 else high}, attendu entre 0 et {count - 1}.")
    return ids
