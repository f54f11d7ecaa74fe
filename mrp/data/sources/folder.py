"""Folders of image files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from mrp.config import ConfigError, Node
from mrp.data import source
from mrp.data.source import Pixels
from mrp.data.storage.cache import Cache

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")

_SPLITS = {"train", "training", "val", "valid", "validation", "test"}


class Config(Node):
    """A folder with one folder per class, or with images alone."""

    name: Literal["folder"] = "folder"
    path: str  # of the folder that holds the images


def recognise(text: str) -> Config | None:
    """Returns a configuration if `data.train` names this kind of source."""
    return Config(path=text) if Path(text).expanduser().is_dir() else None


class Source(source.Source):
    """A tree of image files: the folders at its top are the classes, or there are only files and no labels.

    The identity is that of the names, so that a file may be mended during a run. The content also covers the size and
    the time of change of every file. Names are kept in one piece of memory, so that millions of them are handed to a
    worker process in an instant.
    """

    def __init__(self, config: Config, split: Literal["train", "test"], cache: Cache) -> None:
        """Look through the whole tree once; the samples are in the order of their names."""
        root = Path(config.path).expanduser()
        found = sorted((os.fsencode(name), status.st_size, status.st_mtime_ns) for name, status in files(root, ""))
        names = [name for name, _, _ in found]
        if not names:
            raise ConfigError(f"{root}: holds no images; files that count end in {', '.join(EXTENSIONS)}")
        tops = [name.partition(b"/")[0] if b"/" in name else b"" for name in names]
        flat = [name for name, top in zip(names, tops, strict=True) if not top]
        if flat and len(flat) < len(names):
            raise ConfigError(
                f"{root}: holds class folders ('{os.fsdecode(next(filter(None, tops)))}') and also images outside of "
                f"them ('{os.fsdecode(flat[0])}'); move those into a class folder, or away"
            )
        classes = () if flat else tuple(os.fsdecode(top) for top in sorted(set(tops)))
        _check_classes(root, classes)
        numbers = {os.fsencode(name): number for number, name in enumerate(classes)}
        self.root, self.classes = str(root), classes
        self.labels = np.array([numbers.get(top, -1) for top in tops], np.int32)
        self.identity = hashlib.sha256(b"".join(b"%b\0" % name for name in names)).hexdigest()
        self.content = hashlib.sha256(b"".join(b"%b\0%d %d\n" % file for file in found)).hexdigest()
        self._names = b"".join(names)
        self._ends = np.cumsum([len(name) for name in names], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def read(self, index: int) -> tuple[bytes | Pixels, int]:
        """Returns the file's bytes and the number of its class."""
        with open(self.where(index), "rb") as file:
            return file.read(), int(self.labels[index])

    def where(self, index: int) -> str:
        """Returns the file's path."""
        start = int(self._ends[index - 1]) if index else 0
        return os.path.join(self.root, os.fsdecode(self._names[start : int(self._ends[index])]))


def files(folder: Path, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yields the relative name of every image in a tree; hidden files and links to a folder above are passed over."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                back = entry.is_symlink() and folder.resolve().is_relative_to(Path(entry.path).resolve())
                if not back:
                    yield from files(Path(entry.path), f"{prefix}{entry.name}/")
            elif entry.name.lower().endswith(EXTENSIONS):
                yield prefix + entry.name, entry.stat()  # a broken link is an error now, not in the middle of a run


def _check_classes(root: Path, classes: tuple[str, ...]) -> None:
    if classes and {name.lower() for name in classes} <= _SPLITS:
        raise ConfigError(
            f"{root}: its folders ({', '.join(classes)}) are splits, not classes; give {root / classes[0]}"
        )
    if classes:
        empty = sorted({e.name for e in os.scandir(root) if e.is_dir() and not e.name.startswith(".")} - set(classes))
        if empty:
            raise ConfigError(f"{root / empty[0]}: a class folder without images; remove it, or put its images there")
