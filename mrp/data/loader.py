"""From places in the order to batches in memory, by worker processes that hold no state.

A worker is handed the number of a batch and computes the rest, so there is no position to save, and neither the number
of workers nor that of ranks changes a pixel.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import partial
from multiprocessing import parent_process
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from mrp.batch import Batch
from mrp.config import ConfigError
from mrp.data.augment import View
from mrp.data.cache import Prefetch
from mrp.data.deaf import ignore_requests, start_fork_server
from mrp.data.decode import DecodeError, UnfitError, decode
from mrp.data.mixed import Mixed
from mrp.data.order import Ints, Order, keys, share
from mrp.data.quarantine import Bad, Quarantine
from mrp.data.sources import Samples, Source

_AHEAD = 2  # batches that each worker prepares before they are asked for


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
        self._span = _Span(range(0))
        dataset = _Dataset(
            source, view, _Steps(order, places, view.views), _Instead(source.neighbour, self._quarantine.known)
        )
        self._open = partial(_torch_loader, dataset, self._span, workers, pin_memory, persistent=True)
        self._batches = self._open()

    def steps(self, start: int, stop: int) -> Iterator[list[Batch]]:
        """The micro-batches of each optimizer step; one span at a time."""
        self._span.numbers = range(start * self.accumulation, stop * self.accumulation)
        micro_batches = _received(self._batches)
        prefetch, asked = Prefetch(), list[list[int]]()
        try:
            for step in range(start, stop):
                wanted = self._order.shards(step, self._places)
                for shard in (shard for shards in wanted if shards not in asked for shard in shards):
                    self._source.prefetch(prefetch, shard)
                asked = wanted
                made = [next(micro_batches) for _ in range(self.accumulation)]
                self._quarantine.add(bad for part in made for bad in part.bad)
                yield [part.batch for part in made]
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

    With `instead`, a sample that is no image is replaced, as in training, by the one that this names.
    """

    def __init__(
        self,
        source: Samples,
        view: View,
        *,
        batch: int,
        rank: int,
        world: int,
        workers: int,
        pin_memory: bool,
        instead: Callable[[int], int | None] | None = None,
    ) -> None:
        each = -(-len(source) // world)
        start = min(rank * each, len(source))
        plan = _Once(start, min(start + each, len(source)), batch)
        self._span = _Span(range(-(-each // batch)))
        dataset = _Dataset(source, view, plan, _Instead(instead, frozenset()) if instead else None)
        self._batches = _torch_loader(dataset, self._span, workers, pin_memory, persistent=False)

    def __len__(self) -> int:
        return len(self._span)

    def __iter__(self) -> Iterator[Batch]:
        for made in _received(self._batches):
            yield made.batch


class _Rows(NamedTuple):
    """What a batch consists of."""

    samples: Ints
    keys: Ints  # views, samples
    valid: Tensor | None
    step: int


class _Plan(Protocol):
    """The batches by number."""

    def rows(self, number: int) -> _Rows: ...


@dataclass(frozen=True, slots=True)
class _Steps:
    """Training: micro-step after micro-step."""

    order: Order | Mixed
    places: Ints  # accumulation, micro-batch
    views: int

    def rows(self, number: int) -> _Rows:
        step, part = divmod(number, len(self.places))
        slots = self.order.slots(step, self.places[part])
        every = [slots.keys]
        every += [keys(self.order.seed, slots.epochs, slots.samples, view) for view in range(1, self.views)]
        return _Rows(slots.samples, np.stack(every), None, step)


@dataclass(frozen=True, slots=True)
class _Once:
    """Evaluation: a slice of the data from its start to its end."""

    start: int
    stop: int
    batch: int

    def rows(self, number: int) -> _Rows:
        first = self.start + number * self.batch
        samples = np.arange(first, max(first, min(first + self.batch, self.stop)))
        valid = torch.arange(self.batch) < len(samples)
        return _Rows(samples, keys(0, 0, samples)[None], valid, 0)


class _Fault(NamedTuple):
    """What a worker sends in place of a batch that it cannot make: one line, where an exception would be forty."""

    message: str


class _Instead(NamedTuple):
    """What to show for a sample that is intact and yet no image: not where results are judged, for there all count."""

    neighbour: Callable[[int], int | None]
    known: Set[int]  # samples that need not be tried


class _Made(NamedTuple):
    """A batch, and the samples of it that were found to be no images."""

    batch: Batch
    bad: list[Bad]


class _Dataset(Dataset[_Made | _Fault]):
    """Batches made from nothing but their number."""

    def __init__(self, source: Samples, view: View, plan: _Plan, instead: _Instead | None = None) -> None:
        self.source, self.view, self.plan, self.instead = source, view, plan, instead

    def __getitem__(self, number: int) -> _Made | _Fault:
        rows = self.plan.rows(number)
        bad: list[Bad] = []
        try:
            pairs = [self._read(*pair, bad) for pair in zip(rows.samples.tolist(), rows.keys.T.tolist(), strict=True)]
        except ConfigError as error:
            return _Fault(str(error))
        except MemoryError:
            return _Fault("machine.workers: there is no memory left to decode images in; take fewer of them")
        count = rows.keys.size if rows.valid is None else len(rows.valid)
        # All samples' first views, then their second ones: neighbours, which may be mixed, are never of one sample.
        seen = [images[view] for view in range(len(rows.keys)) for images, _ in pairs]
        images = _stack(seen, (count, self.view.channels, *self.view.size))
        labels = _filled([label for _, label in pairs] * len(rows.keys), count) if self.source.classes else None
        keys_ = _filled(rows.keys.reshape(-1), count)
        return _Made(Batch(images, keys_, labels, rows.valid, torch.tensor(rows.step)), bad)

    def _read(self, sample: int, keys_: list[int], bad: list[Bad]) -> tuple[list[Tensor], int]:
        """The sample under each key; one that is intact but no image is replaced by the next good one of its shard."""
        tried, met = sample, set[int]()
        while tried not in met:
            met.add(tried)
            known = self.instead is not None and tried in self.instead.known
            following = self._following(tried) if known else None
            if following is None:
                try:
                    data, label = self.source.read(tried)
                    image = decode(data, self.view.channels)
                    return [self.view(image, key) for key in keys_], label
                except UnfitError as error:
                    raise ConfigError(f"{self._where(tried)}: {error}") from None
                except DecodeError as error:
                    fault, following = str(error), self._following(tried)
                except OSError as error:
                    fault = f"cannot be read: {error.strerror or error}"
                if following is None:
                    raise ConfigError(f"{self._where(tried)}: {fault}; mend it under the same name and run again")
                bad.append(Bad(tried, self._where(tried), fault))
            tried = following
        raise ConfigError(f"{self._where(sample)}: no sample of its shard is an image; remove the shard")

    def _following(self, sample: int) -> int | None:
        return self.instead.neighbour(sample) if self.instead else None

    def _where(self, sample: int) -> str:
        """What to call a sample, also when the place that knows its name is what cannot be read."""
        try:
            return self.source.where(sample)
        except OSError:
            return f"sample {sample}"


def _stack(images: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    """One tensor of this shape, with zeros where images are lacking; among images of 16 bits all get 16."""
    deep = any(image.dtype == torch.uint16 for image in images)
    out = torch.zeros(shape, dtype=torch.uint16 if deep else torch.uint8)
    for row, image in zip(out, images, strict=False):
        row.copy_(image if image.dtype == out.dtype else image.int() * 257)
    return out


def _filled(values: Ints | list[int], count: int) -> Tensor:
    out = torch.zeros(count, dtype=torch.int64)
    out[: len(values)] = torch.as_tensor(values)
    return out


class _Span(Sampler[int]):
    """The numbers to go through next; workers that live on are given new ones by changing it."""

    def __init__(self, numbers: range) -> None:
        self.numbers = numbers

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)


def _torch_loader(
    dataset: _Dataset, span: _Span, workers: int, pin_memory: bool, *, persistent: bool
) -> DataLoader[Any]:
    """Torch's loader with one batch an item; its own generator leaves the global one alone.

    Workers come from a fork server, which is started without CUDA or threads; torch gives each of them one thread.
    """
    options: dict[str, Any] = {}
    if workers:
        start_fork_server([__name__])  # import torch once for all
        options = {"multiprocessing_context": "forkserver", "persistent_workers": persistent, "prefetch_factor": _AHEAD}
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=span,
        num_workers=workers,
        pin_memory=pin_memory,
        generator=torch.Generator(),
        worker_init_fn=_end_with_parent,
        **options,
    )


def _end_with_parent(_: int) -> None:
    """Have a worker die with a training process that is killed: torch only watches the fork server, which lives on.

    A signal that asks the run to end is the training process's affair, which still needs batches for the step it is in.
    """
    ignore_requests()

    def watch() -> None:
        parent = parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _received(batches: DataLoader[Any]) -> Iterator[_Made]:
    """The batches, or what went wrong with them in one line."""
    try:
        for batch in batches:
            if isinstance(batch, _Fault):
                raise ConfigError(batch.message)
            yield batch
    except (RuntimeError, ConnectionError, FileNotFoundError, EOFError) as error:
        if not _of_a_dead_worker(error, batches.num_workers):
            raise
        raise ConfigError(
            "machine.workers: a worker process of the loader died, most often for lack of memory (or of /dev/shm, in a "
            "container); take fewer workers or a smaller micro-batch"
        ) from None
    finally:
        del batches  # or the traceback keeps the workers, and collecting them as a cycle takes torch five seconds


def _of_a_dead_worker(error: Exception, workers: int) -> bool:
    """Whether this is what is met when a worker dies with a batch half handed over, and no fault of its own work."""
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker (pid")
    named = isinstance(error, FileNotFoundError) and error.filename is not None  # a socket that is gone has no name
    return workers > 0 and not named and not str(error).startswith("Caught ")  # torch's word for what a worker raised
