"""Many linear classifiers trained at once on columns of features, as a few batched products per step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mrp import progress
from mrp.data.order import permute
from mrp.evaluate.table import Table
from mrp.optim.schedules import half_cosine

_BETAS, _EPS = (0.9, 0.999), 1e-8
_CHUNK = 4096  # rows that are read at once where order does not matter
_FOR_AXES = 16384  # rows from which the axes are found: they only set the pace


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long heads are trained: whole epochs, more of them where there are few samples."""

    batches: tuple[int, int] = (256, 1024)  # the least and the most; in between, a 64th of the samples
    epochs: int = 10  # at least
    steps: int = 500  # at least, but in at most
    most: int = 100  # epochs
    warmup: float = 0.05  # of all steps

    def of(self, count: int) -> tuple[int, int, int]:
        """Returns the batch, the steps per epoch and the epochs for a training set of this size."""
        batch = min(count, max(self.batches[0], min(self.batches[1], count // 64)))
        per_epoch = count // batch
        return batch, per_epoch, min(self.most, max(self.epochs, -(-self.steps // per_epoch)))


class Scale:
    """Standardises each column, as a BatchNorm without weights does in the end when nothing before it changes."""

    def __init__(self, mean: Mapping[str, Tensor], factor: Mapping[str, Tensor]) -> None:
        self.mean, self.factor = mean, factor

    @classmethod
    def of(cls, table: Table, names: Iterable[str], rows: NDArray[np.int64], device: torch.device) -> Scale:
        """Takes the mean and deviation of some rows; a column that is constant up to rounding becomes zero."""
        mean, factor = {}, {}
        for name in names:
            first = table.rows([name], rows[:_CHUNK]).double().mean(0)  # near the mean, so that nothing cancels
            total, squares = torch.zeros_like(first), torch.zeros_like(first)
            for start in range(0, len(rows), _CHUNK):
                part = table.rows([name], rows[start : start + _CHUNK]).double() - first
                total += part.sum(0)
                squares += part.square().sum(0)
            shift = total / len(rows)
            deviation = (squares / len(rows) - shift.square()).clamp_min(0).sqrt()
            centre = first + shift
            small = deviation <= 1e-6 * centre.abs()
            mean[name] = centre.float().to(device)
            factor[name] = torch.where(small, 0.0, deviation.reciprocal()).float().to(device)
        return cls(mean, factor)

    def __call__(self, table: Table, names: Sequence[str], rows: NDArray[np.int64] | slice) -> dict[str, Tensor]:
        """Returns some rows, standardised, block by block."""
        return {
            name: (table.rows([name], rows).to(self.mean[name].device) - self.mean[name]) * self.factor[name]
            for name in names
        }


class Heads:
    """Linear heads on inputs of one width, one for each input and setting (rate, decay), trained by AdamW.

    They are trained along the principal axes of each input. This does not change what a head can learn, but features
    are so correlated that AdamW needs several times as many epochs along their own axes.
    """

    def __init__(
        self, inputs: Sequence[tuple[str, ...]], axes: Tensor, classes: int, lrs: Tensor, decays: Tensor
    ) -> None:
        self.inputs, self.axes, self.classes = inputs, axes, classes
        self.num_settings = len(lrs)
        columns = classes * len(lrs)
        self.weight = lrs.new_zeros(len(inputs), axes.shape[1], columns)  # the loss is convex, so any start will do
        self.bias = lrs.new_zeros(len(inputs), 1, columns)
        self._lr, self._decay = lrs.repeat_interleave(classes), decays.repeat_interleave(classes)
        self._moments = [[torch.zeros_like(x) for x in (self.weight, self.bias)] for _ in range(2)]
        self._steps = 0

    def logits(self, blocks: Mapping[str, Tensor]) -> Tensor:
        """Returns the scores of all heads: inputs, rows, settings, classes."""
        return self._logits(self._read(blocks))

    def step(self, blocks: Mapping[str, Tensor], labels: Tensor, pace: float) -> None:
        """Takes one step of AdamW on each head's mean cross-entropy, at the share `pace` of its rate."""
        columns = self._read(blocks)
        slope = self._logits(columns).softmax(dim=3)
        index = labels.view(1, -1, 1, 1).expand(len(slope), -1, slope.shape[2], 1)
        slope.scatter_add_(3, index, torch.full_like(index, -1, dtype=slope.dtype))
        slope = slope.flatten(2).div_(len(labels))
        gradients = (torch.bmm(columns.mT, slope), slope.sum(1, keepdim=True))
        self._steps += 1
        self.weight.mul_(1 - pace * self._lr * self._decay)
        corrections = [1 - beta**self._steps for beta in _BETAS]
        for x, gradient, first, second in zip((self.weight, self.bias), gradients, *self._moments, strict=True):
            first.lerp_(gradient, 1 - _BETAS[0])
            second.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
            size = (second / corrections[1]).sqrt_().add_(_EPS)
            x.sub_(first.div(size).mul_(self._lr).mul_(pace / corrections[0]))

    def _logits(self, columns: Tensor) -> Tensor:
        scores: Tensor = torch.baddbmm(self.bias, columns, self.weight).unflatten(2, (-1, self.classes))
        return scores

    def _read(self, blocks: Mapping[str, Tensor]) -> Tensor:
        return torch.bmm(stacked(blocks, self.inputs), self.axes)


def stacked(blocks: Mapping[str, Tensor], inputs: Sequence[tuple[str, ...]]) -> Tensor:
    """Returns blocks of columns as inputs of one width: inputs, rows, columns."""
    return torch.stack([torch.cat([blocks[name] for name in names], dim=1) for names in inputs])


def principal_axes(table: Table, inputs: Sequence[tuple[str, ...]], rows: NDArray[np.int64], scale: Scale) -> Tensor:
    """Returns the eigenvectors of each input's covariance (inputs, columns, columns), from some thousands of rows."""
    names = sorted({name for blocks in inputs for name in blocks})
    rows, total = rows[:: max(1, len(rows) // _FOR_AXES)], torch.zeros(())
    for start in range(0, len(rows), _CHUNK):
        columns = stacked(scale(table, names, rows[start : start + _CHUNK]), inputs)
        total = total.to(columns.device) + torch.bmm(columns.mT, columns)
    return torch.stack([torch.linalg.eigh(covariance.double()).eigenvectors for covariance in total]).float()


def train(
    groups: Sequence[Heads], table: Table, rows: NDArray[np.int64], scale: Scale, schedule: Schedule, seed: int = 0
) -> None:
    """Trains all heads on the same minibatches, which are read from the table one by one."""
    names = sorted({name for heads in groups for blocks in heads.inputs for name in blocks})
    batch, per_epoch, epochs = schedule.of(len(rows))
    count = sum(len(heads.inputs) * heads.num_settings for heads in groups)
    batches = minibatches(rows, batch, per_epoch, epochs, seed)
    what = f"steps of {count} heads" if count > 1 else "steps of the chosen head"
    for number, chosen in enumerate(progress.over(batches, what, per_epoch * epochs)):
        blocks = scale(table, names, chosen)
        labels = table.labels[torch.from_numpy(chosen)].to(next(iter(blocks.values())).device)
        pace = warmup_cosine(number, per_epoch * epochs, schedule.warmup)
        for heads in groups:
            heads.step(blocks, labels, pace)


def evaluate(
    groups: Sequence[Heads], table: Table, rows: NDArray[np.int64], scale: Scale
) -> list[tuple[Tensor, Tensor]]:
    """Returns, for each group, the number of right answers and the mean loss of every head (inputs, settings)."""
    names = sorted({name for heads in groups for blocks in heads.inputs for name in blocks})
    right, loss = (
        [torch.zeros(len(heads.inputs), heads.num_settings, dtype=kind) for heads in groups]
        for kind in (torch.int64, torch.float64)
    )
    for start in range(0, len(rows), _CHUNK // 4):
        part = rows[start : start + _CHUNK // 4]
        blocks = scale(table, names, part)
        labels = table.labels[torch.from_numpy(part)].to(next(iter(blocks.values())).device)
        for number, heads in enumerate(groups):
            logits = heads.logits(blocks)
            index = labels.view(1, -1, 1).expand(len(logits), -1, logits.shape[2])
            losses = logits.logsumexp(3) - logits.gather(3, index[..., None])[..., 0]
            right[number] += (logits.argmax(3) == index).sum(1).cpu()
            loss[number] += losses.sum(1).double().cpu()
    return [(hits, total / len(rows)) for hits, total in zip(right, loss, strict=True)]


def minibatches(
    rows: NDArray[np.int64], batch: int, per_epoch: int, epochs: int, seed: int
) -> Iterator[NDArray[np.int64]]:
    """Yields the rows of each batch, sorted for the disk: in every epoch another order, without an incomplete batch."""
    for epoch in range(epochs):
        order = permute(np.arange(per_epoch * batch), len(rows), seed, epoch)
        for part in np.split(order, per_epoch):
            yield rows[np.sort(part)]


def warmup_cosine(number: int, steps: int, warmup: float) -> float:
    """Returns the share of the learning rate at a step: it rises along a line, then falls along half a cosine."""
    rising = max(1, round(warmup * steps))
    if number < rising:
        return (number + 1) / rising
    return half_cosine(number, max(steps, rising + 1), rising, peak=1.0)
