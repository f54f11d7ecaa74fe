"""`digits`: scikit-learn's 1797 handwritten digits of 8 x 8 pixels, which need no download."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mrp.config import Node
from mrp.data.source import Arrays
from mrp.data.storage.cache import Cache

_FILE = Path("datasets", "data", "digits.csv.gz")


class Config(Node):
    """No options."""

    name: Literal["digits"] = "digits"


def recognise(text: str) -> Config | None:
    """Returns a configuration if `data.train` names this kind of source."""
    return Config() if text == "digits" else None


class Source(Arrays):
    """The digits; every fifth of each class is for testing."""

    def __init__(self, config: Config, split: Literal["train", "test"], cache: Cache) -> None:
        pixels, labels = _read()
        by_class = np.argsort(labels, kind="stable")
        fifth = np.arange(len(labels)) % 5 == 0
        chosen = np.sort(by_class[fifth if split == "test" else ~fifth])
        images = np.round(pixels[chosen] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
        super().__init__(f"digits ({split})", images, labels[chosen].astype(np.int64), tuple("0123456789"))


def _read() -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns pixels and labels from scikit-learn's file, whose own reader takes a second to be imported."""
    package = importlib.util.find_spec("sklearn")
    if package is not None and package.origin and (file := Path(package.origin).parent / _FILE).is_file():
        table = np.loadtxt(file, delimiter=",")
        return table[:, :-1], table[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return pixels, labels
