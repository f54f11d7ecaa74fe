"""Logistic regression by L-BFGS, on standardised features in double precision.

The loss is convex, so there is one answer and no recipe to tune. The one free number, the L2 strength, is chosen on a
held-out part of the training set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mrp import progress
from mrp.config import ConfigError
from mrp.evaluate.answers import best_class
from mrp.evaluate.split import Split

STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


class Coordinates(NamedTuple):
    """The affine map to the coordinates in which the classifier is fitted: standardised, along the principal axes.

    The penalty does not change under the rotation, so the answer is that of plain standardisation, but correlated
    features no longer slow L-BFGS down.
    """

    mean: Tensor  # D
    axes: Tensor  # D D

    @classmethod
    def of(cls, train: Tensor) -> Coordinates:
        """Takes them from a training set; a feature that is constant up to rounding becomes zero."""
        exact = train.double()
        mean, deviation = exact.mean(dim=0), exact.std(dim=0, correction=0)
        scale = deviation.where(deviation > 1e-6 * mean.abs(), torch.inf).reciprocal()
        standard = (exact - mean) * scale
        return cls(mean, scale[:, None] * torch.linalg.eigh(standard.T @ standard).eigenvectors)

    def __call__(self, features: Tensor) -> Tensor:
        """Maps features (N D) to inputs of the classifier (N D, float64)."""
        return (features.double() - self.mean) @ self.axes


@dataclass(frozen=True, slots=True)
class Logistic:
    """A classifier that was fitted to a training set."""

    coordinates: Coordinates
    weights: Tensor  # D+1 classes
    classes: Tensor
    l2: float
    train_accuracy: float
    held_out: dict[str, float]  # accuracy on the held-out part for each L2 strength
    num_train: int

    def predict(self, test: Tensor, among: Tensor | None = None) -> Tensor:
        """Returns the class of each row; with `among`, one of these classes (of those that training has)."""
        known = None if among is None else torch.isin(self.classes, among).nonzero()[:, 0]
        return self.classes[best_class(_logits(self.coordinates(test), self.weights), known)]

    def about(self) -> dict[str, Any]:
        """Returns how the classifier was chosen, as plain data."""
        return {name: getattr(self, name) for name in ("l2", "train_accuracy", "held_out", "num_train")}


def train(
    features: Tensor,  # N D
    labels: Tensor,  # N
    parts: Split,
    strengths: Sequence[float] = STRENGTHS,
) -> Logistic:
    """Chooses the L2 strength on the held-out part, then fits on all of the training set."""
    classes, targets = torch.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ConfigError(f"a linear probe needs at least two classes; every training label is {int(classes[0])}")
    coordinates = Coordinates.of(features)
    inputs = coordinates(features)
    l2, held_out, start = _choose(inputs, targets, parts, strengths)
    weights = fit(inputs, targets, l2, start)
    accuracies = {f"{strength:g}": accuracy for strength, accuracy in held_out.items()}
    return Logistic(coordinates, weights, classes, l2, _accuracy(inputs, targets, weights), accuracies, len(features))


def fit(inputs: Tensor, targets: Tensor, l2: float, start: Tensor, iterations: int = 500, chunk: int = 2048) -> Tensor:
    """Returns the minimum of mean cross-entropy + l2 / 2 ||W||^2, found from `start` (D+1 classes).

    The last row is the bias, which is not penalised.
    """
    parts = list(zip(torch.split(inputs, chunk), torch.split(targets, chunk), strict=True))
    # The curvature along each input, taken as independent: dividing it out makes the problem nearly round.
    softness = sum(_softness(rows, start) for rows, _ in parts) / len(inputs)
    curvature = F.pad(inputs.square().mean(dim=0) * softness + l2, (0, 1), value=softness)  # D+1
    scale = curvature.clamp_min(1e-12).rsqrt()[:, None]
    free = (start / scale).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [free], max_iter=iterations, tolerance_grad=1e-5, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def loss() -> float:
        progress.beat()
        optimizer.zero_grad()
        penalty = l2 / 2 * (free * scale)[:-1].square().sum()
        penalty.backward()
        total = penalty.item()
        for rows, answers in parts:  # a chunk at a time, so that the logits of all samples never exist at once
            part = F.cross_entropy(_logits(rows, free * scale), answers, reduction="sum") / len(inputs)
            part.backward()
            total += part.item()
        return total

    optimizer.step(loss)
    return free.detach() * scale


def predict(inputs: Tensor, weights: Tensor) -> Tensor:
    """Returns the most likely class of each row of inputs."""
    return _logits(inputs, weights).argmax(dim=1)


def _choose(
    inputs: Tensor, targets: Tensor, parts: Split, strengths: Sequence[float]
) -> tuple[float, dict[float, float], Tensor]:
    """Returns the best strength (the stronger of equals), the accuracy of each strength, and the best one's weights."""
    fitting, held_out = (torch.from_numpy(rows) for rows in parts)
    weights = inputs.new_zeros(inputs.shape[1] + 1, int(targets.max()) + 1)
    tried: list[tuple[float, float, Tensor]] = []
    for l2 in sorted(strengths, reverse=True):  # from strong to weak, each starting where the last one ended
        weights = fit(inputs[fitting], targets[fitting], l2, weights)
        tried.append((l2, _accuracy(inputs[held_out], targets[held_out], weights), weights))
    l2, _, weights = max(tried, key=lambda item: item[1])
    return l2, {l2: accuracy for l2, accuracy, _ in tried}, weights


def _logits(inputs: Tensor, weights: Tensor) -> Tensor:
    return torch.addmm(weights[-1], inputs, weights[:-1])


def _softness(inputs: Tensor, weights: Tensor) -> float:
    """Returns the curvature p (1 - p) of the cross-entropy, averaged over classes and summed over rows."""
    shares = _logits(inputs, weights).softmax(dim=1)
    return float((shares * (1 - shares)).mean(dim=1).sum())


def _accuracy(inputs: Tensor, targets: Tensor, weights: Tensor) -> float:
    return float((predict(inputs, weights) == targets).double().mean())
