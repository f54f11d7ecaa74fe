"""Calibration of the linear probe and of a classifier: which images tell the temperature, and what is measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mrp.build import build_step
from mrp.config import ConfigError
from mrp.data.source import Arrays
from mrp.evaluate import sweep
from mrp.evaluate.contract import Result, Setting, never
from mrp.evaluate.heads import Schedule
from mrp.evaluators import calibration
from mrp.evaluators.calibration import Config, Evaluator, Scores
from mrp.evaluators.linear import Config as LinearConfig
from mrp.evaluators.linear import Evaluator as Linear
from mrp.run import load
from mrp.step import Step
from tests.evaluators.settings import setting, some, together

TINY = ["backbone.width=16", "backbone.depth=1", "backbone.heads=2"]


@pytest.fixture
def at() -> Setting:
    return setting(load("demo").data, some("train", 400), some("test", 200), batch=64)


@pytest.fixture(autouse=True)
def few_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "LRS", (1e-2, 1e-1))
    monkeypatch.setattr(sweep, "DECAYS", (0.0,))
    schedule = Schedule(epochs=2, steps=40)
    monkeypatch.setattr(sweep.choose, "__defaults__", ((1e-2, 1e-1), (0.0,), schedule, *sweep.choose.__defaults__[3:]))


def test_the_probe_is_that_of_linear_and_its_temperature_is_from_training_images(at: Setting) -> None:
    step = build_step(load("demo", TINY)).eval()
    linear = Linear(LinearConfig(), at).measure(step, 0, never)
    evaluator = Evaluator(Config(), at)
    result = evaluator.measure(step, 0, never)
    assert set(result.values) == set(Evaluator.value_names(()))
    assert result.values["accuracy"] == linear.values["accuracy"]
    assert linear.right is not None
    assert result.right is not None
    assert torch.equal(result.right, linear.right)
    assert (result.details["of"], result.details["num_train"], result.details["num_test"]) == ("linear probe", 400, 200)
    assert sum(one["images"] for one in result.details["classes"]) == 200
    assert sum(one["images"] for one in result.details["bins"]) == 200

    assert at.test is not None
    other = some("test", 200)
    other.images = other.images[::-1].copy()  # nothing that is learned changes with the test images
    again = Evaluator(Config(), replace(at, test=other)).measure(step, 0, never)
    assert again.values["temperature"] == result.values["temperature"]
    assert again.values["accuracy"] != result.values["accuracy"]


def pixels(source: Any) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(source.images)).permute(0, 3, 1, 2)


@torch.no_grad()
def classifier() -> Step:
    """Is right in about half of the cases and far too sure of it."""
    torch.manual_seed(0)
    step, train = build_step(load("finetune_tiny_digits", TINY)).eval(), some("train", 400)
    objective: Any = step.objective
    features = objective.predict(step.prepare(pixels(train)))[0]
    solved = torch.linalg.lstsq(features, torch.eye(10)[torch.from_numpy(train.labels)] - 0.1).solution
    objective.head.weight.copy_(20 * solved.T)
    return step


def test_each_half_of_the_test_tells_the_others_temperature(at: Setting) -> None:
    step = classifier()
    result = Evaluator(Config(), at).measure(step, 0, never)
    assert at.test is not None
    with torch.no_grad():
        logits = step.objective.predict(step.prepare(pixels(at.test)))[1].double()  # type: ignore[attr-defined]
    scores = Scores(logits, torch.from_numpy(np.asarray(at.test.labels)))
    expected = calibration.of(scores)
    for name, value in expected.items():
        assert result.values[name] == pytest.approx(value, abs=1e-5), name
    assert result.values["accuracy"] == float((logits.argmax(1) == scores.labels).double().mean())
    whole = calibration.best_temperature(scores)
    assert result.values["temperature"] == pytest.approx(whole, rel=0.2)
    # On the images that it was fitted on, no temperature does better; on others it does a little worse.
    best = calibration.of(scores.at(whole))["nll"]
    assert best <= result.values["scaled_nll"] < 1.05 * best < expected["nll"]
    assert result.values["scaled_ece"] < expected["ece"]
    assert result.details["of"] == "classifier"


@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_say_what_one_says(world: int, at: Setting) -> None:
    """Each of them takes its share; what they gather is put together in the order of the data."""
    step = classifier()
    one = Evaluator(Config(), at).measure(step, 0, never)
    found = list[Result]()

    def measure(processes: Any) -> Result:
        found.append(Evaluator(Config(), replace(at, processes=processes)).measure(step, 0, never))
        return found[-1]

    both = together(world, measure)
    assert not any(other.values for other in found[:-1]), "the first process counts"
    assert both.values == pytest.approx(one.values, abs=1e-5)
    assert one.right is not None
    assert both.right is not None
    assert torch.equal(both.right, one.right)


def test_answers_may_be_limited_to_the_classes_of_the_test(at: Setting) -> None:
    assert at.test is not None
    few = np.isin(np.asarray(at.test.labels), (3, 5))
    test = Arrays("few", at.test.images[few], (np.asarray(at.test.labels)[few] == 5).astype(np.int64), ("3", "5"))  # type: ignore[attr-defined]
    free, limited = (
        Evaluator(Config(), replace(at, test=test, limited=limit)).measure(classifier(), 0, never)
        for limit in (False, True)
    )
    assert limited.values["accuracy"] > free.values["accuracy"]
    assert [one["name"] for one in limited.details["classes"]] == ["3", "5"]


def test_what_cannot_be_measured(at: Setting) -> None:
    with pytest.raises(ConfigError, match="calibration: 1 test images cannot be halved"):
        Evaluator(Config(), replace(at, test=some("test", 1))).measure(classifier(), 0, never)
    other = build_step(load("finetune_tiny_digits", [*TINY, "objective.classes=7"])).eval()
    with pytest.raises(ConfigError, match=r"the model tells 7 classes apart, but data.train has 10"):
        Evaluator(Config(), at).measure(other, 0, never)
