"""Whether a classifier is as often right as it says: calibration errors, proper scores and the temperature."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

BINS = 15
_TEMPERATURES = 1e-3, 1e3  # between which one is looked for


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
    """Returns the temperature with the least negative log-likelihood, within wide bounds.

    The loss is convex in 1 / temperature, and its slope there is the mean of the expected logit minus the true one, for
    whose zero is looked.
    """
    from scipy.optimize import brentq

    true = scores.logits.gather(1, scores.labels[:, None])[:, 0]

    def slope(log: float) -> float:
        shares = (scores.logits * math.exp(-log)).softmax(1)
        return float((torch.linalg.vecdot(shares, scores.logits) - true).mean())

    low, high = (math.log(bound) for bound in _TEMPERATURES)
    if slope(low) <= 0:  # no answer is wrong, so the surer the better
        return _TEMPERATURES[0]
    if slope(high) >= 0:  # answers tell nothing, or the contrary
        return _TEMPERATURES[1]
    return math.exp(brentq(slope, low, high, xtol=1e-10))


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
