"""Exercices 11.1.1, 11.1.2 et 11.1.3 : rang sous contrainte de taille, initialisations, gradients des facteurs."""

import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from .engine import Case, Exercise, Mistake, Property, as_integer, same
from .instances import integer, linear, matrix, number, uniform

# --- 11.1.1 -----------------------------------------------------------------------------------------------------------


def compression_case(m: int, n: int, compression: float) -> Case:
    """Une instance ; si même le rang 1 pèse trop, un refus est attendu."""
    impossible = Fraction(m * n, m + n) < Fraction(compression)
    label = f"(m, n) = ({m}, {n}) et compression = {number(compression)}"
    return Case(label, (m, n, compression), ValueError if impossible else None)


def compression_cases(generator: torch.Generator) -> list[Case]:
    """Des formes au hasard, une égalité exacte, une borne min(m, n) atteinte, une contrainte impossible."""
    k = integer(generator, 4, 40)
    cases = [
        compression_case(
            integer(generator, 60, 900), integer(generator, 60, 900), round(uniform(generator, 1.3, 9), 1) + 1 / 64
        )
        for _ in range(5)
    ]
    return [
        *cases,
        compression_case(8 * k, 8 * k, 2),  # r = 2k exactement
        compression_case(6, 6, 1.49),  # r = 2, de justesse
        compression_case(8 * k, 3 * k, 0.25),  # la contrainte permet plus que min(m, n)
        compression_case(3 * k, 8 * k, 0.25),
        compression_case(2 * k, 2 * k, k),  # r = 1 exactement
        compression_case(k, 2 * k, float(k)),  # même le rang 1 pèse trop
    ]


def compression_properties(result: Any, case: Case) -> Iterable[Property]:
    """En arithmétique exacte : r(m + n)·c ≤ mn, et r + 1 ne convient plus."""
    m, n, compression = case.args
    rank = as_integer(result)
    valid = rank is not None and 1 <= rank <= min(m, n)
    text = "le rang rendu est un entier entre 1 et min(m, n)"
    yield Property(text, valid, f"reçu {result!r}, et min(m, n) = {min(m, n)}")
    if rank is None or not valid:
        return
    obtained = Fraction(m * n, rank * (m + n))
    yield Property(
        "la compression obtenue suffit",
        obtained >= Fraction(compression),
        f"au rang {rank}, mn/(r(m+n)) = {number(float(obtained))}, moins que {number(compression)}",
    )
    larger = Fraction(m * n, (rank + 1) * (m + n))
    yield Property(
        "aucun rang plus grand ne convient",
        rank == min(m, n) or larger < Fraction(compression),
        f"vous rendez {rank}, mais le rang {rank + 1} donne encore une compression de {number(float(larger))}",
    )


def ideal_rank(m: int, n: int, compression: float) -> Fraction:
    """mn/(c(m + n)), exactement."""
    return Fraction(m * n, m + n) / Fraction(compression)


def guarded(m: int, n: int, rank: int) -> int:
    """Le rang borné par min(m, n), refusé s'il est nul : ce que les fautes font bien par ailleurs."""
    if rank < 1:
        raise ValueError(f"rang {rank}")
    return min(rank, m, n)


EXERCISE_11_1_1 = Exercise(
    number="11.1.1",
    title="le rang sous une contrainte de compression",
    cases=compression_cases,
    properties=compression_properties,
    mistakes=(
        Mistake(
            "un arrondi au plus proche",
            "vous arrondissez mn/(c(m+n)) au plus proche : une fois sur deux, la compression obtenue est inférieure à "
            "celle qu'on demande. Il faut la partie entière.",
            (
                lambda m, n, c: guarded(m, n, round(ideal_rank(m, n, c))),
                lambda m, n, c: guarded(m, n, math.ceil(ideal_rank(m, n, c))),
            ),
        ),
        Mistake(
            "un seul facteur compté",
            "vous divisez mn par la taille d'un seul facteur ; U et V se gardent tous les deux : r(m + n).",
            (
                lambda m, n, c: guarded(m, n, math.floor(Fraction(n) / Fraction(c))),
                lambda m, n, c: guarded(m, n, math.floor(Fraction(m) / Fraction(c))),
                lambda m, n, c: guarded(m, n, math.floor(Fraction(min(m, n)) / Fraction(c))),
            ),
        ),
        Mistake(
            "les valeurs singulières comptées en plus",
            "vous comptez r(m + n + 1) nombres ; rangées dans U et V (√S de chaque côté), les r valeurs singulières "
            "ne coûtent rien.",
            (lambda m, n, c: guarded(m, n, math.floor(Fraction(m * n, m + n + 1) / Fraction(c))),),
        ),
        Mistake(
            "l'impossible accepté",
            "quand même le rang 1 pèse trop, vous rendez un rang qui ne respecte pas la contrainte ; refusez, "
            "par ValueError.",
            (
                lambda m, n, c: min(math.floor(ideal_rank(m, n, c)), m, n),
                lambda m, n, c: max(1, min(math.floor(ideal_rank(m, n, c)), m, n)),
            ),
        ),
        Mistake(
            "un rang au-delà de min(m, n)",
            "quand la contrainte est lâche, mn/(c(m+n)) dépasse min(m, n), et aucune matrice m×n n'a un tel rang.",
            (
                lambda m, n, c: guarded(10**9, 10**9, math.floor(ideal_rank(m, n, c))),
                lambda m, n, c: guarded(max(m, n), max(m, n), math.floor(ideal_rank(m, n, c))),
                lambda m, n, c: guarded(m, m, math.floor(ideal_rank(m, n, c))),
                lambda m, n, c: guarded(n, n, math.floor(ideal_rank(m, n, c))),
                lambda m, n, c: math.floor(ideal_rank(m, n, c)),
            ),
        ),
        Mistake(
            "une inégalité stricte",
            "vous écartez le rang qui atteint exactement la compression demandée ; il convient.",
            (lambda m, n, c: guarded(m, n, math.ceil(ideal_rank(m, n, c)) - 1),),
        ),
    ),
)

# --- 11.1.2 -----------------------------------------------------------------------------------------------------------

STRATEGIES = ("aleatoire", "xavier", "svd")
LUCK = 0.1  # écart relatif qu'on laisse aux tirages : plus de six écarts types, mesurés à 1,6 %


def initialisation_cases(generator: torch.Generator) -> list[Case]:
    """Des couches haute, large et carrée, de petite norme : l'énergie des tirages domine, donc leur loi se voit."""
    cases = []
    for m, n in ((144, 96), (96, 144), (120, 120)):
        W = matrix(generator, m, n, uniform(generator, 0.6, 1.2))
        layer = linear(W * uniform(generator, 0.5, 2) / W.norm(), generator)
        rank, seed = integer(generator, 30, 50), integer(generator, 0, 10**6)
        seeds = [seed, seed + 1] if m == n else [seed]
        cases += [Case(f"une couche {n} → {m}, rang = {rank}, graine = {g}", (layer, rank, g)) for g in seeds]
    return cases


def expected_error(W: Tensor, rank: int, variance_u: float, variance_v: float) -> float:
    """√(1 + mnr·Var(U)·Var(V)/‖W‖²) : des facteurs centrés et indépendants de W ajoutent leur énergie à la sienne."""
    return math.sqrt(1 + W.numel() * rank * variance_u * variance_v / float(W.norm() ** 2))


def initialisation_properties(result: Any, case: Case) -> Iterable[Property]:
    """L'erreur de la SVD se calcule par Eckart–Young ; celles des tirages, par leur variance."""
    layer, rank, _ = case.args
    W = layer.weight.detach().double()
    m, n = W.shape
    text = "le résultat est un dictionnaire de clés aleatoire, xavier et svd, à valeurs réelles"
    valid = isinstance(result, Mapping) and set(result) == set(STRATEGIES)
    yield Property(text, valid, f"reçu {sorted(result) if isinstance(result, Mapping) else result!r}")
    if not valid:
        return
    error = {key: float(result[key]) for key in STRATEGIES}
    S = torch.linalg.svdvals(W)
    best = float((S[rank:] ** 2).sum().sqrt() / W.norm())
    yield Property(
        "l'erreur de la SVD est celle d'Eckart–Young",
        math.isclose(error["svd"], best, rel_tol=1e-3),
        f"vous trouvez {number(error['svd'], 4)}, et le minimum sur toutes les matrices de rang {rank} "
        f"est {number(best, 4)}",
    )
    laws = {
        "aleatoire": ("facteurs gaussiens centrés réduits", expected_error(W, rank, 1, 1)),
        "xavier": ("facteurs de Xavier", expected_error(W, rank, 2 / (m + rank), 2 / (n + rank))),
    }
    for key, (name, prediction) in laws.items():
        why = f"vous trouvez {number(error[key])} ; la variance de ces facteurs prédit {number(prediction)}"
        if abs(error[key] - expected_error(W, rank, 2 / (m + n), 2 / (m + n))) < LUCK * error[key]:
            why += " (vous avez celle de la borne √(6/(m+n)) : c'est sur chaque facteur qu'il faut la prendre)"
        close = abs(error[key] - prediction) < LUCK * prediction
        yield Property(f"l'erreur « {key} » est celle de {name}", close, why)


def svd_variant(rebuild: Any) -> Any:
    """Fonction fautive : `rebuild(U, S, Vh, V)` donne l'approximation, les deux autres clés ne comptent pas."""

    def wrong(layer: nn.Linear, rank: int, seed: int) -> dict[str, float]:
        W = layer.weight.detach()
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
        rebuilt = rebuild(U[:, :rank], S[:rank], Vh[:rank], Vh.T[:rank])
        return {"svd": float((W - rebuilt).norm() / W.norm())}

    return wrong


def svd_measure(measure: Any) -> Any:
    """Fonction fautive : la bonne approximation, mais `measure(W, E)` au lieu de l'erreur relative."""

    def wrong(layer: nn.Linear, rank: int, seed: int) -> dict[str, float]:
        W = layer.weight.detach()
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
        return {"svd": float(measure(W, W - U[:, :rank] * S[:rank] @ Vh[:rank]))}

    return wrong


def other_seed_other_draws(cases: Sequence[Case], results: Sequence[Any]) -> Iterable[Property]:
    """Les deux dernières instances ne diffèrent que par la graine."""
    yield Property(
        "une autre graine donne d'autres tirages",
        results[-1]["aleatoire"] != results[-2]["aleatoire"] and results[-1]["xavier"] != results[-2]["xavier"],
        "deux graines différentes, sur la même couche, ont donné exactement les mêmes erreurs : vos tirages l'ignorent",
    )


EXERCISE_11_1_2 = Exercise(
    number="11.1.2",
    title="trois initialisations comparées",
    cases=initialisation_cases,
    properties=initialisation_properties,
    across=other_seed_other_draws,
    signature=lambda result: float(result["svd"]),
    mistakes=(
        Mistake(
            "V pris pour Vᵀ",
            "torch.svd rend V : ses premières lignes ne sont pas les vecteurs singuliers droits (ce sont ses premières "
            "colonnes). Sur une couche large, le produit n'a même pas la bonne forme.",
            (svd_variant(lambda U, S, Vh, V: U * S @ V),),
        ),
        Mistake(
            "S compté deux fois",
            "chaque facteur a reçu S tout entier, et leur produit vaut U S² Vᵀ : donnez √S à chacun.",
            (svd_variant(lambda U, S, Vh, V: U * S**2 @ Vh),),
        ),
        Mistake(
            "S oublié",
            "U Vᵀ sans valeurs singulières est une isométrie partielle, pas une approximation de W.",
            (svd_variant(lambda U, S, Vh, V: U @ Vh),),
        ),
        Mistake(
            "√S d'un seul côté",
            "un seul facteur a reçu √S : le produit vaut U √S Vᵀ.",
            (svd_variant(lambda U, S, Vh, V: U * S.sqrt() @ Vh),),
        ),
        Mistake(
            "une erreur au carré",
            "vous rendez ‖E‖²/‖W‖², la part d'énergie perdue ; l'erreur relative en est la racine.",
            (svd_measure(lambda W, E: E.norm() ** 2 / W.norm() ** 2),),
        ),
        Mistake(
            "une erreur absolue",
            "vous rendez ‖E‖ ; divisez par ‖W‖.",
            (svd_measure(lambda W, E: E.norm()),),
        ),
        Mistake(
            "la norme spectrale",
            "vous mesurez σ₁(E)/σ₁(W) ; l'énoncé demande la norme de Frobenius.",
            (svd_measure(lambda W, E: torch.linalg.matrix_norm(E, 2) / torch.linalg.matrix_norm(W, 2)),),
        ),
    ),
)

# --- 11.1.3 -----------------------------------------------------------------------------------------------------------


def gradient_cases(generator: torch.Generator) -> list[Case]:
    """Facteurs et gradient gaussiens ; un cas carré, où une transposée oubliée ne lève aucune exception."""
    cases = []
    for m, n, r in ((7, 5, 3), (5, 8, 2), (6, 6, 6)):
        U, V, G = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((m, r), (n, r), (m, n)))
        cases.append(Case(f"U {m}×{r}, V {n}×{r}, G {m}×{n}", (U, V, G)))
    return cases


def gradient_properties(result: Any, case: Case) -> Iterable[Property]:
    """La dérivation automatique de PyTorch sert de témoin."""
    U, V, G = case.args
    valid = isinstance(result, tuple | list) and len(result) == 3 and all(isinstance(t, Tensor) for t in result)
    received = f"{len(result)} valeur(s)" if isinstance(result, tuple | list) else type(result).__name__
    yield Property("le résultat est un triplet de tenseurs (dU, dV, dW)", valid, f"reçu {received}")
    if not valid:
        return
    shapes = {name: tuple(t.shape) for name, t in zip(("dU", "dV", "dW"), result, strict=True)}
    wanted = {"dU": tuple(U.shape), "dV": tuple(V.shape), "dW": tuple(G.shape)}
    wrong = ", ".join(f"{k} {shapes[k]} au lieu de {wanted[k]}" for k in wanted if shapes[k] != wanted[k])
    yield Property("chaque gradient a la forme de ce qu'il corrige", not wrong, f"reçu {wrong}")
    if wrong:
        return
    dU, dV, dW = (t.detach() for t in result)
    u, v = U.clone().requires_grad_(), V.clone().requires_grad_()
    true_dU, true_dV = torch.autograd.grad((G * (u @ v.T)).sum(), (u, v))  # ⟨G, UVᵀ⟩ a G pour gradient en W
    yield Property("dU est bien ∂L/∂U", same(dU, true_dU), f"écart maximal {number(gap(dU, true_dU))}")
    yield Property("dV est bien ∂L/∂V", same(dV, true_dV), f"écart maximal {number(gap(dV, true_dV))}")
    step = 1e-6
    moved = (U @ V.T - (U - step * true_dU) @ (V - step * true_dV).T) / step
    yield Property(
        "dW est ce dont UVᵀ descend au premier ordre",
        gap(dW, moved) < 1e-3 * (1 + float(moved.abs().max())),
        f"un petit pas sur U et V change UVᵀ d'une tout autre quantité (écart maximal {number(gap(dW, moved))})",
    )


def gap(a: Tensor, b: Tensor) -> float:
    """Plus grand écart entre deux tenseurs."""
    return float((a - b).abs().max())


EXERCISE_11_1_3 = Exercise(
    number="11.1.3",
    title="les gradients d'une couche factorisée",
    cases=gradient_cases,
    properties=gradient_properties,
    mistakes=(
        Mistake(
            "dW pris pour G",
            "G est la descente qu'aurait une couche dense ; ici, ce sont U et V qui descendent : développez "
            "(U − η dU)(V − η dV)ᵀ et gardez les termes en η.",
            (lambda U, V, G: (G @ V, G.T @ U, G),),
        ),
        Mistake(
            "un seul facteur qui bouge",
            "dW n'a qu'un de ses deux termes : U et V descendent en même temps.",
            (
                lambda U, V, G: (G @ V, G.T @ U, G @ V @ V.T),
                lambda U, V, G: (G @ V, G.T @ U, U @ U.T @ G),
            ),
        ),
        Mistake(
            "une transposée oubliée",
            "∂L/∂V = Gᵀ U : sans la transposée, le produit n'a la bonne forme que si m = n, et il est faux.",
            (
                lambda U, V, G: (G @ V, G @ U, G @ V @ V.T + U @ U.T @ G),
                lambda U, V, G: (G @ V, G @ U, G @ V @ V.T + U @ (G @ U).T),
            ),
        ),
        Mistake(
            "U et V échangés",
            "∂L/∂U contient V, et ∂L/∂V contient U : chaque facteur reçoit G vu à travers l'autre.",
            (lambda U, V, G: (G.T @ U, G @ V, G @ V @ V.T + U @ U.T @ G),),
        ),
        Mistake(
            "dV transposée",
            "dV doit avoir la forme de V, (n, r) : vous rendez sa transposée, Uᵀ G.",
            (
                lambda U, V, G: (G @ V, U.T @ G, G @ V @ V.T + U @ U.T @ G),
                lambda U, V, G: (V.T @ G.T, U.T @ G, G @ V @ V.T + U @ U.T @ G),
            ),
        ),
        Mistake(
            "des gradients changés de signe",
            "la fonction rend les gradients ; le signe moins est dans le pas, U − η dU.",
            (
                lambda U, V, G: (-G @ V, -G.T @ U, G @ V @ V.T + U @ U.T @ G),
                lambda U, V, G: (-G @ V, -G.T @ U, -(G @ V @ V.T + U @ U.T @ G)),
            ),
        ),
        Mistake(
            "un signe de trop",
            "dW est ce que l'on retranche, comme dU et dV : W devient W − η dW.",
            (lambda U, V, G: (G @ V, G.T @ U, -(G @ V @ V.T + U @ U.T @ G)),),
        ),
        Mistake(
            "dU dVᵀ",
            "le produit des deux gradients est le terme du second ordre, en η² ; au premier ordre, dW = dU Vᵀ + U dVᵀ.",
            (lambda U, V, G: (G @ V, G.T @ U, (G @ V) @ (G.T @ U).T),),
        ),
    ),
)
