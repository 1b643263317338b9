"""Comprimer un réseau entier, section 12.3 : temps, mémoire et fidélité, sur MiniLM.

À mesurer sur une machine au repos, qui a deux cœurs au moins. Les temps sont à un fil par processus.
"""

import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lrq import CompressionCache, GPTQCompression, ParallelCompression, SVDCompression, save_weights
from lrq.layers import QuantizedLinear, replace_modules
from lrq.models import SentenceEncoder, encoder_linears, load_minilm, load_sentences, mean_cosine

from .peak import peak_bytes
from .table import Row, duration, number
from .timing import interleaved

ENCODER = ["bert.encoder.*"]
SVD_TARGET, PARALLEL_TARGET, CACHE_TARGET, MEMORY_TARGET = 1.2, 1.6, 0.05, 1.3
BITS_TARGET, COSINE_TARGET, SMALLER_TARGET, FILE_COSINE_TARGET, TWIN_TARGET = 4.6, 0.985, 7.0, 0.975, 1e-4
LAYERS, WIDTH, QUICK_WIDTH = 12, 1024, 512

PREPARE = """
import torch
from torch import nn
from lrq import MemoryEfficientCompression, SVDCompression

torch.set_num_threads(1)
layers, width = map(int, sys.argv[1:])
method = SVDCompression({"rank": 64})
method.compress(nn.Sequential(nn.Linear(8, 8)))  # ce que charge la première fois
"""
IN_PLACE = """
model = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))
MemoryEfficientCompression.compress_inplace(model, method)
"""


def measure(quick: bool) -> Iterator[Row]:
    """L'encodeur de MiniLM ; 400 phrases pour calibrer, 400 autres pour juger."""
    every = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = load_minilm()
        batches = model.batches(load_sentences("calibration"))
        yield whole_svd(model, 3 if quick else 7)
        yield parallel(WIDTH, 3 if quick else 5)
        yield cached(model, batches)
        yield memory(None if quick else MEMORY_TARGET, QUICK_WIDTH if quick else WIDTH)
        yield from fidelity(model, batches)
        yield from whole_file(model, batches)
    finally:
        torch.set_num_threads(every)


def whole_svd(model: SentenceEncoder, repeats: int) -> Row:
    """Tout l'encodeur, contre les seules décompositions de ses matrices."""
    weights = [model.get_submodule(name).weight.detach() for name in encoder_linears(model)]
    method = SVDCompression({"rank": 64, "layers": ENCODER})

    def decompose() -> None:
        for W in weights:
            torch.linalg.svd(W, full_matrices=False)

    mine, svd = interleaved([partial(method.compress, model), decompose], repeats, [1, 1])
    return Row(
        "SVDCompression de l'encodeur, rang 64, contre torch.linalg.svd de ses matrices",
        duration(mine),
        duration(svd),
        f"×{number(mine / svd)}",
        f"≤ ×{number(SVD_TARGET, 2)}",
        mine / svd <= SVD_TARGET,
    )


def parallel(width: int, repeats: int) -> Row:
    """Deux ouvriers déjà lancés, contre un : des SVD d'assez grandes matrices, sans calibration."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(LAYERS)))
    method = SVDCompression({"rank": 64})

    def by(workers: int) -> Callable[[], Any]:
        return partial(ParallelCompression().compress_parallel, model, method, workers)

    two, one = interleaved([by(2), by(1)], repeats, [1, 1])
    return Row(
        f"ParallelCompression de {LAYERS} couches {width}→{width}, SVD : deux ouvriers, contre un",
        duration(two),
        duration(one),
        f"×{number(one / two)}",
        f"≥ ×{number(PARALLEL_TARGET, 2)}",
        one / two >= PARALLEL_TARGET,
    )


def cached(model: SentenceEncoder, batches: Any) -> Row:
    """GPTQ relu depuis un cache, contre le premier passage, qui le remplit."""
    with tempfile.TemporaryDirectory() as folder:
        compression, method = ParallelCompression(CompressionCache(folder)), GPTQCompression({"layers": ENCODER})
        times = []
        for _ in range(2):
            start = time.perf_counter()
            compression.compress_parallel(model, method, 1, batches)
            times.append(time.perf_counter() - start)
    share = times[1] / times[0]
    return Row(
        "GPTQ depuis le cache, contre le premier passage",
        duration(times[1]),
        duration(times[0]),
        f"{number(100 * share)} %",
        f"≤ {number(100 * CACHE_TARGET, 1)} %",
        share <= CACHE_TARGET,
    )


def memory(target: float | None, width: int) -> Row:
    """Le pic, en place, réseau compris, contre le réseau et le travail d'une couche : le pic quand il n'y a qu'elle."""

    layer = 4 * width * (width + 1)
    work = peak_bytes(PREPARE, IN_PLACE, 1, width) - layer
    mine = peak_bytes(PREPARE, IN_PLACE, LAYERS, width)
    share = mine / (LAYERS * layer + work)
    return Row(
        f"en place, {LAYERS} couches {width}→{width}, SVD : le pic, contre le réseau et le travail d'une couche",
        f"{number(mine / 1e6)} Mo",
        f"{number((LAYERS * layer + work) / 1e6)} Mo",
        f"×{number(share)}",
        "—" if target is None else f"≤ ×{number(target, 2)}",
        None if target is None else share <= target,
    )


def fidelity(model: SentenceEncoder, batches: Any) -> Iterator[Row]:
    """GPTQ, quatre bits par groupes de 64 : bits par poids, cosinus, écart au réseau déquantifié."""
    method = GPTQCompression({"bits": 4, "group_size": 64, "layers": ENCODER})
    compressed = method.compress(model, batches)
    names, sentences = encoder_linears(model), load_sentences("test")
    weights = sum(model.get_submodule(name).weight.numel() for name in names)
    bits = 8 * sum(line.nbytes for line in method.report) / weights
    original, found = model.encode(sentences), compressed.encode(sentences)
    cosine = mean_cosine(original, found)
    name = "GPTQ de l'encodeur, 4 bits par groupes de 64"
    yield Row(
        f"{name} : bits par poids, échelles et biais compris",
        number(bits),
        "32",
        f"×{number(32 / bits)}",
        f"≤ {number(BITS_TARGET, 2)}",
        bits <= BITS_TARGET,
    )
    yield Row(
        f"{name} : cosinus moyen",
        number(cosine),
        "1",
        number(cosine),
        f"≥ {number(COSINE_TARGET)}",
        cosine >= COSINE_TARGET,
    )
    twin = replace_modules(copy.deepcopy(compressed), dict.fromkeys(names, dense))
    gap = float((found - twin.encode(sentences)).norm() / found.norm())
    yield Row(
        f"{name} : écart au même réseau déquantifié",
        number(gap),
        "0",
        number(gap),
        f"≤ {number(TWIN_TARGET, 1)}",
        gap <= TWIN_TARGET,
    )


def dense(layer: QuantizedLinear) -> nn.Linear:
    """La couche dense de mêmes poids."""
    m, n = layer.reconstruct_weight().shape
    found = nn.Linear(n, m, bias=layer.bias is not None)
    found.weight.data = layer.reconstruct_weight().detach()
    if layer.bias is not None:
        found.bias.data = layer.bias.detach()
    return found


def whole_file(model: SentenceEncoder, batches: Any) -> Iterator[Row]:
    """Le réseau entier sur le disque, plongements compris."""
    with tempfile.TemporaryDirectory() as folder:
        compressed = GPTQCompression({"embeddings": True}).compress(model, batches)
        paths = Path(folder, "original.safetensors"), Path(folder, "petit.safetensors")
        for net, path in zip((model, compressed), paths, strict=True):
            save_weights(net, path)
        before, after = (path.stat().st_size for path in paths)
    sentences = load_sentences("test")
    cosine = mean_cosine(model.encode(sentences), compressed.encode(sentences))
    name = "le fichier de MiniLM, GPTQ et plongements sur 4 bits"
    yield Row(
        name,
        f"{number(after / 1e6)} Mo",
        f"{number(before / 1e6)} Mo",
        f"×{number(before / after)}",
        f"≥ ×{number(SMALLER_TARGET, 2)}",
        before / after >= SMALLER_TARGET,
    )
    yield Row(
        f"{name} : cosinus moyen",
        number(cosine),
        "1",
        number(cosine),
        f"≥ {number(FILE_COSINE_TARGET)}",
        cosine >= FILE_COSINE_TARGET,
    )
