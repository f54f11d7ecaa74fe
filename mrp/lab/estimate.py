"""A measured value with its 95 % interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from mrp.evaluate.interval import Z_95, student_95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and the half width of its 95 % interval."""

    value: float
    error: float

    @classmethod
    def over_images(cls, values: Tensor) -> Estimate:
        """Returns the mean of one value per image, with the normal interval, because there are many images."""
        return _mean(values, Z_95)

    @classmethod
    def over_seeds(cls, values: Tensor) -> Estimate:
        """Returns the mean of one value per seed, with Student's interval, because there are few seeds."""
        return _mean(values, student_95(len(values) - 1))

    @property
    def low(self) -> float:
        """The lower end of the interval."""
        return self.value - self.error

    @property
    def high(self) -> float:
        """The upper end of the interval."""
        return self.value + self.error

    @property
    def verdict(self) -> str:
        """Whether this is at least 0, as a theorem says of a gap: the whole interval has to agree."""
        return "holds" if self.low >= 0 else "fails" if self.high < 0 else "not told apart"

    def __str__(self) -> str:
        return f"{self.value:.3f} +- {self.error:.3f}"


def _mean(values: Tensor, quantile: float) -> Estimate:
    values = values.double()
    return Estimate(float(values.mean()), quantile * float(values.std()) / math.sqrt(len(values)))
