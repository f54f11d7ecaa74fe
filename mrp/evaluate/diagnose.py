"""How a run's features fare while it trains, on the same held-out images every time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from mrp.batch import Batch, Output
from mrp.data.augment import View
from mrp.data.loader import EvalLoader
from mrp.data.order import keys
from mrp.data.source import Source
from mrp.data.subset import fixed_sample
from mrp.evaluate import geometry, knn
from mrp.evaluate.features import evaluating
from mrp.processes.join import Accelerator

_LARGEST_BATCH = 128
_NEIGHBOURS = 10


class Diagnosis:
    """Measures the wrapped model on one fixed set; every process takes its part and all get the result."""

    def __init__(self, source: Source, view: View, images: int, accelerator: Accelerator) -> None:
        world = accelerator.num_processes
        share = max(1, min(images, len(source)) // world)
        batch = next(size for size in range(min(_LARGEST_BATCH, share), 0, -1) if share % size == 0)  # no filler rows
        self._accelerator = accelerator
        self._labelled = bool(source.classes)
        sample = fixed_sample(source, share * world)
        self._loader = EvalLoader(
            sample, view, batch=batch, rank=accelerator.process_index, world=world, workers=0, pin_memory=False,
            replacement=sample.next_in_source,
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
