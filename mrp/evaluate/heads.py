"""Many linear classifiers trained at once on columns of features, as a few batched products per step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mrp import progress
from mrp.evaluate.batches import Rows, chunks, read
from mrp.evaluate.table import Table
from mrp.schedules import half_cosine

_BETAS, _EPS = (0.9, 0.999), 1e-8
_CHUNK = 4096  # rows that are read at once where order does not matter
_AT_ONCE = 2**25  # scores of heads that exist at once
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


class Moments:
    """Sums near the mean, so that nothing cancels, from which the mean and deviation of each column follow."""

    def __init__(self, near: Tensor) -> None:
        self._near = near  # D, in double precision
        self._total, self._squares, self._count = torch.zeros_like(near), torch.zeros_like(near), 0

    def add(self, rows: Tensor) -> None:
        """Adds rows (N D)."""
        part = rows.double() - self._near
        self._total += part.sum(0)
        self._squares += part.square().sum(0)
        self._count += len(rows)

    def scale(self) -> tuple[Tensor, Tensor]:
        """Returns the mean, and what standardises by a product; 0 where a column is constant up to rounding."""
        shift = self._total / self._count
        deviation = (self._squares / self._count - shift.square()).clamp_min(0).sqrt()
        mean = self._near + shift
        return mean.float(), deviation.reciprocal().where(deviation > 1e-6 * mean.abs(), 0.0).float()


class Scale:
    """Standardises each column, as a BatchNorm without weights does in the end when nothing before it changes."""

    def __init__(self, mean: Mapping[str, Tensor], factor: Mapping[str, Tensor]) -> None:
        self.mean, self.factor = mean, factor

    @classmethod
    def of(cls, table: Table, names: Sequence[str], rows: Rows, device: torch.device) -> Scale:
        """Takes the mean and deviation of some rows; a column that is constant up to rounding becomes zero."""
        moments = {name: Moments(table.rows([name], rows[:_CHUNK]).to(device).double().mean(0)) for name in names}
        parts = progress.over(chunks(table, names, rows, _CHUNK, device), "means of columns", -(-len(rows) // _CHUNK))
        for blocks, _ in parts:
            for name, block in blocks.items():
                moments[name].add(block)
        scales = {name: one.scale() for name, one in moments.items()}
        return cls({name: mean for name, (mean, _) in scales.items()}, {name: by for name, (_, by) in scales.items()})

    @property
    def device(self) -> torch.device:
        """Returns where standardised rows are."""
        return next(iter(self.mean.values())).device

    def __call__(self, table: Table, names: Sequence[str], rows: Rows | slice) -> dict[str, Tensor]:
        """Returns some rows, standardised, block by block."""
        return self.standard({name: table.rows([name], rows).to(self.mean[name].device) for name in names})

    def standard(self, blocks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns blocks on the device as they are in the table, standardised."""
        return {name: (block.float() - self.mean[name]) * self.factor[name] for name, block in blocks.items()}


class Heads:
    """Linear heads on inputs of one width, one for each input and setting (rate, decay), trained by AdamW.

    They are trained along the principal axes of each input. This does not change what a head can learn, but features
    are so correlated that AdamW needs several times as many epochs along their own axes. `products` is the precision
    of the matrix products of a step; weights, moments and answers are in single precision.
    """

    def __init__(
        self, inputs: Sequence[tuple[str, ...]], axes: Tensor, classes: int, lrs: Tensor, decays: Tensor,
        products: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        self.inputs, self.axes, self.classes = inputs, axes, classes
        self.num_settings = len(lrs)
        columns = classes * len(lrs)
        self.weight = lrs.new_zeros(len(inputs), axes.shape[1], columns)  # the loss is convex, so any start will do
        self.bias = lrs.new_zeros(len(inputs), 1, columns)
        self._lr, self._decay = lrs.repeat_interleave(classes), decays.repeat_interleave(classes)
        self._moments = [[torch.zeros_like(x) for x in (self.weight, self.bias)] for _ in range(2)]
        self._steps = 0
        self._products = products

    def logits(self, blocks: Mapping[str, Tensor]) -> Iterator[tuple[slice, Tensor]]:
        """Yields which inputs, and their heads' scores (inputs, rows, settings, classes), some inputs at a time."""
        for some in self._parts(blocks):
            yield some, self._logits(self._read(blocks, some), some, torch.float32)

    def step(self, blocks: Mapping[str, Tensor], labels: Tensor, pace: float) -> None:
        """Takes one step of AdamW on each head's mean cross-entropy, at the share `pace` of its rate."""
        self._steps += 1
        for some in self._parts(blocks):
            columns = self._read(blocks, some).to(self._products)
            slope = self._logits(columns, some, self._products).softmax(dim=3, dtype=torch.float32)
            index = labels.view(1, -1, 1, 1).expand(len(slope), -1, slope.shape[2], 1)
            slope.scatter_add_(3, index, torch.full_like(index, -1, dtype=slope.dtype))
            slope = slope.flatten(2).div_(len(labels))
            gradients = torch.bmm(columns.mT, slope.to(self._products)).float(), slope.sum(1, keepdim=True)
            self._update(some, gradients, pace)

    def _update(self, some: slice, gradients: tuple[Tensor, Tensor], pace: float) -> None:
        self.weight[some].mul_(1 - pace * self._lr * self._decay)
        corrections = [1 - beta**self._steps for beta in _BETAS]
        for x, gradient, first, second in zip((self.weight, self.bias), gradients, *self._moments, strict=True):
            first[some].lerp_(gradient, 1 - _BETAS[0])
            second[some].mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
            size = (second[some] / corrections[1]).sqrt_().add_(_EPS)
            torch.div(first[some], size, out=size)
            x[some].sub_(size.mul_(self._lr).mul_(pace / corrections[0]))

    def _logits(self, columns: Tensor, some: slice, products: torch.dtype) -> Tensor:
        scores: Tensor = torch.baddbmm(self.bias[some].to(products), columns, self.weight[some].to(products))
        return scores.view(*scores.shape[:2], -1, self.classes)

    def _read(self, blocks: Mapping[str, Tensor], some: slice) -> Tensor:
        return torch.bmm(stacked(blocks, self.inputs[some]), self.axes[some])

    def _parts(self, blocks: Mapping[str, Tensor]) -> Iterator[slice]:
        """Yields slices of the inputs whose scores, or whose weights, are few enough to exist at once."""
        rows = max(len(next(iter(blocks.values()))), self.weight.shape[1])
        size = max(1, _AT_ONCE // (rows * self.weight.shape[2]))
        return (slice(start, start + size) for start in range(0, len(self.inputs), size))


def stacked(blocks: Mapping[str, Tensor], inputs: Sequence[tuple[str, ...]]) -> Tensor:
    """Returns blocks of columns as inputs of one width: inputs, rows, columns."""
    return torch.stack([torch.cat([blocks[name] for name in names], dim=1) for names in inputs])


def principal_axes(table: Table, inputs: Sequence[tuple[str, ...]], rows: Rows, scale: Scale) -> Tensor:
    """Returns the eigenvectors of each input's covariance (inputs, columns, columns), from some thousands of rows."""
    names = sorted({name for blocks in inputs for name in blocks})
    rows, total = rows[:: max(1, len(rows) // _FOR_AXES)], torch.zeros(())
    for start in range(0, len(rows), _CHUNK):
        columns = stacked(scale(table, names, rows[start : start + _CHUNK]), inputs)
        total = total.to(columns.device) + torch.bmm(columns.mT, columns)
    return torch.stack([torch.linalg.eigh(covariance.double()).eigenvectors for covariance in total]).float()


def train(groups: Sequence[Heads], table: Table, rows: Rows, scale: Scale, schedule: Schedule, seed: int = 0) -> None:
    """Trains all heads on the same minibatches, which are read from the table one by one."""
    names = _blocks(groups)
    batch, per_epoch, epochs = schedule.of(len(rows))
    steps, count = per_epoch * epochs, sum(len(heads.inputs) * heads.num_settings for heads in groups)
    batches = read(table, names, rows, batch, per_epoch, epochs, seed, scale.device)
    what = f"steps of {count} heads" if count > 1 else "steps of the chosen head"
    for number, (blocks, labels) in enumerate(progress.over(batches, what, steps)):
        standard, pace = scale.standard(blocks), warmup_cosine(number, steps, schedule.warmup)
        for heads in groups:
            heads.step(standard, labels, pace)


def evaluate(groups: Sequence[Heads], table: Table, rows: Rows, scale: Scale) -> list[tuple[Tensor, Tensor]]:
    """Returns, for each group, the number of right answers and the mean loss of every head (inputs, settings)."""
    right, loss = (
        [torch.zeros(len(heads.inputs), heads.num_settings, dtype=kind) for heads in groups]
        for kind in (torch.int64, torch.float64)
    )
    size = _CHUNK // 4
    parts = chunks(table, _blocks(groups), rows, size, scale.device)
    for blocks, labels in progress.over(parts, "held-out images", -(-len(rows) // size)):
        standard = scale.standard(blocks)
        for number, heads in enumerate(groups):
            for some, logits in heads.logits(standard):
                index = labels.view(1, -1, 1).expand(len(logits), -1, logits.shape[2])
                losses = logits.logsumexp(3) - logits.gather(3, index[..., None])[..., 0]
                right[number][some] += (logits.argmax(3) == index).sum(1).cpu()
                loss[number][some] += losses.sum(1).double().cpu()
    return [(hits, total / len(rows)) for hits, total in zip(right, loss, strict=True)]


def _blocks(groups: Sequence[Heads]) -> list[str]:
    return sorted({name for heads in groups for blocks in heads.inputs for name in blocks})


def warmup_cosine(number: int, steps: int, warmup: float) -> float:
    """Returns the share of the learning rate at a step: it rises along a line, then falls along half a cosine."""
    rising = max(1, round(warmup * steps))
    if number < rising:
        return (number + 1) / rising
    return half_cosine(number, max(steps, rising + 1), rising, peak=1.0)
