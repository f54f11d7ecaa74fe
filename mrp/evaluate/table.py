"""The features of a data set as columns on disk: half precision, written once, read a few rows at a time."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mrp.batch import Batch
from mrp.config import ConfigError
from mrp.evaluate.features import evaluating
from mrp.evaluate.readout import Readout
from mrp.processes.join import Accelerator

VERSION = 1  # raise it whenever the same description could stand for other numbers
_META = "meta.json"
_UNFINISHED = ".unfinished-"
_LARGEST = float(np.finfo(np.float16).max)
_AT_ONCE = 1 << 24  # bytes that a checksum reads


@dataclass(frozen=True, slots=True)
class Table:
    """What a backbone says of every sample, in the order of the data set; columns may be maps of files."""

    columns: Mapping[str, NDArray[Any]]  # N D each
    labels: Tensor  # N int64; -1 where the data has no labels
    keys: Tensor  # N int64

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, names: Iterable[str], rows: NDArray[np.int64] | slice) -> Tensor:
        """Some rows of some blocks of columns side by side, in single precision."""
        parts = [np.asarray(self.columns[name][rows]) for name in names]
        return torch.from_numpy(np.concatenate(parts, axis=1, dtype=np.float32))

    def chunks(self, size: int) -> Iterable[slice]:
        """All rows, so many at a time."""
        return (slice(start, min(start + size, len(self))) for start in range(0, len(self), size))


@dataclass(frozen=True, slots=True)
class Store:
    """A folder of tables, each under the hash of what it was made from; any of them may be removed at any time."""

    folder: Path

    def get(
        self,
        made_from: Mapping[str, Any],
        readout: Readout,
        batches: Iterable[Batch],
        count: int,
        processes: Accelerator,
    ) -> Table | None:
        """The table, from disk where it lies whole, else made anew; of several processes the first one gets it."""
        described = {"version": VERSION, "columns": readout.widths, "count": count, **made_from}
        digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
        found = _open(self.folder / digest) if processes.is_main_process else None
        # The first process looks and all do as it says: the folder may be on its disk alone.
        known = torch.tensor([int(found is not None)], device=processes.device)
        if int(processes.reduce(known, "sum")):
            return found
        writer = self._writer(digest, described) if processes.is_main_process else None
        _run(readout, batches, processes, writer, count)
        return None if writer is None else writer.finish()

    def _writer(self, digest: str, described: Mapping[str, Any]) -> Writer:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for leftover in self.folder.glob(f"{_UNFINISHED}*"):
                _remove_if_abandoned(leftover)
            return Writer(self.folder / digest, described)
        except OSError as error:
            raise ConfigError(_refusal(self.folder, described, error)) from None


class Writer:
    """A table in the making, under another name: rows in any order, each once, and renamed when it is whole."""

    def __init__(self, place: Path, described: Mapping[str, Any]) -> None:
        self.place = place
        self.described = described
        self.widths: dict[str, int] = described["columns"]
        self.unfinished = place.with_name(f"{_UNFINISHED}{place.name}-{os.getpid()}")
        self.unfinished.mkdir()
        self._lock = os.open(self.unfinished, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)  # let go by the system when this process ends, however it ends
        self._files: dict[str, BinaryIO] = {}
        for name in self.widths:
            self._files[name] = open(self.unfinished / f"{name}.f16", "wb")  # noqa: SIM115 -- closed by `discard`
        count = described["count"]
        self._labels, self._keys = np.full(count, -1, np.int64), np.zeros(count, np.int64)
        self._seen = np.zeros(count, bool)
        self._broken = 0

    def put(self, first: int, features: Tensor, labels: Tensor, keys: Tensor) -> None:
        """Consecutive rows from `first` on."""
        rows = slice(first, first + len(labels))
        assert rows.stop <= len(self._seen), "more rows than samples"
        assert not self._seen[rows].any(), "a sample was seen twice"
        self._seen[rows], self._labels[rows], self._keys[rows] = True, labels.numpy(), keys.numpy()
        self._broken += int((~(features.abs() <= _LARGEST).all(dim=1)).sum())
        parts = features.half().split(list(self.widths.values()), dim=1)
        try:
            for file, part in zip(self._files.values(), parts, strict=True):
                file.seek(2 * first * part.shape[1])
                file.write(part.contiguous().numpy().tobytes())
        except OSError as error:
            self.discard()
            raise ConfigError(_refusal(self.place.parent, self.described, error)) from None

    def finish(self) -> Table:
        """Check that all rows are there and finite, note the checksums, take the final name, and open it."""
        count = len(self._seen)
        try:
            if self._broken:
                raise ConfigError(
                    f"the features of {self._broken} of {count} samples are not finite in half precision; take an "
                    "earlier checkpoint"
                )
            assert self._seen.all(), f"{int((~self._seen).sum())} of {count} samples were not seen"
            assert len(np.unique(self._keys)) == count, "a sample was seen twice"
            for file in self._files.values():
                file.close()
            np.save(self.unfinished / "labels.npy", self._labels)
            np.save(self.unfinished / "keys.npy", self._keys)
            files = {path.name: _checksum(path) for path in sorted(self.unfinished.iterdir())}
            (self.unfinished / _META).write_text(json.dumps({"made_from": self.described, "files": files}, indent=1))
            shutil.rmtree(self.place, ignore_errors=True)  # damaged, or it would have been used
            self.unfinished.rename(self.place)
        except OSError as error:
            raise ConfigError(_refusal(self.place.parent, self.described, error)) from None
        finally:
            self.discard()
        found = _open(self.place)
        assert found is not None, self.place
        return found

    def discard(self) -> None:
        """Leave nothing unfinished behind."""
        for file in self._files.values():
            file.close()
        shutil.rmtree(self.unfinished, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _run(readout: Readout, batches: Iterable[Batch], processes: Accelerator, writer: Writer | None, count: int) -> None:
    """Take every batch through the backbone; rank r has the r-th contiguous slice of the data."""
    world, done = processes.num_processes, 0
    each = -(-count // world)
    try:
        with evaluating(readout):
            for batch in batches:
                gathered = processes.gather(_rows(readout, batch.to(processes.device, non_blocking=True)))
                if writer is not None:
                    ranks = zip(*(tensor.cpu().chunk(world) for tensor in gathered), strict=True)
                    for rank, (features, labels, keys, valid) in enumerate(ranks):
                        writer.put(rank * each + done, features[valid], labels[valid], keys[valid])
                done += len(batch.keys)
    except BaseException:
        if writer is not None:
            writer.discard()
        raise


def _rows(readout: Readout, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    labels = torch.full_like(batch.keys, -1) if batch.labels is None else batch.labels
    valid = torch.ones_like(batch.keys, dtype=torch.bool) if batch.valid is None else batch.valid
    return readout(batch), labels, batch.keys, valid


def _open(place: Path) -> Table | None:
    """A table if it is there and every byte of it is as it was written."""
    try:
        meta = json.loads((place / _META).read_text(encoding="utf-8"))
        if any(_checksum(place / name) != number for name, number in meta["files"].items()):
            return None
        made, count = meta["made_from"], meta["made_from"]["count"]
        columns = {
            name: np.memmap(place / f"{name}.f16", np.float16, "r", shape=(count, width))
            for name, width in made["columns"].items()
        }
        labels, keys = (torch.from_numpy(np.load(place / f"{name}.npy")) for name in ("labels", "keys"))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Table(columns, labels, keys)


def _checksum(path: Path) -> int:
    number = 0
    with path.open("rb") as file:
        while data := file.read(_AT_ONCE):
            number = zlib.crc32(data, number)
    return number


def _remove_if_abandoned(folder: Path) -> None:
    """Remove what a killed process has left; one that lives holds a lock on its own."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(descriptor)


def _refusal(folder: Path, described: Mapping[str, Any], error: OSError) -> str:
    gib = 2 * described["count"] * sum(described["columns"].values()) / 2**30
    return (
        f"{folder}: the features ({gib:.1f} GiB) cannot be written: {error.strerror or error}; make room, or name "
        "another folder with --cache"
    )
