"""The loss on the test data and, for a classifier, its accuracy, or how well it tells tags.

Every image counts once on any number of processes.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
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
from mrp.evaluate.measured import mean_of
from mrp.evaluate.measures import MEASURES
from mrp.evaluate.statistics import pseudo_values

__all__ = ["Config", "Evaluator"]

VALIDATION = "validation.json"
_MEANS = {LOSS: "loss", CORRECT: "accuracy", CORRECT5: "accuracy5"}  # what is kept of an image: what its mean is called
KNOWN = "known"  # what a classifier of tags reports of each image: how many are known
_FEWEST = 20  # images of whose losses an interval is given
_MOST_CLASSES = 4096  # whose confusions are counted: a table of 128 MiB


@dataclass(frozen=True)
class Counts:
    """What was counted over the whole test set."""

    images: int
    means: dict[str, float]  # loss, accuracy, accuracy5: those that the objective reports
    confusion: Tensor | None = None  # labels, answers
    answers: dict[str, Tensor] = field(default_factory=dict)  # accuracy, accuracy5: of each image, for a classifier
    losses: Tensor | None = None  # of each image, for other methods
    groups: Ints | None = None  # of each image, where the data have groups

    def details(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """Returns the counts with intervals, class by class."""
        details: dict[str, Any] = {"images": self.images} | self.means
        details |= {name: share_of(right, self.groups)._asdict() for name, right in self.answers.items()}
        if self.confusion is not None:
            counts, hits = self.confusion.sum(1).tolist(), self.confusion.diagonal().tolist()
            details["classes"] = [
                {"name": name, "images": count, "accuracy": hit / count if count else None}
                for name, count, hit in zip(classes, counts, hits, strict=True)
            ]
            details["confusion"] = self.confusion.tolist()
        if self.losses is not None:
            losses = self.losses.double().numpy()
            draws = pseudo_values(len(losses), lambda rows: float(losses[rows].mean()), groups=self.groups)
            loss = mean_of(self.losses, share=False, better="lower", groups=self.groups)._replace(draws=draws)
            details[MEASURES] = {"loss": loss.plain() | {"title": "loss of the method"}}
        return details


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
        counts = self.count(model, pause)
        return Result(counts.means, counts.details(self._setting.train.classes), right=counts.answers.get("accuracy"))

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

    def count(self, model: nn.Module, pause: Pause) -> Counts:
        """Returns what was counted over all images; labels are numbered as in training."""
        number = classes_told_apart(model)
        self._check_number(number, len(self._setting.train.classes), "classes")
        found = answered(model, self._setting, self._batches, pause)
        images = len(self._setting.test or ())
        means = {mean: float(found[name].sum()) / max(1, images) for name, mean in _MEANS.items() if name in found}
        groups = self._setting.groups(self._setting.test) if self._setting.test else None
        confusion = None
        if 0 < number <= _MOST_CLASSES and ANSWER in found:
            cells = torch.bincount(found[LABEL] * number + found[ANSWER], minlength=number * number)
            confusion = cells.view(number, number)
        losses = found[LOSS] if LOSS in found and CORRECT not in found and images >= _FEWEST else None
        answers = {_MEANS[name]: found[name].bool() for name in (CORRECT, CORRECT5) if name in found}
        return Counts(images, means, confusion, answers, losses, groups)
