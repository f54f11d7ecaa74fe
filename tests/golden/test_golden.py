"""What every recipe resolves to, and the first losses of every method, as they were decided (`make golden`)."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch

from mrp.objectives import OBJECTIVES

HERE = Path(__file__).parent
TOOL = runpy.run_path(str(HERE.parent.parent / "tools" / "golden.py"))


def test_recipes_resolve_as_decided() -> None:
    expected = {path.stem: path.read_text() for path in (HERE / "recipes").glob("*.yaml")}
    assert TOOL["resolved"]() == expected


def test_the_learning_rate_of_a_recipe_follows_the_batch() -> None:
    """Else it is far too high for who has one GPU: the published one is that of thousands of images at once."""
    recipes = {path.stem: path.read_text() for path in (HERE / "recipes").glob("*.yaml")}
    fixed = {name for name, text in recipes.items() if "\n  per: null\n" in text}
    assert fixed == {"demo", *(name for name in fixed if name.endswith("_digits"))}


@pytest.mark.parametrize("name", [*OBJECTIVES.names(), *TOOL["DRAWN"]])
def test_first_losses_are_as_decided(name: str) -> None:
    expected = json.loads((HERE / "losses.json").read_text())
    torch.set_num_threads(1)
    assert TOOL["losses"](name) == pytest.approx(expected[name], rel=1e-4)
