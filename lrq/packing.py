"""Ranger des codes de 1 à 8 bits les uns contre les autres, huit bits par octet."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .validation import check_bits, check_integer, check_tensor


def pack_bits(codes: Tensor, n_bits: int, signed: bool = True) -> Tensor:
    """Range des codes de `n_bits` bits les uns contre les autres, huit bits par octet.

    Parameters
    ----------
    codes : Tensor d'entiers, forme quelconque
        Signés, entre −2^(b−1) et 2^(b−1) − 1, gardés en complément à deux (à 1 bit, −1 et +1) ; sinon, entre 0 et
        2^b − 1.
    n_bits : int, entre 1 et 8
    signed : bool

    Returns
    -------
    Tensor, (⌈numel · b / 8⌉,), uint8

    Raises
    ------
    TypeError
        `codes` n'est pas un tenseur d'entiers.
    ValueError
        Un code ne tient pas sur `n_bits` bits.
    """
    n_bits = check_bits(n_bits)
    if check_tensor(codes, "codes").is_floating_point():
        raise TypeError(f"codes : reçu des éléments {codes.dtype}, attendu des entiers.")
    if codes.dtype in (torch.uint16, torch.uint32, torch.uint64):  # que PyTorch ne sait pas comparer
        raise TypeError(f"codes : reçu des éléments {codes.dtype}, attendu uint8, int8, int16, int32 ou int64.")
    binary = signed and n_bits == 1
    low = -1 if binary else -(2 ** (n_bits - 1)) if signed else 0
    high = 1 if binary else low + 2**n_bits - 1
    if codes.numel() and (codes.min() < low or codes.max() > high or (binary and (codes == 0).any())):
        expected = "−1 ou +1" if binary else f"des entiers entre {low} et {high}"
        raise ValueError(
            f"codes : reçu des valeurs de {codes.min()} à {codes.max()}, attendu {expected} sur {n_bits} bit(s)."
        )
    levels = (codes.flatten() > 0 if binary else codes.flatten() & (2**n_bits - 1)).to(torch.uint8)  # b bits chacun
    count, size = word(n_bits)
    padded = torch.nn.functional.pad(levels, (0, -len(levels) % count)).view(-1, count)
    if size > 1:
        padded = padded.long()
    words = (padded << shifts(count, n_bits, padded)).sum(1, dtype=padded.dtype)  # (mots,)
    stream = (words[:, None] >> shifts(size, 8, words)).to(torch.uint8).flatten() if size > 1 else words
    return stream[: -(-len(levels) * n_bits // 8)].clone()


def unpack_bits(packed: Tensor, n_bits: int, shape: tuple[int, ...], signed: bool = True) -> Tensor:
    """Inverse de :func:`pack_bits`.

    Parameters
    ----------
    packed : Tensor, (octets,), uint8
    n_bits : int, entre 1 et 8
    shape : tuple
        Forme des codes à rendre.
    signed : bool

    Returns
    -------
    Tensor, `shape`, int8 si les codes sont signés, uint8 sinon
        À 8 bits, les octets de `packed` eux-mêmes, vus autrement : rien n'est copié.

    Raises
    ------
    TypeError, ValueError
        `packed` n'est pas en uint8, ou n'a pas les octets qu'il faut pour `shape`.
    """
    n_bits = check_bits(n_bits)
    if check_tensor(packed, "packed").dtype != torch.uint8:
        raise TypeError(f"packed : reçu des éléments {packed.dtype}, attendu torch.uint8.")
    if not isinstance(shape, Sequence) or isinstance(shape, str):
        raise TypeError(f"shape : reçu {shape!r}, attendu la forme des codes, comme (m, n).")
    shape = tuple(check_integer(size, f"shape[{k}]", 0) for k, size in enumerate(shape))
    numel = math.prod(shape)
    if packed.numel() != -(-numel * n_bits // 8):
        raise ValueError(f"packed : reçu {packed.numel()} octets, attendu {-(-numel * n_bits // 8)} pour {shape}.")
    count, size = word(n_bits)
    stream = packed.flatten()
    if size > 1:
        stream = torch.nn.functional.pad(stream, (0, -len(stream) % size)).view(-1, size).long()
        stream = (stream << shifts(size, 8, stream)).sum(1)  # (mots,)
    if n_bits < 8:
        stream = (stream[:, None] >> shifts(count, n_bits, stream)) & (2**n_bits - 1)  # (mots, codes par mot)
    levels = stream.to(torch.uint8).flatten()[:numel].view(shape)
    if not signed:
        return levels
    if n_bits == 1:
        return 2 * levels.to(torch.int8) - 1
    if n_bits == 8:
        return levels.view(torch.int8)
    return (levels << 8 - n_bits).view(torch.int8) >> 8 - n_bits  # le bit de poids fort est le signe


def word(n_bits: int) -> tuple[int, int]:
    """Le plus petit mot qui tient un nombre entier de codes : combien de codes, sur combien d'octets."""
    count = 8 // math.gcd(8, n_bits)
    return count, count * n_bits // 8


def shifts(count: int, step: int, like: Tensor) -> Tensor:
    """0, pas, 2·pas… : où commence chaque morceau d'un mot, dans le type de `like`."""
    return step * torch.arange(count, device=like.device, dtype=like.dtype)
