"""LoRA sur de vrais chiffres : ce qu'apprennent six rangs, trois échelles et trois pas, à côté d'un ajustement complet.

``python -m benchmarks.lora_study`` écrit ``lrq/data/lora.json``, que montre l'explorateur de la section 11.3 ; il faut
trois minutes, à un fil. Le réseau dense des chiffres apprend ceux qu'on a tournés d'un quart de tour. Chaque réglage
est essayé sur cinq graines, qui décident du tirage de A et de l'ordre des exemples. LoRA est montré à tous les pas ;
l'ajustement complet, à celui qui réussit le mieux sur des images tenues à l'écart de l'apprentissage et du jugement.
"""

import copy
import itertools
import json
import re
import statistics
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lrq
from lrq import models

TABLE = Path(lrq.__file__).parent / "data" / "lora.json"
RANKS = (1, 2, 4, 8, 16, 32)
SCALINGS = ("alpha", "alpha/r", "alpha/sqrt(r)")
ALPHA = 16  # la valeur la plus courante
RATES = (0.001, 0.003, 0.01)
FULL_RATES = (0.0003, 0.001, 0.003, 0.01)
SEEDS = 5
EPOCHS = 20
HELD_OUT = 347  # images d'apprentissage tenues à l'écart, pour choisir le pas de l'ajustement complet
NUMBERS = re.compile(r"\[\s+([\d\s,]+?)\s+\]")
NOTES = {
    "commande": "python -m benchmarks.lora_study",
    "contenu": "le réseau dense des chiffres, adapté aux chiffres tournés d'un quart de tour (torch.rot90), par "
    "models.fit : Adam, entropie croisée, lots de 64",
    "justes": "combien d'images de test sont bien classées, une ligne par graine, de l'époque 0 à la dernière",
    "pas_essayés": "taux moyen sur les images tenues à l'écart, après la dernière époque ; le meilleur est retenu",
    "formes": "lignes, colonnes, combien de couches adaptées",
}

Data = tuple[Tensor, Tensor]


def turned_digits() -> tuple[Data, Data]:
    """Les chiffres tournés d'un quart de tour : (images, étiquettes) pour apprendre, puis pour juger."""
    train, test = models.load_digits_data()
    return (torch.rot90(train[0], 1, (-2, -1)), train[1]), (torch.rot90(test[0], 1, (-2, -1)), test[1])


def adapted(rank: int, scaling: str, seed: int) -> nn.Module:
    """Le réseau gelé, un adaptateur sur chacune de ses trois couches ; la dernière n'en porte que de rang 10."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # le rang ramené à 10
        torch.manual_seed(seed)
        return lrq.convert_model_to_lora(models.load_digits_network("mlp"), rank=rank, alpha=ALPHA, scaling=scaling)


def follow(network: nn.Module, train: Data, test: Data, lr: float, seed: int, epochs: int = EPOCHS) -> list[int]:
    """Entraîne sur place comme :func:`lrq.models.fit` ; rend, époque après époque, combien d'images sont bien classées.

    Parameters
    ----------
    network : nn.Module
    train, test : (images, étiquettes)
    lr : float
    seed : int
        Graine de l'ordre des exemples.
    epochs : int

    Returns
    -------
    list[int], epochs + 1 nombres
        Le premier, avant d'apprendre.
    """
    (x_train, y_train), (x, y) = train, test
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr)

    def correct() -> int:
        return round(models.accuracy(network, x, y) * len(y))

    found = [correct()]
    for _ in range(epochs):
        for batch in torch.randperm(len(x_train), generator=generator).split(64):
            loss = F.cross_entropy(network(x_train[batch]), y_train[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found.append(correct())
    return found


def full_curves(train: Data, test: Data, lr: float) -> list[list[int]]:
    """L'ajustement de tous les paramètres, une courbe par graine."""
    base = models.load_digits_network("mlp")
    return [follow(copy.deepcopy(base), train, test, lr, seed) for seed in range(SEEDS)]


def full_study(train: Data, test: Data) -> dict[str, Any]:
    """L'ajustement complet, à son meilleur pas."""
    (x, y), kept = train, len(train[1]) - HELD_OUT
    part, judge = (x[:kept], y[:kept]), (x[kept:], y[kept:])
    scores = {}
    for lr in FULL_RATES:
        last = [curve[-1] for curve in full_curves(part, judge, lr)]
        scores[lr] = round(statistics.mean(last) / HELD_OUT, 4)
    best = max(scores, key=scores.__getitem__)
    return {"pas_essayés": [[lr, score] for lr, score in scores.items()], "lr": best} | {
        "justes": full_curves(train, test, best)
    }


def networks() -> list[dict[str, Any]]:
    """Les réseaux dont on compte les paramètres : tous, et la forme des couches adaptées."""
    digits, encoder = models.load_digits_network("mlp"), models.load_minilm()
    linears = models.encoder_linears(encoder)
    chosen = {
        "MLP des chiffres": (digits, [name for name, _ in digits.named_children()]),
        "MiniLM, 36 couches": (encoder, linears),
        "MiniLM, query et value": (encoder, [name for name in linears if name.endswith(("query", "value"))]),
    }
    return [
        {
            "nom": name,
            "parametres": sum(p.numel() for p in network.parameters()),
            "formes": [
                [*shape, count]
                for shape, count in Counter(tuple(network.get_submodule(each).weight.shape) for each in layers).items()
            ],
        }
        for name, (network, layers) in chosen.items()
    ]


def write(table: dict[str, Any], path: Path = TABLE) -> None:
    """Écrit la table, une courbe par ligne."""
    text = json.dumps(table, ensure_ascii=False, indent=1)
    path.write_text(NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n", encoding="utf-8")


def main() -> None:
    """Entraîne tous les réseaux, et récrit la table."""
    torch.set_num_threads(1)
    train, test = turned_digits()
    full = full_study(train, test)
    rows = []
    for scaling, lr, rank in itertools.product(SCALINGS, RATES, RANKS):
        curves = [follow(adapted(rank, scaling, seed), train, test, lr, seed) for seed in range(SEEDS)]
        print(scaling, lr, rank, [curve[-1] for curve in curves], file=sys.stderr)
        rows.append({"scaling": scaling, "lr": lr, "rank": rank, "justes": curves})
    settings = {"scaling": SCALINGS, "lr": RATES, "rank": RANKS, "alpha": ALPHA, "epochs": EPOCHS}
    versions = {"python": sys.version.split()[0], "torch": torch.__version__}
    told = {"versions": versions, "fils": 1, "réglages": settings | {"seed": list(range(SEEDS))}}
    images = {"images": len(test[1]), "tenues_à_l_écart": HELD_OUT}
    write({**NOTES, **told, **images, "réseaux": networks(), "complet": full, "lora": rows})


if __name__ == "__main__":
    main()
