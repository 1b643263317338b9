"""Section 12.3 : chaque couche linéaire en train de tenseurs."""

import copy
import math
import warnings
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import evaluating
from ..layers import TTLinear
from ..training import check_loader
from ..validation import check_integer, check_linear, check_positive
from .batches import Batch, first_tensor, run_batch
from .method import CompressionMethod, Result, Task, rebuilt


class TensorTrainCompression(CompressionMethod):
    """Chaque nn.Linear devient une :class:`~lrq.TTLinear`.

    Parameters
    ----------
    config : dict, optionnel
        ``rank`` (32), ramené lien par lien à ce que permettent les dimensions ; ``factorize_dimensions`` (True), qui
        coupe in et out en facteurs équilibrés (:func:`balanced_dims`), sinon en deux facteurs voisins de leur
        racine ; ``train_after_compression`` (False), qui fait ensuite imiter au réseau comprimé les sorties de
        l'original, pendant ``epochs`` (1) passages et au taux ``lr`` (1e-3). Et les clés communes.
    """

    defaults: ClassVar[dict[str, Any]] = {
        "rank": 32,
        "factorize_dimensions": True,
        "train_after_compression": False,
        "epochs": 1,
        "lr": 1e-3,
    }

    def validate_config(self) -> None:
        super().validate_config()
        check_integer(self.config["rank"], "rank")
        check_integer(self.config["epochs"], "epochs", minimum=0)
        check_positive(self.config["lr"], "lr")

    @property
    def learns(self) -> bool:
        return bool(self.config["train_after_compression"])

    def dimensions(self, in_features: int, out_features: int) -> tuple[list[int], list[int]]:
        """Comment couper une couche de `in_features` à `out_features` : autant de facteurs d'un côté que de l'autre."""
        count = default_count(in_features, out_features) if self.config["factorize_dimensions"] else 2
        return balanced_dims(in_features, count), balanced_dims(out_features, count)

    def compress_layer(self, layer: nn.Module, seen: Any = None) -> TTLinear:
        """La TT-SVD de la couche.

        Parameters
        ----------
        layer : nn.Linear
        seen : sans effet

        Returns
        -------
        TTLinear
        """
        W = check_linear(layer, "layer").weight
        input_dims, output_dims = self.dimensions(W.shape[1], W.shape[0])
        return TTLinear.from_linear(layer, input_dims, output_dims, self.config["rank"])  # type: ignore[arg-type]

    def finish(
        self, model: nn.Module, tasks: list[Task], results: list[Result], train_loader: Any, val_loader: Any
    ) -> nn.Module:
        if not self.config["train_after_compression"]:
            return super().finish(model, tasks, results, train_loader, val_loader)
        if train_loader is None:
            raise ValueError("train_loader : reçu None, attendu des lots à imiter (train_after_compression est vrai).")
        check_loader(train_loader, "train_loader")
        layers = [
            layer for task, result in zip(tasks, results, strict=True) if not task.note for layer in result.layers
        ]
        imitate(model, rebuilt(model, tasks, results), nn.ModuleList(layers), train_loader, self.config)
        for task, result in zip(tasks, results, strict=True):  # les poids ont bougé
            if not task.note:
                result.line = self.describe(task, result.layers, result.line.seconds)
        return super().finish(model, tasks, results, train_loader, val_loader)


def default_count(in_features: int, out_features: int) -> int:
    """En combien de facteurs couper : de quoi les avoir voisins de huit, deux au moins."""
    return max(2, round(math.log(max(in_features, out_features), 8)))


def balanced_dims(n: int, count: int) -> list[int]:
    """`count` entiers de produit n, aussi voisins que le permettent ses facteurs premiers, en croissant.

    Un nombre premier reste entier, et des uns complètent.

    Parameters
    ----------
    n, count : int, au moins 1

    Returns
    -------
    list[int]
    """
    return list(least_sum(check_integer(n, "n"), check_integer(count, "count")))


@cache
def least_sum(n: int, count: int) -> tuple[int, ...]:
    """`count` entiers de produit n, en croissant, et de la plus petite somme : les plus voisins."""
    if count == 1:
        return (n,)
    smallest = range(1, math.floor(n ** (1 / count) + 1e-9) + 1)
    return min((tuple(sorted((d, *least_sum(n // d, count - 1)))) for d in smallest if n % d == 0), key=sum)


def imitate(teacher: nn.Module, student: nn.Module, trained: nn.Module, loader: Any, config: dict[str, Any]) -> None:
    """Apprend à `student` les sorties de `teacher` : Adam, écart quadratique ; seuls bougent les poids de `trained`.

    Tout se passe en mode évaluation. Si l'écart n'a pas diminué, ou n'est plus fini, les poids du départ reviennent.
    """
    parameters = list(trained.parameters())
    if not parameters:  # toutes les couches ont été laissées
        return
    optimizer = torch.optim.Adam(parameters, config["lr"])
    before = copy.deepcopy(trained.state_dict())

    def gap(index: int, batch: Batch) -> Tensor:
        with torch.no_grad():
            y = first_tensor(run_batch(teacher, batch, index=index))
        return F.mse_loss(first_tensor(run_batch(student, batch, index=index)), y)

    @torch.no_grad()
    def mean_gap() -> float:
        gaps = [float(gap(index, batch)) for index, batch in enumerate(loader)]
        if not gaps:
            raise ValueError("train_loader : aucun lot, attendu au moins un.")
        return sum(gaps) / len(gaps)

    with evaluating(teacher), evaluating(student), torch.enable_grad():
        start = mean_gap()
        for _ in range(config["epochs"]):
            for index, batch in enumerate(loader):
                found = torch.autograd.grad(gap(index, batch), parameters, allow_unused=True)
                for parameter, gradient in zip(parameters, found, strict=True):
                    parameter.grad = gradient
                optimizer.step()
        optimizer.zero_grad()  # aucun gradient ne reste
        end = mean_gap()
        if not end < start:
            trained.load_state_dict(before)
            if config["epochs"]:
                warnings.warn(
                    f"train_after_compression : l'écart aux sorties passe de {start:.3g} à {end:.3g} ; les poids "
                    "d'avant sont gardés. Essayez un lr plus petit.",
                    stacklevel=2,
                )
