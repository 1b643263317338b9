"""Un adaptateur LoRA contre celui de PEFT : un appel, un pas, un fichier ; et MiniLM à 3 bits, réparé.

Les deux adaptent la même couche, au même rang et à la même échelle ; la durée gagnée est celle qui entoure les
produits de matrices, et celle des tableaux intermédiaires que l'on n'écrit pas.
"""

import copy
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrq import (
    LoRALayer,
    LoRATrainer,
    PerChannel,
    QuantizedLinear,
    convert_model_to_lora,
    models,
    replace_linears,
    save_adapter,
)

from .table import Row, duration, number
from .timing import interleaved, seconds

SIZE, RANK = 768, 16
FORWARD = {1: 0.75, 32: 0.80, 512: 1.0}  # durée de lrq / durée de PEFT, par taille de lot
CALLS = {1: 200, 32: 50, 512: 4}
STEP, STEP_BATCH = 0.9, 512
FILE = 1.02
SHARE, LIMIT = 0.5, 60  # la moitié de ce que 3 bits ont perdu, en une minute


def measure(quick: bool) -> Iterator[Row]:
    """Une couche 768×768 de rang 16 : appels sans gradient, puis pas d'Adam ; le fichier d'un adaptateur de MiniLM."""
    import peft

    torch.manual_seed(0)
    linear = nn.Linear(SIZE, SIZE)
    config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["0"], init_lora_weights=False)
    theirs = peft.get_peft_model(nn.Sequential(copy.deepcopy(linear)), config).base_model.model[0]
    ours = LoRALayer(linear, RANK)
    ours.lora_A.data, ours.lora_B.data = (
        theirs.get_submodule(name).default.weight.data for name in ("lora_A", "lora_B")
    )
    for batch, target in FORWARD.items():
        x = torch.randn(batch, SIZE)
        with torch.inference_mode():
            torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)
            calls = [CALLS[batch]] * 2
            mine, other = interleaved([lambda x=x: ours(x), lambda x=x: theirs(x)], 11 if quick else 41, calls)
        yield compare(f"LoRALayer {SIZE}×{SIZE}, rang {RANK}, lot de {batch}", mine, other, target)
    x, y = torch.randn(STEP_BATCH, SIZE), torch.randn(STEP_BATCH, SIZE)
    ours.lora_A.data, ours.lora_B.data = ours.lora_A.data.clone(), ours.lora_B.data.clone()
    mine, other = interleaved([stepper(ours, x, y), stepper(theirs, x, y)], 11 if quick else 41, [2, 2])
    yield compare(f"pas d'Adam, {SIZE}×{SIZE}, rang {RANK}, lot de {STEP_BATCH}", mine, other, STEP)
    yield weigh()
    yield whole_step(quick)
    yield repair()


def compare(name: str, mine: float, theirs: float, target: float) -> Row:
    """Deux durées, et leur rapport."""
    ratio = mine / theirs
    goal = f"≤ {number(target, 2)}"
    return Row(f"{name}, contre PEFT", duration(mine), duration(theirs), number(ratio), goal, ratio <= target)


def stepper(layer: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    """Un pas : aller, retour, Adam."""
    optimizer = torch.optim.Adam([p for p in layer.parameters() if p.requires_grad], 1e-4)

    def step() -> None:
        optimizer.zero_grad()
        F.mse_loss(layer(x), y).backward()
        optimizer.step()

    return step


def weigh() -> Row:
    """Les octets du fichier, contre ceux des paramètres entraînés."""
    encoder = models.load_minilm()
    model = convert_model_to_lora(encoder, models.encoder_linears(encoder), RANK)
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(model, folder)
        whole = sum(path.stat().st_size for path in Path(folder).iterdir())
    ratio = whole / trained
    return Row(
        f"fichiers d'un adaptateur de MiniLM, rang {RANK}, contre ses paramètres",
        f"{whole} o",
        f"{trained} o",
        number(ratio, 4),
        f"≤ {number(FILE)}",
        ratio <= FILE,
    )


def batches(encoder: models.SentenceEncoder, sentences: list[str], wanted: Tensor) -> list[Any]:
    """Des lots de 32 phrases de longueurs voisines, avec les vecteurs à imiter."""
    order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
    found = []
    for chunk in torch.tensor(order).split(32):
        tokens = encoder.tokenizer([sentences[i] for i in chunk], padding=True, return_tensors="pt")
        found.append(((tokens["input_ids"], tokens["attention_mask"]), wanted[chunk]))
    return found


def imitation(out: Tensor, target: Tensor) -> Tensor:
    """Un moins le cosinus moyen de vecteurs unitaires."""
    return 1 - (out * target).sum(-1).mean()


def whole_step(quick: bool) -> Row:
    """Un pas d'Adam sur MiniLM : LoRA de rang 8 sur les 36 couches, contre tous les poids."""
    encoder = models.load_minilm()
    sentences = models.load_sentences("calibration")
    inputs, wanted = batches(encoder, sentences, encoder.encode(sentences))[6]
    lora = convert_model_to_lora(encoder, models.encoder_linears(encoder), rank=8)

    def stepping(model: nn.Module) -> Callable[[], None]:
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-6)

        def step() -> None:
            optimizer.zero_grad()
            imitation(model(*inputs), wanted).backward()
            optimizer.step()

        return step

    mine, full = interleaved([stepping(lora), stepping(encoder)], 3 if quick else 9, [1, 1])
    name = f"pas d'Adam sur MiniLM, 32 phrases de {inputs[0].shape[1]} jetons : LoRA de rang 8, contre tous les poids"
    return Row(name, duration(mine), duration(full), number(mine / full), "—", None)


def repair() -> Row:
    """MiniLM à 3 bits, réparé par des adaptateurs de rang 8 : ce qui est rattrapé, et en combien de temps."""
    encoder = models.load_minilm()
    names = models.encoder_linears(encoder)
    calibration, judged = models.load_sentences("calibration"), models.load_sentences("test")
    wanted, reference = encoder.encode(calibration), encoder.encode(judged)
    train, valid = batches(encoder, calibration[:320], wanted[:320]), batches(encoder, calibration[320:], wanted[320:])
    quantized = replace_linears(
        encoder, lambda layer: QuantizedLinear.from_linear(layer, 3, PerChannel(0), clipping="mse"), names
    )
    before = models.mean_cosine(quantized.encode(judged), reference)
    torch.manual_seed(0)
    model = convert_model_to_lora(quantized, names, rank=8)
    trainer = LoRATrainer(model, train, valid, lr=1e-3, loss=imitation)
    spent = seconds(lambda: trainer.train(6))
    after = models.mean_cosine(model.encode(judged), reference)
    share = (after - before) / (1 - before)
    return Row(
        f"MiniLM à 3 bits, réparé en 6 époques : cosinus {number(before)} → {number(after)}",
        duration(spent),
        f"{number(LIMIT, 2)} s",
        f"{number(100 * share)} % rattrapés",
        f"≥ {number(100 * SHARE, 2)} %",
        share >= SHARE and spent <= LIMIT,
    )
