"""Calibration against cases worked out by hand, and against scikit-learn."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.metrics import log_loss

from mrp.evaluators import calibration
from mrp.evaluators.calibration import Scores


def said(rows: list[list[float]], labels: list[int]) -> Scores:
    """Answers with these probabilities."""
    return Scores(torch.tensor(rows, dtype=torch.float64).log(), torch.tensor(labels))


def random(count: int = 500, classes: int = 7, scale: float = 2.0) -> Scores:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(count, classes, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return Scores(scale * logits, labels)


def test_by_hand() -> None:
    """Two images at .7, one of them right; one at .95, right: bins of width 1/15 part them."""
    found = calibration.of(said([[0.7, 0.3], [0.3, 0.7], [0.05, 0.95]], [0, 0, 1]))
    assert found["ece"] == pytest.approx((2 * abs(0.7 - 0.5) + abs(0.95 - 1)) / 3)
    assert found["ece_equal_mass"] == pytest.approx((0.3 + 0.7 + 0.05) / 3)  # each image is a bin of its own
    assert found["nll"] == pytest.approx(-(math.log(0.7) + math.log(0.3) + math.log(0.95)) / 3)
    assert found["brier"] == pytest.approx(2 * (0.3**2 + 0.7**2 + 0.05**2) / 3)


def test_whoever_is_sure_and_right_has_no_error() -> None:
    sure = Scores(torch.tensor([[900.0, 0.0], [0.0, 900.0]]).double(), torch.tensor([0, 1]))
    assert calibration.of(sure) == {"ece": 0, "ece_equal_mass": 0, "nll": 0, "brier": 0}


def test_against_other_ways_to_compute_them() -> None:
    scores = random()
    shares = scores.logits.softmax(1).numpy()
    found = calibration.of(scores)
    assert found["nll"] == pytest.approx(log_loss(scores.labels.numpy(), shares, labels=range(7)), rel=1e-9)
    confidence, right = shares.max(1), shares.argmax(1) == scores.labels.numpy()
    edges = np.linspace(0, 1, 16)
    inside = [(confidence > low) & (confidence <= high) for low, high in itertools.pairwise(edges)]
    gaps = [abs(confidence[part].mean() - right[part].mean()) * part.sum() for part in inside if part.any()]
    assert found["ece"] == pytest.approx(sum(gaps) / 500, rel=1e-9)
    order = np.array_split(np.argsort(confidence, kind="stable"), 15)
    sizes = {len(part) for part in order}
    gaps = [abs(confidence[part].mean() - right[part].mean()) * len(part) for part in order]
    assert sizes == {33, 34}
    assert found["ece_equal_mass"] == pytest.approx(sum(gaps) / 500, abs=0.01)  # bins differ by an image


def test_the_temperature_is_the_best_one() -> None:
    scores = random(scale=2.0)
    found = calibration.best_temperature(scores)
    best = minimize_scalar(
        lambda log: calibration.of(scores.at(math.exp(log)))["nll"], bounds=(-3, 3), method="bounded",
        options={"xatol": 1e-9},
    )  # fmt: skip
    assert found == pytest.approx(math.exp(best.x), rel=1e-6)
    assert found == pytest.approx(2.0, rel=0.15)  # labels were drawn at this temperature
    assert calibration.of(scores.at(found))["ece"] < calibration.of(scores)["ece"]


def test_the_temperature_of_scores_without_an_error_stays_within_bounds() -> None:
    perfect = Scores(torch.eye(3).double(), torch.arange(3))
    assert calibration.best_temperature(perfect) == pytest.approx(1e-3)
    hopeless = Scores(torch.eye(3).double(), (torch.arange(3) + 1) % 3)
    assert calibration.best_temperature(hopeless) == pytest.approx(1e3)


def test_one_temperature_for_each_image() -> None:
    scores = random(4)
    assert torch.equal(scores.at(torch.tensor([1.0, 2, 1, 2])).logits[1], scores.logits[1] / 2)


def test_classes_and_bins() -> None:
    scores = said([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.5, 0.1, 0.4]], [0, 1, 1])
    first, second, third = calibration.by_class(scores, ("a", "b", "c"))
    assert first == {"name": "a", "images": 1, "accuracy": 1, "confidence": pytest.approx(0.7), "precision": 0.5}
    assert second == {"name": "b", "images": 2, "accuracy": 0.5, "confidence": pytest.approx(0.55), "precision": 1}
    assert third == {"name": "c", "images": 0, "accuracy": None, "confidence": None, "precision": None}
    bins = calibration.reliability(scores)
    assert [number for number, one in enumerate(bins) if one["images"]] == [7, 8, 10]
    assert bins[7] == {"images": 1, "confidence": pytest.approx(0.5), "accuracy": 0}
