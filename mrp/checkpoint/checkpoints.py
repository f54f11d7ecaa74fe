"""Checkpoints: safetensors and JSON in a folder that appears whole or not at all, written beside the training."""

from __future__ import annotations

import json
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

import mrp
from mrp.checkpoint import sealed
from mrp.checkpoint.layout import Layout, place_like
from mrp.checkpoint.writer import Report, WriteError, Writer, wait_for_others
from mrp.config import ConfigError, Duration, Node

_MODEL, _OPTIMIZER, _STATE = "model", "optimizer", "state.json"
_NEEDED = (f"{_MODEL}.safetensors", f"{_OPTIMIZER}.safetensors", _STATE)
_ALIGNED = 64  # bytes: where a file may begin in shared memory

Groups = Mapping[str, Mapping[str, Tensor]]


class Best(Node):
    """`best:`, or the name of its metric alone: the checkpoint that is kept for being the best by it."""

    name: str = Field(min_length=1)
    direction: Literal["highest", "lowest"] | None = None  # null: lowest for a name that ends in "loss"

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    def better(self, new: float, old: float | None) -> bool:
        """Whether this value beats that one."""
        lowest = self.direction == "lowest" or (self.direction is None and self.name.endswith("loss"))
        return new == new and (old is None or (new < old if lowest else new > old))


class Config(Node):
    """`checkpoint:`; the last one is always written, and `keep` counts from the newest."""

    every: Duration = Duration(1, "epochs")
    keep: int = Field(3, gt=0)
    milestone: Duration | None = None  # also at each multiple of this, kept for ever
    best: Best | None = None  # also where this metric has its best value so far, kept until it is beaten
    asynchronous: bool = True  # written by a process of its own, out of a copy in the host's memory

    def here(self) -> Config:
        """The same, written by this process: for one checkpoint in a place of its own."""
        return self.model_copy(update={"asynchronous": False})


class Checkpoint(NamedTuple):
    """A checkpoint on disk."""

    step: int
    folder: Path

    def weights(self) -> dict[str, Tensor]:
        """The trained module's tensors."""
        return self.tensors(_MODEL)

    def optimizer(self) -> dict[str, Tensor]:
        """The optimizer's tensors, named by parameter."""
        return self.tensors(_OPTIMIZER)

    def tensors(self, group: str) -> dict[str, Tensor]:
        """The tensors of a group that was saved beside the model and the optimizer."""
        path = self.folder / f"{group}.safetensors"
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise ConfigError(_unreadable(path, error)) from None

    def groups(self) -> list[str]:
        """The names of all groups of tensors."""
        return sorted(path.stem for path in self.folder.glob("*.safetensors"))

    def state(self) -> dict[str, Any]:
        """Everything that is not a tensor."""
        path = self.folder / _STATE
        try:
            return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
        except (OSError, ValueError) as error:
            raise ConfigError(_unreadable(path, error)) from None

    def fault(self) -> str | None:
        """What is wrong with its files, by their size and sha256; all of them are read."""
        return sealed.fault(self.folder, _NEEDED)


def whole(run: Path) -> list[Checkpoint]:
    """The checkpoints of a run by their names, the oldest first; their content is not looked at."""
    return [Checkpoint(step, folder) for step, folder in sealed.numbered(run / "checkpoints").items()]


def newest(run: Path, mend: bool = False) -> Checkpoint | None:
    """The last checkpoint of a run that is sound; those after it that are not are told of.

    With `mend`, which is for the process that writes the run, they also get another name.
    """
    while True:
        found = whole(run)
        damaged = []
        for one in reversed(found):
            if (fault := one.fault()) is None:
                return one
            if not one.folder.exists():
                break  # the run went on meanwhile, and dropped it
            damaged.append(fault)
            aside = sealed.set_aside(one.folder).name if mend else None
            _warn(f"{fault}; {f'it is now called {aside}; ' if aside else ''}the checkpoint before it is taken")
        else:
            before = sorted(path.name for path in (run / "checkpoints").glob(f"{sealed.PREFIX}*{sealed.BAD}*"))
            if damaged or before:
                raise ConfigError(
                    f"{run}: none of its checkpoints is sound: {damaged[0] if damaged else ', '.join(before)}; "
                    "bring one back from a copy, or start again with --folder FOLDER"
                )
            return None


def latest(run: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The checkpoint that a run goes on from, for the one process that writes it; damaged ones are set aside."""
    try:
        wait_for_others(run, say)
        sealed.clear(run / "checkpoints")
        found = newest(run, mend=True)
        if (run / "checkpoints").is_dir():
            sealed.point(run / "checkpoints", found.folder.name if found else None)
    except (OSError, WriteError) as error:
        raise ConfigError(f"{run}: its checkpoints cannot be put in order: {_reason(error)}; mend it") from None
    return found


def at(folder: Path) -> Checkpoint:
    """The checkpoint in this folder, which was asked for by name: a damaged one is an error."""
    if not folder.is_dir() or not (number := re.match(rf"{sealed.PREFIX}([0-9]+)", folder.resolve().name)):
        raise ConfigError(f"{folder}: is no checkpoint; they are called {sealed.PREFIX}00000100, for example")
    found = Checkpoint(int(number[1]), folder)
    if (fault := found.fault()) is not None:
        raise ConfigError(f"{fault}; this checkpoint is damaged: name another one, or bring it back from a copy")
    return found


def numbered(run: Path, step: int) -> Checkpoint:
    """A run's checkpoint of this step, which was asked for: it has to be there and sound."""
    found = {one.step: one for one in whole(run)}
    if step not in found:
        raise ConfigError(f"{run}: has no checkpoint of step {step}; there are {', '.join(map(str, found)) or 'none'}")
    return at(found[step].folder)


def save(
    run: Path,
    step: int,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    keep: int,
    extra: Groups | None = None,
    about: Mapping[str, str] | None = None,
) -> None:
    """Write one checkpoint here and now; `extra` are further groups of tensors, `about` small texts."""
    files = _files(step, module, optimizer, state, extra or {}, about or {})
    try:
        sealed.write(run / "checkpoints", step, _parts(files), sealed.Keep(keep))
    except OSError as error:
        raise ConfigError(_refusal(run, step, _reason(error))) from error


def restore(found: Checkpoint, module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load weights and optimizer state in place, also into a sharded module; the step to go on from."""
    own = module.state_dict()
    weights = found.weights()
    weights |= {name: place_like(own[name], weights[name]) for name in own.keys() & weights.keys()}
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split(":", 1)[-1].split())
        raise ConfigError(f"{found.folder}: is of another model: {reason}") from None
    tensors = found.optimizer()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            prefix = f"{name}/"
            optimizer.state[parameter] = {
                key.removeprefix(prefix): place_like(parameter, tensor)
                for key, tensor in tensors.items()
                if key.startswith(prefix)
            }
    return found.step


class Checkpoints:
    """A run's checkpoints while it trains: when one is due, which are kept, and one in flight to the disk.

    Every process makes one and calls `save`, since sharded tensors are put together by all; the main one writes.
    """

    def __init__(
        self,
        run: Path,
        config: Config,
        every: int,
        milestone: int = 0,
        main: bool = True,
        found: Checkpoint | None = None,
        about: Mapping[str, str] | None = None,
    ) -> None:
        self._run = run
        self._config = config
        self._every = every
        self._milestone = milestone
        self._main = main
        self._about = dict(about or {})
        self._started = found.step if found else None
        self._best: dict[str, Any] | None = found.state().get("best") if found else None
        self._best_there = self._best
        self._writer = Writer(run) if main and config.asynchronous else None
        self._measured: dict[str, float] = {}

    def due(self, step: int) -> bool:
        """Whether one is to be saved after this step."""
        return step % self._every == 0 or (self._milestone > 0 and step % self._milestone == 0)

    def note(self, step: int, values: Mapping[str, float]) -> bool:
        """Hear what was measured after this step, wherever it comes from; True if it is the best so far: then save."""
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
        """Copy all to the host and have it written, unless the run started from just this; `wait` until it is."""
        begin = time.perf_counter()
        state = ({"best": self._best} if self._config.best else {}) | dict(state)
        files = _files(step, module, optimizer, state, extra or {}, self._about)
        if not self._main or (step == self._started and self._best == self._best_there):
            for file in files.values():
                if isinstance(file, Layout):
                    file.meet()
        elif self._writer is None:
            self._write(step, files)
        else:
            self.finish()
            self._hand_over(self._writer, step, files)
        self._measured["checkpoint/stall_seconds"] = time.perf_counter() - begin
        if wait:
            self.finish()

    def check(self) -> None:
        """Raise what stopped the checkpoint that is in flight; costs microseconds, and is called at every step."""
        self.finish(wait=False)

    def finish(self, wait: bool = True) -> None:
        """Wait for the checkpoint that is in flight."""
        if self._writer is not None and (step := self._writer.step) is not None:
            try:
                report = self._writer.finished(wait)
            except WriteError as error:
                raise ConfigError(_refusal(self._run, step, str(error))) from None
            if report is not None:
                self._note_written(report)

    def measured(self) -> dict[str, float]:
        """What saving has cost since this was last asked, for the metrics."""
        values, self._measured = self._measured, {}
        return values

    def close(self) -> None:
        """Wait for what is in flight, whatever ends the run, and let the writer go."""
        try:
            self.finish()
        finally:
            if self._writer is not None:
                self._writer.close()

    def _hand_over(self, writer: Writer, step: int, files: Mapping[str, Layout | bytes]) -> None:
        places, end = {}, 0
        for name, file in files.items():
            size = file.size if isinstance(file, Layout) else len(file)
            places[name] = (end, size)
            end += -(-size // _ALIGNED) * _ALIGNED
        try:
            room = torch.frombuffer(writer.room(end), dtype=torch.uint8)
            for name, file in files.items():
                place, size = places[name]
                if isinstance(file, Layout):
                    file.copy(room[place : place + size])
                else:
                    room[place : place + size] = torch.frombuffer(bytearray(file), dtype=torch.uint8)
            writer.start(step, places, self._keep())
        except (OSError, WriteError) as error:
            raise ConfigError(_refusal(self._run, step, _reason(error))) from None

    def _write(self, step: int, files: Mapping[str, Layout | bytes]) -> None:
        begin = time.perf_counter()
        try:
            size = sealed.write(self._run / "checkpoints", step, _parts(files), self._keep())
        except OSError as error:
            raise ConfigError(_refusal(self._run, step, _reason(error))) from error
        self._note_written(Report(step, size, time.perf_counter() - begin))

    def _keep(self) -> sealed.Keep:
        steps = (self._best["step"],) if self._best and self._config.best else ()
        return sealed.Keep(self._config.keep, self._milestone, steps)

    def _note_written(self, report: Report) -> None:
        self._measured["checkpoint/write_seconds"] = report.seconds
        self._measured["checkpoint/gigabytes"] = report.size / 1e9


def _files(
    step: int,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    extra: Groups,
    about: Mapping[str, str],
) -> dict[str, Layout | bytes]:
    """A checkpoint's files by name."""
    groups: dict[str, Mapping[str, Tensor]] = {_MODEL: module.state_dict(), _OPTIMIZER: _tensors(module, optimizer)}
    assert not groups.keys() & extra.keys(), "these names are taken"
    versions = {"mrp": mrp.__version__, "torch": torch.__version__, "python": platform.python_version()}
    text = json.dumps({"step": step, **state, "versions": versions}, indent=1)
    files: dict[str, Layout | bytes] = {
        f"{name}.safetensors": Layout(tensors) for name, tensors in (groups | dict(extra)).items()
    }
    return files | {_STATE: text.encode()} | {name: content.encode() for name, content in about.items()}


def _parts(files: Mapping[str, Layout | bytes]) -> dict[str, sealed.Parts]:
    return {name: file.parts() if isinstance(file, Layout) else [file] for name, file in files.items()}


def _tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": tensor
        for name, parameter in module.named_parameters()
        for key, tensor in optimizer.state.get(parameter, {}).items()
    }


def _unreadable(path: Path, error: Exception) -> str:
    return f"{path}: cannot be read: {error}; remove {path.parent} to go on from the checkpoint before it"


def _refusal(run: Path, step: int, reason: str) -> str:
    last = max(whole(run), default=None)
    kept = f"that of step {last.step} is whole" if last else "there is none before it"
    return (
        f"{run}: the checkpoint of step {step} is not written: {reason}; {kept}; mend it and run the same command again"
    )


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _warn(message: str) -> None:
    print(f"mrp: warning: {message}", file=sys.stderr, flush=True)
