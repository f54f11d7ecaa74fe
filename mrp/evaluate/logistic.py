"""Logistic regression by L-BFGS, on standardised features in double precision.

The loss is convex, so there is one answer and no recipe to tune. The one free number, the L2 strength, is chosen on a
held-out part of the training set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


class OfClasses:
    """Cross-entropy, of which the strength is chosen by accuracy; targets are numbers of classes (N)."""

    def count(self, targets: Tensor) -> int:
        """Returns the number of rows, over which the mean is taken."""
        return len(targets)

    def summed(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Returns the cross-entropy, summed over rows."""
        return F.cross_entropy(logits, targets, reduction="sum")

    def curvature(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Returns the second derivative in the logits: p (1 - p), averaged over classes and summed over rows."""
        shares = logits.softmax(dim=1)
        return (shares * (1 - shares)).mean(dim=1).sum()

    def score(self, logits: Tensor, targets: Tensor) -> float:
        """Returns the accuracy, from which the strength is chosen."""
        return float((logits.argmax(dim=1) == targets).double().mean())


class OfTags:
    """Binary cross-entropy of each tag, over the images of which it is known; targets (N tags) are 1, 0 and NaN."""

    def count(self, targets: Tensor) -> Tensor:
        """Returns of how many images each tag is known."""
        return (~targets.isnan()).sum(dim=0).clamp_min(1)

    def summed(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Returns the loss of each tag, summed over images."""
        known = (~targets.isnan()).to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, targets.nan_to_num(), known, reduction="none").sum(dim=0)

    def curvature(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Returns p (1 - p) of each tag, summed over images."""
        shares = logits.sigmoid()
        return (shares * (1 - shares)).masked_fill(targets.isnan(), 0).sum(dim=0)

    def score(self, logits: Tensor, targets: Tensor) -> float:
        """Returns the loss with a minus, as a mean over the tags that are known of some image."""
        known = ~targets.isnan().all(dim=0)
        return -float((self.summed(logits, targets) / self.count(targets))[known].mean())


CLASSES, TAGS = OfClasses(), OfTags()
Loss = OfClasses | OfTags  # what is minimised beside the penalty, as a mean over rows, or of each output over its own


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
        return self.classes[best_class(logits_of(self.coordinates(test), self.weights), known)]

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
    tried = list(path(inputs, targets, parts, len(classes), strengths))
    l2, _, start = max(tried, key=lambda trial: trial.score)  # the stronger of equals
    weights = fit(inputs, targets, l2, start)
    accuracies = {f"{trial.l2:g}": trial.score for trial in tried}
    accuracy = CLASSES.score(logits_of(inputs, weights), targets)
    return Logistic(coordinates, weights, classes, l2, accuracy, accuracies, len(features))


def fit(
    inputs: Tensor, targets: Tensor, l2: float, start: Tensor, iterations: int = 500, chunk: int = 2048,
    loss: Loss = CLASSES,
) -> Tensor:  # fmt: skip
    """Returns the minimum of loss + l2 / 2 ||W||^2, found from `start` (D+1 outputs).

    The last row is the bias, which is not penalised.
    """
    parts = list(zip(torch.split(inputs, chunk), torch.split(targets, chunk), strict=True))
    count = loss.count(targets)
    # The curvature along each input, taken as independent: dividing it out makes the problem nearly round.
    softness = sum(loss.curvature(logits_of(rows, start), answers) for rows, answers in parts) / count
    softness = torch.as_tensor(softness).reshape(1, -1)
    curvature = inputs.square().mean(dim=0)[:, None] * softness + l2
    scale = torch.cat([curvature, softness]).clamp_min(1e-12).rsqrt()  # D+1 outputs, or D+1 and one for all of them
    free = (start / scale).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [free], max_iter=iterations, tolerance_grad=1e-5, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def whole() -> float:
        progress.beat()
        optimizer.zero_grad()
        penalty = l2 / 2 * (free * scale)[:-1].square().sum()
        penalty.backward()
        total = penalty.item()
        for rows, answers in parts:  # a chunk at a time, so that the logits of all samples never exist at once
            part = (loss.summed(logits_of(rows, free * scale), answers) / count).sum()
            part.backward()
            total += part.item()
        return total

    optimizer.step(whole)
    return free.detach() * scale


class Trial(NamedTuple):
    """A strength, how good it is on the held-out part, and the weights that were fitted on the other part."""

    l2: float
    score: float
    weights: Tensor


def path(
    inputs: Tensor, targets: Tensor, parts: Split, outputs: int, strengths: Sequence[float], loss: Loss = CLASSES
) -> Iterator[Trial]:
    """Yields the strengths as they are tried, from strong to weak, each starting where the last one ended."""
    fitting, held_out = (torch.from_numpy(rows).to(inputs.device) for rows in parts)
    weights = inputs.new_zeros(inputs.shape[1] + 1, outputs)
    for l2 in sorted(strengths, reverse=True):
        weights = fit(inputs[fitting], targets[fitting], l2, weights, loss=loss)
        score = loss.score(logits_of(inputs[held_out], weights), targets[held_out])
        yield Trial(l2, score, weights)


def logits_of(inputs: Tensor, weights: Tensor) -> Tensor:
    """Returns the logits of each row of inputs."""
    return torch.addmm(weights[-1], inputs, weights[:-1])
