"""Exercices 11.2.1, 11.2.2 et 11.2.3 : apprendre U Vᵀ, une SVD sans former la matrice, erreur et précision."""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from .engine import Case, Exercise, Mistake, Property, same
from .instances import integer, linear, number, uniform


def orthonormal(generator: torch.Generator, m: int, k: int) -> Tensor:
    """m×k float64, aux colonnes orthonormées."""
    return torch.linalg.qr(torch.randn(m, k, generator=generator, dtype=torch.float64)).Q


def reals(values: Any) -> list[float]:
    """Une suite de nombres, d'où qu'elle vienne."""
    return [float(value) for value in values]


# --- 11.2.1 -----------------------------------------------------------------------------------------------------------

NEAR = 1.01  # à 1 % du minimum


def gapped(generator: torch.Generator, m: int, n: int, rank: int) -> Tensor:
    """Matrice m×n float32 dont le spectre tombe après `rank` : apprendre y converge vite, vers un seul produit."""
    p = min(m, n)
    S = torch.cat([torch.linspace(1, 0.6, rank), 0.25 * torch.arange(1, p - rank + 1) ** -0.5]).double()
    U, V = orthonormal(generator, m, p), orthonormal(generator, n, p)
    return (U * S * uniform(generator, 3, 8) @ V.T).float()


def learning_cases(generator: torch.Generator) -> list[Case]:
    """Des matrices haute, large et carrée, d'échelles différentes ; la carrée deux fois, avec deux graines."""
    cases = []
    for shape in ("haute", "large", "carrée"):
        p, rank, seed = integer(generator, 20, 28), integer(generator, 3, 5), integer(generator, 0, 10**6)
        q = p if shape == "carrée" else p + integer(generator, 8, 20)
        W = gapped(generator, *((p, q) if shape == "large" else (q, p)), rank)
        seeds = [seed, seed + 1] if shape == "carrée" else [seed]
        label = f"W {W.shape[0]}×{W.shape[1]}, rang = {rank}"
        cases += [Case(f"{label}, graine = {g}", (W, rank, g)) for g in seeds]
    return cases


def svd_factors(W: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Facteurs équilibrés de la SVD tronquée, par la SVD."""
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    return U[:, :rank] * S[:rank].sqrt(), Vh[:rank].T * S[:rank].sqrt()


def gap_to(W: Tensor, U: Tensor, V: Tensor) -> float:
    """Erreur relative de U Vᵀ, en float64."""
    W = W.double()
    return float((W - U.double() @ V.double().T).norm() / W.norm())


def least_error(W: Tensor, rank: int) -> float:
    """Le minimum d'Eckart–Young."""
    energy = torch.linalg.svdvals(W.double()) ** 2
    return float((energy[rank:].sum() / energy.sum()).sqrt())


def curve_reading(W: Tensor, error: float, last: float) -> str:
    """Ce que la dernière valeur de la courbe mesure vraiment."""
    readings = {"erreur": error, "énergie": error**2, "absolue": error * float(W.double().norm())}
    return next((name for name, value in readings.items() if math.isclose(last, value, rel_tol=0.01)), "autre")


def one_sided(W: Tensor, U: Tensor, V: Tensor) -> bool:
    """Vrai si un facteur est le meilleur pour l'autre, resté à son tirage : (W − U Vᵀ) V = 0, ou sa transposée."""
    W, U, V = W.double(), U.double(), V.double()
    E = W - U @ V.T
    left, right = (E @ V).norm() / (W.norm() * V.norm()), (E.T @ U).norm() / (W.norm() * U.norm())
    return bool(min(left, right) < 0.01)


def twins(U: Tensor, V: Tensor) -> bool:
    """Vrai si deux colonnes sont les mêmes, dans U et dans V ; l'arrondi finit par en séparer d'autres."""
    both = torch.cat([U / U.norm(), V / V.norm()]).double()
    pairwise = torch.pdist(both.T)
    return bool(pairwise.min() < 1e-3 * both.norm(dim=0).max())


def diagonal(G: Tensor) -> bool:
    """Vrai d'une matrice diagonale, à l'arrondi près."""
    return bool((G - G.diag().diag()).abs().max() < 1e-4 * G.diag().abs().max())


def learning_portrait(result: Any, case: Case) -> Any:
    """Ce qui, dans des facteurs appris, ne dépend ni du tirage, ni de la méthode, ni de sa patience."""
    W, rank, _ = case.args
    U, V, errors = result
    U, V, shapes = U.detach(), V.detach(), (tuple(U.shape), tuple(V.shape))
    if shapes != ((W.shape[0], rank), (W.shape[1], rank)):
        return shapes
    if not (U.isfinite().all() and V.isfinite().all()):
        return "divergence"
    error, best = gap_to(W, U, V), least_error(W, rank)
    reading = curve_reading(W, error, reals(errors)[-1])
    if (U @ V.T).norm() < 1e-3 * W.norm():
        return "produit nul"
    if twins(U, V):
        return "colonnes pareilles"
    if error > 2 * best:
        return "un seul facteur" if one_sided(W, U, V) else "loin"
    if error > NEAR * best:
        return "presque"
    return "SVD" if diagonal(U.T @ U) and diagonal(V.T @ V) else "convergé", reading


def learning_properties(result: Any, case: Case) -> Iterable[Property]:
    """Eckart–Young juge le produit, et borne la courbe : personne ne descend plus bas que la SVD."""
    W, rank, _ = case.args
    valid = isinstance(result, tuple | list) and len(result) == 3 and all(isinstance(t, Tensor) for t in result[:2])
    received = f"{len(result)} valeur(s)" if isinstance(result, tuple | list) else type(result).__name__
    yield Property("le résultat est un triplet (U, V, erreurs), U et V étant des tenseurs", valid, f"reçu {received}")
    if not valid:
        return
    U, V = result[0].detach(), result[1].detach()
    m, n = W.shape
    yield Property(
        "U est de forme (m, rang) et V de forme (n, rang)",
        U.shape == (m, rank) and V.shape == (n, rank),
        f"reçu U {tuple(U.shape)} et V {tuple(V.shape)}, attendu {(m, rank)} et {(n, rank)}",
    )
    if U.shape != (m, rank) or V.shape != (n, rank):
        return
    finite = bool(U.isfinite().all() and V.isfinite().all())
    why = "ils contiennent nan ou inf : le pas est trop grand pour cette matrice, ou les facteurs de départ le sont"
    yield Property("les facteurs sont finis", finite, why)
    if not finite:
        return
    error, best = gap_to(W, U, V), least_error(W, rank)
    yield Property(
        "l'erreur de UVᵀ est à moins de 1 % du minimum, celle de la SVD",
        error <= NEAR * best,
        f"elle vaut {number(error)}, et la SVD atteint {number(best)} : plus de pas, ou un pas plus grand "
        "(une moyenne au lieu d'une somme divise le gradient par mn)",
    )
    errors = reals(result[2])
    yield Property("erreurs contient plusieurs valeurs", len(errors) > 1, f"reçu {len(errors)} valeur(s)")
    if len(errors) < 2:
        return
    reading = curve_reading(W, error, errors[-1])
    meaning = {
        "énergie": " (c'en est le carré : la part d'énergie perdue)",
        "absolue": " (vous n'avez pas divisé par ‖W‖)",
    }
    yield Property(
        "la dernière des erreurs est celle de UVᵀ",
        reading == "erreur",
        f"elle vaut {number(errors[-1])}, et l'erreur relative de vos facteurs {number(error)}"
        + meaning.get(reading, ""),
    )
    yield Property(
        "la courbe ne passe jamais sous la SVD",
        min(errors) >= 0.999 * best,
        f"elle descend à {number(min(errors))}, sous le minimum {number(best)} : c'est impossible, "
        "donc ce n'est pas l'erreur relative en norme de Frobenius",
    )


def other_seed_same_product(cases: Sequence[Case], results: Sequence[Any]) -> Iterable[Property]:
    """Les deux dernières instances ne diffèrent que par la graine."""
    (U, V, errors), (other_u, other_v, other_errors) = results[-2:]
    P, Q = (U @ V.T).detach(), (other_u @ other_v.T).detach()
    unmoved = same([U, V, reals(errors)], [other_u, other_v, reals(other_errors)])
    yield Property(
        "une autre graine donne un autre chemin, et le même produit",
        not unmoved and bool((P - Q).norm() < 0.15 * P.norm()),
        "deux graines différentes, sur la même matrice, ont donné les mêmes facteurs et les mêmes erreurs : "
        "votre départ ne suit pas la graine",
    )


def learned(W: Tensor, rank: int, start: Callable[[Tensor], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Moindres carrés alternés, depuis un départ donné."""
    U, V = start(W)
    for _ in range(40):
        U = W @ torch.linalg.pinv(V.T)
        V = W.T @ torch.linalg.pinv(U.T)
    return U, V


def learning_variant(change: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]], power: int = 1) -> Any:
    """Fonction fautive : `change(W, U, V)` à la place des facteurs appris, et les erreurs à cette puissance."""

    def wrong(W: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor, list[float]]:
        generator = torch.Generator().manual_seed(seed)
        right = learned(W, rank, lambda W: (W, torch.randn(W.shape[1], rank, generator=generator)))
        U, V = change(W, *right)
        last = gap_to(W, *right) ** power
        return U, V, [1.0, last]

    return wrong


def learned_alone(W: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """Le meilleur U pour un V tiré au hasard, qui ne bouge plus."""
    V = torch.randn(V.shape, generator=torch.Generator().manual_seed(0))
    return W @ torch.linalg.pinv(V.T), V


def same_columns(W: Tensor, U: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """Toutes les colonnes pareilles : la meilleure approximation de rang un, répartie entre elles."""
    u, v = svd_factors(W, 1)
    return u.expand(U.shape) / U.shape[1], v.expand(V.shape)


EXERCISE_11_2_1 = Exercise(
    number="11.2.1",
    title="la SVD contre un UVᵀ appris",
    cases=learning_cases,
    properties=learning_properties,
    across=other_seed_same_product,
    portrait=learning_portrait,
    mistakes=(
        Mistake(
            "un départ nul",
            "U et V nuls tous les deux ont des gradients nuls, (UVᵀ − W)V et (UVᵀ − W)ᵀU : rien ne bouge. "
            "C'est un point-selle ; tirez les facteurs au hasard.",
            (learning_variant(lambda W, U, V: (0 * U, 0 * V)),),
        ),
        Mistake(
            "des colonnes toutes pareilles",
            "parties égales, vos colonnes reçoivent le même gradient et le restent : votre produit est de rang un. "
            "Le hasard du départ sert à les distinguer.",
            (learning_variant(same_columns),),
        ),
        Mistake(
            "un seul facteur appris",
            "l'un des facteurs est le meilleur pour l'autre, mais l'autre est resté à son tirage : faites bouger les "
            "deux, ensemble ou à tour de rôle.",
            (
                learning_variant(lambda W, U, V: learned_alone(W, V)),
                learning_variant(lambda W, U, V: learned_alone(W.T, U)[::-1]),
            ),
        ),
        Mistake(
            "un pas trop grand",
            "vos facteurs ont divergé. Près du but, la descente sur ½‖W − UVᵀ‖² n'est stable que si le pas reste sous "
            "1/σ₁ environ : réglez-le sur la norme de W.",
            (learning_variant(lambda W, U, V: (U * math.nan, V * math.nan)),),
        ),
        Mistake(
            "la SVD à la place de l'apprentissage",
            "vos facteurs sont ceux de la SVD, à colonnes orthogonales, et la graine n'y change rien. Leur produit est "
            "le bon ; l'exercice est de l'atteindre sans elle, depuis le hasard.",
            (lambda W, rank, seed: (*svd_factors(W, rank), [1.0, gap_to(W, *svd_factors(W, rank))]),),
        ),
        Mistake(
            "V transposée",
            "V est de forme (n, rang), et le produit s'écrit UVᵀ : vous rendez sa transposée, (rang, n).",
            (learning_variant(lambda W, U, V: (U, V.T)),),
        ),
        Mistake(
            "U et V échangés",
            "U a les lignes de W, V a ses colonnes : vous les rendez dans l'autre ordre.",
            (learning_variant(lambda W, U, V: (V, U)),),
        ),
        Mistake(
            "l'énergie prise pour l'erreur",
            "votre courbe mesure ‖W − UVᵀ‖²/‖W‖², la part d'énergie perdue ; l'erreur en est la racine. C'est pourquoi "
            "elle semble passer sous la SVD, ce que rien ne peut faire.",
            (learning_variant(lambda W, U, V: (U, V), power=2),),
        ),
    ),
)

# --- 11.2.2 -----------------------------------------------------------------------------------------------------------

WIDEST = 500  # colonnes qu'une grande matrice accepte d'un coup


class GrandeMatrice:
    """Une matrice m×n trop grande pour être écrite : elle ne sait que multiplier.

    Elle a ``shape``, ``T``, ``W @ X`` et ``X @ W``, où X est un tenseur dense et étroit ; le produit a le type de X.
    Tout le reste est refusé, par une phrase.
    """

    def __init__(self, left: Tensor, right: Tensor):
        self._left, self._right = left, right  # W = left rightᵀ
        self.shape = torch.Size((len(left), len(right)))

    @cached_property
    def T(self) -> "GrandeMatrice":
        """La transposée, au même prix."""
        return GrandeMatrice(self._right, self._left)

    def __matmul__(self, X: Tensor) -> Tensor:
        m, n = self.shape
        if not isinstance(X, Tensor):
            raise TypeError(f"W @ X : reçu {type(X).__name__}, attendu un tenseur de PyTorch.")
        if X.ndim not in (1, 2) or len(X) != n:
            raise ValueError(f"W @ X : W est {m}×{n} et X de forme {tuple(X.shape)}, attendu {n} lignes.")
        if X.ndim == 2 and X.shape[1] > WIDEST:
            raise ValueError(
                f"W @ X : X a {X.shape[1]} colonnes, {WIDEST} au plus. Un produit si large reviendrait à écrire W, "
                "ce qu'il s'agit d'éviter."
            )
        return self._left.to(X.dtype) @ (self._right.to(X.dtype).T @ X)

    def __rmatmul__(self, X: Tensor) -> Tensor:
        return (self.T @ X.mT).mT if isinstance(X, Tensor) and X.ndim > 1 else self.T @ X

    def __repr__(self) -> str:
        return f"GrandeMatrice({self.shape[0]}×{self.shape[1]})"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise AttributeError(f"une grande matrice n'a pas « {name} » : elle n'a que shape, T et @.")

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise TypeError(self.refusal("NumPy"))

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.matmul, torch.mm):
            return args[0].__matmul__(args[1]) if isinstance(args[0], cls) else args[1].__rmatmul__(args[0])
        raise TypeError(cls.refusal(getattr(function, "__name__", str(function))))

    @staticmethod
    def refusal(asked: str) -> str:
        """Pourquoi cette matrice ne se laisse pas écrire."""
        return f"{asked} veut une matrice écrite en entier, et celle-ci est trop grande : elle ne sait que multiplier."

    @cached_property
    def _grams(self) -> tuple[Tensor, Tensor]:
        """Les produits scalaires entre colonnes de chaque facteur, en float64."""
        left, right = self._left.double(), self._right.double()
        return left.T @ left, right.T @ right

    @cached_property
    def _sigma(self) -> Tensor:
        """Les valeurs singulières exactes : celles du produit des deux petits facteurs triangulaires."""
        L, R = map(torch.linalg.cholesky, self._grams)
        return torch.linalg.svdvals(L.T @ R)

    @cached_property
    def _svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """La SVD exacte, vecteurs compris."""
        Q, R = torch.linalg.qr(self._left.double())
        P, T = torch.linalg.qr(self._right.double())
        U, S, Vh = torch.linalg.svd(R @ T.T)
        return Q @ U, S, Vh @ P.T

    def _error(self, U: Tensor, S: Tensor, Vh: Tensor) -> float:
        """‖W − U diag(S) Vh‖, développée pour n'avoir que de petites matrices ; U et Vh sont quelconques."""
        U, S, Vh = (t.detach().double() for t in (U, S, Vh))
        own = (self._grams[0] * self._grams[1]).sum()
        cross = ((U.T @ self._left.double()) * (Vh @ self._right.double()) * S[:, None]).sum()
        given = ((U.T @ U) * (Vh @ Vh.T) * S[:, None] * S).sum()
        return math.sqrt(max(0.0, float(own - 2 * cross + given)))


def large_matrix(generator: torch.Generator, S: Tensor) -> GrandeMatrice:
    """Matrice qui pèserait plus de 700 Mo en float32, et dont les valeurs singulières sont à peu près S."""
    m, n = integer(generator, 13_300, 15_500), integer(generator, 13_300, 15_500)
    left = torch.randn(m, len(S), generator=generator) * S / math.sqrt(m)
    return GrandeMatrice(left, torch.randn(n, len(S), generator=generator) / math.sqrt(n))


def large_cases(generator: torch.Generator) -> list[Case]:
    """Deux spectres qui traînent, où une esquisse seule est trop grossière, et un dominé par sa première valeur."""
    cases = []
    for peak in (1.0, 1.0, 20.0):
        rank, seed = integer(generator, 8, 12), integer(generator, 0, 10**6)
        S = torch.arange(1, 121) ** -0.7 * uniform(generator, 3, 9)
        S[0] *= peak
        W = large_matrix(generator, S)
        label = f"W {W.shape[0]}×{W.shape[1]}" + (", première valeur singulière très grande" if peak > 1 else "")
        cases.append(Case(f"{label}, rang = {rank}, graine = {seed}", (W, rank, seed)))
    return cases


LOOSE = 0.03  # écart permis sur chaque valeur singulière
ORTHONORMAL = 0.01


def skew(Q: Tensor) -> float:
    """Plus grand écart entre QᵀQ et l'identité."""
    Q = Q.detach().double()
    return float((Q.T @ Q - torch.eye(Q.shape[1], dtype=Q.dtype)).abs().max())


def drift(W: GrandeMatrice, S: Tensor) -> float:
    """Plus grand écart relatif entre S et les premières valeurs singulières de W."""
    true = W._sigma[: len(S)]
    return float(((S.detach().double() - true) / true).abs().max())


def large_portrait(result: Any, case: Case) -> Any:
    """Ce qui, dans une SVD esquissée, ne dépend ni du tirage, ni du nombre de colonnes en plus, ni des passages."""
    W, rank, _ = case.args
    U, S, Vh = result
    m, n = W.shape
    if U.shape == (m, rank) and Vh.shape == (n, rank):
        return "V"
    if U.ndim == 2 and U.shape[1] == rank and len(U) < WIDEST:
        return "U de l'esquisse"
    if (tuple(U.shape), tuple(S.shape), tuple(Vh.shape)) != ((m, rank), (rank,), (rank, n)):
        return "autres formes"
    true = W._sigma[:rank]
    if (S.diff() > 0).all():
        return "croissant"
    if math.isclose(float(S[0]), float(true[0] ** 2), rel_tol=0.2):
        return "carrés"
    bases = skew(U) < ORTHONORMAL, skew(Vh.T) < ORTHONORMAL
    if true[0] < 10 * true[1] or not all(bases):  # la netteté se juge sur la matrice que domine sa première valeur
        return bases
    worst = drift(W, S)
    return "nette" if worst < LOOSE else "floue" if worst < 0.6 else "effondrée"


def large_properties(result: Any, case: Case) -> Iterable[Property]:
    """Eckart–Young par les facteurs de W : le minimum, l'erreur et les valeurs singulières sont exacts."""
    W, rank, _ = case.args
    m, n = W.shape
    valid = isinstance(result, tuple | list) and len(result) == 3 and all(isinstance(t, Tensor) for t in result)
    received = f"{len(result)} valeur(s)" if isinstance(result, tuple | list) else type(result).__name__
    yield Property("le résultat est un triplet de tenseurs (U, S, Vh)", valid, f"reçu {received}")
    if not valid:
        return
    U, S, Vh = result
    shapes, wanted = [tuple(t.shape) for t in result], [(m, rank), (rank,), (rank, n)]
    why = f"reçu {', '.join(map(str, shapes))}, attendu {', '.join(map(str, wanted))}"
    if shapes[1] != wanted[1] and S.ndim == 1 and shapes[1][0] > rank:
        why += " : tronquez l'esquisse, une fois décomposée, au rang demandé"
    yield Property("U, S et Vh ont les formes (m, rang), (rang,) et (rang, n)", shapes == wanted, why)
    if shapes != wanted:
        return
    for name, Q in (("les colonnes de U", U), ("les lignes de Vh", Vh.T)):
        yield Property(f"{name} sont orthonormées", skew(Q) < ORTHONORMAL, f"écart {number(skew(Q))} à l'identité")
    ordered = bool((S > 0).all() and (S.diff() <= 0).all())
    yield Property("S est positive et décroissante", ordered, f"reçu {' ; '.join(map(number, reals(S)))}")
    if not ordered:
        return
    best = float(W._sigma[rank:].norm())
    error = W._error(U, S, Vh)
    yield Property(
        "l'erreur est à moins de 1 % du minimum d'Eckart–Young",
        error <= NEAR * best,
        f"elle le dépasse de {number(100 * (error / best - 1))} % : {too_far(W, U, S, Vh, error / best)}",
    )
    yield Property(
        "chaque valeur singulière est juste à 3 % près",
        drift(W, S) < LOOSE,
        f"la plus fausse l'est de {number(100 * drift(W, S))} %, et c'est en général la dernière : quelques colonnes "
        "de plus dans l'esquisse, ou un passage de plus",
    )


def too_far(W: GrandeMatrice, U: Tensor, S: Tensor, Vh: Tensor, excess: float) -> str:
    """Ce qui, dans une SVD trop loin, est à reprendre : un des deux facteurs, ou l'esquisse."""
    U, S, Vh = (t.detach().double() for t in (U, S, Vh))
    right_triplets = skew(W @ Vh.T / S) < 0.1, skew(W.T @ U / S) < 0.1  # W V / S est U, Wᵀ U / S est V
    if excess < 1.5 or not any(right_triplets):
        return "l'esquisse n'a pas bien vu les premières directions"
    if all(right_triplets):
        return "U, S et Vh sont bons un à un, mais ne vont pas ensemble (un signe changé d'un seul côté ?)"
    if right_triplets[0]:
        return "Vh et S sont bons, mais pas U ; est-ce bien la base de l'esquisse fois celle de la petite SVD ?"
    return "U et S sont bons, mais pas Vh"


def sketched(passes: int, oversample: int, orthogonal: bool = True) -> Any:
    """Fonction fautive : une esquisse à tant de passages, avec tant de colonnes en plus, avec ou sans QR."""

    def wrong(W: GrandeMatrice, rank: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        Y = W @ torch.randn(W.shape[1], rank + oversample, generator=generator)
        for _ in range(passes):
            Y = W @ (W.T @ (torch.linalg.qr(Y).Q if orthogonal else Y))
        Q = torch.linalg.qr(Y).Q
        U, S, Vh = torch.linalg.svd((W.T @ Q).T, full_matrices=False)
        return Q @ U[:, :rank], S[:rank], Vh[:rank]

    return wrong


def large_variant(change: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]) -> Any:
    """Fonction fautive : `change(U, S, Vh)`, appliquée aux vrais triplets."""

    def wrong(W: GrandeMatrice, rank: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        U, S, Vh = W._svd
        return change(U[:, :rank], S[:rank], Vh[:rank])

    return wrong


EXERCISE_11_2_2 = Exercise(
    number="11.2.2",
    title="la SVD d'une matrice qu'on n'écrit pas",
    cases=large_cases,
    properties=large_properties,
    portrait=large_portrait,
    mistakes=(
        Mistake(
            "une esquisse trop grossière",
            "trop peu de passages, ou trop peu de colonnes en plus du rang : les valeurs singulières abandonnées, qui "
            "décroissent lentement, brouillent encore les directions gardées. Chaque passage par Wᵀ puis W multiplie "
            "leur part par un σ² de plus, et les écarte.",
            (sketched(passes=0, oversample=10), sketched(passes=1, oversample=0)),
        ),
        Mistake(
            "des passages sans QR",
            "sans orthonormalisation entre les passages, toutes les colonnes se couchent sur la direction dominante, "
            "et l'arrondi efface les autres : une QR après chaque produit, ou du moins à chaque tour.",
            (sketched(passes=3, oversample=10, orthogonal=False),),
        ),
        Mistake(
            "U laissée dans l'esquisse",
            "la petite SVD donne U dans la base Q de l'esquisse, avec quelques lignes seulement : "
            "ramenez-la par Q @ U.",
            (large_variant(lambda U, S, Vh: (U[: 2 * len(S)], S, Vh)),),
        ),
        Mistake(
            "V rendue au lieu de Vᵀ",
            "Vh est de forme (rang, n), comme celle de torch.linalg.svd : vous rendez V, sa transposée.",
            (large_variant(lambda U, S, Vh: (U, S, Vh.T)),),
        ),
        Mistake(
            "S au carré",
            "vous rendez les valeurs propres de BBᵀ ; les valeurs singulières en sont les racines.",
            (large_variant(lambda U, S, Vh: (U, S**2, Vh)),),
        ),
        Mistake(
            "l'ordre croissant",
            "torch.linalg.eigh range les valeurs propres de la plus petite à la plus grande : renversez S et les "
            "vecteurs, puis gardez les premiers.",
            (large_variant(lambda U, S, Vh: (U.flip(1), S.flip(0), Vh.flip(0))),),
        ),
        Mistake(
            "S comptée deux fois",
            "un des deux facteurs porte déjà S : W @ V vaut U diag(S), et Uᵀ @ W vaut diag(S) Vᵀ. Divisez par S.",
            (
                large_variant(lambda U, S, Vh: (U * S, S, Vh)),
                large_variant(lambda U, S, Vh: (U, S, S[:, None] * Vh)),
            ),
        ),
    ),
)

# --- 11.2.3 -----------------------------------------------------------------------------------------------------------

STRONG = 8  # directions fortes de chaque couche
ROWS = 400  # exemples de chaque jeu


def two_level(generator: torch.Generator, m: int, n: int, weak: float) -> tuple[Tensor, Tensor]:
    """Poids m×n float32 à huit fortes valeurs singulières, les autres `weak` fois plus petites ; et V, en colonnes."""
    p = min(m, n)
    U, V = orthonormal(generator, m, p), orthonormal(generator, n, p)
    S = torch.linspace(1.2, 0.8, p, dtype=torch.float64)
    S[STRONG:] *= weak
    return (2 * U * S @ V.T).float(), V.float()


def network_and_data(generator: torch.Generator, nested: bool) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """Un réseau au hasard et deux jeux : l'un vit dans les directions fortes de la première couche, l'autre à côté.

    Les étiquettes sont les réponses du réseau, dont une sur dix est changée.
    """
    n, h, classes = integer(generator, 20, 26), integer(generator, 28, 36), integer(generator, 5, 7)
    weight, V = two_level(generator, h, n, 0.2)
    first = linear(weight, generator)
    second = linear(two_level(generator, h, h, 0.04)[0], generator, bias=False)
    last = linear(torch.randn(classes, h, generator=generator), generator)
    body = (
        [first, nn.ReLU(), nn.Sequential(second, nn.Tanh()), last]
        if nested
        else [first, nn.ReLU(), second, nn.ReLU(), last]
    )
    network = nn.Sequential(*body).requires_grad_(False)
    inputs = []
    for strong, weak in ((1.0, 0.0), (0.3, 5.0)):
        scale = torch.tensor([strong] * STRONG + [weak] * STRONG)
        inputs.append(torch.randn(ROWS, 2 * STRONG, generator=generator) * scale @ V[:, : 2 * STRONG].T)
    logits = network(torch.cat(inputs))
    last.bias.sub_(logits.mean(0))  # aucune classe ne l'emporte d'avance
    data = []
    for x in inputs:
        y = network(x).argmax(-1)
        other = (y + torch.randint(1, classes, (ROWS,), generator=generator)) % classes
        data.append((x, torch.where(torch.rand(ROWS, generator=generator) < 0.1, other, y)))
    return network, data


def network_cases(generator: torch.Generator) -> list[Case]:
    """Un même réseau devant deux jeux d'entrées, puis un réseau à étages ; des rangs en désordre, un trop grand."""
    network, data = network_and_data(generator, nested=False)
    ranks = (STRONG, integer(generator, 2, 4), integer(generator, 12, 16), 99)
    cases = [
        Case(f"un réseau à trois couches, jeu {k}, rangs = {ranks}", (network, *data[k - 1], ranks)) for k in (1, 2)
    ]
    network, data = network_and_data(generator, nested=True)
    return [*cases, Case(f"un réseau à étages, rangs = {ranks}", (network, *data[0], ranks))]


def pairs(result: Any) -> list[tuple[float, float]]:
    """Une liste de couples (erreur, précision)."""
    return [(float(error), float(precision)) for error, precision in result]


def linears(network: nn.Module) -> list[nn.Linear]:
    """Toutes les nn.Linear, à tous les étages."""
    return [module for module in network.modules() if isinstance(module, nn.Linear)]


def truncated(weight: Tensor, rank: int) -> Tensor:
    """La SVD tronquée, reconstruite."""
    U, V = svd_factors(weight, rank)
    return U @ V.T


def measured(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    ranks: Sequence[int],
    *,
    error: Callable[[Tensor, Tensor], Tensor] = lambda E, W: E.norm() / W.norm(),
    chosen: Callable[[nn.Module], list[nn.Linear]] = linears,
    bias: bool = True,
    judge: str = "étiquettes",
    cumulative: str = "",
) -> list[tuple[float, float]]:
    """Les couples demandés ; chaque option y met une faute.

    `error` reçoit les normes des écarts et celles des poids, couche par couche.
    """
    result, current = [], copy.deepcopy(network)
    for rank in ranks:
        if not cumulative:
            current = copy.deepcopy(network)
        origin = copy.deepcopy(current if cumulative == "écarts aussi" else network)
        gaps, norms = [], []
        for before, layer in zip(chosen(origin), chosen(current), strict=True):
            layer.weight.data = truncated(layer.weight.data, rank)
            gaps.append((before.weight - layer.weight).norm())
            norms.append(before.weight.norm())
            if not bias and layer.bias is not None:
                layer.bias.data.zero_()
        answers = (network if judge == "original" else current)(x).argmax(-1)
        truth = network(x).argmax(-1) if judge == "accord" else y
        value = float(error(torch.stack(gaps), torch.stack(norms)))
        result.append((value, float((answers == truth).double().mean())))
    return result


def network_properties(result: Any, case: Case) -> Iterable[Property]:
    """L'erreur se lit sur les valeurs singulières (Eckart–Young) ; la précision, sur un réseau tronqué ici même."""
    network, x, y, ranks = case.args
    try:
        found = pairs(result)
    except (TypeError, ValueError):
        found = []
    valid = len(found) == len(ranks)
    yield Property("le résultat est une liste de couples (erreur, precision), un par rang", valid, f"reçu {result!r}")
    if not valid:
        return
    spectra = [torch.linalg.svdvals(layer.weight.detach().double()) ** 2 for layer in linears(network)]
    total = sum(float(energy.sum()) for energy in spectra)
    right = measured(network, x, y, ranks)
    for rank, (error, precision), (_, wanted) in zip(ranks, found, right, strict=True):
        expected = math.sqrt(sum(float(energy[rank:].sum()) for energy in spectra) / total)
        yield Property(
            "chaque erreur est celle d'Eckart–Young, toutes couches réunies",
            math.isclose(error, expected, rel_tol=1e-3, abs_tol=1e-4),
            f"au rang {rank}, vous trouvez {number(error)} ; les valeurs singulières abandonnées, toutes couches "
            f"réunies, donnent {number(expected)}",
        )
        yield Property(
            "chaque précision est celle du réseau tronqué",
            abs(precision - wanted) * len(y) < 2.5,
            f"au rang {rank}, vous trouvez {number(precision)} ; le réseau tronqué, biais compris, répond juste à "
            f"{number(wanted)}",
        )


def same_error_other_accuracy(cases: Sequence[Case], results: Sequence[Any]) -> Iterable[Property]:
    """Les deux premières instances ont le même réseau : ce que ces nombres apprennent."""
    (error, precision), (other_error, other_precision) = pairs(results[0])[0], pairs(results[1])[0]
    yield Property(
        "vos nombres le montrent : mêmes poids et même erreur, mais d'autres entrées, et une tout autre précision",
        math.isclose(error, other_error, rel_tol=1e-3) and abs(precision - other_precision) > 0.3,
        f"erreurs {number(error)} et {number(other_error)}, précisions {number(precision)} et "
        f"{number(other_precision)}",
    )


def network_variant(**fault: Any) -> Any:
    """Fonction fautive : `measured`, avec cette faute."""
    return lambda network, x, y, ranks: measured(network, x, y, ranks, **fault)


def children_only(network: nn.Module) -> list[nn.Linear]:
    """Les nn.Linear du premier étage seulement."""
    return [module for module in network.children() if isinstance(module, nn.Linear)]


EXERCISE_11_2_3 = Exercise(
    number="11.2.3",
    title="l'erreur des poids et la précision du réseau",
    cases=network_cases,
    properties=network_properties,
    across=same_error_other_accuracy,
    signature=lambda result: [(error if error > 1e-3 else 0.0, precision) for error, precision in pairs(result)],
    mistakes=(
        Mistake(
            "des biais perdus",
            "l'erreur est juste, mais les couches tronquées n'ont plus leur biais : recopiez-le, "
            "il ne se comprime pas.",
            (network_variant(bias=False),),
        ),
        Mistake(
            "l'énergie prise pour l'erreur",
            "vous rendez Σ‖W − Ŵ‖²/Σ‖W‖², la part d'énergie perdue ; l'erreur en est la racine.",
            (network_variant(error=lambda E, W: E.norm() ** 2 / W.norm() ** 2),),
        ),
        Mistake(
            "une moyenne des couches",
            "vous réunissez les erreurs des couches par une moyenne ou une somme de normes ; ce sont les carrés des "
            "normes qui s'ajoutent : √(Σ‖W − Ŵ‖²/Σ‖W‖²).",
            (
                network_variant(error=lambda E, W: (E / W).mean()),
                network_variant(error=lambda E, W: E.sum() / W.sum()),
                network_variant(error=lambda E, W: (E / W).norm() / math.sqrt(len(E))),
            ),
        ),
        Mistake(
            "la précision de l'original",
            "votre précision est la même à tous les rangs : c'est celle du réseau intact. Faites répondre la copie.",
            (network_variant(judge="original"),),
        ),
        Mistake(
            "un accord pris pour une précision",
            "vous comptez les réponses que la troncature ne change pas ; la précision se mesure contre y, et le réseau "
            "d'origine se trompe aussi.",
            (network_variant(judge="accord"),),
        ),
        Mistake(
            "des troncatures qui s'ajoutent",
            "un rang qui suit un rang plus petit n'y gagne rien : vous tronquez encore le réseau déjà tronqué. "
            "Repartez de l'original à chaque rang.",
            (network_variant(cumulative="poids"), network_variant(cumulative="écarts aussi")),
        ),
        Mistake(
            "des couches oubliées",
            "certaines nn.Linear ne sont pas tronquées, ou pas comptées : parcourez reseau.modules(), qui descend dans "
            "les étages, et n'écartez ni la première ni la dernière.",
            (
                network_variant(chosen=children_only),
                network_variant(chosen=lambda network: linears(network)[:-1]),
                network_variant(chosen=lambda network: linears(network)[1:]),
                network_variant(chosen=lambda network: linears(network)[:1]),
            ),
        ),
    ),
)
