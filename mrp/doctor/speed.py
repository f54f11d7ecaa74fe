"""How fast the loader is alone, the step alone, and both together: who waits for whom."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from mrp.batch import Batch, Output
from mrp.build import build_optimizer, build_step
from mrp.data.augment import View
from mrp.data.loader import Loader
from mrp.data.order import Order
from mrp.data.quarantine import Quarantine
from mrp.data.resident import ResidentLoader
from mrp.data.subset import evenly_spaced
from mrp.doctor.case import Case
from mrp.doctor.finding import Finding, ok, warning
from mrp.feeding import holding
from mrp.plan import inseparable, threads
from mrp.processes.threads import limited
from mrp.processes.transfer import Transfer
from mrp.processes.wrapping import clip, is_compiled

_HELD = 2048  # images that are decoded to measure how fast they are taken from memory
_SECONDS = 3.0  # of each of the three measurements
_FEWEST = 3  # micro-batches of each, so that their median is not one busy moment, if they do not take
_LONGEST = 5  # times as many seconds
_WORK = 3e10  # FLOPs of a micro-batch on a CPU that are enough to be measured: about a second
_AHEAD = 3  # batches of each worker that may be there at once: two that wait, and one that is being made
_WAITS = 0.2  # of the time, from which the loader is too slow


@dataclass(frozen=True, slots=True)
class Rate:
    """Images per second: the median over micro-batches, or as many as there are workers; and between what they lie."""

    median: float
    low: float
    high: float
    count: int  # of micro-batches

    def __str__(self) -> str:
        median, low, high = (
            f"{rate:,.0f}" if rate >= 999.5 else f"{rate:.4g}" for rate in (self.median, self.low, self.high)
        )
        return f"{median} ({low} to {high}, n={self.count})"


@dataclass(frozen=True, slots=True)
class Speed:
    """What one process does, in images per second."""

    loader: Rate
    step: Rate
    both: Rate
    waiting: float  # the share of the time of both in which the step waits for the loader


def throughput(case: Case) -> Iterator[Finding]:
    """Measures the loader, the step and both on this machine, and says who waits."""
    if case.cost.memory(case.plan.micro_batch) > case.machine.memory:
        return  # the recipe's checks say so
    case.speed = case.speed or measure(case)
    yield judge(case.speed)


def judge(speed: Speed) -> Finding:
    """Says who waits."""
    found = (
        f"images per second of one process: loader alone {speed.loader}, step alone {speed.step}, both {speed.both}; "
        f"the step waits {speed.waiting:.0%} of the time for the loader"
    )
    if speed.waiting > _WAITS:
        return warning(
            "throughput",
            f"{found}: the loader is too slow",
            "more machine.workers where there are cores, smaller files (mrp shards build --max-side), a faster disk, "
            "or more data.views per file",
        )
    return ok("throughput", f"{found}: the step decides the speed")


def measure(case: Case, seconds: float = _SECONDS) -> Speed:
    """Measures some seconds of each, on the run's own data, model and optimizer."""
    run, plan, device = case.run, case.plan, case.machine.device
    with limited(threads(run, plan.micro_batch, device)):
        training = _Training(case)
        taken = plan.micro_batch if device.type == "cuda" else _short_enough(case)
        training.accumulation = run.batch // plan.processes // taken
        opened, workers = _opened(case, taken)
        batches = opened.micro_batches()
        try:
            batch = next(batches)
            for _ in range(_AHEAD * workers):  # what the workers have made before anyone asks
                next(batches)
            alone = [_timed(lambda: next(batches)) for _ in _enough(seconds)]
            if training.compiled:
                training.update(batch)
            steps = [_timed(lambda: training.update(batch)) for _ in _enough(seconds)]
            for _ in range(_AHEAD * workers):  # what they have made in the meantime
                next(batches)
            waits, both = list[float](), list[float]()
            for _ in _enough(seconds):
                begin = time.perf_counter()
                batch = next(batches)
                waits.append(time.perf_counter() - begin)
                training.update(batch)
                both.append(time.perf_counter() - begin)
        finally:
            batches.close()
            opened.close()
    turn = max(1, workers)  # workers end their batches almost at once, and then none for a while
    waiting = [
        sum(waits[start : start + turn]) / sum(both[start : start + turn]) for start in range(0, len(both), turn)
    ]
    return Speed(_rate(alone, taken, turn), _rate(steps, taken), _rate(both, taken, turn), statistics.median(waiting))


def _opened(case: Case, micro_batch: int) -> tuple[Loader | ResidentLoader, int]:
    """Returns what gives the run its batches, and how many workers it has; of images in memory some stand for all."""
    run, plan, device = case.run, case.plan, case.machine.device
    division = plan.division
    share: dict[str, Any] = {"group": division.group, "micro_batch": micro_batch, "rank": 0, "world": plan.processes}
    found = holding(run, plan, case.source, case.machine.memory)
    if found is None:
        view, pinned = View(run.data, train=True), device.type == "cuda"
        return Loader(case.source, case.order, view, **share, workers=case.workers, pin_memory=pinned), case.workers
    few = evenly_spaced(case.source, min(len(case.source), max(run.batch, _HELD)))
    found = replace(found, source=few)
    memory = torch.empty(found.bytes, dtype=torch.uint8)
    found.decode(memory, Quarantine(run.data.damaged), workers=0)
    order = Order(len(few), run.batch // run.data.views, run.seed)
    return ResidentLoader(found.in_memory(memory).to(device), order, run.data, **share), 0


class _Training:
    """The steps of a run on one process, without all that watches over them."""

    def __init__(self, case: Case) -> None:
        run, device = case.run, case.machine.device
        self.module = build_step(run).to(device)
        self.compiled = is_compiled(run.machine.compile, device)
        if self.compiled:
            self.module.compile(dynamic=False)
        self.module.before_step(0, case.plan.length)
        self.accumulation = 1
        self._optimizer, self._limit = build_optimizer(run.optim, self.module), run.optim.clip
        self._device, self._to_device = device, Transfer(device)
        self._updated = torch.ones((), dtype=torch.bool, device=device)
        self._taken = 0

    def update(self, batch: Batch) -> None:
        """Takes a micro-batch, and changes the weights after the last one of a step."""
        output: Output = self.module(self._to_device(batch))
        (output.loss / self.accumulation).backward()
        self._taken += 1
        if self._taken % self.accumulation == 0:
            clip(self.module, self._limit)
            self._optimizer.step()
            self._optimizer.zero_grad()
            self.module.after_step(0, self._updated)
        if self._device.type == "cuda":
            torch.cuda.synchronize()


def _short_enough(case: Case) -> int:
    """Returns a part of the micro-batch that is work enough for a CPU to show its speed, and not for a minute.

    It follows from the FLOPs and not from a trial: on a machine that does other things as well, two threads wait for
    each other on a few images, and a trial of these says that more would take for ever.
    """
    least, whole = inseparable(case.run), case.plan.micro_batch
    sizes = [size for size in range(least, whole + 1, least) if whole % size == 0]
    return max((size for size in sizes if size * case.cost.training_flops <= _WORK), default=sizes[0])


def _timed(do: Callable[[], object]) -> float:
    begin = time.perf_counter()
    do()
    return time.perf_counter() - begin


def _enough(seconds: float) -> Iterator[None]:
    """Yields until so many seconds are over; a few times in any case, and at least once where that takes too long."""
    begin, count = time.perf_counter(), 0
    while not count or time.perf_counter() - begin < seconds * (1 if count >= _FEWEST else _LONGEST):
        yield
        count += 1


def _rate(times: list[float], images: int, turn: int = 1) -> Rate:
    """Returns the rate of so many images each, over as many in a row as make one turn."""
    turns = [times[start : start + turn] for start in range(0, max(1, len(times) - turn + 1), turn)]
    rates = [images * len(each) / sum(each) for each in turns]
    return Rate(statistics.median(rates), min(rates), max(rates), len(times))


MEASURES = (throughput,)
