"""Invariance: which changes features are compared under, and which head is counted on occluded images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mrp.data.order import keys
from mrp.evaluate import sweep
from mrp.evaluate.contract import Setting, never
from mrp.evaluate.heads import Schedule
from mrp.evaluate.views import Occluded
from mrp.evaluators.invariance import Config, Evaluator
from mrp.evaluators.linear import Config as LinearConfig
from mrp.evaluators.linear import Evaluator as Linear
from mrp.run import load
from mrp.step import Step
from tests.evaluators.settings import setting, some

DATA = load("demo").data


@pytest.fixture
def at() -> Setting:
    return setting(DATA, some("train", 300), some("test", 100), batch=64)


@pytest.fixture(autouse=True)
def few_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = Schedule(epochs=2, steps=40)
    monkeypatch.setattr(sweep.choose, "__defaults__", ((1e-2, 1e-1), (0.0,), schedule, *sweep.choose.__defaults__[3:]))


def test_cosines_and_the_accuracy_of_the_head_of_linear(at: Setting, step: Step) -> None:
    result = Evaluator(Config(hidden=(0.25, 0.75), crops=(0.5,)), at).measure(step, 0, never)
    assert result.values["accuracy"] == Linear(LinearConfig(), at).measure(step, 0, never).values["accuracy"]
    assert set(result.values) == {
        "accuracy", "mirrored_cosine", "crop_50_cosine",
        "hidden_25_cosine", "hidden_25_accuracy", "hidden_75_cosine", "hidden_75_accuracy",
    }  # fmt: skip
    assert result.values["hidden_25_cosine"] > result.values["hidden_75_cosine"]
    assert result.values["accuracy"] > result.values["hidden_75_accuracy"]
    assert [(one["change"], one["share"]) for one in result.details["curve"]] == [
        ("mirrored", None), ("crop", 0.5), ("hidden", 0.25), ("hidden", 0.75)
    ]  # fmt: skip
    assert result.details["curve"][3]["accuracy"] == result.values["hidden_75_accuracy"]

    assert at.test is not None
    view, images = Occluded(DATA, 0.75, (2, 2)), [torch.from_numpy(np.array(at.test.read(i)[0])) for i in range(100)]
    numbers = keys(0, 0, np.arange(100)).tolist()
    clean = torch.stack([image.permute(2, 0, 1) for image in images])
    hidden = torch.stack([view(image, key) for image, key in zip(clean, numbers, strict=True)])
    with torch.no_grad():
        rows = [step.objective.features(prepared(step, batch)) for batch in (clean, hidden)]
    plain, centred = (
        float(torch.nn.functional.cosine_similarity(rows[0] - mean, rows[1] - mean).mean())
        for mean in (0, rows[0].mean(0))
    )
    assert result.values["hidden_75_cosine"] == pytest.approx(centred, abs=1e-3)
    assert result.details["curve"][3]["with_mean"] == pytest.approx(plain, abs=1e-3)
    others = torch.nn.functional.cosine_similarity(rows[0], rows[0].roll(50, 0)).mean()
    assert result.details["others_with_mean"] == pytest.approx(float(others), abs=1e-3)


def prepared(step: Step, images: torch.Tensor) -> Any:
    from mrp.batch import Batch

    return Batch(step.prepare(images), torch.zeros(len(images), dtype=torch.int64))


def test_without_labels_there_are_cosines_alone(at: Setting, step: Step) -> None:
    bare = replace(at, test=None)
    for setting_, config in ((bare, Config(images=40)), (at, Config(images=40, probe=False))):
        result = Evaluator(config, setting_).measure(step, 0, never)
        assert result.details["images"] == 40
        assert not [name for name in result.values if "accuracy" in name]


def test_a_share_that_is_none() -> None:
    with pytest.raises(ValueError, match="allowed: shares between 0 and 1"):
        Config(hidden=(0.5, 1.5))
