"""Looking at shards: whether they are what the manifest says, what sizes and colours they hold, and how they look."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from mrp.config import ConfigError
from mrp.data import manifest
from mrp.data.augment import centre
from mrp.data.build import SAMPLED, Progress, measure, moments
from mrp.data.decode import DecodeError, decode
from mrp.data.manifest import INDEX, Index
from mrp.data.order import permute
from mrp.data.sharded import Shards, read_manifest
from mrp.data.store import StorageError, Store, open_store

_PIECE = 16 << 20  # bytes of one request
_CELL, _LINE, _GAP = 128, 14, 4  # pixels of the contact sheet


def verify(folder: Path, samples: int | None, progress: Progress) -> list[str]:
    """What is wrong, a line a fault: with every byte, or with the checksums of some samples."""
    found = read_manifest(folder)
    store = open_store(found.location or str(folder))
    shards = Path(found.location or folder).expanduser()
    faults = [*_index_faults(folder, found)]
    if faults:
        return faults
    index = Index(folder / INDEX, found.count)
    if samples is not None:
        chosen = np.sort(permute(np.arange(min(samples, found.count)), found.count, 1))
        return [fault for number in chosen.tolist() for fault in _sample_fault(store, found, index, number)]
    for done, shard in enumerate(found.shards, start=1):
        path = shards / shard.name
        if not store.local:
            faults += _remote_faults(store, shard)
        elif not path.is_file():
            faults.append(f"{path}: the shard is missing")
        elif (size := path.stat().st_size) != shard.bytes:
            faults.append(f"{path}: has {size} bytes and not {shard.bytes}")
        elif manifest.sha256(path) != shard.sha256:
            faults.append(f"{path}: its sha256 is not the manifest's; damaged: {_damaged(path, index, done - 1)}")
        progress(done, len(found.shards))
    return faults


def _index_faults(folder: Path, found: manifest.Manifest) -> Iterator[str]:
    path = folder / INDEX
    if not path.is_file():
        yield f"{path}: is missing"
    elif manifest.sha256(path) != found.index_sha256:
        yield f"{path}: its sha256 is not the manifest's"


def _remote_faults(store: Store, shard: manifest.Shard) -> Iterator[str]:
    """What is wrong with a shard that is read from a server, once and in pieces."""
    try:
        if (size := store.size(shard.name)) != shard.bytes:
            yield f"{store.where(shard.name)}: has {size} bytes and not {shard.bytes}"
            return
        digest = hashlib.sha256()
        for start in range(0, size, _PIECE):
            digest.update(store.read(shard.name, start, min(start + _PIECE, size)))
    except StorageError as error:
        yield str(error)
        return
    if digest.hexdigest() != shard.sha256:
        yield f"{store.where(shard.name)}: its sha256 is not the manifest's"


def _damaged(path: Path, index: Index, shard: int) -> str:
    """Which samples of a damaged shard it is."""
    records = index.mapped()
    content = np.memmap(path, np.uint8, "r")
    bad = []
    for number in np.flatnonzero(records["shard"] == shard).tolist():
        start, size = int(records["offset"][number]), int(records["size"][number])
        if zlib.crc32(content[start : start + size].tobytes()) != records["crc32"][number]:
            bad.append(f"sample {number} (byte {start})")
    return ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "") if bad else "no image"


def _sample_fault(store: Store, found: manifest.Manifest, index: Index, number: int) -> Iterator[str]:
    record = index[number]
    name, start = found.shards[int(record["shard"])].name, int(record["offset"])
    try:
        data = store.read(name, start, start + int(record["size"]))
    except StorageError as error:
        yield str(error)
        return
    if zlib.crc32(data) != record["crc32"]:
        yield f"{store.where(name)}: sample {number} (byte {start}): its crc32 is not the index's"


def measured(shards: Shards, everything: bool) -> tuple[tuple[float, ...], tuple[float, ...], int]:
    """Mean and standard deviation of each channel, and how many images were looked at."""
    count = len(shards) if everything else min(SAMPLED, len(shards))
    chosen = np.arange(count) if everything else np.sort(permute(np.arange(count), len(shards), 2))
    images = (shards.read(number)[0] for number in chosen.tolist())
    sums = measure(data for data in images if isinstance(data, bytes))
    return *moments(sums), int(sums[0, 0])


def sizes(shards: Shards) -> list[tuple[str, int]]:
    """How many images have a longer side of at most 64, 128, ... pixels."""
    records = shards.index.mapped()
    longer = np.maximum(records["width"], records["height"])
    edges = [0, 32, 64, 128, 256, 400, 512, 768, 1024, 2048, 4096, 1 << 32]
    rows = [("unreadable", int((longer == 0).sum()))]
    for low, high in pairwise(edges):
        name = f"{low + 1} to {high}" if high < 1 << 32 else f"above {low}"
        rows.append((name, int(((longer > low) & (longer <= high)).sum())))
    return [row for row in rows if row[1]]


def contact_sheet(shards: Shards, path: Path, count: int, seed: int) -> None:
    """A page of images drawn at random, each above its class and number; what is no image is a red square."""
    count = min(count, len(shards))
    if not count:
        raise ConfigError(f"{shards.place}: there is nothing to show")
    columns = max(1, round(count**0.5 * 1.3))
    rows = -(-count // columns)
    step = _CELL + _GAP, _CELL + _LINE + _GAP
    page = Image.new("RGB", (columns * step[0] + _GAP, rows * step[1] + _GAP), "white")
    draw = ImageDraw.Draw(page)
    for place, number in enumerate(permute(np.arange(count), len(shards), seed).tolist()):
        left, top = _GAP + place % columns * step[0], _GAP + place // columns * step[1]
        cell, label = _cell(shards, number)
        page.paste(cell, (left, top))
        name = shards.classes[label] if 0 <= label < len(shards.classes) else ""
        draw.text((left, top + _CELL), f"{number} {name}"[:21], fill="black")
    page.save(path, "PNG")


def _cell(shards: Shards, number: int) -> tuple[Image.Image, int]:
    try:
        data, label = shards.read(number)
        image = decode(data, 3)
    except (DecodeError, StorageError):
        return Image.new("RGB", (_CELL, _CELL), "red"), -1
    if image.dtype == torch.uint16:
        image = (image.int() // 257).to(torch.uint8)
    return Image.fromarray(centre(image, (_CELL, _CELL)).permute(1, 2, 0).contiguous().numpy()), label
