"""Comprimer un réseau entier : section 11.4."""

from .combined import CombinedCompressionPipeline, analyze_combined_compression

__all__ = ["CombinedCompressionPipeline", "analyze_combined_compression"]
