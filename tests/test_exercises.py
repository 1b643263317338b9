"""Les exercices : les solutions passent, chaque faute classique est nommée, rien n'enferme ni ne salit."""

import contextlib
import copy
import functools
import itertools
import json
import math
import pickle
import sys
import threading
import time
import warnings
import zlib

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info
from torch import nn

from lrq import (
    FakeQuantizeModule,
    QATTTLinear,
    TTLinear,
    TTQuantizer,
    balance_cores,
    tt_contract,
    tt_ranks,
    tt_round,
)
from lrq.exercises import EXERCISES, engine, verifier
from lrq.exercises.engine import same
from lrq.exercises.section_11_02 import GrandeMatrice
from lrq.exercises.section_11_03 import Facteur
from lrq.exercises.section_12_03 import Flux, cache_variant


def rank_for_layer(couche, erreur_max):
    energy = torch.linalg.svdvals(couche.weight.detach().double()) ** 2
    kept = energy.cumsum(0) / energy.sum()
    return next(r + 1 for r in range(len(energy)) if math.sqrt(max(0, 1 - float(kept[r]))) <= erreur_max)


def rank_for_compression(m, n, compression):
    best = [r for r in range(1, min(m, n) + 1) if m * n >= compression * r * (m + n)]
    if not best:
        raise ValueError("contrainte impossible")
    return best[-1]


def compare_initialisations(couche, rang, graine):
    generator = torch.Generator().manual_seed(graine)
    W = couche.weight.detach()
    m, n = W.shape
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    bound_u, bound_v = math.sqrt(6 / (m + rang)), math.sqrt(6 / (n + rang))
    factors = {
        "aleatoire": (torch.randn(m, rang, generator=generator), torch.randn(n, rang, generator=generator)),
        "xavier": (
            (2 * torch.rand(m, rang, generator=generator) - 1) * bound_u,
            (2 * torch.rand(n, rang, generator=generator) - 1) * bound_v,
        ),
        "svd": (U[:, :rang] * S[:rang], Vh[:rang].T),
    }
    return {key: float((W - a @ b.T).norm() / W.norm()) for key, (a, b) in factors.items()}


def gradients(U, V, G):
    dU, dV = torch.einsum("ij,jk->ik", G, V), torch.einsum("ij,ik->jk", G, U)
    return dU, dV, dU @ V.T + U @ dV.T


def learn_factors(W, rang, graine, scale=0.3, steps=800, dtype=torch.float32):
    """Descente de gradient sur ½‖W − UVᵀ‖², le pas réglé sur la norme de W."""
    generator = torch.Generator().manual_seed(graine)
    W = W.to(dtype)
    U, V = (scale * torch.randn(k, rang, generator=generator).to(dtype) for k in W.shape)
    errors = []
    for _ in range(steps):
        E = W - U @ V.T
        errors.append((E.norm() / W.norm()).item())
        U, V = U + 0.5 / W.norm() * E @ V, V + 0.5 / W.norm() * E.T @ U
    return U, V, [*errors, ((W - U @ V.T).norm() / W.norm()).item()]


def sketched_svd(W, rang, graine, oversample=12, passes=4):
    """Itérations de sous-espace, des deux côtés ; la petite matrice finale est carrée."""
    generator = torch.Generator().manual_seed(graine)
    Y = torch.linalg.qr(torch.randn(W.shape[1], rang + oversample, generator=generator)).Q
    for _ in range(passes):
        X = torch.linalg.qr(W @ Y).Q
        Y, R = torch.linalg.qr(W.T @ X)  # W ≈ X Rᵀ Yᵀ
    U, S, Vh = torch.linalg.svd(R.T)
    return (X @ U)[:, :rang], S[:rang], (Vh @ Y.T)[:rang]


def weight_error_and_accuracy(reseau, x, y, rangs):
    """Sans toucher au réseau : ses poids tronqués sont passés à part."""
    results = []
    for rang in rangs:
        lost = total = 0.0
        state = dict(reseau.state_dict())
        for name, module in reseau.named_modules():
            if isinstance(module, nn.Linear):
                U, S, Vh = torch.linalg.svd(module.weight, full_matrices=False)
                lost, total = lost + float((S[rang:] ** 2).sum()), total + float((S**2).sum())
                S[rang:] = 0
                state[f"{name}.weight"] = U @ torch.diag(S) @ Vh
        right = torch.func.functional_call(reseau, state, (x,)).argmax(-1) == y
        results.append((math.sqrt(lost / total), right.double().mean().item()))
    return results


def compressed_layer(W, rang, n_bits, part_nulle):
    """En NumPy ; l'élagage vient après l'arrondi, sur les flottants, ce qui revient au même."""
    U, S, Vh = np.linalg.svd(W.double().numpy(), full_matrices=False)
    stored, bits = {}, 2 * 32
    for name, factor in (("U", U[:, :rang] * np.sqrt(S[:rang])), ("V", Vh[:rang].T * np.sqrt(S[:rang]))):
        scale = np.abs(factor).max() / (2 ** (n_bits - 1) - 1)
        codes = np.rint(factor / scale).astype(np.int8)
        codes.flat[np.argsort(np.abs(factor), axis=None)[: int(part_nulle * factor.size)]] = 0
        stored |= {f"codes_{name}": codes, f"echelle_{name}": scale}
        bits += codes.size + n_bits * np.count_nonzero(codes)
    return {**stored, "bits": bits}


def compared_orders(W, rang, n_bits):
    """Les valeurs et vecteurs singuliers de M, tirés des vecteurs propres de MᵀM ; le reste en float32."""
    q = 2 ** (n_bits - 1) - 1

    def grid(t):
        return torch.round(t * q / t.abs().max()) * t.abs().max() / q

    def codes_of_factors(M):
        values, V = torch.linalg.eigh(M.double().T @ M.double())
        sigma, V = values[-rang:].sqrt(), V[:, -rang:]
        return grid((M.double() @ V / sigma.sqrt()).float()) @ grid((V * sigma.sqrt()).float()).T

    def error(approximation):
        return torch.dist(W, approximation) / W.norm()

    quantized, factors = grid(W), n_bits * rang * (W.shape[0] + W.shape[1])
    return {
        "rang_puis_bits": (error(codes_of_factors(W)), factors + 64),
        "bits_puis_rang": (error(codes_of_factors(quantized)), factors + 64),
        "bits_plus_residu": (
            error(quantized + codes_of_factors(W - quantized)),
            n_bits * W.numel() + 32 + factors + 64,
        ),
    }


def quantization_aware(U, V, x, y, n_bits, steps=300, lr=0.005, scale_learns=True, optimizer=torch.optim.Adam):
    """Fausse quantification, l'échelle dérivée ou non ; le meilleur pas est gardé, le premier compris."""
    q = 2 ** (n_bits - 1) - 1

    class Round(torch.autograd.Function):
        @staticmethod
        def forward(ctx, t):
            return t.round()

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    def fake(t):
        scale = t.abs().max() / q
        scale = scale if scale_learns else scale.detach()
        return Round.apply(t / scale) * scale

    latent = [nn.Parameter(U.clone()), nn.Parameter(V.clone())]
    optimizer, seen = optimizer(latent, lr=lr), []
    for _ in range(steps):
        A, B = map(fake, latent)
        error = (x @ B @ A.T - y).norm() / y.norm()
        seen.append((error.item(), A.detach(), B.detach()))
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    best = min(seen, key=lambda step: step[0])
    return best[1], best[2], seen[0][0], best[0]


def eckart_young(W, rang, concurrents):
    """En NumPy ; l'erreur prédite est l'énergie totale moins l'énergie gardée, le rang celui de matrix_rank."""
    W = W.numpy()
    U, S, Vh = np.linalg.svd(W)
    E = W - U[:, :rang] @ np.diag(S[:rang]) @ Vh[:rang]
    least = math.sqrt((W**2).sum() - (S[:rang] ** 2).sum())
    return {
        "frobenius": (least, np.linalg.norm(E)),
        "spectrale": [torch.tensor(S[rang]), np.linalg.norm(E, ord=2)],
        "concurrents": tuple(
            None if np.linalg.matrix_rank(M.numpy()) > rang else np.linalg.norm(W - M.numpy()) / least
            for M in concurrents
        ),
    }


def propagation(poids, poids_comprimes, x):
    """Deux réseaux de PyTorch, écoutés à la sortie de leurs couches ; la borne, dépliée en produits de gains."""
    outputs = []
    for weights in (poids, poids_comprimes):
        h, heard = x, []
        for W in weights:
            heard.append(nn.functional.linear(torch.clamp_min(h, 0) if heard else h, W))
            h = heard[-1]
        outputs.append(heard)
    inputs = [x, *(torch.clamp_min(z, 0) for z in outputs[0])]
    own = [
        np.linalg.norm((C - W).numpy(), 2) * float(h.norm())
        for W, C, h in zip(poids, poids_comprimes, inputs, strict=False)
    ]
    gains = [np.linalg.norm(C.numpy(), 2) for C in poids_comprimes]
    bounds = [sum(own[k] * math.prod(gains[k + 1 : layer + 1]) for k in range(layer + 1)) for layer in range(len(own))]
    return [torch.dist(a, b) for a, b in zip(*outputs, strict=True)], torch.tensor(bounds)


def lightest_pair(W, erreur_max):
    """Par poids croissants, en float32, jusqu'à la première paire qui convient ; √S par les vecteurs propres."""
    values, V = torch.linalg.eigh(W.double().T @ W.double())
    keep = values.flip(0)[: min(W.shape)].sqrt()
    V = V.flip(1)[:, : len(keep)]
    U, V = (W.double() @ V / keep.sqrt()).float(), (V * keep.sqrt()).float()

    def codes(t, n_bits):
        step = t.abs().max() / (2 ** (n_bits - 1) - 1)
        return torch.round(t / step), step

    for product in range(2, 8 * len(keep) + 1):
        for n_bits in range(2, 9):
            rank = product // n_bits
            if product % n_bits or rank > len(keep):
                continue
            (A, a), (B, b) = codes(U[:, :rank], n_bits), codes(V[:, :rank], n_bits)
            error = torch.dist(W, A @ B.T * a * b) / W.norm()
            if error <= erreur_max:
                return torch.tensor(rank), n_bits, n_bits * (A.numel() + B.numel()) + 2 * 32, error
    raise AssertionError


def lora_against_full(W0, x, y, A, alpha, lr, pas):
    """Autograd, en place sur des copies, les deux méthodes dans la même boucle."""
    W, A, B = (nn.Parameter(t.clone()) for t in (W0, A, W0.new_zeros(W0.shape[0], A.shape[0])))
    methods = {"complet": [W], "lora": [A, B]}
    losses = {
        "complet": lambda: nn.functional.mse_loss(nn.functional.linear(x, W), y),
        "lora": lambda: nn.functional.mse_loss(x @ W0.T + alpha * (x @ A.T @ B.T), y),
    }
    results = {}
    for name, parameters in methods.items():
        for _ in range(pas):
            for p, gradient in zip(parameters, torch.autograd.grad(losses[name](), parameters), strict=True):
                p.data.sub_(gradient, alpha=lr)
        count = sum(p.numel() for p in parameters)
        results[name] = {"perte": losses[name](), "parametres": count, "octets": torch.tensor(12 * count)}
    results["complet"]["W"] = W
    results["lora"] |= {"A": A, "B": B}
    return results


def best_updates(W0, x, y, rangs):
    """En NumPy : la racine symétrique de xᵀx, son inverse, et √S dans chaque facteur."""
    W0, x, y = (t.double().numpy() for t in (W0, x, y))
    values, Q = np.linalg.eigh(x.T @ x)
    root, inverse = Q * np.sqrt(values) @ Q.T, Q / np.sqrt(values) @ Q.T
    residual = y - x @ W0.T
    U, S, Vh = np.linalg.svd(residual.T @ x @ inverse @ inverse @ root, full_matrices=False)
    total, found = (S**2).sum(), []
    for r in rangs:
        B, A = U[:, :r] * np.sqrt(S[:r]), np.sqrt(S[:r])[:, None] * Vh[:r] @ inverse
        loss = ((residual - x @ A.T @ B.T) ** 2).mean()
        part = (S[:r] ** 2).sum() / total
        found.append({"A": A, "B": B, "perte": loss, "parametres": A.size + B.size, "part": torch.tensor(part)})
    return tuple(found)


def ranks_that_follow(couches, budget):
    """En NumPy, une file où les premières de chaque couche passent devant ; l'importance, par la trace."""
    scores = [
        np.array(
            [
                np.abs(
                    [np.trace(b.T @ g) for b, g in zip(B[:, :, k, None].numpy(), G[:, :, k, None].numpy(), strict=True)]
                ).sum()
                for k in range(len(A))
            ]
        )
        for A, B, G in couches
    ]
    queue = []
    for i, (A, B, _) in enumerate(couches):
        size = A[0].numel() + B[0, :, 0].numel()
        for place, k in enumerate(np.argsort(-scores[i])):
            queue.append((place > 0, -scores[i][k] / size, i, k, size))
    kept = [set() for _ in couches]
    for _, _, i, k, size in sorted(queue):
        if size <= budget:
            budget -= size
            kept[i].add(k)
    return scores, [list(own) for own in kept]


def one_adapter(adaptateurs, poids):
    """Une base de toutes les lignes de A d'abord ; dans cette base, un QR et une SVD donnent le reste."""
    kept = [(A, w * s * B) for (A, B, s), w in zip(adaptateurs, poids, strict=True) if w != 0]
    _, S, right = np.linalg.svd(np.vstack([A.numpy() for A, _ in kept]), full_matrices=False)
    basis = right[S / S[0] > 1e-10]
    inside = sum(B.numpy() @ (A.numpy() @ basis.T) for A, B in kept)  # (m, k)
    Q, R = np.linalg.qr(inside)
    U, S, Vh = np.linalg.svd(R)
    keep = S / S[0] > 1e-10
    return Vh[: len(S)][keep] @ basis, Q @ U[:, : len(S)][:, keep] * S[keep]


def tt_weights(cores):
    """La matrice (out, in) d'un train, tous les liens contractés d'un coup, puis permutée."""
    whole = cores[0]
    for core in cores[1:]:
        whole = torch.tensordot(whole, core, 1)  # (1, i₁, o₁, …, i_k, o_k, r_k)
    d = len(cores)
    whole = whole[0, ..., 0].permute(*range(1, 2 * d, 2), *range(0, 2 * d, 2))
    return whole.reshape(math.prod(whole.shape[:d]), -1)


def tt_quantization_aware(cores, x, y, n_bits, steps=200, lr=0.01, scale_learns=True, optimizer=torch.optim.Adam):
    """Fausse quantification de chaque cœur ; le meilleur pas est gardé, le premier compris."""
    q = 2 ** (n_bits - 1) - 1

    def fake(t):
        scale = t.abs().max() / q
        codes = t / (scale if scale_learns else scale.detach())
        return (codes + (codes.round() - codes).detach()) * scale

    latent = [core.clone().requires_grad_() for core in cores]
    optimizer, seen = optimizer(latent, lr=lr), []
    for _ in range(steps):
        used = [fake(t) for t in latent]
        error = (x @ tt_weights(used).T - y).norm() / y.norm()
        seen.append((error.item(), [t.detach() for t in used]))
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    best = min(seen, key=lambda step: step[0])
    return {"ptq": (seen[0][1], seen[0][0]), "qat": (best[1], best[0])}


def numpy_train(T, ranks, share):
    """TT-SVD en NumPy ; chaque lien laisse S^share à gauche, le reste à droite."""
    cores, left, before, rest = [], 1, np.ones(1), T
    for n, rank in zip(T.shape, ranks, strict=False):
        U, S, Vh = np.linalg.svd(rest.reshape(left * n, -1), full_matrices=False)
        U, S, rest = U[:, :rank], S[:rank], S[:rank, None] * Vh[:rank]
        cores.append(U.reshape(left, n, -1) * S**share / before[:, None, None])
        left, before = len(S), S**share
    return [*cores, (rest / before[:, None])[:, :, None]]


def numpy_contract(cores):
    total = cores[0]
    for core in cores[1:]:
        total = np.tensordot(total, core, 1)
    return total[0, ..., 0]


def reduced_ranks(coeurs, n_bits, marge):
    """En NumPy, sur les tenseurs écrits en entier ; les rangs par les valeurs singulières."""
    q = 2 ** (n_bits - 1) - 1

    def grid(cores):
        return [np.rint(core * q / np.abs(core).max()) * np.abs(core).max() / q for core in cores]

    def error(cores):
        return np.linalg.norm(numpy_contract(cores) - T) / np.linalg.norm(T)

    coeurs = [core.numpy() for core in coeurs]
    T, start = numpy_contract(coeurs), grid(coeurs)
    quantized, limit = numpy_contract(start), (1 + marge) * error(start)
    unfolded = [quantized.reshape(math.prod(T.shape[:k]), -1) for k in range(1, T.ndim)]
    values = [np.linalg.svd(M, compute_uv=False) for M in unfolded]
    trains = [
        numpy_train(quantized, ranks, share=0)
        for ranks in itertools.product(*(range(1, core.shape[-1] + 1) for core in coeurs[:-1]))
        if all(r <= n * before for r, n, before in zip(ranks, T.shape, (1, *ranks), strict=False))
    ]
    best = min((train for train in trains if error(train) <= limit), key=lambda train: sum(c.size for c in train))
    ranks = [core.shape[-1] for core in best[:-1]]
    reduced = {"apres": best, "avant": numpy_train(T, ranks, share=0)}
    stored = {key: grid(numpy_train(numpy_contract(train), ranks, share=0.5)) for key, train in reduced.items()}
    return {
        "rangs": np.array([np.count_nonzero(S / S[0] > 1e-9) for S in values]),
        **{key: tuple(torch.tensor(core) for core in cores) for key, cores in stored.items()},
    }


def two_readings(flux, largeur, erreur_max, graine):
    """La seconde lecture fait un tour de plus : W V = QR, et Qᵀ W = R⁻ᵀ (Wᵀ W V)ᵀ."""
    n = flux.shape[1]
    V = torch.randn(n, largeur, generator=seeded(graine), dtype=torch.float64)
    for _ in range(2):
        V = torch.linalg.qr(V).Q
        parts, Z, norm = [], torch.zeros(n, largeur, dtype=torch.float64), 0.0
        for bloc in flux:
            parts.append(bloc.double() @ V)
            Z = Z + bloc.double().T @ parts[-1]
            norm = math.hypot(norm, bloc.double().norm())
        V = Z
    Q, R = torch.linalg.qr(torch.cat(parts))
    U, S, Vh = torch.linalg.svd(torch.linalg.solve_triangular(R.T, Z.T, upper=False), full_matrices=False)
    for r in range(1, largeur + 1):
        erreur = math.sqrt(1 - float((S[:r] / norm).square().sum()))
        if erreur <= erreur_max:
            return Q @ U[:, :r], S[:r], Vh[:r], erreur
    raise AssertionError("largeur trop petite")


class Memoire:
    """Un cache en objet : des listes de nombres pour clés, des résultats mis en octets."""

    def __init__(self, comprimer):
        self.comprimer, self.connus = comprimer, {}

    def __call__(self, poids, config):
        def plat(valeur):
            return sorted((k, plat(v)) for k, v in valeur.items()) if isinstance(valeur, dict) else repr(valeur)

        cle = poids.shape, poids.dtype, tuple(poids.flatten().tolist()), str(plat(config))
        if cle not in self.connus:
            self.connus[cle] = pickle.dumps(self.comprimer(poids, config))
        return pickle.loads(self.connus[cle])


SOLUTIONS = {
    "9.6.1": tt_quantization_aware,
    "9.6.2": reduced_ranks,
    "11.1": rank_for_layer,
    "11.2": lora_against_full,
    "11.1.1": rank_for_compression,
    "11.1.2": compare_initialisations,
    "11.1.3": gradients,
    "11.2.1": learn_factors,
    "11.2.2": sketched_svd,
    "11.2.3": weight_error_and_accuracy,
    "11.3": compressed_layer,
    "11.3.1": best_updates,
    "11.3.2": ranks_that_follow,
    "11.3.3": one_adapter,
    "11.4.1": compared_orders,
    "11.4.2": quantization_aware,
    "11.5.1": eckart_young,
    "11.5.2": propagation,
    "11.5.3": lightest_pair,
    "12.3.1": two_readings,
    "12.3.2": Memoire,
}


@pytest.fixture
def seed(request):
    """Une graine par cas, entre 0 et 4 : toutes servent, chacune à son tour."""
    return zlib.crc32(request.node.nodeid.encode()) % 5


@pytest.mark.parametrize("number", EXERCISES)
@pytest.mark.parametrize("seed", range(5))
def test_independent_solution_passes(number, seed):
    bilan = verifier(number, SOLUTIONS[number], graine=seed)
    assert bilan.reussi, bilan


WRONG_ANSWERS = [
    pytest.param(number, mistake, wrong, id=f"{number}-{mistake.name}-{i}")
    for number, exercise in EXERCISES.items()
    for mistake in exercise.mistakes
    for i, wrong in enumerate(mistake.wrong)
]


def blend(number, wrong, args):
    """Une réponse de lecteur : la faute, et le reste (les clés tirées au hasard) bien fait."""
    result = wrong(*args)
    return {**compare_initialisations(*args), **result} if number == "11.1.2" else result


@pytest.mark.parametrize(("number", "mistake", "wrong"), WRONG_ANSWERS)
def test_each_mistake_is_refused_and_named(number, mistake, wrong, seed):
    bilan = verifier(number, lambda *args: blend(number, wrong, args), graine=seed)
    assert bilan.verdict == "à revoir"
    arrows = [text for mark, text in bilan.lines if mark == "→"]
    assert arrows == [f"{mistake.name} : {mistake.explanation}"]


def initialisations(bound, generator_of):
    """Une réponse à 11.1.2 dont on choisit la borne de Xavier et le générateur."""

    def answer(couche, rang, graine):
        W = couche.weight.detach()
        m, n = W.shape
        g = generator_of(graine)
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
        uniform = [(2 * torch.rand(k, rang, generator=g) - 1) * bound(k, rang, m, n) for k in (m, n)]
        factors = {
            "aleatoire": (torch.randn(m, rang, generator=g), torch.randn(n, rang, generator=g)),
            "xavier": uniform,
            "svd": (U[:, :rang] * S[:rang], Vh[:rang].T),
        }
        return {key: float((W - a @ b.T).norm() / W.norm()) for key, (a, b) in factors.items()}

    return answer


def seeded(graine):
    return torch.Generator().manual_seed(graine)


def right_bound(k, rang, m, n):
    return math.sqrt(6 / (k + rang))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    ("bound", "generator_of", "said"),
    [
        (lambda k, rang, m, n: math.sqrt(6 / (m + n)), seeded, "sur chaque facteur"),
        (lambda k, rang, m, n: math.sqrt(6 / k), seeded, "facteurs de Xavier — "),
        (lambda k, rang, m, n: 0.0, seeded, "facteurs de Xavier — "),
        (right_bound, lambda graine: seeded(0), "vos tirages l'ignorent"),
        (right_bound, lambda graine: (g := torch.Generator(), g.seed())[0], "deux appels identiques"),
    ],
)
def test_wrong_draws_are_refused(bound, generator_of, said, seed):
    bilan = verifier("11.1.2", initialisations(bound, generator_of), graine=seed)
    assert not bilan.reussi
    assert said in repr(bilan)


@pytest.mark.parametrize("seed", range(20))
def test_right_draws_are_accepted(seed):
    assert verifier("11.1.2", initialisations(right_bound, seeded), graine=seed).reussi


def alternating_least_squares(W, rang, graine):
    V = torch.randn(W.shape[1], rang, generator=seeded(graine))
    errors = []
    for _ in range(30):
        U = torch.linalg.lstsq(V, W.T).solution.T
        V = torch.linalg.lstsq(U, W).solution.T
        errors.append((W - U @ V.T).norm() / W.norm())
    return [U, V, torch.stack(errors)]


def subspace_iteration(W, rang, graine):
    W = W.double()
    V, errors = torch.randn(W.shape[1], rang, generator=seeded(graine), dtype=torch.float64), []
    for _ in range(60):
        U = torch.linalg.qr(W @ V).Q
        V = W.T @ U
        errors.append(float((W - U @ V.T).norm() / W.norm()))
    return U, V, errors


def adam(W, rang, graine):
    generator = seeded(graine)
    U, V = (nn.Parameter(torch.randn(k, rang, generator=generator)) for k in W.shape)
    optimizer, errors = torch.optim.Adam([U, V], lr=0.1), []
    for _ in range(1000):
        loss = nn.functional.mse_loss(U @ V.T, W)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(((W - U @ V.T).norm() / W.norm()).item())
    return U, V, errors


@pytest.mark.parametrize(
    "learn",
    [
        alternating_least_squares,
        subspace_iteration,
        adam,
        lambda *args: learn_factors(*args, dtype=torch.float64),
        lambda *args: learn_factors(*args, scale=0.01, steps=1500),
    ],
)
def test_factors_may_be_learned_in_many_ways(learn, seed):
    bilan = verifier("11.2.1", learn, graine=seed)
    assert bilan.reussi, bilan


def all_ones(W, rang, graine):
    """Des colonnes égales, que l'arrondi de float32 finit par séparer en partie."""
    U, V = torch.full((W.shape[0], rang), 0.1), torch.full((W.shape[1], rang), 0.2)
    for _ in range(500):
        E = W - U @ V.T
        U, V = U + 0.5 / W.norm() * E @ V, V + 0.5 / W.norm() * E.T @ U
    return U, V, [1.0, ((W - U @ V.T).norm() / W.norm()).item()]


@pytest.mark.parametrize(
    ("learn", "said"),
    [
        (lambda *args: learn_factors(*args, steps=20), "plus de pas"),
        (lambda *args: learn_factors(*args, scale=30.0), "→ un pas trop grand"),
        (lambda *args: learn_factors(*args, scale=0.0), "→ un départ nul"),
        (all_ones, "→ des colonnes toutes pareilles"),
        (lambda W, rang, graine: learn_factors(W, rang, 0), "votre départ ne suit pas la graine"),
        (lambda W, rang, graine: alternating_least_squares(W, rang, 0), "votre départ ne suit pas la graine"),
        (lambda *args: learn_factors(*args)[:2], "reçu 2 valeur(s)"),
        (lambda *args: (*learn_factors(*args)[:2], []), "reçu 0 valeur(s)"),
    ],
)
def test_factors_badly_learned_are_refused(learn, said, seed):
    bilan = verifier("11.2.1", learn, graine=seed)
    assert not bilan.reussi
    assert said in repr(bilan)


def one_sided_sketch(W, rang, graine, oversample, passes, dtype, gram):
    """Halko, Martinsson et Tropp, dont on choisit les réglages ; avec `gram`, par les valeurs propres de BBᵀ."""
    Y = W @ torch.randn(W.shape[1], rang + oversample, generator=seeded(graine), dtype=dtype)
    for _ in range(passes):
        Y = W @ (W.T @ torch.linalg.qr(Y).Q)
    Q = torch.linalg.qr(Y).Q
    B = Q.T @ W
    if not gram:
        U, S, Vh = torch.linalg.svd(B, full_matrices=False)
        return Q @ U[:, :rang], S[:rang], Vh[:rang]
    values, U = torch.linalg.eigh(B @ B.T)
    S, U = values.flip(0)[:rang].sqrt(), U.flip(1)[:, :rang]
    return Q @ U, S, U.T @ B / S[:, None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("oversample", "passes", "gram"), [(10, 2, False), (10, 4, False), (5, 4, False), (10, 3, True)]
)
def test_large_svd_may_be_tuned_in_many_ways(oversample, passes, gram, dtype, seed):
    bilan = verifier("11.2.2", lambda *args: one_sided_sketch(*args, oversample, passes, dtype, gram), graine=seed)
    assert bilan.reussi, bilan


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda W, rang, graine: torch.linalg.svd(W), "linalg_svd veut une matrice écrite en entier"),
        (lambda W, rang, graine: np.linalg.svd(np.asarray(W)), "NumPy veut une matrice écrite en entier"),
        (lambda W, rang, graine: W @ torch.ones(W.shape[1], 1000), "reviendrait à écrire W"),
        (lambda W, rang, graine: torch.ones(1000, W.shape[0]) @ W, "reviendrait à écrire W"),
        (lambda W, rang, graine: W @ np.ones((W.shape[1], 3)), "attendu un tenseur de PyTorch"),
        (lambda W, rang, graine: W @ torch.ones(W.shape[0], 3), "lignes."),
        (lambda W, rang, graine: W.double(), "elle n'a que shape, T et @"),
        (lambda *args: sketched_svd(*args)[0], "reçu Tensor"),
        (lambda W, rang, graine: sketched_svd(W, rang + 5, graine), "tronquez l'esquisse"),
        (lambda *args: ((r := sketched_svd(*args))[0].roll(1, 0), *r[1:]), "Vh et S sont bons, mais pas U"),
        (lambda *args: (*(r := sketched_svd(*args))[:2], -r[2]), "sont bons un à un, mais ne vont pas ensemble"),
        (lambda *args: (*(r := sketched_svd(*args))[:2], r[2].flip(0)), "U et S sont bons, mais pas Vh"),
        (lambda *args: ((r := sketched_svd(*args))[0], r[1], r[2].roll(1, 1)), "U et S sont bons, mais pas Vh"),
        (lambda *args: sketched_svd(*args, oversample=0), "quelques colonnes de plus"),
    ],
)
def test_large_svd_says_what_is_wrong(answer, said):
    bilan = verifier("11.2.2", answer, graine=0)
    assert not bilan.reussi
    assert said in repr(bilan)


def test_large_matrix_multiplies_like_the_dense_one_and_refuses_the_rest():
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(7, 3, generator=generator), torch.randn(5, 3, generator=generator)
    W, dense = GrandeMatrice(left, right), left @ right.T
    X, Y = torch.randn(5, 2, generator=generator), torch.randn(7, 2, generator=generator)
    for product, wanted in (
        (W @ X, dense @ X),
        (W @ X[:, 0], dense @ X[:, 0]),
        (W.T @ Y, dense.T @ Y),
        (Y.T @ W, Y.T @ dense),
        (Y[:, 0] @ W, Y[:, 0] @ dense),
        (torch.matmul(W, X), dense @ X),
        (torch.mm(Y.T, W), Y.T @ dense),
        (W @ X.double(), dense.double() @ X.double()),
    ):
        assert product.dtype == wanted.dtype
        torch.testing.assert_close(product, wanted)
    assert W.shape == (7, 5)
    assert W.T.shape == (5, 7)
    torch.testing.assert_close(W._svd[1].float(), torch.linalg.svdvals(dense)[:3])
    torch.testing.assert_close(W._svd[1], W._sigma)
    U, S, Vh = (t.float() for t in W._svd)
    wrong = U[:, :2] * S[:2] @ Vh.flip(0)[:2]
    assert W._error(U[:, :2], S[:2], Vh.flip(0)[:2]) == pytest.approx(float((dense - wrong).norm()), rel=1e-4)


def test_large_matrices_are_really_large():
    for case in EXERCISES["11.2.2"].cases(torch.Generator().manual_seed(0)):
        m, n = case.args[0].shape
        assert min(m, n) > 10_000
        assert 4 * m * n > 700e6  # octets en float32


def fake_quantize_module(U, V, x, y, n_bits):
    """Avec la fausse quantification du paquet, dont l'échelle n'a pas de gradient, et un pas qui décroît."""
    fake, latent = FakeQuantizeModule(n_bits), [U.clone().requires_grad_(), V.clone().requires_grad_()]
    optimizer = torch.optim.Adam(latent, lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    seen = []
    for _ in range(300):
        A, B = map(fake, latent)
        loss = nn.functional.mse_loss(x @ B @ A.T, y)
        with torch.no_grad():
            seen.append((float((x @ B @ A.T - y).norm() / y.norm()), A.detach(), B.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    best = min(seen, key=lambda step: step[0])
    return best[1], best[2], seen[0][0], best[0]


@pytest.mark.parametrize(
    "learn",
    [
        fake_quantize_module,
        lambda *args: quantization_aware(*args, scale_learns=False),
        lambda *args: quantization_aware(*args, steps=800, lr=0.001),
        lambda *args: quantization_aware(
            *args, lr=0.03, optimizer=lambda latent, lr: torch.optim.SGD(latent, lr, momentum=0.9)
        ),
        lambda U, V, x, y, n_bits: quantization_aware(U.double(), V.double(), x.double(), y.double(), n_bits),
    ],
)
def test_quantization_may_be_learned_in_many_ways(learn, seed):
    bilan = verifier("11.4.2", learn, graine=seed)
    assert bilan.reussi, bilan


def careless(U, V, x, y, n_bits, through=True, in_loop=True, keep=True, copied=True, final=True):
    """QAT, à une négligence près."""
    q = 2 ** (n_bits - 1) - 1

    def quantized(t):
        scale = t.abs().max() / q
        codes = t / scale
        return (codes + (codes.round() - codes).detach() if through else codes.round()) * scale

    latent = [nn.Parameter(t.clone() if copied else t) for t in (U, V)]
    optimizer, seen = torch.optim.Adam(latent, lr=0.01), []
    for _ in range(200):
        A, B = map(quantized, latent) if in_loop else latent
        error = (x @ B @ A.T - y).norm() / y.norm()
        seen.append((error.item(), *(t.detach().clone() for t in ((A, B) if final else latent))))
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    A, B = min(seen, key=lambda step: step[0])[1:] if keep else (quantized(t).detach() for t in latent)
    ptq = (x @ quantized(V.detach()) @ quantized(U.detach()).T - y).norm() / y.norm()
    return A, B, seen[0][0] if in_loop else ptq.item(), ((x @ B @ A.T - y).norm() / y.norm()).item()


@pytest.mark.parametrize(
    ("carelessness", "said"),
    [
        ({"through": False}, "→ aucun gradient à travers l'arrondi"),
        ({"in_loop": False, "keep": False}, "→ l'arrondi hors de la boucle"),
        ({"final": False}, "→ la quantification finale oubliée"),
        ({"keep": False}, "→ le dernier pas plutôt que le meilleur"),
        ({"copied": False}, "travaillez sur une copie (clone)"),
    ],
)
def test_careless_training_is_refused_and_named(carelessness, said, seed):
    bilan = verifier("11.4.2", lambda *args: careless(*args, **carelessness), graine=seed)
    assert not bilan.reussi
    assert said in repr(bilan)


def package_layer(cores, x, y, n_bits):
    """Avec la couche du paquet, dont l'échelle n'a pas de gradient, et un pas qui décroît."""
    layer = QATTTLinear.from_tt(TTLinear.from_cores(cores), n_bits, gauge=None)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
    seen = []
    for _ in range(200):
        error = (layer(x) - y).norm() / y.norm()
        seen.append((error.item(), [core.detach() for core in layer.chain()]))
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        schedule.step()
    best = min(seen, key=lambda step: step[0])
    return {"ptq": (seen[0][1], seen[0][0]), "qat": (best[1], best[0])}


@pytest.mark.parametrize(
    "learn",
    [
        package_layer,
        lambda *args: tt_quantization_aware(*args, scale_learns=False),
        lambda *args: tt_quantization_aware(*args, steps=400, lr=0.002),
        lambda *args: tt_quantization_aware(
            *args, lr=0.03, optimizer=lambda latent, lr: torch.optim.SGD(latent, lr, momentum=0.9)
        ),
        lambda cores, x, y, n_bits: tt_quantization_aware([c.double() for c in cores], x.double(), y.double(), n_bits),
    ],
)
def test_train_may_be_learned_in_many_ways(learn, seed):
    bilan = verifier("9.6.1", learn, graine=seed)
    assert bilan.reussi, bilan


def careless_train(
    cores, x, y, n_bits, through=True, in_loop=True, keep=True, copied=True, final=True, only=None, read=tt_weights
):
    """QAT d'un train, à une négligence près."""
    q = 2 ** (n_bits - 1) - 1

    def quantized(t):
        scale = t.abs().max() / q
        codes = t / scale
        return (codes + (codes.round() - codes).detach() if through else codes.round()) * scale

    def error(used):
        return (x @ read(used).T - y).norm() / y.norm()

    latent = [nn.Parameter(t.clone() if copied else t) for t in cores]
    optimizer, seen = torch.optim.Adam(latent if only is None else [latent[only]], lr=0.01), []
    ptq = [quantized(t).detach() for t in cores]
    for _ in range(200):
        used = [quantized(t) for t in latent] if in_loop else latent
        loss = error(used)
        seen.append((loss.item(), [t.detach().clone() for t in (used if final else latent)]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    best = min(seen, key=lambda step: step[0])[1] if keep else [quantized(t).detach() for t in latent]
    return {"ptq": (ptq, error(ptq)), "qat": (best, error(best))}


def mixed_weights(cores):
    """Un dépliage des axes qui oublie de permuter."""
    out = math.prod(core.shape[2] for core in cores)
    return tt_contract([core.flatten(1, 2) for core in cores]).reshape(out, -1)


def reversed_outputs(cores):
    """Les sorties rangées du dernier cœur au premier."""
    W, outputs = tt_weights(cores), [core.shape[2] for core in cores]
    d = len(cores)
    return W.reshape(*outputs, -1).permute(*range(d)[::-1], d).reshape(W.shape)


@pytest.mark.parametrize(
    ("carelessness", "said"),
    [
        ({"through": False}, "→ aucun gradient à travers l'arrondi"),
        ({"in_loop": False, "keep": False}, "→ l'arrondi hors de la boucle"),
        ({"final": False}, "→ la quantification finale oubliée"),
        ({"keep": False}, "→ le dernier pas plutôt que le meilleur"),
        ({"copied": False}, "travaillez sur une copie (clone)"),
        ({"only": 0}, "→ des cœurs oubliés"),
        ({"only": -1}, "→ des cœurs oubliés"),
        ({"read": mixed_weights}, "→ des indices mal rangés"),
        ({"read": reversed_outputs}, "→ des indices mal rangés"),
        ({"read": lambda cores: tt_weights([core.transpose(1, 2) for core in cores])}, "→ des indices mal rangés"),
    ],
)
def test_careless_train_is_refused_and_named(carelessness, said, seed):
    bilan = verifier("9.6.1", lambda *args: careless_train(*args, **carelessness), graine=seed)
    assert not bilan.reussi
    assert said in repr(bilan)


def rounded_from_the_right(coeurs, n_bits, marge):
    """Par le paquet, mais la TT-SVD commence par le dernier cœur."""

    def flip(cores):
        return [core.transpose(0, 2).contiguous() for core in reversed(cores)]

    def cut(cores, ranks):
        return flip(tt_round(flip(cores), list(ranks)[::-1]))

    def grid(cores):
        quantizer = TTQuantizer(n_bits)
        return quantizer.dequantize_tt_cores(*quantizer.quantize_tt_cores(cores))

    def error(cores):
        return (tt_contract(cores) - T).norm() / T.norm()

    T, start = tt_contract(coeurs), grid(coeurs)
    possible = itertools.product(*(range(1, r + 1) for r in tt_ranks(coeurs)))
    trains = [
        train for train in (cut(start, ranks) for ranks in possible) if error(train) <= (1 + marge) * error(start)
    ]
    least = min(trains, key=lambda train: sum(core.numel() for core in train))
    reduced = {"apres": least, "avant": cut(coeurs, tt_ranks(least))}
    return {
        "rangs": tt_ranks(tt_round(start, error=1e-6)),
        **{key: grid(balance_cores(train)) for key, train in reduced.items()},
    }


@pytest.mark.parametrize("seed", range(5))
def test_ranks_may_be_reduced_from_either_end(seed):
    bilan = verifier("9.6.2", rounded_from_the_right, graine=seed)
    assert bilan.reussi, bilan


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: {**r, "rangs": r["rangs"][:-1]}, "les dépliements de T̂ sont de rangs"),
        (lambda r: {**r, "apres": r["apres"][:-1]}, "aux dimensions reçues"),
        (lambda r: {**r, "apres": [c.flatten(1) for c in r["apres"]]}, "aux dimensions reçues"),
        (lambda r: {**r, "avant": r["apres"]}, "→ avant et après confondus"),
        (lambda r: {**r, "apres": [2 * c for c in r["apres"]]}, "✗ apres : le train quantifié"),
    ],
)
def test_reduced_train_says_what_is_wrong(change, said, seed):
    bilan = verifier("9.6.2", lambda *args: change(reduced_ranks(*args)), graine=seed)
    assert not bilan.reussi
    assert said in repr(bilan)


@pytest.mark.parametrize("seed", range(10))
def test_lessons_of_the_trains_hold_on_every_instance(seed):
    """Tournés, les cœurs s'arrondissent mieux et gardent tous leurs rangs ; orthonormés, ils en perdent."""
    first, second, third, fourth = EXERCISES["9.6.2"].cases(torch.Generator().manual_seed(seed))
    torch.testing.assert_close(tt_contract(first.args[0]), tt_contract(second.args[0]))
    answers = [reduced_ranks(*case.args) for case in (first, second, third)]
    assert list(answers[0]["rangs"]) != [5, 5] == list(answers[1]["rangs"]) == list(answers[2]["rangs"])
    assert [core.shape[-1] for core in answers[2]["apres"]] == [5, 5, 1]
    whole = sum(core.numel() for core in first.args[0])
    for answer in answers[:2]:
        assert sum(core.numel() for core in answer["apres"]) < whole
    errors = []
    for cores, n_bits, _ in (first.args, second.args):
        quantizer = TTQuantizer(n_bits)
        noisy = quantizer.dequantize_tt_cores(*quantizer.quantize_tt_cores(cores))
        errors.append(float((tt_contract(noisy) - tt_contract(cores)).norm() / tt_contract(cores).norm()))
    assert errors[1] < errors[0]
    assert len(fourth.args[0]) == 4


@pytest.mark.parametrize("seed", range(10))
def test_lessons_of_the_orders_hold_on_every_instance(seed):
    """À trois bits, l'ordre se voit ; à huit, il ne se voit plus ; le résidu coûte W et y gagne."""
    low, high, strange, square = EXERCISES["11.4.1"].cases(torch.Generator().manual_seed(seed))
    for case in (low, strange, square):
        errors = {name: error for name, (error, _) in compared_orders(*case.args).items()}
        assert errors["bits_puis_rang"] > 1.04 * errors["rang_puis_bits"]
    first, second, third = (float(error) for error, _ in compared_orders(*high.args).values())
    assert second < 1.02 * first
    assert third < first


def test_w0_trained_in_place_is_said_and_named():
    """« W -= … » sur W₀ elle-même : LoRA part alors des poids déjà réglés."""

    def answer(W0, x, y, A, alpha, lr, pas):
        W = W0
        for _ in range(pas):
            W -= lr * 2 / y.numel() * (x @ W.T - y).T @ x
        full = lora_against_full(W0, x, y, A, alpha, lr, 0)["complet"]
        return {"complet": full, "lora": lora_against_full(W0, x, y, A, alpha, lr, pas)["lora"]}

    bilan = repr(verifier("11.2", answer, graine=0))
    assert "✗ les arguments ne sont pas modifiés" in bilan
    assert "→ W₀ changée" in bilan


@pytest.mark.parametrize("seed", range(10))
def test_lessons_of_lora_hold_on_every_instance(seed):
    """Sans la métrique, la SVD de la solution pleine perd ; et le rang de la somme n'est pas la somme des rangs."""
    for W0, x, y, _ in (case.args for case in EXERCISES["11.3.1"].cases(torch.Generator().manual_seed(seed))):
        U, S, Vh = torch.linalg.svd(torch.linalg.lstsq(x, y - x @ W0.T).solution.T)
        naive = W0 + U[:, :4] * S[:4] @ Vh[:4]
        assert ((y - x @ naive.T) ** 2).mean() > 1.02 * best_updates(W0, x, y, [4])[0]["perte"]
    first, *others = EXERCISES["11.3.3"].cases(torch.Generator().manual_seed(seed))
    ranks = [len(one_adapter(*case.args)[0]) for case in (first, *others)]
    sums = [sum(len(A) for A, _, _ in case.args[0]) for case in (first, *others)]
    assert ranks[0] == sums[0]
    assert all(rank < total for rank, total in zip(ranks[1:], sums[1:], strict=True))


def test_large_factors_refuse_the_whole_matrix():
    A, B = torch.ones(3, 2000).as_subclass(Facteur), torch.ones(1500, 3).as_subclass(Facteur)
    assert torch.equal(B @ (A @ torch.ones(2000, 2)), torch.full((1500, 2), 6000.0))
    assert torch.linalg.qr(B).R.shape == (3, 3)
    for product in (lambda: B @ A, lambda: torch.einsum("ir,rj->ij", B, A), lambda: torch.linalg.qr(B, "complete")):
        with pytest.raises(ValueError, match="restez sur les facteurs"):
            product()


def streamed(flux, largeur, erreur_max, graine, dtype=torch.float32, columns=None, reorthogonalize=False):
    """Un tour de puissance, puis W Q, par la matrice de Gram de l'esquisse."""
    X = torch.randn(flux.shape[1], columns or largeur, generator=seeded(graine), dtype=dtype)
    X = torch.linalg.qr(X).Q if reorthogonalize else X
    Q = torch.linalg.qr(sum(bloc.T.to(dtype) @ (bloc.to(dtype) @ X) for bloc in flux)).Q
    Y, norm2 = torch.empty(0, Q.shape[1], dtype=dtype), 0.0
    for bloc in flux:
        Y = torch.cat([Y, bloc.to(dtype) @ Q])
        norm2 += bloc.double().square().sum()
    values, V = torch.linalg.eigh((Y.T @ Y).double())
    S, V = values.flip(0).sqrt(), V.flip(1)
    erreurs = ((norm2 - (S**2).cumsum(0)) / norm2).sqrt()
    r = 1 + int((erreurs > erreur_max).sum())
    return Y.double() @ V[:, :r] / S[:r], S[:r], (Q.double() @ V[:, :r]).T, erreurs[r - 1]


@pytest.mark.parametrize(
    "settings",
    [{}, {"dtype": torch.float64}, {"reorthogonalize": True}, {"columns": 60}],
    ids=["float32", "float64", "départ orthonormé", "esquisse plus large"],
)
def test_matrix_may_be_read_in_many_ways(settings, seed):
    bilan = verifier("12.3.1", lambda *args: streamed(*args, **settings), graine=seed)
    assert bilan.reussi, bilan


def read_three_times(flux, largeur, erreur_max, graine):
    result = two_readings(flux, largeur, erreur_max, graine)
    return *result[:3], math.sqrt(sum(float(bloc.square().sum()) for bloc in flux))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (read_three_times, "déjà lu 2 fois"),
        (lambda flux, *args: torch.linalg.svd(torch.cat(list(flux))), "vous gardez 4 blocs, 3 au plus"),
        (lambda flux, *args: torch.cat([bloc.clone() for bloc in flux]), "cat rend un tenseur"),
        (lambda flux, *args: sum(bloc.T @ bloc for bloc in flux), "plus de 300000 nombres"),
        (lambda flux, *args: torch.linalg.qr(torch.cat([b[:, :9] for b in flux]), mode="complete"), "vous gardez"),
        (lambda flux, *args: torch.linalg.svd(torch.cat([b @ torch.ones(b.shape[1], 2) for b in flux])), "svd rend"),
        (lambda flux, *args: flux.T, "il n'a que shape"),
        (lambda *args: two_readings(*args)[:3], "reçu 3 valeur(s)"),
        (lambda *args: (*two_readings(*args)[:3], 0.5), "vous annoncez 0,5"),
        (lambda *args: ((r := two_readings(*args))[0].flip(1), *r[1:]), "vous annoncez"),
        (lambda flux, w, e, g: two_readings(flux, w, 0.98 * e, g), "aucun rang plus petit ne suffirait"),
        (lambda flux, w, e, g: two_readings(flux, w, 1.05 * e, g), "plus que"),
    ],
)
def test_matrix_badly_read_is_refused(answer, said):
    bilan = verifier("12.3.1", answer, graine=0)
    assert not bilan.reussi
    assert said in repr(bilan)


def test_stream_gives_the_matrix_twice_and_only_its_blocks():
    W = torch.randn(1300, 800, generator=seeded(0))
    flux = Flux(W, 300)
    blocks = []
    for bloc in flux:
        blocks.append(torch.tensor(bloc.tolist()))
        bloc.zero_()
    assert [len(block) for block in blocks] == [300, 300, 300, 300, 100]
    assert torch.equal(torch.cat(blocks), W)
    assert "lu 1 fois sur 2" in repr(flux)
    for bloc in flux:  # tout ce qu'on en tire garde la limite, même après plusieurs opérations
        with pytest.raises(MemoryError, match="matmul rend un tenseur 800×800"):
            _ = (bloc.double() + 1).T @ (2 * bloc.double())
        with pytest.raises(MemoryError, match="800×800"):
            torch.zeros(800, 800).addmm_(bloc.T, bloc)
    with pytest.raises(RuntimeError, match="ne se relit pas"):
        iter(flux)
    for readings in (1, 2):
        fresh = Flux(W, 300)
        kept = [bloc for _, bloc in zip(range(2 * readings), fresh, strict=False) if readings == 1]
        assert len(kept) == (2 if readings == 1 else 0)
    with pytest.raises(MemoryError, match="vous gardez 4 blocs"):
        list(Flux(W, 300))


def cache_by_octets(comprimer):
    connus = {}

    def avec_cache(poids, config):
        octets = poids.detach().contiguous().view(torch.int16).numpy().tobytes()
        cle = octets, str(poids.dtype), tuple(poids.shape), json.dumps(config, sort_keys=True)
        if cle not in connus:
            connus[cle] = comprimer(poids, config)
        return copy.deepcopy(connus[cle])

    return avec_cache


def cache_by_list(comprimer):
    connus = []

    def avec_cache(poids, config):
        texte = json.dumps(config, sort_keys=True)
        for W, c, r in connus:
            if (W.dtype, W.shape, c) == (poids.dtype, poids.shape, texte) and torch.equal(W, poids):
                return copy.deepcopy(r)
        connus.append((poids.detach().clone(), texte, comprimer(poids, config)))
        return copy.deepcopy(connus[-1][2])

    return avec_cache


@pytest.mark.parametrize("cache", [cache_by_octets, cache_by_list])
def test_cache_may_be_written_in_many_ways(cache, seed):
    bilan = verifier("12.3.2", cache, graine=seed)
    assert bilan.reussi, bilan


def last_only(comprimer):
    """Un cache d'une seule case."""
    connu = [None, None]

    def avec_cache(poids, config):
        cle = pickle.dumps((poids.tolist(), str(poids.dtype), json.dumps(config, sort_keys=True)))
        if connu[0] != cle:
            connu[:] = cle, pickle.dumps(comprimer(poids, config))
        return pickle.loads(connu[1])

    return avec_cache


def swallowed(comprimer):
    def comprimer_ou_rien(poids, config):
        with contextlib.suppress(RuntimeError):
            return comprimer(poids, config)

    return Memoire(comprimer_ou_rien)


def shared_by_all():
    connus = {}

    def cache_de_compressions(comprimer):
        cache = Memoire(comprimer)
        cache.connus = connus
        return cache

    return cache_de_compressions


def misspelt_dictionary(comprimer):
    def avec_cache(poids, config):
        return conus[poids]  # noqa: F821 — la faute de frappe est voulue

    return avec_cache


@pytest.mark.parametrize(
    ("cache", "said"),
    [
        (lambda comprimer: comprimer, "comprimer a été appelée 4 fois, attendu 2"),
        (functools.cache, "unhashable type: 'dict'"),
        (last_only, "même si une autre est venue entre-temps — "),
        (shared_by_all(), "deux caches, de deux fonctions, ne se mélangent pas — "),
        (swallowed, "les trois demandes ont donné fausse, fausse, fausse, attendu Panne, juste, juste"),
        (misspelt_dictionary, "return conus[poids]"),
        (lambda comprimer: comprimer(torch.ones(2, 2), {}), "KeyError"),
        (lambda comprimer: lambda poids, config: 3, "une réponse n'est pas celle de comprimer"),
        (lambda comprimer: {}, "reçu dict"),
    ],
)
def test_bad_cache_says_what_is_wrong(cache, said):
    bilan = verifier("12.3.2", cache, graine=0)
    assert not bilan.reussi
    assert said in repr(bilan)


def first_answer(comprimer):
    """Tout est la première demande."""
    connu = []

    def avec_cache(poids, config):
        connu[:] = connu or [comprimer(poids, config)]
        return connu[0]

    return avec_cache


def test_each_episode_of_the_cache_can_be_lost():
    exercise, lost = EXERCISES["12.3.2"], set()
    case = exercise.cases(seeded(0))[0]
    for cache in (lambda comprimer: comprimer, first_answer, shared_by_all(), cache_variant(failures=True)):
        properties = list(exercise.properties(exercise.trial(cache, case.args), case))
        lost |= {item.text for item in properties if not item.holds}
    assert lost == {item.text for item in properties} - {"cache_de_compressions rend une fonction"}


def test_modified_network_is_said():
    def answer(reseau, x, y, rangs):
        reseau[0].bias.zero_()
        return weight_error_and_accuracy(reseau, x, y, rangs)

    bilan = verifier("11.2.3", answer)
    assert "✗ les arguments ne sont pas modifiés" in repr(bilan)


@pytest.mark.parametrize("convert", [torch.tensor, np.array, lambda result: [list(pair) for pair in result]])
def test_pairs_may_be_arrays(convert):
    bilan = verifier("11.2.3", lambda *args: convert(weight_error_and_accuracy(*args)))
    assert bilan.reussi, bilan


@pytest.mark.parametrize("seed", range(20))
def test_one_network_two_inputs_two_accuracies(seed):
    """La leçon de l'exercice tient sur toute instance : même erreur de poids, précisions éloignées."""
    first, second, _ = EXERCISES["11.2.3"].cases(torch.Generator().manual_seed(seed))
    (error, accuracy), (same_error, ruined) = (weight_error_and_accuracy(*case.args)[0] for case in (first, second))
    assert error == same_error < 0.15
    assert accuracy - ruined > 0.3


@pytest.mark.parametrize("convert", [np.int64, torch.tensor])
def test_integers_of_other_libraries_are_integers(convert):
    assert verifier("11.1", lambda *args: convert(rank_for_layer(*args))).reussi
    assert verifier("11.1.1", lambda *args: convert(rank_for_compression(*args))).reussi


@pytest.mark.parametrize("low", [True, False])
def test_extreme_ranks_are_tried(low):
    def clamped(couche, erreur_max):
        rank = rank_for_layer(couche, erreur_max)
        return max(rank, 2) if low else min(rank, min(couche.weight.shape) - 1)

    assert not verifier("11.1", clamped).reussi


def test_rank_one_is_reachable_in_11_1_1():
    def shy(m, n, compression):
        if (rank := rank_for_compression(m, n, compression)) == 1:
            raise ValueError("impossible")
        return rank

    assert not verifier("11.1.1", shy).reussi


def test_none_on_one_case_is_not_a_stub():
    def forgets_to_refuse(m, n, compression):
        try:
            return rank_for_compression(m, n, compression)
        except ValueError:
            return None

    assert verifier("11.1.1", forgets_to_refuse).verdict == "à revoir"


@pytest.mark.parametrize("number", EXERCISES)
def test_each_exercise_names_at_least_three_mistakes(number):
    assert len(EXERCISES[number].mistakes) >= 3


@pytest.mark.parametrize("number", EXERCISES)
@pytest.mark.parametrize("stub", [lambda *args: ..., lambda *args: None])
def test_untouched_stub_is_to_be_completed(number, stub):
    assert verifier(number, stub).verdict == "à compléter"


def test_exception_shows_the_line_at_fault():
    def answer(couche, erreur_max):
        W = couche.weight
        return W @ W @ W  # formes incompatibles

    bilan = verifier("11.1", answer)
    assert bilan.verdict == "à revoir"
    assert "return W @ W @ W" in repr(bilan)
    assert "RuntimeError" in repr(bilan)


def test_the_answer_runs_on_the_threads_we_asked_for():
    """Le fil où elle court hérite du nombre choisi : sinon, deux vérifications voisines s'attendent l'une l'autre."""
    seen = []

    def answer(couche, erreur_max):
        seen.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "openmp")

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        verifier("11.1", answer)
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}


def test_endless_loop_is_stopped_and_shown(monkeypatch):
    monkeypatch.setattr(engine, "TIME_LIMIT", 0.2)
    threads = threading.active_count()

    def answer(couche, erreur_max):
        rang = 0
        while True:
            rang += 1

    bilan = verifier("11.1", answer)
    assert bilan.verdict == "à revoir"
    assert "boucle sans fin" in repr(bilan)
    assert "rang += 1" in repr(bilan) or "while True" in repr(bilan)
    assert threading.active_count() == threads


def test_endless_loop_that_swallows_everything_is_abandoned(monkeypatch):
    monkeypatch.setattr(engine, "TIME_LIMIT", 0.1)
    stop = threading.Event()

    def answer(couche, erreur_max):
        while not stop.is_set():
            with contextlib.suppress(BaseException):  # le lecteur avale tout
                time.sleep(0.001)

    bilan = verifier("11.1", answer)
    stop.set()
    assert "boucle sans fin" in repr(bilan)
    assert "ligne" in repr(bilan)


def test_global_generator_consumed_is_said_and_restored():
    torch.manual_seed(0)
    state = torch.get_rng_state()

    def answer(couche, erreur_max):
        torch.randn(3)
        return rank_for_layer(couche, erreur_max)

    bilan = verifier("11.1", answer)
    assert not bilan.reussi
    assert "torch.Generator" in repr(bilan)
    assert torch.equal(state, torch.get_rng_state())


def test_an_answer_that_leaves_python_is_an_error():
    """sys.exit() arrêterait le carnet ; le générateur, lui aussi, est rendu."""

    def leave(*args):
        torch.rand(3)
        sys.exit("fini")

    state = torch.get_rng_state()
    bilan = verifier("11.1.1", leave, graine=0)
    assert not bilan.reussi
    assert "SystemExit : fini" in repr(bilan)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("odd", ["tableau d'objets", "objet"])
def test_what_cannot_be_compared_gets_a_sentence(odd):
    class Unequal:
        def __eq__(self, other):
            raise RuntimeError("incomparable")

        __hash__ = None

    answer = np.array([None, 1], dtype=object) if odd == "tableau d'objets" else Unequal()
    for number in list(EXERCISES)[::5]:
        assert not verifier(number, lambda *args: answer, graine=0).reussi


def test_modified_argument_is_said():
    def answer(U, V, G):
        result = gradients(U, V, G)
        G.mul_(2)
        return result

    bilan = verifier("11.1.3", answer)
    assert not bilan.reussi
    assert "clone" in repr(bilan)


@pytest.mark.parametrize("answer", [3, "rang", object()])
def test_not_a_function(answer):
    assert verifier("11.1", answer).verdict == "erreur"


@pytest.mark.parametrize("result", ["douze", 2.5, True, {"svd": "x"}, [1, 2], nn.Identity()])
@pytest.mark.parametrize("number", EXERCISES)
def test_any_other_type_gets_a_sentence(number, result):
    bilan = verifier(number, lambda *args: result, graine=0)
    assert bilan.verdict == "à revoir"
    assert bilan._repr_html_().count("✗") >= 1


def test_unknown_exercise():
    with pytest.raises(ValueError, match=r"numero : reçu '11\.9'"):
        verifier("11.9", rank_for_layer)
    with pytest.raises(ValueError, match="numero : reçu"):
        verifier(["11.1.1"], rank_for_layer)


@pytest.mark.parametrize(("seed", "error"), [("a", TypeError), (1.5, TypeError), (-1, ValueError), (2**63, ValueError)])
def test_a_seed_is_an_integer(seed, error):
    with pytest.raises(error, match=r"^graine : reçu .*, attendu un entier entre 0 et"):
        verifier("11.1.1", rank_for_layer, graine=seed)


def test_instances_change_and_can_be_replayed():
    seen = set()
    for _ in range(4):
        verifier("11.1.1", lambda m, n, c: seen.add((m, n)) or rank_for_compression(m, n, c))
    assert len(seen) > 16
    replay = [verifier("11.1.1", lambda m, n, c: 1, graine=7).lines for _ in range(2)]
    assert replay[0] == replay[1]


def test_html_escapes_what_the_reader_wrote():
    bilan = verifier("11.1", lambda couche, erreur_max: "<script>")
    assert "<script>" not in bilan._repr_html_()


def test_same_is_not_vacuous():
    assert same(torch.ones(3), torch.ones(3) + 1e-9)
    assert not same(torch.ones(3), torch.ones(3) * 1.01)
    assert not same({"a": 1}, {"a": 2})
    assert not same(nn.Linear(2, 2), nn.Linear(2, 2))
    assert not same(torch.tensor([1.0, 1e-3]), torch.tensor([1.0, 2e-3]))
    assert same(torch.tensor([1.0, 1e-7]), torch.tensor([1.0, 2e-7]))  # l'arrondi d'un tenseur de norme un


def test_copies_share_nothing():
    network = nn.Sequential(nn.Linear(3, 2), nn.Sequential(nn.Linear(2, 2, bias=False)))
    copied = engine.copy_of(network)
    assert same(network, copied)
    copied[1][0].weight.data[0, 0] += 1
    assert not same(network, copied)
    matrices = [torch.ones(2), torch.ones(3)]
    engine.copy_of(matrices)[1].zero_()
    assert same(matrices, [torch.ones(2), torch.ones(3)])
    pairs = [(torch.ones(2), 0.5)]
    engine.copy_of(pairs)[0][0].zero_()
    assert same(pairs, [(torch.ones(2), 0.5)])


def test_checking_is_fast_and_silent(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        verifier("11.1.2", compare_initialisations)
    assert capsys.readouterr().out == ""
