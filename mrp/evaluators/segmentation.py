"""Semantic segmentation by a linear head on frozen patch tokens: mean intersection over union, pixel accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from mrp import progress
from mrp.config import ConfigError
from mrp.evaluate import pairs as files
from mrp.evaluate.batches import minibatches
from mrp.evaluate.config import Masks, Section
from mrp.evaluate.contract import Result
from mrp.evaluate.dense import PER_PATCH, Dense, Learned, Tokens, best_class, bootstrap, chunks
from mrp.evaluate.heads import Schedule, warmup_cosine
from mrp.evaluate.measures import Number, told
from mrp.evaluate.pairs import Pair, read_mask, sampled
from mrp.evaluate.table import Table

LRS = (3e-4, 1e-3, 3e-3, 1e-2)
_DECAY, _SCHEDULE = 1e-4, Schedule(batches=(16, 16), most=500)
_MOST_CLASSES = 4096

Head = tuple[Tensor, Tensor]  # weight (D classes) and bias (1 classes)


class Config(Section):
    """Options of segmentation."""

    train: Masks
    test: Masks
    # The number of classes; null: up to the largest number in a training mask.
    classes: int | None = Field(None, ge=2, le=_MOST_CLASSES)
    ignore: tuple[int, ...] = (255,)  # numbers in masks that stand for no class
    # The most images of each split; null: as many as have 8 GiB of patch tokens.
    images: int | None = Field(None, ge=2)

    def content(self) -> str:
        """Returns a hash of all images and masks."""
        return files.content([self.train, self.test], files.MASKS)


class Evaluator(Dense[Head]):
    """Chooses the rate on held-out training images, trains on all of them, and counts the pixels of test images."""

    values = "mean_iou", "pixel_accuracy", "mean_accuracy"
    endings, settings, higher_is_better = files.MASKS, LRS, True

    def fit(self, tokens: Tokens, targets: Any, rows: NDArray[np.int64], settings: Sequence[float]) -> Sequence[Head]:
        """Trains heads with every rate on the same minibatches, by the cross-entropy of all labelled points."""
        labels, classes = targets
        weight = torch.zeros(len(settings), tokens.mean.shape[0], classes, device=tokens.device)
        bias = torch.zeros(len(settings), 1, classes, device=tokens.device)
        heads = [(weight[i].requires_grad_(), bias[i].requires_grad_()) for i in range(len(settings))]
        groups: list[dict[str, Any]] = [{"params": head, "lr": lr} for head, lr in zip(heads, settings, strict=True)]
        optimizer = torch.optim.AdamW(groups, weight_decay=_DECAY)
        batch, per_epoch, epochs = _SCHEDULE.of(len(rows))
        steps, batches = per_epoch * epochs, minibatches(rows, batch, per_epoch, epochs, seed=0)
        for number, chosen in enumerate(progress.over(batches, "steps of heads", steps)):
            inputs = tokens.rows(chosen).flatten(0, 1)
            points = labels[torch.from_numpy(chosen)].flatten(0, 1).long().to(tokens.device)
            known = points >= 0
            shares = inputs.new_zeros(len(inputs), classes).scatter_add_(1, points.clamp_min(0), known.float())
            for group, lr in zip(optimizer.param_groups, settings, strict=True):
                group["lr"] = lr * warmup_cosine(number, steps, _SCHEDULE.warmup)
            losses = [-(shares * (inputs @ w + b).log_softmax(1)).sum() for w, b in heads]
            optimizer.zero_grad()
            (torch.stack(losses).sum() / known.sum().clamp_min(1)).backward()
            optimizer.step()
        return [(w.detach(), b.detach()) for w, b in heads]

    def reached(self, tokens: Tokens, pairs: Sequence[Pair], rows: NDArray[np.int64], head: Head) -> float:
        """Returns the mean intersection over union."""
        return float(_mean_iou(self._counts(tokens, pairs, rows, head).sum(0)))

    def count(self, learned: Learned[Head], table: Table, pairs: Sequence[Pair]) -> Result:
        """Counts every pixel of the test masks that has a class."""
        tokens, rows = learned.tokens._replace(table=table), np.arange(len(table))
        counts = self._counts(tokens, pairs, rows, learned.head)
        if not counts.sum():
            raise ConfigError("segmentation.test: no pixel of its masks has a class; look at segmentation.ignore")
        total, by_image = counts.sum(0), counts.reshape(len(counts), -1).astype(np.float64)
        statistics = {"mean_iou": _mean_iou, "pixel_accuracy": _pixel_accuracy, "mean_accuracy": _mean_accuracy}
        numbers = {}
        for name, of in statistics.items():
            low, high = bootstrap(by_image, lambda sums, of=of: of(sums.reshape(len(sums), 3, -1)))  # type: ignore[misc]
            numbers[name] = Number(float(of(total)), low, high)
        values, details = told(numbers, ("mean_iou", "pixel_accuracy"))
        hits, true, answered = total
        with np.errstate(invalid="ignore"):
            shares = hits / (true + answered - hits), hits / true
        by_class = [
            {"class": number, "pixels": int(true[number]), "iou": _known(iou), "accuracy": _known(accuracy)}
            for number, (iou, accuracy) in enumerate(zip(*shares, strict=True))
        ]
        details |= {"classes": by_class, "lr": learned.setting, **learned.details(), "num_test": len(table)}
        return Result(values, details)

    def targets(self, pairs: Sequence[Pair], shape: tuple[int, int]) -> tuple[Tensor, int]:
        """Returns labels at points of every patch (images, patches, points), and the number of classes."""
        ignored, given = self.config.ignore, self.config.classes
        largest, parts = -1, []
        for pair in pairs:
            mask = read_mask(pair, ignored, given or _MOST_CLASSES)
            largest = max(largest, int(mask.max(initial=-1)))
            parts.append(sampled(mask, shape, PER_PATCH).astype(np.int16))
        if largest < 1 and given is None:
            found = "only the class 0" if largest == 0 else "no pixel with a class"
            raise ConfigError(f"segmentation.train: {found} in its masks; look at segmentation.ignore, or set classes")
        return torch.from_numpy(np.stack(parts)), given or largest + 1

    def _counts(self, tokens: Tokens, pairs: Sequence[Pair], rows: NDArray[np.int64], head: Head) -> NDArray[np.int64]:
        """Returns for each image the pixels of each class that were right, that have it, and that were given it."""
        (weight, bias), counts = head, []
        classes = weight.shape[1]
        for part in chunks(rows):
            scores = (tokens.rows(part) @ weight + bias).unflatten(1, tokens.grid).permute(0, 3, 1, 2)
            for row, image in zip(part, scores, strict=True):
                mask = torch.from_numpy(read_mask(pairs[row], self.config.ignore, classes)).to(self.device)
                counted = mask >= 0
                true, answers = mask[counted].long(), best_class(image, (mask.shape[0], mask.shape[1]))[counted]
                kinds = (true[true == answers], true, answers)
                counts.append(torch.stack([torch.bincount(kind, minlength=classes) for kind in kinds]).cpu().numpy())
        return np.stack(counts)


def _mean_iou(counts: NDArray[Any]) -> Any:
    """Returns the mean over the classes that occur in masks or answers; counts are (..., 3, classes)."""
    hits, true, answered = np.moveaxis(counts, -2, 0)
    return _mean_ratio(hits, true + answered - hits)


def _mean_accuracy(counts: NDArray[Any]) -> Any:
    """Returns the mean over the classes that occur in masks of the share of their pixels that was right."""
    hits, true, _ = np.moveaxis(counts, -2, 0)
    return _mean_ratio(hits, true)


def _pixel_accuracy(counts: NDArray[Any]) -> Any:
    hits, true, _ = np.moveaxis(counts, -2, 0)
    return hits.sum(-1) / np.maximum(1, true.sum(-1))


def _mean_ratio(part: NDArray[Any], whole: NDArray[Any]) -> Any:
    shares = part / np.maximum(1, whole)
    return (shares * (whole > 0)).sum(-1) / np.maximum(1, (whole > 0).sum(-1))


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
