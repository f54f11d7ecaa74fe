"""How well each tag is told, as a table: of the page about a run, and of the command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mrp.evaluate.interval import in_percent
from mrp.report.document import Markup, folded, table, tag

LISTED = 20  # tags that are shown at once, the lowest first
_NUMBERS = {
    "ap": "average precision", "auroc": "AUROC", "knn_ap": "kNN average precision", "knn_auroc": "kNN AUROC",
}  # fmt: skip


def lines(tags: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Returns the header and the rows of a table: tags from the lowest average precision, those without any last.

    Precision has to be seen beside the share of the images that have the tag: random scores come to that.
    """
    keys = [key for key in _NUMBERS if any(key in one for one in tags)]
    ordered = sorted(tags, key=lambda one: one["ap"]["value"] if "ap" in one else 2.0)
    rows = []
    for one in ordered:
        share = f"{in_percent(one['having'] / one['images'])} %" if one["images"] else "-"
        numbers = [_shown(one[key]) if key in one else "-" for key in keys]
        name = f"{one['name']} (not learned)" if one.get("learned") is False else str(one["name"])
        rows.append([name, f"{one['images']:,}", f"{one['having']:,} ({share})", *numbers])
    return ["tag", "images", "having it", *(_NUMBERS[key] for key in keys)], rows


def in_words(tags: Sequence[Mapping[str, Any]]) -> str:
    """Returns average precision and AUROC of every tag in a line, from the lowest; of many the lowest."""
    rated = sorted((one for one in tags if "ap" in one), key=lambda one: one["ap"]["value"])
    shown = [
        f"{one['name']} {in_percent(one['ap']['value'])}, {in_percent(one['auroc']['value'])}" for one in rated[:LISTED]
    ]
    return "; ".join(shown) + ("; ..." if len(rated) > LISTED else "")


def section(found: Mapping[str, Any], how: str = "Told from frozen features of") -> Iterator[Markup]:
    """Yields what the page says of a measurement; of many tags the lowest stand open. A damaged file says nothing."""
    try:
        about = f"{how} step {found['step']:,}, on {found['num_test']:,} test images."
        header, rows = lines(found["tags"])
    except (KeyError, TypeError, ValueError):
        return
    yield tag("h2", "Tags")
    yield tag("p", about)
    yield table(header, rows[:LISTED])
    if len(rows) > LISTED:
        yield folded(f"all {len(rows)} tags", table(header, rows))


def _shown(number: Mapping[str, Any]) -> str:
    value, low, high = (in_percent(number[key]) for key in ("value", "low", "high"))
    return f"{value} % ({low} to {high})"
