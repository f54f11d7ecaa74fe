"""What the evaluators of dense tasks share: linear maps from frozen patch tokens to what is known of each pixel."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from mrp.evaluate.contract import Evaluator, Pause, Result, Setting
from mrp.evaluate.heads import Moments
from mrp.evaluate.images import Images
from mrp.evaluate.pairs import Pair, find
from mrp.evaluate.readout import Readout, backbone_of
from mrp.evaluate.sealed import Decision, NothingToChoose, Sealed
from mrp.evaluate.split import split
from mrp.evaluate.table import Table
from mrp.evaluate.views import Whole
from mrp.models.vit import grid

PER_PATCH = 4  # points along a patch's side at which its target is taken in training; all pixels count in the test
_GIB = 8  # of patch tokens on disk; where the images have more, evenly spaced ones are taken
_AT_ONCE = 16  # images
_CLASSES = 16  # whose scores exist at once at the size of the image
_DRAWS, _QUANTILES = 1000, (0.025, 0.975)  # of the bootstrap

H = TypeVar("H")  # a linear map, as the task keeps it


class Tokens(NamedTuple):
    """The patch tokens of some images, and the map that standardises each of their columns."""

    table: Table
    block: str
    grid: tuple[int, int]
    device: torch.device
    mean: Tensor  # D
    factor: Tensor  # D; 0 where a column is constant

    @classmethod
    def of(
        cls, table: Table, readout: Readout, shape: tuple[int, int], device: torch.device, rows: NDArray[np.int64]
    ) -> Tokens:
        """Takes mean and deviation of the tokens of some images: a BatchNorm without weights ends with the same."""
        zero = torch.zeros(readout.width, device=device)
        raw = cls(table, readout.blocks[0], shape, device, zero, zero + 1)
        moments = Moments(raw.rows(rows[:_AT_ONCE]).double().mean((0, 1)))
        for part in chunks(rows):
            moments.add(raw.rows(part).flatten(0, 1))
        mean, factor = moments.scale()
        return raw._replace(mean=mean, factor=factor)

    def rows(self, rows: NDArray[np.int64]) -> Tensor:
        """Returns the standardised tokens of some images (images, patches, D)."""
        flat = self.table.rows([self.block], rows).to(self.device)
        return (flat.view(len(rows), self.grid[0] * self.grid[1], -1) - self.mean) * self.factor


@dataclass(frozen=True, slots=True)
class Learned(Decision, Generic[H]):
    """A linear map, the tokens' standardisation, and how the setting was chosen."""

    tokens: Tokens
    head: H
    setting: float
    held_out: dict[str, float]  # what was reached with each setting
    images: int

    def details(self) -> dict[str, Any]:
        """Returns how the setting was chosen."""
        return {"held_out": self.held_out, "num_train": self.images}


class Dense(Evaluator, Generic[H]):
    """Learns a map on the tokens of training images, then opens the test images; the first process learns and counts.

    Every image is seen whole, resized to the model's size.
    """

    endings: ClassVar[Sequence[str]]  # of the files of targets
    settings: ClassVar[Sequence[float]]  # that are tried
    higher_is_better: ClassVar[bool]  # of what a setting reaches

    def __init__(self, config: Any, setting: Setting) -> None:
        self.config, self.setting, self.device = config, setting, setting.processes.device
        task = type(self).__module__.rpartition(".")[2]
        self._pairs = [find(getattr(config, name), f"{task}.{name}", self.endings) for name in ("train", "test")]

    @abstractmethod
    def targets(self, pairs: Sequence[Pair], shape: tuple[int, int]) -> Any:
        """Returns what is known of the patches of each training image; `shape` is the grid of patches."""

    @abstractmethod
    def fit(self, tokens: Tokens, targets: Any, rows: NDArray[np.int64], settings: Sequence[float]) -> Sequence[H]:
        """Returns a map for each setting, learned from some images."""

    @abstractmethod
    def reached(self, tokens: Tokens, pairs: Sequence[Pair], rows: NDArray[np.int64], head: H) -> float:
        """Returns what a map reaches on held-out images."""

    @abstractmethod
    def count(self, learned: Learned[H], table: Table, pairs: Sequence[Pair]) -> Result:
        """Returns what was counted on the test images."""

    def learn(self, table: Table, pairs: Sequence[Pair], readout: Readout, shape: tuple[int, int]) -> Learned[H]:
        """Fits with every setting, chooses one on held-out training images, and fits with it on all of them.

        Where no setting reaches a number, the last one is taken.
        """
        targets = self.targets(pairs, shape)
        parts = split(torch.zeros(len(table), dtype=torch.int64), table.keys)
        tokens = Tokens.of(table, readout, shape, self.device, parts.fitting)
        heads = self.fit(tokens, targets, parts.fitting, self.settings)
        reached = [self.reached(tokens, pairs, parts.held_out, head) for head in heads]
        merits = np.array(reached) if self.higher_is_better else -np.array(reached)
        setting = self.settings[int(np.nanargmax(merits)) if np.isfinite(merits).any() else -1]
        every = np.arange(len(table))
        tokens = Tokens.of(table, readout, shape, self.device, every)
        (head,) = self.fit(tokens, targets, every, [setting])
        held_out = {f"{one:g}": value for one, value in zip(self.settings, reached, strict=True)}
        return Learned(tokens, head, setting, held_out, len(table))

    def measure(self, model: nn.Module, step: int, pause: Pause) -> Result:
        """Learns, then opens the test set and counts."""
        readout, shape = Readout.tokens(model), grid(backbone_of(model))
        most = max(2, _GIB * 2**30 // (2 * sum(readout.widths.values())))
        most = min(most, self.config.images or most)
        train, test = (evenly_spaced(pairs, most) for pairs in self._pairs)

        def read(pairs: Sequence[Pair]) -> Table | None:
            source = Images([pair.image for pair in pairs], self.setting.data.num_channels)
            return self.setting.features(source, model, readout, pause, view=Whole(self.setting.data))

        table = read(train)
        learned = self.setting.alone(table, lambda one: self.learn(one, train, readout, shape), pause)
        sealed = Sealed(lambda: read(test))
        seen = sealed.open(learned or NothingToChoose("the first process has chosen"))
        if learned is None or seen is None:
            return Result()
        return self.count(learned, seen, test)


def evenly_spaced(pairs: Sequence[Pair], most: int) -> Sequence[Pair]:
    """Returns all pairs, or `most` that are as far apart as they can be."""
    return pairs if len(pairs) <= most else [pairs[number * len(pairs) // most] for number in range(most)]


def chunks(rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yields a few rows at a time."""
    for start in range(0, len(rows), _AT_ONCE):
        yield rows[start : start + _AT_ONCE]


def enlarged(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns scores of patches (C rows columns) at the size of an image, bilinearly between the patches' centres."""
    return functional.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]


def best_class(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns the class of every pixel (H W) from scores of patches (C rows columns), a few classes at a time."""
    best = torch.full(size, -torch.inf, device=scores.device)
    answer = torch.zeros(size, dtype=torch.int64, device=scores.device)
    for start in range(0, len(scores), _CLASSES):
        value, index = enlarged(scores[start : start + _CLASSES], size).max(0)
        better = value > best
        best, answer = torch.where(better, value, best), torch.where(better, index + start, answer)
    return answer


def bootstrap(
    sums: NDArray[np.float64], statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> tuple[float, float]:
    """Returns a 95 % interval of a statistic of sums over images (images, columns), by drawing images with replacement.

    `statistic` takes any number of such sums at once (draws, columns).
    """
    generator, count, values = np.random.default_rng(0), len(sums), list[NDArray[np.float64]]()
    for _ in range(0, _DRAWS, 50):
        weights = generator.multinomial(count, np.full(count, 1 / count), size=50)
        values.append(statistic(weights @ sums))
    low, high = np.nanquantile(np.concatenate(values), _QUANTILES)
    return float(low), float(high)
