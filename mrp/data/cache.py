"""Remote shards on this node: whole, named by their sha256, verified, each fetched once however many processes ask."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

from pydantic import Field

from mrp.config import ConfigError, Node
from mrp.data.manifest import is_sha256
from mrp.data.store import StorageError, Store

_PIECE = 16 << 20  # bytes of one request
_INDEX = ".index"  # the ending of files that are never removed


class Config(Node):
    """`machine.cache:`; each node keeps the shards of its lanes here."""

    folder: str = ""  # by default mrp in the user's cache folder
    gib: float = Field(100, gt=0)


class Cache:
    """A folder of files named by their sha256; the longest unused go first when it is full, and indexes never."""

    def __init__(self, config: Config) -> None:
        home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        self.folder = Path(config.folder or f"{home}/mrp").expanduser()
        self.limit = int(config.gib * 2**30)

    def get(self, store: Store, name: str, sha256: str, size: int, *, index: bool = False) -> Path:
        """The file, fetched if it is not here; whoever asks for one that is being fetched waits for it."""
        if not is_sha256(sha256):
            raise ConfigError(f"{store.where(name)}: {sha256[:80]!r} is no sha256; make its manifest anew")
        path = self.folder / (f"{sha256}{_INDEX}" if index else sha256)
        if self._here(path, size):
            return path
        if size > self.limit:
            raise ConfigError(
                f"machine.cache.gib: {self.limit / 2**30:g} is less than {name} alone ({size / 2**30:.3g}); raise it"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._lock(sha256):
                if not self._here(path, size):
                    self._make_room(name, size)
                    self._fetch(store, name, path, size)
        except OSError as error:
            raise StorageError(
                f"{self.folder}: cannot be written: {error.strerror}; set machine.cache.folder to a disk with space"
            ) from None
        return path

    def drop(self, sha256: str) -> None:
        """Forget a file that turned out to be damaged."""
        (self.folder / sha256).unlink(missing_ok=True)

    def _here(self, path: Path, size: int) -> bool:
        try:
            os.utime(path)  # the last use, by which the oldest are found
            return path.stat().st_size == size
        except (FileNotFoundError, NotADirectoryError):
            return False

    @contextlib.contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        with (self.folder / f".{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _make_room(self, name: str, size: int) -> None:
        with self._lock("room"):
            files = [(path.stat(), path) for path in self.folder.iterdir() if not path.name.startswith(".")]
            used = sum(status.st_size for status, _ in files)
            for status, path in sorted(files, key=lambda pair: pair[0].st_mtime_ns):
                if used + size <= self.limit:
                    break
                if path.suffix != _INDEX:  # runs look samples up in it to their end
                    path.unlink()  # whoever has it open goes on reading it
                    used -= status.st_size
            if used + size > self.limit:
                raise ConfigError(
                    f"machine.cache.gib: {self.limit / 2**30:g} has no room for {name} ({size / 2**30:.3g}) beside the "
                    f"indexes in {self.folder} ({used / 2**30:.3g}); raise it, or remove those of data no longer used"
                )

    def _fetch(self, store: Store, name: str, path: Path, size: int) -> None:
        """In pieces, twice if what came is not what was asked for."""
        unfinished = path.with_name(f".{path.name}.unfinished")
        for _ in range(2):
            digest = hashlib.sha256()
            with unfinished.open("wb") as file:
                for start in range(0, size, _PIECE):
                    piece = store.read(name, start, min(start + _PIECE, size))
                    digest.update(piece)
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            if digest.hexdigest() == path.stem:
                unfinished.replace(path)
                return
        unfinished.unlink()
        raise StorageError(
            f"{store.where(name)}: its sha256 is {digest.hexdigest()[:12]}..., not {path.stem[:12]}... as the manifest "
            "says, in two fetches; put back the right file"
        )


class Prefetch:
    """A thread that fetches what will be needed soon; what goes wrong there is met again by whoever needs the file."""

    def __init__(self) -> None:
        self._wanted: SimpleQueue[tuple[Cache, Store, str, str, int] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def ask(self, cache: Cache, store: Store, name: str, sha256: str, size: int) -> None:
        """Fetch this, after what was asked for before."""
        self._wanted.put((cache, store, name, sha256, size))

    def _run(self) -> None:
        while (wanted := self._wanted.get()) is not None:
            cache, store, name, sha256, size = wanted
            with contextlib.suppress(ConfigError):
                cache.get(store, name, sha256, size)

    def close(self) -> None:
        """End after what was asked for."""
        self._wanted.put(None)
