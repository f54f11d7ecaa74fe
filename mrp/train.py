"""The one training loop."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from mrp.batch import Batch, Output
from mrp.checkpoint import checkpoints as checkpoint
from mrp.checkpoint.checkpoints import Checkpoints
from mrp.config import Preempted, Stopped
from mrp.data.augment import View
from mrp.data.loader import Loader
from mrp.data.quarantine import Quarantine
from mrp.evaluate.examine import Examination
from mrp.folder import CONFIG, IDENTITY, claim, settled
from mrp.interop import init
from mrp.monitor.guard import Guard
from mrp.monitor.incident import Incidents
from mrp.monitor.progress import Progress
from mrp.monitor.spikes import Spikes
from mrp.monitor.tracker import INTERRUPTED, METRICS, Tracker, read_lines
from mrp.monitor.watchdog import Watchdog
from mrp.optim import average
from mrp.optim import optimizer as optim
from mrp.processes import memory
from mrp.processes.signals import Signals
from mrp.processes.wrapping import clip, synchronised, wrap
from mrp.run import Run
from mrp.start import agree, announcement, chosen, least_memory, start, unfinished
from mrp.state import State
from mrp.step import seed_step


def train(run: Run, folder: Path) -> None:
    """Train to the end of the run, from its newest checkpoint if it has one."""
    with contextlib.ExitStack() as closing:
        accelerator = start(run)
        main, rank = accelerator.is_main_process, accelerator.process_index
        say = functools.partial(print, flush=True) if main else _nothing
        signals = closing.enter_context(Signals(folder if main else None, say))
        limits = run.machine.watchdog, run.machine.give_up
        watchdog = closing.enter_context(Watchdog(folder, rank, accelerator.num_processes, *limits))
        source = run.source("train")
        run.check_classes(source)
        unseen = run.validation_source(source)
        order = run.order(source)
        if run.couples and run.coupled_batch is None:  # as it was on the machine on which the run began
            run = run.model_copy(update={"coupled_batch": settled(folder, "coupled_batch")})
        room = least_memory(accelerator)
        plan = run.plan(order.steps_per_epoch, accelerator.num_processes, room)
        run = run.settled(plan)
        order = run.order(source)  # where samples act on each other, lanes are cut from what meets in a micro-step
        if main:
            at = max((one.step for one in checkpoint.whole(folder)), default=0)
            who = run.identity(source.identity)
            claimed = claim(folder, run.resolved(), who, run.resume.allow, step=at, processes=plan.processes, say=say)
            closing.enter_context(claimed)
        accelerator.wait_for_everyone()

        watchdog.at("builds the model", 0)
        step = run.build_step().to(accelerator.device)
        model = wrap(step, run.machine, accelerator)
        optimizer = optim.build(run.optim, step)
        found = chosen(accelerator, folder)
        asked = agree(accelerator, folder, found.step if found else 0, source.identity, signals.asked is not None)
        done = checkpoint.restore(found, step, optimizer) if found else 0
        if optim.forget_others(optimizer):
            say("the optimizer is of another kind than the checkpoint's, and starts without a memory")
        if run.init and not found:
            say(init.start(run.init, run.name, step))
        kept = found.state() if found else {}
        owed = unfinished(accelerator, folder, done)
        say(announcement(run, plan, order, accelerator.device, folder, done))
        if done >= plan.steps and not owed:
            return

        averaged = average.begin(run.average, step, found)
        guard = Guard(optimizer, accelerator.device, lambda flag: accelerator.reduce(flag, "sum"))
        before = kept.get("data", {})
        same = before.get("manifest") == source.identity  # in other data the numbers mean other samples
        quarantine = Quarantine(run.data.damaged, before.get("quarantine", ()) if same else (), folder)
        incidents = Incidents(run, plan, order, source, folder, kept.get("guard", {}))
        loader = Loader(
            source, order, View(run.data, train=True), group=run.coupled_batch or run.batch,
            micro_batch=plan.micro_batch, rank=accelerator.process_index, world=plan.processes,
            workers=run.machine.workers, pin_memory=accelerator.device.type == "cuda", quarantine=quarantine,
        )  # fmt: skip
        closing.callback(loader.close)
        progress = Progress(plan.steps, done, run.batch, quiet=not main)
        closing.callback(progress.close)
        tracker = Tracker(run.track, folder, run.resolved(), done) if main else None
        if tracker:
            closing.callback(tracker.close)
        spikes = Spikes(read_lines(folder / METRICS))

        examination = Examination(run, plan, folder, source, unseen, averaged, accelerator, signals, watchdog)
        milestone = run.checkpoint.milestone.steps(plan.steps_per_epoch, run.batch) if run.checkpoint.milestone else 0
        about = {name: (folder / name).read_text(encoding="utf-8") for name in (CONFIG, IDENTITY)} if main else {}
        checkpoints = Checkpoints(folder, run.checkpoint, plan.checkpoint_every, milestone, main, found, about)
        closing.callback(checkpoints.close)

        state = State(
            run, folder, accelerator, source, order, step, optimizer, averaged, quarantine, incidents, checkpoints
        )

        def log(at: int, values: dict[str, float]) -> bool:
            """Show and keep the numbers of a step; True if they are the best so far."""
            best = [checkpoints.note(at, values)]
            if run.checkpoint.best:
                broadcast_object_list(best)  # the first process decides for all
            if tracker:
                tracker.log(at, values | spikes.hear(at, values, say))
            return best[0]

        def conclude(at: int, values: dict[str, float] | None, saving: bool = False, ending: bool = False) -> None:
            """End a step: examine what is due, log, save, and leave if the run has to; None where nothing is logged."""
            collapse = None
            if values is not None:
                if examination.due(at):
                    examined, collapse = examination.examine(model, at)
                    values |= examined
                    ending |= INTERRUPTED in examined
                saving |= log(at, values)
            if saving or collapse or ending:
                watchdog.at("saves", at)
                state.save(at, wait=at == plan.steps or ending or collapse is not None)
            if collapse and run.diagnose.action == "stop":
                raise Stopped(collapse)
            if collapse:
                say(f"warning: {collapse}")
            if ending:
                leave(at)

        def fits(used: int) -> int:
            """The images at once for which there would have been memory, where it was lacking."""
            return run.cost().smaller(plan.micro_batch, used, run.batch // plan.processes, room, run.together)

        def leave(at: int) -> NoReturn:
            reason = signals.asked or "another process was asked to end"
            by_person = [signals.by_file]  # who wrote the file wants no scheduler to start the run again
            broadcast_object_list(by_person)
            signals.obeyed()
            raise Preempted(
                f"{folder}: {reason}: stopped at step {at} of {plan.steps}; the same command goes on from there",
                0 if by_person[0] else run.machine.requeue_code,
            )

        closing.enter_context(memory.explained(plan.micro_batch, fits, accelerator.device, plan.coupled_batch))
        if asked:
            leave(done)
        if owed:
            conclude(done, {})
        while done < plan.steps:
            watchdog.at("waits for a batch", done)
            for number, micro_batches in enumerate(loader.steps(done, plan.steps), start=done):
                watchdog.at("computes", number)
                seed_step(run.seed, number, rank)
                optim.set_lr(optimizer, run.optim.lr_at(number, plan.steps, plan.warmup, run.batch, plan.drops))
                output, losses = accumulate(accelerator, model, micro_batches)
                norm = clip(step, run.optim.clip)
                incidents.remember(number, losses, norm)
                moved = guard.check(number, output.loss, norm, signals.asked is not None)
                optimizer.step()
                optimizer.zero_grad()
                step.after_step(number, moved)
                if averaged:
                    averaged.follow(moved)
                checkpoints.check()

                done = number + 1
                last = done == plan.steps
                saving = last or checkpoints.due(done)
                logging = examination.due(done) or last or done % run.track.every == 0
                news = guard.news(now=saving or logging)
                if news.asked:
                    news = guard.news(now=True)
                if news.incident is not None:
                    done = state.overcome(news.incident, guard, say)
                    if examination.due(done):
                        conclude(done, {})
                    break
                values: dict[str, float] | None = None
                if logging:
                    watchdog.at("measures", done)
                    values = measure(accelerator, output, norm)
                    values |= {"lr": optim.get_lr(optimizer), "epoch": done / plan.steps_per_epoch}
                    values |= {"images_per_second": progress.rate(done), **checkpoints.measured()}
                    progress.show(done, values["loss"])
                conclude(done, values, saving, ending=news.asked and not last)
                watchdog.at("waits for a batch", done)
        watchdog.at("ends", done)


def accumulate(accelerator: Accelerator, model: torch.nn.Module, micro_batches: list[Batch]) -> tuple[Output, Tensor]:
    """The gradient of one global batch, synchronised once: means over the micro-batches, and the loss of each."""
    outputs = []
    for index, batch in enumerate(micro_batches, start=1):
        last = index == len(micro_batches)
        with synchronised(model, accelerator, last):
            output: Output = model(batch.to(accelerator.device, non_blocking=True))
            accelerator.backward(output.loss / len(micro_batches))
        outputs.append(output)
    losses = torch.stack([output.loss.detach() for output in outputs])
    means = {name: torch.stack([output.metrics[name] for output in outputs]).mean() for name in outputs[0].metrics}
    return Output(loss=losses.mean(), metrics={"loss": losses.mean()} | means), losses


def measure(accelerator: Accelerator, output: Output, norm: Tensor) -> dict[str, float]:
    """The step's metrics as numbers, over all processes: here the host waits for the device."""
    values = torch.stack([value.float() for value in output.metrics.values()])
    means = accelerator.reduce(values, "mean").tolist()
    used = memory.used(accelerator.device)
    most = accelerator.gather(torch.tensor([list(used.values())], device=accelerator.device)).amax(0).tolist()
    return (
        dict(zip(output.metrics, means, strict=True))
        | {"gradient_norm": float(norm)}
        | dict(zip(used, most, strict=True))
    )


def _nothing(*_: object) -> None:
    """What all processes but the first say."""
