"""What an incident is repeated with."""

from __future__ import annotations

from typing import Any

import pytest

from mrp.build import open_source
from mrp.plan import plan_order
from mrp.replay import _micro_batches
from mrp.run import load

MIXED = ["data.train=[{source: digits, weight: 1}, {source: digits, weight: 1}]", "batch=16"]


@pytest.mark.parametrize(("recorded", "version"), [({}, 1), ({"order_version": 1}, 1), ({"order_version": 2}, 2)])
def test_a_mixture_is_repeated_in_the_order_of_its_run(recorded: dict[str, int], version: int) -> None:
    run = load("demo", MIXED)
    source = open_source(run, "train")
    incident: dict[str, Any] = {"processes": 1, "accumulation": 1, "micro_batch": 16, "checkpoint": 3}
    incident |= {"quarantine": [], "suspects": []} | recorded
    (part,) = _micro_batches(run, source, incident)
    slots = plan_order(run, source, version).slots(3)
    assert part.samples == slots.samples.tolist()
    assert plan_order(run, source, 3 - version).slots(3).samples.tolist() != part.samples
