"""Section 9.6 : ce que la quantification ôte à un réseau de tenseurs, compté en octets rangés."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from ..quantizers import QuantizedTensor


def stored_bytes(stored: Any) -> int:
    """Octets de ce qui est rangé, chaque tenseur compté une fois.

    Parameters
    ----------
    stored : nn.Module, Tensor, QuantizedTensor, ou une liste, un tuple, un dictionnaire de ceux-là
        D'un module, les paramètres et les tampons. Un entier, dans un dictionnaire, ne pèse rien.

    Returns
    -------
    int
    """
    return sum({id(t): t.nbytes for t in stored_tensors(stored)}.values())


def stored_tensors(stored: Any) -> list[Tensor]:
    """Les tenseurs que garde un module, un tenseur quantifié, ou un assemblage de ceux-là."""
    if isinstance(stored, Tensor):
        return [stored]
    if isinstance(stored, nn.Module):
        return [*stored.parameters(), *stored.buffers()]
    if isinstance(stored, QuantizedTensor):
        return [t for t in (stored.packed, stored.scale, stored.zero_point) if t is not None]
    if isinstance(stored, Mapping):
        return stored_tensors([value for value in stored.values() if not isinstance(value, int)])
    if isinstance(stored, Iterable) and not isinstance(stored, str):
        return [t for piece in stored for t in stored_tensors(piece)]
    raise TypeError(f"stored : reçu {type(stored).__name__}, attendu un module, un tenseur, ou une liste de tenseurs.")


def analyze_tn_quantization_impact(original_tn: Any, quantized_tn: Any, verbose: bool = False) -> float:
    """Combien de fois un réseau de tenseurs maigrit quand on le quantifie, en octets tels qu'ils sont rangés.

    Parameters
    ----------
    original_tn, quantized_tn : nn.Module, liste de cœurs, ou tout ce que pèse :func:`stored_bytes`
        Des codes serrés (:meth:`~lrq.TTQuantizer.compress`) comptent leurs bits ; des codes int8, huit bits chacun.
    verbose : bool
        Imprime le détail.

    Returns
    -------
    float
        Octets de l'original divisés par ceux du réseau quantifié, échelles, points zéro et biais compris.

    Raises
    ------
    TypeError, ValueError
        Autre chose qu'un module ou des tenseurs ; un réseau qui ne pèse rien.
    """
    before, after = stored_bytes(original_tn), stored_bytes(quantized_tn)
    if not before or not after:
        raise ValueError(f"{'quantized_tn' if before else 'original_tn'} : ne contient aucun nombre.")
    if verbose:
        print(f"original : {before} octets")
        print(f"quantifié : {after} octets, {before / after:.2f} fois moins")
    return before / after
