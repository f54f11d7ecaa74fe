"""Which features a network's kernels hold."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mrp.lab.estimate import Estimate
from mrp.lab.multiview.constants import Constants


@dataclass(frozen=True, slots=True)
class Held:
    """Which kernel holds which feature; the measures have one value per seed."""

    pairs: Tensor  # seeds K F bool
    products: Tensor  # seeds F: the largest inner product of a kernel with the feature
    cosines: Tensor  # seeds F: the largest cosine

    @property
    def captured(self) -> Tensor:
        """The share of the 2k features that at least one kernel holds."""
        return self.pairs.any(dim=1).double().mean(dim=-1)

    def kernels_with(self, num_features: int) -> Tensor:
        """Returns the share of kernels that hold exactly so many features."""
        return (self.pairs.sum(dim=2) == num_features).double().mean(dim=-1)


def correlations(constants: Constants, kernels: Tensor) -> Tensor:
    """Returns the inner products of kernels and features (seeds K F): features are the first axes."""
    return kernels[..., : constants.features]


def held(constants: Constants, kernels: Tensor, cosine: float | None = None) -> Held:
    """Returns which kernel holds which feature.

    A kernel holds a feature if their cosine is at least `cosine`, and their inner product at least t, so that a patch
    with the feature at strength one reaches the linear part of the activation.
    """
    products = correlations(constants, kernels)
    cosines = products / kernels.norm(dim=-1, keepdim=True)
    pairs = (cosines >= (cosine or constants.cosine)) & (products >= constants.t)
    return Held(pairs, products.amax(dim=1), cosines.amax(dim=1))


def summary(constants: Constants, kernels: Tensor) -> dict[str, Estimate]:
    """Returns all measures of the kernels, as means over seeds."""
    features = held(constants, kernels)
    measures = {
        "captured": features.captured,
        "captured at cosine 0.3": held(constants, kernels, 0.3).captured,
        "captured at cosine 0.7": held(constants, kernels, 0.7).captured,
        "weakest feature's largest product": features.products.amin(dim=-1),
        "mean feature's largest product": features.products.mean(dim=-1),
        "mean feature's largest cosine": features.cosines.mean(dim=-1),
        "kernels without a feature": features.kernels_with(0),
        "kernels with one": features.kernels_with(1),
        "kernels with two or more": 1 - (features.pairs.sum(dim=2) <= 1).double().mean(dim=-1),
        "kernels per feature": features.pairs.sum(dim=1).double().mean(dim=-1),
    }
    return {name: Estimate.over_seeds(values) for name, values in measures.items()}
