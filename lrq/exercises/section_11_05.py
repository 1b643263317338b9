"""Exercices 11.5.1, 11.5.2 et 11.5.3 : Eckart–Young, l'erreur d'une couche à l'autre, la paire (rang, bits)."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .engine import Case, Exercise, Mistake, Property, as_integer
from .instances import integer, matrix, number, uniform
from .section_11_02 import orthonormal
from .section_11_04 import factors, relative, rounded, shared_s

# --- 11.5.1 -----------------------------------------------------------------------------------------------------------

NORMS = ("frobenius", "spectrale")


def with_spectrum(generator: torch.Generator, m: int, n: int, S: Tensor) -> Tensor:
    """Matrice m×n float64 de valeurs singulières S."""
    return orthonormal(generator, m, len(S)) * S @ orthonormal(generator, n, len(S)).T


def truncated(W: Tensor, rank: int) -> Tensor:
    """W_r."""
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    return (U[:, :rank] * S[:rank]) @ Vh[:rank]


def competitors(generator: torch.Generator, W: Tensor, rank: int) -> list[Tensor]:
    """Quatre ou cinq candidates de rang permis, et deux qui ne le sont pas, dans le désordre.

    De celles-ci, W_{r+1} passe sous le minimum, et W_r arrondie, de rang plein, n'y passe pas.
    """
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    Q = orthonormal(generator, len(W), rank)
    columns = torch.linalg.qr(W[:, torch.randperm(W.shape[1], generator=generator)[:rank]]).Q
    found = [
        truncated(W, rank),
        Q @ (Q.T @ W),
        columns @ (columns.T @ W),
        (U[:, :rank] * (S[:rank] - 0.7 * S[rank])) @ Vh[:rank],  # la même erreur spectrale que W_r
        truncated(W, rank + 1),
        rounded(truncated(W, rank), 4),
    ]
    if rank > 1:
        found.append(truncated(W, rank - 1))
    return [found[i] for i in torch.randperm(len(found), generator=generator)]


def eckart_cases(generator: torch.Generator) -> list[Case]:
    """Quatre spectres : qui décroît, plat, qui s'annule, et le même jugement au rang un."""
    cases = []
    for kind in ("qui décroît", "plat", "qui s'annule", "qui décroît vite"):
        p, rank = integer(generator, 9, 13), integer(generator, 2, 4)
        q = p + integer(generator, 3, 8)
        decay = torch.arange(1, p + 1, dtype=torch.float64) ** -uniform(generator, 0.5, 1)
        if kind == "plat":
            m, n, S = p, p, torch.ones(p, dtype=torch.float64)
        elif kind == "qui s'annule":
            m, n, S = p, q, decay[: rank + 3]
        elif kind == "qui décroît":
            m, n, S = q, p, decay
        else:
            m, n, S, rank = q, p, decay**2, 1
        W = with_spectrum(generator, m, n, S * uniform(generator, 3, 9))
        label = f"W {m}×{n}, spectre {kind}, rang = {rank}"
        cases.append(Case(label, (W, rank, competitors(generator, W, rank))))
    return cases


def least_errors(W: Tensor, rank: int) -> tuple[float, float]:
    """Les deux minimums, des valeurs propres de la plus petite matrice de Gram plutôt que d'une SVD."""
    gram = W @ W.T if len(W) < W.shape[1] else W.T @ W
    energy = torch.linalg.eigvalsh(gram).flip(0).clamp_min(0)[rank:]
    return float(energy.sum().sqrt()), float(energy[0].sqrt())


def rank_of(M: Tensor) -> int:
    """Rang numérique : celui d'une candidate ne dépasse le rang permis que d'un centième de σ₁ au moins."""
    return int(torch.linalg.matrix_rank(M, rtol=1e-6))


def eckart_reading(result: Any) -> dict[str, Any]:
    """Le dictionnaire en nombres ordinaires."""
    found: dict[str, Any] = {}
    for name in NORMS:
        predicted, measured = result[name]
        found[name] = [float(predicted), float(measured)]
    found["concurrents"] = [None if value is None else float(value) for value in result["concurrents"]]
    return found


def close(a: float, b: float, tolerance: float = 2e-3) -> bool:
    """Égalité à l'arrondi près, float32 compris ; nan n'est proche de rien."""
    return abs(a - b) <= tolerance * abs(b)


def eckart_properties(result: Any, case: Case) -> Iterable[Property]:
    """Le minimum vient des valeurs propres d'une matrice de Gram ; les rangs et les erreurs sont refaits."""
    W, rank, rivals = case.args
    valid = isinstance(result, Mapping) and set(result) == {*NORMS, "concurrents"}
    text = "le résultat est un dictionnaire de clés frobenius, spectrale et concurrents"
    yield Property(text, valid, f"reçu {sorted(map(str, result)) if isinstance(result, Mapping) else result!r}")
    if not valid:
        return
    try:
        found = eckart_reading(result)
    except (TypeError, ValueError, RuntimeError):
        found = {}
    text = "frobenius et spectrale sont des couples de nombres, concurrents une suite de nombres ou de None"
    yield Property(text, bool(found), f"reçu {result!r}")
    if not found:
        return
    made = {
        "frobenius": "la racine de la somme des carrés des valeurs singulières abandonnées",
        "spectrale": f"la première valeur singulière abandonnée, σ_{rank + 1}",
    }
    for (name, what), right in zip(made.items(), least_errors(W, rank), strict=True):
        predicted, measured = found[name]
        yield Property(
            f"{name} : la prédiction est juste",
            close(predicted, right),
            f"vous prédisez {number(predicted)} ; {what}, vaut {number(right)}",
        )
        yield Property(
            f"{name} : la mesure est juste",
            close(measured, right),
            f"vous mesurez {number(measured)} sur W − W_r, et personne ne peut descendre sous {number(right)}, "
            "que W_r atteint",
        )
    ratios = found["concurrents"]
    counted = len(ratios) == len(rivals)
    yield Property("une valeur par concurrent", counted, f"reçu {len(ratios)}, pour {len(rivals)} concurrents")
    if not counted:
        return
    for i, (ratio, M) in enumerate(zip(ratios, rivals, strict=True)):
        own = rank_of(M)
        yield Property(
            "un concurrent est hors concours, None, si et seulement si son rang dépasse le rang permis",
            (ratio is None) == (own > rank),
            f"le concurrent {i} est de rang {own}, pour un rang permis de {rank}, et vous rendez "
            + ("None" if ratio is None else number(ratio)),
        )
        if ratio is None or own > rank:
            continue
        right = float((W - M).norm()) / least_errors(W, rank)[0]
        yield Property(
            "le rapport de chaque concurrent est son erreur de Frobenius divisée par le minimum",
            close(ratio, right),
            f"pour le concurrent {i}, vous rendez {number(ratio)} au lieu de {number(right)}",
        )


def eckart_variant(
    *,
    frobenius: Callable[[Tensor, int], Tensor] = lambda S, r: S[r:].square().sum().sqrt(),
    spectral: Callable[[Tensor, int], Tensor] = lambda S, r: S[r],
    approximate: Callable[[Tensor, int], Tensor] = truncated,
    measure: Callable[[Tensor], Tensor] = lambda E: torch.linalg.svdvals(E)[0],
    admitted: Callable[[int, int], bool] = lambda own, rank: own <= rank,
    ratio: Callable[[Tensor, Tensor, float], float] = lambda E, W, least: float(E.norm()) / least,
    least: Callable[[float, float], float] = lambda predicted, measured: predicted,
) -> Any:
    """Fonction fautive : la comparaison, dont quelque chose est changé ; `least` choisit à quoi l'on divise."""

    def wrong(W: Tensor, rank: int, rivals: Sequence[Tensor]) -> dict[str, Any]:
        S, E = torch.linalg.svdvals(W), W - approximate(W, rank)
        predicted, measured = float(frobenius(S, rank)), float(E.norm())
        smallest = least(predicted, measured)
        ratios = [ratio(W - M, W, smallest) if admitted(rank_of(M), rank) else None for M in rivals]
        return {
            "frobenius": (predicted, measured),
            "spectrale": (float(spectral(S, rank)), float(measure(E))),
            "concurrents": ratios,
        }

    return wrong


def v_for_vh(W: Tensor, rank: int) -> Tensor:
    """Le code du cours : V rendue par torch.svd, prise pour Vᵀ."""
    U, S, V = torch.svd(W)
    return (U[:, :rank] * S[:rank]) @ V[:rank]


def by_either(**changes: Any) -> tuple[Any, Any]:
    """La même faute, que les rapports soient divisés par le minimum prédit ou par le minimum mesuré."""
    return (
        eckart_variant(**changes),
        eckart_variant(**changes, least=lambda predicted, measured: measured),
    )


EXERCISE_11_5_1 = Exercise(
    number="11.5.1",
    title="Eckart–Young à l'épreuve",
    cases=eckart_cases,
    properties=eckart_properties,
    signature=eckart_reading,
    mistakes=(
        Mistake(
            "une somme de valeurs singulières",
            "ce sont les carrés qui s'ajoutent : l'erreur de Frobenius est la racine de la somme des σᵢ² abandonnés. "
            "La somme des σᵢ, que donne le cours, est la norme nucléaire de l'écart, toujours au moins aussi grande.",
            by_either(frobenius=lambda S, r: S[r:].sum()),
        ),
        Mistake(
            "la racine oubliée",
            "la somme des σᵢ² abandonnés est l'énergie perdue, ‖W − W_r‖² ; l'erreur en est la racine.",
            by_either(frobenius=lambda S, r: S[r:].square().sum()),
        ),
        Mistake(
            "torch.norm(E, p=2) pris pour la norme spectrale",
            "torch.norm(E, p=2), comme E.norm(), aplatit la matrice : c'est encore Frobenius. La norme spectrale est "
            "torch.linalg.matrix_norm(E, ord=2), la plus grande valeur singulière de E.",
            (eckart_variant(measure=lambda E: E.norm()),),
        ),
        Mistake(
            "un indice décalé",
            "garder r valeurs, c'est garder σ₁ … σ_r, soit S[:r] en Python : la première abandonnée, σ_{r+1}, est "
            "S[r], et la queue S[r:].",
            (
                eckart_variant(spectral=lambda S, r: S[r - 1]),
                eckart_variant(spectral=lambda S, r: S[r + 1]),
                *by_either(frobenius=lambda S, r: S[r - 1 :].norm()),
                *by_either(frobenius=lambda S, r: S[r + 1 :].norm()),
                *by_either(frobenius=lambda S, r: S[r - 1 :].norm(), spectral=lambda S, r: S[r - 1]),
                *by_either(frobenius=lambda S, r: S[r + 1 :].norm(), spectral=lambda S, r: S[r + 1]),
            ),
        ),
        Mistake(
            "V pris pour Vᵀ",
            "torch.svd rend V, torch.linalg.svd rend Vh = Vᵀ. Les r premières lignes de V ne sont pas les vecteurs "
            "singuliers droits, et votre W_r n'est pas la meilleure approximation : la mesure dépasse la prédiction.",
            by_either(approximate=v_for_vh),
        ),
        Mistake(
            "des concurrents de rang trop grand",
            "au rang r + 1 on fait mieux qu'au rang r, et le théorème n'en dit rien. Comptez les valeurs singulières "
            "non nulles de chaque concurrent, à l'arrondi près (torch.linalg.matrix_rank).",
            (eckart_variant(admitted=lambda own, rank: True),),
        ),
        Mistake(
            "le rang permis exclu",
            "un concurrent de rang r exactement est en concours : il n'est exclu que si son rang dépasse r.",
            (eckart_variant(admitted=lambda own, rank: own < rank),),
        ),
        Mistake(
            "un autre rapport",
            "divisez l'erreur de Frobenius du concurrent par le minimum : ni par la norme de W, ni dans l'autre sens, "
            "ni au carré, ni en norme spectrale. Le rapport est alors toujours au moins 1.",
            (
                eckart_variant(ratio=lambda E, W, least: least / float(E.norm())),
                eckart_variant(ratio=lambda E, W, least: float(E.norm() / W.norm())),
                eckart_variant(ratio=lambda E, W, least: float(E.norm()) ** 2 / least**2),
                eckart_variant(ratio=lambda E, W, least: float(torch.linalg.svdvals(E)[0]) / least),
                eckart_variant(ratio=lambda E, W, least: float(E.norm())),
            ),
        ),
    ),
)

# --- 11.5.2 -----------------------------------------------------------------------------------------------------------


def spectral(t: Tensor) -> float:
    """La plus grande valeur singulière."""
    return float(torch.linalg.svdvals(t)[0])


def dense(generator: torch.Generator, m: int, n: int) -> Tensor:
    """Poids m×n float32, qui amplifient à leur façon."""
    return torch.randn(m, n, generator=generator) * uniform(generator, 1, 3) / n**0.5


def chain_cases(generator: torch.Generator) -> list[Case]:
    """Une couche ; trois, dont celle du milieu est intacte ; quatre, toutes comprimées, l'une par troncature."""
    cases = []
    plans = (("arrondie",), ("arrondie", "intacte", "arrondie"), ("arrondie", "tronquée", "arrondie", "arrondie"))
    for plan in plans:
        while True:
            sizes = torch.randperm(8, generator=generator)[: len(plan) + 1] + 6  # toutes différentes
            weights = [dense(generator, m, n) for n, m in zip(sizes[:-1].tolist(), sizes[1:].tolist(), strict=True)]
            compressed = []
            for W, way in zip(weights, plan, strict=True):
                n_bits, rank = integer(generator, 2, 3), integer(generator, 2, 4)
                made = {"arrondie": rounded(W, n_bits), "tronquée": truncated(W, rank), "intacte": W.clone()}
                compressed.append(made[way])
            gains = [abs(spectral(C) / spectral(W) - 1) for W, C in zip(weights, compressed, strict=True)]
            if len(plan) == 1 or max(gains[1:]) > 0.05:  # une norme prise pour l'autre se voit
                break
        x = torch.randn(integer(generator, 5, 12), int(sizes[0]), generator=generator)
        cases.append(Case(f"{len(plan)} couche(s) : {', '.join(plan)}", (weights, compressed, x)))
    return cases


def recursion(
    weights: Sequence[Tensor], compressed: Sequence[Tensor], x: Tensor
) -> list[tuple[float, float, float, float]]:
    """Par couche : l'erreur mesurée, sa borne, l'erreur reçue, l'erreur propre.

    L'erreur elle-même est suivie, en float64, par δz = Ŵ δh + E h : le réseau comprimé n'est jamais exécuté.
    """
    h = x.double()
    error, bound, rows = torch.zeros_like(h), 0.0, []
    for W, C in zip(weights, compressed, strict=True):
        W, C = W.double(), C.double()
        inherited, own = spectral(C) * bound, spectral(C - W) * float(h.norm())
        bound = inherited + own
        z, error = h @ W.T, error @ C.T + h @ (C - W).T
        rows.append((float(error.norm()), bound, inherited, own))
        h = z.relu()
        error = (z + error).relu() - h
    return rows


def chain_reading(result: Any) -> list[list[float]]:
    """Les mesures et les bornes, en nombres ordinaires."""
    measured, bounds = result
    return [[float(value) for value in values] for values in (measured, bounds)]


def chain_properties(result: Any, case: Case) -> Iterable[Property]:
    """Les mesures sont refaites en suivant l'erreur, les bornes par leur définition."""
    weights, compressed, x = case.args
    try:
        found = chain_reading(result)
    except (TypeError, ValueError, RuntimeError):
        found = []
    valid = [len(values) for values in found] == 2 * [len(weights)]
    text = "le résultat est un couple (mesures, bornes), un nombre par couche dans chacune"
    yield Property(text, valid, f"reçu {result!r}, pour {len(weights)} couche(s)")
    if not valid:
        return
    rows = recursion(weights, compressed, x)
    for layer, (measured, row) in enumerate(zip(found[0], rows, strict=True), start=1):
        place = "la dernière couche" if layer == len(rows) else f"la couche {layer}"
        yield Property(
            "chaque mesure est la norme de l'écart des sorties, avant activation",
            close(measured, row[0]),
            f"pour {place}, vous mesurez {number(measured)} au lieu de {number(row[0])}",
        )
    for layer, (bound, row) in enumerate(zip(found[1], rows, strict=True), start=1):
        yield Property(
            "chaque borne est l'erreur reçue, amplifiée, plus l'erreur propre",
            close(bound, row[1]),
            f"pour la couche {layer}, vous rendez {number(bound)} ; l'erreur reçue, amplifiée, est bornée par "
            f"{number(row[2])}, et la couche ajoute au plus {number(row[3])}",
        )
    for layer, (measured, bound) in enumerate(zip(*found, strict=True), start=1):
        yield Property(
            "aucune mesure ne dépasse sa borne",
            measured <= 1.001 * bound,
            f"pour la couche {layer}, vous mesurez {number(measured)} et bornez par {number(bound)}",
        )


Bound = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], float]


def chain_variant(
    *,
    inherits: bool = True,
    activation: Callable[[Tensor], Tensor] = torch.relu,
    after: Callable[[bool], bool] = lambda last: False,
    gain: Callable[[Tensor, Tensor], float] = lambda W, C: spectral(C),
    own: Bound = lambda W, C, h, h_hat, before: spectral(C - W) * float(h.norm()),
    inherited: Callable[[float, float], float] = lambda gain, bound: gain * bound,
    report: Callable[[Tensor, Tensor], float] = lambda error, z: float(error.norm()),
) -> Any:
    """Fonction fautive : les deux réseaux côte à côte, dont quelque chose est changé.

    `after` dit, de la dernière couche ou d'une autre, si la mesure se fait après l'activation ; `own` reçoit W, Ŵ, h,
    ĥ et la sortie de la couche d'avant, non activée.
    """

    def wrong(weights: Sequence[Tensor], compressed: Sequence[Tensor], x: Tensor) -> tuple[list[float], list[float]]:
        h, h_hat, before, bound = x, x, x, 0.0
        measures, bounds = [], []
        for layer, (W, C) in enumerate(zip(weights, compressed, strict=True), start=1):
            z, z_hat = h @ W.T, (h_hat if inherits else h) @ C.T
            bound = inherited(gain(W, C), bound) + own(W, C, h, h_hat, before)
            bounds.append(bound)
            outputs = (torch.relu(z_hat), torch.relu(z)) if after(layer == len(weights)) else (z_hat, z)
            measures.append(report(outputs[0] - outputs[1], outputs[1]))
            h, h_hat, before = activation(z), activation(z_hat), z
        return measures, bounds

    return wrong


def local(norm: Callable[[Tensor], float]) -> Bound:
    """L'erreur propre, pour une norme des poids."""
    return lambda W, C, h, h_hat, before: norm(C - W) * float(h.norm())


def frobenius(t: Tensor) -> float:
    """La norme de Frobenius."""
    return float(t.norm())


def met(W: Tensor, C: Tensor, h: Tensor, h_hat: Tensor, before: Tensor) -> float:
    """L'erreur propre, aux entrées du réseau comprimé."""
    return spectral(C - W) * float(h_hat.norm())


def unactivated(W: Tensor, C: Tensor, h: Tensor, h_hat: Tensor, before: Tensor) -> float:
    """L'erreur propre, aux sorties de la couche d'avant."""
    return spectral(C - W) * float(before.norm())


EXERCISE_11_5_2 = Exercise(
    number="11.5.2",
    title="l'erreur d'une couche à l'autre",
    cases=chain_cases,
    properties=chain_properties,
    signature=chain_reading,
    mistakes=(
        Mistake(
            "Frobenius à la place de la norme spectrale",
            "c'est une borne, mais plus lâche que celle demandée : ce qu'une matrice peut faire de pire à un vecteur, "
            "c'est sa norme spectrale. torch.linalg.matrix_norm(W, ord=2) la donne ; W.norm(), avec ou sans p=2, non.",
            (
                chain_variant(gain=lambda W, C: frobenius(C), own=local(frobenius)),
                chain_variant(own=local(frobenius)),
                chain_variant(gain=lambda W, C: frobenius(C)),
            ),
        ),
        Mistake(
            "des erreurs qui ne se transmettent pas",
            "chaque couche comprimée reçoit, chez vous, les activations du réseau d'origine. Dans un vrai réseau, elle "
            "reçoit ce que les couches comprimées d'avant ont déjà abîmé : une couche intacte a, elle aussi, une "
            "erreur en sortie.",
            (
                chain_variant(inherits=False),
                chain_variant(inherits=False, inherited=lambda gain, bound: 0.0),
                chain_variant(inherits=False, inherited=lambda gain, bound: bound),
            ),
        ),
        Mistake(
            "une mesure après l'activation",
            "l'erreur se mesure avant l'activation, et la dernière couche n'en a pas : ReLU efface une partie de "
            "l'écart, partout où les deux sorties sont négatives.",
            (
                chain_variant(after=lambda last: last),
                chain_variant(after=lambda last: True),
                chain_variant(after=lambda last: not last),
            ),
        ),
        Mistake(
            "ReLU oubliée",
            "entre deux couches, vos activations ne passent pas par ReLU : vous suivez un réseau linéaire, dont toutes "
            "les entrées et toutes les erreurs passent entières.",
            (chain_variant(activation=lambda z: z),),
        ),
        Mistake(
            "des bornes locales ajoutées sans les gains",
            "l'erreur reçue n'est pas seulement transmise : la couche l'amplifie, jusqu'à ‖Ŵ‖₂ fois. Sans ce facteur, "
            "la somme n'est plus une borne.",
            (chain_variant(inherited=lambda gain, bound: bound),),
        ),
        Mistake(
            "l'erreur propre seule",
            "‖E‖₂ ‖h‖ borne ce que la couche ajoute ; il manque l'erreur qu'elle reçoit des précédentes, ‖Ŵ‖₂ fois "
            "leur borne.",
            (chain_variant(inherited=lambda gain, bound: 0.0),),
        ),
        Mistake(
            "‖W‖ à la place de ‖Ŵ‖",
            "y − ŷ = Ŵ(h − ĥ) + E h : avec l'entrée h du réseau d'origine, c'est la couche comprimée qui amplifie "
            "l'erreur reçue. On peut écrire aussi W(h − ĥ) + E ĥ, mais il y faut ‖ĥ‖ ; le mélange des deux ne borne "
            "rien.",
            (chain_variant(gain=lambda W, C: spectral(W)), chain_variant(gain=lambda W, C: spectral(W), own=met)),
        ),
        Mistake(
            "une autre entrée dans l'erreur propre",
            "l'erreur propre est ‖E‖₂ ‖h‖, où h est l'entrée de la couche dans le réseau d'origine, activée : ni ĥ, "
            "celle du réseau comprimé, ni la sortie d'avant ReLU.",
            (chain_variant(own=met), chain_variant(own=unactivated)),
        ),
        Mistake(
            "une erreur relative, ou moyenne",
            "la mesure et la borne doivent se comparer : rendez la norme de Frobenius de l'écart, sur tout le lot, "
            "sans la diviser.",
            (
                chain_variant(report=lambda error, z: float(error.norm() / z.norm())),
                chain_variant(report=lambda error, z: float(error.norm(dim=1).mean())),
                chain_variant(report=lambda error, z: float(error.square().mean().sqrt())),
                chain_variant(report=lambda error, z: float(error.square().mean())),
                chain_variant(report=lambda error, z: float(error.square().sum())),
            ),
        ),
    ),
)

# --- 11.5.3 -----------------------------------------------------------------------------------------------------------

BITS = range(2, 9)


class Choice(NamedTuple):
    """Une paire, et ses erreurs relatives : de troncature, d'arrondi, des deux, et de W_r quantifiée sans facteurs."""

    rank: int
    n_bits: int
    truncation: float
    rounding: float
    measured: float
    undivided: float

    @property
    def product(self) -> int:
        """Ce dont le poids dépend : deux paires de même produit pèsent autant."""
        return self.rank * self.n_bits


def choices(W: Tensor, factorise: Callable[[Tensor, int], tuple[Tensor, Tensor]] = factors) -> list[Choice]:
    """Toutes les paires d'une matrice, en float64, calculées une fois."""
    return table_of(W.double().numpy().tobytes(), tuple(W.shape), factorise)


@lru_cache(maxsize=64)
def table_of(
    content: bytes, shape: tuple[int, int], factorise: Callable[[Tensor, int], tuple[Tensor, Tensor]]
) -> list[Choice]:
    """La table d'une matrice, retrouvée par ses octets : chaque faute l'interroge."""
    W, found = torch.frombuffer(bytearray(content), dtype=torch.float64).view(shape), []
    U, V = factorise(W, min(W.shape))
    for rank in range(1, U.shape[1] + 1):
        A, B = U[:, :rank], V[:, :rank]
        P = A @ B.T
        for n_bits in BITS:
            Q = rounded(A, n_bits) @ rounded(B, n_bits).T
            errors = relative(W - P, W), relative(P - Q, W), relative(W - Q, W), relative(W - rounded(P, n_bits), W)
            found.append(Choice(rank, n_bits, *errors))
    return found


def stored(W: Tensor, product: int) -> int:
    """Les bits de deux facteurs : leurs codes, et deux échelles de 32 bits."""
    return product * sum(W.shape) + 64


Estimate = Callable[[Choice], float]


def added(c: Choice) -> float:
    """La somme des deux erreurs : une borne."""
    return c.truncation + c.rounding


def quadrature(c: Choice) -> float:
    """La racine de la somme de leurs carrés : une estimation."""
    return math.hypot(c.truncation, c.rounding)


def measured(c: Choice) -> float:
    """Ce que les codes rangés laissent vraiment."""
    return c.measured


def lightest(table: Iterable[Choice], error: Estimate, limit: float) -> Choice:
    """La paire la plus légère dont cette erreur tient sous la limite."""
    return min((c for c in table if error(c) <= limit), key=lambda c: c.product)


def rank_first(table: Sequence[Choice], limit: float) -> Choice:
    """Le plus petit rang que la troncature permet, puis le moins de bits."""
    rank = min(c.rank for c in table if c.truncation <= limit)
    return lightest([c for c in table if c.rank == rank], measured, limit)


def bits_first(table: Sequence[Choice], limit: float) -> Choice:
    """Le moins de bits que permette un rang quelconque, puis le plus petit rang."""
    n_bits = min(c.n_bits for c in table if c.measured <= limit)
    return lightest([c for c in table if c.n_bits == n_bits], measured, limit)


def telling(table: Sequence[Choice], limit: float, kind: str) -> bool:
    """Vrai si, à cette limite, le raccourci que `kind` éprouve se trompe, sans que l'arrondi du calcul décide."""
    if any(abs(c.measured - limit) < 0.01 * limit for c in table):
        return False
    rank = min(c.rank for c in table if c.truncation <= limit)
    if all(c.measured > limit for c in table if c.rank == rank):
        return False  # au rang de la troncature, aucun nombre de bits ne suffit
    best = lightest(table, measured, limit)
    if kind == "aberrante" and close(quadrature(best), best.measured, 0.004):
        return False
    shortcut = {"haute": rank_first(table, limit), "large": bits_first(table, limit)}.get(kind)
    return best.product not in (lightest(table, added, limit).product, shortcut and shortcut.product)


def pair_cases(generator: torch.Generator) -> list[Case]:
    """Trois matrices où les raccourcis coûtent : le rang d'abord, les bits d'abord, une estimation."""
    cases = []
    for kind in ("haute", "large", "aberrante"):
        limits: list[float] = []
        while not limits:
            p, decay = integer(generator, 8, 10), uniform(generator, 0.6, 1.1)
            q = p + integer(generator, 3, 8)
            W = matrix(generator, *((p, q) if kind == "large" else (q, p)), decay)
            if kind == "aberrante":
                W[integer(generator, 0, q - 1), integer(generator, 0, p - 1)] += W.abs().max()
            limits = [k / 100 for k in range(12, 46) if telling(choices(W), k / 100, kind)]
        limit = limits[integer(generator, 0, len(limits) - 1)]
        strange = ", un poids aberrant" if kind == "aberrante" else ""
        label = f"W {W.shape[0]}×{W.shape[1]}{strange}, erreur_max = {number(limit)}"
        cases.append(Case(label, (W, limit)))
    return cases


def pair_reading(result: Any) -> tuple[int | None, int | None, float, float]:
    """Le rang, les bits par code, les bits en tout, l'erreur."""
    rank, n_bits, bits, error = result
    return as_integer(rank), as_integer(n_bits), float(bits), float(error)


def pair_properties(result: Any, case: Case) -> Iterable[Property]:
    """Les paires de même poids se valent : seuls comptent le poids, et l'erreur mesurée sous la limite."""
    W, limit = case.args
    rank: int | None = None
    n_bits: int | None = None
    try:
        rank, n_bits, bits, error = pair_reading(result)
    except (TypeError, ValueError, RuntimeError):
        bits = error = math.nan
    valid = rank is not None and n_bits is not None
    text = "le résultat est (rang, n_bits, bits, erreur), dont deux entiers"
    yield Property(text, valid, f"reçu {result!r}")
    table = choices(W)
    own = next((c for c in table if (c.rank, c.n_bits) == (rank, n_bits)), None)
    if not valid:
        return
    text = "le rang va de 1 à min(m, n), n_bits de 2 à 8"
    yield Property(text, own is not None, f"reçu rang {rank} et n_bits {n_bits}, pour une matrice {tuple(W.shape)}")
    if own is None:
        return
    pair, best = f"rang {rank} sur {n_bits} bits", lightest(table, measured, limit)
    yield Property(
        "l'erreur rendue est celle que les codes rangés laissent",
        close(error, own.measured, 1.5e-3),
        f"vous rendez {number(error, 4)} ; {pair}, elle vaut {number(own.measured)} "
        f"(troncature {number(own.truncation)}, arrondi {number(own.rounding)})",
    )
    yield Property(
        "cette erreur ne dépasse pas erreur_max",
        own.measured <= limit,
        f"{pair}, l'erreur mesurée vaut {number(own.measured)}, pour une limite de {number(limit)}",
    )
    yield Property(
        "bits est la taille de ce qui est rangé",
        close(bits, stored(W, own.product), 1e-9),
        f"vous comptez {bits:.0f} bits ; {own.rank * sum(W.shape)} codes de {n_bits} bits et deux échelles de 32 bits "
        f"en font {stored(W, own.product)}",
    )
    yield Property(
        "aucune paire plus légère ne tient sous la limite",
        own.product <= best.product,
        f"{pair}, {stored(W, own.product)} bits ; au rang {best.rank} sur {best.n_bits} bits, "
        f"{stored(W, best.product)} bits suffisent, pour une erreur de {number(best.measured)}",
    )


def pair_portrait(result: Any, case: Case) -> Any:
    """Le poids de la paire, les bits annoncés et ce que mesure l'erreur : des paires ex æquo se ressemblent."""
    rank, n_bits, bits, error = pair_reading(result)
    own = next(c for c in choices(case.args[0]) if (c.rank, c.n_bits) == (rank, n_bits))
    size = float(case.args[0].double().norm())
    readings = {
        "mesurée": own.measured,
        "troncature": own.truncation,
        "arrondi": own.rounding,
        "somme": added(own),
        "quadrature": quadrature(own),
        "sans facteurs": own.undivided,
        "absolue": own.measured * size,
        "carré": own.measured**2,
    }
    return own.product, bits, next((name for name, value in readings.items() if close(error, value, 1.5e-3)), error)


def pair_variant(
    choose: Callable[[Sequence[Choice], float], Choice] = lambda table, limit: lightest(table, measured, limit),
    *,
    report: Callable[[Choice, Tensor], float] = lambda c, W: c.measured,
    size: Callable[[Choice, int, int], float] = lambda c, m, n: c.product * (m + n) + 64,
    factorise: Callable[[Tensor, int], tuple[Tensor, Tensor]] = factors,
) -> Any:
    """Fonction fautive : un autre choix, une autre erreur rendue, ou une autre taille."""

    def wrong(W: Tensor, limit: float) -> tuple[int, int, float, float]:
        c = choose(choices(W, factorise), limit)
        return c.rank, c.n_bits, size(c, *W.shape), report(c, W)

    return wrong


def by(error: Estimate) -> tuple[Any, Any]:
    """La paire que choisit cette erreur, rendue avec elle, ou avec la mesure."""

    def choose(table: Sequence[Choice], limit: float) -> Choice:
        return lightest(table, error, limit)

    return pair_variant(choose, report=lambda c, W: error(c)), pair_variant(choose)


def smallest_rank(table: Sequence[Choice], limit: float, *, generous: bool) -> Choice:
    """Le plus petit rang qui convienne, sur le moins de bits possible, ou (`generous`) sur le plus."""
    kept = [c for c in table if c.measured <= limit]
    return min(kept, key=lambda c: (c.rank, -c.n_bits if generous else c.n_bits))


def fixed_size(width: int, scales: int, generous: bool) -> Any:
    """Fonction fautive : `width` bits par nombre quels que soient les codes ; seul le rang compte alors."""
    return pair_variant(
        lambda table, limit: smallest_rank(table, limit, generous=generous),
        size=lambda c, m, n: width * c.rank * (m + n) + scales,
    )


def fewest_bits_undivided(last: bool) -> Callable[[Sequence[Choice], float], Choice]:
    """W_r quantifiée et rangée entière : le moins de bits, au premier rang qui convienne, ou au dernier."""

    def choose(table: Sequence[Choice], limit: float) -> Choice:
        kept = [c for c in table if c.undivided <= limit]
        return min(kept, key=lambda c: (c.n_bits, -c.rank if last else c.rank))

    return choose


EXERCISE_11_5_3 = Exercise(
    number="11.5.3",
    title="la paire la plus légère sous une contrainte d'erreur",
    cases=pair_cases,
    properties=pair_properties,
    portrait=pair_portrait,
    mistakes=(
        Mistake(
            "les deux erreurs ajoutées",
            "l'erreur de troncature plus l'erreur d'arrondi bornent l'erreur, sans l'atteindre : les deux écarts sont "
            "presque orthogonaux. Vous payez des bits pour une marge que personne ne demande ; mesurez ‖W − ÛV̂ᵀ‖.",
            by(added),
        ),
        Mistake(
            "la quadrature prise pour une mesure",
            "√(troncature² + arrondi²) est une très bonne estimation, qui mène presque toujours à la bonne paire ; ce "
            "n'est pas une mesure : les deux écarts ne sont pas tout à fait orthogonaux. Mesurez.",
            (by(quadrature)[0], pair_variant(report=lambda c, W: quadrature(c))),
        ),
        Mistake(
            "l'arrondi ignoré",
            "vous jugez le rang sur la SVD tronquée, comme si les facteurs restaient flottants : une fois quantifiés, "
            "l'erreur dépasse la limite. Mesurez-la sur les codes.",
            by(lambda c: c.truncation),
        ),
        Mistake(
            "le rang d'abord, ou les bits d'abord",
            "vous fixez l'un, puis cherchez l'autre (ou vous arrêtez à la première paire qui convient). Un rang de "
            "plus permet souvent un bit de moins par code, et l'inverse : parcourez toutes les paires, et comparez "
            "leurs poids.",
            (
                pair_variant(rank_first),
                pair_variant(lambda table, limit: smallest_rank(table, limit, generous=False)),
                pair_variant(bits_first),
            ),
        ),
        Mistake(
            "la plus juste au lieu de la plus légère",
            "vous rendez la paire de plus petite erreur, ou la dernière essayée ; l'énoncé demande, parmi celles qui "
            "tiennent sous la limite, celle qui pèse le moins.",
            (pair_variant(lambda table, limit: min(table, key=measured)), pair_variant(lambda table, limit: table[-1])),
        ),
        Mistake(
            "les échelles oubliées",
            "des codes sans échelle ne redonnent rien : chaque facteur range aussi la sienne, 32 bits, et il y a deux "
            "facteurs.",
            (
                pair_variant(size=lambda c, m, n: c.product * (m + n)),
                pair_variant(size=lambda c, m, n: c.product * (m + n) + 32),
            ),
        ),
        Mistake(
            "une taille qui ignore n_bits",
            "vous comptez 32 bits par nombre, ou 8 : c'est la taille du tenseur en mémoire. Rangés serrés, les codes "
            "prennent n_bits bits chacun ; c'est tout l'intérêt d'en choisir peu.",
            (
                *(
                    fixed_size(width, scales, generous)
                    for width in (32, 8)
                    for scales in (0, 64)
                    for generous in (False, True)
                ),
                pair_variant(size=lambda c, m, n: 32 * c.rank * (m + n)),
                pair_variant(size=lambda c, m, n: 8 * c.rank * (m + n) + 64),
            ),
        ),
        Mistake(
            "W_r quantifiée au lieu des facteurs",
            "vous quantifiez le produit UVᵀ : ce sont mn codes, dont le rang n'est plus r, et que deux facteurs ne "
            "savent pas ranger. Quantifiez U et V, puis multipliez.",
            (
                *by(lambda c: c.undivided)[:1],
                *(
                    pair_variant(
                        fewest_bits_undivided(last),
                        report=lambda c, W: c.undivided,
                        size=lambda c, m, n: c.n_bits * m * n + 32,
                    )
                    for last in (False, True)
                ),
            ),
        ),
        Mistake(
            "√S mal partagé",
            "chaque facteur porte √S. Avec S d'un seul côté, le produit flottant est le même, mais les colonnes d'un "
            "facteur ont des tailles trop différentes pour une seule échelle, et l'arrondi y perd davantage.",
            (pair_variant(factorise=shared_s(1, 0)), pair_variant(factorise=shared_s(0, 1))),
        ),
        Mistake(
            "une autre erreur rendue",
            "la paire est la bonne, mais le nombre rendu n'est pas ‖W − ÛV̂ᵀ‖/‖W‖ : c'est la part de l'un des deux "
            "écarts, leur somme, un carré, ou une norme qui n'est pas divisée par ‖W‖.",
            (
                pair_variant(report=lambda c, W: c.truncation),
                pair_variant(report=lambda c, W: c.rounding),
                pair_variant(report=lambda c, W: added(c)),
                pair_variant(report=lambda c, W: c.measured**2),
                pair_variant(report=lambda c, W: c.measured * float(W.double().norm())),
            ),
        ),
    ),
)
