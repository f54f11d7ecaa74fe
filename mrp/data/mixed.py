"""Several sources in one run: every stretch of a batch holds the same number of samples of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mrp.config import ConfigError
from mrp.data.lanes import Lanes
from mrp.data.order import VERSION, Ints, Layout, Order, Slots, keys, permute
from mrp.data.sources import Config, Source
from mrp.data.views import Mixture


@dataclass(frozen=True, eq=False)
class Mixed:
    """The endless sequence of global batches over several sources, each of which has epochs of its own.

    An epoch of the whole is as many samples as the sources hold together.
    """

    sizes: tuple[int, ...]
    counts: tuple[int, ...]  # samples of each source in a stretch: the part of a group that one lane fills
    layouts: tuple[Layout | None, ...]
    batch: int
    seed: int
    lanes: int
    group: int

    @property
    def size(self) -> int:
        """Samples of all sources."""
        return sum(self.sizes)

    @property
    def steps_per_epoch(self) -> float:
        """Steps in which as many samples are shown as there are."""
        return self.size / self.batch

    @property
    def dropped(self) -> int:
        """None is left out: each source goes on from epoch to epoch."""
        return 0

    @property
    def shares(self) -> tuple[float, ...]:
        """The part of each batch that each source has, exactly."""
        return tuple(count / sum(self.counts) for count in self.counts)

    def slots(self, step: int, places: Ints | None = None) -> Slots:
        """What stands at these places (default: all) of global batch `step`."""
        places = np.arange(self.batch, dtype=np.int64) if places is None else places
        lanes, owners, offsets = self._in_lanes(step, places)
        samples, epochs = np.empty(len(places), np.int64), np.empty(len(places), np.int64)
        first = 0
        for number, (size, layout) in enumerate(zip(self.sizes, self.layouts, strict=True)):
            here = owners == number
            if layout is None:
                epochs[here], positions = np.divmod(offsets[here] * self.lanes + lanes[here], size)
                samples[here] = first + permute(positions, size, self.seed, epochs[here])
            else:
                epochs[here], positions = np.divmod(offsets[here], layout.sizes[lanes[here]])
                samples[here] = first + layout.samples(lanes[here], epochs[here], positions)
            first += size
        return Slots(samples, epochs, keys(self.seed, epochs, samples))

    def _in_lanes(self, step: int, places: Ints) -> tuple[Ints, Ints, Ints]:
        """Lane and source of each place, and how many samples that lane took of that source before."""
        stretch = self.group // self.lanes
        # Each source's places are spread evenly over the stretch, and so over ranks and micro-steps.
        spread = np.concatenate([(np.arange(count) + 0.5) / count for count in self.counts])
        turn = np.argsort(spread, kind="stable")
        owner = np.repeat(np.arange(len(self.counts)), self.counts)[turn]
        rank = np.concatenate([np.arange(count) for count in self.counts])[turn]
        inside = places % stretch
        owners = owner[inside]
        groups = step * (self.batch // self.group) + places // self.group
        return places % self.group // stretch, owners, groups * np.array(self.counts)[owners] + rank[inside]

    def shards(self, step: int, places: Ints) -> list[list[int]]:
        """The shards (those of all sources numbered one after another) needed at a step, and then those needed next."""
        lanes, owners, offsets = self._in_lanes(step, places)
        found, first = [], 0
        for number, layout in enumerate(self.layouts):
            if layout is None:
                continue
            for lane in np.unique(lanes[owners == number]).tolist():
                offset = int(offsets[(owners == number) & (lanes == lane)][0])
                windows = layout.shards(lane, *divmod(offset, int(layout.sizes[lane])))
                found.append([[first + shard for shard in shards] for shards in windows])
            first += layout.num_shards
        return [shards for turn in zip(*found, strict=True) for shards in turn]

    def state(self, step: int) -> dict[str, Any]:
        """Where the run stands after `step` optimizer steps."""
        consumed = step * self.batch
        epoch = consumed // self.size
        return {
            "order_version": VERSION, "seed": self.seed, "epoch": epoch, "consumed": consumed, "batch": self.batch
        }  # fmt: skip


def order(source: Source, config: Config, batch: int, seed: int, group: int | None = None) -> Order | Mixed:
    """The order in which a run shows its data; `group` is the micro-step where that couples samples."""
    group = group or batch
    if group % config.lanes:
        raise ConfigError(
            f"data.lanes: {config.lanes} does not divide the {group} samples of a batch; give a divisor of that"
        )
    if not isinstance(source, Mixture):
        layout = _layout(source, config, seed)
        return Order(len(source), batch, seed, config.tail, layout=layout, group=group)
    counts = _counts(source.weights, group // config.lanes)
    sizes = tuple(len(one) for one in source.sources)
    layouts = tuple(_layout(one, config, seed) for one in source.sources)
    return Mixed(sizes, counts, layouts, batch, seed, config.lanes, group)


def _layout(source: Source, config: Config, seed: int) -> Lanes | None:
    blocks = source.blocks
    if len(blocks) and len(source) < config.lanes:
        raise ConfigError(
            f"data.lanes: {config.lanes}, and a source has only {len(source)} samples; take fewer, or leave it out"
        )
    return Lanes(blocks, seed, config.lanes, config.window) if len(blocks) else None


def _counts(weights: tuple[float, ...], stretch: int) -> tuple[int, ...]:
    """Whole numbers in proportion to the weights, by largest remainder."""
    exact = np.array(weights) / sum(weights) * stretch
    counts = exact.astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: stretch - int(counts.sum())]] += 1
    if not counts.all():
        raise ConfigError(
            f"data.train.{int(counts.argmin())}.weight: too small to have one sample in {stretch}; raise it, take a "
            "larger batch or fewer data.lanes"
        )
    return tuple(counts.tolist())
