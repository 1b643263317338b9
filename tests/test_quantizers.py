"""Quantifier n'écarte jamais de plus d'un demi-pas, et ranger les bits ne perd rien : NumPy les relit un par un."""

import math

import numpy as np
import pytest
import torch

from lrq import dequantize, pack_bits, quantize_symmetric, unpack_bits

BITS = range(1, 9)
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def random_codes(rng, n_bits, *shape):
    if n_bits == 1:
        return torch.tensor(rng.choice([-1, 1], shape), dtype=torch.int8)
    return torch.tensor(rng.integers(-(2 ** (n_bits - 1)), 2 ** (n_bits - 1), shape), dtype=torch.int8)


# --- la grille --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_bits", range(2, 9))
@pytest.mark.parametrize("dim", [None, 0, 1, -1])
def test_error_is_at_most_half_a_step(n_bits, dim, randn, rng):
    t = randn(12, 20, dtype=torch.float64) * float(10 ** rng.uniform(-4, 4))
    codes, scale = quantize_symmetric(t, n_bits, dim)
    gap = (t - dequantize(codes, scale)).abs()
    assert (gap <= scale / 2 * (1 + 1e-9)).all()
    assert (gap.amax() > 0.3 * scale).any(), "un pas trois fois plus fin aurait passé aussi"


@pytest.mark.parametrize("n_bits", range(2, 9))
def test_grid_is_symmetric_and_reaches_the_extremes(n_bits, randn):
    t = randn(300)
    codes, scale = quantize_symmetric(t, n_bits)
    q = 2 ** (n_bits - 1) - 1
    assert codes.dtype == torch.int8
    assert int(codes.abs().max()) == q  # jamais −2^(b−1), qui n'aurait pas d'opposé
    assert float(scale) == pytest.approx(float(t.abs().max()) / q)
    opposite, same_scale = quantize_symmetric(-t, n_bits)
    assert torch.equal(opposite, -codes)
    assert torch.equal(same_scale, scale)


def test_codes_are_the_nearest_ones(randn):
    t = randn(100, dtype=torch.float64)
    codes, scale = quantize_symmetric(t, 4)
    grid = float(scale) * np.arange(-7, 8)
    nearest = np.abs(t.numpy()[:, None] - grid).argmin(1) - 7
    assert codes.tolist() == nearest.tolist()


@pytest.mark.parametrize("n_bits", BITS)
def test_error_shrinks_with_bits(n_bits, randn):
    t = randn(4000)

    def mean_square(b):
        return float(((t - dequantize(*quantize_symmetric(t, b))) ** 2).mean())

    if n_bits > 2:  # à 1 et 2 bits, la grille n'a que deux et trois niveaux
        assert mean_square(n_bits) < 0.5 * mean_square(n_bits - 1)
        step = float(quantize_symmetric(t, n_bits)[1])
        if n_bits >= 4:
            assert mean_square(n_bits) == pytest.approx(step**2 / 12, rel=0.15)  # bruit uniforme : Δ²/12


def test_one_bit_is_the_sign_times_the_mean(randn):
    t = randn(9, 50, dtype=torch.float64)
    codes, scale = quantize_symmetric(t, 1)
    assert float(scale) == pytest.approx(np.abs(t.numpy()).mean(), rel=1e-12)
    assert torch.equal(codes.double(), t.sign())
    _, rows = quantize_symmetric(t, 1, dim=0)
    np.testing.assert_allclose(rows.numpy(), np.abs(t.numpy()).mean(1, keepdims=True), rtol=1e-12)


def test_one_bit_is_optimal(randn, rng):
    t = randn(40, dtype=torch.float64)
    codes, scale = quantize_symmetric(t, 1)
    best = ((t - codes * scale) ** 2).sum()
    for factor in (0.9, 0.99, 1.01, 1.1):  # une autre échelle
        assert ((t - codes * scale * factor) ** 2).sum() > best
    for i in rng.integers(0, 40, 10):  # un autre signe
        other = codes.clone()
        other[i] *= -1
        assert ((t - other * scale) ** 2).sum() > best


@pytest.mark.parametrize("n_bits", BITS)
def test_per_row_scales_are_those_of_each_row_alone(n_bits, randn):
    t = randn(6, 11) * torch.tensor([1e-3, 1e-2, 0.1, 1, 10, 100])[:, None]
    codes, scale = quantize_symmetric(t, n_bits, dim=0)
    assert scale.shape == (6, 1)
    for i in range(6):
        row_codes, row_scale = quantize_symmetric(t[i], n_bits)
        assert torch.equal(codes[i], row_codes)
        torch.testing.assert_close(scale[i, 0], row_scale)
    whole = dequantize(*quantize_symmetric(t, n_bits))
    assert (t[0] - dequantize(codes, scale)[0]).norm() < (
        t[0] - whole[0]
    ).norm()  # une échelle écrase les petites lignes


def test_scales_of_any_dimension(randn):
    t = randn(3, 4, 5)
    for dim, shape in [(0, (3, 1, 1)), (1, (1, 4, 1)), (2, (1, 1, 5)), (-1, (1, 1, 5)), (-3, (3, 1, 1)), (None, ())]:
        assert quantize_symmetric(t, 8, dim)[1].shape == shape
    codes, scale = quantize_symmetric(t[0, 0], 8, dim=0)  # un vecteur : une échelle par élément, donc aucune erreur
    assert scale.shape == (5,)
    torch.testing.assert_close(dequantize(codes, scale), t[0, 0])


@pytest.mark.parametrize("n_bits", BITS)
@pytest.mark.parametrize("dim", [None, 0])
def test_zero_tensor_stays_zero(n_bits, dim):
    codes, scale = quantize_symmetric(torch.zeros(3, 4), n_bits, dim)
    assert torch.isfinite(scale).all()
    assert torch.equal(dequantize(codes, scale), torch.zeros(3, 4))


def test_zero_row_beside_others(randn):
    t = randn(3, 8)
    t[1] = 0
    for n_bits in BITS:
        back = dequantize(*quantize_symmetric(t, n_bits, dim=0))
        assert torch.isfinite(back).all()
        assert torch.equal(back[1], t[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_scale_is_float32_or_float64(dtype, randn):
    t = randn(50, dtype=dtype)
    codes, scale = quantize_symmetric(t, 8)
    assert scale.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    wide, wide_scale = quantize_symmetric(t.to(scale.dtype), 8)
    assert torch.equal(codes, wide)
    assert torch.equal(scale, wide_scale)


@pytest.mark.parametrize("magnitude", [1e30, 1e-30])
def test_huge_and_tiny_values(magnitude, randn):
    t = randn(64) * magnitude
    for n_bits in range(2, 9):
        codes, scale = quantize_symmetric(t, n_bits)
        assert ((t - dequantize(codes, scale)).abs() <= scale / 2 * (1 + 1e-4)).all()


def test_input_is_unchanged_and_not_followed(randn):
    t = torch.nn.Parameter(randn(5, 5))
    copy = t.detach().clone()
    codes, scale = quantize_symmetric(t, 4)
    assert torch.equal(t, copy)
    assert not codes.requires_grad
    assert not scale.requires_grad


# --- le rangement -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_bits", BITS)
def test_packing_loses_nothing_at_any_length(n_bits, rng):
    for length in range(34):
        codes = random_codes(rng, n_bits, length)
        packed = pack_bits(codes, n_bits)
        assert packed.dtype == torch.uint8
        assert packed.nbytes == math.ceil(length * n_bits / 8)
        back = unpack_bits(packed, n_bits, (length,))
        assert back.dtype == torch.int8
        assert torch.equal(back, codes)


@pytest.mark.parametrize("n_bits", BITS)
def test_bits_are_those_of_numpy(n_bits, rng):
    for length in (1, 7, 8, 33):
        codes = random_codes(rng, n_bits, length)
        unsigned = (codes.numpy() > 0).astype(int) if n_bits == 1 else codes.numpy().astype(int) + 2 ** (n_bits - 1)
        bits = unsigned[:, None] >> np.arange(n_bits) & 1
        expected = np.packbits(bits.astype(np.uint8), bitorder="little")
        assert pack_bits(codes, n_bits).tolist() == expected.tolist()


@pytest.mark.parametrize("n_bits", BITS)
def test_every_code_has_its_own_bits(n_bits):
    levels = [-1, 1] if n_bits == 1 else list(range(-(2 ** (n_bits - 1)), 2 ** (n_bits - 1)))
    codes = torch.tensor(levels, dtype=torch.int8)
    assert unpack_bits(pack_bits(codes, n_bits), n_bits, (len(levels),)).tolist() == levels


@pytest.mark.parametrize("shape", [(), (0,), (3, 5), (2, 0, 3), (2, 3, 4)])
def test_shapes_come_back(shape, rng):
    codes = random_codes(rng, 3, *shape)
    assert torch.equal(unpack_bits(pack_bits(codes, 3), 3, shape), codes)


def test_strided_codes_are_packed_in_reading_order(rng):
    codes = random_codes(rng, 5, 6, 8).T[::2]
    assert torch.equal(pack_bits(codes, 5), pack_bits(codes.contiguous(), 5))


@pytest.mark.parametrize("n_bits", BITS)
def test_quantize_pack_unpack_dequantize(n_bits, randn):
    t = randn(7, 9)
    codes, scale = quantize_symmetric(t, n_bits)
    back = unpack_bits(pack_bits(codes, n_bits), n_bits, (7, 9))
    assert torch.equal(dequantize(back, scale), dequantize(codes, scale))


# --- mauvaises entrées ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda b: quantize_symmetric(torch.ones(3), b), id="quantize_symmetric"),
        pytest.param(lambda b: pack_bits(torch.ones(3, dtype=torch.int8), b), id="pack_bits"),
        pytest.param(lambda b: unpack_bits(torch.ones(3, dtype=torch.uint8), b, (3,)), id="unpack_bits"),
    ],
)
@pytest.mark.parametrize(
    ("n_bits", "error", "shown"),
    [
        (0, ValueError, "0"),
        (9, ValueError, "9"),
        (-1, ValueError, "-1"),
        (2.5, TypeError, r"2\.5"),
        (True, TypeError, "True"),
        ("4", TypeError, "'4'"),
        (None, TypeError, "None"),
    ],
)
def test_bad_number_of_bits_is_named(function, n_bits, error, shown):
    with pytest.raises(error, match=f"^n_bits : reçu {shown}, attendu un entier entre 1 et 8"):
        function(n_bits)


@pytest.mark.parametrize(
    ("t", "error", "message"),
    [
        (torch.zeros(0, 4), ValueError, r"reçu un tenseur \(0, 4\) vide ou non fini"),
        (torch.tensor([1.0, math.nan]), ValueError, r"reçu un tenseur \(2,\) vide ou non fini"),
        (torch.tensor([math.inf]), ValueError, r"reçu un tenseur \(1,\) vide ou non fini"),
        ([1.0, 2.0], TypeError, "reçu list, attendu un tenseur"),
        (torch.ones(2, dtype=torch.complex64), TypeError, "complex64, attendu des nombres réels"),
    ],
)
def test_bad_tensor_is_named(t, error, message):
    with pytest.raises(error, match=f"^t : .*{message}"):
        quantize_symmetric(t)


@pytest.mark.parametrize(
    ("dim", "error", "shown"), [(2, ValueError, "2"), (-3, ValueError, "-3"), (0.5, TypeError, r"0\.5")]
)
def test_bad_dimension_is_named(dim, error, shown):
    with pytest.raises(error, match=f"^dim : reçu {shown}, attendu un entier entre -2 et 1"):
        quantize_symmetric(torch.ones(3, 4), 8, dim)


@pytest.mark.parametrize(
    ("codes", "n_bits", "error", "message"),
    [
        (torch.tensor([8], dtype=torch.int8), 4, ValueError, "reçu des valeurs de 8 à 8, attendu des entiers entre -8"),
        (torch.tensor([-9], dtype=torch.int8), 4, ValueError, "reçu des valeurs de -9 à -9"),
        (torch.tensor([65536]), 8, ValueError, "reçu des valeurs de 65536 à 65536"),  # 0 s'il était tronqué à 16 bits
        (torch.tensor([1, 0, -1]), 1, ValueError, r"attendu −1 ou \+1"),
        (torch.tensor([0.5]), 4, TypeError, "float32, attendu des entiers"),
        ([1, 2], 4, TypeError, "reçu list, attendu un tenseur"),
    ],
)
def test_codes_that_do_not_fit_are_refused(codes, n_bits, error, message):
    with pytest.raises(error, match=f"^codes : .*{message}"):
        pack_bits(codes, n_bits)


@pytest.mark.parametrize(
    ("packed", "error", "message"),
    [
        (torch.ones(2, dtype=torch.uint8), ValueError, "reçu 2 octets, attendu 3"),
        (torch.ones(4, dtype=torch.uint8), ValueError, "reçu 4 octets, attendu 3"),
        (torch.ones(3), TypeError, r"float32, attendu torch\.uint8"),
        ([1, 2, 3], TypeError, "reçu list, attendu un tenseur"),
    ],
)
def test_wrong_bytes_are_refused(packed, error, message):
    with pytest.raises(error, match=f"^packed : .*{message}"):
        unpack_bits(packed, 4, (6,))


def test_dequantize_names_what_is_no_tensor():
    with pytest.raises(TypeError, match=r"^codes : reçu list"):
        dequantize([1, 2], torch.tensor(1.0))
    with pytest.raises(TypeError, match=r"^scale : reçu float"):
        dequantize(torch.ones(2, dtype=torch.int8), 0.5)
