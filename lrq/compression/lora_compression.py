"""Section 12.3 : LoRA comme méthode ; le réseau ne maigrit pas, mais presque rien ne reste à entraîner."""

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn

from ..layers import LoRALayer
from ..layers.lora import max_rank
from ..validation import check_finite_number, check_integer, check_linear, listed
from .impact import stored_bytes
from .method import CompressionMethod, Task, dense_weight
from .report import LayerReport


class LoRACompression(CompressionMethod):
    """Chaque nn.Linear visée reçoit un adaptateur ; tout le reste est gelé.

    Parameters
    ----------
    config : dict, optionnel
        ``rank`` (16), ramené couche par couche au plus grand possible ; ``alpha`` (1.0), l'échelle ;
        ``target_modules``, des morceaux de noms, sans égard aux majuscules. Ceux du cours, ["linear", "attention"],
        valent par défaut ; là où rien de nommé ainsi ne s'adapte, toutes les nn.Linear sont adaptées. Et les clés
        communes, ``layers``, ``exclude``, ``progress``.

    Raises
    ------
    ValueError
        À la compression : une cible que l'on a donnée ne désigne aucune couche.
    """

    defaults: ClassVar[dict[str, Any]] = {"rank": 16, "alpha": 1.0, "target_modules": ["linear", "attention"]}

    def validate_config(self) -> None:
        super().validate_config()
        check_integer(self.config["rank"], "rank")
        check_finite_number(self.config["alpha"], "alpha")
        targets = self.config["target_modules"]
        if not isinstance(targets, list | tuple) or not targets or not all(isinstance(t, str) and t for t in targets):
            raise TypeError(f"target_modules : reçu {targets!r}, attendu une liste de morceaux de noms.")

    def select(self, model: nn.Module) -> list[Task]:
        tasks = super().select(model)
        targets, default = self.config["target_modules"], self.defaults["target_modules"]
        names = [name for task in tasks for name in task.names]
        aimed = [task for task in tasks if any(t.lower() in name.lower() for t in targets for name in task.names)]
        if list(targets) == default:
            return aimed if any(not task.note for task in aimed) else tasks
        for target in targets:
            if not any(target.lower() in name.lower() for name in names):
                raise ValueError(f"target_modules : {target!r} ne désigne aucune couche ; noms : {listed(names)}.")
        return aimed

    def obstacle(self, model: nn.Module, task: Task) -> str:
        several = "laissée : plusieurs couches ont ce poids" if len(task.layers) > 1 else ""
        return several or super().obstacle(model, task)

    def compress_layer(self, layer: nn.Module, seen: Any = None) -> LoRALayer:
        """La couche gelée, et son adaptateur.

        Parameters
        ----------
        layer : nn.Linear
            Ni changée, ni partagée.
        seen : sans effet

        Returns
        -------
        LoRALayer
        """
        frozen = copy.deepcopy(check_linear(layer, "layer")).requires_grad_(False)
        return LoRALayer(frozen, min(self.config["rank"], max_rank(frozen)), self.config["alpha"])

    def describe(self, task: Task, layers: Sequence[Any], seconds: float) -> LayerReport:
        rank, shape, clamped = (
            layers[0].rank,
            tuple(dense_weight(task.layer).shape),
            layers[0].rank < self.config["rank"],
        )
        before, after = stored_bytes(task.layers), stored_bytes(layers)
        note = f"{layers[0].trainable_parameters()} nombres à entraîner"
        return LayerReport(task.names[0], shape, rank, clamped, after, before, 0.0, None, seconds, note)

    def settle(self, compressed: nn.Module) -> nn.Module:
        return freeze(compressed)


def freeze(model: nn.Module) -> nn.Module:
    """Gèle tout ce qui n'est pas un adaptateur."""
    adapters = {id(p) for layer in model.modules() if isinstance(layer, LoRALayer) for p in layer.adapters.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in adapters)
    return model
