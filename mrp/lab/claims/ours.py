"""Numbers from the results of `mrp lab ratio` and `tools/collapse_study.py`, which are about no claim of the papers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mrp.lab.claims.number import Number, Numbers, over_seeds
from mrp.lab.claims.results import NotCounted
from mrp.lab.ratio.predict import digest_of
from mrp.lab.ratio.rules import rank_correlation

Data = dict[str, Any]
FIXED = "nearest to 0.5"  # a rule that looks at nothing
LEAST_STEPS = 300  # of a run; shorter ones have learned little more than the mean image


def predicted_ratio(data: Data, rule: str, probe: str) -> Numbers:
    """Returns how well a rule has foretold the accuracies of MAE over mask ratios, over seeds."""
    if data["sha256"] != digest_of(data["prediction"]):
        raise NotCounted("the prediction was changed after it was frozen: its sha256 is another")
    if len(data["prediction"]["ratios"]) < 5:
        raise NotCounted(f"toy ({len(data['prediction']['ratios'])} mask ratios)")
    over = f"{len(data['prediction']['ratios'])} mask ratios, {data['prediction']['options']['recipe']}"
    outcomes = {each["rule"]: each for each in data["outcomes"] if each["probe"] == probe}
    names = ("rank correlation", "ratios off", "points gained")
    numbers = {f"{name}, {probe}": over_seeds(outcomes[rule][name], over) for name in names}
    mine, fixed = (outcomes[each]["rank correlation"] for each in (rule, FIXED))
    beyond = [one - other for one, other in zip(mine, fixed, strict=True)]
    return numbers | {f"rank correlation beyond that of '{FIXED}', {probe}": over_seeds(beyond, over)}


def collapse(data: Data, token: str) -> Numbers:
    """Returns what lambda and Muon each do to the rank and the uniformity of a token at the end, over seeds."""
    steps = data["options"]["steps"]
    if steps < LEAST_STEPS:
        raise NotCounted(f"toy ({steps} steps)")
    cells: dict[tuple[int, str, float], Data] = {
        (row["seed"], row["optimizer"], row["weight"]): row
        for row in data["rows"]
        if (row["token"], row["step"]) == (token, steps)
    }
    bare, muon, weighted, both = ("adamw", 0.0), ("muon", 0.0), ("adamw", 0.01), ("muon", 0.01)
    needed = bare, muon, weighted, both
    seeds = [seed for seed in sorted({key[0] for key in cells}) if all((seed, *cell) in cells for cell in needed)]
    if not seeds:
        raise NotCounted("lacks lambda 0 or .01")
    over = f"{steps} steps"

    def each(measure: str, optimizer: str, weight: float) -> list[float]:
        return [cells[seed, optimizer, weight][measure] for seed in seeds]

    def gained(measure: str, later: tuple[str, float], earlier: tuple[str, float]) -> Number:
        pairs = zip(each(measure, *later), each(measure, *earlier), strict=True)
        return over_seeds([after - before for after, before in pairs], over)

    ends = zip(*(each("uniformity", *cell) for cell in (bare, muon, weighted)), strict=True)
    return {
        "rank, by lambda .01": gained("rank_me", weighted, bare),
        "rank, by Muon": gained("rank_me", muon, bare),
        "rank, by Muon beside lambda .01": gained("rank_me", both, weighted),
        "share of lambda's effect on uniformity that Muon has": over_seeds(
            [(one - other) / (one - aim) for one, other, aim in ends], over
        ),
        "kNN points, by lambda .01": gained("knn", weighted, bare),
        "kNN points, by Muon": gained("knn", muon, bare),
        "kNN points, by lambda .01 beside Muon": gained("knn", both, muon),
        "rank against kNN, correlation over cells": over_seeds(_foretold(cells, seeds), over),
    }


def _foretold(cells: dict[tuple[int, str, float], Data], seeds: Sequence[int]) -> list[float]:
    """Returns per seed how rank and accuracy go together over the cells that all seeds have."""
    shared = [cell for cell in {key[1:] for key in cells} if all((seed, *cell) in cells for seed in seeds)]
    rows = [[cells[seed, *cell] for cell in shared] for seed in seeds]
    return [rank_correlation([row["rank_me"] for row in part], [row["knn"] for row in part]) for part in rows]
