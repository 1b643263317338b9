"""Une couche par idée : sections 11.0 à 11.4, et 9.6."""

from .activation_quantizer import ActivationQuantizer
from .base import CompressedLayer, CompressedLinear, LowRankLinear
from .conv import SVDConv2d
from .factorized import FactorizedLinear, MultiStageFactorizedLinear, compare_factorized_vs_standard
from .fake_quantize import FakeQuantizeModule, LearnedStepQuantize
from .lora import LoRAAdapter, LoRALayer
from .packed import PackedTensor
from .qat import QATLowRankLinear
from .qat_tt import QATTTLinear
from .quantized import QuantizedFactors, QuantizedLowRankLayer, QuantizedLowRankLinear
from .quantized_conv import QuantizedConv2d
from .quantized_embedding import QuantizedEmbedding
from .quantized_linear import QuantizedLinear, QuantizedResidualLinear
from .quantized_tt import QuantizedTTLinear
from .replace import READ_WITHOUT_CALLING, inside, linear_names, meta_copy, replace_linears, replace_modules
from .svd_compressed import SVDCompressedLinear
from .truncated_svd import CompactSVDLinear, TruncatedSVDLinear
from .tt import TTLinear

__all__ = [
    "READ_WITHOUT_CALLING",
    "ActivationQuantizer",
    "CompactSVDLinear",
    "CompressedLayer",
    "CompressedLinear",
    "FactorizedLinear",
    "FakeQuantizeModule",
    "LearnedStepQuantize",
    "LoRAAdapter",
    "LoRALayer",
    "LowRankLinear",
    "MultiStageFactorizedLinear",
    "PackedTensor",
    "QATLowRankLinear",
    "QATTTLinear",
    "QuantizedConv2d",
    "QuantizedEmbedding",
    "QuantizedFactors",
    "QuantizedLinear",
    "QuantizedLowRankLayer",
    "QuantizedLowRankLinear",
    "QuantizedResidualLinear",
    "QuantizedTTLinear",
    "SVDCompressedLinear",
    "SVDConv2d",
    "TTLinear",
    "TruncatedSVDLinear",
    "compare_factorized_vs_standard",
    "inside",
    "linear_names",
    "meta_copy",
    "replace_linears",
    "replace_modules",
]
