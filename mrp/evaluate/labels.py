"""Whether data have what an evaluator learns from and counts by: one class per image, or tags."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mrp.config import ConfigError
from mrp.data.source import Source
from mrp.evaluate.tagged import rated


def check_classes(folder: Path, train: Source, test: Source) -> None:
    """Refuses data without classes, and test images of which nobody knows the class."""
    for name, source in (("train", train), ("test", test)):
        refuse_tags(folder, name, source)
        if not source.classes:
            raise ConfigError(
                f"{folder}: data.{name} has no labels, so accuracy cannot be measured; class folders give "
                "labels, and the evaluator geometry needs none"
            )
    if unknown := int((np.asarray(test.labels) < 0).sum()):
        raise ConfigError(
            f"{folder}: data.test: {unknown:,} of its {len(test):,} images have no label, so accuracy "
            "cannot be measured; leave them out"
        )


def refuse_tags(folder: Path, name: str, source: Source) -> None:
    """Refuses data with tags, for an evaluator that needs one class per image."""
    if source.tags:
        raise ConfigError(
            f"{folder}: data.{name} has tags, of which an image may have several, and one class per image is needed "
            "here; take the evaluator tags"
        )


def check_tags(folder: Path, train: Source, test: Source | None) -> Source:
    """Returns the test data, all of whose tags are tags of training; some can be learned, and some can be judged."""
    if test is None:
        raise ConfigError(f"{folder}: data.test is not set, so there is nothing to judge tags on; give data.test=PATH")
    for name, source in (("train", train), ("test", test)):
        if not source.tags:
            has = "classes, which the evaluators linear and knn count by" if source.classes else "no labels"
            raise ConfigError(f"{folder}: data.{name} has {has}, which the evaluator tags cannot take; give tags")
        if not rated(np.asarray(source.tagged)):
            raise ConfigError(
                f"{folder}: data.{name}: no tag is known of some images and known not to be of others, so nothing can "
                f"be {'learned from' if name == 'train' else 'judged on'} them; take other data"
            )
    if unknown := [tag for tag in test.tags if tag not in train.tags]:
        raise ConfigError(
            f"{folder}: data.test: {len(unknown)} of its {len(test.tags)} tags, such as '{unknown[0]}', are none of "
            f"data.train's {len(train.tags)}; give both the same tags"
        )
    return test
