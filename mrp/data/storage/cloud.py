"""Files in an object store, through the client that fsspec knows for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from mrp.config import ConfigError
from mrp.data.storage.store import StorageError, Store, TemporaryError, retry

T = TypeVar("T")


class CloudStore(Store):
    """A folder of a bucket."""

    def __init__(self, base: str, protocol: str, deadline: float) -> None:
        self.base, self.protocol, self.deadline = base.rstrip("/"), protocol, deadline
        self._client: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None}

    def where(self, name: str) -> str:
        """Returns the address."""
        return f"{self.base}/{name}"

    def size(self, name: str) -> int:
        """Returns what the store says."""
        return int(self._retry(name, lambda client: client.info(self.where(name))["size"]))

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Returns the bytes that the client fetches, once their length is right."""

        def attempt(client: Any) -> bytes:
            data: bytes = client.cat_file(self.where(name), start=start, end=stop)
            if len(data) != stop - start:
                raise TemporaryError(f"cut short: {len(data)} of {stop - start} bytes came")
            return data

        return self._retry(name, attempt) if start < stop else b""

    def _retry(self, name: str, action: Callable[[Any], T]) -> T:
        def attempt(_: float) -> T:
            try:
                return action(self._open())
            except (TemporaryError, ConfigError):
                raise
            except (FileNotFoundError, PermissionError) as error:
                what = "is not there" if isinstance(error, FileNotFoundError) else "may not be read"
                raise StorageError(f"{self.where(name)}: {what}; check the address and the credentials") from None
            except Exception as error:  # clients raise faults of their own libraries
                raise TemporaryError(" ".join(f"{type(error).__name__}: {error}".split())[:200]) from None

        return retry(attempt, self.where(name), self.deadline)

    def _open(self) -> Any:
        if self._client is None:
            try:
                import fsspec

                self._client = fsspec.filesystem(self.protocol, use_listings_cache=False)
            except ImportError:
                raise ConfigError(
                    f"{self.base}: needs the client of the object store; install it: pip install 'mrp-vit[cloud]'"
                ) from None
        return self._client
