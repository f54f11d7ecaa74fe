"""Numbers of a method's options that may change over the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mrp.schedules import Length, Schedule, extremes, main_value

LEVELS = 8


class Scheduled(nn.Module):
    """A number that a method takes from its options; called, it returns the value in this step.

    A plain number stays one. One that changes is a tensor on the device, so that a compiled step serves all values. It
    is not saved, since it follows from the step and the run's length.
    """

    value: Tensor

    def __init__(self, number: float | Schedule, option: str) -> None:
        """`option` is the number's name among the options of the method, such as `teacher.decay`."""
        super().__init__()
        self.option = option
        self.number = number
        self.changes = isinstance(number, Schedule)
        self.now = main_value(number)  # the same on the host
        self.register_buffer("value", torch.tensor(self.now) if self.changes else None, persistent=False)

    def forward(self) -> float | Tensor:
        """Returns the number, or a tensor that holds it in this step."""
        return self.value if self.changes else self.now

    def set(self, step: int, length: Length) -> None:
        """Takes the value of a step, counted from zero."""
        if isinstance(self.number, Schedule):
            self.now = self.number.at(step, length)
            self.value.fill_(self.now)


class ScheduledCount(Scheduled):
    """A whole number that follows from one that may change, such as the visible patches from the share of hidden ones.

    Shapes depend on it, so each of its values is compiled by itself. Where a schedule would pass through more than
    LEVELS values, it takes LEVELS of them at even distances. Before the first step it is the largest, which needs most
    memory.
    """

    def __init__(self, number: float | Schedule, option: str, count: Callable[[float], int]) -> None:
        super().__init__(number, option)
        self._count = count
        self._least, self._most = sorted(count(value) for value in extremes(number))
        jumps = isinstance(number, Schedule) and number.kind in ("constant", "steps") and len(number.values) <= LEVELS
        self._coarse = self._most - self._least >= LEVELS and not jumps
        self.count = self._most

    @contextmanager
    def fixed(self, number: float) -> Iterator[None]:
        """Takes the count that follows from another number, in this block."""
        usual, self.count = self.count, self._count(number)
        try:
            yield
        finally:
            self.count = usual

    def set(self, step: int, length: Length) -> None:
        """Takes the value of a step, and the count that follows from it."""
        super().set(step, length)
        if self.changes:
            self.count = self._count(self.now)
        if self._coarse:
            size = (self._most - self._least) / (LEVELS - 1)
            self.count = self._least + round(round((self.count - self._least) / size) * size)
