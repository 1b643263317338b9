"""lrq : rang faible et quantification, chaque formule du cours à côté de la ligne qui la calcule.

Les noms du cours s'importent directement de ``lrq``. Ce qui demande plus que PyTorch (réseaux réels, figures,
exercices) vit dans ``lrq.models``, ``lrq.plots``, ``lrq.display``, ``lrq.widgets`` et ``lrq.exercises``, importés à la
demande.
"""

from .activation import Calibration, activation_aware_svd, calibrate
from .adapters import (
    add_adapter,
    convert_model_to_lora,
    delete_adapter,
    disabled_adapters,
    merge_adapters,
    set_adapter,
    unmerge_adapters,
)
from .allocation import allocate_ranks, gavish_donoho_rank, marchenko_pastur_rank
from .compression import CombinedCompressionPipeline, LayerReport, analyze_combined_compression
from .errors import (
    ApproximationErrorAnalysis,
    analyze_cumulative_error,
    analyze_forward_error,
    combined_error_analysis,
    compression_error_tradeoff,
    propagation_bound,
    water_filling,
)
from .gauge import balance_factors, rotate_factors
from .layers import (
    CompactSVDLinear,
    FactorizedLinear,
    FakeQuantizeModule,
    LearnedStepQuantize,
    LoRALayer,
    MultiStageFactorizedLinear,
    QATLowRankLinear,
    QuantizedLinear,
    QuantizedLowRankLayer,
    QuantizedLowRankLinear,
    QuantizedResidualLinear,
    SVDCompressedLinear,
    SVDConv2d,
    TruncatedSVDLinear,
    compare_factorized_vs_standard,
    linear_names,
    replace_linears,
)
from .lora_training import AdaptiveLoRA, LoRAPlus, LoRATrainer
from .packing import pack_bits, unpack_bits
from .peft_files import load_adapter, save_adapter
from .quantizers import (
    PerChannel,
    PerGroup,
    PerTensor,
    QuantizedTensor,
    UniformQuantizer,
    dequantize,
    quantize_symmetric,
)
from .randomized import (
    ApproximateSVD,
    adaptive_svd,
    approximate_svd_large,
    efficient_truncated_svd,
    halko_bound,
    low_rank_error,
)
from .spectrum import (
    LowRankAnalysis,
    analyze_svd_approximation_error,
    break_even_rank,
    cumulative_energy,
    energy_analysis,
    entropy_rank,
    find_optimal_rank,
    marchenko_pastur_edge,
    rank_for_energy,
    rank_for_error,
    stable_rank,
    truncation_errors,
)
from .storage import load_weights, save_weights
from .svd import balanced_factors, singular_values, truncated_svd
from .tensor_train import tt_contract, tt_svd, unfoldings
from .training import train_qat_low_rank

__version__ = "0.1.0"

__all__ = [
    "AdaptiveLoRA",
    "ApproximateSVD",
    "ApproximationErrorAnalysis",
    "Calibration",
    "CombinedCompressionPipeline",
    "CompactSVDLinear",
    "FactorizedLinear",
    "FakeQuantizeModule",
    "LayerReport",
    "LearnedStepQuantize",
    "LoRALayer",
    "LoRAPlus",
    "LoRATrainer",
    "LowRankAnalysis",
    "MultiStageFactorizedLinear",
    "PerChannel",
    "PerGroup",
    "PerTensor",
    "QATLowRankLinear",
    "QuantizedLinear",
    "QuantizedLowRankLayer",
    "QuantizedLowRankLinear",
    "QuantizedResidualLinear",
    "QuantizedTensor",
    "SVDCompressedLinear",
    "SVDConv2d",
    "TruncatedSVDLinear",
    "UniformQuantizer",
    "activation_aware_svd",
    "adaptive_svd",
    "add_adapter",
    "allocate_ranks",
    "analyze_combined_compression",
    "analyze_cumulative_error",
    "analyze_forward_error",
    "analyze_svd_approximation_error",
    "approximate_svd_large",
    "balance_factors",
    "balanced_factors",
    "break_even_rank",
    "calibrate",
    "combined_error_analysis",
    "compare_factorized_vs_standard",
    "compression_error_tradeoff",
    "convert_model_to_lora",
    "cumulative_energy",
    "delete_adapter",
    "dequantize",
    "disabled_adapters",
    "efficient_truncated_svd",
    "energy_analysis",
    "entropy_rank",
    "find_optimal_rank",
    "gavish_donoho_rank",
    "halko_bound",
    "linear_names",
    "load_adapter",
    "load_weights",
    "low_rank_error",
    "marchenko_pastur_edge",
    "marchenko_pastur_rank",
    "merge_adapters",
    "pack_bits",
    "propagation_bound",
    "quantize_symmetric",
    "rank_for_energy",
    "rank_for_error",
    "replace_linears",
    "rotate_factors",
    "save_adapter",
    "save_weights",
    "set_adapter",
    "singular_values",
    "stable_rank",
    "train_qat_low_rank",
    "truncated_svd",
    "truncation_errors",
    "tt_contract",
    "tt_svd",
    "unfoldings",
    "unmerge_adapters",
    "unpack_bits",
    "water_filling",
]
