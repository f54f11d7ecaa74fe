"""Files of tables, Parquet and Arrow, as Hugging Face's `datasets` writes them: which there are, and their columns."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mrp.config import ConfigError
from mrp.data import tree
from mrp.data.source import DecodeError, one_line

PARQUET, ARROW = ".parquet", ".arrow"
_STATE, _SPLITS = "state.json", "dataset_dict.json"  # that `save_to_disk` writes
_NAMES = {"train": ("train", "training"), "test": ("test", "validation", "valid", "val")}
_LOOKED_AT = 1 << 14  # bytes of each row group
_KEPT = 1 << 29  # bytes of row groups that a process keeps, of each set
_MOST_KEPT = 256  # parts, which are open files where they are Arrow's


class Part(NamedTuple):
    """What is read at once: a row group of a Parquet file, or an Arrow file, of which only what is used is read."""

    path: Path
    group: int | None  # None: an Arrow file
    rows: int
    sample: bytes  # of its content, for the identity


def found(path: Path, split: Literal["train", "test"]) -> list[Path]:
    """Returns the files of a split, in their order: one file, a folder of `save_to_disk`, or one of Parquet files."""
    if path.is_file():
        return [path]
    if (path / _SPLITS).is_file():
        folders = [path / name for name in _NAMES[split] if (path / name / _STATE).is_file()]
        if not folders:
            raise ConfigError(f"{path}: has no split for data.{split}; name another folder, or leave data.{split} out")
        path = folders[0]
    if (path / _STATE).is_file():
        return _of_state(path)
    files = sorted(path / file.name for file in tree.tree(path, (PARQUET,)))
    if not any(_of_split(path, files, names) for names in _NAMES.values()):
        return files
    chosen = _of_split(path, files, _NAMES[split])
    if not chosen:
        raise ConfigError(f"{path}: no file is called {' or '.join(_NAMES[split])}; give a file or folder of its own")
    return chosen


def is_such(path: Path) -> bool:
    """Returns whether a path names such files."""
    if path.suffix in (PARQUET, ARROW):
        return path.exists()
    if any((path / name).is_file() for name in (_STATE, _SPLITS)) or next(path.glob(f"data/*{PARQUET}"), None):
        return True
    # Beside images a table says something of them, as metadata.parquet does.
    return bool(next(path.glob(f"*{PARQUET}"), None)) and not next(tree.files(path, ""), None)


def _of_split(root: Path, files: list[Path], names: tuple[str, ...]) -> list[Path]:
    """Returns the files that are called by the first of these names that any of them has."""
    words = {file: re.split(r"[^a-z]+", file.relative_to(root).as_posix().lower()) for file in files}
    by_name = ([file for file in files if name in words[file]] for name in names)
    return next(filter(None, by_name), [])


def _of_state(folder: Path) -> list[Path]:
    try:
        state = json.loads((folder / _STATE).read_text("utf-8"))
        names = [str(file["filename"]) for file in state["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder / _STATE}: is not what save_to_disk writes ({error}); save the data again"
        ) from None
    if strange := [name for name in names if Path(name).name != name]:
        raise ConfigError(f"{folder / _STATE}: names '{strange[0]}', which is no file of the folder")
    return [folder / name for name in names]


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """Gives pyarrow; a file that it cannot read is an error of one line."""
    try:
        import pyarrow
    except ImportError:
        raise ConfigError(f"{path}: is read by pyarrow; install it: pip install 'mrp-vit[parquet]'") from None
    try:
        yield pyarrow
    except (pyarrow.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:  # of the file system
            raise
        raise DecodeError(f"damaged: {one_line(error)}") from None


def parts(path: Path, column: str) -> tuple[Any, list[Part]]:
    """Returns the schema of a file, and its parts."""
    with _reading(path):
        if path.suffix == ARROW:
            table = _arrow(path)
            return table.schema, [Part(path, None, len(table), b"")]
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(path) as file, path.open("rb") as raw:
            rows, schema = file.metadata, file.schema_arrow
            return schema, [
                Part(path, number, rows.row_group(number).num_rows, _sample(raw, rows.row_group(number), column))
                for number in range(rows.num_row_groups)
            ]


def _sample(raw: Any, group: Any, column: str) -> bytes:
    """Returns the sizes of a row group's images together, and the first bytes as they are stored."""
    for number in range(group.num_columns):
        chunk = group.column(number)
        if chunk.path_in_schema in (column, f"{column}.bytes"):
            raw.seek(min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset))))
            start: bytes = raw.read(min(_LOOKED_AT, chunk.total_compressed_size))
            return b"%d %d\n" % (chunk.num_values, chunk.total_uncompressed_size) + start
    return b""


def schema_of(path: Path) -> Any:
    """Returns what columns a file has."""
    with _reading(path):
        if path.suffix == ARROW:
            return _arrow(path).schema
        import pyarrow.parquet

        return pyarrow.parquet.read_schema(path)


def _arrow(path: Path) -> Any:
    """Returns the table of an Arrow file, which stays where it is."""
    import pyarrow

    with path.open("rb") as file:
        of_random_access = file.read(6) == b"ARROW1"
    opened = pyarrow.ipc.open_file if of_random_access else pyarrow.ipc.open_stream
    return opened(pyarrow.memory_map(str(path))).read_all()


def values(part: Part, column: str) -> Any:
    """Returns one column of a part; of `image.bytes` only that of the struct `image`."""
    with _reading(part.path) as pyarrow:
        if part.group is None:
            name, _, inner = column.partition(".")
            chunks = _arrow(part.path).column(name).chunks
            return pyarrow.chunked_array([chunk.field(inner) for chunk in chunks] if inner else chunks)
        from pyarrow.parquet import ParquetFile

        with ParquetFile(part.path, memory_map=True) as file:
            table = file.read_row_group(part.group, columns=[column], use_threads=False)
            only = table.column(0)
            return only if "." not in column else pyarrow.chunked_array([chunk.field(0) for chunk in only.chunks])


def sizes(part: Part, column: str) -> bytes:
    """Returns how many bytes each value of a column of bytes has, from which the file itself is hardly read."""
    with _reading(part.path):
        from pyarrow.compute import binary_length

        lengths: NDArray[np.int64] = binary_length(values(part, column)).fill_null(-1).to_numpy().astype("<i8")
        return lengths.tobytes()


class Kept:
    """The parts that were read last, as many as fit."""

    def __init__(self) -> None:
        self._parts: OrderedDict[int, tuple[Any, int]] = OrderedDict()
        self._bytes = 0

    def __reduce__(self) -> Any:
        return Kept, ()  # a worker process reads its own

    def get(self, number: int, part: Part, column: str) -> Any:
        """Returns a column of a part."""
        if number in self._parts:
            self._parts.move_to_end(number)
            return self._parts[number][0]
        read = values(part, column)
        size = 0 if part.group is None else read.nbytes
        self._parts[number], self._bytes = (read, size), self._bytes + size
        while len(self._parts) > 1 and (self._bytes > _KEPT or len(self._parts) > _MOST_KEPT):
            _, (_, left) = self._parts.popitem(last=False)
            self._bytes -= left
        return read
