"""Les calculs des figures, refaits dans un vrai navigateur, contre PyTorch."""

import base64
import re

import pytest
import torch

from lrq.widgets.certificate import golden_cases
from lrq.widgets.explorer import esm

LIMIT = 1e-5
CERTIFY = """async ([module, cases]) => {
  const { certify } = await import(module);
  return Object.fromEntries(Array.from(certify(cases), ([name, { gap }]) => [name, gap]));
}"""


def data_url(code):
    return f"data:text/javascript;base64,{base64.b64encode(code.encode()).decode()}"


@pytest.fixture
def gaps(browser):
    """Écart par fonction, pour des témoins et, au besoin, un numerics.js altéré."""
    page = browser.new_page()

    def run(cases, alter=lambda code: code):
        good = esm("numerics.js")
        module = esm("certificate.js").replace(data_url(good), data_url(alter(good)))
        return page.evaluate(CERTIFY, [data_url(module), cases])

    yield run
    page.close()


@pytest.fixture
def cases(rng):
    return [
        golden for _ in range(8) for golden in golden_cases(torch.Generator().manual_seed(int(rng.integers(2**31))))
    ]


def test_javascript_agrees_with_pytorch(gaps, cases):
    found = gaps(cases)
    exported = set(re.findall(r"^export function (\w+)", esm("numerics.js"), re.MULTILINE))
    tools = {"roundHalfEven", "relativeGap"}  # éprouvés par les autres et par les altérations
    assert {golden["function"] for golden in cases} == exported - tools
    assert max(found.values()) <= LIMIT, found


@pytest.mark.parametrize(
    ("right", "wrong", "twin"),
    [
        ("roundHalfEven(Math", "Math.round(Math", "quantize_symmetric"),
        ("sum / width", "largest", "quantize_symmetric"),
        ("energies[S.length] = tail", "energies[S.length] = 0", "truncation_errors"),
        ("k < rank", "k < rank - 1", "produit U_r (U_rᵀ W)"),
        ("Math.ceil((m * rank * bits) / 8)", "Math.floor((m * rank * bits) / 8)", "QuantizedLowRankLayer.nbytes"),
        ("kept < threshold", "kept <= threshold", "rank_for_energy"),
        ("rank / (oversample - 1)", "rank / oversample", "halko_bound"),
        ("error / optimum - 1", "error - optimum", "RandomizedExplorer.excess"),
        ("Math.sqrt(m) + Math.sqrt(n)", "Math.sqrt(m + n)", "marchenko_pastur_edge"),
    ],
)
def test_a_wrong_calculation_is_noticed(gaps, cases, right, wrong, twin):
    def alter(code):
        assert right in code
        return code.replace(right, wrong)

    assert gaps(cases, alter)[twin] > 1e-3


def test_a_missing_number_or_nan_is_an_infinite_gap(gaps, cases):
    golden = dict(cases[0])
    assert gaps([golden | {"expected": golden["expected"][1:]}]) == {golden["twin"]: float("inf")}
