"""Test images that are among the training images too: what is measured on them is no result."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mrp import progress
from mrp.data.order import Ints, Words, fold
from mrp.data.source import Source
from mrp.evaluate.table import Columns, Table

COPIES = "in_training"  # in a result: how many test images are among the training images
_ROWS = 0x636F7079  # the purpose of a hash, which sets it apart from others
_CHUNK = 4096  # rows that are read at once
_said = set[str]()  # a run measures often, and a suite many weights


class Copies(NamedTuple):
    """Which test images have the features of a training image, and of which one, by their numbers."""

    test: Ints
    train: Ints


def find(train: Table, test: Table, block: str) -> Copies:
    """Returns the test images whose features are bit for bit those of a training image, as those of equal images are.

    Where most training images share their features with others, as of a collapsed model, features tell no image apart,
    and none is returned.
    """
    learned, asked = train.columns[block], test.columns[block]
    hashes = _hashes(learned, train.images)
    known, first = np.unique(hashes, return_index=True)
    if 2 * len(known) < len(hashes):
        return Copies(np.empty(0, np.int64), np.empty(0, np.int64))
    wanted = _hashes(asked, test.images)
    places = np.searchsorted(known, wanted).clip(max=len(known) - 1)
    found = np.flatnonzero(known[places] == wanted)
    others = first[places[found]]
    same = [np.array_equal(asked[number], learned[other]) for number, other in zip(found, others, strict=True)]
    return Copies(found[same], others[same])


def told(copies: Copies, train: Source, test: Source) -> int:
    """Returns how many test images are among the training images, after a warning that names one of them."""
    count = len(copies.test)
    if count:
        warning = (
            f"warning: {count:,} of {len(test):,} test images are training images too, such as "
            f"{test.where(int(copies.test[0]))} (also {train.where(int(copies.train[0]))}); what is measured on them "
            "is no result: take them out of data.train"
        )
        if warning not in _said:
            _said.add(warning)
            progress.say(warning)
    return count


def note(data: str, count: int) -> str:
    """Returns what is said of them below a table."""
    return f"{data}: {count:,} of the test images are training images too; what is measured on them is no result."


def _hashes(columns: Columns, count: int) -> Words:
    """Returns a hash of each row's bits, without a loop over the rows."""
    factors = fold(_ROWS, np.arange(columns.shape[1])) | np.uint64(1)
    parts: list[NDArray[np.uint64]] = []
    for start in range(0, count, _CHUNK):
        rows = np.ascontiguousarray(columns[start : min(start + _CHUNK, count)])
        parts.append(rows.view(np.uint16).astype(np.uint64) @ factors)
    return np.concatenate(parts)
