"""A run may be killed at any instruction: run again, it ends where an undisturbed one ends, bit for bit."""

from __future__ import annotations

import json
import random
from functools import partial
from pathlib import Path

import pytest

from mrp.checkpoint import checkpoints, sealed
from mrp.cli import main
from mrp.model import load
from tests.forked import Started
from tests.trained import NARROW, pretrained

STEPS = 60
# Saves at every other step, so that a kill often falls into one; a flip, so that the keys decide the pixels.
RECIPE = [
    "pretrain", "demo", f"length={STEPS} steps", "optim.warmup=5 steps", "checkpoint.every=2 steps", "batch=64",
    "objective.decoder.depth=1", "backbone.depth=2", "backbone.width=32", "data.augment={name: resize, flip: true}",
    "track.every=1",
]  # fmt: skip


def start(folder: Path, *more: str) -> Started:
    return Started(main, [*RECIPE, *more, "--folder", str(folder)])


def finish(folder: Path, *more: str) -> None:
    ended = start(folder, *more).end()
    assert ended.returncode == 0, ended


def newest(folder: Path) -> int:
    """The step of the last checkpoint, whose content is not read: asking must not slow the run down."""
    return max(sealed.numbered(folder / "checkpoints"), default=0)


def reached(folder: Path, step: int) -> bool:
    return newest(folder) >= step


def content(folder: Path) -> dict[str, bytes]:
    found = checkpoints.newest(folder)
    assert found is not None
    assert found.step == STEPS
    machines = {"config.yaml", "MANIFEST.json"}  # how many workers there were is written there
    return {path.name: path.read_bytes() for path in found.folder.iterdir() if path.name not in machines}


def losses(folder: Path) -> list[tuple[int, float, float]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"], line["gradient_norm"]) for line in lines]


def test_a_run_changes_in_its_midst_as_it_says_or_not_at_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, short = tmp_path / "run", [*NARROW, "optim.warmup=0 steps"]
    pretrained(folder, *short, "length=2 steps")
    before = {name: (folder / name).read_bytes() for name in ("identity.json", "config.yaml", "metrics.jsonl")}
    refused = {
        (
            "length=1 steps",
            "resume.allow=[length]",
        ): f"length: 1 steps end at step 1, and {folder} has reached step 2; ",
        ("backbone.depth=3", "resume.allow=[backbone]"): "is of another model: 'objective.backbone.blocks.",
    }
    for words, line in refused.items():
        with pytest.raises(SystemExit, match="2"):
            pretrained(folder, *short, "length=2 steps", *words)
        assert line in capsys.readouterr().err
        assert before == {name: (folder / name).read_bytes() for name in before}
    pretrained(folder, *short, "length=3 steps", "data.mean=0.25", "resume.allow=[length, data.mean]")
    assert load(folder).module.prepare.mean.item() == 0.25
    saved = checkpoints.newest(folder)
    assert saved is not None
    assert saved.weights()["prepare.mean"].item() == 0.25


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(folder)
    return folder


def test_killed_six_times_it_ends_bit_equal(undisturbed: Path, tmp_path: Path) -> None:
    generator = random.Random(20)
    folder = tmp_path / "run"
    kills = 0
    while kills < 6:
        # In turn with images that are held in memory, as `auto` has it here, and read anew by workers.
        run = start(folder, *(["machine.workers=2", "machine.resident=no"] if kills % 2 else []))
        # Wait until it has come a little further than last time, then strike at a random moment.
        target = newest(folder) + generator.randrange(2, 7)
        run.kill_when(partial(reached, folder, target), later=generator.random() * 0.03)
        kills += 1
    finish(folder)
    assert content(folder) == content(undisturbed)
    assert losses(folder) == losses(undisturbed)
    assert not list((folder / "checkpoints").glob(".*"))


def test_a_complete_run_is_left_alone(undisturbed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("checkpoints/**/*")}
    main([*RECIPE, "--folder", str(undisturbed)])
    assert "complete already, at step 60" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in undisturbed.rglob("checkpoints/**/*")}
    assert [step for step, _, _ in losses(undisturbed)] == list(range(1, STEPS + 1))


def test_neither_workers_nor_the_pace_of_saving_change_anything(undisturbed: Path, tmp_path: Path) -> None:
    finish(
        tmp_path / "run", "machine.workers=3", "machine.resident=no", "checkpoint.every=1 epoch", "checkpoint.keep=1"
    )
    theirs, ours = content(undisturbed), content(tmp_path / "run")
    assert ours == theirs
    assert len(checkpoints.listed(tmp_path / "run")) == 1
