"""The state of a run, from small files of its folder alone: a million steps and a hundred checkpoints are not read."""

from __future__ import annotations

import contextlib
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from mrp import progress
from mrp.checkpoint.sealed import MANIFEST, numbered
from mrp.ending import FAILED, FINISHED, PREEMPTED, STOPPED
from mrp.files import mapping_in
from mrp.folder import ENVIRONMENT, IDENTITY, TIME, starts_of
from mrp.locking import Holder, is_locked
from mrp.monitor.bests import BESTS
from mrp.monitor.metrics import METRICS, last_lines
from mrp.monitor.watchdog import RANKS, WAITS
from mrp.processes.faults import FILE as FAULT
from mrp.processes.slurm import SUFFIX as SUBMITTED

RUNNING, WAITING, DIED, ENDED, UNKNOWN, NEVER = (
    "running", "waiting for data", "died", "ended", "unknown", "never started",
)  # fmt: skip
STATES = (RUNNING, WAITING, UNKNOWN, FINISHED, PREEMPTED, STOPPED, FAILED, DIED, ENDED, NEVER)
_LONG = 30.0  # seconds for one batch, after which a run is said to wait for data


@dataclass(frozen=True, slots=True)
class Status:
    """What is known of a run from outside, while it goes on and after it."""

    folder: Path
    state: str  # one of STATES
    why: str = ""  # what it does now, or why it is in this state
    step: int = 0
    steps: int | None = None  # of the whole run
    loss: float | None = None
    images_per_second: float | None = None
    seconds_left: float | None = None  # of a run that goes on, with its evaluations as far as known
    best: dict[str, tuple[float, int]] = field(default_factory=dict)  # what evaluators measured: value and step
    began: float | None = None  # the first start, as seconds of the epoch
    seen: float | None = None  # the last sign of life
    starts: int = 0
    identity: dict[str, Any] = field(default_factory=dict)  # dotted keys

    @property
    def progress(self) -> float | None:
        """Returns the share of the steps that have been made."""
        return min(1.0, self.step / self.steps) if self.steps else None

    @property
    def is_alive(self) -> bool:
        """Returns whether a process of this machine, or one that shares its locks, trains the run now."""
        return self.state in (RUNNING, WAITING)


def status_of(folder: Path) -> Status:
    """Returns the state of the run in a folder; whatever is missing or damaged there counts as not known."""
    held = is_locked(folder)  # first: a run that ends now has written its last word before it lets go
    starts = starts_of(folder)
    if held is None:  # the disk has no locks
        holder = Holder.of(folder)
        held = holder is not None and holder.is_alive_here and bool(starts) and "end" not in starts[-1]
    lines, beat = last_lines(folder / METRICS), mapping_in(folder / RANKS / "rank-0.json")
    identity, seen = mapping_in(folder / IDENTITY), _last_sign(folder)
    saved = max(numbered(folder / "checkpoints"), default=0)
    step = max([line["step"] for line in lines[-1:]] + [saved])
    told = starts[-1].get("steps") if starts else None
    steps = told if isinstance(told, int) else None
    began = [when for start in starts if (when := _when(start.get("time"))) is not None]
    state, why = _alive(beat, began[-1:]) if held else _ended(folder, starts, step, steps, seen)
    rate = _last(lines, "images_per_second")
    left = None
    if held and steps and rate and isinstance(batch := identity.get("batch"), int):
        left = max(0, steps - step) * (batch / rate + _evaluating(lines))
    return Status(
        folder=folder, state=state, why=why, step=step, steps=steps, loss=_last(lines, "loss"), images_per_second=rate,
        seconds_left=left, best=_bests(folder), began=min(began, default=None), seen=seen,
        starts=len(starts), identity=identity,
    )  # fmt: skip


def _evaluating(lines: list[dict[str, Any]]) -> float:
    """Returns the seconds per step that evaluators have taken, which the rate leaves out."""
    taken: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for line in lines:
        for name, value in line.items():
            if name.endswith("/seconds") and isinstance(value, int | float):
                taken[name].append((line["step"], value))
    found = 0.0
    for (first, took), *later in taken.values():
        if later:  # what the first one took belongs to the steps before it
            found += sum(seconds for _, seconds in later) / max(1, later[-1][0] - first)
        elif first:
            found += took / first  # as if it was the first of all: the lines do not go back to the start
    return found


def _alive(beat: dict[str, Any], began: list[float]) -> tuple[str, str]:
    """Returns what a run does that holds its lock."""
    try:
        phase, idle = str(beat["phase"]), float(beat["alive"]) - float(beat["since"])
        if float(beat["alive"]) < max(began, default=0.0):  # an earlier start has left it
            return RUNNING, ""
    except (KeyError, TypeError, ValueError):
        return RUNNING, ""
    if phase == WAITS and idle > _LONG:
        return WAITING, f"for {progress.duration(idle)}"
    return RUNNING, phase if idle < _LONG else f"{phase} for {progress.duration(idle)}"


def _ended(
    folder: Path, starts: list[dict[str, Any]], step: int, steps: int | None, seen: float | None
) -> tuple[str, str]:
    """Returns how a run has ended whose lock nobody holds, as far as this machine can see."""
    if not starts:
        return NEVER, ""
    end, holder = starts[-1].get("end"), Holder.of(folder)
    with contextlib.suppress(OSError):
        return FAILED, (folder / FAULT).read_text(encoding="utf-8")  # of another process than the first
    if isinstance(end, dict) and end.get("state") in STATES:
        return end["state"], str(end.get("why", ""))
    if holder is not None and holder.host != Holder.here().host:
        ago = "" if seen is None else f", last sign of life {progress.duration(time.time() - seen)} ago"
        return UNKNOWN, f"on {holder.host}{ago}"
    if steps and step >= steps:
        return FINISHED, ""
    if holder is None:
        return ENDED, "under a version of mrp that leaves no word"
    return DIED, "killed, out of memory or disk space, or without power: it left no word"


def _bests(folder: Path) -> dict[str, tuple[float, int]]:
    with contextlib.suppress(KeyError, TypeError, ValueError):
        found = mapping_in(folder / BESTS)
        return {name: (float(one["value"]), int(one["step"])) for name, one in found.items()}
    return {}


def _last(lines: list[dict[str, Any]], name: str) -> float | None:
    values = (line[name] for line in reversed(lines) if isinstance(line.get(name), int | float))
    return next(values, None)


def _last_sign(folder: Path) -> float | None:
    times = []
    for name in (METRICS, ENVIRONMENT, IDENTITY, f"{RANKS}/rank-0.json"):
        with contextlib.suppress(OSError):
            times.append((folder / name).stat().st_mtime)
    return max(times, default=None)


def _when(text: Any) -> float | None:
    with contextlib.suppress(TypeError, ValueError):
        return datetime.strptime(text, TIME).timestamp()
    return None


def size_of(folder: Path, most: int = 20_000) -> int:
    """Returns the bytes of the files in a folder; of more than `most` files, those of the first ones."""
    total, left, folders = 0, most, [folder]
    while folders and left > 0:
        with contextlib.suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
                else:
                    total, left = total + entry.stat(follow_symlinks=False).st_size, left - 1
    return total


def find(root: Path, deep: int = 6) -> Iterator[Path]:
    """Yields the run folders in a folder, itself included, in the order of their names.

    What a run's folder holds is not searched, apart from the runs that start from it (`paper-...`).
    """
    if (root / IDENTITY).is_file():
        if (root / MANIFEST).is_file():
            return  # a checkpoint, which somebody has copied out of its run
        yield root
        deep = 1
    elif deep == 0:
        return
    with contextlib.suppress(OSError):
        with os.scandir(root) as entries:
            names = sorted(e.name for e in entries if e.is_dir(follow_symlinks=False) and not e.name.startswith("."))
        for name in names:
            if name.endswith(SUBMITTED):
                run = root / name.removesuffix(SUBMITTED)
                if not (run / IDENTITY).is_file() and any((root / name).glob("recipe-*.yaml")):
                    yield run  # `mrp submit` has handed it to a scheduler
            elif deep > 1 or (root / name / IDENTITY).is_file():
                yield from find(root / name, deep - 1)
