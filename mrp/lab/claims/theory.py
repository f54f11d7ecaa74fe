"""Numbers of `mrp lab bounds`, `mrp lab maskgraph` and `mrp lab coverage`."""

from __future__ import annotations

from typing import Any

from mrp.lab.claims.number import Number, Numbers, difference, from_entry
from mrp.lab.claims.results import NotCounted, Results
from mrp.lab.maskgraph.experiment import TOY

Data = dict[str, Any]

GRAPHS = {"toy": "maskgraph-toy", "CIFAR-10": "maskgraph-cifar10", "CIFAR-10, unit 8": "maskgraph-cifar10-unit8"}
RATIOS = {"small": 0.3, "large": 0.75, "too large": 0.95}
TOY_RATIOS = {"small": 1 / 3, "large": 2 / 3, "too large": 5 / 6}
NEAR_BEST = (0.65, 0.85)
STEP = 0.04  # a ratio of whole units is not exactly .75


def inequality(results: Results, gap: str) -> Numbers:
    """At how many checkpoints of MAE and U-MAE an inequality fails, and its smallest gap."""
    runs = [data for method in ("mae", "umae") if (data := _bounds(results, method))]
    gaps = [row["gaps"][gap] for data in runs for row in data["rows"]]
    if not gaps:
        return {}
    images = min(data["images"] for data in runs)
    over = f"{len(gaps)} checkpoints of {len(runs)} runs, the starts included, {images} images"
    smallest = min(gaps, key=lambda entry: entry["value"])
    failures = sum(entry["value"] + entry["error"] < 0 for entry in gaps)
    return {"checkpoints where it fails": Number(failures, 0.0, over), "smallest gap": from_entry(smallest, over)}


def alignment(results: Results) -> Numbers:
    """How the alignment loss changes while MAE trains."""
    data = _bounds(results, "mae")
    if not data:
        return {}
    over = f"1 seed, {data['images']} images"
    start, *between, last = (from_entry(row["alignment"], over) for row in data["rows"])
    numbers = {"L_align, end minus start": difference(last, start, over), "L_align at the end": last}
    if between:
        numbers["L_align, end minus first checkpoint"] = difference(last, between[0], over)
    return numbers


def ratio_change(results: Results, graph: str, of: str, title: str, before: str, after: str) -> Numbers:
    """How a measure of one mask graph changes from one mask ratio to another."""
    data = _graph(results, graph)
    if not data:
        return {}
    ratios = TOY_RATIOS if graph == TOY else RATIOS
    rows = [min(data["rows"], key=lambda row: abs(row["ratio"] - ratios[name])) for name in (before, after)]
    first, second = (_of_row(data, row, of) for row in rows)
    over = f"ratio {rows[0]['ratio']:.2f} to {rows[1]['ratio']:.2f}, {second.over}"
    return {f"{title}, {graph}": difference(second, first, over)}


def best_ratio(results: Results, graph: str) -> Numbers:
    """How many criteria of a mask graph choose a ratio near .75, and for how many .75 is as good as their choice."""
    numbers = {}
    for choices in _graph(results, graph).get("choices", {}).values():
        over = f"of {len(choices)} criteria"
        best = sum(NEAR_BEST[0] <= ratios[0] <= NEAR_BEST[1] for ratios in choices.values())
        alike = sum(any(abs(ratio - 0.75) < STEP for ratio in ratios) for ratios in choices.values())
        numbers[f"criteria that are best near .75, {graph}"] = Number(best, 0.0, over)
        numbers[f"criteria that do not tell .75 from the best, {graph}"] = Number(alike, 0.0, over)
    return numbers


def largest_residual(results: Results, graph: str) -> Numbers:
    """The ratio at which the sum of Theorem 4.2 is largest."""
    data = _graph(results, graph)
    if not data:
        return {}
    largest = max(data["rows"], key=lambda row: row["estimates"]["residual"]["value"])
    return {f"ratio of the largest sum, {graph}": Number(largest["ratio"], None, "estimate")}


def estimator(results: Results) -> Numbers:
    """How many estimates on the toy world have the exact value within their stated error."""
    distances = [
        abs(estimate["value"] - row["exact"][name]) / estimate["error"]
        for row in _graph(results, TOY).get("rows", ())
        for name, estimate in row["estimates"].items()
    ]
    if not distances:
        return {}
    inside = sum(distance <= 1 for distance in distances) / len(distances)
    return {"estimates within their stated error": Number(inside, 0.0, f"share of {len(distances)} estimates")}


def coverage(results: Results) -> Numbers:
    """What the class-activation maps of the first run cover more than those of the last run, the supervised one."""
    file = "lab/coverage/results.json"
    data = results.read(file)
    if not data:
        return {}
    first, last = data["rows"][0], data["rows"][-1]
    if first["run"] == last["run"]:
        raise NotCounted(results.folder / file, f"compares {first['run']} with itself")
    if last["objective"] != "classify" or first["objective"] == "classify":
        raise NotCounted(results.folder / file, "the first run has to be pretrained and the last one supervised")
    options = data["options"]
    over = f"1 seed, {options['images']} images, {options['mosaics']} mosaics"
    numbers = {"share on the wanted quadrants": from_entry(first["measures"]["focus"], over)}
    for name, measure in (("more regions", "regions"), ("more objects found, of 2", "objects"), ("more area", "area")):
        numbers[name] = difference(Number(0.0, 0.0, over), from_entry(last["beyond_first"][measure], over), over)
    return numbers


def _bounds(results: Results, method: str) -> Data:
    """What `mrp lab bounds` found on a run of MAE, whose weight of uniformity is 0, or of U-MAE."""
    file = f"lab/bounds-{method}/results.json"
    data = results.read(file)
    if data and bool(data["uniformity_weight"]) != (method == "umae"):
        raise NotCounted(results.folder / file, f"{data['run']} is no run of {method}")
    return data


def _graph(results: Results, graph: str) -> Data:
    """What `mrp lab maskgraph` found on the toy world or on images."""
    file = f"lab/{GRAPHS[graph]}/results.json"
    data = results.read(file)
    if data and (data["options"]["data"] == TOY) != (graph == TOY):
        raise NotCounted(results.folder / file, f"is of {data['options']['data']}")
    return data


def _of_row(data: Data, row: Data, measure: str) -> Number:
    """The exact value if the world is known, otherwise the estimate."""
    if row["exact"]:
        return Number(row["exact"][measure], 0.0, "exact")
    return from_entry(row["estimates"][measure], f"{data['options']['images']} images, {row['masks']} masks")
