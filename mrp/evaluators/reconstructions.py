"""How a method that predicts pixels completes some held-out images, as a number and as a picture for the trackers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from mrp.batch import Batch, of_pixels, three_channels
from mrp.config import ConfigError
from mrp.data.augment import View
from mrp.data.loader import EvalLoader
from mrp.data.subset import fixed_sample
from mrp.evaluate import contract
from mrp.evaluate.config import Section
from mrp.evaluate.contract import Pause, Result, Setting
from mrp.evaluate.gathering import evaluating
from mrp.evaluate.readout import features_of, objective_of
from mrp.methodkit import Objective
from mrp.step import Prepare

_GAP = 2  # pixels between images
_LEAST = 96  # pixels that the longer side of a small image is magnified to, about
_GREY = 0.5  # where the model sees nothing


class Config(Section):
    """Options of the reconstructions."""

    # How many test images are drawn, the same ones every time; training images where there is no test data.
    images: int = Field(4, ge=1, le=64)


class Evaluator(contract.Evaluator):
    """Draws a row per image: the input, what the model sees of it, that with what it predicts, and all it predicts.

    Every process draws the same, since a sharded model is whole only where all take part; the first one's counts.
    """

    values = ("error",)

    def __init__(self, config: Config, setting: Setting) -> None:
        _refuse_without_pixels(setting.paints)
        source = setting.test_or_train
        count = min(config.images, len(source))
        self._device = setting.processes.device
        self._prepare = Prepare(setting.data.mean, setting.data.std).to(self._device)
        self._loader = EvalLoader(fixed_sample(source, count), View(setting.data, train=False), batch=count)

    def measure(self, model: nn.Module, step: int, pause: Pause) -> Result:
        """Returns the mean squared error at hidden pixels, in units of the pixels' range, and the picture."""
        objective = objective_of(model)
        _refuse_without_pixels(objective.paints)
        pause()
        (batch,) = self._loader
        batch = batch.to(self._device)
        with evaluating(model):
            painted = features_of(model, batch, _paint)
            whole = self._prepare.undo(self._prepare(batch.images))
        pixels = self._prepare.undo(painted[:, : whole[0].numel()].reshape(whole.shape))
        mask, patch = painted[:, whole[0].numel() :] > 0, objective.backbone.patch_embed.patch_size
        hidden = of_pixels(mask, patch, whole.shape).expand(whole.shape)
        error = ((pixels - whole) ** 2).masked_select(hidden).mean()
        columns = [whole, whole.masked_fill(hidden, _GREY), torch.where(hidden, pixels, whole), pixels]
        return Result({"error": float(error)}, pictures={"images": _page(columns)})


def _refuse_without_pixels(paints: bool | None) -> None:
    if paints is False:
        raise ConfigError("reconstructions: this method predicts no pixels, so there is nothing to draw; leave it out")


def _paint(objective: Objective, batch: Batch) -> Tensor:
    """Returns one row per image: its predicted pixels, and which patches were hidden."""
    found = objective.reconstruct(batch)
    return torch.cat([found.images.flatten(1).float(), found.mask.float()], dim=1)


def _page(columns: list[Tensor]) -> NDArray[Any]:
    """Returns the images side by side on white, as uint8 with three colours; other than three channels give grey."""
    cells = torch.stack([three_channels(column) for column in columns], dim=1)  # B columns 3 H W
    times = max(1, round(_LEAST / max(cells.shape[3:])))
    cells = cells.repeat_interleave(times, 3).repeat_interleave(times, 4)
    cells = nn.functional.pad(cells, (0, _GAP, 0, _GAP), value=1.0)
    page = cells.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)  # B H, columns W, C
    return (page[:-_GAP, :-_GAP].clamp(0, 1) * 255).round().cpu().numpy().astype(np.uint8)
