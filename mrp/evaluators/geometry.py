"""Numbers without labels that foretell a probe's accuracy: ranks, LiDAR, alpha-ReQ, alignment and uniformity."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from mrp.config import ConfigError
from mrp.data.config import Crop
from mrp.data.order import Ints
from mrp.data.subset import Subset, evenly_spaced
from mrp.evaluate import contract, geometry
from mrp.evaluate.config import Section
from mrp.evaluate.contract import Pause, Result, Setting
from mrp.evaluate.measures import Number, told
from mrp.evaluate.readout import Readout
from mrp.evaluate.statistics import pseudo_values
from mrp.evaluate.views import Cropped


class Config(Section):
    """Options of the numbers that need no labels."""

    # How many test images are measured, evenly spaced; training images where there is no test data.
    images: int = Field(1000, ge=2)
    views: int = Field(10, ge=2)  # random crops of each image, for LiDAR and alignment
    scale: tuple[float, float] = (0.2, 1.0)  # share of the image's area that a crop covers
    # Into how many groups the images are divided, each of which is left out once, so that two models can be compared
    # with an interval; 0: no interval.
    groups: int = Field(0, ge=0)


class Evaluator(contract.Evaluator):
    """Reads the features of whole images and of crops; every process takes its part, and the first one computes.

    Crops are the same for every model, whatever it was trained with; they are mirrored where the run's data may be.
    """

    values = (
        "rank_me", "effective_rank", "participation_ratio", "alpha_req", "lidar", "alignment", "log_uniformity",
    )  # fmt: skip

    def __init__(self, config: Config, setting: Setting) -> None:
        self._config, self._setting = config, setting
        source = setting.test_or_train
        if len(source) < 2:
            raise ConfigError(f"geometry: needs two images or more, and there are {len(source)}; give more data")
        self._images = evenly_spaced(source, min(config.images, len(source)))
        crop = Crop.model_validate({"scale": config.scale, "flip": setting.data.mirrors})
        self._view = Cropped(setting.data, crop)

    def measure(self, model: nn.Module, step: int, pause: Pause) -> Result:
        """Measures the features that the backbone itself gives."""
        readout, views = Readout.own(model), self._config.views
        whole = self._setting.features(self._images, model, readout, pause)
        # All images, then all of them again: each place has a key, and so a crop, of its own.
        repeated = Subset(self._images.source, np.tile(self._images.chosen, views))
        crops = self._setting.features(repeated, model, readout, pause, view=self._view)
        if whole is None or crops is None:
            return Result()
        features, cropped = (table.rows(readout.blocks, slice(None)) for table in (whole, crops))
        cropped = cropped.unflatten(0, (views, -1)).transpose(0, 1)
        values = {
            "rank_me": geometry.rank_me(features),
            "effective_rank": geometry.effective_rank(features),
            "participation_ratio": geometry.participation_ratio(features),
            "alpha_req": geometry.alpha_req(features),
            "lidar": geometry.lidar(cropped),
            "alignment": geometry.alignment(cropped[:, 0], cropped[:, 1]),
            "log_uniformity": geometry.uniformity(features),
        }
        draws = self._draws(features, cropped, whole.group_numbers)
        numbers = {
            name: Number(value, share=False, better="", draws=draws.get(name, ())) for name, value in values.items()
        }
        _, details = told(numbers)
        return Result(values, details | {"images": len(whole), "views": views})

    def _draws(self, features: Tensor, cropped: Tensor, of_image: Ints | None) -> dict[str, tuple[float, ...]]:
        """Returns for the numbers that are quick to compute what parts of the images come to."""
        parts = min(self._config.groups, len(features) // 2)
        if parts < 2:
            return {}
        statistics: dict[str, Callable[[Ints], float]] = {
            "rank_me": lambda rows: geometry.rank_me(features[rows]),
            "effective_rank": lambda rows: geometry.effective_rank(features[rows]),
            "alignment": lambda rows: geometry.alignment(cropped[rows, 0], cropped[rows, 1]),
            "log_uniformity": lambda rows: geometry.uniformity(features[rows]),
        }
        return {name: pseudo_values(len(features), one, parts, of_image) for name, one in statistics.items()}
