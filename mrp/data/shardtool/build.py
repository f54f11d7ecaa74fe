"""Shards from original images: planned first, made by several processes, and continued after an interruption.

A finished shard is renamed into place and then noted; what is noted is never made again, and the rest is made anew.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass, field
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from mrp.config import ConfigError
from mrp.data import index, manifest, tree
from mrp.data.index import RECORD
from mrp.data.manifest import KEYS, PLAN, Manifest, Shard
from mrp.data.order import Ints, permute
from mrp.data.shardtool import scan
from mrp.data.shardtool.encode import encode
from mrp.data.shardtool.finish import FinishedShard, write_set
from mrp.data.shardtool.statistics import SAMPLED, measure_shard
from mrp.data.source import Source
from mrp.data.start import START
from mrp.files import sha256_of, unfinished, write_atomically

_NOTES = ".building"  # the folder with what is known of finished shards, while others are missing

Progress = Callable[[int, int], None]  # shards done, shards in all


@dataclass(frozen=True, slots=True)
class Options:
    """What decides the bytes of the shards."""

    shard_size: int = 1000  # samples
    seed: int | None = 0  # of the order in which samples are laid down; None keeps that of the source
    max_side: int | None = None  # images with a longer side are made smaller, and encoded as JPEG again
    quality: int = 90
    raw: int | None = field(default=None, repr=False)  # pixels are stored as they are, the shorter side at most so long


@dataclass(frozen=True)
class Plan:
    """The whole build, the same in every process."""

    source: Source
    options: Options
    folder: Path

    @property
    def num_shards(self) -> int:
        """The number of shards."""
        return -(-len(self.source) // self.options.shard_size)

    def samples(self, number: int) -> Ints:
        """Returns the source's samples in one shard."""
        start = number * self.options.shard_size
        places = np.arange(start, min(start + self.options.shard_size, len(self.source)), dtype=np.int64)
        return places if self.options.seed is None else permute(places, len(self.source), self.options.seed)

    @cached_property
    def digest(self) -> str:
        """What an interrupted build is recognised by; without raw pixels it is what it was before there were any."""
        raw = f" raw={self.options.raw}" if self.options.raw else ""
        plan = repr((self.source.identity, self.source.classes, self.options)) + raw
        return hashlib.sha256(plan.encode()).hexdigest()

    def tar(self, number: int) -> Path:
        """Returns the path of a shard."""
        return self.folder / f"shard-{number:06}.tar"

    def note(self, number: int, ending: str) -> Path:
        """Returns the path of what is noted of a finished shard."""
        return self.folder / _NOTES / f"shard-{number:06}{ending}"


def build(plan: Plan, workers: int, progress: Progress) -> Manifest:
    """Makes the shards that are missing, then the index and the manifest; does nothing where all are there."""
    if (made := complete(plan)) is not None:
        return made
    _claim(plan)
    missing = [number for number in range(plan.num_shards) if not _is_finished(plan, number)]
    progress(plan.num_shards - len(missing), plan.num_shards)
    for done, _ in enumerate(_make_all(plan, missing, workers), start=plan.num_shards - len(missing) + 1):
        progress(done, plan.num_shards)
    shards = (_read_note(plan, number) for number in range(plan.num_shards))
    made = write_set(plan.folder, shards, plan.source.classes, "", {PLAN: plan.digest, KEYS: "all letters"})
    shutil.rmtree(plan.folder / _NOTES)
    return made


def complete(plan: Plan) -> Manifest | None:
    """Returns what this very build has made, if it was finished and every shard still has its size."""
    if (plan.folder / _NOTES).exists() or not (plan.folder / manifest.MANIFEST).is_file():
        return None
    try:
        made = manifest.parse((plan.folder / manifest.MANIFEST).read_bytes())
        sizes = [(plan.folder / shard.name).stat().st_size for shard in made.shards]
    except (manifest.ManifestError, OSError):
        return None
    same = made.notes.get(PLAN) == plan.digest and (plan.folder / index.INDEX).is_file()
    return made if same and sizes == [shard.bytes for shard in made.shards] else None


def _claim(plan: Plan) -> None:
    """Makes the folder for this build, or checks that what it holds was begun by it."""
    notes = plan.folder / _NOTES
    plan.folder.mkdir(parents=True, exist_ok=True)
    if not (notes / "plan").is_file():
        others = [path.name for path in plan.folder.iterdir() if path.name != _NOTES]
        if others:
            raise ConfigError(f"{plan.folder}: is not empty ('{others[0]}'); choose another folder for the shards")
        notes.mkdir(exist_ok=True)
        write_atomically(notes / "plan", plan.digest)
    if (notes / "plan").read_text() != plan.digest:
        raise ConfigError(
            f"{plan.folder}: holds the unfinished build of other data or options; remove it, or choose another folder"
        )


def _make_all(plan: Plan, missing: list[int], workers: int) -> Iterator[None]:
    if workers <= 1:
        for number in missing:
            _make(plan, number)
            yield
        return
    context = get_context(START)
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(workers, context, _start_worker, (plan,)) as pool:
        try:
            yield from pool.map(_make_in_worker, missing)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_plan: Plan | None = None  # of a worker process


def _start_worker(plan: Plan) -> None:
    global _plan
    _plan = plan
    torch.set_num_threads(1)


def _make_in_worker(number: int) -> None:
    assert _plan is not None
    _make(_plan, number)


def _is_finished(plan: Plan, number: int) -> bool:
    if not (plan.tar(number).is_file() and plan.note(number, ".json").is_file()):
        return False
    return plan.tar(number).stat().st_size == _read_note(plan, number).shard.bytes


def _make(plan: Plan, number: int) -> None:
    """Writes one shard under another name, reads it back and checks it, renames it, and then notes it."""
    tar, notes = plan.tar(number), Counter[str]()
    temporary = unfinished(tar)
    try:
        scan.write(temporary, _samples(plan, number, notes))
    except OSError as error:
        if error.filename is None:  # of the open shard; an image that cannot be read has a name
            raise ConfigError(f"{tar}: cannot be written: {error.strerror}; free some space, and go on") from None
        raise
    scanned = scan.scan(temporary)
    assert len(scanned.records) == len(plan.samples(number))
    shard = Shard(tar.name, temporary.stat().st_size, sha256_of(temporary), len(scanned.records))
    sums = measure_shard(temporary, scanned.records, -(-SAMPLED // plan.num_shards))
    temporary.replace(tar)
    write_atomically(plan.note(number, ".bin"), scanned.records.tobytes())
    write_atomically(plan.note(number, ".json"), json.dumps([astuple(shard), sums.tolist(), notes + scanned.notes]))


def _read_note(plan: Plan, number: int) -> FinishedShard:
    entry, sums, notes = json.loads(plan.note(number, ".json").read_text())
    records = np.frombuffer(plan.note(number, ".bin").read_bytes(), RECORD)
    return FinishedShard(Shard(*entry), records, np.array(sums), Counter(notes))


def _samples(plan: Plan, number: int, notes: Counter[str]) -> Iterator[scan.Sample]:
    for place, sample in enumerate(plan.samples(number).tolist(), start=number * plan.options.shard_size):
        content, label = plan.source.read(sample)
        where = plan.source.where(sample)
        named = where.rpartition(".")[2].lower()
        ending, data = encode(content, named, plan.options.max_side, plan.options.quality, plan.options.raw, notes)
        yield scan.Sample(f"{place:09}-{_plain(plan.source.name_of(sample), where)}", ending, data, label)


def _plain(name: str, where: str) -> str:
    """Returns the path of a sample within its source as a key; of a source without paths, what it is called last."""
    parts = re.split(r"[/:]", name)
    *folders, last = parts[-2:] if name == where else parts
    return tree.key_of([*folders, last.rpartition(".")[0] or last])
