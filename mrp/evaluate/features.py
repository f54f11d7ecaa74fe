"""Frozen features of a whole data set, in its order, on every process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mrp.batch import Batch, Output
from mrp.config import ConfigError


@dataclass(frozen=True, slots=True)
class Features:
    """What a backbone says of every sample, in the order of the data set, on the CPU."""

    features: Tensor  # N D float32
    labels: Tensor  # N int64; -1 where the data has no labels
    keys: Tensor  # N int64


def extract(
    step: nn.Module, loader: Iterable[Batch], accelerator: Accelerator, num_samples: int | None = None
) -> Features:
    """Run the wrapped module over a loader that gives each rank one contiguous slice; all ranks get all rows."""
    parts: list[list[Tensor]] = []
    with evaluating(step):
        for batch in loader:
            # Gathered a batch at a time, so that no device ever holds the features of the whole data set.
            rows = accelerator.gather(_rows(step, batch.to(accelerator.device, non_blocking=True)))
            parts.append([x.cpu().unflatten(0, (accelerator.num_processes, -1)) for x in rows])
    if not parts:
        raise ConfigError("the data to extract features from is empty; give at least one sample")
    # Batches lie one after another within a rank, ranks one after another.
    features, labels, keys, valid = (torch.cat(column, dim=1).flatten(0, 1) for column in zip(*parts, strict=True))
    found = Features(features[valid], labels[valid], keys[valid])
    _check(found, num_samples)
    return found


def _rows(step: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    output: Output = step(batch, features=True)
    assert output.features is not None
    labels = torch.full_like(batch.keys, -1) if batch.labels is None else batch.labels
    valid = torch.ones_like(batch.keys, dtype=torch.bool) if batch.valid is None else batch.valid
    return output.features.float(), labels, batch.keys, valid


def _check(found: Features, num_samples: int | None) -> None:
    count = len(found.keys)
    assert num_samples is None or count == num_samples, f"{count} rows for {num_samples} samples"
    assert len(torch.unique(found.keys)) == count, "a sample was seen twice"
    broken = int((~found.features.isfinite().all(dim=1)).sum())
    if broken:
        raise ConfigError(f"the features of {broken} of {count} samples are not finite; take an earlier checkpoint")


@contextmanager
def evaluating(step: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every submodule is in the mode in which it was found."""
    modes = [(module, module.training) for module in step.modules()]
    step.eval()
    try:
        with torch.no_grad():  # not inference_mode: sharded parameters cannot be gathered under it
            yield
    finally:
        for module, training in modes:
            module.training = training
