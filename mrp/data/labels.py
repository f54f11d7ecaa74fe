"""Labels from a table beside the images: a class per image, or tags, of which an image may have several or none.

Rows are found by the names of the images. Nothing is guessed where a row could mean two images, or two rows one.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, model_validator

from mrp import progress
from mrp.config import ConfigError, Node
from mrp.data import labeltable
from mrp.data.labeltable import Ends, Table
from mrp.data.order import Ints
from mrp.data.source import Derived, Source
from mrp.data.subset import Part

_WORDS = {"1": 1, "1.0": 1, "true": 1, "yes": 1, "0": 0, "0.0": 0, "false": 0, "no": 0, "-1": -1, "-1.0": -1}
_BLANK = {"", "nan", "<na>"}


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _as_section(value: str | Mapping[str, Any]) -> dict[str, Any]:
    """Returns the section that a text is short for, also where options were added to the text (`mrp.config.tree`)."""
    if isinstance(value, str):
        return {"table": value}
    return {("table" if key == "name" and "table" not in value else key): one for key, one in value.items()}


_Column = Annotated[str, BeforeValidator(_as_text)]  # a name that is a number is text too


class Labels(Node):
    """`data.labels:`, a table with one row per image and its columns; a text is short for the table."""

    short: ClassVar[type | None] = str
    table: str  # a CSV file (commas, semicolons or tabs), whose first line names the columns
    test: str | None = None  # the table of data.test, where it is another file
    # The column with the images' names; needed where the table has other columns than this one and those of the labels.
    image: _Column | None = None
    # The column with the class; by default the other one of two. Several columns are tags: 1 means that an image has
    # the tag, 0 that it has not, -1 that nobody knows.
    label: _Column | tuple[_Column, ...] | None = None
    # What stands between the tags of an image, where all tags are in one column.
    separator: str | None = Field(None, min_length=1)
    # What an empty cell says of its tag, or of all tags where they are in one column.
    blank: Literal["unknown", "absent"] = "unknown"
    # The beginning of the names in the rows that is no part of the images' paths; rows without it are left out.
    prefix: str = ""
    # What is done about images that have no row, or no class in their row.
    missing: Literal["error", "leave_out"] = "error"

    @model_validator(mode="before")
    @classmethod
    def _accept_path(cls, value: object) -> object:
        return _as_section(value) if isinstance(value, str | Mapping) else value

    @model_validator(mode="after")
    def _check_columns(self) -> Labels:
        if isinstance(self.label, tuple) and len(set(self.label)) < max(1, len(self.label)):
            raise ValueError(f"label: {list(self.label)} was given; allowed: a column, or a list of different ones")
        if isinstance(self.label, tuple) and self.separator is not None:
            raise ValueError("separator: is for tags that stand in one column, and several columns are given")
        return self

    def read(self, path: str) -> Table:
        """Returns what a table says in these columns."""
        labels = (self.label,) if isinstance(self.label, str) else self.label
        table = labeltable.read(path, self.image, labels)
        names, prefix = [name.replace("\\", "/") for name in table.images], self.prefix.replace("\\", "/")
        kept = [number for number, name in enumerate(names) if name.startswith(prefix)]
        return table._replace(
            images=[names[number].removeprefix(prefix) for number in kept],
            cells=[table.cells[number] for number in kept],
            lines=[table.lines[number] for number in kept],
        )


class Labelled(Part):
    """A source with the labels of a table, and without the images that are left out."""

    tags_of = Source.tags_of  # by the table, not by the source

    def __init__(
        self, source: Source, root: str, table: Table, rows: Ints, chosen: Ints, labels: NDArray[np.int32],
        classes: tuple[str, ...], tagged: NDArray[np.int8], tags: tuple[str, ...],
    ) -> None:  # fmt: skip
        super().__init__(source, chosen, labels[chosen], classes)
        self.tags, self.tagged = tags, tagged[chosen]
        self._root, self._table, self._rows = os.path.realpath(root), table.path, rows[chosen]

    def _known_by(self, what: Callable[[Source], str]) -> str:
        digest = hashlib.sha256(f"{super()._known_by(what)}\n{self.tags}\n".encode())
        digest.update(self.labels.astype("<i4").tobytes() + self.tagged.tobytes())
        return digest.hexdigest()

    def refuse_same_rows(self, other: Labelled, where: str, there: str) -> None:
        """Refuses a row that is about an image here and another one there, as where both are called by numbers.

        An image is one file, in whatever way its folder is named.
        """
        if self._table != other._table:
            return
        _, mine, theirs = np.intersect1d(self._rows, other._rows, return_indices=True)
        for one, two in zip(mine.tolist(), theirs.tolist(), strict=True):
            paths = (os.path.join(each._root, each.name_of(n)) for each, n in ((self, one), (other, two)))
            if len(set(paths)) > 1:
                raise ConfigError(
                    f"{self._table}: one row is about '{self.where(one)}' of {where} and '{other.where(two)}' of "
                    f"{there}; name more of the folders that they are in, or give them different tables (that of test "
                    "data is data.labels.test; of several test sets measure one after another)"
                )


def labelled(source: Source, config: Labels, split: Literal["train", "test"], where: str, root: str) -> Labelled:
    """Returns a source with the labels of the table; `root` is the path of its folder, and `where` its option."""
    tables = [config.read(path) for path in dict.fromkeys(filter(None, (config.table, config.test)))]
    table = tables[-1] if split == "test" else tables[0]
    rows = _rows_of(source, table, root)
    classes, tags = tuple[str, ...](), tuple[str, ...]()
    labels, tagged = np.full(len(rows), -1, np.int32), np.empty((len(rows), 0), np.int8)
    if isinstance(config.label, tuple) or config.separator is not None:
        tags, of_rows = _tags(tables, table, config)
        tagged, known = of_rows[rows], rows >= 0
    else:
        classes, labels = _classes(tables, table, rows)
        known = labels >= 0
    lost = int((~known).sum())
    if not (rows >= 0).any():
        called = f"such as '{table.images[0]}'" if table.images else f"not with '{config.prefix}' in front"
        raise ConfigError(
            f"{where}: none of its {len(rows):,} images has a row in {table.path}: they are called such as "
            f"'{source.name_of(0)}', and its rows {called}; a row names an image by the end of its path, and what "
            "stands in front of that goes into data.labels.prefix"
        )
    if lost and (config.missing == "error" or lost == len(known)):
        first = int(np.argmin(known))
        raise ConfigError(
            f"{where}: {lost:,} of its {len(known):,} images have no {'row' if rows[first] < 0 else 'label'} in "
            f"{table.path}, such as '{source.name_of(first)}'; add them, or set data.labels.missing=leave_out"
        )
    if lost:
        progress.say(f"{where}: {lost:,} of {len(known):,} images have no label in {table.path}, and are left out")
    return Labelled(source, root, table, rows, np.flatnonzero(known), labels, classes, tagged, tags)


def of_other_images(own: Labels | None, words: Mapping[str, Any]) -> dict[str, Any]:
    """Returns words about data, in which those about a table are completed by a run's own.

    A run's table is about its own images. Where others take their place, a table has to be named for these.
    """
    new = words.get("labels")
    if own is None or ("labels" in words and new is None):
        return dict(words)
    given = _as_section(new) if isinstance(new, str | Mapping) else {}
    for split, needed in (("train", {"table"}), ("test", {"table", "test"})):
        if split in words and not needed & given.keys():
            option = "data.labels" if split == "train" else "data.labels.test"
            raise ConfigError(
                f"data.{split}: the run's labels are from a table about its own images; add {option}=TABLE, or "
                "data.labels=null where folders are classes"
            )
    kept = own.model_dump(mode="json", exclude={"test"} if "table" in given else None)
    return {**words, "labels": kept | given} if given else dict(words)


def refuse_same_rows(parts: Iterable[tuple[str, Source | None]]) -> None:
    """Refuses one row of a table that is about images of two of these sources, each with its option."""
    known = list[tuple[str, Labelled]]()
    for where, source in parts:
        for one in _inside(source):
            for there, other in known:
                one.refuse_same_rows(other, where, there)
            known.append((where, one))


def _inside(source: object) -> Iterator[Labelled]:
    """Yields the sources with a table of which a source consists."""
    if isinstance(source, Labelled):
        yield source
    elif isinstance(source, Derived):
        for part in source.made_of:
            yield from _inside(part)


def _rows_of(source: Source, table: Table, root: str) -> Ints:
    """Returns the number of each image's row; -1 where there is none."""
    ends, found = Ends(source, root), np.full(len(source), -1, np.int64)
    exact = np.zeros(len(source), bool)  # whether the row has the ending of the image too
    for number, image in enumerate(table.images):
        matches, same = ends.of(image)
        names = [source.name_of(index) for index in matches] if len(matches) > 1 else []
        if names and ends.of_keys and len(set(names)) == 1:
            raise ConfigError(
                f"{table.path}: line {table.lines[number]}: '{image}' may be each of {len(names)} images, for the keys "
                f"of these shards were cut to '{names[0]}'; take the folder that they were built from"
            )
        names = list(dict.fromkeys(names))  # windows of one image have one name
        if len(names) > 1:
            raise ConfigError(
                f"{table.path}: line {table.lines[number]}: '{image}' is the end of the names of {len(names)} images, "
                f"such as '{names[0]}' and '{names[1]}'; name more of the folders that they are in"
            )
        for index in matches:
            earlier = int(found[index]) if exact[index] == same else -1
            if exact[index] and not same:
                continue
            if earlier >= 0 and table.cells[earlier] != table.cells[number]:
                raise ConfigError(
                    f"{table.path}: lines {table.lines[earlier]} and {table.lines[number]} say different things of the "
                    f"image '{source.name_of(index)}'; leave one row per image"
                )
            found[index], exact[index] = number, same
    first, _ = ends.of(table.image)
    if len(first) == 1 and found[first[0]] < 0:
        raise ConfigError(
            f"{table.path}: its first line has '{table.image}' in the place of a column's name, which is the image "
            f"'{source.name_of(first[0])}'; add a line with the names of the columns"
        )
    return found


def _classes(tables: Sequence[Table], table: Table, rows: Ints) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """Returns the classes of all tables, and each image's; those that are numbers are sorted as numbers.

    Tables that were written with gaps have 1.0 in the place of 1.
    """
    texts = {cell for each in tables for (cell,) in each.cells if cell.lower() not in _BLANK}
    numeric = all(re.fullmatch(r"-?\d{1,18}(\.\d+)?", text) for text in texts)
    names = {text: re.sub(r"\.0+$", "", text) if numeric else text for text in texts}
    classes = tuple(sorted(set(names.values()), key=lambda name: (float(name) if numeric else 0, name)))
    for one, other in pairwise(classes):
        if numeric and float(one) == float(other):
            raise ConfigError(f"{table.path}: '{one}' and '{other}' are two classes; write a number in one way")
    places = {name: number for number, name in enumerate(classes)}
    numbers = {text: places[name] for text, name in names.items()}
    of_row = np.array([*(numbers.get(cell, -1) for (cell,) in table.cells), -1], np.int32)
    labels: NDArray[np.int32] = of_row[rows]  # images without a row take the last one
    return classes, labels


def _tags(tables: Sequence[Table], table: Table, config: Labels) -> tuple[tuple[str, ...], NDArray[np.int8]]:
    """Returns the tags, and which each row has."""
    blank = np.int8(0 if config.blank == "absent" else -1)
    if config.separator is None:
        found = np.array([_known(table, number, blank) for number in range(len(table.cells))], np.int8)
        return table.columns, found.reshape(-1, len(table.columns))
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
