"""Bytes from wherever they lie: a folder, a web server or an object store, whole and checked, or a fatal error.

An answer that is not exactly what was asked for is never used. What may pass (a busy server, a cut connection) is tried
again after growing, jittered waits until a deadline; then the job fails, for a fault of storage is no bad sample.
"""

from __future__ import annotations

import os
import random
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol, TypeVar

from mrp.config import ConfigError

T = TypeVar("T")

DEADLINE = 300.0  # seconds for which one request is tried again
_STALL = 30.0  # seconds without a byte after which a connection is given up
_FIRST_WAIT, _LONGEST_WAIT = 0.2, 20.0
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_CLOUD = {"s3": "s3", "gs": "gcs", "gcs": "gcs"}
_CHUNK = 1 << 20


class StorageError(ConfigError):
    """Storage that does not hold, or does not give, what it should."""


class _Passing(Exception):
    """A fault that may be gone the next time."""


class Store(Protocol):
    """A folder of files somewhere."""

    local: bool  # files can be read in place

    def where(self, name: str) -> str:
        """What to call a file in a message."""

    def size(self, name: str) -> int:
        """How many bytes a file has."""

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Exactly these bytes."""


def open_store(place: str, deadline: float = DEADLINE) -> Store:
    """The store at a path or an address; nothing in an address is ever run as a command."""
    scheme, separator, _ = place.partition("://")
    if not separator:
        if place.startswith("pipe:"):
            raise ConfigError(f"{place[:60]}: commands are not run; give a folder, or an http, s3 or gs address")
        return LocalStore(Path(place).expanduser())
    if scheme in ("http", "https"):
        return HttpStore(place, deadline)
    if scheme in _CLOUD:
        return CloudStore(place, _CLOUD[scheme], deadline)
    raise ConfigError(f"{place[:60]}: '{scheme}' is unknown; give a folder, or an http, https, s3 or gs address")


def persist(attempt: Callable[[], T], where: str, deadline: float) -> T:
    """Try until it succeeds or the time is over."""
    began, wait = time.monotonic(), _FIRST_WAIT
    while True:
        try:
            return attempt()
        except _Passing as fault:
            pause = wait * random.uniform(0.5, 1.5)  # noqa: S311 -- so that nodes do not all come back at once
            if time.monotonic() + pause - began > deadline:
                raise StorageError(
                    f"{where}: {fault}, still after {deadline:g} seconds; mend the storage and run the same command "
                    "again"
                ) from None
            time.sleep(pause)
            wait = min(2 * wait, _LONGEST_WAIT)


class LocalStore:
    """A folder on a disk or a network file system."""

    local = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def where(self, name: str) -> str:
        """The path."""
        return str(self.folder / name)

    def size(self, name: str) -> int:
        """As the file system says."""
        try:
            return (self.folder / name).stat().st_size
        except OSError as error:
            raise StorageError(f"{self.where(name)}: cannot be read: {error.strerror}; put it back") from None

    def read(self, name: str, start: int, stop: int) -> bytes:
        """By pread."""
        try:
            descriptor = os.open(self.folder / name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                data = os.pread(descriptor, stop - start, start)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StorageError(f"{self.where(name)}: cannot be read: {error.strerror}; put it back") from None
        if len(data) != stop - start:
            raise StorageError(f"{self.where(name)}: cut short: it ends before byte {stop}; put back the whole file")
        return data


class HttpStore:
    """A web server that knows ranges."""

    local = False

    def __init__(self, base: str, deadline: float) -> None:
        self.base, self.deadline = base.rstrip("/"), deadline

    def where(self, name: str) -> str:
        """The address."""
        return f"{self.base}/{urllib.parse.quote(name)}"

    def size(self, name: str) -> int:
        """As the server says it."""

        def attempt() -> int:
            with _request(self.where(name), "HEAD", {}) as answer:
                length = answer.headers.get("Content-Length", "")
                if not length.isdigit():
                    raise StorageError(f"{self.where(name)}: the server does not say how long it is; use another")
                return int(length)

        return persist(attempt, self.where(name), self.deadline)

    def read(self, name: str, start: int, stop: int) -> bytes:
        """By a range request whose answer is checked: status, range, encoding and length."""
        where = self.where(name)
        if start == stop:
            return b""

        def attempt() -> bytes:
            with _request(where, "GET", {"Range": f"bytes={start}-{stop - 1}"}) as answer:
                _check(where, answer, start, stop)
                return _body(answer, stop - start, time.monotonic() + self.deadline)

        return persist(attempt, where, self.deadline)


def _opener() -> urllib.request.OpenerDirector:
    """Web addresses only: no handler for files, FTP or data."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler,
        urllib.request.HTTPErrorProcessor, urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPRedirectHandler,
    ):  # fmt: skip
        opener.add_handler(handler())
    return opener


def _request(address: str, method: str, headers: dict[str, str]) -> Any:
    headers |= {"Accept-Encoding": "identity", "User-Agent": "mrp"}
    request = urllib.request.Request(address, headers=headers, method=method)  # noqa: S310 -- see _opener
    try:
        return _opener().open(request, timeout=_STALL)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in _BUSY:
            raise _Passing(f"the server answers {error.code} ({error.reason})") from None
        raise StorageError(
            f"{address}: the server answers {error.code} ({error.reason}); check the address and the right to read"
        ) from None
    except (urllib.error.URLError, HTTPException, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise _Passing(f"cannot be reached: {reason or type(error).__name__}") from None


def _check(where: str, answer: Any, start: int, stop: int) -> None:
    """Whether this is an answer to what was asked."""
    encoding = answer.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise StorageError(f"{where}: the server sends it compressed ({encoding}); switch that off for these files")
    given = answer.headers.get("Content-Range", "")
    if answer.status != 206:
        raise StorageError(f"{where}: the server ignores ranges (status {answer.status}); use one that knows them")
    if given.partition("/")[0].strip() != f"bytes {start}-{stop - 1}":
        raise _Passing(f"the server sends '{given}' where bytes {start} to {stop - 1} were asked for")


def _body(answer: Any, size: int, until: float) -> bytes:
    parts, got = [], 0
    try:
        while got < size and (part := answer.read1(min(_CHUNK, size - got))):
            parts.append(part)
            got += len(part)
            if time.monotonic() > until:
                raise _Passing(f"only {got} of {size} bytes came in time")
    except (HTTPException, OSError) as error:
        raise _Passing(f"the connection broke after {got} of {size} bytes ({error or type(error).__name__})") from None
    if got != size:
        raise _Passing(f"cut short: {got} of {size} bytes came")
    return b"".join(parts)


class CloudStore:
    """An object store, through the client that fsspec knows for it."""

    local = False

    def __init__(self, base: str, protocol: str, deadline: float) -> None:
        self.base, self.protocol, self.deadline = base.rstrip("/"), protocol, deadline
        self._client: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None}

    def where(self, name: str) -> str:
        """The address."""
        return f"{self.base}/{name}"

    def size(self, name: str) -> int:
        """As the store says it."""
        return int(self._persist(name, lambda client: client.info(self.where(name))["size"]))

    def read(self, name: str, start: int, stop: int) -> bytes:
        """By a range request of the client, its length checked."""

        def attempt(client: Any) -> bytes:
            data: bytes = client.cat_file(self.where(name), start=start, end=stop)
            if len(data) != stop - start:
                raise _Passing(f"cut short: {len(data)} of {stop - start} bytes came")
            return data

        return self._persist(name, attempt) if start < stop else b""

    def _persist(self, name: str, action: Callable[[Any], T]) -> T:
        def attempt() -> T:
            try:
                return action(self._open())
            except (_Passing, ConfigError):
                raise
            except (FileNotFoundError, PermissionError) as error:
                what = "is not there" if isinstance(error, FileNotFoundError) else "may not be read"
                raise StorageError(f"{self.where(name)}: {what}; check the address and the credentials") from None
            except Exception as error:  # clients raise faults of their own libraries
                raise _Passing(" ".join(f"{type(error).__name__}: {error}".split())[:200]) from None

        return persist(attempt, self.where(name), self.deadline)

    def _open(self) -> Any:
        if self._client is None:
            try:
                import fsspec

                self._client = fsspec.filesystem(self.protocol, use_listings_cache=False)
            except ImportError:
                raise ConfigError(
                    f"{self.base}: needs the client of the object store; install it: pip install 'mrp[cloud]'"
                ) from None
        return self._client
