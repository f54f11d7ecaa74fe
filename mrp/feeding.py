"""Where a run's batches come from: images that are held decoded on the device, or files that workers read anew."""

from __future__ import annotations

from functools import partial

from mrp.config import ConfigError
from mrp.data.augment import View
from mrp.data.held import Held, Holding, held_size
from mrp.data.loader import Loader
from mrp.data.resident import ResidentLoader
from mrp.data.source import Source
from mrp.plan import Job, Plan
from mrp.processes.join import from_first
from mrp.processes.shared import filled
from mrp.processes.signals import Interrupted
from mrp.run import Run
from mrp.session import Session
from mrp.state import State

_SHARE = 16  # of the memory: the part that training images may take without being asked


def open_loader(job: Job, state: State, session: Session) -> Loader | ResidentLoader:
    """Returns this process's share of the training batches."""
    share = {
        "group": job.plan.division.group, "micro_batch": job.plan.micro_batch, "rank": session.rank,
        "world": session.processes,
    }  # fmt: skip
    held = _hold(job, state, session)
    if held is not None:
        return ResidentLoader(held, job.order, job.run.data, **share)
    return Loader(
        job.source, job.order, View(job.run.data, train=True), **share,
        workers=job.run.machine.workers_among(session.processes), pin_memory=session.device.type == "cuda",
        quarantine=state.quarantine,
    )  # fmt: skip


def holding(run: Run, plan: Plan, source: Source, memory: int) -> Holding | None:
    """Returns how the training images are held, where a process may use so many bytes; None where they are not."""
    chosen = run.machine.resident
    if chosen == "no" or (chosen == "auto" and plan.steps <= plan.steps_per_epoch):
        return None
    try:
        found = Holding(source, run.data, held_size(source, run.data))
    except ConfigError as error:
        _refuse(run, error)
        return None
    return None if chosen == "auto" and found.bytes > memory // _SHARE else found


def _hold(job: Job, state: State, session: Session) -> Held | None:
    """Returns the decoded training images, on every process or on none."""
    session.phase("decodes", state.step)
    found = holding(job.run, job.plan, job.source, job.memory) if session.main else None
    size = from_first(found and found.size)
    if size is None:
        return None
    found = Holding(job.source, job.run.data, size)
    workers = job.run.machine.workers_among(session.processes)
    beat = partial(session.beat, "decodes", state.step)
    decode = partial(found.decode, quarantine=state.quarantine, workers=workers, beat=beat)
    try:
        held = found.in_memory(filled(found.bytes, decode, session.accelerator))
    except Interrupted:
        session.leave(state.step, job.steps)
    except ConfigError as error:
        _refuse(job.run, error)
        return None
    session.say(f"{found.bytes / 2**20:,.3g} MiB of decoded images are held on {session.device}")
    return held.to(session.device)


def _refuse(run: Run, error: ConfigError) -> None:
    """Raises where the run asks for what cannot be done; else the loader says what is wrong with an image it meets."""
    if run.machine.resident == "yes":
        remedy = "" if "; " in str(error) else "; leave it to auto, and images are read anew each time"
        raise ConfigError(f"machine.resident: {error}{remedy}") from None
