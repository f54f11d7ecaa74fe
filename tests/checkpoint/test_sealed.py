"""A sealed folder is whole or is known not to be; what is kept is kept, and nothing that is not ours is touched."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mrp.checkpoint import sealed
from mrp.checkpoint.sealed import Keep, clear, fault, numbered, set_aside, write

FILES = {"model.safetensors": [b"\x00\x01" * 300, memoryview(b"more")], "state.json": [b'{"step": 1}']}
ALL = [*FILES, sealed.MANIFEST]


def seal(parent: Path, step: int = 1, keep: Keep | None = None) -> Path:
    write(parent, step, FILES, keep or Keep(9))
    return parent / f"step-{step:08d}"


def names(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir())


def test_what_is_written_is_what_was_given(tmp_path: Path) -> None:
    parent = tmp_path / "new" / "checkpoints"
    assert write(parent, 7, FILES, Keep(1)) == 615
    folder = parent / "step-00000007"
    assert names(folder) == sorted(ALL)
    assert (folder / "model.safetensors").read_bytes() == b"\x00\x01" * 300 + b"more"
    assert (parent / "latest").read_text() == "step-00000007\n"
    assert fault(folder, FILES) is None


def test_a_part_larger_than_what_is_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "_AT_ONCE", 7)
    folder = seal(tmp_path)
    assert (folder / "model.safetensors").read_bytes() == b"".join(FILES["model.safetensors"])
    assert fault(folder) is None


# Damage


@pytest.mark.parametrize("name", ALL)
def test_any_flipped_bit_is_found(tmp_path: Path, name: str) -> None:
    path = seal(tmp_path) / name
    content = path.read_bytes()
    for place in range(0, len(content), 1 if name != "model.safetensors" else 17):
        for bit in range(8):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
            found = fault(path.parent, FILES)
            assert found is not None, (place, bit, content[place : place + 1])
            assert found.startswith(f"{path.parent}/")
    path.write_bytes(content)
    assert fault(path.parent, FILES) is None


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("harm", ["cut", "empty", "longer", "missing", "folder", "pipe"])
def test_a_file_that_is_not_what_it_was_is_named(tmp_path: Path, name: str, harm: str) -> None:
    path = seal(tmp_path) / name
    content = path.read_bytes()
    path.unlink()
    match harm:
        case "cut":
            path.write_bytes(content[:-1])
        case "empty":
            path.touch()
        case "longer":
            path.write_bytes(content + b"\n")
        case "folder":
            path.mkdir()
        case "pipe" if name != sealed.MANIFEST:
            os.mkfifo(path)
    found = fault(path.parent, FILES)
    assert found is not None
    assert found.startswith(f"{path}: ")
    assert "\n" not in found


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "null",
        "{}",
        '{"format": "mrp-checkpoint-1"}',
        '{"format": "mrp-checkpoint-2", "files": {}}',
        '{"format": "mrp-checkpoint-1", "files": []}',
        '{"format": "mrp-checkpoint-1", "files": {"model.safetensors": 3}}',
        "[" * 100_000,
        "\udcff",
    ],
)
def test_a_manifest_that_is_none(tmp_path: Path, content: str) -> None:
    manifest = seal(tmp_path) / sealed.MANIFEST
    manifest.write_bytes(content.encode(errors="surrogateescape"))
    found = fault(manifest.parent, FILES)
    assert found is not None
    assert found.startswith(f"{manifest}: cannot be read: ")


@pytest.mark.parametrize(
    "files",
    [
        {"../secret": {"size": 1, "sha256": "0"}},
        {"..": {"size": 1, "sha256": "0"}},
        {"state.json": {"size": "1", "sha256": "0"}},
        {"state.json": {"size": True, "sha256": "0"}},
        {"state.json": {"size": 1, "sha256": None}},
    ],
)
def test_a_manifest_made_by_somebody_else(tmp_path: Path, files: Any) -> None:
    manifest = seal(tmp_path) / sealed.MANIFEST
    manifest.write_text(json.dumps({"format": "mrp-checkpoint-1", "files": files}, indent=1))
    found = fault(manifest.parent)
    assert found is not None
    assert found.startswith(f"{manifest}: cannot be read: ")


def test_a_manifest_without_what_is_needed(tmp_path: Path) -> None:
    assert fault(seal(tmp_path), ["optimizer.safetensors"]) == (
        f"{tmp_path}/step-00000001/MANIFEST.json: does not list optimizer.safetensors"
    )


def test_what_is_set_aside_is_never_lost(tmp_path: Path) -> None:
    for number in ("", "2", "3"):
        aside = set_aside(seal(tmp_path))
        assert aside.name == f"step-00000001.bad{number}"
    assert fault(tmp_path / "step-00000001.bad2") is None
    assert numbered(tmp_path) == {}
    seal(tmp_path, 2, Keep(1))
    assert names(tmp_path) == [
        "latest", "step-00000001.bad", "step-00000001.bad2", "step-00000001.bad3", "step-00000002"
    ]  # fmt: skip


# Which are kept


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (Keep(1), [10]),
        (Keep(3), [8, 9, 10]),
        (Keep(99), list(range(1, 11))),
        (Keep(2, every=4), [4, 8, 9, 10]),
        (Keep(1, steps=(3,)), [3, 10]),
        (Keep(1, every=5, steps=(3, 77)), [3, 5, 10]),
    ],
)
def test_the_last_each_mth_and_the_best_are_kept(tmp_path: Path, keep: Keep, kept: list[int]) -> None:
    for step in range(1, 11):
        seal(tmp_path, step, keep)
    assert list(numbered(tmp_path)) == kept


def test_what_was_just_written_stays_even_if_later_ones_are_there(tmp_path: Path) -> None:
    for step in (5, 6, 2):
        seal(tmp_path, step, Keep(2))
    assert list(numbered(tmp_path)) == [2, 5, 6]


def test_a_step_that_is_written_again_is_replaced(tmp_path: Path) -> None:
    seal(tmp_path)
    write(tmp_path, 1, {"other": [b"x"]}, Keep(1))
    assert names(tmp_path) == ["latest", "step-00000001"]
    assert names(tmp_path / "step-00000001") == ["MANIFEST.json", "other"]


# The order of things


def watch(monkeypatch: pytest.MonkeyPatch, calls: list[str]) -> None:
    """Note what is done to the disk, in order."""

    def note(module: Any, name: str, path_of: Callable[..., Any]) -> None:
        original = getattr(module, name)

        def noted(*arguments: Any, **more: Any) -> Any:
            calls.append(f"{name} {Path(path_of(*arguments)).name}")
            return original(*arguments, **more)

        monkeypatch.setattr(module, name, noted)

    note(os, "fsync", lambda descriptor: os.readlink(f"/proc/self/fd/{descriptor}"))
    note(Path, "rename", lambda path, target: target)
    note(shutil, "rmtree", lambda path, **more: path)


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seal(tmp_path, 1)
    calls: list[str] = []
    watch(monkeypatch, calls)
    seal(tmp_path, 2, Keep(1))
    assert calls == [
        "fsync model.safetensors",
        "fsync state.json",
        "fsync MANIFEST.json",  # the last of its files
        "fsync .unfinished-step-00000002",
        "fsync .unfinished-latest",
        "rename step-00000002",
        f"fsync {tmp_path.name}",
        "rename latest",
        f"fsync {tmp_path.name}",
        "rename .unfinished-step-00000001",
        "rmtree .unfinished-step-00000001",
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
def test_a_kill_at_any_moment_leaves_a_whole_one(tmp_path: Path, moment: int) -> None:
    seal(tmp_path, 1)
    calls = Fatal(moment)
    with pytest.MonkeyPatch.context() as patch:
        watch(patch, calls)
        with pytest.raises(Killed):
            seal(tmp_path, 2, Keep(1))
    found = numbered(tmp_path)
    assert max(found) == (2 if "rename step-00000002" in calls[:-1] else 1)
    assert all(fault(folder) is None for folder in found.values())
    seal(tmp_path, 3, Keep(1))
    assert names(tmp_path) == ["latest", "step-00000003"]


@pytest.mark.parametrize("moment", range(13))
def test_a_kill_while_the_only_one_is_replaced(tmp_path: Path, moment: int) -> None:
    seal(tmp_path, 1, Keep(1))
    calls = Fatal(moment)
    with pytest.MonkeyPatch.context() as patch:
        watch(patch, calls)
        try:
            seal(tmp_path, 1, Keep(1))
        except Killed:
            pass
        else:
            assert len(calls) <= moment
    clear(tmp_path)
    assert list(numbered(tmp_path)) == [1]
    assert fault(tmp_path / "step-00000001") is None
    assert not list(tmp_path.glob(".*"))
