"""Photographs in miniature, and shards made of them."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mrp.data.augment import View
from mrp.data.config import CacheConfig
from mrp.data.loader import EvalLoader, Loader
from mrp.data.manifest import Manifest
from mrp.data.mixtures import Mixed
from mrp.data.open import open_source
from mrp.data.order import Order
from mrp.data.shardtool.build import Options, Plan, build
from mrp.data.source import Source
from mrp.data.sources.shards import Config as ShardsConfig
from mrp.data.sources.shards import Source as Shards
from mrp.data.storage.cache import Cache
from tests.waiting import LONG

# A run of seconds, on the digits or on other images of 8 x 8 pixels.
SMALL = ["batch=16", "length=2 steps", "optim.warmup=1 steps", "backbone.depth=1", "objective.decoder.depth=1",
         "track.every=1"]  # fmt: skip


def encoded(image: Any, kind: str, **options: object) -> bytes:
    """The bytes of a file with this image, which may be an array."""
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, kind, **options)
    return out.getvalue()


def jpeg(number: int, side: tuple[int, int] = (24, 20), **options: object) -> bytes:
    return encoded(np.random.default_rng(number).integers(0, 256, (*side, 3), np.uint8), "JPEG", **options)


def tar(path: Path, members: Mapping[str, bytes] | Iterable[tuple[str, bytes]], mode: str = "w", **more: Any) -> Path:
    """A tar with these members, of which those that end in a slash are folders."""
    with tarfile.open(path, mode, **{"format": tarfile.USTAR_FORMAT} | more) as out:  # type: ignore[call-overload]
        for name, content in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size, info.type = len(content), tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            out.addfile(info, io.BytesIO(content))
    return path


def loaded(source: Source, view: View, order: Order | Mixed, **options: Any) -> Loader:
    """One process's loader, which takes a batch at once where nothing else is said."""
    images = order.batch * view.views
    usual = {"group": images, "micro_batch": images, "rank": 0, "world": 1, "workers": 0, "pin_memory": False}
    return Loader(source, order, view, **usual | options)


def evaluated(source: Source, view: View, batch: int, **options: Any) -> EvalLoader:
    """One process's loader of every sample once."""
    return EvalLoader(source, view, batch=batch, **{"rank": 0, "world": 1, "workers": 0, "pin_memory": False} | options)


def python(code: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """A script in a process of its own, which has ended."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LONG, check=False)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images in three classes; the same base names in each class."""
    root = tmp_path_factory.mktemp("photographs")
    for number in range(60):
        path = root / "abc"[number % 3] / f"{number // 3:02}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(jpeg(number))
    return root


def photographs_with(root: Path, odd: dict[int, bytes], ending: str = "jpg") -> Path:
    """Twelve images in one folder, some of which are odd; the odd ones' names end so."""
    root.mkdir()
    for number in range(12):
        name = f"{number:02}.{ending if number in odd else 'jpg'}"
        (root / name).write_bytes(odd.get(number, jpeg(number)))
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
