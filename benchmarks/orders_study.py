"""Rang faible et quantification sur MiniLM entier : les trois ordres, à octets égaux, de 2,5 à 6 bits par poids.

``python -m benchmarks.orders_study`` écrit ``lrq/data/orders.json``, que montre la section 11.4 ; il faut une heure.
Des noms de façons, en arguments, ne refont que celles-là.
Chaque façon essaie plusieurs réglages sous le même budget ; les phrases de calibration choisissent le meilleur,
celles de test le jugent.
"""

import argparse
import functools
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lrq
from lrq import models
from lrq.layers import CompressedLinear
from lrq.quantizers import Granularity

TABLE = Path(lrq.__file__).parent / "data" / "orders.json"
BUDGETS = (2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0)  # bits par poids, codes, échelles et facteurs compris, biais non compris
WAYS = ("low_rank_then_bits", "bits_then_low_rank", "bits_alone", "bits_plus_residual")
BY_ROW = lrq.PerChannel(0)
GRANULARITIES: dict[str, Granularity] = {
    "ligne": BY_ROW,
    "groupes de 128": lrq.PerGroup(128),
    "groupes de 64": lrq.PerGroup(64),
    "groupes de 32": lrq.PerGroup(32),
}
FACTOR_BITS = (4, 8)  # des facteurs du résidu
CLIPPING = "mse"

Setting = dict[str, Any]
Convert = Callable[[str, nn.Linear], CompressedLinear]


def rank_within(bits: float, n_bits: int, m: int, n: int) -> int:
    """Le plus grand rang dont deux facteurs, une échelle par ligne comprise, tiennent en `bits` par poids de W."""
    return min(int((bits * m * n - 32 * (m + n)) / (n_bits * (m + n))), m, n)


def converter(way: str, budget: float, setting: Setting, seen: dict[str, lrq.Calibration]) -> Convert:
    """Comment cette façon comprime une couche, sous ce budget."""
    n_bits = setting["n_bits"]
    granularity = GRANULARITIES[setting["granularity"]]
    quantizer = lrq.UniformQuantizer(n_bits, granularity=granularity, clipping=CLIPPING)

    def low_rank(name: str, layer: nn.Linear) -> CompressedLinear:
        rank = rank_within(budget, n_bits, *layer.weight.shape)
        return lrq.QuantizedLowRankLinear.from_linear(layer, rank, n_bits, seen[name], BY_ROW, CLIPPING, rotate=True)

    def rounded_first(name: str, layer: nn.Linear) -> CompressedLinear:
        rounded = nn.Linear(layer.in_features, layer.out_features)
        rounded.load_state_dict(layer.state_dict() | {"weight": quantizer.quantize_dequantize(layer.weight)})
        return low_rank(name, rounded)

    def alone(name: str, layer: nn.Linear) -> CompressedLinear:
        return lrq.QuantizedLinear.from_linear(layer, n_bits, granularity, CLIPPING)

    def residual(name: str, layer: nn.Linear) -> CompressedLinear:
        factor_bits = setting["factor_bits"]
        rank = rank_within(budget - stored(n_bits, granularity), factor_bits, *layer.weight.shape)
        return lrq.QuantizedResidualLinear.from_linear(
            layer, rank, n_bits, seen[name], granularity, CLIPPING, factor_bits, rotate=True
        )

    return dict(zip(WAYS, (low_rank, rounded_first, alone, residual), strict=True))[way]


def stored(n_bits: int, granularity: Granularity) -> float:
    """Bits par poids d'une couche 384×384 quantifiée ; les plus grandes n'en prennent pas plus."""
    return 8 * lrq.QuantizedLinear(384, 384, n_bits, granularity=granularity).nbytes() / 384**2


def settings(way: str, budget: float) -> Iterator[Setting]:
    """Les réglages qu'une façon essaie sous ce budget."""
    if way in ("low_rank_then_bits", "bits_then_low_rank"):
        yield from ({"n_bits": n_bits, "granularity": "ligne"} for n_bits in (3, 4, 5, 6, 8))
        return
    left = 0.0 if way == "bits_alone" else (max(FACTOR_BITS) + 32) * 2 / 384  # au moins un résidu de rang 1
    for name, granularity in GRANULARITIES.items():
        fitting = [n_bits for n_bits in range(1, 9) if stored(n_bits, granularity) + left <= budget]
        if way == "bits_alone":
            yield from ({"n_bits": n_bits, "granularity": name} for n_bits in fitting[-1:])
        elif name in ("ligne", "groupes de 128"):  # de plus petits groupes laissent trop peu au résidu
            for n_bits in fitting[-2:]:  # moins de bits, c'est un résidu plus grand
                yield from ({"n_bits": n_bits, "granularity": name, "factor_bits": bits} for bits in FACTOR_BITS)


class Judge:
    """MiniLM, ses phrases, et ce qu'il reste de leur sens quand ses 36 couches sont comprimées."""

    def __init__(self) -> None:
        self.encoder = models.load_minilm()
        self.names = models.encoder_linears(self.encoder)
        self.sentences = {part: models.load_sentences(part) for part in ("calibration", "test")}
        self.seen = lrq.calibrate(
            self.encoder, self.names, lambda: self.encoder.encode(self.sentences["calibration"], batch_size=1)
        )
        self.reference = {part: self.encoder.encode(sentences) for part, sentences in self.sentences.items()}
        self.weights = sum(self.encoder.get_submodule(name).weight.numel() for name in self.names)

    def measure(self, convert: Convert) -> dict[str, float]:
        """Bits par poids, et cosinus moyen avec le réseau d'origine sur chaque moitié des phrases."""
        model = lrq.replace_linears(self.encoder, {name: functools.partial(convert, name) for name in self.names})
        layers = [model.get_submodule(name) for name in self.names]
        bits = 8 * sum(layer.nbytes() - layer.bias.nbytes for layer in layers) / self.weights
        for name, layer in zip(self.names, layers, strict=True):  # déquantifiée une fois : le même calcul, plus vite
            dense = nn.Linear(layer.in_features, layer.out_features)
            dense.load_state_dict({"weight": layer.reconstruct_weight(), "bias": layer.bias})
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, dense)
        cosines = {
            part: models.mean_cosine(reference, model.encode(self.sentences[part]))
            for part, reference in self.reference.items()
        }
        return {"bits": round(bits, 4), **{part: round(cosine, 5) for part, cosine in cosines.items()}}


def main() -> None:
    """Mesure toutes les façons, ou quelques-unes, et récrit la table à mesure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.orders_study", description=__doc__)
    parser.add_argument("façons", nargs="*", choices=[*WAYS, []], help="seulement celles-ci ; les autres restent")
    chosen = parser.parse_args().façons or WAYS
    before = json.loads(TABLE.read_text(encoding="utf-8"))["mesures"] if TABLE.exists() else []
    rows = {(row["budget"], row["façon"]): [] for row in before}
    for row in before:
        rows[row["budget"], row["façon"]].append(row)
    torch.set_grad_enabled(False)
    judge = Judge()
    for budget, way in itertools.product(BUDGETS, chosen):
        tried = []
        for setting in settings(way, budget):
            measured = judge.measure(converter(way, budget, setting, judge.seen))
            tried.append({"budget": budget, "façon": way, **setting, **measured})
            print(tried[-1], file=sys.stderr, flush=True)
        best = max(tried, key=lambda row: row["calibration"])
        rows[budget, way] = [row | {"retenu": row is best} for row in tried]
        write([row for place in itertools.product(BUDGETS, WAYS) for row in rows.get(place, [])])


def write(rows: list[dict[str, Any]]) -> None:
    """Écrit la table, une mesure par ligne."""
    table = {
        "commande": "python -m benchmarks.orders_study",
        "contenu": "cosinus moyen avec le réseau d'origine, 36 couches comprimées, 400 phrases de calibration et 400 "
        "de test ; retenu : le meilleur réglage sur les phrases de calibration",
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
        "sha256": models.MINILM_SHA256,
        "mesures": rows,
    }
    text = json.dumps(table, ensure_ascii=False, indent=1).replace("\n  {\n   ", "\n  {").replace(",\n   ", ", ")
    TABLE.write_text(text.replace("\n  }", "}") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
