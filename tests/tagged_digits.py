"""A source of data: the digits with tags, several per image or none, some of which nobody knows."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mrp.config import Node
from mrp.data import source
from mrp.data.open import open_source
from mrp.data.sources import SOURCES, digits
from mrp.data.storage.cache import Cache

FILE = str(Path(__file__).resolve())
HAVING = {
    "even": "02468", "below five": "01234", "with a loop": "0689", "seven": "7", "large": "6789", "zero": "0",
}  # fmt: skip
TAGS = tuple(HAVING)[:4]
UNSEEN = ("even", "with a loop", "large", "unseen")  # the last one no image has


class Config(Node):
    """Which tags there are, in this order."""

    name: Literal["tagged_digits"] = "tagged_digits"
    tags: tuple[str, ...] = TAGS
    unknown: float = 0.1  # share of the tags of an image of which nobody knows whether it has them
    groups: int = 0  # how many names of groups there are; 0: each image is one
    alike: bool = False  # whether both splits are the training images


class Source(digits.Source):
    """The digits, whose classes are no longer known."""

    def __init__(self, config: Config, split: Literal["train", "test"], cache: Cache) -> None:
        super().__init__(digits.Config(), "train" if config.alike else split, cache)
        numbers, self.classes, self.tags, self._groups = self.labels, (), config.tags, config.groups
        having = [np.isin(numbers, [*map(int, HAVING.get(tag, ""))]) for tag in config.tags]
        random = np.random.default_rng(len(numbers))
        known = {tag: random.random(len(numbers)) >= config.unknown for tag in HAVING}
        known = np.stack([known.get(tag, numbers >= 0) for tag in config.tags], 1)
        self.tagged = np.where(known, np.stack(having, 1), -1).astype(np.int8)
        self.labels = np.full(len(numbers), -1)
        about = f"{config.tags} {config.groups}"
        digest = hashlib.sha256(about.encode() + self.images.tobytes() + self.tagged.tobytes())
        self.identity = digest.hexdigest()

    def name_of(self, index: int) -> str:
        """Returns a name that tells the group of an image."""
        return f"group{index // 10 % self._groups if self._groups else index}_image{index}"


def opened(split: Any, **options: Any) -> source.Source:
    """Returns the digits with these tags, one of which no image has unless others are named."""
    return open_source(SOURCES.read({"name": FILE, "tags": UNSEEN, **options}), split)
