"""The best value so far of everything that evaluators measure, in a small file that is read without the metrics."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mrp.checkpoint.config import Best
from mrp.files import write_atomically

BESTS = "best.json"
_NOT_MEASURED = ("memory/", "loader/", "checkpoint/", "optim/", "objective/")  # what the run says of itself
_NO_QUALITY = "/seconds"


class Bests:
    """Which value is best follows from its name, as for `checkpoint.best`: of a loss or an error the lowest."""

    def __init__(self, path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
        self._path = path
        self._found: dict[str, dict[str, float]] = {}
        for line in lines:  # of a resumed run until its checkpoint: what was measured after that does not count
            self._take(line["step"], line)
        self._write()

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the values of a step, and writes the file where one is better than all before it."""
        if self._take(step, values):
            self._write()

    def values(self) -> dict[str, float]:
        """Returns the best values by name."""
        return {name: found["value"] for name, found in self._found.items()}

    def _take(self, step: int, values: Mapping[str, Any]) -> bool:
        taken = False
        for name, value in values.items():
            if "/" not in name or name.startswith(_NOT_MEASURED) or name.endswith(_NO_QUALITY):
                continue
            if not isinstance(value, int | float) or not math.isfinite(value):
                continue
            known = self._found.get(name)
            if Best(name=name).better(value, known["value"] if known else None):
                self._found[name] = {"value": value, "step": step}
                taken = True
        return taken

    def _write(self) -> None:
        with contextlib.suppress(OSError):  # it only repeats what the metrics say
            if self._found:
                write_atomically(self._path, json.dumps(self._found, indent=1))
            else:
                self._path.unlink(missing_ok=True)
