"""The regression against scikit-learn's logistic regression, and what it must not look at."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from mrp import progress
from mrp.evaluate import logistic
from mrp.evaluate.split import Split, split
from mrp.processes.signals import Interrupted


def data(count: int, seed: int, classes: int = 3, width: int = 6) -> tuple[Tensor, Tensor]:
    """Overlapping classes in correlated features of very different scales, one of which is constant."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=random)
    features = torch.randn(count, width, generator=random) + torch.nn.functional.one_hot(labels, width)
    features = features @ torch.randn(width, width, generator=torch.Generator().manual_seed(99))
    return torch.cat([features * 10 ** torch.linspace(-3, 3, width), torch.full((count, 1), 0.3)], dim=1), labels


def parts(labels: Tensor) -> Split:
    return split(labels, torch.arange(len(labels)), share=0.2)


def test_a_request_to_end_is_heard_in_each_round() -> None:
    """With the labels of ImageNet one fit takes minutes, and a run that is told to end has two."""
    features, labels = data(200, 0)
    heard = []

    def beat() -> None:
        heard.append(len(heard))
        if len(heard) == 4:
            raise Interrupted

    with pytest.raises(Interrupted), progress.beating(beat):
        logistic.train(features, labels, parts(labels))
    assert heard == [0, 1, 2, 3]


def measure(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> dict[str, Any]:
    fitted = logistic.train(train, train_labels, parts(train_labels))
    return {"accuracy": float((fitted.predict(test) == test_labels).double().mean()), **fitted.about()}


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    features, targets = torch.from_numpy(images[order]).float(), torch.from_numpy(labels[order])
    return features[:1400], targets[:1400], features[1400:], targets[1400:]


@pytest.mark.parametrize("l2", [1e-1, 1e-3, 1e-5])
def test_fit_agrees_with_scikit_learn(l2: float) -> None:
    features, labels = data(300, seed=0)
    coordinates = logistic.Coordinates.of(features)
    weights = logistic.fit(coordinates(features), labels, l2, torch.zeros(8, 3, dtype=torch.float64), chunk=64)
    found = torch.addmm(weights[-1], coordinates(features), weights[:-1]).softmax(dim=1)

    standard = StandardScaler().fit_transform(features[:, :-1].double().numpy())
    theirs = LogisticRegression(C=1 / (len(features) * l2), tol=1e-9, max_iter=10000).fit(standard, labels.numpy())
    np.testing.assert_allclose(found.numpy(), theirs.predict_proba(standard), atol=1e-4)


def test_digits() -> None:
    train, train_labels, test, test_labels = digits()
    found = measure(train, train_labels, test, test_labels)
    assert found["accuracy"] > 0.95
    assert found["train_accuracy"] > 0.98
    assert found["num_train"] == 1400
    assert list(found["held_out"]) == [f"{l2:g}" for l2 in logistic.STRENGTHS]
    best = max(found["held_out"].values())
    assert found["l2"] == max(l2 for l2 in logistic.STRENGTHS if found["held_out"][f"{l2:g}"] == best)
    assert json.loads(json.dumps(found)) == found
    assert measure(train, train_labels, test, test_labels) == found


def test_noise_calls_for_a_strong_penalty() -> None:
    random = torch.Generator().manual_seed(0)
    features, labels = torch.randn(240, 200, generator=random), torch.arange(240) % 2
    features[:, 0] += 2 * labels
    found = measure(features, labels, features, labels)
    assert found["l2"] > 1e-3
    assert found["held_out"][f"{found['l2']:g}"] > found["held_out"]["1e-06"]


def test_collapsed_features_give_the_largest_class() -> None:
    labels = torch.tensor([0] * 12 + [1] * 28)
    found = measure(torch.full((40, 5), 0.7), labels, torch.full((40, 5), 0.7), labels)
    assert found["accuracy"] == pytest.approx(0.7)


def test_too_few_classes_or_samples() -> None:
    features = torch.eye(4)
    with pytest.raises(ValueError, match="at least two classes"):
        measure(features, torch.ones(4, dtype=torch.int64), features, torch.arange(4))
    with pytest.raises(ValueError, match="two training samples"):
        measure(features, torch.arange(4), features, torch.arange(4))
