"""Files of a dataset on the Hugging Face hub, all of one commit; what is kept of them is read without a network."""

from __future__ import annotations

import contextlib
import os
import re
import urllib.parse
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from mrp.config import ConfigError
from mrp.data.storage.http import HttpStore, size_and
from mrp.data.storage.store import StorageError, UnreachableError, retry

_ADDRESS = re.compile(r"hf://datasets/(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/]+))?(?P<folder>(?:/.*)?)", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PRINTABLE = re.compile(r"[!-~]*")
_YES = ("1", "true", "yes", "on")  # what the hub's own client takes for it
_SOON = 10.0  # seconds after which a hub that does not answer is taken for out of reach


class HubStore(HttpStore):
    """A folder of a dataset, `hf://datasets/OWNER/NAME[@REVISION][/FOLDER]`; the first answer decides the commit."""

    def __init__(self, location: str, deadline: float) -> None:
        match = _ADDRESS.fullmatch(location.rstrip("/"))
        if match is None:
            raise ConfigError(
                f"{location[:80]}: is no dataset of the hub; write hf://datasets/OWNER/NAME@REVISION/FOLDER"
            )
        self._name, self._folder = match["name"], match["folder"]
        super().__init__("", deadline, _token())
        self._turn_to(urllib.parse.unquote(match["revision"] or "main"))

    def _turn_to(self, revision: str) -> None:
        """Reads this revision from now on."""
        self._revision = revision
        endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
        quoted = urllib.parse.quote(revision, safe=""), urllib.parse.quote(self._folder)
        self.base = f"{endpoint}/datasets/{self._name}/resolve/{quoted[0]}{quoted[1]}"

    def size(self, name: str) -> int:
        """Returns what the hub says, and stays with the commit that it names."""
        self._check_online(name)
        ask = partial(size_and, "X-Repo-Commit", self.where(name), self.token)
        size, commit = retry(ask, self.where(name), self.deadline)
        if _COMMIT.fullmatch(commit):
            self._turn_to(commit)
        return size

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Returns the bytes, as from any web server."""
        self._check_online(name)
        return super().read(name, start, stop)

    def pinned(self, name: str) -> str:
        """Returns the address of this folder at the commit that the hub names for a file in it."""
        self.size(name)
        return f"hf://datasets/{self._name}@{urllib.parse.quote(self._revision, safe='')}{self._folder}"

    @contextlib.contextmanager
    def hurried(self) -> Iterator[None]:
        """Gives the hub up meanwhile when it does not answer within seconds."""
        before, self.deadline = self.deadline, min(self.deadline, _SOON)
        try:
            yield
        finally:
            self.deadline = before

    def _check_online(self, name: str) -> None:
        if os.environ.get("HF_HUB_OFFLINE", "").lower() in _YES:
            raise UnreachableError(
                f"{self.where(name)}: is not in the cache, and HF_HUB_OFFLINE is set; unset it, or fill the cache first"
            )


def _token() -> str:
    """Returns the token that the hub's own client would use: of the variable, or of the file that its login writes."""
    if os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").lower() in _YES:
        return ""
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        home = os.environ.get("HF_HOME") or f"{cache}/huggingface"
        path = Path(os.environ.get("HF_TOKEN_PATH") or f"{home}/token").expanduser()
        try:
            token = path.read_text().strip()
        except (OSError, ValueError):
            return ""
    if not _PRINTABLE.fullmatch(token):
        raise StorageError("HF_TOKEN: holds characters that no token has; copy it anew")
    return token
