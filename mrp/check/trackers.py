"""What every tracker must do, tried in an empty folder."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrp.check.outcome import Failed
from mrp.config import Node
from mrp.trackers import TRACKERS

_VALUES = {"loss": 1.5, "lr": 1e-3, "knn/accuracy": 0.5}


def it_takes_numbers(section: Node) -> None:
    """It takes the numbers of steps, and is closed."""
    with tempfile.TemporaryDirectory() as folder:
        _shown(section, Path(folder), {1: _VALUES, 2: {**_VALUES, "gradient_norm": float("inf")}})


def it_goes_on(section: Node) -> None:
    """It goes on in a resumed run, whose numbers may have other names."""
    with tempfile.TemporaryDirectory() as folder:
        _shown(section, Path(folder), {1: _VALUES, 2: _VALUES})
        _shown(section, Path(folder), {2: _VALUES, 3: {"loss": 1.0}}, resumed_at=1)


def it_writes_nowhere_else(section: Node) -> None:
    """What it writes lies in the run's folder."""
    with tempfile.TemporaryDirectory() as folder:
        run, beside = Path(folder) / "run", Path(folder)
        run.mkdir()
        _shown(section, run, {1: _VALUES})
        odd = [path for path in beside.iterdir() if path != run]
        if odd:
            raise Failed(f"it wrote {odd[0].name} beside the run's folder", "write into the folder that it is given")


def _shown(section: Node, folder: Path, steps: Mapping[int, Mapping[str, float]], resumed_at: int = 0) -> None:
    name: str = getattr(section, "name")  # noqa: B009 -- every tracker's section has one
    resolved: dict[str, Any] = {"track": section.model_dump(mode="json")}
    tracker = TRACKERS.find(name).Tracker(section, folder, resolved, resumed_at)
    for step, values in steps.items():
        tracker.log(step, dict(values))
    tracker.close()


CHECKS = (it_takes_numbers, it_goes_on, it_writes_nowhere_else)
