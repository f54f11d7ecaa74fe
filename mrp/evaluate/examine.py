"""Held-out images, looked at while a run trains: how its features fare, and how good its answers are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator
from torch import nn

from mrp.data.source import Source
from mrp.evaluate.judge import Judge
from mrp.evaluate.watch import Watch
from mrp.monitor.metrics import INTERRUPTED
from mrp.optim.average import Average
from mrp.plan import Plan
from mrp.processes.signals import Interrupted
from mrp.run import Run


class Examination:
    """What is due after a step, of the watch over the features and of the verdict on the test data."""

    def __init__(
        self,
        run: Run,
        plan: Plan,
        folder: Path,
        source: Source,
        unseen: Source | None,
        averaged: Average | None,
        accelerator: Accelerator,
    ) -> None:
        self._watch = Watch(run, plan, folder, source, accelerator) if plan.diagnose_every else None
        self._judge = Judge(run, plan, folder, unseen, averaged, accelerator) if unseen else None

    def due(self, step: int) -> bool:
        """Whether this step is one after which to look."""
        return any(one is not None and one.due(step) for one in (self._watch, self._judge))

    def measure(self, model: nn.Module, step: int, pause: Callable[[], None]) -> tuple[dict[str, float], str | None]:
        """The numbers, and what is wrong with them; left unfinished where the run is asked to end."""
        values, fault = dict[str, float](), None
        try:
            if self._watch and self._watch.due(step):
                values, fault = self._watch.examine(model, step, pause)
            if self._judge and self._judge.due(step):
                values |= self._judge.examine(model, step, pause)
            return values, fault
        except Interrupted:
            return {INTERRUPTED: 1.0}, None
