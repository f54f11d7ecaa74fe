"""Weights of anything that lies somewhere, under our names, with all that has to be known to make use of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mrp.config import ConfigError
from mrp.interop.config import WeightsName
from mrp.models import vit
from mrp.objectives import OBJECTIVES

_TEACHER = "teacher.backbone."
_BACKBONE = "backbone."
_LAST_NORM = ("backbone.norm.weight", "backbone.norm.bias")
_CHUNK = 1 << 22


class Held(NamedTuple):
    """What a foreign file holds, under our names, before anything is concluded from it."""

    method: str
    tensors: dict[str, Tensor]
    backbone: dict[str, Any]  # options that the weights do not tell
    objective: dict[str, Any]
    data: dict[str, Any]  # size, mean, std


@dataclass(frozen=True)
class Found:
    """Weights under our names, and the model that they fit."""

    source: str  # the file or folder
    digest: str  # sha256 of the files with the weights: what a run that starts from them is known by
    method: str  # the objective that they belong to
    objective: dict[str, Any]  # its options, `name` apart: a section of a run's configuration
    backbone: vit.Config
    size: tuple[int, int]
    channels: int
    tensors: dict[str, Tensor] = field(repr=False)  # the objective's: backbone.*, decoder.*, head.*, teacher.*
    mean: tuple[float, ...] = ()  # of pixels in [0, 1]; empty where it is not known
    std: tuple[float, ...] = ()
    missing: tuple[str, ...] = ()  # what the objective has besides, as untrained as it was built
    step: int = 0

    def encoder(self) -> dict[str, Tensor]:
        """The backbone's weights alone, under timm's names."""
        return {k.removeprefix(_BACKBONE): w for k, w in self.tensors.items() if k.startswith(_BACKBONE)}

    def checked(self) -> Found:
        """The same, once every tensor is known to have its place; what is missing of the objective is listed."""
        expected, kept = self._shapes(), {}
        for name, tensor in self.tensors.items():
            if name not in expected:
                if name.startswith(_TEACHER) and torch.equal(tensor, self.tensors[name.removeprefix("teacher.")]):
                    continue  # fixed, so that teacher and student share it
                raise ConfigError(
                    f"{self.source}: '{name}' is no part of {self.method} on such a backbone; "
                    "if it is a model of timm's, say which with backbone.name=NAME"
                )
            if tensor.shape != expected[name]:
                raise ConfigError(
                    f"{self.source}: '{name}' is of shape {tuple(tensor.shape)}, where {tuple(expected[name])} follows "
                    "from the rest; if a size was given, correct it"
                )
            kept[name] = tensor
        missing = [name for name in expected if name not in kept]
        lost = [name for name in missing if name.startswith(_BACKBONE) and name not in _LAST_NORM]
        if lost:
            raise ConfigError(f"{self.source}: has no '{lost[0]}' ({len(lost)} are missing); the file is not whole")
        return replace(self, tensors=kept, missing=tuple(missing))

    def _shapes(self) -> dict[str, torch.Size]:
        module = OBJECTIVES.find(self.method)
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            backbone = vit.build(self.backbone, self.size, self.channels)
            built = module.Objective(module.Config.model_validate(self.objective), backbone)
        return {name: tensor.shape for name, tensor in built.state_dict().items()}


def choose(
    tensors: Mapping[str, Tensor], weights: WeightsName, average: Mapping[str, Tensor], where: str
) -> dict[str, Tensor]:
    """An objective's tensors with the backbone's taken from the teacher, or all that was averaged from the average."""
    if weights == "student":
        return dict(tensors)
    if weights == "average":
        if not average:
            raise ConfigError(f"{where}: holds no average of the run's weights; take weights: student")
        return {**tensors, **average}
    teacher = {_BACKBONE + k.removeprefix(_TEACHER): w for k, w in tensors.items() if k.startswith(_TEACHER)}
    if not teacher:
        raise ConfigError(f"{where}: holds no teacher, its method has none; take weights: student")
    return {**tensors, **teacher}


def digest(*paths: Path) -> str:
    """The sha256 of files, one after another."""
    found = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                found.update(chunk)
    return found.hexdigest()


def merged(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A section with what was given in place of what was read from the weights."""
    result = dict(values)
    for key, new in given.items():
        old = result.get(key)
        result[key] = merged(old, new) if isinstance(old, Mapping) and isinstance(new, Mapping) else new
    return result
