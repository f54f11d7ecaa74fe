"""Shards from originals: planned first, made by several processes, and gone on with after an interruption.

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
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
import torch
from numpy.typing import NDArray
from PIL import Image

from mrp.config import ConfigError
from mrp.data import manifest, shards
from mrp.data.augment import resize
from mrp.data.decode import DecodeError, Pixels, decode, header
from mrp.data.manifest import RECORD, Manifest, Records, Shard
from mrp.data.order import Ints, permute
from mrp.data.sources import Source

SAMPLED = 10_000  # images whose pixels are measured for mean and standard deviation
_PARTS = ".building"
_PLAN = "plan"  # the manifest's note of the build that made it

Progress = Callable[[int, int], None]  # shards done, shards in all


@dataclass(frozen=True, slots=True)
class Options:
    """What decides the bytes of the shards."""

    shard_size: int = 1000  # samples
    seed: int | None = 0  # of the order in which samples are laid down; None keeps that of the source
    max_side: int | None = None  # images with a longer side are made smaller, and encoded as JPEG again
    quality: int = 90


class Part(NamedTuple):
    """A shard that is finished."""

    shard: Shard
    records: Records
    sums: NDArray[np.float64]  # of images, of their means, of their mean squares; a row a channel
    notes: Counter[str]


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole build, the same in every process."""

    source: Source
    options: Options
    folder: Path

    @property
    def num_shards(self) -> int:
        """Shards in all."""
        return -(-len(self.source) // self.options.shard_size)

    def samples(self, number: int) -> Ints:
        """The source's samples in one shard."""
        start = number * self.options.shard_size
        places = np.arange(start, min(start + self.options.shard_size, len(self.source)), dtype=np.int64)
        return places if self.options.seed is None else permute(places, len(self.source), self.options.seed)

    @property
    def digest(self) -> str:
        """What an interrupted build is recognised by."""
        return hashlib.sha256(repr((self.source.identity, self.source.classes, self.options)).encode()).hexdigest()


def build(plan: Plan, workers: int, progress: Progress) -> Manifest:
    """Make what is missing of the shards, then the index and the manifest; nothing where all is there."""
    if (found := complete(plan)) is not None:
        return found
    parts = _open(plan)
    missing = [number for number in range(plan.num_shards) if not _finished(plan, number)]
    progress(plan.num_shards - len(missing), plan.num_shards)
    for done, _ in enumerate(_made(plan, missing, workers), start=plan.num_shards - len(missing) + 1):
        progress(done, plan.num_shards)
    every = [_read_part(plan, number) for number in range(plan.num_shards)]
    made = join(plan.folder, every, plan.source.classes, "", {_PLAN: plan.digest})
    shutil.rmtree(parts)
    return made


def complete(plan: Plan) -> Manifest | None:
    """What this very build has made, if it was finished and every shard still has its size."""
    if (plan.folder / _PARTS).exists() or not (plan.folder / manifest.MANIFEST).is_file():
        return None
    try:
        found = manifest.parse((plan.folder / manifest.MANIFEST).read_bytes())
        sizes = [(plan.folder / shard.name).stat().st_size for shard in found.shards]
    except (manifest.ManifestError, OSError):
        return None
    same = found.notes.get(_PLAN) == plan.digest and (plan.folder / manifest.INDEX).is_file()
    return found if same and sizes == [shard.bytes for shard in found.shards] else None


def _open(plan: Plan) -> Path:
    parts, note = plan.folder / _PARTS, plan.folder / _PARTS / "plan"
    plan.folder.mkdir(parents=True, exist_ok=True)
    if not note.is_file():
        foreign = [path.name for path in plan.folder.iterdir() if path.name != _PARTS]
        if foreign:
            raise ConfigError(f"{plan.folder}: is not empty ('{foreign[0]}'); choose another folder for the shards")
        parts.mkdir(exist_ok=True)
        manifest.atomic(note, plan.digest.encode())
    if note.read_text() != plan.digest:
        raise ConfigError(
            f"{plan.folder}: holds the unfinished build of other data or options; remove it, or choose another folder"
        )
    return parts


def _made(plan: Plan, missing: list[int], workers: int) -> Iterator[None]:
    if workers <= 1:
        for number in missing:
            _make(plan, number)
            yield
        return
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(workers, context, _start, (plan,)) as pool:
        try:
            yield from pool.map(_make_one, missing)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_plan: Plan | None = None  # of a worker process


def _start(plan: Plan) -> None:
    global _plan
    _plan = plan
    torch.set_num_threads(1)


def _make_one(number: int) -> None:
    assert _plan is not None
    _make(_plan, number)


def _names(plan: Plan, number: int) -> tuple[Path, Path]:
    return plan.folder / f"shard-{number:06}.tar", plan.folder / _PARTS / f"shard-{number:06}"


def _finished(plan: Plan, number: int) -> bool:
    tar, note = _names(plan, number)
    if not (tar.is_file() and note.with_suffix(".json").is_file()):
        return False
    return tar.stat().st_size == _read_part(plan, number).shard.bytes


def _make(plan: Plan, number: int) -> None:
    """One shard: written under another name, read back and checked, renamed, and then noted."""
    tar, note = _names(plan, number)
    unfinished = tar.with_name(f".{tar.name}.unfinished")
    notes: Counter[str] = Counter()
    shards.write(unfinished, _samples(plan, number, notes))
    found = shards.index(unfinished)
    assert len(found.records) == len(plan.samples(number))
    shard = Shard(tar.name, unfinished.stat().st_size, manifest.sha256(unfinished), len(found.records))
    sums = measure_file(unfinished, found.records, -(-SAMPLED // plan.num_shards))
    unfinished.replace(tar)
    manifest.atomic(note.with_suffix(".bin"), found.records.tobytes())
    entry = [[*_entry(shard)], sums.tolist(), notes + found.notes]
    manifest.atomic(note.with_suffix(".json"), json.dumps(entry).encode())


def _entry(shard: Shard) -> tuple[str, int, str, int]:
    return shard.name, shard.bytes, shard.sha256, shard.count


def _read_part(plan: Plan, number: int) -> Part:
    _, note = _names(plan, number)
    entry, sums, notes = json.loads(note.with_suffix(".json").read_text())
    records = np.frombuffer(note.with_suffix(".bin").read_bytes(), RECORD)
    return Part(Shard(*entry), records, np.array(sums), Counter(notes))


def _samples(plan: Plan, number: int, notes: Counter[str]) -> Iterator[shards.Sample]:
    for place, sample in enumerate(plan.samples(number).tolist(), start=number * plan.options.shard_size):
        content, label = plan.source.read(sample)
        where = plan.source.where(sample)
        ending, data = _stored(content, where, plan.options, notes)
        yield shards.Sample(f"{place:09}-{_plain(where)}", ending, data, label)


def _plain(where: str) -> str:
    """The last part of a name, in letters that any file system and any reader takes."""
    last = "-".join(re.split(r"[/:]", where)[-2:]).rpartition(".")[0] or where
    return re.sub(r"[^A-Za-z0-9_-]+", "_", last)[-60:].strip("_")


def _stored(content: bytes | Pixels, where: str, options: Options, notes: Counter[str]) -> tuple[str, bytes]:
    """An image as it is stored: its own bytes wherever they can stay."""
    if not isinstance(content, bytes):
        return "png", _png(content)
    try:
        found = header(content)
        if options.max_side and max(found.width, found.height) > options.max_side:
            notes["encoded again"] += 1
            return "jpg", _smaller(content, 1 if found.grey else 3, options.max_side, options.quality)
    except DecodeError:
        return "image", content  # kept, counted when the shard is indexed, and set aside in training
    named = where.rpartition(".")[2].lower()
    if found.format == "png" and named in ("jpg", "jpeg"):
        notes["recovered: png named jpg"] += 1
    return found.format, content


def _png(pixels: Pixels) -> bytes:
    import io

    out = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(out, "PNG")
    return out.getvalue()


def _smaller(data: bytes, channels: int, side: int, quality: int) -> bytes:
    image = decode(data, channels)
    if image.dtype != torch.uint8:
        image = (image.int() // 257).to(torch.uint8)
    height, width = image.shape[1:]
    scale = side / max(height, width)
    image = resize(image, (max(1, round(height * scale)), max(1, round(width * scale))))
    array = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    space, sampling = ("GRAY", "Gray") if channels == 1 else ("RGB", "420")
    encoded: bytes = simplejpeg.encode_jpeg(array, quality, space, sampling)
    return encoded


def measure_file(path: Path, records: Records, count: int) -> NDArray[np.float64]:
    """Sums over the first images, which an order by seed makes a random sample."""
    with path.open("rb") as file:

        def read(record: Any) -> bytes:
            file.seek(int(record["offset"]))
            return file.read(int(record["size"]))

        return measure(read(record) for record in records[:count])


def measure(images: Iterator[bytes]) -> NDArray[np.float64]:
    """For each of three channels: how many images, the sum of their means, and of their mean squares."""
    sums = np.zeros((3, 3))
    for data in images:
        try:
            image = decode(data, 3)
        except DecodeError:
            continue
        pixels = image.double().flatten(1) / (65535 if image.dtype == torch.uint16 else 255)
        sums += np.stack([np.ones(3), pixels.mean(1).numpy(), pixels.square().mean(1).numpy()])
    return sums


def moments(sums: NDArray[np.float64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel; nothing when no image was measured."""
    if not sums[0, 0]:
        return (), ()
    mean, square = sums[1] / sums[0], sums[2] / sums[0]
    std = np.sqrt(np.maximum(square - mean**2, 0))
    return tuple(mean.round(6).tolist()), tuple(std.round(6).tolist())


def join(
    folder: Path, parts: list[Part], classes: tuple[str, ...], location: str, more: dict[str, str] | None = None
) -> Manifest:
    """Index and manifest over finished shards; `more` is noted beside what was counted."""
    records = np.concatenate([part.records for part in parts])
    records["shard"] = np.repeat(np.arange(len(parts)), [len(part.records) for part in parts])
    notes: dict[str, int | str] = dict(sorted(sum((part.notes for part in parts), Counter[str]()).items()))
    mean, std = moments(np.sum([part.sums for part in parts], axis=0))
    made = Manifest(tuple(part.shard for part in parts), "", classes, location, mean, std, notes | (more or {}))
    return manifest.write(folder, made, records)
