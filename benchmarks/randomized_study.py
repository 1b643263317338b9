"""La SVD aléatoire sur de vraies matrices : erreur et durée de chaque réglage.

``python -m benchmarks.randomized_study`` écrit ``lrq/data/randomized_svd.json``, que montre l'explorateur de la section
11.2 ; il faut une vingtaine de minutes. Les durées sont des temps de processeur, à un seul fil : celles qu'on attend
sur une machine au repos ; sur une machine occupée, elles ne comptent pas ce que prennent les autres programmes. À
chaque tour, tous les réglages passent dans un ordre tiré au hasard, la SVD complète entre eux ; le tour donne aussi la
graine.
"""

import argparse
import hashlib
import json
import random
import re
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lrq
from lrq import models

TABLE = Path(lrq.__file__).parent / "data" / "randomized_svd.json"
RANKS = (8, 16, 32, 64, 128)
OVERSAMPLES = (0, 2, 5, 10, 20, 40)
ITERATIONS = (0, 1, 2, 3, 4)
SEEDS = 10  # la graine 0, celle de la table, et neuf autres pour l'étendue
MINILM = 'models.load_minilm_weights()["{}"]'
MATRICES = {  # nom → l'expression qui rend la matrice, le nombre de tours
    "query, bloc 1": (MINILM.format("encoder.layer.0.attention.self.query.weight"), 30),
    "dense 1, bloc 1": (MINILM.format("encoder.layer.0.intermediate.dense.weight"), 20),
    "vecteurs de mots": (MINILM.format("embeddings.word_embeddings.weight"), SEEDS),
    "photographie": ("models.load_photograph()", 20),
}
NUMBERS = re.compile(r"\[\s+([\d\s.,e+-]+?)\s+\]")
NOTES = {
    "commande": "python -m benchmarks.randomized_study",
    "contenu": "erreurs relatives (Frobenius) de lrq.approximate_svd_large, et durée de l'appel, mesure de l'erreur "
    "comprise, à côté de torch.linalg.svd(W, full_matrices=False)",
    "durées": "médianes, en ms, du temps de processeur, à un fil, mesures entrelacées",
    "mesures": "rank, oversample, n_iter, erreur à la graine 0, la plus petite et la plus grande sur toutes les "
    "graines, durée",
    "optimum": "erreur de la SVD tronquée, pour chaque rang",
}


def load(expression: str) -> Tensor:
    """La matrice que dit l'expression."""
    return eval(expression, {"models": models})


def sha256(W: Tensor) -> str:
    """Empreinte des coefficients, en float32 petit-boutiste, ligne à ligne."""
    return hashlib.sha256(W.contiguous().numpy().astype("<f4").tobytes()).hexdigest()


def clocked(function: Callable[[], Any]) -> tuple[Any, float]:
    """Ce que rend la fonction, et son temps de processeur en millisecondes."""
    start = time.process_time()
    result = function()
    return result, 1e3 * (time.process_time() - start)


def study(W: Tensor, turns: int, ranks: tuple[int, ...] = RANKS) -> dict[str, Any]:
    """Les mesures d'une matrice, à un fil.

    Parameters
    ----------
    W : Tensor, (m, n)
    turns : int, au moins SEEDS
    ranks : tuple d'int
    """
    settings = [(r, p, q) for r in ranks for p in OVERSAMPLES for q in ITERATIONS]
    order, threads = random.Random(0), torch.get_num_threads()
    errors: dict[tuple[int, int, int], dict[int, float]] = defaultdict(dict)
    durations: dict[Any, list[float]] = defaultdict(list)
    torch.set_num_threads(1)
    try:
        optimum = lrq.truncation_errors(lrq.singular_values(W))
        torch.linalg.svd(W, full_matrices=False)  # un tour de chauffe
        for turn in range(turns):
            seed = turn % SEEDS
            for place, (r, p, q) in enumerate(order.sample(settings, len(settings))):
                if place % 30 == 0:
                    durations["full"].append(clocked(lambda: torch.linalg.svd(W, full_matrices=False))[1])
                svd, spent = clocked(partial(lrq.approximate_svd_large, W, r, p, q, seed))
                errors[r, p, q][seed] = svd.error
                durations[r, p, q].append(spent)
            print(f"  tour {turn + 1} sur {turns}", file=sys.stderr)
    finally:
        torch.set_num_threads(threads)
    rows = []
    for setting in settings:
        found = errors[setting]
        spread = [digits(x, 8) for x in (found[0], min(found.values()), max(found.values()))]
        rows.append([*setting, *spread, digits(statistics.median(durations[setting]), 4)])
    return {
        "forme": list(W.shape),
        "sha256": sha256(W),
        "tours": turns,
        "svd_complete_ms": digits(statistics.median(durations["full"]), 4),
        "optimum": [digits(float(optimum[r - 1]), 8) for r in ranks],
        "mesures": rows,
    }


def digits(value: float, count: int) -> float:
    """Le nombre, à `count` chiffres significatifs."""
    return float(f"{value:.{count}g}")


def write(table: dict[str, Any], path: Path = TABLE) -> None:
    """Écrit la table, une mesure par ligne."""
    text = json.dumps(table, ensure_ascii=False, indent=1)
    text = NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text)  # json met chaque nombre sur sa ligne
    path.write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """Mesure toutes les matrices, ou quelques-unes, et récrit la table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.randomized_study", description=__doc__)
    parser.add_argument("matrices", nargs="*", metavar="matrice", help="seulement celles-ci ; les autres restent")
    chosen = parser.parse_args().matrices or list(MATRICES)
    if unknown := set(chosen) - set(MATRICES):
        parser.error(f"matrices inconnues : {', '.join(sorted(unknown))} ; attendu parmi {', '.join(MATRICES)}")
    before = json.loads(TABLE.read_text(encoding="utf-8"))["matrices"] if TABLE.exists() else []
    records = {record["nom"]: record for record in before}
    for name in chosen:
        expression, turns = MATRICES[name]
        print(name, file=sys.stderr)
        records[name] = {"nom": name, "code": expression, **study(load(expression), turns)}
        kept = [records[name] for name in MATRICES if name in records]
        versions = {"python": sys.version.split()[0], "torch": torch.__version__}
        settings = {"rank": RANKS, "oversample": OVERSAMPLES, "n_iter": ITERATIONS, "seed": list(range(SEEDS))}
        write({**NOTES, "versions": versions, "fils": 1, "réglages": settings, "matrices": kept})


if __name__ == "__main__":
    main()
