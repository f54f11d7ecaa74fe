"""Checks and views of shards: whether they are what the manifest says, which sizes they hold, how they look."""

from __future__ import annotations

import hashlib
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from mrp.config import ConfigError
from mrp.data.augment import centre
from mrp.data.decode import DecodeError
from mrp.data.index import INDEX, Index
from mrp.data.manifest import MANIFEST, Manifest, ManifestError, Shard, parse
from mrp.data.order import permute
from mrp.data.shardtool.build import Progress
from mrp.data.shardtool.encode import in_eight_bits
from mrp.data.shardtool.statistics import SAMPLED, measure, moments
from mrp.data.sources.shards import Source
from mrp.data.storage.open import open_store
from mrp.data.storage.store import PIECE, StorageError, Store

_SHA256 = "its sha256 is not the manifest's"
_CELL, _LINE, _GAP = 128, 14, 4  # pixels of the contact sheet


def verify(folder: Path, samples: int | None, progress: Progress) -> list[str]:
    """Returns what is wrong, one line per fault, with every byte or with the checksums of some samples."""
    manifest = _read_manifest(folder)
    path = folder / INDEX
    if not path.is_file():
        return [f"{path}: is missing"]
    try:
        index = Index(path, manifest.count)
        index.check(manifest.index_sha256)
    except ManifestError as error:
        return [f"{folder}: {error}"]
    store = open_store(manifest.location or str(folder))
    if samples is not None:
        chosen = np.sort(permute(np.arange(min(samples, manifest.count)), manifest.count, 1))
        return [fault for number in chosen.tolist() if (fault := _sample_fault(store, manifest, index, number))]
    faults = []
    for number, shard in enumerate(manifest.shards):
        if fault := _shard_fault(store, shard):
            inside = f"; damaged: {_damaged(store, shard, index, number)}" if store.local and _SHA256 in fault else ""
            faults.append(fault + inside)
        progress(number + 1, len(manifest.shards))
    return faults


def _read_manifest(folder: Path) -> Manifest:
    try:
        return parse((folder / MANIFEST).read_bytes())
    except OSError as error:
        raise ConfigError(f"{folder}: holds no {MANIFEST} ({error.strerror}); 'mrp shards build' makes one") from None
    except ManifestError as error:
        raise ConfigError(f"{folder / MANIFEST}: {error}; make it anew with 'mrp shards index'") from None


def _shard_fault(store: Store, shard: Shard) -> str:
    """Returns what is wrong with a shard, read once and in pieces; nothing if all is well."""
    where = store.where(shard.name)
    try:
        if (size := store.size(shard.name)) != shard.bytes:
            return f"{where}: has {size} bytes and not {shard.bytes}"
        digest = hashlib.sha256()
        for start in range(0, size, PIECE):
            digest.update(store.read(shard.name, start, min(start + PIECE, size)))
    except StorageError as error:
        return str(error)
    return "" if digest.hexdigest() == shard.sha256 else f"{where}: {_SHA256}"


def _damaged(store: Store, shard: Shard, index: Index, number: int) -> str:
    """Returns which samples of a damaged shard are damaged."""
    bad = []
    records = index.mapped()
    for sample in np.flatnonzero(records["shard"] == number).tolist():
        start, size = int(records["offset"][sample]), int(records["size"][sample])
        if zlib.crc32(store.read(shard.name, start, start + size)) != records["crc32"][sample]:
            bad.append(f"sample {sample} (byte {start})")
    return ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "") if bad else "no image"


def _sample_fault(store: Store, manifest: Manifest, index: Index, number: int) -> str:
    start, shard, size, crc32, *_ = index[number].item()
    if not manifest.holds(shard, start, size):
        return f"{index.path}: sample {number} is not inside a shard (shard {shard}, byte {start})"
    name = manifest.shards[shard].name
    try:
        data = store.read(name, start, start + size)
    except StorageError as error:
        return str(error)
    if zlib.crc32(data) == crc32:
        return ""
    return f"{store.where(name)}: sample {number} (byte {start}): its crc32 is not the index's"


def measured(shards: Source, everything: bool) -> tuple[tuple[float, ...], tuple[float, ...], int]:
    """Returns mean and standard deviation of each channel, and how many images were measured."""
    count = len(shards) if everything else min(SAMPLED, len(shards))
    chosen = np.arange(count) if everything else np.sort(permute(np.arange(count), len(shards), 2))
    images = (shards.read(number)[0] for number in chosen.tolist())
    sums = measure(data for data in images if isinstance(data, bytes))
    return *moments(sums), int(sums[0, 0])


def sizes(shards: Source) -> list[tuple[str, int]]:
    """Returns, for ranges of the longer side in pixels, how many images are in them."""
    records = shards.index.mapped()
    longer = np.maximum(records["width"], records["height"])
    edges = [0, 32, 64, 128, 256, 400, 512, 768, 1024, 2048, 4096, 1 << 32]
    rows = [("unreadable", int((longer == 0).sum()))]
    for low, high in pairwise(edges):
        name = f"{low + 1} to {high}" if high < 1 << 32 else f"above {low}"
        rows.append((name, int(((longer > low) & (longer <= high)).sum())))
    return [row for row in rows if row[1]]


def contact_sheet(shards: Source, path: Path, count: int, seed: int) -> None:
    """Draws a page of random images, each above its number and class; what is no image is a red square."""
    count = min(count, len(shards))
    if not count:
        raise ConfigError(f"{shards.path}: there is nothing to show")
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


def _cell(shards: Source, number: int) -> tuple[Image.Image, int]:
    try:
        data, label = shards.read(number)
        image = in_eight_bits(data, 3)
    except (DecodeError, StorageError):
        return Image.new("RGB", (_CELL, _CELL), "red"), -1
    return Image.fromarray(centre(image, (_CELL, _CELL), kept=7 / 8).permute(1, 2, 0).contiguous().numpy()), label
