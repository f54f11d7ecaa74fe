"""Whether batches hold a fair choice of the classes: those of shards that are sorted by class do not."""

from __future__ import annotations

import numpy as np

from mrp.data.mixtures import Mixed
from mrp.data.order import Order, permute
from mrp.data.source import Source

_BATCHES = 8  # that are looked at
_LABELS = 100_000  # from which the share of each class is estimated
_SAMPLE = 0x62616C61  # the purpose of a permutation


def balance_warning(source: Source, order: Order | Mixed) -> str | None:
    """Returns a warning if the first batches hold less than half of the classes that random ones would hold.

    Only labels are read. A source without shards is permuted whole, so that its batches are random anyway.
    """
    if not source.classes or not len(source.shard_sizes):
        return None
    labels = np.asarray(source.labels)
    some = labels[permute(np.arange(min(len(labels), _LABELS)), len(labels), _SAMPLE)]
    shares = np.bincount(some[(some >= 0) & (some < len(source.classes))]) / len(some)
    expected = float((1 - (1 - shares) ** order.batch).sum())
    counts = [len(np.unique(labels[order.slots(step).samples])) for step in range(_BATCHES)]
    if np.mean(counts) >= expected / 2:
        return None
    return (
        f"warning: a batch of {order.batch} holds samples of {np.mean(counts):.0f} classes, and a random one would "
        f"hold {expected:.0f}: the shards are sorted by class; make them anew with 'mrp shards build', which mixes the "
        "classes, or raise data.window"
    )
