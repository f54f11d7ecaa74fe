"""What decoding costs: torchvision's usual chain against ours, on the same photographs, one thread each in turn.

    python tools/bench_data.py [--images DIR] [--rounds 7]

Ours reads from shards that are made first: the files as they are, with a longer side of at most 400 pixels, and raw
pixels with a shorter side of at most 256. Where libjpeg-turbo 3 is found, JPEGs are decoded with it and without it.
The last lines are of the whole loader, with every way of sharing the work among the cores.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder

from mrp.data import turbojpeg
from mrp.data.augment import View
from mrp.data.batches import Batches, TrainingPlan
from mrp.data.config import Config
from mrp.data.loader import Loader
from mrp.data.open import open_source
from mrp.data.order import Order
from mrp.data.shardtool.build import Options, Plan, build
from mrp.data.sources.shards import Source as Shards

SIZE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def official(folder: Path) -> Callable[[int], None]:
    """ImageFolder with the augmentation of the published recipe."""
    chain = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, scale=(0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    images = ImageFolder(str(folder), chain)
    batch = torch.empty(len(images), 3, SIZE, SIZE)

    def once(epoch: int) -> None:
        torch.manual_seed(epoch)
        for number in range(len(images)):
            batch[number] = images[number][0]

    return once


def ours(shards: Path, views: int) -> Callable[[int], None]:
    """Whole batches of bytes from shards, as a worker makes them; the device makes numbers of them."""
    source = open_source(str(shards), "train")
    view = View(Config(train=str(shards), size=SIZE, views=views), train=True)
    count = len(source)
    batches = Batches(
        source, view, TrainingPlan(Order(count, count, 0), np.arange(count)[None], views), source.replacement
    )

    def once(epoch: int) -> None:
        batches[epoch]

    return once


def without_library(way: Callable[[int], None]) -> Callable[[int], None]:
    """The same where libjpeg-turbo 3 is not installed."""
    found = turbojpeg.library

    def once(epoch: int) -> None:
        turbojpeg.library = lambda: None  # type: ignore[assignment]
        try:
            way(epoch)
        finally:
            turbojpeg.library = found

    return once


def line(name: str, values: list[float]) -> str:
    """The median and the spread."""
    return f"{name}: {statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def compare(folder: Path, packings: dict[str, Path], count: int, rounds: int) -> None:
    """One thread each: a round of the official chain, then of every packing, with one view and with four."""
    ways, views_of = {"": official(folder)}, {"": 1}
    for packing, shards in packings.items():
        for views in (1, 4):
            name = f"{packing}, {'one view' if views == 1 else f'a view at {views} views'}"
            ways[name] = without_library(ours(shards, views))
            views_of[name] = views
            if turbojpeg.library() is not None and "raw" not in packing:
                ways[name + ", libjpeg-turbo 3"] = ours(shards, views)
                views_of[name + ", libjpeg-turbo 3"] = views
    times: dict[str, list[float]] = {name: [] for name in ways}
    for epoch in range(rounds + 1):
        for name, run in ways.items():
            began = time.process_time()
            run(epoch)
            times[name].append(time.process_time() - began)
    base, *_ = (seconds[1:] for seconds in times.values())  # the first round does not count
    print(line("torchvision + Pillow, images/s/core", [count / seconds for seconds in base]))
    for name, seconds in times.items():
        if name:
            views = views_of[name]
            print(line(f"mrp, {name}, views/s/core", [count * views / each for each in seconds[1:]]))
            print(
                line("    times torchvision + Pillow", [a / b * views for a, b in zip(base, seconds[1:], strict=True)])
            )


def whole(shards: Path, count: int, workers: int, steps: int) -> float:
    """Images a second of the loader as training uses it."""
    source, batch = open_source(str(shards), "train"), max(1, count // 4)
    view = View(Config(train=str(shards), size=SIZE), train=True)
    loader = Loader(
        source, Order(count, batch, 0), view, group=batch, micro_batch=batch, rank=0, world=1, workers=workers,
        pin_memory=False,
    )  # fmt: skip
    for _ in loader.steps(0, 4):
        pass
    began = time.perf_counter()
    for _ in loader.steps(4, 4 + steps):
        pass
    seconds = time.perf_counter() - began
    loader.close()
    return steps * batch / seconds


def threaded(shards: Path, count: int, threads: int) -> float:
    """Images a second when threads of one process share the work: what the loader would be without processes."""
    view, source = View(Config(train=str(shards), size=SIZE), train=True), open_source(str(shards), "train")
    total = 4 * count
    batch = torch.empty(total, 3, SIZE, SIZE, dtype=torch.uint8)

    def one(number: int) -> None:
        (batch[number],) = view.decoded(source.read(number % count)[0], [number])

    with ThreadPoolExecutor(threads) as pool:
        began = time.perf_counter()
        deque(pool.map(one, range(total)), maxlen=0)
        return total / (time.perf_counter() - began)


def reading(shards: Path) -> None:
    """By index, and by webdataset's iterator."""
    import webdataset

    source = open_source(str(shards), "train")
    assert isinstance(source, Shards)
    names = [str(shards / shard.name) for shard in source.manifest.shards]

    def bytes_alone(number: int) -> None:
        start, shard, size, *_ = source.index[number].item()
        os.pread(source.descriptor(shard), size, start)

    ways: dict[str, Callable[[], Any]] = {
        "webdataset's iterator": lambda: deque(webdataset.WebDataset(names, shardshuffle=False), maxlen=0),
        "by index": lambda: deque(map(bytes_alone, range(len(source))), maxlen=0),
        "by index, checksum verified": lambda: deque(map(source.read, range(len(source))), maxlen=0),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(9):
        for name, way in ways.items():
            began = time.process_time()
            way()
            times[name].append(time.process_time() - began)
    base = times["webdataset's iterator"]
    for name, mine in times.items():
        print(line(f"  reading {name}, samples/s", [len(source) / seconds for seconds in mine]))
        if mine is not base:
            print(line(f"ratio reading {name}", [a / b for a, b in zip(base, mine, strict=True)]))


def made_up(folder: Path) -> Path:
    """Pictures of the size, the smoothness and nearly the bytes of photographs, for want of any."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(64):
        coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        noisy = np.asarray(coarse) + generator.normal(0, 12, (375, 500, 1))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number:03}.jpg", quality=90)
    return folder


def as_classes(images: Path, into: Path) -> Path:
    """ImageFolder needs class folders: a flat folder becomes one, by links."""
    if any(path.is_dir() for path in images.iterdir()):
        return images
    (into / "classes" / "all").mkdir(parents=True)
    for path in images.iterdir():
        (into / "classes" / "all" / path.name).symlink_to(path.resolve())
    return into / "classes"


def bytes_of(shards: Path) -> int:
    """How much space a set takes."""
    return sum(path.stat().st_size for path in shards.iterdir())


def made(folder: Path, out: Path, **options: Any) -> Path:
    """Shards of a folder."""
    plan = Plan(open_source(str(folder), "train"), Options(shard_size=100, **options), out)
    build(plan, 1, lambda done, total: None)
    return out


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, help="a folder of photographs (default: pictures made up here)")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    temporary = Path(tempfile.mkdtemp())
    try:
        folder = as_classes(options.images or made_up(temporary / "pictures"), temporary)
        count = len(open_source(str(folder), "train"))
        sizes = [Image.open(path).size for path in list(folder.rglob("*.*"))[:200] if path.is_file()]
        middle = " x ".join(str(round(statistics.median(side))) for side in zip(*sizes, strict=True))
        print(f"{count} images (median {middle}), one thread, {options.rounds} rounds in turn: median (spread)")
        print(f"JPEGs are decoded: {turbojpeg.described()}")
        plain = made(folder, temporary / "plain")
        packings = {
            "the files": plain,
            "--max-side 400": made(folder, temporary / "small", max_side=400),
            "--raw 256": made(folder, temporary / "raw", raw=256),
        }
        for name, shards in packings.items():
            print(f"{name}: {bytes_of(shards) / count / 1000:.1f} kB per image")
        compare(folder, packings, count, options.rounds)
        reading(plain)
        cores = os.cpu_count() or 1
        for workers in sorted({0, 1, cores}):
            rates = [whole(plain, count, workers, 12) for _ in range(3)]
            print(line(f"whole loader, images/s with {workers} worker processes", rates), flush=True)
        rates = [threaded(plain, count, cores) for _ in range(3)]
        print(line(f"the same work in {cores} threads of one process, images/s", rates))
    finally:
        shutil.rmtree(temporary)


if __name__ == "__main__":
    main()
