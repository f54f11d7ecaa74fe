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

    Samples of one group have one key, and where one of them is held out, all are. A group that is more than half of a
    class is not held out for the sake of that class.
    Which samples these are depends on the samples alone, not on the machine, the processes or the run.
    """
    order = by_class(labels, keys, draw)
    classes, counts = labels.numpy(), torch.bincount(labels).numpy()
    group = np.unique(keys.numpy(), return_inverse=True)[1]
    _, part, sizes = np.unique(classes * len(group) + group, return_inverse=True, return_counts=True)
    large = 2 * sizes[part] > counts[classes]
    order = order[np.lexsort((np.arange(len(order)), large[order], classes[order]))]
    quota = np.maximum(1, np.round(share * counts)).astype(np.int64)
    first = np.cumsum(counts) - counts
    wanted = order[(np.arange(len(order)) < (first + quota)[classes[order]]) & ~large[order]]
    chosen = np.isin(group, group[wanted])
    if not chosen.any():
        raise ConfigError(
            "a probe needs two training samples of some class, and of two groups where the data have groups, to hold "
            "one out; give more data"
        )
    return Split(np.flatnonzero(~chosen), np.flatnonzero(chosen))


def few(labels: Tensor, keys: Tensor, shots: int, draw: int) -> NDArray[np.int64]:
    """Returns `shots` samples of each class (all, where it has fewer), other ones in every draw."""
    order = by_class(labels, keys, draw + 1)
    counts = torch.bincount(labels).numpy()
    first = np.cumsum(counts) - counts
    chosen: NDArray[np.int64] = order[np.arange(len(order)) < (first + shots)[labels.numpy()[order]]]
    return chosen


def by_class(labels: Tensor, keys: Tensor, draw: int) -> NDArray[np.int64]:
    """Returns row numbers class by class, within each class in the order of the hashed keys."""
    if len(labels) == 0 or int(labels.min()) < 0:
        raise ConfigError("accuracy needs labels, but these data have none; give labelled data")
    return np.lexsort((fold(_RULE, draw, keys.numpy()), labels.numpy()))
