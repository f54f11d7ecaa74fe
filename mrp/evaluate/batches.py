"""Minibatches of a feature table: which rows stand in each, and how they are read while the heads take a step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mrp.data.order import fold, permute
from mrp.evaluate.table import Table

WINDOW = 2**31  # bytes that are read at once where the rows are more; at most two windows are in memory
_RUN = 2**17  # bytes of one file that are read one after another within a window
_SPREAD = 0x73707264  # the purpose of a hash, which sets it apart from others

Rows = NDArray[np.int64]
T = TypeVar("T")


def minibatches(rows: Rows, batch: int, per_epoch: int, epochs: int, seed: int) -> Iterator[Rows]:
    """Yields the rows of each batch, sorted for the disk: in every epoch another order, without an incomplete batch."""
    for epoch in range(epochs):
        order = permute(np.arange(per_epoch * batch), len(rows), seed, epoch)
        for part in np.split(order, per_epoch):
            yield rows[np.sort(part)]


def windows(rows: Rows, batch: int, epochs: int, seed: int, count: int, run: int) -> Iterator[Rows]:
    """Yields an epoch's rows in so many parts of whole batches (batches, rows), each of which is read at once.

    A part holds one run of neighbours out of every `count` runs, so that it has its share of each class although
    classes lie together, and is shuffled as a whole. Rows that do not fill a batch go over into the next part.
    """
    whole = -(-len(rows) // run)
    for epoch in range(epochs):
        words = fold(_SPREAD, seed, epoch, np.arange(-(-whole // count) * count)).reshape(-1, count)
        runs = np.argsort(words, axis=1) + np.arange(0, words.size, count)[:, None]
        left = np.empty(0, np.int64)
        for number, chosen in enumerate(runs.T):
            positions = (chosen[:, None] * run + np.arange(run)).ravel()
            positions = np.concatenate([left, positions[positions < len(rows)]])
            positions = positions[permute(np.arange(len(positions)), len(positions), seed, epoch, number)]
            full = len(positions) // batch * batch
            left = positions[full:]
            if full:
                yield rows[positions[:full].reshape(-1, batch)]


def read(
    table: Table, names: Sequence[str], rows: Rows, batch: int, per_epoch: int, epochs: int, seed: int,
    device: torch.device,
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:  # fmt: skip
    """Yields blocks and labels of each batch on the device, which threads read ahead.

    Rows that would fill more than a window are read from the disk nearly in its order.
    """
    wide = [table.columns[name].shape[1] * table.columns[name].dtype.itemsize for name in names]
    count = -(-len(rows) * sum(wide) // WINDOW)
    if count > 1:
        parts = windows(rows, batch, epochs, seed, count, max(1, _RUN // max(wide)))
    else:
        parts = (chosen[None] for chosen in minibatches(rows, batch, per_epoch, epochs, seed))
    held = (_hold(table, names, part) for part in parts)
    return ahead(_cut(ahead(held, 1) if count > 1 else held, table, device), 2)


def chunks(
    table: Table, names: Sequence[str], rows: Rows, size: int, device: torch.device
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Yields blocks and labels of all rows in their order, the last chunk smaller than the others."""
    parts = (rows[start : start + size][None] for start in range(0, len(rows), size))
    return ahead(_cut((_hold(table, names, part) for part in parts), table, device), 2)


def ahead(items: Iterable[T], count: int) -> Iterator[T]:
    """Yields items that a thread makes, so many of them before they are asked for."""
    items, end = iter(items), object()
    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(next, items, end) for _ in range(count))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(thread.submit(next, items, end))
            yield item  # type: ignore[misc]


def _hold(table: Table, names: Sequence[str], part: Rows) -> tuple[Rows, Rows, dict[str, Tensor]]:
    """Returns the rows of a part (batches, rows), and their blocks read in the order of the disk."""
    rows = np.sort(part, axis=None)
    return part, rows, {name: torch.from_numpy(np.array(table.columns[name][rows])) for name in names}


def _cut(
    held: Iterable[tuple[Rows, Rows, Mapping[str, Tensor]]], table: Table, device: torch.device
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    for part, rows, blocks in held:
        for chosen in part:
            chosen = np.sort(chosen)
            places = torch.from_numpy(np.searchsorted(rows, chosen))
            taken = blocks if len(part) == 1 else {name: block[places] for name, block in blocks.items()}
            labels = table.labels[torch.from_numpy(chosen)]
            yield {name: _moved(block, device) for name, block in taken.items()}, _moved(labels, device)


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
