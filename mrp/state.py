"""The state of a run, beside its position: saved together, brought back together, kept clear of what is not finite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from mrp.checkpoint import checkpoints as checkpoint
from mrp.checkpoint.checkpoints import Checkpoints
from mrp.config import Stopped
from mrp.data.mixtures import Mixed
from mrp.data.order import Order
from mrp.data.quarantine import Quarantine
from mrp.data.source import Source
from mrp.monitor.guard import Guard
from mrp.monitor.incident import Incidents
from mrp.optim import average
from mrp.optim.average import Average
from mrp.run import Run
from mrp.start import agree, chosen
from mrp.step import Step


@dataclass(frozen=True, slots=True)
class State:
    """All that a checkpoint holds; every process has one, and calls what is called together."""

    run: Run
    folder: Path
    accelerator: Accelerator
    source: Source
    order: Order | Mixed
    step: Step
    optimizer: torch.optim.Optimizer
    averaged: Average | None
    quarantine: Quarantine
    incidents: Incidents
    checkpoints: Checkpoints

    def save(self, at: int, wait: bool = False) -> None:
        """A checkpoint of the state after this step; `wait` until it is on the disk."""
        self.quarantine.add(gather_object(self.quarantine.state()))
        if self.accelerator.is_main_process:
            self.quarantine.write(self.folder)
        data = self.order.state(at) | {"manifest": self.source.identity, "quarantine": self.quarantine.state()}
        state = {"data": data, "guard": self.incidents.state()}
        groups = {average.GROUP: self.averaged.tensors()} if self.averaged else {}
        self.checkpoints.save(at, self.step, self.optimizer, state, groups, wait=wait)
        if wait:
            self.accelerator.wait_for_everyone()

    def overcome(self, number: int, guard: Guard, say: Callable[[str], object]) -> int:
        """Put a step that was not finite on record and do as the policy says; the step to go on with."""
        main, here = self.accelerator.is_main_process, self.run.checkpoint.here()
        place = self.incidents.record(number, self.accelerator, self.quarantine)
        Checkpoints(place, here, every=1, main=main).save(number, self.step, self.optimizer, {}, wait=True)
        rolling = self.run.guard.policy == "rollback" and not self.incidents.exhausted
        first = self._roll_back() if rolling else number
        if first is None or self.incidents.exhausted:
            self.save(number, wait=True)
            raise Stopped(self.incidents.explain(number, place))
        say(self.incidents.leave_out(first, number))
        guard.clear()
        self.save(number + 1, wait=True)  # or a kill would forget it
        return number + 1

    def _roll_back(self) -> int | None:
        """Take everything from the newest checkpoint, if there is one; its step."""
        self.checkpoints.finish()
        self.accelerator.wait_for_everyone()
        good = chosen(self.accelerator, self.folder)
        agree(self.accelerator, self.folder, good.step if good else 0, self.source.identity)
        if good is None:
            return None
        step = checkpoint.restore(good, self.step, self.optimizer)
        if self.averaged:
            self.averaged.restore(good)
        return step
