"""What is compiled and wrapped for many processes: raw batch in, output out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mrp.batch import Batch, Output
from mrp.data.order import fold
from mrp.prepare.config import Precision
from mrp.prepare.mixing import Erase, Mix

_FULL_SCALE = {torch.uint8: 255.0, torch.uint16: 65535.0}


class Objective(Protocol):
    """What a step asks of a training method."""

    backbone: Any

    def __call__(self, batch: Batch) -> Output:
        """The loss of a micro-batch."""

    def features(self, batch: Batch) -> Tensor:
        """One vector an image."""

    def after_step(self, step: int, updated: Tensor) -> None:
        """The optimizer was called."""


class Prepare(nn.Module):
    """Raw images to normalised float32; mean and std are buffers, so that they travel with the weights.

    In training some images lose a rectangle and neighbours are mixed, where the run says so.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, mean: tuple[float, ...], std: tuple[float, ...], erase: Erase | None = None, mix: Mix | None = None
    ) -> None:
        super().__init__()
        self.erase = erase
        self.mix = mix
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Pixels in units of their standard deviation."""
        images = images.float() / _FULL_SCALE.get(images.dtype, 1.0)
        return (images - self.mean) / self.std

    def change(self, batch: Batch) -> Batch:
        """What training does to normalised images: erase, then mix."""
        if self.erase is not None:
            batch = batch.with_images(self.erase(batch.images, batch.keys))
        return batch if self.mix is None else self.mix(batch)

    def undo(self, images: Tensor) -> Tensor:
        """Normalised images back to [0, 1], for pictures."""
        return (images * self.std + self.mean).clamp(0, 1)


class Step(nn.Module):
    """Normalisation and the objective under one precision; training and evaluation both go through its forward."""

    def __init__(self, prepare: Prepare, objective: Objective, precision: Precision) -> None:
        super().__init__()
        self.prepare = prepare
        self.objective = objective
        self.precision = precision

    def forward(self, batch: Batch, features: bool | Callable[[Any, Tensor], Tensor] = False) -> Output:
        """Returns the objective's output, or only the features of the whole images.

        Features are the objective's own, or those that a function reads from the backbone and normalised images: it is
        called here because sharded parameters are whole only inside the forward pass.
        """
        images = self.prepare(batch.images)
        batch = batch.with_images(images)
        if self.training and not features:
            batch = self.prepare.change(batch)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            if not features:
                return self.objective(batch)
            read = features(self.objective.backbone, images) if callable(features) else self.objective.features(batch)
            return Output(loss=images.new_zeros(()), features=read.float())

    def after_step(self, step: int, updated: Tensor) -> None:
        """Tells the objective that the optimizer was called; `updated` (on the device) is False if it skipped."""
        self.objective.after_step(step, updated)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Dropout draws from torch's generator: seeded by position, so that nothing needs saving."""
    torch.manual_seed(int(fold(seed, step, rank)[0] >> 1))
