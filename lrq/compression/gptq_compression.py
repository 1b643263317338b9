"""Au-delà du cours : quantifier les poids en tenant compte de ce que les couches reçoivent."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..activation import Calibration
from ..gptq import gptq
from ..layers import QuantizedEmbedding, QuantizedLinear, QuantizedLowRankLinear, QuantizedResidualLinear
from ..layers.base import copy_bias
from ..quantizers import CLIPPINGS, Granularity, PerChannel, PerGroup, QuantizedTensor, UniformQuantizer
from ..validation import check_bits, check_choice, check_integer, check_linear, check_positive
from .method import CompressionMethod, Task, dense_weight
from .svd_compression import observe_moments

Seen = Tensor | Calibration | None


class GPTQCompression(CompressionMethod):
    """Les poids des nn.Linear sur quelques bits, arrondis par :func:`~lrq.gptq`, plus un résidu de rang faible.

    Une nn.Embedding, qui n'a pas d'entrée à écouter, s'arrondit au plus près, et avec elle la nn.Linear qui lui est
    liée.

    Parameters
    ----------
    config : dict, optionnel
        ``bits`` (4) ; ``group_size`` (64), combien de voisins d'une ligne partagent une échelle, ou None pour toute la
        ligne (une largeur qui n'en est pas un multiple aussi, et le rapport le dit) ; ``symmetric`` (False) ;
        ``clipping`` ("mse") ; ``rounding`` ("gptq", ou "nearest", qui se passe de calibration) ; ``damping`` (0,01) ;
        ``residual_rank`` (0) et ``factor_bits`` (8), ce qu'un résidu de rang faible rattrape ensuite ; ``embeddings``
        (False), vrai pour quantifier aussi les nn.Embedding. Et les clés communes, ``layers``, ``exclude``,
        ``progress``. Les échelles de la grille tiennent sur deux octets.
    """

    defaults: ClassVar[dict[str, Any]] = {
        "bits": 4,
        "group_size": 64,
        "symmetric": False,
        "clipping": "mse",
        "rounding": "gptq",
        "damping": 0.01,
        "residual_rank": 0,
        "factor_bits": 8,
        "embeddings": False,
    }

    @property
    def kinds(self) -> tuple[type[nn.Module], ...]:  # type: ignore[override]
        """Les sortes de couches traitées : celles que veut la configuration."""
        return (nn.Linear, nn.Embedding) if self.config["embeddings"] else (nn.Linear,)

    def validate_config(self) -> None:
        super().validate_config()
        check_bits(self.config["bits"], "bits")
        check_bits(self.config["factor_bits"], "factor_bits")
        check_choice(self.config["clipping"], "clipping", CLIPPINGS)
        check_choice(self.config["rounding"], "rounding", ("gptq", "nearest"))
        check_positive(self.config["damping"], "damping")
        check_integer(self.config["residual_rank"], "residual_rank", minimum=0)
        if self.config["group_size"] is not None:
            check_integer(self.config["group_size"], "group_size")

    @property
    def observes(self) -> bool:
        return self.config["rounding"] == "gptq"

    def observe(self, model: nn.Module, tasks: list[Task], train_loader: Any) -> None:
        observe_moments(self, model, tasks, train_loader)

    def quantizer(self, width: int, bits: int | None = None) -> UniformQuantizer:
        """La grille d'une couche de largeur `width`, sur `bits` bits, ou ceux de la configuration."""
        size, symmetric = self.config["group_size"], self.config["symmetric"]
        granularity: Granularity = PerGroup(size) if size is not None and width % size == 0 else PerChannel(0)
        return UniformQuantizer(
            self.config["bits"] if bits is None else bits,
            symmetric=symmetric,
            signed=symmetric,
            granularity=granularity,
            clipping=self.config["clipping"],
            scale_dtype=torch.bfloat16,
        )

    def rounded(self, layer: nn.Module, seen: Seen, bits: int | None = None) -> QuantizedTensor:
        """Les poids de `layer`, quantifiés sur `bits` bits : au plus près si `seen` ne dit pas ce qu'elle a vu."""
        W = dense_weight(layer)
        quantizer = self.quantizer(W.shape[1], bits)
        if seen is None or self.config["rounding"] == "nearest":
            return quantizer.compress(W)
        return gptq(W, seen, quantizer, self.config["damping"])

    def compress_layer(self, layer: nn.Module, seen: Seen = None) -> nn.Module:
        """La couche quantifiée, au plus près si l'on ne donne pas ce qu'elle a vu.

        Parameters
        ----------
        layer : nn.Linear ou nn.Embedding
        seen : Calibration, ou Tensor (..., in) d'entrées, optionnel

        Returns
        -------
        QuantizedLinear, QuantizedResidualLinear ou QuantizedEmbedding
        """
        return self.assemble(layer, seen, self.config["bits"], self.config["residual_rank"])

    def assemble(self, layer: nn.Module, seen: Seen, bits: int, rank: int) -> nn.Module:
        """`layer` sur `bits` bits, arrondie selon `seen`, plus un résidu de rang `rank`."""
        if isinstance(layer, nn.Embedding):
            return QuantizedEmbedding.from_embedding(layer, quantizer=self.quantizer(layer.embedding_dim, bits))
        W = check_linear(layer, "layer").weight.detach()
        stored = self.rounded(layer, seen, bits)
        base, rank = QuantizedLinear.hold(stored, copy_bias(layer)), min(rank, *W.shape)
        if rank == 0:
            return base
        lost, factor_bits = W - stored.dequantize(), self.config["factor_bits"]
        residual = QuantizedLowRankLinear.from_weight_matrix(
            lost, rank, factor_bits, seen, PerChannel(0), rotate=factor_bits < 8
        )
        return QuantizedResidualLinear(base, residual)

    def remark(self, layer: nn.Module, smaller: nn.Module) -> str:
        size, width = self.config["group_size"], dense_weight(layer).shape[1]
        ragged = size is not None and width % size != 0
        return f"une échelle par ligne : {width} n'est pas un multiple de {size}" if ragged else ""
