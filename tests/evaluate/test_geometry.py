"""Measures of collapse against naive oracles and against spaces whose geometry is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mrp.evaluate import geometry

COLLAPSED = torch.tensor([[3.0, -4.0, 12.0]]).repeat(6, 1)


def random(rows: int = 23, width: int = 7, seed: int = 0) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) + 0.5


def unit(row: Tensor) -> Tensor:
    return row.double() / row.double().norm()


def squared_distance(first: Tensor, second: Tensor) -> float:
    return float(((unit(first) - unit(second)) ** 2).sum())


def test_rank_me() -> None:
    features = random()
    eigenvalues = torch.linalg.eigvalsh(features.double().T @ features.double())
    shares = [math.sqrt(value) for value in eigenvalues.tolist()]
    shares = [share / sum(shares) for share in shares]
    expected = math.exp(-sum(share * math.log(share) for share in shares))
    assert geometry.rank_me(features) == pytest.approx(expected)
    assert geometry.rank_me(1000 * features) == pytest.approx(expected)
    assert geometry.rank_me(torch.eye(5)) == pytest.approx(5)
    assert geometry.rank_me(COLLAPSED) == pytest.approx(1)
    assert geometry.rank_me(torch.zeros(4, 3)) == 1.0


def test_participation_ratio() -> None:
    features = random()
    eigenvalues = torch.linalg.eigvalsh(torch.cov(features.double().T)).tolist()
    expected = sum(eigenvalues) ** 2 / sum(value**2 for value in eigenvalues)
    assert geometry.participation_ratio(features) == pytest.approx(expected)
    assert geometry.participation_ratio(features + 100) == pytest.approx(expected, rel=1e-4)  # centred
    assert geometry.participation_ratio(torch.cat([torch.eye(5), -torch.eye(5)])) == pytest.approx(5)
    assert geometry.participation_ratio(torch.arange(8.0)[:, None] * torch.ones(3)) == pytest.approx(1)
    assert geometry.participation_ratio(COLLAPSED) == 0.0


def test_alignment() -> None:
    first, second = random(seed=1), random(seed=2)
    pairs = list(zip(first, second, strict=True))
    expected = sum(squared_distance(*pair) for pair in pairs) / len(pairs)
    assert geometry.alignment(first, second) == pytest.approx(expected)
    assert geometry.alignment(first, 3 * first) == pytest.approx(0, abs=1e-12)
    assert geometry.alignment(first, -first) == pytest.approx(4)


@pytest.mark.parametrize("chunk", [1, 5, 23, 1024])
def test_uniformity(chunk: int) -> None:
    features = random()
    kernels = [
        math.exp(-2 * squared_distance(x, y)) for i, x in enumerate(features) for j, y in enumerate(features) if i != j
    ]
    assert geometry.uniformity(features, chunk) == pytest.approx(math.log(sum(kernels) / len(kernels)))


def test_uniformity_of_known_spaces() -> None:
    assert geometry.uniformity(COLLAPSED) == pytest.approx(0, abs=1e-12)
    assert geometry.uniformity(torch.eye(5)) == pytest.approx(-4)


def test_gram_uniformity() -> None:
    features = random()
    gram = [float(unit(x) @ unit(y)) ** 2 for x in features for y in features]
    assert geometry.gram_uniformity(features) == pytest.approx(sum(gram) / len(gram))
    assert geometry.gram_uniformity(COLLAPSED) == pytest.approx(1)
    assert geometry.gram_uniformity(torch.eye(3, 5)) == pytest.approx(1 / 3)
    balanced = torch.cat([torch.eye(5), -torch.eye(5)])
    assert geometry.gram_uniformity(balanced) == pytest.approx(1 / geometry.participation_ratio(balanced))


def test_feature_variance() -> None:
    features = random(6, 2)
    columns = [[float(value) for value in column] for column in features.double().T]
    spread = [sum((x - sum(column) / 6) ** 2 for x in column) / 6 for column in columns]
    assert geometry.feature_variance(features) == pytest.approx(sum(spread) / 2)
    assert geometry.feature_variance(COLLAPSED) == 0.0
