"""lrq : rang faible et quantification, chaque formule du cours à côté de la ligne qui la calcule.

Les noms du cours s'importent directement de ``lrq``. Ce qui demande plus que PyTorch (réseaux réels, figures,
exercices) vit dans ``lrq.models``, ``lrq.plots``, ``lrq.display``, ``lrq.widgets`` et ``lrq.exercises``, importés à la
demande.
"""

from .layers import (
    FactorizedLinear,
    LoRALayer,
    MultiStageFactorizedLinear,
    QuantizedLowRankLayer,
    SVDCompressedLinear,
    compare_factorized_vs_standard,
    linear_names,
    replace_linears,
)
from .quantizers import dequantize, pack_bits, quantize_symmetric, unpack_bits
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
from .svd import balanced_factors, singular_values, truncated_svd

__version__ = "0.1.0"

__all__ = [
    "ApproximateSVD",
    "FactorizedLinear",
    "LoRALayer",
    "LowRankAnalysis",
    "MultiStageFactorizedLinear",
    "QuantizedLowRankLayer",
    "SVDCompressedLinear",
    "adaptive_svd",
    "approximate_svd_large",
    "balanced_factors",
    "break_even_rank",
    "compare_factorized_vs_standard",
    "cumulative_energy",
    "dequantize",
    "efficient_truncated_svd",
    "energy_analysis",
    "entropy_rank",
    "find_optimal_rank",
    "halko_bound",
    "linear_names",
    "low_rank_error",
    "marchenko_pastur_edge",
    "pack_bits",
    "quantize_symmetric",
    "rank_for_energy",
    "rank_for_error",
    "replace_linears",
    "singular_values",
    "stable_rank",
    "truncated_svd",
    "truncation_errors",
    "unpack_bits",
]
