"""One shard: written by webdataset's writer, or scanned, which checks any webdataset shard member by member."""

from __future__ import annotations

import hashlib
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mrp.data.decode import DecodeError, header
from mrp.data.index import RECORD, Records
from mrp.data.manifest import ManifestError, check_member
from mrp.data.shardtool.tars import Member, Read, TarError, members

IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "ppm", "pgm", "gif", "image")
RAW = "npy"  # the image where there is no other; beside one it may be anything
_SUSPECT_NAMES = 20
_MOST_BYTES = 1 << 30  # of an image, which is read in one piece, and of which an index could say 4 GiB
_LABEL_BYTES = 64


class Sample(NamedTuple):
    """What is written of one sample."""

    key: str
    ending: str
    data: bytes
    label: int


class ScannedShard(NamedTuple):
    """What a shard holds."""

    records: Records
    keys: NDArray[np.uint64]  # a hash of each sample's key, to find duplicates across shards
    notes: Counter[str]


class ShardError(ValueError):
    """A shard that is damaged, or that holds something other than samples: one line that names the sample."""


def write(path: Path, samples: Iterable[Sample]) -> None:
    """Writes a standard shard, the same bytes for the same samples, and flushes it to the disk."""
    from webdataset.writer import TarWriter

    with path.open("wb") as file:
        with TarWriter(file, user="mrp", group="mrp", mtime=0, encoder=False) as tar:
            for sample in samples:
                label = {"cls": str(sample.label).encode()} if sample.label >= 0 else {}
                tar.write({"__key__": sample.key, sample.ending: sample.data, **label})
        file.flush()
        os.fsync(file.fileno())


def expand(spec: str) -> list[str]:
    """Returns the names that a brace pattern such as `train-{000000..001281}.tar` stands for."""
    from braceexpand import braceexpand

    return list(braceexpand(spec))


def scan(path: Path, num_classes: int | None = None) -> ScannedShard:
    """Returns every sample of a shard, after checking every member; a fault is an error with the sample's name."""
    rows, hashes, notes, key = list[tuple[int, ...]](), dict[str, int](), Counter[str](), ""
    with path.open("rb") as file:
        read = partial(os.pread, file.fileno())
        try:
            for key, files in _samples(members(read, os.fstat(file.fileno()).st_size)):
                if key in hashes:
                    raise ShardError(f"sample '{key}': its key stands twice")
                hashes[key] = _hash(key)
                image, label = _image_and_label(key, files, read, notes)
                if num_classes is not None and label >= num_classes:
                    wanted = f"is not below {num_classes:,}, the number of classes"
                    raise ShardError(f"sample '{key}': its label {label} {wanted}")
                data = read(image.size, image.offset)
                rows.append((image.offset, 0, len(data), zlib.crc32(data), label, *_size(key, image.name, data, notes)))
        except TarError as error:
            last = f" (the last whole sample before it is '{key}')" if rows else ""
            raise ShardError(f"{error}{last}") from None
    return ScannedShard(np.array(rows, RECORD), np.array(list(hashes.values()), np.uint64), notes)


def keys_of(path: Path) -> list[str]:
    """Returns the key of every sample of a shard that has been scanned."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        return [key for key, _ in _samples(members(partial(os.pread, file.fileno()), size))]


def _hash(key: str) -> int:
    """Returns 64 bits of a key."""
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


def _samples(every: Iterable[Member]) -> Iterator[tuple[str, dict[str, Member]]]:
    """Yields each key (the name up to the first dot after the last slash) and the members in a row that share it.

    Hidden members are passed over: a tar that was made on a Mac holds a `._a.jpg` beside each file.
    """
    current: str | None = None
    files: dict[str, Member] = {}
    for member in every:
        try:
            check_member(member.name)
        except ManifestError as error:
            raise ShardError(str(error)) from None
        folder, slash, base = member.name.rpartition("/")
        if base.startswith("."):
            continue
        stem, _, ending = base.partition(".")
        key = f"{folder}{slash}{stem}"
        if key != current and current is not None:
            yield current, files
            files = {}
        current = key
        if ending.lower() in files:
            raise ShardError(f"sample '{key}': its key stands twice ('{member.name}')")
        files[ending.lower()] = member
    if current is not None:
        yield current, files


def _image_and_label(key: str, files: dict[str, Member], read: Read, notes: Counter[str]) -> tuple[Member, int]:
    images = [ending for ending in files if ending in IMAGES] or [ending for ending in files if ending == RAW]
    if len(images) != 1:
        what = "no image" if not images else f"several images ({', '.join(images)})"
        raise ShardError(f"sample '{key}': {what} among its files ({', '.join(files)})")
    label = -1
    if (size := files[images[0]].size) > _MOST_BYTES:
        raise ShardError(f"sample '{key}': its image has {size} bytes, and no image has more than {_MOST_BYTES}")
    if "cls" in files:
        if (size := files["cls"].size) > _LABEL_BYTES:
            raise ShardError(f"sample '{key}': its label has {size} bytes, and is no number")
        text = read(size, files["cls"].offset)
        if not re.fullmatch(rb"\s*\d{1,9}\s*", text):
            raise ShardError(f"sample '{key}': its label {text[:20]!r} is no number")
        label = int(text)
    notes.update(f"passed over: .{ending}" for ending in files if ending not in (images[0], "cls"))
    notes["labelled"] += label >= 0
    if label < 0 and notes["labelled"]:
        raise ShardError(f"sample '{key}': its label is missing, and others have one")
    if label >= 0 and notes["unlabelled"]:
        raise ShardError(f"the samples before '{key}' have no label, and it has one")
    notes["unlabelled"] += label < 0
    return files[images[0]], label


def _size(key: str, name: str, data: bytes, notes: Counter[str]) -> tuple[int, int]:
    try:
        image = header(data)
    except DecodeError as error:
        if name.lower().endswith(f".{RAW}"):
            raise ShardError(f"sample '{key}': {error}") from None
        notes["unreadable"] += 1
        if notes["unreadable"] <= _SUSPECT_NAMES:
            notes[f"unreadable: {key} ({error})"] += 1
        return 0, 0
    named = name.rpartition(".")[2].lower().replace("jpeg", "jpg").replace("tiff", "tif")
    notes["recovered: CMYK"] += image.inks
    notes["grey"] += image.grey
    if named in ("jpg", "png", "webp", "gif") and image.format != named:
        notes[f"recovered: {image.format} named {named}"] += 1
    return image.width, image.height
