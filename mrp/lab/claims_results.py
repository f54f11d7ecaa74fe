"""The results that claims are judged by: what the labs, the study and runs have left in one folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrp.config import ConfigError


@dataclass(frozen=True, slots=True)
class Pair:
    """The folders of two methods of `tools/small_study.py` with the same seed and length."""

    first: Path
    second: Path
    epochs: int


@dataclass(frozen=True, slots=True)
class Results:
    """A folder like `runs`: lab/NAME/FILE, study/METHOD-EPOCHS-SEED/, multiview_vit/ and folders of runs."""

    folder: Path

    def read(self, *parts: str) -> dict[str, Any]:
        """What a file says; nothing where there is none."""
        path = self.folder.joinpath(*parts)
        return read(path) if path.is_file() else {}

    def lab(self, name: str, file: str = "results.json") -> dict[str, Any]:
        """What `mrp lab` has written to lab/NAME."""
        return self.read("lab", name, file)

    def pairs(self, first: str, second: str) -> list[Pair]:
        """All seeds of two methods, at the longest training that both have been through."""
        done = {path.parent.name for path in self.folder.glob("study/*-*-*/result.json")}
        found = []
        for name in sorted(done):
            method, epochs, seed = name.rsplit("-", 2)
            other = f"{second}-{epochs}-{seed}"
            if method == first and other in done and epochs.isdecimal():
                study = self.folder / "study"
                found.append(Pair(study / name, study / other, int(epochs)))
        longest = max((pair.epochs for pair in found), default=0)
        return [pair for pair in found if pair.epochs == longest]


def read(path: Path) -> dict[str, Any]:
    """A JSON object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}; write it again or remove it") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: holds no results of an experiment; write it again or remove it")
    return found
