"""x Ŵᵀ sans former Ŵ : chaque cœur consomme un indice d'entrée et en rend un de sortie, dans l'ordre le moins cher.

Réunir d'abord des cœurs voisins coûte une fois, mais épargne des passages sur tout le lot ; les réunir tous, c'est
former Ŵ. Le meilleur découpage dépend de la taille du lot.
"""

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .tensor_train import check_cores, merge_cores
from .validation import check_input

# Le prix, en multiplications, d'un nombre lu ou écrit, d'un appel à PyTorch, d'une petite matrice d'un lot : mesuré
# sur un processeur courant. À un facteur deux près, le découpage choisi ne change guère.
ELEMENT, CALL, ITEM = 56, 300_000, 100_000

Shapes = tuple[tuple[int, int, int, int], ...]


def tt_product(x: Tensor, cores: Sequence[Tensor]) -> Tensor:
    """y = x Ŵᵀ, où Ŵ (out, in) est la matrice que décrivent les cœurs.

    Parameters
    ----------
    x : Tensor, (..., in)
    cores : list de d Tensor, (r_{k−1}, in_k, out_k, r_k)

    Returns
    -------
    Tensor, (..., out)

    Raises
    ------
    TypeError, ValueError
        Des cœurs qui ne s'enchaînent pas, ou qui ne sont pas finis ; `x` d'une autre largeur que le produit des in_k.
    """
    cores = check_cores(cores, order=4)
    return apply_cores(check_input(x, math.prod(core.shape[1] for core in cores)), cores)


def apply_cores(x: Tensor, cores: Sequence[Tensor]) -> Tensor:
    """:func:`tt_product`, sans rien vérifier : à chaque appel d'une couche, relire les cœurs coûterait."""
    rest = x.shape[-1]
    done = x.shape[:-1].numel()  # le lot, puis les indices de sortie déjà rendus
    z = x
    for start, stop in cheapest_groups(tuple(core.shape for core in cores), done):
        core = merge_cores(cores[start:stop])
        r, i, o, s = core.shape
        rest //= i
        G = core.permute(2, 3, 0, 1).reshape(o * s, r * i)
        z = z.reshape(done, r * i, rest)  # (B o₁ ⋯ o_{k−1}, r_{k−1} i_k, i_{k+1} ⋯ i_d)
        z = F.linear(z[..., 0], G) if rest == 1 else torch.bmm(G.expand(done, -1, -1), z)
        done *= o  # (B o₁ ⋯ o_{k−1}, o_k r_k, i_{k+1} ⋯ i_d)
    return z.reshape(*x.shape[:-1], math.prod(core.shape[2] for core in cores))


@functools.lru_cache(maxsize=1024)
def cheapest_groups(shapes: Shapes, batch: int) -> list[tuple[int, int]]:
    """Les groupes de cœurs voisins, [début, fin[, de moindre prix : un plus court chemin d'un bout à l'autre."""
    best: list[tuple[float, list[tuple[int, int]]]] = [(0, [])]
    for stop in range(1, len(shapes) + 1):
        best.append(
            min(
                (best[start][0] + merge_price(shapes[start:stop]) + pass_price(shapes, start, stop, batch),
                 [*best[start][1], (start, stop)])
                for start in range(stop)
            )
        )  # fmt: skip
    return best[-1][1]


def merge_price(shapes: Shapes) -> float:
    """Le prix de :func:`~lrq.tensor_train.merge_cores`."""
    if len(shapes) == 1:
        return 0
    left, right = shapes[: len(shapes) // 2], shapes[len(shapes) // 2 :]
    rows, inner, columns = shapes[0][0] * pairs(left), left[-1][3], pairs(right) * shapes[-1][3]
    moved = (rows + columns) * inner + 3 * rows * columns  # le produit est écrit, relu, puis rangé autrement
    return merge_price(left) + merge_price(right) + rows * inner * columns + ELEMENT * moved + 2 * CALL


def pass_price(shapes: Shapes, start: int, stop: int, batch: int) -> float:
    """Le prix du passage du lot par le groupe de cœurs `[start, stop[`."""
    done = batch * math.prod(o for _, _, o, _ in shapes[:start])
    rest = math.prod(i for _, i, _, _ in shapes[stop:])
    inner = shapes[start][0] * math.prod(i for _, i, _, _ in shapes[start:stop])
    outer = math.prod(o for _, _, o, _ in shapes[start:stop]) * shapes[stop - 1][3]
    moved = done * (inner + outer) * rest + inner * outer
    return done * inner * outer * rest + ELEMENT * moved + CALL + (ITEM * done if rest > 1 else 0)


def pairs(shapes: Shapes) -> int:
    """Le nombre d'indices (entrée, sortie) d'un groupe de cœurs."""
    return math.prod(i * o for _, i, o, _ in shapes)
