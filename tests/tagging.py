"""Digits with tags in place of classes, for tests: as a source of one's own in a file, and opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mrp.data.open import open_source
from mrp.data.source import Source
from mrp.data.sources import SOURCES

FILE = """
import hashlib
from functools import cached_property
from typing import Literal
import numpy as np
from mrp.config import Node
from mrp.data import source
from mrp.data.open import open_source

class Config(Node):
    name: Literal["tagged"] = "tagged"
    tags: tuple[str, ...] = ("even", "round", "large", "unseen")
    unknown: float = 0.2
    groups: int = 0  # how many names of groups there are
    alike: bool = False  # whether both splits are the training images

class Source(source.Source):
    def __init__(self, config, split, cache):
        split = "train" if config.alike else split
        self.digits, self.tags, self.groups = open_source("digits", split), config.tags, config.groups
        digit = np.asarray(self.digits.labels)
        about = {"even": digit % 2 == 0, "round": np.isin(digit, [0, 6, 8, 9]), "large": digit > 5,
                 "zero": digit == 0, "unseen": digit > 9}
        self.tagged = np.stack([about[tag] for tag in config.tags], 1).astype(np.int8)
        random = np.random.default_rng(0 if split == "train" else 1)
        self.tagged[random.random(self.tagged.shape) < config.unknown] = -1

    @cached_property
    def identity(self):
        about = f"{self.digits.identity} {self.tags} {self.groups}"
        return hashlib.sha256(about.encode() + self.tagged.tobytes()).hexdigest()

    def __len__(self):
        return len(self.digits)

    def read(self, index):
        return self.digits.read(index)[0], -1

    def name_of(self, index):
        return f"group{index // 10 % self.groups if self.groups else index}_image{index}"
"""


def write(folder: Path) -> str:
    """Writes the file of the source, and returns its path."""
    path = folder / "tagged.py"
    path.write_text(FILE)
    return str(path)


def opened(folder: Path, split: Any, **options: Any) -> Source:
    """Returns the source with these options."""
    return open_source(SOURCES.read({"name": write(folder), **options}), split)
