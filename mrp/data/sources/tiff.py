"""TIFF files with any number of channels, of 8 or 16 bits or floating point; large ones window by window."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import field_validator

from mrp import progress
from mrp.config import ConfigError, Node
from mrp.data import source, tree
from mrp.data.channels import check_known
from mrp.data.config import Sides
from mrp.data.source import DecodeError, Partial, Pixels, RawImage
from mrp.data.storage.cache import Cache
from mrp.data.tifffiles import OpenTiffs, Tiff, Window

_ENDINGS = (".tif", ".tiff")
_LOOKED_AT = 16  # files, for the names of channels


class Config(Node):
    """A folder of TIFF files, with one folder per class or flat, or one file."""

    name: Literal["tiff"] = "tiff"
    path: str  # the folder, or one file
    # What the files are called where a sample has one file per channel, such as "{sample}_{channel}.tif" or
    # "{channel}/{sample}.tif"; by default a file holds all channels of its sample.
    files: str | None = None
    # Whether the folders at the top of this one are classes; false: files may lie anywhere, without labels.
    classes: bool = True
    # The names of the channels, in the order in which files hold them; by default `data.channels`, or all names that
    # are found in the names of the files, or in some of the files themselves.
    channels: tuple[str, ...] = ()
    # Height and width of the windows that a file is cut into, each of which is a sample; by default a whole file is
    # one.
    window: Sides | None = None
    stride: Sides | None = None  # pixels from window to window; by default windows lie side by side

    @field_validator("files")
    @classmethod
    def _check_files(cls, value: str | None) -> str | None:
        if value is not None and (value.count("{sample}"), value.count("{channel}")) != (1, 1):
            raise ValueError(f"'{value}' was given; allowed: a name that holds {{sample}} and {{channel}} once each")
        return value


class Source(source.Source):
    """A tree of TIFF files: the folders at its top are the classes, or there are only files and no labels.

    The identity is that of the names and of the windows, so that a file may be mended during a run. The content also
    covers the size and the time of change of every file.
    """

    def __init__(self, config: Config, split: Literal["train", "test"], cache: Cache) -> None:
        """Look through the whole tree once, and for windows into the head of each file."""
        root, alone = Path(config.path).expanduser(), None
        if root.is_file():
            root, alone = root.parent, root
        found = [tree.File.at(alone, alone.name)] if alone else tree.tree(root, _ENDINGS)
        names = [file.name for file in found]
        self._names, self._open = tree.Names(root, names), OpenTiffs()
        self._stated, self._by_file = bool(config.channels), config.files is not None
        if config.files is None:
            samples, self._files = names, np.arange(len(names))[:, None]
            some = np.unique(np.linspace(0, len(names) - 1, _LOOKED_AT, dtype=np.int64)).tolist()
            named = tuple(dict.fromkeys(name for file in some for name in self._tiff(file).names))
            self.channels, self.partial = config.channels or named, bool(named)
            if named:
                check_known(config.path, self.channels, named)
        else:
            samples, self.channels, self._files = _sorted(root, names, config.files, config.channels)
            self.partial = bool((self._files < 0).any())
        self.classes, labels = tree.classes(root, samples, config.classes, alone is None and not self._by_file)
        self._windows = None if config.window is None else self._cut(len(samples), config.window, config.stride)
        self.labels = labels if self._windows is None else labels[self._windows[:, 0]]
        cut = b"" if self._windows is None else self._windows.astype("<i8").tobytes()
        more = hashlib.sha256(cut + repr(self.channels).encode()).hexdigest()
        self.identity = hashlib.sha256((tree.identity(names) + more).encode()).hexdigest()
        self.content = hashlib.sha256((tree.content(found) + more).encode()).hexdigest()

    def _tiff(self, file: int) -> Tiff:
        """Returns an open file, while the samples are looked for; what is wrong with it ends that."""
        try:
            return self._open.get(self._names.path(file))
        except DecodeError as error:
            raise ConfigError(f"{self._names.path(file)}: {error}; mend or remove it") from None

    def _cut(self, count: int, window: Sides, stride: Sides | None) -> NDArray[np.int64]:
        """Returns sample, top, left, height and width of every window."""
        sides, steps = _pair(window), _pair(stride or window)
        rows = []
        for sample in progress.over(range(count), "heads of TIFF files"):
            size = self._tiff(int(self._files[sample].max())).size
            tops, lefts = (_starts(*each) for each in zip(size, sides, steps, strict=True))
            height, width = min(sides[0], size[0]), min(sides[1], size[1])
            rows += [(sample, top, left, height, width) for top in tops for left in lefts]
        return np.array(rows, np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def _place(self, index: int) -> tuple[NDArray[np.int64], Window | None]:
        """Returns the numbers of the files of a sample, and its window in them."""
        if self._windows is None:
            return self._files[index], None
        sample, *window = self._windows[index].tolist()
        return self._files[sample], Window(*window)

    def read(self, index: int) -> tuple[RawImage, int]:
        """Returns the pixels, which say so where a channel is missing, and the number of the class."""
        files, window = self._place(index)
        pixels, given = self._by_channel(files, window) if self._by_file else self._of_one_file(int(files[0]), window)
        if not any(given):
            raise DecodeError(f"has none of the channels {', '.join(self.channels)}")
        return pixels if all(given) else Partial(pixels, np.array(given)), int(self.labels[index])

    def _of_one_file(self, file: int, window: Window | None) -> tuple[Pixels, list[bool]]:
        tiff = self._open.get(self._names.path(file))
        pixels = tiff.read(window)
        if not tiff.names or not self.channels:
            if self.channels and len(self.channels) != tiff.channels:
                raise DecodeError(f"has {tiff.channels} channels without names, where {len(self.channels)} are named")
            return pixels, [True] * tiff.channels
        strange = [name for name in tiff.names if name not in self.channels]
        if strange and not self._stated:
            raise DecodeError(f"has a channel '{strange[0]}', unlike the first files; name all of them by 'channels'")
        planes = [pixels[..., tiff.names.index(name)] if name in tiff.names else None for name in self.channels]
        return _planes(planes), [plane is not None for plane in planes]

    def _by_channel(self, files: NDArray[np.int64], window: Window | None) -> tuple[Pixels, list[bool]]:
        planes: list[Pixels | None] = []
        for file in files.tolist():
            plane = self._open.get(self._names.path(file)).read(window) if file >= 0 else None
            if plane is not None and plane.shape[2] != 1:
                raise DecodeError(f"{self._names.path(file)} has {plane.shape[2]} channels, where one is expected")
            planes.append(None if plane is None else plane[..., 0])
        return _planes(planes), [plane is not None for plane in planes]

    def where(self, index: int) -> str:
        """Returns the path of the file, or of the first one of the sample, and the window."""
        files, window = self._place(index)
        path = self._names.path(int(files[files >= 0][0]))
        return path if window is None else f"{path}: window at row {window.top}, column {window.left}"

    def name_of(self, index: int) -> str:
        """Returns the path of that file within the folder; windows of one image have one name."""
        files, _ = self._place(index)
        return self._names[int(files[files >= 0][0])]


def _planes(planes: list[Pixels | None]) -> Pixels:
    """Returns the channels of a sample as one array, with zeros in place of one that it lacks."""
    shapes = {(plane.shape, plane.dtype) for plane in planes if plane is not None}
    if len(shapes) > 1:
        kinds = " and ".join(f"{kind} {shape}" for shape, kind in sorted(shapes, key=str))
        raise DecodeError(f"its channels differ: {kinds}")
    ((shape, kind),) = shapes or {((1, 1), np.dtype(np.uint8))}
    return np.stack([np.zeros(shape, kind) if plane is None else plane for plane in planes], axis=-1)


def _sorted(
    root: Path, names: list[str], pattern: str, wanted: tuple[str, ...]
) -> tuple[list[str], tuple[str, ...], NDArray[np.int64]]:
    """Returns the samples, the channels, and the number of the file of each sample and channel; -1 for none."""
    form = re.escape(pattern).replace(r"\{sample\}", "(?P<sample>.+)").replace(r"\{channel\}", "(?P<channel>[^/]+)")
    found: dict[str, dict[str, int]] = {}
    for number, name in enumerate(names):
        match = re.fullmatch(form, name)
        if match is None:
            raise ConfigError(f"{root / name}: is not called as 'files' says, {pattern}; move it away, or mend 'files'")
        found.setdefault(match["sample"], {})[match["channel"]] = number
    known = sorted({channel for files in found.values() for channel in files})
    check_known(str(root), wanted, known)
    channels = wanted or tuple(known)
    samples = sorted(sample for sample, files in found.items() if not files.keys().isdisjoint(channels))
    table = [[found[sample].get(channel, -1) for channel in channels] for sample in samples]
    return samples, channels, np.array(table, np.int64)


def _pair(sides: Sides) -> tuple[int, int]:
    return (sides, sides) if isinstance(sides, int) else sides


def _starts(length: int, side: int, step: int) -> list[int]:
    """Returns where windows begin along a side of a file; the last one ends where the file does."""
    last = max(0, length - side)
    return [*range(0, last, step), last]
