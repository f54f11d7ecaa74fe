"""Settings for evaluators in tests: digits, one process or a pretended one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from mrp.data.config import Config
from mrp.data.open import open_source
from mrp.data.source import Arrays, Source
from mrp.evaluate.contract import Setting, Training
from mrp.evaluate.tables import Tables

T = TypeVar("T")


class Alone:
    """A rank without the others: what it would reduce is noted."""

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.process_index, self.num_processes, self.device = rank, world, torch.device("cpu")
        self.is_main_process = rank == 0
        self.noted: list[torch.Tensor] = []

    def reduce(self, tensor: torch.Tensor, how: str) -> torch.Tensor:
        assert how in ("sum", "mean")
        self.noted.append(tensor)
        return tensor

    def gather(self, tensors: Any) -> Any:
        return tensors


def some(split: Any, count: int) -> Arrays:
    """Returns the first digits of a split."""
    source = open_source("digits", split)
    assert isinstance(source, Arrays)
    return Arrays(split, source.images[:count], source.labels[:count], source.classes)


def together(world: int, measure: Callable[[Any], T]) -> T:
    """Returns what the first of several pretended processes measures, to which comes what all gather and reduce."""
    given, others = list[list[Any]](), list[Alone]()

    class Other(Alone):
        def gather(self, tensors: Any) -> Any:
            given[-1].append(tensors)
            return tuple(torch.cat([tensor] * world) for tensor in tensors)

    class First(Alone):
        def gather(self, tensors: Any) -> Any:
            rest = [batches.pop(0) for batches in given]
            return tuple(torch.cat(parts) for parts in zip(tensors, *rest, strict=True))

        def reduce(self, tensor: torch.Tensor, how: str) -> torch.Tensor:
            total = torch.stack([tensor, *(other.noted.pop(0) for other in others)]).sum(0)
            return total if how == "sum" else total / world

    for rank in range(1, world):
        given.append([])
        others.append(Other(rank, world))
        measure(others[-1])
    return measure(First(0, world))


def setting(
    data: Config, train: Source, test: Source | None, processes: Any = None, batch: int = 8, workers: int = 0,
    folder: Path | None = None, training: Training | None = None,
) -> Setting:  # fmt: skip
    folder = folder or Path(tempfile.mkdtemp())
    return Setting(
        data, train, test, processes or Alone(), batch, workers, folder, Tables(folder / "features"), training=training
    )
