"""The features of a data set as columns on disk: half precision, written once, read a few rows at a time."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mrp.config import ConfigError
from mrp.files import lock

META = "meta.json"
UNFINISHED = ".unfinished-"  # the beginning of a folder's name while the table in it is being written
_LARGEST = float(np.finfo(np.float16).max)
_AT_ONCE = 1 << 24  # bytes that a checksum reads


Ints = NDArray[np.int64]


class Gathered:
    """Some rows of several blocks that are thought of as one below the other; they stay where they are until read."""

    def __init__(self, parts: Sequence[Columns], rows: Ints) -> None:
        self._parts, self._rows = parts, rows
        self._ends = np.cumsum([len(part) for part in parts])
        self.shape: tuple[int, ...] = (len(rows), parts[0].shape[1])
        self.dtype: np.dtype[Any] = parts[0].dtype

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        chosen = self._rows[rows]
        of = np.searchsorted(self._ends, chosen, side="right")
        found = np.empty((len(chosen), self.shape[1]), self.dtype)
        for number, (part, end) in enumerate(zip(self._parts, self._ends, strict=True)):
            here = np.flatnonzero(of == number)
            if len(here):
                found[here] = part[chosen[here] - (end - len(part))]
        return found


Columns = NDArray[Any] | Gathered  # one block of columns (N D): an array, the map of a file, or gathered rows


@dataclass(frozen=True, slots=True)
class Table:
    """The features of every sample, in the order of the data set; columns may be maps of files.

    Where images are seen under several views, all of them stand under the first, then all under the second.
    """

    columns: Mapping[str, Columns]  # N D each
    labels: Tensor  # N int64; -1 where the data has no labels
    keys: Tensor  # N int64
    views: int = 1
    grouped: Tensor | None = None  # N int64, the group of each image, where the data have groups

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> int:
        """Returns how many images there are, however many views of each."""
        return len(self) // self.views

    @property
    def groups(self) -> Tensor:
        """Returns what images that belong together have in common: their group, or of each image its own key."""
        return self.keys if self.grouped is None else self.grouped

    @property
    def group_numbers(self) -> Ints | None:
        """Returns the group of each image, for intervals; None where the data have no groups."""
        return None if self.grouped is None else self.grouped.numpy()

    def every_view(self, images: Ints) -> Ints:
        """Returns the rows of all views of some images, which are given by their numbers in ascending order."""
        return np.concatenate([images + view * self.images for view in range(self.views)])

    def only(self, images: Ints) -> Table:
        """Returns the table of some images, given by their numbers in ascending order, under all of their views."""
        rows = self.every_view(images)
        columns = {name: Gathered([block], rows) for name, block in self.columns.items()}
        index = torch.from_numpy(rows)
        grouped = None if self.grouped is None else self.grouped[index]
        return Table(columns, self.labels[index], self.keys[index], self.views, grouped)

    def rows(self, names: Iterable[str], rows: NDArray[np.int64] | slice) -> Tensor:
        """Returns some rows of some blocks of columns side by side, in single precision."""
        parts = [np.asarray(self.columns[name][rows]) for name in names]
        return torch.from_numpy(np.concatenate(parts, axis=1, dtype=np.float32))

    def chunks(self, size: int) -> Iterable[slice]:
        """Returns slices that cover all rows, `size` rows at a time."""
        return (slice(start, min(start + size, len(self))) for start in range(0, len(self), size))


class Writer:
    """Writes a table under another name: rows in any order, each once; the folder is renamed when it is complete."""

    def __init__(self, folder: Path, described: Mapping[str, Any]) -> None:
        self.folder = folder
        self.described = described
        self.widths: dict[str, int] = described["columns"]
        self.unfinished = folder.with_name(f"{UNFINISHED}{folder.name}{here()}{os.getpid()}")
        self.unfinished.mkdir()
        self._lock = os.open(self.unfinished, os.O_RDONLY)
        lock(self._lock, fcntl.LOCK_EX)  # released by the system when this process ends, however it ends
        self._files: dict[str, BinaryIO] = {}
        for name in self.widths:
            self._files[name] = open(self.unfinished / f"{name}.f16", "wb")  # noqa: SIM115 -- closed by `discard`
        count = described["count"]
        self._labels, self._keys = np.full(count, -1, np.int64), np.zeros(count, np.int64)
        self._seen = np.zeros(count, bool)
        self._not_finite = 0

    def put(self, first: int, features: Tensor, labels: Tensor, keys: Tensor) -> None:
        """Writes consecutive rows, the first of which has the number `first`."""
        rows = slice(first, first + len(labels))
        assert rows.stop <= len(self._seen), "more rows than samples"
        assert not self._seen[rows].any(), "a sample was seen twice"
        self._seen[rows], self._labels[rows], self._keys[rows] = True, labels.numpy(), keys.numpy()
        self._not_finite += int((~(features.abs() <= _LARGEST).all(dim=1)).sum())
        parts = features.half().split(list(self.widths.values()), dim=1)
        for file, part in zip(self._files.values(), parts, strict=True):
            file.seek(2 * first * part.shape[1])
            file.write(part.contiguous().numpy().tobytes())

    def finish(self) -> Table:
        """Checks that all rows are there and finite, notes the checksums, renames the folder and opens the table."""
        count = len(self._seen)
        try:
            if self._not_finite:
                raise ConfigError(
                    f"the features of {self._not_finite} of {count} samples are not finite in half precision; take an "
                    "earlier checkpoint"
                )
            assert self._seen.all(), f"{int((~self._seen).sum())} of {count} samples were not seen"
            assert len(np.unique(self._keys)) == count, "a sample was seen twice"
            for file in self._files.values():
                file.close()
            np.save(self.unfinished / "labels.npy", self._labels)
            np.save(self.unfinished / "keys.npy", self._keys)
            files = {path.name: _checksum(path) for path in sorted(self.unfinished.iterdir())}
            (self.unfinished / META).write_text(json.dumps({"made_from": self.described, "files": files}, indent=1))
            if self.described.get("weights") and (theirs := open_table(self.folder)) is not None:
                return theirs  # another process has made it meanwhile, and may be reading it
            shutil.rmtree(self.folder, ignore_errors=True)  # a damaged table, or it would have been used
            self.unfinished.rename(self.folder)
        finally:
            self.discard()
        table = open_table(self.folder)
        assert table is not None, self.folder
        return table

    def discard(self) -> None:
        """Removes what is unfinished."""
        for file in self._files.values():
            file.close()
        shutil.rmtree(self.unfinished, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def here() -> str:
    """Returns what tells unfinished tables of this machine from those of others, whose locks it cannot see."""
    return f"-{socket.gethostname()}-"


def under_views(tables: Sequence[Table], names: Iterable[str]) -> Table:
    """Returns one table of the same images under several views, from one table per view."""
    rows = np.arange(sum(len(table) for table in tables))
    columns = {name: Gathered([table.columns[name] for table in tables], rows) for name in names}
    labels, keys = (torch.cat([getattr(table, name) for table in tables]) for name in ("labels", "keys"))
    grouped = tables[0].grouped
    return Table(columns, labels, keys, len(tables), None if grouped is None else grouped.repeat(len(tables)))


def open_table(folder: Path) -> Table | None:
    """Returns a table if it is there and every byte of it is as it was written."""
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        if any(_checksum(folder / name) != number for name, number in meta["files"].items()):
            return None
        made_from, count = meta["made_from"], meta["made_from"]["count"]
        columns = {
            name: np.memmap(folder / f"{name}.f16", np.float16, "r", shape=(count, width))
            for name, width in made_from["columns"].items()
        }
        labels, keys = (torch.from_numpy(np.load(folder / f"{name}.npy")) for name in ("labels", "keys"))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Table(columns, labels, keys)


def _checksum(path: Path) -> int:
    number = 0
    with path.open("rb") as file:
        while data := file.read(_AT_ONCE):
            number = zlib.crc32(data, number)
    return number
