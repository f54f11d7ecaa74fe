"""The index of a set of shards: one record of fixed width per sample, and how it is known to be undamaged.

A small index is hashed whole whenever it is opened. A large one comes with a list of hashes, one per chunk: the list is
checked when the index is opened, and each chunk when a record in it is first read, so that opening stays fast.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrp.data.manifest import ManifestError
from mrp.files import sha256_of, write_atomically

INDEX, HASHES = "index.bin", "index.sha256"
SMALL = 1 << 28  # bytes of an index up to which it is hashed whole

RECORD = np.dtype(
    [
        ("offset", "<u8"),  # of the image's first byte in its shard
        ("shard", "<u4"),
        ("size", "<u4"),  # of the image in bytes
        ("crc32", "<u4"),  # of these bytes
        ("label", "<i4"),  # -1 where there is none
        ("width", "<u4"),  # as stored, before EXIF turns it; 0 where the header could not be read
        ("height", "<u4"),
    ]
)
Records = NDArray[np.void]

_CHUNK = 2048 * RECORD.itemsize  # bytes


def seal(path: Path) -> tuple[str, str]:
    """Returns the hash of an index at `path`, and that of the list of its chunks' hashes, which is written beside it.

    A small index has no such list, and an empty hash of it.
    """
    if path.stat().st_size <= SMALL:
        return sha256_of(path), ""
    with path.open("rb") as file:
        hashes = b"".join(_sha256(chunk) for chunk in iter(lambda: file.read(_CHUNK), b""))
    write_atomically(path.with_name(HASHES), hashes)
    return sha256_of(path), _sha256(hashes).hex()


def _sha256(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


class Index:
    """The records of a set: mapped into memory to be scanned, or read one by one.

    Reading by pread leaves no page of the index in a worker's memory, however many records it has read.
    """

    def __init__(self, path: Path, count: int) -> None:
        self.path, self.count = path, count
        size = path.stat().st_size
        if size != count * RECORD.itemsize:
            raise ManifestError(
                f"{path.name}: {size} bytes where {count * RECORD.itemsize} are expected for {count} samples"
            )
        self._hashes = b""
        self._checked = np.zeros(0, bool)  # of each chunk
        self._descriptor: int | None = None

    def check(self, sha256: str) -> None:
        """Compare the whole index with its hash."""
        if sha256_of(self.path) != sha256:
            raise ManifestError(f"{INDEX} is damaged: its sha256 is not the manifest's")

    def check_when_read(self, hashes: bytes, sha256: str) -> None:
        """Compare the list of hashes with its own, and from now on each chunk with the list."""
        if _sha256(hashes).hex() != sha256:
            raise ManifestError(f"{HASHES} is damaged: its sha256 is not the manifest's")
        self._hashes, self._checked = hashes, np.zeros(self.num_chunks, bool)

    def _check_chunk(self, number: int) -> None:
        if not self._checked[number]:
            content = os.pread(self._open(), _CHUNK, number * _CHUNK)
            if _sha256(content) != self._hashes[32 * number : 32 * number + 32]:
                raise ManifestError(f"{self.path}: is damaged after byte {number * _CHUNK}; put it back")
            self._checked[number] = True

    @property
    def num_chunks(self) -> int:
        """The number of chunks, and of hashes in the list."""
        return -(-self.count * RECORD.itemsize // _CHUNK)

    def __len__(self) -> int:
        return self.count

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptor": None}

    def _open(self) -> int:
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        return self._descriptor

    def __getitem__(self, number: int) -> Any:
        if self._hashes:
            self._check_chunk(number * RECORD.itemsize // _CHUNK)
        return np.frombuffer(os.pread(self._open(), RECORD.itemsize, number * RECORD.itemsize), RECORD)[0]

    def __del__(self) -> None:
        if getattr(self, "_descriptor", None) is not None:
            os.close(self._open())

    def mapped(self) -> Records:
        """Returns all records, as an array on the disk."""
        for number in range(len(self._checked)):
            self._check_chunk(number)
        return np.memmap(self.path, RECORD, "r", shape=(self.count,)) if self.count else np.empty(0, RECORD)
