"""Quantification symétrique et rangement serré des codes : des nombres réels vers 1 à 8 bits, et retour."""

import torch
from torch import Tensor

from .validation import check_bits


def quantize_symmetric(t: Tensor, n_bits: int = 8, dim: int | None = None) -> tuple[Tensor, Tensor]:
    """Quantifie `t` sur la grille symétrique Δ·{−q, …, q}, avec q = 2^(b−1) − 1 et Δ = max abs(t) / q.

    À 1 bit, la grille n'a que deux niveaux, ±Δ, et Δ = moyenne de abs(t) minimise l'erreur quadratique.

    Parameters
    ----------
    t : Tensor
    n_bits : int, entre 1 et 8
    dim : int, optionnel
        Une échelle par indice de cette dimension (0 : une par ligne) ; sinon une seule pour tout le tenseur.

    Returns
    -------
    codes : Tensor, forme de t, int8
    scale : Tensor
        Scalaire, ou de taille 1 hors de `dim` : ``codes * scale`` approche t. Un tenseur nul reste nul.

    Raises
    ------
    ValueError
        `n_bits` hors de 1 … 8, tenseur vide ou non fini.
    """
    n_bits = check_bits(n_bits)
    if t.numel() == 0 or not torch.isfinite(t).all():
        raise ValueError(f"t : reçu un tenseur {tuple(t.shape)} vide ou non fini, attendu des nombres finis.")
    x = t.detach().to(torch.float64 if t.dtype == torch.float64 else torch.float32)
    others = [d for d in range(x.ndim) if dim is None or d != dim % x.ndim]
    if n_bits == 1:
        scale = x.abs().mean(others, keepdim=dim is not None)
        return torch.where(x < 0, -1, 1).to(torch.int8), scale
    q = 2 ** (n_bits - 1) - 1
    scale = x.abs().amax(others, keepdim=dim is not None) / q
    step = torch.where(scale > 0, scale, 1)  # un tenseur nul se divise par 1
    return (x / step).round().clamp(-q, q).to(torch.int8), scale


def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """Rend les nombres réels que les codes représentent : codes × échelle."""
    return codes * scale


def pack_bits(codes: Tensor, n_bits: int) -> Tensor:
    """Range des codes signés de `n_bits` bits les uns contre les autres, huit bits par octet.

    Parameters
    ----------
    codes : Tensor, int8, forme quelconque
        Entre −2^(b−1) et 2^(b−1) − 1 ; à 1 bit, −1 et +1.
    n_bits : int, entre 1 et 8

    Returns
    -------
    Tensor, (⌈numel · b / 8⌉,), uint8
    """
    n_bits = check_bits(n_bits)
    unsigned = codes.flatten().to(torch.int16)
    unsigned = (unsigned + 1) // 2 if n_bits == 1 else unsigned + 2 ** (n_bits - 1)  # 0 … 2^b − 1
    if unsigned.numel() and (unsigned.min() < 0 or unsigned.max() >= 2**n_bits):
        raise ValueError(f"codes : des valeurs sortent de ce que {n_bits} bit(s) peuvent porter.")
    bits = (unsigned[:, None] >> torch.arange(n_bits, device=codes.device)) & 1  # (numel, b), poids faible d'abord
    stream = torch.nn.functional.pad(bits.flatten(), (0, -bits.numel() % 8)).view(-1, 8)
    return (stream << torch.arange(8, device=codes.device)).sum(1).to(torch.uint8)


def unpack_bits(packed: Tensor, n_bits: int, shape: tuple[int, ...]) -> Tensor:
    """Inverse de :func:`pack_bits`.

    Parameters
    ----------
    packed : Tensor, (octets,), uint8
    n_bits : int, entre 1 et 8
    shape : tuple
        Forme des codes à rendre.

    Returns
    -------
    Tensor, `shape`, int8
    """
    n_bits = check_bits(n_bits)
    numel = torch.Size(shape).numel()
    if packed.numel() != -(-numel * n_bits // 8):
        raise ValueError(f"packed : reçu {packed.numel()} octets, attendu {-(-numel * n_bits // 8)} pour {shape}.")
    stream = (packed[:, None] >> torch.arange(8, device=packed.device)) & 1  # (octets, 8)
    bits = stream.flatten()[: numel * n_bits].view(numel, n_bits).to(torch.int16)
    unsigned = (bits << torch.arange(n_bits, device=packed.device)).sum(1)
    codes = 2 * unsigned - 1 if n_bits == 1 else unsigned - 2 ** (n_bits - 1)
    return codes.to(torch.int8).view(shape)
