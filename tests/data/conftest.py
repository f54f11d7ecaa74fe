"""Photographs in miniature, and shards made of them."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mrp.data.config import CacheConfig
from mrp.data.manifest import Manifest
from mrp.data.open import open_source
from mrp.data.shardtool.build import Options, Plan, build
from mrp.data.sources.shards import Config as ShardsConfig
from mrp.data.sources.shards import Source as Shards
from mrp.data.storage.cache import Cache


def jpeg(number: int, side: tuple[int, int] = (24, 20), **options: object) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (*side, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize((side[1], side[0])).save(out, "JPEG", **options)
    return out.getvalue()


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images in three classes; the same base names in each class."""
    root = tmp_path_factory.mktemp("photographs")
    for number in range(60):
        path = root / "abc"[number % 3] / f"{number // 3:02}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(jpeg(number))
    return root


def make(folder: Path, out: Path, workers: int = 1, **options: object) -> Manifest:
    plan = Plan(open_source(str(folder), "train"), Options(**{"shard_size": 8, **options}), out)
    return build(plan, workers, lambda done, total: None)


@pytest.fixture(scope="session")
def made(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight shards of those, the last of them with four samples."""
    out = tmp_path_factory.mktemp("shards") / "made"
    make(photographs, out)
    return out


class SkippingClock:
    """A clock that jumps over the waits between two tries, so that a test neither waits nor depends on the pace."""

    def __init__(self) -> None:
        self.skipped = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.skipped

    def sleep(self, seconds: float) -> None:
        self.skipped += seconds


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Shards]:
    monkeypatch.setattr("mrp.data.storage.store.time", SkippingClock())

    def open_(place: Path | str, gib: float = 1.0) -> Shards:
        cache = Cache(CacheConfig(folder=str(tmp_path / "cache"), gib=gib))
        return Shards(ShardsConfig(path=str(place)), "train", cache, deadline=100.0)

    return open_
