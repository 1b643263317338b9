"""Multiplier en entiers : les entrées passent sur 8 bits à la volée, les codes servent tels quels.

x (codes · Δ) ≈ δ Δ (x̂ codes), où x̂ = arrondi(x/δ) et δ est propre à chaque ligne de x : un produit d'entiers de 8 bits,
exact sur 32, puis deux échelles. Le processeur fait quatre de ces produits ou plus là où il en fait un de flottants.
"""

from functools import cache

import torch
from torch import Tensor

BLOCK = 2**17  # nombres traités à la fois : au-delà, les intermédiaires sortent du cache
LONGEST = 2**31 // 127**2  # termes dont la somme tient toujours sur 32 bits
ENOUGH = 2**18  # codes au-dessous desquels la vingtaine d'appels à PyTorch coûte plus que la conversion épargnée


def has_integer_products(device: torch.device) -> bool:
    """Vrai si le processeur multiplie des entiers de 8 bits d'une seule instruction (VNNI ou AMX)."""
    return device.type == "cpu" and torch.cpu._is_vnni_supported() and sums_exactly()


@cache
def sums_exactly() -> bool:
    """Vrai si ``torch._int_mm`` ne perd rien : sans VNNI, deux produits s'ajoutent sur 16 bits, et y débordent."""
    largest = torch.full((2, 64), 127, dtype=torch.int8)
    return bool((torch._int_mm(largest, largest.t()) == 64 * 127**2).all())


def exact_product(a: Tensor, b: Tensor) -> Tensor:
    """a b, exact sur 32 bits ; en float64, exact lui aussi mais lent, là où le processeur ne l'est pas.

    Parameters
    ----------
    a : Tensor, (N, n), int8
    b : Tensor, (n, k), int8
        n au plus `LONGEST`, et aucun code −128.

    Returns
    -------
    Tensor, (N, k), int32
    """
    return torch._int_mm(a, b) if sums_exactly() else (a.double() @ b.double()).int()


def integer_pays(rows: int, rank: int, codes: int) -> bool:
    """Vrai si multiplier `rows` vecteurs en entiers coûte moins que convertir d'abord les codes.

    Arrondir les entrées et les sorties, ``rows (m + n)`` nombres, remplace la conversion de ``rank (m + n)`` codes,
    dont chacun coûte à peu près moitié moins.
    """
    return codes >= ENOUGH and 2 * rows <= rank


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Chaque ligne de `x` sur 8 bits, à l'échelle ``max abs / 127`` qui lui est propre.

    Parameters
    ----------
    x : Tensor, (N, n), float32

    Returns
    -------
    codes : Tensor, (N, n), int8
    scale : Tensor, (N, 1)
    """
    work = x.abs()
    scale = work.amax(1, keepdim=True).div_(127).clamp_min_(torch.finfo(x.dtype).tiny)  # une ligne nulle reste nulle
    return torch.mul(x, scale.reciprocal(), out=work).round_().to(torch.int8), scale


def integer_product(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """x (codes · échelle), x arrondi sur 8 bits à la volée.

    Parameters
    ----------
    x : Tensor, (N, n), float32
    codes : Tensor, (n, k), int8
    scale : Tensor, (), (n, 1) ou (1, k)
        Celle des codes : une seule, une par ligne ou une par colonne.

    Returns
    -------
    Tensor, (N, k)
    """
    if scale.shape == (len(codes), 1):  # une par ligne : elle multiplie x d'abord
        x, scale = x * scale.t(), scale.new_ones(())
    rounded, row = quantize_rows(x)
    exact = exact_product(rounded, codes)  # (N, n) @ (n, k) -> (N, k), int32
    y = exact.view(torch.float32).copy_(exact)  # sur place : les deux types ont la même taille
    return y.mul_(row * scale) if scale.ndim == 0 else y.mul_(row).mul_(scale)


def integer_low_rank(x: Tensor, V: tuple[Tensor, Tensor], U: tuple[Tensor, Tensor]) -> Tensor:
    """(x V) Uᵀ en entiers, quelques lignes de x à la fois.

    Parameters
    ----------
    x : Tensor, (..., n)
    V, U : codes (n, r) et (m, r), int8, chacun avec son échelle
        Voir :func:`integer_product`.

    Returns
    -------
    Tensor, (..., m), du dtype de x
    """
    (v, v_scale), (u, u_scale) = V, (U[0].t(), U[1].t())
    flat = x.reshape(-1, x.shape[-1]).float()  # float16 ne tiendrait pas la somme de n produits de codes
    parts = flat.split(max(1, BLOCK // max(v.shape[0], u.shape[1])))
    y = [integer_product(integer_product(part, v, v_scale), u, u_scale) for part in parts]
    return (y[0] if len(y) == 1 else torch.cat(y)).view(*x.shape[:-1], u.shape[1]).to(x.dtype)
