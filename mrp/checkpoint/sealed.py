"""Folders of files that appear whole or not at all; a manifest, written last, knows every file's size and hash.

Nothing but the standard library is imported here, so that the process that writes checkpoints starts at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

MANIFEST, LATEST = "MANIFEST.json", "latest"
PREFIX, UNFINISHED, BAD = "step-", ".unfinished-", ".bad"
_REPLACED = f"{UNFINISHED}old-"
_FORMAT = "mrp-checkpoint-1"
_AT_ONCE = 1 << 22  # bytes that are hashed and then written while they are still in the processor's cache

Parts = Iterable[bytes | memoryview]  # of one file, in order


class Keep(NamedTuple):
    """Which checkpoints stay: so many of the last, each whose step is a multiple of `every`, and those named."""

    last: int
    every: int = 0  # 0: none
    steps: tuple[int, ...] = ()


class Digest(NamedTuple):
    """What the manifest says of a file."""

    size: int
    sha256: str


def name(step: int) -> str:
    """Returns the name of a step's folder."""
    return f"{PREFIX}{step:08d}"


def numbered(parent: Path) -> dict[int, Path]:
    """The checkpoints in a folder by their step, ascending; what else lies beside them is not ours."""
    found = {}
    for folder in parent.glob(f"{PREFIX}*"):
        if (number := re.fullmatch(r"[0-9]+", folder.name.removeprefix(PREFIX))) and folder.is_dir():
            found[int(number[0])] = folder
    return dict(sorted(found.items()))


def write(parent: Path, step: int, files: Mapping[str, Parts], keep: Keep) -> int:
    """Write under another name, flush everything to the disk, rename, and only then drop the oldest; the bytes."""
    final = parent / name(step)
    unfinished = parent / f"{UNFINISHED}{final.name}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        clear(parent)
        unfinished.mkdir()
        digests = {name: _write(unfinished / name, parts) for name, parts in files.items()}
        _write(unfinished / MANIFEST, [_manifest(digests).encode()])
        _flush(unfinished)
        pointer = _pointer(parent, final.name)
        if final.exists():  # written once more: what was decided since made another state of the same step
            final.rename(parent / f"{_REPLACED}{final.name}")
        unfinished.rename(final)
        _flush(parent)
        pointer.rename(parent / LATEST)
        _flush(parent)
    except OSError:
        with contextlib.suppress(OSError):
            clear(parent)
        raise
    _prune(parent, keep, step)
    return sum(digest.size for digest in digests.values())


def clear(parent: Path) -> None:
    """Remove what a kill left unfinished; a checkpoint that was about to be replaced gets its name back."""
    for replaced in parent.glob(f"{_REPLACED}*"):
        final = parent / replaced.name.removeprefix(_REPLACED)
        if not final.exists():
            replaced.rename(final)
    for leftover in parent.glob(f"{UNFINISHED}*"):
        _remove(leftover)


def point(parent: Path, newest: str | None) -> None:
    """Say in a small file which checkpoint is the last; the file is replaced in one step."""
    if newest is None:
        (parent / LATEST).unlink(missing_ok=True)
        return
    if (parent / LATEST).is_file() and (parent / LATEST).read_bytes() == f"{newest}\n".encode():
        return
    _pointer(parent, newest).rename(parent / LATEST)
    _flush(parent)


def fault(folder: Path, needed: Iterable[str] = ()) -> str | None:
    """What is wrong with a sealed folder, as `file: reason`; what its manifest does not name is not looked at."""
    manifest = folder / MANIFEST
    try:
        digests = _read(manifest)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        return f"{manifest}: cannot be read: {_reason(error)}"
    missing = [name for name in needed if name not in digests]
    if missing:
        return f"{manifest}: does not list {', '.join(missing)}"
    for name, digest in digests.items():
        try:
            if not (folder / name).is_file():
                return f"{folder / name}: is missing"
            found = _digest(folder / name)
        except OSError as error:
            return f"{folder / name}: cannot be read: {_reason(error)}"
        if found.size != digest.size:
            return f"{folder / name}: has {found.size:,} bytes in place of {digest.size:,}"
        if found.sha256 != digest.sha256:
            return f"{folder / name}: its content has changed since it was written (sha256)"
    return None


def set_aside(folder: Path) -> Path:
    """Give a damaged checkpoint another name, so that it is never taken again, and never lost."""
    aside = folder.with_name(folder.name + BAD)
    number = 1
    while aside.exists():
        number += 1
        aside = folder.with_name(f"{folder.name}{BAD}{number}")
    folder.rename(aside)
    _flush(folder.parent)
    return aside


def _write(path: Path, parts: Parts) -> Digest:
    size, sha256 = 0, hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        for part in parts:
            view = memoryview(part)
            while len(view):
                chunk = view[:_AT_ONCE]
                sha256.update(chunk)
                while len(chunk):
                    count = file.write(chunk)
                    size += count
                    chunk, view = chunk[count:], view[count:]
        os.fsync(file.fileno())
    return Digest(size, sha256.hexdigest())


def _digest(path: Path) -> Digest:
    with path.open("rb", buffering=0) as file:
        sha256 = hashlib.file_digest(file, "sha256")
        return Digest(file.tell(), sha256.hexdigest())


def _manifest(digests: Mapping[str, Digest]) -> str:
    return json.dumps(
        {"format": _FORMAT, "files": {name: digest._asdict() for name, digest in digests.items()}}, indent=1
    )


def _read(path: Path) -> dict[str, Digest]:
    text = path.read_text(encoding="utf-8")
    content = json.loads(text)
    if content["format"] != _FORMAT:
        raise ValueError(f"it is of the format {content['format']!r}, and {_FORMAT!r} is known here")
    digests = {name: Digest(digest["size"], digest["sha256"]) for name, digest in content["files"].items()}
    if any(name in {"", ".", ".."} or "/" in name for name in digests):
        raise ValueError("it names files that are not in its folder")
    if not all(type(digest.size) is int and isinstance(digest.sha256, str) for digest in digests.values()):
        raise TypeError
    if _manifest(digests) != text:  # not one character may differ
        raise ValueError("it has changed since it was written")
    return digests


def _prune(parent: Path, keep: Keep, newest: int) -> None:
    folders = numbered(parent)
    kept = {*list(folders)[-keep.last :], *keep.steps, newest}
    for step, folder in folders.items():
        if step in kept or (keep.every and step % keep.every == 0):
            continue
        gone = parent / f"{UNFINISHED}{folder.name}"
        folder.rename(gone)  # first, so that a kill leaves no half of a checkpoint under the name of a whole one
        _remove(gone)
    clear(parent)


def _pointer(parent: Path, name: str) -> Path:
    """What is to say which checkpoint is the last, on the disk already, but not yet under its name."""
    pointer = parent / f"{UNFINISHED}{LATEST}"
    _write(pointer, [f"{name}\n".encode()])
    return pointer


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, UnicodeDecodeError | json.JSONDecodeError):
        return "it is not JSON"
    if isinstance(error, ValueError):
        return str(error)
    return "it is no manifest"
