"""Weights under mrp's names, together with the configuration of the model that they fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mrp.config import ConfigError, Tree, build
from mrp.interop.config import WeightsName
from mrp.models import vit
from mrp.objectives import OBJECTIVES

BACKBONE, TEACHER = "backbone.", "teacher.backbone."
_LAST_NORM = ("backbone.norm.weight", "backbone.norm.bias")


class ForeignWeights(NamedTuple):
    """What a file of another project holds, under mrp's names, before the rest of the model is inferred."""

    file: Path
    method: str
    tensors: dict[str, Tensor]
    backbone: dict[str, Any]  # options of the sections of these names that the shapes of the weights do not tell
    objective: dict[str, Any]
    data: dict[str, Any]  # size, mean, std, augment
    classes: tuple[str, ...] = ()  # what the classes or tags of a head are called


@dataclass(frozen=True)
class ModelWeights:
    """The weights of an objective (backbone.*, decoder.*, head.*, teacher.*), and the model that they fit."""

    source: str  # the file or folder
    digest: str  # sha256 of the files that hold the weights; part of the identity of a run that starts from them
    method: str  # the name of the objective
    objective: dict[str, Any]  # its options without the name
    backbone: vit.Config
    size: tuple[int, int]
    channels: int
    tensors: dict[str, Tensor] = field(repr=False)
    mean: tuple[float, ...] = ()  # of pixels in [0, 1]; empty where the source does not say
    std: tuple[float, ...] = ()
    augment: Any = None  # `data.augment`, where the source says what evaluation sees of an image
    missing: tuple[str, ...] = ()  # tensors of the objective that the source does not hold: they stay untrained
    stored_as: tuple[str, ...] = ()  # number formats other than float32 that were converted to it
    step: int = 0
    weights: WeightsName = "student"  # which of a run's
    classes: tuple[str, ...] = ()  # of a classifier, where the source says what they are called
    imported: bool = False  # from another project, whose files do not say all of how they were trained

    def fitted(self) -> ModelWeights:
        """Returns the same after checking every name and shape against the objective, with `missing` filled in."""
        expected, tensors = self._expected_shapes(), {}
        for name, tensor in self.tensors.items():
            if name not in expected:
                if name.startswith(TEACHER) and torch.equal(tensor, self.tensors[name.removeprefix("teacher.")]):
                    continue  # teacher and student share what is never trained
                raise ConfigError(
                    f"{self.source}: '{name}' is no part of {self.method} on such a backbone; "
                    "if it is a model of timm's, say which with backbone.name=NAME"
                )
            if tensor.shape != expected[name]:
                raise ConfigError(
                    f"{self.source}: '{name}' is of shape {tuple(tensor.shape)}, where {tuple(expected[name])} follows "
                    "from the rest; if a size was given, correct it"
                )
            tensors[name] = tensor
        missing = tuple(name for name in expected if name not in tensors)
        lost = [name for name in missing if name.startswith(BACKBONE) and name not in _LAST_NORM]
        if lost:
            raise ConfigError(f"{self.source}: has no '{lost[0]}' ({len(lost)} are missing); the file is not whole")
        return replace(self, tensors=tensors, missing=missing)

    def _expected_shapes(self) -> dict[str, torch.Size]:
        module = OBJECTIVES.find(self.method)
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            backbone = vit.build(self.backbone, self.size, self.channels)
            options = build(module.Config, Tree(self.objective, {"": f"{self.source}: objective"}))
            objective = module.Objective(options, backbone)
        return {name: tensor.shape for name, tensor in objective.state_dict().items()}


def part(tensors: Mapping[str, Tensor], prefix: str = BACKBONE) -> dict[str, Tensor]:
    """Returns the tensors of one part of an objective, without its prefix: the backbone's have timm's names then."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def choose(
    tensors: Mapping[str, Tensor], weights: WeightsName, average: Mapping[str, Tensor], source: str
) -> dict[str, Tensor]:
    """Returns an objective's tensors, in which the teacher or the average replaces the student where asked for."""
    if weights == "student":
        return dict(tensors)
    if weights == "average":
        if not average:
            raise ConfigError(f"{source}: holds no average of the run's weights; take weights: student")
        return {**tensors, **average}
    teacher = {BACKBONE + name: tensor for name, tensor in part(tensors, TEACHER).items()}
    if not teacher:
        raise ConfigError(f"{source}: holds no teacher, its method has none; take weights: student")
    return {**tensors, **teacher}


def merged(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a section of a configuration in which the given values replace the inferred ones, key by key."""
    result = dict(values)
    for key, new in given.items():
        old = result.get(key)
        result[key] = merged(old, new) if isinstance(old, Mapping) and isinstance(new, Mapping) else new
    return result
