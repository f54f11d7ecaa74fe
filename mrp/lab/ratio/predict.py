"""The prediction: a masked classifier is trained, and what it measures at every ratio is written down with its hash.

The classifier is a run of the recipe with another method, so it can be interrupted as every run can. The file with the
prediction is never written a second time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from mrp import api
from mrp.build import open_source
from mrp.config import ConfigError, Tree, build
from mrp.data.order import keys
from mrp.files import write_atomically
from mrp.folder import flat, with_defaults
from mrp.lab.estimate import Estimate
from mrp.lab.images import held_out, read
from mrp.lab.ratio import masked_classifier, rules
from mrp.models.masking import random_mask
from mrp.objectives import mae
from mrp.run import Run, default_identity, load
from mrp.step import Step
from mrp.train import train

PREDICTION, HASH = "prediction.json", "prediction.sha256"
CLASSIFIER, MAE = "classifier", "mae"  # folders
RATIOS = (0.15, 0.3, 0.45, 0.6, 0.75, 0.85, 0.95)
_CHUNK = 500  # images at once
_NOT_OF_THE_RECIPE = ("seed", "objective.mask_ratio")  # the comparison sets them itself


@dataclass(frozen=True, slots=True)
class Options:
    """The recipe of MAE whose ratio is sought, and how the classifier is trained and measured."""

    recipe: str
    words: tuple[str, ...] = ()  # that replace values of the recipe
    ratios: tuple[float, ...] = RATIOS
    length: str | None = None  # of the classifier's training; None: the recipe's
    images: int = 10_000  # held out, on which it is measured
    pairs: int = 4  # of masks per image and ratio


def freeze(options: Options, out: Path) -> dict[str, Any]:
    """Trains the classifier, measures it, and writes the prediction; one that is there already is read."""
    if (out / PREDICTION).exists():
        prediction, _ = frozen(out)
        if prediction["options"] != json.loads(json.dumps(asdict(options))):
            raise ConfigError(f"{out}: holds a prediction with other options, which stays; give another --out")
        recipe_of(prediction)
        return prediction
    for ratio in options.ratios:
        if not 0 < ratio < 1:
            raise ConfigError(f"--ratios: {ratio} was given; allowed: above 0, below 1")
    if (out / MAE).exists():
        raise ConfigError(f"{out}: MAE was trained here, so nothing can be predicted any more; give another --out")
    recipe = _load(options.recipe, options.words)
    train(_classifier(recipe, options.length), out / CLASSIFIER)
    about = {"options": asdict(options), "recipe": _decisive(recipe)}
    prediction = about | predict(out / CLASSIFIER, options)
    write_atomically(out / HASH, f"{digest_of(prediction)}  {PREDICTION}\n")
    write_atomically(out / PREDICTION, _text(prediction))
    return prediction


def frozen(out: Path) -> tuple[dict[str, Any], str]:
    """Returns the prediction and its hash, and refuses one that was changed after it was written."""
    try:
        content = (out / PREDICTION).read_bytes()
        noted = (out / HASH).read_text().split()[0]
        prediction: dict[str, Any] = json.loads(content)
    except (OSError, ValueError, IndexError) as error:
        raise ConfigError(f"{out}: holds no prediction ({error}); 'mrp lab ratio predict' makes one") from None
    if noted != hashlib.sha256(content).hexdigest():
        raise ConfigError(f"{out / PREDICTION}: was changed after it was written: its sha256 is not that of {HASH}")
    return prediction, noted


def recipe_of(prediction: Mapping[str, Any]) -> Run:
    """Returns the run of MAE that a prediction is about, and refuses a recipe that says something else by now."""
    name = prediction["options"]["recipe"]
    run = _load(name, prediction["options"]["words"])
    new = _decisive(run)
    old = with_defaults(prediction["recipe"], new, default_identity(run))
    for key in dict.fromkeys([*new, *old]):
        if old.get(key) != new.get(key):
            raise ConfigError(
                f"{name}: has {key} = {new.get(key)!r} by now, and the prediction was made for {old.get(key)!r}; "
                "restore the recipe, or predict anew with another --out"
            )
    return run


def _decisive(run: Run) -> dict[str, Any]:
    """Returns all that decides the accuracies over mask ratios, as dotted keys; the data are known by their content."""
    kept = flat(run.identity(open_source(run, "train").identity))
    test = {"data.test": open_source(run, "test").identity} if run.data.test else {}
    return {key: value for key, value in (kept | test).items() if key not in _NOT_OF_THE_RECIPE}


def _load(recipe: str, words: Sequence[str]) -> Run:
    run = load(recipe, words)
    if not isinstance(run.objective, mae.Config):
        raise ConfigError(f"{recipe}: is of {run.name}, and the question is MAE's mask ratio; take a recipe of mae")
    return run


def _classifier(run: Run, length: str | None) -> Run:
    """Returns the run of the classifier: the recipe with another method."""
    classes = len(open_source(run, "train").classes)
    if not classes:
        raise ConfigError(f"data.train: {run.data.train} has no labels, and the rules need them; take other data")
    method = {"name": str(masked_classifier.__file__), "classes": classes}
    values = run.model_dump(mode="json") | {"objective": method}
    return build(Run, Tree(values | ({"length": length} if length else {}), {}))


def predict(folder: Path, options: Options) -> dict[str, Any]:
    """Returns what the classifier measures at every ratio, and what each rule makes of it."""
    model = api.load(folder)
    source, name = held_out(model.run)
    images, labels = read(source, model.run.data, name, options.images)
    images = model.module.prepare(images)
    patches = cast(int, model.backbone.patch_embed.num_patches)
    counts = hidden_counts(patches, options.ratios)
    rows = [_measure(model.module, images, labels, hidden, options.pairs) for hidden in counts]
    ratios = [hidden / patches for hidden in counts]
    whole = _measure(model.module, images, labels, 0, 1)["label_error"]
    chance = 1 - float(labels.bincount().max()) / len(labels)
    errors, one_of_two = ([row[name]["value"] for row in rows] for name in ("label_error", "one_of_two"))
    merits = rules.merits(ratios, errors, one_of_two, whole["value"], chance)
    return {
        "images": len(images), "patches": patches, "steps": model.step, "whole": whole, "chance": chance,
        "ratios": ratios, "hidden": counts, "rows": rows, "rules": rules.RULES, "merits": merits,
        "best": {rule: rules.best(ratios, merit) for rule, merit in merits.items()},
    }  # fmt: skip


def hidden_counts(patches: int, ratios: Sequence[float]) -> list[int]:
    """Returns how many patches each ratio hides: the nearest number that leaves one visible and hides one."""
    return sorted({min(max(round(patches * ratio), 1), patches - 1) for ratio in ratios})


@torch.no_grad()
def _measure(module: Step, images: Tensor, labels: Tensor, hidden: int, pairs: int) -> dict[str, dict[str, float]]:
    """Returns the label error of views, how often one of two tells the class, and their edges within a class."""
    classifier = cast(masked_classifier.Objective, module.objective)
    columns: dict[str, list[Tensor]] = {"label_error": [], "one_of_two": [], "same_class": []}
    for start in range(0, len(images), _CHUNK):
        part, truth = images[start : start + _CHUNK], labels[start : start + _CHUNK]
        numbers = torch.arange(start, start + len(part)).numpy()
        seen = []
        for draw in range(1, 2 * pairs + 1):
            mask = random_mask(torch.from_numpy(keys(0, draw, numbers)), classifier.num_patches, hidden)
            seen.append(classifier.predict(part, mask, classifier.num_patches - hidden).softmax(1))
        shares = torch.stack(seen).unflatten(0, (pairs, 2))  # pairs 2 B C
        right = shares.argmax(-1) == truth
        columns["label_error"].append((~right).double().mean((0, 1)))
        columns["one_of_two"].append((right[:, 0] != right[:, 1]).double().mean(0))
        columns["same_class"].append((shares[:, 0] * shares[:, 1]).sum(-1).double().mean(0))
    return {name: asdict(Estimate.over_images(torch.cat(values))) for name, values in columns.items()}


def digest_of(prediction: Mapping[str, Any]) -> str:
    """Returns the sha256 of the file that holds a prediction."""
    return hashlib.sha256(_text(prediction).encode()).hexdigest()


def _text(prediction: Mapping[str, Any]) -> str:
    return json.dumps(prediction, indent=1) + "\n"
