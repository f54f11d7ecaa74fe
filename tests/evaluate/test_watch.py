"""What a resumed run has been through is judged once, for all processes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator

from mrp.build import open_source
from mrp.config import Stopped
from mrp.evaluate.watch import Watch
from mrp.monitor.metrics import METRICS
from mrp.plan import plan_run
from mrp.run import load


def accelerator(main: bool) -> Accelerator:
    fake: Any = SimpleNamespace(
        is_main_process=main, num_processes=1, process_index=0 if main else 1, device=torch.device("cpu")
    )
    return cast(Accelerator, fake)


def test_only_the_first_process_judges_the_lines_that_are_there(tmp_path: Path) -> None:
    """The others may see lines that it is about to cut, and must not stop alone."""
    run = load("demo", ["diagnose={every: 1 steps, images: 8, after: 0 steps, patience: 1, action: stop}"])
    source = open_source(run, "train")
    plan = plan_run(run, 10, 1, 2**30)
    lines = [{"step": step, "features/rank_me": 0.0} for step in (plan.alarm_from, plan.alarm_from + 1)]
    (tmp_path / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(Stopped, match=f"the features had collapsed at step {plan.alarm_from}: features/rank_me"):
        Watch(run, plan, tmp_path, source, accelerator(main=True))
    assert Watch(run, plan, tmp_path, source, accelerator(main=False)).due(plan.steps)
