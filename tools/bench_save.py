"""Measures how long training waits for a checkpoint: asynchronous against synchronous, in alternating rounds.

The weights and AdamW's state of a recipe's model are saved without training it; the next save begins when the one
before is on the disk, as in a run whose interval is long.

    python tools/bench_save.py                       # ViT-B with MAE's decoder, five rounds, in the system's /tmp
    python tools/bench_save.py --folder /data/scratch --rounds 9
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch

from mrp.build import build_optimizer, build_step
from mrp.checkpoint.checkpoints import newest
from mrp.checkpoint.config import Config
from mrp.checkpoint.saver import Saver
from mrp.run import load


def main() -> None:
    """Measures, and prints a table and one line of JSON."""
    words = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    words.add_argument("--recipe", default="mae_vit_base_in1k")
    words.add_argument("--rounds", type=int, default=5)
    words.add_argument("--interval", type=float, default=600.0, help="seconds between two checkpoints of a run")
    words.add_argument("--folder", type=Path, help="where to write (a folder is made in it, and removed)")
    options = words.parse_args()
    torch.set_num_threads(1)
    run = load(options.recipe, ["data.train=digits", "data.test=null"])
    step = build_step(run)
    optimizer = build_optimizer(run.optim, step)
    for parameter in step.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()

    folder = Path(tempfile.mkdtemp(prefix="bench-save-", dir=options.folder))
    ways = {
        "synchronous": Saver(folder / "synchronous", Config(asynchronous=False, keep=1), every=1),
        "asynchronous": Saver(folder / "asynchronous", Config(asynchronous=True, keep=1), every=1),
    }
    stalls: dict[str, list[float]] = {way: [] for way in ways}
    writes: dict[str, list[float]] = {way: [] for way in ways}
    size, first = 0.0, 0.0
    try:
        for number in range(options.rounds + 1):
            for way in list(ways) if number % 2 else list(reversed(ways)):
                saver = ways[way]
                begin = time.perf_counter()
                saver.save(number + 1, step, optimizer, {})
                stall = time.perf_counter() - begin
                saver.finish()
                measured = saver.measured()
                size = measured["checkpoint/gigabytes"]
                if number == 0:  # memory is claimed and the writer starts: once in a run
                    first = stall if way == "asynchronous" else first
                    continue
                print(f"{way}, round {number}: {stall:.3f} s", flush=True)
                stalls[way].append(stall)
                writes[way].append(measured["checkpoint/write_seconds"])
        sums = [_content(folder / way) for way in ways]
        assert sums[0] == sums[1], "both ways write the same bytes"
    finally:
        for saver in ways.values():
            saver.close()
        shutil.rmtree(folder)
    _print(options, size, first, stalls, writes)


def _content(run: Path) -> str:
    checkpoint = newest(run)
    assert checkpoint is not None
    return hashlib.sha256((checkpoint.folder / "MANIFEST.json").read_bytes()).hexdigest()


def _print(
    options: argparse.Namespace,
    size: float,
    first: float,
    stalls: dict[str, list[float]],
    writes: dict[str, list[float]],
) -> None:
    load_ = os.getloadavg()[0]
    print(
        f"{options.recipe}: {size:.2f} GB, {options.rounds} paired rounds, {os.cpu_count()} cores "
        f"{platform.machine()}, torch {torch.__version__}, load average {load_:.1f}"
    )
    for way, values in stalls.items():
        middle = statistics.median(values)
        print(
            f"{way:>13}: stall {middle:7.3f} s (from {min(values):.3f} to {max(values):.3f}), "
            f"{middle / options.interval:.3%} of {options.interval:.0f} s; written in "
            f"{statistics.median(writes[way]):.2f} s (from {min(writes[way]):.2f} to {max(writes[way]):.2f})"
        )
    ratios = [slow / fast for slow, fast in zip(stalls["synchronous"], stalls["asynchronous"], strict=True)]
    print(f"        ratio: {statistics.median(ratios):.1f} (from {min(ratios):.1f} to {max(ratios):.1f})")
    print(f"the first asynchronous save of a run, which claims its memory: {first:.3f} s")
    print(json.dumps({"gigabytes": size, "stall": stalls, "write": writes, "first": first}))


if __name__ == "__main__":
    main()
