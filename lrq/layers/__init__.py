"""Une couche par idée : sections 11.0 (introduction), 11.1 (factorisation) et 11.2 (SVD tronquée)."""

from .base import CompressedLayer, CompressedLinear, LowRankLinear
from .conv import SVDConv2d
from .factorized import FactorizedLinear, MultiStageFactorizedLinear, compare_factorized_vs_standard
from .fake_quantize import FakeQuantizeModule, LearnedStepQuantize
from .lora import LoRALayer
from .quantized import QuantizedLowRankLayer
from .replace import linear_names, replace_linears
from .svd_compressed import SVDCompressedLinear
from .truncated_svd import CompactSVDLinear, TruncatedSVDLinear

__all__ = [
    "CompactSVDLinear",
    "CompressedLayer",
    "CompressedLinear",
    "FactorizedLinear",
    "FakeQuantizeModule",
    "LearnedStepQuantize",
    "LoRALayer",
    "LowRankLinear",
    "MultiStageFactorizedLinear",
    "QuantizedLowRankLayer",
    "SVDCompressedLinear",
    "SVDConv2d",
    "TruncatedSVDLinear",
    "compare_factorized_vs_standard",
    "linear_names",
    "replace_linears",
]
