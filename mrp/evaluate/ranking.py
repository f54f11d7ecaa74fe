"""How well similarities rank a gallery: average precision, precision and recall among the nearest, landmarks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mrp.evaluate.table import Columns

_AT_ONCE = 1 << 24  # similarities that exist at once


def unit(rows: Columns, device: torch.device | str = "cpu") -> Tensor:
    """Returns features (N D) on the unit sphere, in single precision."""
    return F.normalize(torch.from_numpy(np.asarray(rows[:], np.float32)).to(device), dim=1)


def cosines(queries: Tensor, gallery: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yields which queries are in a chunk, and their similarities with the whole gallery (chunk, gallery)."""
    size = max(1, _AT_ONCE // len(gallery))
    for start in range(0, len(queries), size):
        chunk = slice(start, min(start + size, len(queries)))
        yield chunk, queries[chunk] @ gallery.T


def average_precisions(scores: Tensor, relevant: Tensor) -> Tensor:
    """Returns each query's average precision over its ranked gallery (Q G both); NaN where nothing is relevant.

    It is the sum over thresholds of precision times the recall gained there, so items of equal score count together and
    their order does not matter.
    """
    ordered, order = scores.sort(dim=1, descending=True)
    hits = relevant.gather(1, order)
    count = ordered.shape[1]
    places = torch.arange(count, device=scores.device)
    ends = torch.where(F.pad(ordered[:, 1:] != ordered[:, :-1], (0, 1), value=True), places, count)
    ends = ends.flip(1).cummin(dim=1).values.flip(1)  # the last place with the same score
    precision = (hits.cumsum(1).double() / (places + 1)).gather(1, ends)
    return (precision * hits).sum(1) / hits.sum(1)


def nearest(scores: Tensor, relevant: Tensor, ks: Sequence[int]) -> Tensor:
    """Returns the relevant share of the k nearest of each query, for each k (Q ks; of a smaller gallery, of all)."""
    found = relevant.gather(1, scores.topk(min(max(ks), scores.shape[1]), dim=1).indices)
    return torch.stack([found[:, :k].double().mean(1) for k in ks], dim=1)


def pooled_precision(scores: Tensor, relevant: Tensor, wanted: int) -> float:
    """Returns the micro average precision: all pairs of queries and gallery images are ranked in one list.

    `wanted` is how many pairs there are to find; those that are missing among the given ones count as never found.
    """
    found = int(relevant.sum())
    return float(average_precisions(scores.view(1, -1), relevant.view(1, -1))) * found / wanted if found else 0.0


class Landmarks(NamedTuple):
    """What a query of Oxford and Paris asks for, as numbers of gallery images; any of the lists may be empty."""

    easy: NDArray[np.int64]
    hard: NDArray[np.int64]
    junk: NDArray[np.int64]

    def protocols(self) -> dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Returns what is to be found and what is passed over (Radenovic et al., 2018)."""
        both = np.concatenate
        return {
            "easy": (self.easy, both([self.junk, self.hard])),
            "medium": (both([self.easy, self.hard]), self.junk),
            "hard": (self.hard, both([self.junk, self.easy])),
        }


def landmark_scores(
    order: NDArray[np.int64], wanted: NDArray[np.int64], junk: NDArray[np.int64], ks: Sequence[int]
) -> tuple[float, list[float]]:
    """Returns a query's average precision and its precision at each k, as Oxford and Paris compute them.

    `order` is the gallery from the nearest on. Junk is taken out of it. The precision at a found image is the mean of
    that just before it and that with it (trapezoids), and k is at most the place of the last wanted image. NaN where
    nothing is wanted.
    """
    if not len(wanted):
        return math.nan, [math.nan] * len(ks)
    ranks = np.flatnonzero(np.isin(order[~np.isin(order, junk)], wanted))
    found = np.arange(len(ranks))
    before = np.divide(found, ranks, out=np.ones(len(ranks)), where=ranks > 0)
    precision = float(((before + (found + 1) / (ranks + 1)) / 2).sum() / len(wanted))
    cut = [min(int(ranks.max()) + 1, k) for k in ks]
    return precision, [float((ranks < k).sum() / k) for k in cut]
