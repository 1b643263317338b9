"""Enchaîner des méthodes : la seconde comprime ce que la première a rendu."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from .batches import output_error
from .method import CompressionMethod, compression_info
from .report import CompressionReport


class CompressionPipeline:
    """Plusieurs méthodes l'une après l'autre : chacune choisit ses couches dans ce que les précédentes ont rendu.

    Une :class:`~lrq.PTQCompression` qui suit une :class:`~lrq.SVDCompression` ou une
    :class:`~lrq.TensorTrainCompression` en quantifie aussi les facteurs ; l'erreur de son rapport est alors relative à
    ce qu'elle a reçu.

    Parameters
    ----------
    methods : liste de CompressionMethod

    Attributes
    ----------
    report : CompressionReport
        Les lignes de toutes les méthodes, dans l'ordre.
    """

    def __init__(self, methods: Iterable[CompressionMethod]):
        self.methods = list(methods)
        if not self.methods:
            raise ValueError("methods : reçu une liste vide, attendu au moins une méthode.")
        for method in self.methods:
            if not isinstance(method, CompressionMethod):
                raise TypeError(f"methods : reçu {type(method).__name__}, attendu des CompressionMethod.")
        self.report = CompressionReport()

    def compress(self, model: nn.Module, train_loader: Any = None, val_loader: Any = None) -> nn.Module:
        """Une copie du réseau, passée par toutes les méthodes ; mêmes arguments que celui d'une méthode."""
        if isinstance(train_loader, Iterator):
            train_loader = list(train_loader)  # chaque méthode le parcourt
        report, compressed = CompressionReport(), model
        for method in self.methods:
            compressed = method.compress(compressed, train_loader)
            report.extend(method.report)
        if val_loader is not None:
            report.output_error = output_error(model, compressed, val_loader)
        self.report = report
        return compressed

    def get_compression_info(self, original_model: nn.Module, compressed_model: nn.Module) -> dict[str, Any]:
        """Comme :meth:`CompressionMethod.get_compression_info` ; ``config`` est la liste des configurations."""
        return compression_info(original_model, compressed_model) | {
            "method": [type(method).__name__ for method in self.methods],
            "config": [dict(method.config) for method in self.methods],
            "layers": list(self.report),
        }

    def __repr__(self) -> str:
        return f"CompressionPipeline({self.methods})"
