"""The module that is compiled and wrapped for many processes: it takes a raw batch and returns the output."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mrp.batch import Batch, Output, in_units
from mrp.config import ConfigError
from mrp.data.order import fold
from mrp.methodkit import Objective, Scheduled
from mrp.prepare.config import Precision
from mrp.prepare.mixing import DropChannels, Erase, Mix
from mrp.schedules import Length


class Reads(Protocol):
    """What reads features from a method, such as those of several layers."""

    def __call__(self, objective: Objective, batch: Batch) -> Tensor:
        """Returns one row per image."""


class Prepare(nn.Module):
    """Normalises raw images to float32; mean and std are buffers, so that they are saved with the weights.

    In training it also leaves out channels, erases rectangles of some images and mixes neighbours, where the run says
    so. A channel that an image lacks is filled with the mean, which is 0 in these units.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        erase: Erase | None = None,
        mix: Mix | None = None,
        drop: DropChannels | None = None,
    ) -> None:
        super().__init__()
        self.drop = drop
        self.erase = erase
        self.mix = mix
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Keeps the configuration's mean and std, which a run may change in its midst (`resume.allow`)."""
        own = {f"{prefix}mean": self.mean, f"{prefix}std": self.std}
        super()._load_from_state_dict(state_dict | own, prefix, *rest)

    def forward(self, images: Tensor) -> Tensor:
        """Returns pixels in units of their standard deviation."""
        # The loader's pixels lie colour beside colour; from here on each colour is in one piece.
        return (in_units(images.contiguous()) - self.mean) / self.std

    def change(self, batch: Batch) -> Batch:
        """Returns the batch as it is trained on: channels left out, rectangles erased, then neighbours mixed."""
        if self.drop is not None:
            batch = replace(batch, present=self.drop(batch))
        if self.erase is not None:
            batch = batch.with_images(self.erase(batch.images, batch.keys))
        batch = self.fill(batch)
        return batch if self.mix is None else self.mix(batch)

    def fill(self, batch: Batch) -> Batch:
        """Returns the batch with the mean in place of the channels that an image lacks."""
        if batch.present is None:
            return batch
        return batch.with_images(torch.where(batch.present[..., None, None], batch.images, 0.0))

    def undo(self, images: Tensor) -> Tensor:
        """Returns normalised images as values in [0, 1], for pictures."""
        return (images * self.std + self.mean).clamp(0, 1)


class Step(nn.Module):
    """Normalisation and the objective under one precision; training and evaluation both go through its forward."""

    def __init__(self, prepare: Prepare, objective: Objective, precision: Precision) -> None:
        super().__init__()
        self.prepare = prepare
        self.objective = objective
        self.precision = precision

    def forward(self, batch: Batch, features: bool | Reads = False) -> Output:
        """Returns the objective's output, or only the features of the whole images.

        Features are the objective's own, or those that a function reads from the objective and a batch of normalised
        images: it is called here because sharded parameters are whole only inside the forward pass.
        """
        images = self.prepare(batch.images)
        batch = batch.with_images(images)
        batch = self.prepare.change(batch) if self.training and not features else self.prepare.fill(batch)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            if not features:
                output: Output = self.objective(batch)
                if not torch.compiler.is_compiling():  # before anything is compiled, a step is tried once as it is
                    _check(output, len(batch.keys), self.objective.name)
                return output
            read = features(self.objective, batch) if callable(features) else self.objective.features(batch)
            return Output(loss=images.new_zeros(()), features=read.float())

    def before_step(self, step: int, length: Length) -> None:
        """Gives the numbers that change over the run their values in a step."""
        self.objective.before_step(step, length)

    def scheduled(self) -> list[Scheduled]:
        """Returns the numbers that change over the run."""
        return self.objective.scheduled()

    def after_step(self, step: int, updated: Tensor) -> None:
        """Tells the objective that the optimizer was called, and (on the device) whether it changed the weights."""
        self.objective.after_step(step, updated)


def _check(output: Any, images: int, method: str) -> None:
    """Refuses what no method may return: its numbers would fail far from their cause, or be counted wrongly."""
    where = f"objective {method}: forward returns"
    if not isinstance(output, Output):
        raise ConfigError(f"{where} a {type(output).__name__}, where mrp.Output(loss=...) is expected")
    metrics = {f"Output.metrics['{name}']": value for name, value in output.metrics.items()}
    for what, value in {"Output.loss": output.loss, **metrics}.items():
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
            raise ConfigError(
                f"{where} {_described(value)} as {what}; give a mean: a tensor of shape () and a type of floats"
            )
    for name, value in output.per_sample.items():
        if not isinstance(value, Tensor) or value.shape != (images,):
            raise ConfigError(f"{where} {_described(value)} as Output.per_sample['{name}']; give one number per image")
    if output.features is not None and len(output.features) != images:
        raise ConfigError(f"{where} {_described(output.features)} as Output.features; give one vector per image")


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
    return f"a {type(value).__name__}"


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seeds torch's generator, from which dropout draws, by step and process, so that its state need not be saved."""
    torch.manual_seed(int(fold(seed, step, rank)[0] >> 1))
