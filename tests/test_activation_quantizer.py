"""L'arrondi des entrées est celui de la grille affine, et son échelle survit aux conversions."""

import copy
import math

import numpy as np
import pytest
import torch

from lrq import ActivationHistogram, ActivationQuantizer

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
BOUNDS = [(0.0, 6.0), (-2.5, 0.0), (-1.0, 3.0), (-0.001, 40.0), (-1e-30, 2e-30)]
every_bounds = pytest.mark.parametrize(("low", "high"), BOUNDS)


@every_bounds
@pytest.mark.parametrize("n_bits", range(1, 9))
def test_it_rounds_to_the_affine_grid_of_numpy(low, high, n_bits, randn):
    layer = ActivationQuantizer(n_bits, low, high)
    x = randn(4, 50) * (high - low)
    top = 2**n_bits - 1
    step = (high - low) / top
    zero = np.clip(np.round(-low / step), 0, top)
    assert float(layer.scale) == pytest.approx(step, rel=1e-6)
    assert (layer.scale.dtype, layer.zero_point.dtype, int(layer.zero_point)) == (torch.float32, torch.int32, zero)
    y = layer(x).double().numpy()
    codes = np.round(y / step) + zero
    np.testing.assert_allclose(y, (codes - zero) * step, rtol=1e-6)
    assert codes.min() >= 0
    assert codes.max() <= top
    clipped = np.clip(x.double().numpy(), -zero * step, (top - zero) * step)
    assert np.abs(y - clipped).max() <= step / 2 * (1 + 1e-4)


def test_zero_is_exact_and_a_second_pass_changes_nothing(randn):
    for low, high in BOUNDS:
        layer = ActivationQuantizer(5, low, high)
        assert torch.equal(layer(torch.zeros(3)), torch.zeros(3))
        once = layer(randn(100) * high)
        assert torch.equal(layer(once), once)


def test_null_bounds_leave_only_zero(randn):
    layer = ActivationQuantizer(8, 0.0, 0.0)
    assert torch.equal(layer(randn(5, 2)), torch.zeros(5, 2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_dtype_of_the_input_is_rendered(dtype, randn):
    x = randn(2, 30, dtype=dtype)
    layer = ActivationQuantizer(8, -4.0, 4.0)
    y = layer(x)
    assert y.dtype == dtype
    exact = layer(x.double())
    assert (y.double() - exact).abs().max() <= 4 * torch.finfo(dtype).eps + 1e-6
    assert layer(x[:, :0]).shape == (2, 0)
    assert layer(torch.tensor([1e38 if dtype != torch.float16 else 6e4], dtype=dtype)) <= 4.02


@pytest.mark.parametrize("convert", ["half", "bfloat16", "double"])
def test_tiny_scales_survive_conversions(convert):
    layer = ActivationQuantizer(8, 0.0, 1e-9)
    before = {name: t.clone() for name, t in layer.state_dict().items()}
    getattr(layer, convert)()
    after = layer.state_dict()
    assert after.keys() == before.keys() == {"scale", "zero_point"}
    assert all(torch.equal(after[name], t) and after[name].dtype == t.dtype for name, t in before.items())


def test_gradients_pass_where_the_grid_does_not_clip():
    x = torch.tensor([-3.0, -0.5, 0.7, 9.0], requires_grad=True)
    ActivationQuantizer(8, -1.0, 2.0)(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([0.0, 1.0, 1.0, 0.0]))


def test_the_bounds_of_a_histogram_are_taken_as_they_are(randn):
    seen = ActivationHistogram()
    x = randn(500) + 1
    seen.update(x)
    layer = ActivationQuantizer(8, *seen.range())
    assert (layer(x) - x).abs().max() <= layer.scale * 0.5001 + 1e-6


def test_the_recipe_and_the_state_make_it_again(randn):
    layer, x = ActivationQuantizer(6, -2.0, 1.5), randn(40)
    again = ActivationQuantizer(**layer.recipe(), device="meta")
    assert repr(again) == "ActivationQuantizer(n_bits=6)"
    again.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(again(x), layer(x))
    assert repr(again) == repr(copy.deepcopy(layer)) == repr(layer)
    assert "n_bits=6, de -2" in repr(layer)


@pytest.mark.parametrize(("low", "high"), [(0.5, 1.0), (-2.0, -1.0), (1.0, -1.0)])
def test_bounds_that_leave_zero_out_are_refused(low, high):
    with pytest.raises(ValueError, match=r"^low, high : reçu \[.*\], attendu des bornes qui entourent zéro"):
        ActivationQuantizer(8, low, high)


def test_refusals_are_named():
    with pytest.raises(ValueError, match=r"^high : reçu nan, attendu un nombre fini"):
        ActivationQuantizer(8, 0.0, math.nan)
    with pytest.raises(TypeError, match=r"^low : reçu 'a'"):
        ActivationQuantizer(8, "a", 1.0)
    with pytest.raises(ValueError, match=r"^n_bits : reçu 9"):
        ActivationQuantizer(9, 0.0, 1.0)
