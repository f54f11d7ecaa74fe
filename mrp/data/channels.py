"""Channels by name: those that a run wants, in its order, of sources that hold others, or fewer of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mrp import progress
from mrp.config import ConfigError, nearest
from mrp.data.order import Ints
from mrp.data.source import DecodeError, Derived, Partial, RawImage, Source


class Channels(Derived):
    """A source with its channels in the order of these names; of those that it has not, every sample lacks one."""

    def __init__(self, source: Source, names: tuple[str, ...]) -> None:
        self.source, self.channels, self.checked = source, names, source.checked
        self.classes, self.labels, self.left_out = source.classes, source.labels, source.left_out
        self.tags, self.tagged = source.tags, source.tagged
        self._places = np.array([source.channels.index(name) if name in source.channels else -1 for name in names])
        self.partial = source.partial or bool((self._places < 0).any())

    def _known_by(self, what: Callable[[Source], str]) -> str:
        return hashlib.sha256(f"{what(self.source)}\n{self.channels}".encode()).hexdigest()

    @cached_property
    def shard_sizes(self) -> Ints:
        """How many samples each shard holds."""
        return self.source.shard_sizes

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> tuple[RawImage, int]:
        """Returns the source's pixels, channel by channel; zeros stand in a channel that it has not."""
        image, label = self.source.read(index)
        pixels, present = image if isinstance(image, Partial) else (image, None)
        if isinstance(pixels, bytes) or pixels.shape[2] != len(self.source.channels):
            raise DecodeError(f"not the pixels of the {len(self.source.channels)} channels that the source names")
        known = self._places >= 0
        here: NDArray[np.bool_] = known if present is None else known & present[self._places]
        if not here.any():
            raise DecodeError(f"has none of the channels {', '.join(self.channels)}")
        chosen = np.where(known, pixels[..., self._places], 0).astype(pixels.dtype)
        return chosen if here.all() else Partial(chosen, here), label

    def _find(self, index: int) -> tuple[Source, int]:
        return self.source, index

    def replacement(self, index: int) -> int | None:
        """Returns the sample that the source would show in place of it."""
        return self.source.replacement(index)

    def fetch(self, shard: int) -> None:
        """Makes the source fetch the shard."""
        self.source.fetch(shard)


def choose(sources: Sequence[Source], where: str, wanted: int | tuple[str, ...]) -> list[Source]:
    """Returns the sources with the channels of these names; a source whose channels have no names stays as it is."""
    if isinstance(wanted, int):
        return list(sources)
    if all(source.channels for source in sources):
        check_known(where, wanted, dict.fromkeys(name for source in sources for name in source.channels))
    return [source if source.channels in ((), wanted) else Channels(source, wanted) for source in sources]


def check_known(where: str, wanted: Iterable[str], known: Iterable[str]) -> None:
    """Refuses names of which no sample has any, and warns of one that none has: it may be misspelt."""
    wanted, known = list(wanted), list(known)
    lost = [name for name in wanted if name not in known]
    if lost and len(lost) == len(wanted):
        raise ConfigError(f"{where}: has none of the channels {', '.join(lost)}; it has {', '.join(known)}")
    if lost:
        hint = nearest(lost[0], known)
        progress.say(f"warning: {where}: no sample that was looked at has the channel '{lost[0]}'{hint}")
