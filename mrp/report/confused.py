"""How well a classifier knows each class, and what it takes for what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrp.evaluate.interval import wilson
from mrp.report.document import Markup, folded, table, tag, wide

_MATRIX = 20  # classes whose confusions are shown as a whole
_LISTED = 12  # classes; of more, the hardest
_CONFUSED = 8  # pairs of classes


def section(found: Mapping[str, Any]) -> Iterator[Markup]:
    """Yields the tables of a validation, which has counted classes and confusions."""
    names = [str(one["name"]) for one in found["classes"]]
    matrix = np.asarray(found["confusion"], np.int64)  # labels, answers
    counts, right = matrix.sum(1), matrix.diagonal()
    shares = [wilson(int(hit), int(count)) if count else None for hit, count in zip(right, counts, strict=True)]
    order = sorted((n for n, one in enumerate(shares) if one), key=lambda n: shares[n].accuracy)  # type: ignore[union-attr]
    if not order:
        return
    yield tag("h2", "Classes")
    worst, best = order[0], order[-1]
    yield tag("p", (
        f"Of {counts.sum():,} test images {100 * right.sum() / max(1, counts.sum()):.1f} % are answered rightly; "
        f"{names[worst]} is the hardest class ({100 * right[worst] / counts[worst]:.0f} %), {names[best]} the easiest "
        f"({100 * right[best] / counts[best]:.0f} %)."
    ))  # fmt: skip

    def row(number: int) -> list[object]:
        one = shares[number]
        assert one is not None
        return [
            names[number],
            f"{counts[number]:,}",
            f"{100 * one[0]:.1f} % ({100 * one[1]:.1f} to {100 * one[2]:.1f})",
        ]

    header = ["class", "test images", "accuracy"]
    if len(order) <= 2 * _LISTED:
        yield table(header, [row(number) for number in order])
    else:
        yield table(header, [row(number) for number in order[:_LISTED]])
        yield folded(f"all {len(order)} classes, from the hardest", table(header, [row(number) for number in order]))
    yield from _confusions(names, matrix)


def _confusions(names: Sequence[str], matrix: NDArray[np.int64]) -> Iterator[Markup]:
    """Yields what is taken for what."""
    errors = matrix.copy()
    np.fill_diagonal(errors, 0)
    order = np.argsort(errors, axis=None)[::-1][:_CONFUSED]
    pairs = [(int(n // len(matrix)), int(n % len(matrix))) for n in order if errors.flat[n]]
    yield tag("h3", "What is taken for what" if pairs else "No test image is taken for another class")
    if pairs:
        yield table(["class", "is taken for", "images", "of the class"], [
            [names[a], names[b], f"{errors[a, b]:,}", f"{100 * errors[a, b] / matrix[a].sum():.1f} %"] for a, b in pairs
        ], labels=2)  # fmt: skip
    if len(matrix) > _MATRIX:
        return
    shares = matrix / np.maximum(1, matrix.sum(1, keepdims=True))
    head = tag("tr", tag("th", "class / answer", scope="col"), *(tag("th", name, scope="col") for name in names))

    def cell(row: int, column: int) -> Markup:
        level = min(5, int(np.ceil(5 * shares[row, column] - 1e-9)))
        kind = "zero" if not matrix[row, column] else f"h{level}" + (" right" if row == column else "")
        return tag("td", f"{matrix[row, column]:,}", class_=kind)

    body = (
        tag("tr", tag("th", name, scope="row"), *(cell(row, column) for column in range(len(names))))
        for row, name in enumerate(names)
    )
    yield folded("the whole table: rows are classes, columns are answers", wide(
        tag("table", tag("thead", head), tag("tbody", *body), class_="confusion")
    ))  # fmt: skip
