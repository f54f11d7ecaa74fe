"""Measures the data layer on as many samples as ImageNet has, each of them tiny: what grows with the number of samples.

    python tools/bench_scale_data.py --folder /data/scratch                 # 2.7 GB, removed at the end
    python tools/bench_scale_data.py --folder /data/scratch --samples 3000000 --index-only

Shards are written as others would write them, and indexed by `mrp shards index`, in a process of its own for its peak
memory. The shards are in the system's cache, so the disk is not measured.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mrp.cli import main as mrp
from mrp.data.augment import View
from mrp.data.balance import balance_warning
from mrp.data.config import CacheConfig, Config
from mrp.data.loader import Loader
from mrp.data.mixtures import Mixed, order
from mrp.data.open import open_data
from mrp.data.order import Order
from mrp.data.source import Source
from mrp.data.storage.cache import Cache
from mrp.data.workers import prepare_workers

IMAGENET = 1_281_167
CLASSES = 1000
PER_SHARD = 1000
IMAGES = 997  # that differ
KINDS = ("one", "mixed")  # sources: the set alone, or two shares of it
BATCH = 256


def main() -> None:
    """Makes the set, measures, and prints one line per measurement."""
    words = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    words.add_argument("--folder", type=Path, help="where to write (a folder is made in it, and removed)")
    words.add_argument("--samples", type=int, default=IMAGENET)
    words.add_argument("--index-only", action="store_true", help="measure nothing else")
    words.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)  # in a process of its own
    options = words.parse_args()
    if options.measure:
        part, *arguments = options.measure
        parts: dict[str, Callable[..., None]] = {"index": index, "cold": cold, "rest": rest}
        parts[part](options.folder, *arguments)
        return
    load = ", ".join(f"{part:.1f}" for part in os.getloadavg())
    print(f"{platform.machine()}, {os.cpu_count()} cores at a load of {load}, Python {platform.python_version()}, "
          f"torch {torch.__version__}, batches of {BATCH}")  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="bench-scale-data-", dir=options.folder) as folder:
        make(Path(folder), options.samples)
        alone(folder, "index")
        if options.index_only:
            return
        for kind in KINDS:
            alone(folder, "cold", kind)
        alone(folder, "rest")


def alone(folder: str, *part: str) -> None:
    """Measures one part in a process of its own."""
    subprocess.run([sys.executable, __file__, "--folder", folder, "--measure", *part], check=True)


def cold(folder: Path, kind: str) -> None:
    """The first batch where no worker has imported torch, as in a program that only loads data."""
    first(folder, kind, 2, 0.0, " that still import torch")


def rest(folder: Path) -> None:
    """Everything that needs no process of its own."""
    prepare_workers()  # in a run they import torch while the model is built, which is waited for here
    nothing = get_context("forkserver").Process()
    nothing.start()
    nothing.join()
    for kind in KINDS:
        for workers in (0, 2):
            for epochs in (0.0, 0.5, 37.5):
                first(folder, kind, workers, epochs)
    for lanes in (1, 16, 64):
        reads(folder, lanes)
    for kind in KINDS:
        boundary(folder, kind)


def make(folder: Path, count: int) -> None:
    """Writes shards of tiny photographs with labels in random order."""
    began = time.monotonic()
    noise = np.random.default_rng(0)
    images = []
    for _ in range(IMAGES):
        out = io.BytesIO()
        Image.fromarray(noise.integers(0, 256, (16, 16, 3), np.uint8)).save(out, "JPEG", quality=30, optimize=True)
        images.append(out.getvalue())
    labels = noise.integers(0, CLASSES, count)
    for shard in range(-(-count // PER_SHARD)):
        with (folder / f"shard-{shard:06}.tar").open("wb") as file:
            for number in range(shard * PER_SHARD, min((shard + 1) * PER_SHARD, count)):
                for ending, content in (("cls", b"%d" % labels[number]), ("jpg", images[number % IMAGES])):
                    file.write(member(b"%010d.%s" % (number, ending.encode()), len(content)))
                    file.write(content + bytes(-len(content) % 512))
            file.write(bytes(1024))
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"made: {count:,} samples, {size / 1e9:.2f} GB, in {time.monotonic() - began:.0f} s")


def member(name: bytes, size: int) -> bytes:
    """Returns the header of a file in a tar."""
    header = name.ljust(100, b"\0") + b"0000644\0" + 2 * b"0000000\0" + b"%011o\0" % size + b"%011o\0" % 0
    rest = b"0".ljust(101, b"\0") + b"ustar\00000" + bytes(247)
    total = sum(header) + 8 * 32 + sum(rest)
    return header + b"%06o\0 " % total + rest


def index(folder: Path) -> None:
    """`mrp shards index`, in this process."""
    before, clock = peak(), Clock()
    mrp(["shards", "index", str(folder)])
    print(f"index: {clock.took()}, peak memory {peak():.0f} MB ({before:.0f} MB before it began)")


class Clock:
    """How long something took, and how much of a processor this process had: less, where others are busy."""

    def __init__(self) -> None:
        self._began, self._busy = time.monotonic(), time.process_time()

    def took(self) -> str:
        """Returns both since the last call, in words."""
        before = self._began, self._busy
        self._began, self._busy = time.monotonic(), time.process_time()
        return f"{self._began - before[0]:.2f} s ({self._busy - before[1]:.2f} s of processor time)"


def peak() -> float:
    """Returns the most memory that this process has had, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1000


def opened(folder: Path, kind: str, lanes: int = 1) -> tuple[Config, Source, Order | Mixed]:
    """Returns the options, the data and their order, as a run has them; mixed are two shares of the same set."""
    parts = [{"source": str(folder), "weight": weight} for weight in (3, 1)]
    train = str(folder) if kind == "one" else parts
    config = Config.model_validate({"train": train, "size": 8, "augment": "resize", "lanes": lanes})
    source = open_data(config, "train", Cache(CacheConfig()))
    return config, source, order(source, config, BATCH, 0)


def loader(config: Config, source: Source, batches: Order | Mixed, workers: int) -> Loader:
    """Returns the loader of a run with one process."""
    return Loader(
        source, batches, View(config, True), group=BATCH, micro_batch=BATCH, rank=0, world=1, workers=workers,
        pin_memory=False,
    )  # fmt: skip


def first(folder: Path, kind: str, workers: int, epochs: float, which: str = "") -> None:
    """From the configuration to the first batch of a run that starts, or goes on, after so many epochs."""
    clock = Clock()
    config, source, batches = opened(folder, kind)
    opening = clock.took()
    assert balance_warning(source, batches) is None, "the labels are random"
    looking = clock.took()
    made = loader(config, source, batches, workers)
    step = int(epochs * batches.steps_per_epoch)
    steps = made.steps(step, step + 100)
    next(steps)
    print(
        f"first batch, {kind}, {workers} workers{which}, after {epochs} epochs: {clock.took()} from the loader's start"
    )
    print(f"    before that {opening} to open the data, {looking} to compare classes")
    steps.close()  # type: ignore[attr-defined]
    made.close()


def reads(folder: Path, lanes: int) -> None:
    """Samples per second of processor time, read in the order of training, each checksum verified."""
    _, source, batches = opened(folder, "one", lanes)
    rates = []
    for block in range(5):
        chosen = np.concatenate([batches.slots(40 * block + step).samples for step in range(40)]).tolist()
        began = time.process_time()
        for sample in chosen:
            source.read(sample)
        rates.append(len(chosen) / (time.process_time() - began))
    print(f"reads with checksum, {lanes} lanes: {statistics.median(rates):,.0f} samples per second of processor time "
          f"({min(rates):,.0f} to {max(rates):,.0f})")  # fmt: skip


def boundary(folder: Path, kind: str) -> None:
    """The longest wait for a batch around the end of an epoch, beside that in its middle; no worker hides a stall."""
    config, source, batches = opened(folder, kind)
    made = loader(config, source, batches, 0)
    for name, epochs in (("in the middle of an epoch", 0.5), ("around the end of one", 1.0)):
        middle = int(epochs * batches.steps_per_epoch)
        ends = [(time.monotonic(), time.process_time()) for _ in made.steps(middle - 60, middle + 60)]
        waits = 1e3 * np.diff(ends, axis=0)
        median, longest = np.median(waits, axis=0).tolist(), waits.max(axis=0).tolist()
        print(f"waits for a batch, {kind}, {name}: median {median[0]:.0f} ms ({median[1]:.0f} of processor time), "
              f"longest {longest[0]:.0f} ms ({longest[1]:.0f})")  # fmt: skip


if __name__ == "__main__":
    main()
