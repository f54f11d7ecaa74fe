"""Samples by number out of shards: read in place where they are local, through the node's cache where they are not."""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrp.config import ConfigError
from mrp.data.cache import Cache, Prefetch
from mrp.data.decode import Pixels
from mrp.data.manifest import INDEX, MANIFEST, RECORD, Index, Manifest, ManifestError, parse, sha256
from mrp.data.order import Ints
from mrp.data.store import DEADLINE, StorageError, Store, open_store

_OPEN = 64  # files kept open by a process
_CHECKED = 1 << 28  # bytes of an index up to which its sha256 is checked whenever it is opened


class Shards:
    """A set of shards with its manifest and index."""

    def __init__(self, place: str, cache: Cache, deadline: float = DEADLINE) -> None:
        self.place, self.cache = place.removesuffix(MANIFEST).rstrip("/") or "/", cache
        home = open_store(self.place, deadline)
        try:
            self.manifest = parse(home.read(MANIFEST, 0, home.size(MANIFEST)))
            self.index = self._open_index(home)
        except ManifestError as error:
            raise ConfigError(f"{home.where(MANIFEST)}: {error}; make it anew with 'mrp shards index'") from None
        self.store = open_store(self.manifest.location, deadline) if self.manifest.location else home
        if self.store.local:
            self._check_present(Path(self.manifest.location or self.place).expanduser())
        self.descriptors: OrderedDict[int, int] = OrderedDict()

    def _open_index(self, home: Store) -> Index:
        size = self.manifest.count * RECORD.itemsize
        if not home.local:
            path = self.cache.get(home, INDEX, self.manifest.index_sha256, size, index=True)
            return Index(path, self.manifest.count)
        path = Path(home.where(INDEX))
        home.size(INDEX)  # says so when it is missing
        index = Index(path, self.manifest.count)
        if size <= _CHECKED and sha256(path) != self.manifest.index_sha256:
            raise ManifestError(f"{INDEX} is damaged: its sha256 is not the manifest's")
        return index

    def _check_present(self, folder: Path) -> None:
        present = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
        for shard in self.manifest.shards:
            if shard.name not in present and not (folder / shard.name).is_file():
                raise StorageError(f"{folder / shard.name}: the shard is missing; put it back")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "descriptors": OrderedDict()}

    def __del__(self) -> None:
        for descriptor in getattr(self, "descriptors", {}).values():
            os.close(descriptor)

    @property
    def identity(self) -> str:
        """That of the content, whatever place it lies in."""
        return self.manifest.identity

    @property
    def classes(self) -> tuple[str, ...]:
        """As the manifest says; empty without labels."""
        return self.manifest.classes

    @property
    def labels(self) -> NDArray[np.int32]:
        """Of every sample, from the disk."""
        labels: NDArray[np.int32] = self.index.mapped()["label"]
        return labels

    @property
    def blocks(self) -> Ints:
        """Samples in each shard."""
        return np.array([shard.count for shard in self.manifest.shards], np.int64)

    def __len__(self) -> int:
        return len(self.index)

    def read(self, index: int) -> tuple[bytes | Pixels, int]:
        """The bytes of the image, their checksum verified, and the label."""
        start, shard, size, crc32, label, _, _ = self.index[index].item()
        data = self._bytes(shard, start, size)
        if zlib.crc32(data) != crc32:
            self._forget(shard)
            data = self._bytes(shard, start, size)
            if zlib.crc32(data) != crc32:
                raise StorageError(
                    f"{self._place(shard)}: the bytes from {start} on are not those that were indexed (crc32), in two "
                    "reads; put back the right shard"
                )
        return data, label

    def _bytes(self, shard: int, start: int, size: int) -> bytes:
        data = os.pread(self._descriptor(shard), size, start)
        if len(data) != size:
            raise StorageError(f"{self._place(shard)}: cut short: it ends before byte {start + size}; put it back")
        return data

    def _descriptor(self, shard: int) -> int:
        if shard in self.descriptors:
            self.descriptors.move_to_end(shard)
            return self.descriptors[shard]
        descriptor = self._open(shard)
        if len(self.descriptors) >= _OPEN:
            os.close(self.descriptors.popitem(last=False)[1])
        self.descriptors[shard] = descriptor
        return descriptor

    def _open(self, shard: int) -> int:
        entry = self.manifest.shards[shard]
        while True:
            if self.store.local:
                path = Path(self.store.where(entry.name))
                if (size := self.store.size(entry.name)) != entry.bytes:
                    raise StorageError(f"{path}: has {size} bytes and not {entry.bytes}; put back the whole shard")
            else:
                path = self.cache.get(self.store, entry.name, entry.sha256, entry.bytes)
            try:
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                if self.store.local:
                    raise
                # The cache was full, and another process made room: fetch it again.

    def _forget(self, shard: int) -> None:
        """Have the next read go to the storage again."""
        if shard in self.descriptors:
            os.close(self.descriptors.pop(shard))
        if not self.store.local:
            self.cache.drop(self.manifest.shards[shard].sha256)

    def _place(self, shard: int) -> str:
        return self.store.where(self.manifest.shards[shard].name)

    def where(self, index: int) -> str:
        """The shard, the number of the sample in the set, and where its bytes are."""
        record = self.index[index]
        return f"{self._place(int(record['shard']))}: sample {index} (byte {record['offset']})"

    def neighbour(self, index: int) -> int | None:
        """The next sample of the same shard, or its first; of the whole set where it is alone in its shard."""
        shard = int(self.index[index]["shard"])
        following = index + 1
        if following < len(self) and int(self.index[following]["shard"]) == shard:
            return following
        first = int(self.blocks[:shard].sum())
        return first if first != index else following % len(self)

    def prefetch(self, thread: Prefetch, shard: int) -> None:
        """Have a shard fetched in the background."""
        if not self.store.local:
            entry = self.manifest.shards[shard]
            thread.ask(self.cache, self.store, entry.name, entry.sha256, entry.bytes)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a local set."""
    try:
        return parse((folder / MANIFEST).read_bytes())
    except OSError as error:
        raise ConfigError(f"{folder}: holds no {MANIFEST} ({error.strerror}); 'mrp shards build' makes one") from None
    except ManifestError as error:
        raise ConfigError(f"{folder / MANIFEST}: {error}; make it anew with 'mrp shards index'") from None
