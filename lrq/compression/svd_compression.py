"""Section 12.3 : la SVD tronquée de chaque couche linéaire."""

from typing import Any, ClassVar

from torch import Tensor, nn

from ..activation import Calibration, calibrate
from ..layers import TruncatedSVDLinear
from ..spectrum import rank_for_error
from ..svd import singular_values
from ..validation import check_fraction, check_integer, check_linear
from .batches import check_batches, run_batches
from .method import CompressionMethod, Task


class SVDCompression(CompressionMethod):
    """Chaque nn.Linear devient une :class:`~lrq.TruncatedSVDLinear`.

    Parameters
    ----------
    config : dict, optionnel
        ``rank`` (64), ramené à min(out, in) là où il le faut ; ``optimize_rank`` (False), qui choisit plutôt, dans
        chaque couche, le plus petit rang dont l'erreur ne dépasse pas ``error_threshold`` (0,05) ;
        ``activation_aware`` (False), qui compte l'erreur sur les sorties des lots de calibration et non sur les poids.
        Et les clés communes, ``layers``, ``exclude``, ``progress``.
    """

    defaults: ClassVar[dict[str, Any]] = {
        "rank": 64,
        "optimize_rank": False,
        "error_threshold": 0.05,
        "activation_aware": False,
    }

    def validate_config(self) -> None:
        super().validate_config()
        check_integer(self.config["rank"], "rank")
        check_fraction(self.config["error_threshold"], "error_threshold")

    @property
    def observes(self) -> bool:
        return bool(self.config["activation_aware"])

    @property
    def adapts_rank(self) -> bool:
        return bool(self.config["optimize_rank"])

    def observe(self, model: nn.Module, tasks: list[Task], train_loader: Any) -> None:
        observe_moments(self, model, tasks, train_loader)

    def compress_layer(self, layer: nn.Module, seen: Tensor | Calibration | None = None) -> TruncatedSVDLinear:
        """La SVD tronquée de la couche.

        Parameters
        ----------
        layer : nn.Linear
        seen : Calibration, ou Tensor (..., in) d'entrées, optionnel

        Returns
        -------
        TruncatedSVDLinear
        """
        W = check_linear(layer, "layer").weight.detach()
        if not self.config["optimize_rank"]:
            return TruncatedSVDLinear.from_linear(layer, min(self.config["rank"], *W.shape), seen)  # type: ignore[arg-type]
        if isinstance(seen, Tensor):
            seen = Calibration.from_inputs(seen)
        x = W if seen is None else W.double() @ seen.root.to(W.device)
        rank = rank_for_error(singular_values(x), self.config["error_threshold"])  # l'erreur des poids, ou des sorties
        return TruncatedSVDLinear.from_linear(layer, rank, seen)  # type: ignore[arg-type]


def observe_moments(method: CompressionMethod, model: nn.Module, tasks: list[Task], train_loader: Any) -> None:
    """Range dans chaque tâche le second moment des entrées de ses couches, si la méthode en a besoin."""
    heard = [task for task in tasks if not task.note and isinstance(task.layer, nn.Linear)]
    if not method.observes or not heard:
        return
    check_batches(train_loader, why=" : le second moment des entrées guide la compression")
    names = {task.names[0]: method.names_of_layers(model, task) for task in heard}
    every = [name for group in names.values() for name in group]
    found = calibrate(model, every, lambda: run_batches(model, train_loader))
    for task in heard:
        task.seen = [found[name] for name in names[task.names[0]]]
