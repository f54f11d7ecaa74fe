"""Finds the checkpoints on the disk, checks them, and loads them into a model and its optimizer."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from typing_extensions import TypedDict

from mrp import progress
from mrp.checkpoint import sealed
from mrp.checkpoint.writer import WriteError, wait_for_others
from mrp.config import ConfigError
from mrp.files import step_name
from mrp.tensors import laid_out_like

FOLDER = "checkpoints"  # in a run's folder
MODEL, OPTIMIZER, STATE = "model", "optimizer", "state.json"
_NEEDED = (f"{MODEL}.safetensors", f"{OPTIMIZER}.safetensors", STATE)


_MORE = ConfigDict(extra="allow")  # another version of mrp may have written more, or less


class Measured(TypedDict):
    """The best value so far of the metric that `checkpoint.best` names."""

    name: str
    value: float
    step: int


@with_config(_MORE)
class _Data(TypedDict, total=False):
    manifest: str
    quarantine: list[tuple[int, str, str]]


@with_config(_MORE)
class _Guard(TypedDict, total=False):
    left_out: list[tuple[int, int]]


@with_config(_MORE)
class _Imported(TypedDict, total=False):
    source: str
    sha256: str
    missing: list[str]
    classes: list[str]


@with_config(ConfigDict(extra="ignore"))
class _Length(TypedDict):
    steps: int
    steps_per_epoch: float
    batch: int


@with_config(_MORE)
class Kept(TypedDict, total=False):
    """What is read again of a checkpoint's state."""

    step: int
    best: Measured | None
    data: _Data
    guard: _Guard
    imported: _Imported  # where imported weights come from
    length: _Length
    lr: float


_KEPT = TypeAdapter(Kept)


class Checkpoint(NamedTuple):
    """A checkpoint on disk."""

    step: int
    folder: Path

    def weights(self) -> dict[str, Tensor]:
        """Returns the trained module's tensors."""
        return self.tensors(MODEL)

    def optimizer(self) -> dict[str, Tensor]:
        """Returns the optimizer's tensors, named by parameter."""
        return self.tensors(OPTIMIZER)

    def tensors(self, group: str) -> dict[str, Tensor]:
        """Returns the tensors of one group: the model, the optimizer, or what was saved beside them."""
        path = self.path(group)
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise ConfigError(_unreadable(path, error)) from None

    def refuse_others(self, module: nn.Module) -> None:
        """Refuses a model whose tensors have other names or shapes; no value is read."""
        own = {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
        with safe_open(self.path(MODEL), framework="pt") as file:
            saved = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        odd = next((name for name in {**saved, **own} if saved.get(name) != own.get(name)), None)
        if odd is not None:
            there, here = (f"of shape {shapes[odd]}" if odd in shapes else "missing" for shapes in (saved, own))
            raise ConfigError(
                f"{self.folder}: is of another model: '{odd}' is {there} there and {here} here; take the change back, "
                f"or start another run from its weights: init={self.folder} --folder FOLDER"
            )

    def path(self, group: str) -> Path:
        """Returns the file of a group of tensors."""
        return self.folder / f"{group}.safetensors"

    def has(self, group: str) -> bool:
        """Returns whether the checkpoint holds this group of tensors."""
        return self.path(group).is_file()

    def state(self) -> Kept:
        """Returns everything that is not a tensor; the form of what is read again is checked."""
        path = self.folder / STATE
        try:
            return _KEPT.validate_python(json.loads(path.read_bytes()))
        except ValidationError as error:
            first = error.errors()[0]
            where = ": ".join([".".join(map(str, first["loc"])), first["msg"]]).removeprefix(": ")
            raise ConfigError(
                f"{path}: {where}; where another version of mrp has written this checkpoint, go on with that version"
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(_unreadable(path, error)) from None

    def seal(self) -> str:
        """Returns its manifest, which holds the hash of every file."""
        try:
            return (self.folder / sealed.MANIFEST).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(_unreadable(self.folder / sealed.MANIFEST, error)) from None

    def fault(self) -> str | None:
        """Returns what is wrong with its files, by their size and sha256; all of them are read."""
        if (fault := sealed.fault(self.folder, _NEEDED)) is not None:
            return fault
        step = self.state().get("step", self.step)
        return None if step == self.step else f"{self.folder}: is the checkpoint of step {step}, under another name"


def listed(run: Path) -> list[Checkpoint]:
    """Returns the checkpoints of a run by their names, the oldest first; their content is not checked."""
    return [Checkpoint(step, folder) for step, folder in sealed.numbered(run / FOLDER).items()]


def any_left(run: Path) -> bool:
    """Returns whether a run has ever saved a checkpoint that is still there, sound or not, or is being written."""
    return any((run / FOLDER).glob(f"*{sealed.PREFIX}*"))


def newest(run: Path, mend: bool = False) -> Checkpoint | None:
    """Returns the last sound checkpoint of a run, and warns of later ones that are damaged.

    With `mend`, which is for the process that writes the run, a damaged one also gets another name.
    """
    while True:
        damaged = []
        for checkpoint in reversed(listed(run)):
            if (fault := checkpoint.fault()) is None:
                return checkpoint
            if not checkpoint.folder.exists():
                break  # the run, which goes on meanwhile, has dropped it: look again
            damaged.append(fault)
            aside = f"it is now called {sealed.set_aside(checkpoint.folder).name}; " if mend else ""
            progress.put(f"mrp: warning: {fault}; {aside}the checkpoint before it is taken", sys.stderr)
        else:
            before = sorted(path.name for path in (run / FOLDER).glob(f"{sealed.PREFIX}*{sealed.BAD}*"))
            if damaged or before:
                raise ConfigError(
                    f"{run}: none of its checkpoints is sound: {damaged[0] if damaged else ', '.join(before)}; "
                    "bring one back from a copy, or start again with --folder FOLDER"
                )
            return None


def latest(run: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """Returns the checkpoint that a run goes on from, for the one process that writes it; sets damaged ones aside."""
    try:
        wait_for_others(run, say)
        sealed.clear(run / FOLDER)
        checkpoint = newest(run, mend=True)
        if (run / FOLDER).is_dir():
            sealed.point(run / FOLDER, checkpoint.folder.name if checkpoint else None)
    except (OSError, WriteError) as error:
        raise ConfigError(f"{run}: its checkpoints cannot be put in order: {reason_of(error)}; mend it") from None
    return checkpoint


def at(folder: Path) -> Checkpoint:
    """Returns the checkpoint in this folder; it is an error if it is none or damaged."""
    step = step_of(folder)
    if not folder.is_dir() or step is None:
        raise ConfigError(f"{folder}: is no checkpoint; they are called {step_name(100)}, for example")
    checkpoint = Checkpoint(step, folder)
    if (fault := checkpoint.fault()) is not None:
        raise ConfigError(f"{fault}; this checkpoint is damaged: name another one, or bring it back from a copy")
    return checkpoint


def numbered(run: Path, step: int) -> Checkpoint:
    """Returns a run's checkpoint of this step; it is an error if there is none or it is damaged."""
    by_step = {checkpoint.step: checkpoint for checkpoint in listed(run)}
    if step not in by_step:
        steps = ", ".join(map(str, by_step)) or "none"
        raise ConfigError(f"{run}: has no checkpoint of step {step}; there are {steps}")
    return at(by_step[step].folder)


def step_of(folder: Path) -> int | None:
    """Returns the step that a checkpoint's folder is named after, also of one that was set aside; None for others."""
    number = re.match(rf"{sealed.PREFIX}([0-9]+)", folder.resolve().name)
    return int(number[1]) if number else None


def restore(checkpoint: Checkpoint, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Loads weights and optimizer state in place, also into a sharded module."""
    current, weights = module.state_dict(), checkpoint.weights()
    checkpoint.refuse_others(module)
    module.load_state_dict({name: laid_out_like(current[name], tensor) for name, tensor in weights.items()})
    tensors = checkpoint.optimizer()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            prefix = f"{name}/"
            optimizer.state[parameter] = {
                key.removeprefix(prefix): laid_out_like(parameter, tensor)
                for key, tensor in tensors.items()
                if key.startswith(prefix)
            }


def reason_of(error: Exception) -> str:
    """Returns the short text of an error of the system, or the text of any other."""
    return getattr(error, "strerror", None) or str(error)


def _unreadable(path: Path, error: object) -> str:
    if not path.parent.exists():
        return f"{path.parent}: the run, which goes on, has dropped it in the meantime; run the same command again"
    return f"{path}: cannot be read: {error}; remove {path.parent} to go on from the checkpoint before it"
