"""Before the first step: the processes meet, agree on what they see, and say what they are about to do."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list

from mrp.checkpoint import checkpoints as checkpoint
from mrp.config import ConfigError
from mrp.data.mixtures import Mixed
from mrp.data.order import Order
from mrp.monitor.tracker import INTERRUPTED, METRICS, read_lines
from mrp.processes.cost import device_memory
from mrp.processes.join import join
from mrp.run import Plan, Run


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


def chosen(accelerator: Accelerator, folder: Path) -> checkpoint.Checkpoint | None:
    """The checkpoint to go on from: the first process reads every file and decides, the others look for the same."""
    decided = [0]
    if accelerator.is_main_process:
        found = checkpoint.latest(folder, accelerator.print)
        decided = [found.step if found else 0]
    broadcast_object_list(decided)
    seen = {one.step: one for one in checkpoint.whole(folder)}
    return seen.get(decided[0], max(seen.values(), default=None))


def agree(accelerator: Accelerator, folder: Path, step: int, data: str, asked: bool = False) -> bool:
    """Refuse to start where the processes see different checkpoints or data, as they do on disks of their own.

    True if any of them was asked to end in the meantime.
    """
    own = torch.tensor([[step, int(data[:15], 16), int(asked)]], device=accelerator.device)
    steps, contents, all_asked = accelerator.gather(own).T.tolist()
    if len(set(steps)) > 1:
        raise ConfigError(
            f"{folder}: the processes see different checkpoints (steps {', '.join(map(str, sorted(set(steps))))}); "
            "the run's folder must lie on a disk that all machines share, under the same name"
        )
    if len(set(contents)) > 1:
        raise ConfigError(f"{folder}: the processes see different data; copy one and the same set to every machine")
    return any(all_asked)


def any_of(accelerator: Accelerator, asked: bool) -> bool:
    """Whether any process was asked to end: all get the same answer, at the price of one small reduction."""
    return bool(accelerator.reduce(torch.tensor(float(asked), device=accelerator.device), "sum"))


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


def unfinished(accelerator: Accelerator, folder: Path, step: int) -> bool:
    """Whether the run was asked to end in the midst of an evaluation at this step: then that comes first."""
    found = [line for line in read_lines(folder / METRICS) if line["step"] == step]
    decided = [bool(found) and INTERRUPTED in found[-1]]
    broadcast_object_list(decided)  # the first process decides for all
    return decided[0]
