"""Le paquet tient debout : les imports ne font que descendre, l'essentiel est léger, les noms du cours sont là."""

import ast
import inspect
import re
import subprocess
import sys
import typing
from html import unescape
from pathlib import Path

import pytest
import torch

import lrq

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

from etages import FLOORS, described, drawing  # noqa: E402

PACKAGE = Path(lrq.__file__).parent
# Chaque pièce, sous l'étage que lui donne l'image de la page Architecture, compté d'en bas ; « » : lrq/__init__.py.
LEVELS = {room: level for level, (_, rooms) in enumerate(reversed(FLOORS)) for room in rooms}
LEVELS[""] = LEVELS.pop("lrq")
MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = {name.removesuffix("__init__").rstrip("."): path for name, path in MODULES.items()}


def room(module):
    """La pièce du paquet où habite un module : `layers.lora` habite `layers`."""
    return module.partition(".")[0]


def imports(module):
    """Les modules de lrq qu'un module importe, où que ce soit dans son code."""
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    package = [part for part in package if part]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name == "lrq" or alias.name.startswith("lrq."):
                    yield alias.name.removeprefix("lrq").lstrip(".")
        elif isinstance(node, ast.ImportFrom):
            base = node.module.split(".") if node.module else []
            if node.level:
                base = package[: len(package) - node.level + 1] + base
            elif base[:1] == ["lrq"]:
                base = base[1:]
            else:
                continue
            for alias in node.names:  # « from . import x » importe peut-être le module x
                whole = ".".join([*base, alias.name])
                yield whole if whole in MODULES else ".".join(base)


def test_the_reader_of_imports_is_not_blind():
    assert set(imports("layers.packed")) == {"quantizers", "svd", "layers.base"}
    assert set(imports("layers.qat")) == {
        "activation",
        "validation",
        "layers.base",
        "layers.factorized",
        "layers.fake_quantize",
        "layers.packed",
        "layers.quantized",
    }
    assert {"layers", "spectrum", "svd", "quantizers"} <= set(imports(""))
    assert list(imports("validation")) == []


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_its_level_and_a_docstring(module):
    assert room(module) in LEVELS, f"donner un niveau à {module}"
    text = MODULES[module].read_text(encoding="utf-8")
    assert not text.strip() or ast.get_docstring(ast.parse(text))


def test_every_floor_is_drawn_and_lived_in():
    assert sorted(LEVELS) == sorted({room(module) for module in MODULES})
    picture = drawing()
    for caption, rooms in FLOORS:
        assert caption in picture
        for name in rooms:
            assert re.search(rf"[>;]{name}[&<]", picture), name
            assert name in described()
    texts = re.findall(r'<text(?: class="(pieces)")?[^>]*>(.*?)</text>', picture)
    assert all(len(unescape(text)) <= (35 if kind else 46) for kind, text in texts), "un texte déborderait de son étage"


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_go_down(module):
    """D'un étage à un autre plus bas, jamais entre voisins : c'est ce que dit l'image."""
    others = [other for other in imports(module) if room(other) != room(module)]
    assert [other for other in others if LEVELS[room(other)] >= LEVELS[room(module)]] == []
    assert module == "" or "" not in imports(module), "un module n'importe pas lrq tout entier"


def test_there_is_no_cycle():
    graph = {module: {other for other in imports(module) if other in MODULES and other != module} for module in MODULES}
    for package in [module for module, path in MODULES.items() if path.name == "__init__.py" and module]:
        for module in graph:  # « from .layers import x » dans une pièce voisine ; dans la même, ce serait un cycle
            assert not (module.startswith(f"{package}.") and package in graph[module]), module
    while graph:
        free = {module for module, needs in graph.items() if not needs}
        assert free, f"cycle parmi {sorted(graph)}"
        graph = {module: needs - free for module, needs in graph.items() if module not in free}


def test_import_lrq_is_light():
    heavy = (
        "transformers",
        "sklearn",
        "matplotlib",
        "IPython",
        "safetensors",
        "ipywidgets",
        "anywidget",
        "scipy",
        "pandas",
        "peft",
        "accelerate",
        "tensorly",
    )
    code = f"import sys, lrq; print(*[name for name in {heavy!r} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert run.stdout.split() == []


def test_importing_the_models_is_light_too():
    code = "import sys, lrq.models; print(*{'transformers', 'sklearn', 'safetensors'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert run.stdout.split() == []


def test_importing_consumes_no_randomness_and_prints_nothing():
    code = "import torch; a = torch.get_rng_state(); import lrq; assert torch.equal(a, torch.get_rng_state())"
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


# --- noms publics -----------------------------------------------------------------------------------------------------


def test_all_is_sorted_whole_and_true():
    assert list(lrq.__all__) == sorted(set(lrq.__all__))
    public = {name for name, value in vars(lrq).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert public == set(lrq.__all__)


@pytest.mark.parametrize("name", lrq.__all__)
def test_every_public_name_is_annotated(name):
    value = getattr(lrq, name)
    functions = (
        [value]
        if inspect.isfunction(value)
        else [
            member
            for method, member in vars(value).items()
            if inspect.isfunction(member) and (method == "__init__" or not method.startswith("__"))
        ]
    )
    for function in functions:
        hints = typing.get_type_hints(function)
        missing = [p for p in inspect.signature(function).parameters if p != "self" and p not in hints]
        assert missing == [], function


# --- les noms du cours, leurs arguments, leur ordre et leurs valeurs par défaut ---------------------------------------

REQUIRED = inspect.Parameter.empty
COURSE = {
    "LowRankAnalysis.analyze_weight_matrix": {"W": REQUIRED, "threshold": 0.99},
    "SVDCompressedLinear": {"in_features": REQUIRED, "out_features": REQUIRED, "rank": REQUIRED},
    "SVDCompressedLinear.from_linear": {"linear_layer": REQUIRED, "rank": REQUIRED},
    "SVDCompressedLinear.reconstruction_error": {"self": REQUIRED, "original_weight": REQUIRED},
    "LoRALayer": {"original_layer": REQUIRED, "rank": 16, "alpha": 1.0, "dropout": 0.0},
    "LoRALayer.merge_weights": {"self": REQUIRED},
    "LoRALayer.unmerge_weights": {"self": REQUIRED},
    "LoRALayer.trainable_parameters": {"self": REQUIRED},
    "LoRALayer.total_parameters": {"self": REQUIRED},
    "convert_model_to_lora": {"model": REQUIRED, "target_modules": None, "rank": 16, "alpha": 1.0},
    "LoRATrainer": {"lora_model": REQUIRED, "train_loader": REQUIRED, "val_loader": REQUIRED, "lr": 1e-4},
    "LoRATrainer.train_epoch": {"self": REQUIRED},
    "LoRATrainer.validate": {"self": REQUIRED},
    "LoRATrainer.train": {"self": REQUIRED, "epochs": REQUIRED},
    "AdaptiveLoRA": {"lora_model": REQUIRED, "train_loader": REQUIRED, "val_loader": REQUIRED, "lr": 1e-4},
    "LoRAPlus": {"lora_model": REQUIRED, "lr": 1e-4},
    "QuantizedLowRankLayer": {"in_features": REQUIRED, "out_features": REQUIRED, "rank": REQUIRED, "n_bits": 8},
    "QuantizedLowRankLayer.quantize": {"self": REQUIRED},
    "QuantizedLowRankLayer.forward_quantized": {"self": REQUIRED, "x": REQUIRED},
    "FactorizedLinear": {"in_features": REQUIRED, "out_features": REQUIRED, "rank": REQUIRED},
    "FactorizedLinear.from_linear_random": {"linear_layer": REQUIRED, "rank": REQUIRED},
    "FactorizedLinear.from_linear_svd": {"linear_layer": REQUIRED, "rank": REQUIRED},
    "FactorizedLinear.reconstruct_weight": {"self": REQUIRED},
    "FactorizedLinear.count_parameters": {"self": REQUIRED},
    "FactorizedLinear.compression_ratio": {"self": REQUIRED},
    "find_optimal_rank": {"weight_matrix": REQUIRED, "max_rank": None, "target_error": 0.01},
    "energy_analysis": {"weight_matrix": REQUIRED, "energy_threshold": 0.99},
    "MultiStageFactorizedLinear": {"in_features": REQUIRED, "out_features": REQUIRED, "ranks": REQUIRED},
    "MultiStageFactorizedLinear.count_parameters": {"self": REQUIRED},
    "compare_factorized_vs_standard": {
        "in_features": REQUIRED,
        "out_features": REQUIRED,
        "rank": REQUIRED,
        "num_tests": 100,
    },
    "TruncatedSVDLinear": {"in_features": REQUIRED, "out_features": REQUIRED, "rank": REQUIRED},
    "TruncatedSVDLinear.from_weight_matrix": {"W": REQUIRED, "rank": REQUIRED},
    "TruncatedSVDLinear.from_linear": {"linear_layer": REQUIRED, "rank": REQUIRED},
    "CompactSVDLinear": {"in_features": REQUIRED, "out_features": REQUIRED, "rank": REQUIRED},
    "CompactSVDLinear.from_weight_matrix": {"W": REQUIRED, "rank": REQUIRED},
    "CompactSVDLinear.from_linear": {"linear_layer": REQUIRED, "rank": REQUIRED},
    "SVDConv2d": {
        "in_channels": REQUIRED,
        "out_channels": REQUIRED,
        "kernel_size": REQUIRED,
        "rank": REQUIRED,
        "stride": 1,
        "padding": 0,
    },
    "SVDConv2d.from_conv2d": {"conv_layer": REQUIRED, "rank": REQUIRED},
    "analyze_svd_approximation_error": {"W": REQUIRED, "max_rank": None},
    "efficient_truncated_svd": {"W": REQUIRED, "rank": REQUIRED, "method": "default"},
    "approximate_svd_large": {"W": REQUIRED, "rank": REQUIRED, "oversample": 10},
    "QuantizedLowRankLinear": {"in_features": REQUIRED, "out_features": REQUIRED, "rank": REQUIRED, "n_bits": 8},
    "QuantizedLowRankLinear.from_linear": {"linear_layer": REQUIRED, "rank": REQUIRED, "n_bits": 8},
    "QuantizedLowRankLinear.quantize_weights": {"self": REQUIRED},
    "QuantizedLowRankLinear.dequantize": {"self": REQUIRED},
    "QuantizedLowRankLinear.compression_ratio": {"self": REQUIRED},
    "QuantizedLowRankLinear.count_parameters": {"self": REQUIRED},
    "QATLowRankLinear": {"in_features": REQUIRED, "out_features": REQUIRED, "rank": REQUIRED, "n_bits": 8},
    "QATLowRankLinear.from_linear": {"linear_layer": REQUIRED, "rank": REQUIRED, "n_bits": 8},
    "train_qat_low_rank": {"model": REQUIRED, "train_loader": REQUIRED, "epochs": 50},
    "CombinedCompressionPipeline": {"model": REQUIRED},
    "CombinedCompressionPipeline.apply_low_rank_then_quantize": {"self": REQUIRED, "rank": 64, "n_bits": 8},
    "CombinedCompressionPipeline.apply_quantize_then_low_rank": {"self": REQUIRED, "rank": 64, "n_bits": 8},
    "analyze_combined_compression": {"original_model": REQUIRED, "rank": REQUIRED, "n_bits": REQUIRED},
    "ApproximationErrorAnalysis.svd_reconstruction_error": {"W": REQUIRED, "rank": REQUIRED},
    "ApproximationErrorAnalysis.analyze_error_vs_rank": {"W": REQUIRED, "max_rank": None},
    "analyze_forward_error": {"layer": REQUIRED, "test_inputs": REQUIRED, "original_weight": REQUIRED},
    "analyze_cumulative_error": {
        "model_original": REQUIRED,
        "model_compressed": REQUIRED,
        "test_inputs": REQUIRED,
    },
    "combined_error_analysis": {"W": REQUIRED, "rank": REQUIRED, "n_bits": REQUIRED},
    "TTLinear": {"input_dims": REQUIRED, "output_dims": REQUIRED, "rank": REQUIRED},
    "TTLinear.from_linear": {
        "linear_layer": REQUIRED,
        "input_dims": REQUIRED,
        "output_dims": REQUIRED,
        "rank": None,
    },
    "QATTTLinear": {"input_dims": REQUIRED, "output_dims": REQUIRED, "tt_ranks": REQUIRED, "n_bits": 8},
    "TTQuantizer": {"n_bits": 8, "symmetric": True},
    "TTQuantizer.quantize_tt_cores": {"self": REQUIRED, "cores": REQUIRED},
    "TTQuantizer.dequantize_tt_cores": {
        "self": REQUIRED,
        "quantized_cores": REQUIRED,
        "scales": REQUIRED,
        "zero_points": REQUIRED,
    },
    "TuckerQuantizer": {},
    "TuckerQuantizer.dequantize_tucker": {"self": REQUIRED, "quantized": REQUIRED},
    "TuckerQuantizer.quantize_tucker": {"self": REQUIRED, "core": REQUIRED, "factors": REQUIRED, "n_bits": 8},
    "analyze_tn_quantization_impact": {"original_tn": REQUIRED, "quantized_tn": REQUIRED},
    "compression_error_tradeoff": {"W": REQUIRED, "rank_range": None, "n_bits_range": [4, 6, 8]},
    "QATTTLinear.from_linear": {
        "linear_layer": REQUIRED,
        "input_dims": REQUIRED,
        "output_dims": REQUIRED,
        "tt_ranks": REQUIRED,
        "n_bits": 8,
    },
    "UniformQuantizer": {"n_bits": 8, "symmetric": True, "signed": True},
    "UniformQuantizer.compute_scale_zero_point": {"self": REQUIRED, "t": REQUIRED},
    "UniformQuantizer.quantize": {"self": REQUIRED, "t": REQUIRED, "scale": None, "zero_point": None},
    "UniformQuantizer.dequantize": {"self": REQUIRED, "q": REQUIRED, "scale": REQUIRED, "zero_point": None},
    "UniformQuantizer.quantize_dequantize": {"self": REQUIRED, "t": REQUIRED},
    "UniformQuantizer.quantization_error": {"self": REQUIRED, "t": REQUIRED},
    "FakeQuantizeModule": {"n_bits": 8, "symmetric": True, "per_channel": False, "channel_dim": 0},
    "CompressionMethod": {"config": None},
    "CompressionMethod.compress_layer": {"self": REQUIRED, "layer": REQUIRED},
    "CompressionMethod.get_compression_info": {
        "self": REQUIRED,
        "original_model": REQUIRED,
        "compressed_model": REQUIRED,
    },
    "CompressionMethod.validate_config": {"self": REQUIRED},
    **{
        f"{name}.compress": {"self": REQUIRED, "model": REQUIRED, "train_loader": None, "val_loader": None}
        for name in (
            *("CompressionMethod", "SVDCompression", "TensorTrainCompression", "PTQCompression", "LoRACompression"),
            *("CompressionPipeline", "GPTQCompression", "BudgetCompression"),
        )
    },
    "MemoryEfficientCompression.compress_inplace": {"model": REQUIRED, "compression_method": REQUIRED},
    "ParallelCompression": {},
    "ParallelCompression.compress_parallel": {
        "self": REQUIRED,
        "model": REQUIRED,
        "compression_method": REQUIRED,
        "num_workers": 4,
    },
}


@pytest.mark.parametrize("path", COURSE)
def test_signatures_are_those_of_the_course(path):
    value = lrq
    for part in path.split("."):
        value = getattr(value, part)
    parameters = list(inspect.signature(value).parameters.values())
    expected = COURSE[path]
    assert {p.name: p.default for p in parameters[: len(expected)]} == expected
    assert [p.name for p in parameters[: len(expected)]] == list(expected)
    added = [p for p in parameters[len(expected) :] if p.kind is not p.VAR_KEYWORD]
    assert all(p.default is not REQUIRED for p in added), "un ajout ne doit rien exiger"


def test_a_course_method_that_needs_no_object_is_called_on_its_class():
    W, network = torch.eye(3), torch.nn.Sequential(torch.nn.Linear(3, 3))
    assert lrq.LowRankAnalysis.analyze_weight_matrix(W)["full_rank"] == 3
    assert lrq.ApproximationErrorAnalysis.analyze_error_vs_rank(W)[2]["rank"] == 3
    assert lrq.MemoryEfficientCompression.compress_inplace(network, lrq.SVDCompression({"rank": 2})) is network


# Les clés du dictionnaire que donne ``config``, et leurs valeurs par défaut
CONFIGS = {
    "SVDCompression": {"rank": 64, "optimize_rank": False, "error_threshold": 0.05},
    "TensorTrainCompression": {"rank": 32, "factorize_dimensions": True, "train_after_compression": False},
    "PTQCompression": {"bits": 8, "calibration_method": "min_max", "per_channel": False},
    "LoRACompression": {"rank": 16, "alpha": 1.0, "target_modules": ["linear", "attention"]},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_are_those_of_the_course(name):
    method = getattr(lrq, name)
    assert CONFIGS[name].items() <= method().config.items()
    assert method(CONFIGS[name]).config == method().config


# Ce que porte chaque objet du cours, paramètres et attributs
HELD = {
    "SVDCompressedLinear(4, 3, 2)": {"U": (3, 2), "V": (2, 4), "in_features": 4, "out_features": 3, "rank": 2},
    "QuantizedLowRankLayer(4, 3, 2)": {"U": (3, 2), "V": (2, 4), "rank": 2, "n_bits": 8},
    "FactorizedLinear(4, 3, 2)": {"U": (3, 2), "V": (4, 2), "in_features": 4, "out_features": 3, "rank": 2},
    "MultiStageFactorizedLinear(4, 3, [2, 2])": {"in_features": 4, "out_features": 3, "ranks": [2, 2]},
    "TruncatedSVDLinear(4, 3, 2)": {"U": (3, 2), "S": (2,), "V": (4, 2)},
    "CompactSVDLinear(4, 3, 2)": {"A": (3, 2), "B": (2, 4)},
    "LoRALayer(torch.nn.Linear(4, 3), 2)": {"lora_A": (2, 4), "lora_B": (3, 2), "rank": 2},
    "QuantizedLowRankLinear(4, 3, 2)": {"U": (3, 2), "V": (4, 2), "n_bits": 8, "quantized": False},
    "QuantizedLowRankLinear.from_linear(torch.nn.Linear(4, 3), 2)": {
        "U_q": (3, 2), "V_q": (4, 2), "U_scale": (), "V_scale": (), "U_zero_point": (), "V_zero_point": (),
        "quantized": True, "rank": 2,
    },
    "QATLowRankLinear(4, 3, 2)": {"U": (3, 2), "V": (4, 2), "rank": 2, "n_bits": 8},
    "QATTTLinear([2, 3], [2, 2], 2)": {"input_dims": [2, 3], "output_dims": [2, 2]},
    "CombinedCompressionPipeline(torch.nn.Linear(4, 3))": {"model": torch.nn.Linear(4, 3)},
}  # fmt: skip


@pytest.mark.parametrize("expression", HELD)
def test_attributes_are_those_of_the_course(expression):
    held = eval(f"lrq.{expression}", {"lrq": lrq, "torch": torch})
    for name, expected in HELD[expression].items():
        value = getattr(held, name)
        if isinstance(value, torch.Tensor):
            assert tuple(value.shape) == expected, name
        elif isinstance(value, torch.nn.Module):
            assert type(value) is type(expected), name
        else:
            assert value == expected, name


def test_cores_of_a_matrix_have_two_indices():
    layer = lrq.QATTTLinear([2, 3], [4, 5], 6)
    assert [tuple(core.shape) for core in layer.cores] == [(1, 2, 4, 6), (6, 3, 5, 1)]


def returned():
    """Nom → ce que rend la fonction, et les clés que le cours lui donne."""
    W, network = torch.eye(4) + torch.ones(4, 4), torch.nn.Sequential(torch.nn.Linear(4, 4))
    cores, x = [torch.ones(2, 2), [torch.ones(3, 2), torch.ones(3, 2)]], torch.ones(2, 4)
    tradeoff = {"rank", "n_bits", "svd_error", "quant_error", "estimated_combined", "actual_combined"}
    return {
        "LowRankAnalysis.analyze_weight_matrix": (
            lrq.LowRankAnalysis.analyze_weight_matrix(W),
            {"original_params", "effective_rank", "full_rank", "compressed_params", "compression_ratio"}
            | {"singular_values", "energy_captured"},
        ),
        "compare_factorized_vs_standard": (
            lrq.compare_factorized_vs_standard(4, 4, 2, 3),
            {"compression", "error"},
        ),
        "analyze_svd_approximation_error": (lrq.analyze_svd_approximation_error(W), {"rank", "error", "energy"}),
        "svd_reconstruction_error": (
            lrq.ApproximationErrorAnalysis.svd_reconstruction_error(W, 2),
            {"empirical_frobenius", "empirical_relative", "theoretical_frobenius", "theoretical_relative"}
            | {"singular_values"},
        ),
        "analyze_error_vs_rank": (
            lrq.ApproximationErrorAnalysis.analyze_error_vs_rank(W),
            {"rank", "relative_error", "energy_captured", "compression_ratio"},
        ),
        "analyze_forward_error": (
            lrq.analyze_forward_error(network[0], x, W),
            {"mean_error", "mean_relative_error", "error_bound"},
        ),
        "analyze_cumulative_error": (
            lrq.analyze_cumulative_error(network, network, x),
            {"final_error", "relative_error", "layer_errors"},
        ),
        "combined_error_analysis": (
            lrq.combined_error_analysis(W, 2, 8),
            {"svd_error", "quant_error", "estimated_combined", "actual_combined"},
        ),
        "compression_error_tradeoff": (lrq.compression_error_tradeoff(W), tradeoff),
        "quantize_tucker": (
            lrq.TuckerQuantizer().quantize_tucker(*cores),
            {"quantized_core", "quantized_factors", "core_scale", "core_zp", "factor_scales", "factor_zps"},
        ),
        "get_compression_info": (
            lrq.SVDCompression().get_compression_info(network, network),
            {"original_bytes", "compressed_bytes", "compression_ratio"},
        ),
    }


@pytest.mark.parametrize("name", returned())
def test_returned_keys_are_those_of_the_course(name):
    found, keys = returned()[name]
    rows = found if isinstance(found, list) else [found]
    assert rows
    assert all(keys <= row.keys() for row in rows)


def test_a_number_stays_a_number():
    W, network = torch.eye(4), torch.nn.Sequential(torch.nn.Linear(4, 4))
    assert type(lrq.find_optimal_rank(W)) is type(lrq.energy_analysis(W)) is int
    for value in (
        lrq.analyze_combined_compression(network, 2, 8),
        lrq.analyze_tn_quantization_impact([W], [W]),
        lrq.FactorizedLinear(4, 4, 2).compression_ratio(),
        lrq.SVDCompressedLinear(4, 4, 2).reconstruction_error(W),
        lrq.UniformQuantizer().quantization_error(W),
    ):
        assert type(value) is float
    assert len(lrq.TTQuantizer().quantize_tt_cores([torch.ones(1, 2, 1)])) == 3
    assert len(lrq.efficient_truncated_svd(W, 2)) == 3


COMMON = ["forward", "reconstruct_weight", "count_parameters", "compression_ratio", "nbytes"]


COMPRESSED = [
    "CompactSVDLinear",
    "FactorizedLinear",
    "MultiStageFactorizedLinear",
    "QATLowRankLinear",
    "QATTTLinear",
    "QuantizedConv2d",
    "QuantizedEmbedding",
    "QuantizedLinear",
    "QuantizedLowRankLayer",
    "QuantizedLowRankLinear",
    "QuantizedResidualLinear",
    "QuantizedTTLinear",
    "SVDCompressedLinear",
    "SVDConv2d",
    "TTLinear",
    "TruncatedSVDLinear",
]


@pytest.mark.parametrize("name", COMPRESSED)
def test_every_compressed_layer_answers_the_same_questions(name):
    source = "from_conv2d" if "Conv" in name else "from_embedding" if "Embedding" in name else "from_linear"
    questions = [*COMMON, source]
    assert [question for question in questions if not callable(getattr(getattr(lrq, name), question, None))] == []
