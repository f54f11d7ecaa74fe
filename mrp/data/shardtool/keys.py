"""Whether a key stands twice in a set of any size: hashes of keys, sorted on the disk and compared in a bounded memory.

Keys of equal hashes are then compared themselves: two hashes of 64 bits are equal by chance in 3 % of all sets of a
billion keys, and in nearly all of ten billion.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mrp.data.order import Ints, Words

_RUN = 1 << 21  # hashes that are sorted in memory at a time


class _Run(NamedTuple):
    """The sorted hashes of samples that follow each other, and which of these samples each belongs to."""

    first: int  # sample
    size: int
    start: int  # byte in the file


class Keys:
    """The hashes of all keys, kept in a file and added in the order of the samples."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._runs = list[_Run]()
        self._waiting = list[Words]()
        self._count = 0

    def add(self, hashes: Words) -> None:
        """Takes the hashes of one shard's keys."""
        self._waiting.append(hashes)
        self._count += len(hashes)
        if sum(map(len, self._waiting)) >= _RUN:
            self._write_run()

    def _write_run(self) -> None:
        hashes = np.concatenate(self._waiting)
        self._waiting.clear()
        if not len(hashes):
            return
        order = np.argsort(hashes)
        self._runs.append(_Run(self._count - len(hashes), len(hashes), self._file.tell()))
        self._file.write(hashes[order].tobytes())
        self._file.write(order.astype(np.uint32).tobytes())

    def repeated(self) -> Iterator[Ints]:
        """Yields the samples of each hash that stands more than once."""
        if self._waiting:
            self._write_run()
        self._file.flush()
        num_ranges = -(-self._count // _RUN)  # of hashes, each with about as many of them as a run
        bounds = np.array([number * 2**64 // num_ranges for number in range(1, num_ranges)], np.uint64)
        cuts = [self._cuts(run, bounds) for run in self._runs]
        for number in range(num_ranges):
            parts = [
                self._part(run, *cut[number : number + 2].tolist()) for run, cut in zip(self._runs, cuts, strict=True)
            ]
            yield from _groups(
                np.concatenate([hashes for hashes, _ in parts]), np.concatenate([samples for _, samples in parts])
            )

    def _cuts(self, run: _Run, bounds: Words) -> NDArray[np.uint32]:
        """Returns where each range begins in a run, and the end of the last."""
        hashes = np.memmap(self._file, np.uint64, "r", run.start, (run.size,))
        return np.array([0, *np.searchsorted(hashes, bounds), run.size], np.uint32)

    def _part(self, run: _Run, begin: int, end: int) -> tuple[Words, Ints]:
        """Returns some hashes of a run and their samples."""
        descriptor, count = self._file.fileno(), end - begin
        hashes = np.frombuffer(os.pread(descriptor, 8 * count, run.start + 8 * begin), np.uint64)
        order = os.pread(descriptor, 4 * count, run.start + 8 * run.size + 4 * begin)
        return hashes, run.first + np.frombuffer(order, np.uint32).astype(np.int64)


def _groups(hashes: Words, samples: Ints) -> Iterator[Ints]:
    order = np.argsort(hashes)
    sorted_hashes = hashes[order]
    for value in np.unique(sorted_hashes[1:][sorted_hashes[1:] == sorted_hashes[:-1]]):
        yield np.sort(samples[hashes == value])
