"""Folders of image files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

from mrp.config import Node
from mrp.data import source, tree
from mrp.data.source import Pixels
from mrp.data.storage.cache import Cache


class Config(Node):
    """A folder with one folder per class, or with images alone."""

    name: Literal["folder"] = "folder"
    path: str  # the folder that holds the images
    # Whether the folders at the top of this one are classes; false: images may lie anywhere, without labels.
    classes: bool = True


def recognise(text: str) -> Config | None:
    """Returns a configuration if `data.train` names this kind of source."""
    return Config(path=text) if Path(text).expanduser().is_dir() else None


class Source(source.Source):
    """A tree of image files: the folders at its top are the classes, or there are only files and no labels.

    The identity is that of the names, so that a file may be mended during a run. The content also covers the size and
    the time of change of every file.
    """

    def __init__(self, config: Config, split: Literal["train", "test"], cache: Cache) -> None:
        """Look through the whole tree once; the samples are in the order of their names."""
        root = Path(config.path).expanduser()
        others = Counter[str]()
        found = tree.tree(root, others=others)
        self.left_out = tree.left_out(root, others)
        names = [file.name for file in found]
        self.classes, self.labels = tree.classes(root, names, config.classes)
        self.identity, self.content = tree.identity(names), tree.content(found)
        self._names = tree.Names(root, names)

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> tuple[bytes | Pixels, int]:
        """Returns the file's bytes and the number of its class."""
        with open(self.where(index), "rb") as file:
            return file.read(), int(self.labels[index])

    def where(self, index: int) -> str:
        """Returns the file's path."""
        return self._names.path(index)

    def name_of(self, index: int) -> str:
        """Returns the file's path within the folder."""
        return self._names[index]
