"""The one training loop."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list, gather_object
from torch import Tensor

from mrp.batch import Batch, Output
from mrp.config import ConfigError, Stopped
from mrp.data.augment import View
from mrp.data.loader import Loader
from mrp.data.mixed import Mixed
from mrp.data.order import Order, fold
from mrp.data.quarantine import Quarantine
from mrp.data.sources import Source
from mrp.evaluate.diagnose import Diagnosis
from mrp.evaluate.processes import join
from mrp.run import Plan, Run
from mrp.train import checkpoint, optim
from mrp.train.alarm import Alarm, save_evidence
from mrp.train.cost import device_memory
from mrp.train.folder import claim
from mrp.train.guard import Guard
from mrp.train.progress import Progress
from mrp.train.step import Step
from mrp.train.tracker import METRICS, Tracker, read_lines


def train(run: Run, folder: Path) -> None:
    """Train to the end of the run, from its newest checkpoint if it has one."""
    with contextlib.ExitStack() as closing:
        accelerator = start(run)
        main = accelerator.is_main_process
        source = run.source("train")
        order = run.order(source)
        plan = run.plan(order.steps_per_epoch, accelerator.num_processes, least_memory(accelerator))
        run = run.settled(plan)
        order = run.order(source)  # where samples act on each other, lanes are cut from what meets in a micro-step
        if main:
            closing.enter_context(claim(folder, run.resolved(), run.identity(source.identity)))
        accelerator.wait_for_everyone()

        step = run.build_step().to(accelerator.device)
        optimizer = optim.build(run.optim, step)
        found = checkpoint.newest(folder)
        agree(accelerator, folder, found.step if found else 0, source.identity)
        done = checkpoint.restore(found, step, optimizer) if found else 0
        accelerator.print(announcement(run, plan, order, accelerator.device, folder, done))
        if done >= plan.steps:
            return

        if run.machine.compile == "yes" or (run.machine.compile == "auto" and accelerator.device.type == "cuda"):
            step.compile(dynamic=False)
        model = accelerator.prepare_model(step)
        guard = Guard(optimizer, accelerator.device, lambda flag: accelerator.reduce(flag, "sum"))
        quarantine = Quarantine(run.data.damaged, found.state()["data"].get("quarantine", ()) if found else (), folder)
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

        watch = Watch(run, plan, folder, source, accelerator) if plan.diagnose_every else None

        def save(at: int) -> None:
            quarantine.add(gather_object(quarantine.state()))
            if main:
                quarantine.write(folder)
                state = order.state(at) | {"manifest": source.identity, "quarantine": quarantine.state()}
                checkpoint.save(folder, at, step, optimizer, {"data": state}, run.checkpoint.keep)
            accelerator.wait_for_everyone()

        for number, micro_batches in enumerate(loader.steps(done, plan.steps), start=done):
            seed_step(run.seed, number, accelerator.process_index)
            optim.set_lr(optimizer, run.optim.lr_at(number, plan.steps, plan.warmup, run.batch, plan.drops))
            output = accumulate(accelerator, model, micro_batches)
            norm = clip(step, run.optim.clip)
            moved = guard.check(number, output.loss, norm)
            optimizer.step()
            optimizer.zero_grad()
            step.after_step(number, moved)

            done = number + 1
            last = done == plan.steps
            saving = last or done % plan.checkpoint_every == 0
            examining = watch is not None and (last or done % plan.diagnose_every == 0)
            if (incident := guard.incident(now=saving or examining)) is not None:
                save(incident)
                raise Stopped(explain(incident, folder))
            collapse = None
            if examining or last or done % run.track.every == 0:
                values = measure(accelerator, output, norm)
                values |= {"lr": optimizer.param_groups[0]["lr"], "epoch": done / plan.steps_per_epoch}
                values |= {"images_per_second": progress.rate(done)}
                if watch and examining:
                    examined, collapse = watch.examine(model, done)
                    values |= examined
                progress.show(done, values["loss"])
                if tracker:
                    tracker.log(done, values)
            if saving or collapse:
                save(done)
            if collapse and run.diagnose.action == "stop":
                raise Stopped(collapse)
            if collapse:
                accelerator.print(f"warning: {collapse}")


class Watch:
    """Looks at the features of held-out images from time to time, and says when they have collapsed."""

    def __init__(self, run: Run, plan: Plan, folder: Path, source: Source, accelerator: Accelerator) -> None:
        held_out = run.source("test") if run.data.test else source
        self._diagnosis = Diagnosis(held_out, View(run.data, train=False), run.diagnose.images, accelerator)
        self._alarm = Alarm(run.diagnose, plan.alarm_from)
        self._folder = folder
        self._accelerator = accelerator
        for line in read_lines(folder / METRICS):  # what a run that is resumed has been through
            fault = self._alarm.hear(line["step"], line)
            if fault and run.diagnose.action == "stop":
                raise Stopped(
                    f"{folder}: the features had collapsed at step {line['step']}: {fault}; "
                    "start again with --folder FOLDER, or go on regardless with diagnose.action=warn"
                )

    def examine(self, model: torch.nn.Module, step: int) -> tuple[dict[str, float], str | None]:
        """The numbers for the metrics, and what is wrong with them; the first process decides for all."""
        values, features = self._diagnosis.measure(model)
        fault = [self._alarm.hear(step, values)]
        broadcast_object_list(fault)
        if fault[0] is None:
            return values, None
        place = self._folder / "alarms" / f"step-{step:08d}"
        if self._accelerator.is_main_process:
            save_evidence(place, values, features)
        return values, f"{self._folder}: the features have collapsed at step {step}: {fault[0]}; evidence in {place}"


def start(run: Run) -> Accelerator:
    """Join the other processes; accelerate places and wraps, and decides nothing that the recipe decides."""
    chosen = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if chosen not in {"no", run.precision}:
        raise ConfigError(
            f"precision: the recipe says {run.precision}, but accelerate was configured with mixed_precision={chosen}; "
            f"set 'mixed_precision: no' there, or give precision={'bf16' if chosen == 'bf16' else 'fp32'}"
        )
    for variable, ours in (
        ("GRADIENT_ACCUMULATION_STEPS", "machine.micro_batch"),
        ("DYNAMO_BACKEND", "machine.compile"),
    ):
        if os.environ.get(f"ACCELERATE_{variable}", "no").lower() not in {"no", "1"}:
            raise ConfigError(f"ACCELERATE_{variable} is set, which {ours} decides; unset it")
    for name, value in os.environ.items():
        if name.startswith("ACCELERATE_USE_") and name != "ACCELERATE_USE_CPU" and value.lower() in {"1", "true"}:
            raise ConfigError(f"{name} is set, but mrp wraps the model itself; configure accelerate without it")
    if run.machine.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    wrapping = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    return join(wrapping)


def least_memory(accelerator: Accelerator) -> int:
    """What the poorest process may use: all of them take the same micro-batch."""
    own = device_memory(accelerator.device, int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes)))
    return int(accelerator.gather(torch.tensor([own], device=accelerator.device)).min())


def agree(accelerator: Accelerator, folder: Path, step: int, data: str) -> None:
    """Refuse to start where the processes see different checkpoints or data, as they do on disks of their own."""
    own = torch.tensor([[step, int(data[:15], 16)]], device=accelerator.device)
    steps, contents = accelerator.gather(own).T.tolist()
    if len(set(steps)) > 1:
        raise ConfigError(
            f"{folder}: the processes see different checkpoints (steps {', '.join(map(str, sorted(set(steps))))}); "
            "the run's folder must lie on a disk that all machines share, under the same name"
        )
    if len(set(contents)) > 1:
        raise ConfigError(f"{folder}: the processes see different data; copy one and the same set to every machine")


def announcement(run: Run, plan: Plan, order: Order | Mixed, device: torch.device, folder: Path, done: int) -> str:
    """What is about to happen, in a few lines."""
    lines = [
        f"{run.name} on {order.size:,} images: {plan.steps:,} steps of {run.batch} "
        f"(processes x images x accumulation: {plan.processes} x {plan.micro_batch} x {plan.accumulation}), "
        f"peak lr {plan.peak_lr:.3g}, {run.precision}, on {device}"
    ]
    if isinstance(order, Mixed):
        shares = zip(order.shares, order.sizes, strict=True)
        lines += [f"shares of the sources: {', '.join(f'{share:.2%} of {size:,} images' for share, size in shares)}"]
    if order.dropped:
        lines += [f"each epoch leaves out {order.dropped} images, others each time (data.tail: continuous keeps them)"]
    if done >= plan.steps:
        lines += [f"{folder}: complete already, at step {done}"]
    else:
        lines += [f"{folder}: from {f'step {done}' if done else 'the start'}"]
    return "\n".join(lines)


def accumulate(accelerator: Accelerator, model: torch.nn.Module, micro_batches: list[Batch]) -> Output:
    """The gradient of one global batch, synchronised once; the output holds means over the micro-batches."""
    outputs = []
    for index, batch in enumerate(micro_batches, start=1):
        last = index == len(micro_batches)
        with contextlib.nullcontext() if last else accelerator.no_sync(model):
            output: Output = model(batch.to(accelerator.device, non_blocking=True))
            accelerator.backward(output.loss / len(micro_batches))
        outputs.append(output)
    loss = torch.stack([output.loss.detach() for output in outputs]).mean()
    return Output(
        loss=loss,
        metrics={"loss": loss}
        | {name: torch.stack([output.metrics[name] for output in outputs]).mean() for name in outputs[0].metrics},
    )


def clip(step: Step, limit: float | None) -> Tensor:
    """The norm of the whole gradient, cut to the limit where there is one."""
    parameters = [parameter for parameter in step.parameters() if parameter.grad is not None]
    if limit is None:
        return torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    return torch.nn.utils.clip_grad_norm_(parameters, limit)


def measure(accelerator: Accelerator, output: Output, norm: Tensor) -> dict[str, float]:
    """The step's metrics as numbers, over all processes: here the host waits for the device."""
    values = torch.stack([value.float() for value in output.metrics.values()])
    means = accelerator.reduce(values, "mean").tolist()
    return dict(zip(output.metrics, means, strict=True)) | {"gradient_norm": float(norm)}


def seed_step(seed: int, step: int, rank: int) -> None:
    """Dropout draws from torch's generator: seeded by position, so that nothing needs saving."""
    torch.manual_seed(int(fold(seed, step, rank)[0] >> 1))


def explain(incident: int, folder: Path) -> str:
    """What the user learns of a non-finite step."""
    return (
        f"{folder}: the loss or the gradient of step {incident + 1} is not finite; the weights before it are saved as "
        f"checkpoint {incident}; start again with --folder FOLDER and a lower optim.lr, optim.clip or precision=fp32"
    )
