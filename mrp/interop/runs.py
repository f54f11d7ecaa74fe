"""Runs of mrp as a source of weights: a run's folder, or one of its checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mrp import outside
from mrp.checkpoint import checkpoints, sealed
from mrp.checkpoint.checkpoints import MODEL, Checkpoint
from mrp.checkpoint.sealed import LATEST
from mrp.config import ConfigError, compose
from mrp.data.config import Config as Data
from mrp.files import sha256_of
from mrp.folder import CLASSES, CONFIG
from mrp.interop.config import WeightsName
from mrp.interop.weights import ModelWeights, choose, part
from mrp.models import vit
from mrp.objectives import OBJECTIVES
from mrp.optim.average import GROUP as AVERAGE

_OBJECTIVE = "objective."


def is_ours(path: Path) -> bool:
    """Returns whether this is a run's folder, a checkpoint's, or a file that stands for one."""
    folder = _without_file(path)
    return folder.is_dir() and ((folder / CONFIG).is_file() or _is_checkpoint(folder))


def locate(path: Path, step: int | None = None) -> tuple[Path, Checkpoint]:
    """Returns a run's folder and one of its checkpoints: that of a step, that of a path, or the newest."""
    path = _without_file(path)
    if not path.is_dir():
        raise ConfigError(f"{path}: there is no such folder; give a run's, or that of one of its checkpoints")
    if _is_checkpoint(path):
        asked_for = checkpoints.at(path)
        if step not in {None, asked_for.step}:
            raise ConfigError(
                f"{path}: is the checkpoint of step {asked_for.step}, not of {step}; give the run's folder"
            )
        run = path.absolute().parent.parent
        return run if (run / CONFIG).is_file() else path, asked_for
    if not (path / CONFIG).is_file():
        raise ConfigError(f"{path}: is not the folder of a run (it has no {CONFIG}); 'mrp pretrain' makes one")
    if step is not None:
        return path, checkpoints.numbered(path, step)
    newest = checkpoints.newest(path)
    if newest is None:
        raise ConfigError(f"{path}: has no checkpoint yet; 'mrp pretrain' writes the first")
    return path, newest


def configuration(folder: Path, of: Checkpoint) -> Path:
    """Returns the file that says what a checkpoint's model is: the checkpoint's own, or else the run's."""
    return of.folder / CONFIG if (of.folder / CONFIG).is_file() else folder / CONFIG


def weights_of(of: Checkpoint, weights: WeightsName) -> dict[str, Tensor]:
    """Returns a checkpoint's tensors, in which the teacher or the average replaces the student where asked for."""
    tensors = of.weights()
    apart = {name: tensor for name, tensor in tensors.items() if not name.startswith(_OBJECTIVE)}
    averaged = part(average(of), _OBJECTIVE) if weights == "average" else {}
    chosen = choose(part(tensors, _OBJECTIVE), weights, averaged, str(of.folder))
    return apart | {_OBJECTIVE + name: tensor for name, tensor in chosen.items()}


def average(of: Checkpoint) -> dict[str, Tensor]:
    """Returns the weights averaged over the run; nothing where it keeps none."""
    return of.tensors(AVERAGE) if of.has(AVERAGE) else {}


def read(path: Path, weights: WeightsName | None = None, step: int | None = None) -> ModelWeights:
    """Returns the weights of a run or checkpoint (by default those judged), and what its configuration says of them."""
    folder, chosen = locate(path, step)
    file = configuration(folder, chosen)
    values = compose(file).values
    try:
        objective = dict(values["objective"])
        backbone = vit.Config.model_validate(values["backbone"])
        data = Data.model_validate(values["data"])
        method = objective.pop("name")
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{file}: is not the configuration of a run: {' '.join(str(error).split())}") from None
    weights = weights or judged(method, folder)
    imported: Mapping[str, Any] = chosen.state().get("imported") or {}
    groups = [MODEL, AVERAGE] if weights == "average" else [MODEL]
    return ModelWeights(
        source=str(path),
        digest=sha256_of(*map(chosen.path, groups)),
        method=method,
        objective=objective,
        backbone=backbone,
        size=data.shape,
        channels=data.num_channels,
        tensors=part(weights_of(chosen, weights), _OBJECTIVE),
        mean=data.mean,
        std=data.std,
        step=chosen.step,
        weights=weights,
        classes=classes_of(folder) or tuple(imported.get("classes", ())),
        imported=bool(imported),
    )


def classes_of(folder: Path) -> tuple[str, ...]:
    """Returns what a run's folder says that its classes are called; none where it says nothing."""
    try:
        return tuple(map(str, json.loads((folder / CLASSES).read_text(encoding="utf-8"))))
    except (OSError, ValueError, TypeError):
        return ()


def judged(method: str, folder: Path) -> WeightsName:
    """Returns whose weights a method has judged; of a file outside mrp the copy in the run's folder says so."""
    found: WeightsName = OBJECTIVES.find(outside.located(method, folder, None)).Objective.judged
    return found


def _without_file(path: Path) -> Path:
    """Returns the checkpoint's folder where the path is that of its weights, or of the file that names the last one."""
    folder = path.parent
    if path.name == LATEST and path.is_file():
        return sealed.pointed(folder) or path
    is_weights = path.is_file() and path == Checkpoint(0, folder).path(MODEL) and _is_checkpoint(folder)
    return folder if is_weights else path


def _is_checkpoint(folder: Path) -> bool:
    step = checkpoints.step_of(folder)
    return step is not None and Checkpoint(step, folder).has(MODEL)
