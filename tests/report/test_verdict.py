"""What an interval allows to say of a change, and which number decides."""

from __future__ import annotations

import math

import pytest

from mrp.evaluate.interval import Interval
from mrp.report.verdict import Change, Verdict


def change(low: float, high: float, lower_is_better: bool = False) -> Change:
    value = (low + high) / 2
    return Change("linear", "linear probe", 0.5, 0.5 + value, Interval(value, low, high), lower_is_better, True)


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(0.01, 0.03, "better"), (-0.01, 0.03, "no better"), (0.0, 0.03, "no better"), (-0.03, -0.01, "worse"),
     (math.nan, math.nan, "no better")],
)  # fmt: skip
def test_the_interval_decides(low: float, high: float, word: str) -> None:
    assert change(low, high).word == word
    turned = {"better": "worse", "worse": "better"}.get(word, word)
    assert change(low, high, lower_is_better=True).word == turned


def test_the_first_number_is_the_verdict_in_one_sentence() -> None:
    verdict = Verdict((change(0.01, 0.03), change(-0.05, -0.01)), 400)
    assert verdict.word == "better"
    assert verdict.sentence == (
        "better: linear probe on 400 held-out images was 50.0 % before, 52.0 % after: +2.0 points (95 % interval "
        "+1.0 to +3.0), which excludes 0; worse became linear probe"
    )
    assert "contains 0" in Verdict((change(-0.01, 0.03),), 400).sentence
    assert Verdict((change(-0.03, -0.01),), 400).sentence.startswith("worse: ")
    assert Verdict((), 400).word == "no better"
    assert [one["word"] for one in verdict.plain()["changes"]] == ["better", "worse"]
