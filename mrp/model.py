"""A trained model, loaded from a run, from one of its checkpoints, or from weights of another project."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrp.apart import apart
from mrp.batch import Batch
from mrp.build import build_step, open_source
from mrp.config import ConfigError, Tree, build
from mrp.data.config import Config as DataConfig
from mrp.data.order import keys
from mrp.evaluate.readout import backbone_of, features_of
from mrp.folder import CONFIG
from mrp.interop import hub, reading, runs
from mrp.interop.config import WeightsName
from mrp.interop.weights import ModelWeights
from mrp.methodkit import Objective, Reconstruction, ScheduledCount
from mrp.models.vit import Backbone, grid, resampled
from mrp.optim.average import GROUP as AVERAGE
from mrp.run import Run
from mrp.run import load as load_run
from mrp.schedules import Length
from mrp.step import Step

NO_DATA = "none given at import"
# What training needs and no file of weights tells. A run of no steps cannot be trained by accident.
_NOT_TOLD: dict[str, Any] = {"batch": 256, "length": "0 steps", "optim": {"lr": 1e-3}, "precision": "fp32"}
_OVERSHOOT = 0.25  # how far resizing may carry pixels beyond [0, 1]


def run_of(weights: ModelWeights, data: Mapping[str, Any] | None = None) -> Run:
    """Returns the run that some weights fit; `data` says what it is evaluated on."""
    images = {"size": list(weights.size), "channels": weights.channels}
    section: dict[str, Any] = {"train": NO_DATA}
    if weights.mean and weights.std:
        section |= {"mean": list(weights.mean), "std": list(weights.std)}
    if weights.augment:
        section["augment"] = weights.augment
    values = {
        "objective": {"name": weights.method, **weights.objective},
        "backbone": weights.backbone.model_dump(mode="json"),
        "data": section | dict(data or {}) | images,
    }
    return build(Run, Tree(values | _NOT_TOLD, {"": weights.source}))


def step_of(weights: ModelWeights, run: Run) -> Step:
    """Returns the model with these weights; what they do not hold has its initial values, from the run's seed."""
    step = build_step(run)
    state = step.state_dict()
    step.load_state_dict(state | {f"objective.{name}": tensor for name, tensor in weights.tensors.items()})
    return step.eval()


def origin(weights: ModelWeights) -> dict[str, Any]:
    """Returns where the weights come from, for a checkpoint's state; of a path the last part only.

    `classes` are what a classifier's classes or tags are called, where the source says so.
    """
    source = weights.source if weights.source.startswith(hub.PREFIX) else Path(weights.source).name
    missing, classes = list(weights.missing), list(weights.classes)
    return {"imported": {"source": source, "sha256": weights.digest, "missing": missing, "classes": classes}}


@dataclass(frozen=True)
class Model:
    """A run's model at one of its checkpoints."""

    run: Run = field(repr=False)
    folder: Path
    step: int
    module: Step = field(repr=False)
    weights: WeightsName = "student"
    source: Mapping[str, Any] = field(default_factory=dict, repr=False)  # where imported weights come from

    @property
    def missing(self) -> tuple[str, ...]:
        """The names of tensors that an imported file did not hold; these tensors have their initial values."""
        return tuple(self.source.get("missing", ()))

    def to(self, device: torch.device | str) -> Model:
        """Returns the same model on a device; images that the model is given are moved there."""
        return replace(self, module=self.module.to(device))

    @property
    def objective(self) -> Objective:
        """The training method, with all of its parts."""
        return self.module.objective

    @property
    def backbone(self) -> Backbone:
        """The encoder: timm's VisionTransformer or Eva."""
        return self.objective.encoder

    def features(self, images: Tensor) -> Tensor:
        """Returns one vector per image; images are uint8, uint16 or float in [0, 1], of the run's size."""
        with torch.no_grad():
            return features_of(self.module, self._raw(images))

    @property
    def missing_part(self) -> str | None:
        """A part beside the backbone that an imported file did not hold, such as a decoder or a head."""
        return next((name for name in self.missing if not name.startswith("backbone.")), None)

    def reconstruct(self, images: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Returns which patches were hidden (B, patches), and the images as the model predicts them, in [0, 1]."""
        prediction = self.reconstruction(self.batch(images, seed))
        return prediction.mask, self.module.prepare.undo(prediction.images)

    @apart()
    @torch.no_grad()
    def reconstruction(self, batch: Batch, mask_ratio: float | None = None) -> Reconstruction:
        """Returns what the method predicts of normalised images, with another share of the patches hidden if asked."""
        if self.missing_part is not None:
            raise ConfigError(f"{self.folder}: was imported without '{self.missing_part}', so it cannot paint")
        with ExitStack() as stack:
            if mask_ratio is not None:
                stack.enter_context(self._count_hidden().fixed(mask_ratio))
            return self.objective.reconstruct(batch)

    def _count_hidden(self) -> ScheduledCount:
        """Returns the number in the method that follows from its mask ratio."""
        for module in self.objective.modules():
            if isinstance(module, ScheduledCount) and module.option == "mask_ratio":
                return module
        raise ConfigError(f"{self.run.name} has no mask ratio that could be another")

    def batch(self, images: Tensor, seed: int = 0) -> Batch:
        """Returns images as the method takes them: normalised, with keys that follow from the seed."""
        batch = self._raw(images, seed)
        return batch.with_images(self.module.prepare(batch.images))

    def _raw(self, images: Tensor, seed: int = 0) -> Batch:
        if not isinstance(images, Tensor):
            raise TypeError(f"images are a {type(images).__name__}, where a tensor is expected; see torch.from_numpy")
        expected = (self.run.data.num_channels, *self.run.data.shape)
        if images.shape[1:] != expected:
            raise ValueError(
                f"images of shape (count, {', '.join(map(str, expected))}) are expected, not {tuple(images.shape)}"
            )
        _check_range(images, self.run.data)
        device = self.module.prepare.mean.device
        numbers = keys(seed, 0, np.arange(len(images)))
        return Batch(images.to(device), torch.from_numpy(numbers).to(device))


def _check_range(images: Tensor, data: DataConfig) -> None:
    """Refuses images on another scale than they are taken to be on: their features would be wrong without a sign."""
    if images.dtype in (torch.uint8, torch.uint16) or not images.numel():
        return
    if not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}; convert them to torch.uint8 (0 to 255), or to floats in [0, 1]")
    low, high = (float(value) for value in images.aminmax())
    # No numbers in [0, 1] have a variance above mean (1 - mean): such pixels were floating-point, in other units. But
    # 0 and 1 stand for no normalisation at all.
    other_units = any(
        (mean, std) != (0, 1) and std**2 > mean * (1 - mean) + 1e-6
        for mean, std in zip(data.mean, data.std, strict=True)
    )
    if not (math.isfinite(high - low) if other_units else low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT):
        expected = "finite numbers are" if other_units else "[0, 1] is"
        remedy = "divide them by 255" if low >= 0 else "leave out their normalisation, which the model does itself"
        remedy = "replace the others" if other_units else remedy
        raise ValueError(f"images are floats from {low:.3g} to {high:.3g}, where {expected} expected; {remedy}")


@apart()
def load(
    path: str | Path, weights: WeightsName | None = None, step: int | None = None, **sections: Mapping[str, Any]
) -> Model:
    """Returns the model of a run, of one of its checkpoints, or of anything that can be imported.

    Of a run it takes the newest checkpoint, or the checkpoint of `step`. By default the weights are the average where
    the run keeps one, else those that its method names as the ones to judge: the student's or the teacher's. The
    backbone of the model then holds these weights. `sections` say what imported weights do not tell, such as
    `backbone={"name": "vit_small_patch16_dinov3"}`.
    """
    path = os.path.expanduser(path)
    if not runs.is_ours(Path(path)) and (Path(path).exists() or str(path).startswith(hub.PREFIX)):
        read = reading.read(path, weights or "student", step, sections)
        run = run_of(read, sections.get("data"))
        return Model(run, Path(path), 0, step_of(read, run), weights or "student", origin(read)["imported"])
    if sections:
        raise ConfigError(f"{path}: a run says itself what its weights are; leave out {', '.join(sections)}")
    folder, checkpoint = runs.locate(Path(path), step)
    run = load_run(runs.configuration(folder, checkpoint))
    module = build_step(run)
    chosen = weights or ("average" if checkpoint.has(AVERAGE) else module.objective.judged)
    try:
        module.load_state_dict(runs.weights_of(checkpoint, chosen))
    except RuntimeError as error:
        reason = " ".join(str(error).split(":", 1)[-1].split())
        raise ConfigError(f"{checkpoint.folder}: its weights do not fit its configuration: {reason}") from None
    module.objective.judged = "student"
    state = checkpoint.state()
    if "length" in state:
        module.before_step(max(0, checkpoint.step - 1), Length(**state["length"]))
    return Model(run, folder, checkpoint.step, module.eval(), chosen, state.get("imported", {}))


def resized(module: Step, run: Run) -> Step:
    """Returns the same weights in a model for images of another size, with positions interpolated."""
    resized = build_step(run).eval()
    resized.objective.judged = module.objective.judged
    old, new = backbone_of(module), backbone_of(resized)
    weights = module.state_dict()
    for prefix in ("objective.backbone.", "objective.teacher.backbone."):
        held = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
        weights |= {prefix + name: tensor for name, tensor in resampled(new, held, grid(old)).items()}
    state = resized.state_dict()
    trained = {name for name, parameter in resized.named_parameters() if parameter.requires_grad}
    fitting = {name: tensor for name, tensor in weights.items() if tensor.shape == state[name].shape}
    odd = sorted(trained - fitting.keys())
    if odd:
        raise ConfigError(f"data.size: '{odd[0]}' is for images of another size; leave data.size out")
    resized.load_state_dict(state | fitting)
    return resized


def class_names(model: Model) -> tuple[str, ...]:
    """Returns what a run calls the classes or tags that its model tells apart; none where nobody knows.

    The run's folder says so, or what was imported, or else its training data.
    """
    count = getattr(model.run.objective, "classes", 0)
    names = runs.classes_of(model.folder) or tuple(model.source.get("classes", ()))
    if count and not names:
        with suppress(ConfigError):
            source = open_source(model.run, "train")
            names = source.tags or source.classes
    return names if len(names) == count else ()


@apart()
def untrained(folder: str | Path) -> Model:
    """Returns the model of a run with its initial weights: what trained weights are compared with."""
    run = read(Path(folder))
    return Model(run, Path(folder), 0, build_step(run).eval())


def read(folder: Path) -> Run:
    """Returns the configuration of a run's folder."""
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"{folder}: is not the folder of a run (it has no {CONFIG}); 'mrp pretrain' makes one")
    return load_run(folder / CONFIG)
