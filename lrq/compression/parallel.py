"""Partager les couches entre plusieurs processus, ou plusieurs machines."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..validation import check_integer
from .batches import check_batches
from .cache import CompressionCache, task_keys
from .memory import check_method
from .method import CompressionMethod, Result, Task
from .pipeline import CompressionPipeline

DEATHS = ("TerminatedWorkerError", "BrokenProcessPool", "KilledWorker")  # de loky, puis de dask


class ParallelCompression:
    """Les couches d'un réseau, comprimées plusieurs à la fois par joblib.

    Chaque ouvrier calcule sur un seul fil de PyTorch : le résultat est le même, au bit près, quel qu'en soit le nombre.
    Sous ``joblib.parallel_config(backend="dask")``, les ouvriers sont ceux d'une grappe dask.

    Parameters
    ----------
    cache : CompressionCache, optionnel
        Ce qui y est n'est pas refait, et chaque couche y est rangée dès qu'elle est faite : après un arrêt, on
        recommence où l'on en était. Sur plusieurs machines, un dossier qu'elles partagent.

    Raises
    ------
    TypeError
        `cache` n'est pas une CompressionCache.
    """

    def __init__(self, cache: CompressionCache | None = None):
        if cache is not None and not isinstance(cache, CompressionCache):
            raise TypeError(f"cache : reçu {type(cache).__name__}, attendu une CompressionCache.")
        self.cache = cache

    def compress_parallel(
        self,
        model: nn.Module,
        compression_method: CompressionMethod | CompressionPipeline,
        num_workers: int = 4,
        train_loader: Any = None,
        val_loader: Any = None,
    ) -> nn.Module:
        """Une copie comprimée du réseau.

        Parameters
        ----------
        model : nn.Module
            Laissé intact, quoi qu'il arrive.
        compression_method : CompressionMethod, ou CompressionPipeline
            Les méthodes d'un enchaînement passent l'une après l'autre, chacune sur tous les ouvriers.
        num_workers : int
            Les couches traitées à la fois ; 1, dans ce processus.
        train_loader, val_loader : lots, optionnels
            Comme pour :meth:`CompressionMethod.compress`.

        Returns
        -------
        nn.Module

        Raises
        ------
        TypeError, ValueError
            Comme :meth:`CompressionMethod.compress`.
        RuntimeError
            Un ouvrier est mort : l'erreur nomme les couches qu'il tenait.
        """
        if isinstance(compression_method, CompressionPipeline):
            return compression_method.chain(
                model,
                train_loader,
                val_loader,
                lambda method, network, loader: self.compress_parallel(network, method, num_workers, loader),
            )
        method, workers = check_method(compression_method), check_integer(num_workers, "num_workers")
        tasks = method.select(model)
        keys, loader = [""] * len(tasks), train_loader
        results: list[Result | None] = [None] * len(tasks)
        if self.cache is not None:
            loader = (
                None if train_loader is None else list(check_batches(train_loader))
            )  # parcouru deux fois : la clé, les couches
            keys = task_keys(method, model, tasks, loader)
            results = [self.cache.get(key) for key in keys]
        for i, task in enumerate(tasks):
            results[i] = method.run(task) if task.note else results[i]  # laissée telle quelle
        missing = [i for i, found in enumerate(results) if found is None]
        if missing:
            method.observe(model, tasks if method.compares else [tasks[i] for i in missing], loader)
            jobs = [(keys[i], method, tasks[i]) for i in missing]
            for i, result in zip(missing, self._work(jobs, workers), strict=True):
                results[i] = result
        return method.finish(model, tasks, [found for found in results if found is not None], loader, val_loader)

    def _work(self, jobs: list[tuple[str, CompressionMethod, Task]], workers: int) -> list[Result]:
        from joblib import Parallel, delayed

        with tempfile.TemporaryDirectory(prefix="lrq-", ignore_cleanup_errors=True) as folder:
            calls = (delayed(work)(self.cache, Path(folder, str(i)), *job) for i, job in enumerate(jobs))
            try:
                found = Parallel(n_jobs=workers, return_as="generator")(calls)
                return [result for result, _ in zip(found, jobs[0][1].watched(jobs), strict=True)]
            except Exception as death:
                if type(death).__name__ not in DEATHS:
                    raise
                held = [task.names[0] for i, (_, _, task) in enumerate(jobs) if Path(folder, str(i)).exists()]
                again = ", les couches déjà faites sont dans le cache" if self.cache is not None else ""
                raise RuntimeError(
                    f"Un ouvrier est mort pendant la compression de {', '.join(map(repr, held)) or 'on ne sait quoi'} "
                    f"(mémoire épuisée ?) ; le réseau n'a pas changé{again}."
                ) from death


def work(cache: CompressionCache | None, mark: Path, key: str, method: CompressionMethod, task: Task) -> Result:
    """Le travail d'un ouvrier, sur un seul fil ; `mark` existe tant que la couche est en chantier."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    shared = mark.parent.is_dir()  # faux sur une autre machine
    try:
        if shared:
            mark.touch()
        return method.run(task) if cache is None else cache.run(key, method, task)
    finally:
        torch.set_num_threads(threads)
        if shared:
            mark.unlink(missing_ok=True)
