"""The results that claims are measured on: what experiments, studies and runs have left in one folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrp.config import ConfigError


class NotCounted(Exception):
    """Results say nothing about a claim, for the reason in the message."""


@dataclass(frozen=True, slots=True)
class Results:
    """A folder like `runs`: lab/NAME/FILE, study/METHOD-EPOCHS-SEED/, folders of the ViTs and of runs."""

    folder: Path

    def study(self, *methods: str) -> tuple[int, list[tuple[Path, ...]]]:
        """Returns the most epochs that all methods have finished in `tools/small_study.py`, and each seed's runs."""
        finished = [self._finished(method) for method in methods]
        shared = [key for key in finished[0] if all(key in runs for runs in finished)]
        longest = max((epochs for epochs, _ in shared), default=0)
        seeds = [tuple(runs[key] for runs in finished) for key in shared if key[0] == longest]
        for runs in seeds:
            refuse_same_run(runs)
        return longest, seeds

    def _finished(self, method: str) -> dict[tuple[int, int], Path]:
        """Returns the finished runs of a method, by epochs and seed."""
        runs = {}
        for path in sorted(self.folder.glob(f"study/{method}-*-*/result.json")):
            name, epochs, seed = path.parent.name.rsplit("-", 2)
            if name == method and epochs.isdecimal() and seed.isdecimal():
                runs[int(epochs), int(seed)] = path.parent
        return runs


def refuse_same_run(runs: Sequence[Path]) -> None:
    """Refuses to compare a run with itself, which its folder can be if it has two names."""
    if len({run.resolve() for run in runs}) < len(runs):
        raise NotCounted(f"{runs[-1]} is the run {runs[0].name} itself")


def read(path: Path) -> dict[str, Any]:
    """Reads a JSON object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}; write it again or remove it") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: holds no results of an experiment; write it again or remove it")
    return data
