"""Whether ways of computing stay together is judged by the spread of the seeds."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mrp import certify
from mrp.cli import main
from mrp.config import ConfigError
from tests import forked

STEPS = 400


def losses(seeds: int = 2, shift: float = 0.0, opens_at: int = 0) -> Any:
    """Returns falling losses whose seeds lie 0.02 apart, shifted from a step on."""
    steps = np.arange(STEPS)
    rows = [1 / (1 + steps / 50) + 0.02 * seed for seed in range(seeds)]
    return np.stack(rows) + np.where(steps >= opens_at, shift, 0.0)


def gap(other: Any) -> certify.Gap:
    """Returns the gap of one way."""
    (only,) = certify.compared({"eager fp32": losses(), "other": other}, {"eager fp32": 2.0, "other": 5.0})
    return only


def test_the_same_losses_are_within() -> None:
    """No gap, however small the spread."""
    same = gap(losses())
    assert same.within
    assert max(map(abs, same.gaps)) == 0
    assert same.speed == 2.5


def test_the_spread_is_the_deviation_of_the_seeds() -> None:
    """Two seeds that lie 0.02 apart have a standard deviation of 0.02 / sqrt 2 in every window."""
    assert gap(losses()).spread == pytest.approx([0.02 / np.sqrt(2)] * certify.WINDOWS)


@pytest.mark.parametrize(("shift", "within"), [(0.01, True), (-0.01, True), (0.02, False), (-0.02, False)])
def test_a_gap_is_judged_by_the_spread(shift: float, within: bool) -> None:
    """A constant gap beside a spread of 0.014."""
    assert gap(losses(shift=shift)).within is within


def test_a_gap_that_opens_late_is_found_where_it_is() -> None:
    """The last tenth of the training decides."""
    late = gap(losses(shift=0.05, opens_at=360))
    assert not late.within
    assert late.worst in (18, 19)


def test_a_loss_that_is_not_finite_is_outside() -> None:
    """A comparison with NaN never says that all is well."""
    broken = losses()
    broken[1, 200] = np.nan
    assert not gap(broken).within


def test_too_little_to_compare_is_refused(tmp_path: Path) -> None:
    """One seed has no spread, and few steps no windows; a misspelt way is named."""
    with pytest.raises(ConfigError, match="--steps: 10 are too few"):
        certify.certify("demo", [], tmp_path, 10)
    with pytest.raises(ConfigError, match="--seeds: the spread of one seed"):
        certify.certify("demo", [], tmp_path, 100, seeds=1)
    with pytest.raises(ConfigError, match="there is no way 'fp8'"):
        certify.certify("demo", [], tmp_path / "a", 100, names=["fp8"])
    with pytest.raises(ConfigError, match="'ddp bf16' needs several processes"):
        certify.certify("demo", [], tmp_path / "b", 100, names=["ddp bf16"])


def test_a_scheduled_learning_rate_keeps_its_own_warm_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certify, "_complete", lambda folder, steps: (losses()[0], 1.0))
    words = ["optim.lr={kind: wsd, value: 0.001, warmup: 5 %}", "optim.warmup=0 steps"]
    certify.certify("demo", words, tmp_path, STEPS, names=["eager bf16"], say=lambda line: None)
    recipe = json.loads((tmp_path / certify.FILE).read_text())["recipe"]
    assert recipe["optim"]["lr"]["warmup"] == "5 %"


def test_a_log_that_lacks_steps_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is complete is not trained again, so nothing would bring them back."""
    monkeypatch.setattr(certify, "_train", lambda *run: None)
    with pytest.raises(ConfigError, match=r"eager-fp32/seed-0: has ended, but its metrics.jsonl lacks steps; remove"):
        certify.certify("demo", [], tmp_path, STEPS, names=["eager bf16"], say=lambda line: None)


def test_what_two_processes_have_trained_is_not_told_as_that_of_four(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, set[Path]] = {2: set(), 4: set()}

    def complete(processes: int, folder: Path, steps: int) -> tuple[Any, float]:
        seen[processes].add(folder)
        return losses()[0], 1.0

    for processes in seen:
        monkeypatch.setattr(certify, "_complete", partial(complete, processes))
        certify.certify("demo", [], tmp_path, STEPS, processes=processes, names=["ddp bf16"], say=lambda line: None)
    assert seen[2] & seen[4] == {tmp_path / "eager-fp32" / f"seed-{seed}" for seed in range(2)}


def test_a_recipe_is_certified(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole verb: four small trainings, the verdict, the picture; a second call trains nothing."""
    forking = SimpleNamespace(run=lambda command, **_: forked.mrp(command[3:]))
    monkeypatch.setattr(certify, "subprocess", forking)
    words = ["certify", "demo", "batch=32", "backbone={width: 32, depth: 1, heads: 2}", "--steps", "40"]
    words += ["--way", "eager bf16", "--folder", str(tmp_path / "out")]
    main(words)
    printed = capsys.readouterr().out
    assert "eager fp32, seed 1: 40 steps" in printed
    assert "within" in printed
    content = json.loads((tmp_path / "out" / certify.FILE).read_text(encoding="utf-8"))
    (way,) = content["ways"]
    assert way["way"] == "eager bf16"
    assert 0 < max(map(abs, way["gaps"])) < min(way["spread"])  # bf16 rounds, so the losses are not the same
    assert (tmp_path / "out" / "certify.png").stat().st_size > 10_000
    main(words)
    assert "40 steps\n" not in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main([*words, "optim.lr=1e-3"])
    assert ended.value.code == 2
    assert "holds results of another recipe" in capsys.readouterr().err
