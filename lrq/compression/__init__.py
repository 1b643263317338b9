"""Comprimer un réseau entier : section 11.4."""

from .combined import CombinedCompressionPipeline, LayerReport, analyze_combined_compression

__all__ = ["CombinedCompressionPipeline", "LayerReport", "analyze_combined_compression"]
