"""Features as files for other tools: rows of numbers, with the name and the label of each image."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mrp.config import ConfigError, check_out
from mrp.data.source import Source
from mrp.evaluate.table import Columns
from mrp.files import replacing

_AT_ONCE = 8192  # rows


def check(out: Path) -> None:
    """Refuses a file that cannot be written, before anything is computed."""
    check_out(out, ".npy", ".parquet")
    if out.suffix == ".parquet":
        _pyarrow()


def write(out: Path, columns: Columns, source: Source) -> None:
    """Writes one row per image in the order of the source; each file appears complete or not at all."""
    with replacing(out) as file:
        (_write_npy if out.suffix == ".npy" else _write_parquet)(file, columns, source)
    if out.suffix == ".npy":
        with replacing(out.with_suffix(".jsonl")) as file:
            for row in range(len(columns)):
                file.write(json.dumps(_about(row, source)).encode() + b"\n")


def _write_npy(file: BinaryIO, columns: Columns, source: Source) -> None:
    header = {"descr": columns.dtype.str, "fortran_order": False, "shape": columns.shape}
    np.lib.format.write_array_header_1_0(file, header)
    for start in range(0, len(columns), _AT_ONCE):
        file.write(np.ascontiguousarray(columns[start : start + _AT_ONCE]).tobytes())


def _write_parquet(file: BinaryIO, columns: Columns, source: Source) -> None:
    arrow, parquet = _pyarrow()
    fields = {"id": arrow.string(), "name": arrow.string()}
    if source.tags:
        fields |= {"tags": arrow.list_(arrow.string()), "unknown": arrow.list_(arrow.string())}
    else:
        fields |= {"label": arrow.int64(), "class": arrow.string()}
    schema = arrow.schema([*fields.items(), ("features", arrow.list_(arrow.float32(), columns.shape[1]))])
    with parquet.ParquetWriter(file, schema) as writer:
        for start in range(0, len(columns), _AT_ONCE):
            part = np.asarray(columns[start : start + _AT_ONCE], np.float32)
            about = [_about(start + row, source) for row in range(len(part))]
            arrays = [arrow.array([one[name] for one in about], kind) for name, kind in fields.items()]
            rows = arrow.FixedSizeListArray.from_arrays(arrow.array(part.ravel()), columns.shape[1])
            writer.write_table(arrow.table([*arrays, rows], schema=schema))


def _about(row: int, source: Source) -> dict[str, Any]:
    image = {"id": source.where(row), "name": source.name_of(row)}  # where it lies, and what its source calls it
    if source.tags:
        known = source.tags_of(row)
        has, unknown = ([tag for tag, one in zip(source.tags, known, strict=True) if one == at] for at in (1, -1))
        return image | {"tags": has, "unknown": unknown}
    label = int(source.labels[row])
    return image | {"label": label, "class": source.classes[label] if label >= 0 else None}


def _pyarrow() -> tuple[Any, Any]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ConfigError("--out: .parquet needs pyarrow (pip install pyarrow); .npy needs nothing more") from None
