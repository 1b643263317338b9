"""Section 12.3 : ce que partagent toutes les façons de comprimer un réseau entier.

Comprimer se fait en trois temps : choisir les couches (`select`), les écouter si la méthode a besoin de savoir ce
qu'elles reçoivent (`observe`), puis les traiter une à une, sans que l'une dépende de l'autre (`run`). C'est ce qui
permet à `memory.py` de travailler en place et à `parallel.py` de partager le travail.
"""

import copy
import difflib
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from ..layers import (
    READ_WITHOUT_CALLING,
    CompressedLayer,
    LoRALayer,
    PackedTensor,
    QuantizedConv2d,
    QuantizedEmbedding,
    QuantizedLinear,
    QuantizedResidualLinear,
    inside,
)
from ..layers.base import copy_bias
from ..validation import check_bool, listed
from .batches import output_error
from .impact import stored_bytes
from .report import CompressionReport, LayerReport, ranks_and_bits

T = TypeVar("T")


@dataclass
class Task:
    """Une couche à comprimer.

    Attributes
    ----------
    names : tous ses noms ; ceux, aussi, des couches qui ont le même poids
    layers : la couche, puis les autres couches de même poids ; un plongement passe devant
    seen : ce que `observe` a retenu des entrées de chacune, ou rien
    note : pourquoi elle sera laissée telle quelle
    """

    names: list[str]
    layers: list[nn.Module]
    seen: list[Any] = field(default_factory=list)
    note: str = ""

    @property
    def layer(self) -> nn.Module:
        """La couche."""
        return self.layers[0]

    def heard(self, i: int) -> Any:
        """Ce qu'a vu la couche `i`, ou None."""
        return self.seen[i] if self.seen else None


@dataclass
class Result:
    """Ce qu'une couche est devenue : de quoi remplacer chacune de celles de la tâche, et une ligne du rapport."""

    layers: list[nn.Module]
    line: LayerReport = field(repr=False)


class CompressionMethod(ABC):
    """Une façon de comprimer un réseau ; ses sous-classes disent comment traiter une couche.

    Parameters
    ----------
    config : dict, optionnel
        Les clés de `defaults`, et celles que toutes les méthodes acceptent : ``layers`` et ``exclude``, des motifs
        (« encoder.* ») sur les noms complets des couches ; ``progress``, une barre de progression.

    Attributes
    ----------
    config : dict
        La configuration complète.
    report : CompressionReport
        Une ligne par couche, après `compress` ; vide avant.

    Raises
    ------
    TypeError, ValueError
        Clé inconnue (le message propose la plus proche), ou valeur impossible.
    """

    kinds: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear,)
    common: ClassVar[dict[str, Any]] = {"layers": None, "exclude": (), "progress": False}
    defaults: ClassVar[dict[str, Any]] = {}

    def __init__(self, config: Mapping[str, Any] | None = None):
        known = self.common | self.defaults
        self.config = copy.deepcopy(known | check_keys({} if config is None else config, known, type(self).__name__))
        self.validate_config()
        self.report = CompressionReport()

    def validate_config(self) -> None:
        """Refuse une valeur impossible ; une sous-classe y ajoute les siennes."""
        for key, default in (self.common | self.defaults).items():
            if isinstance(default, bool):
                check_bool(self.config[key], key)
        for key in ("layers", "exclude"):
            patterns = self.config[key]
            if isinstance(patterns, str):
                patterns = self.config[key] = [patterns]
            if key == "layers" and patterns is None:
                continue
            if not isinstance(patterns, Collection) or not all(isinstance(p, str) for p in patterns):
                raise TypeError(f"{key} : reçu {patterns!r}, attendu des motifs, comme ['encoder.*'].")

    @property
    def observes(self) -> bool:
        """Vrai si la méthode a besoin de faire passer des données dans le réseau."""
        return False

    @property
    def compares(self) -> bool:
        """Vrai si ce que devient une couche dépend des autres : `observe` les veut toutes."""
        return False

    @property
    def learns(self) -> bool:
        """Vrai si la méthode a encore besoin du réseau original une fois les couches remplacées."""
        return False

    # --- les trois temps ---

    def select(self, model: nn.Module) -> list[Task]:
        """Les couches à comprimer, dans l'ordre du réseau ; celles qu'il faut laisser ont une note qui dit pourquoi.

        Deux couches de même poids ne font qu'une tâche.

        Raises
        ------
        TypeError, ValueError
            `model` n'est pas un nn.Module, n'a aucune couche à comprimer, ou un motif ne désigne rien.
        """
        found = dict(compressible(model, self.kinds))
        if not found:
            kinds, others = ", ".join(kind.__name__ for kind in self.kinds), unknown_kinds(model)
            hint = f" Il y a {others}, que lrq ne connaît pas." if others else ""
            raise ValueError(f"model : {type(model).__name__} n'a aucune couche à comprimer ({kinds}).{hint}")
        for key in ("layers", "exclude"):
            for pattern in self.config[key] or ():
                if not any(fnmatchcase(name, pattern) for name in found):
                    raise ValueError(f"{key} : le motif {pattern!r} ne désigne aucune couche ; noms : {listed(found)}.")
        if any(t.is_meta for module in found.values() for t in module.parameters()):
            raise ValueError("model : des poids sont sur l'appareil meta, qui n'a pas de nombres à comprimer.")
        tasks: dict[int, Task] = {}
        for name, module in found.items():
            if self.wants(name):
                task = tasks.setdefault(id(own_weight(module)), Task([], []))
                task.names.append(name)
                if not any(module is other for other in task.layers):
                    task.layers.append(module)
                    task.layers.sort(key=lambda layer: not isinstance(layer, nn.Embedding))
        if not tasks:
            raise ValueError(f"exclude : {list(self.config['exclude'])} ne laisse aucune couche à comprimer.")
        for task in tasks.values():
            task.note = self.obstacle(model, task)
        return list(tasks.values())

    def wants(self, name: str) -> bool:
        """Vrai si les motifs retiennent la couche `name`."""
        layers = self.config["layers"]
        kept = layers is None or any(fnmatchcase(name, pattern) for pattern in layers)
        return kept and not any(fnmatchcase(name, pattern) for pattern in self.config["exclude"])

    def obstacle(self, model: nn.Module, task: Task) -> str:
        """Ce qui oblige à laisser telle quelle la couche de `task`, dans `model`, ou un texte vide."""
        twin = twin_of(model, task.names, own_weight(task.layer))
        dense = "" if twin is None else f"laissée : {twin!r} a le même poids, et resterait dense"
        return read_elsewhere(model, task.names) or dense

    def names_of_layers(self, model: nn.Module, task: Task) -> list[str]:
        """Un nom, dans `model`, par couche de `task`."""
        return [next(name for name in task.names if model.get_submodule(name) is layer) for layer in task.layers]

    def observe(self, model: nn.Module, tasks: list[Task], train_loader: Any) -> None:
        """Fait passer les données, et range dans chaque tâche ce que ses couches ont vu ; rien à faire, par défaut.

        Parameters
        ----------
        model : nn.Module
        tasks : list[Task]
            Celles que rend :meth:`select` ; leur ``seen`` est rempli, un élément par couche.
        train_loader : lots, ou None
        """
        return

    def run(self, task: Task) -> Result:
        """Ce que devient la couche de `task`, et la ligne du rapport qui dit ce qu'elle y perd.

        Une tâche qui porte une note garde sa couche. L'erreur d'une couche refusée porte une note qui la nomme.
        """
        if task.note:
            shape = tuple(dense_weight(task.layer).shape)
            return Result(task.layers, LayerReport.left(task.names[0], shape, stored_bytes(task.layers), task.note))
        started = time.perf_counter()
        try:
            smaller = self.compress_layer(task.layer, task.heard(0))
            twins = [self.share(smaller, task.layers[i], task.heard(i)) for i in range(1, len(task.layers))]
        except Exception as refusal:
            refusal.add_note(f"Couche refusée : {task.names[0]!r}.")
            raise
        layers = [smaller, *twins]
        for new, old in zip(layers, task.layers, strict=True):
            new.train(old.training)
        return Result(layers, self.describe(task, layers, time.perf_counter() - started))

    # --- ce qu'une méthode dit d'une couche ---

    @abstractmethod
    def compress_layer(self, layer: nn.Module, seen: Any = None) -> nn.Module:
        """La couche comprimée, qui ne partage rien avec `layer`, laissée intacte.

        Parameters
        ----------
        layer : nn.Module, d'une des sortes de `kinds`
        seen : ce que :meth:`observe` a retenu de ses entrées, ou None
        """

    def share(self, compressed: nn.Module, layer: nn.Module, seen: Any = None) -> nn.Module:
        """Ce qui remplace `layer`, dont `compressed` tient déjà le poids : il n'est rangé qu'une fois.

        Parameters
        ----------
        compressed : nn.Module, la première couche de la tâche, comprimée
        layer : nn.Module, une autre de même poids
        seen : ce que :meth:`observe` a retenu des entrées de celle-ci, ou None
        """
        if isinstance(compressed, QuantizedResidualLinear):
            return QuantizedResidualLinear(self.share(compressed.base, layer), compressed.residual)  # type: ignore[arg-type]
        packed: Any = getattr(compressed, "packed", None)
        if not isinstance(packed, PackedTensor):
            twin: Any = copy.copy(compressed)  # les mêmes tenseurs
            for held in ("_parameters", "_buffers", "_modules"):
                setattr(twin, held, dict(getattr(compressed, held)))
            twin.bias = copy_bias(layer)
            return twin
        if isinstance(layer, nn.Embedding):
            twin = QuantizedEmbedding.hold(packed.stored(), layer.padding_idx)
        elif isinstance(layer, nn.Conv2d):
            twin = QuantizedConv2d.hold(packed.stored(), layer)  # ses propres pas, marge et biais
        else:
            twin = QuantizedLinear.hold(packed.stored(), copy_bias(layer))
        twin.packed = packed
        return twin

    def describe(self, task: Task, layers: Sequence[Any], seconds: float) -> LayerReport:
        """La ligne du rapport : ce que sont devenues, en `seconds` secondes, les couches de `task` (`layers`)."""
        rank, bits = ranks_and_bits(layers[0])
        weight, asked = dense_weight(task.layer), self.config.get("rank", self.config.get("residual_rank"))
        clamped = rank is not None and asked is not None and not self.adapts_rank and least(rank) < asked
        before, after = stored_bytes(task.layers), stored_bytes(layers)
        error = layers[0].reconstruction_error(weight)
        notes = [self.remark(task.layer, layers[0]), "plus lourde qu'elle n'était" if after > before else ""]
        note, shape = " ; ".join(filter(None, notes)), tuple(weight.shape)
        return LayerReport(task.names[0], shape, rank, clamped, after, before, error, bits, seconds, note)

    @property
    def adapts_rank(self) -> bool:
        """Vrai si la méthode choisit le rang de chaque couche."""
        return False

    def remark(self, layer: nn.Module, smaller: nn.Module) -> str:
        """Ce que le rapport doit dire de `layer`, devenue `smaller`, ou un texte vide."""
        return ""

    # --- tout le réseau ---

    def compress(self, model: nn.Module, train_loader: Any = None, val_loader: Any = None) -> nn.Module:
        """Une copie comprimée du réseau.

        Parameters
        ----------
        model : nn.Module
            Laissé intact.
        train_loader : lots, optionnel
            De quoi calibrer ou apprendre, si la méthode le demande : des tenseurs, des (entrées, étiquettes) ou des
            dictionnaires d'arguments.
        val_loader : lots, optionnel
            De quoi mesurer, dans ``report.output_error``, ce que perdent les sorties.

        Returns
        -------
        nn.Module
            Ce qui n'est pas comprimé est une copie ; une couche partagée, ou deux couches de même poids, le demeurent.

        Raises
        ------
        TypeError, ValueError
            Réseau sans couche à comprimer, données absentes, vides ou que le réseau refuse, poids NaN ou infinis ;
            `report` n'a pas changé.
        """
        tasks = self.select(model)
        self.observe(model, tasks, train_loader)
        results = [self.run(task) for task in self.watched(tasks)]
        return self.finish(model, tasks, results, train_loader, val_loader)

    def finish(
        self, model: nn.Module, tasks: list[Task], results: list[Result], train_loader: Any, val_loader: Any
    ) -> nn.Module:
        """La copie comprimée, une fois le rapport tenu.

        Parameters
        ----------
        model : nn.Module
            L'original.
        tasks, results : list[Task], list[Result]
            Dans le même ordre.
        train_loader, val_loader : lots, ou None
            Comme pour :meth:`compress`.
        """
        compressed = self.settle(rebuilt(model, tasks, results))
        report = CompressionReport(result.line for result in results)
        report.unknown = unknown_kinds(model)
        if val_loader is not None:
            report.output_error = output_error(model, compressed, val_loader)
        self.report = report
        return compressed

    def settle(self, compressed: nn.Module) -> nn.Module:
        """Le réseau `compressed`, une fois fait ce qui lui reste à faire, ses couches remplacées ; rien, par défaut."""
        return compressed

    def watched(self, tasks: Collection[T]) -> Iterator[T]:
        """Les éléments de `tasks`, une barre de progression au-dessus si la configuration le veut."""
        from tqdm.auto import tqdm

        return iter(tqdm(tasks, desc=type(self).__name__, unit="couche", disable=not self.config["progress"]))

    def get_compression_info(self, original_model: nn.Module, compressed_model: nn.Module) -> dict[str, Any]:
        """Ce que pèsent un réseau et sa version comprimée, tels qu'ils sont rangés.

        Parameters
        ----------
        original_model, compressed_model : nn.Module

        Returns
        -------
        dict
            ``original_bytes``, ``compressed_bytes``, ``compression_ratio`` (octets sur octets), ``bits_per_weight``
            (bits rangés par paramètre de l'original), ``method``, ``config``, ``layers`` (les lignes du rapport).
        """
        return compression_info(original_model, compressed_model) | {
            "method": type(self).__name__,
            "config": dict(self.config),
            "layers": list(self.report),
        }

    def __repr__(self) -> str:
        changed = {key: value for key, value in self.config.items() if value != (self.common | self.defaults)[key]}
        return f"{type(self).__name__}({changed})"


def compression_info(original_model: nn.Module, compressed_model: nn.Module) -> dict[str, Any]:
    """Octets des deux réseaux, leur rapport, et les bits rangés par paramètre de l'original."""
    for name, model in (("original_model", original_model), ("compressed_model", compressed_model)):
        if not isinstance(model, nn.Module):
            raise TypeError(f"{name} : reçu {type(model).__name__}, attendu nn.Module.")
    before, after = stored_bytes(original_model), stored_bytes(compressed_model)
    count = sum(p.numel() for p in original_model.parameters())
    if not before or not after:
        raise ValueError("original_model, compressed_model : un réseau qui ne pèse rien n'a pas de rapport de tailles.")
    return {
        "original_bytes": before,
        "compressed_bytes": after,
        "compression_ratio": before / after,
        "bits_per_weight": 8 * after / max(count, 1),
    }


def read_elsewhere(model: nn.Module, names: Collection[str]) -> str:
    """La note d'une couche de `model` dont un autre module lit les poids sans l'appeler, ou un texte vide."""
    for above, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, READ_WITHOUT_CALLING) and any(inside(name, above) for name in names):
            return f"laissée : {type(module).__name__} lit ses poids sans l'appeler"
    return ""


def twin_of(model: nn.Module, names: Collection[str], weight: Tensor) -> str | None:
    """Le nom d'un module de `model` qui n'est pas l'une de ces couches, et qui a le même poids `weight`, ou None."""
    for name, module in model.named_modules(remove_duplicate=False):
        own = any(inside(name, ours) for ours in names)
        if not own and any(p is weight for p in module.parameters(recurse=False)):
            return name
    return None


def least(rank: int | list[int]) -> int:
    """Le plus petit de plusieurs rangs."""
    return rank if isinstance(rank, int) else min(rank)


def own_weight(layer: nn.Module) -> nn.Parameter:
    """Le paramètre qui tient le poids d'une couche, ou le premier de ses facteurs."""
    return next(p for name, p in layer.named_parameters() if name != "bias")


def dense_weight(layer: Any) -> Tensor:
    """Les poids d'une couche, dense ou comprimée."""
    weight = layer.reconstruct_weight() if isinstance(layer, CompressedLayer) else layer.weight
    return weight.detach()


def check_keys(config: Any, known: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Rend la configuration si toutes ses clés sont connues."""
    if not isinstance(config, Mapping):
        raise TypeError(f"config : reçu {type(config).__name__}, attendu un dictionnaire.")
    for key in config:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f" Vouliez-vous dire {close[0]!r} ?" if close else ""
            raise ValueError(f"config : {method} ne connaît pas {key!r}, attendu {', '.join(known)}.{hint}")
    return dict(config)


def compressible(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Iterator[tuple[str, nn.Module]]:
    """Les couches de ces sortes, par nom, une couche partagée sous tous les siens ; rien dans une couche comprimée."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model : reçu {type(model).__name__}, attendu nn.Module.")
    closed: list[str] = []
    for name, module in model.named_modules(remove_duplicate=False):
        if any(inside(name, above) for above in closed):
            continue
        if isinstance(module, kinds) and not getattr(module, "quantized", False):  # des codes : rien à y refaire
            yield name, module
        if isinstance(module, CompressedLayer | LoRALayer):
            closed.append(name)


def unknown_kinds(model: nn.Module) -> str:
    """Les modules qui tiennent eux-mêmes une matrice, et qui ne viennent ni de torch.nn ni de lrq : « 12 Conv1D ».

    Ceux de GPT-2, par exemple, gardent la transposée de ce que garde une nn.Linear.
    """
    counts: Counter[str] = Counter()
    for module in model.modules():
        known = [base for base in type(module).__mro__ if base.__module__.partition(".")[0] in ("torch", "lrq")]
        if known[0] is nn.Module and any(p.ndim > 1 for p in module.parameters(recurse=False)):
            counts[type(module).__name__] += 1
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def replace(model: nn.Module, task: Task, result: Result) -> nn.Module:
    """Met les nouvelles couches à leur place dans `model` ; rend la nouvelle, si c'est lui qu'elle remplace."""
    for old, smaller in zip(task.layers, result.layers, strict=True):
        if old is model:
            return smaller
        for parent in list(model.modules()):
            for name, child in list(parent._modules.items()):  # named_children tait le second nom d'un même enfant
                if child is old:
                    setattr(parent, name, smaller)
    return model


def rebuilt(model: nn.Module, tasks: list[Task], results: list[Result]) -> nn.Module:
    """Copie de `model` où chaque couche traitée est la nouvelle : ses anciens poids ne sont pas recopiés."""
    new: dict[int, Any] = {}
    for task, result in zip(tasks, results, strict=True):
        if not task.note:
            new |= {id(old): smaller for old, smaller in zip(task.layers, result.layers, strict=True)}
    return copy.deepcopy(model, new)
