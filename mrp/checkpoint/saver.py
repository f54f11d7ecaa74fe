"""Checkpoints while a run trains: when one is due, which ones are kept, and the one that is being written."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mrp
from mrp.checkpoint import sealed
from mrp.checkpoint.checkpoints import FOLDER, MODEL, OPTIMIZER, STATE, Checkpoint, Measured, listed, reason_of
from mrp.checkpoint.config import Config
from mrp.checkpoint.layout import Layout
from mrp.checkpoint.pagelock import PageLock
from mrp.checkpoint.writer import Report, WriteError, Writer
from mrp.config import ConfigError
from mrp.files import mapping_in

_ALIGNED = 64  # bytes: a file begins at a multiple of this in shared memory

Groups = Mapping[str, Mapping[str, Tensor]]
Files = Mapping[str, Layout | bytes]


def save_now(
    run: Path,
    step: int,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    keep: int = 1,
    extra: Groups | None = None,
    about: Mapping[str, str] | None = None,
) -> None:
    """Writes one checkpoint before it returns; `extra` are further groups of tensors, `about` small texts."""
    _write(run, step, _files(step, module, optimizer, state, extra or {}, about or {}), sealed.Keep(keep))


class Saver:
    """Saves the checkpoints of a run while it trains.

    Every process has one and calls `save`, since all of them put sharded tensors together; the main process writes.
    """

    def __init__(
        self,
        run: Path,
        config: Config,
        every: int,
        milestone: int = 0,
        main: bool = True,
        resumed: Checkpoint | None = None,
        about: Mapping[str, str] | None = None,
    ) -> None:
        self._run = run
        self._config = config
        self._every = every
        self._milestone = milestone
        self._milestones = _milestones(run) if main and resumed else ()  # of earlier starts, by what was set then
        self._main = main
        self._about = dict(about or {})
        self._resumed_at = resumed.step if resumed else None
        self._best: Measured | None = resumed.state().get("best") if resumed else None
        self._best_on_disk = self._best
        self._writer = Writer(run) if main and config.asynchronous else None
        self._page_lock = PageLock()
        self._measured: dict[str, float] = {}

    def due(self, step: int) -> bool:
        """Returns whether a checkpoint is to be saved after this step."""
        return step % self._every == 0 or (self._milestone > 0 and step % self._milestone == 0)

    def is_best(self, step: int, values: Mapping[str, float]) -> bool:
        """Notes what was measured after this step; returns whether it is the best so far, and so to be saved."""
        best = self._config.best
        if best is None or best.name not in values:
            return False
        value = float(values[best.name])
        known = self._best if self._best and self._best["name"] == best.name else None
        if not best.better(value, known["value"] if known else None):
            return False
        self._best = {"name": best.name, "value": value, "step": step}
        return True

    def save(
        self,
        step: int,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: Mapping[str, Any],
        extra: Groups | None = None,
        wait: bool = False,
    ) -> None:
        """Copies everything to the host and has it written; with `wait`, returns when it is on the disk.

        Nothing is written where the run was resumed from this very checkpoint and nothing has changed since.
        """
        begin = time.perf_counter()
        state = ({"best": self._best} if self._config.best else {}) | dict(state)
        state |= {"milestone": self._milestone} if self._milestone else {}
        files = _files(step, module, optimizer, state, extra or {}, self._about)
        if not self._main or (step == self._resumed_at and self._best == self._best_on_disk):
            for file in files.values():
                if isinstance(file, Layout):
                    file.gather()
        elif self._writer is None:
            self._note_written(_write(self._run, step, files, self._keep()))
        else:
            self.finish()
            self._hand_over(self._writer, step, files)
        self._measured["checkpoint/stall_seconds"] = time.perf_counter() - begin
        if wait:
            self.finish()

    def check(self) -> None:
        """Raises the error of the checkpoint that is being written, if there is one; cheap enough for every step."""
        self.finish(wait=False)

    def finish(self, wait: bool = True) -> None:
        """Waits for the checkpoint that is being written."""
        if self._writer is not None and (step := self._writer.step) is not None:
            try:
                report = self._writer.finished(wait)
            except WriteError as error:
                raise ConfigError(_refusal(self._run, step, str(error))) from None
            if report is not None:
                self._note_written(report)

    def measured(self) -> dict[str, float]:
        """Returns what saving has cost since this was last asked, for the metrics."""
        values, self._measured = self._measured, {}
        return values

    def close(self) -> None:
        """Waits for the checkpoint that is being written, and ends the writing process."""
        try:
            self.finish()
        finally:
            self._page_lock.release()
            if self._writer is not None:
                self._writer.close()

    def _hand_over(self, writer: Writer, step: int, files: Files) -> None:
        """Copies the files into the memory that is shared with the writing process, and has it write them."""
        extents, end = {}, 0
        for name, file in files.items():
            size = file.size if isinstance(file, Layout) else len(file)
            extents[name] = (end, size)
            end += -(-size // _ALIGNED) * _ALIGNED
        try:
            memory = self._page_lock.lock(writer.memory(end))
            for name, file in files.items():
                start, size = extents[name]
                if isinstance(file, Layout):
                    file.copy_to(memory[start : start + size], asynchronous=self._page_lock.held)
                else:
                    memory[start : start + size] = torch.frombuffer(bytearray(file), dtype=torch.uint8)
            self._page_lock.wait()
            writer.start(step, extents, self._keep())
        except (OSError, WriteError) as error:
            raise ConfigError(_refusal(self._run, step, reason_of(error))) from None

    def _keep(self) -> sealed.Keep:
        best = (self._best["step"],) if self._best and self._config.best else ()
        return sealed.Keep(self._config.keep, self._milestone, (*self._milestones, *best))

    def _note_written(self, report: Report) -> None:
        self._measured["checkpoint/write_seconds"] = report.seconds
        self._measured["checkpoint/gigabytes"] = report.size / 1e9


def _milestones(run: Path) -> tuple[int, ...]:
    """Returns the steps of checkpoints that are kept for ever by what `checkpoint.milestone` was when they were saved.

    It may be another one now, or come to other steps because the batch has changed.
    """
    saved = {one.step: mapping_in(one.folder / STATE).get("milestone") for one in listed(run)}
    return tuple(step for step, every in saved.items() if isinstance(every, int) and every > 0 and step % every == 0)


def _write(run: Path, step: int, files: Files, keep: sealed.Keep) -> Report:
    begin = time.perf_counter()
    chunks = {name: file.chunks() if isinstance(file, Layout) else [file] for name, file in files.items()}
    try:
        size = sealed.write(run / FOLDER, step, chunks, keep)
    except OSError as error:
        raise ConfigError(_refusal(run, step, reason_of(error))) from error
    return Report(step, size, time.perf_counter() - begin)


def _files(
    step: int,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    extra: Groups,
    about: Mapping[str, str],
) -> dict[str, Layout | bytes]:
    """Returns a checkpoint's files by name."""
    optimizer_tensors = {
        f"{name}/{key}": tensor
        for name, parameter in module.named_parameters()
        for key, tensor in optimizer.state.get(parameter, {}).items()
    }
    groups: dict[str, Mapping[str, Tensor]] = {MODEL: module.state_dict(), OPTIMIZER: optimizer_tensors}
    assert not groups.keys() & extra.keys(), "these names are used by the model and the optimizer"
    versions = {"mrp": mrp.__version__, "torch": torch.__version__, "python": platform.python_version()}
    text = json.dumps({"step": step, **state, "versions": versions}, indent=1)
    files: dict[str, Layout | bytes] = {
        f"{name}.safetensors": Layout(tensors) for name, tensors in (groups | dict(extra)).items()
    }
    return files | {STATE: text.encode()} | {name: content.encode() for name, content in about.items()}


def _refusal(run: Path, step: int, reason: str) -> str:
    last = max(listed(run), default=None)
    kept = f"that of step {last.step} is complete" if last else "there is none before it"
    return (
        f"{run}: the checkpoint of step {step} is not written: {reason}; {kept}; mend it and run the same command again"
    )
