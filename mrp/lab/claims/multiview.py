"""Numbers from the results of `mrp lab multiview`, and of the Vision Transformers trained on its data."""

from __future__ import annotations

from typing import Any

from mrp.lab.claims.number import Number, Numbers, difference, from_entry, over_seeds
from mrp.lab.claims.results import NotCounted
from mrp.lab.multiview.constants import Constants
from mrp.lab.multiview.descent import OPTIMIZERS

Data = dict[str, Any]
ALONE = "scratch, photographs alone"  # of tools/multiview_vit.py: what could be learned of them


def comparison(data: Data, numbers: dict[str, str]) -> Numbers:
    """Returns numbers of the comparison of all methods, by keys such as `teacher.kernels.captured`."""
    _check_constants(data)
    mu = data["constants"]["mu"]
    return {name: _number(data, data["methods"], key, "mu", mu) for name, key in numbers.items()}


def sweep(data: Data, constant: str, key: str) -> Numbers:
    """Returns a number at every value of a sweep, which shows how far from the defaults a claim holds."""
    _check_constants(data, constant)
    return _at(constant, {row["value"]: _number(data, row, key, constant, row["value"]) for row in data["values"]})


def over_map(data: Data, constant: str, fixed: str, key: str) -> Numbers:
    """Returns the numbers on the map of theta and m, over one of these and at the default of the other."""
    _check_constants(data)
    cells = [cell for cell in data["cells"] if cell[fixed] == data["constants"][fixed]]
    return _at(constant, {cell[constant]: _number(data, cell, key, constant, cell[constant]) for cell in cells})


def optimizers(data: Data, objective: str, key: str) -> Numbers:
    """Returns a number of an objective at every optimizer of the grid with which it settles, when it has settled."""
    _check_constants(data)
    numbers = {}
    for name, cell in data["cells"][objective].items():
        for row in cell["rows"]:
            if row["steps"] == cell["settled"]:
                numbers[f"at optimizer = {OPTIMIZERS[name]}"] = _number(data, row, key, "steps", row["steps"])
    return numbers


def lengths(data: Data, objective: str, optimizer: str, key: str) -> Numbers:
    """Returns a number of a cell of the grid at every length of training."""
    _check_constants(data)
    rows = data["cells"][objective][optimizer]["rows"]
    return _at("steps", {row["steps"]: _number(data, row, key, "steps", row["steps"]) for row in rows})


def same_optimizer(data: Data, objective: str) -> Numbers:
    """Returns by how much more of the features an objective captures than supervised training by the same optimizer."""
    _check_constants(data)
    numbers = {}
    for name, cell in data["cells"][objective].items():
        rows = [cell["rows"][-1], data["cells"]["supervised"][name]["rows"][-1]]
        if not any(row.get("diverged") for row in rows):
            steps = rows[0]["steps"]
            mine, supervised = (_number(data, row, "kernels.captured", "steps", steps) for row in rows)
            numbers[f"gain of {objective}, {name}"] = difference(mine, supervised, mine.over)
            settled = all(data["cells"][each][name]["settled"] for each in (objective, "supervised"))
            numbers[f"settled, {objective}, {name}"] = Number(float(settled), 0.0, "1 if both are")
    return numbers


def relative_error(data: Data) -> Numbers:
    """Returns the error of supervised learning as a multiple of 0.5 mu."""
    _check_constants(data)
    return {"error over 0.5 mu": _multiple(data, data["methods"], data["constants"]["mu"])}


def relative_error_over_mu(data: Data) -> Numbers:
    """Returns this multiple at every value of the sweep over mu."""
    _check_constants(data, "mu")
    return _at("mu", {row["value"]: _multiple(data, row, row["value"]) for row in data["values"]})


def diversity(data: Data, at: float) -> Numbers:
    """Returns what is captured of seen and of unseen classes, and what tuning gains over none of it, for both methods.

    These are at a share `at` of the classes in pretraining, and of unseen classes at every number of classes.
    """
    _check_constants(data)
    constants, numbers = data["constants"], {}
    half, tuned = round(at * constants["k"]), constants["steps_tuned"]
    rows = {
        (row["method"], row["classes"]): row for row in data["rows"] if row["world"] == "open" and row["tuned"] == tuned
    }
    for (method, classes), row in rows.items():
        if 0 < classes < constants["k"]:
            captured = {part: _number(data, row["captured"], part, "classes", classes) for part in ("seen", "unseen")}
            numbers[f"at classes = {classes}, {method}"] = captured["unseen"]
            if classes == half:
                numbers |= {f"captured of {part} classes, {method}": number for part, number in captured.items()}
                pretrained, alone = (
                    _number(data, each["single_view"], "unseen", "classes", classes) for each in (row, rows[method, 0])
                )
                name = f"single-view of unseen classes, {method} minus no pretraining"
                numbers[name] = difference(pretrained, alone, alone.over)
    return numbers


def vit(data: Data, images: str, at_least: dict[str, int]) -> Numbers:
    """Returns the single-view accuracy of Vision Transformers on images of two features, and what pretraining adds."""
    _check_vit(data, images, at_least)
    numbers: Numbers = {}
    for optimizer, starts in data["found"].items():
        tests = [test for test in starts["scratch"][0]["accuracy"] if test != "test_multi"]
        kinds = {"single-view": tests} | ({test: [test] for test in tests} if len(tests) > 1 else {})
        for kind, of in kinds.items():
            title, end = kind.replace("test_", "only the "), "" if optimizer == "adamw" else f", {optimizer.upper()}"
            columns = {start: _means(seeds, "accuracy", of) for start, seeds in starts.items()}
            numbers |= _against_scratch(columns, title, f"{images} images", end)
            if of == ["test_photograph"] and ALONE in columns:
                learnable = over_seeds(columns[ALONE], f"{images} images")
                numbers[f"{title}, trained without patterns{end}"] = learnable
    return numbers


def vit_maps(data: Data, images: str, at_least: dict[str, int]) -> Numbers:
    """Returns what class-activation maps of these cover of both features, by class and by Eigen-CAM."""
    _check_vit(data, images, at_least)
    numbers: Numbers = {}
    for kind in ("", "Eigen-CAM, "):
        measures = {
            "features found, of 2": ["features found, of 2"],
            "features covered": ["covered, pattern", "covered, photograph"],
            "noise covered": ["covered, noise"],
        }
        for title, of in measures.items():
            names, starts = [f"{kind}{name}" for name in of], data["found"]["adamw"]
            columns = {start: _means(seeds, "maps", names) for start, seeds in starts.items()}
            numbers |= _against_scratch(columns, f"{kind}{title}", f"{images} images", "")
    return numbers


def _means(seeds: list[Data], part: str, names: list[str]) -> list[float]:
    """Returns the mean over some names of a part of what was found, for each seed."""
    return [sum(seed[part][name] for name in names) / len(names) for seed in seeds]


def _against_scratch(columns: dict[str, list[float]], title: str, over: str, end: str) -> Numbers:
    """Returns what training from scratch comes to, by seed, and what the others are beyond it."""
    scratch = columns["scratch"]
    numbers = {f"{title}, from scratch{end}": over_seeds(scratch, over)}
    for name, column in columns.items():
        if name not in ("scratch", ALONE):
            gains = [after - before for after, before in zip(column, scratch, strict=True)]
            numbers[f"{title}, gain of {name}{end}"] = over_seeds(gains, over)
    return numbers


def _check_vit(data: Data, images: str, at_least: dict[str, int]) -> None:
    if data["images"] != images:
        raise NotCounted(f"is of {data['images']} images")
    too_small = [f"{data['size'][name]} {name}" for name, least in at_least.items() if data["size"][name] < least]
    if too_small:
        raise NotCounted(f"toy ({', '.join(too_small)})")


def _check_constants(data: Data, swept: str = "") -> None:
    """Refuses results that are not of the default constants: the claims are about these, and a toy shows nothing."""
    defaults = Constants().model_dump(mode="json", exclude={"seeds", "seed", swept})
    changed = [name for name, value in defaults.items() if data["constants"][name] != value]
    if changed:
        raise NotCounted(f"toy or other constants than the defaults ({', '.join(changed)})")


def _entry(row: Data, key: str) -> dict[str, float]:
    entry = row
    for part in key.split("."):
        entry = entry[part]
    return entry


def _number(data: Data, row: Data, key: str, constant: str, value: float) -> Number:
    """Returns the number under a key of a row that was measured at this value of a constant."""
    seeds = data["constants"]["seeds"]
    return from_entry(_entry(row, key), f"{seeds} seeds, {constant} = {value:g}", seeds)


def _multiple(data: Data, methods: Data, mu: float) -> Number:
    error = _number(data, methods, "scratch.accuracy.total error", "mu", mu)
    return error._replace(value=2 * error.value / mu, half=None if error.half is None else 2 * error.half / mu)


def _at(constant: str, numbers: dict[float, Number]) -> Numbers:
    return {f"at {constant} = {value:g}": number for value, number in numbers.items()}
