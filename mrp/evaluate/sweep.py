"""The sweep: many linear heads are trained, and the layer, pooling, rate and decay that classify best are chosen.

Everything here knows a training set and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mrp.config import ConfigError
from mrp.evaluate.answers import best_class
from mrp.evaluate.config import Heads as Options
from mrp.evaluate.heads import Heads, Scale, Schedule, evaluate, principal_axes, train
from mrp.evaluate.interval import Interval, wilson
from mrp.evaluate.readout import FEATURES, LAST, Readout, block_name
from mrp.evaluate.sealed import Decision
from mrp.evaluate.split import Split, split
from mrp.evaluate.table import Table
from mrp.evaluate.tables import Tables

LRS = (3e-3, 1e-2, 3e-2, 1e-1)
DECAYS = (0.0, 0.1, 1.0)
WITH_MEAN = "class + last mean"  # the class tokens of several layers, and the mean patch token of the last one
PRODUCTS = {"fp32": torch.float32, "bf16": torch.bfloat16}  # of matrix products while heads are trained


@dataclass(frozen=True, slots=True)
class Input:
    """What a head reads: one layer or several side by side, under one pooling or both; or a method's own features."""

    layers: tuple[int, ...] | tuple[str]  # a method's name stands for its features
    pooling: str

    @property
    def blocks(self) -> tuple[str, ...]:
        """Returns the names of the blocks of columns."""
        if self.pooling == WITH_MEAN:
            return (*(block_name(layer, "class") for layer in self.layers), block_name(self.layers[-1], "mean"))
        poolings = ("class", "mean") if self.pooling == "both" else (self.pooling,)
        return tuple(block_name(layer, pooling) for layer in self.layers for pooling in poolings)

    @property
    def layer(self) -> str:
        """Returns the number of the layer, or of the first and the last; or the method's name."""
        return str(self.layers[0]) if len(self.layers) == 1 else f"{self.layers[0]}-{self.layers[-1]}"


def inputs(layers: Sequence[int], poolings: Sequence[str], method: str | None = None) -> list[Input]:
    """Returns each layer under each pooling and both together, and the last four layers side by side under each.

    The features of a method that defines its own are one more.
    """
    every = (*poolings, "both") if len(poolings) > 1 else tuple(poolings)
    single = [Input((layer,), pooling) for layer, pooling in product(layers, every)]
    several = [Input(tuple(layers[-LAST:]), pooling) for pooling in poolings if len(layers) > 1]
    return single + several + ([Input((method,), FEATURES)] if method else [])


def inputs_of(readout: Readout, which: str) -> list[Input]:
    """Returns the inputs that the option `inputs` names.

    Those of dinov2 are the class token of the last layer and of the last four, with and without the last mean token.
    """
    own, layers, found = readout.own_features, readout.layers, list[Input]()
    if which != "dinov2":
        found += inputs(layers, readout.poolings, own and own.method)
    if which != "sweep":
        if "class" not in readout.poolings:
            raise ConfigError("inputs: dinov2 reads class tokens, and the backbone has none; take sweep")
        found += [Input(layers[-1:], "class"), Input(layers[-1:], "both")]
        found += [Input(layers[-LAST:], pooling) for pooling in ("class", WITH_MEAN) if len(layers) > 1]
    return list(dict.fromkeys(found))


@dataclass(frozen=True, slots=True)
class Trial:
    """A head that was tried, and its result on the held-out part of the training set."""

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
        """Returns, for each value of each choice, the best held-out accuracy that any head with this value reached."""
        return {
            choice: {
                str(value): max(trial.accuracy for trial in self.trials if getattr(trial, choice) == value)
                for value in dict.fromkeys(getattr(trial, choice) for trial in self.trials)
            }
            for choice in ("layer", "pooling", "lr", "decay")
        }

    def grid(self) -> dict[str, dict[str, float]]:
        """Returns, for each layer and pooling, the best held-out accuracy that any head on it reached."""
        best: dict[str, dict[str, float]] = {}
        for trial in self.trials:
            row = best.setdefault(trial.layer, {})
            row[trial.pooling] = max(trial.accuracy, row.get(trial.pooling, 0.0))
        return best


@dataclass(frozen=True, slots=True)
class Head(Decision):
    """A trained linear classifier, the standardisation before it, and the choice that it follows from."""

    choice: Choice
    scale: Scale
    weight: Tensor  # W classes
    bias: Tensor  # classes

    def predict(self, table: Table, among: Tensor | None = None) -> Tensor:
        """Returns the class of every row, on the CPU; with `among`, one of these classes."""
        return torch.cat([best_class(self._scores(table, rows), among).cpu() for rows in table.chunks(4096)])

    def scores(self, table: Table, rows: NDArray[np.int64] | None = None) -> Tensor:
        """Returns the scores of the classes of every row, or of some, on the CPU."""
        rows = np.arange(len(table)) if rows is None else rows
        return torch.cat([self._scores(table, rows[i : i + 4096]).cpu() for i in range(0, len(rows), 4096)])

    def _scores(self, table: Table, rows: NDArray[np.int64] | slice) -> Tensor:
        names = self.choice.input.blocks
        blocks = self.scale(table, names, rows)
        return torch.addmm(self.bias, torch.cat([blocks[name] for name in names], dim=1), self.weight)


def choose(
    table: Table,
    parts: Split,
    candidates: Sequence[Input],
    device: torch.device,
    lrs: Sequence[float] = LRS,
    decays: Sequence[float] = DECAYS,
    schedule: Schedule = Schedule(),  # noqa: B008 -- frozen
    products: torch.dtype = torch.float32,
) -> Choice:
    """Trains every head on one part of a training set and chooses the one that does best on the other."""
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
        groups.append(Heads(blocks, axes, classes, rates, shrinking, products))
    train(groups, table, parts.fitting, scale, schedule)
    tried: list[tuple[Input, Trial]] = []
    for group, (right, loss) in zip(members, evaluate(groups, table, parts.held_out, scale), strict=True):
        for (i, candidate), (j, (lr, decay)) in product(enumerate(group), enumerate(settings)):
            accuracy = float(right[i, j]) / len(parts.held_out)
            tried.append((candidate, Trial(candidate.layer, candidate.pooling, lr, decay, accuracy, float(loss[i, j]))))
    chosen, best = max(tried, key=lambda item: (item[1].accuracy, -item[1].loss))
    trials = tuple(trial for _, trial in sorted(tried, key=lambda item: candidates.index(item[0])))
    held_out = wilson(round(best.accuracy * len(parts.held_out)), len(parts.held_out))
    return Choice(chosen, best, trials, held_out)


def fit(
    choice: Choice,
    table: Table,
    device: torch.device,
    schedule: Schedule = Schedule(),  # noqa: B008 -- frozen
    *,
    products: torch.dtype = torch.float32,
    rows: NDArray[np.int64] | None = None,
) -> Head:
    """Trains the chosen head once more, on the whole training set or on some rows of it."""
    rows = np.arange(len(table)) if rows is None else rows
    scale = Scale.of(table, choice.input.blocks, rows, device)
    axes = principal_axes(table, [choice.input.blocks], rows, scale)
    lr, decay = torch.tensor([[choice.best.lr], [choice.best.decay]], device=device)
    heads = Heads([choice.input.blocks], axes, _classes(table), lr, decay, products)
    train([heads], table, rows, scale, schedule)
    return Head(choice, scale, axes[0] @ heads.weight[0], heads.bias[0, 0])


def parts_of(table: Table) -> Split:
    """Returns the rows to fit on, under every view, and those of held-out images, which are seen as test images are."""
    fitting, held_out = split(table.labels[: table.images], table.groups[: table.images])
    return Split(table.every_view(fitting), held_out)


def products_of(config: Options, device: torch.device) -> torch.dtype:
    """Returns the precision of matrix products that the options ask for."""
    if config.products == "auto":
        return PRODUCTS["bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"]
    return PRODUCTS[config.products]


def choose_once(
    tables: Tables, train_table: Table, readout: Readout, device: torch.device, config: Options, content: str
) -> Choice:
    """Returns the choice among all heads on some features, made once for all evaluators that ask for the same.

    `content` is that of the training data.
    """

    def make() -> Choice:
        candidates, products = inputs_of(readout, config.inputs), products_of(config, device)
        return choose(train_table, parts_of(train_table), candidates, device, products=products)

    options = config.model_dump_json(exclude={"every"}, exclude_defaults=True)
    return tables.shared((choose_once, readout, content, options), make)


def _classes(table: Table) -> int:
    if len(table.labels.unique()) < 2:
        raise ConfigError(f"a probe needs at least two classes; every training label is {int(table.labels[0])}")
    return int(table.labels.max()) + 1
