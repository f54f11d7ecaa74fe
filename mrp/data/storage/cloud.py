"""Files in an object store, through one client for the stores of Amazon, Google and Microsoft, and those like them.

The client tries nothing again by itself: our tries come after growing waits, and none lasts beyond the deadline.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from mrp.config import ConfigError
from mrp.data.storage.store import STALL, RefusedError, StorageError, Store, TemporaryError

T = TypeVar("T")

_REFUSALS = ("PermissionDeniedError", "UnauthenticatedError")
SCHEMES = ("s3", "gs", "gcs", "az")


class CloudStore(Store):
    """A folder of a bucket."""

    def __init__(self, base: str, deadline: float) -> None:
        self.base, self.deadline = base.rstrip("/"), deadline
        self._client: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None}

    def where(self, name: str) -> str:
        """Returns the address."""
        return f"{self.base}/{name}"

    def size(self, name: str) -> int:
        """Returns what the store says."""
        return int(self._retry(name, lambda client: client.head(name)["size"]))

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Returns the bytes that the client fetches, once their length is right."""

        def attempt(client: Any) -> bytes:
            data = bytes(client.get_range(name, start=start, end=stop))
            if len(data) != stop - start:
                raise TemporaryError(f"cut short: {len(data)} of {stop - start} bytes came")
            return data

        return self._retry(name, attempt) if start < stop else b""

    def _retry(self, name: str, action: Callable[[Any], T]) -> T:
        if self._client is None:
            self._client = self._connect(self.deadline)
        clients = [self._client]  # for the first try; each one after it has a client that ends in time

        def attempt(until: float) -> T:
            client = clients.pop() if clients else self._connect(until - time.monotonic())
            try:
                return action(client)
            except TemporaryError:
                raise
            except Exception as error:  # the client raises its own kinds, and some of Python's
                if type(error).__name__ in _REFUSALS:
                    raise RefusedError(f"{self.where(name)}: may not be read; check the credentials") from None
                if isinstance(error, FileNotFoundError):
                    raise StorageError(f"{self.where(name)}: is not there; check the address") from None
                if "redirect" in str(error).lower():
                    remedy = "check the address, and the region (AWS_REGION)"
                    raise StorageError(f"{self.where(name)}: the store sends the request on; {remedy}") from None
                raise TemporaryError(" ".join(str(error).partition("Debug source:")[0].split())[:200]) from None

        return self.patiently(name, attempt)

    def _connect(self, seconds: float) -> Any:
        """Returns a client whose requests end after so many seconds."""
        try:
            from obstore.store import from_url
        except ImportError:
            raise ConfigError(
                f"{self.base}: needs the client of the object store; install it: pip install 'mrp-vit[cloud]'"
            ) from None
        limits = {"timeout": timedelta(seconds=max(seconds, 0.1)), "read_timeout": timedelta(seconds=STALL)}
        options: dict[str, Any] = {
            "client_options": {**limits, "allow_http": True},  # the address of a server of one's own may be such
            "retry_config": {"max_retries": 0},
        }
        if self.base.startswith("s3:"):
            options["credential_provider"] = _of_amazon(self.base)
        try:
            return from_url(self.base.replace("gcs:", "gs:", 1), **options)
        except Exception as error:  # of an address or of credentials that make no sense
            raise StorageError(f"{self.base}: {' '.join(str(error).split())[:200]}; check it") from None


def _of_amazon(address: str) -> Any:
    """Returns what finds credentials in all places where Amazon's own tools look; None for public data."""
    if os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true"):
        return None
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        return Boto3CredentialProvider()
    except ValueError:
        raise StorageError(
            f"{address}: there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "AWS_SKIP_SIGNATURE=true for public data"
        ) from None
