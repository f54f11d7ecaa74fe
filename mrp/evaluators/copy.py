"""Copy detection: changed copies of images are looked up among the originals and distractors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import nn

from mrp.config import ConfigError
from mrp.data.config import Crop, RandAugment
from mrp.data.subset import Subset, fixed_sample
from mrp.evaluate import contract, ranking
from mrp.evaluate.config import Section
from mrp.evaluate.contract import Pause, Result, Setting
from mrp.evaluate.measures import Number, share_of, told
from mrp.evaluate.readout import Readout
from mrp.evaluate.views import Cropped

_CANDIDATES = 100  # gallery images per query that are ranked; a copy whose original is not among them is never found
_LEAST = 4  # images: a copied one, one whose copy has no original, and two more to mistake for it


class Config(Section):
    """Options of copy detection."""

    # How many copies of gallery images are looked up, and as many of images outside the gallery.
    copies: int = Field(1000, ge=1)
    distractors: int = Field(10_000, ge=0)  # how many other images the gallery holds
    scale: tuple[float, float] = (0.3, 1.0)  # the share of the image's area that a copy keeps
    jitter: float = Field(0.4, ge=0, le=1)  # brightness, contrast and saturation of a copy vary by this share
    magnitude: float = Field(9, ge=0, le=10)  # how strong two more changes by RandAugment are


class Evaluator(contract.Evaluator):
    """Looks the copies up by cosine; half of them have no original in the gallery, and should score low.

    Which images are copied, and how, follows from the data alone, so every model meets the same copies.
    """

    values = "micro_ap", "recall1"

    def __init__(self, config: Config, setting: Setting) -> None:
        self._setting = setting
        source = setting.test_or_train
        size = min(len(source), 2 * config.copies + config.distractors)
        if size < _LEAST:
            raise ConfigError(f"copy: needs {_LEAST} images or more, and there are {size}; give more data")
        self._count = min(config.copies, size // _LEAST)
        chosen = fixed_sample(source, size).chosen
        self._gallery = Subset(source, np.sort(chosen[self._count :]))
        copied = np.concatenate([chosen[self._count : 2 * self._count], chosen[: self._count]])
        self._copies = Subset(source, copied)
        self._originals = torch.from_numpy(np.searchsorted(self._gallery.chosen, copied[: self._count]))
        crop: dict[str, Any] = {"scale": config.scale, "flip": True}
        if setting.data.num_channels in (1, 3):  # colours of other images cannot be changed
            crop |= {"jitter": config.jitter, "rand": RandAugment(magnitude=config.magnitude)}
        self._view = Cropped(setting.data, Crop.model_validate(crop))

    def measure(self, model: nn.Module, step: int, pause: Pause) -> Result:
        """Measures the micro average precision over all copies, and how often an original is the nearest image."""
        readout, device = Readout.own(model), self._setting.processes.device
        gallery = self._setting.features(self._gallery, model, readout, pause)
        copies = self._setting.features(self._copies, model, readout, pause, view=self._view)
        if gallery is None or copies is None:
            return Result()
        (block,) = readout.blocks
        rows, count = ranking.unit(gallery.columns[block], device), self._count
        candidates = min(_CANDIDATES, len(rows))
        found = [
            scores.topk(candidates, dim=1)
            for _, scores in ranking.cosines(ranking.unit(copies.columns[block], device), rows)
        ]
        scores, places = (torch.cat([one[part] for one in found]).cpu() for part in (0, 1))
        relevant = torch.zeros_like(places, dtype=torch.bool)
        relevant[:count] = places[:count] == self._originals[:, None]
        precision = ranking.pooled_precision(scores, relevant, count)
        values, details = told({"micro_ap": Number(precision), "recall1": share_of(relevant[:count, 0])})
        return Result(values, details | {"copies": count, "gallery": len(gallery)})
