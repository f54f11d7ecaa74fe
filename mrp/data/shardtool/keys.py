"""Whether a key stands twice in a set of any size: hashes of keys, spread over files of which one is read at a time.

Keys of equal hashes are then compared themselves: two hashes of 64 bits are equal by chance in 3 % of all sets of a
billion keys, and in nearly all of ten billion.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np

from mrp.data.order import Ints, Words

_ENTRY = np.dtype([("hash", np.uint64), ("sample", np.int64)])


class Keys:
    """The hashes of all keys, added in the order of the samples; equal ones are kept in the same file."""

    def __init__(self, files: Sequence[BinaryIO]) -> None:
        self._files = files
        self._count = 0

    def add(self, hashes: Words) -> None:
        """Takes the hashes of one shard's keys."""
        entries = np.empty(len(hashes), _ENTRY)
        entries["hash"] = hashes
        entries["sample"] = np.arange(self._count, self._count + len(hashes))
        numbers = hashes % np.uint64(len(self._files))
        for number in np.unique(numbers).tolist():
            self._files[number].write(entries[numbers == number].tobytes())
        self._count += len(hashes)

    def repeated(self) -> Iterator[Ints]:
        """Yields the samples of each hash that stands more than once."""
        for file in self._files:
            file.seek(0)
            entries = np.frombuffer(file.read(), _ENTRY)
            hashes = np.sort(entries["hash"])
            for value in np.unique(hashes[1:][hashes[1:] == hashes[:-1]]):
                yield entries["sample"][entries["hash"] == value]
