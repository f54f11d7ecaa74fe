"""What two methods' runs on the same data come to: of `tools/small_study.py`, or by our recipes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mrp.lab.claims.claim import Measure, Number, Numbers, over_images, over_seeds
from mrp.lab.claims.results import Pair, Results, read


def collapse(results: Results) -> Numbers:
    """How far MAE's features have collapsed."""
    runs = results.study("mae")
    if not runs:
        return {}
    where, found = _epochs(int(runs[0].name.split("-")[1])), [read(run / "result.json") for run in runs]
    return {
        f"{title} of MAE": over_seeds([one[f"features/{key}"] for one in found], where)
        for title, key in (("uniformity", "uniformity"), ("participation ratio", "participation_ratio"))
    }


def uniformity(first: str, second: str) -> Measure:
    """How much more spread out the second method's features are."""

    def measure(results: Results) -> Numbers:
        pairs = results.pairs(first, second)
        if not pairs:
            return {}
        unif, rank = "features/uniformity", "features/rank_me"
        return {
            "uniformity, without the term / with it": _metric(
                pairs, lambda without, given: without[unif] / given[unif]
            ),
            "effective rank, with the term / without it": _metric(
                pairs, lambda without, given: given[rank] / without[rank]
            ),
            "uniformity with it": _metric(pairs, lambda without, given: given[unif]),
            "effective rank with it": _metric(pairs, lambda without, given: given[rank]),
        }

    return measure


def probed(first: str, second: str) -> Measure:
    """What the second method's features gain over the first's, in points."""

    def measure(results: Results) -> Numbers:
        pairs = results.pairs(first, second)
        return {
            f"gain, {title}": _gain([(_judged(pair.first, key), _judged(pair.second, key)) for pair in pairs], pairs)
            for title, key in (("linear", "linear"), ("kNN", "knn"))
            if pairs
        }

    return measure


def tuned(results: Results) -> Numbers:
    """What U-MAE gains over MAE after the same fine-tuning, in points."""
    found, kept = [], []
    for pair in results.pairs("mae", "umae"):
        for path in sorted(pair.first.glob("judged-*/tuned-*.json"))[-1:]:
            other = pair.second / path.relative_to(pair.first)
            if other.exists():
                found.append((read(path), read(other)))
                kept.append(pair)
    return {"gain, fine-tuned": _gain(found, kept)} if kept else {}


def trained(first: str, second: str) -> Measure:
    """The gain between two runs that were made by our recipes and judged by `mrp probe`, in points."""

    def measure(results: Results) -> Numbers:
        both = [results.folder / name for name in (first, second)]
        if not all((folder / "probe.json").exists() for folder in both):
            return {}
        before, after = (_judged(folder, "linear") for folder in both)
        gains, halves = [_points(before, after)], [_half(before, after)]
        return {"gain, linear": over_images(gains, halves, "over test images")}

    return measure


def _metric(pairs: list[Pair], of: Callable[..., float]) -> Number:
    """Something of the last diagnosis of both runs."""
    values = [of(*(read(folder / "result.json") for folder in (pair.first, pair.second))) for pair in pairs]
    return over_seeds(values, _epochs(pairs[0].epochs))


def _judged(folder: Path, key: str) -> dict[str, Any]:
    found: dict[str, Any] = read(folder / "probe.json")["trained"][key]
    return found


def _gain(found: list[tuple[dict[str, Any], dict[str, Any]]], pairs: list[Pair]) -> Number:
    """Over seeds where there are three; before that, over the test images."""
    gains = [_points(*both) for both in found]
    if len(gains) >= 3:
        return over_seeds(gains, _epochs(pairs[0].epochs))
    return over_images(gains, [_half(*both) for both in found], f"{_epochs(pairs[0].epochs)}, over test images")


def _points(before: dict[str, Any], after: dict[str, Any]) -> float:
    return 100 * float(after["accuracy"] - before["accuracy"])


def _half(*judged: dict[str, Any]) -> float:
    """Of the interval of a difference, as if its parts were of different images, which is cautious."""
    return 50 * math.hypot(*(one["high"] - one["low"] for one in judged))


def _epochs(epochs: int) -> str:
    return f"{epochs} epoch{'s' if epochs > 1 else ''}"
