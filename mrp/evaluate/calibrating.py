"""Whether a classifier is as often right as it says: calibration errors, proper scores and the temperature."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

BINS = 15
_TEMPERATURES = 1e-3, 1e3  # between which one is looked for
_HALVINGS = 60


class Scores(NamedTuple):
    """What was said of each image, in double precision, and what it is."""

    logits: Tensor  # N classes
    labels: Tensor  # N

    def at(self, temperature: Tensor | float) -> Scores:
        """Returns the same at a temperature, or at one for each image."""
        return self._replace(logits=self.logits / torch.as_tensor(temperature, dtype=self.logits.dtype).view(-1, 1))


def of(scores: Scores) -> dict[str, float]:
    """Returns calibration errors over bins of equal width and of equal mass, log-likelihood and Brier score."""
    shares = scores.logits.softmax(1)
    confidence, answers = shares.max(1)
    right = (answers == scores.labels).double()
    truth = functional.one_hot(scores.labels, shares.shape[1])
    return {
        "ece": _error(confidence, right, (confidence * BINS).ceil().long().clamp(1, BINS) - 1),
        "ece_equal_mass": _error(confidence, right, _by_mass(confidence)),
        "nll": float(functional.cross_entropy(scores.logits, scores.labels)),
        "brier": float((shares - truth).square().sum(1).mean()),
    }


def temperature(scores: Scores) -> float:
    """Returns the temperature with the least negative log-likelihood.

    The loss is convex in 1 / temperature, and its slope there is the mean of the expected logit minus the true one:
    where this is zero is found by halving.
    """
    true = scores.logits.gather(1, scores.labels[:, None])[:, 0]

    def slope(inverse: float) -> float:
        shares = (scores.logits * inverse).softmax(1)
        return float(((shares * scores.logits).sum(1) - true).mean())

    low, high = (1 / bound for bound in reversed(_TEMPERATURES))
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return 1 / high


def by_class(scores: Scores, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Returns for each class how many images have it, the share of them that was right, and how sure the answers were.

    `precision` is the share of the answers with this class that was right.
    """
    confidence, answers = scores.logits.softmax(1).max(1)
    right = answers == scores.labels
    rows = []
    for number, name in enumerate(names):
        own, given = scores.labels == number, answers == number
        rows.append({
            "name": name, "images": int(own.sum()), "accuracy": _mean(right[own]), "confidence": _mean(confidence[own]),
            "precision": _mean(right[given]),
        })  # fmt: skip
    return rows


def reliability(scores: Scores) -> list[dict[str, Any]]:
    """Returns for each bin of equal width how many images fall in it, how sure they were, and how often right."""
    confidence, answers = scores.logits.softmax(1).max(1)
    right, bins = answers == scores.labels, (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    rows = []
    for number in range(BINS):
        own = bins == number
        rows.append({"images": int(own.sum()), "confidence": _mean(confidence[own]), "accuracy": _mean(right[own])})
    return rows


def _by_mass(confidence: Tensor) -> Tensor:
    """Returns the bin of each image, where every bin holds the same number of images (or one more)."""
    ranks = torch.empty_like(confidence, dtype=torch.int64)
    ranks[confidence.argsort(stable=True)] = torch.arange(len(confidence), device=confidence.device)
    return ranks * BINS // len(confidence)


def _error(confidence: Tensor, right: Tensor, bins: Tensor) -> float:
    """Returns the mean over images of how far accuracy and confidence of their bin are apart."""
    gaps = torch.zeros(BINS, dtype=confidence.dtype, device=confidence.device)
    return float(gaps.index_add_(0, bins, confidence - right).abs().sum() / len(confidence))


def _mean(values: Tensor) -> float | None:
    return float(values.double().mean()) if len(values) else None
