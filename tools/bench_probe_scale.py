"""What the heads of a probe cost at the size of ImageNet: seconds, and memory apart from the cache of files.

    python tools/bench_probe_scale.py FOLDER                       class and mean tokens of four layers: 168 heads
    python tools/bench_probe_scale.py FOLDER --steps 8 --products bf16
    python tools/bench_probe_scale.py FOLDER --neighbours 1024     nearest neighbours instead of heads

FOLDER gets made-up features (16 GB for 1,281,167 x 768 numbers of half precision in eight blocks), which are used
again by a later call; remove it afterwards. The parts that read all rows once are run in full; of the steps, some are
run and the rest is multiplied, as the output says. Memory is that of this process: what it allocated, and pages of
mapped files, which the system takes back when it needs them.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice, product
from pathlib import Path

import numpy as np
import torch

from mrp.evaluate import heads, neighbours, sweep
from mrp.evaluate.batches import read
from mrp.evaluate.readout import block_name
from mrp.evaluate.split import split
from mrp.evaluate.table import Table

CLASSES, LAYERS, POOLINGS = 1000, (9, 10, 11, 12), ("class", "mean")
GIB = 2**20  # of the kilobytes that the system counts in


class Memory:
    """The most memory of this process, looked at twenty times per second."""

    def __init__(self) -> None:
        self.most: dict[str, int] = {}
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
                if line.startswith(("RssAnon:", "RssFile:")):
                    name, value = line.split()[:2]
                    self.most[name] = max(self.most.get(name, 0), int(value))
            time.sleep(0.05)

    def text(self) -> str:
        """Returns the peaks so far, and forgets them."""
        most, self.most = self.most, {}
        shown = (
            f"allocated {most.get('RssAnon:', 0) / GIB:.2f} GiB, mapped files {most.get('RssFile:', 0) / GIB:.2f} GiB"
        )
        if torch.cuda.is_available():
            shown += f", device {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB"
            torch.cuda.reset_peak_memory_stats()
        return shown


@contextmanager
def timed(what: str, memory: Memory, times: float = 1) -> Iterator[None]:
    """Prints what a part took, and what it would take so many times."""
    began, processor = time.perf_counter(), time.process_time()
    yield
    wall, processor = time.perf_counter() - began, time.process_time() - processor
    print(f"{what}: {wall:.1f} s, {processor:.1f} CPU s; {memory.text()}", flush=True)
    if times != 1:
        minutes = [f"{seconds * times / 60:,.0f}" for seconds in (wall, processor)]
        print(f"  in full ({times:,.0f} times, multiplied): {minutes[0]} min, {minutes[1]} CPU min", flush=True)


def made_up(folder: Path, images: int, width: int, blocks: list[str]) -> Table:
    """Returns features whose classes lie together on the disk, as those of folders of images do."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.sort(np.random.default_rng(0).integers(0, CLASSES, images))
    for number, name in enumerate(blocks):
        path, random = folder / f"{name}.f16", np.random.default_rng(number + 1)
        if path.is_file() and path.stat().st_size == 2 * images * width:
            continue
        means = 0.12 * random.standard_normal((CLASSES, width), np.float32)
        with path.open("wb") as file:
            for start in range(0, images, 16384):
                part = labels[start : start + 16384]
                rows = random.standard_normal((len(part), width), np.float32) + means[part]
                file.write(rows.astype(np.float16).tobytes())
    columns = {name: np.memmap(folder / f"{name}.f16", np.float16, "r", shape=(images, width)) for name in blocks}
    return Table(columns, torch.from_numpy(labels), torch.arange(images))


def sweep_seconds(table: Table, layers: tuple[int, ...], steps: int, products: str, device: torch.device) -> None:
    """The parts of `sweep.choose`, one after another."""
    memory, names = Memory(), list(table.columns)
    candidates = sweep.inputs(layers, POOLINGS)
    settings = list(product(sweep.LRS, sweep.DECAYS))
    with timed("split", memory):
        fitting, held_out = split(table.labels, table.keys)
    with timed(f"mean and deviation of {len(fitting):,} rows", memory):
        scale = heads.Scale.of(table, names, fitting, device)
    rates, decays = torch.tensor(settings, device=device).unbind(1)
    groups = []
    for length in sorted({len(candidate.blocks) for candidate in candidates}):
        inputs = [candidate.blocks for candidate in candidates if len(candidate.blocks) == length]
        with timed(f"principal axes of {len(inputs)} inputs, {length * table.columns[names[0]].shape[1]} wide", memory):
            axes = heads.principal_axes(table, inputs, fitting, scale)
        groups.append(heads.Heads(inputs, axes, CLASSES, rates, decays, sweep.PRODUCTS[products]))
    batch, per_epoch, epochs = heads.Schedule().of(len(fitting))
    count, whole = sum(len(group.inputs) for group in groups) * len(settings), per_epoch * epochs
    print(f"{count} heads, {whole:,} steps of {batch}; {torch.get_num_threads()} threads, products in {products}")
    batches = read(table, names, fitting, batch, per_epoch, epochs, 0, device)
    with timed("the first batches are read", memory):
        first = next(batches)
    with timed(f"{steps} steps, with reading", memory, whole / steps):
        for blocks, labels in [first, *islice(batches, steps - 1)]:
            standard = scale.standard(blocks)
            for group in groups:
                group.step(standard, labels, 0.5)
        if device.type == "cuda":
            torch.cuda.synchronize()
    some = held_out[:2048]
    with timed(f"{len(some):,} of {len(held_out):,} held-out rows", memory, len(held_out) / len(some)):
        heads.evaluate(groups, table, some, scale)


def reading_seconds(table: Table, device: torch.device) -> None:
    """One epoch of minibatches without heads."""
    memory = Memory()
    fitting, _ = split(table.labels, table.keys)
    batch, per_epoch, _ = heads.Schedule().of(len(fitting))
    with timed(f"one epoch of {per_epoch:,} batches, read and not used", memory):
        for _ in read(table, list(table.columns), fitting, batch, per_epoch, 1, 0, device):
            pass


def neighbour_seconds(table: Table, queries: int, device: torch.device) -> None:
    """Some of ImageNet's 50,000 test images against all training images."""
    memory, block = Memory(), next(iter(table.columns))
    chosen = np.array(table.columns[block][:: len(table) // queries][:queries])
    with timed(f"{queries:,} queries, {len(table):,} keys", memory, 50_000 / queries):
        neighbours.predict(table.columns[block], table.labels, chosen, neighbours.KS, device=device)


def main() -> None:
    """One measurement."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("folder", type=Path)
    words.add_argument("--images", type=int, default=1_281_167)
    words.add_argument("--width", type=int, default=768)
    words.add_argument("--layers", type=int, default=4, help="of the four that the sweep reads")
    words.add_argument("--steps", type=int, default=4)
    words.add_argument("--products", choices=("fp32", "bf16"), default="fp32")
    words.add_argument("--reading", action="store_true", help="an epoch of minibatches without heads")
    words.add_argument("--neighbours", type=int, metavar="QUERIES")
    options = words.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layers = LAYERS[-options.layers :]
    blocks = [block_name(layer, pooling) for layer in layers for pooling in POOLINGS]
    table = made_up(options.folder, options.images, options.width, blocks)
    if options.neighbours:
        neighbour_seconds(table, options.neighbours, device)
    elif options.reading:
        reading_seconds(table, device)
    else:
        sweep_seconds(table, layers, options.steps, options.products, device)


if __name__ == "__main__":
    main()
