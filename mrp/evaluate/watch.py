"""A look at the features of held-out images from time to time while a run trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from mrp.build import open_source
from mrp.config import Stopped
from mrp.data.augment import View
from mrp.data.source import Source
from mrp.evaluate.diagnose import Diagnosis
from mrp.monitor.alarm import Alarm, save_evidence
from mrp.monitor.metrics import METRICS, read_lines
from mrp.plan import Plan
from mrp.run import Run


class Watch:
    """Looks at the features of held-out images from time to time, and says when they have collapsed."""

    def __init__(self, run: Run, plan: Plan, folder: Path, source: Source, accelerator: Accelerator) -> None:
        held_out = open_source(run, "test") if run.data.test else source
        self._diagnosis = Diagnosis(held_out, View(run.data, train=False), run.diagnose.images, accelerator)
        self._alarm = Alarm(run.diagnose, plan.alarm_from)
        self._plan = plan
        self._folder = folder
        self._accelerator = accelerator
        before = [self._recalled() if accelerator.is_main_process else None]
        broadcast_object_list(before)  # the others may have read the file before the first process cut it
        if before[0] and run.diagnose.action == "stop":
            raise Stopped(
                f"{folder}: the features had collapsed at {before[0]}; "
                "start again with --folder FOLDER, or go on regardless with diagnose.action=warn"
            )

    def _recalled(self) -> str | None:
        """Hear what a run that is resumed has been through; when it first collapsed, and how."""
        heard = [(line["step"], self._alarm.hear(line["step"], line)) for line in read_lines(self._folder / METRICS)]
        return next((f"step {step}: {fault}" for step, fault in heard if fault), None)

    def due(self, step: int) -> bool:
        """Whether this step is one after which to look."""
        return step == self._plan.steps or step % self._plan.diagnose_every == 0

    def examine(
        self, model: torch.nn.Module, step: int, between: Callable[[], None]
    ) -> tuple[dict[str, float], str | None]:
        """The numbers for the metrics, and what is wrong with them; the first process decides for all."""
        values, features = self._diagnosis.measure(model, between)
        fault = [self._alarm.hear(step, values)]
        broadcast_object_list(fault)
        if fault[0] is None:
            return values, None
        place = self._folder / "alarms" / f"step-{step:08d}"
        if self._accelerator.is_main_process:
            save_evidence(place, values, features)
        return values, f"{self._folder}: the features have collapsed at step {step}: {fault[0]}; evidence in {place}"
