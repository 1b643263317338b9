"""Comprimer un réseau trop gros pour tenir deux fois en mémoire : couche par couche, dans le réseau lui-même."""

import contextlib
import ctypes
from typing import Any

from torch import nn

from .method import CompressionMethod, replace, unknown_kinds
from .pipeline import CompressionPipeline
from .report import CompressionReport


class MemoryEfficientCompression:
    """Compression en place : à tout moment, la mémoire tient le réseau et le travail d'une seule couche."""

    @staticmethod
    def compress_inplace(
        model: nn.Module, compression_method: CompressionMethod | CompressionPipeline, train_loader: Any = None
    ) -> nn.Module:
        """Remplace les couches de `model`, l'une après l'autre ; l'ancienne est libérée avant la suivante.

        Ce que la calibration retient (les seconds moments de GPTQ : n² nombres par couche) s'y ajoute, et se libère de
        même.

        Parameters
        ----------
        model : nn.Module
            Changé. S'il est lui-même la couche à comprimer, la valeur rendue seule la remplace.
        compression_method : CompressionMethod, ou CompressionPipeline
            Son rapport dit ce que chaque couche est devenue. Enchaînées, les méthodes passent l'une après l'autre.
        train_loader : lots, optionnel
            De quoi calibrer.

        Returns
        -------
        nn.Module
            `model`.

        Raises
        ------
        TypeError, ValueError
            Comme :meth:`CompressionMethod.compress` ; si c'est en chemin, les couches déjà faites le restent, les
            autres sont intactes, le réseau marche, et l'erreur porte une note qui dit lesquelles. D'un enchaînement,
            une autre note dit quelle méthode est en cause ; les précédentes sont passées.
        """
        if isinstance(compression_method, CompressionPipeline):
            for method in compression_method.methods:
                check_inplace(method)  # avant que la première ne change rien
            inplace = MemoryEfficientCompression.compress_inplace
            return compression_method.chain(
                model, train_loader, None, lambda method, network, loader: inplace(network, method, loader)
            )
        method = check_inplace(compression_method)
        tasks = method.select(model)
        method.observe(model, tasks, train_loader)
        report, total = CompressionReport(), len(tasks)
        report.unknown = unknown_kinds(model)
        tasks.reverse()  # vidée par la fin : une couche faite n'est plus tenue par personne
        try:
            for _ in method.watched(range(total)):
                result = method.run(tasks[-1])
                model = replace(model, tasks.pop(), result)
                report.append(result.line)
                del result
                give_back()
        except BaseException as error:
            done = ", ".join(repr(line.name) for line in report) or "aucune"
            error.add_note(f"Couches déjà comprimées ({len(report)} sur {total}) : {done}. Les autres sont intactes.")
            raise
        finally:
            method.report = report
        return method.settle(model)


def give_back() -> None:
    """Rend au système la mémoire libérée que glibc garde, morcelée, pour plus tard ; ailleurs, ne fait rien."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def check_inplace(method: Any) -> CompressionMethod:
    """Rend `method` si c'est une méthode qui ne demande rien à l'original une fois ses couches remplacées."""
    if check_method(method).learns:
        raise ValueError(f"compression_method : {method} apprend de l'original, que la compression en place efface.")
    return method


def check_method(method: Any) -> CompressionMethod:
    """Rend `method` si c'est une méthode de compression."""
    if not isinstance(method, CompressionMethod):
        kinds = "CompressionMethod ou CompressionPipeline"
        raise TypeError(f"compression_method : reçu {type(method).__name__}, attendu {kinds}.")
    return method
