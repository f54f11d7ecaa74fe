"""Some samples of a source: chosen classes, a fraction of each, evenly spaced ones, or a fixed sample."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mrp
from mrp.config import ConfigError, nearest, reading
from mrp.data.order import Ints, fold, permute
from mrp.data.source import Derived, RawImage, Source

_FRACTION, _SAMPLE = 0x66726163, 0x73616D70  # the purpose of a hash, which sets it apart from others
_SAMPLED_SHARDS = 4  # a fixed sample is from so few, if these hold enough: each may have to be fetched whole
# Lists of classes that come with mrp; people ask which classes a name means, so what it means never changes.
_LISTS = {"imagenet100.txt": "5ee5db69d488bb799a286d8e181801c3d02798776c1ce9203e5450f64e086e07"}


class Subset(Derived):
    """Some samples of a source, by their numbers in it."""

    def __init__(
        self, source: Source, chosen: Ints, labels: NDArray[Any] | None = None, classes: tuple[str, ...] | None = None
    ) -> None:
        self.source, self.chosen, self.checked = source, chosen, source.checked
        self.channels, self.partial, self.left_out = source.channels, source.partial, source.left_out
        self.lossy_names = source.lossy_names
        self.labels = np.asarray(np.asarray(source.labels)[chosen] if labels is None else labels, np.int32)
        self.classes = source.classes if classes is None else classes
        self.tags = source.tags

    def _known_by(self, what: Callable[[Source], str]) -> str:
        digest = hashlib.sha256(f"{what(self.source)}\n{self.classes}\n".encode())
        digest.update(self.chosen.astype("<i8").tobytes())
        return digest.hexdigest()

    @cached_property
    def tagged(self) -> NDArray[np.int8]:
        """Which tags every sample that was chosen has."""
        return self.source.tagged[self.chosen]

    @cached_property
    def shard_sizes(self) -> Ints:
        """How many samples are left in each shard."""
        sizes = self.source.shard_sizes
        return np.bincount(np.searchsorted(np.cumsum(sizes), self.chosen, side="right"), minlength=len(sizes))

    @cached_property
    def _shard_ends(self) -> Ints:
        return np.cumsum(self.shard_sizes)

    def __len__(self) -> int:
        return len(self.chosen)

    def read(self, index: int) -> tuple[RawImage, int]:
        """Returns the source's image, with the label that it has here.

        Numbers from `len(self)` on stand for all samples of the source, and are read with the source's label.
        """
        if index >= len(self):
            return self.source.read(index - len(self))
        return self.source.read(int(self.chosen[index]))[0], int(self.labels[index])

    def _find(self, index: int) -> tuple[Source, int]:
        return self.source, self._in_source(index)

    def replacement(self, index: int) -> int | None:
        """Returns the next sample that was chosen in the same shard, or its first; of all where it is alone there.

        None where the whole source replaces none.
        """
        if self.source.replacement(self._in_source(index)) is None:
            return None
        shard = int(np.searchsorted(self._shard_ends, index, side="right"))
        if index + 1 < self._shard_ends[shard] or self.shard_sizes[shard] == 1:
            return (index + 1) % len(self)
        return int(self._shard_ends[shard] - self.shard_sizes[shard])

    def next_in_source(self, index: int) -> int:
        """Returns the sample after this one in the whole source, chosen or not, as a number that `read` takes."""
        return len(self) + (self._in_source(index) + 1) % len(self.source)

    def _in_source(self, index: int) -> int:
        return int(self.chosen[index]) if index < len(self) else index - len(self)

    def fetch(self, shard: int) -> None:
        """Makes the source fetch the shard."""
        self.source.fetch(shard)


class Part(Subset):
    """A subset that has no shards where its source has none.

    `data.classes` and `data.fraction` make a plain `Subset`, of which a folder's samples lie in one shard: the order of
    the runs that began so depends on it.
    """

    @cached_property
    def shard_sizes(self) -> Ints:
        """How many samples are left in each shard; empty where the source has none."""
        return super().shard_sizes if len(self.source.shard_sizes) else self.source.shard_sizes


def evenly_spaced(source: Source, count: int) -> Subset:
    """Returns so many samples, as far apart as they can be: nearly the same share of every class."""
    return Subset(source, np.arange(count, dtype=np.int64) * len(source) // count)


def fixed_sample(source: Source, count: int) -> Subset:
    """Returns so many samples, the same every time.

    They are from all over a folder, where each class lies together, or from a few shards where there are shards.
    """
    sizes = source.shard_sizes
    if not len(sizes):
        return Subset(source, permute(np.arange(count), len(source), _SAMPLE))
    shards = permute(np.arange(len(sizes)), len(sizes), _SAMPLE)
    counts = np.cumsum(sizes[shards])
    needed = int(np.searchsorted(counts, min(count, int(counts[-1])))) + 1
    filled = int(np.searchsorted(np.cumsum(sizes[shards] > 0), min(_SAMPLED_SHARDS, int((sizes > 0).sum())))) + 1
    firsts = np.cumsum(sizes) - sizes
    pool = np.concatenate([firsts[n] + np.arange(sizes[n]) for n in shards[: max(needed, filled)].tolist()])
    return Subset(source, pool[permute(np.arange(count), len(pool), _SAMPLE)])


def select(source: Source, where: str, classes: str | None, fraction: float | None) -> Source:
    """Returns the samples of these classes, and of each class a fraction; the source itself if nothing is left out.

    Where the source has no classes, it is a fraction of all samples.
    """
    if classes is None and fraction is None:
        return source
    if classes is not None and source.tags:
        raise ConfigError(f"data.classes: {where} has tags and no classes that could be chosen; leave data.classes out")
    labels = np.asarray(source.labels)
    names = source.classes
    if classes is not None:
        names = class_list(classes)
        labels = _relabel(source, where, names, labels) if source.classes else labels
    chosen = np.flatnonzero(labels >= 0) if classes is not None else np.arange(len(labels))
    if fraction is not None:
        chosen = _fraction(chosen, np.asarray(labels[chosen]), fraction)
    if not len(chosen):
        raise ConfigError(f"{where}: the chosen classes and fraction leave no sample; take more")
    return Subset(source, chosen, labels[chosen], names)


def class_list(spec: str) -> tuple[str, ...]:
    """Returns the names in a file, one per line, or in a list that comes with mrp."""
    path = Path(spec).expanduser()
    known = spec if spec.endswith(".txt") else f"{spec}.txt"
    ours = not path.is_file() and known in _LISTS
    if ours:
        package = Path(mrp.__file__).parent
        path = next(p for p in (package / "configs" / known, package.parent / "configs" / known) if p.is_file())
    with reading(f"the list of classes {spec}", f"give a file, or {', '.join(_LISTS)}"):
        content = path.read_bytes()
    if ours and hashlib.sha256(content).hexdigest() != _LISTS[known]:
        raise ConfigError(f"{path}: the list was changed since it was published; install mrp again")
    names = tuple(name for line in content.decode("utf-8", "replace").split("\n") if (name := line.strip()))
    twice = {name for name, count in Counter(names).items() if count > 1}
    if not names or twice:
        raise ConfigError(f"{path}: {f'{min(twice)!r} stands twice' if twice else 'holds no names'}; one name per line")
    return names


def _relabel(source: Source, where: str, names: tuple[str, ...], labels: NDArray[Any]) -> NDArray[np.int32]:
    """Returns the position of each label's class among the names; -1 for the others."""
    places = {name: place for place, name in enumerate(source.classes)}
    missing = [name for name in names if name not in places]
    if missing:
        raise ConfigError(f"{where}: there is no class '{missing[0]}'{nearest(missing[0], source.classes)}")
    if len(labels) and not -1 <= labels.min() <= labels.max() < len(source.classes):
        raise ConfigError(f"{where}: there is a label outside of the {len(source.classes)} classes; mend the data")
    numbers = np.full(len(source.classes) + 1, -1, np.int32)  # the last stands for no label
    numbers[[places[name] for name in names]] = np.arange(len(names))
    relabelled: NDArray[np.int32] = numbers[labels]
    return relabelled


def _fraction(chosen: Ints, labels: NDArray[Any], fraction: float) -> Ints:
    """Returns the same share of each class, at least one sample; of two fractions the smaller is inside the larger."""
    turn = np.lexsort([fold(_FRACTION, chosen), labels])
    _, first, counts = np.unique(labels[turn], return_index=True, return_counts=True)
    rank = np.arange(len(turn)) - np.repeat(first, counts)
    kept = np.maximum(1, np.round(counts * fraction)).astype(np.int64)
    return np.sort(chosen[turn[rank < np.repeat(kept, counts)]])
