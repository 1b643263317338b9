"""Quantifier un réseau de tenseurs : chaque pièce comme un tenseur, des codes qui se relisent, des octets comptés."""

import math
from collections import OrderedDict

import pytest
import torch
from torch import nn

from lrq import (
    PerChannel,
    PerTensor,
    QuantizedTTLinear,
    TTLinear,
    TTQuantizer,
    TuckerQuantizer,
    UniformQuantizer,
    analyze_tn_quantization_impact,
    stored_bytes,
)

BITS = range(1, 9)
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
OPTIONS = {
    "symétrique": {},
    "asymétrique": {"symmetric": False},
    "canaux": {"granularity": PerChannel(-1)},
    "écrêté": {"clipping": "mse"},
}
optional = pytest.mark.parametrize("options", [pytest.param(o, id=name) for name, o in OPTIONS.items()])


@pytest.fixture
def decomposition(randn):
    def draw(dtype=torch.float32):
        return randn(3, 2, 4, dtype=dtype), [randn(n, r, dtype=dtype) for n, r in ((5, 3), (6, 2), (4, 4))]

    return draw


# --- les trains de tenseurs -------------------------------------------------------------------------------------------


@optional
@pytest.mark.parametrize("dims", [[4, 5, 3], [(2, 3), (3, 1), (2, 2)], [6]], ids=str)
def test_each_core_is_quantized_as_a_tensor(options, dims, chain):
    for n_bits in BITS:
        cores, quantizer = chain(dims, 3), TTQuantizer(n_bits, **options)
        codes, scales, zero_points = quantizer.quantize_tt_cores(cores)
        assert len(codes) == len(scales) == len(zero_points) == len(cores)
        found = quantizer.dequantize_tt_cores(codes, scales, zero_points)
        alone = UniformQuantizer(n_bits, **options)
        for core, code, rebuilt in zip(cores, codes, found, strict=True):
            assert code.shape == core.shape
            assert code.dtype == torch.int8
            assert torch.equal(rebuilt, alone.quantize_dequantize(core))


@pytest.mark.parametrize("n_bits", range(2, 9))
def test_the_rounding_is_at_most_half_a_step(n_bits, chain):
    cores, quantizer = chain([4, 5, 3], 3), TTQuantizer(n_bits)
    codes, scales, zero_points = quantizer.quantize_tt_cores(cores)
    half = 2 ** (n_bits - 1) - 1
    for core, code, scale, rebuilt in zip(
        cores, codes, scales, quantizer.dequantize_tt_cores(codes, scales, zero_points), strict=True
    ):
        assert float(scale) == pytest.approx(float(core.abs().max()) / half)
        assert int(code.abs().max()) == half
        assert float((rebuilt - core).abs().max()) <= float(scale) / 2 * (1 + 1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cores_of_every_dtype_are_quantized_in_float32_or_more(dtype, chain):
    cores = chain([4, 5], 3, dtype)
    _, scales, _ = TTQuantizer(4).quantize_tt_cores(cores)
    assert {scale.dtype for scale in scales} == {torch.float64 if dtype == torch.float64 else torch.float32}
    kept = TTQuantizer(4).compress(cores)
    assert {q.dequantize().dtype for q in kept} == {dtype}


def test_null_cores_stay_null(chain):
    cores = [torch.zeros_like(core) for core in chain([4, 5], 3)]
    for n_bits in BITS:
        quantizer = TTQuantizer(n_bits)
        assert not any(core.any() for core in quantizer.dequantize_tt_cores(*quantizer.quantize_tt_cores(cores)))


@optional
def test_compressed_cores_are_the_same_in_fewer_bytes(options, chain):
    for n_bits in BITS:
        cores, quantizer = chain([4, 5, 3], 3), TTQuantizer(n_bits, **options)
        kept = quantizer.compress(cores)
        rebuilt = quantizer.dequantize_tt_cores(*quantizer.quantize_tt_cores(cores))
        assert all(torch.equal(q.dequantize(), core) for q, core in zip(kept, rebuilt, strict=True))
        codes = sum(-(-core.numel() * n_bits // 8) for core in cores)
        channels = 3 + 3 + 1 if "granularity" in options else 3
        assert stored_bytes(kept) == codes + channels * (4 + (not options.get("symmetric", True)))


def test_parameters_are_quantized_and_left_alone(rng):
    layer = TTLinear([2, 3], [3, 2], 2)
    before = [core.detach().clone() for core in layer.cores]
    codes, scales, _ = TTQuantizer(8).quantize_tt_cores(layer.cores)
    assert not any(t.requires_grad for t in (*codes, *scales))
    assert all(torch.equal(core, kept) for core, kept in zip(layer.cores, before, strict=True))


# --- Tucker -----------------------------------------------------------------------------------------------------------


@optional
def test_the_core_and_the_factors_are_each_quantized_as_a_tensor(options, decomposition):
    core, factors = decomposition()
    for n_bits in BITS:
        quantizer, alone = TuckerQuantizer(**options), UniformQuantizer(n_bits, **options)
        quantized = quantizer.quantize_tucker(core, factors, n_bits)
        assert quantized.keys() >= {
            *("quantized_core", "quantized_factors", "core_scale", "core_zp", "factor_scales", "factor_zps")
        }  # les clés du cours
        rebuilt, matrices = quantizer.dequantize_tucker(quantized)
        for t, code, found in zip(
            (core, *factors),
            (quantized["quantized_core"], *quantized["quantized_factors"]),
            (rebuilt, *matrices),
            strict=True,
        ):
            assert code.dtype == torch.int8
            assert torch.equal(found, alone.quantize_dequantize(t))


def test_bits_are_read_from_what_was_quantized(decomposition):
    core, factors = decomposition()
    quantizer = TuckerQuantizer()
    for n_bits in (3, 8):  # un même quantificateur, dans un ordre quelconque
        quantized = quantizer.quantize_tucker(core, factors, n_bits)
        assert quantized["n_bits"] == n_bits
        assert torch.equal(
            quantizer.dequantize_tucker(quantized)[0], UniformQuantizer(n_bits).quantize_dequantize(core)
        )
    assert quantizer.quantize_tucker(core, factors)["n_bits"] == 8


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_compressed_decomposition_keeps_its_dtype(dtype, decomposition):
    core, factors = decomposition(dtype)
    for n_bits in (1, 4, 8):
        kept = TuckerQuantizer().compress(core, factors, n_bits)
        assert {q.dequantize().dtype for q in kept} == {dtype}
        assert [q.shape for q in kept] == [t.shape for t in (core, *factors)]
        step = 8 if dtype == torch.float64 else 4
        assert stored_bytes(kept) == sum(-(-t.numel() * n_bits // 8) + step for t in (core, *factors))


# --- ce que cela pèse -------------------------------------------------------------------------------------------------


def test_everything_stored_is_weighed_once(chain, decomposition, rng):
    cores = chain([4, 5, 3], 3)
    size = 4 * (4 * 3 + 3 * 5 * 3 + 3 * 3)
    assert stored_bytes(cores) == stored_bytes(tuple(cores)) == stored_bytes(iter(cores)) == size
    assert stored_bytes({"noyau": cores[0], "n_bits": 8}) == 4 * 12
    assert stored_bytes([cores, cores[0]]) == size
    layer = nn.Linear(3, 2)
    assert stored_bytes(layer) == 4 * 8
    assert stored_bytes([layer, layer.weight]) == 4 * 8
    assert stored_bytes(nn.BatchNorm1d(3)) == 4 * 12 + 8  # les tampons, dont un compteur de huit octets
    assert stored_bytes([]) == 0
    core, factors = decomposition()
    assert stored_bytes(TuckerQuantizer().quantize_tucker(core, factors)) == sum(
        t.numel() + 4 + 4
        for t in (core, *factors)  # un octet par code, une échelle et un point zéro int32
    )


@pytest.mark.parametrize("n_bits", BITS)
def test_the_impact_is_that_of_the_bits_stored(n_bits, chain):
    cores = chain([4, 5, 3], 3)
    packed = sum(-(-core.numel() * n_bits // 8) + 4 for core in cores)
    ratio = analyze_tn_quantization_impact(cores, TTQuantizer(n_bits).compress(cores))
    assert ratio == 4 * sum(core.numel() for core in cores) / packed


def test_the_impact_compares_two_layers(linear, capsys):
    source = linear(24, 12)
    original = TTLinear.from_linear(source, [4, 6], [3, 4], 4)
    ratios = []
    for n_bits in (8, 4, 2):
        quantized = QuantizedTTLinear.from_linear(source, [4, 6], [3, 4], 4, n_bits)
        ratios.append(analyze_tn_quantization_impact(original, quantized))
        assert ratios[-1] == original.nbytes() / quantized.nbytes()
    assert ratios == sorted(ratios)
    assert ratios[-1] > 1.5 * ratios[0]
    assert analyze_tn_quantization_impact(original, original) == 1
    assert capsys.readouterr().out == ""
    analyze_tn_quantization_impact(original, quantized, verbose=True)
    assert capsys.readouterr().out.splitlines() == [
        f"original : {original.nbytes()} octets",
        f"quantifié : {quantized.nbytes()} octets, {ratios[-1]:.2f} fois moins",
    ]


# --- mauvaises entrées ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_bits", "error"), [(0, ValueError), (9, ValueError), (2.5, TypeError), (True, TypeError)])
def test_bad_bits_are_named(n_bits, error, decomposition):
    with pytest.raises(error, match=rf"^n_bits : reçu {n_bits}, attendu un entier entre 1 et 8"):
        TTQuantizer(n_bits)
    for method in (TuckerQuantizer().quantize_tucker, TuckerQuantizer().compress):
        with pytest.raises(error, match=rf"^n_bits : reçu {n_bits}, attendu un entier entre 1 et 8"):
            method(*decomposition(), n_bits)


@pytest.mark.parametrize("kind", [TTQuantizer, TuckerQuantizer])
def test_bad_options_are_named_at_once(kind):
    with pytest.raises(TypeError, match=r"^granularity : reçu 'canal', attendu PerTensor"):
        kind(granularity="canal")
    with pytest.raises(ValueError, match=r"^clipping : reçu 'jamais', attendu 'min_max'"):
        kind(clipping="jamais")


def test_broken_chains_are_named(chain, randn):
    quantizer, cores = TTQuantizer(), chain([4, 5], 3)
    for method in (quantizer.quantize_tt_cores, quantizer.compress):
        with pytest.raises(ValueError, match=r"^cores\[1\] : reçu la forme \(2, 5, 1\), attendu \(3, n, r\)"):
            method([cores[0], randn(2, 5, 1)])
        with pytest.raises(ValueError, match=r"^cores\[0\] : NaN ou infini"):
            method([cores[0] * math.nan, cores[1]])
        with pytest.raises(ValueError, match=r"^cores : reçu list, attendu une liste d'au moins un cœur"):
            method([])


def test_codes_that_do_not_belong_together_are_named(chain):
    quantizer = TTQuantizer(4)
    codes, scales, zero_points = quantizer.quantize_tt_cores(chain([4, 5], 3))
    with pytest.raises(ValueError, match=r"^scales, zero_points : reçu 1 et 2, attendu 2, un par pièce"):
        quantizer.dequantize_tt_cores(codes, scales[:1], zero_points)
    with pytest.raises(ValueError, match=r"^quantized_cores\[0\] : reçu la forme \(3, 5, 1\), attendu \(1, n, r\)"):
        quantizer.dequantize_tt_cores(codes[::-1], scales, zero_points)
    with pytest.raises(ValueError, match=r"^scale : reçu la forme \(\), attendu \(1, 1, 3\)"):
        TTQuantizer(4, granularity=PerChannel(-1)).dequantize_tt_cores(codes, scales, zero_points)


def test_a_bad_decomposition_is_named(decomposition):
    core, factors = decomposition()
    quantizer = TuckerQuantizer(granularity=PerTensor())
    for method in (quantizer.quantize_tucker, quantizer.compress):
        with pytest.raises(ValueError, match=r"^factors : reçu 2 facteur\(s\), attendu une liste de 3"):
            method(core, factors[:2])
        with pytest.raises(ValueError, match=r"^factors\[0\] : reçu la forme \(6, 2\), attendu \(n, 3\)"):
            method(core, [factors[1], factors[0], factors[2]])
    quantized = quantizer.quantize_tucker(core, factors)
    for bad in (None, [], {}, {name: t for name, t in quantized.items() if name != "core_zp"}):
        with pytest.raises(ValueError, match=r"^quantized : attendu ce que rend quantize_tucker"):
            quantizer.dequantize_tucker(bad)
    with pytest.raises(ValueError, match=r"^factors\[0\] : reçu la forme"):
        quantizer.dequantize_tucker({**quantized, "quantized_factors": quantized["quantized_factors"][::-1]})
    rebuilt, _ = quantizer.dequantize_tucker(OrderedDict(quantized))
    assert rebuilt.shape == core.shape


def test_what_cannot_be_weighed_is_named(chain):
    cores = chain([4, 5], 3)
    for bad in (3, "cœurs", None, [cores, "x"], {"noyau": 1.5}):
        with pytest.raises(TypeError, match=r"^stored : reçu .*, attendu un module, un tenseur"):
            stored_bytes(bad)
        with pytest.raises(TypeError, match=r"^stored : reçu"):
            analyze_tn_quantization_impact(cores, bad)
    for pair, name in (((cores, []), "quantized_tn"), (([], cores), "original_tn")):
        with pytest.raises(ValueError, match=rf"^{name} : ne contient aucun nombre"):
            analyze_tn_quantization_impact(*pair)
