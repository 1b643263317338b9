"""Ranger les bits ne perd rien, et n'en range pas un de trop : NumPy les relit un par un."""

import math

import numpy as np
import pytest
import torch

from lrq import dequantize, pack_bits, quantize_symmetric, unpack_bits

BITS = range(1, 9)
SIGNED = [pytest.param(True, id="signés"), pytest.param(False, id="non signés")]


def levels(n_bits, signed):
    """Tous les codes de b bits."""
    if signed and n_bits == 1:
        return np.array([-1, 1])
    return np.arange(2**n_bits) - (2 ** (n_bits - 1) if signed else 0)


def random_codes(rng, n_bits, *shape, signed=True):
    return torch.tensor(rng.choice(levels(n_bits, signed), shape), dtype=torch.int8 if signed else torch.uint8)


@pytest.mark.parametrize("n_bits", BITS)
@pytest.mark.parametrize("signed", SIGNED)
def test_packing_loses_nothing_at_any_length(n_bits, signed, rng):
    for length in [*range(34), int(rng.integers(34, 5000))]:
        codes = random_codes(rng, n_bits, length, signed=signed)
        packed = pack_bits(codes, n_bits, signed)
        assert packed.dtype == torch.uint8
        assert packed.nbytes == math.ceil(length * n_bits / 8)
        back = unpack_bits(packed, n_bits, (length,), signed)
        assert back.dtype == codes.dtype
        assert torch.equal(back, codes)


@pytest.mark.parametrize("n_bits", BITS)
@pytest.mark.parametrize("signed", SIGNED)
def test_bits_are_those_of_numpy(n_bits, signed, rng):
    for length in (1, 7, 8, 33, 1000):
        codes = random_codes(rng, n_bits, length, signed=signed)
        stored = codes.numpy() > 0 if signed and n_bits == 1 else codes.numpy()  # complément à deux
        bits = stored.astype(np.int64)[:, None] >> np.arange(n_bits) & 1
        expected = np.packbits(bits.astype(np.uint8), bitorder="little")
        assert pack_bits(codes, n_bits, signed).tolist() == expected.tolist()


@pytest.mark.parametrize("n_bits", BITS)
@pytest.mark.parametrize("signed", SIGNED)
def test_every_code_has_its_own_bits(n_bits, signed):
    codes = torch.tensor(levels(n_bits, signed))
    packed = pack_bits(codes, n_bits, signed)
    assert unpack_bits(packed, n_bits, (len(codes),), signed).tolist() == codes.tolist()


@pytest.mark.parametrize("signed", SIGNED)
def test_one_code_out_of_the_grid_is_refused(signed, rng):
    for n_bits in BITS:
        grid = levels(n_bits, signed)
        for outside in (grid[0] - 1, grid[-1] + 1):
            codes = torch.tensor(rng.choice(grid, 20), dtype=torch.int64)
            codes[rng.integers(20)] = int(outside)
            with pytest.raises(ValueError, match=rf"^codes : .*{outside}.* sur {n_bits} bit"):
                pack_bits(codes, n_bits, signed)


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
