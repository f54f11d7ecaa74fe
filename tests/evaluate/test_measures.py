"""Which numbers of a record stand in tables."""

from __future__ import annotations

from typing import Any

from mrp.evaluate import measures
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
