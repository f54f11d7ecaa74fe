"""Writes files that appear complete or not at all, reads small ones, and computes their hashes."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

UNFINISHED = ".unfinished"  # the end of a file's name while it is being written
STEP = "step-"  # the beginning of the name of what belongs to one step
_AT_ONCE = 2**20  # bytes


def step_name(step: int) -> str:
    """Returns the name of a folder that belongs to a step, such as a checkpoint's or an incident's."""
    return f"{STEP}{step:08d}"


def unfinished(path: Path) -> Path:
    """Returns the name under which a file is written before it is complete: hidden, in the same folder."""
    return path.with_name(f".{path.name}{UNFINISHED}")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a new file that replaces `path` when the block ends; after an error the old file stays.

    The content is on the disk before the name changes, so that a power failure leaves the old file or the new one.
    """
    temporary = unfinished(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if (
            isinstance(error, OSError) and error.filename is None
        ):  # a full disk does not say which file it had no room for
            error.filename = str(path)
        raise


def lock(file: int | IO[Any], kind: int) -> bool:
    """Locks an open file as `fcntl.flock` does; returns False on a disk that has no locks, where all goes on unlocked.

    Some parallel file systems are mounted so. What is written there is still replaced as a whole, never torn.
    """
    try:
        fcntl.flock(file, kind)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP):
            raise
        return False
    return True


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replaces a small file in one step."""
    with replacing(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


def mapping_in(path: Path) -> dict[str, Any]:
    """Returns the mapping that a JSON file holds; an empty one where it is missing or damaged, and so tells nothing."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def sha256_of(*paths: Path) -> str:
    """Returns the hash of the content of files, one after another, read piece by piece."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(_AT_ONCE):
                digest.update(piece)
    return digest.hexdigest()
