"""What a resumed run has been through is judged once, for all processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mrp.config import Stopped
from mrp.data.open import open_source
from mrp.evaluate.config import Diagnose
from mrp.evaluate.contract import Training
from mrp.evaluators.diagnose import Evaluator
from mrp.monitor.metrics import METRICS
from mrp.run import load
from tests.evaluators.settings import Alone, setting


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
