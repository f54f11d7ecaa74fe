"""The column of CIFAR-10 in the U-MAE paper, or its comparison as a speedrun, in pieces of some minutes of one GPU.

    python tools/reproduce.py cifar10 DATA                  # 2,000 epochs at the paper's settings, probes, fine-tuning
    python tools/reproduce.py speedrun DATA --seeds 3       # minutes of training, and when it reached what accuracy
    python tools/reproduce.py cifar10 digits --rehearse     # everything, tiny, on a CPU

DATA is a folder with train/ and test/ of class folders, or CIFAR-10's binary archive. A call works for --seconds at
most and the same command goes on; what it needs for that lies in the folders of the runs (OUT/RECIPE). The table is
written after each result to OUT/PLAN.md. docs/gpu.md says what the plans cost.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import study

from mrp import api
from mrp.checkpoint import checkpoints
from mrp.config import Preempted
from mrp.evaluate.results import latest
from mrp.folder import CONFIG, IDENTITY
from mrp.monitor.metrics import METRICS, read_lines
from mrp.processes.signals import STOP
from mrp.run import load

_LEAST = 60.0  # seconds that are worth beginning something for
_MARGIN = 30.0  # seconds in which a training that is asked to has ended
MARKS = (0.596, 0.689)  # the paper's linear accuracies of MAE and U-MAE
PROBED, PROBES = "probe.json", ("linear", "knn")
TITLES = [
    "run", "epochs", "checkpoint, MB", "training, s", *(f"s to {mark:.1%} linear" for mark in MARKS),
    "linear %, paper", "linear %", "kNN %", "fine-tuned %, paper", "fine-tuned %",
]  # fmt: skip
TINY = [
    "backbone.width=16", "backbone.depth=1", "backbone.heads=2", "backbone.patch=8", "batch=64", "length=2 epochs",
    "optim.warmup=0 steps", "precision=fp32", "machine.workers=0",
]  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A recipe, what the paper has for it, and the recipe by which it is fine-tuned."""

    recipe: str
    linear: float  # percent
    tuning: str | None = None
    tuned: float | None = None  # percent


PLANS = {
    "cifar10": (
        Row("mae_vit_tiny_cifar10", 59.6, "finetune_mae_vit_tiny_cifar10", 89.6),
        Row("umae_vit_tiny_cifar10", 68.9, "finetune_umae_vit_tiny_cifar10", 89.4),
    ),
    "speedrun": (Row("speedrun_mae_cifar10", 59.6), Row("speedrun_umae_cifar10", 68.9)),
}


class OutOfTime(Exception):
    """What is next is left to the next call."""


class Piece:
    """One call: it asks a training that is under way to save and end in time, and begins nothing shortly before."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @contextmanager
    def limits(self, folder: Path) -> Iterator[None]:
        """Ends the run of this folder, which is the block, when the time is over."""
        left = self._end - time.monotonic()
        if left < _LEAST:
            raise OutOfTime
        over = threading.Event()
        watch = threading.Thread(target=_ask_to_end, args=(folder, left - _MARGIN, over))
        watch.start()
        try:
            yield
        except Preempted:
            raise OutOfTime from None
        finally:
            over.set()
            watch.join()
            (folder / STOP).unlink(missing_ok=True)


def _ask_to_end(folder: Path, seconds: float, over: threading.Event) -> None:
    """Asks a run to end after so many seconds, unless that is over; a folder that is no run yet is not touched."""
    over.wait(seconds)
    while not (folder / IDENTITY).exists() and not over.wait(0.1):
        pass
    if not over.is_set():
        (folder / STOP).touch()


def work(row: Row, seed: int, out: Path, data: Path, tiny: bool, piece: Piece) -> Iterator[None]:
    """Does what is left of a row, and yields after each part."""
    folder, tuning = folders(row, seed, out)
    split = (data / "train").is_dir()
    words = [f"data.{name}={data / name if split else data}" for name in ("train", "test")]
    words += [f"seed={seed}", *(TINY if tiny else [])]
    decoder = ["objective.decoder={width: 16, depth: 1, heads: 2}"] if tiny else []
    with piece.limits(folder):
        api.pretrain(row.recipe, *words, *decoder, folder=folder)
    yield
    if not (folder / PROBED).exists():
        with piece.limits(folder):
            api.probe(folder, evaluators=PROBES)
        yield
    if tuning is not None and row.tuning is not None:
        with piece.limits(tuning):
            api.finetune(row.tuning, *words, f"init={folder}", folder=tuning)
        yield


def folders(row: Row, seed: int, out: Path) -> tuple[Path, Path | None]:
    """Returns where the run and its fine-tuning lie; those of the first seed are where `mrp lab claims` looks."""
    end = f"-{seed}" if seed else ""
    return out / f"{row.recipe}{end}", None if row.tuning is None else out / f"{row.tuning}{end}"


def cells(row: Row, seed: int, out: Path) -> list[str]:
    """Returns what is known of a row."""
    folder, tuning = folders(row, seed, out)
    lines = read_lines(folder / METRICS)
    batch = load(folder / CONFIG).batch if lines else 0
    newest = checkpoints.newest(folder) if folder.is_dir() else None
    size = sum(file.stat().st_size for file in newest.folder.iterdir()) / 1e6 if newest else 0.0
    found = [f"{row.recipe}, seed {seed}", f"{lines[-1]['epoch']:.0f}" if lines else "-"]
    found += [f"{size:.0f}" if size else "-", f"{_seconds(lines, batch):.0f}" if lines else "-"]
    found += [*(_first_time(lines, batch, mark) for mark in MARKS), f"{row.linear}"]
    for name in PROBES:
        found += [f"{100 * latest(folder, name)['accuracy']:.1f}" if (folder / PROBED).exists() else "-"]
    tuned = [line for line in read_lines(tuning / METRICS) if "validation/accuracy" in line] if tuning else []
    found += ["-" if row.tuned is None else f"{row.tuned}"]
    return [*found, f"{100 * tuned[-1]['validation/accuracy']:.1f} (epoch {tuned[-1]['epoch']:.0f})" if tuned else "-"]


def _seconds(lines: Sequence[dict[str, float]], batch: int) -> float:
    """Returns the time of the training itself, from its speed between log points: without starts and evaluations."""
    steps = [0.0, *(line["step"] for line in lines)]
    return sum(
        (line["step"] - before) * batch / line["images_per_second"] for before, line in zip(steps, lines, strict=False)
    )


def _first_time(lines: Sequence[dict[str, float]], batch: int, accuracy: float) -> str:
    """Returns the seconds of training after which a linear head first had this accuracy."""
    for number, line in enumerate(lines, start=1):
        if line.get("linear/accuracy", 0.0) >= accuracy:
            return f"{_seconds(lines[:number], batch):.0f}"
    return "-"


def table(rows: Sequence[tuple[Row, int]], out: Path) -> str:
    """Returns all results so far, as Markdown."""
    lines = [TITLES, ["---"] * len(TITLES), *(cells(row, seed, out) for row, seed in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    """Works on the plan until it is done or the time is over."""
    words = study.command_line(__doc__)
    words.add_argument("plan", choices=PLANS)
    words.add_argument("data", type=Path)
    words.add_argument("--out", type=Path, default=Path("runs"))
    words.add_argument("--seeds", type=int, default=1)
    words.add_argument("--seconds", type=float, default=480, help="for this call (default: 480)")
    words.add_argument("--rehearse", action="store_true", help="tiny")
    options = words.parse_args()
    piece, out = Piece(options.seconds), options.out
    rows = [(row, seed) for seed in range(options.seeds) for row in PLANS[options.plan]]
    out.mkdir(parents=True, exist_ok=True)
    try:
        for row, seed in rows:
            for _ in work(row, seed, out, options.data, options.rehearse, piece):
                (out / f"{options.plan}.md").write_text(table(rows, out))
    except OutOfTime:
        print(f"the {options.seconds:.0f} s are over; the same command goes on")
    (out / f"{options.plan}.md").write_text(table(rows, out))
    print(table(rows, out))


if __name__ == "__main__":
    study.run(main)
