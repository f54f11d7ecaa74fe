"""Images in the tables of Hugging Face's `datasets`: Parquet files, and folders that `save_to_disk` has written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mrp.config import ConfigError, Node, nearest
from mrp.data import columns, source, tree
from mrp.data.columns import Kept, Part
from mrp.data.order import Ints
from mrp.data.source import DecodeError, Pixels, numbered
from mrp.data.storage.cache import Cache

_IMAGES, _LABELS = ("image", "img"), ("label", "labels")  # what columns are usually called
_LOOKED_AT = 256  # images of Arrow files from which the identity follows, beside their sizes


class Config(Node):
    """A Parquet or Arrow file, a folder of Parquet files, or a folder that `save_to_disk` has written."""

    name: Literal["parquet"] = "parquet"
    # The file or folder; where it has several splits, data.train and data.test each take their own.
    path: str
    # The column that holds image files; by default image, img, or the only column that can hold them.
    image: str | None = None
    label: str | None = None  # the column of class numbers or names; by default label or labels, where there is one


def recognise(text: str) -> Config | None:
    """Returns a configuration if `data.train` names this kind of source."""
    return Config(path=text) if "://" not in text and columns.is_such(Path(text).expanduser()) else None


class Source(source.Source):
    """The rows of all files, in the order of the files' names, or in that of the folder's own list.

    A row group of a Parquet file is read whole, so that it counts as a shard; of Arrow files single rows are read. The
    identity follows from the sizes of all images (of Parquet: of each row group's together), all labels, and a bounded
    sample of the bytes as they are stored. The content also covers sizes and times of change of the files.
    """

    def __init__(self, config: Config, split: Literal["train", "test"], cache: Cache) -> None:
        files = columns.found(Path(config.path).expanduser(), split)
        try:
            schema = columns.schema_of(files[0])
            self._column, label = _columns(files[0], schema, config)
            self._parts: list[Part] = []
            names: list[str] = []
            for file in files:
                other, parts = columns.parts(file, self._column.partition(".")[0])
                if other.names != schema.names:
                    raise ConfigError(
                        f"{file}: has the columns {', '.join(other.names)}, unlike {files[0]}; move it away"
                    )
                theirs = _class_names(other, label) if label else []
                names = names or theirs  # files that another program has written have none
                if theirs and theirs != names:
                    raise ConfigError(
                        f"{file}: numbers its classes in another way than {files[0]}; save them as one set"
                    )
                self._parts += [part for part in parts if part.rows]
            self._ends = np.cumsum([part.rows for part in self._parts], dtype=np.int64)
            if not self._parts:
                raise ConfigError(f"{config.path}: holds no rows")
            self._label(schema, label)
        except (DecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{config.path}: {error}; mend or remove the file") from None
        self._kept = Kept()

    def _label(self, schema: Any, name: str | None) -> None:
        if name is None:
            return
        if schema.field(name).type.num_fields:
            raise ConfigError(
                f"{self._parts[0].path}: the column {name} holds {schema.field(name).type}, and no class numbers"
            )
        found = [columns.values(part, name) for part in self._parts]
        if sum(map(len, found)) != len(self):
            raise DecodeError(f"damaged: its column {name} has not a label for each row")
        missing = sum(values.null_count for values in found)
        if missing == len(self):
            return
        if missing:
            raise ConfigError(
                f"{self._parts[0].path}: {missing} rows have no {name}; leave them out, or take another column"
            )
        labels = np.concatenate([np.asarray(values) for values in found])
        names: Any = _class_names(schema, name)
        if labels.dtype.kind in "OU":
            names, labels = np.unique(labels.astype(str), return_inverse=True)
        elif labels.dtype.kind not in "iu":
            raise ConfigError(f"{self._parts[0].path}: the column {name} holds {labels.dtype}, and no class numbers")
        if labels.min() < 0 and labels.max() < 0:
            return  # as test data without labels are written
        self.labels = labels.astype(np.int64)
        self.classes = tuple(map(str, names)) if len(names) else numbered(str(self._parts[0].path), labels)
        if labels.min() < 0 or labels.max() >= len(self.classes):
            raise ConfigError(
                f"{self._parts[0].path}: the labels go from {labels.min()} to {labels.max()}, and there are "
                f"{len(self.classes)} classes; leave rows without a label out"
            )

    def __len__(self) -> int:
        return int(self._ends[-1])

    @cached_property
    def shard_sizes(self) -> Ints:
        """The rows of each row group, which are read together; empty for Arrow files."""
        sizes = [part.rows for part in self._parts if part.group is not None]
        return np.array(sizes if len(sizes) == len(self._parts) else [], np.int64)

    def read(self, index: int) -> tuple[bytes | Pixels, int]:
        """Returns the image file's bytes and the number of its class."""
        return self._bytes(index), int(self.labels[index])

    def _place(self, index: int) -> tuple[int, int]:
        """Returns the part of a row, and the row in it."""
        part = int(np.searchsorted(self._ends, index, "right"))
        return part, index - (int(self._ends[part - 1]) if part else 0)

    def _bytes(self, index: int) -> bytes:
        part, row = self._place(index)
        image: bytes | None = self._kept.get(part, self._parts[part], self._column)[row].as_py()
        if image is None:
            raise DecodeError("the row holds no image, or only the path of one; save the data with their images inside")
        return image

    @cached_property
    def identity(self) -> str:
        """A sha256 of the number of rows, labels, names of classes, sizes, and a bounded sample of the images."""
        digest = hashlib.sha256(f"{len(self)} {self.classes}\n".encode())
        for piece in self._pieces():
            digest.update(piece)
        if self.classes:
            digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()

    def _pieces(self) -> Iterator[bytes]:
        if all(part.group is not None for part in self._parts):
            yield from (b"%d " % part.rows + part.sample for part in self._parts)
            return
        for part in self._parts:
            yield columns.sizes(part, self._column)
        yield from map(self._bytes, np.unique(np.linspace(0, len(self) - 1, _LOOKED_AT, dtype=np.int64)).tolist())

    @cached_property
    def content(self) -> str:
        """A sha256 of the identity, and of what the file system says of the files."""
        files = dict.fromkeys(part.path for part in self._parts)
        return hashlib.sha256(
            f"{self.identity} {tree.content(tree.File.at(p, p.name) for p in files)}".encode()
        ).hexdigest()

    def where(self, index: int) -> str:
        """Returns the file, and the number of the row in it."""
        part, row = self._place(index)
        before = sum(one.rows for one in self._parts[:part] if one.path == self._parts[part].path)
        return f"{self._parts[part].path}: row {before + row}"


def _columns(path: Path, schema: Any, config: Config) -> tuple[str, str | None]:
    """Returns the columns of images and of labels."""
    kinds = {field.name: str(field.type) for field in schema}
    able = [name for name, kind in kinds.items() if "binary" in kind and (kind.endswith("binary") or "bytes:" in kind)]
    usual = [name for name in _IMAGES if name in able]
    image = config.image or (usual[0] if usual else able[0] if len(able) == 1 else None)
    label = config.label or next((name for name in _LABELS if name in kinds), None)
    if image is None:
        raise ConfigError(f"{path}: has the columns {', '.join(kinds)}; say by 'image: NAME' which one holds images")
    for name in filter(None, (image, label)):
        if name not in kinds:
            raise ConfigError(f"{path}: has no column '{name}'{nearest(name, kinds)}; it has {', '.join(kinds)}")
    if image not in able:
        raise ConfigError(f"{path}: the column {image} holds {kinds[image]}, and no bytes of image files")
    return image if kinds[image].endswith("binary") else f"{image}.bytes", label


def _class_names(schema: Any, label: str) -> list[str]:
    """Returns what classes are called by the notes of `datasets`, if it has left some."""
    try:
        notes = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        return list(notes["info"]["features"][label]["names"])
    except (ValueError, KeyError, TypeError):
        return []
