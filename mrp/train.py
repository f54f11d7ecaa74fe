"""The one training loop: read this first.

`train` opens a session, builds the state of the run and goes through its steps. `update` is the only function that
changes weights. `finish_step` does what is due after a step: report, evaluate, save, leave.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mrp.apart import apart
from mrp.batch import Batch, Output
from mrp.build import open_source
from mrp.config import Stopped
from mrp.data.balance import balance_warning
from mrp.data.mixtures import Mixed
from mrp.data.source import listed
from mrp.data.units import units_warning
from mrp.data.workers import prepare_workers
from mrp.evaluate.contract import Result, Setting, Training
from mrp.evaluate.labels import BLANKS, one_sided
from mrp.evaluate.schedule import Evaluators
from mrp.evaluate.tables import Tables
from mrp.evaluators import scheduled
from mrp.feeding import open_loader
from mrp.files import write_atomically
from mrp.folder import CLASSES
from mrp.monitor.metrics import INTERRUPTED
from mrp.optim.groups import get_lr, set_lr, set_weight_decay
from mrp.plan import Job, plan_job, remarks
from mrp.processes import memory, threads
from mrp.processes.container import share_of_cores
from mrp.processes.halves import is_bf16_slow
from mrp.processes.join import from_first
from mrp.processes.wrapping import clip, synchronised
from mrp.run import Run, default_identity
from mrp.session import Session
from mrp.state import State, refuse_impossible
from mrp.step import seed_step


class NotFinite(Exception):
    """The loss or the gradient of a step was not finite; every process raises it after the same step."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


@dataclass(frozen=True, slots=True)
class Update:
    """The numbers of one update, on the device."""

    metrics: dict[str, Tensor]  # means over this process's micro-batches
    gradient_norm: Tensor


@apart()
def train(run: Run, folder: Path) -> None:
    """Trains a run to its end, from its newest checkpoint if it has one."""
    if run.machine.workers:
        prepare_workers()  # they take seconds to import torch, in which the model is built
    with Session.open(folder, run.machine, run.precision, long_evaluations=bool(run.evaluate)) as session:
        memory_of_each = session.least_memory()
        job = session.together(lambda: plan_job(run, folder, session.processes, memory_of_each))
        session.together(lambda: refuse_impossible(job, folder))
        session.enter(threads.limited(job.threads(session.device)))
        balance = balance_warning(job.source, job.order)
        session.lock(job.run.resolved(), job.identity, default_identity(job.run), run.resume.allow, job.steps, balance)
        if session.main and hasattr(run.objective, "classes"):
            write_atomically(folder / CLASSES, json.dumps(job.source.tags or job.source.classes, indent=0))
        session.enter(
            memory.explained(job.plan.micro_batch, job.micro_batch_that_fits, session.device, job.plan.coupled_batch)
        )
        state = State.build(job, session)  # restored, started from other weights, or fresh
        session.say(announcement(job, state, session, balance))
        if session.main and (text := units_warning(job.source, run.data)):
            session.say(text)
        if state.step >= job.steps and not state.evaluation_pending:
            return
        if state.asked_to_end:
            session.leave(state.step, job.steps)
        loader = session.closing(open_loader(job, state, session))
        session.open_journal(job.run.track, job.run.resolved(), state.step, job.steps, job.run.batch)
        evaluators = open_evaluators(job, state, session)
        if state.evaluation_pending:
            conclude(state, {}, job, session, evaluators)
        while state.step < job.steps:
            session.phase("waits for a batch", state.step)
            try:
                for micro_batches in session.journal.progress.taken(loader.steps(state.step, job.steps)):
                    done = update(state, micro_batches, job, session)
                    finish_step(state, done, job, session, evaluators)
            except NotFinite as incident:
                state.recover(incident.step)  # or ends the run, as the policy says
                if evaluators.due(state.step):
                    conclude(state, {}, job, session, evaluators)
        session.phase("ends", state.step)


def update(state: State, micro_batches: list[Batch], job: Job, session: Session) -> Update:
    """Changes the weights by one step of the optimizer.

    Where the loss or the gradient is not finite, on any process, nothing changes; the device alone knows at first.
    """
    session.phase("computes", state.step)
    run, plan = job.run, job.plan
    seed_step(run.seed, state.step, session.rank)
    set_lr(state.optimizer, partial(job.learning_rate, state.step))
    if (weight_decay := run.optim.weight_decay_at(state.step, plan.length)) is not None:
        set_weight_decay(state.optimizer, weight_decay)
    state.module.before_step(state.step, plan.length)
    output, losses = accumulate(state, micro_batches, session)
    norm = clip(state.module, run.optim.clip)
    state.incidents.remember(state.step, losses, norm)
    updated = state.guard.check(state.step, output.loss, norm, session.signals.asked is not None)
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.module.after_step(state.step, updated)  # teachers follow here
    if state.average is not None:
        state.average.follow(updated)
    state.step += 1
    return Update(output.metrics, norm)


def finish_step(state: State, done: Update, job: Job, session: Session, evaluators: Evaluators) -> None:
    """Reports, evaluates, saves and leaves, as far as each is due after a step.

    Only here the host waits for the device, and only where numbers are logged or saved.
    """
    state.saver.check()
    session.journal.progress.finished(state.step)
    last = state.step == job.steps
    saving = last or state.saver.due(state.step)
    logging = last or evaluators.due(state.step) or session.journal.due(state.step)
    news = state.guard.news(now=saving or logging)
    if news.asked:
        news = state.guard.news(now=True)
    if news.incident is not None:
        raise NotFinite(news.incident)
    values = None
    if logging:
        session.phase("measures", state.step)
        values = measure(done, session) | {
            "lr": get_lr(state.optimizer),
            "epoch": state.step / job.plan.steps_per_epoch,
            **state.scheduled(),
        }
        values |= {"images_per_second": session.journal.progress.rate(state.step), **state.saver.measured()}
    conclude(state, values, job, session, evaluators, saving, leaving=news.asked and not last)
    session.phase("waits for a batch", state.step)


def conclude(
    state: State,
    values: dict[str, float] | None,
    job: Job,
    session: Session,
    evaluators: Evaluators,
    saving: bool = False,
    leaving: bool = False,
) -> None:
    """Evaluates what is due and records the numbers (None: nothing is recorded), saves, and ends the run if it must."""
    result = Result()
    if values is not None:
        if evaluators.due(state.step):
            result = evaluators.measure(state.model, state.step, session.pause(state.step))
            values |= result.values
            leaving |= INTERRUPTED in result.values
        best = state.saver.is_best(state.step, values)
        saving |= from_first(best) if job.run.checkpoint.best else best
        session.journal.log(state.step, values, result.pictures)
    if saving or result.alarm or leaving:
        session.phase("saves", state.step)
        state.save(wait=state.step == job.steps or leaving or result.alarm is not None)
    if result.alarm and result.stop:
        raise Stopped(result.alarm)
    if result.alarm:
        session.say(f"warning: {result.alarm}")
    if leaving:
        session.leave(state.step, job.steps)


def accumulate(state: State, micro_batches: list[Batch], session: Session) -> tuple[Output, Tensor]:
    """Computes the gradient of one global batch, which the processes average once.

    Returns means over the micro-batches, and the loss of each.
    """
    outputs = []
    for index, batch in enumerate(micro_batches, start=1):
        last = index == len(micro_batches)
        with synchronised(state.model, session.accelerator, last):
            output: Output = state.model(session.to_device(batch))
            session.accelerator.backward(output.loss / len(micro_batches))
        outputs.append(output)
    losses = torch.stack([output.loss.detach() for output in outputs])
    means = {name: torch.stack([output.metrics[name] for output in outputs]).mean() for name in outputs[0].metrics}
    return Output(loss=losses.mean(), metrics={"loss": losses.mean()} | means), losses


def measure(done: Update, session: Session) -> dict[str, float]:
    """Returns an update's metrics as numbers, over all processes: here the host waits for the device."""
    values = torch.stack([value.float() for value in done.metrics.values()])
    means = session.accelerator.reduce(values, "mean").tolist()
    used = memory.used(session.device) | session.journal.costs()
    most = session.accelerator.gather(torch.tensor([list(used.values())], device=session.device)).amax(0).tolist()
    return (
        dict(zip(done.metrics, means, strict=True))
        | {"gradient_norm": float(done.gradient_norm)}
        | dict(zip(used, most, strict=True))
    )


def open_evaluators(job: Job, state: State, session: Session) -> Evaluators:
    """Returns what measures the model while it trains."""
    run, plan, test = job.run, job.plan, job.validation
    if run.evaluations and run.data.test and test is None:
        test = open_source(run, "test")
    session.agree_on("data.test", None if test is None else test.identity)
    setting = Setting(
        data=run.data, train=job.source, test=test, processes=session.accelerator, batch=plan.micro_batch,
        workers=run.machine.workers_among(session.processes), folder=session.folder,
        tables=Tables(session.folder / "features"), precision=run.precision,
        training=Training(plan.steps, plan.warmup, plan.steps_per_epoch, run.batch),
        paints=state.module.objective.paints, beat=lambda: session.beat("evaluates", state.step),
    )  # fmt: skip
    if run.evaluations and test is not None:
        setting.groups(test)  # a pattern that does not fit is told of before the first step
    return scheduled(run.evaluations, setting, state.average)


def announcement(job: Job, state: State, session: Session, balance: str | None) -> str:
    """Returns what is about to happen, in a few lines."""
    plan, order = job.plan, job.order
    lines = [
        f"{job.run.name} on {order.size:,} images: {plan.steps:,} steps of {job.run.batch} "
        f"(processes x images x accumulation: {plan.processes} x {plan.micro_batch} x {plan.accumulation}), "
        f"peak lr {plan.peak_lr:.3g}, {job.run.precision}, on {session.device}"
    ]
    if isinstance(order, Mixed):
        shares = zip(order.shares, order.sizes, strict=True)
        lines += [f"shares of the sources: {', '.join(f'{share:.2%} of {size:,} images' for share, size in shares)}"]
    if job.source.classes:
        lines += [f"classes of data.train: {listed(job.source.classes)}"]
    if job.source.tags:
        lines += [f"tags of data.train: {listed(job.source.tags)}"]
    if getattr(job.run.objective, "learns_tags", False) and (odd := one_sided(job.source)):
        lines += [f"warning: {odd}: this cannot be learned; {BLANKS}"]
    if job.source.left_out:
        lines += [f"{job.source.left_out}; rename those that are images"]
    if order.dropped:
        lines += [f"each epoch leaves out {order.dropped} images, others each time (data.tail: continuous keeps them)"]
    if balance:
        lines += [balance]
    lines += remarks(job.run, plan, share_of_cores(session.processes))
    if job.run.precision == "bf16" and is_bf16_slow(session.device):
        lines += ["warning: precision: bf16 is slower than fp32 here, where it is only emulated; take precision=fp32"]
    if state.step >= plan.steps:
        lines += [f"{session.folder}: complete already, at step {state.step}"]
    else:
        lines += [f"{session.folder}: from {f'step {state.step}' if state.step else 'the start'}"]
    return "\n".join(lines)
