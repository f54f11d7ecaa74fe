"""Memory is counted with that of the workers, and too little of it is explained."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mrp.config import ConfigError
from mrp.processes import memory
from mrp.processes.cost import Cost

GIB = 2**30
CHILD = "import time; held = bytearray(64 << 20); print(flush=True); time.sleep(60)"


def test_the_memory_of_a_child_counts() -> None:
    import os

    before = memory.resident(os.getpid())
    with subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        grown = memory.resident(os.getpid()) - before
        child.kill()
    assert 60 << 20 < grown < 200 << 20
    assert memory.resident(child.pid) == 0  # it is gone
    assert memory.used(torch.device("cpu")).keys() == {"memory/host_gib"}


def test_memory_that_the_system_does_not_tell_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "PROC", tmp_path)  # as on macOS, which has no /proc
    assert memory.used(torch.device("cpu")) == {}


def cost(activations: int) -> Cost:
    return Cost(parameters=0, trainable=0, forward_flops=1, training_flops=3, activation_bytes=activations)


def test_what_would_fit_follows_from_what_was_used() -> None:
    model = cost(GIB)  # 1.2 GiB an image, as it is estimated
    assert model.micro_batch(64, 40 * GIB) == 16
    assert model.smaller(16, 10 * GIB, 64, 40 * GIB) == 8  # the estimate was not exceeded: the next smaller one
    assert model.smaller(16, 40 * GIB, 64, 40 * GIB) == 8  # twice the estimate, at the least
    assert model.smaller(16, 80 * GIB, 64, 40 * GIB) == 4
    assert model.smaller(16, 9000 * GIB, 64, 40 * GIB) == 1  # nothing fits by the estimate: the least
    assert model.smaller(1, 80 * GIB, 64, 40 * GIB) == 1
    assert model.smaller(12, 80 * GIB, 24, 40 * GIB, inseparable=2) in {2, 4}


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_a_lack_of_memory_becomes_one_line(error: Exception) -> None:
    with pytest.raises(ConfigError) as caught, memory.explained(64, lambda used: 16, torch.device("cpu")):
        raise error
    assert "machine.micro_batch: 64 images at once need more memory than cpu has" in str(caught.value)
    assert "about 16 would fit: machine.micro_batch=16" in str(caught.value)
    with (
        pytest.raises(ConfigError, match="not even one image"),
        memory.explained(1, lambda used: 1, torch.device("cpu")),
    ):
        raise error


def test_where_samples_act_on_each_other_a_smaller_micro_batch_is_no_answer() -> None:
    with pytest.raises(ConfigError) as caught, memory.explained(64, lambda used: 16, torch.device("cpu"), coupled=128):
        raise MemoryError
    assert "about 16 would fit: take more processes, or coupled_batch=32 in a new run" in str(caught.value)


def test_a_micro_batch_is_no_larger_than_saves_time() -> None:
    mae = Cost(
        111_806_976, 111_000_000, forward_flops=19 * 10**9, training_flops=58_819_592_192, activation_bytes=46 << 20
    )
    assert mae.micro_batch(4096, 141 * GIB) == 512, "not the 2,048 that would fit"
    assert mae.micro_batch(96, 141 * GIB) == 96
    small = cost(1)
    assert small.micro_batch(4096, GIB) == 4096, "little work: as large as fits"
    assert mae.micro_batch(4096, 141 * GIB, inseparable=1024) == 1024, "what cannot be separated is taken at once"


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match=r"^shapes$"), memory.explained(1, lambda used: 1, torch.device("cpu")):
        raise RuntimeError("shapes")
