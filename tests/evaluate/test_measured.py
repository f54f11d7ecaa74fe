"""Numbers with intervals."""

from __future__ import annotations

import math

import pytest
import torch

from mrp.evaluate.measured import Number, mean_of, share_of, told


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
