"""Images and what is known of each of their pixels, as files of the same names in two folders; none is executed."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrp.config import ConfigError, reading
from mrp.data.decode import DecodeError, indices, upright_size
from mrp.data.tree import EXTENSIONS
from mrp.evaluate.config import Depths, Masks
from mrp.evaluate.images import named

MASKS, DEPTHS = (".png",), (".png", ".npy")
_REMEDY = "mend it, or leave the image and its target out"


@dataclass(frozen=True)
class Pair:
    """An image and its target."""

    image: Path
    target: Path

    def check(self, height: int, width: int) -> None:
        """Refuses a target of another size than its upright image."""
        try:
            with reading(self.image, _REMEDY):
                found = upright_size(self.image.read_bytes())
        except DecodeError as error:
            raise ConfigError(f"{self.image}: {error}; mend or remove it and its target") from None
        if found != (height, width):
            raise ConfigError(
                f"{self.target}: has {width} x {height} pixels, but its image {self.image} has "
                f"{found[1]} x {found[0]}; give targets of the size of the images"
            )


def find(section: Masks | Depths, where: str, endings: Sequence[str]) -> list[Pair]:
    """Returns every image with its target, in the order of their names."""
    images, targets = (Path(folder).expanduser() for folder in (section.images, section.targets))
    for folder in (images, targets):
        if not folder.is_dir():
            raise ConfigError(f"{where}: there is no folder {folder}; give the folders of images and of targets")
    paths = _listed(section, images, where) if section.list else sorted(_files(images))
    if not paths:
        raise ConfigError(f"{where}: {images} holds no images; files that count end in {', '.join(EXTENSIONS)}")
    pairs, missing = [], []
    for path in paths:
        stem = path.relative_to(images).with_suffix("")
        name = stem.name.replace(*section.rename) if section.rename else stem.name
        candidates = [targets / stem.parent / f"{name}{ending}" for ending in endings]
        target = next((candidate for candidate in candidates if candidate.is_file()), None)
        if target is None:
            missing.append((path, candidates[0]))
        else:
            pairs.append(Pair(path, target))
    if missing:
        raise ConfigError(
            f"{where}: {len(missing)} of {len(paths)} images have no target; that of {missing[0][0]} should be "
            f"{missing[0][1]}; add them, or name the images that count in a file (list: FILE)"
        )
    return pairs


def content(sections: Sequence[Masks | Depths], endings: Sequence[str]) -> str:
    """Returns a hash of the name, size and time of change of every file."""
    digest = hashlib.sha256()
    for section in sections:
        for pair in find(section, section.images, endings):
            for path in (pair.image, pair.target):
                status = path.stat()
                digest.update(os.fsencode(path.name) + b"\0%d %d\n" % (status.st_size, status.st_mtime_ns))
    return digest.hexdigest()


def read_mask(pair: Pair, ignored: Sequence[int], classes: int | None = None) -> NDArray[np.int32]:
    """Returns the class of every pixel (H W), -1 where it does not count; an unknown class is an error."""
    mask = _png(pair)
    pair.check(*mask.shape)
    mask[np.isin(mask, ignored)] = -1
    if classes is not None and mask.max(initial=-1) >= classes:
        raise ConfigError(
            f"{pair.target}: has the class {mask.max()}, and {classes} classes have the numbers 0 to {classes - 1}; "
            "mend the mask, set classes, or name numbers that do not count in ignore"
        )
    return mask


def read_depth(pair: Pair, scale: float, bounds: tuple[float, float]) -> NDArray[np.float32]:
    """Returns the depth of every pixel (H W) in metres, NaN where it is not known or outside of the bounds."""
    depth = _npy(pair) if pair.target.suffix == ".npy" else _png(pair).astype(np.float32) / np.float32(scale)
    pair.check(*depth.shape)
    with np.errstate(invalid="ignore"):
        depth[~((depth >= bounds[0]) & (depth <= bounds[1]) & (depth > 0))] = np.nan
    return depth


def sampled(values: NDArray[Any], grid: tuple[int, int], per_patch: int) -> NDArray[Any]:
    """Returns, for each patch of a grid, values at evenly spaced points: patches, per_patch squared."""
    rows, columns = (
        ((np.arange(count * per_patch) + 0.5) * size / (count * per_patch)).astype(np.int64)
        for count, size in zip(grid, values.shape, strict=True)
    )
    taken = values[rows[:, None], columns].reshape(grid[0], per_patch, grid[1], per_patch)
    flat: NDArray[Any] = taken.transpose(0, 2, 1, 3).reshape(grid[0] * grid[1], per_patch**2)
    return flat


def _png(pair: Pair) -> NDArray[np.int32]:
    try:
        with reading(pair.target, _REMEDY):
            return indices(pair.target.read_bytes())
    except DecodeError as error:
        raise ConfigError(f"{pair.target}: {error}; mend it") from None


def _npy(pair: Pair) -> NDArray[np.float32]:
    array = None
    with reading(pair.target, _REMEDY), contextlib.suppress(ValueError, EOFError):
        array = np.load(pair.target, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or array.squeeze().ndim != 2:
        raise ConfigError(f"{pair.target}: is not a .npy file with one number per pixel; mend it")
    return np.array(array.squeeze(), np.float32)


def _listed(section: Masks | Depths, images: Path, where: str) -> list[Path]:
    assert section.list is not None
    path = Path(section.list).expanduser()
    with reading(f"{where}: {path}", "give a file with one image per line"):
        names = [name for line in path.read_text(encoding="utf-8").splitlines() if (name := line.strip())]
    return [named(images, name, str(path)) for name in names]


def _files(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in EXTENSIONS and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]  # fmt: skip
