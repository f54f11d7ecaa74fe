"""Image files that a list names, as a source: some of them perhaps only in part."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from mrp.config import ConfigError
from mrp.data.decode import decode
from mrp.data.source import Pixels, Source

ENDINGS = ("", ".jpg", ".jpeg", ".png")  # that a name in a list may lack

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels


class Images(Source):
    """Files without labels; where there are boxes, an image is what its box holds."""

    def __init__(self, paths: Sequence[Path], channels: int = 3, boxes: Sequence[Box | None] | None = None) -> None:
        self._paths, self._channels = [str(path) for path in paths], channels
        self._boxes = list(boxes) if boxes is not None else [None] * len(paths)
        status = [path.stat() for path in paths]
        files = [f"{path.name} {each.st_size} {each.st_mtime_ns}" for path, each in zip(paths, status, strict=True)]
        self.identity = hashlib.sha256(repr((files, self._boxes, channels)).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, index: int) -> tuple[bytes | Pixels, int]:
        """Returns the file's bytes, or the pixels inside its box."""
        data, box = Path(self._paths[index]).read_bytes(), self._boxes[index]
        if box is None:
            return data, -1
        image = decode(data, self._channels)
        left, top, right, bottom = (round(edge) for edge in box)
        part = image[:, max(0, top) : max(0, bottom), max(0, left) : max(0, right)]
        if not part.numel():
            size = f"{image.shape[2]} x {image.shape[1]}"
            raise ConfigError(f"{self.where(index)}: the box {list(box)} holds nothing of its {size} pixels; mend it")
        pixels: Pixels = part.permute(1, 2, 0).numpy()
        return pixels, -1

    def where(self, index: int) -> str:
        """Returns the file's path."""
        return self._paths[index]


def named(folder: Path, name: object, where: str) -> Path:
    """Returns the file that a list calls by this name, with or without its ending; never one outside of the folder."""
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where}: {name!r} is not the name of an image")
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ConfigError(f"{where}: '{name}' leads out of {folder}; names are relative to the folder of the images")
    for ending in ENDINGS:
        path = folder / f"{name}{ending}"
        if path.is_file():
            return path
    raise ConfigError(f"{where}: there is no image '{name}' in {folder}; add it, or give another folder")
