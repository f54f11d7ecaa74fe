"""How good a run is on its test data while it trains: every image counted exactly once, whoever looks at it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mrp.batch import Batch, Output
from mrp.config import Duration, Node
from mrp.data.augment import View
from mrp.data.loader import EvalLoader
from mrp.data.source import Source
from mrp.evaluate.features import evaluating
from mrp.evaluate.interval import wilson
from mrp.processes.join import Accelerator

VALIDATION = "validation.json"
_SUMMED = {"loss": "loss", "correct": "accuracy", "correct5": "accuracy5"}  # of a sample, and what its mean is called
_MOST_CLASSES = 4096  # whose confusions are counted: a table of 128 MiB
_LARGEST_BATCH = 256


class Config(Node):
    """`validation:`, how often a run is judged on `data.test` while it trains; never, unless this says so."""

    every: Duration | None = None


@dataclass(frozen=True)
class Verdict:
    """What was counted over the whole test set."""

    images: int
    means: dict[str, float]  # loss, accuracy, accuracy5: those that the objective tells
    confusion: Tensor | None  # labels, answers

    def metrics(self, prefix: str) -> dict[str, float]:
        """For the metrics file."""
        return {f"{prefix}/{name}": value for name, value in self.means.items()}

    def report(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """With intervals, class by class."""
        found: dict[str, Any] = {"images": self.images} | self.means
        for name in self.means.keys() & {"accuracy", "accuracy5"}:
            found[name] = wilson(round(self.means[name] * self.images), self.images)._asdict()
        if self.confusion is not None:
            counts, hits = self.confusion.sum(1).tolist(), self.confusion.diagonal().tolist()
            found["classes"] = [
                {"name": name, "images": count, "accuracy": hit / count if count else None}
                for name, count, hit in zip(classes, counts, hits, strict=True)
            ]
            found["confusion"] = self.confusion.tolist()
        return found


class Validation:
    """Goes through the test data with the wrapped model; every process takes its part and all get the result."""

    def __init__(self, source: Source, view: View, micro_batch: int, workers: int, accelerator: Accelerator) -> None:
        world = accelerator.num_processes
        share = -(-len(source) // world)
        self._accelerator = accelerator
        self._classes = source.classes
        self._loader = EvalLoader(
            source, view, batch=min(micro_batch, share, _LARGEST_BATCH), rank=accelerator.process_index, world=world,
            workers=workers, pin_memory=accelerator.device.type == "cuda",
        )  # fmt: skip

    def measure(self, model: nn.Module, poll: Callable[[], None] = lambda: None) -> Verdict:
        """Every image once; `poll` is called between batches, and may leave by raising."""
        number = len(self._classes)
        table = number * number if 0 < number <= _MOST_CLASSES else 0
        totals: dict[str, Tensor] = {}
        with evaluating(model):
            for batch in self._loader:
                poll()
                found = _counts(model, batch.to(self._accelerator.device, non_blocking=True), number if table else 0)
                totals = {name: totals[name] + value if totals else value for name, value in found.items()}
        whole = {name: self._accelerator.reduce(value, "sum").cpu() for name, value in totals.items()}
        images, confusion = int(whole.pop("images")), whole.pop("confusion", None)
        means = {_SUMMED[name]: float(total) / max(1, images) for name, total in whole.items()}
        return Verdict(images, means, None if confusion is None else confusion.view(number, number))

    def write(self, folder: Path, step: int, verdicts: Mapping[str, Verdict]) -> None:
        """The last verdicts, in full, into the run's folder."""
        found = {name: verdict.report(self._classes) for name, verdict in verdicts.items()}
        temporary = folder / f"{VALIDATION}.tmp"
        temporary.write_text(json.dumps({"step": step} | found), encoding="utf-8")
        os.replace(temporary, folder / VALIDATION)


def _counts(model: nn.Module, batch: Batch, classes: int) -> dict[str, Tensor]:
    """Sums over one batch without its filler rows; in float64, so that counts are exact."""
    output: Output = model(batch)
    valid = torch.ones_like(batch.keys, dtype=torch.bool) if batch.valid is None else batch.valid
    found = {
        name: torch.where(valid, value, 0).double().sum()
        for name, value in output.per_sample.items()
        if name in _SUMMED
    }
    found["images"] = valid.sum()
    if classes and batch.labels is not None and "answer" in output.per_sample:
        cells = (batch.labels * classes + output.per_sample["answer"])[valid]
        found["confusion"] = torch.bincount(cells, minlength=classes * classes)
    return found
