"""Un réseau entier sous un budget : les recettes du livre et d'ailleurs sur MiniLM, à côté d'une répartition calculée.

``python -m benchmarks.model_study`` écrit ``lrq/data/whole_model.json``, que montre l'explorateur de la section 12.3 ;
il faut une dizaine de minutes, à un fil, et torchao (``pip install torchao==0.18.0`` : pas une dépendance, car il écrit
de longs avertissements dès que transformers se charge). Des noms de parties, en arguments, ne refont que celles-là.
Rien n'y est tiré au hasard, sauf les matrices gaussiennes de ``scaling`` (graine 0).
"""

import argparse
import copy
import json
import math
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lrq
from lrq import models
from lrq.compression.method import CompressionMethod, Task
from lrq.errors import pareto_front
from lrq.quantizers import QuantizedTensor
from lrq.tensor_train import clamped_ranks

TABLE = Path(lrq.__file__).parent / "data" / "whole_model.json"
PARTS = ("recipes", "files", "budgets", "scaling")
ENCODER = ["bert.encoder.*"]
ATTENTION = ["bert.encoder.layer.*.attention.*"]  # 384×384
DENSE = ["bert.encoder.layer.?.intermediate.dense", "bert.encoder.layer.?.output.dense"]  # 1536×384 et 384×1536
BITS = (2, 3, 4, 5, 6, 8)
RANKS = (0, 8, 32)
PROBES = 64  # phrases qui mesurent les sensibilités
BUDGETS = (2.375, 2.5, 2.75, 3.0, 3.375, 3.75, 4.0, 4.375, 4.75, 5.0, 5.375, 5.75, 6.375, 7.25, 8.375)  # bits par poids
SIZES = (256, 512, 1024, 2048)
REPEATS = 3
LLAMA = {  # forme → combien, pour 7 milliards de paramètres
    (4096, 4096): 4 * 32,
    (11008, 4096): 2 * 32,
    (4096, 11008): 32,
    (32000, 4096): 2,
}
NOTES = {
    "recipes": "cosinus moyen des plongements de 400 phrases avec ceux de l'original ; octets des 36 couches linéaires "
    "de l'encodeur, biais non compris ; front : nulle autre recette n'est à la fois aussi légère et plus fidèle",
    "calibration": "400 autres phrases, une à une ; grilles asymétriques au moindre carré, échelles sur deux octets, "
    "sauf mention contraire",
    "ailleurs": "codes_seuls : ce que pèseraient leurs codes serrés, sans point zéro s'il est nul ; "
    "Int4WeightOnlyConfig, qui serre ses codes, exige mslk, absent ici ; IntxWeightOnlyConfig garde chaque code de 4 "
    "bits sur un octet",
    "budgets": "lrq.BudgetCompression ; uniforme : la plus fidèle des recettes qui tienne dans les mêmes octets",
    "options": "pertes : le carré de l'erreur relative que chaque réglage [bits, rang] causerait aux sorties, à lui "
    "seul ; octets : par forme (out, in) ; erreurs_prévues : le même réglage partout",
    "files": "save_weights sur le réseau entier, plongements et normalisations compris",
    "scaling": "secondes mesurées : médiane de temps de processeur, un fil ; exposants ajustés sur les trois plus "
    "grandes tailles ; tout ce qui touche à LLaMA-7B est extrapolé de ces mesures, ou compté",
}

Build = Callable[[], nn.Module]


class Rounded(lrq.BudgetCompression):
    """La même, qui n'arrondit jamais deux fois une couche sur autant de bits."""

    known: dict[tuple[int, int], QuantizedTensor]

    def rounded(self, layer: nn.Module, seen: Any, bits: int | None = None) -> QuantizedTensor:
        known = self.__dict__.setdefault("known", {})
        key = id(layer), bits
        if key not in known:
            known[key] = super().rounded(layer, seen, bits)
        return known[key]


class Judge:
    """MiniLM, ses phrases, ce que ses couches reçoivent, et ce qu'il reste de leur sens une fois comprimé."""

    def __init__(self) -> None:
        self.encoder = models.load_minilm()
        self.names = models.encoder_linears(self.encoder)
        self.sentences = models.load_sentences("test")
        self.reference = self.encoder.encode(self.sentences)
        self.weights = sum(self.encoder.get_submodule(name).weight.numel() for name in self.names)

    @cached_property
    def batches(self) -> list[dict[str, Tensor]]:
        """Les phrases de calibration, une à une : rien n'y est complété."""
        tokenize = self.encoder.tokenizer
        return [dict(tokenize(sentence, return_tensors="pt")) for sentence in models.load_sentences("calibration")]

    @cached_property
    def moments(self) -> dict[str, Any]:
        """Le second moment des entrées de chaque couche."""
        return self.heard(lrq.GPTQCompression({"layers": [*ENCODER, "bert.pooler.*"]}))

    @cached_property
    def histograms(self) -> dict[str, Any]:
        """L'histogramme des entrées de chaque couche."""
        return self.heard(lrq.PTQCompression({"layers": ENCODER}))

    def heard(self, method: CompressionMethod) -> dict[str, Any]:
        """Ce que la calibration apprend à une méthode, couche par couche."""
        tasks = method.select(self.encoder)
        method.observe(self.encoder, tasks, self.batches)
        return {task.names[0]: task.seen[0] for task in tasks}

    @cached_property
    def budget(self) -> Rounded:
        """La répartition, calibrée."""
        return Rounded(
            {"budget": 1, "layers": ENCODER, "bit_choices": BITS, "rank_choices": RANKS, "probe_batches": PROBES}
        )

    @cached_property
    def tasks(self) -> list[Task]:
        """Une par couche de l'encodeur."""
        return self.ready(self.budget, self.moments)

    def ready(self, method: CompressionMethod, seen: dict[str, Any], model: nn.Module | None = None) -> list[Task]:
        """Les couches à comprimer, avec ce qu'une calibration déjà faite en a retenu."""
        tasks = method.select(self.encoder if model is None else model)
        for task in tasks:
            task.seen = [seen[name] for name in task.names if name in seen]
        return tasks

    def compress(self, method: CompressionMethod, model: nn.Module | None = None) -> nn.Module:
        """Ce que rendrait method.compress(model, batches), sans refaire la calibration."""
        model = self.encoder if model is None else model
        seen = (
            {} if not method.observes else self.histograms if isinstance(method, lrq.PTQCompression) else self.moments
        )
        tasks = self.ready(method, seen, model)
        return method.finish(model, tasks, [method.run(task) for task in tasks], None, None)

    def chain(self, *methods: CompressionMethod) -> nn.Module:
        """Plusieurs méthodes, chacune sur ce que la précédente a rendu."""
        model: nn.Module = self.encoder
        for method in methods:
            model = self.compress(method, model)
        return model

    def uniform(self, bits: int, rank: int) -> nn.Module:
        """GPTQ sur autant de bits partout, plus un résidu de ce rang."""
        layers = [self.budget.assemble(task.layer, task.heard(0), bits, rank) for task in self.tasks]
        return lrq.replace_linears(self.encoder, dict(zip(self.names, map(always, layers), strict=True)))

    def cosine(self, model: nn.Module) -> float:
        """La fidélité d'un réseau comprimé."""
        return round(models.mean_cosine(self.reference, model.encode(self.sentences)), 6)  # type: ignore[operator]

    def row(self, model: nn.Module) -> dict[str, float]:
        """Octets, bits par poids et fidélité."""
        nbytes = sum(weighed(model.get_submodule(name)) for name in self.names)
        return {"bytes": nbytes, "bits_per_weight": round(8 * nbytes / self.weights, 4), "cosine": self.cosine(model)}


def always(layer: nn.Module) -> Callable[[nn.Linear], nn.Module]:
    """Ce qui remplace n'importe quelle couche par celle-ci."""
    return lambda _: layer


def weighed(layer: Any) -> int:
    """Octets d'une couche, biais non compris, quelle que soit la bibliothèque qui l'a faite."""
    if callable(getattr(layer, "weight", None)):  # torch.ao
        W = layer.weight()
        scales = W.q_per_channel_scales().numel() if W.qscheme() == torch.per_channel_affine else 1
        return W.numel() + 8 * scales
    return sum(t.nbytes for name, each in named_tensors(layer) if not name.endswith("bias") for t in inside(each))


def named_tensors(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Les paramètres et les tampons d'une couche."""
    yield from layer.named_parameters()
    yield from layer.named_buffers()


def inside(t: Tensor) -> list[Tensor]:
    """Les tenseurs que range un tenseur composé, comme ceux de torchao."""
    if not hasattr(t, "__tensor_flatten__"):
        return [t]
    return [piece for name in t.__tensor_flatten__()[0] for piece in inside(getattr(t, name))]


# --- les recettes -----------------------------------------------------------------------------------------------------


def nearest(judge: Judge, bits: int, group_size: int | None, rank: int = 0) -> Build:
    """L'arrondi au plus près."""
    config = {"bits": bits, "group_size": group_size, "residual_rank": rank, "rounding": "nearest", "layers": ENCODER}
    return lambda: judge.compress(lrq.GPTQCompression(config))


def half_svd(aware: bool) -> tuple[lrq.SVDCompression, lrq.SVDCompression]:
    """La SVD qui garde la moitié des octets de chaque couche ; les rangs sont ceux de U, S et V."""
    return tuple(  # type: ignore[return-value]
        lrq.SVDCompression({"rank": m * n // 2 // (m + n + 1), "activation_aware": aware, "layers": layers})
        for layers, m, n in ((ATTENTION, 384, 384), (DENSE, 1536, 384))
    )


def half_train() -> tuple[lrq.TensorTrainCompression, lrq.TensorTrainCompression]:
    """Le train de tenseurs qui garde la moitié des octets de chaque couche."""
    found = []
    for layers, m, n in ((ATTENTION, 384, 384), (DENSE, 1536, 384)):
        inputs, outputs = lrq.TensorTrainCompression().dimensions(n, m)
        rank = max(r for r in range(1, m) if train_size(inputs, outputs, r) <= m * n / 2)
        found.append(lrq.TensorTrainCompression({"rank": rank, "layers": layers}))
    return found[0], found[1]


def train_size(inputs: list[int], outputs: list[int], rank: int) -> int:
    """Combien de nombres a un train."""
    bonds = [1, *clamped_ranks(inputs, outputs, rank), 1]
    return sum(map(math.prod, zip(bonds, inputs, outputs, bonds[1:], strict=False)))


def elsewhere(judge: Judge) -> list[tuple[str, str, int, Build]]:
    """Les recettes d'autres bibliothèques : nom, étiquette, bits d'un code, façon."""
    from torch.ao.quantization import default_dynamic_qconfig, quantize_dynamic
    from torchao.quantization import (
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        IntxWeightOnlyConfig,
        quantize_,
    )
    from torchao.quantization.granularity import PerGroup

    def torchao(config: Any) -> Build:
        def build() -> nn.Module:
            model = copy.deepcopy(judge.encoder)
            quantize_(model, config, filter_fn=lambda _, name: name in judge.names)
            return model

        return build

    def dynamic() -> nn.Module:
        return quantize_dynamic(copy.deepcopy(judge.encoder), dict.fromkeys(judge.names, default_dynamic_qconfig))

    def intx(size: int) -> Build:
        return torchao(IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(size)))

    return [
        ("torch_dynamic", "torch.ao, int8 dynamique", 8, dynamic),
        ("torchao_int8", "torchao, int8", 8, torchao(Int8WeightOnlyConfig())),
        ("torchao_int8_dynamic", "torchao, int8 dynamique", 8, torchao(Int8DynamicActivationInt8WeightConfig())),
        ("torchao_int4_g32", "torchao, int4 g32", 4, intx(32)),
        ("torchao_int4_g64", "torchao, int4 g64", 4, intx(64)),
    ]


def recipes(judge: Judge) -> Iterator[tuple[str, str, str, Build]]:
    """Toutes les recettes : nom, étiquette, famille, façon."""
    yield "nearest_8_row", "arrondi 8 bits, par ligne", "nearest", nearest(judge, 8, None)
    yield "nearest_4_row", "arrondi 4 bits, par ligne", "nearest", nearest(judge, 4, None)
    yield "nearest_4_g32", "arrondi 4 bits g32", "nearest", nearest(judge, 4, 32)
    yield "nearest_4_g64", "arrondi 4 bits g64", "nearest", nearest(judge, 4, 64)
    yield "nearest_4_g64_r8", "arrondi 4 bits g64 + résidu 8", "nearest", nearest(judge, 4, 64, 8)
    g32 = lrq.GPTQCompression({"group_size": 32, "layers": ENCODER})
    yield "gptq_4_g32", "GPTQ 4 bits g32", "gptq", lambda: judge.compress(g32)
    for bits in BITS:
        for rank in RANKS:
            label = f"GPTQ {bits} bits g64" + (f" + résidu {rank}" if rank else "")
            name = f"gptq_{bits}_g64" + (f"_r{rank}" if rank else "")
            yield name, label, "gptq", lambda bits=bits, rank=rank: judge.uniform(bits, rank)  # type: ignore[misc]
    yield "svd_half", "SVD, moitié des octets", "low_rank", lambda: judge.chain(*half_svd(False))
    yield "svd_half_aware", "SVD consciente, moitié des octets", "low_rank", lambda: judge.chain(*half_svd(True))
    yield "train_half", "train de tenseurs, moitié des octets", "low_rank", lambda: judge.chain(*half_train())
    eight = lrq.PTQCompression({"per_channel": True, "activations": False, "layers": ENCODER})
    yield "svd_half_aware_8", "SVD consciente, puis 8 bits", "low_rank", lambda: judge.chain(*half_svd(True), eight)
    for method in ("min_max", "mse", "percentile", "entropy"):
        config = {"calibration_method": method, "per_channel": True, "layers": ENCODER}
        build: Build = lambda config=config: judge.compress(lrq.PTQCompression(config))  # type: ignore[misc] # noqa: E731
        yield f"ptq_{method}", f"8 bits, entrées aussi ({method})", "activations", build


def study_recipes(judge: Judge) -> list[dict[str, Any]]:
    """Une ligne par recette."""
    rows = []
    for name, label, family, build in recipes(judge):
        rows.append({"id": name, "label": label, "family": family, **judge.row(build())})
        print(rows[-1], file=sys.stderr, flush=True)
    for name, label, bits, build in elsewhere(judge):
        model = build()
        tight = sum(packed(model.get_submodule(layer), bits) for layer in judge.names)
        rows.append({"id": name, "label": label, "family": "elsewhere", **judge.row(model), "codes_seuls": tight})
        print(rows[-1], file=sys.stderr, flush=True)
    front = pareto_front([1 - row["cosine"] for row in rows], [row["bytes"] for row in rows])
    return [row | {"front": i in front} for i, row in enumerate(rows)]


def packed(layer: Any, bits: int) -> int:
    """Octets d'une couche d'ailleurs, une fois ses codes serrés et ses points zéro nuls oubliés ; sans le biais."""
    if callable(getattr(layer, "weight", None)):
        return weighed(layer)
    codes, *others = inside(layer.weight)
    return codes.numel() * bits // 8 + sum(t.nbytes for t in others if t.any())


# --- le fichier entier ------------------------------------------------------------------------------------------------


def study_files(judge: Judge) -> list[dict[str, Any]]:
    """Le réseau entier, sur le disque."""
    eight = {"bits": 8, "group_size": None, "rounding": "nearest", "embeddings": True}
    four = {"bits": 4, "group_size": 64, "embeddings": True}
    rows: list[dict[str, Any]] = []
    for name, label, config in (
        ("float32", "l'original", None),
        ("eight", "8 bits, par ligne", eight),
        ("gptq_4_g64", "GPTQ 4 bits g64", four),
    ):
        model = judge.encoder if config is None else judge.compress(lrq.GPTQCompression(config))
        cosine = judge.cosine(model)
        for pooler in (True, False):
            nbytes = file_size(model, pooler)
            whole = rows[0]["bytes"] if rows else nbytes
            row = {"id": name, "label": label, "pooler": pooler, "bytes": nbytes, "ratio": round(whole / nbytes, 4)}
            rows.append(row | {"cosine": cosine})
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def file_size(model: nn.Module, pooler: bool) -> int:
    """Octets du fichier qu'écrit save_weights, avec ou sans la couche dont les plongements se passent."""
    model = copy.deepcopy(model)
    if not pooler:
        model.bert.pooler = None  # type: ignore[union-attr]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        lrq.save_weights(model, path)
        return path.stat().st_size


# --- le budget --------------------------------------------------------------------------------------------------------


def significant(value: float, digits: int = 6) -> float:
    """Un nombre, à six chiffres significatifs."""
    return float(f"{value:.{digits}g}")


def study_budgets(judge: Judge, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Les options de chaque couche, mesurées une fois ; puis la répartition de chaque budget."""
    found = judge.budget.options(judge.encoder, judge.tasks, judge.batches)
    biases = {task.names[0]: task.layer.bias.nbytes for task in judge.tasks}
    options = {
        name: [(size - biases[name], significant(loss)) for size, loss in choices] for name, choices in found.items()
    }
    settings = judge.budget.settings(judge.tasks[0])
    sizes = {task.layer.weight.shape: [size for size, _ in options[task.names[0]]] for task in judge.tasks}
    alike = [f"gptq_{bits}_g64" + (f"_r{rank}" if rank else "") for bits, rank in settings]
    lines = []
    predicted = {
        name: significant(math.sqrt(sum(options[layer][place][1] for layer in judge.names)), 5)
        for place, name in enumerate(alike)
    }
    for rate in BUDGETS:
        judge.budget.config["budget"] = int(rate * judge.weights / 8)
        tasks = [copy.copy(task) for task in judge.tasks]
        judge.budget.spend(tasks, options)
        given = [task.seen[0] for task in tasks]
        layers = [judge.budget.compress_layer(task.layer, choice) for task, choice in zip(tasks, given, strict=True)]
        model = lrq.replace_linears(judge.encoder, dict(zip(judge.names, map(always, layers), strict=True)))
        measured = judge.row(model)
        fitting = [row for row in rows if row["bytes"] <= judge.budget.config["budget"]]
        best = max(fitting, key=lambda row: row["cosine"])
        lines.append(
            {
                "budget": judge.budget.config["budget"],
                **measured,
                "predicted_error": significant(judge.budget.predicted_error, 5),
                "measured_error": significant(math.sqrt(2 * (1 - measured["cosine"])), 5),
                "uniforme": {key: best[key] for key in ("id", "label", "bytes", "bits_per_weight", "cosine")},
                "bits": [choice.bits for choice in given],
                "rangs": [choice.rank for choice in given],
            }
        )
        print(lines[-1], file=sys.stderr, flush=True)
    return {
        "options": {
            "couches": judge.names,
            "formes": [list(task.layer.weight.shape) for task in judge.tasks],
            "réglages": settings,
            "octets": {"×".join(map(str, shape)): size for shape, size in sizes.items()},
            "pertes": [[loss for _, loss in options[name]] for name in judge.names],
            "erreurs_prévues": predicted,
        },
        "budgets": lines,
    }


# --- l'échelle --------------------------------------------------------------------------------------------------------


def study_scaling() -> dict[str, Any]:
    """Secondes par matrice selon sa taille, et ce qu'en demanderait un réseau de 7 milliards de paramètres."""
    generator = torch.Generator().manual_seed(0)
    quantizer = lrq.GPTQCompression().quantizer(64)
    rows: dict[str, list[float]] = {"svd": [], "gptq": [], "nearest": []}
    for n in SIZES:
        W = torch.randn(n, n, generator=generator)
        seen = lrq.Calibration.from_inputs(torch.randn(2 * n, n, generator=generator))
        for name, work in (
            ("svd", lambda W=W: torch.linalg.svd(W, full_matrices=False)),
            ("gptq", lambda W=W, seen=seen: lrq.gptq(W, seen, quantizer)),
            ("nearest", lambda W=W: quantizer.compress(W)),
        ):
            rows[name].append(significant(seconds(work, 1 if n > 1024 else REPEATS), 4))
            print(n, name, rows[name][-1], file=sys.stderr, flush=True)
    fitted = {name: fit(SIZES[1:], found[1:]) for name, found in rows.items()}
    weights = sum(m * n * count for (m, n), count in LLAMA.items())
    linears = {shape: count for shape, count in LLAMA.items() if shape[0] != 32000}
    grouped = weights * 35 // 64  # 4,375 bits

    def hours(name: str, exponent: float, constant: float) -> float:
        found = (extrapolated(name, m, n, exponent, constant) * count for (m, n), count in linears.items())
        return significant(sum(found) / 3600, 3)

    return {
        "tailles": list(SIZES),
        "secondes": rows,
        "exposants": {name: round(exponent, 3) for name, (exponent, _) in fitted.items()},
        "llama_7b": {
            "formes": [[*shape, count] for shape, count in LLAMA.items()],
            "paramètres": weights,
            "octets_16_bits": 2 * weights,
            "octets_4_375_bits": grouped,
            "heures": {name: hours(name, *fitted[name]) for name in rows},
            "heures_si_cubique": {name: hours(name, 3, rows[name][-1] / SIZES[-1] ** 3) for name in ("svd", "gptq")},
            "octets_moments_ensemble": sum(8 * n * n * count for (_, n), count in linears.items()),
            "octets_moments_un_bloc": sum(8 * n * n * count for (_, n), count in linears.items()) // 32,
            "octets_plus_grand_moment": 8 * 11008**2,
            "règle": "une SVD de m×n compte max/min matrices carrées de côté min ; GPTQ, max(1, m/n) de côté n ; "
            "l'arrondi, une de côté √(mn) ; l'exposant de GPTQ monte encore vers le cube de ses factorisations : "
            "heures_si_cubique part de la plus grande mesure. Les deux tables ne comptent pas dans les heures",
        },
    }


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """Le temps de processeur médian d'un calcul."""
    found = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        found.append(time.process_time() - started)
    return sorted(found)[len(found) // 2]


def fit(sizes: Any, found: list[float]) -> tuple[float, float]:
    """L'exposant p et la constante c de secondes = c nᵖ, aux moindres carrés des logarithmes."""
    x, y = (torch.tensor(values, dtype=torch.float64).log() for values in (sizes, found))
    exponent = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    return exponent, math.exp(float(y.mean() - exponent * x.mean()))


def extrapolated(name: str, m: int, n: int, exponent: float, constant: float) -> float:
    """Les secondes d'une matrice (m, n)."""
    if name == "svd":
        return constant * min(m, n) ** exponent * max(m, n) / min(m, n)
    if name == "gptq":
        return constant * n**exponent * max(1, m / n)
    return constant * math.sqrt(m * n) ** exponent


# --- la table ---------------------------------------------------------------------------------------------------------


def write(table: dict[str, Any], path: Path = TABLE) -> None:
    """Écrit la table, une recette ou une liste de nombres par ligne."""
    text = json.dumps(table, ensure_ascii=False, indent=1)
    text = re.sub(r"\[\s+([\d\s.,e+-]+?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)
    text = re.sub(r"\{\s+([^{}\[\]]+?)\s+\}", lambda found: f"{{{' '.join(found[1].split())}}}", text)
    path.write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """Mesure toutes les parties, ou quelques-unes, et récrit la table à mesure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model_study", description=__doc__)
    parser.add_argument("parties", nargs="*", choices=[*PARTS, []], help="seulement celles-ci ; les autres restent")
    chosen = parser.parse_args().parties or PARTS
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    warnings.filterwarnings("ignore", module="torch")
    before = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {}
    packages = {name: version(name) for name in ("torch", "torchao", "transformers")}
    told = {
        "versions": {"python": sys.version.split()[0], **packages},
        "fils": 1,
        "graine": 0,
        "sha256": models.MINILM_SHA256,
        "phrases": {"calibration": 400, "test": 400, "sensibilités": PROBES},
    }
    table = {"commande": "python -m benchmarks.model_study", "notes": NOTES, **told}
    table |= {key: before[key] for key in ("recipes", "files", "scaling", "options", "budgets") if key in before}
    judge = Judge()
    biases = sum(judge.encoder.get_submodule(name).bias.nbytes for name in judge.names)
    table["réseau"] = {
        "couches": len(judge.names),
        "poids": judge.weights,
        "octets": 4 * judge.weights,
        "octets_biais": biases,
    }
    if "recipes" in chosen:
        table["recipes"] = study_recipes(judge)
        write(table)
    if "files" in chosen:
        table["files"] = study_files(judge)
        write(table)
    if "budgets" in chosen:
        table |= study_budgets(judge, table["recipes"])
        write(table)
    if "scaling" in chosen:
        table["scaling"] = study_scaling()
        write(table)


if __name__ == "__main__":
    main()
