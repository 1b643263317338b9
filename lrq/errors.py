"""Section 11.5 : les erreurs d'approximation, prédites par la théorie et mesurées, d'une matrice à un réseau.

Partout, E = W − Ŵ est l'écart des poids. Sa norme de Frobenius compte tous les coefficients ; sa norme spectrale,
σ₁(E), ce que la couche peut faire de pire à une entrée.
"""

import math
from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .layers import inside
from .quantizers import Granularity, UniformQuantizer
from .spectrum import analyze_svd_approximation_error
from .svd import norm, relative, share_singular_values, singular_values, working_dtype
from .validation import (
    check_bits,
    check_finite_number,
    check_input,
    check_matrix,
    check_rank,
    check_ranks,
    check_spectrum,
    is_finite,
)

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]


# --- une matrice ------------------------------------------------------------------------------------------------------


class ApproximationErrorAnalysis:
    """L'erreur de la SVD tronquée : celle que prédit Eckart–Young, et celle que l'on mesure (section 11.5)."""

    @staticmethod
    def svd_reconstruction_error(W: Tensor, rank: int) -> dict[str, Any]:
        """Reconstruit W au rang r, mesure l'erreur, et la compare à √(Σ_{i>r} σᵢ²).

        Parameters
        ----------
        W : Tensor, (m, n)
        rank : int, entre 1 et min(m, n)

        Returns
        -------
        dict
            ``empirical_frobenius`` et ``theoretical_frobenius``, ‖W − W_r‖ mesurée et prédite ;
            ``empirical_relative`` et ``theoretical_relative``, les mêmes divisées par ‖W‖ ; en plus du cours,
            ``empirical_spectral`` et ``theoretical_spectral``, la norme spectrale de l'écart et σ_{r+1} ;
            ``singular_values``, un tenseur (min(m, n),).
        """
        W = check_matrix(W)
        rank = check_rank(rank, *W.shape)
        x = W.to(working_dtype(W))
        U, S, Vh = torch.linalg.svd(x, full_matrices=False)  # (m, p), (p,), (p, n)
        difference = x - (U[:, :rank] * S[:rank]) @ Vh[:rank]  # (m, n)
        empirical, theoretical, size = norm(difference), norm(S[rank:]), norm(x)
        return {
            "empirical_frobenius": empirical,
            "empirical_relative": relative(empirical, size),
            "theoretical_frobenius": theoretical,
            "theoretical_relative": relative(theoretical, size),
            "empirical_spectral": float(singular_values(difference)[0]),
            "theoretical_spectral": float(S[rank]) if rank < len(S) else 0.0,
            "singular_values": S,
        }

    @staticmethod
    def analyze_error_vs_rank(W: Tensor, max_rank: int | None = None) -> list[dict[str, float]]:
        """L'erreur, l'énergie et la taille à chaque rang, pour le prix des seules valeurs singulières.

        Parameters
        ----------
        W : Tensor, (m, n)
        max_rank : int, optionnel
            Le dernier rang analysé ; min(m, n) par défaut.

        Returns
        -------
        list de dict
            Un par rang : ``rank``, ``relative_error`` (Frobenius), ``energy_captured``, ``compression_ratio``
            (mn/(r(m + n)), au-dessous de 1 quand les facteurs pèsent plus que W).
        """
        rows = analyze_svd_approximation_error(W, max_rank)
        m, n = W.shape
        return [
            {
                "rank": row["rank"],
                "relative_error": row["error"],
                "energy_captured": row["energy"],
                "compression_ratio": m * n / (row["rank"] * (m + n)),
            }
            for row in rows
        ]


def compression_error_tradeoff(
    W: Tensor,
    rank_range: Sequence[int] | None = None,
    n_bits_range: Sequence[int] = [4, 6, 8],
    granularity: Granularity | None = None,
) -> list[dict[str, float]]:
    """Tronquer au rang r, arrondir les facteurs équilibrés sur b bits : l'erreur et la taille de chaque paire.

    Une seule SVD sert à toutes les paires.

    Parameters
    ----------
    W : Tensor, (m, n)
    rank_range : list d'int, optionnel
        Par défaut, les puissances de deux jusqu'à min(m, n).
    n_bits_range : list d'int, entre 1 et 8
    granularity : PerTensor, PerChannel ou PerGroup, optionnel
        Qui partage une échelle dans un facteur ; par défaut, tout le facteur.

    Returns
    -------
    list de dict
        Un par paire : ``rank``, ``n_bits`` ; ``svd_error``, ``quant_error``, ``estimated_combined``,
        ``actual_combined``, comme :func:`combined_error_analysis` ; ``compression_ratio``, les octets de W divisés par
        ceux des codes et des échelles ; ``optimal``, vrai si aucune autre paire n'est plus fidèle sans être plus
        lourde, ni plus légère sans être moins fidèle (le front de Pareto).

    Raises
    ------
    TypeError, ValueError
        Matrice, rangs ou bits impossibles ; aucun nombre de bits.
    """
    W = check_matrix(W)
    ranks = (
        powers_of_two(min(W.shape))
        if rank_range is None
        else check_ranks(rank_range, W.shape[0], W.shape[1], "rank_range")
    )
    if not isinstance(n_bits_range, Sequence) or isinstance(n_bits_range, str) or len(n_bits_range) == 0:
        raise ValueError(f"n_bits_range : reçu {n_bits_range!r}, attendu une liste non vide de nombres de bits.")
    bits = [check_bits(n_bits, f"n_bits_range[{i}]") for i, n_bits in enumerate(n_bits_range)]
    x = W.to(working_dtype(W))
    U, V = share_singular_values(*torch.linalg.svd(x, full_matrices=False))  # (m, p), (n, p)
    size, rows = norm(x), []
    for rank in ranks:
        U_r, V_r = U[:, :rank].contiguous(), V[:, :rank].contiguous()
        truncated = U_r @ V_r.T  # (m, n)
        svd_error = relative(norm(x - truncated), size)
        for n_bits in bits:
            quantizer = UniformQuantizer(n_bits, granularity=granularity)
            packed = [quantizer.compress(factor) for factor in (U_r, V_r)]
            rounded = packed[0].dequantize() @ packed[1].dequantize().T  # (m, n)
            quant_error = relative(norm(truncated - rounded), size)
            rows.append(
                {
                    "rank": rank,
                    "n_bits": n_bits,
                    "svd_error": svd_error,
                    "quant_error": quant_error,
                    "estimated_combined": math.hypot(svd_error, quant_error),
                    "actual_combined": relative(norm(x - rounded), size),
                    "compression_ratio": W.nbytes / sum(factor.nbytes() for factor in packed),
                }
            )
    errors = [row["actual_combined"] for row in rows]
    sizes = [1 / row["compression_ratio"] for row in rows]
    front = {(errors[i], sizes[i]) for i in pareto_front(errors, sizes)}
    for row, error, size in zip(rows, errors, sizes, strict=True):
        row["optimal"] = (error, size) in front
    return rows


def combined_error_analysis(
    W: Tensor, rank: int, n_bits: int, granularity: Granularity | None = None
) -> dict[str, float]:
    """Les deux erreurs d'une couche de rang r à b bits, leur total prédit et leur total mesuré (section 11.5).

    Ce que la troncature jette est orthogonal, au premier ordre, à ce que l'arrondi déplace : les carrés s'ajoutent.

    Parameters
    ----------
    W : Tensor, (m, n)
    rank : int, entre 1 et min(m, n)
    n_bits : int, entre 1 et 8
        De chaque facteur équilibré.
    granularity : PerTensor, PerChannel ou PerGroup, optionnel
        Qui partage une échelle dans un facteur ; par défaut, tout le facteur.

    Returns
    -------
    dict
        Toutes relatives à ‖W‖ (Frobenius) : ``svd_error``, ‖W − W_r‖ ; ``quant_error``, ‖W_r − Û V̂ᵀ‖ ;
        ``estimated_combined``, la racine de la somme de leurs carrés ; ``actual_combined``, ‖W − Û V̂ᵀ‖.
    """
    W = check_matrix(W)
    (row,) = compression_error_tradeoff(W, [check_rank(rank, *W.shape)], [check_bits(n_bits)], granularity)
    return {key: row[key] for key in ("svd_error", "quant_error", "estimated_combined", "actual_combined")}


def pareto_front(errors: Sequence[float], sizes: Sequence[float]) -> list[int]:
    """Les places que nulle autre ne bat à la fois en erreur et en taille, de la plus légère à la plus lourde.

    De deux couples égaux, le premier seul reste.

    Parameters
    ----------
    errors, sizes : suites de même longueur
    """
    front: list[int] = []
    for i in sorted(range(len(errors)), key=lambda i: (sizes[i], errors[i])):
        if not front or errors[i] < errors[front[-1]]:
            front.append(i)
    return front


def powers_of_two(limit: int) -> list[int]:
    """1, 2, 4, … jusqu'à `limit`."""
    return [2**k for k in range(limit.bit_length())]


def water_filling(S: Tensor, bits: float) -> tuple[float, Tensor]:
    """La plus petite erreur qu'un débit permet, pour une matrice gaussienne de spectre S dont les axes sont connus.

    Le « remplissage d'eau » inversé : les directions plus faibles que le niveau θ ne reçoivent rien, les autres
    ½ log₂(σ²/θ) bits chacune, et leur erreur est θ. Un spectre plat donne la borne de Shannon, 2^(−bits).

    Parameters
    ----------
    S : Tensor, (p,), décroissant
    bits : float, au moins 0
        Par coefficient, en moyenne sur les p directions.

    Returns
    -------
    error : float
        Erreur relative (Frobenius).
    allocation : Tensor, (p,), float64
        Les bits de chaque direction, dans l'ordre de S.

    Raises
    ------
    TypeError, ValueError
        Spectre qui n'en est pas un ; débit négatif ou infini.

    References
    ----------
    Cover et Thomas (2006), théorèmes 10.3.2 et 10.3.3.
    """
    S, bits = check_spectrum(S), check_finite_number(bits, "bits")
    if bits < 0:
        raise ValueError(f"bits : reçu {bits:g}, attendu un nombre positif ou nul.")
    allocation = torch.zeros_like(S)
    if S[0] == 0:
        return 0.0, allocation
    energies = 2 * (S[S > 0].log2() - S[0].log2())  # log₂ σ²/σ₁² : ni le carré ni le quotient ne débordent
    k = torch.arange(1, len(energies) + 1, dtype=S.dtype, device=S.device)
    levels = (energies.cumsum(0) - 2 * bits * len(S)) / k  # log₂ θ, si k directions se partagent tous les bits
    kept = max(1, int((energies > levels).sum()))  # tant que la dernière servie dépasse encore du niveau
    level = levels[kept - 1]
    allocation[:kept] = ((energies[:kept] - level) / 2).clamp_min(0)
    left = torch.minimum(energies, level).exp2().sum() / energies.exp2().sum()
    return math.sqrt(float(left)), allocation


# --- une couche -------------------------------------------------------------------------------------------------------


def analyze_forward_error(layer: nn.Module, test_inputs: Tensor, original_weight: Tensor) -> dict[str, float]:
    """L'erreur des sorties d'une couche, et sa borne ‖E‖₂ ‖x‖ (section 11.5). Les biais n'y sont pour rien.

    Parameters
    ----------
    layer : nn.Linear, ou couche linéaire comprimée
        Celle qui porte Ŵ.
    test_inputs : Tensor, (..., n)
    original_weight : Tensor, (m, n)
        W.

    Returns
    -------
    dict
        ``mean_error``, la moyenne des ‖ŷ − y‖ ; ``mean_relative_error``, celle des ‖ŷ − y‖/‖y‖ (infinie si
        un y est nul et que ŷ ne l'est pas) ; ``error_bound``, celle des ‖E‖₂ ‖x‖, où ‖E‖₂ est la norme *spectrale*.
        Les sorties sont celles de la couche, avec les arrondis de son calcul, que la borne ne compte pas.

    Raises
    ------
    TypeError, ValueError
        Couche d'une autre sorte, poids d'une autre forme que les siens, entrées d'une autre largeur, vides ou non
        finies.
    """
    W, W_hat = check_matrix(original_weight, "original_weight"), dense_weight(layer)
    if W.shape != W_hat.shape:
        raise ValueError(f"original_weight : reçu {tuple(W.shape)}, attendu {tuple(W_hat.shape)}, celle de layer.")
    x = check_input(test_inputs, W.shape[1], "test_inputs")
    check_not_empty(x, "test_inputs")
    x = x.detach().to(W_hat).reshape(-1, W.shape[1])  # (N, n)
    bias = getattr(layer, "bias", None)
    with torch.no_grad(), evaluating(layer):
        outputs = layer(x).double() - (0 if bias is None else bias.double())  # (N, m)
    expected = x.double() @ W.to(W_hat.device).double().T  # (N, n) @ (n, m) -> (N, m)
    errors, sizes = (outputs - expected).norm(dim=-1).tolist(), expected.norm(dim=-1).tolist()
    spectral = float(singular_values(W_hat.double() - W.to(W_hat.device).double())[0])
    return {
        "mean_error": sum(errors) / len(errors),
        "mean_relative_error": sum(map(relative, errors, sizes)) / len(errors),
        "error_bound": spectral * float(x.double().norm(dim=-1).mean()),
    }


def dense_weight(layer: nn.Module) -> Tensor:
    """La matrice Ŵ (m, n) qu'une couche linéaire applique, dense ou comprimée."""
    rebuild = getattr(layer, "reconstruct_weight", None)
    weight = layer.weight if isinstance(layer, nn.Linear) else rebuild() if callable(rebuild) else None
    if weight is None or weight.ndim != 2:  # ni un plongement, ni des noyaux de convolution
        raise TypeError(f"layer : reçu {type(layer).__name__}, attendu nn.Linear ou une couche linéaire comprimée.")
    return check_matrix(weight, "layer.weight")


def propagation_bound(gains: Sequence[float], own_errors: Sequence[float]) -> list[float]:
    """Borne de l'erreur après chaque couche d'une chaîne : b_l = ‖Ŵ_l‖₂ b_{l−1} + ‖E_l‖₂ ‖h_{l−1}‖.

    Elle vaut si, entre deux couches, l'activation n'écarte jamais deux points (ReLU, tanh…).

    Parameters
    ----------
    gains : list de float
        ‖Ŵ_l‖₂, de la première couche à la dernière : de combien la couche amplifie l'erreur qu'elle reçoit.
    own_errors : list de float
        ‖E_l‖₂ ‖h_{l−1}‖ : l'erreur qu'elle ajoute, pour les entrées h_{l−1} du réseau d'origine.

    Returns
    -------
    list de float

    Raises
    ------
    TypeError, ValueError
        Autant de gains que d'erreurs, tous finis et positifs, sont attendus.
    """
    for name, values in (("gains", gains), ("own_errors", own_errors)):
        if not isinstance(values, Sized) or getattr(values, "ndim", 1) != 1:
            raise TypeError(f"{name} : reçu {type(values).__name__}, attendu une liste de nombres.")
    if len(gains) != len(own_errors):
        raise ValueError(f"own_errors : reçu {len(own_errors)} valeurs, attendu {len(gains)}, autant que de gains.")
    for name, values in (("gains", gains), ("own_errors", own_errors)):
        for i, value in enumerate(values):
            if check_finite_number(value, f"{name}[{i}]") < 0:
                raise ValueError(f"{name}[{i}] : reçu {value!r}, attendu une norme, positive ou nulle.")
    bounds, bound = [], 0.0
    for gain, own in zip(gains, own_errors, strict=True):
        bound = gain * bound + own
        bounds.append(bound)
    return bounds


# --- un réseau --------------------------------------------------------------------------------------------------------


def analyze_cumulative_error(
    model_original: nn.Module, model_compressed: nn.Module, test_inputs: Inputs
) -> dict[str, Any]:
    """L'erreur qui s'accumule d'une couche à l'autre d'un réseau comprimé (section 11.5).

    Les deux réseaux reçoivent les mêmes entrées, en mode évaluation ; chaque couche du second traite donc ce que les
    précédentes ont déjà abîmé. Les crochets posés pour écouter sont retirés, et les modes rendus, quoi qu'il arrive.

    Parameters
    ----------
    model_original, model_compressed : nn.Module
        Deux réseaux aux mêmes couches, par leurs noms : le second est une copie du premier dont des couches ont été
        remplacées.
    test_inputs : Tensor, tuple d'arguments, ou dict d'arguments nommés

    Returns
    -------
    dict
        ``final_error``, ‖ŷ − y‖ sur tout le lot (Frobenius) ; ``relative_error``, la même divisée par ‖y‖ ;
        ``layer_errors``, l'erreur relative de la sortie de chaque couche, par nom, dans l'ordre où elles calculent
        (sur tous ses appels, si elle sert plusieurs fois ; une couche qui rend autre chose qu'un tenseur n'y est pas).

    Raises
    ------
    TypeError, ValueError
        Réseaux de structures différentes, entrées vides, non finies ou d'une autre largeur, sortie qui n'est pas un
        tenseur.
    """
    names = common_layers(model_original, model_compressed)
    arguments = check_arguments(test_inputs)
    y, expected = listen(model_original, names, arguments, "model_original")
    y_hat, received = listen(model_compressed, names, arguments, "model_compressed")
    if expected.keys() != received.keys():
        name = min(expected.keys() ^ received.keys())
        raise ValueError(f"model_compressed : la couche {name!r} ne calcule que dans l'un des deux réseaux.")
    layer_errors = {name: batch_error(expected[name], received[name], f"la couche {name!r}")[1] for name in expected}
    final_error, relative_error = batch_error([y], [y_hat], "le réseau")
    return {"final_error": final_error, "relative_error": relative_error, "layer_errors": layer_errors}


def common_layers(model_original: nn.Module, model_compressed: nn.Module) -> list[str]:
    """Les couches que deux réseaux ont en commun, par leurs noms ; elles les couvrent tout entiers.

    Raises
    ------
    TypeError, ValueError
        L'un n'est pas un nn.Module ; une couche de l'un n'a pas de pendant dans l'autre.
    """
    found = {}
    for which, model in (("model_original", model_original), ("model_compressed", model_compressed)):
        if not isinstance(model, nn.Module):
            raise TypeError(f"{which} : reçu {type(model).__name__}, attendu nn.Module.")
        found[which] = dict(model.named_modules(remove_duplicate=False))
    original, compressed = found.values()
    whole = {name for modules in found.values() for name, module in modules.items() if is_layer(module)}
    names: list[str] = []
    for name in original:  # les parents viennent avant leurs enfants
        if name in whole and name in compressed and not any(inside(name, above) for above in names):
            names.append(name)
    for which, other in (("model_original", "model_compressed"), ("model_compressed", "model_original")):
        for name in found[which]:
            if name in whole and not any(inside(name, above) for above in names):
                raise ValueError(f"{other} : aucune couche {name!r}, que {which} possède ; attendu les mêmes noms.")
    return names


def is_layer(module: nn.Module) -> bool:
    """Vrai si un module s'écoute d'un bloc : sans enfant, ou comprimé (ses enfants ne sont que ses facteurs)."""
    return not list(module.children()) or callable(getattr(module, "reconstruct_weight", None))


def listen(
    model: nn.Module, names: Sequence[str], arguments: tuple[tuple[Any, ...], dict[str, Any]], which: str
) -> tuple[Tensor, dict[str, list[Tensor]]]:
    """La sortie d'un réseau, et celles de ses couches `names`, à chaque appel."""
    outputs: dict[str, list[Tensor]] = {}
    current = None

    def before(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            nonlocal current
            current = name
            if isinstance(module, nn.Linear) and args:
                check_input(args[0], module.in_features, f"test_inputs, à l'entrée de la couche {name!r}")

        return hook

    def after(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):  # une copie : la couche suivante peut écrire sur place
                outputs.setdefault(name, []).append(output.detach().clone())

        return hook

    hooks = []
    try:
        for name in names:
            module = model.get_submodule(name)
            hooks += [module.register_forward_pre_hook(before(name)), module.register_forward_hook(after(name))]
        with torch.no_grad(), evaluating(model):
            final = model(*map(copied, arguments[0]), **{key: copied(value) for key, value in arguments[1].items()})
    except Exception as error:
        place = "." if current is None else f", dans la couche {current!r} ou juste après."
        error.add_note(f"{which} a échoué sur test_inputs{place}")
        raise
    finally:
        for hook in hooks:
            hook.remove()
    if not isinstance(final, Tensor):
        raise TypeError(f"{which} : rend {type(final).__name__}, attendu un tenseur.")
    return final, outputs


def copied(value: Any) -> Any:
    """Une copie d'un tenseur, que le réseau peut changer sur place ; le reste tel quel."""
    return value.detach().clone() if isinstance(value, Tensor) else value


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Met un réseau en mode évaluation, puis rend à chaque module le sien."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def batch_error(expected: Sequence[Tensor], received: Sequence[Tensor], what: str) -> tuple[float, float]:
    """L'erreur d'une suite de sorties (Frobenius), absolue et relative."""
    shapes = [[tuple(t.shape) for t in outputs] for outputs in (expected, received)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"model_compressed : {what} rend {shapes[1]}, attendu {shapes[0]}, comme model_original.")
    error = math.hypot(*(norm(b.double() - a.double()) for a, b in zip(expected, received, strict=True)))
    return error, relative(error, math.hypot(*map(norm, expected)))


def check_arguments(test_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Les arguments, anonymes et nommés, que des entrées donnent à un réseau ; des tenseurs non vides et finis."""
    args: tuple[Any, ...] = test_inputs if isinstance(test_inputs, tuple) else (test_inputs,)
    kwargs: dict[str, Any] = {}
    if isinstance(test_inputs, Mapping):
        args, kwargs = (), dict(test_inputs)
    named: dict[str, Any] = {f"test_inputs[{key!r}]": value for key, value in [*enumerate(args), *kwargs.items()]}
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    if not tensors:
        received = type(test_inputs).__name__
        raise TypeError(f"test_inputs : reçu {received} sans aucun tenseur, attendu un tenseur, un tuple ou un dict.")
    for name, tensor in tensors.items():
        check_not_empty(tensor, name if len(named) > 1 else "test_inputs")
    return args, kwargs


def check_not_empty(t: Tensor, name: str) -> None:
    """Exige un tenseur non vide et fini : une moyenne sur zéro entrée ne veut rien dire."""
    if t.numel() == 0:
        raise ValueError(f"{name} : reçu un lot vide {tuple(t.shape)}, attendu au moins une entrée.")
    if t.is_floating_point() and not is_finite(t):
        raise ValueError(f"{name} : NaN ou infini, attendu des nombres finis.")
