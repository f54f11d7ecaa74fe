"""Files that stay open from one read to the next: as many as the system allows, and never more."""

from __future__ import annotations

import contextlib
import os
import random
import resource
from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar

_MOST = 8192  # of a process: the windows of 256 lanes, and as many again
_SHARE = 4  # one descriptor in so many is for files that stay open


class OpenFiles:
    """The descriptors of one source; those of all sources of a process are counted together.

    Where there is no room, one of them, drawn at random, is closed. A loader goes through its lanes in a circle: if the
    longest unused were closed, each file would be closed shortly before its turn.
    """

    _open: ClassVar[int] = 0  # of all sources of this process

    def __init__(self, most: int = _MOST) -> None:
        self._most = most  # of this source
        self._files: dict[int, int] = {}
        self._keys: list[int] = []
        self._random = random.Random(0)  # noqa: S311 -- results do not depend on it

    def __reduce__(self) -> Any:
        return OpenFiles, (self._most,)

    def __del__(self) -> None:
        for descriptor in self._files.values():
            self._close(descriptor)

    def get(self, key: int, open_: Callable[[int], int]) -> int:
        """Returns the descriptor of this file, which is opened if it is not open."""
        if key in self._files:
            return self._files[key]
        descriptor = open_(key)
        if self._keys and (len(self._keys) >= self._most or OpenFiles._open >= _allowed()):
            self._drop(self._random.randrange(len(self._keys)))
        self._files[key] = descriptor
        self._keys.append(key)
        OpenFiles._open += 1
        return descriptor

    def forget(self, key: int) -> None:
        """Closes this file."""
        self._drop(self._keys.index(key))

    def _drop(self, place: int) -> None:
        key, self._keys[place] = self._keys[place], self._keys[-1]
        self._keys.pop()
        self._close(self._files.pop(key))

    @staticmethod
    def _close(descriptor: int) -> None:
        os.close(descriptor)
        OpenFiles._open -= 1


@cache
def _allowed() -> int:
    """Returns how many files may stay open, once the process may have as many as its user may allow it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST * _SHARE if hard == resource.RLIM_INFINITY else min(hard, _MOST * _SHARE)
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return min(_MOST, soft // _SHARE)
