"""Chronométrer deux candidats à tour de rôle, pour que la charge de la machine pèse également sur les deux."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any


def seconds(function: Callable[[], Any], calls: int = 1) -> float:
    """Durée moyenne d'un appel, sur `calls` appels de suite."""
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


def interleaved(functions: Sequence[Callable[[], Any]], repeats: int, calls: Sequence[int]) -> list[float]:
    """Médiane des durées de chaque fonction ; à chaque tour, chacune passe une fois, et l'ordre alterne."""
    for function in functions:
        function()  # un tour de chauffe
    times: list[list[float]] = [[] for _ in functions]
    for turn in range(repeats):
        order = range(len(functions)) if turn % 2 == 0 else reversed(range(len(functions)))
        for i in order:
            times[i].append(seconds(functions[i], calls[i]))
    return [statistics.median(t) for t in times]
