"""Which sample is at which position of which global batch, and the key from which its randomness derives.

All of it is arithmetic on (size, batch, seed): nothing is stored, nothing depends on rank or worker, and a set of
a billion samples costs no more memory than one of ten.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mrp.data.lanes import Lanes

VERSION = 1  # part of a run's identity: raise it when any number below could come out differently for one source

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]
_ROUNDS = 6
_SMALL = 64  # elements up to which `permute_fairly` sorts them


class Slots(NamedTuple):
    """The samples of a slice of one global batch, the epoch each belongs to, and their keys."""

    samples: Ints
    epochs: Ints
    keys: Ints


def mix(words: Words) -> Words:
    """A bijective 64-bit hash (splitmix64's finaliser): every input bit moves every output bit."""
    words = words.copy()
    words ^= words >> np.uint64(30)
    words *= np.uint64(0xBF58476D1CE4E5B9)
    words ^= words >> np.uint64(27)
    words *= np.uint64(0x94D049BB133111EB)
    words ^= words >> np.uint64(31)
    return words


def fold(*parts: int | Ints | Words) -> Words:
    """Hash integers (or arrays of them, broadcast together) into 64-bit words, in order."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        state = _fold_in(state, part)
    return state


def _fold_in(state: Words, part: int | Ints | Words) -> Words:
    if isinstance(part, (int, np.integer)):
        word = np.array([int(part) & 0xFFFFFFFFFFFFFFFF], np.uint64)
    else:
        word = part.astype(np.uint64)
    return mix((state + np.uint64(0x9E3779B97F4A7C15)) ^ mix(word))


def keys(seed: int, epochs: Ints | int, samples: Ints, view: int = 0) -> Ints:
    """Returns one non-negative key per sample: all of its randomness (crop, flip, mask, drop path) comes from it."""
    return (fold(seed, epochs, samples, view) >> np.uint64(1)).astype(np.int64)


def permute(positions: Ints, size: int, *key: int | Ints) -> Ints:
    """Apply a keyed bijection of [0, size): a Feistel network over a power of four, repeated until inside."""
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = np.uint64((1 << half) - 1)
    shift = np.uint64(half)
    folded = fold(*key)
    round_keys = [np.broadcast_to(_fold_in(folded, index), positions.shape) for index in range(_ROUNDS)]
    out = positions.astype(np.uint64)
    pending = np.ones(out.shape, bool)
    while pending.any():
        left, right = out[pending] >> shift, out[pending] & low
        for round_key in round_keys:
            left, right = right, left ^ (mix(right ^ round_key[pending]) & low)
        out[pending] = left << shift | right
        pending = out >= size
    return out.astype(np.int64)


def permute_fairly(positions: Ints, size: int, *key: int | Ints) -> Ints:
    """Apply a keyed bijection of [0, size) that is fair for very small sizes too.

    `permute` prefers some permutations of a handful of elements, and of 16 it only ever makes the even ones.
    """
    if size > _SMALL or not len(positions):  # none where a process or a micro-step has no place of this source
        return permute(positions, size, *key)
    columns = [part if isinstance(part, int) else np.broadcast_to(part, positions.shape)[:, None] for part in key]
    turns = np.argsort(fold(*columns, np.arange(size)).reshape(-1, size), axis=1, kind="stable")
    permuted: Ints = turns[np.arange(len(positions)) if len(turns) > 1 else 0, positions]
    return permuted


def share(batch: int, group: int, rank: int, world: int) -> Ints:
    """Returns the places of the global batch that one rank takes, in the order in which it takes them.

    The batch is cut into groups, and a rank takes a contiguous slice of each. A group is the whole batch, or, where
    samples act on each other within a micro-step, the micro-step: then the same samples meet on any number of ranks.
    """
    return np.arange(batch, dtype=np.int64).reshape(batch // group, world, group // world)[:, rank].reshape(-1)


@dataclass(frozen=True, slots=True)
class Order:
    """The endless sequence of global batches over one source: each epoch is a fresh permutation.

    With a layout, each group of the batch (the batch, or the micro-step where samples act on each other) is cut into
    one stretch per lane, so that the contiguous slice which a rank takes of it is in as few lanes as possible.
    """

    size: int
    batch: int
    seed: int
    tail: Literal["drop", "continuous"] = "drop"
    layout: Lanes | None = None
    group: int = 0  # by default the batch
    fair: bool = False  # permutes with `permute_fairly`
    version: ClassVar[int] = VERSION

    @property
    def steps_per_epoch(self) -> float:
        """Steps in one epoch; with the continuous tail an epoch may end inside a batch."""
        return self.size // self.batch if self.tail == "drop" else self.size / self.batch

    @property
    def dropped(self) -> int:
        """The number of samples left out of each epoch (others each time), because they do not fill a batch."""
        return self.size % self.batch if self.tail == "drop" else 0

    def slots(self, step: int, places: Ints | None = None) -> Slots:
        """Returns what stands at these places (default: all) of global batch `step`."""
        places = np.arange(self.batch, dtype=np.int64) if places is None else places
        lanes, epochs, positions = self._positions(step, places)
        if self.layout is not None:
            samples = self.layout.samples(lanes, epochs, positions)
        else:
            samples = (permute_fairly if self.fair else permute)(positions, self.size, self.seed, epochs)
        return Slots(samples, epochs, keys(self.seed, epochs, samples))

    def _positions(self, step: int, places: Ints) -> tuple[Ints, Ints, Ints]:
        """Returns the lane of each place, the epoch of the lane, and the position in it."""
        num_lanes = self.layout.lanes if self.layout else 1
        group, each = self.group or self.batch, self.batch // num_lanes
        stretch = group // num_lanes
        lanes = places % group // stretch
        offsets = places // group * stretch + places % stretch
        if self.tail == "drop":
            epoch, step = divmod(step, self.size // self.batch)
            return lanes, np.full_like(places, epoch), step * each + offsets
        epochs, positions = np.divmod(step * each + offsets, self.layout.sizes[lanes] if self.layout else self.size)
        return lanes, epochs, positions

    def windows(self, step: int, places: Ints) -> list[list[list[int]]]:
        """Returns, for each lane, the shards that these places need at a step, and those that they need next."""
        if self.layout is None:
            return []
        lanes, epochs, positions = self._positions(step, places)
        _, first = np.unique(lanes, return_index=True)
        return [self.layout.shards(int(lanes[i]), int(epochs[i]), int(positions[i])) for i in first]

    def shards(self, step: int, places: Ints) -> list[list[int]]:
        """Returns the same: first what all lanes need now, then what they need next."""
        return in_turn(self.windows(step, places))

    def state(self, step: int) -> dict[str, Any]:
        """Returns where the run stands after `step` optimizer steps: for people and checks, never needed to resume."""
        epoch = step // max(1, self.size // self.batch) if self.tail == "drop" else step * self.batch // self.size
        return progress(self.version, self.seed, epoch, step * self.batch, self.batch)


def progress(order_version: int, seed: int, epoch: int, consumed: int, batch: int) -> dict[str, Any]:
    """Returns where a run stands in its data, as checkpoints say it."""
    return {"order_version": order_version, "seed": seed, "epoch": epoch, "consumed": consumed, "batch": batch}


def in_turn(windows: list[list[list[int]]]) -> list[list[int]]:
    """Returns every lane's first window, and then every lane's second one."""
    return [shards for turn in zip(*windows, strict=True) for shards in turn]
