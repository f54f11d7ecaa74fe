"""Runs of a few steps that the command line has trained, for tests that look at them."""

from __future__ import annotations

from pathlib import Path

from mrp.cli import main

NARROW = ["demo", "backbone.width=24", "backbone.heads=2", "objective.decoder.depth=1", "diagnose.every=null"]


def pretrained(folder: Path, *words: str) -> Path:
    """The folder of the run that these words train."""
    main(["pretrain", *words, "--folder", str(folder)])
    return folder
