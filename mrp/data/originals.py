"""Where shards are made from, beyond what `data.train` may name: ImageNet-1K's archives as they are distributed."""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mrp.config import ConfigError
from mrp.data.cache import Prefetch
from mrp.data.decode import Pixels
from mrp.data.order import Ints
from mrp.data.sources import Source, open_source
from mrp.data.tars import Member, TarError, members

IMAGENET_CLASSES, IMAGENET_TRAIN, IMAGENET_VALIDATION = 1000, 1_281_167, 50_000
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"

_TRUTH, _META = "data/ILSVRC2012_validation_ground_truth.txt", "data/meta.mat"


@dataclass(frozen=True, slots=True)
class Archive:
    """Labelled files inside one tar, or inside the tars that it holds, read by position."""

    path: str
    names: tuple[str, ...]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int32]
    classes: tuple[str, ...]
    nested: bool  # tars in a tar, which is how the training images come

    @property
    def identity(self) -> str:
        """A sha256 of names and sizes: of what is to be copied, not of what was copied."""
        lines = "".join(f"{name}\0{size}\n" for name, size in zip(self.names, self.sizes.tolist(), strict=True))
        return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()

    @property
    def blocks(self) -> Ints:
        """It is not trained from, so there is nothing to keep together."""
        return np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> tuple[bytes | Pixels, int]:
        """The file's bytes and the number of its class."""
        with open(self.path, "rb") as file:
            return os.pread(file.fileno(), int(self.sizes[index]), int(self.offsets[index])), int(self.labels[index])

    def where(self, index: int) -> str:
        """The archive and the name within."""
        return f"{self.path}: {self.names[index]}"

    def neighbour(self, index: int) -> int | None:
        """An original is mended, never replaced."""
        return None

    def prefetch(self, thread: Prefetch, shard: int) -> None:
        """There is nothing to fetch."""


def open_original(spec: str, split: Literal["train", "test"], devkit: Path | None) -> Source:
    """Whatever `mrp shards build` can read: folders, CIFAR's archives, ImageNet's archives."""
    path = Path(spec).expanduser()
    if not path.is_file() or not _is_tar(path):
        return open_source(spec, split)
    with path.open("rb") as file:
        try:
            found = list(_members(file.fileno(), path.stat().st_size))
            if not any(member.size for member in found):
                raise ConfigError(f"{path}: holds no samples; download it again")
            if all(member.name.endswith(".tar") for member in found):
                return _training(path, file.fileno(), found)
        except TarError as error:
            raise ConfigError(f"{path}: {error}; download it again") from None
    return _validation(path, found, devkit or path.parent / DEVKIT)


def shortfall(source: Source) -> str | None:
    """What an archive of ImageNet-1K lacks of what was distributed, or has beyond it."""
    if not isinstance(source, Archive):
        return None
    expected = IMAGENET_TRAIN if source.nested else IMAGENET_VALIDATION
    if (len(source), len(source.classes)) == (expected, IMAGENET_CLASSES):
        return None
    return (
        f"{source.path}: {len(source):,} samples of {len(source.classes):,} classes, where ImageNet-1K has "
        f"{expected:,} of {IMAGENET_CLASSES:,}: do not call it so, or download it again"
    )


def _is_tar(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(512)[257:262] == b"ustar"


def _members(descriptor: int, size: int, start: int = 0) -> list[Member]:
    return list(members(lambda offset, count: os.pread(descriptor, count, offset), size, start))


def _training(path: Path, descriptor: int, inner: list[Member]) -> Archive:
    """The tar of tars: one tar a class, named after it."""
    inner = sorted(inner)
    classes = tuple(member.name.removesuffix(".tar") for member in inner)
    found: list[tuple[Member, int]] = []
    for label, tar in enumerate(inner):
        try:
            found += [(member, label) for member in _members(descriptor, tar.size, tar.offset)]
        except TarError as error:
            raise TarError(f"{tar.name}: {error}") from None
    return _archive(path, [(m, f"{classes[label]}/{m.name}", label) for m, label in found], classes, nested=True)


def _archive(path: Path, rows: list[tuple[Member, str, int]], classes: tuple[str, ...], *, nested: bool) -> Archive:
    if not rows:
        raise ConfigError(f"{path}: holds no samples; download it again")
    twice = [name for name, count in Counter(name for _, name, _ in rows).items() if count > 1]
    if twice:
        raise ConfigError(f"{path}: '{twice[0]}' is in it twice; download it again")
    offsets, sizes = (np.array([getattr(m, field) for m, _, _ in rows], np.int64) for field in ("offset", "size"))
    labels = np.array([label for _, _, label in rows], np.int32)
    return Archive(str(path), tuple(name for _, name, _ in rows), offsets, sizes, labels, classes, nested)


def _validation(path: Path, found: list[Member], devkit: Path) -> Archive:
    """The flat tar, with the labels and the meaning of their numbers from the development kit."""
    found = [member for member in found if re.search(r"ILSVRC2012_val_\d{8}\.JPEG$", member.name)]
    if not found:
        raise ConfigError(
            f"{path}: is neither ImageNet-1K's training tar (a tar of one tar a class) nor its validation tar; for "
            "shards made by others use 'mrp shards index'"
        )
    if not devkit.is_file():
        raise ConfigError(f"{devkit}: is missing, and holds the labels of {path.name}; give it with --devkit FILE")
    truth, synsets = _read_devkit(devkit)
    classes = tuple(sorted(synsets.values()))
    numbers = {name: number for number, name in enumerate(classes)}
    rows = []
    for member in sorted(found):
        number = int(member.name[-13:-5])
        if number > len(truth):
            raise ConfigError(f"{path}: {member.name}: the development kit has only {len(truth)} labels")
        rows.append((member, member.name, numbers[synsets[truth[number - 1]]]))
    return _archive(path, rows, classes, nested=False)


def _read_devkit(path: Path) -> tuple[list[int], dict[int, str]]:
    """The validation labels, and the WordNet id of each number."""
    from scipy.io import loadmat

    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:*") as tar:
            for member in tar:
                for wanted in (_TRUTH, _META):
                    if member.name.endswith(wanted) and (content := tar.extractfile(member)) is not None:
                        found[wanted] = content.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}; download it again") from None
    for wanted in (_TRUTH, _META):
        if wanted not in found:
            raise ConfigError(f"{path}: '{wanted}' is missing; give ImageNet-1K's {DEVKIT}")
    rows = loadmat(io.BytesIO(found[_META]), squeeze_me=True, variable_names=["synsets"])["synsets"]
    leaves = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in np.atleast_1d(rows) if row["num_children"] == 0}
    truth = [int(line) for line in found[_TRUTH].split()]
    unknown = set(truth) - set(leaves)
    if unknown:
        raise ConfigError(f"{path}: the label {min(unknown)} has no class; download it again")
    return truth, leaves
