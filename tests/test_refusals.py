"""Ce que reçoit un argument impossible : un refus en français qui le nomme, et rien n'est changé ni deviné."""

import numpy as np
import pytest
import torch
from torch import nn

import lrq

GRID = lrq.UniformQuantizer(4)
ONES = torch.ones(4, 4)


def lazy():
    return lrq.FactorizedLinear.from_linear(nn.LazyLinear(4), 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: lrq.truncated_svd(ONES.to_sparse(), 2), TypeError, "W : reçu un tenseur torch.sparse_coo"),
        (lambda: lrq.truncated_svd(ONES.to("meta"), 2), TypeError, "W : reçu un tenseur de l'appareil meta"),
        (lambda: lrq.truncated_svd(ONES.to(torch.float8_e4m3fn), 2), TypeError, "W : reçu des éléments torch.float8"),
        (lambda: GRID.quantize_dequantize(ONES.to(torch.float8_e5m2)), TypeError, "t : reçu des éléments torch.float8"),
        (lazy, ValueError, "linear_layer : LazyLinear n'a pas encore de poids"),
        (lambda: lrq.UniformQuantizer(4, symmetric="False"), TypeError, "symmetric : reçu 'False', attendu True ou"),
        (lambda: lrq.GPTQCompression({"symmetric": "False"}), TypeError, "symmetric : reçu 'False', attendu True ou"),
        (lambda: lrq.SVDCompression({"activation_aware": 1}), TypeError, "activation_aware : reçu 1, attendu True ou"),
        (lambda: lrq.QuantizedLinear(4, 4, quantizer=4), TypeError, "quantizer : reçu 4, attendu un UniformQuant"),
        (lambda: lrq.QuantizedLowRankLinear(4, 4, 2, quantizer=4), TypeError, "quantizer : reçu 4, attendu"),
        (lambda: lrq.QuantizedTTLinear([2, 2], [2, 2], 2, quantizer=4), TypeError, "quantizer : reçu 4, attendu"),
        (lambda: lrq.gptq(ONES, torch.eye(4), 4), TypeError, "quantizer : reçu 4, attendu un UniformQuantizer"),
        (
            lambda: lrq.low_rank_error(ONES, ONES, torch.eye(4), ONES),
            ValueError,
            r"S : reçu la forme \(4, 4\), attendu un v",
        ),
        (
            lambda: lrq.low_rank_error(ONES, ONES, torch.tensor(1.0), ONES),
            ValueError,
            r"S : reçu la forme \(\), attendu",
        ),
        (
            lambda: lrq.dequantize(torch.ones(2, 3), torch.ones(4)),
            ValueError,
            r"scale : reçu la forme \(4,\), attendu un",
        ),
        (
            lambda: lrq.dequantize(torch.ones(3), torch.ones(3, 1)),
            ValueError,
            r"scale : reçu la forme \(3, 1\), attendu",
        ),
        (
            lambda: lrq.pack_bits(torch.ones(2).to(torch.uint16), 4),
            TypeError,
            r"codes : reçu des éléments torch\.uint16",
        ),
        (lambda: lrq.unpack_bits(torch.zeros(2).byte(), 4, 2), TypeError, "shape : reçu 2, attendu la forme des codes"),
        (lambda: lrq.unpack_bits(torch.zeros(2).byte(), 4, "ab"), TypeError, "shape : reçu 'ab', attendu la forme"),
        (
            lambda: lrq.unpack_bits(torch.zeros(2).byte(), 4, (-1, -2)),
            ValueError,
            r"shape\[0\] : reçu -1, attendu un ent",
        ),
        (
            lambda: lrq.compare_factorized_vs_standard(5, 5, 2, seed="a"),
            TypeError,
            "seed : reçu 'a', attendu un entier",
        ),
        (lambda: lrq.approximate_svd_large(ONES, 2, seed=2**70), ValueError, "seed : reçu 1180591620717411303424"),
        (lambda: lrq.marchenko_pastur_edge(3, 3, -1.0), ValueError, "norm : reçu -1.0, attendu une norme, positive"),
        (
            lambda: lrq.calibrate(nn.Sequential(nn.ReLU()), ["0"], ONES),
            TypeError,
            "run : reçu Tensor, attendu une fonct",
        ),
        (
            lambda: lrq.calibrate(nn.ReLU(), None, lambda: None),
            TypeError,
            "names : reçu None, attendu une liste de noms",
        ),
        (lambda: lrq.calibrate(3, ["0"], lambda: None), TypeError, r"model : reçu int, attendu nn\.Module"),
        (
            lambda: lrq.replace_linears(nn.Linear(2, 2), lambda layer: None),
            TypeError,
            "convert : rend NoneType pour ''",
        ),
        (lambda: lrq.allocate_ranks([1], [2], 3), TypeError, "spectra : reçu list, attendu un dictionnaire"),
        (lambda: lrq.allocate_budget([(3, 4)], 30), TypeError, "options : reçu list, attendu un dictionnaire"),
        (lambda: lrq.propagation_bound(3, 4), TypeError, "gains : reçu int, attendu une liste de nombres"),
        (
            lambda: lrq.train_qat_low_rank(nn.Linear(4, 2), ONES),
            TypeError,
            "train_loader : reçu Tensor, attendu un Data",
        ),
        (
            lambda: lrq.train_qat_low_rank(nn.Linear(4, 2), (ONES, ONES)),
            TypeError,
            "train_loader : lot 0 : reçu Tensor",
        ),
        (
            lambda: lrq.train_qat_low_rank(nn.Linear(4, 2), {"x": 1}),
            TypeError,
            "train_loader : reçu dict, attendu un D",
        ),
        (
            lambda: lrq.LoRALayer(nn.Linear(4, 4), 2, alpha=1e300),
            ValueError,
            "alpha : l'échelle 1e\\+300 ne tient pas en",
        ),
        (
            lambda: lrq.LoRALayer.from_pissa(nn.Linear(8, 8), 2, alpha=1e-42),
            ValueError,
            "alpha : l'échelle 1e-42 est trop",
        ),
    ],
)
def test_the_refusal_names_the_argument(call, error, message):
    with pytest.raises(error, match=f"^{message}"):
        call()


def test_a_damping_too_small_to_invert_is_refused(randn):
    with pytest.raises(ValueError, match=r"^damping : reçu 1e-30, trop petit"):
        lrq.gptq(randn(8, 64), randn(10, 64), GRID, 1e-30)


def test_a_column_of_a_record_is_a_matrix(rng):
    """Un champ d'un tableau NumPy structuré n'est pas rangé comme PyTorch le veut : il est recopié."""
    table = np.zeros((8, 6), dtype=[("poids", "f8"), ("marque", "i4")])
    table["poids"] = rng.random((8, 6))
    for found, expected in zip(
        lrq.truncated_svd(table["poids"], 2), lrq.truncated_svd(table["poids"].copy(), 2), strict=True
    ):
        assert torch.equal(found, expected)


def test_a_spectrum_read_backwards_is_a_spectrum(rng):
    rising = np.sort(rng.random(6))
    assert lrq.rank_for_energy(rising[::-1], 0.9) == lrq.rank_for_energy(rising[::-1].copy(), 0.9)


def test_the_warning_names_the_line_of_the_reader(linear, randn):
    """Ni celle de activation.py, ni celle d'une couche : trois appels d'écart selon la fonction."""
    X, layer = randn(3, 32), linear(32)
    calls = (
        lambda: lrq.activation_aware_svd(layer.weight, 4, X),
        lambda: lrq.FactorizedLinear.from_linear(layer, 4, X),
        lambda: lrq.QuantizedResidualLinear.from_linear(layer, 4, 4, X),
    )
    for call in calls:
        with pytest.warns(UserWarning, match="calibration : ses 3 entrées") as found:
            call()
        assert {warning.filename for warning in found} == {__file__}
