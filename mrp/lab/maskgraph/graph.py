"""The graph that masking draws over views, estimated on a sample of images (Zhang, Wang and Wang, 2022).

A mask leaves a visible view x1 of each image and hides the rest, of which one patch is the target x2, as in
`mrp lab bounds`. M(x1|x2) links them, and the augmentation graph A(x1, x1+) = E M(x1|x2) M(x1+|x2) links visible views
that share a target. A view knows the places of its patches, so each mask and target has a graph of its own, and the
measures of a mask ratio are means over them.

Views of real images are never equal. Therefore they are seen through noise: each pixel of a view is known up to N(0,
noise^2). The probability p(i|view) that a view comes from image i is then the softmax of -|view - view_i|^2 divided by
2 noise^2, and M and A follow from it. As the noise goes to zero, equal views become one and different views two, which
is exact on discrete data. The edges and the class of an image are read from the other images (leave one out). The
spectrum is that of the sample; `estimate` subtracts its bias.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mrp.evaluate.interval import Z_95
from mrp.lab.estimate import Estimate

SPECTRUM = 48  # how many eigenvalues are kept for plots
MEASURES = {
    "label_error": "label error of visible views",
    "same_class": "intra-class edges, by their images",
    "same_class_views": "intra-class edges, by the views' own classes",
    "confusable": "share of images with the same target",
    "second": "second eigenvalue",
    "residual": "sum of squared eigenvalues after the first k",
}


Measured = tuple[dict[str, float], Tensor]  # the measures of one mask, and the largest eigenvalues


class Distances(NamedTuple):
    """Squared distances of views, and the projections of a noise draw on their differences: any noise follows."""

    squares: Tensor  # N N: |x_i - x_j|^2
    projections: Tensor  # N N: z_i . (x_i - x_j), with z_i drawn from a standard normal distribution

    def among(self, part: Tensor) -> Distances:
        """Returns the distances of some of the images."""
        return Distances(self.squares[part][:, part], self.projections[part][:, part])

    def log_posterior(self, noise: float) -> Tensor:
        """Returns, up to a constant, the log probability that the noisy view of image i (a row) shows image j (N N)."""
        return self.squares.mul(-0.5 / noise**2).sub_(self.projections, alpha=1 / noise)


def distances(views: Tensor, draws: Tensor) -> Distances:
    """Returns the distances of all pairs of views (N pixels), with one draw of noise per view (N pixels)."""
    norms = views.square().sum(1)
    squares = torch.addmm(norms[:, None] + norms[None, :], views, views.T, alpha=-2).clamp_min_(0)
    projections = (draws * views).sum(1)[:, None] - draws @ views.T
    return Distances(squares.fill_diagonal_(0), projections.fill_diagonal_(0))


def calibrate(whole: Distances, candidates: float) -> float:
    """Returns the noise under which a whole image could be so many images, in the geometric mean."""
    low, high = 1e-3, 1e3
    target = math.log(candidates)
    for _ in range(40):
        middle = math.sqrt(low * high)
        entropy = _entropy(whole.log_posterior(middle).softmax(1)).mean()
        low, high = (middle, high) if entropy < target else (low, middle)
    return math.sqrt(low * high)


def measure(visible: Tensor, hidden: Tensor, labels: Tensor, features: int) -> Measured:
    """Returns the measures of one mask, from the log posteriors (N N) of the visible views and of the targets."""
    one_hot = torch.nn.functional.one_hot(labels).to(visible.dtype)  # N C
    by_view = _others(visible) @ one_hot  # N C: which class each visible view seems to be of
    partners = _others(hidden)
    linked = partners @ one_hot  # N C: the classes of the images that share the target
    values = {
        "label_error": (by_view.argmax(1) != labels).double().mean(),
        "same_class": (linked * one_hot).sum(1).mean(),
        "same_class_views": (by_view * (partners @ by_view)).sum(1).mean(),
        "confusable": _entropy(partners).exp().mean() / len(labels),
    }
    return with_spectrum(values, spectrum(visible.softmax(1), hidden.softmax(1)), features)


def with_spectrum(values: dict[str, Tensor], eigenvalues: Tensor, features: int) -> Measured:
    """Adds the measures that follow from the eigenvalues, and returns the largest eigenvalues beside them.

    "residual" is the sum in Theorem 4.2: what an encoder of so many features cannot represent of the graph.
    """
    values |= {"second": eigenvalues[1], "residual": eigenvalues[features:].double().square().sum()}
    largest = torch.zeros(SPECTRUM, dtype=torch.float64)
    largest[: len(eigenvalues)] = eigenvalues[:SPECTRUM].double()
    return {name: float(value) for name, value in values.items()}, largest


def spectrum(visible: Tensor, hidden: Tensor) -> Tensor:
    """Returns the eigenvalues of the normalised A, the largest first: squared singular values of the normalised M.

    The weight between a noisy visible and a noisy hidden view is the chance that both come from the same image.
    """
    weights = visible @ hidden.T
    rows, columns = weights.sum(1), weights.sum(0)
    weights /= (rows[:, None] * columns).sqrt_().clamp_min_(1e-30)
    eigenvalues: Tensor = torch.linalg.eigvalsh(weights @ weights.T)
    return eigenvalues.clamp_(0, 1).flip(0)


def estimate(whole: Tensor, halves: Tensor, all_masks: bool) -> Estimate:
    """Returns the mean over masks (M) and its error, from the same measure on two disjoint halves of the images (M 2).

    Half of the images give twice the variance, so a quarter of the squared difference of two halves is the variance of
    the whole. The masks add their variance, unless all of them were measured. A bias that falls with the number of
    images shows in the change from half to whole: that is subtracted, and added to the error in full, because the bias
    may fall more slowly.
    """
    bias = float(halves.mean() - whole.mean())
    variance = float((halves[:, 0] - halves[:, 1]).square().mean()) / 4
    if not all_masks and len(whole) > 1:
        variance += float(whole.var()) / len(whole)
    return Estimate(max(0.0, float(whole.mean()) - bias), Z_95 * math.sqrt(variance) + abs(bias))


def _others(log_posterior: Tensor) -> Tensor:
    """Returns from which of the other images each view may come."""
    return log_posterior.clone().fill_diagonal_(-math.inf).softmax(1)


def _entropy(shares: Tensor) -> Tensor:
    terms: Tensor = torch.special.entr(shares)
    return terms.sum(1)
