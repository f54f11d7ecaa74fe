"""Records a step whose loss or gradient was not finite, so that it can be repeated alone, and applies the policy."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from mrp.batch import Division
from mrp.config import dump
from mrp.data.mixtures import Mixed
from mrp.data.order import Order, keys, share
from mrp.data.quarantine import Quarantine
from mrp.data.source import Source
from mrp.environment import environment
from mrp.files import step_name, write_atomically
from mrp.folder import now
from mrp.monitor.config import Guard

INCIDENTS, FILE, CONFIG = "incidents", "incident.json", "config.yaml"
_REMEMBERED = 4  # steps: the host learns of an incident one step late


class Incidents:
    """The incidents of a run: their evidence, and which updates were left out, which is part of the run's state."""

    def __init__(
        self,
        guard: Guard,
        folder: Path,
        config: Mapping[str, Any],
        division: Division,
        order: Order | Mixed,
        source: Source,
        state: Mapping[str, Any],
    ) -> None:
        self._guard, self._folder, self._config = guard, folder, config
        self._division, self._order, self._source = division, order, source
        self.left_out: list[list[int]] = [list(span) for span in state.get("left_out", ())]
        self._steps: deque[tuple[int, Tensor, Tensor]] = deque(maxlen=_REMEMBERED)

    def state(self) -> dict[str, Any]:
        """Returns, for the checkpoint, the spans of steps without an update: first and last, counted from one."""
        return {"left_out": self.left_out}

    def remember(self, number: int, losses: Tensor, norm: Tensor) -> None:
        """Keeps the losses of a step's micro-batches on the device, where they stay unless an incident needs them."""
        self._steps.append((number, losses, norm))

    @property
    def exhausted(self) -> bool:
        """Returns whether the next incident ends the run."""
        return self._guard.policy == "stop" or len(self.left_out) >= self._guard.limit

    @property
    def rolls_back(self) -> bool:
        """Returns whether the next incident takes the run back to its newest checkpoint."""
        return self._guard.policy == "rollback" and not self.exhausted

    def record(self, number: int, accelerator: Accelerator, quarantine: Quarantine) -> Path:
        """Writes down what is known of step `number`; returns the folder, to which the caller adds the run's state."""
        folder = self._folder / INCIDENTS / step_name(number + 1)
        local = [(losses.tolist(), float(norm)) for step, losses, norm in self._steps if step == number]
        ranks = gather_object([(accelerator.process_index, *local[-1])])
        if accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / CONFIG, dump(self._config))
            evidence = self._evidence(number, ranks) | {"quarantine": quarantine.state()}
            write_atomically(folder / FILE, json.dumps(evidence, indent=1))
        accelerator.wait_for_everyone()
        return folder

    def _evidence(self, number: int, ranks: list[tuple[int, list[float], float]]) -> dict[str, Any]:
        slots = self._order.slots(number)
        suspects = []
        for rank, losses, _ in ranks:
            for part in (index for index, loss in enumerate(losses) if not math.isfinite(loss)):
                positions = self._positions(rank)[part]
                samples = slots.samples[positions].tolist()
                suspects.append(
                    {
                        "rank": rank,
                        "micro_batch": part,
                        "samples": samples,
                        "keys": slots.keys[positions].tolist(),
                        "names": [where(self._source, sample) for sample in samples],
                    }
                )
        views = range(self._division.views)
        return {
            "step": number + 1,
            "checkpoint": number,
            "policy": self._guard.policy,
            "time": now(),
            "order_version": self._order.version,
            "data": self._source.identity,
            "processes": self._division.processes,
            "micro_batch": self._division.micro_batch,
            "accumulation": self._division.accumulation,
            "ranks": [
                {"rank": rank, "losses": list(map(_json_number, losses)), "gradient_norm": _json_number(norm)}
                for rank, losses, norm in ranks
            ],
            "suspects": suspects,
            "batch": {
                "samples": slots.samples.tolist(),
                "epochs": slots.epochs.tolist(),
                "keys": [keys(self._order.seed, slots.epochs, slots.samples, view).tolist() for view in views],
            },
            "environment": environment(),
        }

    def _positions(self, rank: int) -> Any:
        """Returns the positions in the global batch of each micro-batch of a process."""
        division = self._division
        positions = share(self._order.batch, division.group // division.views, rank, division.processes)
        return positions.reshape(division.accumulation, -1)

    def explain(self, number: int, folder: Path) -> str:
        """Returns the message about a step that ends the run."""
        spent, other = "", "guard.policy=skip"
        if self._guard.policy != "stop" and self.exhausted:
            spent, other = f" (guard.limit: {len(self.left_out)} before it)", "a higher guard.limit"
        elif self._guard.policy == "rollback":
            spent = " (guard.policy: there is no checkpoint yet to roll back to)"
        return (
            f"{self._folder}: the loss or the gradient of step {number + 1} is not finite{spent}; the weights before "
            f"it are saved as checkpoint {number}; 'mrp replay {folder}' finds the cause; then start again with "
            f"--folder FOLDER and a lower optim.lr, optim.clip or precision=fp32, or go on here with {other}"
        )

    def leave_out(self, first: int, number: int) -> str:
        """Counts the updates of `first` up to `number` as left out; returns the warning."""
        self.left_out.append([first + 1, number + 1])
        count = f"number {len(self.left_out)} of {self._guard.limit}"
        consequence = f"its update is left out ({count})"
        if self._guard.policy == "rollback":
            consequence = (
                f"the weights are those of checkpoint {first} again, and the updates and the data of steps "
                f"{first + 1} to {number + 1} are left out ({count})"
            )
        folder = self._folder / INCIDENTS / step_name(number + 1)
        return (
            f"warning: the loss or the gradient of step {number + 1} is not finite: {consequence}; evidence in {folder}"
        )


def where(source: Source, sample: int) -> str:
    """Returns a sample's name, or its number where the file that holds its name cannot be read."""
    try:
        return source.where(sample)
    except OSError:
        return f"sample {sample}"


def _json_number(value: float) -> float | str:
    """Returns a number for JSON, which has no NaN: a value that is not finite becomes text."""
    return value if math.isfinite(value) else str(value)
