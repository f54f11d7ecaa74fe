"""Keeps a loss or gradient that is not finite away from the weights, without making the device wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class News(NamedTuple):
    """What the guard tells at the end of a step; it is the same on every process."""

    incident: int | None  # the first step that was not finite: no update was applied from there on
    asked: bool  # whether some process was asked to end


class Guard:
    """A flag on the device that, once set, freezes every update; the host reads it one step late.

    The fused optimizer obeys the flag itself (`found_inf`), so the state before the incident is still exact when the
    host learns of it. A request to end travels the same way, so that all processes obey it at the same step.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, device: torch.device, sum_processes: Callable[[Tensor], Tensor]
    ) -> None:
        self._optimizer = optimizer
        self._sum_processes = sum_processes
        self._no, self._yes = torch.zeros((), device=device), torch.ones((), device=device)
        self._nothing = torch.tensor([-1, 0], device=device)  # the first step that was not finite; asked to end
        self._copy = torch.full((2,), -1, pin_memory=device.type == "cuda")
        self._copied = torch.cuda.Event() if device.type == "cuda" else None
        self.clear()

    def clear(self) -> None:
        """Lets updates through again, after an incident has been dealt with."""
        self._flag = self._no
        self._state = self._nothing
        self._copy.copy_(self._nothing)

    def check(self, step: int, loss: Tensor, gradient_norm: Tensor, asked: bool = False) -> Tensor:
        """Checks a step on all processes before its update; returns, on the device, whether the update is applied."""
        bad = ~(torch.isfinite(loss) & torch.isfinite(gradient_norm))
        local = torch.stack([bad.float(), self._yes if asked else self._no])
        bad_anywhere, asked_anywhere = self._sum_processes(local).clamp(max=1.0)
        flag = torch.maximum(self._flag, bad_anywhere)
        incident = torch.where(flag > self._flag, step, self._state[0])
        self._state = torch.stack([incident, torch.maximum(self._state[1], asked_anywhere.long())])
        self._flag = flag
        self._optimizer.found_inf = flag  # type: ignore[attr-defined]
        return flag == 0

    def news(self, now: bool = False) -> News:
        """Returns what was known one call ago, so that the host need not wait; with `now`, what is known now."""
        if self._copied is None or now:
            incident, asked = self._state.tolist()
        else:
            self._copied.synchronize()
            incident, asked = self._copy.tolist()
            self._copy.copy_(self._state, non_blocking=True)
            self._copied.record()
        return News(incident if incident >= 0 else None, asked > 0)
