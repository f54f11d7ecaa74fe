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


def with_spectrum(eigenvalues: Tensor, rows: int = 400) -> Tensor:
    """Features whose covariance has exactly these eigenvalues, along random directions, about a mean far from zero."""
    generator = torch.Generator().manual_seed(0)
    width = len(eigenvalues)
    noise = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(noise - noise.mean(0)).Q  # orthonormal columns without a mean
    axes = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64)).Q
    return basis * (rows * eigenvalues).sqrt() @ axes + 3


def test_effective_rank_is_the_entropy_of_variances() -> None:
    shares = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64)
    assert geometry.effective_rank(with_spectrum(7 * shares)) == pytest.approx(2**1.75)
    assert geometry.effective_rank(torch.cat([torch.eye(5), -torch.eye(5)])) == pytest.approx(5)
    assert geometry.effective_rank(torch.arange(8.0)[:, None] * torch.ones(3)) == pytest.approx(1)
    assert geometry.effective_rank(COLLAPSED) == 1.0


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("width", [6, 24, 150])
def test_alpha_req_is_the_exponent_of_a_power_law(alpha: float, width: int) -> None:
    eigenvalues = torch.arange(1, width + 1).double() ** -alpha
    assert geometry.alpha_req(with_spectrum(eigenvalues)) == pytest.approx(alpha, rel=1e-6)
    if width == 150:  # neither the first ten nor what comes after a hundred count
        eigenvalues[:10] *= 5
        eigenvalues[100:] *= 0.1
        assert geometry.alpha_req(with_spectrum(eigenvalues)) == pytest.approx(alpha, rel=1e-6)


def test_alpha_req_of_too_few_directions() -> None:
    assert math.isnan(geometry.alpha_req(torch.arange(8.0)[:, None] * torch.ones(3)))
    assert math.isnan(geometry.alpha_req(torch.full((4, 3), math.nan)))


def test_lidar_of_known_classes() -> None:
    """Classes lie at +-a_k along axis k, and the views of each at +-b_k around it: both covariances are diagonal."""
    a, b = torch.tensor([3.0, 2.0, 0.5]).double(), torch.tensor([1.0, 0.01, 0.3]).double()
    views = torch.cat([torch.diag(a), -torch.diag(a)])[:, None] + torch.cat([torch.diag(b), -torch.diag(b)])
    assert views.shape == (6, 6, 3)
    ratios = ((a**2 / 3) / (b**2 / 3 + 1e-4)).tolist()
    shares = [ratio / sum(ratios) for ratio in ratios]
    expected = math.exp(-sum(share * math.log(share) for share in shares))
    assert geometry.lidar(views) == pytest.approx(expected)
    turn = torch.linalg.qr(random(3, 3).double()).Q
    assert geometry.lidar(views @ turn + 5) == pytest.approx(expected)


def test_lidar_of_collapsed_features_and_of_views_that_never_differ() -> None:
    assert geometry.lidar(torch.ones(6, 4, 3)) == 1.0
    assert geometry.lidar(torch.cat([torch.eye(4), -torch.eye(4)])[:, None].repeat(1, 3, 1)) == pytest.approx(4)
    assert math.isnan(geometry.lidar(torch.full((6, 4, 3), math.inf)))
