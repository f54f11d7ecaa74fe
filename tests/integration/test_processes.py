"""Two processes do what one does: the same samples, crops and masks, the same losses."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mrp import session
from mrp.checkpoint import sealed
from mrp.cli import main
from mrp.config import ConfigError
from mrp.processes.launch import launch
from tests import forked
from tests.trained import pretrained

RECIPE = [
    "demo", "batch=64", "length=12 steps", "optim.warmup=2 steps", "backbone.depth=2", "backbone.width=32",
    "objective.decoder.depth=1", "data.augment={name: crop, scale: [0.5, 1]}", "track.every=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained(tmp_path_factory.mktemp("one"), *RECIPE)


def as_a_user(processes: int, words: list[str]) -> int:
    return launch(processes, [*words, "--processes", str(processes)])


def curve(folder: Path) -> np.ndarray:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return np.array([[line["step"], line["loss"], line["gradient_norm"]] for line in lines])


@pytest.mark.parametrize(
    ("launch", "more"),
    [(as_a_user, []), (forked.launch, ["machine.micro_batch=8", "machine.resident=yes"])],
    ids=["whole", "accumulated and images held in memory"],
)
def test_two_processes_train_as_one(
    one_process: Path, tmp_path: Path, launch: Callable[[int, list[str]], int], more: list[str]
) -> None:
    folder = tmp_path / "two"
    assert launch(2, ["pretrain", *RECIPE, *more, "--folder", str(folder)]) == 0
    # Not the weights: a key's bias has no gradient but rounding, which Adam makes as large as any other.
    np.testing.assert_allclose(curve(folder), curve(one_process), rtol=1e-5)


def test_processes_that_see_different_checkpoints_do_not_start(one_process: Path, tmp_path: Path) -> None:
    """As on machines whose disks are not shared: here each rank is given a folder of its own."""
    main(["pretrain", *RECIPE, "length=24 steps", "checkpoint.every=12 steps", "--folder", str(tmp_path / "0")])
    (last,) = (tmp_path / "0" / "checkpoints").glob("step-00000024")
    shutil.rmtree(last)
    ended = forked.together(2, train_in_a_folder_of_its_own, tmp_path)
    assert [rank.returncode for rank in ended] == [2, 2], ended
    assert any("the processes see different checkpoints (steps 0, 12)" in rank.stderr for rank in ended)


def train_in_a_folder_of_its_own(place: Path) -> None:
    session.LATE = 0.0
    main(["pretrain", *RECIPE, "length=24 steps", "--folder", str(place / os.environ["RANK"])])


@pytest.fixture(scope="module")
def saved_twice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("twice") / "run"
    main(["pretrain", *RECIPE, "length=4 steps", "checkpoint.every=2 steps", "--folder", str(folder)])
    return folder


def test_processes_that_see_other_weights_to_start_with_do_not_start(saved_twice: Path, tmp_path: Path) -> None:
    """As where a run goes on saving while others start from it: every process takes the newest that it sees."""
    words = [
        "pretrain",
        *RECIPE,
        "length=2 steps",
        f"init={saved_twice}",
        "backbone=null",
        "--folder",
        str(tmp_path / "r"),
    ]
    ended = forked.together(2, see_the_newest_checkpoint_late, saved_twice, words)
    assert [rank.returncode for rank in ended] == [2, 2], ended
    assert any("the processes see different init.content" in rank.stderr for rank in ended), ended


def test_a_checkpoint_that_another_machine_sees_late_is_waited_for(
    saved_twice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = object.__new__(session.Session)
    other.folder, other.main = saved_twice, False
    monkeypatch.setattr(session, "from_first", lambda value: 4)
    numbered, looks = sealed.numbered, [0]

    def late(parent: Path) -> dict[int, Path]:
        looks[0] += 1
        return {step: folder for step, folder in numbered(parent).items() if step < 4 or looks[0] > 2}

    monkeypatch.setattr(sealed, "numbered", late)
    found = other.newest_checkpoint()
    assert found is not None
    assert found.step == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"length": "9 steps"}, "the processes see different length, the first one and process 1;"),
        (
            {"diagnose": {"every": "7 steps"}},
            "the processes see different diagnose.every, the first one and process 1;",
        ),
        ({"data": {"content": "b"}}, r"the processes see different data \(data.content\); copy one and the same set"),
    ],
)
def test_processes_that_have_read_another_recipe_do_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], said: str | None
) -> None:
    """One that evaluates at another step would wait for the others, and they for it."""
    common: dict[str, object] = {"length": "4 steps", "diagnose": {"every": "2 steps"}, "data": {"content": "a"}}
    seen = [(0, session.flat(one)) for one in (common, common | change)]
    monkeypatch.setattr(session, "from_all", lambda value: seen)
    here = object.__new__(session.Session)
    here.folder = tmp_path
    if said is None:
        here.agree(None, common)
        return
    with pytest.raises(ConfigError, match=said):
        here.agree(None, common)


def test_a_process_with_other_versions_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    said = list[str]()
    here = object.__new__(session.Session)
    here.say, here.processes = said.append, 3  # type: ignore[method-assign]
    monkeypatch.setattr(session, "from_all", lambda own: [own, own, own | {"torch": "0.1"}])
    here.compare_versions()
    other = f"torch 0.1 in place of {session.versions()['torch']} of the first one"
    assert said == [f"warning: process 2 runs on {other}; results may differ"]
    monkeypatch.setattr(session, "from_all", lambda own: [own, own])
    here.compare_versions()
    assert len(said) == 1
    before = {name: version for name, version in session.versions().items() if name != "pydantic"} | {"spare": "1.0"}
    monkeypatch.setattr(session, "from_all", lambda own: [own, before])
    here.compare_versions()  # with a machine whose mrp names other packages
    assert re.search(r"process 1 runs on pydantic unknown in place of \S+, spare 1.0 in place of unknown of", said[1])
    here.processes = 1
    monkeypatch.setattr(session, "versions", lambda: pytest.fail("git is asked, and there is nobody to compare with"))
    here.compare_versions()


def test_processes_of_different_models_do_not_start(tmp_path: Path) -> None:
    """The folder is new, so nothing but the exchange between the processes can tell."""
    ended = forked.together(2, train_a_width_of_its_own, tmp_path / "run")
    assert [rank.returncode for rank in ended] == [2, 2], ended
    assert all("the processes see different backbone.width, the first one and" in rank.stderr for rank in ended), ended
    assert not any("Traceback" in rank.stderr for rank in ended)


def train_a_width_of_its_own(folder: Path) -> None:
    width = 24 + 8 * int(os.environ["RANK"])
    main(["pretrain", *RECIPE, f"backbone.width={width}", "backbone.heads=2", "--folder", str(folder)])


def see_the_newest_checkpoint_late(run: Path, words: list[str]) -> None:
    """Trains where the second process does not see the newest checkpoint of a run."""
    numbered = sealed.numbered

    def late(parent: Path) -> dict[int, Path]:
        found = numbered(parent)
        if parent == run / "checkpoints":
            del found[max(found)]
        return found

    if os.environ["RANK"] == "1":
        sealed.numbered = late
    main(words)
