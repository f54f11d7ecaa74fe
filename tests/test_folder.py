"""A run's folder belongs to one run, and to one process at a time; what is refused is left as it was."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mrp
from mrp import ending
from mrp import folder as folders
from mrp.build import build_step
from mrp.config import ConfigError
from mrp.files import unfinished
from mrp.folder import CONFIG, ENVIRONMENT, IDENTITY, claim, flat
from mrp.run import default_identity, load, recipes
from mrp.status import status_of

CONFIGURATION: dict[str, Any] = {"batch": 8, "optim": {"lr": 0.1, "betas": [0.9, 0.95]}, "machine": {"workers": 2}}
WHO: dict[str, Any] = {"batch": 8, "optim": {"lr": 0.1, "betas": (0.9, 0.95)}, "data": {"content": "abc"}}


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def refused(*arguments: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        claim(*arguments).close()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_new_folder_is_made_and_says_who_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "run"
    claim(folder, CONFIGURATION, WHO).close()
    assert {path.name for path in folder.iterdir()} == {".lock", CONFIG, IDENTITY, ENVIRONMENT}
    assert json.loads((folder / IDENTITY).read_text()) == {
        "batch": 8,
        "optim.lr": 0.1,
        "optim.betas": [0.9, 0.95],
        "data.content": "abc",
    }


def test_the_same_run_may_claim_it_again(tmp_path: Path) -> None:
    claim(tmp_path, CONFIGURATION, WHO).close()
    claim(tmp_path, CONFIGURATION | {"machine": {"workers": 7}}, WHO).close()
    assert "workers: 7" in (tmp_path / CONFIG).read_text()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"batch": 9}, "batch = 8, not 9"),
        ({"optim": {"lr": 0.2, "betas": [0.8, 0.95]}}, "optim.lr = 0.1, not 0.2"),  # the first that differs
        ({"optim": {"lr": 0.1, "betas": [0.8, 0.95]}}, "optim.betas = [0.9, 0.95], not [0.8, 0.95]"),
        ({"optim": {"lr": 0.1}}, "optim.betas = [0.9, 0.95], not None"),
        (
            {"data": {"content": "abd"}},
            "other training data (data.content abc, not abd): samples or labels were added, removed, renamed or "
            "changed",
        ),
        ({"more": 1}, "more = None, not 1"),
    ],
)
def test_another_run_is_refused_by_the_first_key_that_differs(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    claim(tmp_path, CONFIGURATION, WHO).close()
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    before = contents(tmp_path)
    line = refused(tmp_path, CONFIGURATION | change, WHO | change)
    assert line.startswith(f"{tmp_path}: this run was made with {named}; ")
    assert "--folder FOLDER" in line
    assert contents(tmp_path) == before


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    before = contents(tmp_path)
    assert "is not empty and not a run of mrp" in refused(tmp_path, CONFIGURATION, WHO)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("text", ["", "{", "[1]", "null"])
def test_a_damaged_identity_is_refused_and_left_alone(tmp_path: Path, text: str) -> None:
    claim(tmp_path, CONFIGURATION, WHO).close()
    (tmp_path / IDENTITY).write_text(text)
    before = contents(tmp_path)
    assert refused(tmp_path, CONFIGURATION, WHO).startswith(f"{tmp_path / IDENTITY}: is damaged")
    assert contents(tmp_path) == before


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    assert refused(tmp_path / "run", CONFIGURATION, WHO).startswith(
        f"{tmp_path / 'run'}: cannot be written: File exists"
    )
    assert refused(tmp_path / "run" / "a", CONFIGURATION, WHO).endswith("choose another with --folder FOLDER")


# Two processes

HOLD = f"""
import sys
from pathlib import Path
from mrp.folder import claim
lock = claim(Path(sys.argv[1]), {CONFIGURATION}, {WHO})
print("claimed", flush=True)
sys.stdin.read()
"""


def test_two_processes_cannot_hold_one_folder(tmp_path: Path) -> None:
    here = Path(mrp.__file__).parent.parent
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=here, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == "claimed\n"
        before = contents(tmp_path)
        line = refused(tmp_path, CONFIGURATION, WHO)
        assert line == f"{tmp_path}: another process is writing this run; wait for it, or use --folder FOLDER"
        assert contents(tmp_path) == before
        other.kill()  # a lock does not outlive its process, however that ends
    claim(tmp_path, CONFIGURATION, WHO).close()


def test_the_lock_is_let_go_where_the_claim_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "environment", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        claim(tmp_path, CONFIGURATION, WHO)
    monkeypatch.undo()
    claim(tmp_path, CONFIGURATION, WHO).close()


def test_a_disk_that_knows_no_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*arguments: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert "cannot be locked: No locks available" in refused(tmp_path, CONFIGURATION, WHO)


def test_a_disk_without_locks_is_written_to_and_said_to_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with claim(tmp_path, CONFIGURATION, WHO):
        assert "this disk has no locks" in capsys.readouterr().out
        assert status_of(tmp_path).state == "running"
        ending.note(tmp_path, ending.FINISHED)
    assert status_of(tmp_path).state != "running"


# A full disk


@pytest.mark.parametrize("last", [IDENTITY, CONFIG, ENVIRONMENT])
def test_a_full_disk_is_one_line_and_the_claim_can_be_made_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    replace: Callable[..., None] = os.replace

    def full(source: Path, target: Path) -> None:
        if target.name == last:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    line = refused(tmp_path, CONFIGURATION, WHO)
    assert line.startswith(f"{tmp_path / last}: cannot be written: No space left on device; free some space")
    monkeypatch.undo()
    assert not list(tmp_path.glob("*.tmp"))
    claim(tmp_path, CONFIGURATION, WHO).close()
    assert "batch: 8" in (tmp_path / CONFIG).read_text()


def test_a_full_disk_leaves_the_files_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim(tmp_path, CONFIGURATION, WHO).close()
    before = contents(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left on device" in refused(tmp_path, CONFIGURATION | {"machine": {"workers": 7}}, WHO)
    assert contents(tmp_path) == before


def test_a_kill_while_the_first_file_is_written_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    unfinished(tmp_path / IDENTITY).write_text('{"ba')
    claim(tmp_path, CONFIGURATION, WHO).close()
    assert json.loads((tmp_path / IDENTITY).read_text())["batch"] == 8


# What is written


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["data.train='1e4'", "machine.compile=no", "length=1234567 samples", "optim.eps=1e-9"],
        ["backbone={name: vit_tiny_patch16_224}", "data.size=32"],
    ],
)
def test_the_configuration_can_be_loaded_back(tmp_path: Path, words: list[str]) -> None:
    run = load("demo", words)
    claim(tmp_path, run.resolved(), run.identity("abc")).close()
    again = load(tmp_path / CONFIG)
    assert again == run
    claim(tmp_path, again.resolved(), again.identity("abc")).close()
    shapes = [{name: tensor.shape for name, tensor in build_step(each).state_dict().items()} for each in (run, again)]
    assert shapes[0] == shapes[1]


def test_the_environment_is_told_and_nothing_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/mrp", "pretrain", "demo"])
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    claim(tmp_path, CONFIGURATION, WHO).close()
    text = (tmp_path / ENVIRONMENT).read_text()
    found = json.loads(text)
    (found,) = found["starts"]
    place = {"time", "step", "balance", "steps", "processes", "changed"}
    assert set(found) == {"mrp", "code", "python", "platform", "packages", "device", "command"} | place
    assert found["mrp"] == mrp.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["command"] == ["pretrain", "demo"]
    assert found["packages"]["torch"][0].isdigit()
    assert "hunter2" not in text
    assert "/somewhere" not in text


def test_flat() -> None:
    assert flat({"a": {"b": {"c": 1}, "d": (1, 2)}, "e": None, "f": {}}) == {"a.b.c": 1, "a.d": [1, 2], "e": None}


# What may change


def test_what_is_allowed_may_differ_and_is_kept_as_a_history(tmp_path: Path) -> None:
    said: list[str] = []
    claim(tmp_path, CONFIGURATION, WHO).close()
    other = {"optim": {"lr": 0.2, "betas": [0.8, 0.95]}}
    expected = "this run was made with optim.lr = 0.1, not 0.2; restore that value (and 1 more), "
    line = refused(tmp_path, CONFIGURATION | other, WHO | other)
    assert expected in line
    assert line.endswith("resume.allow=[optim.lr, optim.betas]")
    assert "optim.betas" in refused(tmp_path, CONFIGURATION | other, WHO | other, ["optim.lr"])
    claim(tmp_path, CONFIGURATION | other, WHO | other, ["optim"], step=7, say=said.append).close()
    found = json.loads((tmp_path / IDENTITY).read_text())
    assert found["optim.lr"] == 0.2
    (change,) = found["history"]
    assert change["step"] == 7
    assert change["changes"] == {"optim.lr": [0.1, 0.2], "optim.betas": [[0.9, 0.95], [0.8, 0.95]]}
    assert [line.split(" from step")[0] for line in said] == [
        "resume.allow: optim.lr was 0.1 and is 0.2",
        "resume.allow: optim.betas was [0.9, 0.95] and is [0.8, 0.95]",
    ]
    claim(tmp_path, CONFIGURATION | other, WHO | other, say=said.append).close()  # from now on it is this run
    assert len(said) == 2
    assert json.loads((tmp_path / IDENTITY).read_text())["history"] == [change]
    assert "optim.lr = 0.2, not 0.1" in refused(tmp_path, CONFIGURATION, WHO)


def test_an_allowance_is_a_key_or_a_section_and_no_beginning_of_one(tmp_path: Path) -> None:
    claim(tmp_path, CONFIGURATION, WHO).close()
    other = {"optim": {"lr": 0.2, "betas": [0.9, 0.95]}}
    assert "optim.lr = 0.1, not 0.2" in refused(tmp_path, CONFIGURATION | other, WHO | other, ["batch"])
    for name in ("opt", "optim.l", ""):
        line = refused(tmp_path, CONFIGURATION | other, WHO | other, [name])
        assert line.startswith(f"resume.allow: {name} is neither an option nor a section")


def test_an_allowance_that_means_nothing_is_refused(tmp_path: Path) -> None:
    claim(tmp_path, CONFIGURATION, WHO | {"average": None}).close()
    line = refused(tmp_path, CONFIGURATION, WHO, ["optim.lrr"])
    assert line == "resume.allow: optim.lrr is neither an option nor a section; did you mean 'optim.lr'?"
    claim(
        tmp_path,
        CONFIGURATION,
        WHO | {"average": None},
        ["optim", "data.content", "machine", "average.decay", "evaluate.knn"],
    ).close()


def test_each_start_is_kept_with_what_had_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    versions = {"packages": {"torch": "2.15.0"}, "command": ["a"], "device": "cpu"}
    monkeypatch.setattr(folders, "environment", lambda: versions)
    claim(tmp_path, CONFIGURATION, WHO, say=said.append).close()
    versions = {"packages": {"torch": "2.15.1"}, "command": ["b"], "device": "cpu"}
    claim(tmp_path, CONFIGURATION, WHO, step=3, processes=2, say=said.append).close()
    assert not said
    versions = {"packages": {"torch": "2.16.0"}, "command": ["b"], "device": "cpu"}
    claim(tmp_path, CONFIGURATION, WHO, step=5, processes=2, say=said.append).close()
    starts = json.loads((tmp_path / ENVIRONMENT).read_text())["starts"]
    assert [(start["step"], start["processes"]) for start in starts] == [(0, 1), (3, 2), (5, 2)]
    assert [start["changed"] for start in starts] == [
        {},
        {"processes": [1, 2], "packages.torch": ["2.15.0", "2.15.1"]},
        {"packages.torch": ["2.15.1", "2.16.0"]},
    ]
    assert said == ["warning: torch was 2.15.1 at the last start and is 2.16.0: rounding may differ"]


def test_another_code_is_said_when_a_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    for code in ("0" * 40, "0" * 40, f"{'1' * 40}+changes", "0.2.0"):
        monkeypatch.setattr(folders, "environment", lambda code=code: {"code": code})
        claim(tmp_path, CONFIGURATION, WHO, say=said.append).close()
    assert said == [
        f"warning: mrp's code was {before} at the last start and is {now}: what it computes may differ"
        for before, now in (("0" * 12, f"{'1' * 12}+changes"), (f"{'1' * 12}+changes", "0.2.0"))
    ]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"starts": 3}', '{"starts": [3]}'])
def test_a_damaged_record_of_starts_stops_nobody(tmp_path: Path, text: str) -> None:
    claim(tmp_path, CONFIGURATION, WHO).close()
    (tmp_path / ENVIRONMENT).write_text(text)
    claim(tmp_path, CONFIGURATION, WHO).close()
    assert len(json.loads((tmp_path / ENVIRONMENT).read_text())["starts"]) == 1


def test_the_places_of_data_are_kept_so_that_they_are_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("images", "more", "names.txt"):
        (tmp_path / name).mkdir()
    parts = [{"source": "more", "weight": 1.0, "classes": "names.txt"}, {"source": "s3://there/x", "weight": 2.0}]
    data = {"train": "images", "test": "digits", "classes": "imagenet100.txt", "size": 8}
    assert folders.placed({"data": data, "batch": 1}) == {"data": data | {"train": f"{tmp_path}/images"}, "batch": 1}
    (first, second) = folders.placed({"data": {"train": parts}})["data"]["train"]
    assert first == {"source": f"{tmp_path}/more", "weight": 1.0, "classes": f"{tmp_path}/names.txt"}
    assert second == parts[1]


# Options that did not exist yet


YESTERDAY = {"batch": 8, "optim": {"lr": 0.1}, "average": None}


@pytest.mark.parametrize(
    ("today", "defaults", "differs"),
    [
        ({"optim": {"lr": 0.1, "clip": None}}, {"optim.clip": None}, None),
        ({"optim": {"lr": 0.1, "nesterov": False}}, {"optim.nesterov": False}, None),
        ({"optim": {"lr": 0.1, "nesterov": True}}, {"optim.nesterov": False}, "optim.nesterov = False"),
        ({"sam": {"rho": 0.0}}, {"sam.rho": 0.0}, None),
        ({"sam": {"rho": 0.1}}, {"sam.rho": 0.0}, "sam.rho = 0.0"),
        ({"sam": {"rho": 0.0}}, {"sam": None, "sam.rho": 0.0}, "sam.rho = None"),
        ({"average": {"decay": 0.9}}, {"average": None, "average.decay": 0.9}, "average.decay = None"),
        ({"tail": "drop"}, {}, "tail = None"),
        ({"optim": None}, {"optim": None}, "optim.lr = 0.1"),
    ],
    ids=[
        "null",
        "default",
        "not the default",
        "section",
        "its option",
        "off by default",
        "switched on",
        "no default",
        "switched off",
    ],
)
def test_a_new_option_with_its_default_lets_the_run_go_on(
    tmp_path: Path, today: dict[str, Any], defaults: dict[str, Any], differs: str | None
) -> None:
    claim(tmp_path, CONFIGURATION, YESTERDAY).close()
    if differs is None:
        claim(tmp_path, CONFIGURATION, YESTERDAY | today, defaults=defaults).close()
        return
    with pytest.raises(ConfigError, match=f"this run was made with {re.escape(differs)}, not "):
        claim(tmp_path, CONFIGURATION, YESTERDAY | today, defaults=defaults)


@pytest.mark.parametrize("recipe", sorted(path.stem for path in recipes().glob("*.yaml") if "tiny" in path.stem))
def test_an_option_with_a_default_may_be_missing_in_an_old_identity(tmp_path: Path, recipe: str) -> None:
    run = load(recipe, ["init=null", "backbone={width: 48, depth: 2, heads: 3, patch: 2}"])
    identity, defaults = run.identity("abc"), default_identity(run)
    options = {key for key in flat(identity) if key in defaults and flat(identity)[key] == defaults[key]}
    assert options, "which options have a default is found out"
    old = {
        key: value for key, value in flat(identity).items() if key not in options or key.split(".")[0] == "objective"
    }
    (tmp_path / IDENTITY).write_text(json.dumps(old))
    claim(tmp_path, run.resolved(), identity, defaults=defaults).close()


def test_a_run_without_a_checkpoint_starts_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    claim(tmp_path, CONFIGURATION, YESTERDAY).close()
    claim(tmp_path, CONFIGURATION, YESTERDAY | {"batch": 16}, begun=False).close()
    assert "has no checkpoint yet, so the run starts anew: batch changed" in capsys.readouterr().out
    assert json.loads((tmp_path / IDENTITY).read_text()) == flat(YESTERDAY | {"batch": 16})


def test_a_run_without_a_checkpoint_may_start_anew_without_options_that_it_had(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    claim(tmp_path, CONFIGURATION, YESTERDAY | {"decoder": {"depth": 8}}).close()
    claim(tmp_path, CONFIGURATION, YESTERDAY, begun=False).close()
    assert "has no checkpoint yet, so the run starts anew: decoder.depth changed" in capsys.readouterr().out
    assert json.loads((tmp_path / IDENTITY).read_text()) == flat(YESTERDAY)
