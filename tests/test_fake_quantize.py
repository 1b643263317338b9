"""La fausse quantification est celle de torch, au bit près ; le pas appris suit la formule d'Esser et al. (2020)."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from lrq import FakeQuantizeModule, LearnedStepQuantize, PerChannel, PerGroup, PerTensor, UniformQuantizer
from lrq.quantizers import CLIPPINGS

BITS = range(1, 9)
SYMMETRIC = [pytest.param(True, id="symétrique"), pytest.param(False, id="asymétrique")]
SIGNED = [pytest.param(True, id="signée"), pytest.param(False, id="non signée")]
PER_CHANNEL = [pytest.param(False, id="tenseur"), pytest.param(True, id="canal")]


def same_bits(a, b):
    """Mêmes bits, signe de zéro compris."""
    assert a.dtype == b.dtype == torch.float32
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


def bounds(n_bits, symmetric, signed):
    if not signed:
        return 0, 2**n_bits - 1
    return -(2 ** (n_bits - 1)) + int(symmetric), 2 ** (n_bits - 1) - 1


def random_grid(rng, n_bits, symmetric, signed, count):
    """Des échelles et des points zéro quelconques ; une échelle sur deux est une puissance de deux."""
    low, high = bounds(n_bits, symmetric, signed)
    exponents = rng.uniform(-6, 6, count)
    scale = torch.tensor(np.where(rng.random(count) < 0.5, 2.0 ** exponents.round(), 2.0**exponents))
    zero_point = torch.zeros(count) if symmetric else torch.tensor(rng.integers(low, high + 1, count))
    return scale.float(), zero_point.to(torch.int32)


def values_on(scale, n_bits, rng, width=400):
    """Des valeurs dedans, dehors, et des moitiés exactes de pas, (échelles, width)."""
    steps = 1.5 * 2**n_bits
    inside = rng.uniform(-steps, steps, (len(scale), width // 2))
    halves = rng.integers(-int(steps), int(steps), (len(scale), width // 2)) + 0.5
    return torch.tensor(np.concatenate([inside, halves], 1), dtype=torch.float32) * scale[:, None]


# --- torch.fake_quantize_* --------------------------------------------------------------------------------------------


def no_binary(function):
    """Toutes les grilles que torch connaît : celle de ±Δ, à 1 bit, n'en est pas."""
    grids = [
        (b, sy, si) for b in BITS for sy in (True, False) for si in (True, False) if (b, sy, si) != (1, True, True)
    ]
    return pytest.mark.parametrize(("n_bits", "symmetric", "signed"), grids)(function)


@no_binary
def test_per_channel_is_torchs_to_the_bit(n_bits, symmetric, signed, rng):
    scale, zero_point = random_grid(rng, n_bits, symmetric, signed, 6)
    x = values_on(scale, n_bits, rng)
    upstream = torch.tensor(rng.standard_normal(x.shape), dtype=torch.float32)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    quantizer = UniformQuantizer(n_bits, symmetric, signed, PerChannel(0))
    mine = quantizer.fake_quantize(ours, scale[:, None], zero_point[:, None])
    expected = torch.fake_quantize_per_channel_affine(theirs, scale, zero_point, 0, *bounds(n_bits, symmetric, signed))
    assert same_bits(mine, expected)
    mine.backward(upstream)
    expected.backward(upstream)
    assert torch.equal(ours.grad != 0, theirs.grad != 0)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=0)
    assert 0.05 < (ours.grad == 0).float().mean() < 0.95, "rien n'est écrêté, ou tout : ce test ne prouve rien"
    if n_bits > 1:  # arrondir les moitiés vers le haut, au lieu du pair, aurait donné autre chose
        up = ((x / scale[:, None] + 0.5).floor() + zero_point[:, None]).clamp(*bounds(n_bits, symmetric, signed))
        assert not torch.equal(mine, (up - zero_point[:, None]) * scale[:, None])


@no_binary
def test_per_tensor_is_torchs_to_the_bit(n_bits, symmetric, signed, rng):
    quantizer = UniformQuantizer(n_bits, symmetric, signed)
    for _ in range(3):
        scale, zero_point = random_grid(rng, n_bits, symmetric, signed, 1)
        x = values_on(scale, n_bits, rng)
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        mine = quantizer.fake_quantize(ours, scale[0], zero_point[0])
        expected = torch.fake_quantize_per_tensor_affine(
            theirs, scale[0], zero_point[0], *bounds(n_bits, symmetric, signed)
        )
        assert same_bits(mine, expected)
        mine.sum().backward()
        expected.sum().backward()
        assert torch.equal(ours.grad != 0, theirs.grad != 0)
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=0)


@no_binary
def test_scale_gradient_is_that_of_numpy(n_bits, symmetric, signed, rng):
    """∂t̂/∂Δ = q − t/Δ là où le code est dans la grille, q où il est écrêté, par échelle."""
    scale, zero_point = (x.double() for x in random_grid(rng, n_bits, symmetric, signed, 5))
    low, high = bounds(n_bits, symmetric, signed)
    x = torch.tensor(rng.uniform(-1.5, 1.5, (5, 40))) * 2**n_bits * scale[:, None]
    step = scale.clone().requires_grad_()
    quantizer = UniformQuantizer(n_bits, symmetric, signed, PerChannel(0))
    quantizer.fake_quantize(x, step[:, None], zero_point[:, None]).sum().backward()
    v, zero = (x / scale[:, None]).numpy(), zero_point[:, None].numpy()
    code = np.round(v) + zero
    slope = np.where(code < low, low - zero, np.where(code > high, high - zero, np.round(v) - v))
    np.testing.assert_allclose(step.grad.numpy(), slope.sum(1), rtol=1e-9, atol=1e-9)


def test_one_bit_is_a_sign_with_a_clipped_gradient(randn):
    for granularity in (PerTensor(), PerChannel(0)):
        t = randn(6, 50).requires_grad_()
        quantizer = UniformQuantizer(1, granularity=granularity)
        scale, zero_point = quantizer.compute_scale_zero_point(t)
        back = quantizer.fake_quantize(t, scale, zero_point)
        assert torch.equal(back, torch.where(t < 0, -scale, scale))
        back.sum().backward()
        inside = (t.detach().abs() <= scale).float()
        torch.testing.assert_close(t.grad, inside, rtol=1e-6, atol=0)
        assert 0 < inside.mean() < 1


# --- FakeQuantizeModule -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_bits", BITS)
@pytest.mark.parametrize("symmetric", SYMMETRIC)
@pytest.mark.parametrize("per_channel", PER_CHANNEL)
@pytest.mark.parametrize("clipping", CLIPPINGS)
def test_module_is_the_quantizer_to_the_bit(n_bits, symmetric, per_channel, clipping, randn, rng):
    dim = int(rng.integers(-2, 2))
    module = FakeQuantizeModule(n_bits, symmetric, per_channel, dim, clipping)
    granularity = PerChannel(dim) if per_channel else PerTensor()
    quantizer = UniformQuantizer(n_bits, symmetric, granularity=granularity, clipping=clipping)
    t = randn(5, 8).requires_grad_()
    kept = t.detach().clone()
    back = module(t)
    assert same_bits(back, quantizer.quantize_dequantize(t))
    assert torch.equal(t, kept)
    back.sum().backward()
    scale, zero_point = quantizer.compute_scale_zero_point(t)
    low, high = (-1, 1) if n_bits == 1 and symmetric else bounds(n_bits, symmetric, True)
    code = kept / torch.where(scale > 0, scale, 1) + zero_point
    margin = 0 if n_bits == 1 and symmetric else 0.5
    sure = ((code - low + margin).abs() > 1e-4) & ((code - high - margin).abs() > 1e-4)  # loin des bords de la grille
    inside = ((code >= low - margin) & (code <= high + margin)).float()
    torch.testing.assert_close(t.grad[sure], inside[sure], rtol=1e-5, atol=0)
    with torch.no_grad():
        assert same_bits(module(t), back.detach())
        assert not module(t).requires_grad


@pytest.mark.parametrize("n_bits", BITS)
@pytest.mark.parametrize("symmetric", SYMMETRIC)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_module_in_other_precisions(n_bits, symmetric, dtype, randn):
    module = FakeQuantizeModule(n_bits, symmetric, True).to(dtype)
    t = randn(4, 9, dtype=dtype).requires_grad_()
    back = module(t)
    assert back.dtype == dtype
    wide = t.detach() if dtype == torch.float64 else t.detach().float()
    assert torch.equal(back, module(wide).to(dtype))
    back.sum().backward()
    assert t.grad.dtype == dtype
    assert torch.isfinite(t.grad).all()
    largest = torch.tensor([[-60000.0, 10000.0]], dtype=torch.float16)
    assert torch.isfinite(module(largest)).all()  # sur 2 bits, le niveau −70000 déborderait


def test_clipped_values_get_no_gradient(randn):
    t = randn(1000)
    t[3] = 100
    t.requires_grad_()
    module = FakeQuantizeModule(4, clipping="percentile")
    module(t).sum().backward()
    assert t.grad[3] == 0
    assert float(t.grad.mean()) > 0.99
    t.grad = None
    FakeQuantizeModule(4)(t).sum().backward()
    assert t.grad[3] > 0.99  # aux extrêmes, rien n'est écrêté


def test_module_has_no_state_and_copies(randn):
    module = FakeQuantizeModule(3, False, True, 1, "mse")
    assert not module.state_dict()
    assert not [*module.parameters()]
    assert "n_bits=3" in repr(module)
    t = randn(4, 6)
    assert same_bits(copy.deepcopy(module)(t), module(t))


def correlated(randn):
    """Des entrées presque dans un sous-espace, où les arrondis des poids peuvent se compenser."""
    return randn(256, 4) @ randn(4, 16) + 0.1 * randn(256, 16)


def test_training_through_the_grid_beats_rounding_afterwards(randn):
    """À 3 bits, les vrais poids, arrondis, se font battre par des poids qui ont appris avec l'arrondi."""
    x, truth = correlated(randn), randn(4, 16)
    y = x @ truth.T
    w = nn.Parameter(truth.clone())
    module = FakeQuantizeModule(3, per_channel=True)
    optimizer = torch.optim.Adam([w], 0.01)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = ((x @ module(w).T - y) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert min(losses) < 0.8 * losses[0]  # la première est celle des vrais poids


@pytest.mark.parametrize(
    ("t", "error", "message"),
    [
        (torch.zeros(0, 4), ValueError, "vide ou non fini"),
        (torch.tensor([1.0, math.nan]), ValueError, "vide ou non fini"),
        ([1.0], TypeError, "reçu list, attendu un tenseur"),
    ],
)
def test_bad_inputs_are_named(t, error, message):
    with pytest.raises(error, match=f"^t : .*{message}"):
        FakeQuantizeModule()(t)
    with pytest.raises(error, match=f"^t : .*{message}"):
        LearnedStepQuantize(t)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n_bits": 9}, ValueError, "n_bits : reçu 9, attendu un entier entre 1 et 8"),
        ({"n_bits": True}, TypeError, "n_bits : reçu True"),
        ({"clipping": "kl"}, ValueError, "clipping : reçu 'kl', attendu 'min_max' ou 'percentile' ou 'mse'"),
    ],
    ids=str,
)
def test_bad_settings_are_named(arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        FakeQuantizeModule(**arguments)


def test_bad_channel_is_named():
    with pytest.raises(ValueError, match=r"^dim : reçu 2, attendu un entier entre -2 et 1"):
        FakeQuantizeModule(per_channel=True, channel_dim=2)(torch.ones(3, 4))


# --- le pas qui s'apprend ---------------------------------------------------------------------------------------------


def esser(t, scale, q, upstream):
    """Esser et al. (2020), équations 3 et 5, par NumPy : gradients du pas (par bloc, réduit) et de t."""
    v = t / scale
    slope = np.where(v <= -q, -q, np.where(v >= q, q, np.round(v) - v))
    step = (upstream * slope).sum(-1, keepdims=True) / math.sqrt(t.shape[-1] * q)
    return step, upstream * (np.abs(v) < q)


@pytest.mark.parametrize("n_bits", range(2, 9))
@pytest.mark.parametrize("per_channel", PER_CHANNEL)
def test_step_gradient_is_that_of_esser(n_bits, per_channel, rng, randn):
    t = randn(5, 300, dtype=torch.float64)
    module = LearnedStepQuantize(t, n_bits, per_channel)
    q = 2 ** (n_bits - 1) - 1
    with torch.no_grad():  # un pas tel qu'un tiers des valeurs soient écrêtées
        module.scale.copy_(torch.tensor(rng.uniform(0.8, 1.2, module.scale.shape)) / q)
    x, upstream = t.clone().requires_grad_(), randn(5, 300, dtype=torch.float64)
    module(x).backward(upstream)
    rows = (lambda a: a.numpy()) if per_channel else (lambda a: a.numpy().reshape(1, -1))
    scale = module.scale.detach().numpy().reshape(-1, 1)
    step, gradient = esser(rows(t), scale, q, rows(upstream))
    np.testing.assert_allclose(module.scale.grad.numpy().reshape(-1, 1), step, rtol=1e-9)
    np.testing.assert_allclose(rows(x.grad), gradient, rtol=1e-9)
    late = (np.abs(rows(t) / scale) > q) & (np.abs(rows(t) / scale) < q + 0.5)
    assert n_bits > 5 or late.any(), (
        "aucune valeur dans le demi-pas au-delà du bord, que fake_quantize compte autrement"
    )
    codes = np.clip(np.round(rows(t) / scale), -q, q)
    np.testing.assert_allclose(rows(module(t).detach()), codes * scale, rtol=1e-12)


@pytest.mark.parametrize("n_bits", range(2, 9))
@pytest.mark.parametrize("per_channel", PER_CHANNEL)
def test_forward_is_the_quantizer_with_that_step(n_bits, per_channel, randn):
    t = randn(6, 20)
    module = LearnedStepQuantize(t, n_bits, per_channel, 1)
    quantizer = UniformQuantizer(n_bits, granularity=PerChannel(1) if per_channel else PerTensor())
    assert module.scale.shape == ((1, 20) if per_channel else ())
    codes = quantizer.quantize(t, module.scale)
    assert same_bits(module(t).detach(), quantizer.dequantize(codes, module.scale))
    start = 2 * np.abs(t.numpy()).mean(0 if per_channel else None) / math.sqrt(2 ** (n_bits - 1) - 1)
    np.testing.assert_allclose(module.scale.detach().numpy().squeeze(), start, rtol=1e-6)


@pytest.mark.parametrize("n_bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("per_channel", PER_CHANNEL)
def test_learning_finds_a_step_close_to_the_best(n_bits, per_channel, randn):
    """Contre 2000 pas essayés un par un. À 8 bits, le pas de départ est cinq fois trop grand et descend lentement."""
    t = randn(3, 400) * torch.tensor([[0.1], [1.0], [10.0]] if per_channel else 1.0)
    module = LearnedStepQuantize(t, n_bits, per_channel)
    q = 2 ** (n_bits - 1) - 1
    blocks = t.double().numpy() if per_channel else t.double().numpy().reshape(1, -1)

    def errors(scale):
        back = np.clip(np.round(blocks / scale), -q, q) * scale
        return ((back - blocks) ** 2).sum(1)

    def learned():
        return errors(module.scale.detach().abs().numpy().reshape(-1, 1))

    peak = np.abs(blocks).max(1, keepdims=True)
    best = np.min([errors(share * peak / q) for share in np.linspace(0.001, 1.2, 2000)], axis=0)
    start = learned()
    optimizer = torch.optim.SGD([module.scale], 1.0)
    for i in range(200):
        optimizer.param_groups[0]["lr"] = math.sqrt(blocks.shape[1] * q) / (1 + q / 10) * 0.985**i
        optimizer.zero_grad()
        ((module(t) - t) ** 2).mean(-1).sum().mul(len(blocks) / 3).backward()
        optimizer.step()
    assert (learned() < start).all()
    assert (learned() <= (start / 2 if n_bits == 8 else 1.25 * best)).all()


def test_sign_of_the_step_does_not_matter(randn):
    t = randn(4, 30)
    module, mirror = LearnedStepQuantize(t, 4, True), LearnedStepQuantize(t, 4, True)
    with torch.no_grad():
        mirror.scale.neg_()
    assert same_bits(module(t).detach(), mirror(t).detach())
    for m in (module, mirror):
        (m(t) ** 2).sum().backward()
    torch.testing.assert_close(mirror.scale.grad, -module.scale.grad)  # il s'éloigne de zéro de la même façon


def test_zero_and_extreme_steps(randn):
    t = randn(3, 8)
    t[1] = 0
    module = LearnedStepQuantize(t, 4, True)
    assert (module.scale > 0).all()
    assert (module(t)[1] == 0).all()
    for scale in (0.0, 1e-44, 1e-30, 1e30):
        module = LearnedStepQuantize(t, 4)
        with torch.no_grad():
            module.scale.fill_(scale)
        for x in (t, t * 1e30):  # le quotient déborde : il s'écrête comme un autre
            x = x.clone().requires_grad_()
            back = module(x)
            back.sum().backward()
            assert torch.isfinite(back).all()
            assert torch.isfinite(x.grad).all()
            if scale == 1e-30 and x.abs().max() > 1e20:
                assert torch.equal(back, 7 * module.scale * x.sign())
    huge = LearnedStepQuantize(torch.full((40,), 3e38))
    assert torch.isfinite(huge.scale)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_learned_step_in_other_precisions(dtype, randn):
    """Calculé en float32 : en bfloat16, t/Δ n'a que huit bits et se tromperait de code."""
    t = (randn(4, 200) * 0.05).to(dtype)
    module = LearnedStepQuantize(t, 8)
    assert module(t).dtype == dtype
    module = module.to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    codes = (t.to(wide) * module.scale.detach().to(wide).reciprocal()).round().clamp(-127, 127)
    expected = codes * module.scale.detach().to(wide)
    assert torch.equal(module(t).detach(), expected.to(dtype))
    module(t).float().square().sum().backward()
    assert module.scale.grad.dtype == dtype
    assert torch.isfinite(module.scale.grad)
    with torch.no_grad():
        assert not module(t).requires_grad


@pytest.mark.parametrize("per_channel", PER_CHANNEL)
def test_state_comes_back_and_copies_are_apart(per_channel, randn):
    t = randn(5, 12)
    module = LearnedStepQuantize(t, 3, per_channel)
    with torch.no_grad():
        module.scale.mul_(0.7)
    other = LearnedStepQuantize(randn(5, 12), 3, per_channel)
    assert not torch.equal(other(t), module(t))
    other.load_state_dict(module.state_dict())
    assert same_bits(other(t).detach(), module(t).detach())
    assert [*module.state_dict()] == ["scale"]
    twin = copy.deepcopy(module)
    assert same_bits(twin(t).detach(), module(t).detach())
    with torch.no_grad():
        twin.scale.mul_(2)
    assert not torch.equal(twin(t), module(t))


def test_layer_and_step_learn_together(randn):
    """Sur 3 bits, poids et pas appris ensemble : mieux que les vrais poids, arrondis avec le meilleur pas."""
    x, truth = correlated(randn), randn(4, 16)
    y = x @ truth.T

    def loss(weight):
        return ((x @ weight.T - y) ** 2).mean()

    w = nn.Parameter(truth.clone())
    module = LearnedStepQuantize(w, 3, per_channel=True)
    assert torch.equal(w, truth)
    optimizer = torch.optim.Adam([{"params": [w], "lr": 0.01}, {"params": [module.scale], "lr": 0.01}])
    losses = []
    for _ in range(300):
        optimizer.zero_grad()
        value = loss(module(w))
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    rounded = UniformQuantizer(3, granularity=PerChannel(0), clipping="mse").quantize_dequantize(truth)
    assert min(losses) < 0.7 * losses[0]
    assert min(losses) < 0.9 * float(loss(rounded))


def test_step_of_another_shape_is_refused(randn):
    """(1, 16) se diffuserait sans un mot en (8, 16)."""
    module = LearnedStepQuantize(randn(8, 16), 4, per_channel=True)
    with pytest.raises(
        ValueError, match=r"^scale : reçu la forme \(8, 1\), attendu \(1, 1\) pour un tenseur \(1, 16\)"
    ):
        module(randn(1, 16))
    assert module(randn(8, 5)).shape == (8, 5)


@pytest.mark.parametrize(
    ("n_bits", "error"), [(1, ValueError), (9, ValueError), (0, ValueError), (True, TypeError), ("4", TypeError)]
)
def test_learned_step_needs_two_bits(n_bits, error):
    with pytest.raises(error, match=r"^n_bits : reçu .*, attendu un entier entre 2 et 8"):
        LearnedStepQuantize(torch.ones(3), n_bits)


def test_groups_are_followed_too(randn):
    """Le gradient d'une échelle de groupe ne vient que de son groupe."""
    t = randn(3, 8)
    quantizer = UniformQuantizer(4, granularity=PerGroup(4))
    scale, zero_point = quantizer.compute_scale_zero_point(t)
    scale.requires_grad_()
    quantizer.fake_quantize(t, scale, zero_point)[1, 4:].sum().backward()
    assert (scale.grad != 0).nonzero().tolist() == [[1, 1]]


@pytest.mark.parametrize("symmetric", SYMMETRIC)
@pytest.mark.parametrize("n_bits", BITS)
def test_a_null_block_stays_null_and_learns(n_bits, symmetric, randn):
    t = randn(3, 5)
    t[1] = 0
    t.requires_grad_()
    fake = FakeQuantizeModule(n_bits, symmetric, per_channel=True)
    y = fake(t)
    assert torch.equal(y, fake.quantizer.quantize_dequantize(t.detach()))
    y.sum().backward()
    assert torch.equal(t.grad[1], torch.ones(5))  # zéro est sur sa grille : l'arrondi y est l'identité
    rare = torch.zeros(5000)
    rare[0] = 9
    rare.requires_grad_()
    clipped = FakeQuantizeModule(n_bits, clipping="percentile")
    y = clipped(rare)
    y.sum().backward()
    if n_bits > 1:  # écrêté à zéro, 9 n'apprend pas
        assert (y.detach().any(), float(rare.grad[0])) == (False, 0.0)
