"""The class that a classifier answers with, among all classes of training or among those of the test data alone."""

from __future__ import annotations

from torch import Tensor


def best_class(scores: Tensor, among: Tensor | None = None) -> Tensor:
    """Returns the class with the highest score in the last dimension; with `among`, one of these class numbers.

    The last classes have no scores where training has no image of them, so they are no answer.
    """
    among = None if among is None else among[among < scores.shape[-1]].to(scores.device)
    if among is None or not len(among):
        return scores.argmax(-1)
    return among[scores[..., among].argmax(-1)]


def best_classes(scores: Tensor, among: Tensor) -> Tensor:
    """Returns the up to five classes of these numbers that have the highest scores, the highest first."""
    among = among.to(scores.device)
    return among[scores[..., among].topk(min(5, len(among))).indices]
