"""The sweep on a small backbone: crops beside whole images, options, and what is shared between evaluators."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mrp.build import build_step
from mrp.data.open import open_source
from mrp.data.subset import evenly_spaced
from mrp.evaluate import sweep
from mrp.evaluate.contract import Result, Setting, never
from mrp.evaluate.heads import Schedule
from mrp.evaluators import attentive, invariance, linear, logistic
from mrp.processes.signals import Interrupted
from mrp.run import Run, load
from mrp.step import Step
from tests.evaluators.settings import setting


@pytest.fixture(scope="module")
def run() -> Run:
    return load("demo", ["backbone.width=16", "backbone.depth=2", "backbone.heads=2"])


@pytest.fixture
def at(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    monkeypatch.setattr(Schedule, "of", lambda schedule, count: (16, count // 16, 1))  # one epoch
    train, test = (evenly_spaced(open_source("digits", split), 150) for split in ("train", "test"))
    return setting(run.data, train, test, folder=tmp_path)


@pytest.fixture(scope="module")
def step(run: Run) -> Step:
    return build_step(run).eval()


def measure(at: Setting, step: Step, **options: object) -> Result:
    with at.tables.of("weights"):
        return linear.Evaluator(linear.Config.model_validate(options), at).measure(step, 0, never)


def test_heads_learn_from_crops_beside_whole_images(at: Setting, step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    train = sweep.train

    def noted(groups: object, table: object, rows: object, *others: object) -> None:
        seen.append((table.views, len(rows)))  # type: ignore[attr-defined, arg-type]
        train(groups, table, rows, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(sweep, "train", noted)
    plain, crops = measure(at, step), measure(at, step, crops=2)
    assert seen[:2] == [(1, seen[0][1]), (1, 150)]
    assert seen[2:] == [(3, 3 * seen[0][1]), (3, 450)]
    assert plain.details["num_train"] == crops.details["num_train"] == 150
    assert plain.details["trials"] != crops.details["trials"]
    assert len({folder.name.partition("-")[0] for folder in at.tables.folder.iterdir()}) == 4  # two crops, both splits
    assert measure(at, step, crops=2).details == crops.details  # from the disk


def test_a_fraction_of_the_labels(at: Setting, step: Step) -> None:
    counts = np.bincount(at.train.labels)
    assert measure(at, step, fraction=0.5).details["num_train"] == int(np.round(0.5 * counts).sum())


def test_a_choice_is_shared_only_where_the_options_are_the_same(
    at: Setting, step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    choose = sweep.choose

    def noted(*given: object, **named: object) -> sweep.Choice:
        made.append(1)
        return choose(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(sweep, "choose", noted)
    with at.tables.of("weights"):
        for evaluator in (
            linear.Evaluator(linear.Config(), at), logistic.Evaluator(logistic.Config(), at),
            linear.Evaluator(linear.Config(inputs="dinov2"), at), linear.Evaluator(linear.Config(fraction=0.5), at),
        ):  # fmt: skip
            evaluator.measure(step, 0, never)
    assert len(made) == 3


@pytest.mark.parametrize("kind", [linear, attentive, invariance])
def test_who_trains_heads_alone_leaves_them_when_the_run_is_told_to_end(kind: Any, at: Setting, step: Step) -> None:
    """The others wait at the pause meanwhile, and learn there that they have to leave."""
    beats, asked = [0], [False]

    def beat() -> None:
        beats[0] += 1
        if beats[0] == 3:
            asked[0] = True
            raise Interrupted

    def pause() -> None:
        if asked[0]:
            raise Interrupted

    evaluator = kind.Evaluator(kind.Config(), replace(at, beat=beat))
    with at.tables.of("weights"), pytest.raises(Interrupted):
        evaluator.measure(step, 0, pause)
    assert beats == [3]
