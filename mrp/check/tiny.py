"""A tiny run of any method, and eight images of noise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mrp.batch import Batch
from mrp.config import Tree, build, overridden
from mrp.objectives import OBJECTIVES
from mrp.run import Run

COUNT = 8  # images


def small(name: str, words: Iterable[str] = ()) -> dict[str, Any]:
    """Returns the section of a method with the options that its `Config` has for tiny runs, and with these words."""
    options = getattr(OBJECTIVES.config(name), "small", {})
    return dict(overridden(Tree({"name": name, **options}, {}), words).values)


def tiny_run(
    objective: Mapping[str, Any], data: Mapping[str, Any] | None = None, backbone: Mapping[str, Any] | None = None,
    **more: Any,
) -> Run:  # fmt: skip
    """Returns a run of a method on a tiny backbone."""
    values = {
        "objective": dict(objective),
        "backbone": {"width": 32, "depth": 2, "heads": 4, "patch": 4} | dict(backbone or {}),
        "data": {"train": "digits"} | dict(data or {"size": 16}),
        "batch": COUNT,
        "length": "10 steps",
        "optim": {"lr": 1e-3},
        "precision": "fp32",
    }
    return build(Run, Tree(values | more, {"": "the tiny run of the check"}))


def changed(run: Run, **sections: Any) -> Run:
    """Returns a run in which some values of its sections are others."""
    values = run.resolved()
    for name, value in sections.items():
        values[name] = values[name] | value if isinstance(value, Mapping) else value
    return build(Run, Tree(values, {}))


def tiny_batch(run: Run, count: int = COUNT, first: int = 0, step: int = 0) -> Batch:
    """Returns images of noise, with keys and labels."""
    generator = torch.Generator().manual_seed(first)
    images = torch.randint(
        0, 256, (count, run.data.num_channels, *run.data.shape), dtype=torch.uint8, generator=generator
    )
    labels = torch.arange(count) % min(4, getattr(run.objective, "classes", 4))
    if getattr(run.objective, "learns_tags", False):  # of a third of the tags nobody knows whether an image has them
        tags = torch.randint(-1, 2, (count, getattr(run.objective, "classes")), generator=generator)  # noqa: B009
        labels = tags.float().masked_fill(tags < 0, torch.nan)
    return Batch(images, torch.arange(first, first + count) * 7919, labels=labels, step=torch.tensor(step))


def gradients(step: nn.Module) -> dict[str, Tensor]:
    """Returns the gradients by the names of the parameters."""
    return {name: parameter.grad for name, parameter in step.named_parameters() if parameter.grad is not None}
