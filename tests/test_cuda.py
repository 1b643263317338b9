"""Sur un GPU comme sur le processeur : mêmes résultats, même dtype, rien qui n'en revienne, rien qui n'y reste de trop.

Sautés sans GPU. ``LRQ_APPAREIL=cpu`` les exécute quand même, sur le processeur : ils ne prouvent alors qu'eux-mêmes.
"""

import copy
import os

import pytest
import torch
from torch import nn

import lrq
from lrq import models

DEVICE = torch.device(os.environ.get("LRQ_APPAREIL", "cuda"))
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
GAP = {torch.float16: 3e-2, torch.bfloat16: 4e-2, torch.float32: 1e-4, torch.float64: 1e-9}
# Sur 16 bits, bien des nombres tombent juste entre deux niveaux : le dernier bit de l'échelle fait pencher des lignes.
TIES = {torch.float16: 0.1, torch.bfloat16: 0.1, torch.float32: 0.02, torch.float64: 0.02}

if DEVICE.type == "cuda" and not torch.cuda.is_available():
    pytest.skip("aucun GPU que PyTorch sache utiliser", allow_module_level=True)


@pytest.fixture(autouse=True)
def exact_convolutions():
    """Par défaut, cuDNN arrondit les entrées des convolutions à dix bits (TF32)."""
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield


def moved(thing):
    """Une copie, sur l'appareil."""
    return copy.deepcopy(thing).to(DEVICE)


def tensors(thing):
    """Les tenseurs d'un résultat : module, tenseur, tenseur quantifié, dataclass, ou assemblage de ceux-là."""
    if isinstance(thing, torch.Tensor):
        return [thing]
    if isinstance(thing, nn.Module):
        return [*thing.parameters(), *thing.buffers()]
    if isinstance(thing, lrq.QuantizedTensor):
        return [thing.packed, thing.scale, thing.dequantize()]
    if isinstance(thing, dict):
        return [t for value in thing.values() for t in tensors(value)]
    if isinstance(thing, list | tuple | lrq.ApproximateSVD):
        return [t for value in thing for t in tensors(value)]
    return []


def on_device(thing):
    """Tout ce qu'il a de tenseurs est sur l'appareil."""
    assert tensors(thing)
    assert {t.device.type for t in tensors(thing)} == {DEVICE.type}


def close(found, expected, dtype=torch.float32):
    """Le même résultat, au type de calcul près, dans le même dtype."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    gap, size = (found.detach().cpu().double() - expected.detach().double()).norm(), expected.detach().double().norm()
    assert float(gap) <= GAP[dtype] * max(float(size), 1e-6), f"écart relatif de {float(gap / size):.2g}"


@pytest.fixture
def intact():
    """Les générateurs du processeur et de l'appareil : lrq n'y touche pas."""

    def states():
        return [torch.get_rng_state(), *([torch.cuda.get_rng_state(DEVICE)] if DEVICE.type == "cuda" else [])]

    before = states()
    yield
    assert all(torch.equal(*pair) for pair in zip(before, states(), strict=True))


# --- des fonctions ----------------------------------------------------------------------------------------------------


def rebuilt(factors):
    U, S, Vh = (t.double() for t in factors)
    return (U * S) @ Vh


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("m", "n"), [(40, 24), (1, 7), (24, 40)])
def test_decompositions(m, n, dtype, randn, intact):
    W, X = randn(m, n).to(dtype), randn(60, n)
    far, rank = W.to(DEVICE), min(5, m, n)
    for svd in (
        lambda W: lrq.truncated_svd(W, rank),
        lambda W: lrq.approximate_svd_large(W, min(m, n)),
        lambda W: lrq.adaptive_svd(W, 0.05),
        lambda W: lrq.activation_aware_svd(W, rank, X.to(W.device)),
        lambda W: lrq.activation_aware_svd(W, rank, lrq.Calibration.from_inputs(X)),  # calibrée sur le processeur
    ):
        found = svd(far)
        on_device(found)
        assert {t.dtype for t in found} == {dtype}
        close(rebuilt(found), rebuilt(svd(W)), dtype)
    U, V = lrq.balanced_factors(far, rank)
    on_device([U, V, lrq.balance_factors(U, V), lrq.rotate_factors(U, V)])
    close((U @ V.T).double(), rebuilt(lrq.truncated_svd(W, rank)), dtype)
    assert lrq.approximate_svd_large(far, rank, seed=3).error == lrq.approximate_svd_large(far, rank, seed=3).error


def test_spectra_and_errors(randn, intact):
    W = randn(30, 20)
    far = W.to(DEVICE)
    S, near = lrq.singular_values(far), lrq.singular_values(W)
    close(S, near)
    assert lrq.water_filling(S, 2.0)[0] == pytest.approx(lrq.water_filling(near, 2.0)[0], rel=1e-5)
    on_device([lrq.water_filling(S, 2.0)[1], lrq.truncation_errors(S), lrq.cumulative_energy(S)])
    for question in (lrq.entropy_rank, lrq.stable_rank, lambda S: lrq.gavish_donoho_rank(S, 30, 20)):
        assert question(S) == pytest.approx(question(near), rel=1e-4)
    assert lrq.find_optimal_rank(far, target_error=0.3) == lrq.find_optimal_rank(W, target_error=0.3)
    assert lrq.LowRankAnalysis.analyze_weight_matrix(far)["effective_rank"] == lrq.energy_analysis(W)
    for answer in (
        lambda W: lrq.combined_error_analysis(W, 5, 6),
        lambda W: lrq.ApproximationErrorAnalysis.svd_reconstruction_error(W, 5),
        lambda W: lrq.compression_error_tradeoff(W, [2, 5], [4])[0],
        lambda W: lrq.allocate_ranks({"a": lrq.singular_values(W)}, {"a": (30, 20)}, 400),
    ):
        found, expected = answer(far), answer(W)
        assert {k: v for k, v in found.items() if isinstance(v, float)} == pytest.approx(
            {k: v for k, v in expected.items() if isinstance(v, float)}, rel=1e-3
        )


GRANULARITIES = [lrq.PerTensor(), lrq.PerChannel(0), lrq.PerChannel(1), lrq.PerGroup(4)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("clipping", ["min_max", "percentile", "mse"])
@pytest.mark.parametrize("n_bits", range(1, 9))
def test_quantizers(n_bits, clipping, dtype, randn, intact):
    W = randn(16, 24).to(dtype)
    far = W.to(DEVICE)
    for symmetric in (True, False):
        for granularity in GRANULARITIES:
            q = lrq.UniformQuantizer(n_bits, symmetric, granularity=granularity, clipping=clipping)
            found, expected = q.compress(far), q.compress(W)
            on_device(found)
            assert found.dequantize().dtype == dtype
            assert found.nbytes() == expected.nbytes()
            close(found.scale, expected.scale)
            apart = (found.codes().cpu().long() - expected.codes().long()).abs()  # une demie peut pencher autrement
            assert int(apart.max()) <= (2 if n_bits == 1 else 1)
            assert float((apart > 0).double().mean()) < TIES[dtype]
            assert q.quantization_error(far) == pytest.approx(q.quantization_error(W), rel=TIES[dtype] / 2, abs=1e-6)
    codes = lrq.UniformQuantizer(n_bits).quantize(far)
    assert torch.equal(lrq.unpack_bits(lrq.pack_bits(codes, n_bits), n_bits, codes.shape), codes)


def test_gptq_and_calibration(randn):
    W, X = randn(12, 16), randn(80, 16) @ (torch.eye(16) + randn(16, 16) / 4)
    q = lrq.UniformQuantizer(3, granularity=lrq.PerGroup(4))
    for seen in (X.to(DEVICE), lrq.Calibration.from_inputs(X.to(DEVICE)), lrq.Calibration.from_inputs(X)):
        found = lrq.gptq(W.to(DEVICE), seen, q)
        on_device(found)
        lost, expected = (
            float((X @ (W - stored.dequantize().cpu()).T).norm()) for stored in (found, lrq.gptq(W, X, q))
        )
        assert lost == pytest.approx(expected, rel=0.05)  # un arrondi qui penche autrement déplace les suivants
    network = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    far = moved(network)
    heard = lrq.calibrate(far, ["2"], lambda: far(X.to(DEVICE)))["2"]
    on_device([heard.second_moment, heard.root])
    close(heard.second_moment, lrq.calibrate(network, ["2"], lambda: network(X))["2"].second_moment)


def test_tensor_networks(randn, intact):
    T = randn(4, 3, 5, 2)
    far = T.to(DEVICE)
    for make in (
        lambda T: lrq.tt_svd(T, 3),
        lambda T: lrq.tt_svd(T, error=0.4),
        lambda T: lrq.tt_round(lrq.tt_svd(T, 9), error=0.3),
        lambda T: lrq.tt_orthogonalize(lrq.tt_svd(T, 9), 2),
        lambda T: lrq.regauge(lrq.tt_svd(T, 3), "rotated"),
        lambda T: lrq.regauge(lrq.tt_svd(T, 3), "balanced"),
    ):
        found = make(far)
        on_device(found)
        close(lrq.tt_contract(found), lrq.tt_contract(make(T)))
    core, factors = lrq.tucker(far, 2)
    on_device([core, factors, lrq.rotate_tucker(core, factors)])
    close(lrq.tucker_contract(core, factors), lrq.tucker_contract(*lrq.tucker(T, 2)))
    cores = lrq.tt_svd(far, 3)
    for symmetric in (True, False):
        quantizer = lrq.TTQuantizer(4, symmetric)
        back = quantizer.dequantize_tt_cores(*quantizer.quantize_tt_cores(cores))
        on_device(back)
        assert lrq.core_noise_bound(cores, back) > 0
        tucker = lrq.TuckerQuantizer(symmetric)
        on_device(tucker.dequantize_tucker(tucker.quantize_tucker(core, factors, 4)))


def test_histograms(randn, intact):
    x = randn(3000)
    near, far = lrq.ActivationHistogram(), lrq.ActivationHistogram()
    near.update(x)
    far.update(x.to(DEVICE))
    assert torch.equal(near.counts, far.counts)
    for method in ("min_max", "percentile", "mse", "entropy"):
        assert near.range(method, 4) == far.range(method, 4)


# --- des couches ------------------------------------------------------------------------------------------------------

GROUPS = {"granularity": lrq.PerGroup(4)}
LAYERS = {
    "SVDCompressedLinear": lambda linear: lrq.SVDCompressedLinear.from_linear(linear, 4),
    "FactorizedLinear": lambda linear: lrq.FactorizedLinear.from_linear(linear, 4),
    "TruncatedSVDLinear": lambda linear: lrq.TruncatedSVDLinear.from_linear(linear, 4),
    "CompactSVDLinear": lambda linear: lrq.CompactSVDLinear.from_linear(linear, 4),
    "MultiStageFactorizedLinear": lambda linear: lrq.MultiStageFactorizedLinear.from_linear(linear, [6, 4]),
    "QuantizedLowRankLayer": lambda linear: lrq.QuantizedLowRankLayer.from_linear(linear, 4, 6),
    "QuantizedLowRankLinear": lambda linear: lrq.QuantizedLowRankLinear.from_linear(linear, 4, 6, rotate=True),
    "QuantizedLinear": lambda linear: lrq.QuantizedLinear.from_linear(linear, 4),
    "QuantizedResidualLinear": lambda linear: lrq.QuantizedResidualLinear.from_linear(linear, 3, 4, **GROUPS),
    "QATLowRankLinear": lambda linear: lrq.QATLowRankLinear.from_linear(linear, 4, 6),
    "LSQ": lambda linear: lrq.QATLowRankLinear.from_linear(linear, 4, 6, learned_step=True),
    "TTLinear": lambda linear: lrq.TTLinear.from_linear(linear, [4, 4], [3, 4], 5),
    "TTLinear gardée dense": lambda linear: lrq.TTLinear.from_linear(linear, [4, 4], [3, 4], 5, cache=True),
    "QATTTLinear": lambda linear: lrq.QATTTLinear.from_linear(linear, [4, 4], [3, 4], 5, 6),
    "QuantizedTTLinear": lambda linear: lrq.QuantizedTTLinear.from_linear(linear, [4, 4], [3, 4], 5, 6),
    "PiSSA": lambda linear: lrq.LoRALayer.from_pissa(linear, 3),
    "LoftQ": lambda linear: lrq.LoRALayer.from_quantized(linear, 3),
    "LoRALayer": lambda linear: lrq.LoRALayer(copy.deepcopy(linear), 3),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_linear_layers(make, dtype, linear, randn, tmp_path):
    dense, x = linear(16, 12, dtype=dtype), randn(2, 5, 16, dtype=dtype)
    layer = make(dense)
    there = moved(layer)  # comprimée ici, portée là-bas
    far = make(moved(dense))  # comprimée là-bas
    for other in (there, far):
        on_device(other)
        y = other(x.to(DEVICE))
        on_device(y)
        assert y.dtype == dtype
        assert other(x.to(DEVICE)[:0]).shape == (0, 5, 12)
    with torch.no_grad():
        close(there(x.to(DEVICE)), layer(x), dtype)
    if not isinstance(layer, lrq.LoRALayer):
        # les codes peuvent différer d'un pas : l'erreur, elle, est la même
        errors = [each.reconstruction_error(dense.weight.to(DEVICE)) for each in (there, far)]
        assert errors == pytest.approx([layer.reconstruction_error(dense.weight)] * 2, rel=0.05, abs=GAP[dtype])
        network, plain = nn.Sequential(far).eval(), nn.Sequential(moved(dense))
        lrq.save_weights(network, tmp_path / "poids.safetensors")
        again = lrq.load_compressed(plain, tmp_path / "poids.safetensors")
        on_device(again)
        assert torch.equal(again(x.to(DEVICE)), network(x.to(DEVICE)))
        assert torch.equal(lrq.load_weights(again, tmp_path / "poids.safetensors")(x.to(DEVICE)), network(x.to(DEVICE)))
    if hasattr(far, "to_quantized"):
        on_device(far.to_quantized())
    back = far.cpu()
    assert {t.device.type for t in tensors(back)} == {"cpu"}
    assert back(x).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_convolutions_and_embeddings(dtype, conv, randn):
    images = randn(9, 4, 9, 8)
    for options in ({}, {"groups": 2, "stride": 2}, {"padding": 1, "padding_mode": "reflect", "dilation": 2}):
        dense, x = conv(4, 6, 3, dtype=dtype, **options), randn(2, 4, 9, 8, dtype=dtype)
        for make in (
            lambda conv: lrq.SVDConv2d.from_conv2d(conv, 3),
            lambda conv: lrq.SVDConv2d.from_conv2d(conv, 2, images.to(conv.weight)),
            lambda conv: lrq.QuantizedConv2d.from_conv2d(conv, 8),
            lambda conv: lrq.LoRALayer(copy.deepcopy(conv), 2),
            lambda conv: lrq.LoRALayer.from_pissa(conv, 2),
        ):
            far = make(moved(dense))
            on_device([far, far(x.to(DEVICE))])
            close(
                moved(make(dense))(x.to(DEVICE)), moved(make(dense)).cpu()(x), dtype
            ) if DEVICE.type == "cpu" else None
            layer = make(dense)
            close(moved(layer)(x.to(DEVICE)), layer(x), dtype)
    table = nn.Embedding(30, 16, dtype=dtype)
    ids = torch.tensor([[0, 29, 3], [3, 3, 7]])
    for n_bits in (3, 8):
        far = lrq.QuantizedEmbedding.from_embedding(moved(table), n_bits)
        on_device([far, far(ids.to(DEVICE))])
        close(far(ids.to(DEVICE)), lrq.QuantizedEmbedding.from_embedding(table, n_bits)(ids), dtype)


def test_adapters(linear, randn, train, tmp_path):
    network = nn.Sequential(linear(16, 12), nn.ReLU(), linear(12, 4))
    x = randn(7, 16)
    model = train(lrq.convert_model_to_lora(network, None, 3))
    far = moved(model)
    lrq.add_adapter(far, "autre", 2)
    lrq.set_adapter(far, {"default": 1.0, "autre": 0.5})
    y = far(x.to(DEVICE))
    on_device([far, y])
    close(y, model(x))  # « autre » naît nul
    lrq.merge_adapters(far)
    close(far(x.to(DEVICE)), model(x))
    on_device(lrq.merged_model(far))
    lrq.unmerge_adapters(far)
    assert torch.equal(far(x.to(DEVICE)), y)
    lrq.set_adapter(far, "default")
    lrq.save_adapter(far, tmp_path)
    again = lrq.load_adapter(moved(network), tmp_path)
    on_device(again)
    close(again(x.to(DEVICE)), model(x))


# --- apprendre, comprimer un réseau -----------------------------------------------------------------------------------


def loader(x, y):
    """Deux lots, sur l'appareil."""
    return [(x[:40].to(DEVICE), y[:40].to(DEVICE)), (x[40:].to(DEVICE), y[40:].to(DEVICE))]


@pytest.fixture(scope="module")
def digits():
    """Les chiffres, et les deux réseaux qui les lisent."""
    (x, y), test = models.load_digits_data()
    return (x[:80], y[:80]), test, {kind: models.load_digits_network(kind) for kind in ("mlp", "cnn")}


@pytest.mark.parametrize("trainer", [lrq.LoRATrainer, lrq.AdaptiveLoRA])
@pytest.mark.parametrize("optimizer", [None, lrq.LoRAPlus], ids=["Adam", "LoRAPlus"])
def test_training_adapters(trainer, optimizer, digits, tmp_path):
    (x, y), _, networks = digits
    model = lrq.convert_model_to_lora(moved(networks["mlp"]), None, 4)
    on_device(model)
    teacher = trainer(model, loader(x, y), loader(x, y), 1e-3, optimizer=optimizer)
    start = teacher.validate()
    teacher.train(2)
    on_device(model)
    assert teacher.validate() <= start + 1e-4 or trainer is lrq.AdaptiveLoRA
    if optimizer is None:
        teacher.save(tmp_path / "reprise.safetensors")
        other = trainer(lrq.convert_model_to_lora(moved(networks["mlp"]), None, 4), loader(x, y), loader(x, y), 1e-3)
        other.load(tmp_path / "reprise.safetensors")
        other.train(1)
        on_device(other.model)


def test_training_with_rounding(digits):
    (x, y), _, networks = digits
    for make in (
        lambda layer: lrq.QATLowRankLinear.from_linear(layer, 4, 4),
        lambda layer: lrq.QATLowRankLinear.from_linear(layer, 4, 4, learned_step=True),
    ):
        model = lrq.replace_linears(moved(networks["mlp"]), make)
        on_device(lrq.train_qat_low_rank(model, loader(x, y), 1, loader(x, y)))


METHODS = {
    "SVD": lambda: lrq.SVDCompression({"rank": 8}),
    "SVD des sorties": lambda: lrq.SVDCompression(
        {"optimize_rank": True, "activation_aware": True, "error_threshold": 0.2}
    ),
    "TT": lambda: lrq.TensorTrainCompression({"rank": 6, "train_after_compression": True}),
    "PTQ": lambda: lrq.PTQCompression({"bits": 8, "per_channel": True}),
    "PTQ entropie": lambda: lrq.PTQCompression({"bits": 6, "calibration_method": "entropy"}),
    "GPTQ": lambda: lrq.GPTQCompression({"bits": 4, "group_size": 32, "residual_rank": 4}),
    "budget": lambda: lrq.BudgetCompression({"budget": 90_000, "rank_choices": (0, 4)}),
    "LoRA": lambda: lrq.LoRACompression({"rank": 4}),
}


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.filterwarnings("ignore:calibration")
def test_methods_on_a_real_network(method, kind, digits, tmp_path):
    (x, _), (x_test, y_test), networks = digits
    network = networks[kind]
    far, batches = moved(network), [x[:40], x[40:]]  # les lots peuvent rester sur le processeur
    found, expected = method(), method()
    compressed, near = found.compress(far, batches, batches), expected.compress(network, batches, batches)
    on_device(compressed)
    assert {t.device.type for t in tensors(far)} == {DEVICE.type}
    close(far(x_test.to(DEVICE)), network(x_test))  # l'original n'a pas changé
    accuracies = (
        models.accuracy(compressed, x_test.to(DEVICE), y_test.to(DEVICE)),
        models.accuracy(near, x_test, y_test),
    )
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.02)
    assert found.report.output_error == pytest.approx(expected.report.output_error, rel=0.1, abs=1e-5)
    assert found.report.nbytes() == expected.report.nbytes() or "budget" in str(found).lower()
    assert lrq.stored_bytes(compressed) == pytest.approx(lrq.stored_bytes(near), rel=0.05)
    if not isinstance(found, lrq.LoRACompression):
        lrq.save_weights(compressed, tmp_path / "reseau.safetensors")
        again = lrq.load_compressed(far, tmp_path / "reseau.safetensors")
        on_device(again)
        assert torch.equal(again(x.to(DEVICE)), compressed.eval()(x.to(DEVICE)))
    cache = lrq.CompressionCache(tmp_path / "cache")
    for _ in range(2):  # calculées, puis relues
        on_device(lrq.ParallelCompression(cache).compress_parallel(far, method(), 1, batches))
    if not found.learns:
        on_device(lrq.MemoryEfficientCompression.compress_inplace(copy.deepcopy(far), method(), batches))


def test_errors_of_a_real_network(digits):
    _, (x, _), networks = digits
    network = networks["mlp"]
    compressed = lrq.SVDCompression({"rank": 20}).compress(network)
    near = lrq.analyze_cumulative_error(network, compressed, x)
    far = lrq.analyze_cumulative_error(moved(network), moved(compressed), x.to(DEVICE))
    assert far["relative_error"] == pytest.approx(near["relative_error"], rel=1e-3)
    assert far["layer_errors"] == pytest.approx(near["layer_errors"], rel=1e-3)
    h, W = x.flatten(1), network.fc1.weight
    for device in ("cpu", DEVICE):  # W peut être resté sur le processeur
        told = lrq.analyze_forward_error(moved(compressed).fc1, h.to(DEVICE), W.to(device))
        assert told == pytest.approx(lrq.analyze_forward_error(compressed.fc1, h, W), rel=1e-3)
    assert lrq.compare_factorized_vs_standard(64, 256, 9, linear_layer=moved(network.fc1))["error"] == pytest.approx(
        lrq.compare_factorized_vs_standard(64, 256, 9, linear_layer=network.fc1)["error"], rel=1e-3
    )


def test_minilm_reads_sentences_where_it_is():
    try:
        encoder = models.load_minilm()
    except FileNotFoundError as absent:
        pytest.skip(str(absent))
    sentences = models.load_sentences("test")[:6]
    expected = encoder.encode(sentences)
    found = moved(encoder).encode(sentences)
    assert found.device.type == "cpu"
    close(found, expected)
    halves = moved(encoder).half().encode(sentences)
    assert halves.dtype == torch.float32
    assert models.mean_cosine(halves, expected) > 0.999
