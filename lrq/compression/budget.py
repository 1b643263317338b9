"""Au-delà du cours : un budget en octets pour tout le réseau, et à chaque couche les bits et le rang qu'elle mérite.

L'erreur des sorties est à peu près la racine de la somme des carrés de celles que chaque couche cause à elle seule
(section 11.5). La perte d'une option est donc ce carré : l'erreur locale de l'option, que la calibration donne sans
rien exécuter, fois la sensibilité de la couche, mesurée une fois en ne comprimant qu'elle.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..activation import Calibration, output_energy
from ..allocation import Option, allocate_budget
from ..errors import evaluating
from ..layers import QuantizedLowRankLinear
from ..quantizers import PerChannel
from ..svd import singular_values
from ..validation import check_integer
from .batches import check_batches, first_tensor, run_batch
from .gptq_compression import GPTQCompression
from .impact import stored_bytes
from .method import Task, dense_weight


@dataclass(frozen=True)
class Choice:
    """Ce que le budget donne à une couche, et ce qu'elle a vu."""

    bits: int
    rank: int
    calibration: Calibration | None


class BudgetCompression(GPTQCompression):
    """Répartit un budget d'octets entre les couches, qu'elle quantifie comme :class:`GPTQCompression`.

    Parameters
    ----------
    config : dict
        ``budget`` (obligatoire), les octets que peuvent peser ensemble les couches choisies, biais compris ;
        ``bit_choices`` ((2, 3, 4, 5, 6, 8)) et ``rank_choices`` ((0, 8, 32)), ce que chacune peut recevoir ;
        ``probe_bits`` (3) et ``probe_batches`` (4), comment mesurer la sensibilité : une couche à la fois, sur les
        premiers lots. Et les clés de :class:`GPTQCompression`, ``bits`` et ``residual_rank`` à part, que le budget
        décide.

    Attributes
    ----------
    predicted_error : float
        L'erreur relative des sorties que la répartition prévoit.
    """

    defaults: ClassVar[dict[str, Any]] = {
        "budget": None,
        "bit_choices": (2, 3, 4, 5, 6, 8),
        "rank_choices": (0, 8, 32),
        "probe_bits": 3,
        "probe_batches": 4,
    } | {key: value for key, value in GPTQCompression.defaults.items() if key not in ("bits", "residual_rank")}

    predicted_error = math.nan

    def validate_config(self) -> None:
        settings = self.config
        for key, most, least in (("bit_choices", 8, 1), ("rank_choices", None, 0)):
            if not isinstance(settings[key], Sequence) or isinstance(settings[key], str) or not settings[key]:
                raise TypeError(f"{key} : reçu {settings[key]!r}, attendu une suite d'entiers.")
            settings[key] = tuple(check_integer(value, key, least, most) for value in settings[key])
        check_integer(settings["probe_batches"], "probe_batches")
        check_integer(settings["probe_bits"], "probe_bits", 1, 8)
        if settings["budget"] is None:
            raise ValueError("budget : reçu None, attendu les octets que peuvent peser les couches.")
        check_integer(settings["budget"], "budget")
        self.config = settings | {"bits": 8, "residual_rank": 0}  # le temps que GPTQCompression vérifie les siens
        super().validate_config()
        self.config = {key: self.config[key] for key in settings}

    @property
    def compares(self) -> bool:
        return True

    @property
    def adapts_rank(self) -> bool:
        return True

    @property
    def observes(self) -> bool:
        return True

    def observe(self, model: nn.Module, tasks: list[Task], train_loader: Any) -> None:
        batches = list(check_batches(train_loader, why=" : ils disent ce que chaque couche coûte aux sorties"))
        super().observe(model, tasks, batches)
        self.spend(tasks, self.options(model, tasks, batches))

    def options(self, model: nn.Module, tasks: list[Task], batches: list[Any]) -> dict[str, list[Option]]:
        """Pour chaque réglage de chaque couche, ses octets et ce qu'il coûterait aux sorties, au carré.

        Parameters
        ----------
        model : nn.Module
        tasks : list[Task]
            Leur ``seen`` déjà rempli par GPTQ.
        batches : list, les lots de calibration

        Returns
        -------
        dict nom de couche → list de (octets, perte), dans l'ordre de :meth:`settings`
        """
        costs = self.sensitivities(model, tasks, batches)
        local = {task.names[0]: self.losses(task) for task in tasks if not task.note}
        return {name: [(size, loss * costs[name]) for size, loss in found] for name, found in local.items()}

    def spend(self, tasks: list[Task], options: dict[str, list[Option]]) -> None:
        """Répartit le budget entre les `options`, et range dans chacune des `tasks` ce qu'elle reçoit."""
        if not options:  # toutes les couches ont été laissées
            self.predicted_error = 0.0
            return
        chosen = allocate_budget(options, self.config["budget"])
        self.predicted_error = math.sqrt(sum(options[name][i][1] for name, i in chosen.items()))
        for task in tasks:
            if not task.note:
                bits, rank = self.settings(task)[chosen[task.names[0]]]
                seen = [task.heard(i) for i in range(len(task.layers))]
                task.seen = [Choice(bits, rank, heard) for heard in seen]

    def obstacle(self, model: nn.Module, task: Task) -> str:
        if any(layer._parameters.get("weight") is None for layer in task.layers):  # l'essai ne peut les remplacer
            return "laissée : ses poids se recalculent à chaque appel"
        return super().obstacle(model, task)

    def settings(self, task: Task) -> list[tuple[int, int]]:
        """Les (bits, rang) possibles de la couche de `task` ; un plongement n'a pas de résidu."""
        shape = dense_weight(task.layer).shape
        ranks = {min(rank, *shape) for rank in self.config["rank_choices"]}
        return [
            (bits, rank)
            for bits in self.config["bit_choices"]
            for rank in (sorted(ranks) if isinstance(task.layer, nn.Linear) else [0])
        ]

    def losses(self, task: Task) -> list[Option]:
        """Pour chaque réglage de la couche de `task`, ses octets et le carré de son erreur locale, résidu compris."""
        layer, seen, W = task.layer, task.heard(0), dense_weight(task.layer)
        biases = stored_bytes(task.layers) - W.nbytes
        settings, found = self.settings(task), []
        for bits in dict.fromkeys(bits for bits, _ in settings):
            stored = self.rounded(layer, seen, bits)
            ranks = [rank for own, rank in settings if own == bits]
            for rank, loss in zip(ranks, lost_energies(W - stored.dequantize(), W, seen, ranks), strict=True):
                found.append((stored.nbytes() + biases + self.residual_bytes(W, rank), loss))
        return found

    def residual_bytes(self, W: Tensor, rank: int) -> int:
        """Les octets d'un résidu de rang `rank` des poids `W`."""
        if rank == 0:
            return 0
        m, n = W.shape
        options: dict[str, Any] = {"granularity": PerChannel(0), "quantized": True, "device": "meta", "dtype": W.dtype}
        return QuantizedLowRankLinear(n, m, rank, self.config["factor_bits"], **options).nbytes()

    @torch.no_grad()
    def sensitivities(self, model: nn.Module, tasks: list[Task], batches: list[Any]) -> dict[str, float]:
        """Par couche arrondie seule, le carré de l'erreur des sorties sur celui de son erreur locale.

        Parameters
        ----------
        model, tasks, batches : comme pour :meth:`options`
        """
        probed = copy.deepcopy(model)
        few = list(islice(batches, self.config["probe_batches"]))

        def outputs() -> Tensor:
            return torch.cat([first_tensor(run_batch(probed, batch, index=i)).flatten() for i, batch in enumerate(few)])

        found = {}
        with evaluating(probed):
            expected = outputs().double()
            energy = float(expected.square().sum()) or 1.0
            for task in (task for task in tasks if not task.note):
                weight = probed.get_parameter(f"{task.names[0]}.weight".lstrip("."))
                kept = weight.data
                rounded = self.rounded(task.layer, task.heard(0), self.config["probe_bits"]).dequantize()
                [local] = lost_energies(kept - rounded, kept, task.heard(0), [0])
                weight.data = rounded
                error = float((outputs().double() - expected).square().sum()) / energy
                weight.data = kept
                found[task.names[0]] = error / local if local > 0 else 0.0
        return found

    def compress_layer(self, layer: nn.Module, seen: Any = None) -> nn.Module:
        """La couche, avec les bits et le rang que `observe` lui a trouvés.

        Parameters
        ----------
        layer : nn.Linear ou nn.Embedding
        seen : Choice

        Raises
        ------
        ValueError
            Sans `seen` : un budget se répartit entre toutes les couches, pas sur une seule.
        """
        if not isinstance(seen, Choice):
            raise ValueError("seen : rien reçu ; le budget se répartit sur un réseau entier, appelez compress.")
        return self.assemble(layer, seen.calibration, seen.bits, seen.rank)


def lost_energies(E: Tensor, W: Tensor, seen: Calibration | None, ranks: Sequence[int]) -> list[float]:
    """Pour chaque rang r, ce qui reste, sur les sorties, d'une erreur E une fois ôtées ses r premières directions.

    En part de l'énergie des sorties W x ; sans calibration, de celle des poids.
    """
    total = output_energy(W, seen) or 1.0
    if not any(ranks):  # aucune direction à ôter
        return [output_energy(E, seen) / total] * len(ranks)
    E = E.double()
    left = singular_values(E if seen is None else E @ seen.root).square()
    return [float(left[rank:].sum()) / total for rank in ranks]
