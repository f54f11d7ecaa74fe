"""Which training images give their labels: a fraction of each class, or those that a list of names gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mrp.config import ConfigError, reading
from mrp.data.source import Source
from mrp.evaluate.config import Labelled
from mrp.evaluate.split import by_class
from mrp.evaluate.table import Table

_DRAW = 0x6C61626C  # of the hashes that a fraction goes by, apart from those of held-out images and of few-shot


def chosen_images(config: Any, train: Table, source: Source) -> Table:
    """Returns the table of the images that a section asks for; the table itself where it asks for all."""
    if not isinstance(config, Labelled) or (config.fraction is None and config.list is None):
        return train
    if config.list is not None:
        return train.only(listed(Path(config.list).expanduser(), source))
    count = train.images
    return train.only(_fraction(train.labels[:count], train.keys[:count], config.fraction or 1.0))


def _fraction(labels: torch.Tensor, keys: torch.Tensor, fraction: float) -> NDArray[np.int64]:
    """Returns the same share of each class, at least one image; those of a smaller fraction are in every larger one."""
    order = by_class(labels, keys, _DRAW)
    counts = torch.bincount(labels).numpy()
    first = np.cumsum(counts) - counts
    quota = np.minimum(counts, np.maximum(1, np.round(fraction * counts))).astype(np.int64)
    chosen: NDArray[np.int64] = order[np.arange(len(order)) < (first + quota)[labels.numpy()[order]]]
    return np.sort(chosen)


def listed(path: Path, source: Source) -> NDArray[np.int64]:
    """Returns the numbers of the images whose names a file gives, with or without their folders, one per line."""
    with reading(f"list: {path}", "give a file with one name per line"):
        lines = [line for text in path.read_text(encoding="utf-8").splitlines() if (line := text.strip())]
    wanted = dict[str, list[str]]()
    for line in dict.fromkeys(lines):
        wanted.setdefault(line.rpartition("/")[2], []).append(line)
    found = dict[str, int]()
    for number in range(len(source)):
        where = source.where(number)
        for line in wanted.get(where.rpartition("/")[2], ()):
            if not f"/{where}".endswith(f"/{line}"):
                continue
            if line in found:
                raise ConfigError(
                    f"list: {path}: '{line}' is the name of several images, such as {source.where(found[line])} and "
                    f"{where}; write their folders before the names"
                )
            found[line] = number
    missing = [line for line in dict.fromkeys(lines) if line not in found]
    if not lines:
        raise ConfigError(f"list: {path}: holds no names; give a file with one name of an image per line")
    if missing:
        raise ConfigError(
            f"list: {path}: {len(missing):,} of its {len(lines):,} names, such as '{missing[0]}', are of none of the "
            f"{len(source):,} images of data.train; give names of files (shards keep none: give fraction then)"
        )
    return np.array(sorted(set(found.values())), np.int64)
