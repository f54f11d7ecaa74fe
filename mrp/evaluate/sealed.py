"""A test set that no choice can look at, because it is read only after the choice has been made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


class Decision:
    """All that was chosen and learned, from training images alone."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class NothingToChoose(Decision):
    """The decision of a measurement that chooses nothing, and why."""

    because: str


class Sealed(Generic[T]):
    """The test set of one measurement: it opens once, and only for a decision that has been made."""

    def __init__(self, read: Callable[[], T]) -> None:
        self._read: Callable[[], T] | None = read

    def open(self, decision: Decision) -> T:
        """Reads the test set and returns what was read."""
        assert isinstance(decision, Decision), "the test set opens after the choice"
        assert self._read is not None, "the test set has been opened before: whatever is chosen now has seen it"
        read, self._read = self._read, None
        return read()
