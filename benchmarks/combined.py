"""Section 11.4 : MiniLM sur 4 bits, réparé par un résidu calibré ; QAT contre PTQ sur le réseau des chiffres."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

import lrq
from lrq import models

from .table import Row, number

REPAIRED = 0.975
SEEDS, EPOCHS, RANK, LEARNED = 5, 10, 16, 1147  # les 200 autres images d'apprentissage choisissent l'époque
QUICK_SENTENCES = 100


def measure(quick: bool) -> Iterator[Row]:
    """Le cosinus de MiniLM, puis l'exactitude du réseau des chiffres, cinq graines."""
    yield repair(quick)
    for n_bits in (3, 2):
        yield qat(n_bits, 2 if quick else SEEDS)


def repair(quick: bool) -> Row:
    """4 bits par groupes de 32, sans et avec un résidu de rang 8, sur les mêmes phrases de test."""
    encoder = models.load_minilm()
    names = models.encoder_linears(encoder)
    sentences = models.load_sentences("calibration"), models.load_sentences("test")
    learned, judged = (part[:QUICK_SENTENCES] if quick else part for part in sentences)
    seen = lrq.calibrate(encoder, names, lambda: encoder.encode(learned, batch_size=1))
    pipeline, target = lrq.CombinedCompressionPipeline(encoder), encoder.encode(judged)
    repaired = pipeline.apply_quantize_plus_low_rank(rank=8, n_bits=4, names=names, calibration=seen)
    alone = lrq.replace_linears(
        encoder, lambda layer: lrq.QuantizedLinear.from_linear(layer, 4, lrq.PerGroup(32)), names
    )
    mine, theirs = (models.mean_cosine(model.encode(judged), target) for model in (repaired, alone))
    return Row(
        f"MiniLM, 4 bits par groupes de 32 + résidu calibré de rang 8, {len(judged)} phrases : cosinus, contre 4 bits",
        number(mine, 4),
        number(theirs, 4),
        f"+{number(mine - theirs)}",
        "—" if quick else f"≥ {number(REPAIRED)}",
        None if quick else mine >= REPAIRED,
    )


def qat(n_bits: int, seeds: int) -> Row:
    """Même départ, mêmes lots, même nombre de pas : l'arrondi pendant l'apprentissage, ou après."""
    (x, y), (x_test, y_test) = models.load_digits_data()
    network = models.load_digits_network("mlp")
    start = lrq.replace_linears(
        network, lambda layer: lrq.FactorizedLinear.from_linear(layer, min(RANK, *layer.weight.shape))
    )
    held = [(x[LEARNED:], y[LEARNED:])]
    during, after = [], []
    for seed in range(seeds):
        order = torch.randperm(LEARNED, generator=torch.Generator().manual_seed(seed))
        batches: list[tuple[Tensor, Tensor]] = [(x[part], y[part]) for part in order.split(64)]
        learned = lrq.train_qat_low_rank(copy.deepcopy(start), batches, EPOCHS, held)
        rounded = lrq.train_qat_low_rank(each(start, n_bits), batches, EPOCHS, held)
        after.append(models.accuracy(each(learned, n_bits), x_test, y_test))
        during.append(models.accuracy(rounded, x_test, y_test))
    mine, theirs = (sum(values) / seeds for values in (during, after))
    won = sum(a > b for a, b in zip(during, after, strict=True))
    return Row(
        f"chiffres, rang {RANK}, {n_bits} bits, {seeds} graines : exactitude, QAT contre PTQ",
        f"{number(100 * mine)} %",
        f"{number(100 * theirs)} %",
        f"{won} sur {seeds}",
        f"{seeds} sur {seeds}",
        won == seeds,
    )


def each(model: nn.Module, n_bits: int) -> nn.Module:
    """La même, chaque facteur passant par une fausse quantification, une échelle par ligne."""
    twin = copy.deepcopy(model)
    for name, layer in model.named_children():
        setattr(twin, name, lrq.QATLowRankLinear.from_factorized(layer, n_bits, per_channel=True))
    return twin.eval()
