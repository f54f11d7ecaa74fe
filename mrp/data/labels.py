"""Labels from a table beside the images: a class per image, or tags, of which an image may have several or none.

Rows are found by the names of the images. Nothing is guessed where a row could mean two images, or two rows one.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from mrp.config import ConfigError, Node, nearest, reading
from mrp.data import tree
from mrp.data.order import Ints
from mrp.data.source import Source
from mrp.data.subset import Subset

_WORDS = {"1": 1, "1.0": 1, "true": 1, "yes": 1, "0": 0, "0.0": 0, "false": 0, "no": 0, "-1": -1, "-1.0": -1}
_BLANK = {"", "nan"}
_OTHER_ENDINGS = (".dcm", ".nii", ".nii.gz")  # of files that images are made from, which tables still name
_MOST_SHOWN = 8  # columns that a message lists


class Labels(Node):
    """`data.labels:`, a table with one row per image and its columns; a text is short for the table."""

    short: ClassVar[type | None] = str
    table: str  # a CSV file (commas, semicolons or tabs), whose first line names the columns
    test: str | None = None  # the table of data.test, where it is another file
    image: str | None = None  # the column with the images' names; by default the first
    # The column with the class, by default the second of two. Several columns are tags: 1 an image has it, 0 it has
    # not, -1 nobody knows.
    label: str | tuple[str, ...] | None = None
    separator: str | None = Field(None, min_length=1)  # what stands between the tags of an image, all in one column
    blank: Literal["unknown", "absent"] = "unknown"  # what an empty cell says of a tag, or of all in one column
    missing: Literal["error", "leave_out"] = "error"  # images that have no row, or no class in it

    @model_validator(mode="before")
    @classmethod
    def _accept_path(cls, value: object) -> object:
        if isinstance(value, Mapping) and "name" in value and "table" not in value:
            return {("table" if key == "name" else key): one for key, one in value.items()}  # a text that was added to
        return {"table": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_columns(self) -> Labels:
        if isinstance(self.label, tuple) and len(set(self.label)) < max(1, len(self.label)):
            raise ValueError(f"label: {list(self.label)} was given; allowed: a column, or a list of different ones")
        if isinstance(self.label, tuple) and self.separator is not None:
            raise ValueError("separator: is for tags that stand in one column, and several columns are given")
        return self


class Table(NamedTuple):
    """The rows of a table: which image each is about, and the cells of the columns that were asked for."""

    path: str
    images: list[str]
    cells: list[tuple[str, ...]]
    lines: list[int]  # of the file, where each row ends
    columns: tuple[str, ...]


class Labelled(Subset):
    """A source with the labels of a table, and without the images that are left out."""

    def __init__(
        self, source: Source, chosen: Ints, labels: NDArray[np.int32], classes: tuple[str, ...],
        tagged: NDArray[np.int8], tags: tuple[str, ...],
    ) -> None:  # fmt: skip
        super().__init__(source, chosen, labels, classes)
        self.tags, self.tagged = tags, tagged

    def tags_of(self, index: int) -> NDArray[np.int8]:
        """Returns which tags a sample has by the table."""
        row: NDArray[np.int8] = self.tagged[index]
        return row

    def _known_by(self, what: Callable[[Source], str]) -> str:
        digest = hashlib.sha256(f"{super()._known_by(what)}\n{self.tags}\n".encode())
        digest.update(self.labels.astype("<i4").tobytes() + self.tagged.tobytes())
        return digest.hexdigest()

    @cached_property
    def shard_sizes(self) -> Ints:
        """How many samples are left in each shard; empty where the source has none."""
        return super().shard_sizes if len(self.source.shard_sizes) else self.source.shard_sizes


def labelled(source: Source, config: Labels, split: Literal["train", "test"], where: str, root: str) -> Labelled:
    """Returns a source with the labels of the table; `root` is the path of its folder, and `where` its option."""
    tables = [_read(path, config) for path in dict.fromkeys(filter(None, (config.table, config.test)))]
    table = tables[-1] if split == "test" else tables[0]
    rows = _rows_of(source, table, os.path.abspath(os.path.expanduser(root)))
    classes, tags = tuple[str, ...](), tuple[str, ...]()
    labels, tagged = np.full(len(rows), -1, np.int32), np.empty((len(rows), 0), np.int8)
    if isinstance(config.label, tuple) or config.separator is not None:
        tags, of_rows = _tags(tables, table, config)
        tagged, known = of_rows[rows], rows >= 0
    else:
        classes, labels = _classes(tables, table, rows)
        known = labels >= 0
    if not known.all() and (config.missing == "error" or not known.any()):
        first = int(np.argmin(known))
        what = "have no row" if tags or rows[first] < 0 else "have no label"
        other = f" and not the name of any row, such as '{table.images[0]}'" if not known.any() and table.images else ""
        raise ConfigError(
            f"{where}: {int((~known).sum()):,} of its {len(known):,} images {what} in {table.path}, such as "
            f"'{source.name_of(first)}'{other}; add them, or set data.labels.missing=leave_out"
        )
    chosen = np.flatnonzero(known)
    return Labelled(source, chosen, labels[chosen], classes, tagged[chosen], tags)


def _read(name: str, config: Labels) -> Table:
    """Returns what a table says in the columns that the configuration names."""
    path = Path(name).expanduser()
    with reading(path, "give data.labels a CSV file"):
        content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is no text in UTF-8 (byte {error.start}); save the table as CSV in UTF-8") from None
    first = text[: text.find("\n")] if "\n" in text else text
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True)
    try:
        header = [cell.strip() for cell in next(rows, [])]
        columns = _columns(header, config, str(path))
        images, cells, lines = list[str](), list[tuple[str, ...]](), list[int]()
        for row in rows:
            if not any(row):
                continue
            if len(row) != len(header):
                raise ConfigError(
                    f"{path}: line {rows.line_num} has {len(row)} cells, where the first line names {len(header)} "
                    "columns; mend it, with quotes around a cell that holds the separating sign"
                )
            image, *found = (row[column].strip() for column in columns)
            images.append(image)
            cells.append(tuple(found))
            lines.append(rows.line_num)
    except csv.Error as error:
        raise ConfigError(f"{path}: line {rows.line_num}: {error}; save the table as CSV anew") from None
    if not images:
        raise ConfigError(f"{path}: holds no rows below its first line, which names the columns")
    return Table(str(path), images, cells, lines, tuple(header[column] for column in columns[1:]))


def _columns(header: list[str], config: Labels, path: str) -> list[int]:
    """Returns the place of the column with names, and of those with labels."""
    shown = ", ".join(header[:_MOST_SHOWN]) + (", ..." if len(header) > _MOST_SHOWN else "")
    image = config.image if config.image is not None else header[0] if header else ""
    label = config.label
    if label is None:
        others = [name for name in header if name != image]
        if len(others) != 1:
            raise ConfigError(
                f"{path}: has the columns {shown or '(none)'}; say in data.labels.label which holds the class, or "
                "which are tags"
            )
        label = others[0]
    wanted = [image, *((label,) if isinstance(label, str) else label)]
    for name in wanted:
        if header.count(name) != 1:
            fault = f"names the column '{name}' twice" if name in header else f"has no column '{name}'"
            hint = "" if name in header else nearest(name, header)
            raise ConfigError(f"{path}: {fault}{hint}; its first line names {shown or 'nothing'}")
    return [header.index(name) for name in wanted]


def _rows_of(source: Source, table: Table, root: str) -> Ints:
    """Returns the number of each image's row; -1 where there is none."""
    ends, found = _Ends(source, root), np.full(len(source), -1, np.int64)
    for number, image in enumerate(table.images):
        matches = ends.of(image)
        names = list(dict.fromkeys(source.name_of(index) for index in matches)) if len(matches) > 1 else []
        if len(names) > 1:  # windows of one image have one name
            raise ConfigError(
                f"{table.path}: line {table.lines[number]}: '{image}' is the end of the names of {len(names)} images, "
                f"such as '{names[0]}' and '{names[1]}'; name more of the folders that they are in"
            )
        for index in matches:
            earlier = int(found[index])
            if earlier >= 0 and table.cells[earlier] != table.cells[number]:
                raise ConfigError(
                    f"{table.path}: lines {table.lines[earlier]} and {table.lines[number]} say different things of the "
                    f"image '{source.name_of(index)}'; leave one row per image"
                )
            found[index] = number
    return found


class _Ends:
    """The names of images, found by their ends."""

    def __init__(self, source: Source, root: str) -> None:
        self._keys = bool(len(source.shard_sizes))  # of shards: hyphens join the parts of a path
        self._names = [self._form(source.name_of(index), root) for index in range(len(source))]
        backwards = [name[::-1] for name, _ in self._names]
        self._order = sorted(range(len(backwards)), key=backwards.__getitem__)
        self._backwards = [backwards[index] for index in self._order]

    def of(self, image: str) -> list[int]:
        """Returns the images whose path ends as a row says, in whole parts, with this ending or any.

        The key in a shard is itself the end of a path, so there a row may also end in a whole key.
        """
        name, ending = self._form(image)
        found = list(self._ending_in(name, "/-" if self._keys else "/"))
        parts = re.split(r"[/\\]", image)
        for start in range(1, len(parts) if self._keys and not found else 0):
            found = found or list(self._ending_in(self._form("/".join(parts[start:]))[0], ""))
        return [index for index in found if self._names[index][1] == ending] or found

    def _form(self, name: str, root: str = "") -> tuple[str, str]:
        """Returns a name as names are compared, and the ending that was taken off."""
        path = re.sub(r"^(\./)+", "", name.replace("\\", "/"))
        ending = next((one for one in (*tree.EXTENSIONS, *_OTHER_ENDINGS) if path.lower().endswith(one)), "")
        stem = path[: len(path) - len(ending)]
        if self._keys:
            return tree.key_of(stem.split("/")), ""
        return f"{root}/{stem}" if root else stem, ending

    def _ending_in(self, end: str, signs: str) -> Iterator[int]:
        """Yields the images whose names are this, or end in it behind one of these signs."""
        backwards = end[::-1]
        for place in range(bisect_left(self._backwards, backwards), len(self._order) if end else 0):
            if not (name := self._backwards[place]).startswith(backwards):
                return
            if len(name) == len(end) or name[len(end)] in signs:
                yield self._order[place]


def _classes(
    tables: Sequence[Table], table: Table, rows: Ints
) -> tuple[tuple[str, ...], NDArray[np.int32]]:  # fmt: skip
    """Returns the classes of all tables, and each image's; whole numbers are sorted as numbers."""
    values = {cell for each in tables for (cell,) in each.cells if cell.lower() not in _BLANK}
    whole = all(re.fullmatch(r"-?\d{1,18}", value) for value in values)
    classes = tuple(sorted(values, key=lambda value: (int(value) if whole else 0, value)))
    numbers = {name: number for number, name in enumerate(classes)}
    of_row = np.array([*(numbers.get(cell, -1) for (cell,) in table.cells), -1], np.int32)
    labels: NDArray[np.int32] = of_row[rows]  # images without a row take the last one
    return classes, labels


def _tags(tables: Sequence[Table], table: Table, config: Labels) -> tuple[tuple[str, ...], NDArray[np.int8]]:
    """Returns the tags, and which each row has."""
    blank = np.int8(0 if config.blank == "absent" else -1)
    if config.separator is None:
        found = np.array([_known(table, number, blank) for number in range(len(table.cells))], np.int8)
        return table.columns, found
    split = [[_parts(cell, config.separator) for (cell,) in each.cells] for each in tables]
    tags = tuple(sorted({tag for each in split for row in each for tag in row}))
    numbers = {name: number for number, name in enumerate(tags)}
    found = np.zeros((len(table.cells), len(tags)), np.int8)
    for row, names in zip(found, split[tables.index(table)], strict=True):
        row[[numbers[name] for name in names]] = 1
        if not names:
            row[:] = blank
    return tags, found


def _parts(cell: str, separator: str) -> list[str]:
    return [part for one in cell.split(separator) if (part := one.strip()).lower() not in _BLANK]


def _known(table: Table, number: int, blank: np.int8) -> list[np.int8]:
    """Returns what the cells of a row say."""
    found = []
    for name, cell in zip(table.columns, table.cells[number], strict=True):
        word = cell.lower()
        if word not in _BLANK and word not in _WORDS:
            raise ConfigError(
                f"{table.path}: line {table.lines[number]}: '{cell}' stands in the column '{name}'; tags are 1 (has "
                "it), 0 (has it not), -1 (nobody knows) or an empty cell"
            )
        found.append(blank if word in _BLANK else np.int8(_WORDS[word]))
    return found
