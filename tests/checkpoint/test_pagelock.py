"""Memory is locked once for all checkpoints, unlocked before it goes, and used unlocked where CUDA refuses."""

from __future__ import annotations

import mmap
from types import SimpleNamespace

import pytest
import torch

from mrp.checkpoint.pagelock import PageLock


class Cuda:
    """CUDA's runtime as far as it is asked; `refuses` is what registering answers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, refuses: int = 0) -> None:
        self.log: list[str] = []
        self.locked: dict[int, int] = {}
        self.refuses = refuses
        runtime = SimpleNamespace(cudaHostRegister=self.register, cudaHostUnregister=self.unregister)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: self.log.append("waits"))
        monkeypatch.setattr(torch, "zeros", lambda *shape, device: self.log.append("clears the error"))

    def register(self, address: int, size: int, flags: int) -> int:
        if not self.refuses:
            self.locked[address] = size
        self.log.append("locks")
        return self.refuses

    def unregister(self, address: int) -> int:
        del self.locked[address]
        self.log.append("unlocks")
        return 0


def test_memory_is_locked_once_and_unlocked_before_other_memory_takes_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda, lock = Cuda(monkeypatch), PageLock()
    small, large = mmap.mmap(-1, 4096), mmap.mmap(-1, 8192)
    for mapping in (small, small, large, large):
        memory = lock.lock(mapping)
        assert lock.held
        assert cuda.locked == {memory.data_ptr(): len(mapping)}
    lock.wait()
    lock.release()
    assert cuda.log == ["locks", "unlocks", "locks", "waits", "unlocks"]
    assert not cuda.locked


def test_memory_that_cannot_be_locked_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, lock = Cuda(monkeypatch, refuses=2), PageLock()
    memory = lock.lock(mmap.mmap(-1, 4096))
    assert not lock.held
    memory[:5] = 7
    lock.wait()
    lock.release()
    assert cuda.log == ["locks", "clears the error"]


def test_without_a_gpu_nothing_is_locked() -> None:
    mapping, lock = mmap.mmap(-1, 4096), PageLock()
    lock.lock(mapping)[:3] = 9
    assert mapping[:4] == b"\x09\x09\x09\x00"
    assert lock.held is torch.cuda.is_available()
    lock.release()
