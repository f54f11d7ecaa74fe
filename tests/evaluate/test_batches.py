"""Minibatches: each row once per epoch, each class in each window, and the same heads however they are read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from mrp.evaluate import batches, heads, sweep
from mrp.evaluate.split import split
from mrp.evaluate.table import Table
from tests.waiting import LONG

CPU = torch.device("cpu")


def sorted_table(folder: Path, count: int = 2000, classes: int = 5) -> Table:
    """Rows of one class lie together, in a file."""
    random = np.random.default_rng(0)
    labels = np.arange(count) * classes // count
    rows = (random.normal(size=(count, 8)) + 1.5 * np.eye(8)[labels]).astype(np.float16)
    rows.tofile(folder / "1.mean.f16")
    columns = {"1.mean": np.memmap(folder / "1.mean.f16", np.float16, "r", shape=rows.shape)}
    return Table(columns, torch.from_numpy(labels), torch.arange(count))


def test_minibatches_hold_each_row_once_per_epoch() -> None:
    rows = np.arange(100, 200)
    found = list(batches.minibatches(rows, 25, 4, 2, seed=0))
    first, second = np.concatenate(found[:4]), np.concatenate(found[4:])
    assert sorted(first.tolist()) == sorted(second.tolist()) == rows.tolist()
    assert found[0].tolist() != found[4].tolist()


@pytest.mark.parametrize(("count", "parts", "run"), [(1000, 4, 8), (1003, 3, 7), (129, 7, 64), (64, 2, 1)])
def test_windows_hold_each_row_at_most_once_per_epoch(count: int, parts: int, run: int) -> None:
    rows, batch = np.arange(0, 2 * count, 2), 16
    found = list(batches.windows(rows, batch, 2, 0, parts, run))
    each = [part.reshape(-1, batch) for part in found]
    assert all(part.shape[1:] == (batch,) for part in found)
    whole = np.concatenate(each)
    assert len(whole) == 2 * (count // batch)
    first, second = whole[: count // batch].ravel(), whole[count // batch :].ravel()
    for epoch in (first, second):
        assert len(set(epoch.tolist())) == len(epoch)
        assert set(epoch.tolist()) <= set(rows.tolist())
    assert first.tolist() != second.tolist()


def test_a_window_has_its_share_of_each_class_and_neighbours_from_the_disk() -> None:
    labels = np.arange(8000) // 800  # ten classes, one after another
    for part in batches.windows(np.arange(8000), 50, 1, 0, 4, 20):
        counts = np.bincount(labels[part.ravel()], minlength=10)
        assert counts.min() >= 140
        assert counts.max() <= 260
        neighbours = np.diff(np.sort(part.ravel())) == 1
        assert neighbours.mean() > 0.9
        spread = [np.bincount(labels[one], minlength=10).max() for one in part]
        assert np.mean(spread) < 14  # of 50: as in a shuffle of everything


def test_blocks_and_labels_belong_together_however_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = sorted_table(tmp_path)
    rows = np.arange(0, 2000, 3)
    for window in (2**31, 2000):
        monkeypatch.setattr(batches, "WINDOW", window)
        monkeypatch.setattr(batches, "_RUN", 64)
        found = list(batches.read(table, ["1.mean"], rows, 32, len(rows) // 32, 2, 0, CPU))
        assert len(found) == 2 * (len(rows) // 32)
        pairs = zip(table.columns["1.mean"].tolist(), table.labels.tolist(), strict=True)
        row = {tuple(one): label for one, label in pairs}
        for blocks, labels in found:
            assert [row[tuple(one)] for one in blocks["1.mean"].tolist()] == labels.tolist()


def test_heads_are_as_good_from_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = sorted_table(tmp_path)
    parts = split(table.labels, table.keys)
    losses = []
    for window in (2**31, 4000):
        monkeypatch.setattr(batches, "WINDOW", window)
        monkeypatch.setattr(batches, "_RUN", 128)
        choice = sweep.choose(table, parts, sweep.inputs([1], ["mean"]), CPU, schedule=heads.Schedule((32, 32), 5, 100))
        losses.append(choice.best.loss)
    assert losses[0] != losses[1]  # another order
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_a_thread_makes_items_ahead_and_its_errors_arrive() -> None:
    made, asked = list[int](), threading.Event()

    def numbers() -> Iterator[int]:
        for number in range(4):
            made.append(number)
            if number == 2:
                asked.set()
            if number == 3:
                raise ValueError("no more")
            yield number

    items = batches.ahead(numbers(), 2)
    assert next(items) == 0
    assert asked.wait(LONG)  # the third was made before the second was asked for
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(ValueError, match="no more"):
        next(items)
    assert list(batches.ahead(iter(()), 2)) == []


def test_what_is_left_early_ends_its_thread() -> None:
    before = set(threading.enumerate())
    items = batches.ahead(iter(range(100)), 2)
    assert next(items) == 0
    items.close()  # type: ignore[attr-defined]
    assert set(threading.enumerate()) <= before
