"""A source of data: the digits with tags, several per image or none, some of which nobody knows."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import numpy as np

from mrp.config import Node
from mrp.data.sources import digits
from mrp.data.storage.cache import Cache

FILE = str(Path(__file__).resolve())
HAVING = {"even": "02468", "below five": "01234", "with a loop": "0689", "seven": "7"}
TAGS = tuple(HAVING)


class Config(Node):
    """Which tags there are, in this order."""

    name: Literal["tagged_digits"] = "tagged_digits"
    tags: tuple[str, ...] = TAGS
    unknown: float = 0.1  # share of the tags of an image of which nobody knows whether it has them


class Source(digits.Source):
    """The digits, whose classes are no longer known."""

    def __init__(self, config: Config, split: Literal["train", "test"], cache: Cache) -> None:
        super().__init__(digits.Config(), split, cache)
        numbers, self.classes, self.tags = self.labels, (), config.tags
        having = [np.isin(numbers, [*map(int, HAVING.get(tag, ""))]) for tag in config.tags]
        random = np.random.default_rng(len(numbers))
        known = {tag: random.random(len(numbers)) >= config.unknown for tag in TAGS}
        known = np.stack([known.get(tag, numbers >= 0) for tag in config.tags], 1)
        self.tagged = np.where(known, np.stack(having, 1), -1).astype(np.int8)
        self.labels = np.full(len(numbers), -1)
        digest = hashlib.sha256(f"{config.tags}".encode() + self.images.tobytes() + self.tagged.tobytes())
        self.identity = digest.hexdigest()
