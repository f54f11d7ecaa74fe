"""Remote shards on this node: whole, named by their sha256, verified, each fetched once however many processes ask."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue

from mrp.config import ConfigError
from mrp.data.config import CacheConfig
from mrp.data.manifest import is_sha256
from mrp.data.storage.store import PIECE, StorageError, Store, UnreachableError, say
from mrp.files import UNFINISHED, lock, replacing, unfinished, write_atomically

_INDEX, _LOCK = ".index", ".lock"  # the endings of files that are never removed


class Cache:
    """A folder of files named by their sha256; the longest unused go first when it is full, and indexes never.

    Several users may share one: whoever may not write to it can still read what is there.
    """

    def __init__(self, config: CacheConfig) -> None:
        home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        self.folder = Path(config.folder or f"{home}/mrp").expanduser()
        self.limit = int(config.gib * 2**30)

    def get(self, store: Store, name: str, sha256: str, size: int, *, index: bool = False) -> Path:
        """Returns the file, fetched if it is not here; whoever asks for one that is being fetched waits for it."""
        if not is_sha256(sha256):
            raise ConfigError(f"{store.where(name)}: {sha256[:80]!r} is no sha256; make its manifest anew")
        path = self.folder / (f"{sha256}{_INDEX}" if index else sha256)
        if _is_here(path, size):
            return path
        if size > self.limit:
            raise ConfigError(
                f"machine.cache.gib: {self.limit / 2**30:g} is less than {name} alone ({size / 2**30:.3g}); raise it"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._lock(sha256):
                if not _is_here(path, size):
                    unfinished(path).unlink(missing_ok=True)  # of a fetch that was killed, perhaps of another user
                    self._make_room(name, size)
                    _fetch(store, name, path, size)
        except OSError as error:
            raise StorageError(
                f"{self.folder}: cannot be written: {error.strerror}; set machine.cache.folder to a disk with space"
            ) from None
        return path

    def latest(self, store: Store, name: str) -> bytes:
        """Returns a file as its place has it now; where that is out of reach, as it was when it was last asked for."""
        where = store.where(name)
        kept = self.folder / f"{hashlib.sha256(where.encode()).hexdigest()}{_INDEX}"
        try:
            content = store.read(name, 0, store.size(name))
        except UnreachableError as error:
            if not kept.is_file():
                raise
            say(f"{error}. The copy of {name} from the last time is used")
            return kept.read_bytes()
        with contextlib.suppress(OSError):  # of a cache that may not be written to
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(kept, content)
        return content

    def drop(self, path: Path) -> None:
        """Forget a file that turned out to be damaged."""
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(
                f"{path}: is damaged and cannot be removed: {error.strerror}; remove it, or set machine.cache.folder "
                "to another folder"
            ) from None

    @contextlib.contextmanager
    def _lock(self, name: str, operation: int = fcntl.LOCK_EX) -> Iterator[None]:
        descriptor = _open_lock(self.folder / f".{name}{_LOCK}")
        try:
            lock(descriptor, operation)
            yield
        finally:
            os.close(descriptor)

    def _make_room(self, name: str, size: int) -> None:
        with self._lock("room"):
            self._remove_abandoned()
            files = sorted(_files(self.folder))
            used = sum(taken for _, taken, _ in files)
            for _, freed, path in files:
                if used + size <= self.limit:
                    break
                # Runs look samples up in an index to their end, and a lock that is removed while it is held is none.
                if path.suffix not in (_INDEX, UNFINISHED, _LOCK):
                    path.unlink(missing_ok=True)  # whoever has it open goes on reading it
                    used -= freed
            if used + size > self.limit:
                raise ConfigError(
                    f"machine.cache.gib: {self.limit / 2**30:g} has no room for {name} ({size / 2**30:.3g}) beside the "
                    f"indexes in {self.folder} ({used / 2**30:.3g}); raise it, or remove those of data no longer used"
                )

    def _remove_abandoned(self) -> None:
        """Removes what fetches that were killed have left: their locks are free."""
        for path in self.folder.glob(f".*{UNFINISHED}"):
            sha256 = path.name.removeprefix(".").removesuffix(UNFINISHED).removesuffix(_INDEX)
            not_abandoned = contextlib.suppress(BlockingIOError, PermissionError)  # being fetched, or not ours
            with not_abandoned, self._lock(sha256, fcntl.LOCK_EX | fcntl.LOCK_NB):
                path.unlink(missing_ok=True)


def _files(folder: Path) -> Iterator[tuple[int, int, Path]]:
    """Yields the time of last use, the size and the path of everything that takes space."""
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # one that was being fetched, and now has its own name
            status = path.stat()
            yield status.st_mtime_ns, status.st_size, path


def _open_lock(path: Path) -> int:
    """Returns a descriptor to lock; that of another user's file can be locked without the right to write to it."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except PermissionError:
        if not path.exists():
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _is_here(path: Path, size: int) -> bool:
    try:
        if path.stat().st_size != size:
            return False
    except OSError:  # what is wrong with the folder is said when the file is fetched
        return False
    with contextlib.suppress(OSError):  # of another user, or on a disk that is not to be written to
        os.utime(path)  # the last use, by which the longest unused are found
    return True


class _WrongContentError(Exception):
    """What came is not what the manifest names."""


def _fetch(store: Store, name: str, path: Path, size: int) -> None:
    """In pieces, twice if what came is not what was asked for."""
    for _ in range(2):
        digest = hashlib.sha256()
        with contextlib.suppress(_WrongContentError), replacing(path) as file:
            for start in range(0, size, PIECE):
                piece = store.read(name, start, min(start + PIECE, size))
                digest.update(piece)
                file.write(piece)
            if digest.hexdigest() != path.stem:
                raise _WrongContentError
            return
    raise StorageError(
        f"{store.where(name)}: its sha256 is {digest.hexdigest()[:12]}..., not {path.stem[:12]}... as the manifest "
        "says, in two fetches; put back the right file"
    )


class Prefetch:
    """A thread that fetches what will be needed soon; what goes wrong there is met again by whoever needs the shard."""

    def __init__(self, fetch: Callable[[int], None]) -> None:
        self._fetch = fetch
        self._wanted: SimpleQueue[int | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def ask(self, shard: int) -> None:
        """Fetches this shard, after those that were asked for before."""
        self._wanted.put(shard)

    def _run(self) -> None:
        while (shard := self._wanted.get()) is not None:
            with contextlib.suppress(ConfigError):
                self._fetch(shard)

    def close(self) -> None:
        """Ends after what was asked for."""
        self._wanted.put(None)
