"""The loss and, for a classifier, the accuracy on the test data: every image counts once on any number of processes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mrp.batch import Batch, Output
from mrp.config import ConfigError
from mrp.evaluate import contract
from mrp.evaluate.config import Validation as Config
from mrp.evaluate.contract import Pause, Result, Setting
from mrp.evaluate.evaluating import evaluating
from mrp.evaluate.interval import wilson

__all__ = ["Config", "Evaluator"]

VALIDATION = "validation.json"
_SUMMED = {"loss": "loss", "correct": "accuracy", "correct5": "accuracy5"}  # of a sample, and what its mean is called
_MOST_CLASSES = 4096  # whose confusions are counted: a table of 128 MiB
_LARGEST_BATCH = 256


@dataclass(frozen=True)
class Counts:
    """What was counted over the whole test set."""

    images: int
    means: dict[str, float]  # loss, accuracy, accuracy5: those that the objective reports
    confusion: Tensor | None  # labels, answers

    def details(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """Returns the counts with intervals, class by class."""
        details: dict[str, Any] = {"images": self.images} | self.means
        for name in self.means.keys() & {"accuracy", "accuracy5"}:
            details[name] = wilson(round(self.means[name] * self.images), self.images)._asdict()
        if self.confusion is not None:
            counts, hits = self.confusion.sum(1).tolist(), self.confusion.diagonal().tolist()
            details["classes"] = [
                {"name": name, "images": count, "accuracy": hit / count if count else None}
                for name, count, hit in zip(classes, counts, hits, strict=True)
            ]
            details["confusion"] = self.confusion.tolist()
        return details


class Evaluator(contract.Evaluator):
    """Goes through the test data with the whole model; every process takes its part and all get the result."""

    file = VALIDATION

    def __init__(self, config: Config, setting: Setting) -> None:
        if setting.test is None:
            raise ConfigError("validation: data.test is not set, so there is nothing to validate on; set it")
        share = -(-len(setting.test) // setting.processes.num_processes)
        self._setting = setting
        self._processes = setting.processes
        self._loader = setting.loader(setting.test, min(setting.batch, share, _LARGEST_BATCH))

    @classmethod
    def value_names(cls, per_sample: Collection[str]) -> Collection[str]:
        """Returns the means over the test set that the objective can give."""
        return [mean for name, mean in _SUMMED.items() if name in per_sample]

    def measure(self, model: nn.Module, step: int, pause: Pause) -> Result:
        """Counts every image once."""
        counts = self.count(model, pause)
        return Result(counts.means, counts.details(self._setting.train.classes))

    def count(self, model: nn.Module, pause: Pause) -> Counts:
        """Returns sums over all images and all processes; labels are numbered as in training."""
        number = self._number_of_classes(model)
        counted = number if number <= _MOST_CLASSES else 0
        labels = self._setting.class_numbers.to(self._processes.device) if number else None
        totals: dict[str, Tensor] = {}
        with evaluating(model):
            for batch in self._loader:
                pause()
                batch = batch.to(self._processes.device, non_blocking=True)
                if labels is not None:
                    assert batch.labels is not None
                    batch = replace(batch, labels=labels[batch.labels])
                sums = _sums(model, batch, counted)
                totals = {name: totals[name] + value if totals else value for name, value in sums.items()}
        whole = {name: self._processes.reduce(value, "sum").cpu() for name, value in totals.items()}
        images, confusion = int(whole.pop("images")), whole.pop("confusion", None)
        means = {_SUMMED[name]: float(total) / max(1, images) for name, total in whole.items()}
        return Counts(images, means, None if confusion is None else confusion.view(number, number))

    def _number_of_classes(self, model: nn.Module) -> int:
        """Returns how many classes the model tells apart, which have to be those of the data; 0 for no classifier."""
        step: Any = getattr(model, "module", model)
        number = getattr(getattr(step.objective, "config", None), "classes", 0)
        if number and number != len(self._setting.train.classes):
            raise ConfigError(
                f"validation: the model tells {number} classes apart, but data.train has "
                f"{len(self._setting.train.classes)}; take the data of the run"
            )
        return int(number)


def _sums(model: nn.Module, batch: Batch, classes: int) -> dict[str, Tensor]:
    """Returns sums over one batch without its filler rows; in float64, so that counts are exact."""
    output: Output = model(batch)
    valid = torch.ones_like(batch.keys, dtype=torch.bool) if batch.valid is None else batch.valid
    sums = {
        name: torch.where(valid, value, 0).double().sum()
        for name, value in output.per_sample.items()
        if name in _SUMMED
    }
    sums["images"] = valid.sum()
    if classes and batch.labels is not None and "answer" in output.per_sample:
        cells = (batch.labels * classes + output.per_sample["answer"])[valid]
        sums["confusion"] = torch.bincount(cells, minlength=classes * classes)
    return sums
