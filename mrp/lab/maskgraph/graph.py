"""The graph that masking draws over views, estimated on a sample of images (Zhang, Wang and Wang, 2022).

A mask cuts each image into a visible view x1 and a hidden one x2. M(x1|x2) links them, and the augmentation graph
A(x1, x1+) = E M(x1|x2) M(x1+|x2) links visible views that share a target. A view knows its places, so each mask has a
graph of its own, and what is said of a ratio is the mean over masks.

Views of real images never coincide. They are therefore seen through one stated noise: each pixel of either view is
known up to N(0, noise^2). Which image a view may come from is then p(i|view) = softmax of -|view - view_i|^2 divided by
2 noise^2, and M and A follow from it; as the noise goes to zero, equal views are one and different views are two, which
is exact on discrete data. Edges and classes of an image are read from the other images (leave one out); the spectrum
is that of the sample, whose bias `estimate` takes off.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mrp.evaluate.interval import Z_95
from mrp.lab.estimate import Estimate

SPECTRUM = 48  # eigenvalues that are kept for plots
MEASURES = {
    "label_error": "label error of visible views",
    "same_class": "intra-class edges, by their images",
    "same_class_views": "intra-class edges, by the views' own classes",
    "confusable": "share of images with the same target",
    "second": "second eigenvalue",
    "residual": "sum of squared eigenvalues after the first k",
}


class Distances(NamedTuple):
    """Squared distances of views, and the projections of a noise draw on their differences: any noise follows."""

    squares: Tensor  # N N: |x_i - x_j|^2
    projections: Tensor  # N N: z_i . (x_i - x_j), z_i a standard normal draw

    def less(self, other: Distances) -> Distances:
        """Those of the pixels that the other views do not have."""
        return Distances((self.squares - other.squares).clamp_min_(0), self.projections - other.projections)

    def log_posterior(self, noise: float) -> Tensor:
        """Up to a constant, the log probability that the noisy view of image i (a row) is one of image j."""
        return self.squares.mul(-0.5 / noise**2).sub_(self.projections, alpha=1 / noise)  # N N


def distances(views: Tensor, draws: Tensor) -> Distances:
    """All pairs of views (N pixels), and a draw of noise (N pixels) for each."""
    own = views.square().sum(1)
    squares = torch.addmm(own[:, None] + own[None, :], views, views.T, alpha=-2).clamp_min_(0)
    projections = (draws * views).sum(1)[:, None] - draws @ views.T
    return Distances(squares.fill_diagonal_(0), projections.fill_diagonal_(0))


def calibrate(whole: Distances, candidates: float) -> float:
    """The noise under which a whole image could be as many images as asked for, in the geometric mean."""
    low, high = 1e-3, 1e3
    target = math.log(candidates)
    for _ in range(40):
        middle = math.sqrt(low * high)
        entropy = _entropy(whole.log_posterior(middle).softmax(1)).mean()
        low, high = (middle, high) if entropy < target else (low, middle)
    return math.sqrt(low * high)


def measure(visible: Tensor, hidden: Tensor, labels: Tensor, features: int) -> tuple[dict[str, float], Tensor]:
    """The measures of one mask and the largest eigenvalues, from the log posteriors (N N) of both kinds of views."""
    one_hot = torch.nn.functional.one_hot(labels).to(visible.dtype)  # N C
    named = _others(visible) @ one_hot  # N C: which class each visible view seems to be of
    partners = _others(hidden)
    linked = partners @ one_hot  # N C: the classes of the images that share the target
    eigenvalues = spectrum(visible.softmax(1), hidden.softmax(1))
    found = {
        "label_error": (named.argmax(1) != labels).double().mean(),
        "same_class": (linked * one_hot).sum(1).mean(),
        "same_class_views": (named * (partners @ named)).sum(1).mean(),
        "confusable": _entropy(partners).exp().mean() / len(labels),
        "second": eigenvalues[1],
        "residual": residual(eigenvalues, features),
    }
    largest = torch.zeros(SPECTRUM, dtype=torch.float64)
    largest[: len(eigenvalues)] = eigenvalues[:SPECTRUM].double()
    return {name: float(value) for name, value in found.items()}, largest


def spectrum(visible: Tensor, hidden: Tensor) -> Tensor:
    """Eigenvalues of the normalised A, the largest first: squared singular values of the normalised bipartite M.

    The weight between a noisy visible and a noisy hidden view is the chance that both come from the same image.
    """
    weights = visible @ hidden.T
    rows, columns = weights.sum(1), weights.sum(0)
    weights /= (rows[:, None] * columns).sqrt_().clamp_min_(1e-30)
    eigenvalues: Tensor = torch.linalg.eigvalsh(weights @ weights.T)
    return eigenvalues.clamp_(0, 1).flip(0)


def residual(eigenvalues: Tensor, features: int) -> Tensor:
    """The sum in Theorem 4.2: what an encoder of so many features cannot tell of the graph."""
    return eigenvalues[features:].double().square().sum()


def estimate(whole: Tensor, halves: Tensor, all_masks: bool) -> Estimate:
    """The mean over masks (M) and its error, from the same measure on two disjoint halves of the images (M 2).

    Half the images give twice the variance, so a quarter of the squared difference of two halves is the variance of the
    whole; masks add theirs unless all there are were taken. A bias that falls with the number of images is what the
    step from half to whole has changed: it is taken off, and counts as error in full, for it may fall more slowly.
    """
    bias = float(halves.mean() - whole.mean())
    variance = float((halves[:, 0] - halves[:, 1]).square().mean()) / 4
    if not all_masks and len(whole) > 1:
        variance += float(whole.var()) / len(whole)
    return Estimate(max(0.0, float(whole.mean()) - bias), Z_95 * math.sqrt(variance) + abs(bias))


def _others(log_posterior: Tensor) -> Tensor:
    """Which of the other images a view may come from."""
    return log_posterior.clone().fill_diagonal_(-math.inf).softmax(1)


def _entropy(shares: Tensor) -> Tensor:
    terms: Tensor = torch.special.entr(shares)
    return terms.sum(1)
