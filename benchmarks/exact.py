"""Deux calculs du même nombre, et leur écart : arrondi simulé de PyTorch, Tucker de TensorLy, adaptateur de PEFT."""

import copy
import tempfile
import warnings
from collections.abc import Iterator

import tensorly
import tensorly.decomposition
import torch
from torch import Tensor

import lrq
from lrq import models

from .table import Row

DRAWS = 200  # tenseurs, ou grilles
TUCKER = {torch.float32: 1e-5, torch.float64: 1e-10}
MERGED, PEFT = 1e-5, 1e-6
RANK = 16


def measure(quick: bool) -> Iterator[Row]:
    """Le pire écart de chaque égalité."""
    yield fake_quantized()
    yield from tuckered()
    yield from adapted()


def row(name: str, gap: float, target: float) -> Row:
    """Un écart, et le plus grand qu'on lui permette."""
    goal = "0" if target == 0 else f"≤ {target:.0e}"
    return Row(name, f"{gap:.0e}", "0", f"{gap:.0e}", goal, gap <= target)


def fake_quantized() -> Row:
    """Au bit près : codes de 2 à 8 bits, grilles symétriques ou non, moitiés exactes comprises."""
    generator, different, total = torch.Generator().manual_seed(0), 0, 0
    for i in range(DRAWS):
        n_bits, symmetric = 2 + i % 7, i % 2 == 0
        low, high = -(2 ** (n_bits - 1)) + symmetric, 2 ** (n_bits - 1) - 1
        scale = torch.rand(8, generator=generator) + 0.01
        zero = torch.zeros(8) if symmetric else torch.randint(low, high + 1, (8,), generator=generator).float()
        halves = torch.randint(-2 * 2**n_bits, 2 * 2**n_bits, (8, 32), generator=generator) / 2
        x = torch.cat([halves * scale[:, None], 2**n_bits * torch.randn(8, 32, generator=generator)], 1)
        quantizer = lrq.UniformQuantizer(n_bits, symmetric, granularity=lrq.PerChannel(0))
        mine = quantizer.fake_quantize(x, scale[:, None], zero[:, None])
        theirs = torch.fake_quantize_per_channel_affine(x, scale, zero.int(), 0, low, high)
        different += int((mine != theirs).sum())
        total += x.numel()
    name = f"arrondi simulé, {total} nombres : part qui diffère de torch.fake_quantize_per_channel_affine"
    return row(name, different / total, 0)


def tuckered() -> Iterator[Row]:
    """Aux rangs pleins, notre tenseur reconstruit et celui de TensorLy."""
    for dtype, target in TUCKER.items():
        generator, worst = torch.Generator().manual_seed(0), 0.0
        for _ in range(DRAWS):
            shape = torch.randint(2, 7, (3,), generator=generator).tolist()
            T = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            with tensorly.backend_context("numpy", local_threadsafe=True), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # il dit qu'il ramène un rang à ce que permet la forme
                theirs = torch.tensor(tensorly.tucker_to_tensor(tensorly.decomposition.tucker(T.numpy(), shape)))
            mine = lrq.tucker_contract(*lrq.tucker(T, shape))
            worst = max(worst, float((mine - theirs).norm() / T.norm()))
        yield row(
            f"Tucker, {DRAWS} tenseurs {str(dtype).removeprefix('torch.')} : écart à TensorLy, au pire", worst, target
        )


def adapted() -> Iterator[Row]:
    """MiniLM adapté : vivant, fusionné, défusionné ; puis écrit pour PEFT, et relu de PEFT."""
    import peft

    encoder, sentences = models.load_minilm(), models.load_sentences("test")[:64]
    names = models.encoder_linears(encoder)
    model = lrq.convert_model_to_lora(encoder, names, RANK, 1 / RANK)
    torch.manual_seed(0)
    for layer in lrq.lora_layers(model).values():
        layer.lora_B.data = torch.randn_like(layer.lora_B) / 10
    live = model.encode(sentences)

    def gap(found: Tensor) -> float:
        return float((found - live).abs().max())

    assert gap(encoder.encode(sentences)) > 1e-2, "un adaptateur qui ne change rien ne prouverait rien"
    lrq.merge_adapters(model)
    merged = model.encode(sentences)
    lrq.unmerge_adapters(model)
    name = f"MiniLM adapté au rang {RANK} : écart des plongements"
    yield row(
        f"{name}, fusionné puis défusionné, contre vivant", max(gap(merged), gap(model.encode(sentences))), MERGED
    )
    with tempfile.TemporaryDirectory() as folder:
        lrq.save_adapter(model, f"{folder}/lrq")
        theirs = peft.PeftModel.from_pretrained(copy.deepcopy(encoder), f"{folder}/lrq").eval()
        yield row(f"{name}, écrit par lrq, lu par PEFT", gap(theirs.encode(sentences)), PEFT)
        theirs.save_pretrained(f"{folder}/peft")
        back = lrq.load_adapter(copy.deepcopy(encoder), f"{folder}/peft")
        yield row(f"{name}, écrit par PEFT, lu par lrq", gap(back.encode(sentences)), PEFT)
