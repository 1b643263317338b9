"""Quantification symétrique et rangement serré des codes : des nombres réels vers 1 à 8 bits, et retour."""

import torch
from torch import Tensor

from .validation import check_bits, check_integer, check_tensor


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
    TypeError
        `t` n'est pas un tenseur de nombres réels.
    ValueError
        `n_bits` hors de 1 … 8, `dim` hors du tenseur, tenseur vide ou non fini.
    """
    n_bits = check_bits(n_bits)
    if check_tensor(t, "t").numel() == 0 or not torch.isfinite(t).all():
        raise ValueError(f"t : reçu un tenseur {tuple(t.shape)} vide ou non fini, attendu des nombres finis.")
    x = t.detach().to(torch.float64 if t.dtype == torch.float64 else torch.float32)
    axis = None if dim is None else check_integer(dim, "dim", -x.ndim, x.ndim - 1) % x.ndim
    magnitude = x.abs().unsqueeze(-1)  # une dimension de plus : il en reste une à réduire quand t est un vecteur
    others = [d for d in range(magnitude.ndim) if d != axis]
    if n_bits == 1:
        scale = magnitude.mean(others, keepdim=axis is not None).squeeze(-1)
        return torch.where(x < 0, -1, 1).to(torch.int8), scale
    q = 2 ** (n_bits - 1) - 1
    scale = magnitude.amax(others, keepdim=axis is not None).squeeze(-1) / q
    step = torch.where(scale > 0, scale, 1)  # un tenseur nul se divise par 1
    return (x / step).round().clamp(-q, q).to(torch.int8), scale


def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """Rend les nombres réels que les codes représentent : codes × échelle."""
    return check_tensor(codes, "codes") * check_tensor(scale, "scale")


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
    low, high = (-1, 1) if n_bits == 1 else (-(2 ** (n_bits - 1)), 2 ** (n_bits - 1) - 1)
    if codes.numel() and (codes.min() < low or codes.max() > high or (n_bits == 1 and (codes == 0).any())):
        expected = "−1 ou +1" if n_bits == 1 else f"des entiers entre {low} et {high}"
        raise ValueError(
            f"codes : reçu des valeurs de {codes.min()} à {codes.max()}, attendu {expected} sur {n_bits} bit(s)."
        )
    unsigned = codes.flatten().to(torch.int16)
    unsigned = (unsigned + 1) // 2 if n_bits == 1 else unsigned + 2 ** (n_bits - 1)  # 0 … 2^b − 1
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
    if check_tensor(packed, "packed").dtype != torch.uint8:
        raise TypeError(f"packed : reçu des éléments {packed.dtype}, attendu torch.uint8.")
    numel = torch.Size(shape).numel()
    if packed.numel() != -(-numel * n_bits // 8):
        raise ValueError(f"packed : reçu {packed.numel()} octets, attendu {-(-numel * n_bits // 8)} pour {shape}.")
    stream = (packed[:, None] >> torch.arange(8, device=packed.device)) & 1  # (octets, 8)
    bits = stream.flatten()[: numel * n_bits].view(numel, n_bits).to(torch.int16)
    unsigned = (bits << torch.arange(n_bits, device=packed.device)).sum(1)
    codes = 2 * unsigned - 1 if n_bits == 1 else unsigned - 2 ** (n_bits - 1)
    return codes.to(torch.int8).view(shape)
