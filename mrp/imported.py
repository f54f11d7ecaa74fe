"""Other people's weights as a run of ours: the configuration that they come to, and the model with them in it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrp.config import ConfigError, Tree, build
from mrp.interop import Found
from mrp.run import Run
from mrp.train import checkpoint, optim
from mrp.train.folder import CONFIG, IDENTITY, claim
from mrp.train.step import Step

NO_DATA = "none given at import"
KEY = "imported"  # of a checkpoint's state: where its weights are from, and what is not among them
# What training would need and no file of weights tells; a run of no steps cannot be trained by accident.
_UNTOLD: dict[str, Any] = {"batch": 256, "length": "0 steps", "optim": {"lr": 1e-3}, "precision": "fp32"}


def run_of(found: Found, data: Mapping[str, Any] | None = None) -> Run:
    """The run that some weights fit; `data` says what they are to be judged on."""
    section: dict[str, Any] = {"train": NO_DATA, "size": list(found.size), "channels": found.channels}
    if found.mean and found.std:
        section |= {"mean": list(found.mean), "std": list(found.std)}
    values = {
        "objective": {"name": found.method, **found.objective},
        "backbone": found.backbone.model_dump(mode="json"),
        "data": section | dict(data or {}) | {"size": list(found.size), "channels": found.channels},
    }
    return build(Run, Tree(values | _UNTOLD, {"": found.source}))


def step_of(found: Found, run: Run) -> Step:
    """The model with these weights; what they do not hold is as it was built, from the run's seed."""
    step = run.build_step()
    own = step.state_dict()
    step.load_state_dict(own | {f"objective.{name}": tensor for name, tensor in found.tensors.items()})
    return step.eval()


def provenance(found: Found) -> dict[str, Any]:
    """Where the weights are from, for a checkpoint's state."""
    source = found.source if "://" in found.source or found.source.startswith("hf:") else Path(found.source).name
    return {KEY: {"source": source, "sha256": found.digest, "missing": list(found.missing)}}


def write(found: Found, run: Run, folder: Path) -> None:
    """A folder like that of a run that has ended, with one checkpoint, at step 0."""
    if folder.exists() and (not folder.is_dir() or os.listdir(folder)):
        raise ConfigError(f"{folder}: is there already and not empty; choose another folder with --out FOLDER")
    step = step_of(found, run)
    optimizer = optim.build(run.optim, step)
    with claim(folder, run.resolved(), run.identity(f"imported {found.digest}")):
        about = {name: (folder / name).read_text(encoding="utf-8") for name in (CONFIG, IDENTITY)}
        checkpoint.save(folder, 0, step, optimizer, provenance(found), keep=1, about=about)
