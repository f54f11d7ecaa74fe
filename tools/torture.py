"""Kills, damages, starves, signals and moves runs, and compares them with undisturbed ones.

    python tools/torture.py [--only kills damage disk signals elastic] [--kills 8] [--out runs/torture]

Every run is tiny, and every comparison is exact: the files of the last checkpoint byte for byte, the samples and masks
of every step, each sample once per epoch. Prints a table, and exits 1 if anything is not as it must be.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from mrp.checkpoint import checkpoints
from mrp.data.order import keys
from mrp.data.worker_signals import REQUESTS

STEPS, BATCH, IMAGES = 120, 96, 1437  # scikit-learn's digits, eight times over and a little
METHODS = {
    "mae": "decoder: {width: 32, depth: 1, heads: 2}",
    "umae": "decoder: {width: 32, depth: 1, heads: 2}, uniformity: 0.01",
    "simmim": "mask_unit: 2",
    "usimmim": "mask_unit: 2, uniformity: 0.01",
    "data2vec": "layers: 1, smallest_block: 2",
    "data2vec2": "block: 2, masks: 2, layers: 1, decoder: {width: 32, depth: 1, groups: 4}",
    "supervised": "classes: 10",
    "crossmae": "decoder: {width: 32, depth: 1, heads: 2}",
    "maskfeat": "smallest_block: 2, cell: 2",
    "ijepa": "predictor: {width: 32, depth: 1}",
}
MODULES = {"umae": "mae", "usimmim": "simmim", "supervised": "classify"}  # where a method has another's file
# A method that writes down which samples it is given, and what is hidden of them.
WITNESS = """
import json, os, torch
from mrp.objectives import {module} as method

Config = method.Config

class Objective(method.Objective):
    def forward(self, batch):
        if self.training and type(batch.keys) is torch.Tensor and len(batch.keys) > 2:  # not when costs are counted
            keys = batch.keys.tolist()
            masks = self.first_mask(batch.keys).int().tolist() if hasattr(self, "first_mask") else [[]] * len(keys)
            rows = {{str(key): "".join(map(str, mask)) for key, mask in zip(keys, masks, strict=True)}}
            with open(os.environ["WITNESS"], "ab", buffering=0) as file:
                file.write(b"\\n" + json.dumps([int(batch.step), rows]).encode())
        elif not self.training:
            open(os.environ["WITNESS"] + ".evaluating", "a").close()
        return super().forward(batch)
"""
# Children are forked from a server that has imported everything and runs no threads.
CONTEXT = multiprocessing.get_context("forkserver")


Process = BaseProcess | subprocess.Popen[bytes]


@dataclass
class TrainedRun:
    """A run, its folder, and the samples and masks that its method has written down."""

    out: Path
    name: str
    method: str = "mae"
    options: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Returns the run's folder."""
        return self.out / self.name

    @property
    def witness(self) -> Path:
        """Returns the file of the samples of every step."""
        return self.out / f"{self.name}.witness"

    def words(self, *more: str) -> list[str]:
        """Returns the command line of the run."""
        objective = self.out / f"{self.method}.py"
        objective.write_text(WITNESS.format(module=MODULES.get(self.method, self.method)))
        return [
            "pretrain", "demo", f"objective={{name: {objective}, {METHODS[self.method]}}}",
            *(["backbone.norm=post"] if self.method == "data2vec2" else []),
            "backbone.width=32", "backbone.depth=2", "backbone.heads=2", f"length={STEPS} steps",
            "data.tail=continuous", "data.augment={name: resize, flip: true}", "optim.warmup=10 steps",
            f"batch={BATCH}",
            "checkpoint.every=5 steps", "checkpoint.keep=3", "track.every=1", *self.options, *more,
            "--folder", str(self.folder),
        ]  # fmt: skip

    def start(self, *more: str) -> BaseProcess:
        """Starts the run as one process of its own group."""
        process = CONTEXT.Process(target=_run, args=(self.words(*more), str(self.witness), str(self.out / "log")))
        process.start()
        return process

    def finish(self, *more: str) -> int:
        """Lets it run to its end; returns the exit code."""
        process = self.start(*more)
        process.join()
        return process.exitcode or 0

    def several(self, processes: int, *more: str) -> subprocess.Popen[bytes]:
        """Starts the run in several processes."""
        environment = os.environ | {"WITNESS": str(self.witness), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "mrp", *self.words(*more), "--processes", str(processes)]
        log = (self.out / "log").open("ab")
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def wait(self, process: Process, steps: int = 0, saving: bool = False, evaluating: bool = False) -> None:
        """Waits until the run has come so far, or has ended."""
        deadline = time.monotonic() + 300
        while alive(process) and time.monotonic() < deadline:
            mark = self.witness.with_name(f"{self.witness.name}.evaluating")
            if self.steps() >= steps and (not saving or self.saving()) and (not evaluating or mark.exists()):
                return
            time.sleep(0.002)

    def steps(self) -> int:
        """Returns the number of steps in its metrics."""
        path = self.folder / "metrics.jsonl"
        return len(path.read_bytes().splitlines()) if path.exists() else 0

    def saving(self) -> bool:
        """Returns whether a checkpoint is being written."""
        return any((self.folder / "checkpoints").glob(".unfinished-*"))

    def weights(self) -> dict[str, bytes]:
        """Returns the files of the last checkpoint's tensors."""
        checkpoint = checkpoints.newest(self.folder)
        assert checkpoint is not None, f"{self.folder} has no checkpoint"
        assert checkpoint.step == STEPS, f"{self.folder} ended at step {checkpoint.step}"
        return {path.name: path.read_bytes() for path in sorted(checkpoint.folder.glob("*.safetensors"))}

    def seen(self) -> dict[int, dict[int, str]]:
        """Returns the samples and masks of every step, which must be the same whenever a step was repeated."""
        masks: dict[int, dict[int, str]] = {}
        for line in self.witness.read_text().splitlines():
            try:
                step, rows = json.loads(line)
            except ValueError:
                continue  # cut by a kill; the step is repeated, or missed below
            for key, mask in rows.items():
                assert masks.setdefault(step, {}).setdefault(int(key), mask) == mask, f"step {step}: other masks"
        return masks

    def losses(self) -> dict[int, float]:
        """Returns the loss of every step."""
        lines = map(json.loads, (self.folder / "metrics.jsonl").read_text().splitlines())
        return {line["step"]: line["loss"] for line in lines if "loss" in line}


@dataclass
class Result:
    """One row of the table."""

    scenario: str
    trials: int = 0
    faults: list[str] = field(default_factory=list)
    note: str = ""

    def check(self, fine: bool, otherwise: str) -> None:
        """Counts a trial, and what was wrong with it."""
        self.trials += 1
        if not fine:
            self.faults.append(otherwise)


def _run(words: list[str], witness: str, log: str) -> None:
    os.setsid()
    for number in REQUESTS:  # which the server ignores, as the loader's does
        signal.signal(number, signal.SIG_DFL)
    os.environ["WITNESS"] = witness
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    import torch

    from mrp.cli import main

    torch.set_num_threads(1)
    main(words)


def once_per_epoch(seen: dict[int, dict[int, str]]) -> str:
    """Returns what is wrong with the samples of a whole run; an empty text if nothing is."""
    if sorted(seen) != list(range(STEPS)):
        return f"steps are missing: {sorted(set(range(STEPS)) - set(seen))}"
    if any(len(rows) != BATCH for rows in seen.values()):
        return "a batch is incomplete, or was another one when it was repeated"
    drawn = [key for step in range(STEPS) for key in seen[step]]
    epochs, rest = divmod(STEPS * BATCH, IMAGES)
    for epoch in range(epochs + 1):
        mine = set(drawn[epoch * IMAGES : (epoch + 1) * IMAGES])
        every = set(keys(0, epoch, np.arange(IMAGES)).tolist())
        if mine - every or len(mine) != (IMAGES if epoch < epochs else rest):
            return f"epoch {epoch} is not every sample once"
    return ""


def same(result: Result, trained: TrainedRun, reference: TrainedRun) -> None:
    """Checks that a run ended as the undisturbed one did."""
    try:
        ours, theirs = trained.weights(), reference.weights()
        fault = "" if ours == theirs else f"{[name for name in theirs if ours.get(name) != theirs[name]]} differ"
        fault = fault or once_per_epoch(trained.seen())
        fault = fault or ("" if trained.seen() == reference.seen() else "other samples or masks than undisturbed")
    except AssertionError as error:
        fault = str(error)
    result.check(not fault, f"{trained.name}: {fault}")


def undisturbed(out: Path, method: str) -> TrainedRun:
    """Returns the run that the others are compared with."""
    trained = TrainedRun(out, f"{method}-undisturbed", method)
    if not trained.folder.exists():
        assert trained.finish() == 0, f"the undisturbed run of {method} failed: see {out / 'log'}"
    return trained


def kills(out: Path, count: int) -> Iterator[Result]:
    """Kills a run at random moments and during saves, alone or with all processes that it started."""
    for method in METHODS:
        reference = undisturbed(out, method)
        trained, luck, inside = TrainedRun(out, f"{method}-killed", method), random.Random(method), 0  # noqa: S311
        result = Result(f"{count} SIGKILLs, {method}")
        for number in range(count):
            process = trained.start()
            assert process.pid is not None
            target = trained.steps() + luck.randrange(1, STEPS // count)
            trained.wait(process, target)
            time.sleep(luck.random() * 0.02)
            if number % 2:
                trained.wait(process, saving=True)
                time.sleep(luck.random() * 0.01)
            inside += trained.saving()
            (os.killpg if number % 4 < 2 else os.kill)(process.pid, signal.SIGKILL)
            process.join()
            result.check(process.exitcode == -signal.SIGKILL, f"kill {number} came after the end")
        result.check(trained.finish() == 0, "the last start failed")
        same(result, trained, reference)
        result.note = f"{inside} inside a save; files bit-equal, every sample once per epoch"
        yield result


def alive(process: Process) -> bool:
    """Returns whether it has not ended yet."""
    return process.is_alive() if isinstance(process, BaseProcess) else process.poll() is None


def damage(out: Path) -> Iterator[Result]:
    """Flips a bit, cuts, empties, removes and lengthens each file of the newest checkpoint."""
    reference = undisturbed(out, "mae")
    half = TrainedRun(out, "mae-half", "mae")
    process = half.start()
    assert process.pid is not None
    half.wait(process, STEPS // 2)
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    checkpoint = checkpoints.newest(half.folder)
    assert checkpoint is not None
    names = sorted(path.name for path in checkpoint.folder.iterdir())
    luck = random.Random(0)  # noqa: S311

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[luck.randrange(len(content))] ^= 1 << luck.randrange(8)
        path.write_bytes(content)

    ways: dict[str, Callable[[Path], Any]] = {
        "a bit flipped": flip,
        "cut off": lambda path: os.truncate(path, path.stat().st_size * 2 // 3),
        "emptied": lambda path: os.truncate(path, 0),
        "lost": lambda path: path.unlink(),
        "a byte too many": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    }
    for what, way in ways.items():
        result = Result(f"a checkpoint's file {what}", note=f"each of {', '.join(names)}: the one before is used")
        for name in names:
            trained = TrainedRun(out, f"damage-{what}-{name}".replace(" ", "-"), "mae")
            shutil.copytree(half.folder, trained.folder)
            shutil.copy(half.witness, trained.witness)
            way(trained.folder / "checkpoints" / checkpoint.folder.name / name)
            before = (out / "log").stat().st_size
            code = trained.finish()
            said = (out / "log").read_bytes()[before:].decode(errors="replace")
            bad = list((trained.folder / "checkpoints").glob("*.bad*"))
            result.check(code == 0 and bool(bad), f"{name}: exit code {code}, set aside: {[p.name for p in bad]}")
            result.check(name in said, f"{name}: is not named in what was said")
            same(result, trained, reference)
            shutil.rmtree(trained.folder)
        yield result


def disk(out: Path) -> Iterator[Result]:
    """Fills the disk while the run goes on."""
    result = Result(
        "full disk", note="one line, exit code 2, the last checkpoint complete; bit-equal once there is space"
    )
    reference = undisturbed(out, "mae")
    trained = TrainedRun(out / "small", "mae-disk", "mae")
    trained.out.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(trained.out)]
    if subprocess.run(mount, capture_output=True).returncode:
        result.note = "not tried: mounting a small disk needs root"
        yield result
        return
    try:
        process = trained.start()
        trained.wait(process, STEPS // 3)
        ballast = trained.out / "ballast"
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 12))
        process.join()
        said = (trained.out / "log").read_text(errors="replace").strip().splitlines()
        result.check(process.exitcode == 2, f"exit code {process.exitcode}")
        result.check(bool(said) and "No space" in said[-1], f"said: {said[-1:]}")
        result.check(not any("Traceback" in line for line in said), "a traceback")
        checkpoint = checkpoints.newest(trained.folder)
        result.check(checkpoint is not None and bool(checkpoint.weights()), "no complete checkpoint is left")
        ballast.unlink()
        result.check(trained.finish() == 0, "it does not go on")
        same(result, trained, reference)
    finally:
        subprocess.run(["umount", "-l", str(trained.out)])  # noqa: S607
    yield result


def signals(out: Path) -> Iterator[Result]:
    """Asks a run to end, in each of its phases."""
    reference = undisturbed(out, "mae")
    phases: dict[str, dict[str, Any]] = {
        "start": {},
        "training": {"steps": STEPS // 3},
        "evaluation": {"evaluating": True},
        "a save": {"steps": STEPS // 4, "saving": True},
    }
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, None):
        name = signal.Signals(number).name if number else "STOP file"
        result = Result(f"{name} at start, in training, evaluation, a save", note="exit code 0, then bit-equal")
        for phase, reached in phases.items():
            watched = ("diagnose.every=20 steps", "diagnose.images=360") if phase == "evaluation" else ()
            trained = TrainedRun(out, f"{name}-{phase}".replace(" ", "-"), options=watched)
            process = trained.start()
            assert process.pid is not None
            while alive(process) and not (trained.folder / "config.yaml").exists():
                time.sleep(0.002)
            trained.wait(process, **reached)
            if number:
                os.kill(process.pid, number)
            else:
                (trained.folder / "STOP").touch()
            process.join()
            result.check(process.exitcode == 0, f"{phase}: exit code {process.exitcode}")
            result.check(trained.steps() < STEPS, f"{phase}: it ran on to its end")
            result.check(trained.finish() == 0, f"{phase}: it does not go on")
            same(result, trained, reference)
        yield result
    result = Result("a second signal, soon and later", note="ends at once, nothing damaged, then bit-equal")
    for attempt in range(4):
        trained = TrainedRun(out, f"twice-{attempt}")
        process = trained.start()
        assert process.pid is not None
        trained.wait(process, 20 * (attempt + 1))
        os.kill(process.pid, signal.SIGTERM)
        time.sleep((0.003, 0.9, 1.1, 1.5)[attempt])  # within a second it counts as the same request
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)
        process.join()
        result.check(process.exitcode in (0, 143, -15), f"exit code {process.exitcode}")
        result.check(trained.finish() == 0, "it does not go on")
        same(result, trained, reference)
    yield result


def elastic(out: Path) -> Iterator[Result]:
    """Trains one run with 1, 2, 4 and 1 processes, changed within epochs."""
    reference = undisturbed(out, "mae")
    trained = TrainedRun(out, "mae-elastic")
    result = Result("1, 2, 4, 1 processes, changed within epochs")
    for number, processes in enumerate((1, 2, 4)):
        process = trained.several(processes)
        trained.wait(process, 22 + 29 * number)
        process.terminate()
        result.check(process.wait() == 0, f"{processes} processes: exit code {process.returncode}")
    result.check(trained.finish() == 0, "the last start failed")
    result.check(trained.seen() == reference.seen(), "other samples or masks")
    ours, theirs = trained.losses(), reference.losses()
    deviation = max(abs(ours.get(step, 1e9) / loss - 1) for step, loss in theirs.items())
    result.check(ours.keys() == theirs.keys() and deviation < 1e-5, f"losses deviate by {deviation:.1e}")
    result.note = f"same samples and masks; losses to {deviation:.1e}"
    yield result


def main() -> None:
    """Runs the scenarios and prints the table."""
    scenarios = ("kills", "damage", "disk", "signals", "elastic")
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--only", nargs="+", choices=scenarios, default=scenarios)
    words.add_argument("--kills", type=int, default=8, help="of each method")
    words.add_argument("--out", type=Path, default=Path("runs/torture"))
    options = words.parse_args()
    out = options.out.absolute()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    CONTEXT.set_forkserver_preload(["mrp.train", "mrp.api", "sklearn.datasets"])
    began, failed = time.monotonic(), False
    print("| torture | checks | as it must be | |\n|---|---|---|---|", flush=True)
    for name in options.only:
        run: Callable[..., Iterator[Result]] = globals()[name]
        for result in run(out, options.kills) if name == "kills" else run(out):
            failed |= bool(result.faults)
            state = "yes" if not result.faults else "NO: " + "; ".join(result.faults)
            print(f"| {result.scenario} | {result.trials} | {state} | {result.note} |", flush=True)
    print(f"\n{(time.monotonic() - began) / 60:.1f} minutes; everything under {options.out}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
