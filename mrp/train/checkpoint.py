"""Checkpoints: safetensors and JSON in a folder that appears whole or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mrp.config import ConfigError, Duration, Node

_PREFIX = "step-"
_UNFINISHED = ".unfinished-"


class Config(Node):
    """`checkpoint:`; the last one is always written, and `keep` counts from the newest."""

    every: Duration = Duration(1, "epochs")
    keep: int = Field(3, gt=0)


class Checkpoint(NamedTuple):
    """A whole checkpoint on disk."""

    step: int
    folder: Path

    def weights(self) -> dict[str, Tensor]:
        """The trained module's tensors."""
        return _load(self.folder / "model.safetensors")

    def optimizer(self) -> dict[str, Tensor]:
        """The optimizer's tensors, named by parameter."""
        return _load(self.folder / "optimizer.safetensors")

    def state(self) -> dict[str, Any]:
        """Everything that is not a tensor."""
        path = self.folder / "state.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
        except (OSError, ValueError) as error:
            raise ConfigError(_unreadable(path, error)) from None


def whole(run: Path) -> list[Checkpoint]:
    """The whole checkpoints of a run, the oldest first; what else lies beside them is not ours."""
    found = []
    for folder in (run / "checkpoints").glob(f"{_PREFIX}*"):
        if folder.is_dir() and (number := re.fullmatch(r"[0-9]+", folder.name.removeprefix(_PREFIX))):
            found.append(Checkpoint(int(number[0]), folder))
    return sorted(found)


def newest(run: Path) -> Checkpoint | None:
    """The last whole checkpoint of a run."""
    return max(whole(run), default=None)


def save(
    run: Path, step: int, module: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], keep: int
) -> None:
    """Write a checkpoint under another name, flush it to the disk, rename it, and only then drop the oldest."""
    parent = run / "checkpoints"
    final = parent / f"{_PREFIX}{step:08d}"
    unfinished = parent / f"{_UNFINISHED}{final.name}"
    if final.exists():
        return  # the state that the run started from: it reached this step before
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for leftover in parent.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(leftover)
        unfinished.mkdir()
        save_file(_contiguous(module.state_dict()), unfinished / "model.safetensors")
        save_file(_contiguous(_optimizer_tensors(module, optimizer)), unfinished / "optimizer.safetensors")
        (unfinished / "state.json").write_text(json.dumps({"step": step, **state}, indent=1), encoding="utf-8")
        for path in unfinished.glob("*.safetensors"):
            shutil.copymode(unfinished / "state.json", path)  # safetensors lets nobody but the owner read its files
        for path in (*unfinished.iterdir(), unfinished):
            _flush(path)
        unfinished.rename(final)
        _flush(parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise ConfigError(_refusal(run, step, error)) from error
    for old in whole(run)[:-keep]:
        gone = parent / f"{_UNFINISHED}{old.folder.name}"
        old.folder.rename(gone)  # first, so that a kill leaves no half of a checkpoint under the name of a whole one
        shutil.rmtree(gone)


def restore(found: Checkpoint, module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load weights and optimizer state in place; the step to go on from."""
    module.load_state_dict(found.weights())
    tensors = found.optimizer()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            prefix = f"{name}/"
            optimizer.state[parameter] = {
                key.removeprefix(prefix): tensor.to(parameter.device)
                for key, tensor in tensors.items()
                if key.startswith(prefix)
            }
    return found.step


def _optimizer_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": tensor
        for name, parameter in module.named_parameters()
        for key, tensor in optimizer.state.get(parameter, {}).items()
    }


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(_unreadable(path, error)) from None


def _unreadable(path: Path, error: Exception) -> str:
    return f"{path}: cannot be read: {error}; remove {path.parent} to go on from the checkpoint before it"


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refusal(run: Path, step: int, error: Exception) -> str:
    number = re.search(r"os error (\d+)", str(error))  # how safetensors passes on what the system said
    reason = os.strerror(int(number[1])) if number else getattr(error, "strerror", None) or str(error)
    last = newest(run)
    kept = f"that of step {last.step} is whole" if last else "there is none before it"
    return (
        f"{run}: the checkpoint of step {step} is not written: {reason}; {kept}; mend it and run the same command again"
    )
