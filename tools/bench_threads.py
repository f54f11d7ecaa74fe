"""Measures what several threads of a CPU bring a training step, alone and where another program wants the same cores.

    python tools/bench_threads.py
    setsid python tools/bench_threads.py --ahead                           # on a machine that is in use, as root
    OMP_WAIT_POLICY=passive setsid python tools/bench_threads.py --ahead   # threads that sleep while they wait

In each round a case is timed with one thread and with torch's number, without and with busy processes on half of the
cores, one right after the other, so that a machine that slows down slows all of them. What counts are the ratios within
a round. `--ahead` puts this session, with its busy processes, ahead of all others for as long as it measures.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from mrp.batch import Batch
from mrp.build import build_optimizer, build_step, measure_cost
from mrp.config import Tree, build
from mrp.run import Run

_PRIORITY = Path("/proc/self/autogroup")  # of this session, as Linux schedules it


@dataclass(frozen=True)
class Case:
    """A model and its batch, of images of the digits' size."""

    width: int
    depth: int
    batch: int

    def run(self) -> Run:
        """Returns the run whose step is measured: MAE with a decoder as small as the demo's, in proportion."""
        values = {
            "objective": {"name": "mae", "decoder": {"width": self.width * 2 // 3, "depth": 2, "heads": 4}},
            "backbone": {"width": self.width, "depth": self.depth, "heads": 4, "patch": 2},
            "data": {"train": "digits", "size": 8, "channels": 1}, "batch": self.batch, "length": "1 steps",
            "optim": {"lr": 1e-4}, "precision": "fp32",
        }  # fmt: skip
        return build(Run, Tree(values, {}))


CASES = (Case(48, 3, 16), Case(96, 6, 32), Case(96, 6, 128), Case(192, 12, 128), Case(384, 12, 128))  # 3: the demo


class Trainer:
    """A step with its optimizer and one batch, which is trained on again and again."""

    def __init__(self, case: Case) -> None:
        run = case.run()
        self.step = build_step(run)
        self.optimizer = build_optimizer(run.optim, self.step)
        self.batch = Batch(torch.randint(0, 256, (case.batch, 1, 8, 8), dtype=torch.uint8), torch.arange(case.batch))

    def seconds(self, threads: int, at_least: float) -> float:
        """Returns the seconds of one step, over steps that take so long together."""
        torch.set_num_threads(threads)
        self._update()
        begin, steps = time.perf_counter(), 0
        while steps < 2 or time.perf_counter() - begin < at_least:
            self._update()
            steps += 1
        return (time.perf_counter() - begin) / steps

    def _update(self) -> None:
        self.step(self.batch).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """Runs processes that do nothing but compute, meanwhile."""
    children = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for child in children:
            child.kill()
            child.wait()


def main() -> None:
    """Measures and prints the table."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--rounds", type=int, default=5)
    words.add_argument("--seconds", type=float, default=0.2, help="of each measurement, at least")
    words.add_argument("--ahead", action="store_true", help="put this session ahead of all others meanwhile")
    options = words.parse_args()
    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    print(f"torch {torch.__version__}, {cores} cores, n = {options.rounds}, load of others {os.getloadavg()[0]:.1f}")
    print(f"how much faster {threads} threads are than one: median (range)\n")
    print("| width | depth | batch | GFLOP per step | ms, one thread | alone | half of the cores taken |")
    print("|---|---|---|---|---|---|---|")
    for case in CASES:
        flops = measure_cost(case.run()).training_flops * case.batch
        trainer, cells, alone = Trainer(case), [], 0.0
        for taken in (0, max(1, cores // 2)):
            pairs = []
            if options.ahead:
                _PRIORITY.write_text("-20")
            with busy(taken):
                for _ in range(options.rounds):
                    pairs.append([trainer.seconds(number, options.seconds) for number in (1, threads)])
            if options.ahead:
                _PRIORITY.write_text("0")
            gains = [one / several for one, several in pairs]
            alone = alone or statistics.median(one for one, _ in pairs)
            cells.append(f"{statistics.median(gains):.2f} ({min(gains):.2f} to {max(gains):.2f})")
        numbers = f"{case.width} | {case.depth} | {case.batch} | {flops / 1e9:.2g} | {1e3 * alone:.1f}"
        print(f"| {numbers} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
