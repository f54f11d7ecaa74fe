"""What a resumed run has been through is judged once, for all processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mrp.build import build_step
from mrp.config import Stopped
from mrp.data.open import open_source
from mrp.evaluate.config import Diagnose
from mrp.evaluate.contract import Training, never
from mrp.evaluators.diagnose import Evaluator
from mrp.monitor.metrics import METRICS
from mrp.run import load
from tests.evaluators.settings import Alone, setting, some, together


def test_only_the_first_process_judges_the_lines_that_are_there(tmp_path: Path) -> None:
    """The others may see lines that it is about to cut, and must not stop alone."""
    data = load("demo").data
    section = Diagnose.model_validate({"images": 8, "after": "0 steps", "patience": 1, "action": "stop"})
    training = Training(steps=100, warmup=20, steps_per_epoch=10, batch=32)
    lines = [{"step": step, "features/rank_me": 0.0} for step in (20, 21)]
    (tmp_path / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = open_source("digits", "test")
    with pytest.raises(Stopped, match="the features had collapsed at step 20: features/rank_me"):
        Evaluator(section, setting(data, source, source, Alone(), folder=tmp_path, training=training))
    Evaluator(section, setting(data, source, source, Alone(1), folder=tmp_path, training=training))


@pytest.mark.parametrize("world", [2, 3, 5])
def test_features_and_neighbours_do_not_depend_on_the_number_of_processes(world: int) -> None:
    run = load("demo", ["backbone.width=16", "backbone.depth=1", "backbone.heads=2"])
    module, source = build_step(run).eval(), open_source("digits", "test")

    def measure(processes: Any) -> tuple[dict[str, float], torch.Tensor]:
        at = setting(run.data, source, source, processes)
        return Evaluator(Diagnose.model_validate({"images": 264}), at)._measure(module, never)

    one, several = measure(Alone()), together(world, measure)
    assert torch.allclose(one[1], several[1], atol=1e-5)
    assert one[0]["knn"] == several[0]["knn"]
    assert several[0]["loss"] == pytest.approx(one[0]["loss"], rel=2e-3)  # of 5, one image is in a batch twice


def test_more_processes_than_images() -> None:
    run = load("demo", ["backbone.width=16", "backbone.depth=1", "backbone.heads=2"])
    module, source = build_step(run).eval(), some("test", 3)

    def measure(processes: Any) -> dict[str, float]:
        at = setting(run.data, source, source, processes)
        return Evaluator(Diagnose.model_validate({"images": 8}), at)._measure(module, never)[0]

    alone, several = measure(Alone()), together(5, measure)
    assert several["rank_me"] > 1
    assert several["rank_me"] == pytest.approx(alone["rank_me"], rel=1e-4)
    assert several["loss"] == pytest.approx(alone["loss"], rel=1e-5)  # what two of them see again does not count
