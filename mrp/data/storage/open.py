"""From a path or an address to the storage behind it."""

from __future__ import annotations

from pathlib import Path

from mrp.config import ConfigError
from mrp.data.storage.cloud import CloudStore
from mrp.data.storage.http import HttpStore
from mrp.data.storage.store import DEADLINE, LocalStore, Store

_CLOUD = {"s3": "s3", "gs": "gcs", "gcs": "gcs"}


def open_store(location: str, deadline: float = DEADLINE) -> Store:
    """Returns the store at a path or an address; nothing in an address is ever run as a command."""
    scheme, separator, _ = location.partition("://")
    if not separator:
        if location.startswith("pipe:"):
            raise ConfigError(f"{location[:60]}: commands are not run; give a folder, or an http, s3 or gs address")
        return LocalStore(Path(location).expanduser())
    if scheme in ("http", "https"):
        return HttpStore(location, deadline)
    if scheme in _CLOUD:
        return CloudStore(location, _CLOUD[scheme], deadline)
    raise ConfigError(f"{location[:60]}: '{scheme}' is unknown; give a folder, or an http, https, s3 or gs address")
