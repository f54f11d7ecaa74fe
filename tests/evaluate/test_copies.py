"""Test images that are training images too: found by their features, and told of once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mrp.build import build_step
from mrp.data.source import Arrays
from mrp.evaluate import copies
from mrp.evaluate.contract import never
from mrp.evaluate.table import Table
from mrp.evaluators import centroid, knn
from mrp.run import load
from tests.evaluators.settings import setting, some


def table(rows: np.ndarray) -> Table:
    numbers = torch.arange(len(rows))
    return Table({"1.mean": rows.astype(np.float16)}, numbers, numbers)


def test_rows_of_equal_bits_are_copies_and_near_ones_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "_CHUNK", 7)
    train = np.random.default_rng(0).normal(size=(50, 24)).astype(np.float16)
    test = np.random.default_rng(1).normal(size=(20, 24)).astype(np.float16)
    test[3], test[17], test[19] = train[49], train[0], train[49]
    test[5] = train[8]
    test[5, 23] = np.nextafter(train[8, 23], np.float16(100))
    found = copies.find(table(train), table(test), "1.mean")
    assert list(zip(found.test.tolist(), found.train.tolist(), strict=True)) == [(3, 49), (17, 0), (19, 49)]


def test_features_of_a_collapsed_model_tell_no_image_apart() -> None:
    found = copies.find(table(np.ones((50, 24))), table(np.ones((20, 24))), "1.mean")
    assert len(found.test) == len(found.train) == 0


def test_evaluators_say_once_that_test_images_are_training_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = load("demo", ["backbone.width=16", "backbone.depth=1", "backbone.heads=2"])
    train, other = some("train", 60), some("test", 30)
    images, labels = other.images.copy(), other.labels.copy()
    images[[4, 9]], labels[[4, 9]] = train.images[[50, 3]], train.labels[[50, 3]]
    test = Arrays(f"digits of {tmp_path}", images, labels, other.classes)
    at = setting(run.data, train, test, folder=tmp_path)
    with at.tables.of("weights"):
        step = build_step(run).eval()
        found = [kind.Evaluator(kind.Config(), at).measure(step, 0, never) for kind in (knn, centroid)]
    assert [result.details["in_training"] for result in found] == [2, 2]
    said = capsys.readouterr().err
    assert said.count("warning: ") == 1
    assert f"2 of 30 test images are training images too, such as digits of {tmp_path}: image 4 (also train: " in said
    clean = setting(run.data, train, other, folder=tmp_path)
    with clean.tables.of("weights"):
        assert "in_training" not in knn.Evaluator(knn.Config(), clean).measure(step, 0, never).details
    assert capsys.readouterr().err == ""
