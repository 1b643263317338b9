"""Exercices 11.3, 11.4.1 et 11.4.2 : SVD, élagage et quantification ; l'ordre des deux ; QAT contre PTQ."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .engine import Case, Exercise, Mistake, Property
from .instances import integer, matrix, number, uniform

TIE = 2e-4  # distance aux demi-entiers, en codes : l'arrondi d'une instance ne dépend pas de la précision du calcul


def largest_code(n_bits: int) -> int:
    """q, le plus grand code de la grille symétrique."""
    return 2 ** (n_bits - 1) - 1


def to_codes(t: Tensor, n_bits: int) -> tuple[Tensor, Tensor]:
    """Codes −q … q et échelle max abs(t) / q, en flottants."""
    scale = t.abs().max() / largest_code(n_bits)
    return (t / scale).round(), scale


def rounded(t: Tensor, n_bits: int) -> Tensor:
    """`t` quantifié, puis déquantifié."""
    codes, scale = to_codes(t, n_bits)
    return codes * scale


def factors(W: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Facteurs équilibrés de la SVD tronquée : U √S, (m, r), et V √S, (n, r)."""
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    return U[:, :rank] * S[:rank].sqrt(), Vh[:rank].T * S[:rank].sqrt()


def relative(E: Tensor, W: Tensor) -> float:
    """‖E‖/‖W‖, en float64."""
    return float(E.double().norm() / W.double().norm())


def clear(t: Tensor, n_bits: int) -> bool:
    """Vrai si aucun coefficient de `t` ne tombe près du milieu de deux codes."""
    codes = t / to_codes(t, n_bits)[1]
    return bool(((codes - codes.floor()) - 0.5).abs().min() > TIE)


def distinct(W: Tensor, rank: int) -> bool:
    """Vrai si les premières valeurs singulières sont bien séparées : leurs vecteurs sont déterminés, au signe près."""
    S = torch.linalg.svdvals(W)
    return bool((-S.diff()[:rank]).min() > 0.01 * S[0])


# --- 11.3 -------------------------------------------------------------------------------------------------------------

KEYS = ("codes_U", "echelle_U", "codes_V", "echelle_V", "bits")


def smallest(t: Tensor, share: float) -> Tensor:
    """Masque de la part `share` des coefficients, ceux de plus petite valeur absolue."""
    order = t.abs().flatten().argsort()
    mask = torch.zeros(t.numel(), dtype=torch.bool)
    mask[order[: round(share * t.numel())]] = True
    return mask.view(t.shape)


def cut_is_clear(t: Tensor, share: float) -> bool:
    """Vrai si le dernier coefficient annulé est nettement plus petit que le premier gardé."""
    ordered = t.abs().flatten().sort().values
    k = round(share * t.numel())
    return bool(ordered[k] > (1 + 1e-3) * ordered[k - 1])


def layer_cases(generator: torch.Generator) -> list[Case]:
    """Haute, large et carrée ; à trois bits, l'arrondi annule plus de coefficients que l'élagage."""
    cases = []
    for shape, n_bits, share in (("haute", 5, 0.5), ("large", 3, 0.25), ("carrée", 6, 0.75)):
        while True:
            p, rank = integer(generator, 20, 28), 4 * integer(generator, 1, 2)  # quatre divise la taille des facteurs
            q = p if shape == "carrée" else p + integer(generator, 6, 14)
            W = matrix(generator, *((p, q) if shape == "large" else (q, p)), uniform(generator, 0.6, 1))
            pair = factors(W.double(), rank)
            common = common_threshold(pair, share)[0].sum() != smallest(pair[0], share).sum()  # un autre élagage
            clean = all(clear(t, n_bits) and cut_is_clear(t, share) for t in pair) and distinct(W.double(), rank)
            if clean and common:
                break
        label = f"W {W.shape[0]}×{W.shape[1]}, rang = {rank}, n_bits = {n_bits}, part_nulle = {number(share)}"
        cases.append(Case(label, (W, rank, n_bits, share)))
    return cases


def stored_codes(result: Any) -> dict[str, Tensor]:
    """Les deux tenseurs de codes, en float64."""
    return {name: torch.as_tensor(result[f"codes_{name}"]).detach().double() for name in "UV"}


def true_factors(W: Tensor, rank: int, codes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Les facteurs en float64, dont le signe de chaque colonne est celui qu'ont choisi les codes de U."""
    U, V = factors(W.double(), rank)
    sign = torch.where((codes["U"] * U).sum(0) < 0, -1.0, 1.0)
    return {"U": U * sign, "V": V * sign}


def honest_bits(codes: Mapping[str, Tensor], n_bits: int) -> int:
    """`n_bits` par code non nul, un bit de masque par coefficient, deux échelles de 32 bits."""
    return sum(n_bits * int((c != 0).sum()) + c.numel() for c in codes.values()) + 64


def layer_properties(result: Any, case: Case) -> Iterable[Property]:
    """Chaque code est jugé par une SVD refaite en float64, et la taille par les codes eux-mêmes."""
    W, rank, n_bits, share = case.args
    valid = isinstance(result, Mapping) and set(result) == set(KEYS)
    text = "le résultat est un dictionnaire de clés codes_U, echelle_U, codes_V, echelle_V et bits"
    yield Property(text, valid, f"reçu {sorted(map(str, result)) if isinstance(result, Mapping) else result!r}")
    if not valid:
        return
    codes, q = stored_codes(result), largest_code(n_bits)
    shapes, wanted = [tuple(codes[name].shape) for name in "UV"], [(size, rank) for size in W.shape]
    why = f"reçu {shapes[0]} et {shapes[1]}, attendu {wanted[0]} et {wanted[1]}"
    yield Property("les codes ont les formes (m, rang) et (n, rang)", shapes == wanted, why)
    if shapes != wanted:
        return
    whole = all(bool((c == c.round()).all()) for c in codes.values())
    why = "ils ne le sont pas ; rendez les codes, et les échelles à part : la multiplication attendra l'emploi"
    yield Property("les codes sont des entiers", whole, why)
    low, high = (int(f(torch.stack([f(c) for c in codes.values()]))) for f in (torch.min, torch.max))
    yield Property(
        "les codes vont de −q à q, avec q = 2^(n_bits − 1) − 1",
        -q <= low and high <= q,
        f"ils vont de {low} à {high}, et q = {q} sur {n_bits} bits".replace("-", "−"),
    )
    true = true_factors(W, rank, codes)
    for name, t in true.items():
        scale, received = float(t.abs().max()) / q, float(result[f"echelle_{name}"])
        yield Property(
            "chaque échelle est max|facteur|/q, facteur par facteur",
            math.isclose(scale, received, rel_tol=1e-3),
            f"celle de {name} vaut {number(received)} ; ses coefficients vont jusqu'à {number(scale * q)}, et q = {q}",
        )
    for name, t in true.items():
        pruned = smallest(t, share)
        zeros = int((codes[name][pruned] == 0).sum())
        yield Property(
            "les plus petits coefficients de chaque facteur sont annulés",
            zeros == int(pruned.sum()),
            f"{zeros} des {int(pruned.sum())} plus petits coefficients de {name} ont un code nul",
        )
    for name, t in true.items():
        exact = t / (t.abs().max() / q)
        gap = (exact - codes[name]).abs() * ~smallest(t, share)
        i, j = divmod(int(gap.argmax()), rank)
        yield Property(
            "le code de chaque coefficient gardé est l'entier le plus proche",
            bool(gap.max() < 0.5 + 0.01),
            f"en ({i}, {j}), {name} vaut {number(float(exact[i, j]))} échelles (au signe de la colonne près), et votre "
            f"code {number(float(codes[name][i, j]))}",
        )
    nonzero = sum(int((c != 0).sum()) for c in codes.values())
    numel = sum(c.numel() for c in codes.values())
    yield Property(
        "bits est la taille de ce qui est rangé",
        float(result["bits"]) == honest_bits(codes, n_bits),
        f"vous rendez {result['bits']!r} ; vos {nonzero} codes non nuls sur {n_bits} bits, {numel} bits de masque et "
        f"deux échelles de 32 bits en font {honest_bits(codes, n_bits)}",
    )


def bits_reading(result: Any, case: Case) -> str:
    """Ce que compte vraiment `bits`."""
    _, _, n_bits, share = case.args
    codes = stored_codes(result)
    numel, nonzero = (sum(int(f(c)) for c in codes.values()) for f in (torch.numel, torch.count_nonzero))
    readings = {
        "juste": n_bits * nonzero + numel + 64,
        "huit bits": 8 * nonzero + numel + 64,
        "sans masque": n_bits * nonzero + 64,
        "sans échelles": n_bits * nonzero + numel,
        "ni masque ni échelles": n_bits * nonzero,
        "zéros payés": n_bits * numel + 64,
        "zéros payés, sans échelles": n_bits * numel,
        "zéros et masque": n_bits * numel + numel + 64,
        "élagage seul": n_bits * round((1 - share) * numel) + numel + 64,
        "octets": (n_bits * nonzero + numel + 64) / 8,
    }
    return next((name for name, value in readings.items() if math.isclose(float(result["bits"]), value)), "autre")


def layer_portrait(result: Any, case: Case) -> Any:
    """La couche que ces codes calculent, insensible aux signes de la SVD, et ce que compte `bits`."""
    shapes = tuple(tuple(c.shape) for c in stored_codes(result).values())
    if shapes != tuple((size, case.args[1]) for size in case.args[0].shape):
        return shapes
    right = all(item.holds for item in list(layer_properties(result, case))[:-1])
    codes = stored_codes(result)
    layer = codes["U"] @ codes["V"].T * float(result["echelle_U"]) * float(result["echelle_V"])
    zeros = tuple(int((c == 0).sum()) for c in codes.values())
    return ("juste" if right else (layer, zeros)), bits_reading(result, case)


Pair = tuple[Tensor, Tensor]


def layer_variant(
    *,
    factorise: Callable[[Tensor, int], Pair] = factors,
    sparse: Callable[[Tensor], Tensor] | None = None,
    prune: Callable[[Pair, float], Pair] = lambda pair, share: (smallest(pair[0], share), smallest(pair[1], share)),
    quantize: Callable[[Tensor, int], tuple[Tensor, Tensor]] = to_codes,
    mask_codes: Callable[[Tensor, float], Tensor] | None = None,
    common: bool = False,
    size: Callable[[int, int, int, float], float] = lambda b, nonzero, numel, share: b * nonzero + numel + 64,
) -> Any:
    """Fonction fautive : les trois étapes, dont l'une est changée ; `size` reçoit (b, non nuls, taille, part)."""

    def wrong(W: Tensor, rank: int, n_bits: int, share: float) -> dict[str, Any]:
        if sparse is not None:
            W = W.masked_fill(smallest(W, share), 0)
        pair = factorise(W, rank)
        if sparse is None and mask_codes is None:
            masks = prune(pair, share)
            pair = pair[0].masked_fill(masks[0], 0), pair[1].masked_fill(masks[1], 0)
        if common:
            scale = to_codes(torch.cat(pair), n_bits)[1]
            quantized = [((t / scale).round(), scale) for t in pair]
        else:
            quantized = [quantize(t, n_bits) for t in pair]
        if mask_codes is not None:
            quantized = [(c.masked_fill(mask_codes(c, share), 0), scale) for c, scale in quantized]
        codes = [c for c, _ in quantized]
        nonzero, numel = sum(int((c != 0).sum()) for c in codes), sum(c.numel() for c in codes)
        values = [value for code, scale in quantized for value in (code, scale)]
        return dict(zip(KEYS, [*values, size(n_bits, nonzero, numel, share)], strict=True))

    return wrong


def course_factors(W: Tensor, rank: int) -> Pair:
    """Le code du cours : V rendue par torch.svd, prise pour Vᵀ."""
    U, S, V = torch.svd(W)
    return U[:, :rank] * S[:rank].sqrt(), V[:rank].T * S[:rank].sqrt()


def shared_s(left: float, right: float) -> Callable[[Tensor, int], Pair]:
    """Facteurs qui portent S à ces puissances, au lieu de √S chacun."""

    def factorise(W: Tensor, rank: int) -> Pair:
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
        return U[:, :rank] * S[:rank] ** left, Vh[:rank].T * S[:rank] ** right

    return factorise


def common_threshold(pair: Pair, share: float) -> Pair:
    """Les plus petits coefficients des deux facteurs réunis."""
    both = smallest(torch.cat(pair), share)
    return both[: len(pair[0])], both[len(pair[0]) :]


def at_most_kth(codes: Tensor, share: float) -> Tensor:
    """Tous les codes que le seuil atteint, ex æquo compris."""
    return codes.abs() <= codes.abs().flatten().sort().values[round(share * codes.numel()) - 1]


def wide_grid(t: Tensor, n_bits: int, clamp: bool) -> tuple[Tensor, Tensor]:
    """L'échelle max/2^(b−1), avec ou sans écrêtage."""
    half = 2 ** (n_bits - 1)
    scale = t.abs().max() / half
    codes = (t / scale).round()
    return (codes.clamp(-half, half - 1) if clamp else codes), scale


def range_scale(t: Tensor, n_bits: int) -> tuple[Tensor, Tensor]:
    """L'échelle d'une grille asymétrique, sans son point zéro."""
    scale = (t.max() - t.min()) / (2**n_bits - 1)
    return (t / scale).round().clamp(-(2 ** (n_bits - 1)), 2 ** (n_bits - 1) - 1), scale


def dequantized(t: Tensor, n_bits: int) -> tuple[Tensor, Tensor]:
    """Les facteurs déquantifiés à la place des codes."""
    codes, scale = to_codes(t, n_bits)
    return codes * scale, scale


EXERCISE_11_3 = Exercise(
    number="11.3",
    title="une couche qui combine SVD, élagage et quantification",
    cases=layer_cases,
    properties=layer_properties,
    portrait=layer_portrait,
    mistakes=(
        Mistake(
            "V pris pour Vᵀ",
            "torch.svd rend V : ses premières lignes ne sont pas les vecteurs singuliers droits (ce sont ses premières "
            "colonnes). Sur une couche large, le facteur n'a même pas n lignes. C'est la faute du cours.",
            (layer_variant(factorise=course_factors),),
        ),
        Mistake(
            "√S mal partagé",
            "chaque facteur porte √S, et leur produit vaut U S Vᵀ. Avec S d'un seul côté, le produit flottant est le "
            "même, mais ni l'élagage ni la grille ne tombent plus au même endroit.",
            (
                layer_variant(factorise=shared_s(1, 0)),
                layer_variant(factorise=shared_s(0, 1)),
                layer_variant(factorise=shared_s(0, 0)),
                layer_variant(factorise=shared_s(1, 1)),
            ),
        ),
        Mistake(
            "W élaguée avant la SVD",
            "vous annulez des coefficients de W, et la SVD les remplit aussitôt : les facteurs d'une matrice creuse ne "
            "sont pas creux. Élaguez ce que vous rangez, U et V.",
            (layer_variant(sparse=lambda W: W),),
        ),
        Mistake(
            "un seuil commun aux deux facteurs",
            "vous annulez la part demandée des deux facteurs réunis ; elle est demandée dans chacun.",
            (layer_variant(prune=common_threshold),),
        ),
        Mistake(
            "un élagage parmi les codes",
            "vous classez les codes, où les ex æquo sont nombreux : le seuil en emporte trop, ou en choisit au hasard. "
            "Classez les coefficients flottants (avant ou après l'arrondi, c'est pareil : annuler les plus petits ne "
            "change pas le plus grand, donc pas l'échelle).",
            (
                layer_variant(mask_codes=at_most_kth),
                layer_variant(mask_codes=lambda codes, share: smallest(codes + 0.0, share)),
            ),
        ),
        Mistake(
            "une grille à 2^(b−1)",
            "l'échelle est max/q avec q = 2^(b−1) − 1. Divisé par 2^(b−1), le plus grand coefficient tombe sur un code "
            "que b bits signés n'ont pas, ou que l'écrêtage rabat d'un seul côté.",
            (
                layer_variant(quantize=lambda t, b: wide_grid(t, b, clamp=True)),
                layer_variant(quantize=lambda t, b: wide_grid(t, b, clamp=False)),
            ),
        ),
        Mistake(
            "une échelle asymétrique sans point zéro",
            "(max − min)/(2^b − 1) va avec un point zéro, qui décale la grille ; sans lui, elle ne couvre pas le plus "
            "grand coefficient. Prenez max|facteur|/q.",
            (layer_variant(quantize=range_scale),),
        ),
        Mistake(
            "une échelle commune aux deux facteurs",
            "chaque facteur a son maximum, donc sa grille : une échelle commune gaspille des codes du plus petit.",
            (layer_variant(common=True),),
        ),
        Mistake(
            "les valeurs à la place des codes",
            "vous avez déjà multiplié par l'échelle : ce sont des flottants, qui pèsent 32 bits. La couche range les "
            "codes, et déquantifie quand elle sert.",
            (layer_variant(quantize=dequantized),),
        ),
        Mistake(
            "huit bits par code",
            "bits compte huit bits par code, quel que soit n_bits : c'est le type int8 du tenseur, pas ce qu'on range "
            "une fois les codes serrés.",
            (layer_variant(size=lambda b, nonzero, numel, share: 8 * nonzero + numel + 64),),
        ),
        Mistake(
            "un masque ou des échelles oubliés",
            "sans le masque, on ne sait plus où vont les codes gardés ; sans les échelles, ce ne sont que des entiers. "
            "Comptez un bit par coefficient, et deux fois 32 bits.",
            (
                layer_variant(size=lambda b, nonzero, numel, share: b * nonzero + 64),
                layer_variant(size=lambda b, nonzero, numel, share: b * nonzero + numel),
                layer_variant(size=lambda b, nonzero, numel, share: b * nonzero),
            ),
        ),
        Mistake(
            "des zéros payés",
            "vous comptez n_bits pour des codes nuls ; le masque les dit déjà. Ceux que l'arrondi annule n'ont pas à "
            "être rangés non plus, et à trois bits ils sont nombreux.",
            (
                layer_variant(size=lambda b, nonzero, numel, share: b * numel + 64),
                layer_variant(size=lambda b, nonzero, numel, share: b * numel),
                layer_variant(size=lambda b, nonzero, numel, share: b * numel + numel + 64),
                layer_variant(size=lambda b, nonzero, numel, share: b * round((1 - share) * numel) + numel + 64),
            ),
        ),
        Mistake(
            "des octets pour des bits",
            "vous rendez des octets ; la taille est demandée en bits.",
            (layer_variant(size=lambda b, nonzero, numel, share: (b * nonzero + numel + 64) / 8),),
        ),
    ),
)

# --- 11.4.1 -----------------------------------------------------------------------------------------------------------

ORDERS = ("rang_puis_bits", "bits_puis_rang", "bits_plus_residu")


def three_ways(W: Tensor, rank: int, n_bits: int) -> tuple[dict[str, tuple[float, int]], list[tuple[Tensor, int]]]:
    """L'erreur et la taille des trois réponses ; et ce qu'elles factorisent (avec le rang) ou quantifient (avec 0)."""
    W = W.double()
    small, dense = n_bits * rank * sum(W.shape) + 64, n_bits * W.numel() + 32
    first, Wq = factors(W, rank), rounded(W, n_bits)
    second, residual = factors(Wq, rank), factors(W - Wq, rank)
    products = [rounded(U, n_bits) @ rounded(V, n_bits).T for U, V in (first, second, residual)]
    products[2] = Wq + products[2]
    pairs = [(relative(W - P, W), bits) for P, bits in zip(products, (small, small, dense + small), strict=True)]
    met = [(W, rank), (Wq, rank), (W - Wq, rank), *((t, 0) for t in (W, *first, *second, *residual))]
    return dict(zip(ORDERS, pairs, strict=True)), met


def order_ratio(W: Tensor, rank: int, n_bits: int) -> float:
    """Erreur du second ordre, divisée par celle du premier."""
    answers, _ = three_ways(W, rank, n_bits)
    return answers["bits_puis_rang"][0] / answers["rang_puis_bits"][0]


def decided(W: Tensor, rank: int, n_bits: int) -> bool:
    """Vrai si ni les arrondis, ni les vecteurs singuliers ne dépendent de la précision du calcul."""
    _, met = three_ways(W, rank, n_bits)
    return all(distinct(t, r) if r else clear(t, n_bits) for t, r in met)


def order_cases(generator: torch.Generator) -> list[Case]:
    """Une matrice à trois et à huit bits ; une large, à quatre bits, avec un poids aberrant ; une carrée."""
    cases = []
    for shape, all_bits in (("haute", (3, 8)), ("aberrante", (4,)), ("carrée", (3,))):
        while True:
            p, rank = integer(generator, 14, 18), integer(generator, 3, 4)
            q = p if shape == "carrée" else p + integer(generator, 3, 8)
            W = matrix(generator, *((p, q) if shape == "aberrante" else (q, p)), uniform(generator, 0.9, 1.2))
            if shape == "aberrante":
                W[integer(generator, 0, p - 1), integer(generator, 0, q - 1)] = 3 * W.abs().max()
            ratios = {n_bits: order_ratio(W, rank, n_bits) for n_bits in all_bits}
            telling = all(ratio < 1.01 if n_bits == 8 else ratio > 1.05 for n_bits, ratio in ratios.items())
            if shape == "haute":  # une estimation de l'erreur n'y suffit pas
                measured = three_ways(W, rank, 3)[0]["rang_puis_bits"][0]
                telling = telling and abs(added_errors(math.hypot)(W.double(), rank, 3) - measured) > 0.01 * measured
            if telling and all(decided(W, rank, n_bits) for n_bits in all_bits):
                break
        strange = ", un poids aberrant" if shape == "aberrante" else ""
        label = f"W {W.shape[0]}×{W.shape[1]}{strange}, rang = {rank}"
        cases += [Case(f"{label}, n_bits = {n_bits}", (W, rank, n_bits)) for n_bits in all_bits]
    return cases


def order_pairs(result: Any) -> dict[str, tuple[float, float]]:
    """Un couple (erreur, bits) par réponse."""
    found = {}
    for name in ORDERS:
        error, bits = result[name]
        found[name] = float(error), float(bits)
    return found


def order_properties(result: Any, case: Case) -> Iterable[Property]:
    """Les trois réponses, refaites en float64."""
    W, rank, n_bits = case.args
    try:
        found = order_pairs(result) if isinstance(result, Mapping) and set(result) == set(ORDERS) else {}
    except (TypeError, ValueError):
        found = {}
    text = "le résultat est un dictionnaire de trois couples (erreur, bits)"
    wanted = "attendu les clés rang_puis_bits, bits_puis_rang et bits_plus_residu, et deux nombres pour chacune"
    yield Property(text, bool(found), f"reçu {result!r}, {wanted}")
    if not found:
        return
    true, _ = three_ways(W, rank, n_bits)
    made = {
        "rang_puis_bits": "les facteurs de W, quantifiés",
        "bits_puis_rang": "les facteurs de la matrice quantifiée, quantifiés à leur tour",
        "bits_plus_residu": "la matrice quantifiée plus les facteurs quantifiés de ce qui manque",
    }
    for name, what in made.items():
        error, right = found[name][0], true[name][0]
        yield Property(
            f"{name} : l'erreur est juste",
            math.isclose(error, right, rel_tol=3e-3),
            f"vous trouvez {number(error)} ; {what}, sont à {number(right)} de W, en relatif",
        )
    small, dense = rank * sum(W.shape), W.numel()
    counted = {
        "rang_puis_bits": f"{small} codes et deux échelles",
        "bits_puis_rang": f"{small} codes et deux échelles (ce sont encore des facteurs)",
        "bits_plus_residu": f"{dense} + {small} codes et trois échelles",
    }
    for name, what in counted.items():
        bits, right = found[name][1], true[name][1]
        yield Property(
            f"{name} : la taille est juste",
            math.isclose(bits, right, rel_tol=1e-9),
            f"vous comptez {bits:.0f} bits ; {what} en font {right}",
        )


def order_matters_at_low_precision(cases: Sequence[Case], results: Sequence[Any]) -> Iterable[Property]:
    """Les deux premières instances ont la même matrice et le même rang."""
    low, high = (order_pairs(result) for result in results[:2])
    ratios = [pairs["bits_puis_rang"][0] / pairs["rang_puis_bits"][0] for pairs in (low, high)]
    yield Property(
        "vos nombres le montrent : à trois bits l'ordre compte, à huit il ne compte presque plus",
        ratios[0] > 1.04 and ratios[1] < 1.02,
        f"erreur du second ordre sur celle du premier : {number(ratios[0])} à trois bits, {number(ratios[1])} à huit",
    )


def measured_error(W: Tensor, product: Tensor) -> float:
    """L'erreur relative, que les fautes mesurent ou non ainsi."""
    return relative(W - product, W)


def order_variant(
    *,
    factorise: Callable[[Tensor, int], Pair] = factors,
    quantize: Callable[[Tensor, int], Tensor] = rounded,
    error: Callable[[Tensor, Tensor], float] = measured_error,
    second: Callable[[Tensor, Tensor, int, int], Tensor] | None = None,
    second_error: Callable[[Tensor, Tensor, Tensor], float] | None = None,
    first_error: Callable[[Tensor, int, int], float] | None = None,
    third: Callable[[Tensor, int, int], Tensor] | None = None,
    dense: bool = False,
    size: Callable[[int, int, int], tuple[float, float, float]] = lambda b, small, full: (
        b * small + 64,
        b * small + 64,
        b * (small + full) + 96,
    ),
) -> Any:
    """Fonction fautive : les trois réponses, dont quelque chose est changé."""

    def wrong(W: Tensor, rank: int, n_bits: int) -> dict[str, tuple[float, float]]:
        def compressed(M: Tensor) -> Tensor:
            U, V = factorise(M, rank)
            return quantize(U @ V.T, n_bits) if dense else quantize(U, n_bits) @ quantize(V, n_bits).T

        Wq = quantize(W, n_bits)
        B = compressed(Wq) if second is None else second(W, Wq, rank, n_bits)
        C = Wq + compressed(W - Wq) if third is None else third(W, rank, n_bits)
        errors = (
            error(W, compressed(W)) if first_error is None else first_error(W, rank, n_bits),
            error(W, B) if second_error is None else second_error(W, Wq, B),
            error(W, C),
        )
        sizes = size(n_bits, rank * sum(W.shape), W.numel())
        return dict(zip(ORDERS, zip(errors, sizes, strict=True), strict=True))

    return wrong


def added_errors(combine: Callable[[float, float], float]) -> Callable[[Tensor, int, int], float]:
    """L'erreur de la troncature et celle de la quantification, réunies au lieu d'être mesurées."""

    def first_error(W: Tensor, rank: int, n_bits: int) -> float:
        U, V = factors(W, rank)
        truncated = U @ V.T
        return combine(relative(W - truncated, W), relative(truncated - rounded(U, n_bits) @ rounded(V, n_bits).T, W))

    return first_error


def float_product(M: Tensor, rank: int) -> Tensor:
    """La SVD tronquée, sans quantification."""
    U, V = factors(M, rank)
    return U @ V.T


def residual_of_the_rank(W: Tensor, rank: int, n_bits: int) -> Tensor:
    """L'autre sens : la matrice moins ses facteurs quantifiés, quantifiée."""
    U, V = (rounded(t, n_bits) for t in factors(W, rank))
    return U @ V.T + rounded(W - U @ V.T, n_bits)


def float_residual(W: Tensor, rank: int, n_bits: int) -> Tensor:
    """Le résidu laissé en flottants."""
    Wq = rounded(W, n_bits)
    return Wq + float_product(W - Wq, rank)


def grid_of(codes_and_scale: Callable[[Tensor, int], tuple[Tensor, Tensor]]) -> Callable[[Tensor, int], Tensor]:
    """Aller à une autre grille, et en revenir."""

    def quantize(t: Tensor, n_bits: int) -> Tensor:
        codes, scale = codes_and_scale(t, n_bits)
        return codes * scale

    return quantize


EXERCISE_11_4_1 = Exercise(
    number="11.4.1",
    title="rang faible puis quantification, ou l'inverse",
    cases=order_cases,
    properties=order_properties,
    across=order_matters_at_low_precision,
    signature=order_pairs,
    mistakes=(
        Mistake(
            "le second ordre laissé en flottants",
            "la SVD de la matrice quantifiée rend des flottants : ces facteurs-là pèsent 32 bits par nombre, et la "
            "comparaison n'est plus à taille égale. Quantifiez-les à leur tour.",
            (
                order_variant(second=lambda W, Wq, rank, b: float_product(Wq, rank)),
                order_variant(
                    second=lambda W, Wq, rank, b: float_product(Wq, rank),
                    size=lambda b, small, full: (b * small + 64, 32 * small, b * (small + full) + 96),
                ),
            ),
        ),
        Mistake(
            "le résidu laissé en flottants",
            "les facteurs du résidu se rangent aussi : quantifiez-les sur n_bits bits.",
            (order_variant(third=float_residual),),
        ),
        Mistake(
            "l'erreur mesurée contre la matrice quantifiée",
            "dans le second ordre, vous comparez à la matrice déjà quantifiée ; ce que le réseau perd se mesure contre "
            "W.",
            (
                order_variant(second_error=lambda W, Wq, B: relative(Wq - B, Wq)),
                order_variant(second_error=lambda W, Wq, B: relative(Wq - B, W)),
            ),
        ),
        Mistake(
            "le produit quantifié au lieu des facteurs",
            "vous quantifiez U Vᵀ, une matrice de mn nombres : il n'y a plus de rang faible à ranger. Quantifiez U et "
            "V, puis multipliez.",
            (order_variant(dense=True),),
        ),
        Mistake(
            "des erreurs ajoutées",
            "vous réunissez l'erreur de la troncature et celle de la quantification ; leur somme est une borne, leur "
            "somme en quadrature une estimation. Mesurez ‖W − Ŵ‖ sur ce qui est rangé.",
            (
                order_variant(first_error=added_errors(lambda a, b: a + b)),
                order_variant(first_error=added_errors(math.hypot)),
            ),
        ),
        Mistake(
            "le résidu de l'autre sens",
            "vous quantifiez ce que les facteurs ont laissé. La méthode existe, et vaut d'être essayée ; l'énoncé "
            "demande l'inverse : W quantifiée d'abord, et des facteurs pour ce qui manque.",
            (order_variant(third=residual_of_the_rank),),
        ),
        Mistake(
            "une grille à 2^(b−1)",
            "l'échelle est max/q avec q = 2^(b−1) − 1 ; divisé par 2^(b−1), le plus grand coefficient tombe sur un "
            "code que b bits signés n'ont pas, ou que l'écrêtage rabat d'un seul côté.",
            (
                order_variant(quantize=grid_of(lambda t, b: wide_grid(t, b, clamp=True))),
                order_variant(quantize=grid_of(lambda t, b: wide_grid(t, b, clamp=False))),
            ),
        ),
        Mistake(
            "V pris pour Vᵀ",
            "torch.svd rend V : ses premières lignes ne sont pas les vecteurs singuliers droits. Sur une couche large, "
            "le produit n'a même pas la bonne forme. C'est la faute du cours.",
            (order_variant(factorise=course_factors),),
        ),
        Mistake(
            "√S mal partagé",
            "l'énoncé demande des facteurs équilibrés, √S de chaque côté. Avec S d'un seul côté, le produit flottant "
            "est le même, mais pas ce que la grille en garde.",
            (
                order_variant(factorise=shared_s(1, 0)),
                order_variant(factorise=shared_s(0, 1)),
                order_variant(factorise=shared_s(1, 1)),
            ),
        ),
        Mistake(
            "une erreur au carré",
            "vous rendez ‖E‖²/‖W‖², la part d'énergie perdue ; l'erreur relative en est la racine.",
            (order_variant(error=lambda W, P: relative(W - P, W) ** 2),),
        ),
        Mistake(
            "une erreur absolue",
            "vous rendez ‖E‖ ; divisez par ‖W‖.",
            (order_variant(error=lambda W, P: float((W - P).norm())),),
        ),
        Mistake(
            "une taille qui oublie les bits, les échelles ou W",
            "vos erreurs sont justes, pas vos tailles : n_bits bits par code (et non huit), 32 par échelle, et la "
            "troisième réponse range W quantifiée en plus de ses facteurs.",
            (
                order_variant(size=lambda b, small, full: (8 * small + 64, 8 * small + 64, 8 * (small + full) + 96)),
                order_variant(size=lambda b, small, full: (8 * small, 8 * small, 8 * (small + full))),
                order_variant(size=lambda b, small, full: (b * small, b * small, b * (small + full))),
                order_variant(size=lambda b, small, full: (b * small + 64, b * full + 32, b * (small + full) + 96)),
                order_variant(size=lambda b, small, full: (b * small + 64, b * small + 64, b * small + 64)),
                order_variant(size=lambda b, small, full: (b * small + 64, b * small + 64, b * full + 32)),
            ),
        ),
    ),
)

# --- 11.4.2 -----------------------------------------------------------------------------------------------------------

ENOUGH = 0.8  # part de l'erreur de PTQ que QAT doit atteindre à deux et trois bits


def trained_factors(generator: torch.Generator, m: int, n: int, rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Les meilleurs facteurs d'une couche dense pour ses entrées, ces entrées, en peu de directions, et ses sorties.

    L'arrondi a alors du jeu : bien choisi, ce qu'il change dans V ne se voit pas de ces entrées.
    """
    Q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
    x = torch.randn(200, n, generator=generator, dtype=torch.float64) * torch.arange(1, n + 1) ** -2.0 @ Q.T
    x = x / x.square().mean().sqrt()
    W = torch.randn(m, n, generator=generator, dtype=torch.float64) / math.sqrt(n)
    y = x @ W.T
    P = torch.linalg.svd(y, full_matrices=False).Vh[:rank].T  # (m, r) : les sorties que le rang r garde
    U, V = factors(P @ (P.T @ W), rank)
    return U.float(), V.float(), x.float(), y.float()


def qat_cases(generator: torch.Generator) -> list[Case]:
    """Deux et trois bits, où il y a à gagner, et huit, où il n'y a presque rien."""
    torch.optim.SGD(
        [torch.zeros(1)], lr=0.1
    )  # le premier optimiseur charge torch._dynamo : pas sur le temps du lecteur
    cases = []
    for n_bits in (2, 3, 8):
        while True:
            m, n, rank = integer(generator, 10, 14), integer(generator, 40, 46), 8
            U, V, x, y = trained_factors(generator, m, n, rank)
            if all(clear(t.double(), n_bits) for t in (U, V)):
                break
        label = f"U {m}×{rank}, V {n}×{rank}, {len(x)} exemples, n_bits = {n_bits}"
        cases.append(Case(label, (U, V, x, y, n_bits)))
    return cases


def output_error(U: Tensor, V: Tensor, x: Tensor, y: Tensor) -> float:
    """‖x V Uᵀ − y‖/‖y‖, en float64."""
    U, V, x, y = (t.detach().double() for t in (U, V, x, y))
    return relative(x @ V @ U.T - y, y)


def on_grid(t: Tensor, q: int) -> bool:
    """Vrai si `t` est un multiple entier, de −q à q, d'une même échelle, quelle qu'elle soit."""
    t = t.detach().double()
    peak = t.abs().max()
    if peak == 0:
        return True
    codes = [t / peak * k for k in range(1, q + 1)]
    return any(bool((c - c.round()).abs().max() < 1e-3) for c in codes)


def grid_reading(t: Tensor, n_bits: int) -> str:
    """Où tombent les coefficients d'un facteur."""
    q = largest_code(n_bits)
    if on_grid(t, q):
        return "grille"
    if on_grid(t, q + 1):
        return "un code de trop"
    if all(on_grid(row, q) for row in t) or all(on_grid(column, q) for column in t.T):
        return "plusieurs échelles"
    return "flottants"


def error_reading(value: float, U: Tensor, V: Tensor, case: Case) -> str:
    """Ce que mesure vraiment une erreur rendue pour ces facteurs."""
    _, _, x, y, _ = case.args
    right, norm = output_error(U, V, x, y), float(y.double().norm())
    readings = {"juste": right, "carré": right**2, "absolue": right * norm, "moyenne": (right * norm) ** 2 / y.numel()}
    return next((name for name, v in readings.items() if math.isclose(value, v, rel_tol=2e-3, abs_tol=1e-5)), "autre")


def ptq_factors(case: Case) -> tuple[Tensor, Tensor]:
    """Les facteurs reçus, arrondis sans apprentissage."""
    U, V, _, _, n_bits = case.args
    return rounded(U.double(), n_bits), rounded(V.double(), n_bits)


def changed(t: Tensor, start: Tensor, n_bits: int) -> float:
    """Part des codes de `t` qui ne sont pas l'arrondi de `start`, à l'échelle de `t`, quelle qu'elle soit."""
    q, t, start = largest_code(n_bits), t.detach().double(), start.double()
    steps = [t.abs().max() / k for k in range(1, q + 1)]
    steps = [step for step in steps if step > 0 and (t / step - (t / step).round()).abs().max() < 1e-3]
    gaps = [(t / step).round() != (start / step).round().clamp(-q, q) for step in steps]
    return min((float(gap.double().mean()) for gap in gaps), default=1.0)


def learning_reading(U: Tensor, V: Tensor, case: Case) -> str:
    """Ce que l'apprentissage a fait des facteurs ; sans gradient à travers l'arrondi, l'échelle bouge encore."""
    U0, V0, x, y, n_bits = case.args
    ratio = output_error(U, V, x, y) / output_error(*ptq_factors(case), x, y)
    if n_bits > 3:  # presque rien à gagner : seul compte de ne rien perdre
        return "pire" if ratio > 1.001 else "aussi bien"
    moved = changed(U, U0, n_bits), changed(V, V0, n_bits)
    if max(moved) < 0.04 and (min(moved) == 0 or ratio > 0.6):
        return "figés"
    if min(moved) == 0:
        return "un seul facteur"
    return "gagné" if ratio <= 0.6 else "à peine"


def qat_portrait(result: Any, case: Case) -> Any:
    """Ce qui, dans un apprentissage, ne dépend ni de la méthode, ni de sa patience."""
    U, V, ptq, qat = result
    U, V = U.detach(), V.detach()
    shapes = tuple(U.shape), tuple(V.shape)
    if shapes != tuple(tuple(t.shape) for t in case.args[:2]):
        return shapes
    grids = {grid_reading(t, case.args[-1]) for t in (U, V)} - {"grille"}
    if grids:
        return tuple(sorted(grids))
    readings = error_reading(float(ptq), *ptq_factors(case), case), error_reading(float(qat), U, V, case)
    return learning_reading(U, V, case), *readings


def qat_properties(result: Any, case: Case) -> Iterable[Property]:
    """PTQ est refait ici ; QAT est jugé sur les facteurs rendus, d'où qu'ils viennent."""
    U0, V0, x, y, n_bits = case.args
    valid = isinstance(result, tuple | list) and len(result) == 4 and all(isinstance(t, Tensor) for t in result[:2])
    received = f"{len(result)} valeur(s)" if isinstance(result, tuple | list) else type(result).__name__
    text = "le résultat est (U, V, erreur_ptq, erreur_qat), U et V étant des tenseurs"
    yield Property(text, valid, f"reçu {received}")
    if not valid:
        return
    U, V = result[0].detach(), result[1].detach()
    ptq, qat = float(result[2]), float(result[3])
    right = U.shape == U0.shape and V.shape == V0.shape
    why = f"reçu U {tuple(U.shape)} et V {tuple(V.shape)}, attendu {tuple(U0.shape)} et {tuple(V0.shape)}"
    yield Property("U et V ont les formes des facteurs reçus", right, why)
    if not right:
        return
    finite = bool(U.isfinite().all() and V.isfinite().all())
    yield Property("U et V sont finis", finite, "ils contiennent nan ou inf : le pas est trop grand")
    if not finite:
        return
    P, Q = ptq_factors(case)
    true_ptq, true_qat, q = output_error(P, Q, x, y), output_error(U, V, x, y), largest_code(n_bits)
    yield Property(
        "erreur_ptq est celle des facteurs reçus, quantifiés sans apprentissage",
        math.isclose(ptq, true_ptq, rel_tol=2e-3),
        f"vous trouvez {number(ptq)} ; arrondis à l'échelle max|facteur|/{q}, ils laissent une erreur de sortie de "
        f"{number(true_ptq)}",
    )
    where = {"U": grid_reading(U, n_bits), "V": grid_reading(V, n_bits)}
    said = {
        "flottants": "ses coefficients ne sont pas les multiples entiers d'une même échelle : quantifiez avant de "
        "rendre",
        "un code de trop": f"il lui faut un code de {q + 1} : la grille va de −{q} à {q}".replace("-", "−"),
        "plusieurs échelles": "il lui faut plusieurs échelles, par ligne ou par colonne ; il n'en a qu'une",
    }
    for name, reading in where.items():
        why = f"pas {name} : {said.get(reading, '')}"
        yield Property("U et V sont chacun sur une grille de −q à q, à une seule échelle", reading == "grille", why)
    if set(where.values()) != {"grille"}:
        return
    yield Property(
        "erreur_qat est celle des facteurs rendus",
        math.isclose(qat, true_qat, rel_tol=2e-3, abs_tol=1e-5),
        f"vous annoncez {number(qat)}, et les facteurs que vous rendez laissent {number(true_qat)}",
    )
    yield Property(
        "QAT ne fait jamais pire que PTQ",
        true_qat <= 1.001 * true_ptq,
        f"{number(true_qat)} contre {number(true_ptq)} : l'apprentissage oscille d'un code à l'autre ; gardez les "
        "meilleurs facteurs vus en chemin, ceux de PTQ compris",
    )
    still = [name for name, t, start in (("U", U, U0), ("V", V, V0)) if changed(t, start, n_bits) == 0]
    yield Property(
        "à deux et trois bits, les codes des deux facteurs ont appris",
        n_bits > 3 or not still,
        f"{' et '.join(still)} : pas un code n'a changé ; ce sont ceux du facteur reçu, arrondi à cette échelle",
    )
    yield Property(
        "à deux et trois bits, QAT ôte au moins un cinquième de l'erreur",
        n_bits > 3 or true_qat <= ENOUGH * true_ptq,
        f"{number(true_qat)} après l'apprentissage, {number(true_ptq)} avant : plus de pas, ou un pas d'une autre "
        "grandeur (une petite fraction de l'échelle)",
    )


def gain_vanishes(cases: Sequence[Case], results: Sequence[Any]) -> Iterable[Property]:
    """Les instances vont de peu de bits à beaucoup."""
    left = {case.args[-1]: float(result[2]) - float(result[3]) for case, result in zip(cases, results, strict=True)}
    yield Property(
        "vos nombres le montrent : QAT gagne beaucoup à deux bits, et presque rien à huit",
        left[2] > 5 * left[8],
        f"gain d'erreur : {number(left[2])} à deux bits, {number(left[8])} à huit",
    )


def through(t: Tensor, n_bits: int) -> Tensor:
    """`t` quantifié à l'aller ; au retour, l'arrondi est l'identité."""
    scale = t.abs().max() / largest_code(n_bits)
    codes = t / scale
    return (codes + (codes.round() - codes).detach()) * scale


def learned(U: Tensor, V: Tensor, x: Tensor, y: Tensor, n_bits: int) -> tuple[Tensor, Tensor]:
    """QAT par Adam, en gardant le meilleur : ce que les fautes font bien par ailleurs."""
    u, v = U.clone().requires_grad_(), V.clone().requires_grad_()
    optimizer = torch.optim.Adam([u, v], lr=0.01)
    best = math.inf, U, V
    for _ in range(150):
        a, b = through(u, n_bits), through(v, n_bits)
        loss = (x @ b @ a.T - y).square().mean()
        if loss.item() < best[0]:
            best = loss.item(), a.detach(), b.detach()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return best[1:]


Answer = tuple[Tensor, Tensor, float, float]


def qat_variant(
    change: Callable[..., tuple[Tensor, Tensor]],
    learn: bool = False,
    report: Callable[[float, Tensor], float] = lambda error, y: error,
    announce: float = 1,
) -> Any:
    """Fonction fautive : `change` rend les facteurs.

    Elle reçoit ceux de PTQ (ou, si `learn`, d'un bon apprentissage), ceux de départ, et n_bits ; `report` transforme
    les deux erreurs, et `announce` multiplie la seconde.
    """

    def wrong(U: Tensor, V: Tensor, x: Tensor, y: Tensor, n_bits: int) -> Answer:
        P, Q = rounded(U, n_bits), rounded(V, n_bits)
        A, B = change(*(learned(U, V, x, y, n_bits) if learn else (P, Q)), U, V, n_bits)
        shaped = A.shape == U.shape and B.shape == V.shape
        qat = output_error(A, B, x, y) if shaped else 1.0
        return A, B, report(output_error(P, Q, x, y), y), announce * report(qat, y)

    return wrong


def each(quantize: Callable[[Tensor, int], Tensor]) -> Any:
    """Fonction fautive : les facteurs reçus, passés par `quantize`."""
    return qat_variant(lambda A, B, U, V, n_bits: (quantize(U, n_bits), quantize(V, n_bits)))


def per_row(t: Tensor, n_bits: int) -> Tensor:
    """Une échelle par ligne."""
    scale = t.abs().amax(1, keepdim=True) / largest_code(n_bits)
    return (t / scale).round() * scale


def learned_alone(learned: Tensor, start: Tensor, n_bits: int) -> Tensor:
    """Un facteur appris, à peu de bits ; à huit, sans l'autre, il ferait pire que PTQ."""
    return learned if n_bits <= 3 else rounded(start, n_bits)


def learned_report(report: Callable[[float, Tensor], float]) -> Any:
    """Fonction fautive : de bons facteurs, et `report` à la place de leur erreur."""
    return qat_variant(lambda A, B, U, V, n_bits: (A, B), learn=True, report=report)


def moved(t: Tensor, n_bits: int) -> Tensor:
    """L'arrondi de `t` déplacé au hasard, ou presque, de moins d'un code."""
    scale = to_codes(t, n_bits)[1]
    return rounded(t + 0.6 * scale * torch.arange(t.numel()).sin().view(t.shape), n_bits)


def float_training(still: bool, worse: bool) -> Any:
    """Fonction fautive : l'arrondi d'autres facteurs flottants ; `still` à deux bits, rien ne bouge ; à huit, pire."""

    def change(A: Tensor, B: Tensor, U: Tensor, V: Tensor, n_bits: int) -> tuple[Tensor, Tensor]:
        if n_bits > 3:
            return (1.05 * A, B) if worse else (A, B)
        return (A, B) if n_bits == 2 and still else (moved(U, n_bits), moved(V, n_bits))

    return qat_variant(change)


def last_step(A: Tensor, B: Tensor, U: Tensor, V: Tensor, n_bits: int) -> tuple[Tensor, Tensor]:
    """Bon à peu de bits ; à huit, plus loin que le départ."""
    return (A, B) if n_bits <= 3 else (1.05 * A, B)


EXERCISE_11_4_2 = Exercise(
    number="11.4.2",
    title="QAT contre PTQ pour un modèle de rang faible",
    cases=qat_cases,
    properties=qat_properties,
    across=gain_vanishes,
    portrait=qat_portrait,
    mistakes=(
        Mistake(
            "aucun gradient à travers l'arrondi",
            "vos codes sont ceux des facteurs reçus, ou presque : la dérivée de round est nulle, et seule l'échelle a "
            "pu bouger. Faites comme si l'arrondi était l'identité au retour : t + (arrondi(t) − t).detach(). Si c'est "
            "déjà le cas, votre pas est trop petit pour changer un code, ou si grand que rien ne bat le départ.",
            (qat_variant(lambda A, B, U, V, n_bits: (A, B)),),
        ),
        Mistake(
            "l'arrondi hors de la boucle",
            "vos codes ont changé, et l'erreur n'y gagne rien : ils n'ont pas été choisis pour elle. La perte est sans "
            "doute calculée sur les facteurs flottants, déjà les meilleurs, et l'arrondi n'arrive qu'à la fin. "
            "Quantifiez à chaque pas, avant de calculer la perte.",
            tuple(float_training(still, worse) for still in (True, False) for worse in (True, False)),
        ),
        Mistake(
            "la quantification finale oubliée",
            "vous rendez les facteurs flottants que l'optimiseur promène ; ce qui se range, c'est leur arrondi.",
            (qat_variant(lambda A, B, U, V, n_bits: (U, V)),),
        ),
        Mistake(
            "un seul facteur appris",
            "l'un des facteurs est resté à son arrondi de départ : donnez les deux à l'optimiseur, et quantifiez les "
            "deux dans la boucle.",
            (
                qat_variant(lambda A, B, U, V, n_bits: (learned_alone(A, U, n_bits), rounded(V, n_bits)), learn=True),
                qat_variant(lambda A, B, U, V, n_bits: (rounded(U, n_bits), learned_alone(B, V, n_bits)), learn=True),
            ),
        ),
        Mistake(
            "le dernier pas plutôt que le meilleur",
            "à peu de bits vous gagnez, mais à huit, où il n'y avait presque rien à gagner, vous finissez plus loin "
            "que PTQ : autour d'un demi-code, chaque pas fait sauter des coefficients. Gardez les meilleurs facteurs.",
            (qat_variant(last_step, learn=True), qat_variant(last_step, learn=True, announce=0.9)),
        ),
        Mistake(
            "une grille à 2^(b−1)",
            "q vaut 2^(b−1) − 1 : à deux bits, trois niveaux, −1, 0 et 1. Avec 2^(b−1), il en faut un de plus.",
            (
                each(grid_of(lambda t, b: wide_grid(t, b, clamp=True))),
                each(grid_of(lambda t, b: wide_grid(t, b, clamp=False))),
            ),
        ),
        Mistake(
            "plusieurs échelles par facteur",
            "vous quantifiez par ligne ou par colonne. C'est souvent une bonne idée, qui se paie d'autant d'échelles ; "
            "l'énoncé n'en donne qu'une par facteur.",
            (
                each(per_row),
                each(lambda t, b: per_row(t.T, b).T),
            ),
        ),
        Mistake(
            "une erreur qui n'est pas celle des facteurs rendus",
            "vos facteurs ont appris, mais l'erreur annoncée est celle d'autres : les flottants de l'optimiseur, ou "
            "ceux d'un autre pas. Mesurez ce que vous rendez.",
            (qat_variant(lambda A, B, U, V, n_bits: (A, B), learn=True, announce=0.9),),
        ),
        Mistake(
            "une perte à la place de l'erreur",
            "vous rendez une erreur au carré, ou une moyenne de carrés ; l'énoncé demande ‖xVUᵀ − y‖/‖y‖.",
            (
                learned_report(lambda error, y: error**2),
                learned_report(lambda error, y: error * float(y.norm())),
                learned_report(lambda error, y: error**2 * float(y.square().mean())),
            ),
        ),
        Mistake(
            "U et V échangés, ou transposés",
            "rendez U et V aux formes reçues, (m, r) et (n, r), dans cet ordre.",
            (
                qat_variant(lambda A, B, U, V, n_bits: (B, A)),
                qat_variant(lambda A, B, U, V, n_bits: (A, B.T)),
            ),
        ),
    ),
)
