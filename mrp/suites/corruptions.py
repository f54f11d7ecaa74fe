"""Corrupted test images in ImageNet-C's layout (corruption/severity/class), and the mean corruption error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mrp.config import ConfigError
from mrp.data.tree import is_hidden

SEVERITIES = ("1", "2", "3", "4", "5")
# AlexNet's error under each of the fifteen corruptions, averaged over severities, which the mean corruption error
# divides by (Hendrycks and Dietterich, 2019; the numbers are those of the authors' repository). The four further
# corruptions of the download (speckle_noise, gaussian_blur, spatter, saturate) are no part of it.
ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}


def find(root: Path) -> dict[str, Path]:
    """Returns the folders of each corruption and severity, called `fog/3`; the official ones come first.

    Corruptions stand in the folder itself, or one below as the archives are packed (blur/defocus_blur/1 ...).
    """
    if not root.is_dir():
        raise ConfigError(f"{root}: there is no such folder; give the one with ImageNet-C's corruptions")
    if not {path.name for path in _folders(root)}.isdisjoint(SEVERITIES):
        raise ConfigError(f"{root}: is the folder of a single corruption; give the folder above it")
    found: dict[str, Path] = {}
    for folder in _corruptions(root):
        if folder.name in found:
            raise ConfigError(f"{folder}: is here twice, also as {found[folder.name]}; remove one of them")
        found[folder.name] = folder
    if not found:
        raise ConfigError(f"{root}: holds no folders corruption/severity/class, as ImageNet-C does; give its folder")
    order = [*(name for name in ALEXNET_ERRORS if name in found), *sorted(found.keys() - ALEXNET_ERRORS.keys())]
    return {f"{name}/{severity}": found[name] / severity for name in order for severity in SEVERITIES}


def is_corrupted(root: Path) -> bool:
    """Returns whether a folder has ImageNet-C's layout."""
    return root.is_dir() and any(folder.name in ALEXNET_ERRORS for folder in _corruptions(root, check=False))


def _corruptions(root: Path, check: bool = True) -> Iterator[Path]:
    """Yields the folders that hold folders of severities."""
    for folder in _folders(root):
        inner = {path.name for path in _folders(folder)}
        if inner.isdisjoint(SEVERITIES):
            yield from (one for one in _folders(folder) if _is_corruption(one, check))
        elif _is_corruption(folder, check):
            yield folder


def _is_corruption(folder: Path, check: bool) -> bool:
    inner = {path.name for path in _folders(folder)}
    missing = [severity for severity in SEVERITIES if severity not in inner]
    if check and 0 < len(missing) < len(SEVERITIES):
        raise ConfigError(f"{folder}: lacks the folder of severity {missing[0]}; unpack the archive again")
    return not missing


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not is_hidden(path.name))
