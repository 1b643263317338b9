"""Mesures côte à côte, dans le même processus ou la même minute : ``python -m benchmarks``."""
