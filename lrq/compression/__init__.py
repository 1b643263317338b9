"""Comprimer un réseau entier : sections 11.4, 9.6 et 12.3."""

from .budget import BudgetCompression
from .cache import CompressionCache
from .combined import CombinedCompressionPipeline, analyze_combined_compression
from .gptq_compression import GPTQCompression
from .impact import analyze_tn_quantization_impact, stored_bytes
from .lora_compression import LoRACompression
from .memory import MemoryEfficientCompression
from .method import CompressionMethod
from .parallel import ParallelCompression
from .pipeline import CompressionPipeline
from .ptq import PTQCompression
from .report import CompressionReport, LayerReport
from .svd_compression import SVDCompression
from .tt_compression import TensorTrainCompression

__all__ = [
    "BudgetCompression",
    "CombinedCompressionPipeline",
    "CompressionCache",
    "CompressionMethod",
    "CompressionPipeline",
    "CompressionReport",
    "GPTQCompression",
    "LayerReport",
    "LoRACompression",
    "MemoryEfficientCompression",
    "PTQCompression",
    "ParallelCompression",
    "SVDCompression",
    "TensorTrainCompression",
    "analyze_combined_compression",
    "analyze_tn_quantization_impact",
    "stored_bytes",
]
