"""A mean over images with its interval, and what it says of a claim."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from mrp.evaluate.interval import Z_95


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over images, and the half width of its 95 % interval."""

    value: float
    error: float

    @classmethod
    def of(cls, values: Tensor) -> Mean:
        """Of one number an image."""
        values = values.double()
        return cls(float(values.mean()), Z_95 * float(values.std()) / math.sqrt(len(values)))

    @property
    def verdict(self) -> str:
        """Of a gap that should not be negative."""
        return "holds" if self.value - self.error >= 0 else "fails" if self.value + self.error < 0 else "not told apart"

    def __str__(self) -> str:
        return f"{self.value:.3f} +- {self.error:.3f}"
