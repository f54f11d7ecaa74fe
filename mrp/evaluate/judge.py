"""The run's own verdicts while it trains: its weights on the test data, and their average beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from mrp.data.augment import View
from mrp.data.source import Source
from mrp.evaluate.validation import Validation
from mrp.optim.average import Average
from mrp.plan import Plan
from mrp.processes.join import Accelerator
from mrp.run import Run


class Judge:
    """Validates when that is due; the last verdicts, in full, go into the run's folder."""

    def __init__(
        self, run: Run, plan: Plan, folder: Path, source: Source, average: Average | None, accelerator: Accelerator
    ) -> None:
        view = View(run.data, train=False)
        self._validation = Validation(source, view, plan.micro_batch, run.machine.workers, accelerator)
        self._plan = plan
        self._folder = folder
        self._average = average
        self._main = accelerator.is_main_process

    def due(self, step: int) -> bool:
        """Whether this step is one after which to look."""
        return step == self._plan.steps or step % self._plan.validate_every == 0

    def examine(self, model: nn.Module, step: int, between: Callable[[], None]) -> dict[str, float]:
        """The numbers for the metrics."""
        verdicts = {"student": self._validation.measure(model, between)}
        values = verdicts["student"].metrics("validation")
        if self._average is not None:
            with self._average.in_place():
                verdicts["average"] = self._validation.measure(model, between)
            values |= verdicts["average"].metrics("validation/average")
        if self._main and step == self._plan.steps:
            self._validation.write(self._folder, step, verdicts)
        return values
