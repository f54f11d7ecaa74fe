"""What `mrp lab bounds` and `mrp lab maskgraph` have found, as numbers that a claim is about."""

from __future__ import annotations

from typing import Any

from mrp.lab.claims.claim import Measure, Number, Numbers, difference
from mrp.lab.claims.results import Results

WORLDS = {"toy": "maskgraph-toy", "CIFAR-10": "maskgraph-cifar10", "CIFAR-10, unit 8": "maskgraph-cifar10-unit8"}
RATIOS = {"small": 0.3, "large": 0.75, "too large": 0.95}
RATIOS_OF_TOY = {"small": 1 / 3, "large": 2 / 3, "too large": 5 / 6}
_NEAR_BEST = (0.65, 0.85)
_STEP = 0.04  # ratios of whole units, so not quite .75


def inequality(name: str) -> Measure:
    """At how many checkpoints an inequality fails, and where it is tightest."""

    def measure(results: Results) -> Numbers:
        found = [data for data in (results.lab("bounds-mae"), results.lab("bounds-umae")) if data]
        gaps = [row["gaps"][name] for data in found for row in data["rows"]]
        if not gaps:
            return {}
        images = min(data["images"] for data in found)
        over = f"{len(gaps)} checkpoints of {len(found)} runs, the starts included, {images} images"
        tightest = min(gaps, key=lambda gap: float(gap["value"]))
        fail = sum(gap["value"] + gap["error"] < 0 for gap in gaps)
        return {"checkpoints where it fails": Number(fail, 0.0, over), "smallest gap": _estimate(tightest, over)}

    return measure


def aligning(results: Results) -> Numbers:
    """Which way the alignment loss goes while MAE trains."""
    found = results.lab("bounds-mae")
    if not found:
        return {}
    over = f"1 seed, {found['images']} images"
    start, *between, last = (_estimate(row["alignment"], over) for row in found["rows"])
    numbers = {"L_align, end minus start": difference(last, start, over), "L_align at the end": last}
    if between:
        numbers["L_align, end minus first checkpoint"] = difference(last, between[0], over)
    return numbers


def change(measure: str, title: str, before: str, after: str) -> Measure:
    """How a measure of the mask graph changes from one kind of ratio to another, in every world."""

    def measured(results: Results) -> Numbers:
        numbers = {}
        for world, lab in WORLDS.items():
            found = results.lab(lab)
            if found:
                ratios = RATIOS_OF_TOY if world == "toy" else RATIOS
                rows = [_nearest(found["rows"], ratios[kind]) for kind in (before, after)]
                old, new = (_of_graph(found, row, measure) for row in rows)
                over = f"ratio {rows[0]['ratio']:.2f} to {rows[1]['ratio']:.2f}, {new.over}"
                numbers[f"{title}, {world}"] = difference(new, old, over)
        return numbers

    return measured


def criteria(results: Results) -> Numbers:
    """How many criteria of the mask graph would choose a ratio near .75, and how many do not mind."""
    numbers: Numbers = {}
    for world in ("CIFAR-10", "CIFAR-10, unit 8"):
        for lists in results.lab(WORLDS[world]).get("choices", {}).values():
            over = f"of {len(lists)} criteria"
            best = sum(_NEAR_BEST[0] <= chosen[0] <= _NEAR_BEST[1] for chosen in lists.values())
            alike = sum(any(abs(ratio - 0.75) < _STEP for ratio in chosen) for chosen in lists.values())
            numbers[f"criteria that are best near .75, {world}"] = Number(best, 0.0, over)
            numbers[f"criteria that do not tell .75 from the best, {world}"] = Number(alike, 0.0, over)
    return numbers


def residual(results: Results) -> Numbers:
    """Whether the sum of Theorem 4.2 prefers large ratios to small ones, and where it is largest."""
    changes = change("residual", "change of the sum", "small", "large")(results)
    numbers = {name: number for name, number in changes.items() if name.endswith("toy")}
    found = results.lab(WORLDS["CIFAR-10"])
    if found:
        largest = max(found["rows"], key=lambda row: float(row["estimates"]["residual"]["value"]))
        numbers["ratio of the largest sum, CIFAR-10"] = Number(largest["ratio"], None, "estimate")
    return numbers


def estimator(results: Results) -> Numbers:
    """How many estimates have the exact value within their stated error, where it is known."""
    shares = [
        abs(estimate["value"] - row["exact"][name]) / estimate["error"]
        for row in results.lab(WORLDS["toy"]).get("rows", ())
        for name, estimate in row["estimates"].items()
        if name in row["exact"]
    ]
    if not shares:
        return {}
    inside = sum(share <= 1 for share in shares) / len(shares)
    return {"estimates within their stated error": Number(inside, 0.0, f"share of {len(shares)} estimates")}


def _nearest(rows: list[dict[str, Any]], ratio: float) -> dict[str, Any]:
    return min(rows, key=lambda row: abs(float(row["ratio"]) - ratio))


def _of_graph(found: dict[str, Any], row: dict[str, Any], measure: str) -> Number:
    """Exact where the world is known, else an estimate."""
    if row["exact"]:
        return Number(row["exact"][measure], 0.0, "exact")
    return _estimate(row["estimates"][measure], f"{found['options']['images']} images, {row['masks']} masks")


def _estimate(found: dict[str, float], over: str) -> Number:
    return Number(found["value"], found["error"], over)
