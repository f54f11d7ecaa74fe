"""How well a classifier knows each class, and what it takes for what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrp.evaluate.interval import in_percent, wilson
from mrp.report.document import Markup, folded, join, table, tag, wide

_MATRIX = 20  # classes whose confusions are shown as a whole
_LISTED = 12  # classes; of more than twice as many, the hardest
_CONFUSED = 8  # pairs of classes


def section(found: Mapping[str, Any]) -> Iterator[Markup]:
    """Yields the tables of a validation, which has counted classes and confusions."""
    names = [str(one["name"]) for one in found["classes"]]
    matrix = np.asarray(found["confusion"], np.int64)  # labels, answers
    counts, right = matrix.sum(1), matrix.diagonal()
    if not counts.sum():
        return
    shares = right / np.maximum(1, counts)
    order = [number for number in np.argsort(shares, kind="stable").tolist() if counts[number]]
    worst, best = order[0], order[-1]
    yield tag("h2", "Classes")
    yield tag("p", (
        f"Of {counts.sum():,} test images {in_percent(right.sum() / counts.sum())} % are answered rightly; "
        f"{names[worst]} is the hardest class ({in_percent(shares[worst])} %), {names[best]} the easiest "
        f"({in_percent(shares[best])} %)."
    ))  # fmt: skip
    parts = [_classes(names, counts, right, order), _confused(names, matrix)]
    parts += [_matrix(names, matrix)] if len(matrix) <= _MATRIX else []
    yield tag("div", *(tag("div", part) for part in parts), class_="beside")


def _classes(names: Sequence[str], counts: NDArray[np.int64], right: NDArray[np.int64], order: Sequence[int]) -> Markup:
    """Returns the accuracy of each class, from the hardest."""
    rows = []
    for number in order:
        share, low, high = map(in_percent, wilson(int(right[number]), int(counts[number])))
        rows.append([names[number], f"{counts[number]:,}", f"{share} % ({low} to {high})"])
    header = ["class", "images", "accuracy"]
    if len(rows) <= 2 * _LISTED:
        return table(header, rows)
    return join([table(header, rows[:_LISTED]), folded(f"all {len(rows)} classes", table(header, rows))])


def _confused(names: Sequence[str], matrix: NDArray[np.int64]) -> Markup:
    """Returns the pairs of classes that are confused most often."""
    errors = matrix.copy()
    np.fill_diagonal(errors, 0)
    largest = np.argsort(errors, axis=None, kind="stable")[::-1][:_CONFUSED]
    pairs = [
        (a, b) for a, b in zip(*(one.tolist() for one in divmod(largest, len(matrix))), strict=True) if errors[a, b]
    ]
    if not pairs:
        return tag("p", "No test image is taken for another class.")
    return table(["class", "is taken for", "images", "of the class"], [
        [names[a], names[b], f"{errors[a, b]:,}", f"{100 * errors[a, b] / matrix[a].sum():.1f} %"] for a, b in pairs
    ], labels=2)  # fmt: skip


def _matrix(names: Sequence[str], matrix: NDArray[np.int64]) -> Markup:
    """Returns all answers: the darker a cell, the larger its share of its row."""
    levels = np.ceil(5 * matrix / np.maximum(1, matrix.sum(1, keepdims=True)) - 1e-9).astype(int)

    def cell(row: int, column: int) -> Markup:
        kind = f"h{levels[row, column]}" if matrix[row, column] else "zero"
        return tag("td", f"{matrix[row, column]:,}", class_=f"{kind} right" if row == column else kind)

    head = tag("tr", *(tag("th", name, scope="col") for name in ("class / answer", *names)))
    body = (
        tag("tr", tag("th", name, scope="row"), *(cell(row, column) for column in range(len(names))))
        for row, name in enumerate(names)
    )
    return wide(tag("table", tag("thead", head), tag("tbody", *body), class_="confusion"))
