"""Exercices 9.6.1 et 9.6.2 : QAT contre PTQ pour un train de tenseurs ; les rangs d'un train quantifié."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..gauge import balance_cores, regauge
from ..tensor_train import tt_contract, tt_matrix_contract, tt_matrix_svd, tt_ranks, tt_round, tt_svd, unfoldings
from .engine import Case, Exercise, Mistake, Property, as_integer
from .instances import integer, number, uniform
from .section_11_04 import ENOUGH, changed, clear, largest_code, on_grid, relative, rounded, through, wide_grid

Cores = list[Tensor]


def grid_cores(cores: Iterable[Tensor], n_bits: int) -> Cores:
    """Chaque cœur quantifié à son échelle, puis déquantifié."""
    return [rounded(core, n_bits) for core in cores]


def exact(cores: Iterable[Tensor]) -> Cores:
    """Les cœurs en float64."""
    return [core.detach().double() for core in cores]


def shapes(cores: Iterable[Tensor]) -> tuple[tuple[int, ...], ...]:
    """Les formes des cœurs."""
    return tuple(tuple(core.shape) for core in cores)


def is_list_of_tensors(value: Any) -> bool:
    """Vrai pour une liste, ou un tuple, de tenseurs."""
    return isinstance(value, list | tuple) and all(isinstance(t, Tensor) for t in value)


Content = tuple[tuple[bytes, tuple[int, ...]], ...]


def content_of(tensors: Iterable[Tensor]) -> Content:
    """De quoi retrouver des tenseurs par leurs octets."""
    return tuple((t.numpy().tobytes(), tuple(t.shape)) for t in tensors)


def tensors_of(content: Content, dtype: torch.dtype) -> list[Tensor]:
    """Les tenseurs de ces octets."""
    return [torch.frombuffer(bytearray(data), dtype=dtype).view(shape) for data, shape in content]


def core_reading(t: Tensor, n_bits: int) -> str:
    """Où tombent les coefficients d'un cœur."""
    q = largest_code(n_bits)
    if on_grid(t, q):
        return "grille"
    if on_grid(t, 4 * q + 3):
        return "des codes de trop"
    sides = t.flatten(0, -2), t.flatten(0, -2).T, t.flatten(1), t.flatten(1).T
    long = (side for side in sides if side.shape[1] > 4)  # quelques nombres tombent trop aisément sur une grille
    if any(all(on_grid(row, q) for row in side) for side in long):
        return "plusieurs échelles"
    return "flottants"


SAID = {
    "flottants": "ses coefficients ne sont pas les multiples entiers d'une même échelle : quantifiez avant de rendre",
    "des codes de trop": "il lui faut des codes au-delà de q : calculez l'échelle du cœur tel qu'il est, ou écrêtez",
    "plusieurs échelles": "il lui faut plusieurs échelles ; il n'en a qu'une",
}

# --- 9.6.1 ------------------------------------------------------------------------------------------------------------

WAYS = ("ptq", "qat")


def imitated_layer(generator: torch.Generator, inputs: Sequence[int], outputs: Sequence[int], rank: int) -> Any:
    """Les cœurs d'une couche, dans la jauge tournée, des entrées en peu de directions, et des sorties à 2 % près."""
    m, n = math.prod(outputs), math.prod(inputs)
    Q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
    x = torch.randn(200, n, generator=generator, dtype=torch.float64) * torch.arange(1, n + 1) ** -1.5 @ Q.T
    x = x / x.square().mean().sqrt()
    W = torch.randn(m, n, generator=generator, dtype=torch.float64) / math.sqrt(n)
    cores = regauge(tt_matrix_svd(W, inputs, outputs, rank), "rotated")
    y = x @ tt_matrix_contract(cores).T
    noise = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    y = y + 0.02 * y.norm() / noise.norm() * noise
    return [core.float() for core in cores], x.float(), y.float()


def qat_cases(generator: torch.Generator) -> list[Case]:
    """Deux et trois bits, où il y a à gagner, et huit, où il n'y a presque rien ; deux ou trois cœurs."""
    torch.optim.SGD([torch.zeros(1)], lr=0.1)  # le premier optimiseur est long à charger : pas sur le temps du lecteur
    cases = []
    for n_bits, inputs, outputs in ((2, [4, 3, 4], [4, 3, 4]), (3, [6, 6], [3, 4]), (8, [4, 3, 4], [2, 3, 2])):
        while True:
            rank = integer(generator, 4, 6)
            cores, x, y = imitated_layer(generator, inputs, outputs, rank)
            if all(clear(core.double(), n_bits) for core in cores):
                break
        label = f"{len(cores)} cœurs, {inputs} → {outputs}, rangs {tt_ranks(cores)}, n_bits = {n_bits}"
        cases.append(Case(label, (cores, x, y, n_bits)))
    return cases


def read_layer(cores: Sequence[Tensor], order: str = "juste") -> Tensor:
    """La matrice (out, in) que décrivent les cœurs, ses indices rangés comme il faut ou non."""
    inputs, outputs = [core.shape[1] for core in cores], [core.shape[2] for core in cores]
    if order.startswith("indices mêlés"):
        T = tt_contract([core.flatten(1, 2) for core in cores])  # (in₁ out₁, in₂ out₂, …), jamais permuté
        rows, columns = math.prod(outputs), math.prod(inputs)
        return T.reshape(columns, rows).T if order.endswith("transposés") else T.reshape(rows, columns)
    W, d = tt_matrix_contract(cores), len(cores)
    if order in ("sorties à l'envers", "tout à l'envers"):
        W = W.reshape(*outputs, -1).permute(*range(d)[::-1], d).reshape(W.shape)
    if order in ("entrées à l'envers", "tout à l'envers"):
        W = W.reshape(-1, *inputs).permute(0, *range(1, d + 1)[::-1]).reshape(W.shape)
    return W.T if order == "transposée" else W


MISREADINGS = (
    *("transposée", "sorties à l'envers", "entrées à l'envers", "tout à l'envers"),
    *("indices mêlés", "indices mêlés, transposés"),
)


def output_error(cores: Sequence[Tensor], x: Tensor, y: Tensor, order: str = "juste") -> float:
    """‖x Ŵᵀ − y‖/‖y‖, en float64."""
    return relative(x.double() @ read_layer(exact(cores), order).T - y.double(), y)


def error_reading(value: float, cores: Sequence[Tensor], case: Case) -> str:
    """Ce que mesure vraiment une erreur rendue pour ces cœurs."""
    _, x, y, _ = case.args
    right, norm = output_error(cores, x, y), float(y.double().norm())
    readings = {"juste": right, "carré": right**2, "absolue": right * norm, "moyenne": (right * norm) ** 2 / y.numel()}
    orders = MISREADINGS if x.shape[1] == y.shape[1] else MISREADINGS[1:]
    readings |= {order: output_error(cores, x, y, order) for order in orders}
    return next((name for name, v in readings.items() if math.isclose(value, v, rel_tol=2e-3, abs_tol=1e-5)), "autre")


def learning_reading(cores: Sequence[Tensor], case: Case) -> str:
    """Ce que l'apprentissage a fait des cœurs ; sans gradient à travers l'arrondi, l'échelle bouge encore."""
    start, x, y, n_bits = case.args
    ratio = output_error(cores, x, y) / output_error(grid_cores(exact(start), n_bits), x, y)
    if n_bits > 3:  # presque rien à gagner : seul compte de ne rien perdre
        return "pire" if ratio > 1.001 else "aussi bien"
    moved = [changed(core, begun, n_bits) for core, begun in zip(cores, start, strict=True)]
    if max(moved) == 0 or (max(moved) < 0.06 and ratio < 0.85):
        return "figés"
    if max(moved) < 0.1:
        return "à peine"
    return "des cœurs oubliés" if min(moved) == 0 else "gagné" if ratio <= ENOUGH else "à peine"


def same_cores(cores: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    """Vrai si les cœurs sont les mêmes, à l'arrondi près."""
    return all(bool((a - b).abs().max() <= 1e-3 * b.abs().max()) for a, b in zip(exact(cores), wanted, strict=True))


def qat_portrait(result: Any, case: Case) -> Any:
    """Ce qui, dans un apprentissage, ne dépend ni de la méthode, ni de sa patience."""
    start, _, _, n_bits = case.args
    found = {way: (list(result[way][0]), float(result[way][1])) for way in WAYS}
    if any(shapes(cores) != shapes(start) for cores, _ in found.values()):
        return [shapes(cores) for cores, _ in found.values()]
    readings = tuple(error_reading(error, cores, case) for cores, error in found.values())
    if set(readings) & set(MISREADINGS):
        return readings
    grids = [{core_reading(core, n_bits) for core in cores} - {"grille"} for cores, _ in found.values()]
    right = same_cores(found["ptq"][0], grid_cores(exact(start), n_bits))
    if not right or grids[1]:
        return right, [tuple(sorted(grid)) for grid in grids]
    return learning_reading(found["qat"][0], case), *readings


def qat_properties(result: Any, case: Case) -> Iterable[Property]:
    """PTQ est refait ici ; QAT est jugé sur les cœurs rendus, d'où qu'ils viennent."""
    start, x, y, n_bits = case.args
    valid = isinstance(result, Mapping) and set(result) == set(WAYS)
    valid = valid and all(len(result[way]) == 2 and is_list_of_tensors(result[way][0]) for way in WAYS)
    text = "le résultat est un dictionnaire de clés ptq et qat, à chacune (cœurs, erreur)"
    yield Property(text, valid, f"reçu {sorted(map(str, result)) if isinstance(result, Mapping) else result!r}")
    if not valid:
        return
    (ptq, ptq_error), (qat, qat_error) = ((exact(result[way][0]), float(result[way][1])) for way in WAYS)
    right = shapes(ptq) == shapes(qat) == shapes(start)
    why = f"reçu {shapes(ptq)} et {shapes(qat)}, attendu {shapes(start)}"
    yield Property("les cœurs ont les formes de ceux reçus", right, why)
    if not right:
        return
    finite = all(bool(core.isfinite().all()) for core in (*ptq, *qat))
    yield Property("les cœurs sont finis", finite, "ils contiennent nan ou inf : le pas est trop grand")
    if not finite:
        return
    wanted, q = grid_cores(exact(start), n_bits), largest_code(n_bits)
    gaps = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(ptq, wanted, strict=True)]
    k = gaps.index(max(gaps))
    yield Property(
        "ptq : chaque cœur reçu, arrondi à l'échelle max|cœur|/q, la sienne",
        gaps[k] <= 1e-3,
        f"le cœur {k} s'en écarte jusqu'à {number(100 * gaps[k])} % de son plus grand coefficient (q = {q})",
    )
    if gaps[k] > 1e-3:
        return
    true_ptq, true_qat = output_error(ptq, x, y), output_error(qat, x, y)
    yield Property(
        "ptq : l'erreur est celle de ces cœurs",
        math.isclose(ptq_error, true_ptq, rel_tol=2e-3),
        f"vous trouvez {number(ptq_error)} ; x Ŵᵀ est à {number(true_ptq)} de y",
    )
    where = {k: core_reading(core, n_bits) for k, core in enumerate(qat)}
    for k, reading in where.items():
        why = f"pas le cœur {k} : {SAID.get(reading, '')}"
        yield Property("qat : chaque cœur est sur une grille de −q à q, à une seule échelle", reading == "grille", why)
    if set(where.values()) != {"grille"}:
        return
    yield Property(
        "qat : l'erreur est celle des cœurs rendus",
        math.isclose(qat_error, true_qat, rel_tol=2e-3, abs_tol=1e-5),
        f"vous annoncez {number(qat_error)}, et les cœurs que vous rendez laissent {number(true_qat)}",
    )
    yield Property(
        "QAT ne fait jamais pire que PTQ",
        true_qat <= 1.001 * true_ptq,
        f"{number(true_qat)} contre {number(true_ptq)} : l'apprentissage oscille d'un code à l'autre ; gardez les "
        "meilleurs cœurs vus en chemin, ceux de PTQ compris",
    )
    still = [k for k, (t, s) in enumerate(zip(qat, start, strict=True)) if changed(t, s, n_bits) == 0]
    yield Property(
        "à deux et trois bits, les codes de tous les cœurs ont appris",
        n_bits > 3 or not still,
        f"cœur {', '.join(map(str, still))} : pas un code n'a changé ; ce sont ceux du cœur reçu, arrondi à cette "
        "échelle",
    )
    yield Property(
        "à deux et trois bits, QAT ôte au moins un cinquième de l'erreur",
        n_bits > 3 or true_qat <= ENOUGH * true_ptq,
        f"{number(true_qat)} après l'apprentissage, {number(true_ptq)} avant : plus de pas, ou un pas d'une autre "
        "grandeur (une petite fraction de l'échelle)",
    )


def gain_vanishes(cases: Sequence[Case], results: Sequence[Any]) -> Iterable[Property]:
    """Les instances vont de peu de bits à beaucoup."""
    left = {
        case.args[-1]: float(result["ptq"][1]) - float(result["qat"][1])
        for case, result in zip(cases, results, strict=True)
    }
    yield Property(
        "vos nombres le montrent : QAT gagne beaucoup à deux bits, et presque rien à huit",
        left[2] > 5 * left[8],
        f"gain d'erreur : {number(left[2])} à deux bits, {number(left[8])} à huit",
    )


@lru_cache(maxsize=8)
def learned(content: Content, n_bits: int) -> Cores:
    """QAT par Adam, en gardant le meilleur : ce que les fautes font bien par ailleurs, et n'apprennent qu'une fois."""
    *cores, x, y = tensors_of(content, torch.float32)
    latents = [core.clone().requires_grad_() for core in cores]
    optimizer = torch.optim.Adam(latents, lr=0.01)
    best = math.inf, list(cores)
    for _ in range(150):
        used = [through(core, n_bits) for core in latents]
        loss = (x @ tt_matrix_contract(used).T - y).square().mean()
        if loss.item() < best[0]:
            best = loss.item(), [core.detach() for core in used]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return best[1]


Answer = dict[str, tuple[Cores, float]]


def qat_variant(
    change: Callable[[Cores, Cores, int], Cores] = lambda cores, start, n_bits: cores,
    *,
    learn: bool = False,
    quantize: Callable[[Cores, int], Cores] = grid_cores,
    order: str = "juste",
    report: Callable[[float, Tensor], float] = lambda error, y: error,
    announce: float = 1,
) -> Any:
    """Fonction fautive : `change` rend les cœurs de QAT.

    Elle reçoit ceux de PTQ (ou, si `learn`, d'un bon apprentissage), ceux de départ, et n_bits ; `report` transforme
    les deux erreurs, et `announce` multiplie la seconde.
    """

    def wrong(cores: Cores, x: Tensor, y: Tensor, n_bits: int) -> Answer:
        ptq = quantize(cores, n_bits)
        qat = change(learned(content_of([*cores, x, y]), n_bits) if learn else ptq, cores, n_bits)
        errors = (report(output_error(way, x, y, order), y) for way in (ptq, qat))
        return {"ptq": (ptq, next(errors)), "qat": (qat, announce * next(errors))}

    return wrong


def one_learned(k: int) -> Any:
    """Fonction fautive : à peu de bits, seul le cœur k est appris ; à huit, où un seul ferait pire, rien ne bouge."""

    def change(cores: Cores, start: Cores, n_bits: int) -> Cores:
        ptq = grid_cores(start, n_bits)
        k_th = range(len(cores))[k]
        return [c if i == k_th and n_bits <= 3 else p for i, (c, p) in enumerate(zip(cores, ptq, strict=True))]

    return qat_variant(change, learn=True)


def moved(t: Tensor, n_bits: int) -> Tensor:
    """L'arrondi de `t` déplacé au hasard, ou presque, de moins d'un code."""
    scale = t.abs().max() / largest_code(n_bits)
    return rounded(t + 0.6 * scale * torch.arange(t.numel()).sin().view(t.shape), n_bits)


def worse(cores: Cores) -> Cores:
    """Les mêmes, le premier trop grand d'un vingtième : une erreur plus grande, sur la même grille."""
    return [1.05 * cores[0], *cores[1:]]


def untaught(still: Sequence[int], spoilt: bool) -> Any:
    """Fonction fautive : des codes figés aux nombres de bits de `still`, déplacés pour rien ailleurs ; à huit, pire."""

    def change(cores: Cores, start: Cores, n_bits: int) -> Cores:
        if n_bits > 3:
            return worse(cores) if spoilt else cores
        return cores if n_bits in still else [moved(core, n_bits) for core in start]

    return qat_variant(change)


def fixed_scale(bits: Sequence[int]) -> Any:
    """Fonction fautive : à ces nombres de bits, l'échelle du départ, devenue trop petite, sans écrêtage."""

    def change(cores: Cores, start: Cores, n_bits: int) -> Cores:
        if n_bits not in bits:
            return cores
        scales = [core.abs().max() / largest_code(n_bits) for core in start]
        return [(1.6 * core / scale).round() * scale for core, scale in zip(start, scales, strict=True)]

    return qat_variant(change, learn=True)


def wide(clamp: bool) -> Callable[[Cores, int], Cores]:
    """L'échelle max/2^(b−1), avec ou sans écrêtage."""

    def quantize(cores: Cores, n_bits: int) -> Cores:
        return [codes * scale for codes, scale in (wide_grid(core, n_bits, clamp) for core in cores)]

    return quantize


def common_scale(cores: Cores, n_bits: int) -> Cores:
    """Une seule échelle pour tous les cœurs."""
    scale = max(core.abs().max() for core in cores) / largest_code(n_bits)
    return [(core / scale).round() * scale for core in cores]


def per_direction(axis: int) -> Callable[[Cores, int], Cores]:
    """Une échelle par direction d'un lien."""

    def quantize(cores: Cores, n_bits: int) -> Cores:
        return [torch.stack([rounded(s, n_bits) for s in core.unbind(axis)], axis) for core in cores]

    return quantize


def dense_first(cores: Cores, n_bits: int) -> Cores:
    """La matrice quantifiée, redécoupée ensuite : des flottants."""
    inputs, outputs = [core.shape[1] for core in cores], [core.shape[2] for core in cores]
    return tt_matrix_svd(rounded(tt_matrix_contract(cores), n_bits), inputs, outputs, tt_ranks(cores))


EXERCISE_9_6_1 = Exercise(
    number="9.6.1",
    title="QAT contre PTQ pour une couche en train de tenseurs",
    cases=qat_cases,
    properties=qat_properties,
    across=gain_vanishes,
    portrait=qat_portrait,
    mistakes=(
        Mistake(
            "des indices mal rangés",
            "les cœurs sont bons, mais votre couche ne calcule pas x Ŵᵀ : le cœur (r, in, out, s) consomme l'indice "
            "d'entrée i_k et rend l'indice de sortie o_k ; les lignes de Ŵ se comptent par (o₁, …, o_d), ses colonnes "
            "par (i₁, …, i_d), dans cet ordre. Permutez avant de réunir les axes (le code du cours, lui, oublie les "
            "sorties et ne contracte pas les rangs).",
            tuple(qat_variant(order=order) for order in MISREADINGS),
        ),
        Mistake(
            "Ŵ quantifiée au lieu des cœurs",
            "vous quantifiez la matrice, puis vous la découpez : les cœurs rendus sont des flottants, de 32 bits "
            "chacun. Ce qui se range, ce sont les codes des cœurs.",
            (qat_variant(quantize=dense_first),),
        ),
        Mistake(
            "aucun gradient à travers l'arrondi",
            "vos codes sont ceux des cœurs reçus, ou presque : la dérivée de round est nulle, et seule l'échelle a pu "
            "bouger. Faites comme si l'arrondi était l'identité au retour : t + (arrondi(t) − t).detach(). Si c'est "
            "déjà le cas, votre pas est trop petit pour changer un code, ou si grand que rien ne bat le départ.",
            (untaught((2, 3), spoilt=False), untaught((2, 3), spoilt=True)),
        ),
        Mistake(
            "l'arrondi hors de la boucle",
            "vos codes ont changé, et l'erreur n'y gagne rien : ils n'ont pas été choisis pour elle. La perte est sans "
            "doute calculée sur les cœurs flottants, déjà bons, et l'arrondi n'arrive qu'à la fin. Quantifiez à chaque "
            "pas, avant de calculer la perte.",
            tuple(untaught(still, spoilt) for still in ((), (2,), (3,)) for spoilt in (True, False)),
        ),
        Mistake(
            "la quantification finale oubliée",
            "vous rendez les cœurs flottants que l'optimiseur promène ; ce qui se range, c'est leur arrondi.",
            (qat_variant(lambda cores, start, n_bits: start),),
        ),
        Mistake(
            "des cœurs oubliés",
            "un cœur au moins est resté à son arrondi de départ : donnez-les tous à l'optimiseur, et quantifiez-les "
            "tous dans la boucle.",
            (one_learned(0), one_learned(-1)),
        ),
        Mistake(
            "le dernier pas plutôt que le meilleur",
            "à peu de bits vous gagnez, mais à huit, où il n'y avait presque rien à gagner, vous finissez plus loin "
            "que PTQ : autour d'un demi-code, chaque pas fait sauter des coefficients. Gardez les meilleurs cœurs.",
            tuple(
                qat_variant(
                    lambda cores, start, n_bits: cores if n_bits <= 3 else worse(cores), learn=True, announce=announce
                )
                for announce in (1, 0.9)
            ),
        ),
        Mistake(
            "une échelle calculée une fois pour toutes",
            "vos cœurs ont grandi pendant l'apprentissage, et pas leur échelle : il leur faut des codes au-delà de q. "
            "Recalculez max|cœur|/q à chaque pas, ou écrêtez les codes.",
            tuple(fixed_scale(bits) for bits in ((8,), (3, 8), (2, 3, 8), (2,), (3,), (2, 3))),
        ),
        Mistake(
            "une grille à 2^(b−1)",
            "q vaut 2^(b−1) − 1 : à deux bits, trois niveaux, −1, 0 et 1. Avec 2^(b−1), il en faut un de plus.",
            (qat_variant(quantize=wide(clamp=True)), qat_variant(quantize=wide(clamp=False))),
        ),
        Mistake(
            "une échelle commune, ou plusieurs par cœur",
            "l'énoncé donne une échelle à chaque cœur : commune, elle gaspille les codes des plus petits ; une par "
            "direction d'un lien, elle arrondit mieux, mais se paie d'autant de nombres.",
            (
                qat_variant(quantize=common_scale),
                qat_variant(quantize=per_direction(0)),
                qat_variant(quantize=per_direction(-1)),
            ),
        ),
        Mistake(
            "une erreur qui n'est pas celle des cœurs rendus",
            "vos cœurs ont appris, mais l'erreur annoncée est celle d'autres : les flottants de l'optimiseur, ou ceux "
            "d'un autre pas. Mesurez ce que vous rendez.",
            (qat_variant(learn=True, announce=0.9),),
        ),
        Mistake(
            "une perte à la place de l'erreur",
            "vous rendez une erreur au carré, ou une moyenne de carrés ; l'énoncé demande ‖xŴᵀ − y‖/‖y‖.",
            (
                qat_variant(learn=True, report=lambda error, y: error**2),
                qat_variant(learn=True, report=lambda error, y: error * float(y.norm())),
                qat_variant(learn=True, report=lambda error, y: error**2 * float(y.square().mean())),
            ),
        ),
    ),
)

# --- 9.6.2 ------------------------------------------------------------------------------------------------------------

KEYS = ("rangs", "apres", "avant")
NEAR = 1.15  # de combien l'arrondi d'un train peut dépasser celui de ses cœurs équilibrés
APART = 1.25  # de combien, dans nos instances, l'arrondi de l'autre train le dépasse au moins


class Cut(NamedTuple):
    """Un train tronqué : ce qu'il pèse, ses rangs, son erreur contre T, et son écart au train de départ."""

    numbers: int
    ranks: tuple[int, ...]
    error: float
    drift: float


def random_train(generator: torch.Generator, sizes: Sequence[int], ranks: Sequence[int]) -> Cores:
    """Des cœurs au hasard, dont les directions de chaque lien décroissent, tels que les rendrait une TT-SVD."""
    decay, bonds = uniform(generator, 0.8, 1.2), [1, *ranks, 1]
    cores = [
        torch.randn(r, n, s, generator=generator, dtype=torch.float64) * torch.arange(1, s + 1) ** -decay
        for r, n, s in zip(bonds, sizes, bonds[1:], strict=False)
    ]
    return tt_svd(tt_contract(cores), ranks)


def weight(sizes: Sequence[int], ranks: Sequence[int]) -> int:
    """Combien de nombres garde un train de ces rangs."""
    bonds = [1, *ranks, 1]
    return sum(r * n * s for r, n, s in zip(bonds, sizes, bonds[1:], strict=False))


def truncations(rest: Tensor, caps: Sequence[int]) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Toutes les TT-SVD d'un tenseur (r, n_k, …, n_d), jusqu'à ces rangs : les rangs, et le tenseur tronqué."""
    if not caps:
        yield (), rest
        return
    U, S, Vh = torch.linalg.svd(rest.flatten(0, 1).flatten(1), full_matrices=False)
    for r in range(1, min(caps[0], len(S)) + 1):
        for ranks, kept in truncations((S[:r, None] * Vh[:r]).view(r, *rest.shape[2:]), caps[1:]):
            yield (r, *ranks), (U[:, :r] @ kept.flatten(1)).view(rest.shape)


def all_cuts(start: Sequence[Tensor], T: Tensor, shrink: Callable[[Cores, list[int]], Cores] = tt_round) -> list[Cut]:
    """Toutes les troncatures d'un train, de la plus légère à la plus lourde."""
    whole, sizes, caps = tt_contract(start), [core.shape[1] for core in start], tt_ranks(start)
    found = truncations(whole[None], caps)
    if shrink is not tt_round:
        every = itertools.product(*(range(1, cap + 1) for cap in caps))
        found = ((ranks, tt_contract(shrink(list(start), list(ranks)))[None]) for ranks in every)
    return sorted(Cut(weight(sizes, r), r, relative(P[0] - T, T), relative(P[0] - whole, T)) for r, P in found)


def mirrored(cores: Sequence[Tensor]) -> Cores:
    """Le même train, lu de droite à gauche."""
    return [core.transpose(0, -1) for core in reversed(cores)]


def numerical_ranks(T: Tensor) -> list[int]:
    """Le rang de chaque dépliement."""
    return [int(torch.linalg.matrix_rank(M, rtol=1e-6)) for M in unfoldings(T)]


def stored(cores: Sequence[Tensor], n_bits: int) -> Cores:
    """Le train tel qu'on le range : équilibré, puis arrondi."""
    return grid_cores(balance_cores(cores), n_bits)


def distance(cores: Sequence[Tensor], target: Tensor) -> float:
    """‖T̂ − cible‖, en float64."""
    return float((tt_contract(exact(cores)) - target).norm())


class Judge:
    """Ce qu'une instance permet de certifier."""

    def __init__(self, cores: Sequence[Tensor], n_bits: int, margin: float):
        self.cores, self.n_bits, self.T = exact(cores), n_bits, tt_contract(exact(cores))
        self.start = grid_cores(self.cores, n_bits)
        self.ranks = numerical_ranks(tt_contract(self.start))
        self.limit = (1 + margin) * self.error(self.start)
        self.cuts = all_cuts(self.start, self.T)
        self.best = next(cut for cut in self.cuts if cut.error <= self.limit)
        self.trains = {"apres": self.start, "avant": self.cores}
        self.known: dict[tuple[int, ...], dict[str, tuple[Tensor, float]]] = {}

    def error(self, cores: Sequence[Tensor]) -> float:
        """L'erreur relative d'un train."""
        return distance(cores, self.T) / float(self.T.norm())

    def targets(self, ranks: Sequence[int]) -> dict[str, tuple[Tensor, float]]:
        """Pour chaque réponse, le train à ranger, tronqué à ces rangs, et ce qu'y ajoute l'arrondi."""
        key = tuple(ranks)
        if key not in self.known:
            self.known[key] = {name: self.target(cores, key) for name, cores in self.trains.items()}
        return self.known[key]

    def target(self, cores: Cores, ranks: tuple[int, ...]) -> tuple[Tensor, float]:
        """Le train tronqué, et ce qu'y ajoute l'arrondi, que la TT-SVD commence par un bout ou par l'autre."""
        cuts = tt_round(cores, ranks), mirrored(tt_round(mirrored(cores), ranks[::-1]))
        wanted = tt_contract(cuts[0])
        return wanted, max(distance(stored(cut, self.n_bits), wanted) for cut in cuts)

    def is_near(self, cores: Sequence[Tensor], target: Tensor, noise: float) -> bool:
        """Vrai si ces cœurs rangent ce train aussi bien, ou presque, que ses cœurs équilibrés."""
        return distance(cores, target) <= NEAR * noise

    def nature(self, cores: Sequence[Tensor], key: str) -> Any:
        """Quel train ces cœurs rangent : celui de `key`, l'autre, ou aucun des deux (leur erreur, alors)."""
        targets = self.targets(tt_ranks(cores))
        names = sorted(targets, key=lambda name: name != key)
        return next((name for name in names if self.is_near(cores, *targets[name])), self.error(cores))

    def is_clear(self) -> bool:
        """Vrai si aucune décision ne dépend de la précision du calcul, ni du bout par où commence la TT-SVD."""
        other = all_cuts(mirrored(self.start), self.T.permute(*range(self.T.ndim)[::-1]))
        if any(abs(cut.error - self.limit) < 0.005 * self.limit for cut in (*self.cuts, *other)):
            return False
        if lightest(other, self.limit) != self.best.ranks[::-1]:
            return False
        values = torch.cat([torch.linalg.svdvals(M) / self.T.norm() for M in unfoldings(tt_contract(self.start))])
        return bool(((values < 1e-9) | (values > 1e-4)).all())

    def is_telling(self) -> bool:
        """Vrai si réduire est possible, coûte plus après qu'avant, et donne deux trains qu'on distingue."""
        ranks, targets = list(self.best.ranks), self.targets(self.best.ranks)
        after, before = (stored(tt_round(cores, ranks), self.n_bits) for cores in self.trains.values())
        apart = distance(before, targets["apres"][0]) > APART * targets["apres"][1]
        apart = apart and distance(after, targets["avant"][0]) > APART * targets["avant"][1]
        return apart and ranks != tt_ranks(self.cores) and self.error(after) > 1.08 * self.error(before)


def judge_of(cores: Sequence[Tensor], n_bits: int, margin: float) -> Judge:
    """Le juge d'une instance, retrouvé par ce qu'elle contient : chaque faute l'interroge."""
    return known_judge(content_of(exact(cores)), n_bits, margin)


@lru_cache(maxsize=16)
def known_judge(content: Content, n_bits: int, margin: float) -> Judge:
    """Le juge, de ses octets."""
    return Judge(tensors_of(content, torch.float64), n_bits, margin)


def reduce_cases(generator: torch.Generator) -> list[Case]:
    """Un tenseur, à trois bits, dans la jauge d'une TT-SVD puis dans la jauge tournée, et à huit ; et quatre cœurs."""
    while True:
        margin = integer(generator, 1, 4) / 20
        cores = random_train(generator, [6, 7, 6], [5, 5])
        rotated = regauge(cores, "rotated")
        first = Judge(cores, 3, margin)
        if first.ranks in ([5, 5], live_slices(first.start)) or not (first.is_clear() and first.is_telling()):
            continue
        second, third = Judge(rotated, 3, margin), Judge(rotated, 8, margin)
        whole = second.ranks == third.ranks == [5, 5] == list(third.best.ranks)
        if whole and second.best.ranks != (5, 5) and second.is_clear() and third.is_clear():
            break
    while True:
        long, wide_margin = random_train(generator, [4, 5, 5, 4], [4, 5, 4]), integer(generator, 1, 4) / 20
        fourth = Judge(long, 4, wide_margin)
        chosen = {
            *(pick(fourth.cuts, fourth.limit) for pick in (lightest, lightest_by_drift, same_everywhere)),
            lightest(all_cuts(long, fourth.T), fourth.limit),
        }
        if len(chosen) == 4 and fourth.is_clear() and fourth.is_telling():
            break
    made = [
        ("TT-SVD", cores, 3, margin),
        ("jauge tournée", rotated, 3, margin),
        ("jauge tournée", rotated, 8, margin),
        ("TT-SVD", long, 4, wide_margin),
    ]
    return [
        Case(
            f"{len(chain)} cœurs, {gauge}, rangs {tt_ranks(chain)}, n_bits = {n_bits}, marge = {number(share)}",
            (chain, n_bits, share),
        )
        for gauge, chain, n_bits, share in made
    ]


def is_train(value: Any, sizes: Sequence[int]) -> bool:
    """Vrai pour une liste de cœurs (r, n, s) finis, de ces dimensions, dont les rangs s'accordent, de 1 à 1."""
    if not is_list_of_tensors(value) or len(value) != len(sizes) or any(core.ndim != 3 for core in value):
        return False
    bonds = [1, *(core.shape[0] for core in value[1:]), 1]
    wanted = [(r, n, s) for r, n, s in zip(bonds, sizes, bonds[1:], strict=False)]
    return list(shapes(value)) == wanted and all(bool(core.isfinite().all()) for core in value)


def reduce_properties(result: Any, case: Case) -> Iterable[Property]:
    """Les rangs viennent des dépliements ; les trains sont jugés sur ce qu'ils décrivent, quelle que soit la jauge."""
    sizes = [core.shape[1] for core in case.args[0]]
    valid = isinstance(result, Mapping) and set(result) == set(KEYS)
    text = "le résultat est un dictionnaire de clés rangs, apres et avant"
    yield Property(text, valid, f"reçu {sorted(map(str, result)) if isinstance(result, Mapping) else result!r}")
    if not valid:
        return
    trains = {key: list(result[key]) for key in ("apres", "avant")}
    valid = all(is_train(cores, sizes) for cores in trains.values())
    why = "reçu " + ", ".join(f"{key} : {shapes(cores)}" for key, cores in trains.items())
    yield Property("apres et avant sont des trains de cœurs (r, n, s), aux dimensions reçues", valid, why)
    if not valid:
        return
    judge, trains = judge_of(*case.args), {key: exact(cores) for key, cores in trains.items()}
    ranks = [as_integer(rank) for rank in result["rangs"]]
    yield Property(
        "rangs : ceux des dépliements du train quantifié",
        ranks == judge.ranks,
        f"vous rendez {ranks} ; les dépliements de T̂ sont de rangs {judge.ranks}, pour des cœurs de rangs "
        f"{tt_ranks(judge.start)}",
    )
    kept = tt_ranks(trains["apres"])
    same_ranks = kept == tt_ranks(trains["avant"])
    why = f"apres : {kept}, avant : {tt_ranks(trains['avant'])} ; sans cela, les octets ne sont pas les mêmes"
    yield Property("apres et avant ont les mêmes rangs", same_ranks, why)
    for key, cores in trains.items():
        for k, core in enumerate(cores):
            reading = core_reading(core, judge.n_bits)
            why = f"{key}, cœur {k} : {SAID.get(reading, '')}"
            yield Property(
                "chaque cœur rendu est sur une grille de −q à q, à une seule échelle", reading == "grille", why
            )
    cut = tt_round(judge.start, kept)
    yield Property(
        "à ces rangs, le train quantifié, tronqué, reste sous la limite",
        judge.error(cut) <= 1.001 * judge.limit,
        f"aux rangs {kept}, il est à {number(judge.error(cut))} de T ; (1 + marge) fois l'erreur de départ font "
        f"{number(judge.limit)}",
    )
    yield Property(
        "aucun train plus léger ne reste sous la limite",
        weight(sizes, kept) <= judge.best.numbers,
        f"aux rangs {kept}, {weight(sizes, kept)} nombres ; aux rangs {list(judge.best.ranks)}, "
        f"{judge.best.numbers} suffisent",
    )
    if not same_ranks:
        return
    targets = judge.targets(kept)
    for key, what in (("apres", "le train quantifié, tronqué"), ("avant", "T, tronqué")):
        target, noise = targets[key]
        yield Property(
            f"{key} : {what}, remis sur la grille",
            judge.is_near(trains[key], target, noise),
            f"aux rangs {kept}, vos cœurs en sont à {number(distance(trains[key], target) / float(judge.T.norm()))} ; "
            f"équilibrés, puis arrondis, ils n'en seraient qu'à {number(noise / float(judge.T.norm()))}",
        )


def lesson(cases: Sequence[Case], results: Sequence[Any]) -> Iterable[Property]:
    """Les trois premières instances sont un même tenseur ; la première et la dernière, dans la jauge d'une TT-SVD."""
    ranks = [list(map(as_integer, result["rangs"])) for result in results[:3]]
    yield Property(
        "vos nombres le montrent : à trois bits, des rangs s'éteignent dans une jauge, aucun dans l'autre",
        ranks[0] != ranks[1] == ranks[2],
        f"vous trouvez {ranks[0]}, puis {ranks[1]} dans la jauge tournée, et {ranks[2]} à huit bits",
    )
    errors = []
    for case, result in zip(cases, results, strict=True):
        judge = judge_of(*case.args)
        errors.append((judge.error(result["apres"]), judge.error(result["avant"])))
    yield Property(
        "et réduire avant d'arrondir laisse moins d'erreur, à octets égaux",
        all(errors[i][1] < errors[i][0] for i in (0, 3)),
        "erreurs après et avant : "
        + " ; ".join(f"{number(after)} et {number(before)}" for after, before in errors)
        + ". Rangez les deux dans la même jauge.",
    )


def reduce_portrait(result: Any, case: Case) -> Any:
    """Les rangs, la grille, et quel train les cœurs rangent : rien de cela ne dépend de la jauge choisie."""
    judge, trains = judge_of(*case.args), {key: exact(result[key]) for key in ("apres", "avant")}
    grids = [sorted({core_reading(core, judge.n_bits) for core in cores} - {"grille"}) for cores in trains.values()]
    natures = [judge.nature(cores, key) for key, cores in trains.items()]
    return list(map(as_integer, result["rangs"])), [tt_ranks(cores) for cores in trains.values()], grids, natures


Pick = Callable[[Sequence[Cut], float], tuple[int, ...]]


def lightest(
    cuts: Sequence[Cut], limit: float, reading: Callable[[Cut], float] = lambda cut: cut.error
) -> tuple[int, ...]:
    """Les rangs du premier train sous la limite ; tous, si aucun n'y est."""
    return next((cut.ranks for cut in cuts if reading(cut) <= limit), cuts[-1].ranks)


def lightest_by_drift(cuts: Sequence[Cut], limit: float) -> tuple[int, ...]:
    """Les mêmes, si l'erreur était l'écart au train quantifié."""
    return lightest(cuts, limit, lambda cut: cut.drift)


def same_everywhere(cuts: Sequence[Cut], limit: float) -> tuple[int, ...]:
    """Le plus petit rang commun, ramené lien par lien à ce qui est possible."""
    largest = cuts[-1].ranks
    common = [tuple(min(r, cap) for cap in largest) for r in range(1, max(largest) + 1)]
    errors = {cut.ranks: cut.error for cut in cuts}
    return next((ranks for ranks in common if errors[ranks] <= limit), largest)


def slices(cores: Cores, ranks: list[int]) -> Cores:
    """Les premières tranches de chaque cœur, telles quelles."""
    bonds = [1, *ranks, 1]
    return [core[:r, :, :s] for core, r, s in zip(cores, bonds, bonds[1:], strict=False)]


def local_svd(cores: Cores, ranks: list[int]) -> Cores:
    """Chaque cœur tronqué à son tour, sans que les suivants soient orthonormés."""
    chain = list(cores)
    for k, rank in enumerate(ranks):
        U, S, Vh = torch.linalg.svd(chain[k].flatten(0, -2), full_matrices=False)
        chain[k] = U[:, :rank].reshape(*chain[k].shape[:-1], -1)
        chain[k + 1] = torch.tensordot(S[:rank, None] * Vh[:rank], chain[k + 1], 1)
    return chain


def dense_train(cores: Cores, n_bits: int) -> Cores:
    """Le tenseur quantifié, puis découpé."""
    T = tt_contract(cores)
    return tt_svd(rounded(T, n_bits), max(T.shape) ** 2)


def live_slices(start: Cores) -> list[int]:
    """Les directions dont ni la tranche de gauche, ni celle de droite n'est nulle."""
    sides = itertools.pairwise(start)
    return [int((a.flatten(0, -2).abs().amax(0) * b.flatten(1).abs().amax(1) > 0).sum()) for a, b in sides]


def old_scales(clamp: bool) -> Any:
    """Ranger aux échelles des cœurs de départ, avec ou sans écrêtage."""

    def store(cut: Cores, start: Cores, n_bits: int) -> Cores:
        q, found = largest_code(n_bits), []
        for core, old in zip(balance_cores(cut), start, strict=True):
            codes = (core / (old.abs().max() / q)).round()
            found.append((codes.clamp(-q, q) if clamp else codes) * old.abs().max() / q)
        return found

    return store


def stored_on(grid: Callable[[Cores, int], Cores]) -> Any:
    """Équilibrer, puis arrondir autrement."""
    return lambda cut, start, n_bits: grid(balance_cores(cut), n_bits)


def as_it_is(cut: Cores, start: Cores, n_bits: int) -> Cores:
    """Les cœurs de la troncature, sans rien de plus."""
    return cut


well_stored = stored_on(grid_cores)


def reduce_variant(
    *,
    quantize: Callable[[Cores, int], Cores] = grid_cores,
    pick: Pick = lightest,
    limit: Callable[[float, float], float] = lambda first, margin: (1 + margin) * first,
    shrink: Callable[[Cores, list[int]], Cores] = tt_round,
    ranks: Callable[[Cores], list[int]] = lambda start: numerical_ranks(tt_contract(start)),
    store: Callable[[Cores, Cores, int], Cores] = well_stored,
    store_before: Callable[[Cores, Cores, int], Cores] | None = None,
    chosen_on: str = "apres",
    sources: tuple[str, str] = ("apres", "avant"),
    own_ranks: bool = False,
) -> Any:
    """Fonction fautive : les trois réponses, dont quelque chose est changé.

    `chosen_on` dit quel train choisit les rangs, `sources` lesquels sont rangés sous apres et avant, et `own_ranks` si
    avant choisit les siens.
    """

    def wrong(cores: Cores, n_bits: int, margin: float) -> dict[str, Any]:
        T, start = tt_contract(cores), quantize(cores, n_bits)
        trains = {"apres": start, "avant": list(cores)}
        usual = judge_of(cores, n_bits, margin).cuts if quantize is grid_cores and shrink is tt_round else None
        cuts = {"apres": usual or all_cuts(start, T, shrink)}
        if chosen_on == "avant" or own_ranks:
            cuts["avant"] = all_cuts(cores, T)
        bound = limit(relative(tt_contract(start) - T, T), margin)
        chosen = list(pick(cuts[chosen_on], bound))
        other = list(pick(cuts["avant"], bound)) if own_ranks else chosen
        after, before = shrink(trains[sources[0]], chosen), tt_round(trains[sources[1]], other)
        return {
            "rangs": ranks(start),
            "apres": store(after, start, n_bits),
            "avant": (store_before or store)(before, start, n_bits),
        }

    return wrong


EXERCISE_9_6_2 = Exercise(
    number="9.6.2",
    title="les rangs d'un train quantifié",
    cases=reduce_cases,
    properties=reduce_properties,
    across=lesson,
    portrait=reduce_portrait,
    mistakes=(
        Mistake(
            "des flottants laissés dans le train",
            "tronquer rend des cœurs flottants : à moins de nombres, mais de 32 bits chacun, le train réduit pèse plus "
            "que celui d'où vous partez. Remettez-le sur la grille, et jugez ce qui en reste.",
            (
                reduce_variant(store=as_it_is),
                reduce_variant(store=as_it_is, store_before=well_stored),
                reduce_variant(store_before=as_it_is),
            ),
        ),
        Mistake(
            "l'erreur comptée contre le train quantifié",
            "vous mesurez l'écart à T̂, que tronquer ne peut qu'éloigner ; ce que le réseau perd se mesure contre T, "
            "et une partie de ce que vous ôtez n'était que du bruit d'arrondi.",
            (
                reduce_variant(pick=lightest_by_drift),
                reduce_variant(pick=lightest_by_drift, limit=lambda first, margin: margin),
                reduce_variant(pick=lightest_by_drift, limit=lambda first, margin: margin * first),
            ),
        ),
        Mistake(
            "avant et après confondus",
            "l'une de vos deux réponses range le train de l'autre. « Après » part des cœurs quantifiés, et d'eux "
            "seuls : tronquer T puis l'arrondir, c'est « avant ».",
            (
                reduce_variant(sources=("avant", "avant")),
                reduce_variant(sources=("avant", "avant"), chosen_on="avant"),
                reduce_variant(sources=("avant", "apres")),
                reduce_variant(sources=("apres", "apres")),
            ),
        ),
        Mistake(
            "des rangs choisis sur T",
            "les rangs se choisissent sur le train quantifié, tronqué : T, lui, n'a pas encore d'erreur d'arrondi, et "
            "paraît supporter des rangs plus petits.",
            (reduce_variant(chosen_on="avant"), reduce_variant(own_ranks=True)),
        ),
        Mistake(
            "un lien tronqué sans que les autres soient orthonormés",
            "ôter des tranches, ou tronquer un cœur par sa propre SVD, n'est la meilleure troncature que si les cœurs "
            "sont orthonormés de part et d'autre. lrq.tt_round commence par là.",
            (
                reduce_variant(shrink=slices, store=as_it_is, store_before=well_stored),
                reduce_variant(shrink=slices),
                reduce_variant(shrink=local_svd),
            ),
        ),
        Mistake(
            "les rangs des cœurs",
            "vous rendez les tailles des cœurs, ou le nombre de leurs tranches non nulles. L'arrondi peut aussi rendre "
            "deux tranches proportionnelles : le rang est celui du dépliement de T̂ (torch.linalg.matrix_rank).",
            (reduce_variant(ranks=tt_ranks), reduce_variant(ranks=live_slices)),
        ),
        Mistake(
            "le même rang partout",
            "rien n'oblige les liens à avoir le même rang : un seul rang en laisse souvent un de trop quelque part.",
            (reduce_variant(pick=same_everywhere),),
        ),
        Mistake(
            "des cœurs arrondis sans être équilibrés",
            "lrq.tt_round rend des cœurs orthonormés, sauf un : les arrondir tels quels coûte plus. L'énoncé les fait "
            "équilibrer d'abord (lrq.balance_cores).",
            (reduce_variant(store=lambda cut, start, n_bits: grid_cores(cut, n_bits)),),
        ),
        Mistake(
            "une autre limite",
            "la limite est (1 + marge) fois l'erreur du train quantifié : la marge est relative, et s'ajoute à un.",
            (
                reduce_variant(limit=lambda first, margin: first + margin),
                reduce_variant(limit=lambda first, margin: first),
            ),
        ),
        Mistake(
            "le tenseur quantifié au lieu des cœurs",
            "vous arrondissez T, puis vous le découpez : le bruit d'un tenseur entier n'a pas de rang faible, et vos "
            "rangs montent jusqu'à ce que permettent les dimensions. Ce qui se range, ce sont les cœurs.",
            (reduce_variant(quantize=dense_train),),
        ),
        Mistake(
            "une échelle calculée une fois pour toutes",
            "les cœurs réduits n'ont plus les maximums des premiers : aux anciennes échelles, ils débordent, ou "
            "n'emploient que quelques codes. Recalculez max|cœur|/q.",
            (reduce_variant(store=old_scales(clamp=True)), reduce_variant(store=old_scales(clamp=False))),
        ),
        Mistake(
            "une grille à 2^(b−1)",
            "q vaut 2^(b−1) − 1 : à trois bits, sept niveaux, de −3 à 3.",
            tuple(reduce_variant(quantize=wide(clamp), store=stored_on(wide(clamp))) for clamp in (True, False)),
        ),
    ),
)
