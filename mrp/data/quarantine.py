"""Samples that are intact and yet no images: named, replaced in the same way in every run, counted up to a limit."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from mrp.config import ConfigError
from mrp.files import lock

FILE = "quarantine.jsonl"
_LISTED = 5


class Bad(NamedTuple):
    """A sample that cannot be decoded."""

    sample: int
    where: str
    fault: str


class Quarantine:
    """The bad samples that a run has met; part of its checkpoints, so that a resumed run replaces the same ones."""

    def __init__(self, limit: int = 100, state: Iterable[Iterable[Any]] = (), folder: Path | None = None) -> None:
        self.limit, self.folder = limit, folder
        self._bad: dict[int, Bad] = {}
        self.known: set[int] = set()  # at the start: samples that are not tried again
        self.add(Bad(*entry) for entry in state)
        self.known.update(self._bad)

    def __len__(self) -> int:
        return len(self._bad)

    def add(self, samples: Iterable[Bad]) -> None:
        """Adds samples; more than the limit stops the run with the list, which is first written to its folder."""
        for bad in samples:
            self._bad.setdefault(bad.sample, Bad(*bad))
        if len(self._bad) > self.limit:
            if self.folder is not None and self.folder.is_dir():  # a node without the run's folder
                self.write(self.folder)
            listed = "; ".join(f"{bad.where}: {bad.fault}" for bad in list(self._bad.values())[:_LISTED])
            raise ConfigError(
                f"data.damaged: {len(self._bad)} samples are no images, and {self.limit} are allowed: {listed}; mend "
                "the data, or raise the limit"
            )

    def state(self) -> list[Bad]:
        """Returns all of them, in the order of the samples."""
        return sorted(self._bad.values())

    def write(self, folder: Path) -> int:
        """Writes one line per sample in the run's folder, and returns how many are new; older lines stay."""
        path = folder / FILE
        if not self._bad:
            return 0
        with path.open("a+", encoding="utf-8", errors="replace") as file:
            lock(file, fcntl.LOCK_EX)
            file.seek(0)
            content = file.read()
            there = {_sample(line) for line in content.splitlines()}
            new = [bad for bad in self.state() if bad.sample not in there]
            torn = "\n" if content and not content.endswith("\n") else ""
            file.write(torn + "".join(json.dumps(bad._asdict()) + "\n" for bad in new))
        return len(new)


def _sample(line: str) -> int | None:
    """Returns which sample a line is about; None for one that a kill has torn."""
    try:
        sample: int = json.loads(line)["sample"]
    except (ValueError, KeyError, TypeError):
        return None
    return sample
