"""Which features a network's kernels hold, and how often it errs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from mrp.lab.multiview.constants import Settings

STUDENT_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # two-sided, 1 to 9 degrees of freedom


class Spread(NamedTuple):
    """A mean over seeds, and the half width of its 95 % interval."""

    mean: float
    half: float

    @classmethod
    def of(cls, values: Tensor) -> Spread:
        """Of one number a seed."""
        values = values.double()
        freedom = len(values) - 1
        quantile = STUDENT_95[freedom - 1] if freedom <= len(STUDENT_95) else 1.96 + 2.5 / freedom
        return cls(float(values.mean()), quantile * float(values.std()) / math.sqrt(len(values)))


@dataclass(frozen=True, slots=True)
class Held:
    """Which kernel holds which feature; all tensors have one row a seed."""

    pairs: Tensor  # seeds K F bool
    strengths: Tensor  # seeds F: the largest inner product of a kernel with the feature
    cosines: Tensor  # seeds F: the largest cosine

    @property
    def captured(self) -> Tensor:
        """The share of the 2k features that at least one kernel holds."""
        return self.pairs.any(dim=1).double().mean(dim=-1)

    def kernels_with(self, num: int) -> Tensor:
        """The share of kernels that hold so many features."""
        return (self.pairs.sum(dim=2) == num).double().mean(dim=-1)

    @property
    def most_one(self) -> Tensor:
        """The share of kernels that hold at most one feature."""
        return (self.pairs.sum(dim=2) <= 1).double().mean(dim=-1)

    @property
    def kernels_a_feature(self) -> Tensor:
        """How many kernels a feature has, on average."""
        return self.pairs.sum(dim=1).double().mean(dim=-1)


def correlations(settings: Settings, kernels: Tensor) -> Tensor:
    """Inner products of kernels and features, which are the first axes; seeds K F."""
    return kernels[..., : settings.features]


def held(settings: Settings, kernels: Tensor, cosine: float | None = None) -> Held:
    """A kernel holds a feature if it is close to it and takes a patch that carries it into its linear part.

    Close: a cosine of `cosine` or more. Linear part: an inner product of t or more, so at strength one.
    """
    products = correlations(settings, kernels)
    cosines = products / kernels.norm(dim=-1, keepdim=True)
    pairs = (cosines >= (cosine or settings.cosine)) & (products >= settings.t)
    return Held(pairs, products.amax(dim=1), cosines.amax(dim=1))


def summary(settings: Settings, kernels: Tensor) -> dict[str, Spread]:
    """What is said of the kernels, over seeds."""
    found = held(settings, kernels)
    loose, strict = (held(settings, kernels, cosine).captured for cosine in (0.3, 0.7))
    measures = {
        "captured": found.captured,
        "captured at cosine 0.3": loose,
        "captured at cosine 0.7": strict,
        "weakest feature's largest product": found.strengths.amin(dim=-1),
        "mean feature's largest product": found.strengths.mean(dim=-1),
        "mean feature's largest cosine": found.cosines.mean(dim=-1),
        "kernels without a feature": found.kernels_with(0),
        "kernels with one": found.kernels_with(1),
        "kernels with two or more": 1 - found.most_one,
        "kernels a feature": found.kernels_a_feature,
    }
    return {name: Spread.of(values) for name, values in measures.items()}
