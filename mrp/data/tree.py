"""Trees of files: found in the order of their names, and sorted into classes by the folders at their top."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mrp.config import ConfigError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")

_MOST_ENDINGS, _MOST_KINDS = 5, 100  # that are listed, and that are counted one by one
_OF_OTHER_KINDS = "of other kinds"  # numbers may stand in the place of an ending
_MOST_WAYS = 100  # in which links behind other links may lead to one folder
JOINT = "--"  # of the parts of a path in a key
_MOST_LETTERS = 80  # of a key
_SPLITS = {"train", "training", "val", "valid", "validation", "test"}


class File(NamedTuple):
    """A file of a tree."""

    name: str  # relative to the root
    size: int
    changed: int  # when, in nanoseconds

    @classmethod
    def at(cls, path: Path | os.DirEntry[str], name: str) -> File:
        """Returns what is known of a file that is to be called by this name."""
        status = path.stat()
        return cls(name, status.st_size, status.st_mtime_ns)


class Names:
    """Names of files in one piece of memory, so that millions of them are handed to a worker process in an instant."""

    def __init__(self, root: Path, names: Iterable[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self.root, self._text = str(root), b"".join(encoded)
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = int(self._ends[index - 1]) if index else 0
        return os.fsdecode(self._text[start : int(self._ends[index])])

    def path(self, index: int) -> str:
        """Returns the path of a file."""
        return os.path.join(self.root, self[index])


def tree(root: Path, extensions: tuple[str, ...] = EXTENSIONS, others: Counter[str] | None = None) -> list[File]:
    """Returns the files below a folder whose names end so, in the order of their names, of which there is one.

    In `others` the endings of all other files are counted.
    """
    found = sorted(files(root, "", extensions, others), key=lambda file: os.fsencode(file.name))
    if not found:
        raise ConfigError(f"{root}: holds no images; files that count end in {', '.join(extensions)}")
    return found


def left_out(root: Path, others: Counter[str]) -> str:
    """Returns in words which files of a folder are not taken for images; nothing where there are none."""
    if not others:
        return ""
    listed = ", ".join(f"{count:,} {ending or 'without one'}" for ending, count in others.most_common(_MOST_ENDINGS))
    more = ", ..." if len(others) > _MOST_ENDINGS else ""
    return f"{root}: files left out as no images, by the endings of their names: {listed}{more}"


def files(
    folder: Path, prefix: str, extensions: tuple[str, ...] = EXTENSIONS, others: Counter[str] | None = None
) -> Iterator[File]:
    """Yields every image in a tree; hidden files, and links to a folder that the way there went through, are left out.

    Links between sibling folders can lead to one folder in very many ways, which is refused.
    """
    others = Counter[str]() if others is None else others
    return _below(folder, prefix, extensions, (Path(os.path.realpath(folder)),), Counter(), others)


def _below(
    folder: Path,
    prefix: str,
    extensions: tuple[str, ...],
    way: tuple[Path, ...],
    ways: Counter[Path],
    others: Counter[str],
) -> Iterator[File]:
    """Yields what is below a folder; `way` is where each link on the way here stood and led, without links."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if entry.is_dir():
                inside = (*way[:-1], way[-1] / entry.name)
                if entry.is_symlink():
                    end = Path(os.path.realpath(entry.path))
                    if any(place.is_relative_to(end) for place in way):
                        continue
                    inside, ways[end] = (*way, end), ways[end] + (len(way) > 1)
                    if ways[end] > _MOST_WAYS:
                        raise ConfigError(
                            f"{entry.path}: is a link, and links behind links lead to {end} in over {_MOST_WAYS} ways; "
                            "remove those between folders of the tree"
                        )
                yield from _below(Path(entry.path), f"{prefix}{entry.name}/", extensions, inside, ways, others)
            elif entry.name.lower().endswith(extensions):
                yield File.at(entry, prefix + entry.name)  # a broken link is an error now, not amid a run
            else:
                ending = os.path.splitext(entry.name)[1].lower()
                others[ending if ending in others or len(others) < _MOST_KINDS else _OF_OTHER_KINDS] += 1


def key_of(parts: Sequence[str]) -> str:
    """Returns the parts of a path, without an ending, as a key of a shard: two hyphens join them.

    It is in letters that any reader takes, and short enough for the head of a member of a tar.
    """
    return JOINT.join(re.sub(r"--+", "-", plain(part)) for part in parts)[-_MOST_LETTERS:].strip("_")


def plain(part: str) -> str:
    """Returns a part of a path in letters that any reader takes; others become their numbers in Unicode (ue4 for ä)."""
    part = re.sub(r"[^\x00-\x7f]", lambda letter: f"u{ord(letter[0]):x}", unicodedata.normalize("NFC", part))
    return re.sub(r"[^A-Za-z0-9_-]+", "_", part).strip("_")


def is_hidden(name: str) -> bool:
    """Returns whether a file or folder does not count, as what a Mac adds: `.DS_Store`, `._a.jpg` and `__MACOSX`."""
    return name.startswith(".") or name == "__MACOSX"


def identity(names: Iterable[str]) -> str:
    """Returns a sha256 of names alone, so that a file may be mended during a run."""
    return hashlib.sha256(b"".join(b"%b\0" % os.fsencode(name) for name in names)).hexdigest()


def content(found: Iterable[File]) -> str:
    """Returns a sha256 of names, sizes and times of change."""
    return hashlib.sha256(b"".join(b"%b\0%d %d\n" % (os.fsencode(file[0]), *file[1:]) for file in found)).hexdigest()


def classes(
    root: Path, names: Sequence[str], wanted: bool = True, full: bool = True
) -> tuple[tuple[str, ...], NDArray[Any]]:
    """Returns the folders at the top, and of each name the number of its folder; no class and -1 where all are flat.

    They are `wanted`, or also no class and -1. `full`: a class folder without images, which has no number, is refused.
    """
    if not wanted:
        return (), np.full(len(names), -1, np.int32)
    tops = [name.partition("/")[0] if "/" in name else "" for name in names]
    flat = [name for name, top in zip(names, tops, strict=True) if not top]
    if flat and len(flat) < len(names):
        raise ConfigError(
            f"{root}: holds class folders ('{next(filter(None, tops))}') and also images outside of them ('{flat[0]}');"
            " move those into a class folder, or away"
        )
    found = () if flat else tuple(sorted(set(tops), key=os.fsencode))
    if found and {name.lower() for name in found} <= _SPLITS:
        one = next((name for name in found if name.lower().startswith("train")), found[0])
        raise ConfigError(
            f"{root}: its folders ({', '.join(found)}) are splits, not classes; give one of them, such as {root / one}"
        )
    for split in (top for top in found if top.lower() in _SPLITS):
        inside = {name.split("/")[1] for name in names if name.startswith(f"{split}/") and name.count("/") > 1}
        if same := sorted(inside & set(found)):
            raise ConfigError(
                f"{root / split}: holds a folder '{same[0]}', as {root} does, so it is a split and no class; move it "
                f"out of {root} (a run that was begun on it has learned wrong classes, and starts anew)"
            )
    empty = sorted({e.name for e in os.scandir(root) if e.is_dir() and not is_hidden(e.name)} - set(found))
    if found and full and empty:
        raise ConfigError(f"{root / empty[0]}: a class folder without images; put its images there, or move it away")
    numbers = {name: number for number, name in enumerate(found)}
    return found, np.array([numbers.get(top, -1) for top in tops], np.int32)
