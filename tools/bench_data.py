"""What decoding costs: torchvision's usual chain against ours, on the same photographs, one thread each in turn.

    python tools/bench_data.py --images DIR [--rounds 7]

Ours reads from shards that are made first, once as the files are and once with a longer side of at most 400 pixels.
The last lines are of the whole loader, with every way of sharing the work among the cores.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder

from mrp.data.augment import View
from mrp.data.build import Options, Plan, build
from mrp.data.decode import decode
from mrp.data.loader import Loader
from mrp.data.order import Order, keys
from mrp.data.sharded import Shards
from mrp.data.sources import Config, open_source

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
    """From shards to a batch of bytes; the device makes numbers of them."""
    source = open_source(str(shards), "train")
    view = View(Config(train=str(shards), size=SIZE), train=True)
    count = len(source)
    batch = torch.empty(count * views, 3, SIZE, SIZE, dtype=torch.uint8)

    def once(epoch: int) -> None:
        order = Order(count, count, epoch).slots(0)
        every = [keys(0, order.epochs + epoch, order.samples, number).tolist() for number in range(views)]
        for place, sample in enumerate(order.samples.tolist()):
            image = decode(source.read(sample)[0], 3)
            for number in range(views):
                batch[place * views + number] = view(image, every[number][place])

    return once


def ratios(base: Callable[[int], None], other: Callable[[int], None], rounds: int) -> tuple[list[float], list[float]]:
    """Processor seconds of both (so that other work on the machine does not count), a round each in turn, after one that does not count."""
    times: tuple[list[float], list[float]] = ([], [])
    for epoch in range(rounds + 1):
        for kept, run in zip(times, (base, other), strict=True):
            began = time.process_time()
            run(epoch)
            kept.append(time.process_time() - began)
    return times[0][1:], times[1][1:]


def line(name: str, values: list[float]) -> str:
    """The median and the spread."""
    return f"{name}: {statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def compare(folder: Path, shards: Path, count: int, rounds: int, name: str) -> None:
    """One thread against one thread."""
    base = official(folder)
    for views in (1, 4):
        theirs, mine = ratios(base, ours(shards, views), rounds)
        what = f"{'one view' if views == 1 else f'a view at {views} views'}{name}"
        print(line(f"  torchvision + Pillow, images/s/core ({what})", [count / seconds for seconds in theirs]))
        print(line(f"  mrp, views/s/core ({what})", [count * views / seconds for seconds in mine]))
        print(line(f"ratio {what}", [a / b * views for a, b in zip(theirs, mine, strict=True)]), flush=True)


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


def reading(shards: Path) -> None:
    """By index, and by webdataset's iterator."""
    import webdataset

    source = open_source(str(shards), "train")
    assert isinstance(source, Shards)
    names = [str(shards / shard.name) for shard in source.manifest.shards]
    rates: dict[str, list[float]] = {"index": [], "webdataset": []}
    for _ in range(7):
        began = time.perf_counter()
        for number in range(len(source)):
            source.read(number)
        rates["index"].append(len(source) / (time.perf_counter() - began))
        began = time.perf_counter()
        count = sum(1 for _ in webdataset.WebDataset(names, shardshuffle=False))
        rates["webdataset"].append(count / (time.perf_counter() - began))
    print(line("ratio reading by index", [a / b for a, b in zip(rates["index"], rates["webdataset"], strict=True)]))
    print(f"  samples/s: {statistics.median(rates['index']):,.0f} by index (checksum verified), "
          f"{statistics.median(rates['webdataset']):,.0f} by webdataset's iterator")  # fmt: skip


def as_classes(images: Path, into: Path) -> Path:
    """ImageFolder needs class folders: a flat folder becomes one, by links."""
    if any(path.is_dir() for path in images.iterdir()):
        return images
    (into / "classes" / "all").mkdir(parents=True)
    for path in images.iterdir():
        (into / "classes" / "all" / path.name).symlink_to(path.resolve())
    return into / "classes"


def made(folder: Path, out: Path, **options: Any) -> Path:
    """Shards of a folder."""
    plan = Plan(open_source(str(folder), "train"), Options(shard_size=100, **options), out)
    build(plan, 1, lambda done, total: None)
    return out


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True, help="a folder of photographs")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    temporary = Path(tempfile.mkdtemp())
    try:
        folder = as_classes(options.images, temporary)
        count = len(open_source(str(folder), "train"))
        sizes = [Image.open(path).size for path in list(folder.rglob("*.*"))[:200] if path.is_file()]
        middle = " x ".join(str(round(statistics.median(side))) for side in zip(*sizes, strict=True))
        print(f"{count} images (median {middle}), one thread, {options.rounds} rounds in turn: median (spread)")
        plain = made(folder, temporary / "plain")
        small = made(folder, temporary / "small", max_side=400)
        compare(folder, plain, count, options.rounds, "")
        compare(folder, small, count, options.rounds, " with --max-side 400")
        reading(plain)
        for workers in sorted({0, 1, os.cpu_count() or 1}):
            rates = [whole(plain, count, workers, 12) for _ in range(3)]
            print(line(f"whole loader, images/s with {workers} worker processes", rates), flush=True)
    finally:
        shutil.rmtree(temporary)


if __name__ == "__main__":
    main()
