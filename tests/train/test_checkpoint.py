"""Checkpoints: what is loaded is what was saved, bit for bit, and nothing that goes wrong harms the one before."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from mrp.config import ConfigError
from mrp.train import checkpoint
from mrp.train.checkpoint import Checkpoint, newest, restore, save, whole

FILES = ["model.safetensors", "optimizer.safetensors", "state.json"]


class Model(nn.Module):
    """A trained matrix, a frozen one, a buffer, and a parameter that never gets a gradient."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.trained = nn.Linear(6, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.unused = nn.Parameter(torch.randn(3))
        self.register_buffer("centre", torch.randn(4))

    def loss(self, step: int) -> torch.Tensor:
        torch.manual_seed(step)
        return (self.frozen(self.trained(torch.randn(8, 6))) - self.centre).square().mean()


class Training:
    """A model and its optimizer, which can be trained for some steps."""

    def __init__(self, seed: int = 0) -> None:
        self.model = Model(seed)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=0.1, fused=True)

    def run(self, start: int, stop: int) -> None:
        for step in range(start, stop):
            self.model.loss(step).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def save(self, run: Path, step: int, keep: int = 2) -> None:
        save(run, step, self.model, self.optimizer, {"data": {"consumed": step * 8}}, keep)

    def tensors(self) -> dict[str, torch.Tensor]:
        moments = {
            f"{name}/{key}": value
            for name, parameter in self.model.named_parameters()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }
        return {name: tensor.clone() for name, tensor in (self.model.state_dict() | moments).items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one
    )


def found(run: Path) -> Checkpoint:
    last = newest(run)
    assert last is not None
    return last


def contents(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_training_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    one = Training()
    one.run(0, 5)
    one.save(tmp_path, 5)
    saved = one.tensors()
    one.run(5, 9)

    other = Training(seed=1)
    assert restore(found(tmp_path), other.model, other.optimizer) == 5
    assert same(other.tensors(), saved)
    other.run(5, 9)
    assert same(other.tensors(), one.tensors())
    assert not same(one.tensors(), saved)


def test_what_a_checkpoint_holds(tmp_path: Path) -> None:
    training = Training()
    training.run(0, 2)
    training.save(tmp_path, 2)
    last = found(tmp_path)
    assert last.folder == tmp_path / "checkpoints" / "step-00000002"
    assert sorted(path.name for path in last.folder.iterdir()) == FILES
    assert last.state() == {"step": 2, "data": {"consumed": 16}}
    assert set(last.weights()) == set(training.model.state_dict())
    assert set(last.optimizer()) == {
        f"trained.{part}/{key}" for part in ("weight", "bias") for key in ("exp_avg", "exp_avg_sq", "step")
    }


def test_whoever_may_read_the_folder_may_read_the_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        Training().save(tmp_path, 1)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in found(tmp_path).folder.iterdir()} == {0o640}


def test_a_tensor_that_is_a_view_is_saved_whole(tmp_path: Path) -> None:
    training = Training()
    training.model.trained.weight.data = torch.randn(6, 4).t()
    training.save(tmp_path, 1)
    assert torch.equal(found(tmp_path).weights()["trained.weight"], training.model.trained.weight)


# Which one


@pytest.mark.parametrize(
    ("folders", "step"),
    [
        ([], None),
        (["step-00000007", "step-00000012", "step-00000009"], 12),
        (["step-99999999", "step-100000000"], 100000000),
        (["step-00000003", "step-best", "step-", "step-00000009.bak", "step-²", "step-1e9", "best", "7"], 3),
        (["step-00000003", ".unfinished-step-00000009"], 3),
        ([".unfinished-step-00000009"], None),
    ],
)
def test_the_newest_is_the_last_whole_one(tmp_path: Path, folders: list[str], step: int | None) -> None:
    for name in folders:
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    last = newest(tmp_path)
    assert (last.step if last else None) == step


def test_a_file_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-00000005").touch()
    assert newest(tmp_path) is None


def test_the_oldest_go_and_nothing_that_is_not_ours(tmp_path: Path) -> None:
    training = Training()
    others = ["step-00000001.bak", "step-best", "aaa"]
    for name in others:
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "precious").touch()
    for step in (1, 2, 99_999_999, 100_000_000):
        training.save(tmp_path, step, keep=2)
    assert [one.step for one in whole(tmp_path)] == [99_999_999, 100_000_000]
    assert names(tmp_path) == sorted([*others, "step-99999999", "step-100000000"])
    assert all((tmp_path / "checkpoints" / name / "precious").exists() for name in others)


def test_what_a_kill_left_unfinished_is_cleared(tmp_path: Path) -> None:
    training = Training()
    leftover = tmp_path / "checkpoints" / ".unfinished-step-00000002"
    leftover.mkdir(parents=True)
    (leftover / "model.safetensors").write_bytes(b"half")
    training.save(tmp_path, 3)
    training.save(tmp_path, 4)
    assert names(tmp_path) == ["step-00000003", "step-00000004"]


def test_the_state_a_run_started_from_is_not_written_again(tmp_path: Path) -> None:
    training = Training()
    training.save(tmp_path, 3)
    before = contents(tmp_path)
    training.run(0, 1)
    training.save(tmp_path, 3)
    assert contents(tmp_path) == before


# When the disk fails


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
def test_a_damaged_file_is_one_line_that_names_it(tmp_path: Path, name: str, share: float) -> None:
    training = Training()
    training.run(0, 1)
    training.save(tmp_path, 1)
    path = found(tmp_path).folder / name
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    last = found(tmp_path)
    with pytest.raises(ConfigError) as caught:
        restore(last, training.model, training.optimizer) if name != "state.json" else last.state()
    assert str(caught.value).startswith(f"{path}: cannot be read: ")
    assert str(caught.value).endswith(f"; remove {path.parent} to go on from the checkpoint before it")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_one_line_that_names_it(tmp_path: Path, name: str) -> None:
    training = Training()
    training.save(tmp_path, 1)
    last = found(tmp_path)
    (last.folder / name).unlink()
    with pytest.raises(ConfigError, match=f"{name}: cannot be read: "):
        restore(last, training.model, training.optimizer) if name != "state.json" else last.state()


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file of this process may grow beyond this size: what a full disk does, without filling one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("torn", FILES)
def test_a_file_that_cannot_be_written_leaves_the_checkpoint_before(tmp_path: Path, torn: str) -> None:
    training = Training()
    state = {"long": "x" * 5000}
    training.run(0, 1)
    save(tmp_path, 1, training.model, training.optimizer, state, keep=2)
    before = contents(tmp_path)
    training.run(1, 2)
    size = (found(tmp_path).folder / torn).stat().st_size
    with file_limit(size - 1), pytest.raises(ConfigError) as caught:
        save(tmp_path, 2, training.model, training.optimizer, state, keep=2)
    assert str(caught.value) == (
        f"{tmp_path}: the checkpoint of step 2 is not written: File too large; "
        "that of step 1 is whole; mend it and run the same command again"
    )
    assert contents(tmp_path) == before
    assert names(tmp_path) == ["step-00000001"]
    training.save(tmp_path, 2)
    assert same(found(tmp_path).weights(), dict(training.model.state_dict()))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["system", "safetensors"],
)
def test_no_space_left_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    training = Training()
    training.save(tmp_path, 1)

    def full(tensors: object, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise error

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(
        ConfigError, match="step 2 is not written: No space left on device; that of step 1 is whole; mend"
    ):
        training.save(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001"]


def test_a_full_disk_at_the_first_checkpoint_says_that_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, *arguments: Any, **more: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ConfigError, match="step 1 is not written: Permission denied; there is none before it; mend it"):
        Training().save(tmp_path, 1)


# The order of things


def watch(monkeypatch: pytest.MonkeyPatch, calls: list[str]) -> None:
    """Note what is done to the disk, in order."""

    def note(module: Any, name: str, path_of: Callable[..., Any]) -> None:
        original = getattr(module, name)

        def noted(*arguments: Any, **more: Any) -> Any:
            calls.append(f"{name} {Path(path_of(*arguments)).name}")
            return original(*arguments, **more)

        monkeypatch.setattr(module, name, noted)

    note(checkpoint, "save_file", lambda tensors, path: path)
    note(Path, "write_text", lambda path, text: path)
    note(os, "fsync", lambda descriptor: os.readlink(f"/proc/self/fd/{descriptor}"))
    note(Path, "rename", lambda path, target: target)
    note(shutil, "rmtree", lambda path, **more: path)


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training()
    training.save(tmp_path, 1, keep=1)
    calls: list[str] = []
    watch(monkeypatch, calls)
    training.save(tmp_path, 2, keep=1)
    unfinished, final, old = ".unfinished-step-00000002", "step-00000002", ".unfinished-step-00000001"
    assert calls[:3] == ["save_file model.safetensors", "save_file optimizer.safetensors", "write_text state.json"]
    assert sorted(calls[3:6]) == [f"fsync {name}" for name in FILES]
    assert calls[6:] == [
        f"fsync {unfinished}",
        f"rename {final}",
        "fsync checkpoints",
        f"rename {old}",
        f"rmtree {old}",
    ]


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


class Fatal(list[str]):
    """Takes down what is done, and kills at some moment before it is done."""

    def __init__(self, moment: int) -> None:
        self.moment = moment

    def append(self, call: str) -> None:
        super().append(call)
        if len(self) > self.moment:
            raise Killed(call)


@pytest.mark.parametrize("moment", range(11))
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path, moment: int) -> None:
    training = Training()
    training.run(0, 1)
    training.save(tmp_path, 1, keep=1)
    first = training.tensors()
    training.run(1, 2)
    second = training.tensors()
    calls = Fatal(moment)
    with pytest.MonkeyPatch.context() as patch:
        watch(patch, calls)
        with pytest.raises(Killed):
            training.save(tmp_path, 2, keep=1)

    again = Training(seed=1)
    step = restore(found(tmp_path), again.model, again.optimizer)
    assert step == (2 if "rename step-00000002" in calls[:-1] else 1)
    assert same(again.tensors(), {1: first, 2: second}[step])
    again.run(step, 2)
    again.save(tmp_path, 2, keep=1)
    again.run(2, 3)
    again.save(tmp_path, 3, keep=1)
    assert names(tmp_path) == ["step-00000003"]


def test_the_configuration_keeps_at_least_one() -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        checkpoint.Config(keep=0)
    assert json.loads(checkpoint.Config().model_dump_json()) == {"every": "1 epochs", "keep": 3}
