"""Held-out images, looked at while a run trains: how its features fare, and how good its answers are."""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator
from torch import nn

from mrp.data.source import Source
from mrp.evaluate.judge import Judge
from mrp.evaluate.watch import Watch
from mrp.monitor.tracker import INTERRUPTED
from mrp.monitor.watchdog import Watchdog
from mrp.optim.average import Average
from mrp.processes.signals import Interrupted, Signals
from mrp.run import Plan, Run
from mrp.start import any_of


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
        signals: Signals,
        watchdog: Watchdog,
    ) -> None:
        self._watch = Watch(run, plan, folder, source, accelerator) if plan.diagnose_every else None
        self._judge = Judge(run, plan, folder, unseen, averaged, accelerator) if unseen else None
        self._accelerator, self._signals, self._watchdog = accelerator, signals, watchdog

    def due(self, step: int) -> bool:
        """Whether this step is one after which to look."""
        return any(one is not None and one.due(step) for one in (self._watch, self._judge))

    def examine(self, model: nn.Module, step: int) -> tuple[dict[str, float], str | None]:
        """The numbers, and what is wrong with them; left unfinished where the run is asked to end."""

        def between() -> None:
            self._watchdog.at("evaluates", step)
            if any_of(self._accelerator, self._signals.asked is not None):
                raise Interrupted

        values, fault = dict[str, float](), None
        try:
            if self._watch and self._watch.due(step):
                values, fault = self._watch.examine(model, step, between)
            if self._judge and self._judge.due(step):
                values |= self._judge.examine(model, step, between)
            return values, fault
        except Interrupted:
            return {INTERRUPTED: 1.0}, None
