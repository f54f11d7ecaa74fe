"""Our own runs as a place where weights lie: a run's folder, or one of its checkpoints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from mrp.checkpoint import checkpoints as checkpoint
from mrp.checkpoint.checkpoints import Checkpoint
from mrp.config import ConfigError, parse
from mrp.data.config import Config as Data
from mrp.folder import CONFIG
from mrp.interop.config import WeightsName
from mrp.interop.found import Found, choose, digest
from mrp.models import vit

_MODEL, _AVERAGE = "model.safetensors", "average.safetensors"
_OBJECTIVE = "objective."


def is_ours(path: Path) -> bool:
    """Whether it is a run's folder or a checkpoint's."""
    return path.is_dir() and ((path / CONFIG).is_file() or _step(path) is not None)


def locate(path: Path, step: int | None = None) -> tuple[Path, Checkpoint]:
    """A run's folder and one of its checkpoints: that of a step, that of a path, or the newest."""
    if not path.is_dir():
        raise ConfigError(f"{path}: there is no such folder; give a run's, or that of one of its checkpoints")
    own = _step(path)
    if own is not None:
        if step not in {None, own}:
            raise ConfigError(f"{path}: is the checkpoint of step {own}, not of {step}; give the run's folder")
        run = path.absolute().parent.parent
        return run if (run / CONFIG).is_file() else path, checkpoint.at(path)
    if not (path / CONFIG).is_file():
        raise ConfigError(f"{path}: is not the folder of a run (it has no {CONFIG}); 'mrp pretrain' makes one")
    if step is None:
        found = checkpoint.newest(path)
        if found is None:
            raise ConfigError(f"{path}: has no checkpoint yet; 'mrp pretrain' writes the first")
        return path, found
    return path, checkpoint.numbered(path, step)


def configuration(folder: Path, found: Checkpoint) -> Path:
    """The file that says what a checkpoint's model is: the checkpoint's own, or else the run's."""
    return next((place / CONFIG for place in (found.folder, folder) if (place / CONFIG).is_file()), folder / CONFIG)


def weights_of(found: Checkpoint, weights: WeightsName) -> dict[str, Tensor]:
    """A checkpoint's tensors, with those of the student, the teacher or the average where the trained ones are."""
    tensors = found.weights()
    apart = {name: tensor for name, tensor in tensors.items() if not name.startswith(_OBJECTIVE)}
    averaged = _objective(average(found)) if weights == "average" else {}
    chosen = choose(_objective(tensors), weights, averaged, str(found.folder))
    return apart | {_OBJECTIVE + name: tensor for name, tensor in chosen.items()}


def has_average(found: Checkpoint) -> bool:
    """Whether a run keeps the average of its weights."""
    return (found.folder / _AVERAGE).is_file()


def average(found: Checkpoint) -> dict[str, Tensor]:
    """The weights averaged over the run; nothing where it keeps none."""
    return found.tensors("average") if has_average(found) else {}


def read(path: Path, weights: WeightsName = "student", step: int | None = None) -> Found:
    """The weights of a run or checkpoint, and what its configuration says of them."""
    folder, found = locate(path, step)
    place = configuration(folder, found)
    values = _values(place)
    try:
        objective = dict(values["objective"])
        backbone = vit.Config.model_validate(values["backbone"])
        data = Data.model_validate(values["data"])
        method = objective.pop("name")
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{place}: is not the configuration of a run: {' '.join(str(error).split())}") from None
    files = [found.folder / _MODEL] + ([found.folder / _AVERAGE] if weights == "average" else [])
    chosen = _objective(weights_of(found, weights))
    return Found(
        str(path), digest(*files), method, objective, backbone, data.shape, data.channels, chosen,
        data.mean, data.std, step=found.step,
    )  # fmt: skip


def _values(path: Path) -> dict[str, Any]:
    try:
        values = parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'not a text file'}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: is not the configuration of a run")
    return values


def _objective(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(_OBJECTIVE): tensor for name, tensor in tensors.items() if name.startswith(_OBJECTIVE)}


def _step(path: Path) -> int | None:
    number = re.fullmatch(r"step-([0-9]+)", path.resolve().name)
    return int(number[1]) if number and (path / _MODEL).is_file() else None
