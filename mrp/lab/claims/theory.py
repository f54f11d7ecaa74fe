"""Numbers from the results of `mrp lab bounds`, `mrp lab maskgraph` and `mrp lab coverage`."""

from __future__ import annotations

from typing import Any

from mrp.lab.bounds.experiment import PENALTIES
from mrp.lab.claims.number import Number, Numbers, difference, from_entry, over_images, over_seeds
from mrp.lab.claims.results import NotCounted
from mrp.lab.maskgraph.experiment import TOY

Data = dict[str, Any]


def inequality(runs: list[Data], gap: str) -> Numbers:
    """Returns the smallest gap of an inequality over all checkpoints: the one whose interval reaches lowest."""
    if len({data["run"] for data in runs}) < len(runs):
        raise NotCounted(f"{runs[0]['run']} is there twice")
    gaps = [row["gaps"][gap] for data in runs for row in data["rows"]]
    images = min(data["images"] for data in runs)
    trained = f"{len(runs)} run{'s' if len(runs) > 1 else ''}"
    over = f"{len(gaps)} checkpoints of {trained}, the starts included, {images} images"
    return {"smallest gap": from_entry(min(gaps, key=lambda entry: float(entry["value"] - entry["error"])), over)}


def alignment(runs: list[Data]) -> Numbers:
    """Returns how the centred correlation of outputs under two masks changes while MAE trains, over seeds."""
    for data in runs:
        if data["uniformity_weight"]:
            raise NotCounted(f"{data['run']} has {PENALTIES[data.get('uniformity_kind', 'gram')]} beside MAE's loss")
    correlations, losses = (
        [(data["rows"][0][name]["value"], data["rows"][-1][name]["value"]) for data in runs]
        for name in ("correlation", "loss")
    )
    over = f"{min(data['images'] for data in runs)} images"
    return {
        "correlation, end minus start": over_seeds([end - start for start, end in correlations], over),
        "loss, end over start": over_seeds([end / start for start, end in losses], over),
    }


def ratio_change(data: Data, graph: str, of: str, title: str, before: float, after: float) -> Numbers:
    """Returns how a measure of a mask graph changes from one mask ratio to another."""
    _check_graph(data, graph)
    rows = [min(data["rows"], key=lambda row: abs(float(row["ratio"]) - ratio)) for ratio in (before, after)]
    over = f"{data['options']['images']} images, {rows[1]['masks']} masks"
    first, second = (from_entry(row["estimates"][of], over) for row in rows)
    over = f"ratio {rows[0]['ratio']:.2f} to {rows[1]['ratio']:.2f}, {second.over}"
    return {f"{title}, {graph}": difference(second, first, over)}


def worlds(data: Data, trend: str, title: str) -> Numbers:
    """Returns in what share of the toy worlds a measure rises or falls at every step of the mask ratio."""
    _check_graph(data, TOY)
    of = data["worlds"]["of"]
    return {title: Number(data["worlds"][trend] / of, 0.0, f"share of {of} toy worlds, exact", of)}


def estimator(data: Data) -> Numbers:
    """Returns how many estimates on the toy world have the exact value within their stated error."""
    _check_graph(data, TOY)
    pairs = [(entry, row["exact"][name]) for row in data["rows"] for name, entry in row["estimates"].items()]
    inside = sum(abs(entry["value"] - exact) / entry["error"] <= 1 for entry, exact in pairs)
    over = f"share of {len(pairs)} estimates"
    return {"estimates within their stated error": Number(inside / len(pairs), 0.0, over)}


def coverage(comparisons: list[Data], first_run: dict[str, str], first_beyond_last: dict[str, str]) -> Numbers:
    """Returns measures of the first runs' maps, and how far they exceed those of the last runs, the supervised ones."""
    for data in comparisons:
        first, last = data["rows"][0], data["rows"][-1]
        if first["run"] == last["run"]:
            raise NotCounted(f"compares {first['run']} with itself")
        if last["objective"] != "classify" or first["objective"] == "classify":
            raise NotCounted("the first run has to be pretrained and the last one supervised")
    for place in (0, -1):
        runs = [data["rows"][place]["run"] for data in comparisons]
        if len(set(runs)) < len(runs):
            raise NotCounted(f"{max(runs, key=runs.count)} is there twice")
    over = ", ".join(f"{min(data['options'][name] for data in comparisons)} {name}" for name in ("images", "mosaics"))
    numbers = {
        name: _over_comparisons([data["rows"][0]["measures"][measure] for data in comparisons], over)
        for name, measure in first_run.items()
    }
    for name, measure in first_beyond_last.items():
        beyond = [data["rows"][-1]["beyond_first"][measure] for data in comparisons]
        numbers[name] = _over_comparisons([{**entry, "value": -entry["value"]} for entry in beyond], over)
    return numbers


def _over_comparisons(entries: list[Data], over: str) -> Number:
    """Returns the mean, with the interval over seeds if there are three or more, else over images."""
    values = [entry["value"] for entry in entries]
    if len(values) >= 3:
        return over_seeds(values, over)
    return over_images(values, [entry["error"] for entry in entries], over)


def _check_graph(data: Data, graph: str) -> None:
    if (data["options"]["data"] == TOY) != (graph == TOY):
        raise NotCounted(f"is of {data['options']['data']}")
