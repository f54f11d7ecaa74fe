"""Labelled images for an experiment, from any data that a run could be trained on."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mrp.build import open_source
from mrp.config import ConfigError
from mrp.data.augment import View
from mrp.data.config import CacheConfig, Config
from mrp.data.loader import EvalLoader
from mrp.data.open import open_data
from mrp.data.source import Source
from mrp.data.storage.cache import Cache
from mrp.data.subset import fixed_sample
from mrp.run import Run

BATCH = 250


def labelled(data: str, size: int, count: int) -> tuple[Tensor, Tensor]:
    """Returns images (N C H W, uint8) and labels: the same ones every time, spread over the whole data set."""
    config = Config(train=data, size=size)
    return read(open_data(config, "train", Cache(CacheConfig())), config, data, count)


def held_out(run: Run) -> tuple[Source, str]:
    """Returns a run's test data and what they are called; its training data if it has no test data."""
    part: Literal["test", "train"] = "test" if run.data.test else "train"
    return open_source(run, part), f"data.{part}"


def read(source: Source, config: Config, name: str, count: int) -> tuple[Tensor, Tensor]:
    """Returns the same from a source that is open, with the images cropped as in evaluation."""
    if not source.classes:
        raise ConfigError(f"{name}: has no labels, and this experiment is about classes; give labelled data")
    sample = fixed_sample(source, min(count, len(source)))
    size, view = min(BATCH, len(sample)), View(config, train=False)
    loader = EvalLoader(sample, view, batch=size, replacement=sample.next_in_source)
    images, labels = [], []
    for batch in loader:
        assert batch.labels is not None
        valid = slice(None) if batch.valid is None else batch.valid
        images.append(batch.images[valid])
        labels.append(batch.labels[valid])
    return torch.cat(images), torch.cat(labels)
