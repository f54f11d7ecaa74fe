"""Shards made by others: checked once from end to end, and given an index and a manifest."""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mrp.config import ConfigError
from mrp.data.manifest import Manifest, ManifestError, Shard, check_name
from mrp.data.order import Ints
from mrp.data.shardtool.build import Progress
from mrp.data.shardtool.finish import FinishedShard, write_set
from mrp.data.shardtool.keys import Keys
from mrp.data.shardtool.scan import ShardError, keys_of, scan
from mrp.data.shardtool.statistics import measure_shard
from mrp.data.storage.store import PIECE, Store
from mrp.files import sha256_of

_MEASURED = 100  # images per shard
_NUM_FILES = 64  # over which the hashes of keys are spread: of a billion, a file has 250 MB
_MOST_CLASSES = 1_000_000  # that labels are taken to stand for, where no list names the classes


def index(
    store: Store,
    names: Sequence[str],
    out: Path,
    location: str,
    classes: tuple[str, ...] | None,
    progress: Progress = lambda done, total: None,
) -> Manifest:
    """Writes index and manifest for shards made by others, which are left where and as they are.

    One shard at a time is in memory, so that a set may be of any size.
    """
    if not names:
        raise ConfigError(f"{location or out}: holds no shards (files that end in .tar)")
    for name, count in Counter(names).most_common(1):
        if count > 1:
            raise ConfigError(f"{name}: the shard is named twice; name it once")
    is_new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.ExitStack() as stack:  # the files have no names, so that a process that is killed leaves none
            files = [stack.enter_context(tempfile.TemporaryFile(dir=out)) for _ in range(_NUM_FILES)]
            scanned = _scanned(store, names, Keys(files), classes, progress)
            return write_set(out, scanned, classes, location)
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):  # if anything is in it
                out.rmdir()
        raise


def _scanned(
    store: Store, names: Sequence[str], keys: Keys, classes: tuple[str, ...] | None, progress: Progress
) -> Iterator[FinishedShard]:
    """Yields what each shard holds, and after the last one refuses a key that stands in two of them."""
    counts = list[int]()
    for done, name in enumerate(names, start=1):
        with _as_file(store, name) as path:
            try:
                scanned = scan(path, _MOST_CLASSES if classes is None else len(classes))
            except ShardError as error:
                raise ConfigError(f"{name}: {error}; mend it, or leave it out") from None
            shard = Shard(name, path.stat().st_size, sha256_of(path), len(scanned.records))
            sums = measure_shard(path, scanned.records, _MEASURED)
        yield FinishedShard(shard, scanned.records, sums, scanned.notes)
        keys.add(scanned.keys)
        counts.append(shard.count)
        progress(done, len(names))
    ends = np.cumsum(counts)
    for samples in keys.repeated():
        _check_keys(store, names, ends, samples)


@contextlib.contextmanager
def _as_file(store: Store, name: str) -> Iterator[Path]:
    """Gives a shard as a file of this machine; a remote one only for as long as it is looked at."""
    try:
        check_name(name)
    except ManifestError as error:
        raise ConfigError(str(error)) from None
    size = store.size(name)  # says so when it is missing
    if store.local:
        yield Path(store.where(name))
        return
    with tempfile.NamedTemporaryFile(suffix=".tar") as file:
        for start in range(0, size, PIECE):
            file.write(store.read(name, start, min(start + PIECE, size)))
        file.flush()
        yield Path(file.name)


def _check_keys(store: Store, names: Sequence[str], ends: Ints, samples: Ints) -> None:
    """Refuses a key that stands twice among samples whose keys have the same hash."""
    known = dict[str, int]()  # the shard of each key
    for shard in np.unique(np.searchsorted(ends, samples, side="right")).tolist():
        with _as_file(store, names[shard]) as path:
            keys = keys_of(path)
        first = int(ends[shard]) - len(keys)
        for sample in samples[(samples >= first) & (samples < ends[shard])].tolist():
            key = keys[sample - first]
            if key in known:
                there = names[known[key]]
                raise ConfigError(f"{names[shard]}: sample '{key}' has the key of one in {there}; keys stand once")
            known[key] = shard
