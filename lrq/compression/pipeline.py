"""Enchaîner des méthodes : la seconde comprime ce que la première a rendu."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn

from .batches import output_error
from .method import CompressionMethod, compression_info
from .report import CompressionReport

Step = Callable[[CompressionMethod, nn.Module, Any], nn.Module]


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

    Raises
    ------
    TypeError, ValueError
        Une liste vide, ou autre chose que des méthodes.
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
        """Une copie du réseau, passée par toutes les méthodes.

        Parameters
        ----------
        model, train_loader, val_loader : comme pour :meth:`CompressionMethod.compress`
        """
        return self.chain(model, train_loader, val_loader, lambda method, *given: method.compress(*given))

    def chain(self, model: nn.Module, train_loader: Any, val_loader: Any, step: Step) -> nn.Module:
        """Le réseau passé par toutes les méthodes, et un rapport commun.

        Parameters
        ----------
        model, train_loader, val_loader : comme pour :meth:`CompressionMethod.compress`
        step : fonction (méthode, réseau, lots) → réseau
            Comment une méthode s'applique : sur une copie, en place, en parallèle.
        """
        if isinstance(train_loader, Iterator):
            train_loader = list(train_loader)  # chaque méthode le parcourt
        report, compressed = CompressionReport(), model
        for i, method in enumerate(self.methods, 1):
            try:
                compressed = step(method, compressed, train_loader)
            except Exception as refusal:
                refusal.add_note(f"Méthode en cause : {method}, {i} sur {len(self.methods)}.")
                raise
            report.extend(method.report)
            report.unknown = method.report.unknown
        if val_loader is not None:
            report.output_error = output_error(model, compressed, val_loader)
        self.report = report
        return compressed

    def get_compression_info(self, original_model: nn.Module, compressed_model: nn.Module) -> dict[str, Any]:
        """Ce que pèsent `original_model` et `compressed_model` : voir :meth:`CompressionMethod.get_compression_info`.

        ``method`` et ``config`` sont ici deux listes, dans l'ordre des méthodes.
        """
        return compression_info(original_model, compressed_model) | {
            "method": [type(method).__name__ for method in self.methods],
            "config": [dict(method.config) for method in self.methods],
            "layers": list(self.report),
        }

    def __repr__(self) -> str:
        return f"CompressionPipeline({self.methods})"
