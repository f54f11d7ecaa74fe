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

    def study(self, method: str) -> list[Path]:
        """All seeds of a method of `tools/small_study.py`, at its longest training."""
        done = self._done(method)
        longest = max((epochs for epochs, _ in done), default=0)
        return [folder for (epochs, _), folder in done.items() if epochs == longest]

    def pairs(self, first: str, second: str) -> list[Pair]:
        """All seeds of two methods, at the longest training that both have been through."""
        before, after = self._done(first), self._done(second)
        both = [key for key in before if key in after]
        longest = max((epochs for epochs, _ in both), default=0)
        return [Pair(before[key], after[key], key[0]) for key in both if key[0] == longest]

    def _done(self, method: str) -> dict[tuple[int, int], Path]:
        """The finished runs of a method, by epochs and seed."""
        found = {}
        for path in sorted(self.folder.glob(f"study/{method}-*-*/result.json")):
            name, epochs, seed = path.parent.name.rsplit("-", 2)
            if name == method and epochs.isdecimal() and seed.isdecimal():
                found[int(epochs), int(seed)] = path.parent
        return found


def read(path: Path) -> dict[str, Any]:
    """A JSON object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}; write it again or remove it") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: holds no results of an experiment; write it again or remove it")
    return found
