"""Parts and mixtures of data, without making it anew: some classes, a fraction, several sources with weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import mrp
from mrp.config import ConfigError, nearest
from mrp.data.cache import Cache, Prefetch
from mrp.data.decode import Pixels
from mrp.data.order import Ints, fold
from mrp.data.sources import Config, Part, Source, open_source

_FRACTION = 0x66726163  # what the hash that chooses a fraction is for
# Lists of classes that come with mrp; people ask which classes a name means, so what it means never changes.
_LISTS = {"imagenet100.txt": "5ee5db69d488bb799a286d8e181801c3d02798776c1ce9203e5450f64e086e07"}


def open_data(config: Config, split: Literal["train", "test"], cache: Cache) -> Source:
    """What a run's `data:` section asks for."""
    spec = config.train if split == "train" else config.test
    assert spec is not None, "whoever asks for test data has looked whether there are any"
    if isinstance(spec, str):
        source = open_source(spec, split, cache)
        return view(source, f"data.{split}", config.classes, config.fraction if split == "train" else None)
    sources = [_part(part, number, config, split, cache) for number, part in enumerate(spec)]
    return Mixture.of(sources, [part.weight for part in spec])


def _part(part: Part, number: int, config: Config, split: Literal["train", "test"], cache: Cache) -> Source:
    where = f"data.{split}.{number}"
    return view(
        open_source(part.source, split, cache), where, part.classes or config.classes, part.fraction or config.fraction
    )


def view(source: Source, where: str, classes: str | None, fraction: float | None) -> Source:
    """The samples of these classes, and of each class a fraction; the source itself where nothing is left out."""
    if classes is None and fraction is None:
        return source
    labels = source.labels
    names = source.classes
    if classes is not None:
        names = class_list(classes)
        labels = _relabel(source, where, names)[labels] if source.classes else labels
    chosen = np.flatnonzero(labels >= 0) if classes is not None else np.arange(len(labels))
    if fraction is not None:
        chosen = _fraction(chosen, np.asarray(labels[chosen]), fraction)
    if not len(chosen):
        raise ConfigError(f"{where}: the chosen classes and fraction leave no sample; take more")
    return Subset(source, chosen, np.asarray(labels[chosen], np.int32), names)


def class_list(spec: str) -> tuple[str, ...]:
    """The names in a file, one a line, or in a list that comes with mrp."""
    path = Path(spec).expanduser()
    known = spec if spec.endswith(".txt") else f"{spec}.txt"
    ours = not path.is_file() and known in _LISTS
    if ours:
        package = Path(mrp.__file__).parent
        path = next(p for p in (package / "configs" / known, package.parent / "configs" / known) if p.is_file())
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{spec}: the list of classes cannot be read: {error.strerror}; give a file, or {', '.join(_LISTS)}"
        ) from None
    if ours and hashlib.sha256(content).hexdigest() != _LISTS[known]:
        raise ConfigError(f"{path}: the list was changed since it was published; install mrp again")
    names = tuple(content.decode("utf-8", "replace").split("\n"))
    names = tuple(name.strip() for name in names if name.strip())
    twice = {name for name in names if names.count(name) > 1}
    if not names or twice:
        raise ConfigError(f"{path}: {f'{min(twice)!r} stands twice' if twice else 'holds no names'}; one name a line")
    return names


def _relabel(source: Source, where: str, names: tuple[str, ...]) -> NDArray[np.int32]:
    """From a label of the source to the place of its class among the names; -1 for the others."""
    missing = [name for name in names if name not in source.classes]
    if missing:
        raise ConfigError(f"{where}: there is no class '{missing[0]}'{nearest(missing[0], source.classes)}")
    numbers = np.full(len(source.classes) + 1, -1, np.int32)  # the last stands for no label
    numbers[[source.classes.index(name) for name in names]] = np.arange(len(names))
    return numbers


def _fraction(chosen: Ints, labels: NDArray[Any], fraction: float) -> Ints:
    """Of each class the same share, at least one, and of two fractions the smaller inside the larger."""
    turn = np.lexsort([fold(_FRACTION, chosen), labels])
    sorted_labels = labels[turn]
    _, first, counts = np.unique(sorted_labels, return_index=True, return_counts=True)
    rank = np.arange(len(turn)) - np.repeat(first, counts)
    kept = np.maximum(1, np.round(counts * fraction)).astype(np.int64)
    return np.sort(chosen[turn[rank < np.repeat(kept, counts)]])


@dataclass(frozen=True, eq=False)
class Subset:
    """Some samples of a source."""

    source: Source
    chosen: Ints
    labels: NDArray[np.int32]
    classes: tuple[str, ...]

    @property
    def identity(self) -> str:
        """Of the source and of what was chosen."""
        digest = hashlib.sha256(f"{self.source.identity}\n{self.classes}\n".encode())
        digest.update(self.chosen.astype("<i8").tobytes())
        return digest.hexdigest()

    @cached_property
    def blocks(self) -> Ints:
        """Samples that are left in each shard."""
        blocks = self.source.blocks
        return np.bincount(np.searchsorted(np.cumsum(blocks), self.chosen, side="right"), minlength=len(blocks))

    def __len__(self) -> int:
        return len(self.chosen)

    def read(self, index: int) -> tuple[bytes | Pixels, int]:
        """The source's image, with the label that it has here."""
        return self.source.read(int(self.chosen[index]))[0], int(self.labels[index])

    def where(self, index: int) -> str:
        """As the source calls it."""
        return self.source.where(int(self.chosen[index]))

    def neighbour(self, index: int) -> int | None:
        """The next sample that was chosen in the same shard, or the first one there; of all where it is alone."""
        if not len(self.blocks):
            return None
        ends = self._ends
        shard = int(np.searchsorted(ends, index, side="right"))
        if index + 1 < ends[shard] or self.blocks[shard] == 1:
            return (index + 1) % len(self)
        return int(ends[shard] - self.blocks[shard])

    @cached_property
    def _ends(self) -> Ints:
        return np.cumsum(self.blocks)

    def prefetch(self, thread: Prefetch, shard: int) -> None:
        """As the source does."""
        self.source.prefetch(thread, shard)


@dataclass(frozen=True, eq=False)
class Mixture:
    """Several sources, one after another; how often each is shown is the order's."""

    sources: tuple[Source, ...]
    weights: tuple[float, ...]
    classes: tuple[str, ...]

    @classmethod
    def of(cls, sources: Sequence[Source], weights: Sequence[float]) -> Mixture:
        """Labels are kept where all sources mean the same by them."""
        same = len({source.classes for source in sources}) == 1
        return cls(tuple(sources), tuple(weights), sources[0].classes if same else ())

    @property
    def identity(self) -> str:
        """Of the sources and their weights."""
        parts = [source.identity for source in self.sources]
        return hashlib.sha256(repr((parts, self.weights)).encode()).hexdigest()

    @property
    def labels(self) -> NDArray[np.int32]:
        """Of every sample."""
        return np.concatenate([source.labels for source in self.sources])

    @property
    def blocks(self) -> Ints:
        """Every source has its own; the mixture has none."""
        return np.empty(0, np.int64)

    @property
    def _ends(self) -> Ints:
        return np.cumsum([len(source) for source in self.sources])

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    def _find(self, index: int) -> tuple[Source, int, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[number]) - len(self.sources[number])
        return self.sources[number], index - first, first

    def read(self, index: int) -> tuple[bytes | Pixels, int]:
        """The image and label of whichever source it is."""
        source, inside, _ = self._find(index)
        return source.read(inside)

    def where(self, index: int) -> str:
        """As its source calls it."""
        source, inside, _ = self._find(index)
        return source.where(inside)

    def neighbour(self, index: int) -> int | None:
        """As its source says."""
        source, inside, first = self._find(index)
        found = source.neighbour(inside)
        return None if found is None else first + found

    def prefetch(self, thread: Prefetch, shard: int) -> None:
        """Shards of all sources, numbered one after another."""
        for source in self.sources:
            if shard < len(source.blocks):
                source.prefetch(thread, shard)
                return
            shard -= len(source.blocks)
