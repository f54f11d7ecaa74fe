"""Shards made by others: checked once from end to end, and given an index and a manifest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mrp.config import ConfigError
from mrp.data.manifest import Manifest, Shard
from mrp.data.shardtool.build import FinishedShard, write_set
from mrp.data.shardtool.scan import ShardError, scan
from mrp.data.shardtool.statistics import measure_shard
from mrp.files import sha256_of

_MEASURED = 100  # images per shard
_MOST_CLASSES = 1_000_000  # that labels are taken to stand for, where no list names the classes


def index(paths: Iterator[tuple[str, Path]], out: Path, location: str, classes: tuple[str, ...] | None) -> Manifest:
    """Writes index and manifest for shards made by others, which are left where and as they are."""
    shards, keys, names = list[FinishedShard](), list[NDArray[np.uint64]](), set[str]()
    for name, path in paths:
        if name in names:
            raise ConfigError(f"{name}: the shard is named twice; name it once")
        names.add(name)
        try:
            scanned = scan(path, _MOST_CLASSES if classes is None else len(classes))
        except ShardError as error:
            raise ConfigError(f"{name}: {error}; mend it, or leave it out") from None
        shard = Shard(name, path.stat().st_size, sha256_of(path), len(scanned.records))
        sums = measure_shard(path, scanned.records, _MEASURED)
        shards.append(FinishedShard(shard, scanned.records, sums, scanned.notes))
        keys.append(scanned.keys)
    if not shards:
        raise ConfigError(f"{location or out}: holds no shards (files that end in .tar)")
    _check_keys(shards, keys)
    labels = np.concatenate([shard.records["label"] for shard in shards])
    if len(labels) == 0:
        raise ConfigError(f"{location or out}: its shards hold no samples")
    if labels.min() < 0 <= labels.max():
        raise ConfigError(f"{location or out}: some shards have labels and some have none; index them apart")
    if classes is None:
        classes = tuple(str(number) for number in range(int(labels.max()) + 1))
    out.mkdir(parents=True, exist_ok=True)
    return write_set(out, shards, classes, location)


def _check_keys(shards: list[FinishedShard], keys: list[NDArray[np.uint64]]) -> None:
    """Refuses a key that stands in two shards."""
    all_keys = np.concatenate(keys)
    order = np.argsort(all_keys, kind="stable")
    repeated = order[1:][all_keys[order[1:]] == all_keys[order[:-1]]]
    if len(repeated):
        again = int(repeated[0])
        first = int(np.flatnonzero(all_keys == all_keys[again])[0])
        ends = np.cumsum([len(part) for part in keys])
        here, there = (shards[int(np.searchsorted(ends, n, side="right"))].shard.name for n in (again, first))
        raise ConfigError(
            f"{here}: a sample has the key of one in {there} (samples {again} and {first} of all); keys stand once"
        )
