"""Measures of how features fill their space, which show a collapse and foretell a probe's accuracy without labels.

Everything is computed in float64, because the small eigenvalues tell a collapsed space from a narrow one.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_DELTA = 1e-4  # added to the variance within the classes of LiDAR, as in its paper
_FLOOR = 1e-7  # eigenvalues below this share of the largest are rounding of features in half precision
_RANKS = 10, 100  # alpha-ReQ leaves out the first eigenvalues, which follow no power law, and the far tail


def rank_me(features: Tensor) -> float:
    """Returns the effective rank exp(-sum p log p), p = s / sum s, s the singular values of the features (RankMe)."""
    if not features.isfinite().all():
        return math.nan
    return _perplexity(torch.linalg.svdvals(features.double()))


def participation_ratio(features: Tensor) -> float:
    """Returns (sum l)^2 / sum l^2, l the eigenvalues of the covariance: D if isotropic, 1 on a line, 0 if all equal."""
    centred = features.double() - features.double().mean(dim=0)
    covariance = centred.T @ centred / len(centred)  # D D
    return float(covariance.trace() ** 2 / covariance.square().sum().clamp_min(torch.finfo(covariance.dtype).tiny))


def effective_rank(features: Tensor) -> float:
    """Returns exp(-sum p log p), p the eigenvalues of the covariance as shares: RankMe of variances, without a mean."""
    return _perplexity(_eigenvalues(features))


def alpha_req(features: Tensor) -> float:
    """Returns a of the power law rank^-a that the covariance's eigenvalues follow best, by least squares of logarithms.

    It is alpha-ReQ (Agrawal et al., 2022): near 1 where many directions carry variance, larger the fewer do. NaN where
    fewer than two eigenvalues are left.
    """
    values = _eigenvalues(features)
    values = values[values > _FLOOR * values[0]]
    last = min(_RANKS[1], len(values))
    first = min(_RANKS[0], last // 4)
    if last - first < 2:
        return math.nan
    ranks, logs = torch.arange(first + 1, last + 1).double().log(), values[first:last].log()
    ranks = ranks - ranks.mean()
    return -float((ranks * logs).sum() / ranks.square().sum())


def lidar(views: Tensor) -> float:
    """Returns the rank of what tells images apart in spite of their views (images, views, D): LiDAR, Thilak et al.

    Each image is a class and its views are the samples. The rank is exp(-sum p log p), p the shares of the eigenvalues
    of W^-1/2 B W^-1/2, where B is the covariance of the classes' means and W that within classes, plus a little.
    """
    if not views.isfinite().all():
        return math.nan
    means = views.double().mean(dim=1)  # images D
    centred = means - means.mean(dim=0)
    between = centred.T @ centred / len(means)
    within = _DELTA * torch.eye(means.shape[1], dtype=means.dtype, device=means.device)
    for view in views.unbind(1):  # one after another, so that the whole is never there in double precision
        rest = view.double() - means
        within += rest.T @ rest / (len(means) * views.shape[1])
    root = torch.linalg.cholesky(within)  # the eigenvalues are those of any root of W
    half = torch.linalg.solve_triangular(root, between, upper=False)
    return _perplexity(torch.linalg.eigvalsh(torch.linalg.solve_triangular(root, half.T, upper=False)).clamp_min(0))


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


def _perplexity(values: Tensor) -> float:
    """Returns exp(-sum p log p), p the values as shares of their sum: how many of them count."""
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    return math.exp(float(torch.special.entr(shares).sum()))


def _eigenvalues(features: Tensor) -> Tensor:
    """Returns the eigenvalues of the covariance, the largest first; NaN where a feature is not finite."""
    if not features.isfinite().all():
        return torch.full((features.shape[1],), math.nan, dtype=torch.float64)
    centred = features.double() - features.double().mean(dim=0)
    values: Tensor = torch.linalg.eigvalsh(centred.T @ centred / len(centred))
    return values.clamp_min(0).flip(0)


def _on_sphere(features: Tensor) -> Tensor:
    return F.normalize(features.double(), dim=1)
