"""Exercices 11.2, 11.3.1, 11.3.2 et 11.3.3 : LoRA contre tous les poids, ses rangs, son budget, ses mélanges."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .engine import Case, Exercise, Mistake, Property
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
    """A et B après `steps` pas, dérivés par autograd, en float64."""
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


def tuning_properties(result: Any, case: Case) -> Iterable[Property]:
    """Tous les poids sont jugés par la formule close de la descente, A et B par autograd, la perte par les poids."""
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
        f"après {steps} pas, votre W est à {number(100 * change)} % de sa place",
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
            f"après {steps} pas, votre {name} est à {number(100 * change)} % de sa place ; sa norme est "
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
