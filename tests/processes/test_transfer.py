"""Batches travel to the device on a stream of their own, in order and each once, and are used once they are there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from mrp.batch import Batch
from mrp.processes.transfer import Transfer


class FakeDevice:
    """Two streams that only write down what they are asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.current = "computing"
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream("copying", self))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: FakeStream(self.current, self))
        monkeypatch.setattr(torch.cuda, "stream", self.entered)
        monkeypatch.setattr(Batch, "to", lambda *words, **options: self.copy(*words, **options))
        monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: self.log.append(f"kept for {stream.name}"))

    @contextmanager
    def entered(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream.name
        yield
        self.current = before

    def copy(self, batch: Batch, device: torch.device, non_blocking: bool = False) -> Batch:
        self.log.append(f"{'starts' if non_blocking else 'waits for'} copy {int(batch.keys[0])} on {self.current}")
        return batch


class FakeStream:
    def __init__(self, name: str, device: FakeDevice) -> None:
        self.name, self._device = name, device

    def wait_stream(self, other: FakeStream) -> None:
        self._device.log.append(f"{self.name} waits for {other.name}")


def batches(count: int) -> list[Batch]:
    return [Batch(torch.full((2, 1, 1, 1), number), torch.tensor([number] * 2)) for number in range(count)]


def test_a_copy_runs_beside_the_computation_which_waits_for_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeDevice(monkeypatch)
    transfer = Transfer(torch.device("cuda"))
    arrived = [int(transfer(batch).keys[0]) for batch in batches(3)]
    assert arrived == [0, 1, 2], "each batch once, in its order"
    kept = ["kept for computing"] * 3  # images, keys and step
    assert fake.log == [
        line
        for number in range(3)
        for line in (f"starts copy {number} on copying", "computing waits for copying", *kept)
    ]


def test_without_a_device_of_its_own_a_batch_stays_what_it_is() -> None:
    transfer = Transfer(torch.device("cpu"))
    for batch in batches(3):
        same = transfer(batch)
        assert same.images is batch.images
        assert same.keys is batch.keys
