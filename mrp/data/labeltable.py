"""Tables beside images: read from CSV, and the images that a row is about, found by the end of their paths."""

from __future__ import annotations

import csv
import io
import os
import posixpath
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mrp.config import ConfigError, nearest, reading
from mrp.data import tree
from mrp.data.source import Source

_SIGNS = ",;\t"
_OTHER_ENDINGS = (".dcm", ".dicom", ".nii", ".nii.gz", ".npy")  # of files that images are made from
_MOST_SHOWN = 8  # columns that a message lists


class Table(NamedTuple):
    """The rows of a table: which image each is about, and the cells of the columns that were asked for."""

    path: str
    image: str  # what the column with names is called
    images: list[str]
    columns: tuple[str, ...]
    cells: list[tuple[str, ...]]
    lines: list[int]  # of the file, where each row ends


def read(name: str, image: str | None, labels: Sequence[str] | None) -> Table:
    """Returns the rows of a CSV file, in the columns of these names; by default its only two columns."""
    path = Path(name).expanduser()
    with reading(path, "give data.labels a CSV file"):
        content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is no text in UTF-8 (byte {error.start}); save the table as CSV in UTF-8") from None
    skipped = re.match(r"sep=([,;\t])\r?\n", text)  # as Excel writes
    first = text[skipped.end() if skipped else 0 :].partition("\n")[0]
    sign = skipped[1] if skipped else max(_SIGNS, key=first.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=sign, strict=True)
    try:
        if skipped:
            next(rows)
        return _table(str(path), rows, image, labels)
    except csv.Error as error:
        raise ConfigError(f"{path}: line {rows.line_num}: {error}; save the table as CSV anew") from None


def _table(path: str, rows: Iterator[list[str]], image: str | None, labels: Sequence[str] | None) -> Table:
    header = [cell.strip() for cell in next(rows, [])]
    columns = _columns(header, path, image, labels)
    table = Table(path, header[columns[0]], [], tuple(header[column] for column in columns[1:]), [], [])
    for row in rows:
        line: int = rows.line_num  # type: ignore[attr-defined]
        if not any(row):
            continue
        if len(row) != len(header):
            raise ConfigError(
                f"{path}: line {line} has {len(row)} cells, where the first line names {len(header)} columns; mend it, "
                "with quotes around a cell that holds the separating sign"
            )
        named, *cells = (row[column].strip() for column in columns)
        table.images.append(named)
        table.cells.append(tuple(cells))
        table.lines.append(line)
    if not table.images:
        raise ConfigError(f"{path}: holds no rows below its first line, which names the columns")
    return table


def _columns(header: list[str], path: str, image: str | None, labels: Sequence[str] | None) -> list[int]:
    """Returns the place of the column with names, and of those with labels."""
    shown = ", ".join(name or "(empty)" for name in header[:_MOST_SHOWN]) + (
        ", ..." if len(header) > _MOST_SHOWN else ""
    )
    if image is None and len(header) == (2 if labels is None else 1 + len(labels)):
        image = next((name for name in header if name not in (labels or ())), header[0])
    if image is None or (labels is None and len(header) != 2):
        images = "in data.labels.image which column names the images" if image is None else ""
        classes = "in data.labels.label which holds the class, or which are tags" if labels is None else ""
        asked = " and ".join(filter(None, (images, classes)))
        raise ConfigError(f"{path}: has the columns {shown or '(none)'}; say {asked}")
    wanted = [image, *(labels if labels is not None else [name for name in header if name != image])]
    for name in wanted:
        if header.count(name) != 1:
            fault = f"names the column '{name}' twice" if name in header else f"has no column '{name}'"
            hint = "" if name in header else nearest(name, header)
            raise ConfigError(f"{path}: {fault}{hint}; its first line names {shown or 'nothing'}")
    return [header.index(name) for name in wanted]


class Ends:
    """The names of images, found by their ends."""

    def __init__(self, source: Source, root: str) -> None:
        self.of_keys = bool(len(source.shard_sizes))  # of shards: hyphens join the parts of a path
        self._lossy = source.lossy_names
        names = map(source.name_of, range(len(source)))
        if self.of_keys:
            self._names = [(tree.JOINT.join(map(tree.plain, name.split("/"))), "") for name in names]
        else:
            self._names = [self._form(name, root) for name in names]
        backwards = [name[::-1] for name, _ in self._names]
        self._order = sorted(range(len(backwards)), key=backwards.__getitem__)
        self._backwards = [backwards[index] for index in self._order]

    def of(self, image: str) -> tuple[list[int], bool]:
        """Returns the images whose path ends as a row says, in whole parts, and whether with the row's ending or none.

        A whole key of a shard serves too, and those that mrp made before: of two parts joined by one hyphen, and
        without other letters than a to z.
        """
        name, ending = self._form(image)
        found = self._called(name, image)
        if self._lossy and not found:
            left = re.sub(r"[^\x00-\x7f]", " ", unicodedata.normalize("NFC", image))
            found = self._called(self._form(left)[0], image)
        same = [index for index in found if ending in ("", self._names[index][1])]
        return (same, True) if same else (found, False)

    def _called(self, name: str, image: str) -> list[int]:
        """Returns the images whose names end so; where there are none, those whose whole keys are like it."""
        found = list(self._ending_in(name)) if name else []
        for key in (image, name.replace(tree.JOINT, "-", 1)) if self.of_keys else ():
            found = found or list(self._ending_in(key, whole=True))
        return found

    def _form(self, name: str, root: str = "") -> tuple[str, str]:
        """Returns a name as names are compared, and the ending that was taken off."""
        path = unicodedata.normalize("NFC", name.replace("\\", "/"))
        ending = next((one for one in (*tree.EXTENSIONS, *_OTHER_ENDINGS) if path.lower().endswith(one)), "")
        path = path[: len(path) - len(ending)]
        path = posixpath.normpath(f"{root}/{path}" if root else path) if path else ""
        while path.startswith("../"):
            path = path.removeprefix("../")
        return (tree.key_of(path.split("/")), "") if self.of_keys else (path, ending)

    def _ending_in(self, end: str, whole: bool = False) -> Iterator[int]:
        """Yields the images whose names are this, or end in it behind what joins parts."""
        backwards = end[::-1]
        joints = () if whole or end.startswith("/") else ("/", tree.JOINT) if self.of_keys else ("/",)
        for start in (backwards, *(backwards + joint for joint in joints)):
            for place in range(bisect_left(self._backwards, start), len(self._backwards)):
                if not self._backwards[place].startswith(start) or (start == backwards != self._backwards[place]):
                    break
                yield self._order[place]


def root_of(spec: object) -> str:
    """Returns the absolute path of the folder that a text or a section of a source names; nothing if it names none."""
    path = getattr(spec, "path", spec)
    if not isinstance(path, str):
        return "" if path is spec else root_of(path)
    root = os.path.abspath(os.path.expanduser(path))
    return os.path.dirname(root) if os.path.isfile(root) else root
