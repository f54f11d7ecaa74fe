"""What `mrp lab multiview` and its ViTs have found, as numbers that a claim is about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mrp.lab.claims.claim import Measure, Number, Numbers, over_seeds
from mrp.lab.claims.results import Results

Pick = Callable[[dict[str, Any]], Any]  # from the methods of a comparison, a mean and its interval


def kernels(method: str, measure: str) -> Pick:
    """What a method's kernels hold."""
    return lambda methods: methods[method]["kernels"][measure]


def accuracy(method: str, measure: str) -> Pick:
    """How often a method is right."""
    return lambda methods: methods[method]["accuracy"][measure]


def of_default(wanted: dict[str, Pick]) -> Measure:
    """Numbers of the comparison at the default constants."""

    def measure(results: Results) -> Numbers:
        found = results.lab("multiview")
        if not found:
            return {}
        constants = found["constants"]
        over = f"{constants['seeds']} seeds, mu = {constants['mu']:g}"
        return {name: _spread(of(found["methods"]), over, constants["seeds"]) for name, of in wanted.items()}

    return measure


def _spread(found: dict[str, float], over: str, seeds: int) -> Number:
    return Number(found["mean"], found["half"], over, seeds)


def with_extremes(inner: Measure, of: Pick, which: Callable[..., Any], sweeps: tuple[str, ...]) -> Measure:
    """Besides, the smallest or largest value of one number over sweeps: how far from the defaults a claim carries."""

    def measure(results: Results) -> Numbers:
        numbers = inner(results)
        for sweep in sweeps:
            found = results.lab("multiview", f"sweep_{sweep}.json")
            if found:
                extreme = which(found["values"], key=lambda value: float(of(value)["mean"]))
                seeds = found["constants"]["seeds"]
                over = f"{seeds} seeds, {sweep} = {extreme['value']:g}"
                numbers[f"{which.__name__} over {sweep}"] = _spread(of(extreme), over, seeds)
        return numbers

    return measure


def with_map(inner: Measure) -> Measure:
    """Besides, the smallest captured share on the map of mask ratio and kernels a class."""

    def measure(results: Results) -> Numbers:
        numbers, found = inner(results), results.lab("multiview", "map.json")
        for name, held in (("theta", "m"), ("m", "theta")):
            cells = [cell for cell in found.get("cells", ()) if cell[held] == found["constants"][held]]
            if cells:
                worst = min(cells, key=lambda cell: float(cell["kernels"]["captured"]["mean"]))
                seeds = found["constants"]["seeds"]
                over = f"{seeds} seeds, {name} = {worst[name]:g}"
                numbers[f"min over {name}"] = _spread(worst["kernels"]["captured"], over, seeds)
        return numbers

    return measure


def relative_error(results: Results) -> Numbers:
    """The error of supervised learning as a multiple of 0.5 mu, at the default and where it is least."""
    found, sweep = results.lab("multiview"), results.lab("multiview", "sweep_mu.json")
    if not found:
        return {}
    seeds, mu = found["constants"]["seeds"], found["constants"]["mu"]
    numbers = {"error over 0.5 mu": _multiple(found["methods"], mu, seeds)}
    if sweep:
        multiples = [_multiple(value, value["value"], seeds) for value in sweep["values"]]
        numbers["min over mu"] = min(multiples, key=lambda number: number.value)
    return numbers


def _multiple(methods: dict[str, Any], mu: float, seeds: int) -> Number:
    error = methods["scratch"]["accuracy"]["total error"]
    return Number(2 * error["mean"] / mu, 2 * error["half"] / mu, f"{seeds} seeds, mu = {mu:g}", seeds)


def vit(results: Results) -> Numbers:
    """Single-view accuracy of real ViTs on the rendered data, and what pretraining adds."""
    found = results.read("multiview_vit", "results.json")
    if not found:
        return {}
    single = found["tests"].index("test_single")
    columns = {name: [seed[single] for seed in rows] for name, rows in found["accuracy"].items()}
    scratch = columns.pop("scratch")
    numbers = {"single-view, from scratch": over_seeds(scratch, "rendered images")}
    for name, column in columns.items():
        gains = [after - before for after, before in zip(column, scratch, strict=True)]
        numbers[f"gain of {name}"] = over_seeds(gains, "rendered images")
    return numbers
