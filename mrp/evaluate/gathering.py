"""Rows that all processes compute together, each of its contiguous share of a source, and that are put in its order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

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
