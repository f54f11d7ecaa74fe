"""Samples that are intact and yet no images: named, replaced alike on every run, and counted against a limit."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from mrp.config import ConfigError

FILE = "quarantine.jsonl"
_LISTED = 5


class Bad(NamedTuple):
    """A sample that cannot be decoded."""

    sample: int
    where: str
    fault: str


class Quarantine:
    """The bad samples that a run has met; part of its state, so that a resumed run replaces the same ones."""

    def __init__(self, limit: int = 100, state: Iterable[Iterable[Any]] = ()) -> None:
        self.limit = limit
        self._bad: dict[int, Bad] = {}
        self.known: set[int] = set()  # at the start: samples that are not tried again
        self.add(Bad(*entry) for entry in state)
        self.known.update(self._bad)

    def __len__(self) -> int:
        return len(self._bad)

    def add(self, found: Iterable[Bad]) -> None:
        """Take down what was met; more than the limit stops the run with the list."""
        for bad in found:
            self._bad.setdefault(bad.sample, Bad(*bad))
        if len(self._bad) > self.limit:
            listed = "; ".join(f"{bad.where}: {bad.fault}" for bad in list(self._bad.values())[:_LISTED])
            raise ConfigError(
                f"data.damaged: {len(self._bad)} samples are no images, and {self.limit} are allowed: {listed}; mend "
                "the data, or raise the limit"
            )

    def state(self) -> list[Bad]:
        """Everything, in the order of the samples."""
        return sorted(self._bad.values())

    def write(self, folder: Path) -> None:
        """One line a sample in the run's folder; what is there already stays as it is."""
        path = folder / FILE
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        there = {json.loads(line)["sample"] for line in lines}
        new = [json.dumps(bad._asdict()) + "\n" for bad in self.state() if bad.sample not in there]
        if new:
            with path.open("a", encoding="utf-8") as file:
                file.writelines(new)
