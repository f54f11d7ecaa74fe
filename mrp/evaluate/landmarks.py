"""The list of a landmark benchmark such as Oxford or Paris: which images there are, and what each query asks for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrp.config import ConfigError, reading
from mrp.evaluate.images import Box, named
from mrp.evaluate.ranking import Landmarks

_FORM = '{"imlist": [NAME, ...], "qimlist": [NAME, ...], "gnd": [{"easy": [...], "hard": [...], "junk": [...]}, ...]}'


@dataclass(frozen=True)
class Benchmark:
    """The images of the gallery, the queries with their boxes, and what each query asks for."""

    gallery: tuple[Path, ...]
    queries: tuple[Path, ...]
    boxes: tuple[Box | None, ...]
    wanted: tuple[Landmarks, ...]


def read(path: Path, folder: Path) -> Benchmark:
    """Returns what a JSON file says with the field names of the published files (which are pickles, never read here).

    `imlist` names the gallery, `qimlist` the queries; `gnd` has for each query the numbers in `imlist` of easy, hard
    and junk images, and perhaps its box `bbx` (left, top, right, bottom).
    """
    with reading(path, "give a JSON file"):
        text = path.read_bytes()
    try:
        content = json.loads(text)
        names, queries, gnd = content["imlist"], content["qimlist"], content["gnd"]
        sizes = len(names), len(queries), len(gnd)
        pairs = [(query, dict(one)) for query, one in zip(queries, gnd, strict=False)]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{path}: is not of the form {_FORM}; a published pickle has to be saved as JSON") from None
    if not min(sizes) or sizes[1] != sizes[2]:
        raise ConfigError(
            f"{path}: has {sizes[0]} images in imlist, {sizes[1]} queries in qimlist and {sizes[2]} entries in gnd; "
            "each query needs one entry"
        )
    wanted = [
        Landmarks(*(_numbers(one.get(key, []), sizes[0], f"{path}: gnd {n}, {key}") for key in Landmarks._fields))
        for n, (_, one) in enumerate(pairs)
    ]
    if not any(len(one.easy) or len(one.hard) for one in wanted):
        raise ConfigError(f"{path}: no query has an easy or hard image, so there is nothing to find; mend gnd")
    return Benchmark(
        tuple(named(folder, name, f"{path}: imlist") for name in names),
        tuple(named(folder, query, f"{path}: qimlist") for query, _ in pairs),
        tuple(_box(one.get("bbx"), f"{path}: gnd {n}, bbx") for n, (_, one) in enumerate(pairs)),
        tuple(wanted),
    )


def _numbers(values: Any, count: int, where: str) -> NDArray[np.int64]:
    if not isinstance(values, list) or not all(type(value) is int and 0 <= value < count for value in values):
        raise ConfigError(f"{where}: is not a list of numbers of images, from 0 to {count - 1}")
    return np.unique(np.array(values, np.int64))


def _box(values: Any, where: str) -> Box | None:
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != 4 or not all(type(value) in (int, float) for value in values):
        raise ConfigError(f"{where}: is not a list of four numbers: left, top, right, bottom")
    left, top, right, bottom = values
    return left, top, right, bottom
