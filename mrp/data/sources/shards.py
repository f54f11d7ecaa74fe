"""Sets of shards: read in place where they are local, through the node's cache where they are on a server."""

from __future__ import annotations

import contextlib
import os
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mrp.config import ConfigError, Node
from mrp.data import source
from mrp.data.index import HASHES, INDEX, RECORD, SMALL, Index
from mrp.data.manifest import MANIFEST, ManifestError, parse
from mrp.data.order import Ints
from mrp.data.shardtool.scan import keys_of
from mrp.data.source import Pixels
from mrp.data.storage.cache import Cache
from mrp.data.storage.descriptors import OpenFiles
from mrp.data.storage.hub import HubStore
from mrp.data.storage.open import open_store
from mrp.data.storage.store import DEADLINE, StorageError, Store, announced

_OPEN_COPIES = 64  # in the cache, of one process and one source: each that was removed there still takes space


class Config(Node):
    """A folder or an address with a `manifest.json`, made by `mrp shards build` or `mrp shards index`."""

    name: Literal["shards"] = "shards"
    path: str  # a folder, or an address of http, s3, gs, az or hf


def recognise(text: str) -> Config | None:
    """Returns a configuration if `data.train` names this kind of source."""
    path = Path(text).expanduser()
    address = "://" in text or text.startswith("pipe:")
    return Config(path=text) if address or path.name == MANIFEST or (path / MANIFEST).is_file() else None


class Source(source.Source):
    """A set of shards with its manifest and index."""

    checked = True

    def __init__(
        self, config: Config, split: Literal["train", "test"], cache: Cache, deadline: float = DEADLINE
    ) -> None:
        self.path, self.cache = config.path.removesuffix(MANIFEST).rstrip("/") or "/", cache
        if "://" in self.path and self.path.endswith(".tar"):
            raise ConfigError(f"{self.path}: names shards and no set; 'mrp shards index {self.path} OUT' makes OUT one")
        home = open_store(self.path, deadline)
        if home.local and not (path := Path(home.where(MANIFEST))).exists() and path.parent.is_dir():
            raise ConfigError(
                f"{self.path}: holds no {MANIFEST}, so it is no set of shards; 'mrp shards build {self.path} OUT' makes"
                f" one of images, 'mrp shards index {self.path}' completes webdataset shards that others made"
            )
        with contextlib.nullcontext() if home.local else announced(self.path, deadline):
            self._read(home, deadline)

    def _read(self, home: Store, deadline: float) -> None:
        """Reads what the set says of itself."""
        try:
            self.manifest = parse(self._newest_manifest(home))
            self.index = self._open_index(home)
        except ManifestError as error:
            raise ConfigError(f"{home.where(MANIFEST)}: {error}; make it anew with 'mrp shards index'") from None
        self.store = open_store(self.manifest.location, deadline) if self.manifest.location else home
        if self.store.local:
            self._check_present(Path(self.manifest.location or self.path).expanduser())
        self.classes, self.identity = self.manifest.classes, self.manifest.identity
        self.lossy_names = self.manifest.keys_have_lost_letters
        self._keys = -1, list[str]()  # of the samples of a shard
        self._files = OpenFiles() if self.store.local else OpenFiles(_OPEN_COPIES)

    def _newest_manifest(self, home: Store) -> bytes:
        """Returns the text; of a set on the hub that of the last time where there is no network."""
        if not isinstance(home, HubStore):
            return home.read(MANIFEST, 0, home.size(MANIFEST))
        with home.hurried():
            return self.cache.latest(home, MANIFEST)

    def _open_index(self, home: Store) -> Index:
        """Returns the index once it is known to be what the manifest names; a damaged copy is fetched again."""
        manifest, size = self.manifest, self.manifest.count * RECORD.itemsize
        for last in (home.local, True):
            path = self._beside(home, INDEX, manifest.index_sha256, size)
            index = Index(path, manifest.count)
            try:
                if size > SMALL and manifest.hashes_sha256:
                    hashes = self._beside(home, HASHES, manifest.hashes_sha256, index.num_chunks * 32)
                    index.check_when_read(hashes.read_bytes(), manifest.hashes_sha256)
                else:
                    index.check(manifest.index_sha256)
                break
            except ManifestError:
                if last:
                    raise
                self.cache.drop(path)
        return index

    def _beside(self, home: Store, name: str, sha256: str, size: int) -> Path:
        """Returns a file that stands beside the manifest: in place, or its copy in the cache."""
        if not home.local:
            return self.cache.get(home, name, sha256, size, index=True)
        home.size(name)  # an error that names it if it is missing
        return Path(home.where(name))

    def _check_present(self, folder: Path) -> None:
        present = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
        for shard in self.manifest.shards:
            if shard.name not in present and not (folder / shard.name).is_file():
                raise StorageError(f"{folder / shard.name}: the shard is missing; put it back")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "labels"}  # those are on the disk

    @cached_property
    def labels(self) -> NDArray[Any]:
        """The label of every sample, from the disk."""
        labels: NDArray[np.int32] = self.index.mapped()["label"]
        return labels

    @cached_property
    def shard_sizes(self) -> Ints:
        """How many samples each shard holds."""
        return np.array([shard.count for shard in self.manifest.shards], np.int64)

    def __len__(self) -> int:
        return len(self.index)

    def read(self, index: int) -> tuple[bytes | Pixels, int]:
        """Returns the bytes of the image, whose checksum is verified, and the label.

        Bytes that do not fit are read again, from the server if the shard is a copy in the cache.
        """
        start, shard, size, crc32, label = self._record(index)
        for _ in range(2):
            data = os.pread(self.descriptor(shard), size, start)
            if len(data) == size and zlib.crc32(data) == crc32:
                return data, label
            self._forget(shard)
        if len(data) < size:
            raise StorageError(f"{self._path(shard)}: cut short: it ends before byte {start + size}; put it back")
        raise StorageError(
            f"{self._path(shard)}: the bytes from {start} on are not those that were indexed (crc32), in two reads; "
            "put back the right shard"
        )

    def _record(self, index: int) -> tuple[int, int, int, int, int]:
        """Returns offset, shard, size, checksum and label."""
        start, shard, size, crc32, label, _, _ = self.index[index].item()
        if not self.manifest.holds(shard, start, size):
            raise StorageError(
                f"{self.index.path}: sample {index} is not inside a shard (shard {shard}, byte {start}); make the "
                "index anew with 'mrp shards index'"
            )
        return start, shard, size, crc32, label

    def descriptor(self, shard: int) -> int:
        """Returns the open file of a shard, which is fetched first where it is remote."""
        return self._files.get(shard, self._open)

    def _open(self, shard: int) -> int:
        entry = self.manifest.shards[shard]
        while True:
            if self.store.local and (size := self.store.size(entry.name)) != entry.bytes:
                raise StorageError(
                    f"{self._path(shard)}: has {size} bytes and not {entry.bytes}; put back the whole shard"
                )
            path = self._path(shard) if self.store.local else self._cached(shard)
            try:
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                if self.store.local:
                    raise
                # The cache was full, and another process made room: fetch it again.

    def _cached(self, shard: int) -> Path:
        entry = self.manifest.shards[shard]
        return self.cache.get(self.store, entry.name, entry.sha256, entry.bytes)

    def _forget(self, shard: int) -> None:
        """Makes the next read go to the storage again."""
        self._files.forget(shard)
        if not self.store.local:
            self.cache.drop(self.cache.folder / self.manifest.shards[shard].sha256)

    def _path(self, shard: int) -> str:
        return self.store.where(self.manifest.shards[shard].name)

    def where(self, index: int) -> str:
        """Returns the shard, the number of the sample in the set, and the position of its bytes."""
        start, shard, *_ = self._record(index)
        return f"{self._path(shard)}: sample {index} (byte {start})"

    def name_of(self, index: int) -> str:
        """Returns the sample's key without the number that `mrp shards build` puts first; one shard is read at once."""
        shard = int(self.index[index]["shard"])
        if self._keys[0] != shard:
            self._keys = shard, keys_of(Path(self._path(shard)) if self.store.local else self._cached(shard))
        return self._keys[1][index - int(self.shard_sizes[:shard].sum())].removeprefix(f"{index:09}-")

    def replacement(self, index: int) -> int | None:
        """Returns the next sample of the same shard, or its first; of the whole set where it is alone in its shard."""
        shard = int(self.index[index]["shard"])
        if index + 1 < len(self) and int(self.index[index + 1]["shard"]) == shard:
            return index + 1
        first = int(self.shard_sizes[:shard].sum())
        return first if first != index else (index + 1) % len(self)

    def fetch(self, shard: int) -> None:
        """Bring a shard into the node's cache, unless it is on a disk of this node anyway."""
        if not self.store.local:
            self._cached(shard)
