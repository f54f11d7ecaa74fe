"""One step of training on two processes of this machine, to be compared with the same step on one."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from mrp.batch import Batch
from mrp.build import build_step
from mrp.check.outcome import Failed
from mrp.check.tiny import gradients, tiny_batch
from mrp.config import Tree, build
from mrp.data.start import START
from mrp.run import Run

WORLD = 2
_PATIENCE = 5.0  # seconds that the other process has once one has failed
_LONGEST = timedelta(minutes=15)  # that one waits for the other in an exchange, which may never come to it


class Stepped(NamedTuple):
    """What a step comes to: the loss and gradients of the whole batch, and the state after it."""

    loss: Tensor
    gradients: dict[str, Tensor]
    state: dict[str, Tensor]


def one_step(run: Run, batch: Batch, rank: int | None = None) -> Stepped:
    """Takes a batch, or as one of several processes its share of it, through a method."""
    step = build_step(run)
    model = step if rank is None else DistributedDataParallel(step)
    output = model(batch if rank is None else share(batch, rank))
    output.loss.backward()
    step.after_step(0, torch.tensor(True))
    loss = output.loss.detach()
    return Stepped(loss if rank is None else averaged(loss), gradients(step), dict(step.state_dict()))


def share(batch: Batch, rank: int) -> Batch:
    """Returns a process's rows of a batch."""
    rows = slice(rank * len(batch.keys) // WORLD, (rank + 1) * len(batch.keys) // WORLD)
    labels = None if batch.labels is None else batch.labels[rows]
    return Batch(batch.images[rows], batch.keys[rows], labels, step=batch.step)


def averaged(tensor: Tensor) -> Tensor:
    """Returns the mean over the processes, as gradients are averaged."""
    tensor = tensor.clone()
    distributed.all_reduce(tensor)
    return tensor / WORLD


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> bool:
    """Returns whether two tensors agree, relative to their size; some gradients cancel to almost nothing."""
    return bool((ours.float() - theirs.float()).norm() <= tolerance * theirs.float().norm().clamp(min=1e-2))


def agree(one: Stepped, two: Stepped) -> None:
    """Refuses a step that is another on two processes."""
    remedy = "average over all processes what a sample shares with others (methodkit.mean_over_processes)"
    if not close(two.loss, one.loss):
        raise Failed(f"two processes have the loss {two.loss:.6g}, and one has {one.loss:.6g}", remedy)
    for what, ours, theirs in (("the gradient of ", one.gradients, two.gradients), ("", one.state, two.state)):
        odd = [name for name in ours if name not in theirs or not close(theirs[name], ours[name])]
        if odd:
            raise Failed(f"on two processes {what}{odd[0]} is another", remedy)


def steps_in_two(runs: Sequence[Run], folder: Path) -> list[Stepped]:
    """Returns the step of each run on two processes; `folder` is where they meet."""
    values = [run.resolved() for run in runs]  # the sections of a file outside mrp cannot be sent, and its path can
    return [Stepped(*each) for each in in_two(_steps, values, folder)]


def _steps(rank: int, values: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
    runs = [build(Run, Tree(each, {})) for each in values]
    return [tuple(one_step(run, tiny_batch(run), rank)) for run in runs]


def in_two(work: Callable[[int, Any], Any], given: Any, folder: Path) -> Any:
    """Returns what a function returns on the first of two processes that speak to each other."""
    context: Any = multiprocessing.get_context(START)
    context.set_forkserver_preload(["mrp.check.processes"])
    processes = [context.Process(target=_joined, args=(rank, work, given, folder)) for rank in range(WORLD)]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        if any(process.exitcode for process in processes):  # the other one waits for it in vain
            time.sleep(_PATIENCE)
            for process in processes:
                process.terminate()
        time.sleep(0.02)
    for rank in range(WORLD):
        fault = folder / f"fault-{rank}"
        if fault.is_file():
            raise Failed(f"a process of two ended with: {fault.read_text()}", "try it on one process first")
    return torch.load(folder / "found.pt", weights_only=True)


def _joined(rank: int, work: Callable[[int, Any], Any], given: Any, folder: Path) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    if sys.platform == "darwin":  # as in `mrp.processes.launch`
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0")
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=WORLD, timeout=_LONGEST)
    try:
        found = work(rank, given)
    except Exception as error:
        traceback.print_exc()
        (folder / f"fault-{rank}").write_text(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
        raise SystemExit(1) from None
    if rank == 0:
        torch.save(found, folder / "found.pt")
    distributed.barrier()
    distributed.destroy_process_group()
