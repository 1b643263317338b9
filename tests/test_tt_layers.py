"""Les couches en train de tenseurs : la matrice que disent leurs cœurs, gardée dense ou non, quantifiée, apprise."""

import copy
import io
import math

import numpy as np
import pytest
import tensorly
import torch
from torch import nn
from torch.nn import functional as F

from lrq import (
    LearnedStepQuantize,
    LoRALayer,
    PerChannel,
    PerTensor,
    QATTTLinear,
    QuantizedTTLinear,
    TTLinear,
    UniformQuantizer,
    load_weights,
    regauge,
    replace_linears,
    save_weights,
    tt_matrix_contract,
    tt_matrix_svd,
    tt_ranks,
)
from lrq.layers import PackedTensor
from lrq.models import load_digits_network

BITS = range(1, 9)
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
LEADING = [(), (0,), (2, 0, 3), (5,), (2, 3)]
INPUTS, OUTPUTS, R = [5, 2, 2], [3, 1, 4], 3  # in = 20, out = 12
N, M = math.prod(INPUTS), math.prod(OUTPUTS)
SPLITS = [(INPUTS, OUTPUTS), ([4, 5], [3, 4]), ([1, 20], [12, 1]), ([2, 2, 5, 1, 1], [3, 2, 1, 2, 1])]

# (couche dense, dimensions) -> couche
CONVERT = {
    "TTLinear": lambda layer, dims=(INPUTS, OUTPUTS): TTLinear.from_linear(layer, *dims, R),
    "Ŵ gardée": lambda layer, dims=(INPUTS, OUTPUTS): TTLinear.from_linear(layer, *dims, R, cache=True),
    "8 bits": lambda layer, dims=(INPUTS, OUTPUTS): QuantizedTTLinear.from_linear(layer, *dims, R),
    "3 bits, canaux": lambda layer, dims=(INPUTS, OUTPUTS): QuantizedTTLinear.from_linear(
        layer, *dims, R, 3, PerChannel(-1)
    ),
    "QAT": lambda layer, dims=(INPUTS, OUTPUTS): QATTTLinear.from_linear(layer, *dims, R, 4),
    "QAT, pas appris": lambda layer, dims=(INPUTS, OUTPUTS): QATTTLinear.from_linear(
        layer, *dims, R, 4, per_channel=True, learned_step=True
    ),
}
converted = pytest.mark.parametrize("convert", [pytest.param(f, id=name) for name, f in CONVERT.items()])
splits = pytest.mark.parametrize("dims", SPLITS, ids=str)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
with_or_without_bias = pytest.mark.parametrize("bias", [True, False], ids=["biais", "sans biais"])


def snapshot(module):
    return {name: t.detach().clone() for name, t in module.state_dict().items()}


def unchanged(module, before):
    now = module.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in before)


def dense(layer, x):
    return F.linear(x, layer.reconstruct_weight(), layer.bias)


# --- ce que partagent les trois couches -------------------------------------------------------------------------------


@converted
@splits
@with_or_without_bias
def test_forward_applies_the_reconstructed_weight(convert, dims, bias, linear, randn):
    layer = convert(linear(bias=bias), dims)
    W = layer.reconstruct_weight()
    assert W.shape == (M, N)
    assert (layer.bias is not None) == bias
    for grad in (True, False):
        for leading in LEADING:
            x = randn(*leading, N)
            with torch.set_grad_enabled(grad):
                y = layer(x)
            assert y.shape == (*leading, M)
            torch.testing.assert_close(y, dense(layer, x), rtol=1e-4, atol=2e-4)


@converted
@every_dtype
def test_dtype_is_kept(convert, dtype, linear, randn):
    layer, x = convert(linear(dtype=dtype)), randn(3, N, dtype=dtype)
    y = layer(x)
    assert {y.dtype, layer.bias.dtype, layer.reconstruct_weight().dtype} == {dtype}
    exact = F.linear(x.double(), layer.reconstruct_weight().double(), layer.bias.double()).detach()
    assert float((y.detach().double() - exact).norm() / exact.norm()) < 16 * torch.finfo(dtype).eps


@converted
@pytest.mark.parametrize("target", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_layer_is_converted_like_any_other(convert, target, linear, randn):
    layer, x = convert(linear()), randn(3, N)
    with torch.no_grad():
        y = layer(x)
        layer.to(target)
        found = layer(x.to(target))
    assert found.dtype == target
    assert layer.reconstruct_weight().dtype == target
    # à 3 bits, les poids d'une couche QAT arrondis en fp16 peuvent changer de code : on compare à sa propre Ŵ
    torch.testing.assert_close(found, dense(layer, x.to(target)), rtol=0.02, atol=0.2)
    if target == torch.float64:
        torch.testing.assert_close(found.float(), y, rtol=1e-4, atol=1e-4)


@converted
@with_or_without_bias
def test_autocast_gives_what_a_linear_layer_gives(convert, bias, linear, randn):
    source = linear(bias=bias)
    layer, x = convert(source), randn(3, N)
    for grad in (True, False):
        with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer(x)
            assert y.dtype == source(x).dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), dense(layer, x), rtol=0.1, atol=0.5)
    with torch.no_grad():  # rien de ce qu'autocast a calculé n'est gardé
        assert layer(x).dtype == torch.float32
        torch.testing.assert_close(layer(x), dense(layer, x), rtol=1e-4, atol=1e-4)


@converted
def test_null_weights_stay_null(convert, linear, randn):
    source = linear()
    nn.init.zeros_(source.weight)
    layer = convert(source)
    assert torch.equal(layer.reconstruct_weight(), torch.zeros(M, N))
    assert layer.reconstruction_error(source.weight) == 0.0
    assert torch.equal(layer(randn(3, N)), source.bias.expand(3, M))


@converted
@with_or_without_bias
def test_the_source_is_neither_changed_nor_shared(convert, bias, linear):
    source = linear(bias=bias)
    before = snapshot(source)
    layer = convert(source)
    assert unchanged(source, before)
    mine = snapshot(layer)
    with torch.no_grad():
        for p in source.parameters():
            p.fill_(7.0)
    assert unchanged(layer, mine)
    with torch.no_grad():
        for t in layer.state_dict().values():
            t.zero_()
    assert all((p == 7).all() for p in source.parameters())


@converted
def test_deepcopy_is_equal_and_independent(convert, linear, randn):
    layer, x = convert(linear()), randn(3, N)
    with torch.no_grad():
        y = layer(x)
        twin = copy.deepcopy(layer)
        assert torch.equal(twin(x), y)
        for t in twin.state_dict().values():
            t.zero_()
        assert torch.equal(layer(x), y)
        assert not twin(x).any()


@converted
def test_a_whole_layer_goes_through_pickle(convert, linear, randn):
    layer, x = convert(linear()), randn(3, N)
    with torch.no_grad():
        y = layer(x)
    with io.BytesIO() as file:
        torch.save(layer, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    with torch.no_grad():
        assert torch.equal(twin(x), y)


@converted
@with_or_without_bias
def test_files_give_the_layer_back(convert, bias, linear, randn, tmp_path):
    layer, other = convert(linear(bias=bias)), convert(linear(bias=bias))
    x = randn(3, N)
    with torch.no_grad():
        assert not torch.equal(layer(x), other(x))
        save_weights(layer, tmp_path / "couche.safetensors")
        load_weights(other, tmp_path / "couche.safetensors")
        assert torch.equal(layer(x), other(x))
        third = convert(linear(bias=bias))
        third(x)
        third.load_state_dict(layer.state_dict())
        assert torch.equal(layer(x), third(x))
    size = (tmp_path / "couche.safetensors").stat().st_size
    assert layer.nbytes() <= size < layer.nbytes() + 3000  # Ŵ, elle, n'est pas écrite


@converted
def test_sizes_are_those_of_what_is_stored(convert, linear):
    for bias in (True, False):
        layer = convert(linear(bias=bias))
        tensors = layer.state_dict().values()
        assert layer.nbytes() == sum(t.nbytes for t in tensors)
        assert layer.count_parameters() == 5 * 3 * 3 + 3 * 2 * 1 * 3 + 3 * 2 * 4
        assert layer.dense_parameters() == N * M
        stored = layer.nbytes() - (4 * M if bias else 0)
        if isinstance(layer, QuantizedTTLinear):
            assert layer.compression_ratio() == 4 * N * M / stored
        else:
            assert layer.compression_ratio() == N * M / layer.count_parameters()


@converted
def test_representation_gives_the_shapes(convert, linear):
    assert f"{INPUTS}, {OUTPUTS}, ranks=[{R}, {R}], bias=True" in repr(convert(linear()))


@converted
def test_an_input_of_the_wrong_width_is_named(convert, linear, randn):
    layer = convert(linear())
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            for x in (randn(2, N - 1), randn(N, 2), torch.tensor(1.0)):
                with pytest.raises(ValueError, match=rf"^x : reçu la forme .*, attendu \(\.\.\., {N}\)"):
                    layer(x)
            with pytest.raises(TypeError, match=r"^x : reçu list"):
                layer([1.0] * N)


@converted
def test_a_layer_of_another_class_is_named(convert):
    for layer in (nn.Conv2d(4, 4, 1), nn.ReLU(), torch.ones(4, 4), None):
        with pytest.raises(TypeError, match=rf"^linear_layer : reçu {type(layer).__name__}, attendu nn\.Linear"):
            convert(layer)


@converted
def test_bad_weights_are_named(convert, linear):
    for name in ("weight", "bias"):
        source = linear()
        getattr(source, name).data.view(-1)[3] = math.nan
        with pytest.raises(ValueError, match=rf"^linear_layer\.{name} : .*NaN"):
            convert(source)


@converted
def test_a_network_is_converted_on_a_copy(convert, randn):
    network = load_digits_network("mlp")
    before, x = snapshot(network), randn(4, 64)
    name, source = next((name, m) for name, m in network.named_modules() if isinstance(m, nn.Linear))
    dims = [source.in_features // 4, 4], [source.out_features // 4, 4]
    compressed = replace_linears(network, lambda layer: convert(layer, dims), [name])
    assert unchanged(network, before)
    assert type(compressed.get_submodule(name)) is type(convert(source, dims))
    assert compressed(x).shape == network(x).shape
    assert not torch.equal(compressed(x), network(x))


@converted
def test_an_adapter_goes_over_it(convert, linear, randn):
    base, x = convert(linear()), randn(2, 3, N)
    layer = LoRALayer(base, 2)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), base(x))
        layer.lora_B.data = randn(M, 2)
        found = layer(x)
    torch.testing.assert_close(found, base(x) + x @ layer.lora_A.T @ layer.lora_B.T, rtol=1e-4, atol=1e-4)
    layer(x).square().sum().backward()
    assert [name for name, p in layer.named_parameters() if p.grad is not None] == [
        "adapters.default.A",
        "adapters.default.B",
    ]
    with pytest.raises(TypeError, match=r"garde des poids comprimés"):
        layer.merge_weights()


# --- TTLinear ---------------------------------------------------------------------------------------------------------


@splits
@every_dtype
def test_its_weights_are_those_of_tt_svd(dims, dtype, linear):
    source = linear(dtype=dtype)
    for options in ({"rank": 2}, {"error": 0.3}):
        layer = TTLinear.from_linear(source, *dims, **options)
        cores = tt_matrix_svd(source.weight, *dims, **options)
        assert torch.equal(layer.reconstruct_weight(), tt_matrix_contract(cores))
        assert layer.ranks == tt_ranks(cores)
        assert {core.dtype for core in layer.cores} == {dtype}
    assert layer.reconstruction_error(source.weight) <= 0.3 + 8 * torch.finfo(dtype).eps


@splits
def test_whole_ranks_give_the_layer_back(dims, linear, randn):
    source = linear(dtype=torch.float64)
    x = randn(4, N, dtype=torch.float64)
    torch.testing.assert_close(TTLinear.from_linear(source, *dims, 1000)(x), source(x))


@pytest.mark.parametrize("implementation", ["factorized", "reconstructed"])
@pytest.mark.parametrize("dims", SPLITS[:2], ids=str)
@pytest.mark.filterwarnings("ignore")
def test_tensorly_torch_gives_the_same_outputs(implementation, dims, linear, randn):
    """Leur cœur est (r, out, in, s), le nôtre (r, in, out, s)."""
    layer, x = TTLinear.from_linear(linear(dtype=torch.float64), *dims, R), randn(5, N, dtype=torch.float64)
    with tensorly.backend_context("pytorch", local_threadsafe=True):
        import tltorch

        theirs = tltorch.FactorizedLinear(
            *map(tuple, dims),
            rank=(1, *layer.ranks, 1),
            factorization="blocktt",
            implementation=implementation,
            dtype=torch.float64,
        )
        theirs.bias.data = layer.bias.data
        for factor, core in zip(theirs.weight.factors, layer.cores, strict=True):
            factor.data = core.detach().transpose(1, 2).contiguous()
        torch.testing.assert_close(layer(x), theirs(x), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(layer.reconstruct_weight(), theirs.weight.to_matrix())


def test_rows_first_it_is_a_truncated_svd(linear):
    source = linear(dtype=torch.float64)
    layer = TTLinear.from_linear(source, [1, N], [M, 1], 5)
    tail = np.linalg.svd(source.weight.detach().numpy(), compute_uv=False)[5:]
    exact = float(np.linalg.norm(tail) / source.weight.detach().norm())
    assert layer.reconstruction_error(source.weight) == pytest.approx(exact, rel=1e-9)


@splits
@with_or_without_bias
def test_a_layer_built_alone_has_the_shapes_of_a_converted_one(dims, bias, rng, linear):
    for rank in (1, 2, 1000, rng.integers(1, 9, len(dims[0]) - 1).tolist()):
        built, found = TTLinear(*dims, rank, bias=bias), TTLinear.from_linear(linear(bias=bias), *dims, rank)
        assert built.ranks == found.ranks
        assert {name: t.shape for name, t in built.state_dict().items()} == {
            name: t.shape for name, t in found.state_dict().items()
        }
        found.load_state_dict(built.state_dict())
        assert torch.equal(found.reconstruct_weight(), built.reconstruct_weight())


def test_a_layer_built_alone_starts_like_xavier(rng):
    built = [TTLinear([8, 8], [8, 8], 6).reconstruct_weight() for _ in range(40)]
    variance = torch.stack(built).square().mean().item()
    assert variance == pytest.approx(2 / (64 + 64), rel=0.25)
    bias = TTLinear([2, 2], [2, 2], 1, bias=True).bias
    assert torch.equal(bias, torch.zeros(4))
    assert TTLinear([2, 2], [2, 2], 1).bias is None


def test_construction_follows_the_seed_and_conversion_draws_nothing(linear, randn):
    torch.manual_seed(3)
    first = TTLinear(INPUTS, OUTPUTS, R)
    torch.manual_seed(3)
    assert unchanged(TTLinear(INPUTS, OUTPUTS, R), snapshot(first))
    source = linear()
    state = torch.get_rng_state()
    for convert in CONVERT.values():
        convert(source)
    assert torch.equal(torch.get_rng_state(), state)


def test_dtype_and_device_are_those_asked_for():
    layer = TTLinear(INPUTS, OUTPUTS, R, bias=True, device="meta", dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.float64)}


def test_cores_are_taken_as_they_are(chain, randn):
    cores = [core.transpose(1, 2) for core in chain([(2, 3), (3, 2), (2, 2)], [9, 5])]  # des rangs plus grands qu'utile
    layer, x = TTLinear.from_cores(cores), randn(4, 12)
    assert layer.ranks == [9, 5]
    assert (layer.input_dims, layer.output_dims) == ([3, 2, 2], [2, 3, 2])
    assert layer.count_parameters() == sum(core.numel() for core in cores)
    assert all(torch.equal(mine, core) and mine.is_contiguous() for mine, core in zip(layer.cores, cores, strict=True))
    torch.testing.assert_close(layer(x), F.linear(x, tt_matrix_contract(cores)), rtol=1e-4, atol=1e-4)
    cores[0].zero_()
    assert layer.cores[0].any()


def test_gradients_reach_the_input_the_cores_and_the_bias(linear, randn):
    layer = TTLinear.from_linear(linear(dtype=torch.float64), INPUTS, OUTPUTS, R)
    x, weights = randn(5, N, dtype=torch.float64).requires_grad_(), randn(5, M, dtype=torch.float64)
    leaves = [x, *layer.parameters()]
    ours = torch.autograd.grad((layer(x) * weights).sum(), leaves)
    for found, expected in zip(ours, torch.autograd.grad((dense(layer, x) * weights).sum(), leaves), strict=True):
        torch.testing.assert_close(found, expected)


def test_it_learns(linear, randn):
    target, x = linear(bias=False), randn(200, N)
    layer = TTLinear(INPUTS, OUTPUTS, 1000)
    optimizer = torch.optim.Adam(layer.parameters(), 0.02)
    losses = []
    for _ in range(150):
        loss = F.mse_loss(layer(x), target(x).detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


# --- garder Ŵ ---------------------------------------------------------------------------------------------------------


def step(layer, x):
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    with torch.enable_grad():
        layer(x).square().mean().backward()
    optimizer.step()


def replace(layer, x):
    layer.cores[1] = nn.Parameter(torch.randn_like(layer.cores[1]))


def assign(layer, x):
    layer.load_state_dict({name: torch.randn_like(t) for name, t in layer.state_dict().items()}, assign=True)


def load(layer, x):
    layer.load_state_dict({name: torch.randn_like(t) for name, t in layer.state_dict().items()})


@torch.no_grad()
def copy_in_place(layer, x):
    layer.cores[2].copy_(torch.randn_like(layer.cores[2]))


@torch.inference_mode()
def scale_in_inference_mode(layer, x):
    layer.cores[0].mul_(3)


def give_data(layer, x):
    layer.cores[0].data = torch.randn_like(layer.cores[0])


def convert_and_back(layer, x):
    layer.to(torch.bfloat16).to(torch.float32)


CHANGES = [step, replace, assign, load, copy_in_place, scale_in_inference_mode, give_data, convert_and_back]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_changed_core_is_seen(change, mode, linear, randn):
    layer, x = TTLinear.from_linear(linear(), INPUTS, OUTPUTS, R, cache=True), randn(4, N)
    with mode():
        before = layer(x)
    change(layer, x)
    with mode():
        found = layer(x)
    assert not torch.equal(found, before), "rien n'a changé : ce test ne prouve rien"
    torch.testing.assert_close(found, dense(layer, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("change", [replace, give_data])
def test_a_core_that_takes_the_place_of_another_in_memory_is_seen(change, linear, randn):
    """Deux cœurs de suite, sans appel entre eux : le second peut naître à l'adresse de celui que Ŵ a connu."""
    layer, x = TTLinear.from_linear(linear(64, 64), [8, 8], [8, 8], 8, cache=True), randn(2, 64)
    for _ in range(60):
        with torch.no_grad():
            layer(x)
            change(layer, x)
            change(layer, x)
            torch.testing.assert_close(layer(x), dense(layer, x), rtol=1e-3, atol=1e-2)


def test_cores_born_in_inference_mode_are_never_trusted(linear, randn):
    with torch.inference_mode():
        layer, x = TTLinear.from_linear(linear(), INPUTS, OUTPUTS, R, cache=True), randn(4, N)
        layer(x)
        layer.cores[0].mul_(2)
        torch.testing.assert_close(layer(x), dense(layer, x), rtol=1e-4, atol=1e-4)


def test_the_weight_is_computed_once(linear, randn, monkeypatch):
    layer, x, calls = TTLinear.from_linear(linear(), INPUTS, OUTPUTS, R, cache=True), randn(4, N), []
    real = TTLinear.reconstruct_weight
    monkeypatch.setattr(TTLinear, "reconstruct_weight", lambda self: calls.append(1) or real(self))
    with torch.no_grad():
        for _ in range(5):
            layer(x)
    with torch.inference_mode():
        layer(x)
    assert len(calls) == 1
    layer(x)  # pour apprendre, cœur après cœur
    assert len(calls) == 1
    copy_in_place(layer, x)
    with torch.no_grad():
        layer(x)
        layer(x)
    assert len(calls) == 2


def test_the_kept_weight_counts_for_nothing_in_what_is_stored(linear, randn):
    plain, kept = (TTLinear.from_linear(linear(), INPUTS, OUTPUTS, R, cache=cache) for cache in (False, True))
    with torch.no_grad():
        kept(randn(4, N))
    assert kept.nbytes() == plain.nbytes()
    assert kept.state_dict().keys() == plain.state_dict().keys()
    sizes = []
    for layer in (plain, kept):
        with io.BytesIO() as file:
            torch.save(layer, file)
            sizes.append(file.tell())
    assert sizes[1] - sizes[0] < 100


def test_frozen_cores_are_multiplied_at_once_and_let_the_gradient_through(linear, randn):
    layer = TTLinear.from_linear(linear(), INPUTS, OUTPUTS, R, cache=True).requires_grad_(False)
    x = randn(4, N).requires_grad_()
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.reconstruct_weight().sum(0).expand(4, N))
    layer.bias.requires_grad_(True)
    layer(x).sum().backward()
    torch.testing.assert_close(layer.bias.grad, torch.full((M,), 4.0))
    layer.requires_grad_(True)
    layer(x).sum().backward()
    assert all(core.grad is not None for core in layer.cores)


def test_a_weight_kept_in_inference_mode_serves_elsewhere(linear, randn):
    layer, x = TTLinear.from_linear(linear(), INPUTS, OUTPUTS, R, cache=True), randn(4, N).requires_grad_()
    with torch.inference_mode():
        layer(x)
    layer.requires_grad_(False)
    layer(x).sum().backward()  # une Ŵ née sous inference_mode l'interdirait
    torch.testing.assert_close(x.grad, layer.reconstruct_weight().sum(0).expand(4, N))


# --- QuantizedTTLinear ------------------------------------------------------------------------------------------------


def quantized(cores, n_bits, **options):
    """L'oracle : chaque cœur arrondi par le quantificateur, puis la matrice."""
    quantizer = UniformQuantizer(n_bits, **options)
    return tt_matrix_contract([quantizer.quantize_dequantize(core) for core in cores])


@pytest.mark.parametrize("n_bits", BITS)
@pytest.mark.parametrize("gauge", ["orthogonal", "balanced", "rotated", None])
def test_it_applies_the_rounded_cores(n_bits, gauge, linear):
    source = linear()
    cores = tt_matrix_svd(source.weight, INPUTS, OUTPUTS, R)
    chosen = cores if gauge is None else regauge(cores, gauge)
    for granularity in (PerTensor(), PerChannel(-1), PerChannel(1)):
        layer = QuantizedTTLinear.from_linear(source, INPUTS, OUTPUTS, R, n_bits, granularity, gauge=gauge)
        assert torch.equal(layer.reconstruct_weight(), quantized(chosen, n_bits, granularity=granularity))
        assert torch.equal(layer.bias, source.bias)


def test_bits_are_packed(linear):
    for n_bits in BITS:
        layer = QuantizedTTLinear.from_linear(linear(bias=False), INPUTS, OUTPUTS, R, n_bits)
        sizes = [math.prod(shape) for shape in layer.core_shapes()]
        assert layer.nbytes() == sum(-(-size * n_bits // 8) + 4 for size in sizes)  # des codes, et une échelle
        assert all(isinstance(core, PackedTensor) for core in layer.cores)


def test_more_bits_lose_less(linear):
    source = linear()
    whole = TTLinear.from_linear(source, INPUTS, OUTPUTS, R).reconstruct_weight()
    errors = [
        QuantizedTTLinear.from_linear(source, INPUTS, OUTPUTS, R, b).reconstruction_error(whole) for b in (2, 4, 6, 8)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.05 < errors[0]


def test_each_core_may_have_its_bits(linear, randn, tmp_path):
    source = linear()
    cores = regauge(tt_matrix_svd(source.weight, INPUTS, OUTPUTS, R), "rotated")
    layer = QuantizedTTLinear.from_linear(source, INPUTS, OUTPUTS, R, [8, 3, 5])
    rounded = [UniformQuantizer(b).quantize_dequantize(core) for b, core in zip([8, 3, 5], cores, strict=True)]
    assert layer.n_bits == [8, 3, 5]
    assert "n_bits=[8, 3, 5]" in repr(layer)
    assert torch.equal(layer.reconstruct_weight(), tt_matrix_contract(rounded))
    save_weights(layer, tmp_path / "couche.safetensors")
    same, other = (QuantizedTTLinear(INPUTS, OUTPUTS, R, bits, bias=True) for bits in ([8, 3, 5], [8, 5, 3]))
    load_weights(same, tmp_path / "couche.safetensors")
    assert torch.equal(same.reconstruct_weight(), layer.reconstruct_weight())
    with pytest.raises(ValueError, match=r"cores\.1 : reçu des codes rangés en .* sur 3 bit"):
        load_weights(other, tmp_path / "couche.safetensors")


def test_a_quantized_layer_built_alone_is_null_and_loads(linear, randn):
    layer = QuantizedTTLinear(INPUTS, OUTPUTS, R, 5, bias=True)
    assert not layer(randn(3, N)).any()
    source = QuantizedTTLinear.from_linear(linear(), INPUTS, OUTPUTS, R, 5)
    layer.load_state_dict(source.state_dict())
    x = randn(3, N)
    assert torch.equal(layer(x), source(x))


def test_a_quantized_layer_says_the_ranks_it_has(chain, randn):
    cores, x = chain([(2, 2), (2, 2)], 9), randn(3, 4)  # 9, quand 4 suffiraient
    layer = QuantizedTTLinear.from_cores(cores, 8, gauge=None)
    assert layer.ranks == [9]
    assert layer.count_parameters() == 72
    torch.testing.assert_close(layer(x), F.linear(x, quantized(cores, 8)), rtol=1e-4, atol=1e-4)
    assert QuantizedTTLinear.from_cores(cores, 8).ranks == [4]  # équilibrés, les cœurs perdent ce qui ne sert pas


def test_gradients_reach_the_input_and_the_bias(linear, randn):
    layer = QuantizedTTLinear.from_linear(linear(dtype=torch.float64), INPUTS, OUTPUTS, R, 4)
    x = randn(3, N, dtype=torch.float64).requires_grad_()
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.reconstruct_weight().sum(0).expand(3, N).detach())
    torch.testing.assert_close(layer.bias.grad, torch.full((M,), 3.0, dtype=torch.float64))


# --- QATTTLinear ------------------------------------------------------------------------------------------------------

SETTINGS = {
    "cœur": {},
    "canaux": {"per_channel": True},
    "pas appris": {"learned_step": True},
    "pas appris, canaux": {"per_channel": True, "learned_step": True},
}
settings = pytest.mark.parametrize("options", [pytest.param(o, id=name) for name, o in SETTINGS.items()])


def bits_allowed(options, wanted=BITS):
    return [b for b in wanted if b > 1 or not options.get("learned_step")]


@settings
@every_dtype
def test_what_it_learns_is_what_is_stored_to_the_bit(options, dtype, linear, randn):
    for bits in bits_allowed(options):
        layer = QATTTLinear.from_linear(linear(dtype=dtype), INPUTS, OUTPUTS, R, bits, **options)
        if options.get("learned_step"):  # un pas appris peut changer de signe
            with torch.no_grad():
                layer.fake_quants[0].scale.mul_(-0.7)
        stored, x = layer.to_quantized(), randn(7, N, dtype=dtype)
        assert isinstance(stored, QuantizedTTLinear)
        assert stored.n_bits == layer.n_bits == [bits] * 3
        assert stored.ranks == layer.ranks
        for ours, theirs in zip(layer.chain(), stored.chain(), strict=True):
            assert torch.equal(ours, theirs)
        assert torch.equal(layer(x), stored(x))


@settings
def test_training_starts_from_what_ptq_gives(options, linear, randn):
    source, x = linear(), randn(5, N)
    layer = QATTTLinear.from_linear(source, INPUTS, OUTPUTS, R, 4, **options)
    granularity = PerChannel(-1) if options.get("per_channel") else PerTensor()
    ptq = QuantizedTTLinear.from_linear(source, INPUTS, OUTPUTS, R, 4, granularity)
    assert torch.equal(layer(x), ptq(x)) != bool(options.get("learned_step"))  # un pas appris part d'un autre pas


@settings
def test_gradients_go_straight_through(options, linear, randn):
    layer, x = (
        QATTTLinear.from_linear(linear(dtype=torch.float64), INPUTS, OUTPUTS, R, 4, **options),
        randn(5, N).double(),
    )
    layer(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())
    rounded = [core.detach().requires_grad_() for core in layer.chain()]
    F.linear(x, tt_matrix_contract(rounded), layer.bias.detach()).square().sum().backward()
    for core, fake, exact in zip(layer.cores, layer.fake_quants, rounded, strict=True):
        learned = isinstance(fake, LearnedStepQuantize)
        assert learned == bool(options.get("learned_step"))
        scale = fake.scale if learned else fake.quantizer.compute_scale_zero_point(core)[0]
        inside = core.detach().abs() <= 7 * scale.detach() * (1 + 1e-12)
        assert inside.all() or learned
        torch.testing.assert_close(core.grad[inside], exact.grad[inside], rtol=1e-9, atol=1e-9)
        assert not core.grad[~inside].any()


@settings
def test_training_beats_rounding_afterwards(options, linear, randn):
    source, x = linear(bias=False), randn(300, N)
    start = TTLinear.from_linear(source, INPUTS, OUTPUTS, R)
    target = start(x).detach()
    before = F.mse_loss(QATTTLinear.from_tt(start, 2)(x), target).item()
    layer = QATTTLinear.from_tt(start, 2, **options)
    optimizer, losses = torch.optim.Adam(layer.parameters(), 0.01), []
    for _ in range(120):
        loss = F.mse_loss(layer(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses) < 0.8 * before


def test_it_starts_from_a_layer_in_the_gauge_asked_for(linear):
    start = TTLinear.from_linear(linear(), INPUTS, OUTPUTS, R)
    before = snapshot(start)
    for gauge in ("orthogonal", "balanced", "rotated"):
        layer = QATTTLinear.from_tt(start, gauge=gauge)
        for mine, core in zip(layer.cores, regauge(start.cores, gauge), strict=True):
            assert torch.equal(mine, core)
    kept = QATTTLinear.from_tt(start, gauge=None)
    assert all(torch.equal(a, b) for a, b in zip(kept.cores, start.cores, strict=True))
    assert torch.equal(kept.bias, start.bias)
    with torch.no_grad():
        for p in kept.parameters():
            p.zero_()
    assert unchanged(start, before)


def test_each_core_learns_with_its_bits(linear, randn):
    layer, x = QATTTLinear.from_linear(linear(), INPUTS, OUTPUTS, R, [8, 2, 5], learned_step=True), randn(3, N)
    assert [fake.quantizer.n_bits for fake in layer.fake_quants] == layer.n_bits == [8, 2, 5]
    assert torch.equal(layer.to_quantized()(x), layer(x))


def test_what_it_applies_is_never_kept(linear, randn):
    """Un pas appris change Ŵ sans toucher aux cœurs."""
    layer, x = QATTTLinear.from_linear(linear(), INPUTS, OUTPUTS, R, 4, learned_step=True), randn(3, N)
    layer.cache = True
    with torch.no_grad():
        before = layer(x)
        layer.fake_quants[0].scale.mul_(3)
        assert not torch.equal(layer(x), before)
        torch.testing.assert_close(layer(x), dense(layer, x), rtol=1e-4, atol=1e-4)


def test_a_layer_built_alone_learns_too(randn):
    layer = QATTTLinear(INPUTS, OUTPUTS, R, 4, bias=True, learned_step=True)
    assert layer.ranks == [3, 3]
    layer(randn(3, N)).square().sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


# --- mauvaises entrées ------------------------------------------------------------------------------------------------

BUILD = [TTLinear, QuantizedTTLinear, QATTTLinear]


@pytest.mark.parametrize("kind", BUILD)
def test_bad_dimensions_are_named(kind):
    for dims, message in [
        (([4, 5], [3, 2, 1]), r"output_dims : reçu 3 dimensions, attendu 2 comme en entrée"),
        (([20], [6]), r"input_dims : reçu \[20\], attendu une liste d'au moins deux entiers"),
        ((20, 6), r"input_dims : reçu 20, attendu une liste d'au moins deux entiers"),
        (([4, 0], [3, 2]), r"input_dims\[1\] : reçu 0, attendu un entier ≥ 1"),
    ]:
        with pytest.raises(ValueError, match=f"^{message}"):
            kind(*dims, 2)
    with pytest.raises(TypeError, match=r"^output_dims\[1\] : reçu 2\.0, attendu un entier ≥ 1"):
        kind([4, 5], [3, 2.0], 2)
    with pytest.raises(ValueError, match=r"^input_dims : reçu \[4, 4\], de produit 16, attendu 20"):
        kind.from_linear(nn.Linear(20, 6), [4, 4], [3, 2], 2)
    with pytest.raises(ValueError, match=r"^output_dims : reçu \[2, 2\], de produit 4, attendu 6"):
        kind.from_linear(nn.Linear(20, 6), [4, 5], [2, 2], 2)


@pytest.mark.parametrize("make", [*BUILD, *(lambda *a, k=kind: k.from_linear(nn.Linear(8, 8), *a) for kind in BUILD)])
@pytest.mark.parametrize(
    ("rank", "error", "message"),
    [
        (0, ValueError, r"rank : reçu 0, attendu un entier ≥ 1"),
        (2.5, TypeError, r"rank : reçu 2\.5, attendu un entier ≥ 1"),
        (True, TypeError, r"rank : reçu True, attendu un entier ≥ 1"),
        ("2", TypeError, r"rank : reçu '2', attendu un entier ≥ 1"),
        ([2], ValueError, r"rank : reçu \[2\], attendu un entier, ou 2, un par lien"),
        ([2, -1], ValueError, r"rank\[1\] : reçu -1, attendu un entier ≥ 1"),
    ],
)
def test_bad_ranks_are_named(make, rank, error, message):
    with pytest.raises(error, match=f"^{message}"):
        make([2, 2, 2], [2, 2, 2], rank)


def test_a_rank_or_an_error_but_not_both(linear):
    for given in ({}, {"rank": 2, "error": 0.1}):
        with pytest.raises(ValueError, match=r"^rank, error : reçu .*, attendu l'un ou l'autre"):
            TTLinear.from_linear(linear(), INPUTS, OUTPUTS, **given)


@pytest.mark.parametrize("kind", [QuantizedTTLinear, QATTTLinear])
def test_bad_bits_are_named(kind, linear):
    for make in (kind, lambda *a, **k: kind.from_linear(linear(), *a, **k)):
        for bits, error, message in [
            (0, ValueError, "n_bits : reçu 0, attendu un entier entre 1 et 8"),
            (9, ValueError, "n_bits : reçu 9, attendu un entier entre 1 et 8"),
            (2.5, TypeError, r"n_bits : reçu 2\.5, attendu un entier entre 1 et 8"),
            ([8, 4], ValueError, r"n_bits : reçu \[8, 4\], attendu un entier, ou 3, un par cœur"),
            ([8, 4, 9], ValueError, r"n_bits\[2\] : reçu 9, attendu un entier entre 1 et 8"),
        ]:
            with pytest.raises(error, match=f"^{message}"):
                make(INPUTS, OUTPUTS, R, n_bits=bits)


def test_other_bad_arguments_are_named(linear, chain):
    source = linear()
    with pytest.raises(ValueError, match=r"^gauge : reçu 'polar', attendu 'orthogonal' ou 'balanced' ou 'rotated'"):
        QuantizedTTLinear.from_linear(source, INPUTS, OUTPUTS, R, gauge="polar")
    with pytest.raises(ValueError, match=r"^n_bits : reçu 1, attendu un entier entre 2 et 8"):
        QATTTLinear(INPUTS, OUTPUTS, R, 1, learned_step=True)
    with pytest.raises(TypeError, match=r"^granularity : reçu 'canal'"):
        QuantizedTTLinear(INPUTS, OUTPUTS, R, granularity="canal")
    with pytest.raises(ValueError, match=r"^clipping : reçu 'jamais'"):
        QuantizedTTLinear(INPUTS, OUTPUTS, R, clipping="jamais")
    with pytest.raises(TypeError, match=r"^layer : reçu Linear, attendu TTLinear"):
        QATTTLinear.from_tt(source)
    cores = chain([(2, 3), (3, 2)], 2)
    for kind in (TTLinear, QuantizedTTLinear):
        with pytest.raises(ValueError, match=r"^cores\[1\] : reçu la forme .*, attendu \(2, in, out, r\)"):
            kind.from_cores([cores[0], cores[0]])
        with pytest.raises(ValueError, match=r"^cores\[0\] : NaN ou infini"):
            kind.from_cores([cores[0] * math.nan, cores[1]])
        with pytest.raises(ValueError, match=r"^input_dims : reçu \[6\], attendu une liste d'au moins deux entiers"):
            kind.from_cores(chain([(6, 2)], 1))


def test_a_refused_file_changes_nothing(linear, randn, tmp_path):
    layer, x = TTLinear.from_linear(linear(), INPUTS, OUTPUTS, R, cache=True), randn(3, N)
    save_weights(TTLinear.from_linear(linear(), INPUTS, OUTPUTS, 2), tmp_path / "couche.safetensors")
    with torch.no_grad():
        before = layer(x)
        with pytest.raises(ValueError, match=r"cores\.0 : reçu la forme"):
            load_weights(layer, tmp_path / "couche.safetensors")
        assert torch.equal(layer(x), before)


def test_a_quantized_layer_starts_from_a_learned_train_with_its_bias(linear):
    layer = linear(12, 8)
    train = TTLinear.from_linear(layer, (3, 4), (2, 4), 5)
    quantized = QuantizedTTLinear.from_tt(train, 8)
    assert torch.equal(quantized.bias, layer.bias)
    assert quantized.bias is not train.bias
    same = QuantizedTTLinear.from_linear(layer, (3, 4), (2, 4), 5, 8)
    assert torch.equal(quantized.reconstruct_weight(), same.reconstruct_weight())
    with pytest.raises(TypeError, match=r"^layer : reçu Linear, attendu TTLinear"):
        QuantizedTTLinear.from_tt(layer)
    with pytest.raises(TypeError, match=r"^layer : reçu QATTTLinear, dont to_quantized\(\) garde l'arrondi appris"):
        QuantizedTTLinear.from_tt(QATTTLinear.from_tt(train))
