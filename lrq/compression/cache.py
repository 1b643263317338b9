"""Ne pas recommencer ce qui a déjà été fait : les couches comprimées, gardées sur le disque."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from ..version import __version__
from .method import CompressionMethod, Result, Task

FORMAT = 2  # à augmenter si ce qui est rangé change


class CompressionCache:
    """Un dossier où chaque couche comprimée est rangée, sous une clé qui dit tout ce dont elle dépend.

    La clé est l'empreinte des octets des poids, de la configuration et des versions de lrq et de PyTorch ; pour une
    méthode qui écoute le réseau, celle, aussi, de tout le réseau (ses poids, ses modules tels qu'il les affiche) et des
    données. D'une méthode que vous avez écrite, le code des siennes y entre aussi, mais pas ce qu'elles lisent ailleurs
    (une variable du script). Rien de ce qui change d'un processus à l'autre n'y entre. joblib.Memory écrit chaque
    entrée à côté, puis la renomme : deux calculs peuvent partager le dossier. Une entrée illisible est refaite.

    Comme tout fichier pickle, une entrée peut exécuter du code en étant relue : ne partagez le dossier qu'avec des
    gens sûrs.

    Parameters
    ----------
    folder : chemin
        Créé s'il le faut.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        from joblib import Memory

        self.folder = Path(folder)
        self.memory = Memory(self.folder, verbose=0)

    def clear(self) -> None:
        """Oublie tout."""
        self.memory.clear(warn=False)

    def get(self, key: str) -> Result | None:
        """Ce qui est rangé sous la clé `key`, ou None si rien ne l'est, ou que l'entrée ne se relit pas."""
        stored = self._stored()
        if not stored.check_call_in_cache(key):
            return None
        entry = stored.call_and_shelve(key)
        try:
            found = entry.get()
        except Exception:  # une entrée abîmée peut l'être de toutes les façons
            entry.clear()
            return None
        found.line = replace(found.line, seconds=0.0)  # rien n'a été calculé
        return found

    def run(self, key: str, method: CompressionMethod, task: Task) -> Result:
        """Ce que rend ``method.run(task)``, fait et rangé sous la clé `key`, ou relu s'il est déjà là."""
        return self._stored()(key, method, task)

    def _stored(self) -> Any:
        return self.memory.cache(compressed_layer, ignore=["method", "task"], verbose=0)

    def __repr__(self) -> str:
        return f"CompressionCache({str(self.folder)!r})"


class MissingError(Exception):
    """On a demandé une entrée sans dire comment la calculer."""


def compressed_layer(key: str, method: CompressionMethod | None = None, task: Task | None = None) -> Result:
    """Ce que joblib.Memory range : le résultat d'une tâche, sous sa clé."""
    if method is None or task is None:
        raise MissingError(key)
    return method.run(task)


def task_keys(method: CompressionMethod, model: nn.Module, tasks: list[Task], batches: list[Any] | None) -> list[str]:
    """La clé de chaque tâche."""
    config = {key: value for key, value in method.config.items() if key != "progress"}
    if not method.observes:  # alors, chaque couche est seule
        config = {key: value for key, value in config.items() if key not in ("layers", "exclude")}
    common = [FORMAT, __version__, torch.__version__, type(method).__module__, type(method).__qualname__]
    described = json.dumps([*common, own_code(type(method)), config], sort_keys=True, default=str)
    context = digest(chunks([repr(model), *model.state_dict().items(), *(batches or [])])) if method.observes else ""
    return [
        digest([described, context, *names_if(method.observes, task), *chunks(map(layer_state, task.layers))])
        for task in tasks
    ]


def own_code(kind: type) -> list[str]:
    """Le code des méthodes qu'une classe tient d'ailleurs que de lrq : le lecteur peut en changer sous le même nom."""
    others = [parent for parent in kind.__mro__ if parent.__module__.partition(".")[0] != "lrq"]
    functions = [value for parent in others for value in vars(parent).values() if isinstance(value, FunctionType)]
    return [text for function in functions for text in code_text(function.__code__)]


def code_text(code: CodeType) -> list[str]:
    """Les instructions, les constantes et les noms d'une fonction : rien de son fichier ni de ses lignes."""
    inner = [text for const in code.co_consts if isinstance(const, CodeType) for text in code_text(const)]
    consts = [repr(const) for const in code.co_consts if not isinstance(const, CodeType | frozenset)]
    return [code.co_code.hex(), repr(code.co_names), *consts, *inner]


def names_if(wanted: bool, task: Task) -> list[str]:
    """Les noms d'une tâche, si sa place dans le réseau compte."""
    return task.names if wanted else []


def layer_state(layer: nn.Module) -> list[Any]:
    """Une couche et tout ce qui la décrit : sa classe, ses réglages, ses nombres."""
    return [type(layer).__qualname__, layer.extra_repr(), layer.training, *layer.state_dict().items()]


def chunks(value: Any) -> Iterator[str | memoryview]:
    """Un assemblage de tenseurs et de nombres, en morceaux dont aucun ne dépend du processus."""
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous()
        yield f"{data.dtype}{tuple(data.shape)}"
        yield data.reshape(-1).view(torch.uint8).numpy().data
    elif isinstance(value, str | int | float | bool | None):
        yield repr(value)
    elif hasattr(value, "items"):
        yield "{"
        yield from chunks(sorted(value.items()))
        yield "}"
    elif isinstance(value, Iterable):
        yield "("
        for item in value:
            yield from chunks(item)
        yield ")"
    else:
        raise TypeError(f"train_loader : reçu un {type(value).__name__}, dont on ne sait pas tirer une clé.")


def digest(pieces: Iterable[str | memoryview]) -> str:
    """Empreinte sha256 d'une suite de morceaux."""
    seal = hashlib.sha256()
    for piece in pieces:
        data = piece.encode() if isinstance(piece, str) else piece
        seal.update(f"{len(data)}:".encode())
        seal.update(data)
    return seal.hexdigest()
