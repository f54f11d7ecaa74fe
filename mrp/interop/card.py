"""The model card of an exported folder: what it is, how it was made and how to use it, as far as the run tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mrp.config import dump
from mrp.interop.folders import Preprocessing

_COMPARED = "Loaded again at export and compared with mrp on random images in float32: the answers differ"
LIBRARIES = {"timm": "timm", "transformers": "transformers", "onnx": "onnx", "torch-export": "pytorch"}


@dataclass(frozen=True)
class Facts:
    """What a card says."""

    title: str
    to: str
    method: str
    classifies: bool
    weights: str
    step: int
    parameters: int
    data: str
    images: Preprocessing
    recipe: Mapping[str, Any]  # sections of the run's configuration, without the machine's
    metrics: Mapping[str, float]
    commands: Sequence[str]
    environment: Mapping[str, Any]
    source: Mapping[str, Any]  # of imported weights
    left: Sequence[str]  # parts of the run's model that are not in the folder
    usage: str
    difference: float | None  # the largest between these answers and ours, as measured at export


def text(facts: Facts) -> str:
    """README.md, ready for a hub; its licence is for the user to choose."""
    parts = [
        _front(facts),
        _summary(facts),
        _usage(facts),
        _images(facts),
        _recipe(facts),
        _metrics(facts),
        _licence(facts),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front(facts: Facts) -> str:
    task = "image-classification" if facts.classifies else "image-feature-extraction"
    library = [f"library_name: {LIBRARIES[facts.to]}"] if facts.to in LIBRARIES else []
    return "\n".join(
        [
            "---",
            "license: unknown  # confirm: see 'Licence' below",
            *library,
            f"pipeline_tag: {task}",
            f"tags: [mrp, vision-transformer, {facts.method}]",
            "---",
        ]
    )


def _summary(facts: Facts) -> str:
    lines = [
        f"# {facts.title}",
        "",
        f"A Vision Transformer of {facts.parameters / 1e6:.2f} million parameters, trained with **{facts.method}**; "
        f"the {facts.weights}'s weights after step {facts.step:,}. Written by `mrp export --to {facts.to}`.",
    ]
    if facts.source:
        lines += [
            "",
            f"The weights were imported from `{facts.source.get('source')}` (sha256 `{facts.source.get('sha256')}`); "
            "what follows of the recipe was inferred from them.",
        ]
        if missing := facts.source.get("missing"):
            lines += [f"Never trained, since that file did not hold them: {', '.join(missing)}."]
    if facts.left:
        lines += ["", f"Not in this folder, but in the run: {', '.join(f'`{name}`' for name in facts.left)}."]
    if facts.difference is not None:
        lines += [
            "",
            ("Read again at export: the weights differ" if facts.to == "official" else _COMPARED)
            + f" by at most {facts.difference:.1e} of the largest one.",
        ]
    return "\n".join(lines)


def _usage(facts: Facts) -> str:
    return f"## Use\n\n```python\n{facts.usage}\n```"


def _images(facts: Facts) -> str:
    images = facts.images
    if images.crop is None:
        shape = f"resized to {images.size[0]}x{images.size[1]}"
    else:
        shape = (
            f"resized to just cover {images.covered[0]}x{images.covered[1]}, "
            f"of which the central {images.size[0]}x{images.size[1]} are taken"
        )
    return (
        f"## Images\n\n{images.channels} channels, {shape} (bicubic, antialiased); pixels in [0, 1], then minus the "
        f"mean {list(images.mean)} and over the standard deviation {list(images.std)}."
    )


def _recipe(facts: Facts) -> str:
    lines = ["## How it was made", "", f"Data: `{facts.data}`."]
    if facts.commands:
        lines += ["", "```sh", *facts.commands, "```"]
    versions = {"mrp": facts.environment.get("mrp"), **dict(facts.environment.get("packages") or {})}
    if any(versions.values()):
        listed = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
        lines += ["", f"With {listed}; on {facts.environment.get('device', 'unknown')}."]
    return "\n".join([*lines, "", "```yaml", dump(facts.recipe).rstrip(), "```"])


def _metrics(facts: Facts) -> str:
    if not facts.metrics:
        return "## Metrics\n\nNone were measured by mrp."
    rows = [f"| {name} | {value:.6g} |" for name, value in facts.metrics.items()]
    return "\n".join(["## Metrics", "", "| what | value |", "|---|---|", *rows])


def _licence(facts: Facts) -> str:
    origin = "the weights it was imported from and " if facts.source else ""
    return (
        "## Licence\n\n**To be confirmed by whoever publishes this.** Set `license:` at the top to one that the terms "
        f"of {origin}the data it was trained on (`{facts.data}`) allow, then remove this paragraph."
    )
