"""The state of a run: everything that a checkpoint holds, and how it is saved, restored, and recovered."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from torch import nn

from mrp.build import build_empty, build_optimizer, build_step
from mrp.checkpoint import checkpoints
from mrp.checkpoint.checkpoints import Checkpoint, Kept
from mrp.checkpoint.config import Config as CheckpointSection
from mrp.checkpoint.saver import Saver
from mrp.config import ConfigError, Stopped
from mrp.data.quarantine import FILE, Quarantine
from mrp.folder import CONFIG, IDENTITY, placed
from mrp.interop import init
from mrp.monitor.guard import Guard
from mrp.monitor.incident import Incidents
from mrp.monitor.metrics import INTERRUPTED, METRICS, from_the_end
from mrp.optim.average import GROUP, Average
from mrp.optim.groups import drop_foreign_state
from mrp.plan import Job
from mrp.processes.join import from_first
from mrp.processes.unused import refuse_unused_parameters
from mrp.processes.wrapping import wrap
from mrp.run import Run
from mrp.schedules import Length
from mrp.session import Session
from mrp.step import Step


@dataclass(slots=True)
class State:
    """The state on one process. Every method is called by all processes together."""

    step: int  # updates made so far
    module: Step  # holds the parameters under their names
    model: nn.Module  # the same, compiled and wrapped for many processes: what is called
    optimizer: torch.optim.Optimizer
    average: Average | None
    guard: Guard
    quarantine: Quarantine
    incidents: Incidents
    saver: Saver
    asked_to_end: bool  # whether some process was asked to end the run while the state was built
    evaluation_pending: bool  # whether the evaluation of this step was interrupted, and is to be repeated
    _job: Job
    _session: Session

    @classmethod
    def build(cls, job: Job, session: Session) -> State:
        """Returns the state of the newest checkpoint, or that of other weights, or a fresh one."""
        run, folder = job.run, session.folder
        session.phase("builds the model", 0)
        checkpoint = session.newest_checkpoint()
        step = checkpoint.step if checkpoint else 0
        session.agree(checkpoint, job.common)
        session.compare_versions()
        module, model, optimizer = _build_model(run, session)
        _load(checkpoint, job, module, optimizer, session)
        module.before_step(max(0, step - 1), job.plan.length)  # for an evaluation that is to be repeated
        kept: Kept = checkpoint.state() if checkpoint else {}
        data = kept.get("data", {})
        same = data.get("manifest") == job.source.identity  # in other data the numbers of samples mean other samples
        texts = (CONFIG, IDENTITY) if session.main else ()
        about = {name: (folder / name).read_text(encoding="utf-8") for name in texts}
        lines = from_the_end(folder / METRICS) if session.main else ()
        last = next((line for _, line in lines if line["step"] <= step), {})
        if step < job.steps and (text := jump(job, step, kept)):
            session.say(text)
        return cls(
            step=step,
            module=module,
            model=model,
            optimizer=optimizer,
            average=_build_average(run, module, checkpoint),
            guard=Guard(optimizer, session.device, lambda flag: session.accelerator.reduce(flag, "sum")),
            quarantine=Quarantine(run.data.damaged, data.get("quarantine", ()) if same else (), folder),
            incidents=Incidents(
                run.guard, folder, placed(run.resolved()), job.plan.division, job.order, job.source,
                kept.get("guard", {}),
            ),
            saver=session.closing(
                Saver(
                    folder, run.checkpoint, job.plan.checkpoint_every, job.plan.milestone_every, session.main,
                    checkpoint, about,
                )
            ),
            asked_to_end=session.any_asked_to_end(),
            evaluation_pending=from_first(last.get("step") == step and INTERRUPTED in last),
            _job=job, _session=session,
        )  # fmt: skip

    def save(self, wait: bool = False) -> None:
        """Saves a checkpoint of this step; `wait` until it is on the disk."""
        self._session.journal.flush()  # first, so that the log never ends before the checkpoint
        self.quarantine.add(gather_object(self.quarantine.state()))
        if self._session.main and self.quarantine.write(self._session.folder):
            self._session.say(
                f"warning: {len(self.quarantine)} samples are no images, and others are shown in their place; "
                f"{self._session.folder / FILE} names them"
            )
        data = {"manifest": self._job.source.identity, "quarantine": self.quarantine.state()}
        groups = {GROUP: self.average.tensors()} if self.average else {}
        state = {
            "data": self._job.order.state(self.step) | data,
            "guard": self.incidents.state(),
            "length": asdict(self._job.plan.length),
            "lr": self._job.learning_rate(max(0, self.step - 1)),  # of the last step
        }
        self.saver.save(self.step, self.module, self.optimizer, state, groups, wait=wait)
        if wait:
            self._session.accelerator.wait_for_everyone()

    def scheduled(self) -> dict[str, float]:
        """Returns what the numbers that change over the run were in the last step, for the metrics."""
        decay = self._job.run.optim.weight_decay_at(self.step - 1, self._job.plan.length)
        numbers = {} if decay is None else {"optim/weight_decay": decay}
        return numbers | {f"objective/{each.option}": each.now for each in self.module.scheduled()}

    def recover(self, number: int) -> None:
        """Records step `number`, which was not finite, and goes on behind it as the policy says, or ends the run.

        No update was applied from that step on, so the weights are still those before it.
        """
        self.step = number
        folder = self.incidents.record(number, self._session.accelerator, self.quarantine)
        evidence = Saver(folder, CheckpointSection(asynchronous=False), every=1, main=self._session.main)
        evidence.save(number, self.module, self.optimizer, {}, wait=True)
        first = self._roll_back() if self.incidents.rolls_back else number
        if first is None or self.incidents.exhausted:
            self.save(wait=True)
            raise Stopped(self.incidents.explain(number, folder))
        self._session.say(self.incidents.leave_out(first, number))
        self.guard.clear()
        self.step = number + 1
        self.save(wait=True)  # or a kill would forget what was left out

    def _roll_back(self) -> int | None:
        """Takes weights and optimizer from the newest checkpoint; returns its step, or None where there is none."""
        self.saver.finish()
        self._session.accelerator.wait_for_everyone()
        checkpoint = self._session.newest_checkpoint()
        self._session.agree(checkpoint, self._job.common)
        if checkpoint is None:
            return None
        _restore(checkpoint, self.module, self.optimizer, self._session)
        if self.average is not None:
            self.average.restore(_averaged(checkpoint))
        return checkpoint.step


def refuse_impossible(job: Job, folder: Path) -> None:
    """Refuses a change with which no checkpoint can go on, before it is written into the folder (`resume.allow`).

    A damaged checkpoint is met again when it is loaded.
    """
    for checkpoint in reversed(checkpoints.listed(folder)) if job.run.resume.allow else ():
        if checkpoint.step > job.steps:
            raise ConfigError(
                f"length: {job.run.length} end at step {job.steps:,}, and {folder} has reached step "
                f"{checkpoint.step:,}; give a longer one"
            )
        with suppress(OSError, SafetensorError):
            checkpoint.refuse_others(build_empty(job.run))
            return


def jump(job: Job, step: int, kept: Kept) -> str | None:
    """Returns how learning rate and epoch jump at a step until which the run had other options, if they do."""
    if not step or "length" not in kept:
        return None
    before, now, jumps = Length(**kept["length"]), job.plan.length, []
    was = kept.get("lr", would_be := job.learning_rate(step - 1))
    if not math.isclose(was, would_be, rel_tol=0.01):
        jumps += [f"the learning rate was {was:.3g} and goes on at {job.learning_rate(step):.3g}"]
    epoch, counts_as = (step / each.steps_per_epoch for each in (before, now))
    if not math.isclose(epoch, counts_as, rel_tol=0.01):
        jumps += [f"epoch {epoch:.4g} of the data counts as epoch {counts_as:.4g}"]
    had = f"the run had {before.steps:,} steps of {before.batch} and has {now.steps:,} of {now.batch}: "
    return f"warning: {had if before != now else ''}at step {step:,} {', and '.join(jumps)}" if jumps else None


def _build_model(run: Run, session: Session) -> tuple[Step, nn.Module, torch.optim.Optimizer]:
    """Returns the module that holds the parameters, the wrapped one that is called, and the optimizer."""
    module = build_step(run).to(session.device)
    refuse_unused_parameters(module, run.data.num_channels, run.data.shape, run.data.views)
    model = wrap(module, session.accelerator, run.machine.compile, run.machine.shard)
    return module, model, build_optimizer(run.optim, module)  # last, since sharding replaces the parameters


def _load(
    checkpoint: Checkpoint | None, job: Job, module: Step, optimizer: torch.optim.Optimizer, session: Session
) -> None:
    """Loads the checkpoint, or the weights that the run starts with, if there are any."""
    if checkpoint is not None:
        _restore(checkpoint, module, optimizer, session)
    elif job.run.init is not None:
        session.say(init.start(job.run.init, job.run.name, module, job.source.tags or job.source.classes))


def _restore(checkpoint: Checkpoint, module: Step, optimizer: torch.optim.Optimizer, session: Session) -> None:
    checkpoints.restore(checkpoint, module, optimizer)
    if drop_foreign_state(optimizer):
        session.say("the optimizer is of another kind than the checkpoint's, and starts without a memory")


def _build_average(run: Run, module: Step, checkpoint: Checkpoint | None) -> Average | None:
    if run.average is None:
        return None
    average = Average(run.average, module)
    if checkpoint is not None:
        average.restore(_averaged(checkpoint))
    return average


def _averaged(checkpoint: Checkpoint) -> dict[str, torch.Tensor] | None:
    return checkpoint.tensors(GROUP) if checkpoint.has(GROUP) else None
