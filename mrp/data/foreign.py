"""Shards made by others: checked once from end to end, and given an index and a manifest."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mrp.config import ConfigError
from mrp.data import manifest, shards
from mrp.data.build import Part, join, measure_file
from mrp.data.manifest import Manifest, Shard


def index(paths: Iterator[tuple[str, Path]], out: Path, location: str, classes: tuple[str, ...] | None) -> Manifest:
    """Index and manifest for shards made by others, which stay where and as they are."""
    parts, keys = [], []
    for name, path in paths:
        try:
            found = shards.index(path)
        except shards.ShardError as error:
            raise ConfigError(f"{name}: {error}; mend it, or leave it out") from None
        shard = Shard(name, path.stat().st_size, manifest.sha256(path), len(found.records))
        parts.append(Part(shard, found.records, measure_file(path, found.records, 100), found.notes))
        keys.append(found.keys)
    if not parts:
        raise ConfigError(f"{location or out}: holds no shards (files that end in .tar)")
    _check_keys(parts, keys)
    labels = np.concatenate([part.records["label"] for part in parts])
    if len(labels) == 0:
        raise ConfigError(f"{location or out}: its shards hold no samples")
    if labels.min() < 0 <= labels.max():
        raise ConfigError(f"{location or out}: some shards have labels and some have none; index them apart")
    if classes is None:
        classes = tuple(str(number) for number in range(int(labels.max()) + 1))
    if labels.max() >= len(classes):
        raise ConfigError(f"{location or out}: there is a label {labels.max()}, and only {len(classes)} classes")
    out.mkdir(parents=True, exist_ok=True)
    return join(out, parts, classes, location)


def _check_keys(parts: list[Part], keys: list[NDArray[np.uint64]]) -> None:
    """No key stands in two shards."""
    together = np.concatenate(keys)
    order = np.argsort(together, kind="stable")
    twice = order[1:][together[order[1:]] == together[order[:-1]]]
    if len(twice):
        numbers = list(chain.from_iterable([number] * len(part) for number, part in enumerate(keys)))
        first = int(np.flatnonzero(together == together[twice[0]])[0])
        raise ConfigError(
            f"{parts[numbers[int(twice[0])]].shard.name}: a sample has the key of one in "
            f"{parts[numbers[first]].shard.name} (samples {int(twice[0])} and {first} of all); keys stand once"
        )
