"""Ranger des codes de 1 à 8 bits les uns contre les autres, huit bits par octet."""

import torch
from torch import Tensor

from .validation import check_bits, check_tensor


def pack_bits(codes: Tensor, n_bits: int, signed: bool = True) -> Tensor:
    """Range des codes de `n_bits` bits les uns contre les autres, huit bits par octet.

    Parameters
    ----------
    codes : Tensor d'entiers, forme quelconque
        Signés, entre −2^(b−1) et 2^(b−1) − 1 (à 1 bit, −1 et +1) ; sinon, entre 0 et 2^b − 1.
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
    binary = signed and n_bits == 1
    low = -1 if binary else -(2 ** (n_bits - 1)) if signed else 0
    high = 1 if binary else low + 2**n_bits - 1
    if codes.numel() and (codes.min() < low or codes.max() > high or (binary and (codes == 0).any())):
        expected = "−1 ou +1" if binary else f"des entiers entre {low} et {high}"
        raise ValueError(
            f"codes : reçu des valeurs de {codes.min()} à {codes.max()}, attendu {expected} sur {n_bits} bit(s)."
        )
    levels = codes.flatten().to(torch.int16) - low  # 0 … 2^b − 1
    levels = (levels // 2 if binary else levels).to(torch.uint8)
    bits = (levels[:, None] >> positions(n_bits, codes)) & 1  # (numel, b), poids faible d'abord
    stream = torch.nn.functional.pad(bits.flatten(), (0, -bits.numel() % 8)).view(-1, 8)
    return (stream << positions(8, codes)).sum(1, dtype=torch.uint8)


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
    """
    n_bits = check_bits(n_bits)
    if check_tensor(packed, "packed").dtype != torch.uint8:
        raise TypeError(f"packed : reçu des éléments {packed.dtype}, attendu torch.uint8.")
    numel = torch.Size(shape).numel()
    if packed.numel() != -(-numel * n_bits // 8):
        raise ValueError(f"packed : reçu {packed.numel()} octets, attendu {-(-numel * n_bits // 8)} pour {shape}.")
    stream = (packed.flatten()[:, None] >> positions(8, packed)) & 1  # (octets, 8)
    bits = stream.flatten()[: numel * n_bits].view(numel, n_bits)
    levels = (bits << positions(n_bits, packed)).sum(1, dtype=torch.uint8)  # 0 … 2^b − 1
    if not signed:
        return levels.view(shape)
    levels = levels.to(torch.int16)
    codes = 2 * levels - 1 if n_bits == 1 else levels - 2 ** (n_bits - 1)
    return codes.to(torch.int8).view(shape)


def positions(n_bits: int, like: Tensor) -> Tensor:
    """0 … n_bits − 1, en octets : des décalages en int64 prendraient huit fois la mémoire."""
    return torch.arange(n_bits, device=like.device, dtype=torch.uint8)
