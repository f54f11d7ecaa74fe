"""Few-shot: the ridge against scikit-learn's, and draws that are pinned."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from mrp.data.open import open_source
from mrp.evaluate.contract import Result
from mrp.evaluate.readout import Readout
from mrp.evaluate.table import Table
from mrp.evaluators import few_shot
from mrp.run import load
from tests.evaluators.settings import setting


def table(count: int, seed: int, gap: float = 1.5) -> Table:
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    values = random.normal(size=(count, 6)) + gap * np.eye(6)[labels]
    return Table({"1.mean": values.astype(np.float16)}, torch.from_numpy(labels), torch.arange(count) + 1000 * seed)


@pytest.mark.parametrize("count", [4, 30])  # fewer samples than columns, and more
def test_the_ridge_is_scikit_learns(count: int) -> None:
    random = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(count, 6, generator=random), torch.arange(count) % 3
    weights = few_shot.ridge(inputs, labels, 3).double()
    centred = inputs.double() - inputs.double().mean(0)
    theirs = Ridge(alpha=float(centred.square().sum(0).mean())).fit(inputs.double(), torch.eye(3)[labels].double())
    np.testing.assert_allclose(weights[:-1].numpy(), theirs.coef_.T, atol=1e-5)
    np.testing.assert_allclose(weights[-1].numpy(), theirs.intercept_, atol=1e-5)


def measured(train: Table, test: Table) -> Result:
    readout, digits = Readout((1,), ("mean",), width=6, num_patches=4), open_source("digits", "test")
    evaluator = few_shot.Evaluator(few_shot.Config(), setting(load("demo").data, digits, digits))
    return evaluator.count(evaluator.learn(train, readout), train, test, readout)


def test_more_images_help_and_draws_are_pinned() -> None:
    train, test = table(300, 1), table(600, 2)
    result = measured(train, test)
    assert result.values["1"] < result.values["5"] < result.values["10"]
    for shots, one in zip((1, 5, 10), result.details["few_shot"], strict=True):
        assert one["shots"] == shots
        assert len(one["draws"]) == few_shot.DRAWS
        assert one["accuracy"] == pytest.approx(sum(one["draws"]) / len(one["draws"]))
        assert one["low"] < one["accuracy"] < one["high"]
    assert len(set(result.details["few_shot"][0]["draws"])) > 1
    assert measured(train, test) == result


def test_equal_draws_leave_the_interval_of_the_test_images() -> None:
    """Of four images per class the draws of 5 and of 10 are all images, each time."""
    one, five, ten = measured(table(12, 1), table(90, 2)).details["few_shot"]
    assert [summary.get("scarce") for summary in (one, five, ten)] == [None, 3, 3]
    assert len(set(one["draws"])) > 1
    for summary in (five, ten):
        assert len(set(summary["draws"])) == 1
        half = 1.96 * (summary["accuracy"] * (1 - summary["accuracy"]) / 90) ** 0.5
        assert summary["high"] - summary["accuracy"] == pytest.approx(half, rel=0.05)
        assert len(summary["groups"]) == 10
        assert np.mean(summary["groups"]) == pytest.approx(summary["accuracy"])


def test_a_single_test_image_has_no_groups() -> None:
    found = few_shot.summary(1, torch.tensor([[True], [False]] * 5))
    assert (found["accuracy"], found["groups"]) == (0.5, [])
    assert found["low"] < 0.5 < found["high"]
