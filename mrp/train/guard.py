"""A non-finite loss or gradient never reaches the weights, and asking for it never stalls the device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Guard:
    """A flag on the device that, once set, freezes every update; the host reads it one step late.

    The fused optimizer obeys the flag itself (`found_inf`), so the state before the incident is still exact when the
    host learns of it.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device, sum_ranks: Callable[[Tensor], Tensor]):
        self._optimizer = optimizer
        self._sum_ranks = sum_ranks
        self._flag = torch.zeros((), device=device)
        self._incident = torch.full((), -1.0, device=device)  # the first step that was not finite
        self._copy = torch.full((), -1.0, pin_memory=device.type == "cuda")
        self._copied = torch.cuda.Event() if device.type == "cuda" else None

    def check(self, step: int, loss: Tensor, gradient_norm: Tensor) -> Tensor:
        """Judge the gradient of `step` on all ranks before it is applied; True (on the device) if it may be."""
        bad = ~(torch.isfinite(loss) & torch.isfinite(gradient_norm))
        flag = torch.maximum(self._flag, self._sum_ranks(bad.float()).clamp(max=1.0))
        self._incident = torch.where(flag > self._flag, step, self._incident)
        self._flag = flag
        self._optimizer.found_inf = flag  # type: ignore[attr-defined]
        return flag == 0

    def incident(self, now: bool = False) -> int | None:
        """The step at which the run froze, as known one call ago, so that the device is not waited for unless `now`."""
        if self._copied is None or now:
            known = int(self._incident)
        else:
            self._copied.synchronize()
            known = int(self._copy)
            self._copy.copy_(self._incident, non_blocking=True)
            self._copied.record()
        return known if known >= 0 else None
