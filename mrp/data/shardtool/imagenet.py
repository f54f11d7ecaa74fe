"""What `mrp shards build` reads beyond what `data.train` may name: ImageNet-1K's archives as they are distributed."""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
from collections import Counter
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np

from mrp.config import ConfigError
from mrp.data.open import open_source
from mrp.data.shardtool.tars import Member, TarError, members
from mrp.data.source import Pixels, Source

IMAGENET_CLASSES, IMAGENET_TRAIN, IMAGENET_VALIDATION = 1000, 1_281_167, 50_000
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"

_TRUTH, _META = "data/ILSVRC2012_validation_ground_truth.txt", "data/meta.mat"


class Archive(Source):
    """Labelled files inside one tar, or inside the tars that it holds, read by position."""

    def __init__(
        self, path: Path, files: list[tuple[Member, str, int]], classes: tuple[str, ...], *, nested: bool
    ) -> None:
        if not files:
            raise ConfigError(f"{path}: holds no samples; download it again")
        names = tuple(name for _, name, _ in files)
        repeated = [name for name, count in Counter(names).items() if count > 1]
        if repeated:
            raise ConfigError(f"{path}: '{repeated[0]}' is in it twice; download it again")
        self.path, self.names, self.classes = str(path), names, classes
        self.nested = nested  # tars in a tar, which is how the training images come
        self.labels = np.array([label for _, _, label in files], np.int32)
        self._offsets = np.array([member.offset for member, _, _ in files], np.int64)
        self._sizes = np.array([member.size for member, _, _ in files], np.int64)

    @cached_property
    def identity(self) -> str:
        """A sha256 of names and sizes: of what is to be copied, not of what was copied."""
        lines = "".join(f"{name}\0{size}\n" for name, size in zip(self.names, self._sizes.tolist(), strict=True))
        return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> tuple[bytes | Pixels, int]:
        """Returns the file's bytes and the number of its class."""
        with open(self.path, "rb") as file:
            return os.pread(file.fileno(), int(self._sizes[index]), int(self._offsets[index])), int(self.labels[index])

    def where(self, index: int) -> str:
        """Returns the archive and the name within."""
        return f"{self.path}: {self.names[index]}"


def open_original(spec: str, split: Literal["train", "test"], devkit: Path | None) -> Source:
    """Returns whatever `mrp shards build` can read: folders, CIFAR's archives, ImageNet's archives."""
    path = Path(spec).expanduser()
    if not path.is_file() or not _is_tar(path):
        return open_source(spec, split)
    with path.open("rb") as file:
        try:
            content = _members(file.fileno(), path.stat().st_size)
            if not any(member.size for member in content):
                raise ConfigError(f"{path}: holds no samples; download it again")
            if all(member.name.endswith(".tar") for member in content):
                return _training(path, file.fileno(), content)
        except TarError as error:
            raise ConfigError(f"{path}: {error}; download it again") from None
    return _validation(path, content, devkit or path.parent / DEVKIT)


def shortfall(source: Source) -> str | None:
    """Returns how an archive of ImageNet-1K differs from what was distributed; None if it does not."""
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
    """Returns the files of a tar, without hidden ones, which a Mac adds."""
    found = members(partial(os.pread, descriptor), size, start)
    return [member for member in found if not member.name.rpartition("/")[2].startswith(".")]


def _training(path: Path, descriptor: int, inner: list[Member]) -> Archive:
    """Returns the files of the tar of tars: one tar per class, named after it."""
    inner = sorted(inner)
    classes = tuple(member.name.removesuffix(".tar") for member in inner)
    files: list[tuple[Member, str, int]] = []
    for label, tar in enumerate(inner):
        try:
            inside = _members(descriptor, tar.size, tar.offset)
            files += [(member, f"{classes[label]}/{member.name}", label) for member in inside]
        except TarError as error:
            raise TarError(f"{tar.name}: {error}") from None
    return Archive(path, files, classes, nested=True)


def _validation(path: Path, content: list[Member], devkit: Path) -> Archive:
    """Returns the files of the flat tar; labels, and the classes that they stand for, are in the development kit."""
    images = sorted(member for member in content if re.search(r"ILSVRC2012_val_\d{8}\.JPEG$", member.name))
    if not images:
        raise ConfigError(
            f"{path}: is neither ImageNet-1K's training tar (a tar of one tar per class) nor its validation tar; for "
            "shards made by others use 'mrp shards index'"
        )
    if not devkit.is_file():
        raise ConfigError(f"{devkit}: is missing, and holds the labels of {path.name}; give it with --devkit FILE")
    truth, synsets = _read_devkit(devkit)
    classes = tuple(sorted(synsets.values()))
    numbers = {name: number for number, name in enumerate(classes)}
    files = []
    for member in images:
        number = int(member.name[-13:-5])
        if number > len(truth):
            raise ConfigError(f"{path}: {member.name}: the development kit has only {len(truth)} labels")
        files.append((member, member.name, numbers[synsets[truth[number - 1]]]))
    return Archive(path, files, classes, nested=False)


def _read_devkit(path: Path) -> tuple[list[int], dict[int, str]]:
    """Returns the validation labels, and the WordNet id of each number."""
    from scipy.io import loadmat

    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:*") as tar:
            for member in tar:
                for wanted in (_TRUTH, _META):
                    if member.name.endswith(wanted) and (content := tar.extractfile(member)) is not None:
                        contents[wanted] = content.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}; download it again") from None
    for wanted in (_TRUTH, _META):
        if wanted not in contents:
            raise ConfigError(f"{path}: '{wanted}' is missing; give ImageNet-1K's {DEVKIT}")
    rows = loadmat(io.BytesIO(contents[_META]), squeeze_me=True, variable_names=["synsets"])["synsets"]
    leaves = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in np.atleast_1d(rows) if row["num_children"] == 0}
    truth = [int(line) for line in contents[_TRUTH].split()]
    unknown = set(truth) - set(leaves)
    if unknown:
        raise ConfigError(f"{path}: the label {min(unknown)} has no class; download it again")
    return truth, leaves
