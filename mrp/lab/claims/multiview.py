"""Numbers of `mrp lab multiview` at the default constants, and of the Vision Transformers trained on its data."""

from __future__ import annotations

from typing import Any, Literal

from mrp.lab.claims.number import Number, Numbers, from_entry, over_seeds
from mrp.lab.claims.results import NotCounted, Results
from mrp.lab.multiview.constants import Constants

RESULTS, SWEEP, MAP = "results.json", "sweep_{}.json", "map.json"
PICK = {"min": min, "max": max}


def comparison(results: Results, numbers: dict[str, str]) -> Numbers:
    """Numbers of the comparison of all methods, by keys such as `teacher.kernels.captured`."""
    data = _read(results, RESULTS)
    if not data:
        return {}
    over = _over(data, "mu", data["constants"]["mu"])
    return {name: _number(data, data["methods"], key, over) for name, key in numbers.items()}


def sweep(results: Results, constant: str, pick: Literal["min", "max"], key: str) -> Numbers:
    """The smallest or largest value of one number over a sweep, which shows how far from the defaults a claim holds."""
    data = _read(results, SWEEP.format(constant), constant)
    if not data:
        return {}
    extreme = PICK[pick](data["values"], key=lambda row: _entry(row, key)["mean"])
    return {f"{pick} over {constant}": _number(data, extreme, key, _over(data, constant, extreme["value"]))}


def over_map(results: Results, constant: str, fixed: str, key: str) -> Numbers:
    """The smallest value of one number on the map of mask ratio and kernels per class, along one of the two."""
    data = _read(results, MAP)
    if not data:
        return {}
    cells = [cell for cell in data["cells"] if cell[fixed] == data["constants"][fixed]]
    worst = min(cells, key=lambda cell: _entry(cell, key)["mean"])
    return {f"min over {constant}": _number(data, worst, key, _over(data, constant, worst[constant]))}


def relative_error(results: Results) -> Numbers:
    """The error of supervised learning as a multiple of 0.5 mu: at the default mu, and where it is smallest."""
    numbers = {}
    if data := _read(results, RESULTS):
        numbers["error over 0.5 mu"] = _multiple(data, data["methods"], data["constants"]["mu"])
    if data := _read(results, SWEEP.format("mu"), "mu"):
        multiples = [_multiple(data, row, row["value"]) for row in data["values"]]
        numbers["min over mu"] = min(multiples, key=lambda number: number.value)
    return numbers


def vit(results: Results) -> Numbers:
    """Single-view accuracy of Vision Transformers on the rendered data, and what pretraining adds to it."""
    data = results.read("multiview_vit/results.json")
    if not data:
        return {}
    single = data["tests"].index("test_single")
    columns = {name: [seed[single] for seed in rows] for name, rows in data["accuracy"].items()}
    scratch = columns.pop("scratch")
    numbers = {"single-view, from scratch": over_seeds(scratch, "rendered images")}
    for name, column in columns.items():
        gains = [after - before for after, before in zip(column, scratch, strict=True)]
        numbers[f"gain of {name}"] = over_seeds(gains, "rendered images")
    return numbers


def _read(results: Results, file: str, swept: str = "") -> dict[str, Any]:
    """A result file, which has to be of the default constants: the claims are about these, and a toy shows nothing."""
    path = f"lab/multiview/{file}"
    data = results.read(path)
    defaults = Constants().model_dump(mode="json", exclude={"seeds", "seed", swept})
    changed = [name for name, value in defaults.items() if data and data["constants"][name] != value]
    if changed:
        raise NotCounted(results.folder / path, f"toy or other constants than the defaults ({', '.join(changed)})")
    return data


def _over(data: dict[str, Any], constant: str, value: float) -> str:
    return f"{data['constants']['seeds']} seeds, {constant} = {value:g}"


def _entry(row: dict[str, Any], key: str) -> dict[str, float]:
    """The mean and half interval under a key such as `teacher.kernels.captured`."""
    entry = row
    for part in key.split("."):
        entry = entry[part]
    return entry


def _number(data: dict[str, Any], row: dict[str, Any], key: str, over: str) -> Number:
    return from_entry(_entry(row, key), over, data["constants"]["seeds"])


def _multiple(data: dict[str, Any], methods: dict[str, Any], mu: float) -> Number:
    error = methods["scratch"]["accuracy"]["total error"]
    return Number(2 * error["mean"] / mu, 2 * error["half"] / mu, _over(data, "mu", mu), data["constants"]["seeds"])
