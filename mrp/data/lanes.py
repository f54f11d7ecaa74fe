"""The order of a set of shards: samples of one file are shown near in time, and a node needs only its lanes.

The shards, permuted by the seed, make one long line, which is cut into lanes of equal length for the whole run. Each
epoch a lane permutes its pieces of shards anew, takes them a window at a time, and shuffles the samples of a window.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from mrp.data.order import Ints, permute, permute_fairly

# The purpose of a permutation, which sets it apart from others.
_LAYOUT, _PIECES, _SAMPLES = 0x6C6179, 0x706365, 0x736D70


class _Turns(NamedTuple):
    """One lane in one epoch."""

    pieces: Ints  # their numbers, in the order of their turn
    ends: Ints  # where each ends, in samples from the start of the lane
    window_ends: Ints


class Lanes:
    """Which sample stands at a position of a lane in an epoch, computed from nothing but the sizes of the shards."""

    def __init__(self, shard_sizes: Ints, seed: int, lanes: int, window: int, *, fair: bool = False) -> None:
        self.shard_sizes, self.seed, self.lanes, self.window, self.fair = shard_sizes, seed, lanes, window, fair
        self._permute = permute_fairly if fair else permute
        permuted = self._permute(np.arange(len(shard_sizes)), len(shard_sizes), seed, _LAYOUT)
        ends = np.cumsum(shard_sizes[permuted])
        bounds = np.arange(lanes + 1, dtype=np.int64) * int(ends[-1]) // lanes
        self.sizes = np.diff(bounds)  # samples in each lane
        cuts = np.unique(np.concatenate([ends[shard_sizes[permuted] > 0], bounds[1:]]))
        starts = np.concatenate([[0], cuts[:-1]])
        places = np.searchsorted(ends, starts, side="right")  # the shard of each piece, in the permuted line
        firsts = np.cumsum(shard_sizes) - shard_sizes  # the first sample of each shard
        self._shards = permuted[places]
        self._starts = (
            firsts[self._shards] + starts - (ends - shard_sizes[permuted])[places]
        )  # each piece's first sample
        self._lengths = cuts - starts
        self._bounds = np.searchsorted(starts, bounds)  # the pieces of each lane
        self._turns = lru_cache(2 * lanes + 2)(self._arrange)

    @property
    def num_shards(self) -> int:
        """The number of shards."""
        return len(self.shard_sizes)

    def __reduce__(self) -> Any:
        return partial(Lanes, fair=self.fair), (self.shard_sizes, self.seed, self.lanes, self.window)

    def samples(self, lanes: Ints, epochs: Ints, positions: Ints) -> Ints:
        """Returns the sample at each position of each lane's epoch."""
        out = np.empty(len(positions), np.int64)
        for lane, epoch in np.unique(np.stack([lanes, epochs]), axis=1).T.tolist():
            here = (lanes == lane) & (epochs == epoch)
            turns = self._turns(lane, epoch)
            windows = np.searchsorted(turns.window_ends, positions, side="right")
            for window in np.unique(windows[here]).tolist():
                rows = here & (windows == window)
                out[rows] = self._shuffled(turns, lane, epoch, window, positions[rows])
        return out

    def _shuffled(self, turns: _Turns, lane: int, epoch: int, window: int, positions: Ints) -> Ints:
        """Returns the samples at positions of one window."""
        first = int(turns.window_ends[window - 1]) if window else 0
        width = int(turns.window_ends[window]) - first
        flat = first + self._permute(positions - first, width, self.seed, _SAMPLES, epoch, lane, window)
        turn = np.searchsorted(turns.ends, flat, side="right")
        pieces = turns.pieces[turn]
        samples: Ints = self._starts[pieces] + flat - (turns.ends[turn] - self._lengths[pieces])
        return samples

    def _arrange(self, lane: int, epoch: int) -> _Turns:
        first, last = self._bounds[lane : lane + 2].tolist()
        pieces = first + self._permute(np.arange(last - first), last - first, self.seed, _PIECES, epoch, lane)
        ends = np.cumsum(self._lengths[pieces])
        window_ends = np.append(ends[self.window - 1 :: self.window], ends[-1])
        return _Turns(pieces, ends, window_ends[:-1] if len(ends) % self.window == 0 else window_ends)

    def shards(self, lane: int, epoch: int, position: int) -> list[list[int]]:
        """Returns the shards of the window at a position and of the one after it, perhaps the next epoch's first."""
        windows: list[list[int]] = []
        turns = self._turns(lane, epoch)
        window = int(np.searchsorted(turns.window_ends, position, side="right"))
        for _ in range(2):
            if window == len(turns.window_ends):
                turns, window = self._turns(lane, epoch + 1), 0
            pieces = turns.pieces[window * self.window : (window + 1) * self.window]
            windows.append(self._shards[pieces].tolist())
            window += 1
        return windows
