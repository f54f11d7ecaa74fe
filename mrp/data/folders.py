"""Folders of image files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mrp.config import ConfigError
from mrp.data.cache import Prefetch
from mrp.data.decode import Pixels
from mrp.data.order import Ints

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")

_SPLITS = {"train", "training", "val", "valid", "validation", "test"}


@dataclass(frozen=True, slots=True)
class Folder:
    """A tree of image files: the folders at its top are the classes, or there are only files and no labels.

    Its identity is that of the names, so that a file may be mended; shards know every byte of theirs.

    Names are kept as one piece of memory, so that a worker process gets millions of them in an instant.
    """

    root: str
    names: bytes
    ends: NDArray[np.int64]
    labels: NDArray[np.int32]
    classes: tuple[str, ...]
    identity: str

    @classmethod
    def scan(cls, root: Path) -> Folder:
        """Look through the whole tree once; the order of the samples is that of their names."""
        files = sorted(os.fsencode(name) for name in _files(root, ""))
        if not files:
            raise ConfigError(f"{root}: holds no images; files that count end in {', '.join(EXTENSIONS)}")
        tops = [name.partition(b"/")[0] if b"/" in name else b"" for name in files]
        flat = [name for name, top in zip(files, tops, strict=True) if not top]
        if flat and len(flat) < len(files):
            raise ConfigError(
                f"{root}: holds class folders ('{os.fsdecode(next(filter(None, tops)))}') and also images outside of "
                f"them ('{os.fsdecode(flat[0])}'); move those into a class folder, or away"
            )
        classes = () if flat else tuple(os.fsdecode(top) for top in sorted(set(tops)))
        _check_classes(root, classes)
        numbers = {os.fsencode(name): number for number, name in enumerate(classes)}
        digest = hashlib.sha256(b"".join(b"%b\0" % name for name in files))
        return cls(
            str(root),
            b"".join(files),
            np.cumsum([len(name) for name in files], dtype=np.int64),
            np.array([numbers.get(top, -1) for top in tops], np.int32),
            classes,
            digest.hexdigest(),
        )

    @property
    def blocks(self) -> Ints:
        """Nothing lies nearer than anything else."""
        return np.empty(0, np.int64)

    def neighbour(self, index: int) -> int | None:
        """A file is mended, not replaced."""
        return None

    def prefetch(self, thread: Prefetch, shard: int) -> None:
        """There is nothing to fetch."""

    def __len__(self) -> int:
        return len(self.ends)

    def read(self, index: int) -> tuple[bytes | Pixels, int]:
        """The file's bytes and the number of its class."""
        with open(self.where(index), "rb") as file:
            return file.read(), int(self.labels[index])

    def where(self, index: int) -> str:
        """The file's path."""
        start = int(self.ends[index - 1]) if index else 0
        return os.path.join(self.root, os.fsdecode(self.names[start : int(self.ends[index])]))


def _files(folder: Path, prefix: str) -> Iterator[str]:
    """Relative name of every image at or below a folder; hidden files and links back up are passed over."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                back = entry.is_symlink() and folder.resolve().is_relative_to(Path(entry.path).resolve())
                if not back:
                    yield from _files(Path(entry.path), f"{prefix}{entry.name}/")
            elif entry.name.lower().endswith(EXTENSIONS):
                entry.stat()  # a link to nowhere is named now, not in the middle of a run
                yield prefix + entry.name


def _check_classes(root: Path, classes: tuple[str, ...]) -> None:
    if classes and {name.lower() for name in classes} <= _SPLITS:
        raise ConfigError(
            f"{root}: its folders ({', '.join(classes)}) are splits, not classes; give {root / classes[0]}"
        )
    if classes:
        empty = sorted({e.name for e in os.scandir(root) if e.is_dir() and not e.name.startswith(".")} - set(classes))
        if empty:
            raise ConfigError(f"{root / empty[0]}: a class folder without images; remove it, or put its images there")
