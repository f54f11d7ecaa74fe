"""Which training samples are held out to choose on, and which are drawn for few-shot: by labels and keys alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mrp.config import ConfigError
from mrp.data.order import fold

HELD_OUT = 0.1  # of each class
_RULE = 0x68656C64  # raise it with VERSION of the tables if the rule ever changes


class Split(NamedTuple):
    """The two parts of a training set, as row numbers in ascending order."""

    fitting: NDArray[np.int64]
    held_out: NDArray[np.int64]


def split(labels: Tensor, keys: Tensor, share: float = HELD_OUT, draw: int = 0) -> Split:
    """Holds out the same share of each class, at least one sample of a class that has two: the least hashed keys.

    Samples of one group have one key, and where one of them is held out, all are (see `_whole_groups`).
    Which samples these are depends on the samples alone, not on the machine, the processes or the run.
    """
    order = by_class(labels, keys, draw)
    counts = torch.bincount(labels).numpy()
    quota = np.where(counts > 1, np.maximum(1, np.round(share * counts)), 0).astype(np.int64)
    groups = np.unique(keys.numpy())
    if len(groups) < len(keys):
        chosen = _whole_groups(labels.numpy(), keys.numpy(), groups[np.argsort(fold(_RULE, draw, groups))], quota)
    else:
        chosen = np.zeros(len(order), bool)
        chosen[first_of_each(order, labels, quota)] = True
    if not chosen.any():
        raise ConfigError(
            "a probe needs two training samples of some class (or tag), in two groups where the data have groups, to "
            "hold one out; give more data"
        )
    return Split(np.flatnonzero(~chosen), np.flatnonzero(chosen))


def _whole_groups(
    labels: NDArray[np.int64], keys: NDArray[np.int64], groups: NDArray[np.int64], quota: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Returns which samples are held out of groups that are taken in this order.

    A group is taken if some class of it lacks samples, and if at least half of each of its classes remains. Where that
    leaves no group, classes of one sample, of which none is to be held out, do not count.
    """
    counts, taken, held_out = np.bincount(labels), np.zeros(len(quota), np.int64), list[int]()
    rows = np.argsort(keys, kind="stable")
    ends = np.searchsorted(keys[rows], groups, side="right")
    starts = np.searchsorted(keys[rows], groups, side="left")
    for most in (counts // 2, np.where(quota > 0, counts // 2, counts)):
        for group, start, end in zip(groups.tolist(), starts, ends, strict=True):
            classes, images = np.unique(labels[rows[start:end]], return_counts=True)
            after = taken[classes] + images
            if (taken[classes] < quota[classes]).any() and (after <= most[classes]).all():
                taken[classes] = after
                held_out.append(group)
        if held_out:
            break
    return np.isin(keys, held_out)


def few(labels: Tensor, keys: Tensor, shots: int, draw: int) -> NDArray[np.int64]:
    """Returns `shots` samples of each class (all, where it has fewer), other ones in every draw."""
    return first_of_each(by_class(labels, keys, draw + 1), labels, shots)


def first_of_each(order: NDArray[np.int64], labels: Tensor, quota: int | NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the first rows of each class, as many as its quota; in `order` they stand class by class."""
    counts = torch.bincount(labels).numpy()
    ends = np.cumsum(counts) - counts + quota
    chosen: NDArray[np.int64] = order[np.arange(len(order)) < ends[labels.numpy()[order]]]
    return chosen


def by_class(labels: Tensor, keys: Tensor, draw: int) -> NDArray[np.int64]:
    """Returns row numbers class by class, within each class in the order of the hashed keys."""
    if len(labels) == 0 or int(labels.min()) < 0:
        raise ConfigError("accuracy needs labels, but these data have none; give labelled data")
    return np.lexsort((fold(_RULE, draw, keys.numpy()), labels.numpy()))
