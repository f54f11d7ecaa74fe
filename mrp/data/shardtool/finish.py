"""The index and the manifest of a set, written while its finished shards come one after another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mrp.config import ConfigError
from mrp.data import index, manifest
from mrp.data.index import Records
from mrp.data.manifest import Manifest, Shard
from mrp.data.shardtool.statistics import Sums, moments
from mrp.files import replacing, write_atomically

_NAMED = {"unreadable: ": 20, "passed over: ": 100}  # of notes that begin so, as many kinds are kept


class FinishedShard(NamedTuple):
    """A shard with what the manifest and the index will say of it."""

    shard: Shard
    records: Records
    sums: Sums
    notes: Counter[str]


def write_set(
    folder: Path,
    finished: Iterable[FinishedShard],
    classes: tuple[str, ...] | None,
    location: str,
    more: dict[str, str] | None = None,
) -> Manifest:
    """Writes index and manifest; of each shard only its line in the manifest stays in memory.

    Without a list of classes they are numbered up to the highest label. `more` is noted beside what was counted.
    """
    shards, sums, notes = list[Shard](), np.zeros((3, 3)), Counter[str]()
    lowest, highest = 0, -1
    with replacing(folder / index.INDEX) as file:
        for shard, records, its_sums, its_notes in finished:
            numbered = records.copy()
            numbered["shard"] = len(shards)
            file.write(numbered.tobytes())
            if len(records):
                lowest = min(lowest, int(records["label"].min()))
                highest = max(highest, int(records["label"].max()))
            shards.append(shard)
            sums += its_sums
            _note(notes, its_notes)
        if lowest < 0 <= highest:
            raise ConfigError(f"{location or folder}: some shards have labels and some have none; index them apart")
        if not any(shard.count for shard in shards):
            raise ConfigError(f"{location or folder}: its shards hold no samples")
    classes = tuple(str(number) for number in range(highest + 1)) if classes is None else classes
    mean, std = moments(sums)
    noted: dict[str, int | str] = dict(sorted(notes.items()))
    sha256, hashes_sha256 = index.seal(folder / index.INDEX)
    made = Manifest(tuple(shards), sha256, classes, location, mean, std, noted | (more or {}), hashes_sha256)
    write_atomically(folder / manifest.MANIFEST, made.dump())
    return made


def _note(notes: Counter[str], more: Counter[str]) -> None:
    """Adds what was counted in a shard; of what could differ from sample to sample only some is named."""
    for name, count in (+more).items():
        begin = next((begin for begin in _NAMED if name.startswith(begin)), "")
        full = begin and sum(known.startswith(begin) for known in notes) >= _NAMED[begin]
        if not full or name in notes:
            notes[name] += count
        elif begin == "passed over: ":
            notes["passed over: others"] += count
