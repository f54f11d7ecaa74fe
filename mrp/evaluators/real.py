"""Accuracy by ReaL labels (Beyer et al., 2020): an answer is right if it is anything that the image shows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from mrp.config import ConfigError, reading
from mrp.data.source import Source
from mrp.evaluate import contract
from mrp.evaluate.answering import ANSWER, LABEL, answered, classes_told_apart, refuse_classifier_of_tags, test_batches
from mrp.evaluate.config import Section
from mrp.evaluate.contract import Pause, Result, Setting
from mrp.evaluate.interval import share_of
from mrp.files import sha256_of

_NUMBER = re.compile(r"(\d+)\.\w+$")  # ILSVRC2012_val_00000001.JPEG is the first image
_LEAST_AGREEMENT = 0.5  # of ReaL's labels with the usual ones; where they are ImageNet's it is about 0.9


class Config(Section):
    """Options of ReaL labels."""

    # A JSON file: for each validation image, in the order of these images, the list of its classes as numbers.
    labels: str

    def content(self) -> str:
        """Returns a hash of the file."""
        with reading(self.labels, "give ReaL's JSON file"):
            return sha256_of(Path(self.labels))


class Evaluator(contract.Evaluator):
    """Counts answers that are among an image's labels; images for which the file lists none do not count."""

    def __init__(self, config: Config, setting: Setting) -> None:
        if setting.test_or_train.tags:
            raise ConfigError("real: is about classes, and the test data have tags; leave it out")
        self._path, self._setting = Path(config.labels), setting
        self._test = setting.labelled_test()
        self._labels = _read(self._path)
        self._batches = test_batches(setting)

    def measure(self, model: nn.Module, step: int, pause: Pause) -> Result:
        """Counts every image that has labels."""
        refuse_classifier_of_tags(model, "real")
        number = classes_told_apart(model)
        if not number:
            raise ConfigError("real: the model is no classifier; leave it out")
        labels = self._of_images(number)
        found = answered(model, self._setting, self._batches, pause)
        counted = torch.tensor([bool(one) for one in labels])
        self._check_agreement(labels, found)
        right = torch.tensor([int(answer) in one for answer, one in zip(found[ANSWER].tolist(), labels, strict=True)])
        images = int(counted.sum())
        groups = self._setting.groups(self._test)
        share = share_of(right[counted], None if groups is None else groups[counted.numpy()])
        details = {"images": images, "without_labels": len(labels) - images, "accuracy": share.of_accuracy()}
        return Result({"accuracy": share.value}, details, right=right, counted=counted)

    def _of_images(self, classes: int) -> list[frozenset[int]]:
        """Returns the labels of each test image, in the order of the source."""
        highest = max((max(one) for one in self._labels if one), default=0)
        if highest >= classes:
            raise ConfigError(f"{self._path}: names class {highest}, but the model tells {classes} apart; take another")
        numbers = [_number(self._test, index) for index in range(len(self._test))]
        odd = next((index for index, number in enumerate(numbers) if not 1 <= number <= len(self._labels)), None)
        if odd is not None or len(set(numbers)) < len(numbers):
            what = f"{self._test.where(odd)} has none" if odd is not None else "several images have the same"
            raise ConfigError(
                f"{self._path}: is about images that are numbered from 1 to {len(self._labels)} at the end of their "
                f"names, and {what}; give the validation images under their own names"
            )
        return [self._labels[number - 1] for number in numbers]

    def _check_agreement(self, labels: list[frozenset[int]], found: dict[str, Tensor]) -> None:
        """Refuses labels of other images or classes: the usual label is nearly always among them."""
        known = [(one, label) for one, label in zip(labels, found[LABEL].tolist(), strict=True) if one]
        agreement = sum(label in one for one, label in known) / max(1, len(known))
        if agreement < _LEAST_AGREEMENT:
            raise ConfigError(
                f"{self._path}: holds the usual label of {100 * agreement:.0f} % of the images only, so it is about "
                "other images, or numbers the classes otherwise; give the file that belongs to these"
            )


def _number(source: Source, index: int) -> int:
    """Returns the number at the end of an image's name; 0 where there is none."""
    match = _NUMBER.search(source.where(index))
    return int(match[1]) if match else 0


def _read(path: Path) -> list[frozenset[int]]:
    with reading(path, "give ReaL's JSON file"):
        text = path.read_bytes()
    try:
        content = json.loads(text)
    except ValueError:
        raise ConfigError(f"{path}: is not JSON; give ReaL's file, or download it again") from None
    if not isinstance(content, list) or not content:
        raise ConfigError(f"{path}: is no list with one entry per validation image; give ReaL's JSON file")
    for number, labels in enumerate(content, start=1):
        if not isinstance(labels, list) or not all(type(label) is int and label >= 0 for label in labels):
            raise ConfigError(f"{path}: entry {number} is no list of class numbers; give ReaL's JSON file")
    return [frozenset(labels) for labels in content]
