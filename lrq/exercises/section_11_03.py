"""Exercices 11.2, 11.3.1, 11.3.2 et 11.3.3 : LoRA contre tous les poids, ses rangs, son budget, ses mélanges."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .engine import Case, Exercise, Mistake, Property, as_integer
from .instances import integer, number, uniform
from .section_11_02 import orthonormal
from .section_11_05 import close, spectral


def plain(value: Any) -> Tensor:
    """Un tenseur ordinaire, en float64, détaché."""
    return torch.as_tensor(value).detach().as_subclass(Tensor).double()


def gap(found: Tensor, right: Tensor) -> float:
    """Écart relatif de deux tenseurs ; infini si l'un n'est pas fini."""
    distance = float((found - right).norm() / right.norm().clamp_min(1e-12))
    return math.inf if math.isnan(distance) else distance


def squares(x: Tensor, W: Tensor, y: Tensor) -> float:
    """L'erreur quadratique moyenne de x Wᵀ contre y, en float64."""
    return float((plain(x) @ plain(W).T - plain(y)).square().mean())


# --- 11.2 -------------------------------------------------------------------------------------------------------------

METHODS = {"complet": ("W",), "lora": ("A", "B")}
NUMBERS = ("perte", "parametres", "octets")


def tuning_cases(generator: torch.Generator) -> list[Case]:
    """Un pas, trois pas, quarante pas, et un rang si grand que LoRA entraîne plus de nombres que tous les poids."""
    cases = []
    for steps, kind in ((1, "bas"), (3, "bas"), (40, "bas"), (20, "trop grand")):
        m, n = (int(k) for k in torch.randperm(8, generator=generator)[:2] + 8)  # deux tailles différentes
        rank = min(m, n) - 1 if kind == "trop grand" else integer(generator, 2, 3)
        alpha = (0.5, 0.75, 1.5, 2.0)[integer(generator, 0, 3)]
        W0, A = (torch.randn(k, n, generator=generator) / n**0.5 for k in (m, rank))
        x = torch.randn(integer(generator, 30, 50), n, generator=generator)
        change = orthonormal(generator, m, 2) @ orthonormal(generator, n, 2).T
        y = x @ (W0 + change.float()).T + 0.2 * torch.randn(len(x), m, generator=generator)
        curvature = 2 / y.numel() * spectral(x) ** 2 * max(1.0, (alpha * spectral(A)) ** 2)
        lr = float(f"{uniform(generator, 0.4, 0.7) / curvature:.2g}")
        label = f"W₀ {m}×{n}, rang {kind} = {rank}, α = {number(alpha)}, lr = {number(lr)}, pas = {steps}"
        cases.append(Case(label, (W0, x, y, A, alpha, lr, steps)))
    return cases


def full_solution(W0: Tensor, x: Tensor, y: Tensor, lr: float, steps: int) -> Tensor:
    """Les poids après `steps` pas, sans en faire un : dans la base propre de xᵀx, chaque direction avance seule."""
    W0, x, y = plain(W0), plain(x), plain(y)
    eigenvalues, Q = torch.linalg.eigh(2 / y.numel() * x.T @ x)
    progress = sum(lr * (1 - lr * eigenvalues) ** k for k in range(steps))
    return W0 - 2 / y.numel() * (x @ W0.T - y).T @ x @ (Q * progress) @ Q.T


def lora_solution(
    W0: Tensor, x: Tensor, y: Tensor, A: Tensor, alpha: float, lr: float, steps: int
) -> tuple[Tensor, Tensor]:
    """A et B après `steps` pas, dérivés par ``torch.autograd``, en float64."""
    W0, x, y, A = (plain(t) for t in (W0, x, y, A))
    B = W0.new_zeros(len(W0), len(A))
    for _ in range(steps):
        A, B = A.detach().requires_grad_(), B.detach().requires_grad_()
        loss = torch.nn.functional.mse_loss(x @ (W0 + alpha * B @ A).T, y)
        dA, dB = torch.autograd.grad(loss, (A, B))
        A, B = A - lr * dA, B - lr * dB
    return A.detach(), B.detach()


def tuning_reading(result: Any) -> dict[str, dict[str, Any]]:
    """Les deux dictionnaires, leurs poids en tenseurs et leurs comptes en nombres."""
    return {
        method: {name: plain(result[method][name]) for name in weights}
        | {name: float(plain(result[method][name])) for name in NUMBERS}
        for method, weights in METHODS.items()
    }


def tuning_portrait(result: Any, case: Case) -> Any:
    """Ce qui reconnaît une faute : tout, sauf LoRA après beaucoup de pas.

    Un gradient trop grand d'un facteur y fait diverger A et B, qui ne disent plus alors que les arrondis.
    """
    return result if case.args[-1] <= 3 else result | {"lora": None}


def tuning_properties(result: Any, case: Case) -> Iterable[Property]:
    """W est jugée par une formule close, A et B par ``torch.autograd``, chaque perte par les poids rendus."""
    W0, x, y, A, alpha, lr, steps = case.args
    (m, n), rank = W0.shape, len(A)
    valid = isinstance(result, Mapping) and set(result) == set(METHODS)
    text = "le résultat est un dictionnaire de clés complet et lora"
    yield Property(text, valid, f"reçu {sorted(map(str, result)) if isinstance(result, Mapping) else result!r}")
    if not valid:
        return
    valid = all(
        isinstance(result[method], Mapping) and set(result[method]) == {*weights, *NUMBERS}
        for method, weights in METHODS.items()
    )
    text = "complet a pour clés W, perte, parametres et octets ; lora, les mêmes, A et B prenant la place de W"
    received = {key: sorted(map(str, v)) if isinstance(v, Mapping) else v for key, v in result.items()}
    yield Property(text, valid, f"reçu {received}")
    if not valid:
        return
    found = tuning_reading(result)
    W, (own_A, own_B) = found["complet"]["W"], (found["lora"][name] for name in "AB")
    shapes = [tuple(t.shape) for t in (W, own_A, own_B)]
    wanted = [(m, n), (rank, n), (m, rank)]
    yield Property("W, A et B ont la bonne forme", shapes == wanted, f"reçu {shapes}, attendu {wanted}")
    if shapes != wanted:
        return
    change = gap(W, full_solution(W0, x, y, lr, steps))
    yield Property(
        "W est là où la descente le mène",
        change < 1e-3,
        f"après {steps} pas, votre W s'écarte de {number(100 * change)} % de sa place",
    )
    right_A, right_B = lora_solution(W0, x, y, A, alpha, lr, steps)
    if steps == 1:
        moved = gap(own_A, plain(A))
        yield Property(
            "au premier pas, A ne bouge pas",
            moved < 1e-6,
            f"votre A a bougé de {number(100 * moved)} % ; ∂L/∂A = α Bᵀ G est nul tant que B l'est",
        )
    for name, mine, right in (("B", own_B, right_B), ("A", own_A, right_A)):
        change = gap(mine, right)
        yield Property(
            f"{name} est là où la descente le mène",
            change < 1e-3,
            f"après {steps} pas, votre {name} s'écarte de {number(100 * change)} % de sa place ; sa norme est "
            f"{number(float(mine.norm()))} au lieu de {number(float(right.norm()))}",
        )
    for method, weights in (("complet", W), ("lora", plain(W0) + alpha * own_B @ own_A)):
        loss, own = found[method]["perte"], squares(x, weights, y)
        yield Property(
            f"{method} : la perte est celle des poids rendus",
            close(loss, own),
            f"vous rendez {number(loss)} ; avec vos poids, l'erreur quadratique moyenne vaut {number(own)}",
        )
    for method, count in (("complet", m * n), ("lora", rank * (m + n))):
        counted, octets = found[method]["parametres"], found[method]["octets"]
        yield Property(
            f"{method} : le nombre de paramètres entraînés est juste",
            counted == count,
            f"vous en comptez {counted:.0f} au lieu de {count}",
        )
        yield Property(
            f"{method} : les octets du gradient et d'Adam sont justes",
            octets == 12 * count,
            f"vous comptez {octets:.0f} octets ; {count} nombres entraînés, à 4 + 8 octets chacun, en demandent "
            f"{12 * count}",
        )


Factors = tuple[Tensor, Tensor]
Step = Callable[[Tensor, Tensor, float, float, Callable[[Tensor, Tensor], Tensor]], Factors]


def stepping(for_A: Callable[[float], float] = float, for_B: Callable[[float], float] = float) -> Step:
    """Un pas de A et B ensemble ; `for_A` et `for_B` disent ce que α devient dans chaque gradient."""

    def step(A: Tensor, B: Tensor, alpha: float, lr: float, gradient: Callable[[Tensor, Tensor], Tensor]) -> Factors:
        G = gradient(A, B)
        return A - lr * for_A(alpha) * B.T @ G, B - lr * for_B(alpha) * G @ A.T

    return step


def one_then_other(first: str, fresh: bool) -> Step:
    """L'un, puis l'autre, déjà changé le premier ; avec `fresh`, le gradient est recalculé entre les deux."""

    def step(A: Tensor, B: Tensor, alpha: float, lr: float, gradient: Callable[[Tensor, Tensor], Tensor]) -> Factors:
        G = gradient(A, B)
        for name in (first, "A" if first == "B" else "B"):
            if name == "A":
                A = A - lr * alpha * B.T @ G
            else:
                B = B - lr * alpha * G @ A.T
            G = gradient(A, B) if fresh else G
        return A, B

    return step


def mean_square(E: Tensor) -> float:
    """L'erreur quadratique moyenne."""
    return float(E.square().mean())


def tuning_variant(
    *,
    scale: Callable[[Tensor], float] = lambda y: 2 / y.numel(),
    loss: Callable[[Tensor], float] = mean_square,
    step: Step | None = None,
    start: Callable[[Tensor], Tensor] = lambda A: A,
    base: Callable[[Tensor, Tensor], Tensor] = lambda W0, W: W0,
    trains_base: bool = False,
    accumulates: bool = False,
    late: bool = True,
    seen: Callable[[float], float] = float,
    sizes: Callable[[int, int, int], tuple[float, float]] = lambda m, n, r: (m * n, r * (m + n)),
    octets: Callable[[float, int], float] = lambda count, frozen: 12 * count,
) -> Any:
    """Fonction fautive : les deux descentes, dont quelque chose est changé.

    `base` dit d'où part LoRA, `seen` ce que α devient dans W₀ + α B A ; sans `late`, la perte date du pas d'avant.
    """

    def wrong(W0: Tensor, x: Tensor, y: Tensor, A: Tensor, alpha: float, lr: float, steps: int) -> dict[str, Any]:
        def gradient(W: Tensor) -> Tensor:
            return scale(y) * (x @ W.T - y).T @ x

        W, losses = W0, []
        for _ in range(steps):
            losses.append(loss(x @ W.T - y))
            W = W - lr * gradient(W)
        losses.append(loss(x @ W.T - y))
        full: dict[str, Any] = {"W": W, "perte": losses[-1 if late else -2]}
        A, B, frozen, losses = start(A), torch.zeros(len(W0), len(A)), base(W0, W), []
        for _ in range(steps):
            losses.append(loss(x @ (frozen + seen(alpha) * B @ A).T - y))
            if accumulates:
                frozen = frozen + seen(alpha) * B @ A

            def at(A: Tensor, B: Tensor, W: Tensor = frozen) -> Tensor:
                return gradient(W if accumulates else W + seen(alpha) * B @ A)

            now = at(A, B)
            A, B = (step or stepping())(A, B, alpha, lr, at)
            if trains_base:
                frozen = frozen - lr * now
        losses.append(loss(x @ (frozen + seen(alpha) * B @ A).T - y))
        lora: dict[str, Any] = {"A": A, "B": B, "perte": losses[-1 if late else -2]}
        m, n = W0.shape
        counts = sizes(m, n, len(A))
        for found, count, still in ((full, counts[0], 0), (lora, counts[1], W0.numel())):
            found |= {"parametres": count, "octets": octets(count, still)}
        return {"complet": full, "lora": lora}

    return wrong


EXERCISE_11_2 = Exercise(
    number="11.2",
    title="LoRA contre le réglage de tous les poids",
    cases=tuning_cases,
    properties=tuning_properties,
    signature=tuning_reading,
    portrait=tuning_portrait,
    mistakes=(
        Mistake(
            "A nul au départ, comme B",
            "si A et B sont nuls tous les deux, leurs deux gradients, α Bᵀ G et α G Aᵀ, le sont aussi, et le restent : "
            "LoRA n'apprend rien. Un seul des deux part de zéro, B ; A est donnée.",
            (tuning_variant(start=torch.zeros_like),),
        ),
        Mistake(
            "α oublié dans le gradient",
            "W = W₀ + α B A : la dérivée apporte un facteur α, à B comme à A. ∂L/∂B = α G Aᵀ et ∂L/∂A = α Bᵀ G, où G "
            "est ∂L/∂W.",
            (
                tuning_variant(step=stepping(for_A=lambda alpha: 1, for_B=lambda alpha: 1)),
                tuning_variant(step=stepping(for_A=lambda alpha: 1)),
                tuning_variant(step=stepping(for_B=lambda alpha: 1)),
            ),
        ),
        Mistake(
            "α oublié dans ΔW",
            "la couche adaptée calcule W₀ + α B A ; vos sorties, ou votre perte, viennent de W₀ + B A.",
            (
                tuning_variant(seen=lambda alpha: 1),
                tuning_variant(seen=lambda alpha: 1, step=stepping(for_A=lambda alpha: 1, for_B=lambda alpha: 1)),
            ),
        ),
        Mistake(
            "l'un mis à jour avec l'autre déjà changé",
            "les deux gradients se prennent au même point, celui d'avant le pas. Écrivez A, B = …, … sur une seule "
            "ligne, ou gardez l'ancien ; sinon, B ayant déjà bougé, A bouge dès le premier pas.",
            tuple(tuning_variant(step=one_then_other(first, fresh)) for first in ("B", "A") for fresh in (False, True)),
        ),
        Mistake(
            "A gelée",
            "vous n'entraînez que B. Cette variante existe, et demande moins de mémoire encore, mais l'énoncé entraîne "
            "les deux : A bouge à partir du deuxième pas, quand B n'est plus nul.",
            (tuning_variant(step=stepping(for_A=lambda alpha: 0)),),
        ),
        Mistake(
            "W₀ changée",
            "W₀ est gelée, et les deux méthodes en partent : LoRA ne repart pas des poids réglés (W -= … change W₀ si "
            "W n'en est pas une copie), n'y ajoute pas α B A à chaque pas, et ne l'entraîne pas.",
            (
                tuning_variant(base=lambda W0, W: W),
                tuning_variant(accumulates=True),
                tuning_variant(trains_base=True),
            ),
        ),
        Mistake(
            "la moyenne mal comptée",
            "la perte est la moyenne des carrés sur les N·m sorties, ce que rend mse_loss : ni leur somme, ni la "
            "moitié, ni la moyenne sur les seuls exemples, ni sa racine. Son gradient est 2/(N·m) (x Wᵀ − y)ᵀ x.",
            (
                tuning_variant(scale=lambda y: 1 / y.numel()),
                tuning_variant(scale=lambda y: 1 / y.numel(), loss=lambda E: mean_square(E) / 2),
                tuning_variant(scale=lambda y: 2 / len(y)),
                tuning_variant(scale=lambda y: 2 / len(y), loss=lambda E: float(E.square().sum() / len(E))),
                tuning_variant(scale=lambda y: 1 / len(y)),
                tuning_variant(scale=lambda y: 2, loss=lambda E: float(E.square().sum())),
                tuning_variant(loss=lambda E: float(E.square().sum())),
                tuning_variant(loss=lambda E: float(E.square().sum() / len(E))),
                tuning_variant(loss=lambda E: mean_square(E) / 2),
                tuning_variant(loss=lambda E: mean_square(E) ** 0.5),
            ),
        ),
        Mistake(
            "la perte d'avant le dernier pas",
            "la perte que l'on note dans la boucle, avant de changer les poids, est celle du pas précédent. Mesurez-la "
            "une fois la boucle finie, avec les poids que vous rendez.",
            (tuning_variant(late=False),),
        ),
        Mistake(
            "des paramètres mal comptés",
            "LoRA entraîne A, (r, n), et B, (m, r) : r(m + n) nombres. Compter A seule, B seule, ou les mn nombres "
            "gelés, c'est décrire une autre méthode.",
            (
                tuning_variant(sizes=lambda m, n, r: (m * n, r * n)),
                tuning_variant(sizes=lambda m, n, r: (m * n, r * m)),
                tuning_variant(sizes=lambda m, n, r: (m * n, m * n + r * (m + n))),
                tuning_variant(sizes=lambda m, n, r: (m * n, m * n)),
            ),
        ),
        Mistake(
            "des octets mal comptés",
            "par nombre entraîné, quatre octets de gradient et huit pour les deux moyennes d'Adam. Les poids "
            "eux-mêmes n'y sont pas, et ce qui est gelé n'a ni gradient ni moyenne.",
            (
                tuning_variant(octets=lambda count, frozen: 4 * count),
                tuning_variant(octets=lambda count, frozen: 8 * count),
                tuning_variant(octets=lambda count, frozen: 16 * count),
                tuning_variant(octets=lambda count, frozen: 12 * (count + frozen)),
                tuning_variant(octets=lambda count, frozen: 4 * frozen + 12 * count),
                tuning_variant(octets=lambda count, frozen: 4 * frozen + 16 * count),
            ),
        ),
    ),
)

# --- 11.3.1 -----------------------------------------------------------------------------------------------------------

RANK_KEYS = ("A", "B", "perte", "parametres", "part")
RANKS = [4, 8, 16, 32]


def rank_cases(generator: torch.Generator) -> list[Case]:
    """Un écart de rang faible, un écart de tous les rangs, et une couche que le rang 32 remplit.

    Les entrées n'ont pas la même énergie dans toutes les directions : la métrique compte.
    """
    cases = []
    for shape, kind in (("haute", "de rang faible"), ("large", "de tous les rangs"), ("carrée", "de tous les rangs")):
        p = 32 if shape == "carrée" else integer(generator, 34, 38)
        q = p if shape == "carrée" else p + integer(generator, 4, 8)
        m, n = (p, q) if shape == "large" else (q, p)
        energies = torch.arange(1, n + 1, dtype=torch.float64) ** -uniform(generator, 0.6, 0.9)
        N = n + integer(generator, 60, 90)
        x = torch.randn(N, n, generator=generator, dtype=torch.float64) * energies @ orthonormal(generator, n, n).T
        W0 = torch.randn(m, n, generator=generator, dtype=torch.float64) / n**0.5
        k = 5 if kind == "de rang faible" else p
        decay = torch.arange(1, k + 1, dtype=torch.float64) ** -0.5
        change = 3 * orthonormal(generator, m, k) * decay @ orthonormal(generator, n, k).T
        moved = x @ change.T
        noise = torch.randn(N, m, generator=generator, dtype=torch.float64)
        y = x @ W0.T + moved + uniform(generator, 0.3, 0.5) * moved.square().mean().sqrt() * noise
        cases.append(
            Case(
                f"W₀ {m}×{n}, {N} exemples, écart {kind}, rangs = {RANKS}",
                (W0, x, y, list(RANKS)),
            )
        )
    return cases


def attainable(W0: Tensor, x: Tensor, y: Tensor) -> tuple[float, Tensor]:
    """La perte de W₀, et ce que chaque direction de plus en retire, de la plus à la moins utile.

    La plus petite perte de rang r n'est pas cherchée parmi des facteurs : ce sont des valeurs propres, celles de la
    matrice de Gram de ce que les moindres carrés expliquent du résidu.
    """
    x = plain(x)
    R = plain(y) - x @ plain(W0).T
    explained = x @ torch.linalg.solve(x.T @ x, x.T @ R)
    energies = torch.linalg.eigvalsh(explained.T @ explained).flip(0).clamp_min(0)[: min(W0.shape)]
    return float(R.square().mean()), energies / R.numel()


def rank_reading(result: Any) -> list[dict[str, Any]]:
    """Une entrée par rang, en tenseurs et en nombres."""
    return [
        {name: plain(entry[name]) if name in ("A", "B") else float(plain(entry[name])) for name in RANK_KEYS}
        for entry in result
    ]


def rank_properties(result: Any, case: Case) -> Iterable[Property]:
    """Personne ne descend sous le plancher plus l'énergie abandonnée, dans la métrique des entrées."""
    W0, x, y, ranks = case.args
    m, n = W0.shape
    valid = isinstance(result, list | tuple) and len(result) == len(ranks)
    text = "le résultat est une liste, une entrée par rang"
    yield Property(text, valid, f"reçu {len(result) if isinstance(result, list | tuple) else result!r}")
    if not valid:
        return
    valid = all(isinstance(entry, Mapping) and set(entry) == set(RANK_KEYS) for entry in result)
    text = "chaque entrée est un dictionnaire de clés A, B, perte, parametres et part"
    first = result[0]
    yield Property(text, valid, f"reçu {sorted(map(str, first)) if isinstance(first, Mapping) else first!r}")
    if not valid:
        return
    found = rank_reading(result)
    initial, removed = attainable(W0, x, y)
    for rank, entry in zip(ranks, found, strict=True):
        A, B = entry["A"], entry["B"]
        shapes, wanted = (tuple(B.shape), tuple(A.shape)), ((m, rank), (rank, n))
        yield Property(
            "B est de forme (m, r) et A de forme (r, n)",
            shapes == wanted,
            f"au rang {rank}, reçu B {shapes[0]} et A {shapes[1]}, attendu {wanted[0]} et {wanted[1]}",
        )
        if shapes != wanted:
            return
        own, least = squares(x, plain(W0) + B @ A, y), initial - float(removed[:rank].sum())
        yield Property(
            "la perte est celle de W₀ + B A",
            close(entry["perte"], own),
            f"au rang {rank}, vous rendez {number(entry['perte'])} ; avec vos facteurs, elle vaut {number(own)}",
        )
        yield Property(
            "aucune mise à jour de ce rang ne fait mieux",
            own <= 1.002 * least,
            f"au rang {rank}, W₀ + B A laisse {number(own)} ; le minimum est {number(least)} (W₀ seule : "
            f"{number(initial)}, tous les poids : {number(initial - float(removed.sum()))})",
        )
        share = (initial - own) / float(removed.sum())
        yield Property(
            "part est la part du gain de tous les poids",
            abs(entry["part"] - share) < 2e-3,
            f"au rang {rank}, vous rendez {number(entry['part'])} ; la perte passe de {number(initial)} à "
            f"{number(own)}, et tous les poids la mènent à {number(initial - float(removed.sum()))} : "
            f"{number(share)}",
        )
        yield Property(
            "parametres est le nombre de nombres de A et de B",
            entry["parametres"] == rank * (m + n),
            f"au rang {rank}, vous en comptez {entry['parametres']:.0f} au lieu de {rank * (m + n)}",
        )


def rank_portrait(result: Any, case: Case) -> Any:
    """ΔW plutôt que ses facteurs, que rien ne détermine à un changement de base près."""
    return [(e["B"] @ e["A"], e["perte"], e["parametres"], [1.0, e["part"]]) for e in result]  # part, à 1e-5 près


def least_squares(x: Tensor, R: Tensor) -> Tensor:
    """D, (m, n), qui rend x Dᵀ le plus proche de R."""
    return torch.linalg.lstsq(x, R).solution.T


def weighted(x: Tensor, target: Tensor, rank: int) -> Factors:
    """La bonne réponse : la SVD de ce que x explique de la cible, ramenée aux coordonnées des entrées."""
    Q, T = torch.linalg.qr(x)  # (N, n), (n, n)
    U, S, Vh = torch.linalg.svd(Q.T @ target, full_matrices=False)
    return Vh[:rank].T * S[:rank], torch.linalg.solve_triangular(T, U[:, :rank], upper=True).T


def unweighted(x: Tensor, target: Tensor, rank: int) -> Factors:
    """La SVD de la solution pleine, comme si toutes les directions des entrées se valaient."""
    U, S, Vh = torch.linalg.svd(least_squares(x, target), full_matrices=False)
    return U[:, :rank] * S[:rank], Vh[:rank]


def in_metric(
    there: Callable[[Tensor, Tensor], Tensor], back: Callable[[Tensor, Tensor], Tensor], power: int = 1
) -> Callable[[Tensor, Tensor, int], Factors]:
    """Une SVD faite dans d'autres coordonnées : `there` y mène la solution pleine, `back` en ramène A ; S à `power`."""

    def choose(x: Tensor, target: Tensor, rank: int) -> Factors:
        T = torch.linalg.qr(x).R
        U, S, Vh = torch.linalg.svd(there(least_squares(x, target), T), full_matrices=False)
        return U[:, :rank] * S[:rank] ** power, back(Vh[:rank], T)

    return choose


def undone(A: Tensor, T: Tensor) -> Tensor:
    """A T⁻ᵀ."""
    return torch.linalg.solve_triangular(T, A.T, upper=True).T


def rank_variant(
    choose: Callable[[Tensor, Tensor, int], Factors] = weighted,
    *,
    target: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda W0, x, y: y - x @ W0.T,
    used: Callable[[Tensor, Tensor], Tensor] = lambda W0, D: W0 + D,
    loss: Callable[[Tensor], float] = mean_square,
    size: Callable[[int, int, int], int] = lambda m, n, r: r * (m + n),
    share: Callable[[float, float, float], float] = lambda initial, own, floor: (initial - own) / (initial - floor),
    other_share: Callable[[Tensor, Tensor, int], float] | None = None,
) -> Any:
    """Fonction fautive : les meilleures mises à jour, dont quelque chose est changé.

    `share` reçoit les pertes de W₀, du rang r et de tous les poids ; `other_share`, x, le résidu et r.
    """

    def wrong(W0: Tensor, x: Tensor, y: Tensor, ranks: Sequence[int]) -> list[dict[str, Any]]:
        (m, n), R = W0.shape, y - x @ W0.T
        initial, floor = loss(R), loss(R - x @ least_squares(x, R).T)
        found = []
        for rank in ranks:
            B, A = choose(x, target(W0, x, y), rank)
            own = loss(y - x @ used(W0, B @ A).T)
            part = other_share(x, R, rank) if other_share else share(initial, own, floor)
            found.append({"A": A, "B": B, "perte": own, "parametres": size(m, n, rank), "part": part})
        return found

    return wrong


def unweighted_energy(x: Tensor, R: Tensor, rank: int) -> float:
    """La part de l'énergie de ΔW gardée au rang r, sans la métrique."""
    S = torch.linalg.svdvals(least_squares(x, R)).square()
    return float(S[:rank].sum() / S.sum())


EXERCISE_11_3_1 = Exercise(
    number="11.3.1",
    title="LoRA aux rangs 4, 8, 16 et 32",
    cases=rank_cases,
    properties=rank_properties,
    signature=rank_reading,
    portrait=rank_portrait,
    mistakes=(
        Mistake(
            "la métrique des entrées oubliée",
            "vous tronquez la SVD de la solution pleine D. C'est la meilleure approximation de D, pas la meilleure "
            "mise à jour : une erreur sur une direction coûte l'énergie que les entrées y ont. Tronquez dans les "
            "coordonnées où ‖x Eᵀ‖ est une norme de Frobenius : avec x = QT, c'est la SVD de D Tᵀ.",
            (rank_variant(unweighted),),
        ),
        Mistake(
            "W au lieu de ΔW",
            "LoRA n'abaisse pas le rang de W, mais celui de l'écart : W₀ + ΔW reste de rang plein. Tronquez ce qui "
            "explique le résidu y − x W₀ᵀ, non ce qui explique y.",
            tuple(
                rank_variant(choose, target=lambda W0, x, y: y, used=used)
                for choose in (unweighted, weighted)
                for used in (lambda W0, D: D, lambda W0, D: W0 + D)
            ),
        ),
        Mistake(
            "la métrique jamais défaite",
            "la SVD a bien été faite dans les bonnes coordonnées, mais A y est restée : il faut revenir à celles des "
            "entrées, en divisant par ce qui avait multiplié (une résolution de système suffit).",
            (
                rank_variant(in_metric(lambda D, T: D @ T.T, lambda A, T: A)),
                rank_variant(in_metric(lambda D, T: D @ T.T, lambda A, T: A @ T)),
                rank_variant(in_metric(lambda D, T: D @ T.T, lambda A, T: A @ T.T)),
            ),
        ),
        Mistake(
            "la covariance au lieu de sa racine",
            "‖x Eᵀ‖² = tr(E xᵀx Eᵀ) : c'est une racine T de xᵀx = TᵀT qui multiplie, non xᵀx lui-même, qui compterait "
            "deux fois l'énergie de chaque direction.",
            (rank_variant(in_metric(lambda D, T: D @ (T.T @ T), lambda A, T: torch.linalg.solve(T.T @ T, A.T).T)),),
        ),
        Mistake(
            "les valeurs singulières oubliées, ou comptées deux fois",
            "B A doit valoir U_r S_r V_rᵀ : S va dans l'un des deux facteurs, ou √S dans chacun.",
            (
                rank_variant(in_metric(lambda D, T: D @ T.T, undone, power=0)),
                rank_variant(in_metric(lambda D, T: D @ T.T, undone, power=2)),
            ),
        ),
        Mistake(
            "une autre perte",
            "la perte est la moyenne des carrés sur toutes les sorties de tous les exemples : ni leur somme, ni la "
            "moyenne sur les seuls exemples, ni la racine.",
            (
                rank_variant(loss=lambda E: float(E.square().sum())),
                rank_variant(loss=lambda E: float(E.square().sum() / len(E))),
                rank_variant(loss=lambda E: mean_square(E) / 2),
                rank_variant(loss=lambda E: mean_square(E) ** 0.5),
            ),
        ),
        Mistake(
            "une part d'autre chose",
            "part compare deux gains : celui du rang r, perte(W₀) − perte(r), et celui de tous les poids, perte(W₀) − "
            "plancher. Le plancher n'est pas zéro, et l'énergie de ΔW, sans la métrique, ne dit rien de la perte.",
            (
                rank_variant(share=lambda initial, own, floor: 1 - own / initial),
                rank_variant(share=lambda initial, own, floor: own / initial),
                rank_variant(share=lambda initial, own, floor: floor / own),
                rank_variant(share=lambda initial, own, floor: (own - floor) / (initial - floor)),
                rank_variant(share=lambda initial, own, floor: 100 * (initial - own) / (initial - floor)),
                rank_variant(other_share=unweighted_energy),
            ),
        ),
        Mistake(
            "des paramètres mal comptés",
            "B a mr nombres, A en a rn : r(m + n) en tout. mn est ce que LoRA évite d'entraîner.",
            (
                rank_variant(size=lambda m, n, r: m * n),
                rank_variant(size=lambda m, n, r: r * m * n),
                rank_variant(size=lambda m, n, r: r * n),
                rank_variant(size=lambda m, n, r: r * m),
                rank_variant(size=lambda m, n, r: m * n + r * (m + n)),
                rank_variant(size=lambda m, n, r: r * (m + n + 1)),
            ),
        ),
    ),
)

# --- 11.3.2 -----------------------------------------------------------------------------------------------------------

Layer = tuple[Tensor, Tensor, Tensor]  # A (r, n), puis B et ∂L/∂B, (lots, m, r)
Scores = list[Tensor]  # une importance par composante, couche par couche
Kept = list[list[int]]  # les indices gardés, couche par couche


def adapter_seen(generator: torch.Generator, m: int, n: int, rank: int, batches: int, size: float) -> Layer:
    """Un adaptateur suivi sur quelques lots : B qui avance un peu, et des pentes ⟨b_k, ∂L/∂b_k⟩ de signe changeant."""
    A = torch.randn(rank, n, generator=generator) / n**0.5
    start, moves = torch.randn(m, rank, generator=generator), torch.randn(batches, m, rank, generator=generator)
    B = start * 2 * torch.rand(rank, generator=generator) + 0.1 * moves.cumsum(0)
    noise = torch.randn(batches, m, rank, generator=generator)
    energy = B.square().sum(1, keepdim=True)
    noise = noise - (noise * B).sum(1, keepdim=True) / energy * B  # ce qui ne touche pas à la pente
    signs = torch.where(torch.rand(batches, 1, rank, generator=generator) < 0.5, -1.0, 1.0)
    steady = torch.rand(rank, generator=generator) < 0.5  # les autres hésitent d'un lot à l'autre
    slopes = torch.where(steady, 1.0, signs) * 10 ** torch.rand(batches, 1, rank, generator=generator)
    return A, B, size * (slopes / energy * B + noise * torch.rand(rank, generator=generator))


def importances(layers: Sequence[Layer]) -> Scores:
    """Σ_t |⟨b_k, ∂L/∂b_k⟩|, en float64."""
    return [torch.einsum("tik,tik->tk", plain(B), plain(G)).abs().sum(0) for _, B, G in layers]


def component_sizes(layers: Sequence[Layer]) -> list[int]:
    """Nombre de paramètres d'une composante, in + out, couche par couche."""
    return [A.shape[1] + B.shape[1] for A, B, _ in layers]


def chosen(
    scores: Scores,
    sizes: Sequence[int],
    budget: int,
    *,
    per: Callable[[int], float] = float,
    at_least: int = 1,
    fits: Callable[[int, int], bool] = lambda size, left: size <= left,
    stops: bool = False,
    firsts_paid: bool = True,
) -> Kept:
    """La meilleure composante de chaque couche, puis les plus importantes de toutes, par paramètre."""
    kept = [s.topk(at_least).indices.tolist() for s in scores]
    left = budget - (sum(size * len(own) for size, own in zip(sizes, kept, strict=True)) if firsts_paid else 0)
    others = [(float(s) / per(sizes[i]), i, k) for i, own in enumerate(scores) for k, s in enumerate(own)]
    for _, i, k in sorted((o for o in others if o[2] not in kept[o[1]]), key=lambda o: -o[0]):
        if fits(sizes[i], left):
            kept[i].append(k)
            left -= sizes[i]
        elif stops:
            break
    return [sorted(own) for own in kept]


def same_rank(scores: Scores, sizes: Sequence[int], budget: int) -> Kept:
    """Le même rang partout, le plus grand que le budget permette."""
    rank = min(budget // sum(sizes), *(len(s) for s in scores))
    return [sorted(s.topk(rank).indices.tolist()) for s in scores]


def layer_by_layer(scores: Scores, sizes: Sequence[int], budget: int) -> Kept:
    """Le même budget pour chaque couche."""
    return [
        sorted(s.topk(max(1, min(len(s), budget // len(sizes) // size))).indices.tolist())
        for s, size in zip(scores, sizes, strict=True)
    ]


Selection = Callable[[Scores, Sequence[int], int], Kept]

SELECTIONS: dict[str, tuple[Selection, ...]] = {  # faute → ce qu'elle garde
    "taille": (
        lambda scores, sizes, budget: chosen(scores, sizes, budget, per=lambda size: 1),
        lambda scores, sizes, budget: chosen(scores, sizes, budget, per=lambda size: 1 / size),
    ),
    "même rang": (same_rank, layer_by_layer),
    "budget": (
        lambda scores, sizes, budget: chosen(scores, sizes, budget, fits=lambda size, left: left > 0, stops=True),
        lambda scores, sizes, budget: chosen(scores, sizes, budget, firsts_paid=False),
    ),
    "arrêt": (lambda scores, sizes, budget: chosen(scores, sizes, budget, stops=True),),
    "vide": (lambda scores, sizes, budget: chosen(scores, sizes, budget, at_least=0),),
}


def apart(instances: Sequence[tuple[Sequence[Layer], int]]) -> bool:
    """Vrai si aucune faute de sélection ne passe pour la bonne réponse, ni pour une autre, sur l'ensemble."""
    outcomes = []
    for select in (chosen, *(select for several in SELECTIONS.values() for select in several)):
        outcomes.append([select(importances(c), component_sizes(c), budget) for c, budget in instances])
    return all(a != b for i, a in enumerate(outcomes) for b in outcomes[:i])


def clear_ranking(layers: Sequence[Layer]) -> bool:
    """Vrai si deux importances par paramètre ne se suivent jamais de trop près pour que l'arrondi les échange."""
    each = torch.cat([s / size for s, size in zip(importances(layers), component_sizes(layers), strict=True)])
    ordered = each.sort().values
    return bool((ordered[1:] > 1.001 * ordered[:-1]).all())


def budget_cases(generator: torch.Generator) -> list[Case]:
    """Deux couches ; quatre, dont une presque muette ; trois, de tailles très inégales."""
    plans = {"deux couches": (1.0, 1.0), "quatre couches": (1.0, 1.0, 0.02, 1.0), "trois couches": (1.0, 4.0, 0.5)}
    while True:
        instances, labels = [], []
        for name, strengths in plans.items():
            batches = integer(generator, 3, 5)
            layers = []
            for strength in strengths:
                m, n = integer(generator, 4, 24), integer(generator, 4, 24)
                if name == "trois couches" and strength > 1:
                    m, n = 3 * m, 3 * n
                layers.append(adapter_seen(generator, m, n, integer(generator, 3, 6), batches, strength))
            sizes = component_sizes(layers)
            whole = sum(size * len(A) for size, (A, _, _) in zip(sizes, layers, strict=True))
            budget = max(sum(sizes), int(uniform(generator, 0.4, 0.65) * whole))
            instances.append((layers, budget))
            labels.append(f"{name}, {batches} lots, budget = {budget} paramètres sur {whole}")
        if apart(instances) and all(clear_ranking(layers) for layers, _ in instances):
            return [Case(label, instance) for label, instance in zip(labels, instances, strict=True)]


def budget_reading(result: Any) -> tuple[Scores, list[list[int | None]]]:
    """Les importances en tenseurs, les indices gardés dans l'ordre."""
    scores, kept = result
    return [plain(s) for s in scores], [sorted(as_integer(k) for k in own) for own in kept]  # type: ignore[type-var]


def budget_properties(result: Any, case: Case) -> Iterable[Property]:
    """Une sélection gloutonne se reconnaît sans être refaite : ce qui manque ne tenait pas, à son tour."""
    layers, budget = case.args
    sizes, right = component_sizes(layers), importances(layers)
    valid = isinstance(result, tuple | list) and len(result) == 2
    valid = valid and all(isinstance(part, tuple | list) and len(part) == len(layers) for part in result)
    text = "le résultat est un couple (importances, gardees), une entrée par couche dans chacune"
    yield Property(text, valid, f"reçu {result!r}, pour {len(layers)} couches")
    if not valid:
        return
    try:
        scores, kept = budget_reading(result)
    except (TypeError, ValueError, RuntimeError):
        scores, kept = [], []
    shapes = [tuple(s.shape) for s in scores]
    wanted = [tuple(s.shape) for s in right]
    yield Property("une importance par composante", shapes == wanted, f"reçu {shapes}, attendu {wanted}")
    if shapes != wanted:
        return
    for i, (mine, true) in enumerate(zip(scores, right, strict=True)):
        k = int(((mine - true).abs() / true).nan_to_num(math.inf).argmax())
        yield Property(
            "l'importance est la somme, sur les lots, de |⟨b_k, ∂L/∂b_k⟩|",
            close(float(mine[k]), float(true[k])),
            f"couche {i}, composante {k} : vous rendez {number(float(mine[k]))} au lieu de {number(float(true[k]))}",
        )
    valid = all(
        k is not None and 0 <= k < len(s) and own.count(k) == 1 for own, s in zip(kept, right, strict=True) for k in own
    )
    text = "les composantes gardées sont des indices valables, chacun une seule fois"
    yield Property(text, valid, f"reçu {kept}")
    if not valid:
        return
    empty = [i for i, own in enumerate(kept) if not own]
    yield Property("chaque couche garde au moins une composante", not empty, f"la couche {empty} n'en garde aucune")
    spent = sum(size * len(own) for size, own in zip(sizes, kept, strict=True))
    yield Property(
        "le budget est tenu",
        spent <= budget,
        f"vous gardez {spent} paramètres, pour un budget de {budget}",
    )
    firsts = [int(s.argmax()) for s in right]
    for i, (own, first) in enumerate(zip(kept, firsts, strict=True)):
        yield Property(
            "chaque couche garde sa composante la plus importante",
            not own or first in own,
            f"couche {i}, la composante {first} n'est pas gardée ; vous gardez {own}",
        )
    left = budget - sum(sizes)
    taken = [(float(right[i][k]) / sizes[i], sizes[i]) for i, own in enumerate(kept) for k in own if k != firsts[i]]
    for i, own in enumerate(kept):
        for k in set(range(len(right[i]))) - set(own) - {firsts[i]}:
            worth = float(right[i][k]) / sizes[i]
            before = left - sum(size for other, size in taken if other > worth)
            yield Property(
                "ce qui est laissé ne tenait pas, une fois servies les composantes plus importantes par paramètre",
                before < sizes[i],
                f"couche {i}, la composante {k} vaut {number(worth)} par paramètre ; ce qui vaut plus laissait "
                f"{before} paramètres, et elle n'en demande que {sizes[i]}",
            )


Importance = Callable[[Tensor, Tensor, Tensor], Tensor]


def absolute_slopes(A: Tensor, B: Tensor, G: Tensor) -> Tensor:
    """La bonne importance."""
    return (B * G).sum(1).abs().sum(0)


def budget_variant(
    importance: Importance = absolute_slopes,
    select: Selection = chosen,
    told: Callable[[Tensor, int], Tensor] = lambda s, size: s,
) -> Any:
    """Fonction fautive : une autre importance, une autre sélection, ou une autre façon de la dire."""

    def wrong(layers: Sequence[Layer], budget: int) -> tuple[Scores, Kept]:
        scores, sizes = [importance(*layer) for layer in layers], component_sizes(layers)
        return [told(s, size) for s, size in zip(scores, sizes, strict=True)], select(scores, sizes, budget)

    return wrong


EXERCISE_11_3_2 = Exercise(
    number="11.3.2",
    title="un LoRA dont le rang suit les gradients",
    cases=budget_cases,
    properties=budget_properties,
    signature=budget_reading,
    mistakes=(
        Mistake(
            "la valeur absolue oubliée",
            "⟨b_k, ∂L/∂b_k⟩ est signé : retirer la composante ferait monter la perte d'un lot, descendre celle d'un "
            "autre. Les deux comptent ; prenez la valeur absolue de chaque lot avant d'ajouter.",
            (budget_variant(lambda A, B, G: (B * G).sum((0, 1))),),
        ),
        Mistake(
            "la valeur absolue de la somme",
            "vous ajoutez les lots, puis prenez la valeur absolue : une composante qui compte beaucoup dans chacun, "
            "tantôt dans un sens, tantôt dans l'autre, paraît inutile. C'est la somme des valeurs absolues.",
            (
                budget_variant(lambda A, B, G: (B * G).sum((0, 1)).abs()),
                budget_variant(lambda A, B, G: (B.mean(0) * G.mean(0)).sum(0).abs()),
                budget_variant(lambda A, B, G: (B.sum(0) * G.sum(0)).sum(0).abs()),
                budget_variant(lambda A, B, G: (B[-1] * G.sum(0)).sum(0).abs()),
            ),
        ),
        Mistake(
            "la valeur absolue de chaque coefficient",
            "⟨b_k, ∂L/∂b_k⟩ est un nombre, la somme des produits coefficient par coefficient : la valeur absolue vient "
            "après cette somme, pas avant.",
            (budget_variant(lambda A, B, G: (B * G).abs().sum((0, 1))),),
        ),
        Mistake(
            "la norme de b_k seule, ou celle du gradient",
            "une grande composante peut ne servir à rien, et un grand gradient porter sur une composante presque "
            "nulle. L'importance est leur produit scalaire : ce dont la perte changerait, au premier ordre, si b_k "
            "disparaissait.",
            (
                budget_variant(lambda A, B, G: B[-1].norm(dim=0)),
                budget_variant(lambda A, B, G: B.norm(dim=1).sum(0)),
                budget_variant(lambda A, B, G: B[-1].norm(dim=0) * A.norm(dim=1)),
                budget_variant(lambda A, B, G: G.norm(dim=1).sum(0)),
                budget_variant(lambda A, B, G: G[-1].norm(dim=0)),
                budget_variant(lambda A, B, G: (B.norm(dim=1) * G.norm(dim=1)).sum(0)),
            ),
        ),
        Mistake(
            "une autre somme sur les lots",
            "tous les lots comptent, et leurs valeurs absolues s'ajoutent : ni le dernier seul, ni la moyenne, ni "
            "leurs carrés, ni la plus grande.",
            (
                budget_variant(lambda A, B, G: (B[-1] * G[-1]).sum(0).abs()),
                budget_variant(lambda A, B, G: (B * G).sum(1).abs().mean(0)),
                budget_variant(lambda A, B, G: (B * G).sum(1).square().sum(0)),
                budget_variant(lambda A, B, G: (B * G).sum(1).norm(dim=0)),
                budget_variant(lambda A, B, G: (B * G).sum(1).abs().amax(0)),
                budget_variant(lambda A, B, G: (B[-1] * G).sum(1).abs().sum(0)),
            ),
        ),
        Mistake(
            "l'importance rendue déjà divisée",
            "la division par in + out ne sert qu'à classer ; l'importance rendue est la somme elle-même.",
            (budget_variant(told=lambda s, size: s / size),),
        ),
        Mistake(
            "un classement sans la taille",
            "une composante d'une grande couche coûte in + out paramètres, bien plus que celle d'une petite. À budget "
            "fixé, c'est l'importance par paramètre qui classe.",
            tuple(
                budget_variant(select=select, told=told)
                for select in SELECTIONS["taille"]
                for told in (lambda s, size: s, lambda s, size: s / size)
            ),
        ),
        Mistake(
            "le même rang, ou le même budget, partout",
            "vous partagez le budget à parts égales entre les couches. Le but est l'inverse : qu'une couche où les "
            "gradients sont forts en reçoive plus, au détriment des autres.",
            tuple(budget_variant(select=select) for select in SELECTIONS["même rang"]),
        ),
        Mistake(
            "le budget dépassé",
            "la première composante de chaque couche se paie aussi, et une composante n'entre que si elle tient dans "
            "ce qui reste, avant de la prendre.",
            tuple(budget_variant(select=select) for select in SELECTIONS["budget"]),
        ),
        Mistake(
            "un arrêt à la première qui ne tient pas",
            "une composante trop grosse pour ce qui reste est sautée ; une plus petite, un peu moins importante, peut "
            "encore tenir. Continuez jusqu'au bout de la liste.",
            tuple(budget_variant(select=select) for select in SELECTIONS["arrêt"]),
        ),
        Mistake(
            "une couche laissée sans composante",
            "chaque couche garde d'abord la sienne, la plus importante, quel que soit son rang dans le classement "
            "général : un adaptateur de rang zéro n'en est plus un.",
            tuple(budget_variant(select=select) for select in SELECTIONS["vide"]),
        ),
    ),
)

# --- 11.3.3 -----------------------------------------------------------------------------------------------------------

Adapter = tuple[Tensor, Tensor, float]  # A (r, n), B (m, r), s


class Facteur(Tensor):
    """Un facteur d'une très grande couche : un tenseur ordinaire, dont aucun calcul ne peut tirer une matrice m×n."""

    LARGEST = 2_000_000  # coefficients ; les facteurs de ces couches en ont cent fois moins, leurs produits, plus

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(function, types, args, kwargs or {})
        for t in result if isinstance(result, tuple) else (result,):
            if isinstance(t, Tensor) and t.numel() > cls.LARGEST:
                shape = "×".join(map(str, t.shape))
                raise ValueError(f"un tenseur {shape} : cette couche est trop grande, restez sur les facteurs.")
        return result


def mixing_cases(generator: torch.Generator) -> list[Case]:
    """Même rang ; un poids nul ; des parts communes ; une couche étroite ; une grande.

    Le plus petit rang n'est la somme de tous les rangs que dans la première.
    """

    def adapter(m: int, n: int, rank: int) -> Adapter:
        A = torch.randn(rank, n, generator=generator, dtype=torch.float64) / n**0.5
        B = torch.randn(m, rank, generator=generator, dtype=torch.float64)
        return A, B, (0.25, 0.5, 2.0, 3.0)[integer(generator, 0, 3)]

    def weight(sign: int) -> float:
        return (
            sign * integer(generator, 3, 9) / 10 if integer(generator, 0, 1) else sign * integer(generator, 12, 18) / 10
        )

    cases = []
    for kind in (
        "deux adaptateurs de même rang",
        "quatre adaptateurs, dont un de poids nul",
        "des lignes de A communes, et une composante qui s'annule",
        "une couche étroite",
        "une grande couche",
    ):
        m, n = integer(generator, 24, 30), integer(generator, 31, 40)
        if kind == "une couche étroite":
            m = integer(generator, 5, 6)
        elif kind == "une grande couche":
            m, n = integer(generator, 2000, 2400), integer(generator, 1500, 1900)
        if kind == "deux adaptateurs de même rang":
            rank = integer(generator, 2, 4)
            adapters, weights = [adapter(m, n, rank), adapter(m, n, rank)], [weight(1), weight(-1)]
        else:
            ranks = [integer(generator, 2, 3), integer(generator, 4, 5), integer(generator, 3, 4), 1]
            adapters, weights = [adapter(m, n, rank) for rank in ranks], [weight(1), weight(1), weight(-1), weight(1)]
        if kind == "quatre adaptateurs, dont un de poids nul":
            weights[integer(generator, 0, 1)] = 0.0
        if kind in ("des lignes de A communes, et une composante qui s'annule", "une grande couche"):
            (A_2, B_2, s_2), (A_3, B_3, s_3) = adapters[1:3]
            A_2[:2] = adapters[0][0][:2]  # deux tâches apprises depuis la même A, en partie
            A_3[0], B_3[:, 0] = 2 * A_2[2], -weights[1] * s_2 / (2 * weights[2] * s_3) * B_2[:, 2]
        if kind == "une grande couche":
            adapters = [(A.as_subclass(Facteur), B.as_subclass(Facteur), s) for A, B, s in adapters]
        label = f"ΔW {m}×{n}, {kind}, rangs {[len(A) for A, _, _ in adapters]}, poids {', '.join(map(number, weights))}"
        cases.append(Case(label, (adapters, weights)))
    return cases


def probe(adapters: Sequence[Adapter]) -> Tensor:
    """Quelques entrées au hasard, une par colonne, plus nombreuses que la somme des rangs."""
    generator = torch.Generator().manual_seed(0)
    columns = sum(len(A) for A, _, _ in adapters) + 5
    return torch.randn(adapters[0][0].shape[1], columns, generator=generator, dtype=torch.float64)


def mixed(adapters: Sequence[Adapter], weights: Sequence[float]) -> Tensor:
    """Σ w s B A, appliquée à ces entrées : assez pour la reconnaître, et pour en connaître le rang."""
    X = probe(adapters)
    return torch.stack([w * s * plain(B) @ (plain(A) @ X) for (A, B, s), w in zip(adapters, weights, strict=True)]).sum(
        0
    )


def mixing_reading(result: Any) -> Factors:
    """A et B, en tenseurs."""
    A, B = result
    return plain(A), plain(B)


def mixing_properties(result: Any, case: Case) -> Iterable[Property]:
    """La somme est jugée sur des entrées, le rang sur leurs images : la matrice m×n n'est formée nulle part."""
    adapters, weights = case.args
    n, m = adapters[0][0].shape[1], len(adapters[0][1])
    try:
        A, B = mixing_reading(result)
        shapes = [tuple(A.shape), tuple(B.shape)]
    except (TypeError, ValueError, RuntimeError):
        shapes = []
    text = "le résultat est un couple (A, B) de tenseurs, ou de tableaux"
    yield Property(text, bool(shapes), f"reçu {result!r}")
    if not shapes:
        return
    valid = A.ndim == B.ndim == 2 and len(A) == B.shape[1] and (len(B), A.shape[1]) == (m, n)
    yield Property("A est de forme (r, n) et B de forme (m, r)", valid, f"reçu {shapes}, pour m = {m} et n = {n}")
    if not valid:
        return
    finite = bool(A.isfinite().all() and B.isfinite().all())
    yield Property("A et B sont finis", finite, "ils contiennent nan ou inf")
    if not finite:
        return
    wanted = mixed(adapters, weights)
    error = gap(B @ (A @ probe(adapters)), wanted)
    yield Property(
        "B A vaut Σ w s B_k A_k",
        error < 1e-5,
        f"l'écart relatif est de {number(error)}",
    )
    rank = int(torch.linalg.matrix_rank(wanted, rtol=1e-9))
    yield Property(
        "le rang est le plus petit possible",
        len(A) == rank,
        f"vous rendez le rang {len(A)} ; Σ w s B_k A_k est de rang {rank}",
    )


def mixing_portrait(result: Any, case: Case) -> Any:
    """Le rang, et B A sur quelques entrées."""
    A, B = result
    return len(A), B @ (A @ probe(case.args[0])[:, :3])


def placed(w: float, s: float) -> tuple[float, float]:
    """Ce que reçoivent A et B : tout va à B."""
    return 1.0, w * s


def concatenated(
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    place: Callable[[float, float], tuple[float, float]] = placed,
    nonzero: bool = True,
) -> Factors:
    """[A_1 ; A_2 ; …] et [c_1 B_1, c_2 B_2, …], sans les poids nuls."""
    kept = [(A, B, place(w, s)) for (A, B, s), w in zip(adapters, weights, strict=True) if w or not nonzero]
    return torch.cat([a * A for A, _, (a, _) in kept]), torch.cat([b * B for _, B, (_, b) in kept], dim=1)


def recompressed(A: Tensor, B: Tensor, power: float = 1, most: int | None = None) -> Factors:
    """Le même produit au plus petit rang : deux QR, et la SVD d'une petite matrice."""
    (Q, R), (P, T) = torch.linalg.qr(B), torch.linalg.qr(A.T)
    U, S, Vh = torch.linalg.svd(R @ T.T, full_matrices=False)
    rank = int((S / S[0] > 1e-9).sum()) if most is None else most
    return Vh[:rank] @ P.T, Q @ (U[:, :rank] * S[:rank] ** power)


def mixing_variant(
    place: Callable[[float, float], tuple[float, float]] = placed,
    *,
    weigh: Callable[[Sequence[float]], Sequence[float]] = list,
    finish: Callable[..., Factors] = recompressed,
) -> Any:
    """Fonction fautive : la concaténation recomprimée, dont quelque chose est changé."""

    def wrong(adapters: Sequence[Adapter], weights: Sequence[float]) -> Factors:
        return finish(*concatenated(adapters, weigh(weights), place))

    return wrong


def factors_mixed(for_A: bool, *, padded: bool, mean: bool) -> Any:
    """Fonction fautive : A et B combinées chacune de son côté ; `padded` complète les rangs par des zéros."""

    def wrong(adapters: Sequence[Adapter], weights: Sequence[float]) -> Factors:
        top = max(len(A) for A, _, _ in adapters) if padded else 0
        A_sum = B_sum = torch.zeros(())
        for (A, B, s), w in zip(adapters, weights, strict=True):
            extra = max(0, top - len(A))
            A, B = torch.nn.functional.pad(A, (0, 0, 0, extra)), torch.nn.functional.pad(B, (0, extra))
            A_sum, B_sum = A_sum + (w if for_A else 1) * A, B_sum + w * s * B
        return A_sum / (len(adapters) if mean else 1), B_sum

    return wrong


def dense_first(adapters: Sequence[Adapter], weights: Sequence[float]) -> Factors:
    """Fonction fautive : la somme écrite en entier, puis sa SVD."""
    A, B = concatenated(adapters, weights)
    U, S, Vh = torch.linalg.svd(B @ A, full_matrices=False)
    rank = int((S / S[0] > 1e-9).sum())
    return Vh[:rank], U[:, :rank] * S[:rank]


def one_sided(adapters: Sequence[Adapter], weights: Sequence[float]) -> Factors:
    """Fonction fautive : le rang de B seule, sans regarder A."""
    A, B = concatenated(adapters, weights)
    Q, R = torch.linalg.qr(B)
    U, S, Vh = torch.linalg.svd(R, full_matrices=False)
    rank = int((S / S[0] > 1e-9).sum())
    return S[:rank, None] * Vh[:rank] @ A, Q @ U[:, :rank]


def root(w: float, s: float) -> tuple[float, float]:
    """√(w s) de chaque côté, par math.sqrt, qui refuse un poids négatif."""
    return math.sqrt(w * s), math.sqrt(w * s)


def root_of_tensor(w: float, s: float) -> tuple[float, float]:
    """De même, par torch.sqrt, qui rend nan."""
    value = float(torch.tensor(w * s).sqrt())
    return value, value


def root_of_size(w: float, s: float) -> tuple[float, float]:
    """√abs(w s) de chaque côté : le signe est perdu."""
    return math.sqrt(abs(w * s)), math.sqrt(abs(w * s))


EXERCISE_11_3_3 = Exercise(
    number="11.3.3",
    title="plusieurs LoRA pour plusieurs tâches",
    cases=mixing_cases,
    properties=mixing_properties,
    signature=mixing_reading,
    portrait=mixing_portrait,
    mistakes=(
        Mistake(
            "A et B combinées chacune de son côté",
            "(B₁ + B₂)(A₁ + A₂) contient B₁A₂ et B₂A₁, qu'aucune tâche n'a appris. Mettez les B côte à côte et les A "
            "l'une sous l'autre : [B₁, B₂] [A₁ ; A₂] = B₁A₁ + B₂A₂.",
            tuple(
                factors_mixed(for_A, padded=padded, mean=mean)
                for for_A in (False, True)
                for padded in (False, True)
                for mean in (False, True)
            ),
        ),
        Mistake(
            "le poids sur les deux facteurs",
            "si A et B reçoivent toutes deux w, ou s, le produit en reçoit le carré, et un poids négatif devient "
            "positif. Un seul facteur les porte.",
            (
                mixing_variant(lambda w, s: (w, w * s)),
                mixing_variant(lambda w, s: (s, w * s)),
                mixing_variant(lambda w, s: (w * s, w * s)),
                mixing_variant(lambda w, s: (w, w)),
            ),
        ),
        Mistake(
            "la racine d'un poids négatif",
            "√w de chaque côté rend bien w, tant que w est positif. Un poids négatif, qui retire une tâche, n'a pas de "
            "racine, et celle de sa valeur absolue perd le signe. Mettez le poids entier d'un seul côté.",
            (
                mixing_variant(root),
                mixing_variant(root_of_tensor),
                mixing_variant(root_of_tensor, finish=lambda A, B: (A, B)),
                mixing_variant(root_of_size),
                mixing_variant(root_of_size, finish=lambda A, B: (A, B)),
            ),
        ),
        Mistake(
            "l'échelle s oubliée",
            "chaque adaptateur a la sienne : ΔW_k = s_k B_k A_k. Le résultat n'en a plus, elle doit être dans A ou "
            "dans B.",
            (
                mixing_variant(lambda w, s: (1, w)),
                mixing_variant(lambda w, s: (1, w), finish=lambda A, B: (A, B)),
            ),
        ),
        Mistake(
            "des poids changés",
            "les poids sont ceux que l'on vous donne : leur somme n'a pas à valoir un, et un poids négatif retire ce "
            "qu'une tâche a appris.",
            (
                mixing_variant(weigh=lambda weights: [w / sum(weights) for w in weights]),
                mixing_variant(weigh=lambda weights: [w / len(weights) for w in weights]),
                mixing_variant(weigh=lambda weights: [w / sum(map(abs, weights)) for w in weights]),
                mixing_variant(weigh=lambda weights: [max(w, 0) for w in weights]),
                mixing_variant(weigh=lambda weights: [1] * len(weights)),
            ),
        ),
        Mistake(
            "le rang de la concaténation",
            "la somme est juste, mais son rang ne vaut pas toujours la somme des rangs : des adaptateurs partagent des "
            "directions, se compensent, ou débordent min(m, n). Deux QR, puis la SVD de la petite matrice R_B R_Aᵀ, "
            "disent combien de directions restent.",
            (
                mixing_variant(finish=lambda A, B: (A, B)),
                lambda adapters, weights: concatenated(adapters, weights, nonzero=False),
                mixing_variant(finish=lambda A, B: recompressed(A, B, most=min(len(A), len(B)))),
            ),
        ),
        Mistake(
            "un seul facteur examiné",
            "des colonnes de B indépendantes ne suffisent pas : si deux lignes de A sont les mêmes, le produit perd un "
            "rang. Il faut le triangle de B et celui de A, multipliés.",
            (one_sided,),
        ),
        Mistake(
            "tronqué au plus grand rang",
            "vous ramenez la somme au rang du plus grand adaptateur : elle n'est plus exacte. Ne retirez que ce qui "
            "est nul à l'arrondi près.",
            (
                lambda adapters, weights: recompressed(
                    *concatenated(adapters, weights), most=max(len(A) for A, _, _ in adapters)
                ),
                lambda adapters, weights: recompressed(
                    *concatenated(adapters, weights),
                    most=max(len(A) for (A, _, _), w in zip(adapters, weights, strict=True) if w),
                ),
            ),
        ),
        Mistake(
            "les valeurs singulières oubliées, ou comptées deux fois",
            "de U S Vᵀ, un facteur prend S, ou chacun √S : ni aucun, ni les deux.",
            (
                mixing_variant(finish=lambda A, B: recompressed(A, B, power=0)),
                mixing_variant(finish=lambda A, B: recompressed(A, B, power=2)),
            ),
        ),
        Mistake(
            "la matrice m×n formée",
            "le résultat est juste, mais vous écrivez B A en entier, puis sa SVD : sur une grande couche, c'est des "
            "millions de coefficients pour un rang de quelques unités. Avec B = Q R et Aᵀ = P T, la somme vaut "
            "Q (R Tᵀ) Pᵀ, et R Tᵀ est minuscule.",
            (dense_first,),
        ),
    ),
)
