"""The loss on the test data and, for a classifier, its accuracy, or how well it tells tags.

Every image counts once on any number of processes.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from mrp.config import ConfigError
from mrp.data.order import Ints
from mrp.evaluate import contract, tagged
from mrp.evaluate.answering import (
    ANSWER,
    CORRECT,
    CORRECT5,
    LABEL,
    LOSS,
    SCORES,
    TAGS,
    answered,
    called,
    classes_told_apart,
    learns_tags,
    test_batches,
)
from mrp.evaluate.config import Validation as Config
from mrp.evaluate.contract import Pause, Result, Setting
from mrp.evaluate.interval import share_of
from mrp.evaluate.measures import MEASURES, mean_of
from mrp.evaluate.statistics import pseudo_values

__all__ = ["Config", "Evaluator"]

VALIDATION = "validation.json"
_MEANS = {LOSS: "loss", CORRECT: "accuracy", CORRECT5: "accuracy5"}  # what is kept of an image: what its mean is called
KNOWN = "known"  # what a classifier of tags reports of each image: how many are known
_FEWEST = 20  # images of whose losses an interval is given
_MOST_CLASSES = 4096  # whose confusions are counted: a table of 128 MiB


class Evaluator(contract.Evaluator):
    """Goes through the test data with the whole model; every process takes its part and all get the result."""

    file = VALIDATION

    def __init__(self, config: Config, setting: Setting) -> None:
        if setting.test is None:
            raise ConfigError("validation: data.test is not set, so there is nothing to validate on; set it")
        self._setting = setting
        self._batches = test_batches(setting)

    @classmethod
    def value_names(cls, per_sample: Collection[str]) -> Collection[str]:
        """Returns the means over the test set that the objective can give."""
        means = [mean for name, mean in _MEANS.items() if name in per_sample]
        return [*means, *tagged.TITLES] if KNOWN in per_sample else means

    def measure(self, model: nn.Module, step: int, pause: Pause) -> Result:
        """Counts every image once."""
        if learns_tags(model):
            return self._of_tags(model, step, pause)
        setting, number = self._setting, classes_told_apart(model)
        self._check_number(number, len(setting.train.classes), "classes")
        found = answered(model, setting, self._batches, pause)
        assert setting.test is not None
        images, groups = len(setting.test), setting.groups(setting.test)
        means = {mean: float(found[name].sum()) / max(1, images) for name, mean in _MEANS.items() if name in found}
        answers = {_MEANS[name]: found[name].bool() for name in (CORRECT, CORRECT5) if name in found}
        details: dict[str, Any] = {"images": images, **means}
        details |= {name: share_of(right, groups).of_accuracy() for name, right in answers.items()}
        if 0 < number <= _MOST_CLASSES and ANSWER in found:
            details |= of_classes(found[LABEL], found[ANSWER], setting.train.classes)
        if LOSS in found and CORRECT not in found and images >= _FEWEST:
            details[MEASURES] = {"loss": _loss(found[LOSS], groups)}
        return Result(means, details, right=answers.get("accuracy"))

    def _of_tags(self, model: nn.Module, step: int, pause: Pause) -> Result:
        """Judges the scores of every tag; with intervals where somebody will read them, after the last step."""
        setting = self._setting
        names, training = called(setting.train), setting.training
        self._check_number(classes_told_apart(model), len(names), "tags")
        found = answered(model, setting, self._batches, pause)
        if not setting.processes.is_main_process:
            return Result()
        assert setting.test is not None
        scores, tags = found[SCORES].numpy(), found[TAGS].numpy()
        loss = {"loss": float(found[LOSS].mean())}
        if training is not None and step < training.steps:
            return Result(loss | tagged.means(scores, tags))
        values, details = tagged.result(scores, tags, names, setting.groups(setting.test))
        return Result(loss | values, {"images": len(scores)} | loss | details)

    def _check_number(self, told: int, there: int, what: str) -> None:
        if told and told != there:
            raise ConfigError(
                f"validation: the model tells {told} {what} apart, but data.train has {there}; take the data of the run"
            )


def of_classes(labels: Tensor, answers: Tensor, classes: tuple[str, ...]) -> dict[str, Any]:
    """Returns how many images each class has and which share of them was answered rightly, and all confusions."""
    confusion = torch.bincount(labels * len(classes) + answers, minlength=len(classes) ** 2).view(len(classes), -1)
    counts, hits = confusion.sum(1).tolist(), confusion.diagonal().tolist()
    every = [
        {"name": name, "images": count, "accuracy": hit / count if count else None}
        for name, count, hit in zip(classes, counts, hits, strict=True)
    ]
    return {"classes": every, "confusion": confusion.tolist()}


def _loss(losses: Tensor, groups: Ints | None) -> dict[str, Any]:
    """Returns the mean loss of a method that is no classifier, with what compares it with others."""
    values = losses.double().numpy()
    draws = pseudo_values(len(values), lambda rows: float(values[rows].mean()), groups=groups)
    loss = mean_of(losses, share=False, better="lower", groups=groups)._replace(draws=draws)
    return loss.plain() | {"title": "loss of the method"}
