"""Processes wait for each other longer than any of them works alone, and part in the end."""

from __future__ import annotations

import inspect
import os
import socket
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mrp.checkpoint.writer import wait_for_others
from mrp.cli import main
from mrp.config import ConfigError
from mrp.ending import STALLED
from mrp.monitor.watchdog import RANKS
from mrp.processes import join
from mrp.run import Machine
from mrp.session import Session
from tests.forked import Started


def timeout_of(monkeypatch: pytest.MonkeyPatch, joining: Any) -> timedelta:
    """Returns the time that a process would wait for the others."""
    seen: list[Any] = []

    def accelerator(kwargs_handlers: list[Any], **options: Any) -> SimpleNamespace:
        seen.extend(kwargs_handlers)
        return SimpleNamespace(num_processes=1)

    monkeypatch.setattr(join, "Accelerator", accelerator)
    joining()
    (handler,) = (handler for handler in seen if isinstance(handler, join.InitProcessGroupKwargs))
    timeout: timedelta = handler.timeout
    return timeout


def test_the_others_are_waited_for_longer_than_the_longest_work_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    training, evaluation = (timeout_of(monkeypatch, way) for way in (join.join, join.join_for_evaluation))
    earlier_checkpoint = inspect.signature(wait_for_others).parameters["limit"].default
    assert training.total_seconds() >= 2 * earlier_checkpoint
    assert evaluation >= timedelta(days=1), "heads are trained by one process"


def test_connections_are_ended_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[bool] = []
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: ended.append(True))
    join.leave()
    assert not ended
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    join.leave()
    assert ended == [True]


@pytest.mark.parametrize("several", [False, True])
def test_a_command_that_ends_well_parts_from_the_others(monkeypatch: pytest.MonkeyPatch, several: bool) -> None:
    parted: list[bool] = []
    monkeypatch.setattr(join, "leave", lambda: parted.append(True))
    if several:
        monkeypatch.setenv("RANK", "0")
    main(["recipes"])
    assert parted == [True] * several


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("warns", [True, False])
def test_a_run_leaves_torch_as_deterministic_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deterministic: bool, warns: bool
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(warns, warn_only=warns)
    try:
        with Session.open(tmp_path, Machine(deterministic=deterministic), "fp32"):
            assert torch.are_deterministic_algorithms_enabled() == (deterministic or warns)
            assert torch.is_deterministic_algorithms_warn_only_enabled() == (warns and not deterministic)
        assert torch.are_deterministic_algorithms_enabled() == warns
        assert torch.is_deterministic_algorithms_warn_only_enabled() == warns
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.fixture
def one_device(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine on which a process sees one device; nothing is joined."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(join, "Accelerator", lambda **_: SimpleNamespace(num_processes=2))
    monkeypatch.setenv("WORLD_SIZE", "2")
    return monkeypatch


def test_processes_that_do_not_know_their_device_do_not_train_on_the_processor(one_device: pytest.MonkeyPatch) -> None:
    one_device.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(ConfigError, match=r"^LOCAL_RANK: is not set.*LOCAL_RANK=\$SLURM_LOCALID"):
        join.join()


@pytest.mark.parametrize("task", ["1", "0", None], ids=["bound", "a launcher inside of one task", "no task"])
def test_tasks_that_slurm_has_bound_to_a_device_each_take_it(one_device: pytest.MonkeyPatch, task: str | None) -> None:
    one_device.setenv("LOCAL_RANK", "1")
    one_device.setenv("CUDA_VISIBLE_DEVICES", "0")
    one_device.delenv("SLURM_LOCALID", raising=False)
    if task is not None:
        one_device.setenv("SLURM_LOCALID", task)
    if task == "1":
        join.join()
        assert os.environ["LOCAL_RANK"] == "0", "the number of the one device that the process sees"
        return
    with pytest.raises(ConfigError, match="process 2 finds no device of its own: this machine has 1"):
        join.join()


def test_a_process_whose_others_never_come_says_so_and_is_given_up(tmp_path: Path) -> None:
    """As where one of them has ended while it read its recipe, or its machine does not reach the first one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    env = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    words = ["pretrain", "demo", "machine.watchdog=0.2", "machine.give_up=1.5", "--folder", str(tmp_path / "run")]
    done = Started(main, words, env=env | {"MASTER_PORT": place.partition(":")[2]}).end()
    assert done.returncode == STALLED
    assert f"s for the others of 2 to join at {place}; see whether all of them have started" in done.stdout
    assert "process 0 joins the others (step 0) since" in done.stderr
    assert "most recent call first" in done.stderr, "where it waits"


@pytest.mark.parametrize("rank", ["3", ""])
def test_a_process_that_is_alone_is_the_first_whatever_RANK_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    """Another start looks at the heartbeat of the first one alone."""
    monkeypatch.setenv("RANK", rank)
    with Session.open(tmp_path, Machine(), "fp32") as session:
        session._watchdog.claim()
    assert [path.name for path in (tmp_path / RANKS).iterdir()] == ["rank-0.json"]


def test_tasks_of_srun_that_do_not_know_of_each_other_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    for task in "01":
        monkeypatch.setenv("SLURM_PROCID", task)
        join.join()
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1
    assert said[0].startswith("warning: srun has started 8 tasks, each of which is alone")


def test_a_device_that_is_no_gpu_of_cuda_is_left_alone_and_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A Mac has such a device, which has no float64."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("mps"))
    monkeypatch.setattr(join, "Accelerator", lambda cpu, **_: SimpleNamespace(num_processes=1, cpu=cpu))
    join._tell_of_unused_device.cache_clear()
    for _ in range(2):
        assert join.join().cpu
    join._tell_of_unused_device.cache_clear()
    assert capsys.readouterr().err.count("computes on the CPU: mrp uses GPUs of CUDA and ROCm, not this") == 1


def test_float32_is_float32_on_a_gpu_whatever_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch's default convolutions are TF32, with 10 bits of the fraction; in NVIDIA's images products are, too."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    torch.backends.cuda.matmul.allow_tf32 = True  # which has no attribute that could be patched
    try:
        join.join()
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
