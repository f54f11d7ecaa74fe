"""Turns positions in the order into batches in memory, in worker processes that hold no state.

A worker is handed the number of a batch and computes the rest, so there is no position to save, and neither the number
of workers nor that of ranks changes a pixel.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator
from functools import partial

from mrp.batch import Batch
from mrp.config import ConfigError
from mrp.data.augment import View
from mrp.data.batches import Batches, EvaluationPlan, TrainingPlan
from mrp.data.mixtures import Mixed
from mrp.data.order import Ints, Order, share
from mrp.data.quarantine import Quarantine
from mrp.data.source import Source
from mrp.data.storage.cache import Prefetch
from mrp.data.workers import Numbers, received, torch_loader


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
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        pin_memory: bool = False,
        quarantine: Quarantine | None = None,
    ) -> None:
        places = divided(order, view.views, group, micro_batch, rank, world)
        self.accumulation = len(places)
        self._source, self._order, self._places = source, order, places.reshape(-1)
        self._quarantine = Quarantine() if quarantine is None else quarantine
        self._numbers = Numbers(range(0))
        plan = TrainingPlan(order, places, view.views)
        dataset = Batches(source, view, plan, source.replacement, self._quarantine.known)
        self._open = partial(torch_loader, dataset, self._numbers, workers, pin_memory, persistent=True)
        self._batches = self._open()

    def steps(self, start: int, stop: int) -> Iterator[list[Batch]]:
        """Yields the micro-batches of each optimizer step; only one span can be open at a time."""
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

    def micro_batches(self) -> Generator[Batch]:
        """Yields micro-batches one by one without end, and keeps no record: for measuring how fast they come."""
        self._numbers.range = range(sys.maxsize)
        for result in received(self._batches):
            yield result.batch

    def close(self) -> None:
        """Ends the worker processes; another span would start new ones."""
        self._batches = self._open()


def divided(order: Order | Mixed, views: int, group: int, micro_batch: int, rank: int, world: int) -> Ints:
    """Returns the places of the global batch that a rank takes, one row per micro-batch; numbers are of images."""
    group, taken = group // views, micro_batch // views  # in samples from here on
    assert order.batch % group == group % (taken * world) == 0, "derived when the run was resolved"
    return share(order.batch, group, rank, world).reshape(-1, taken)


class EvalLoader:
    """Every sample exactly once over all ranks, in batches of one shape, and as many on every rank.

    With `replacement`, a sample that is no image is replaced, as in training, by the one that this returns.
    """

    def __init__(
        self,
        source: Source,
        view: View,
        *,
        batch: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        pin_memory: bool = False,
        replacement: Callable[[int], int | None] | None = None,
    ) -> None:
        share_ = -(-len(source) // world)
        start = min(rank * share_, len(source))
        plan = EvaluationPlan(start, min(start + share_, len(source)), batch)
        self._numbers = Numbers(range(-(-share_ // batch)))
        dataset = Batches(source, view, plan, replacement)
        self._batches = torch_loader(dataset, self._numbers, workers, pin_memory, persistent=False)

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Batch]:
        for result in received(self._batches):
            yield result.batch
