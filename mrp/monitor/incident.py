"""A step that was not finite: put on record, so that it can be repeated alone, and dealt with as the policy says."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from mrp.config import dump
from mrp.data.mixtures import Mixed
from mrp.data.order import Order, keys, share
from mrp.data.quarantine import Quarantine
from mrp.data.source import Source
from mrp.folder import environment, placed
from mrp.run import Plan, Run

INCIDENTS, FILE, CONFIG = "incidents", "incident.json", "config.yaml"
_REMEMBERED = 4  # steps: the host learns of an incident one step late


class Incidents:
    """The incidents of a run: their evidence, and how many were met, which is part of the run's state."""

    def __init__(
        self, run: Run, plan: Plan, order: Order | Mixed, source: Source, folder: Path, state: Mapping[str, Any]
    ) -> None:
        self._run, self._plan, self._order, self._source, self._folder = run, plan, order, source, folder
        self.left_out: list[list[int]] = [list(span) for span in state.get("left_out", ())]
        self._steps: deque[tuple[int, Tensor, Tensor]] = deque(maxlen=_REMEMBERED)

    def state(self) -> dict[str, Any]:
        """For the checkpoint: the spans of steps without an update, first and last, counted from one."""
        return {"left_out": self.left_out}

    def remember(self, number: int, losses: Tensor, norm: Tensor) -> None:
        """Keep a step's losses, a micro-batch each, on the device: nobody waits for them unless they are needed."""
        self._steps.append((number, losses, norm))

    @property
    def exhausted(self) -> bool:
        """Whether the next incident ends the run."""
        return self._run.guard.policy == "stop" or len(self.left_out) >= self._run.guard.limit

    def record(self, number: int, accelerator: Accelerator, quarantine: Quarantine) -> Path:
        """Write down what is known of step `number`; the folder, to which its state is still to be added."""
        place = self._folder / INCIDENTS / f"step-{number + 1:08d}"
        own = [(losses.tolist(), float(norm)) for step, losses, norm in self._steps if step == number]
        seen = gather_object([(accelerator.process_index, *own[-1])])
        if accelerator.is_main_process:
            place.mkdir(parents=True, exist_ok=True)
            (place / CONFIG).write_text(dump(placed(self._run.resolved())), encoding="utf-8")
            found = self._evidence(number, seen) | {"quarantine": quarantine.state()}
            (place / FILE).write_text(json.dumps(found, indent=1), encoding="utf-8")
        accelerator.wait_for_everyone()
        return place

    def _evidence(self, number: int, seen: list[tuple[int, list[float], float]]) -> dict[str, Any]:
        views = self._run.data.views
        slots = self._order.slots(number)
        suspects = []
        for rank, losses, _ in seen:
            for part in (part for part, loss in enumerate(losses) if not math.isfinite(loss)):
                places = self._places(rank)[part]
                suspects.append(
                    {
                        "rank": rank,
                        "micro_batch": part,
                        "samples": slots.samples[places].tolist(),
                        "keys": slots.keys[places].tolist(),
                        "names": [where(self._source, sample) for sample in slots.samples[places].tolist()],
                    }
                )
        return {
            "step": number + 1,
            "checkpoint": number,
            "policy": self._run.guard.policy,
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "processes": self._plan.processes,
            "micro_batch": self._plan.micro_batch,
            "accumulation": self._plan.accumulation,
            "ranks": [
                {"rank": rank, "losses": list(map(_word, losses)), "gradient_norm": _word(norm)}
                for rank, losses, norm in seen
            ],
            "suspects": suspects,
            "batch": {
                "samples": slots.samples.tolist(),
                "epochs": slots.epochs.tolist(),
                "keys": [keys(self._order.seed, slots.epochs, slots.samples, view).tolist() for view in range(views)],
            },
            "environment": environment(),
        }

    def _places(self, rank: int) -> Any:
        views = self._run.data.views
        group = (self._run.coupled_batch or self._run.batch) // views
        places = share(self._order.batch, group, rank, self._plan.processes)
        return places.reshape(self._plan.accumulation, -1)

    def explain(self, number: int, place: Path) -> str:
        """What the user learns of a step that ends the run."""
        spent, other = "", "guard.policy=skip"
        if self._run.guard.policy != "stop" and self.exhausted:
            spent, other = f" (guard.limit: {len(self.left_out)} before it)", "a higher guard.limit"
        elif self._run.guard.policy == "rollback":
            spent = " (guard.policy: there is no checkpoint yet to roll back to)"
        return (
            f"{self._folder}: the loss or the gradient of step {number + 1} is not finite{spent}; the weights before "
            f"it are saved as checkpoint {number}; 'mrp replay {place}' finds the cause; then start again with "
            f"--folder FOLDER and a lower optim.lr, optim.clip or precision=fp32, or go on here with {other}"
        )

    def leave_out(self, first: int, number: int) -> str:
        """Count the updates of `first` up to `number` as left out; what is said of it."""
        self.left_out.append([first + 1, number + 1])
        which = f"its update is left out (number {len(self.left_out)} of {self._run.guard.limit})"
        if self._run.guard.policy == "rollback":
            which = (
                f"the weights are those of checkpoint {first} again, and the updates and the data of steps "
                f"{first + 1} to {number + 1} are left out (number {len(self.left_out)} of {self._run.guard.limit})"
            )
        place = self._folder / INCIDENTS / f"step-{number + 1:08d}"
        return f"warning: the loss or the gradient of step {number + 1} is not finite: {which}; evidence in {place}"


def where(source: Source, sample: int) -> str:
    """What to call a sample, also where the place that knows its name cannot be read."""
    try:
        return source.where(sample)
    except OSError:
        return f"sample {sample}"


def _word(value: float) -> float | str:
    """JSON has no NaN."""
    return value if math.isfinite(value) else str(value)
