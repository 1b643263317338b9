"""La table quantifiée rend les lignes de la table arrondie, au bit près, sans déballer les autres."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lrq import PerChannel, PerGroup, PerTensor, QuantizedEmbedding, UniformQuantizer
from lrq.layers import PackedTensor

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
GRANULARITIES = [PerTensor(), PerChannel(0), PerChannel(1), PerChannel(-1), PerGroup(4)]
SHAPES = [(), (0,), (3, 0), (1,), (7,), (2, 5), (400,)]
COUNT, DIM = 90, 24
granular = pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)


@pytest.fixture
def table(randn):
    """Une nn.Embedding dont les lignes sont tirées au hasard."""

    def draw(count=COUNT, dim=DIM, dtype=torch.float32, **options):
        embedding = nn.Embedding(count, dim, dtype=dtype, **options)
        embedding.weight.data = randn(count, dim, dtype=dtype)
        return embedding

    return draw


@pytest.fixture
def draw_ids(rng):
    """Des indices tirés au hasard, avec répétitions."""

    def draw(shape, count=COUNT, dtype=torch.int64):
        return torch.tensor(rng.integers(0, count, shape), dtype=dtype)

    return draw


@granular
@pytest.mark.parametrize("symmetric", [True, False], ids=["symétrique", "asymétrique"])
@pytest.mark.parametrize("n_bits", range(1, 9))
def test_it_gives_the_rows_of_the_rounded_table(n_bits, symmetric, granularity, table, draw_ids):
    source = table()
    quantizer = UniformQuantizer(n_bits, symmetric, granularity=granularity)
    layer, W = (
        QuantizedEmbedding.from_embedding(source, quantizer=quantizer),
        quantizer.quantize_dequantize(source.weight),
    )
    assert torch.equal(layer.reconstruct_weight(), W)
    for shape in SHAPES:
        for dtype in (torch.int32, torch.int64):
            ids = draw_ids(shape, dtype=dtype)
            y = layer(ids)
            assert y.shape == (*shape, DIM)
            assert torch.equal(y, F.embedding(ids, W))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale_dtype", [None, torch.bfloat16])
def test_dtype_is_kept(dtype, scale_dtype, table, draw_ids):
    source = table(dtype=dtype)
    layer = QuantizedEmbedding.from_embedding(
        source, quantizer=UniformQuantizer(4, granularity=PerGroup(8), scale_dtype=scale_dtype)
    )
    ids = draw_ids((2, 6))
    assert layer(ids).dtype == layer.reconstruct_weight().dtype == dtype
    assert torch.equal(layer(ids), F.embedding(ids, layer.reconstruct_weight()))
    assert layer.half()(ids).dtype == torch.float16


def test_only_the_rows_asked_for_are_unpacked(table, draw_ids, monkeypatch):
    whole = []
    honest = PackedTensor.dequantize
    monkeypatch.setattr(PackedTensor, "dequantize", lambda self: whole.append(self) or honest(self))
    ids = draw_ids((2, 5))
    for dim, n_bits, unpacked in [(24, 4, 0), (24, 3, 0), (8, 1, 0), (5, 8, 0), (25, 4, 1), (12, 1, 1)]:
        whole.clear()
        layer = QuantizedEmbedding.from_embedding(table(dim=dim), n_bits)
        y = layer(ids)
        assert len(whole) == unpacked
        assert torch.equal(y, F.embedding(ids, layer.reconstruct_weight()))


@granular
def test_a_table_of_one_or_two_rows(granularity, table):
    for count in (1, 2):
        layer = QuantizedEmbedding.from_embedding(table(count), 4, granularity)
        for ids in (torch.tensor([0]), torch.tensor(count - 1), torch.zeros(0, dtype=torch.int64)):
            assert torch.equal(layer(ids), F.embedding(ids, layer.reconstruct_weight()))


def test_it_weighs_its_bits_and_its_scales(table):
    for n_bits in range(1, 9):
        layer = QuantizedEmbedding.from_embedding(table(), n_bits)
        exact = math.ceil(COUNT * DIM * n_bits / 8) + 4 * COUNT
        assert layer.nbytes() == exact
        assert layer.compression_ratio() == pytest.approx(4 * COUNT * DIM / exact)
        assert layer.count_parameters() == layer.dense_parameters() == COUNT * DIM


def test_the_defaults_are_one_scale_a_row_and_the_source_is_not_shared(table, draw_ids):
    source, ids = table(padding_idx=-1), draw_ids((4, 3))
    layer = QuantizedEmbedding.from_embedding(source)
    expected = UniformQuantizer(8, granularity=PerChannel(0)).quantize_dequantize(source.weight)[ids]
    with torch.no_grad():
        source.weight.zero_()
    assert torch.equal(layer(ids), expected)
    assert layer.packed.scale.shape == (COUNT, 1)
    assert layer.padding_idx == COUNT - 1
    assert "90, 24, padding_idx=89" in repr(layer)


def test_null_rows_stay_null(table, draw_ids):
    source = table()
    with torch.no_grad():
        source.weight[7] = 0
    for n_bits in (1, 4, 8):
        assert torch.equal(QuantizedEmbedding.from_embedding(source, n_bits)(torch.tensor([7])), torch.zeros(1, DIM))


def test_held_tables_and_fresh_ones(table, draw_ids):
    source, ids = table(), draw_ids((3, 3))
    quantizer = UniformQuantizer(4, symmetric=False, granularity=PerGroup(8))
    layer = QuantizedEmbedding.hold(quantizer.compress(source.weight), 0)
    assert torch.equal(layer(ids), quantizer.quantize_dequantize(source.weight)[ids])
    fresh = QuantizedEmbedding(COUNT, DIM, 0, quantizer=quantizer)
    assert torch.equal(fresh(ids), torch.zeros(3, 3, DIM))
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(ids), layer(ids))
    assert repr(fresh) == repr(layer)


@pytest.mark.parametrize("bad", [-1, COUNT, 10**12])
@pytest.mark.parametrize("n_bits", [4, 5])
def test_indices_out_of_the_table_are_named(bad, n_bits, table):
    layer = QuantizedEmbedding.from_embedding(table(dim=6), n_bits)
    with pytest.raises(IndexError, match=rf"^ids : reçu l'indice {bad}, attendu entre 0 et {COUNT - 1}"):
        layer(torch.tensor([[0, bad]]))


def test_refusals_are_named(table, linear):
    layer = QuantizedEmbedding.from_embedding(table())
    with pytest.raises(TypeError, match=r"^ids : reçu list"):
        layer([0])
    for dtype in (torch.float32, torch.bool, torch.uint8):  # un masque, des octets : PyTorch y lirait un masque
        with pytest.raises(TypeError, match=rf"^ids : reçu des éléments {dtype}"):
            layer(torch.zeros(3, dtype=dtype))
    with pytest.raises(TypeError, match=r"^embedding : reçu Linear, attendu nn\.Embedding"):
        QuantizedEmbedding.from_embedding(linear())
    with pytest.raises(ValueError, match=r"^embedding : reçu max_norm=1\.0"):
        QuantizedEmbedding.from_embedding(table(max_norm=1.0))
    with pytest.raises(ValueError, match=r"^n_bits : reçu 0"):
        QuantizedEmbedding.from_embedding(table(), 0)
    with pytest.raises(ValueError, match=r"^size : reçu 5, attendu un diviseur"):
        QuantizedEmbedding.from_embedding(table(), granularity=PerGroup(5))
    with pytest.raises(ValueError, match=r"^padding_idx : reçu 90"):
        QuantizedEmbedding(COUNT, DIM, COUNT)
    with pytest.raises(ValueError, match=r"^embedding_dim : reçu 0"):
        QuantizedEmbedding(COUNT, 0)
    spoilt = table()
    spoilt.weight.data[3, 3] = math.nan
    with pytest.raises(ValueError, match=r"^embedding\.weight : 1 élément"):
        QuantizedEmbedding.from_embedding(spoilt)
