"""Every number that follows from a run's configuration, its data and its processes, and everything that does not fit.

A configuration says `800 epochs` or `micro_batch: auto`; a plan says how many steps that is, and what each process
takes at once. What cannot be divided is refused here, in one line, before anything is trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mrp.batch import Division
from mrp.build import check_best, check_classes, measure_cost, open_source, open_validation
from mrp.checkpoint.checkpoints import any_left
from mrp.config import ConfigError, Duration
from mrp.data import mixtures
from mrp.data.mixtures import Mixed
from mrp.data.order import Order
from mrp.data.source import Source
from mrp.folder import recorded
from mrp.processes.cost import Cost
from mrp.run import Run
from mrp.schedules import Length, Schedule, schedules


@dataclass(frozen=True, slots=True)
class Plan:
    """What a configuration comes to on this data and these processes; lengths are in optimizer steps."""

    steps_per_epoch: float
    steps: int
    warmup: int
    drops: tuple[int, ...]  # where the learning rate falls to a tenth
    checkpoint_every: int
    milestone_every: int  # 0: never
    peak_lr: float
    division: Division
    coupled_batch: int | None  # images that act on each other, over all processes; None where none do

    @property
    def length(self) -> Length:
        """Returns what schedules depend on."""
        return Length(self.steps, self.steps_per_epoch, self.division.batch)

    @property
    def processes(self) -> int:
        """Returns the number of processes."""
        return self.division.processes

    @property
    def micro_batch(self) -> int:
        """Returns the images that a process takes through the model at once."""
        return self.division.micro_batch

    @property
    def accumulation(self) -> int:
        """Returns the micro-batches that a process takes per step."""
        return self.division.accumulation


def plan_order(run: Run, data: Source | int, version: int | None = None) -> Order | Mixed:
    """Returns the order of a data set, or of any set that has this many samples; by default in the newest version."""
    size, views = data if isinstance(data, int) else len(data), run.data.views
    if run.batch % views:
        raise ConfigError(f"batch: {run.batch} is not a multiple of data.views ({views}); change one of them")
    if size * views < run.batch:
        raise ConfigError(
            f"batch: {run.batch} images are asked for at once but the data holds {size * views}; give "
            f"{size * views} or fewer"
        )
    if isinstance(data, int):
        return Order(size, run.batch // views, run.seed, run.data.tail)
    group = run.coupled_batch if run.couples_samples and run.coupled_batch else run.batch
    return mixtures.order(data, run.data, run.batch // views, run.seed, group // views, version or mixtures.VERSION)


def plan_run(run: Run, steps_per_epoch: float, processes: int, memory: int, cost: Cost | None = None) -> Plan:
    """Returns the numbers that follow from the data's size and the machine.

    `memory` is what a process may use, in bytes; `cost` is the run's, where it has been measured already.
    """
    if run.batch % processes:
        raise ConfigError(
            f"batch: {run.batch} is not a multiple of the {processes} processes; "
            f"the nearest that is: {max(1, round(run.batch / processes)) * processes}"
        )
    micro_batch = _micro_batch(run, processes, memory, cost)
    length = length_of(run, steps_per_epoch)
    steps = length.steps
    if steps < 1:
        raise ConfigError(f"length: {run.length} is nothing to train; give at least 1 step")
    for where, schedule in schedules(run):
        schedule.check(where, length)
    if not run.checkpoint.every.amount:
        raise ConfigError(f"checkpoint.every: {run.checkpoint.every} is never; give 1 step or more")
    lr = run.optim.lr
    warmup = lr.warmup.steps(length) if isinstance(lr, Schedule) else _steps(run, run.optim.warmup, steps_per_epoch)
    if warmup > steps:
        raise ConfigError(
            f"optim.warmup: {run.optim.warmup} ({warmup} steps) is longer than the run ({steps} steps); "
            "shorten it, or lengthen the run"
        )
    coupled_batch = micro_batch * processes if run.couples_samples else None
    return Plan(
        steps_per_epoch=steps_per_epoch,
        steps=steps,
        warmup=warmup,
        drops=tuple(_steps(run, drop, steps_per_epoch) for drop in run.optim.drops),
        checkpoint_every=_steps(run, run.checkpoint.every, steps_per_epoch),
        milestone_every=_steps(run, run.checkpoint.milestone, steps_per_epoch),
        peak_lr=run.optim.peak_lr(run.batch),
        division=Division(
            batch=run.batch,
            group=coupled_batch or run.batch,
            processes=processes,
            micro_batch=micro_batch,
            accumulation=run.batch // processes // micro_batch,
            views=run.data.views,
        ),
        coupled_batch=coupled_batch,
    )


def length_of(run: Run, steps_per_epoch: float) -> Length:
    """Returns the length of a run on data of this size."""
    return Length(_steps(run, run.length, steps_per_epoch), steps_per_epoch, run.batch)


def inseparable(run: Run) -> int:
    """Returns the images that a process has to take at once: a sample's views, of two samples where these are mixed."""
    return run.data.views * (2 if run.mix.pairs else 1)


def _steps(run: Run, length: Duration | None, steps_per_epoch: float) -> int:
    return length.steps(steps_per_epoch, run.batch) if length else 0


def _micro_batch(run: Run, processes: int, memory: int, cost: Cost | None) -> int:
    """Returns the images that a process takes through the model at once."""
    share = run.batch // processes
    micro_batch = _coupled_micro_batch(run, processes) or run.machine.micro_batch
    if micro_batch == "auto":
        micro_batch = (cost or measure_cost(run)).micro_batch(share, memory, inseparable(run))
    elif share % micro_batch:
        raise ConfigError(
            f"machine.micro_batch: {micro_batch} does not divide the {share} images that each of {processes} "
            "processes takes of a batch; use a divisor, or auto"
        )
    if micro_batch % run.data.views:
        raise ConfigError(
            f"data.views: the {micro_batch} images that a process takes at once are not a multiple of "
            f"{run.data.views}; change machine.micro_batch, coupled_batch or data.views"
        )
    if run.mix.pairs and micro_batch // run.data.views % 2:
        samples = "" if run.data.views == 1 else f", which are {run.data.views} views of an odd number of samples"
        raise ConfigError(
            f"mix: images are mixed two by two, but a process takes {micro_batch} at once{samples}; "
            f"set machine.micro_batch to a multiple of {2 * run.data.views}, or change the batch"
        )
    return micro_batch


def _coupled_micro_batch(run: Run, processes: int) -> int | None:
    """Returns what each process takes at once so that as many images act on each other as was asked for."""
    coupled = run.coupled_batch
    if not run.couples_samples or coupled is None:
        return None
    if run.batch % coupled or coupled % processes:
        raise ConfigError(
            f"coupled_batch: {coupled} must divide the batch of {run.batch} and be a multiple of the {processes} "
            "processes; change it, or their number"
        )
    if run.machine.micro_batch not in {"auto", coupled // processes}:
        raise ConfigError(
            f"machine.micro_batch: {run.machine.micro_batch} on each of {processes} processes does not give the "
            f"coupled_batch of {coupled}; leave it to auto"
        )
    return coupled // processes


def threads(run: Run, micro_batch: int, device: torch.device) -> int | None:
    """Returns the threads that torch trains with on micro-batches of so many images; None leaves that to torch.

    It is decided by the work alone and not by what else the machine does, since sums may depend on it: a run that goes
    on has to compute as it did before.
    """
    wanted = run.machine.threads
    if wanted != "auto":
        return wanted
    if device.type != "cpu" or torch.get_num_threads() == 1:
        return None
    try:
        return None if measure_cost(run).threads_pay(micro_batch) else 1
    except ConfigError:  # the cost of a method outside mrp need not be countable
        return None


def remarks(run: Run, plan: Plan, cores: int) -> list[str]:
    """Returns what can be trained and is hardly meant, on so many cores per process: lines of `what; what to do`."""
    lines = []
    workers = run.machine.workers
    if workers != "auto" and workers > cores:
        auto = run.machine.model_copy(update={"workers": "auto"}).workers_on(cores)
        each = " per process" if plan.processes > 1 else ""
        lines += [
            f"machine.workers: {workers} decoding processes on {cores} {'core' if cores == 1 else 'cores'}{each}; "
            f"auto takes {auto}"
        ]
    if run.average and (left := run.average.remark(plan.steps)):
        lines += [left]
    if late := sum(drop >= plan.steps for drop in plan.drops):
        lines += [
            f"optim.drops: {late} of its {len(plan.drops)} are after the last step, so the learning rate does not fall "
            "there; give optim.drops that fit the length"
        ]
    return lines


@dataclass(frozen=True, slots=True)
class Job:
    """A run together with its data and its plan: what the loop works through."""

    run: Run  # with what was decided on the machine on which it began
    plan: Plan
    source: Source
    validation: Source | None
    order: Order | Mixed
    memory: int  # bytes that each process may use

    @property
    def steps(self) -> int:
        """Returns the number of updates of the whole run."""
        return self.plan.steps

    @property
    def identity(self) -> dict[str, Any]:
        """Returns what decides the results of the run: its configuration, and the content of its data."""
        return self.run.identity(self.source.identity, self.order.version)

    @property
    def common(self) -> dict[str, Any]:
        """Returns what must be the same on all processes: the identity, and when they wait for each other."""
        resolved = self.run.resolved()
        names = "validation", "diagnose", "evaluate", "checkpoint", "guard", "track"
        sections = {name: resolved.get(name) for name in names}
        return self.identity | sections | {"machine": {"shard": self.run.machine.shard}}

    def threads(self, device: torch.device) -> int | None:
        """Returns the threads that torch trains with; None leaves their number to torch."""
        return threads(self.run, self.plan.micro_batch, device)

    def learning_rate(self, step: int, scale: float = 1.0) -> float:
        """Returns the learning rate of a step, counted from zero, for layers of this scale."""
        return self.run.optim.lr_at(step, self.plan.length, self.plan.warmup, self.plan.drops, scale)

    def micro_batch_that_fits(self, used: int) -> int:
        """Returns the images at once for which memory would have sufficed, where so many bytes were in use."""
        share = self.run.batch // self.plan.processes
        cost = measure_cost(self.run)
        return cost.smaller(self.plan.micro_batch, used, share, self.memory, inseparable(self.run))


def plan_job(run: Run, folder: Path, processes: int, memory: int) -> Job:
    """Opens the data and derives everything else.

    A run that has a checkpoint in the folder keeps the coupled batch and the order that it began with.
    """
    source = open_source(run, "train")
    check_classes(run, source)
    check_best(run)
    validation = open_validation(run, source)
    begun = any_left(folder)
    version = recorded(folder, "order_version") if begun else None
    order = plan_order(run, source, version)
    if begun and run.couples_samples and run.coupled_batch is None:  # as it was on the machine on which the run began
        run = run.model_copy(update={"coupled_batch": recorded(folder, "coupled_batch")})
    plan = plan_run(run, order.steps_per_epoch, processes, memory)
    run = run.model_copy(update={"coupled_batch": plan.coupled_batch})
    # Where samples act on each other, lanes are cut from what meets in a micro-step: only now is that known.
    return Job(run, plan, source, validation, plan_order(run, source, version), memory)
