"""Whether faster ways of computing train the same model as plain single precision, on the same data with two seeds.

Rounding alone makes every way's losses differ a little. A way is sound where they differ by no more than those of two
seeds do, through the whole of a training: gaps have been seen to open after thousands of steps.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrp.config import ConfigError
from mrp.files import write_atomically
from mrp.monitor.metrics import METRICS, read_lines
from mrp.run import load
from mrp.schedules import Schedule

FILE = "certify.json"
WINDOWS = 20  # parts of the training whose mean losses are compared
LEAST_STEPS = 2 * WINDOWS
_NEIGHBOURS = 2  # windows on each side that the spread of the seeds is taken over: two seeds give it one by one badly

Losses = NDArray[np.float64]  # seeds, steps


@dataclass(frozen=True)
class Way:
    """A way of computing a run, as values of its configuration."""

    name: str
    words: tuple[str, ...]
    several: bool = False  # whether several processes take part


REFERENCE = Way("eager fp32", ("machine.compile=no", "precision=fp32"))
WAYS = (
    Way("eager bf16", ("machine.compile=no", "precision=bf16")),
    Way("compiled bf16", ("machine.compile=yes", "precision=bf16")),
    Way("ddp bf16", ("precision=bf16",), several=True),
    Way("fsdp2 bf16", ("precision=bf16", "machine.shard=full"), several=True),
)


@dataclass(frozen=True)
class Gap:
    """How far the losses of one way lie above those of the reference, window by window."""

    way: str
    gaps: list[float]  # mean over seeds
    spread: list[float]  # of the reference's seeds: the standard deviation
    speed: float  # images per second, as a multiple of the reference's

    @property
    def worst(self) -> int:
        """Returns the window whose gap is the largest beside the spread there."""
        return int(np.argmax(np.abs(self.gaps) / np.maximum(self.spread, np.finfo(np.float64).tiny)))

    @property
    def within(self) -> bool:
        """Returns whether the gap stays within the spread; a loss that is not finite is outside."""
        return bool(np.all(np.abs(self.gaps) <= self.spread))


def certify(
    recipe: str | Path,
    overrides: Sequence[str],
    folder: Path,
    steps: int,
    seeds: int = 2,
    processes: int = 1,
    names: Sequence[str] = (),
    say: Callable[[str], object] = print,
) -> tuple[list[Gap], int]:
    """Trains the recipe in every way with every seed, and returns each way's gap and the steps of a window.

    `names` chooses among the ways; by default all are taken that the number of processes allows. The schedule is
    compressed into the steps, a tenth of which is warm-up unless the learning rate is a section with one of its own.
    What is complete in the folder is not trained again, and what is not goes on.
    """
    if steps < LEAST_STEPS:
        raise ConfigError(
            f"--steps: {steps} are too few to compare {WINDOWS} parts of them; give {LEAST_STEPS} or more"
        )
    if seeds < 2:
        raise ConfigError("--seeds: the spread of one seed is not known; give 2 or more")
    words = [*overrides, f"length={steps} steps", "track.every=1"]
    if not isinstance(load(recipe, words).optim.lr, Schedule):  # a schedule has a warm-up of its own
        words += [f"optim.warmup={max(1, steps // 10)} steps"]
    words += ["diagnose.every=null", "validation.every=null", "evaluate={}"]
    words += [f"checkpoint.every={-(-steps // 4)} steps", "checkpoint.keep=1", "checkpoint.best=null"]
    _claim(folder, load(recipe, words).resolved())
    ways = [REFERENCE, *_chosen(names, processes)]
    runs = {}
    for way in ways:
        for seed in range(seeds):
            place = way.name.replace(" ", "-") + (f"-{processes}" if way.several else "")
            here = folder / place / f"seed-{seed}"
            if (done := _complete(here, steps)) is None:
                say(f"{way.name}, seed {seed}: {steps} steps")
                _train(recipe, [*words, *way.words, f"seed={seed}"], here, processes if way.several else 1)
                done = _complete(here, steps)
            if done is None:
                raise ConfigError(
                    f"{here}: has ended, but its {METRICS} lacks steps; remove this folder to train it anew"
                )
            runs[way.name, seed] = done
            shutil.rmtree(here / "checkpoints", ignore_errors=True)
    losses = {way.name: np.stack([runs[way.name, seed][0] for seed in range(seeds)]) for way in ways}
    speeds = {way.name: float(np.median([runs[way.name, seed][1] for seed in range(seeds)])) for way in ways}
    gaps = compared(losses, speeds)
    content = {"steps": steps, "seeds": seeds, "processes": processes, "ways": [asdict(gap) for gap in gaps]}
    write_atomically(folder / FILE, json.dumps(content | {"recipe": _recipe(folder)}, indent=1))
    return gaps, steps // WINDOWS


def _chosen(names: Sequence[str], processes: int) -> list[Way]:
    possible = [way for way in WAYS if not way.several or processes > 1]
    known = [way.name for way in WAYS]
    for name in names:
        if name not in known:
            raise ConfigError(f"--way: there is no way '{name}'; allowed: {', '.join(known)}")
        if name not in [way.name for way in possible]:
            raise ConfigError(f"--way: '{name}' needs several processes; add --processes 2")
    return [way for way in possible if not names or way.name in names]


def compared(losses: Mapping[str, Losses], speeds: Mapping[str, float]) -> list[Gap]:
    """Returns the gap of each way but the reference, and the spread of the reference's seeds around each window."""
    reference = _windows(losses[REFERENCE.name])
    variances = reference.var(axis=0, ddof=1)
    reach = range(-_NEIGHBOURS, _NEIGHBOURS + 1)
    last = len(variances) - 1
    near = np.stack([variances[np.clip(np.arange(last + 1) + shift, 0, last)] for shift in reach])
    spread = np.sqrt(near.mean(axis=0))
    return [
        Gap(
            name,
            (_windows(values) - reference).mean(axis=0).tolist(),
            spread.tolist(),
            speeds[name] / speeds[REFERENCE.name],
        )
        for name, values in losses.items()
        if name != REFERENCE.name
    ]


def _windows(losses: Losses) -> Losses:
    """Returns the mean loss of each seed (rows) in each window; steps that do not fill the last one are left out."""
    size = losses.shape[1] // WINDOWS
    means: Losses = losses[:, : WINDOWS * size].reshape(len(losses), WINDOWS, size).mean(axis=2)
    return means


def _complete(folder: Path, steps: int) -> tuple[Losses, float] | None:
    """Returns the loss of every step and the median of images per second; None where steps are missing."""
    lines = {line["step"]: line for line in read_lines(folder / METRICS)}
    if set(lines) < set(range(1, steps + 1)):
        return None
    losses = np.array([float(lines[step].get("loss", "nan")) for step in range(1, steps + 1)])
    rates = [float(line["images_per_second"]) for line in lines.values() if "images_per_second" in line]
    return losses, float(np.median(rates))


def _train(recipe: str | Path, words: Iterable[str], folder: Path, processes: int) -> None:
    """Trains in a process of its own, so that no way inherits anything from the one before."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_name(f"{folder.name}.txt")
    command = [sys.executable, "-m", "mrp", "pretrain", str(recipe), *words, "--folder", str(folder)]
    alone = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    with log.open("a", encoding="utf-8") as output:
        code = subprocess.run(
            [*command, "--processes", str(processes)], env=alone, stdout=output, stderr=output
        ).returncode
    if code:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise ConfigError(f"{folder}: the run ended with code {code}: {lines[-1] if lines else 'it said nothing'}")


def _claim(folder: Path, recipe: dict[str, Any]) -> None:
    """Refuses a folder that holds results of another recipe."""
    path = folder / "recipe.json"
    if path.exists() and _recipe(folder) != json.loads(json.dumps(recipe)):
        raise ConfigError(
            f"{folder}: holds results of another recipe or of other steps; name another one with --folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(recipe, indent=1))


def _recipe(folder: Path) -> Any:
    return json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
