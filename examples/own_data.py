r"""A source of data in one file: images of discs and squares, drawn when they are read.

mrp pretrain demo 'data.train={name: ./examples/own_data.py, count: 5000}' data.test=null \
    data.channels=3 'data.mean=[0.5, 0.5, 0.5]' 'data.std=[0.3, 0.3, 0.3]'
"""

import hashlib
from typing import Literal

import numpy as np
from pydantic import Field

from mrp.config import Node
from mrp.data import source


class Config(Node):
    """The options of the source: what may stand in the section `data.train:`."""

    name: Literal["shapes"] = "shapes"
    count: int = Field(1000, gt=0)
    seed: int = 0


class Source(source.Source):
    """Pictures by number. `classes` and `labels` may be left out if there are no labels."""

    classes = ("disc", "square")

    def __init__(self, config: Config, split: Literal["train", "test"], cache: object) -> None:
        self.count = config.count
        self.seed = [config.seed, {"train": 0, "test": 1}[split]]
        self.labels = np.arange(self.count) % 2
        # Changes whenever the data change, so that a resumed run knows whether they are the same.
        self.identity = hashlib.sha256(f"shapes {self.seed} {self.count}".encode()).hexdigest()

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> tuple[source.Pixels, int]:
        """Returns the pixels (height, width, channel) of an image, or the bytes of an image file, and its label."""
        random = np.random.default_rng([*self.seed, index])
        row, column = np.mgrid[:16, :16] - random.integers(5, 11, 2)[:, None, None]
        label = int(self.labels[index])
        distance = np.maximum(abs(row), abs(column)) if label else np.hypot(row, column)
        colours = random.integers(0, 256, (2, 3))
        return np.where(distance[..., None] <= random.integers(2, 6), *colours).astype(np.uint8), label
