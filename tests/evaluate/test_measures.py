"""Numbers with intervals, and which of a record stand in tables."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mrp.evaluate import measures
from mrp.evaluate.measures import Number, mean_of, share_of, told
from mrp.evaluate.results import Record


def record(evaluator: str, result: dict[str, Any], score: str | None = None, **options: Any) -> Record:
    data = {"content": "x"} | ({"score": score} if score else {})
    return Record(evaluator, options, "trained", 1, "student", data, result)


ACCURACY = {"accuracy": 0.9, "low": 0.8, "high": 0.95}
MEAN = {"mean_per_class": {"accuracy": 0.7, "low": 0.6, "high": 0.8}}


def test_accuracies() -> None:
    (one,) = measures.of(record("linear", ACCURACY | MEAN, layers=1))
    assert (one.name, one.title, one.value, one.low, one.high) == ("linear", "linear probe (layers=1)", 0.9, 0.8, 0.95)
    assert one.counted
    (mean,) = measures.of(record("linear", ACCURACY | MEAN, "mean_per_class"))
    assert (mean.title, mean.value) == ("linear probe, mean per class", 0.7)
    assert measures.of(record("linear", ACCURACY | MEAN), "mean_per_class", "mine")[0].title == "mine, mean per class"
    (validation,) = measures.of(record("validation", {"images": 4, "accuracy": ACCURACY}))  # an accuracy with bounds
    assert (validation.value, validation.low) == (0.9, 0.8)


def test_few_shot_and_what_an_evaluator_declares() -> None:
    few = measures.of(record("few_shot", {"few_shot": [{"shots": n, **ACCURACY, "draws": [0.9]} for n in (1, 5)]}))
    assert [(one.name, one.title, one.draws) for one in few] == [
        ("few_shot/1", "1 image per class", (0.9,)), ("few_shot/5", "5 images per class", (0.9,)),
    ]  # fmt: skip
    (error,) = measures.of(record("depth", {"measures": {"rmse": {"value": 2.5, "share": False, "better": "lower"}}}))
    assert (error.title, error.value, error.low, error.share, error.better) == (
        "depth: rmse",
        2.5,
        None,
        False,
        "lower",
    )
    assert not error.counted


def test_other_numbers_have_no_direction() -> None:
    (rank,) = measures.of(record("mine", {"rank": 7, "note": "text", "flag": True, "list": [1]}))
    assert (rank.name, rank.title, rank.value, rank.better) == ("mine/rank", "mine: rank", 7.0, "")


def test_the_interval_of_a_mean() -> None:
    found = mean_of(torch.tensor([0.2, 0.4, math.nan, 0.6, 0.8]), share=False, better="lower")
    half = 1.959964 * (0.2 / 3) ** 0.5 / 2
    assert found[:3] == pytest.approx((0.5, 0.5 - half, 0.5 + half), abs=1e-6)
    assert found[3:] == (False, "lower", ())


def test_one_value_has_no_interval_and_none_no_mean() -> None:
    assert mean_of(torch.tensor([0.25, math.nan])) == Number(0.25)
    assert math.isnan(mean_of(torch.tensor([math.nan])).value)


def test_a_share_and_what_is_told() -> None:
    share = share_of(torch.tensor([True, True, False, True]))
    assert share.value == 0.75
    assert share.low is not None
    assert 0 < share.low < 0.75
    values, details = told({"recall1": share, "map": Number(0.5)})
    assert values == {"recall1": 0.75, "map": 0.5}
    assert details["map"] == 0.5
    assert details["measures"]["map"] == {"value": 0.5, "low": None, "high": None, "share": True, "better": "higher"}
    assert told({"recall1": share, "map": Number(0.5)}, ("map",))[1]["measures"].keys() == {"map"}
