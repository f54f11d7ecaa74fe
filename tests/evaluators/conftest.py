"""What the tests of evaluators share."""

from __future__ import annotations

import pytest

from mrp.build import build_step
from mrp.run import load
from mrp.step import Step


@pytest.fixture(scope="module")
def step() -> Step:
    """A small MAE, as it is before training."""
    return build_step(load("demo", ["backbone.width=16", "backbone.depth=1", "backbone.heads=2"])).eval()
