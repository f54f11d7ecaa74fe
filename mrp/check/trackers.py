"""What every tracker must do, tried in an empty folder."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mrp.check.outcome import Failed, Skipped
from mrp.config import Node
from mrp.trackers import TRACKERS

_PATIENCE = 60.0  # seconds, far beyond what an end takes
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


def it_takes_pictures(section: Node) -> None:
    """It takes pictures and the best values at the end, if it says so."""
    module = TRACKERS.of(section)
    if not any(hasattr(module.Tracker, method) for method in ("picture", "summary")):
        raise Skipped("it has neither picture(step, name, array) nor summary(values)")
    with tempfile.TemporaryDirectory() as folder:
        tracker = _made(section, Path(folder))
        tracker.log(1, dict(_VALUES))
        if hasattr(tracker, "picture"):
            tracker.picture(1, "reconstructions/images", np.zeros((16, 24, 3), np.uint8))
        if hasattr(tracker, "summary"):
            tracker.summary({"knn/accuracy": 0.5})
        tracker.close()


def it_ends_without_its_folder(section: Node) -> None:
    """It comes to an end, with or without an error, where its folder has gone in the midst of a run."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "run"
        folder.mkdir()
        done = threading.Thread(target=_without_folder, args=(section, folder), daemon=True)
        done.start()
        done.join(_PATIENCE)
        if done.is_alive():
            raise Failed(f"it has not come to an end after {_PATIENCE:.0f} s", "give up, or raise, where writing fails")


def _without_folder(section: Node, folder: Path) -> None:
    with contextlib.suppress(Exception):  # whoever calls it switches it off then
        tracker = _made(section, folder)
        tracker.log(1, dict(_VALUES))
        shutil.rmtree(folder, ignore_errors=True)
        folder.write_text("a file in place of the folder")
        tracker.log(2, dict(_VALUES))
        tracker.close()


def _made(section: Node, folder: Path, resumed_at: int = 0) -> Any:
    resolved: dict[str, Any] = {"track": section.model_dump(mode="json")}
    return TRACKERS.of(section).Tracker(section, folder, resolved, resumed_at)


def _shown(section: Node, folder: Path, steps: Mapping[int, Mapping[str, float]], resumed_at: int = 0) -> None:
    tracker = _made(section, folder, resumed_at)
    for step, values in steps.items():
        tracker.log(step, dict(values))
    tracker.close()


CHECKS = (it_takes_numbers, it_goes_on, it_writes_nowhere_else, it_takes_pictures, it_ends_without_its_folder)
