"""What a whole model says of each test image: a classifier its answers or scores, other methods their loss."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mrp.batch import Batch, Output
from mrp.config import ConfigError
from mrp.data.loader import EvalLoader
from mrp.data.source import Named, Source
from mrp.evaluate.answers import best_classes
from mrp.evaluate.classes import tag_numbers
from mrp.evaluate.contract import Pause, Setting
from mrp.evaluate.gathering import Columns, evaluating, gathered, in_order

LOSS, CORRECT, CORRECT5, ANSWER = "loss", "correct", "correct5", "answer"  # what is kept of each image
_LARGEST_BATCH = 256
LABEL = "label"  # as it is numbered in training
SCORES, TAGS = "scores", "tags"  # of a classifier of tags: one score per tag, and what is known of each (1, 0, or -1)


def classes_told_apart(model: nn.Module) -> int:
    """Returns how many classes a model tells apart, or how many tags; 0 for one that is no classifier."""
    return int(getattr(_config(model), "classes", 0))


def learns_tags(model: nn.Module) -> bool:
    """Returns whether a model is a classifier of tags, of which an image may have several."""
    return bool(getattr(_config(model), "learns_tags", False))


def refuse_classifier_of_tags(model: nn.Module, name: str) -> None:
    """Refuses a classifier of tags for an evaluator that needs one answer per image."""
    if learns_tags(model):
        raise ConfigError(f"{name}: the model tells tags, of which an image may have several; leave {name} out")


def _config(model: nn.Module) -> Any:
    step: Any = getattr(model, "module", model)
    return getattr(step.objective, "config", None)


def called(train: Source) -> tuple[str, ...]:
    """Returns what the tags of training are called; where its data are not at hand, their names stand for classes."""
    return train.classes if isinstance(train, Named) else train.tags


def test_batches(setting: Setting) -> EvalLoader:
    """Returns this process's batches of test images."""
    assert setting.test is not None
    share = -(-len(setting.test) // setting.processes.num_processes)
    return setting.loader(setting.test, min(setting.batch, share, _LARGEST_BATCH))


def answered(model: nn.Module, setting: Setting, batches: Iterable[Batch], pause: Pause) -> dict[str, Tensor]:
    """Returns what a model says of each test image, in the order of the source; all processes get all of it.

    Of a classifier these are also its label and answer, and whether the label is the first or among the first five
    answers; of a classifier of tags its scores, and what is known of the tags; of other methods the loss alone.
    Evaluators of one measurement share them.
    """
    assert setting.test is not None
    key = "answers", setting.test.content, setting.train.content, setting.classes, setting.limited
    about = _about_tags if learns_tags(model) else _answered
    return setting.tables.shared(key, lambda: about(model, setting, batches, pause))


def _answered(model: nn.Module, setting: Setting, batches: Iterable[Batch], pause: Pause) -> dict[str, Tensor]:
    assert setting.test is not None
    processes, count = setting.processes, len(setting.test)
    told = classes_told_apart(model)
    if told and not setting.test.classes:
        what = "has tags and no classes" if setting.test.tags else "has no labels"
        raise ConfigError(f"data.test: {what}, by which answers of a classifier could be counted; take other data")
    numbers = setting.class_numbers.to(processes.device) if told else None
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


def _about_tags(model: nn.Module, setting: Setting, batches: Iterable[Batch], pause: Pause) -> dict[str, Tensor]:
    """Returns the loss and the scores of each image, and which tags it is known to have, in the order of training."""
    test, processes, names = setting.test, setting.processes, called(setting.train)
    assert test is not None
    if setting.limited:
        raise ConfigError("data.test: answers are limited to its classes, and the model tells tags; leave limited out")
    whose = "the classifier" if isinstance(setting.train, Named) else "data.train"
    numbers = tag_numbers(names, test.tags, setting.classes, whose)

    def of_batch(batch: Batch) -> Columns:
        assert batch.labels is not None
        labels = batch.labels.new_full((len(batch.keys), len(names)), torch.nan)
        labels[:, numbers] = batch.labels
        output: Output = model(replace(batch, labels=labels))
        if output.scores is None:
            raise ConfigError("the method gives no scores, so its tags cannot be judged; return Output(scores=...)")
        return output.per_sample[LOSS].double(), output.scores.double()

    with evaluating(model):
        loss, scores = in_order(gathered(batches, len(test), processes, pause, "batches of test images", of_batch))
    tags = np.full((len(test), len(names)), -1, np.int8)
    tags[:, numbers] = test.tagged
    return {LOSS: loss, SCORES: scores, TAGS: torch.from_numpy(tags)}


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
