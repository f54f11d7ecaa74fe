"""Saver: what is loaded is what was saved, bit for bit, and nothing that goes wrong harms the one before."""

from __future__ import annotations

import collections
import json
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mrp.checkpoint import sealed
from mrp.checkpoint.checkpoints import Checkpoint, at, latest, listed, newest, numbered, restore
from mrp.checkpoint.config import Best
from mrp.checkpoint.config import Config as CheckpointConfig
from mrp.checkpoint.saver import Saver, save_now
from mrp.config import ConfigError

FILES = ["MANIFEST.json", "model.safetensors", "optimizer.safetensors", "state.json"]


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
        save_now(run, step, self.model, self.optimizer, {"data": {"consumed": step * 8}}, keep)

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
    restore(found(tmp_path), other.model, other.optimizer)
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
    state = last.state()
    assert state.pop("versions").keys() == {"mrp", "torch", "python"}
    assert state == {"step": 2, "data": {"consumed": 16}}
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


def stamp(run: Path, name: str) -> None:
    """A folder that looks like a checkpoint to whoever reads names alone."""
    (run / "checkpoints" / name).mkdir(parents=True)


@pytest.mark.parametrize(
    ("folders", "steps"),
    [
        ([], []),
        (["step-00000007", "step-00000012", "step-00000009"], [7, 9, 12]),
        (["step-99999999", "step-100000000"], [99999999, 100000000]),
        (["step-00000003", "step-best", "step-", "step-00000009.bak", "step-²", "step-1e9", "best", "7"], [3]),
        (["step-00000003", "step-00000009.bad", ".unfinished-step-00000009"], [3]),
    ],
)
def test_those_of_a_run_go_by_their_names(tmp_path: Path, folders: list[str], steps: list[int]) -> None:
    for name in folders:
        stamp(tmp_path, name)
    assert [one.step for one in listed(tmp_path)] == steps


def test_a_file_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-00000005").touch()
    assert newest(tmp_path) is None


def test_the_oldest_go_and_nothing_that_is_not_ours(tmp_path: Path) -> None:
    training = Training()
    others = ["step-00000001.bak", "step-best", "aaa"]
    for name in others:
        stamp(tmp_path, name)
        (tmp_path / "checkpoints" / name / "precious").touch()
    for step in (1, 2, 99_999_999, 100_000_000):
        training.save(tmp_path, step, keep=2)
    assert [one.step for one in listed(tmp_path)] == [99_999_999, 100_000_000]
    assert names(tmp_path) == sorted([*others, "latest", "step-99999999", "step-100000000"])
    assert all((tmp_path / "checkpoints" / name / "precious").exists() for name in others)


# Damage


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    middle = len(content) // 2
    match how:
        case "flipped":
            path.write_bytes(content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :])
        case "cut":
            path.write_bytes(content[:middle])
        case "longer":
            path.write_bytes(content + b"\0")
        case "missing":
            path.unlink()


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("name", [*FILES, "teacher.safetensors", "config.yaml"])
@pytest.mark.parametrize("how", ["flipped", "cut", "longer", "missing"])
def test_a_damaged_one_is_told_of_and_the_one_before_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, how: str
) -> None:
    training = Training()
    extra = {"teacher": {"weight": torch.ones(3)}}
    for step in (1, 2):
        training.run(step - 1, step)
        save_now(tmp_path, step, training.model, training.optimizer, {}, 3, extra, {"config.yaml": "seed: 0"})
    path = found(tmp_path).folder / name
    damage(path, how)
    before = contents(tmp_path)

    reader = newest(tmp_path)
    assert reader is not None
    assert reader.step == 1
    (line,) = said(capsys)
    fault = line.removeprefix("mrp: warning: ").removesuffix("; the checkpoint before it is taken")
    assert fault.startswith(f"{path}: ")
    assert contents(tmp_path) == before
    with pytest.raises(ConfigError) as caught:
        at(path.parent)
    assert str(caught.value).startswith(f"{fault}; this checkpoint is damaged")

    taken = latest(tmp_path, print)
    assert taken is not None
    assert taken.step == 1
    (line,) = said(capsys)
    assert line == f"mrp: warning: {fault}; it is now called step-00000002.bad; the checkpoint before it is taken"
    assert names(tmp_path) == ["latest", "step-00000001", "step-00000002.bad"]
    kept = {key.replace(".bad/", "/"): value for key, value in contents(tmp_path).items()}
    latest_ = "checkpoints/latest"
    assert kept.pop(latest_) == b"step-00000001\n"
    assert before.pop(latest_) == b"step-00000002\n"
    assert kept == before
    assert latest(tmp_path, print) == taken
    assert said(capsys) == []


def test_a_copy_under_the_name_of_another_step_is_not_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its weights would go on with the learning rate and the samples of that step."""
    Training().save(tmp_path, 3)
    shutil.copytree(tmp_path / "checkpoints" / "step-00000003", tmp_path / "checkpoints" / "step-00000090")
    assert found(tmp_path).step == 3
    assert "step-00000090: is the checkpoint of step 3, under another name; " in capsys.readouterr().err
    with pytest.raises(ConfigError, match="is the checkpoint of step 3, under another name"):
        at(tmp_path / "checkpoints" / "step-00000090")


def test_where_all_are_damaged_nothing_starts_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training = Training()
    for step in (1, 2):
        training.save(tmp_path, step)
        damage(found(tmp_path).folder / "state.json", "cut")
        with pytest.raises(ConfigError, match=r"none of its checkpoints is sound: .*state\.json: has .* bytes"):
            newest(tmp_path)
    for _ in range(2):  # and the second time, when they have other names
        with pytest.raises(ConfigError, match=r"none of its checkpoints is sound: .*; bring one back from a copy"):
            latest(tmp_path, print)
    assert names(tmp_path) == ["latest", "step-00000001.bad", "step-00000002.bad"]


def test_one_that_a_running_training_drops_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    training = Training()
    training.save(tmp_path, 1, keep=1)
    fault = sealed.fault

    def slow(folder: Path, needed: Any) -> str | None:
        if folder.name == "step-00000001":  # read while the run goes on
            training.save(tmp_path, 2, keep=1)
        return fault(folder, needed)

    monkeypatch.setattr(sealed, "fault", slow)
    assert found(tmp_path).step == 2
    assert said(capsys) == []


def test_one_that_is_asked_for_by_name(tmp_path: Path) -> None:
    training = Training()
    training.save(tmp_path, 1)
    training.save(tmp_path, 2)
    assert at(tmp_path / "checkpoints" / "step-00000001").step == 1
    assert numbered(tmp_path, 2) == found(tmp_path)
    with pytest.raises(ConfigError, match="has no checkpoint of step 3; there are 1, 2"):
        numbered(tmp_path, 3)
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "checkpoints" / "latest"):
        with pytest.raises(ConfigError, match="is no checkpoint"):
            at(path)


def test_a_checkpoint_of_another_model_is_one_line(tmp_path: Path) -> None:
    training = Training()
    training.save(tmp_path, 1)
    other = Training()
    other.model.trained = nn.Linear(6, 5)
    with pytest.raises(
        ConfigError, match=r"step-00000001: is of another model: 'trained\.bias' is of shape \[4\] there and of shape"
    ) as one:
        restore(found(tmp_path), other.model, other.optimizer)
    assert "\n" not in str(one.value)


@pytest.mark.parametrize("name", FILES[1:])
def test_what_goes_missing_after_it_was_found_is_one_line(tmp_path: Path, name: str) -> None:
    training = Training()
    training.save(tmp_path, 1)
    last = found(tmp_path)
    (last.folder / name).unlink()
    with pytest.raises(ConfigError, match=f"{name}: cannot be read: "):
        restore(last, training.model, training.optimizer) if name != "state.json" else last.state()
    shutil.rmtree(last.folder)  # as the run does that goes on, once it has saved more than it keeps
    with pytest.raises(ConfigError, match="the run, which goes on, has dropped it in the meantime; run the same"):
        last.weights() if name != "state.json" else last.state()


# When the disk fails


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file of this process may grow beyond this size: what a full disk does, without filling one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("torn", FILES[1:])
def test_a_file_that_cannot_be_written_leaves_the_checkpoint_before(
    tmp_path: Path, torn: str, asynchronous: bool
) -> None:
    training = Training()
    state = {"long": "x" * 5000}
    training.run(0, 1)
    save_now(tmp_path, 1, training.model, training.optimizer, state, keep=2)
    before = contents(tmp_path)
    training.run(1, 2)
    size = (found(tmp_path).folder / torn).stat().st_size
    keeper = Saver(tmp_path, CheckpointConfig(asynchronous=asynchronous), every=1)
    with file_limit(size - 1), pytest.raises(ConfigError) as caught:
        keeper.save(2, training.model, training.optimizer, state, wait=True)
    assert str(caught.value) == (
        f"{tmp_path}: the checkpoint of step 2 is not written: File too large; "
        "that of step 1 is complete; mend it and run the same command again"
    )
    keeper.close()
    assert {name: data for name, data in contents(tmp_path).items() if name != ".writer"} == before
    assert names(tmp_path) == ["latest", "step-00000001"]
    training.save(tmp_path, 2)
    assert same(found(tmp_path).weights(), dict(training.model.state_dict()))


def test_a_full_disk_at_the_first_checkpoint_says_that_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, *arguments: Any, **more: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ConfigError, match="step 1 is not written: Permission denied; there is none before it; mend it"):
        Training().save(tmp_path, 1)


# While it trains


def keeper(run: Path, **options: Any) -> Saver:
    every, milestone = options.pop("every", 1), options.pop("milestone", 0)
    start = options.pop("found", None)
    return Saver(run, CheckpointConfig(**options), every, milestone, resumed=start, about={"config.yaml": "a: 1"})


@pytest.mark.parametrize("asynchronous", [True, False])
def test_the_next_step_does_not_change_what_is_being_saved(tmp_path: Path, asynchronous: bool) -> None:
    training = Training()
    saved = {}
    checkpoints = keeper(tmp_path, asynchronous=asynchronous, keep=9)
    for step in range(1, 8):
        training.run(step - 1, step)
        saved[step] = training.tensors()
        checkpoints.save(step, training.model, training.optimizer, {}, extra={"average": {"w": torch.tensor(step)}})
        checkpoints.check()
        with torch.no_grad():
            training.model.trained.weight.fill_(step)
    checkpoints.close()
    assert [one.step for one in listed(tmp_path)] == list(range(1, 8))
    for one in listed(tmp_path):
        assert one.fault() is None
        assert same(one.weights() | one.optimizer(), saved[one.step])
        assert one.tensors("average") == {"w": torch.tensor(one.step)}
        assert all(one.has(group) for group in ("average", "model", "optimizer"))
        assert (one.folder / "config.yaml").read_text() == "a: 1"


def test_both_ways_of_writing_make_the_same_files(tmp_path: Path) -> None:
    training = Training()
    training.run(0, 2)
    for way in (True, False):
        checkpoints = keeper(tmp_path / str(way), asynchronous=way)
        checkpoints.save(2, training.model, training.optimizer, {"data": {"seed": 1}})
        checkpoints.close()
    one, other = (
        {name: data for name, data in contents(tmp_path / str(way)).items() if name != ".writer"}
        for way in (True, False)
    )
    assert one == other


def test_what_it_cost_is_told_once(tmp_path: Path) -> None:
    training = Training()
    checkpoints = keeper(tmp_path)
    checkpoints.save(1, training.model, training.optimizer, {}, wait=True)
    values = checkpoints.measured()
    assert values.keys() == {"checkpoint/stall_seconds", "checkpoint/write_seconds", "checkpoint/gigabytes"}
    size = sum(path.stat().st_size for path in found(tmp_path).folder.iterdir() if path.name != "MANIFEST.json")
    assert values["checkpoint/gigabytes"] == size / 1e9
    assert checkpoints.measured() == {}
    checkpoints.close()


@pytest.mark.parametrize("at_the_end", [False, True])
def test_an_error_behind_the_training_is_raised_at_the_next_step_or_at_the_end(
    tmp_path: Path, at_the_end: bool
) -> None:
    training = Training()
    (tmp_path / "checkpoints").touch()
    checkpoints = keeper(tmp_path)
    checkpoints.save(1, training.model, training.optimizer, {})
    with pytest.raises(ConfigError, match="the checkpoint of step 1 is not written: File exists; there is none before"):
        checkpoints.close() if at_the_end else collections.deque(iter(checkpoints.check, "never"), maxlen=0)
    if not at_the_end:
        checkpoints.close()


def test_the_state_a_run_started_from_is_not_written_again(tmp_path: Path) -> None:
    training = Training()
    training.save(tmp_path, 3)
    before = contents(tmp_path)
    training.run(0, 1)
    checkpoints = keeper(tmp_path, found=found(tmp_path))
    checkpoints.save(3, training.model, training.optimizer, {})
    checkpoints.close()
    assert contents(tmp_path) == before


def test_the_state_a_run_started_from_is_written_again_if_it_turns_out_the_best(tmp_path: Path) -> None:
    training = Training()
    training.save(tmp_path, 3)
    checkpoints = keeper(tmp_path, best="accuracy", found=found(tmp_path))
    assert checkpoints.is_best(3, {"accuracy": 0.8})
    checkpoints.save(3, training.model, training.optimizer, {})
    checkpoints.close()
    assert found(tmp_path).state()["best"] == {"name": "accuracy", "value": 0.8, "step": 3}
    assert [one.step for one in listed(tmp_path)] == [3]


def test_one_that_does_not_write_leaves_nothing(tmp_path: Path) -> None:
    training = Training()
    other = Saver(tmp_path, CheckpointConfig(), 1, main=False)
    other.save(1, training.model, training.optimizer, {}, wait=True)
    other.check()
    other.close()
    assert list(tmp_path.iterdir()) == []


def test_when_one_is_due() -> None:
    checkpoints = Saver(Path("nowhere"), CheckpointConfig(), every=4, milestone=6, main=False)
    assert [step for step in range(1, 25) if checkpoints.due(step)] == [4, 6, 8, 12, 16, 18, 20, 24]
    never = Saver(Path("nowhere"), CheckpointConfig(), every=5, main=False)
    assert [step for step in range(1, 16) if never.due(step)] == [5, 10, 15]


@pytest.mark.parametrize(
    "name", ["features/loss_over_variance", "features/uniformity", "geometry/log_uniformity", "geometry/alignment"]
)
def test_a_collapsed_model_has_the_worst_of_these(name: str) -> None:
    assert Best(name=name).better(0.1, 1.0)
    assert not Best(name=name).better(1.0, 0.1)
    assert Best(name=f"mine/text_{name.rpartition('/')[2]}").better(1.0, 0.1)  # of an evaluator of one's own


@pytest.mark.parametrize(
    ("best", "steps"),
    [
        ("accuracy", [1, 2, 5]),
        ("validation/loss", [1, 2, 5]),
        ({"name": "accuracy", "direction": "lowest"}, [1, 3, 6]),
        ({"name": "validation/loss", "direction": "highest"}, [1, 3, 6]),
        (None, []),
        ("unknown", []),
    ],
)
def test_the_best_so_far(best: Any, steps: list[int]) -> None:
    checkpoints = Saver(Path("nowhere"), CheckpointConfig(best=best), every=1, main=False)
    values = [0.5, 0.7, 0.4, 0.7, 0.9, 0.1]
    heard = [
        step
        for step, value in enumerate(values, 1)
        if checkpoints.is_best(step, {"accuracy": value, "validation/loss": -value})
    ]
    assert heard == steps
    assert not checkpoints.is_best(9, {"accuracy": float("nan"), "validation/loss": float("nan")})


def test_the_best_is_kept_until_it_is_beaten_also_over_a_resume(tmp_path: Path) -> None:
    training = Training()
    options: dict[str, Any] = {"keep": 1, "best": "accuracy", "milestone": 5}
    checkpoints = keeper(tmp_path, **options)
    for step, accuracy in enumerate([0.1, 0.8, 0.3, 0.2, 0.5, 0.4, 0.6], 1):
        checkpoints.is_best(step, {"accuracy": accuracy})
        checkpoints.save(step, training.model, training.optimizer, {})
    checkpoints.close()
    assert [one.step for one in listed(tmp_path)] == [2, 5, 7]
    assert found(tmp_path).state()["best"] == {"name": "accuracy", "value": 0.8, "step": 2}

    checkpoints = keeper(tmp_path, **options, found=found(tmp_path))
    for step, accuracy in enumerate([0.7, 0.9, 0.1], 8):
        assert checkpoints.is_best(step, {"accuracy": accuracy}) == (step == 9)
        checkpoints.save(step, training.model, training.optimizer, {})
        checkpoints.finish()
        assert {one.step for one in listed(tmp_path)} == {2 if step == 8 else 9, 5, step}
    checkpoints.close()


@pytest.mark.parametrize("milestone", [0, 7])
def test_a_milestone_stays_where_another_one_is_set_later(tmp_path: Path, milestone: int) -> None:
    """Also where the same number of epochs comes to other steps, since the batch has changed."""
    training = Training()
    checkpoints = keeper(tmp_path, keep=2, milestone=5)
    for step in (4, 5, 6, 7):
        checkpoints.save(step, training.model, training.optimizer, {})
    checkpoints.close()
    checkpoints = keeper(tmp_path, keep=1, milestone=milestone, found=found(tmp_path))
    for step in (8, 9):
        checkpoints.save(step, training.model, training.optimizer, {})
    checkpoints.close()
    assert [one.step for one in listed(tmp_path)] == [5, *([7] if milestone else []), 9]


def test_the_configuration() -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        CheckpointConfig(keep=0)
    assert json.loads(CheckpointConfig(best="features/knn").model_dump_json()) == {
        "every": "1 epochs",
        "keep": 3,
        "milestone": None,
        "best": {"name": "features/knn", "direction": None},
        "asynchronous": True,
    }


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ("[]", "another version of mrp"),
        ("[" * 100_000, "cannot be read: .*recursion"),
        ('{"length": {"steps": 3}}', "length.steps_per_epoch"),
        ('{"data": {"quarantine": [[1]]}}', "data.quarantine.0.1"),
        ('{"guard": {"left_out": 3}}', "guard.left_out"),
        ('{"best": {"name": "loss"}}', "best.value"),
    ],
)
def test_a_state_of_another_form_is_one_line(tmp_path: Path, content: str, where: str) -> None:
    """Its hash may be right: a manifest proves nothing about who wrote it."""
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(ConfigError, match=rf"state.json: .*{where}") as raised:
        Checkpoint(1, tmp_path).state()
    assert "\n" not in str(raised.value)


def test_what_another_version_has_added_to_the_state_stays(tmp_path: Path) -> None:
    length = {"steps": 3, "steps_per_epoch": 1.5, "batch": 2}
    state = {"new": 1, "length": length | {"new": 1}, "data": {"new": 1}, "best": None}
    (tmp_path / "state.json").write_text(json.dumps(state))
    assert Checkpoint(1, tmp_path).state() == state | {"length": length}


def test_names_of_files_that_are_no_unicode_are_read_again(tmp_path: Path) -> None:
    """A sample that is no image is kept with the name of its file."""
    state = {"data": {"quarantine": [[3, "caf\udce9.png", "cut short"]]}}
    (tmp_path / "state.json").write_text(json.dumps(state))
    assert Checkpoint(1, tmp_path).state() == {"data": {"quarantine": [(3, "caf\udce9.png", "cut short")]}}
