"""Several sources in one run: every stretch of a batch holds the same number of samples of each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mrp.config import ConfigError
from mrp.data.config import Config
from mrp.data.lanes import Lanes
from mrp.data.order import Ints, Order, Slots, fold, in_turn, keys, progress
from mrp.data.source import Derived, RawImage, Source

# Part of a run's identity. Version 1 took the same permutation for all sources: of two equally large ones, sample i of
# the first always met sample i of the second. Runs that began with it go on with it.
VERSION = 2
_SOURCE = 0x736F7572  # the purpose of a hash, which sets it apart from others


class Mixture(Derived):
    """The samples of several sources, numbered one source after another; how often each is shown is `Mixed`'s.

    It has no shards of its own: `Mixed` asks the sources for theirs.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float]) -> None:
        self.sources, self.weights = tuple(sources), tuple(weights)
        self.checked = all(source.checked for source in sources)
        self.partial = any(source.partial for source in sources)
        self.left_out = "; ".join(source.left_out for source in sources if source.left_out)
        same = len({source.classes for source in sources}) == 1
        self.classes = sources[0].classes if same else ()  # labels that mean different things are not kept
        self.tags = sources[0].tags if len({source.tags for source in sources}) == 1 else ()
        self._ends = np.cumsum([len(source) for source in sources])

    def _known_by(self, what: Callable[[Source], str]) -> str:
        parts = [what(source) for source in self.sources]
        return hashlib.sha256(repr((parts, self.weights)).encode()).hexdigest()

    @property
    def labels(self) -> NDArray[Any]:  # not kept: it would be copied to every worker
        """The label of every sample."""
        if not self.classes:
            return np.broadcast_to(np.int64(-1), len(self))
        return np.concatenate([source.labels for source in self.sources])

    @property
    def tagged(self) -> NDArray[np.int8]:
        """Which tags every sample has."""
        return np.concatenate([source.tagged if self.tags else source.tagged[:, :0] for source in self.sources])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _find(self, index: int) -> tuple[Source, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        source = self.sources[number]
        return source, index - int(self._ends[number]) + len(source)

    def read(self, index: int) -> tuple[RawImage, int]:
        """Returns the image and the label that its source gives."""
        source, inside = self._find(index)
        return source.read(inside)

    def replacement(self, index: int) -> int | None:
        """Returns the sample that its source would show in place of it."""
        source, inside = self._find(index)
        other = source.replacement(inside)
        return None if other is None else index - inside + other

    def fetch(self, shard: int) -> None:
        """Makes its source fetch a shard; those of all sources are numbered one source after another."""
        for source in self.sources:
            if shard < len(source.shard_sizes):
                source.fetch(shard)
                return
            shard -= len(source.shard_sizes)


@dataclass(frozen=True, eq=False)
class Mixed:
    """The endless sequence of global batches over several sources, each of which has epochs of its own.

    Each group of a batch is cut into one stretch per lane, and each stretch holds the same number of samples of each
    source. An epoch of the whole is as many samples as the sources hold together.
    """

    parts: tuple[Order, ...]  # of each source: which of its samples come in its share of the batch
    batch: int
    seed: int
    lanes: int
    group: int
    version: int = VERSION
    dropped: ClassVar[int] = 0

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of samples of each source."""
        return tuple(part.size for part in self.parts)

    @property
    def size(self) -> int:
        """The number of samples of all sources."""
        return sum(self.sizes)

    @property
    def steps_per_epoch(self) -> float:
        """Steps in which as many samples are shown as there are."""
        return self.size / self.batch

    @property
    def shares(self) -> tuple[float, ...]:
        """The exact part of each batch that each source has."""
        return tuple(part.batch / self.batch for part in self.parts)

    def slots(self, step: int, places: Ints | None = None) -> Slots:
        """Returns what stands at these places (default: all) of global batch `step`."""
        places = np.arange(self.batch, dtype=np.int64) if places is None else places
        samples, epochs, first = np.empty_like(places), np.empty_like(places), 0
        for part, (here, inside) in zip(self.parts, self._split(places), strict=True):
            slots = part.slots(step, inside)
            samples[here], epochs[here] = first + slots.samples, slots.epochs
            first += part.size
        return Slots(samples, epochs, keys(self.seed, epochs, samples))

    def state(self, step: int) -> dict[str, Any]:
        """Returns where the run stands after `step` optimizer steps: for people and checks, never needed to resume."""
        consumed = step * self.batch
        return progress(self.version, self.seed, consumed // self.size, consumed, self.batch)

    def _split(self, places: Ints) -> Iterator[tuple[NDArray[np.bool_], Ints]]:
        """Yield, for each source, which of the places are its own, and their places in its share of the batch."""
        stretch = self.group // self.lanes
        counts = [part.group // self.lanes for part in self.parts]
        # Each source's places are spread evenly over the stretch, and so over ranks and micro-steps.
        turn = np.argsort(np.concatenate([(np.arange(count) + 0.5) / count for count in counts]), kind="stable")
        owner = np.repeat(np.arange(len(counts)), counts)[turn][places % stretch]
        rank = np.concatenate([np.arange(count) for count in counts])[turn][places % stretch]
        groups, lanes = places // self.group, places % self.group // stretch
        for number, (part, count) in enumerate(zip(self.parts, counts, strict=True)):
            inside = lanes * count + rank if part.layout else rank * self.lanes + lanes
            here = owner == number
            yield here, (groups * part.group + inside)[here]

    def shards(self, step: int, places: Ints) -> list[list[int]]:
        """Returns the shards needed at a step, and then those needed next, numbered one source after another."""
        windows, first = [], 0
        for part, (_, inside) in zip(self.parts, self._split(places), strict=True):
            for lane in part.windows(step, inside):
                windows.append([[first + shard for shard in shards] for shards in lane])
            first += part.layout.num_shards if part.layout else 0
        return in_turn(windows)


def order(
    source: Source, config: Config, batch: int, seed: int, group: int | None = None, version: int = VERSION
) -> Order | Mixed:
    """Returns the order in which a run shows its data; `group` is the micro-step where samples act on each other.

    `version` is that of mixtures.
    """
    group, lanes = group or batch, config.lanes
    if group % lanes:
        raise ConfigError(f"data.lanes: {lanes} does not divide the {group} samples of a batch; give a divisor of that")
    if not isinstance(source, Mixture):
        return Order(len(source), batch, seed, config.tail, _layout(source, config, seed), group)
    fair, parts = version > 1, []
    counts = _counts(source.weights, group // lanes)
    for number, (part, count) in enumerate(zip(source.sources, counts, strict=True)):
        part_seed = int(fold(seed, _SOURCE, number)[0] >> np.uint64(1)) if fair else seed
        layout = _layout(part, config, part_seed, fair=fair)
        share = count * lanes
        parts.append(Order(len(part), share * (batch // group), part_seed, "continuous", layout, share, fair))
    return Mixed(tuple(parts), batch, seed, lanes, group, version)


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
