"""Exercices 12.3.1 et 12.3.2 : une SVD en deux lectures ; un cache de compressions."""

import copy
import hashlib
import json
import math
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .engine import Case, Exercise, Mistake, Property, same
from .instances import integer, matrix, number, uniform
from .section_11_02 import ORTHONORMAL, orthonormal, skew

# --- 12.3.1 -----------------------------------------------------------------------------------------------------------

READINGS = 2  # lectures permises
KEPT = 3  # blocs que l'on peut garder
LARGEST = 300_000  # nombres d'un tenseur tiré des blocs


class Bloc(Tensor):
    """Des lignes de W, et tout ce que l'on en tire : ce qui est trop grand pour la mémoire est refusé."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(function, types, args, kwargs or {})
        for t in result if isinstance(result, list | tuple) else [result]:
            if isinstance(t, Tensor) and math.prod(t.shape) > LARGEST:
                shape = "×".join(map(str, t.shape))
                name = getattr(function, "__name__", str(function))
                raise MemoryError(
                    f"{name} rend un tenseur {shape}, plus de {LARGEST} nombres : il ne tient pas en mémoire."
                )
        return result


class Flux:
    """Une matrice qui n'arrive que par blocs de lignes, et ne se lit que deux fois.

    Parameters
    ----------
    W : Tensor, (m, n)
    lignes : int
        Lignes d'un bloc ; le dernier est plus court s'il le faut.
    """

    def __init__(self, W: Tensor, lignes: int):
        self._W, self._rows, self._readings = W, lignes, 0
        self.shape = W.shape

    def __iter__(self) -> Iterator[Tensor]:
        if self._readings == READINGS:
            raise RuntimeError(f"flux : déjà lu {READINGS} fois, c'est le plus ; la matrice ne se relit pas.")
        self._readings += 1
        return self._blocks()

    def _blocks(self) -> Iterator[Tensor]:
        kept: list[weakref.ref[Tensor]] = []
        for part in self._W.split(self._rows):
            kept = [bloc for bloc in kept if bloc() is not None]
            if len(kept) > KEPT:
                raise MemoryError(f"flux : vous gardez {len(kept)} blocs, {KEPT} au plus ; oubliez-les après usage.")
            bloc = part.clone().as_subclass(Bloc)
            kept.append(weakref.ref(bloc))
            yield bloc
            del bloc

    def __repr__(self) -> str:
        return f"Flux({self.shape[0]}×{self.shape[1]}, lu {self._readings} fois sur {READINGS})"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise AttributeError(f"un flux n'a pas « {name} » : il n'a que shape, et « for bloc in flux ».")


@dataclass(frozen=True, eq=False)
class Disk:
    """Une matrice, ses valeurs singulières exactes, et combien de lignes on en lit à la fois."""

    W: Tensor
    S: Tensor
    rows: int

    def rank(self, target: float) -> int:
        """Le plus petit rang qui tient cette erreur, d'après Eckart–Young."""
        energy = self.S**2
        left = (energy.flip(0).cumsum(0).flip(0) - energy) / energy.sum()
        return int((left.sqrt() > target).sum()) + 1

    def error(self, U: Tensor, S: Tensor, Vh: Tensor) -> float:
        """‖W − U diag(S) Vh‖/‖W‖, en float64."""
        W = self.W.double()
        return float((W - U.double() * S.double() @ Vh.double()).norm() / W.norm())


def drifting(generator: torch.Generator, m: int, n: int, rows: int) -> Disk:
    """Matrice dont chaque direction vit dans quelques blocs : aucun bloc ne ressemble à tous les autres."""
    k = 300  # bien plus que de lignes dans un bloc, qui ne peut donc engendrer toutes les directions
    centres = torch.rand(k, generator=generator, dtype=torch.float64)
    near = torch.exp(-((((torch.arange(m) / m)[:, None] - centres) / 0.15) ** 2)) + 0.02
    U = torch.linalg.qr(near * torch.randn(m, k, generator=generator, dtype=torch.float64)).Q
    S = torch.arange(1, k + 1, dtype=torch.float64) ** -uniform(generator, 0.7, 0.85) * uniform(generator, 3, 9)
    return Disk((U * S @ orthonormal(generator, n, k).T).float(), S, rows)


def flux_cases(generator: torch.Generator) -> list[Case]:
    """Des matrices haute, large et presque carrée ; la cible tombe au milieu, entre deux rangs."""
    cases = []
    for m, n in ((1500, 900), (900, 1500), (1100, 1200)):
        rows = integer(generator, 130, 180)
        m = m // rows * rows + integer(generator, 60, 100)
        disk, rank, seed = drifting(generator, m, n, rows), integer(generator, 9, 12), integer(generator, 0, 10**6)
        tail = (disk.S**2).flip(0).cumsum(0).flip(0) / (disk.S**2).sum()
        target = float((tail[rank - 1].sqrt() + tail[rank].sqrt()) / 2)
        label = f"W {m}×{n}, par blocs de {rows} lignes, erreur_max = {number(target)}, graine = {seed}"
        cases.append(Case(label, (disk, 3 * rank + 10, target, seed)))
    return cases


def read_from(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """L'épreuve : la fonction du lecteur reçoit un flux neuf."""
    disk, *rest = args
    return function(Flux(disk.W, disk.rows), *rest)


def plain(t: Tensor) -> Tensor:
    """Le tenseur, sans les garde-fous d'un bloc."""
    return t.detach().as_subclass(Tensor)


def one_block(disk: Disk, Vh: Tensor) -> bool:
    """Vrai si les lignes de Vh sont combinaisons de celles du premier bloc, ou du dernier."""
    blocks = disk.W.split(disk.rows)
    for block in (blocks[0], blocks[-1]):
        Q = torch.linalg.qr(block.T).Q
        if (Vh.T - Q @ (Q.T @ Vh.T)).norm() < 0.01 * Vh.norm():
            return True
    return False


def error_reading(error: float, true: float) -> str:
    """Ce que mesure vraiment une erreur rendue."""
    if math.isclose(error, true, rel_tol=1e-3):
        return "juste"
    if math.isclose(error, true**2, rel_tol=5e-3):
        return "énergie"
    return "trop petite" if error < true else "trop grande"


def flux_portrait(result: Any, case: Case) -> Any:
    """Ce qui, dans une SVD en flux, ne dépend ni du tirage, ni de la façon de lire."""
    disk, _, target, _ = case.args
    U, S, Vh = map(plain, result[:3])
    (m, n), r = disk.W.shape, len(S)
    if U.shape == (m, r) and Vh.shape == (n, r):
        return "V"
    if U.shape != (m, r) or Vh.shape != (r, n):
        return "autres formes"
    bases = skew(U) < ORTHONORMAL, skew(Vh.T) < ORTHONORMAL
    if not all(bases):
        return bases
    if one_block(disk, Vh.float()):
        return "un seul bloc"
    wanted = disk.rank(target)
    return (r > wanted) - (r < wanted), error_reading(float(result[3]), disk.error(U, S, Vh))


def flux_properties(result: Any, case: Case) -> Iterable[Property]:
    """Le rang est celui d'Eckart–Young, l'erreur se mesure sur W : le vérificateur, lui, la lit en entier."""
    disk, _, target, _ = case.args
    valid = isinstance(result, tuple | list) and len(result) == 4 and all(isinstance(t, Tensor) for t in result[:3])
    received = f"{len(result)} valeur(s)" if isinstance(result, tuple | list) else type(result).__name__
    yield Property(
        "le résultat est (U, S, Vh, erreur), les trois premiers étant des tenseurs", valid, f"reçu {received}"
    )
    if not valid:
        return
    U, S, Vh = map(plain, result[:3])
    (m, n), r, error = disk.W.shape, S.numel(), float(result[3])
    shapes, wanted = [tuple(t.shape) for t in (U, S, Vh)], [(m, r), (r,), (r, n)]
    why = f"reçu {', '.join(map(str, shapes))}, pour une matrice {m}×{n}"
    yield Property("U, S et Vh ont les formes (m, r), (r,) et (r, n)", shapes == wanted and r > 0, why)
    if shapes != wanted or r == 0:
        return
    for name, Q in (("les colonnes de U", U), ("les lignes de Vh", Vh.T)):
        yield Property(f"{name} sont orthonormées", skew(Q) < ORTHONORMAL, f"écart {number(skew(Q))} à l'identité")
    ordered = bool((S > 0).all() and (S.diff() <= 0).all())
    yield Property("S est positive et décroissante", ordered, f"reçu {' ; '.join(map(number, S.tolist()))}")
    true, best = disk.error(U, S, Vh), disk.rank(target)
    meaning = " (c'en est le carré : la part d'énergie perdue)" if error_reading(error, true) == "énergie" else ""
    yield Property(
        "erreur est celle des facteurs rendus, à un millième près",
        error_reading(error, true) == "juste",
        f"vous annoncez {number(error)} ; vos facteurs de rang {r} sont à {number(true)} de W{meaning}",
    )
    yield Property(
        "cette erreur ne dépasse pas erreur_max",
        true <= 1.0001 * target,
        f"au rang {r}, vos facteurs sont à {number(true)} de W, plus que {number(target)}",
    )
    yield Property(
        "aucun rang plus petit ne suffirait",
        r <= best,
        f"vous rendez le rang {r} ; au rang {best}, la meilleure approximation tient déjà {number(target)}. "
        + (
            "Votre esquisse voit mal les premières directions"
            if true <= target
            else "Et l'erreur est encore trop grande"
        ),
    )


Base = Callable[[Flux, int, torch.Generator], Tensor]


def turned(flux: Flux, width: int, generator: torch.Generator) -> Tensor:
    """Wᵀ (W Ω), en une lecture."""
    X = torch.randn(flux.shape[1], width, generator=generator)
    return sum((bloc.T @ (bloc @ X) for bloc in flux), torch.zeros(()))


def combined_rows(flux: Flux, width: int, generator: torch.Generator) -> Tensor:
    """Faute : Wᵀ Ω, une lecture pour un demi-tour."""
    return sum((bloc.T @ torch.randn(len(bloc), width, generator=generator) for bloc in flux), torch.zeros(()))


def last_block(flux: Flux, width: int, generator: torch.Generator) -> Tensor:
    """Faute : chaque bloc efface le précédent."""
    X = torch.randn(flux.shape[1], width, generator=generator)
    for bloc in flux:
        Z = bloc.T @ (bloc @ X)
    return Z


def first_block(flux: Flux, width: int, generator: torch.Generator) -> Tensor:
    """Faute : les directions du premier bloc, prises pour celles de tous."""
    return torch.linalg.svd(next(iter(flux)), full_matrices=False).Vh[:width].T


def flux_variant(
    base: Base = turned,
    *,
    energy: Callable[[float, Tensor], float] = lambda total, S: total,
    root: float = 0.5,
    shift: int = 0,
    whole: bool = False,
    change: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]] = lambda U, S, Vh: (U, S, Vh),
) -> Any:
    """Fonction fautive ; sans options, une bonne réponse.

    `energy` remplace ‖W‖², `root` est l'exposant de la part perdue, `shift` s'ajoute au rang, `whole` rend l'erreur de
    l'esquisse entière, et `change` abîme les facteurs.
    """

    def wrong(flux: Flux, width: int, target: float, seed: int) -> tuple[Tensor, Tensor, Tensor, float]:
        Q = torch.linalg.qr(base(flux, width, torch.Generator().manual_seed(seed))).Q
        rows, total = [], 0.0
        for bloc in flux:
            rows.append(bloc @ Q)
            total += float(bloc.double().square().sum())
        U, S, Wh = torch.linalg.svd(torch.cat(rows).double(), full_matrices=False)
        total = energy(total, S)
        left = ((1 - (S**2).cumsum(0) / total).clamp(min=0)) ** root  # aux rangs 1, 2, …
        r = min(int((left > target).sum()) + 1, width) + shift
        Vh = Wh @ Q.double().T
        return *change(U[:, :r], S[:r], Vh[:r]), float(left[-1 if whole else r - 1])

    return wrong


def two_readings_of_halko(flux: Flux, width: int, target: float, seed: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """Faute : une lecture pour W Ω, une pour Qᵀ W ; le hasard n'a été multiplié qu'une fois."""
    X = torch.randn(flux.shape[1], width, generator=torch.Generator().manual_seed(seed))
    Q = torch.linalg.qr(torch.cat([bloc @ X for bloc in flux])).Q
    B, start, total = torch.zeros(width, flux.shape[1]), 0, 0.0
    for bloc in flux:
        B = B + Q[start : start + len(bloc)].T @ bloc
        start, total = start + len(bloc), total + float(bloc.double().square().sum())
    U, S, Vh = torch.linalg.svd(B.double(), full_matrices=False)
    left = (1 - (S**2).cumsum(0) / total).sqrt()
    r = int((left > target).sum()) + 1
    return Q.double() @ U[:, :r], S[:r], Vh[:r], float(left[r - 1])


EXERCISE_12_3_1 = Exercise(
    number="12.3.1",
    title="la SVD d'une matrice qu'on ne lit que deux fois",
    cases=flux_cases,
    properties=flux_properties,
    portrait=flux_portrait,
    trial=read_from,
    mistakes=(
        Mistake(
            "une esquisse trop grossière",
            "tout est juste, mais le rang est trop grand : votre première lecture n'a multiplié le hasard que par W, "
            "ou par Wᵀ. La même lecture fait les deux, bloc par bloc, et chaque direction y compte comme σ² : "
            "additionnez blocᵀ (bloc X).",
            (flux_variant(combined_rows), two_readings_of_halko),
        ),
        Mistake(
            "un seul bloc pour tous",
            "les lignes de Vh ne combinent que celles d'un bloc, le premier ou le dernier, et les autres ne lui "
            "ressemblent pas : la somme des blocᵀ (bloc X) s'accumule (« += ») d'un bout à l'autre de la lecture.",
            (flux_variant(last_block), flux_variant(first_block)),
        ),
        Mistake(
            "l'énergie hors de l'esquisse oubliée",
            "vous divisez par la somme des σ² de l'esquisse, et ce qu'elle n'a pas vu n'est compté nulle part : "
            "l'erreur annoncée est trop petite. ‖W‖² s'additionne en lisant les blocs.",
            (flux_variant(energy=lambda total, S: float((S**2).sum())),),
        ),
        Mistake(
            "‖W‖² comptée deux fois",
            "l'erreur annoncée est trop grande, et l'esquisse entière n'y suffit pas : vous additionnez ‖W‖² pendant "
            "les deux lectures.",
            (flux_variant(energy=lambda total, S: 2 * total),),
        ),
        Mistake(
            "l'énergie prise pour l'erreur",
            "1 − Σσ²/‖W‖² est la part d'énergie perdue ; l'erreur relative en est la racine, bien plus grande.",
            (flux_variant(root=1.0),),
        ),
        Mistake(
            "l'erreur d'avant la troncature",
            "le rang est bon, mais l'erreur annoncée est celle de l'esquisse entière. Les σ que vous coupez s'y "
            "ajoutent : ne retranchez de ‖W‖² que les σ² gardés.",
            (flux_variant(whole=True),),
        ),
        Mistake(
            "l'indice pris pour le rang",
            "il vous manque une valeur singulière : la case d'indice i est l'erreur du rang i + 1.",
            (flux_variant(shift=-1),),
        ),
        Mistake(
            "S comptée deux fois",
            "un des facteurs porte encore S : WQ vaut U diag(S) V'ᵀ, et c'est la SVD de WQ qui en sépare U.",
            (
                flux_variant(change=lambda U, S, Vh: (U * S, S, Vh)),
                flux_variant(change=lambda U, S, Vh: (U, S, S[:, None] * Vh)),
            ),
        ),
        Mistake(
            "V rendue au lieu de Vᵀ",
            "Vh est de forme (r, n), comme celle de torch.linalg.svd : vous rendez V, sa transposée.",
            (flux_variant(change=lambda U, S, Vh: (U, S, Vh.T)),),
        ),
    ),
)

# --- 12.3.2 -----------------------------------------------------------------------------------------------------------

Config = dict[str, Any]
Demand = tuple[Tensor, Config]
Compress = Callable[[Tensor, Config], Any]


class PanneError(RuntimeError):
    """L'erreur que `comprimer` lève quand on le lui demande."""


def compressed(weights: Tensor, config: Config) -> dict[str, Any]:
    """Une SVD tronquée, aux facteurs arrondis."""
    U, S, Vh = torch.linalg.svd(weights.detach().double(), full_matrices=False)
    rank, rounding = config["rang"], config["arrondi"]
    r = rank if isinstance(rank, int) else max(1, round(rank * len(S)))
    q = 2 ** (rounding["bits"] - 1) - 1
    result: dict[str, Any] = {"codes": [], "echelles": [], "erreur": float(S[r:].norm() / S.norm())}
    for factor in (U[:, :r] * S[:r].sqrt(), Vh[:r].T * S[:r].sqrt()):
        top = factor.abs().amax(1, keepdim=True) if rounding["par_ligne"] else factor.abs().max()
        result["codes"].append((factor * (q / top)).round())
        result["echelles"].append(top / q)
    return result


class Compresseur:
    """Une fonction `comprimer` qui compte ses appels, et lève une PanneError les premières fois si on le veut."""

    def __init__(self, compute: Compress = compressed, failures: int = 0):
        self.compute, self.failures, self.calls = compute, failures, 0

    def __call__(self, poids: Tensor, config: Config) -> Any:
        self.calls += 1
        if self.calls <= self.failures:
            raise PanneError("la mémoire du GPU est pleine")
        return self.compute(poids, config)


def spoil(result: Any) -> None:
    """Abîme un résultat : ce que peut faire celui qui l'a reçu."""
    if isinstance(result, Tensor):
        result.zero_()
    elif isinstance(result, list | dict):
        for item in result.values() if isinstance(result, dict) else result:
            spoil(item)
        result.clear()


Make = Callable[[Compress], Compress]


def answered(make: Make, demands: Iterable[Demand], *, then: Callable[[Any], None] = lambda result: None) -> Any:
    """Combien d'appels à `comprimer` pour ces demandes, et si chaque réponse était la bonne."""
    compute = Compresseur()
    cache, right = make(compute), []
    for weights, config in demands:
        result = cache(weights, config)
        right.append(same(result, compressed(weights, config)))
        then(result)
    return compute.calls, all(right)


def interrupted(make: Make, demand: Demand) -> Any:
    """Une première demande qui échoue, puis deux autres : les appels, ce que la première a levé, les réponses."""
    compute = Compresseur(failures=1)
    cache, seen = make(compute), []
    for _ in range(3):
        try:
            seen.append("juste" if same(cache(*demand), compressed(*demand)) else "fausse")
        except PanneError:
            seen.append("Panne")
    return compute.calls, *seen


def separate(make: Make, demand: Demand) -> Any:
    """Deux caches de deux fonctions : les appels, et si chacun a donné ce que donne la sienne."""
    computes = Compresseur(), Compresseur(lambda weights, config: compressed(weights.detach() + 1, config))
    caches = [make(compute) for compute in computes]
    right = [same(cache(*demand), compute.compute(*demand)) for cache, compute in zip(caches, computes, strict=True)]
    return sum(compute.calls for compute in computes), all(right)


def reordered(config: Config) -> Config:
    """La même configuration, ses clés écrites dans l'autre ordre, à tous les étages."""
    return {k: reordered(v) if isinstance(v, dict) else v for k, v in reversed(config.items())}


def changing(weights: Tensor, config: Config) -> Iterator[Demand]:
    """Une demande, puis la même, dont un coefficient a changé sur place."""
    weights = weights.clone()
    yield weights, config
    weights[len(weights) // 2, weights.shape[1] // 2] += 2 * weights.abs().max()
    yield weights, config


def with_one(t: Tensor, factor: float) -> Tensor:
    """Copie de `t`, dont un coefficient du milieu est multiplié."""
    t = t.clone()
    t[len(t) // 2, t.shape[1] // 2] *= factor
    return t


def exchanged(t: Tensor) -> Tensor:
    """Copie de `t`, où deux lignes du milieu ont échangé leurs places."""
    t, i = t.clone(), len(t) // 2
    t[i : i + 2] = t[i : i + 2].flip(0)
    return t


class Episode(NamedTuple):
    """Une suite de demandes faites à un cache neuf : ce qu'on en attend, et comment la jouer."""

    text: str
    wanted: tuple[Any, ...]
    play: Callable[[Make, Tensor, Config], Any]


EPISODES = {
    "encore": Episode(
        "une demande déjà faite n'appelle pas comprimer, même si une autre est venue entre-temps",
        (2, True),
        lambda make, W, c: answered(make, [(W, c), (with_one(W, 2), c)] * 2),
    ),
    "copie": Episode(
        "une copie des poids est reconnue",
        (1, True),
        lambda make, W, c: answered(make, [(W, c), (W.clone(), c)]),
    ),
    "paramètre": Episode(
        "les mêmes poids sont reconnus dans un nn.Parameter",
        (1, True),
        lambda make, W, c: answered(make, [(W, c), (nn.Parameter(W), c)]),
    ),
    "ordre": Episode(
        "l'ordre des clés de config, à tous les étages, ne compte pas",
        (1, True),
        lambda make, W, c: answered(make, [(W, c), (W, reordered(c))]),
    ),
    "réglage": Episode(
        "un autre rang, d'autres bits, d'autres options : autant d'autres demandes",
        (4, True),
        lambda make, W, c: answered(
            make,
            [
                (W, c),
                (W, {**c, "rang": c["rang"] + 1}),
                (W, {**c, "arrondi": {**c["arrondi"], "bits": c["arrondi"]["bits"] + 1}}),
                (W, {**c, "arrondi": {**c["arrondi"], "par_ligne": not c["arrondi"]["par_ligne"]}}),
            ],
        ),
    ),
    "1 et 1.0": Episode(
        "un rang de 1 et un rang de 1.0 sont deux demandes",
        (2, True),
        lambda make, W, c: answered(make, [(W, {**c, "rang": 1}), (W, {**c, "rang": 1.0})]),
    ),
    "forme": Episode(
        "les mêmes nombres dans une autre forme sont une autre demande",
        (2, True),
        lambda make, W, c: answered(make, [(W, c), (W.view(W.shape[::-1]), c)]),
    ),
    "type": Episode(
        "les mêmes octets dans un autre type sont une autre demande",
        (2, True),
        lambda make, W, c: answered(make, [(W.bfloat16(), c), (W.bfloat16().view(torch.float16), c)]),
    ),
    "transposée": Episode(
        "une matrice carrée et sa transposée sont deux demandes",
        (2, True),
        lambda make, W, c: answered(make, [(square := W[:, : len(W)].clone(), c), (square.T, c)]),
    ),
    "coefficient": Episode(
        "un seul coefficient changé, d'un milliardième, fait une autre demande",
        (2, True),
        lambda make, W, c: answered(make, [(W.double(), c), (with_one(W.double(), 1 + 1e-9), c)]),
    ),
    "échange": Episode(
        "deux lignes échangées font une autre demande",
        (2, True),
        lambda make, W, c: answered(make, [(whole := (8 * W.float()).round(), c), (exchanged(whole), c)]),
    ),
    "sur place": Episode(
        "des poids changés sur place sont une autre demande",
        (2, True),
        lambda make, W, c: answered(make, changing(W, c)),
    ),
    "abîmé": Episode(
        "abîmer un résultat reçu ne change pas les suivants",
        (1, True),
        lambda make, W, c: answered(make, [(W, c)] * 3, then=spoil),
    ),
    "panne": Episode(
        "une exception de comprimer passe, n'est pas gardée, et la demande est refaite",
        (2, "Panne", "juste", "juste"),
        lambda make, W, c: interrupted(make, (W, c)),
    ),
    "deux caches": Episode(
        "deux caches, de deux fonctions, ne se mélangent pas",
        (2, True),
        lambda make, W, c: separate(make, (W, c)),
    ),
}


class Journal(dict[str, Any]):
    """Ce que chaque épisode a montré."""


def played(make: Make, args: tuple[Any, ...]) -> Any:
    """L'épreuve : jouer chaque épisode sur un cache neuf."""
    cache: Any = make(Compresseur())
    return (
        Journal({name: episode.play(make, *args) for name, episode in EPISODES.items()}) if callable(cache) else cache
    )


def cache_cases(generator: torch.Generator) -> list[Case]:
    """Des poids de trois types, plus larges que hauts, trop grands pour qu'on les imprime en entier."""
    cases = []
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        m = integer(generator, 28, 34)
        W = matrix(generator, m, m + integer(generator, 8, 14), uniform(generator, 0.3, 0.6)).to(dtype)
        rounding = {"bits": integer(generator, 3, 6), "par_ligne": bool(integer(generator, 0, 1))}
        config = {"rang": integer(generator, 3, 6), "arrondi": rounding}
        cases.append(Case(f"poids {m}×{W.shape[1]} en {str(dtype)[6:]}, config = {config}", (W, config)))
    return cases


def cache_properties(result: Any, case: Case) -> Iterable[Property]:
    """Chaque épisode est jugé sur le nombre d'appels à `comprimer` et sur les réponses."""
    text = "cache_de_compressions rend une fonction"
    yield Property(text, isinstance(result, Journal), f"reçu {type(result).__name__}")
    if not isinstance(result, Journal):
        return
    for name, (text, wanted, _) in EPISODES.items():
        yield Property(text, result[name] == wanted, told(result[name], wanted))


def told(seen: tuple[Any, ...], wanted: tuple[Any, ...]) -> str:
    """Un épisode raté, en une phrase."""
    told = [] if seen[0] == wanted[0] else [f"comprimer a été appelée {seen[0]} fois, attendu {wanted[0]}"]
    if len(wanted) > 2:
        told.append(f"les trois demandes ont donné {', '.join(seen[1:])}, attendu {', '.join(wanted[1:])}")
    elif not seen[1]:
        told.append("une réponse n'est pas celle de comprimer")
    return " ; ".join(told)


def octets(t: Tensor) -> bytes:
    """Les octets d'un tenseur, résumés."""
    return hashlib.sha256(t.detach().contiguous().view(torch.uint8).numpy().tobytes()).digest()


def stored_octets(t: Tensor) -> bytes:
    """Faute : les octets du stockage, que se partagent une matrice et sa transposée."""
    return octets(torch.empty(0, dtype=torch.uint8).set_(t.detach().untyped_storage()))


def layout(t: Tensor) -> tuple[Any, ...]:
    """La forme et le type."""
    return tuple(t.shape), t.dtype


def written(config: Config) -> str:
    """La configuration, les clés triées à tous les étages."""
    return json.dumps(config, sort_keys=True)


def frozen(value: Any) -> Any:
    """Faute : la configuration dans des ensembles, où 1 et 1.0 ne font qu'un."""
    return frozenset((k, frozen(v)) for k, v in value.items()) if isinstance(value, dict) else value


def cache_variant(
    key: Callable[[Tensor, Config], Any] = lambda W, c: (octets(W), layout(W), written(c)),
    *,
    stored: Callable[[Any], Any] = copy.deepcopy,
    given: Callable[[Any], Any] = copy.deepcopy,
    failures: bool = False,
) -> Any:
    """Fonction fautive ; sans options, une bonne réponse.

    `stored` copie ce qu'on range, `given` ce qu'on ressort ; avec `failures`, les exceptions sont gardées aussi.
    """

    def wrong(comprimer: Compress) -> Compress:
        known: dict[Any, Any] = {}

        def cached(poids: Tensor, config: Config) -> Any:
            k = key(poids, config)
            if k in known:
                if isinstance(known[k], Exception):
                    raise known[k]
                return given(known[k])
            try:
                result = comprimer(poids, config)
            except Exception as error:
                if failures:
                    known[k] = error
                raise
            known[k] = stored(result)
            return result

        return cached

    return wrong


def reference_variant(same_config: Callable[[Config, Config], bool]) -> Any:
    """Fonction fautive : les poids eux-mêmes, gardés dans une liste et comparés un à un."""

    def wrong(comprimer: Compress) -> Compress:
        known: list[tuple[Tensor, Config, Any]] = []

        def cached(poids: Tensor, config: Config) -> Any:
            for W, c, result in known:
                if layout(W) == layout(poids) and torch.equal(W, poids) and same_config(c, config):
                    return copy.deepcopy(result)
            known.append((poids, config, comprimer(poids, config)))
            return copy.deepcopy(known[-1][2])

        return cached

    return wrong


def itself(value: Any) -> Any:
    """Aucune copie."""
    return value


EXERCISE_12_3_2 = Exercise(
    number="12.3.2",
    title="un cache de compressions",
    cases=cache_cases,
    properties=cache_properties,
    trial=played,
    mistakes=(
        Mistake(
            "l'objet au lieu de son contenu",
            "id, data_ptr et hash désignent un endroit de la mémoire : une copie n'y est pas reconnue, et de nouveaux "
            "nombres au même endroit passent inaperçus. La clé se tire des octets.",
            (
                cache_variant(lambda W, c: (id(W), written(c))),
                cache_variant(lambda W, c: (id(W), W._version, written(c))),
                cache_variant(lambda W, c: (W.data_ptr(), written(c))),
                cache_variant(lambda W, c: (W.data_ptr(), layout(W), written(c))),
            ),
        ),
        Mistake(
            "une référence au lieu d'une copie",
            "vous gardez les poids reçus pour leur comparer les suivants ; quand ils changent sur place, ceux que vous "
            "gardez changent aussi, puisque ce sont les mêmes. Gardez leurs octets, ou un résumé.",
            (
                reference_variant(lambda a, b: written(a) == written(b)),
                reference_variant(lambda a, b: a == b),
            ),
        ),
        Mistake(
            "un résumé qui oublie",
            "str n'imprime que les coins d'une grande matrice, à quatre décimales ; une somme ou une norme ne voit pas "
            "deux lignes échangées. hashlib résume tous les octets.",
            (
                cache_variant(lambda W, c: (str(W), written(c))),
                cache_variant(lambda W, c: (str(W.detach()), written(c))),
                cache_variant(lambda W, c: (str(W.tolist()[0]), layout(W), written(c))),
                cache_variant(lambda W, c: (float(W.detach().sum()), layout(W), written(c))),
                cache_variant(lambda W, c: (float(W.detach().sum()), float(W.detach().norm()), layout(W), written(c))),
            ),
        ),
        Mistake(
            "les octets du stockage",
            "une transposée partage les octets de l'original, lus dans un autre ordre : rendez les poids contigus "
            "avant d'en prendre les octets.",
            (cache_variant(lambda W, c: (stored_octets(W), layout(W), written(c))),),
        ),
        Mistake(
            "des octets sans forme",
            "les mêmes octets font une matrice m×n ou n×m : la forme appartient à la clé.",
            (
                cache_variant(lambda W, c: (octets(W), W.dtype, written(c))),
                cache_variant(lambda W, c: (octets(W), written(c))),
            ),
        ),
        Mistake(
            "des octets sans type",
            "les mêmes octets, lus en float16 ou en bfloat16, sont d'autres nombres : le type appartient à la clé.",
            (cache_variant(lambda W, c: (octets(W), tuple(W.shape), written(c))),),
        ),
        Mistake(
            "une configuration oubliée",
            "votre clé ne tient pas compte de config, ou d'une partie seulement : descendez dans tous ses étages.",
            (
                cache_variant(lambda W, c: (octets(W), layout(W))),
                cache_variant(lambda W, c: (octets(W), layout(W), c["rang"])),
                cache_variant(lambda W, c: (octets(W), layout(W), str(c["rang"]))),
            ),
        ),
        Mistake(
            "l'ordre des clés",
            "deux dictionnaires égaux s'écrivent autrement si leurs clés sont dans un autre ordre, et trier le premier "
            "étage ne suffit pas : json.dumps(config, sort_keys=True) les trie tous.",
            (
                cache_variant(lambda W, c: (octets(W), layout(W), str(c))),
                cache_variant(lambda W, c: (octets(W), layout(W), str(sorted(c.items())))),
            ),
        ),
        Mistake(
            "1 et 1.0 confondus",
            "pour Python, 1 == 1.0 == True, et ces clés n'en font qu'une ; pour comprimer, l'un est une direction et "
            "l'autre toutes. Leur écriture (repr, json) les distingue.",
            (cache_variant(lambda W, c: (octets(W), layout(W), frozen(c))),),
        ),
        Mistake(
            "un résultat partagé",
            "ce que vous rendez, le cache le garde aussi : qui le modifie modifie les réponses suivantes. Il faut, à "
            "chaque réponse, la première comprise, une copie profonde (copy.deepcopy : les tenseurs sont dans des "
            "listes).",
            (
                cache_variant(stored=itself, given=itself),
                cache_variant(given=itself),
                cache_variant(stored=itself),
                cache_variant(stored=copy.copy, given=copy.copy),
            ),
        ),
        Mistake(
            "une erreur gardée",
            "une exception peut n'être qu'un accident (mémoire pleine, disque absent) : ne rangez que les réussites.",
            (cache_variant(failures=True),),
        ),
    ),
)
