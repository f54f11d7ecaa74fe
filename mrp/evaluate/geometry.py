"""Measures of how features fill their space, which show a collapse without labels.

Everything is computed in float64, because the small eigenvalues tell a collapsed space from a narrow one.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def rank_me(features: Tensor) -> float:
    """Returns the effective rank exp(-sum p log p), p = s / sum s, s the singular values of the features (RankMe)."""
    if not features.isfinite().all():
        return math.nan
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    return math.exp(float(torch.special.entr(shares).sum()))


def participation_ratio(features: Tensor) -> float:
    """Returns (sum l)^2 / sum l^2, l the eigenvalues of the covariance: D if isotropic, 1 on a line, 0 if all equal."""
    centred = features.double() - features.double().mean(dim=0)
    covariance = centred.T @ centred / len(centred)  # D D
    return float(covariance.trace() ** 2 / covariance.square().sum().clamp_min(torch.finfo(covariance.dtype).tiny))


def alignment(first: Tensor, second: Tensor) -> float:
    """Returns E ||x - y||^2 over pairs of rows on the unit sphere (Wang and Isola, 2020): 0 when each pair agrees."""
    return float((_on_sphere(first) - _on_sphere(second)).square().sum(dim=1).mean())


def uniformity(features: Tensor, chunk: int = 1024) -> float:
    """Returns log E exp(-2 ||x - y||^2) over pairs of rows on the unit sphere (Wang and Isola): 0 when collapsed."""
    rows = _on_sphere(features)
    total = 0.0
    for start in range(0, len(rows), chunk):
        kernel = (4 * (rows[start : start + chunk] @ rows.T) - 4).exp()  # chunk N, for ||x - y||^2 = 2 - 2 x.y
        kernel.diagonal(offset=start).zero_()
        total += float(kernel.sum())
    return math.log(total / (len(rows) * (len(rows) - 1)))


def gram_uniformity(features: Tensor) -> float:
    """Returns ||Z^T Z / N||_F^2, Z the rows on the unit sphere (U-MAE): 1 if collapsed, 1 / min(N, D) at best."""
    rows = _on_sphere(features)
    return float((rows.T @ rows / len(rows)).square().sum())


def feature_variance(features: Tensor) -> float:
    """Returns the variance over samples, sum (x - mean)^2 / N, averaged over the D features: 0 when collapsed."""
    return float(features.double().var(dim=0, correction=0).mean())


def spread(features: Tensor) -> float:
    """Returns the variance over samples as a share of the mean square: 0 when all features are equal."""
    features = features.double()
    return float((features - features.mean(0)).square().sum() / features.square().sum().clamp_min(1e-300))


def _on_sphere(features: Tensor) -> Tensor:
    return F.normalize(features.double(), dim=1)
