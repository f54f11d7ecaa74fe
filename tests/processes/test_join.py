"""Processes wait for each other longer than any of them works alone, and part in the end."""

from __future__ import annotations

import inspect
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mrp.checkpoint.writer import wait_for_others
from mrp.cli import main
from mrp.processes import join
from mrp.run import Machine
from mrp.session import Session


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
