"""The model card of an exported folder: what the model is, how it was made and how to use it."""

from __future__ import annotations

import re
import shlex
from typing import Any, NamedTuple

from mrp.config import dump
from mrp.evaluate import results
from mrp.evaluate.measures import MEAN_PER_CLASS
from mrp.evaluate.tagged import TITLES
from mrp.evaluators.validation import VALIDATION
from mrp.files import mapping_in
from mrp.folder import ENVIRONMENT, flat
from mrp.interop.folders import Preprocessing
from mrp.interop.heads import linear_head
from mrp.model import NO_DATA, Model, class_names
from mrp.monitor.metrics import METRICS, from_the_end
from mrp.objectives import classify
from mrp.run import NOT_IN_IDENTITY

FILE = "README.md"
_LIBRARIES = {"timm": "timm", "transformers": "transformers", "onnx": "onnx", "torch-export": "pytorch"}
_INFERRED = {"objective", "backbone", "data"}  # sections that imported weights tell
_MEASURES = ("accuracy", "accuracy5", *TITLES, "low", "high")
_OF_THE_MACHINE, _OF_THE_TRAINING = ("memory/", "loader/", "checkpoint/", "images_per_second"), ("optim/", "objective/")
_ROWS = 24  # of the table of metrics


class Exported(NamedTuple):
    """What was written beside the card."""

    to: str
    whole: bool
    title: str
    images: Preprocessing
    usage: str
    difference: float | None  # the largest between these answers and mrp's, relative to the largest answer


def text(model: Model, exported: Exported) -> str:
    """Returns README.md, ready for a hub; its licence is for the user to choose."""
    parts = (
        _header(model, exported),
        _summary(model, exported),
        f"## Use\n\n```python\n{exported.usage}\n```",
        _images(exported.images, exported.to),
        _recipe(model),
        _metrics(model),
        _licence(model),
    )
    return "\n\n".join(parts) + "\n"


def _header(model: Model, exported: Exported) -> str:
    classifies = linear_head(model.objective, model.missing) is not None
    task = "image-classification" if classifies else "image-feature-extraction"
    lines = ["---", "license: unknown  # confirm: see 'Licence' below"]
    if exported.to in _LIBRARIES:
        lines.append(f"library_name: {_LIBRARIES[exported.to]}")
    if not exported.whole:  # whose answers are of some patches alone
        lines.append(f"pipeline_tag: {task}")
    return "\n".join([*lines, f"tags: [mrp, vision-transformer, {_last(model.run.name)}]", "---"])


def _summary(model: Model, exported: Exported) -> str:
    parameters = sum(parameter.numel() for parameter in model.backbone.parameters())
    parts = [
        f"# {exported.title}",
        f"A Vision Transformer of {parameters / 1e6:.2f} million parameters, trained with **{_last(model.run.name)}**; "
        f"the {model.weights}'s weights after step {model.step:,}. Written by `mrp export --to {exported.to}`.",
    ]
    if source := model.source:
        missing = ", ".join(source.get("missing", ()))
        parts.append(
            f"The weights were imported from `{source.get('source')}` (sha256 `{source.get('sha256')}`); "
            "the recipe below was inferred from them."
            + (f"\nNever trained, since that file did not hold them: {missing}." if missing else "")
        )
    if left_out := _left_out(model, exported):
        parts.append(f"Not in this folder, but in the run: {', '.join(f'`{name}`' for name in left_out)}.")
    if model.objective.has_own_features:
        parts.append(
            f"{_last(model.run.name)} defines the features of an image itself; this folder gives the encoder's."
        )
    if getattr(model.run.objective, "learns_tags", False):
        names = ", ".join(class_names(model)) or "an order that the run no longer tells"
        parts.append(
            "It tells tags, of which an image may have several or none: the sigmoid of each score is how likely the "
            f"image has that tag. Their order: {names}."
        )
    if exported.difference is not None:
        compared = "Loaded again at export and compared with mrp on random images in float32: the answers differ"
        if exported.to == "official":
            compared = "Read again at export: the weights differ"
        parts.append(f"{compared} by at most {exported.difference:.1e} of the largest one.")
    return "\n\n".join(parts)


def _left_out(model: Model, exported: Exported) -> list[str]:
    """Returns the parts of the objective that the folder does not hold."""
    if exported.to == "official":
        return []
    parts = {name.split(".")[0] for name in model.objective.state_dict() if name not in model.missing}
    held = {"head", "standardise"} if isinstance(model.objective, classify.Objective) else set()
    return sorted(parts - {"backbone"} - held - ({"decoder"} if exported.whole else set()))


def _images(images: Preprocessing, to: str) -> str:
    (height, width), (outer_height, outer_width) = images.size, images.covered
    shape = f"resized to {height}x{width}"
    if images.crop is not None:
        shape = f"resized to just cover {outer_height}x{outer_width}, of which the central {height}x{width} are taken"
        shape += f" (by mrp, one of exactly {height}x{width} is taken whole)"
    other = ""
    if to == "transformers" and images.crop is not None and height != width:
        other = (
            "\n\n**The image processor in this folder does not do this**: it squeezes the whole image into that size, "
            "since transformers' takes the centre of squares only. Prepare images yourself."
        )
    return (
        f"## Images\n\n{images.channels} channels, {shape} (bicubic, antialiased); pixels in [0, 1], then minus the "
        f"mean {list(images.mean)} and over the standard deviation {list(images.std)}.{other}"
    )


def _recipe(model: Model) -> str:
    """Returns the section on data, commands and configuration, without the folders of this machine."""
    sections = {k: _bare(v) for k, v in model.run.resolved().items() if k not in NOT_IN_IDENTITY}
    if model.source:
        sections = {key: value for key, value in sections.items() if key in _INFERRED}
    if sections.get("init"):
        sections["init"]["from"] = _last(sections["init"]["from"])
    starts = mapping_in(model.folder / ENVIRONMENT).get("starts") or [{}]
    commands = [
        shlex.join(["mrp", *(_without_folders(str(word)) for word in start["command"])])
        for start in starts
        if start.get("command")
    ]
    lines = ["## How it was made", "", f"Data: `{_data(model)}`."]
    if commands:
        lines += ["", "```sh", *dict.fromkeys(commands), "```"]  # a run that was resumed has the same command twice
    versions = {"mrp": starts[-1].get("mrp"), **dict(starts[-1].get("packages") or {})}
    if any(versions.values()):
        listed = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
        lines += ["", f"With {listed}; on {starts[-1].get('device', 'unknown')}."]
    return "\n".join([*lines, "", "```yaml", dump(sections).rstrip(), "```"])


def _metrics(model: Model) -> str:
    """Returns what was measured of these weights, and then the last line of the metrics until this step, as a table."""
    measured = dict[str, Any]()
    for record in results.read(model.folder):
        untrained = record.backbone == results.UNTRAINED
        ours = untrained or (record.step, record.weights) == (model.step, model.weights)
        if ours and record.data.get("own", True):
            measured |= flat({"probe": {record.backbone: {record.evaluator: record.result}}})
    validated = mapping_in(model.folder / VALIDATION)
    if validated.get("step") == model.step:
        measured |= flat({"validation": {model.weights: validated.get(model.weights)}})
    values: dict[str, float] = {}
    for name, value in measured.items():
        is_measure = name.rpartition(".")[2] in _MEASURES and MEAN_PER_CLASS not in name
        if is_measure and isinstance(value, int | float):
            values[name] = value
    last = next((one for _, one in from_the_end(model.folder / METRICS) if one["step"] <= model.step), {})
    values |= {k: value for k, value in last.items() if isinstance(value, int | float) and _is_of(model, k)}
    if not values:
        return "## Metrics\n\nNone were measured by mrp."
    rows = [f"| {name} | {value:.6g} |" for name, value in list(values.items())[:_ROWS]]
    return "\n".join(["## Metrics", "", "| what | value |", "|---|---|", *rows])


def _is_of(model: Model, name: str) -> bool:
    """Returns whether a number of the metrics is about these weights or their training, and not about the machine."""
    if name.startswith(_OF_THE_MACHINE) or name.endswith("/seconds"):
        return False
    if "/" not in name or name.startswith(_OF_THE_TRAINING):
        return True
    judged = "average" if "/average/" in name else type(model.objective).judged
    return model.weights == judged


def _licence(model: Model) -> str:
    origin = "the weights it was imported from and " if model.source else ""
    return (
        "## Licence\n\n**To be confirmed by whoever publishes this.** Set `license:` at the top to one that the terms "
        f"of {origin}the data it was trained on (`{_data(model)}`) allow, then remove this paragraph."
    )


def _data(model: Model) -> str:
    train = model.run.data.train
    if isinstance(train, tuple):
        return "several sources"
    if not isinstance(train, str):  # a section, which names the kind of source
        return _last(str(getattr(train, "path", getattr(train, "name"))))  # noqa: B009 -- every section has a name
    return "unknown" if train == NO_DATA else _last(train)


def _bare(value: Any) -> Any:
    """Returns a part of a configuration, in which each path outside the current folder has become its last name."""
    if isinstance(value, dict):
        return {_bare(key): _bare(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_bare(one) for one in value]
    if not isinstance(value, str):
        return value
    return _last(value) if value.startswith(("/", "./", "../", "~")) else _without_folders(value)


def _without_folders(word: str) -> str:
    """Returns a word of a command, in which each path outside the current folder has become its last name."""
    return re.sub(r"""(?<![^\s=,\[{"'])(?:~|\.{1,2})?/[^=,\]}"']*""", lambda path: _last(path[0]), word)


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2] or path
