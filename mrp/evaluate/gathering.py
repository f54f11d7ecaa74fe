"""Reading a model's rows in the midst of training: all processes compute them, and the model stays as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mrp import progress
from mrp.batch import Batch
from mrp.processes.join import Accelerator

Columns = tuple[Tensor, ...]  # one row per image each
_AT_ONCE = 1 << 28  # bytes that each process receives from all, where rows are not larger: patch tokens are many


def gathered(
    batches: Iterable[Batch], count: int, processes: Accelerator, pause: Callable[[], None], what: str,
    of_batch: Callable[[Batch], Columns], here: bool = True,
) -> Iterator[tuple[int, Columns]]:  # fmt: skip
    """Yields the place of the first row of each process's part of each batch, and the columns of the part, on the CPU.

    Filler rows are left out. All processes compute and gather, and those that are not `here` get nothing.
    """
    world, done = processes.num_processes, 0
    share = -(-count // world)
    for batch in progress.over(batches, what):
        pause()
        batch = batch.to(processes.device, non_blocking=True)
        valid = torch.ones_like(batch.keys, dtype=torch.bool) if batch.valid is None else batch.valid
        columns = (*of_batch(batch), valid)
        row = sum(column[:1].nbytes for column in columns)
        for some in zip(*(column.split(max(1, _AT_ONCE // (row * world))) for column in columns), strict=True):
            everywhere = processes.gather(some)
            if here:
                ranks = zip(*(column.cpu().chunk(world) for column in everywhere), strict=True)
                for rank, (*parts, real) in enumerate(ranks):
                    yield rank * share + done, tuple(part[real] for part in parts)
            done += len(some[-1])


def in_order(parts: Iterable[tuple[int, Columns]]) -> Columns:
    """Returns whole columns in the order of the source, from parts and their places."""
    ordered = [columns for _, columns in sorted(parts, key=lambda part: part[0])]
    return tuple(torch.cat(column) for column in zip(*ordered, strict=True))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model into evaluation mode without gradients; afterwards every submodule is in its former mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():  # not inference_mode: sharded parameters cannot be gathered under it
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Gives a training back what an evaluator may have changed: modes, gradients, and which weights are trained."""
    modes = [(module, module.training) for module in model.modules()]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    gradients = torch.is_grad_enabled()
    try:
        yield
    finally:
        torch.set_grad_enabled(gradients)
        for module, training in modes:
            module.training = training
        for parameter, is_trained in trained:
            parameter.grad = None  # it would be added to that of the next step
            if parameter.requires_grad != is_trained:
                parameter.requires_grad_(is_trained)
