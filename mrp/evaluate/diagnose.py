"""How a run's features fare while it trains, on the same held-out images every time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from mrp.batch import Batch, Output
from mrp.data.augment import View
from mrp.data.decode import Pixels
from mrp.data.loader import EvalLoader
from mrp.data.order import Ints, keys, permute
from mrp.data.sources import Source
from mrp.evaluate import geometry, knn
from mrp.evaluate.features import evaluating
from mrp.processes.join import Accelerator

_LARGEST_BATCH = 128
_NEIGHBOURS = 10
_SHARDS = 4  # that samples are taken from, if these hold enough: each may have to be fetched whole
_SAMPLING = 0x73616D70  # decides which samples are looked at, in every run


@dataclass(frozen=True)
class Sampled:
    """A few samples of a source, the same every time.

    They are from all over it, for in a folder the classes lie in a row, or from a few shards where it lies in shards.
    """

    source: Source
    count: int

    @property
    def identity(self) -> str:
        """That of the whole, and how much of it."""
        return f"{self.source.identity}:{self.count}"

    @property
    def classes(self) -> tuple[str, ...]:
        """Those of the whole."""
        return self.source.classes

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> tuple[bytes | Pixels, int]:
        """A sample of the whole."""
        return self.source.read(self._place(index))

    def where(self, index: int) -> str:
        """Its name in the whole."""
        return self.source.where(self._place(index))

    def instead(self, index: int) -> int:
        """The number here of the sample after this one in the whole: numbers from `count` on are those of the whole."""
        return self.count + (self._place(index) + 1) % len(self.source)

    def _place(self, index: int) -> int:
        return int(self._places[index]) if index < self.count else index - self.count

    @cached_property
    def _places(self) -> Ints:
        """Where in the whole the samples are."""
        blocks = self.source.blocks
        if not len(blocks):
            return permute(np.arange(self.count), len(self.source), _SAMPLING)
        shards = permute(np.arange(len(blocks)), len(blocks), _SAMPLING)
        held = np.cumsum(blocks[shards])
        needed = int(np.searchsorted(held, min(self.count, int(held[-1])))) + 1
        filled = int(np.searchsorted(np.cumsum(blocks[shards] > 0), min(_SHARDS, int((blocks > 0).sum())))) + 1
        firsts = np.cumsum(blocks) - blocks
        ranges = [np.arange(firsts[n], firsts[n] + blocks[n]) for n in shards[: max(needed, filled)].tolist()]
        pool = np.concatenate(ranges)
        return pool[permute(np.arange(self.count), len(pool), _SAMPLING)]


class Diagnosis:
    """Measures the wrapped model on one fixed set; every process takes its part and all get the result."""

    def __init__(self, source: Source, view: View, images: int, accelerator: Accelerator) -> None:
        world = accelerator.num_processes
        share = max(1, min(images, len(source)) // world)
        batch = next(size for size in range(min(_LARGEST_BATCH, share), 0, -1) if share % size == 0)  # no filler rows
        self._accelerator = accelerator
        self._labelled = bool(source.classes)
        sampled = Sampled(source, share * world)
        self._loader = EvalLoader(
            sampled, view, batch=batch, rank=accelerator.process_index, world=world, workers=0, pin_memory=False,
            instead=sampled.instead,
        )  # fmt: skip

    def measure(self, model: nn.Module, between: Callable[[], None] = lambda: None) -> tuple[dict[str, float], Tensor]:
        """The numbers, and the features (of whole images) that they were read from; `between` batches may raise."""
        rows, scalars = [], []
        with evaluating(model):
            for batch in self._loader:
                between()
                local, metrics = _rows(model, batch.to(self._accelerator.device))
                rows.append([self._accelerator.gather(tensor).cpu() for tensor in local])
                scalars.append(self._accelerator.reduce(metrics, "mean").cpu())
        whole, first, second, labels = (torch.cat(column) for column in zip(*rows, strict=True))
        loss, reconstruction, variance = torch.stack(scalars).mean(0).tolist()
        values = {
            "rank_me": geometry.rank_me(whole),
            "participation_ratio": geometry.participation_ratio(whole),
            "feature_variance": geometry.feature_variance(whole),
            "spread": _spread(whole),
            "uniformity": geometry.gram_uniformity(first),
            "log_uniformity": geometry.uniformity(first),
            "alignment": geometry.alignment(first, second),
            "loss": loss,
        }
        if variance > 0:
            values["loss_over_variance"] = reconstruction / variance
        if self._labelled:
            values["knn"] = _knn(whole, labels)
        return {f"features/{name}": value for name, value in values.items()}, whole


def _rows(model: nn.Module, batch: Batch) -> tuple[list[Tensor], Tensor]:
    """Features of the whole images and under two masks each; the loss, its part on patches, their target's variance."""
    first: Output = model(batch)
    other = torch.from_numpy(keys(1, 0, batch.keys.cpu().numpy())).to(batch.keys.device)
    second: Output = model(replace(batch, keys=other))
    whole: Output = model(batch, features=True)
    assert whole.features is not None
    masked = [output.features if output.features is not None else whole.features for output in (first, second)]
    labels = torch.zeros_like(batch.keys) if batch.labels is None else batch.labels
    reconstruction = first.metrics.get("reconstruction", first.loss)  # without what keeps features apart, and the like
    variance = first.metrics.get("target_variance", torch.zeros_like(first.loss))
    metrics = torch.stack([value.float() for value in (first.loss, reconstruction, variance)])
    return [whole.features.float(), *(features.float() for features in masked), labels], metrics


def _spread(features: Tensor) -> float:
    """The variance over images as a share of the mean square."""
    features = features.double()
    return float((features - features.mean(0)).square().sum() / features.square().sum().clamp_min(1e-300))


def _knn(features: Tensor, labels: Tensor) -> float:
    """The share of one half of the images that its neighbours in the other half name rightly."""
    keys_, queries = features[::2], features[1::2]
    (found,) = knn.predict(keys_, labels[::2], queries, [_NEIGHBOURS])
    return float((found == labels[1::2]).double().mean())
