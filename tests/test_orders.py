"""La table des trois ordres : entière, choisie sur les phrases de calibration, et refaite ligne à ligne."""

import itertools
import json

import pytest
import torch

from benchmarks import orders_study
from lrq import models

TABLE = json.loads(orders_study.TABLE.read_text(encoding="utf-8"))
ROWS = TABLE["mesures"]


def chosen(row):
    """Le réglage d'une ligne de la table."""
    return {name: row[name] for name in ("n_bits", "granularity", "factor_bits") if name in row}


def test_every_way_is_tried_under_every_budget():
    tried = [(row["budget"], row["façon"], chosen(row)) for row in ROWS]
    expected = [
        (budget, way, setting)
        for budget, way in itertools.product(orders_study.BUDGETS, orders_study.WAYS)
        for setting in orders_study.settings(way, budget)
    ]
    assert tried == expected
    assert {(budget, way) for budget, way, *_ in tried} == set(
        itertools.product(orders_study.BUDGETS, orders_study.WAYS)
    )


def test_no_row_exceeds_its_budget():
    assert [row for row in ROWS if row["bits"] > row["budget"] + 1e-6] == []


def test_the_kept_setting_is_the_best_on_calibration_sentences():
    def place(row):
        return row["budget"], row["façon"]

    for _, rows in itertools.groupby(sorted(ROWS, key=place), key=place):
        group = list(rows)
        kept = [row for row in group if row["retenu"]]
        assert len(kept) == 1
        assert kept[0]["calibration"] == max(row["calibration"] for row in group)


def test_the_table_is_about_these_weights():
    assert TABLE["sha256"] == models.MINILM_SHA256
    assert orders_study.TABLE.stat().st_size < 50_000


@pytest.fixture(scope="module")
def judge():
    return orders_study.Judge()


def test_a_random_row_is_found_again(judge, rng):
    row = ROWS[rng.integers(len(ROWS))]
    setting = chosen(row)
    with torch.no_grad():
        again = judge.measure(orders_study.converter(row["façon"], row["budget"], setting, judge.seen))
    assert again["bits"] == row["bits"]
    assert again["test"] == pytest.approx(row["test"], abs=2e-3)
    assert again["calibration"] == pytest.approx(row["calibration"], abs=2e-3)
