"""The manifest of a set of shards: which shards there are and what they hold, as JSON that people can read."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from mrp.config import ConfigError

MANIFEST = "manifest.json"
FORMAT, VERSION = "mrp-shards", 1
PLAN, KEYS = "plan", "keys"  # notes of a set that mrp built: the digest of its plan, and what keys are made of

_SHA256, _CONTROL, _ODD = re.compile(r"[0-9a-f]{64}"), re.compile(r"[\x00-\x1f]"), re.compile(r"[\\:|]")


class ManifestError(ConfigError):
    """A manifest or an index that is damaged, or that was not made by mrp."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar file."""

    name: str
    bytes: int
    sha256: str
    count: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """A whole set: its shards in the order of the index, and what was noted while they were made."""

    shards: tuple[Shard, ...]
    index_sha256: str
    classes: tuple[str, ...] = ()
    location: str = ""  # where the shards are, if not beside the manifest
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    notes: dict[str, Any] = field(default_factory=dict)  # how it was made, what was recovered or unreadable
    hashes_sha256: str = ""  # of the list of hashes that a large index has

    @property
    def count(self) -> int:
        """The number of samples in all shards."""
        return sum(shard.count for shard in self.shards)

    @property
    def bytes(self) -> int:
        """The number of bytes of all shards."""
        return sum(shard.bytes for shard in self.shards)

    def holds(self, shard: int, start: int, size: int) -> bool:
        """Returns whether there are such bytes."""
        return shard < len(self.shards) and start + size <= self.shards[shard].bytes

    @property
    def keys_have_lost_letters(self) -> bool:
        """Whether mrp built the shards when letters other than a to z left no trace in their keys."""
        return PLAN in self.notes and KEYS not in self.notes

    @property
    def identity(self) -> str:
        """A sha256 of the content, wherever it is stored and whatever was noted about it."""
        content = [self.classes, self.index_sha256, [(shard.sha256, shard.count) for shard in self.shards]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def dump(self) -> str:
        """Returns the text of the file, sealed with a digest of itself."""
        shards = [asdict(shard) for shard in self.shards]
        index = {"file": "index.bin", "sha256": self.index_sha256}
        if self.hashes_sha256:
            index["hashes"] = self.hashes_sha256
        values = {
            "format": FORMAT, "version": VERSION, "identity": self.identity, "count": self.count, "bytes": self.bytes,
            "location": self.location, "mean": list(self.mean), "std": list(self.std), "notes": self.notes,
            "index": index, "classes": list(self.classes), "shards": shards,
        }  # fmt: skip
        rest = json.dumps(values, indent=0)[2:]
        return _seal(rest.encode()) + rest


def _seal(rest: bytes) -> str:
    """Returns the first line of a manifest: the sha256 of all that follows it."""
    return f'{{"digest": "{hashlib.sha256(rest).hexdigest()}",\n'


def parse(text: bytes) -> Manifest:
    """Reads a manifest; one that was edited, or that names a file outside of its folder, is refused."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"not valid JSON: {error}") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ManifestError(f"not a manifest of {FORMAT}")
    if values.get("version") != VERSION:
        raise ManifestError(f"made for version {values.get('version')} of the format; this is version {VERSION}")
    first, _, rest = text.partition(b"\n")
    if first.decode("utf-8", "replace") + "\n" != _seal(rest):
        raise ManifestError("it was edited or damaged: its digest does not fit its content")
    index = _typed(values, "index", dict)
    shards = tuple(_shard(entry) for entry in _typed(values, "shards", list))
    for name, count in Counter(shard.name for shard in shards).most_common(1):
        if count > 1:
            raise ManifestError(f"the shard {name!r} is named twice")
    return Manifest(
        shards=shards,
        index_sha256=_digest(index, "sha256"),
        hashes_sha256=_digest(index, "hashes") if "hashes" in index else "",
        classes=_row(values, "classes", str),
        location=_typed(values, "location", str),
        mean=_row(values, "mean", int, float),
        std=_row(values, "std", int, float),
        notes=_typed(values, "notes", dict),
    )


def _shard(entry: Any) -> Shard:
    if not isinstance(entry, dict):
        raise ManifestError(f"a shard's entry is not one: {str(entry)[:80]!r}")
    name, size, count = _typed(entry, "name", str), _typed(entry, "bytes", int), _typed(entry, "count", int)
    check_name(name)
    if min(size, count) < 0:
        raise ManifestError(f"{name}: 'bytes' and 'count' are numbers from 0")
    return Shard(name, size, _digest(entry, "sha256"), count)


def _typed(values: dict[str, Any], key: str, *kinds: type) -> Any:
    """Returns a value that must be there and have one of these types."""
    if type(values.get(key)) not in kinds:  # not isinstance, for which true is a number
        raise ManifestError(f"'{key}' is missing, or no {kinds[0].__name__}")
    return values[key]


def _row(values: dict[str, Any], key: str, *kinds: type) -> tuple[Any, ...]:
    row = tuple(_typed(values, key, list))
    if any(type(value) not in kinds for value in row):
        raise ManifestError(f"'{key}' holds more than {kinds[-1].__name__}")
    return row


def _digest(values: dict[str, Any], key: str) -> str:
    digest: str = _typed(values, key, str)
    if not is_sha256(digest):
        raise ManifestError(f"{digest[:80]!r} is no sha256")
    return digest


def is_sha256(text: str) -> bool:
    """Returns whether this is a sha256 in hexadecimal, and so a safe name of a file."""
    return _SHA256.fullmatch(text) is not None


def check_member(name: str) -> None:
    """Refuses a name in a tar that is absolute or leads out of its folder, since others may unpack the tar."""
    if not name or name.startswith("/") or ".." in name.split("/") or _CONTROL.search(name):
        raise ManifestError(f"the name {name!r} is refused: it could lead out of its folder")


def check_name(name: str) -> None:
    """Refuses a shard's name that would lead out of its folder, or that some reader would run as a program."""
    check_member(name)
    if name.startswith("-") or _ODD.search(name):
        raise ManifestError(f"the name {name!r} is refused: it could lead out of its folder")
