"""Rows of several processes come in the order of the source, and not too many of them at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mrp.batch import Batch
from mrp.evaluate import gathering
from mrp.evaluate.contract import never
from mrp.evaluate.gathering import Columns, gathered, in_order
from tests.evaluators.settings import together

WIDTH = 3


def rows(batch: Batch) -> Columns:
    return batch.images, batch.keys


def batches(rank: int, world: int, count: int, size: int) -> list[Batch]:
    share = -(-count // world)
    made = []
    for first in range(0, share, size):
        numbers = rank * share + first + torch.arange(size)
        valid = (torch.arange(first, first + size) < share) & (numbers < count)
        images = numbers[:, None].float().expand(-1, WIDTH)
        made.append(Batch(torch.where(valid[:, None], images, -1.0), numbers, None, valid))
    return made


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [2, 17])
@pytest.mark.parametrize("most", [1, 100, 1 << 28])
def test_any_number_of_processes(world: int, count: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "_AT_ONCE", most)

    def measure(processes: Any) -> Columns:
        gather = processes.gather

        def watched(tensors: Columns) -> Columns:
            received = world * sum(tensor.nbytes for tensor in tensors)
            assert received <= most or len(tensors[0]) == 1
            found: Columns = gather(tensors)
            return found

        processes.gather = watched
        ours = batches(processes.process_index, world, count, 4)
        here = processes.is_main_process
        parts = [*gathered(ours, count, processes, never, "rows", rows, here)]
        return in_order(parts) if here else ()

    images, keys = together(world, measure)
    assert keys.tolist() == list(range(count))
    assert torch.equal(images, torch.arange(count)[:, None].float().expand(-1, WIDTH))
