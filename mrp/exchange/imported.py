"""Imported weights as a run's folder, which probe, finetune, report and export take like any other."""

from __future__ import annotations

import os
from pathlib import Path

from mrp.checkpoint import checkpoints as checkpoint
from mrp.config import ConfigError
from mrp.folder import CONFIG, IDENTITY, claim
from mrp.interop.found import Found
from mrp.model import provenance, step_of
from mrp.optim import optimizer as optim
from mrp.run import Run


def write(found: Found, run: Run, folder: Path) -> None:
    """A folder like that of a run that has ended, with one checkpoint, at step 0."""
    if folder.exists() and (not folder.is_dir() or os.listdir(folder)):
        raise ConfigError(f"{folder}: is there already and not empty; choose another folder with --out FOLDER")
    step = step_of(found, run)
    optimizer = optim.build(run.optim, step)
    with claim(folder, run.resolved(), run.identity(f"imported {found.digest}")):
        about = {name: (folder / name).read_text(encoding="utf-8") for name in (CONFIG, IDENTITY)}
        checkpoint.save(folder, 0, step, optimizer, provenance(found), keep=1, about=about)
