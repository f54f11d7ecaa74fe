"""The folder of an adaptation: what is planned for which images, written once, and what has come of it."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mrp.adapting import AFTER, BEFORE, LIST, PLAN, RESULT
from mrp.adapting.rules import Choice, Start, recipe
from mrp.config import ConfigError, Node, Tree, build, overridden
from mrp.data.channels import choose
from mrp.data.groups import groups_of
from mrp.data.open import open_source
from mrp.data.order import Ints
from mrp.data.source import Source
from mrp.data.sources import held_out
from mrp.data.survey import Survey
from mrp.evaluate.split import split
from mrp.exchange.importing import import_weights, is_imported
from mrp.files import write_atomically
from mrp.interop import reading, runs
from mrp.processes.container import usable_cores

HELD_OUT, MOST_HELD_OUT, FEWEST_HELD_OUT = 0.1, 5000, 20  # a share of the images; and images
_MORE = (0.2, 0.3, 0.4, 0.5)  # shares that are tried where groups are so large that a smaller one is a single group
DAMAGED = 0.1  # the share of the images from which on they are probably not what was meant
COLOURS = 3  # channels of weights that were trained with ImageNet's statistics, where they do not say others


def make(
    checkpoint: str,
    data: str | dict[str, Any],
    folder: Path,
    method: str | None = None,
    processes: int = 1,
    words: Sequence[str] = (),
) -> list[Choice] | None:
    """Decides everything, and writes it as a recipe into the folder; None where a plan for the same is there."""
    for name, given in (("CHECKPOINT", checkpoint), ("DATA", data)):
        if not given:
            raise ConfigError(f"{name}: is empty, like a variable of the shell that was never set; give a path")
    changes = overridden(Tree({}, {}), words).values.get("data")
    changes = changes if isinstance(changes, Mapping) else {}  # anything else is refused with the recipe
    if not isinstance(group := changes.get("group"), str | None):
        raise ConfigError(f"data.group: {json.dumps(group)} was given; allowed: a regular expression in quotes")
    asked = {"checkpoint": checkpoint, "data": data, "method": method} | ({"group": group} if group else {})
    if (folder / PLAN).is_file():
        before = result(folder).get("asked")
        own = {key: value for key, value in (before or {}).items() if key != "group" or group}  # else the plan's
        if own != asked:
            raise ConfigError(f"{folder / PLAN}: is a plan for {before}; give another folder with --out, or remove it")
        return None
    if folder.is_dir() and {entry.name for entry in folder.iterdir()} - {LIST, RESULT, BEFORE}:
        raise ConfigError(f"{folder}: is not empty and holds no {PLAN}; choose another folder with --out FOLDER")
    if "train" in changes:
        raise ConfigError(f"data.train: the images to train on are {json.dumps(data)}; leave it out")
    if "channels" in changes:
        raise ConfigError(
            "data.channels: weights are compared on images with the channels that they know; leave it out, or train "
            "with 'mrp pretrain', init=WEIGHTS and init.channels=spread"
        )
    if isinstance(labels := changes.get("labels"), Mapping) and labels.get("missing") == "leave_out":
        raise ConfigError(
            "data.labels.missing: leave_out would leave images out of training too; give every image a row, or train "
            "on all of them without data.labels, and judge with 'mrp judge'"
        )
    spec, test = _spec(data, "DATA"), changes.get("test")
    classes = changes.get("labels") is None  # else a table has them
    whole, name = open_source(spec, "train", classes=classes), held_out.named(spec)
    if test is not None and open_source(_spec(test, "data.test"), "test", classes=classes).content == whole.content:
        raise ConfigError(f"data.test: {name} has the images to train on; leave it out, and a tenth is held out")
    start, survey = _opened(checkpoint, whole, name, folder, words)
    section, images = _split(whole, name, data, spec, folder, survey, test, group)
    choices = recipe(start, images, section, survey.shapes, processes, method, words)
    folder.mkdir(parents=True, exist_ok=True)
    write_result(folder, asked=asked, choices=[asdict(one) for one in choices])
    write_atomically(folder / PLAN, _written(choices, folder))
    return choices


def _spec(data: Any, word: str) -> str | Node:
    """Returns a path, or the section of a source, checked."""
    spec: str | Node = build(held_out.Config, Tree({"path": data, "list": LIST}, {"": word})).path
    return spec


def _opened(checkpoint: str, whole: Source, name: str, folder: Path, words: Sequence[str]) -> tuple[Start, Survey]:
    """Returns the weights and what was found of the images, both read once.

    What is no run of mrp is imported into a folder beside the run's: it is what comes before, and is measured as such,
    with the same mean and deviation, which are those of the images where nobody else says any.
    """
    if runs.is_ours(Path(checkpoint)):
        start = Start.of(Path(checkpoint))
        data = start.model.run.data
        (known,) = choose([whole], "DATA", data.channels)
        return start, _survey(known, name, data.num_channels)
    words = [word for word in words if word.startswith(("backbone.", "objective.decoder."))]
    read = reading.read(checkpoint, values=overridden(Tree({}, {}), words).values)
    survey, before = _survey(whole, name, read.channels), folder / BEFORE
    if not read.mean and read.channels != COLOURS:
        words += [f"data.mean={list(survey.mean)}", f"data.std={list(survey.std)}"]
    if is_imported(before):
        shutil.rmtree(before)  # what was left by an earlier plan that did not end
    import_weights(checkpoint, before, words=words)
    return Start.of(before), survey


def _survey(whole: Source, name: str, channels: int) -> Survey:
    """Looks at every image, and refuses a source of which many are damaged."""
    survey = Survey.of(whole, channels, usable_cores())
    if len(survey.damaged) > DAMAGED * len(whole):
        first = min(survey.damaged)
        raise ConfigError(
            f"{name}: {len(survey.damaged):,} of {len(whole):,} images cannot be read, such as {whole.where(first)} "
            f"({survey.damaged[first]}); mend or remove them"
        )
    return survey


def _split(
    whole: Source, name: str, data: Any, spec: str | Node, folder: Path, survey: Survey, test: Any, group: str | None
) -> tuple[dict[str, Any], int]:
    """Returns the sections of the data, and how many images there are to train on; writes which are held out."""
    own = open_source(spec, "test", classes=bool(whole.classes))
    if test is None and own.identity != whole.identity:  # such as an archive of CIFAR, which holds test images
        test = deepcopy(data)
    chosen = np.empty(0, np.int64)
    if test is None:
        share = min(HELD_OUT, MOST_HELD_OUT / len(whole))
        chosen = survey.held_out(share) if group is None else _of_groups(whole, group, share, survey)
        if len(chosen) < FEWEST_HELD_OUT:
            together = "by their content, so copies stay together" if group is None else "in whole groups"
            raise ConfigError(
                f"{name}: of its {len(whole):,} images {len(chosen)} are to be held out (a tenth {together}), and no "
                f"fewer than {FEWEST_HELD_OUT} tell anything; give more images, or others as data.test=PATH"
            )
    if test is not None and not survey.damaged:
        return {"train": data, "test": test}, len(whole)
    folder.mkdir(parents=True, exist_ok=True)
    held_out.write(folder / LIST, whole, chosen, survey.damaged)
    section = {"name": "held_out", "path": data, "list": str(folder / LIST)}
    return {"train": section, "test": test or deepcopy(section)}, len(whole) - len(chosen) - len(survey.damaged)


def _of_groups(whole: Source, group: str, share: float, survey: Survey) -> Ints:
    """Returns the sound images of the groups that are held out: two at least, for one tells nothing of others."""
    groups = groups_of(whole, group)
    for more in (share, *_MORE):
        held_out = split(torch.zeros(len(groups), dtype=torch.int64), torch.from_numpy(groups), more).held_out
        if len(np.unique(groups[held_out])) > 1:
            return np.setdiff1d(held_out, list(survey.damaged))
    raise ConfigError(
        f"data.group: '{group}' finds {len(np.unique(groups))} groups of images, of which no two can be held out and "
        "leave half of the images; give other images as data.test=PATH"
    )


def _written(choices: Sequence[Choice], folder: Path) -> str:
    """Returns the recipe as a file, with the reason above each part."""
    lines = [
        "# Written by mrp adapt. Change what you like; then the same command goes on with it, or:",
        f"#   mrp pretrain {folder / PLAN} --folder {folder / AFTER}",
    ]
    for one in choices:
        lines += ["", *(f"# {line}" for line in textwrap.wrap(one.why, 110)), one.yaml]
    return "\n".join(lines) + "\n"


def result(folder: Path) -> dict[str, Any]:
    """Returns what is known of an adaptation: what was asked for, the choices, the forecast, the verdict."""
    try:
        told: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        return told if isinstance(told, dict) else {}
    except (OSError, ValueError):
        raise ConfigError(
            f"{folder / RESULT}: cannot be read; remove {folder / PLAN}, and the plan is made anew"
        ) from None


def write_result(folder: Path, **more: Any) -> dict[str, Any]:
    """Adds to what is known of an adaptation."""
    told = (result(folder) if (folder / PLAN).is_file() else {}) | more
    write_atomically(folder / RESULT, json.dumps(told, indent=1))
    return told
