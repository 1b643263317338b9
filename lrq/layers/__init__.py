"""Une couche par idée : sections 11.0 (introduction) et 11.1 (factorisation)."""

from .base import CompressedLinear
from .factorized import FactorizedLinear, MultiStageFactorizedLinear, compare_factorized_vs_standard
from .lora import LoRALayer
from .quantized import QuantizedLowRankLayer
from .replace import linear_names, replace_linears
from .svd_compressed import SVDCompressedLinear

__all__ = [
    "CompressedLinear",
    "FactorizedLinear",
    "LoRALayer",
    "MultiStageFactorizedLinear",
    "QuantizedLowRankLayer",
    "SVDCompressedLinear",
    "compare_factorized_vs_standard",
    "linear_names",
    "replace_linears",
]
