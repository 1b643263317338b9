"""Le paquet tient debout : les imports ne font que descendre, l'essentiel est léger, les noms du cours sont là."""

import ast
import inspect
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import lrq

PACKAGE = Path(lrq.__file__).parent
# Du plus bas au plus haut ; les rangs égaux se côtoient (design : « imports only go down »)
LEVELS = {
    "validation": 0,
    "version": 0,
    "svd": 1,
    "spectrum": 2,
    "randomized": 3,
    "activation": 3,
    "allocation": 3,
    "packing": 3,
    "gauge": 3,
    "integer": 3,
    "tensor_train": 3,
    "tt_product": 3,
    "tucker": 3,
    "quantizers": 4,
    "tensor_quantizers": 4,
    "gptq": 5,
    "histogram": 5,
    "layers": 5,
    "errors": 6,
    "storage": 6,
    "training": 6,
    "adapters": 7,
    "models": 7,
    "compression": 7,
    "peft_files": 8,
    "lora_training": 9,
    "display": 7,
    "plots": 7,
    "exercises": 10,
    "widgets": 10,
    "data": 10,
    "__main__": 10,
    "": 11,  # lrq/__init__.py voit tout, et personne ne le voit
}
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


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_go_down(module):
    above = [
        other for other in imports(module) if room(other) != room(module) and LEVELS[room(other)] > LEVELS[room(module)]
    ]
    assert above == []
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


def described(cls, name):
    """La docstring d'une méthode, ou celle de la méthode dont elle hérite."""
    return any(inspect.getdoc(vars(base).get(name)) for base in cls.__mro__ if name in vars(base))


@pytest.mark.parametrize("name", lrq.__all__)
def test_every_public_name_is_documented(name):
    value = getattr(lrq, name)
    assert value.__doc__
    if inspect.isclass(value):
        assert inspect.getdoc(value)
        silent = [
            method
            for method, member in vars(value).items()
            if not method.startswith("_")
            and (inspect.isfunction(member) or isinstance(member, classmethod | staticmethod))
            and method not in ("forward", "extra_repr")
            and not described(value, method)
        ]
        assert silent == []


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
    "TuckerQuantizer.quantize_tucker": {"self": REQUIRED, "core": REQUIRED, "factors": REQUIRED, "n_bits": 8},
    "analyze_tn_quantization_impact": {"original_tn": REQUIRED, "quantized_tn": REQUIRED},
    "compression_error_tradeoff": {"W": REQUIRED, "rank_range": None, "n_bits_range": [4, 6, 8]},
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
