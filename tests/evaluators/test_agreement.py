"""Evaluators of frozen features against scikit-learn, on the pixels of digits: what each promises, to the digit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.preprocessing import StandardScaler, normalize

from mrp.data.open import open_source
from mrp.evaluate import sweep
from mrp.evaluate.contract import Result
from mrp.evaluate.heads import Schedule
from mrp.evaluate.neighbours import KS, TEMPERATURE
from mrp.evaluate.probe import Probe
from mrp.evaluate.readout import Readout
from mrp.evaluate.table import Table
from mrp.evaluators import centroid, knn, logistic
from mrp.run import load
from tests.evaluators.settings import setting

LONG = Schedule(batches=(1200, 1200), steps=400, most=400)  # every step sees all images
READOUT = Readout((1,), ("mean",), width=64, num_patches=4)


@pytest.fixture(scope="module")
def tables() -> tuple[Table, Table]:
    """Two thirds of the digits to learn from, and the rest, through noise so that mistakes are made."""
    images, labels = load_digits(return_X_y=True)
    random = np.random.default_rng(0)
    order = random.permutation(len(images))
    rows = (images + random.normal(0, 4, images.shape))[order].astype(np.float16)
    keys = torch.arange(len(rows))
    cut = slice(0, 1200), slice(1200, None)
    first, second = (Table({"1.mean": rows[at]}, torch.from_numpy(labels[order][at]), keys[at]) for at in cut)
    return first, second


def measured(kind: type[Probe[Any]], config: object, tables: tuple[Table, Table]) -> tuple[Result, object]:
    digits = open_source("digits", "test")
    evaluator = kind(config, setting(load("demo").data, digits, digits))
    learned = evaluator.learn(tables[0], READOUT)
    return evaluator.count(learned, *tables, READOUT), learned


def arrays(tables: tuple[Table, Table]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    train, test = (np.asarray(table.columns["1.mean"], np.float64) for table in tables)
    return train, tables[0].labels.numpy(), test, tables[1].labels.numpy()


def test_nearest_neighbours_are_right_on_the_same_images(tables: tuple[Table, Table]) -> None:
    result, _ = measured(knn.Evaluator, knn.Config(), tables)
    train, labels, test, answers = arrays(tables)
    for k in KS:
        weights = lambda distance: np.exp(-distance / TEMPERATURE)  # noqa: E731 -- distance is 1 - cosine
        theirs = KNeighborsClassifier(k, metric="cosine", weights=weights).fit(train, labels)
        assert result.values[f"k{k}"] == theirs.score(test, answers), k


def test_the_nearest_class_mean_is_right_on_the_same_images(tables: tuple[Table, Table]) -> None:
    result, _ = measured(centroid.Evaluator, centroid.Config(), tables)
    train, labels, test, answers = arrays(tables)
    theirs = NearestCentroid().fit(normalize(train), labels)
    found = theirs.classes_[cosine_similarity(test, theirs.centroids_).argmax(1)]
    assert result.right is not None
    assert result.right.tolist() == (found == answers).tolist()
    assert result.values["accuracy"] == (found == answers).mean() < 1


def test_logistic_regression_answers_alike_on_all_but_one_image_in_two_hundred(tables: tuple[Table, Table]) -> None:
    result, learned = measured(logistic.Evaluator, logistic.Config(), tables)
    train, labels, test, answers = arrays(tables)
    assert isinstance(learned, logistic.Learned)
    scaler = StandardScaler().fit(train)
    theirs = LogisticRegression(C=1 / (learned.classifier.l2 * len(train)), max_iter=10_000, tol=1e-8)
    right = theirs.fit(scaler.transform(train), labels).predict(scaler.transform(test)) == answers
    assert result.right is not None
    assert (result.right.numpy() == right).mean() > 0.995


def test_a_head_of_the_sweep_answers_as_the_solver_of_the_same_loss(tables: tuple[Table, Table]) -> None:
    """On so few columns that no head is right everywhere: then the loss has a minimum without any decay."""
    train, test = (
        Table({"1.mean": table.columns["1.mean"][:][:, 26:38]}, table.labels, table.keys) for table in tables
    )
    choice = sweep.choose(
        train, sweep.parts_of(train), sweep.inputs([1], ["mean"]), torch.device("cpu"), [0.03], [0.0], LONG
    )
    head = sweep.fit(choice, train, torch.device("cpu"), LONG)
    rows, labels, others, answers = arrays((train, test))
    scaler = StandardScaler().fit(rows)
    theirs = LogisticRegression(C=1e6, max_iter=10_000).fit(scaler.transform(rows), labels)
    same = head.predict(test).numpy() == theirs.predict(scaler.transform(others))
    assert same.mean() > 0.99
    assert float((head.predict(test) == test.labels).double().mean()) == pytest.approx(
        theirs.score(scaler.transform(others), answers), abs=0.005
    )
