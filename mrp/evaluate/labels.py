"""Whether data have what an evaluator learns from and counts by: one class per image, or tags."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mrp.config import ConfigError
from mrp.data.labels import refuse_same_rows
from mrp.data.source import Source, listed
from mrp.evaluate.tagged import rated

# What to do where only those tags are written down that images have.
BLANKS = "where empty cells mean that images have it not, set data.labels.blank=absent"


def check_classes(folder: Path, train: Source, test: Source) -> None:
    """Refuses data without classes, and test images of which nobody knows the class."""
    for name, source in (("train", train), ("test", test)):
        refuse_tags(folder, name, source)
        if not source.classes:
            raise ConfigError(
                f"{folder}: data.{name} has no labels, so accuracy cannot be measured; class folders give "
                "labels, and the evaluator geometry needs none"
            )
    refuse_same_rows([("data.train", train), ("data.test", test)])
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


def one_sided(source: Source) -> str:
    """Returns in words which tags no image is known to have, or not to have; nothing where there are none."""
    having, lacking = ((source.tagged == answer).sum(0) for answer in (1, 0))
    nobody, everybody = (
        tuple(tag for tag, count in zip(source.tags, counts, strict=True) if not count) for counts in (having, lacking)
    )
    said = f"no image is known to have {listed(nobody)}" if nobody else ""
    more = f"no image is known not to have {listed(everybody)}" if everybody else ""
    return "; ".join(filter(None, (said, more)))


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
                f"be {'learned from' if name == 'train' else 'judged on'} them; {BLANKS}, or take other data"
            )
    refuse_same_rows([("data.train", train), ("data.test", test)])
    if unknown := [tag for tag in test.tags if tag not in train.tags]:
        raise ConfigError(
            f"{folder}: data.test: {len(unknown)} of its {len(test.tags)} tags, such as '{unknown[0]}', are none of "
            f"data.train's {len(train.tags)}; give both the same tags"
        )
    return test
