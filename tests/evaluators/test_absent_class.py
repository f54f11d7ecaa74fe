"""A class of the test data of which training has no image: it is no answer, and its images are answered wrongly."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest

from mrp.build import build_step
from mrp.config import ConfigError
from mrp.data.open import open_source
from mrp.data.subset import Subset
from mrp.evaluate import sweep
from mrp.evaluate.contract import Setting, never
from mrp.evaluators import calibration, centroid, few_shot, knn, linear, logistic
from mrp.run import load
from mrp.step import Step
from tests.evaluators.settings import setting

RUN = load("demo", ["backbone.width=16", "backbone.depth=1", "backbone.heads=2"])


@pytest.fixture(scope="module")
def step() -> Step:
    return build_step(RUN).eval()


@pytest.fixture(scope="module")
def at() -> Setting:
    train, test = open_source("digits", "train"), open_source("digits", "test")
    few = Subset(train, np.flatnonzero(np.asarray(train.labels) < 9)[:100])
    return replace(setting(RUN.data, few, Subset(test, np.arange(60))), limited=True)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = sweep.Schedule(epochs=1, steps=5)
    monkeypatch.setattr(sweep.choose, "__defaults__", ((1e-1,), (0.0,), schedule, *sweep.choose.__defaults__[3:]))
    monkeypatch.setattr(sweep.fit, "__defaults__", (schedule, *sweep.fit.__defaults__[1:]))


@pytest.mark.parametrize("evaluator", [knn, centroid, linear, few_shot, logistic])
def test_its_images_are_answered_wrongly(evaluator: ModuleType, step: Step, at: Setting) -> None:
    with at.tables.of("weights"):
        result = evaluator.Evaluator(evaluator.Config(), at).measure(step, 0, never)
    assert 0 < next(iter(result.values.values())) < 1
    if result.right is not None:
        assert at.test is not None
        assert not result.right[np.flatnonzero(np.asarray(at.test.labels) == 9)].any()


def test_its_likelihood_cannot_be_measured(step: Step, at: Setting) -> None:
    with at.tables.of("weights"), pytest.raises(ConfigError, match="calibration: no training image that was learned"):
        calibration.Evaluator(calibration.Config(), at).measure(step, 0, never)
