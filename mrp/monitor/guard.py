"""A non-finite loss or gradient never reaches the weights, and asking for it never stalls the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class News(NamedTuple):
    """What all processes know alike at the end of a step."""

    incident: int | None  # the step at which the run froze
    asked: bool  # whether some process was asked to end


class Guard:
    """A flag on the device that, once set, freezes every update; the host reads it one step late.

    The fused optimizer obeys the flag itself (`found_inf`), so the state before the incident is still exact when the
    host learns of it. A request to end travels the same way, so that all processes obey it at the same step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device, sum_ranks: Callable[[Tensor], Tensor]):
        self._optimizer = optimizer
        self._sum_ranks = sum_ranks
        self._no, self._yes = torch.zeros((), device=device), torch.ones((), device=device)
        self._nothing = torch.tensor([-1.0, 0.0], device=device)  # the first step that was not finite; asked to end
        self._copy = torch.full((2,), -1.0, pin_memory=device.type == "cuda")
        self._copied = torch.cuda.Event() if device.type == "cuda" else None
        self.clear()

    def clear(self) -> None:
        """Let updates through again: the incident has been dealt with."""
        self._flag = self._no
        self._state = self._nothing
        self._copy.copy_(self._nothing)

    def check(self, step: int, loss: Tensor, gradient_norm: Tensor, asked: bool = False) -> Tensor:
        """Judge the gradient of `step` on all ranks before it is applied; True (on the device) if it may be."""
        bad = ~(torch.isfinite(loss) & torch.isfinite(gradient_norm))
        told = self._sum_ranks(torch.stack([bad.float(), self._yes if asked else self._no])).clamp(max=1.0)
        flag = torch.maximum(self._flag, told[0])
        incident = torch.where(flag > self._flag, step, self._state[0])
        self._state = torch.stack([incident, torch.maximum(self._state[1], told[1])])
        self._flag = flag
        self._optimizer.found_inf = flag  # type: ignore[attr-defined]
        return flag == 0

    def news(self, now: bool = False) -> News:
        """What was known one call ago, so that the device is not waited for unless `now`."""
        if self._copied is None or now:
            incident, asked = self._state.tolist()
        else:
            self._copied.synchronize()
            incident, asked = self._copy.tolist()
            self._copy.copy_(self._state, non_blocking=True)
            self._copied.record()
        return News(int(incident) if incident >= 0 else None, asked > 0)
