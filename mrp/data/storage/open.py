"""From a path or an address to the storage behind it."""

from __future__ import annotations

from pathlib import Path

from mrp.config import ConfigError
from mrp.data.storage.cloud import SCHEMES, CloudStore
from mrp.data.storage.http import HttpStore
from mrp.data.storage.hub import HubStore
from mrp.data.storage.store import DEADLINE, LocalStore, Store

_KNOWN = "give a folder, or an address of http, https, s3, gs, az or hf"


def open_store(location: str, deadline: float = DEADLINE) -> Store:
    """Returns the store at a path or an address; nothing in an address is ever run as a command."""
    scheme, separator, _ = location.partition("://")
    if not separator:
        if location.startswith("pipe:"):
            raise ConfigError(f"{location[:60]}: commands are not run; {_KNOWN}")
        return LocalStore(Path(location).expanduser())
    if scheme in ("http", "https"):
        return HttpStore(location, deadline)
    if scheme == "hf":
        return HubStore(location, deadline)
    if scheme in SCHEMES:
        return CloudStore(location, deadline)
    raise ConfigError(f"{location[:60]}: '{scheme}' is unknown; {_KNOWN}")
