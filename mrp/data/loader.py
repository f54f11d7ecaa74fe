"""From places in the order to batches in memory, by worker processes that hold no state.

A worker is handed the number of a batch and computes the rest, so there is no position to save, and neither the number
of workers nor that of ranks changes a pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mrp.batch import Batch
from mrp.config import ConfigError
from mrp.data.augment import View
from mrp.data.decode import DecodeError, UnfitError, decode
from mrp.data.mixtures import Mixed
from mrp.data.order import Ints, Order, keys, share
from mrp.data.quarantine import Bad, Quarantine
from mrp.data.source import Source
from mrp.data.storage.cache import Prefetch
from mrp.data.workers import Numbers, WorkerError, received, torch_loader


class Loader:
    """One rank's share of the global batches, from any step to any other."""

    def __init__(
        self,
        source: Source,
        order: Order | Mixed,
        view: View,
        *,
        group: int,
        micro_batch: int,
        rank: int,
        world: int,
        workers: int,
        pin_memory: bool,
        quarantine: Quarantine | None = None,
    ) -> None:
        group, taken = group // view.views, micro_batch // view.views  # in samples from here on
        assert order.batch % group == group % (taken * world) == 0, "derived when the run was resolved"
        self.accumulation = order.batch // (taken * world)
        places = share(order.batch, group, rank, world).reshape(self.accumulation, taken)
        self._source, self._order, self._places = source, order, places.reshape(-1)
        self._quarantine = Quarantine() if quarantine is None else quarantine
        self._numbers = Numbers(range(0))
        plan = _TrainingPlan(order, places, view.views)
        dataset = _Batches(source, view, plan, source.replacement, self._quarantine.known)
        self._open = partial(torch_loader, dataset, self._numbers, workers, pin_memory, persistent=True)
        self._batches = self._open()

    def steps(self, start: int, stop: int) -> Iterator[list[Batch]]:
        """Yield the micro-batches of each optimizer step; one span at a time."""
        self._numbers.range = range(start * self.accumulation, stop * self.accumulation)
        micro_batches = received(self._batches)
        prefetch, asked = Prefetch(self._source.fetch), list[list[int]]()
        try:
            for step in range(start, stop):
                needed = self._order.shards(step, self._places)
                for shard in (shard for shards in needed if shards not in asked for shard in shards):
                    prefetch.ask(shard)
                asked = needed
                results = [next(micro_batches) for _ in range(self.accumulation)]
                self._quarantine.add(bad for result in results for bad in result.bad)
                yield [result.batch for result in results]
        except ConfigError:
            self.close()
            raise
        finally:
            prefetch.close()

    def close(self) -> None:
        """Let the worker processes go; another span would start new ones."""
        self._batches = self._open()


class EvalLoader:
    """Each sample exactly once over all ranks, in batches of one shape and of one number on every rank.

    With `replacement`, a sample that is no image is replaced, as in training, by the one that this returns.
    """

    def __init__(
        self,
        source: Source,
        view: View,
        *,
        batch: int,
        rank: int,
        world: int,
        workers: int,
        pin_memory: bool,
        replacement: Callable[[int], int | None] | None = None,
    ) -> None:
        share_ = -(-len(source) // world)
        start = min(rank * share_, len(source))
        plan = _EvaluationPlan(start, min(start + share_, len(source)), batch)
        self._numbers = Numbers(range(-(-share_ // batch)))
        dataset = _Batches(source, view, plan, replacement or _no_replacement)
        self._batches = torch_loader(dataset, self._numbers, workers, pin_memory, persistent=False)

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Batch]:
        for result in received(self._batches):
            yield result.batch


class _Rows(NamedTuple):
    """What a batch consists of."""

    samples: Ints
    keys: Ints  # views, samples
    valid: Tensor | None
    step: int


class _Plan(Protocol):
    """The rows of each batch, by its number."""

    def rows(self, number: int) -> _Rows: ...


@dataclass(frozen=True, slots=True)
class _TrainingPlan:
    """Micro-step after micro-step."""

    order: Order | Mixed
    places: Ints  # accumulation, micro-batch
    views: int

    def rows(self, number: int) -> _Rows:
        step, part = divmod(number, len(self.places))
        slots = self.order.slots(step, self.places[part])
        views = [slots.keys]
        views += [keys(self.order.seed, slots.epochs, slots.samples, view) for view in range(1, self.views)]
        return _Rows(slots.samples, np.stack(views), None, step)


@dataclass(frozen=True, slots=True)
class _EvaluationPlan:
    """A slice of the data from its start to its end."""

    start: int
    stop: int
    batch: int

    def rows(self, number: int) -> _Rows:
        first = self.start + number * self.batch
        samples = np.arange(first, max(first, min(first + self.batch, self.stop)))
        valid = torch.arange(self.batch) < len(samples)
        return _Rows(samples, keys(0, 0, samples)[None], valid, 0)


class Result(NamedTuple):
    """A batch, and those of its samples that turned out to be no images."""

    batch: Batch
    bad: list[Bad]


class _Batches(Dataset[Result | WorkerError]):
    """Batches made from nothing but their number."""

    def __init__(
        self,
        source: Source,
        view: View,
        plan: _Plan,
        replacement: Callable[[int], int | None],
        known_bad: Set[int] = frozenset(),
    ) -> None:
        self.source, self.view, self.plan = source, view, plan
        self.replacement, self.known_bad = replacement, known_bad

    def __getitem__(self, number: int) -> Result | WorkerError:
        rows = self.plan.rows(number)
        bad: list[Bad] = []
        try:
            pairs = [self._read(*pair, bad) for pair in zip(rows.samples.tolist(), rows.keys.T.tolist(), strict=True)]
        except ConfigError as error:
            return WorkerError(str(error))
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
                raise
            return WorkerError("machine.workers: there is no memory left to decode images in; take fewer of them")
        count = rows.keys.size if rows.valid is None else len(rows.valid)
        # All samples' first views, then their second ones: neighbours, which may be mixed, are never of one sample.
        seen = [images[view] for view in range(len(rows.keys)) for images, _ in pairs]
        images = _stack(seen, (count, self.view.channels, *self.view.size))
        labels = _filled([label for _, label in pairs] * len(rows.keys), count) if self.source.classes else None
        keys_ = _filled(rows.keys.reshape(-1), count)
        return Result(Batch(images, keys_, labels, rows.valid, torch.tensor(rows.step)), bad)

    def _read(self, sample: int, keys_: list[int], bad: list[Bad]) -> tuple[list[Tensor], int]:
        """Returns the sample under each key; one that is intact but no image is replaced by the next good one."""
        candidate, tried = sample, set[int]()
        while candidate not in tried:
            tried.add(candidate)
            following = self.replacement(candidate) if candidate in self.known_bad else None
            if following is None:
                try:
                    data, label = self.source.read(candidate)
                    self._check_label(candidate, label)
                    image = decode(data, self.view.channels)
                    return [self.view(image, key) for key in keys_], label
                except UnfitError as error:
                    raise ConfigError(f"{self._where(candidate)}: {error}") from None
                except DecodeError as error:
                    fault, following = str(error), self.replacement(candidate)
                except OSError as error:
                    fault = f"cannot be read: {error.strerror or error}"
                if following is None:
                    raise ConfigError(f"{self._where(candidate)}: {fault}; mend it under the same name and run again")
                bad.append(Bad(candidate, self._where(candidate), fault))
            candidate = following
        raise ConfigError(f"{self._where(sample)}: no sample of its shard is an image; remove the shard")

    def _check_label(self, sample: int, label: int) -> None:
        classes = len(self.source.classes)
        if classes and not 0 <= label < classes:
            raise ConfigError(
                f"{self._where(sample)}: has the label {label}, and {classes} classes have the labels 0 to "
                f"{classes - 1}; mend the data, or name all classes"
            )

    def _where(self, sample: int) -> str:
        """Returns what to call a sample, also when the file that holds its name cannot be read."""
        try:
            return self.source.where(sample)
        except OSError:
            return f"sample {sample}"


def _no_replacement(sample: int) -> None:
    """In evaluation every sample counts."""


def _stack(images: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    """Returns one tensor of this shape, with zeros after the last image; with an image of 16 bits, all get 16."""
    deep = any(image.dtype == torch.uint16 for image in images)
    out = torch.zeros(shape, dtype=torch.uint16 if deep else torch.uint8)
    for row, image in zip(out, images, strict=False):
        row.copy_(image if image.dtype == out.dtype else image.int() * 257)
    return out


def _filled(values: Ints | list[int], count: int) -> Tensor:
    out = torch.zeros(count, dtype=torch.int64)
    out[: len(values)] = torch.as_tensor(values)
    return out
