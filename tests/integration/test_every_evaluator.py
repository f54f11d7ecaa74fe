"""Evaluators give the same numbers inside training, after it, and on two processes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from mrp.cli import main
from mrp.evaluate import results
from tests.evaluators.miniature import as_depth, as_mask, write
from tests.forked import launch
from tests.trained import NARROW

SMALL = [*NARROW, "length=1 steps", "optim.warmup=1 steps", "backbone.depth=1"]
Options = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Options:
    """Of each evaluator; all are tried together, because a run is what costs time."""
    root = tmp_path_factory.mktemp("data")
    masks, depths = (
        {split: write(root / f"{kind}-{split}", 12, seed, kind, save) for split, seed in (("train", 1), ("test", 2))}
        for kind, save in (("masks", as_mask), ("depths", as_depth))
    )
    return {
        "geometry": {"images": 100, "views": 3},
        "retrieval": {"queries": 100, "images": 500},
        "copy": {"copies": 40, "distractors": 60},
        "segmentation": masks,
        "depth": depths,
        "calibration": {"layers": 1},
        "reconstructions": {"images": 3},
        "invariance": {"images": 60, "hidden": [0.5], "crops": [0.5]},
    }


def measured(folder: Path, options: Options) -> dict[str, float]:
    (line,) = (folder / "metrics.jsonl").read_text().splitlines()
    values = json.loads(line)
    for name in options:
        assert values.pop(f"{name}/seconds") > 0
    return {key: value for key, value in values.items() if key.partition("/")[0] in options}


@pytest.fixture(scope="module")
def words(options: Options) -> list[str]:
    sections = {name: given | {"every": "1 steps"} for name, given in options.items()}
    return [*SMALL, f"evaluate={json.dumps(sections)}"]


@pytest.fixture(scope="module")
def run(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("every") / "run"
    main(["pretrain", *words, "--folder", str(folder)])
    return folder


@pytest.mark.slow
def test_after_training_they_measure_what_they_measured_inside(run: Path, options: Options) -> None:
    inside = measured(run, options)
    assert all(math.isfinite(value) for value in inside.values())
    evaluators = [word for name in options for word in ("--evaluator", name)]
    given = [f"{name}.{key}={json.dumps(value)}" for name, one in options.items() for key, value in one.items()]
    main(["probe", str(run), *evaluators, *given])
    after = {record.evaluator: record for record in results.read(run)}
    for name, one in options.items():
        assert json.loads(json.dumps(after[name].options)).keys() == one.keys()
        values = {key.partition("/")[2]: value for key, value in inside.items() if key.startswith(f"{name}/")}
        assert values
        for key in values.keys() & after[name].result.keys():
            assert after[name].result[key] == pytest.approx(values[key], abs=1e-6), (name, key)


@pytest.mark.slow
def test_two_processes_measure_what_one_measures(run: Path, words: list[str], options: Options, tmp_path: Path) -> None:
    """After one step at a learning rate of zero both have the weights that they started with."""
    assert launch(2, ["pretrain", *words, "--folder", str(tmp_path / "two")]) == 0
    one, two = measured(run, options), measured(tmp_path / "two", options)
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert two[name] == pytest.approx(value, abs=5e-3), name
