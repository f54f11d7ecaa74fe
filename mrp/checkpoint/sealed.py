"""Folders of files that appear complete or not at all; their manifest, written last, holds each file's size and hash.

Only the standard library (and mrp.files) is imported here, so that the process that writes checkpoints starts at once.
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

from mrp.files import STEP, step_name

MANIFEST, LATEST = "MANIFEST.json", "latest"
PREFIX, UNFINISHED, BAD = STEP, ".unfinished-", ".bad"
_REPLACED = f"{UNFINISHED}old-"
_FORMAT = "mrp-checkpoint-1"
_AT_ONCE = 1 << 22  # bytes that are hashed and then written while they are still in the processor's cache

_LONGEST = 64  # bytes of the name of a checkpoint, and more than enough

Chunks = Iterable[bytes | memoryview]  # the content of one file, in order


class Keep(NamedTuple):
    """Which checkpoints stay: the `last` ones, those whose step is a multiple of `every`, and those of `steps`."""

    last: int
    every: int = 0  # 0: none
    steps: tuple[int, ...] = ()


class Digest(NamedTuple):
    """What the manifest says about a file."""

    size: int
    sha256: str


def numbered(parent: Path) -> dict[int, Path]:
    """Returns the checkpoints in a folder by their step, ascending; other files in it are ignored."""
    folders = {}
    for folder in parent.glob(f"{PREFIX}*"):
        if (number := re.fullmatch(r"[0-9]+", folder.name.removeprefix(PREFIX))) and folder.is_dir():
            folders[int(number[0])] = folder
    return dict(sorted(folders.items()))


def write(parent: Path, step: int, files: Mapping[str, Chunks], keep: Keep) -> int:
    """Writes a checkpoint under another name, flushes it to the disk, renames it, and only then drops the oldest.

    Returns the number of bytes.
    """
    final = parent / step_name(step)
    unfinished = parent / f"{UNFINISHED}{final.name}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        clear(parent)
        unfinished.mkdir()
        digests = {name: _write(unfinished / name, chunks) for name, chunks in files.items()}
        _write(unfinished / MANIFEST, [_manifest(digests).encode()])
        _flush(unfinished)
        pointer = _pointer(parent, final.name)
        if final.exists():  # the same step is saved again, since its state has changed
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
    """Removes what a kill left unfinished, and gives a checkpoint that was about to be replaced its name back."""
    for replaced in parent.glob(f"{_REPLACED}*"):
        final = parent / replaced.name.removeprefix(_REPLACED)
        if not final.exists():
            replaced.rename(final)
    for leftover in parent.glob(f"{UNFINISHED}*"):
        _remove(leftover)


def point(parent: Path, newest: str | None) -> None:
    """Writes the name of the last checkpoint into a small file, which is replaced in one step."""
    if newest is None:
        (parent / LATEST).unlink(missing_ok=True)
        return
    if (parent / LATEST).is_file() and (parent / LATEST).read_bytes() == f"{newest}\n".encode():
        return
    _pointer(parent, newest).rename(parent / LATEST)
    _flush(parent)


def pointed(parent: Path) -> Path | None:
    """Returns the folder that this file names, if it is there."""
    with (parent / LATEST).open("rb") as file:
        name = file.read(_LONGEST).decode(errors="replace").strip()
    folder = parent / name
    return folder if re.fullmatch(rf"{PREFIX}[0-9]+", name) and folder.is_dir() else None


def fault(folder: Path, needed: Iterable[str] = ()) -> str | None:
    """Returns what is wrong with a sealed folder, as `file: reason`; files that are not in its manifest are ignored."""
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
            actual = _digest(folder / name)
        except OSError as error:
            return f"{folder / name}: cannot be read: {_reason(error)}"
        if actual.size != digest.size:
            return f"{folder / name}: has {actual.size:,} bytes in place of {digest.size:,}"
        if actual.sha256 != digest.sha256:
            return f"{folder / name}: its content has changed since it was written (sha256)"
    return None


def set_aside(folder: Path) -> Path:
    """Renames a damaged checkpoint, so that it is never used again but not lost; returns its new folder."""
    aside = folder.with_name(folder.name + BAD)
    number = 1
    while aside.exists():
        number += 1
        aside = folder.with_name(f"{folder.name}{BAD}{number}")
    folder.rename(aside)
    _flush(folder.parent)
    return aside


def _write(path: Path, chunks: Chunks) -> Digest:
    size, sha256 = 0, hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        for content in chunks:
            view = memoryview(content)
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
    if _manifest(digests) != text:  # byte for byte
        raise ValueError("it has changed since it was written")
    return digests


def _prune(parent: Path, keep: Keep, newest: int) -> None:
    folders = numbered(parent)
    kept = {*list(folders)[-keep.last :], *keep.steps, newest}
    for step, folder in folders.items():
        if step in kept or (keep.every and step % keep.every == 0):
            continue
        gone = parent / f"{UNFINISHED}{folder.name}"
        folder.rename(gone)  # first, so that a kill never leaves a part of a checkpoint under its final name
        _remove(gone)
    clear(parent)


def _pointer(parent: Path, name: str) -> Path:
    """Writes the file that names the last checkpoint, under another name for now; returns its path."""
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
