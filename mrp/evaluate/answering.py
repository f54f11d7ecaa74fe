"""What a whole model says of each test image: a classifier its answers, other methods their loss."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from mrp.batch import Batch, Output
from mrp.config import ConfigError
from mrp.data.loader import EvalLoader
from mrp.evaluate.answers import best_classes
from mrp.evaluate.contract import Pause, Setting
from mrp.evaluate.gathering import Columns, evaluating, gathered, in_order

LOSS, CORRECT, CORRECT5, ANSWER = "loss", "correct", "correct5", "answer"  # what is kept of each image
_LARGEST_BATCH = 256
LABEL = "label"  # as it is numbered in training


def classes_told_apart(model: nn.Module) -> int:
    """Returns how many classes a model tells apart; 0 for one that is no classifier."""
    step: Any = getattr(model, "module", model)
    return int(getattr(getattr(step.objective, "config", None), "classes", 0))


def test_batches(setting: Setting) -> EvalLoader:
    """Returns this process's batches of test images."""
    assert setting.test is not None
    share = -(-len(setting.test) // setting.processes.num_processes)
    return setting.loader(setting.test, min(setting.batch, share, _LARGEST_BATCH))


def answered(model: nn.Module, setting: Setting, batches: Iterable[Batch], pause: Pause) -> dict[str, Tensor]:
    """Returns what a model says of each test image, in the order of the source; all processes get all of it.

    Of a classifier these are also its label and answer, and whether the label is the first or among the first five
    answers; of other methods the loss alone. Evaluators of one measurement share them.
    """
    assert setting.test is not None
    key = "answers", setting.test.content, setting.train.content, setting.classes, setting.limited
    return setting.tables.shared(key, lambda: _answered(model, setting, batches, pause))


def _answered(model: nn.Module, setting: Setting, batches: Iterable[Batch], pause: Pause) -> dict[str, Tensor]:
    assert setting.test is not None
    processes, count = setting.processes, len(setting.test)
    numbers = setting.class_numbers.to(processes.device) if classes_told_apart(model) else None
    among = setting.possible if numbers is not None else None
    names = list[str]()

    def of_batch(batch: Batch) -> Columns:
        labels = None
        if numbers is not None:
            assert batch.labels is not None
            labels = numbers[batch.labels]
            batch = replace(batch, labels=labels)
        values = _of_batch(model(batch), labels, among)
        names[:] = values
        return tuple(values.values())

    with evaluating(model):
        columns = in_order(gathered(batches, count, processes, pause, "batches of test images", of_batch))
    return dict(zip(names, columns, strict=True))


def _of_batch(output: Output, labels: Tensor | None, among: Tensor | None) -> dict[str, Tensor]:
    """Returns numbers of each image; in float64, so that their sums are exact where they are counts."""
    found = {name: output.per_sample[name] for name in (LOSS, CORRECT, CORRECT5, ANSWER) if name in output.per_sample}
    if among is not None and labels is not None:
        if output.scores is None:
            raise ConfigError("the method gives no scores, so its answers cannot be limited; return Output(scores=...)")
        best = best_classes(output.scores, among)
        hits = best == labels[:, None]
        found |= {CORRECT: hits[:, 0], CORRECT5: hits.any(1), ANSWER: best[:, 0]}
    values = {name: value if name == ANSWER else value.double() for name, value in found.items()}
    return values if labels is None else values | {LABEL: labels}
