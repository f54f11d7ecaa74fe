"""The comparison: MAE is trained at every ratio of a frozen prediction, probed, and held against it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mrp import api
from mrp.config import Tree, build
from mrp.evaluate.results import TRAINED
from mrp.files import write_atomically
from mrp.lab.ratio import rules
from mrp.lab.ratio.predict import MAE, frozen, recipe_of
from mrp.run import Run
from mrp.train import train

PROBES = ("knn", "linear")
_OPTIONS = ("linear.layers=1",)  # the last block: earlier ones are almost as good without any training
_RESULT = "accuracy.json"  # in a run's folder


def compare(out: Path, seeds: int) -> dict[str, Any]:
    """Trains and probes what has not been yet, and returns the prediction beside what was measured."""
    prediction, digest = frozen(out)
    recipe, patches = recipe_of(prediction), prediction["patches"]
    measured = []
    for seed in range(seeds):  # a whole seed first, so that an interrupted comparison is of use
        for hidden in prediction["hidden"]:
            folder = out / MAE / f"{hidden}-of-{patches}-{seed}"
            run = _run(recipe, mask_ratio(patches, hidden), seed)
            measured.append({"seed": seed, "hidden": hidden, **_accuracies(run, folder)})
    return result(prediction, digest, measured)


def mask_ratio(patches: int, hidden: int) -> float:
    """Returns a ratio at which MAE hides so many patches, whichever way rounding falls."""
    ratio = hidden / patches
    return ratio if int(patches * (1 - ratio)) == patches - hidden else (hidden - 0.5) / patches


def _run(recipe: Run, ratio: float, seed: int) -> Run:
    values = recipe.model_dump(mode="json")
    return build(Run, Tree(values | {"objective": values["objective"] | {"mask_ratio": ratio}, "seed": seed}, {}))


def _accuracies(run: Run, folder: Path) -> dict[str, Any]:
    """Trains a run as far as it is not, and returns its accuracy under each probe with the interval over images."""
    kept = folder / _RESULT
    if not kept.exists():
        train(run, folder)
        found = api.probe(folder, *_OPTIONS, evaluators=PROBES).results[TRAINED]
        named = {probe: {name: found[probe][name] for name in ("accuracy", "low", "high")} for probe in PROBES}
        write_atomically(kept, json.dumps(named))
    accuracies: dict[str, Any] = json.loads(kept.read_text())
    return accuracies


def result(prediction: dict[str, Any], digest: str, measured: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns per rule and probe, with one value for every seed, how well the ratios were ranked and the best was met.

    `rank correlation` is that of merit and accuracy over ratios, `ratios off` how many ratios lie between the predicted
    and the best one, and `points gained` by how many points of accuracy it is above the mean ratio. Rules that look at
    nothing stand beside those of the prediction.
    """
    ratios, outcomes = prediction["ratios"], []
    seeds = sorted({row["seed"] for row in measured})
    fixed = {f"nearest to {wanted:g}": [-abs(ratio - wanted) for ratio in ratios] for wanted in rules.FIXED}
    for rule, merit in (prediction["merits"] | fixed).items():
        chosen = ratios.index(rules.best(ratios, merit))
        for probe in PROBES:
            curves = [[row[probe]["accuracy"] for row in measured if row["seed"] == seed] for seed in seeds]
            outcomes.append(
                {
                    "rule": rule,
                    "probe": probe,
                    "rank correlation": [rules.rank_correlation(merit, curve) for curve in curves],
                    "ratios off": [abs(chosen - curve.index(max(curve))) for curve in curves],
                    "points gained": [100 * (curve[chosen] - sum(curve) / len(curve)) for curve in curves],
                }
            )
    return {"sha256": digest, "prediction": prediction, "seeds": len(seeds), "measured": measured, "outcomes": outcomes}
