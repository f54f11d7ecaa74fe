"""Several sources in one run: every stretch of a batch holds the same number of samples of each."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrp.config import ConfigError
from mrp.data.config import Config
from mrp.data.lanes import Lanes
from mrp.data.order import Ints, Layout, Order, Slots, fold, keys, permute, permute_fairly
from mrp.data.source import Pixels, Source

# Part of a run's identity. Version 1 took the same permutation for all sources: of two equally large ones, sample i of
# the first always met sample i of the second. Runs that began with it go on with it.
VERSION = 2
_SOURCE = 0x736F7572  # the purpose of a hash, which sets it apart from others


class Mixture(Source):
    """The samples of several sources, numbered one source after another; how often each is shown is `Mixed`'s.

    It has no shards of its own: `Mixed` asks the sources for theirs.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float]) -> None:
        self.sources, self.weights = tuple(sources), tuple(weights)
        same = len({source.classes for source in sources}) == 1
        self.classes = sources[0].classes if same else ()  # labels that mean different things are not kept
        self._ends = np.cumsum([len(source) for source in sources])

    @cached_property
    def identity(self) -> str:
        """A sha256 of the sources' identities and their weights."""
        return self._digest([source.identity for source in self.sources])

    @cached_property
    def content(self) -> str:
        """A sha256 of the sources' contents and their weights."""
        return self._digest([source.content for source in self.sources])

    def _digest(self, parts: list[str]) -> str:
        return hashlib.sha256(repr((parts, self.weights)).encode()).hexdigest()

    @property
    def labels(self) -> NDArray[Any]:  # not kept: it would be copied to every worker
        """The label of every sample."""
        return np.concatenate([source.labels for source in self.sources])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _find(self, index: int) -> tuple[Source, int]:
        """Returns the source of a sample, and the number of that source's first sample."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self.sources[number], int(self._ends[number]) - len(self.sources[number])

    def read(self, index: int) -> tuple[bytes | Pixels, int]:
        """Returns the image and the label that its source gives."""
        source, first = self._find(index)
        return source.read(index - first)

    def where(self, index: int) -> str:
        """Returns what its source calls it."""
        source, first = self._find(index)
        return source.where(index - first)

    def replacement(self, index: int) -> int | None:
        """Returns the sample that its source would show in place of it."""
        source, first = self._find(index)
        inside = source.replacement(index - first)
        return None if inside is None else first + inside

    def fetch(self, shard: int) -> None:
        """Have its source fetch a shard; those of all sources are numbered one source after another."""
        for source in self.sources:
            if shard < len(source.shard_sizes):
                source.fetch(shard)
                return
            shard -= len(source.shard_sizes)


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
    version: int = VERSION

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
        """The exact part of each batch that each source has."""
        return tuple(count / sum(self.counts) for count in self.counts)

    def slots(self, step: int, places: Ints | None = None) -> Slots:
        """Returns what stands at these places (default: all) of global batch `step`."""
        places = np.arange(self.batch, dtype=np.int64) if places is None else places
        lanes, owners, offsets = self._in_lanes(step, places)
        samples, epochs = np.empty(len(places), np.int64), np.empty(len(places), np.int64)
        first = 0
        for number, (size, layout) in enumerate(zip(self.sizes, self.layouts, strict=True)):
            here = owners == number
            if layout is None:
                epochs[here], positions = np.divmod(offsets[here] * self.lanes + lanes[here], size)
                permuted = permute if self.version == 1 else permute_fairly
                seed = _source_seed(self.seed, number, self.version)
                samples[here] = first + permuted(positions, size, seed, epochs[here])
            else:
                epochs[here], positions = np.divmod(offsets[here], layout.sizes[lanes[here]])
                samples[here] = first + layout.samples(lanes[here], epochs[here], positions)
            first += size
        return Slots(samples, epochs, keys(self.seed, epochs, samples))

    def _in_lanes(self, step: int, places: Ints) -> tuple[Ints, Ints, Ints]:
        """Returns lane and source of each place, and how many samples that lane took of that source before."""
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
        """Returns the shards needed at a step, and then those needed next, numbered one source after another."""
        lanes, owners, offsets = self._in_lanes(step, places)
        needed, first = [], 0
        for number, layout in enumerate(self.layouts):
            if layout is None:
                continue
            for lane in np.unique(lanes[owners == number]).tolist():
                offset = int(offsets[(owners == number) & (lanes == lane)][0])
                windows = layout.shards(lane, *divmod(offset, int(layout.sizes[lane])))
                needed.append([[first + shard for shard in shards] for shards in windows])
            first += layout.num_shards
        return [shards for turn in zip(*needed, strict=True) for shards in turn]

    def state(self, step: int) -> dict[str, Any]:
        """Returns where the run stands after `step` optimizer steps."""
        consumed = step * self.batch
        epoch = consumed // self.size
        return {
            "order_version": self.version, "seed": self.seed, "epoch": epoch, "consumed": consumed, "batch": self.batch
        }  # fmt: skip


def _source_seed(seed: int, number: int, version: int) -> int:
    return seed if version == 1 else int(fold(seed, _SOURCE, number)[0] >> np.uint64(1))


def order(
    source: Source, config: Config, batch: int, seed: int, group: int | None = None, version: int = VERSION
) -> Order | Mixed:
    """Returns the order in which a run shows its data; `group` is the micro-step where samples act on each other.

    `version` is that of mixtures.
    """
    group = group or batch
    if group % config.lanes:
        raise ConfigError(
            f"data.lanes: {config.lanes} does not divide the {group} samples of a batch; give a divisor of that"
        )
    if not isinstance(source, Mixture):
        layout = _layout(source, config, seed)
        return Order(len(source), batch, seed, config.tail, layout=layout, group=group)
    counts = _counts(source.weights, group // config.lanes)
    sizes = tuple(len(part) for part in source.sources)
    seeds = [_source_seed(seed, number, version) for number in range(len(sizes))]
    parts = zip(source.sources, seeds, strict=True)
    layouts = tuple(_layout(part, config, part_seed, fair=version > 1) for part, part_seed in parts)
    return Mixed(sizes, counts, layouts, batch, seed, config.lanes, group, version)


def _layout(source: Source, config: Config, seed: int, *, fair: bool = False) -> Lanes | None:
    sizes = source.shard_sizes
    if len(sizes) and len(source) < config.lanes:
        raise ConfigError(
            f"data.lanes: {config.lanes}, and a source has only {len(source)} samples; take fewer, or leave it out"
        )
    return Lanes(sizes, seed, config.lanes, config.window, fair=fair) if len(sizes) else None


def _counts(weights: tuple[float, ...], stretch: int) -> tuple[int, ...]:
    """Returns whole numbers in proportion to the weights, by largest remainder."""
    exact = np.array(weights) / sum(weights) * stretch
    counts = exact.astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: stretch - int(counts.sum())]] += 1
    if not counts.all():
        raise ConfigError(
            f"data.train.{int(counts.argmin())}.weight: too small to have one sample in {stretch}; raise it, take a "
            "larger batch or fewer data.lanes"
        )
    return tuple(counts.tolist())
