"""Labelled images for an experiment, from whatever a run could be trained on."""

from __future__ import annotations

import torch
from torch import Tensor

from mrp.config import ConfigError
from mrp.data.augment import View
from mrp.data.config import CacheConfig, Config
from mrp.data.loader import EvalLoader
from mrp.data.open import open_data
from mrp.data.source import Source
from mrp.data.storage.cache import Cache
from mrp.data.subset import fixed_sample

_BATCH = 250


def labelled(data: str, size: int, count: int) -> tuple[Tensor, Tensor]:
    """So many images (N C H W, uint8) and their labels: the same ones every time, from all over the data."""
    config = Config(train=data, size=size)
    return read(open_data(config, "train", Cache(CacheConfig())), config, data, count)


def read(source: Source, config: Config, name: str, count: int) -> tuple[Tensor, Tensor]:
    """The same of a source that is open, as evaluation sees it."""
    if not source.classes:
        raise ConfigError(f"{name}: has no labels, and this experiment is about classes; give labelled data")
    sample = fixed_sample(source, min(count, len(source)))
    loader = EvalLoader(
        sample, View(config, train=False), batch=min(_BATCH, len(sample)), rank=0, world=1, workers=0,
        pin_memory=False, replacement=sample.next_in_source,
    )  # fmt: skip
    batches = [(batch.images, batch.labels, batch.valid) for batch in loader]
    images, labels = [], []
    for pixels, names, valid in batches:
        assert names is not None
        kept = slice(None) if valid is None else valid
        images.append(pixels[kept])
        labels.append(names[kept])
    return torch.cat(images), torch.cat(labels)
