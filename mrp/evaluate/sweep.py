"""The sweep: the layer, pooling, rate and decay that read the classes best are chosen, then counted once.

The order is in the types. `choose` knows a training set and nothing else; the test set is `Sealed`, and opens once, for
a decision that has been made; only then are its images read at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from mrp.config import ConfigError
from mrp.evaluate.heads import Heads, Scale, Schedule, judge, principal_axes, train
from mrp.evaluate.interval import Interval, wilson
from mrp.evaluate.readout import LAST, name
from mrp.evaluate.split import Split
from mrp.evaluate.table import Table

LRS = (3e-3, 1e-2, 3e-2, 1e-1)
DECAYS = (0.0, 0.1, 1.0)


@dataclass(frozen=True, slots=True)
class Input:
    """What a head reads."""

    layers: tuple[int, ...]
    pooling: str

    @property
    def blocks(self) -> tuple[str, ...]:
        """The blocks of columns that it stands for."""
        poolings = ("class", "mean") if self.pooling == "both" else (self.pooling,)
        return tuple(name(layer, pooling) for layer in self.layers for pooling in poolings)

    @property
    def layer(self) -> str:
        """One layer's number, or the first and the last."""
        return str(self.layers[0]) if len(self.layers) == 1 else f"{self.layers[0]}-{self.layers[-1]}"


def inputs(layers: Sequence[int], poolings: Sequence[str]) -> list[Input]:
    """Each layer under each pooling and both together, and the last four side by side under each."""
    every = (*poolings, "both") if len(poolings) > 1 else tuple(poolings)
    found = [Input((layer,), pooling) for layer, pooling in product(layers, every)]
    if len(layers) > 1:
        found += [Input(tuple(layers[-LAST:]), pooling) for pooling in poolings]
    return found


@dataclass(frozen=True, slots=True)
class Trial:
    """A head that was tried, and how it did on the held-out part of the training set."""

    layer: str
    pooling: str
    lr: float
    decay: float
    accuracy: float
    loss: float


@dataclass(frozen=True, slots=True)
class Choice:
    """The head that did best on the held-out part (by loss, where several did), and all that were tried."""

    input: Input
    best: Trial
    trials: tuple[Trial, ...]
    held_out: Interval

    def moves(self) -> dict[str, dict[str, float]]:
        """For each value of each choice the best held-out accuracy that any head with this value reached."""
        return {
            choice: {
                str(value): max(trial.accuracy for trial in self.trials if getattr(trial, choice) == value)
                for value in dict.fromkeys(getattr(trial, choice) for trial in self.trials)
            }
            for choice in ("layer", "pooling", "lr", "decay")
        }

    def grid(self) -> dict[str, dict[str, float]]:
        """For each layer and pooling the best held-out accuracy that any head on it reached."""
        found: dict[str, dict[str, float]] = {}
        for trial in self.trials:
            row = found.setdefault(trial.layer, {})
            row[trial.pooling] = max(trial.accuracy, row.get(trial.pooling, 0.0))
        return found


@dataclass(frozen=True, slots=True)
class Settled:
    """A measurement in which there was nothing to choose, and why."""

    because: str


T = TypeVar("T")


class Sealed(Generic[T]):
    """A test set that no choice can look at: it opens once, and only for a decision that has been made."""

    def __init__(self, unseal: Callable[[], T]) -> None:
        self._unseal: Callable[[], T] | None = unseal

    def open(self, decision: Choice | Settled) -> T:
        """Read the test set."""
        assert isinstance(decision, Choice | Settled), "the test set opens after the choice"
        assert self._unseal is not None, "the test set has been opened before: whatever is chosen now has seen it"
        unseal, self._unseal = self._unseal, None
        return unseal()


@dataclass(frozen=True, slots=True)
class Head:
    """A trained linear classifier and what stands before it."""

    input: Input
    scale: Scale
    weight: Tensor  # W classes
    bias: Tensor  # classes

    def predict(self, table: Table) -> Tensor:
        """The class of every row, on the CPU."""
        answers = []
        for rows in table.chunks(4096):
            blocks = self.scale(table, self.input.blocks, rows)
            columns = torch.cat([blocks[block] for block in self.input.blocks], dim=1)
            answers.append(torch.addmm(self.bias, columns, self.weight).argmax(1).cpu())
        return torch.cat(answers)

    def measure(self, table: Table) -> Interval:
        """The share of right answers; a class that was never trained on is a mistake like any other."""
        return wilson(int((self.predict(table) == table.labels).sum()), len(table))


def choose(
    table: Table,
    parts: Split,
    candidates: Sequence[Input],
    device: torch.device,
    lrs: Sequence[float] = LRS,
    decays: Sequence[float] = DECAYS,
    schedule: Schedule = Schedule(),  # noqa: B008 -- frozen
) -> Choice:
    """Train every head on one part of a training set and take the one that does best on the other."""
    classes = _classes(table)
    names = sorted({block for candidate in candidates for block in candidate.blocks})
    scale = Scale.of(table, names, parts.fitting, device)
    settings = list(product(lrs, decays))
    rates, shrinking = torch.tensor(settings, device=device).unbind(1)
    widths = {candidate: sum(table.columns[block].shape[1] for block in candidate.blocks) for candidate in candidates}
    members = [[c for c in candidates if widths[c] == width] for width in sorted(set(widths.values()))]
    groups = []
    for group in members:
        blocks = [candidate.blocks for candidate in group]
        axes = principal_axes(table, blocks, parts.fitting, scale)
        groups.append(Heads(blocks, axes, classes, rates, shrinking))
    train(groups, table, parts.fitting, scale, schedule)
    found: list[tuple[Input, Trial]] = []
    for group, (right, loss) in zip(members, judge(groups, table, parts.held_out, scale), strict=True):
        for (i, candidate), (j, (lr, decay)) in product(enumerate(group), enumerate(settings)):
            accuracy = float(right[i, j]) / len(parts.held_out)
            found.append((candidate, Trial(candidate.layer, candidate.pooling, lr, decay, accuracy, float(loss[i, j]))))
    chosen, best = max(found, key=lambda item: (item[1].accuracy, -item[1].loss))
    order = {candidate: place for place, candidate in enumerate(candidates)}
    trials = tuple(trial for _, trial in sorted(found, key=lambda item: order[item[0]]))
    held_out = wilson(round(best.accuracy * len(parts.held_out)), len(parts.held_out))
    return Choice(chosen, best, trials, held_out)


def fit(choice: Choice, table: Table, device: torch.device, schedule: Schedule = Schedule()) -> Head:  # noqa: B008
    """Train the chosen head once more, on the whole training set."""
    rows = np.arange(len(table))
    scale = Scale.of(table, choice.input.blocks, rows, device)
    axes = principal_axes(table, [choice.input.blocks], rows, scale)
    lr, decay = torch.tensor([[choice.best.lr], [choice.best.decay]], device=device)
    heads = Heads([choice.input.blocks], axes, _classes(table), lr, decay)
    train([heads], table, rows, scale, schedule)
    return Head(choice.input, scale, axes[0] @ heads.weight[0], heads.bias[0, 0])


def _classes(table: Table) -> int:
    if len(table.labels.unique()) < 2:
        raise ConfigError(f"a probe needs at least two classes; every training label is {int(table.labels[0])}")
    return int(table.labels.max()) + 1
