"""Comprimer un réseau entier : sections 11.4 et 9.6."""

from .combined import CombinedCompressionPipeline, LayerReport, analyze_combined_compression
from .impact import analyze_tn_quantization_impact, stored_bytes

__all__ = [
    "CombinedCompressionPipeline",
    "LayerReport",
    "analyze_combined_compression",
    "analyze_tn_quantization_impact",
    "stored_bytes",
]
