"""TIFF files with any number of channels, of which only the strips or tiles that a window touches are decoded."""

from __future__ import annotations

import html
import os
import re
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mrp.config import ConfigError
from mrp.data import jpeg
from mrp.data.source import DecodeError, as_pixels, one_line

_CHANNEL_AXES = "CSQI"  # tifffile's letters: channels, samples of a pixel, pages that nothing is said of
_OPEN = 16  # files of a process
_ORDER: dict[str, Literal["little", "big"]] = {"<": "little", ">": "big"}  # of bytes
_WHITE_IS_ZERO, _PALETTE, _ORIENTATION, _PAGE_NAME, _NO_DATA = 0, 3, 274, 285, 42113
# Which axes of the stored pixels run backwards, by the tag; from 5 on rows and columns are exchanged before that.
_BACKWARDS = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}
_TURNED = 5
_OME_CHANNEL = re.compile(r"<(?:\w+:)?Channel\b[^<>]*?\bName=\"([^\"]*)\"")


class Window(NamedTuple):
    """A rectangle of a file."""

    top: int
    left: int
    height: int
    width: int


class Tiff:
    """An open file: its size, its channels and their names, and the pixels in any window.

    Other files that its metadata may point to are never opened.
    """

    def __init__(self, path: Path) -> None:
        try:
            import tifffile
        except ImportError:
            raise ConfigError(f"{path}: is read by tifffile; install it: pip install 'mrp-vit[tiff]'") from None
        self.path = path
        try:
            self._file: Any = tifffile.TiffFile(path, _multifile=False, is_ndtiff=False)
            _check_pages(self._file)
            self._series = self._file.series[0]
            page: Any = self._series.keyframe
            axes = dict(zip(self._series.axes, self._series.shape, strict=True))
        except (OSError, DecodeError):
            raise
        except Exception as error:  # on damaged files tifffile raises almost anything
            raise DecodeError(f"no TIFF, or a damaged one: {one_line(error)}") from None
        self._orientation = jpeg.turn(getattr(page.tags.get(_ORIENTATION), "value", None))
        stored = axes.get("Y", 0), axes.get("X", 0)
        self.size = stored[::-1] if self._orientation >= _TURNED else stored
        self._others = [axis for axis, length in axes.items() if axis not in "YX" and length > 1]
        if len(self._others) > 1 or not set(self._others) <= set(_CHANNEL_AXES) or 0 in self.size:
            shape = " x ".join(f"{length} {axis}" for axis, length in axes.items())
            raise DecodeError(f"has the axes {shape}; besides Y and X there may be one, of channels: save planes apart")
        if page.photometric in (_WHITE_IS_ZERO, _PALETTE):
            what = "0 is white" if page.photometric == _WHITE_IS_ZERO else "a number stands for a colour of a palette"
            raise DecodeError(f"{what}; save the pixels themselves, 0 for black")
        self._nothing = _no_data(page)
        self.channels: int = axes[self._others[0]] if self._others else 1
        self.dtype = as_pixels(np.empty(0, self._series.dtype)).dtype

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What the file calls its channels (OME's metadata, ImageJ's labels, or names of pages); empty if nothing."""
        first: Any = self._file.pages[0]
        labels = (self._file.imagej_metadata or {}).get("Labels") if self._file.is_imagej else None
        if labels is None and self._file.is_ome:
            labels = [html.unescape(name) for name in _OME_CHANNEL.findall(first.description)]
        if labels is None and _PAGE_NAME in first.tags:
            tags = [page.aspage().tags.get(_PAGE_NAME) for page in self._file.pages]
            labels = ["" if tag is None else str(tag.value) for tag in tags]
        names = tuple(str(label).strip() for label in labels or ())
        return names if len(set(names)) == self.channels and all(names) else ()

    def read(self, window: Window | None = None) -> NDArray[Any]:
        """Returns the pixels (H W C) in a window, or all of them."""
        window = Window(0, 0, *self.size) if window is None else window
        try:
            pixels = as_pixels(self._upright(self._read(self._stored(window))))
            if self._nothing is not None and pixels.dtype == np.float32 and (pixels == self._nothing).any():
                said = f"pixels without data, which are {self._nothing:g} by the file's tag for GDAL"
                raise DecodeError(f"{said}; replace them, cut them off, or leave the image out")
            return pixels
        except (OSError, MemoryError, DecodeError):
            raise
        except Exception as error:
            missing = "imagecodecs" in str(error)
            remedy = "it needs a decoder: pip install imagecodecs" if missing else "damaged"
            raise DecodeError(f"{remedy} ({one_line(error)})") from None

    def _stored(self, window: Window) -> Window:
        """Returns where a window of the upright image lies among the pixels as they are stored."""
        starts, sides = [*window[:2]], [*window[2:]]
        for axis in _BACKWARDS.get(self._orientation, ()):
            starts[axis] = self.size[axis] - starts[axis] - sides[axis]
        return Window(*starts[::-1], *sides[::-1]) if self._orientation >= _TURNED else Window(*starts, *sides)

    def _upright(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """Returns stored pixels (H W C) as the file's orientation says that they are shown."""
        upright = pixels.swapaxes(0, 1) if self._orientation >= _TURNED else pixels
        return np.ascontiguousarray(np.flip(upright, _BACKWARDS.get(self._orientation, ())))

    def _read(self, window: Window) -> NDArray[Any]:
        top, left, height, width = window
        series = self._series
        if series.dataoffset is not None:  # uncompressed and in one piece
            order = self._file.byteorder
            whole = np.memmap(self.path, series.dtype.newbyteorder(order), "r", series.dataoffset, series.shape)
            planes = self._channels_last(whole, series.axes)
            return np.array(planes[top : top + height, left : left + width])
        out = np.zeros((height, width, self.channels), series.dtype)
        pages = list(series.pages)
        for number, page in enumerate(pages):
            if page is None:
                raise DecodeError(f"has no page for its plane {number}")
            self._copy(page, window, out[..., number : number + 1] if len(pages) > 1 else out)
        return out

    def _channels_last(self, array: NDArray[Any], axes: str) -> NDArray[Any]:
        """Returns an array with the axes Y, X and channels."""
        kept = [axis for axis in axes if axis in "YX" or axis in self._others]
        array = array.reshape([length for axis, length in zip(axes, array.shape, strict=True) if axis in kept])
        channel = [kept.index(axis) for axis in self._others] or [array.ndim]
        array = array if self._others else array[..., None]
        return array.transpose(kept.index("Y"), kept.index("X"), channel[0])

    def _copy(self, page: Any, window: Window, out: NDArray[Any]) -> None:
        """Decodes the strips or tiles of a page that touch a window, and copies what they show of it."""
        key = page.keyframe
        rows, columns = (key.tilelength, key.tilewidth) if key.is_tiled else (key.rowsperstrip, key.imagewidth)
        rows = min(rows, key.imagelength)
        down, across = -(-key.imagelength // rows), -(-key.imagewidth // columns)
        top, left, height, width = window
        planes = out.shape[2] if key.planarconfig == 2 else 1
        for plane in range(planes):
            for row in range(top // rows, -(-(top + height) // rows)):
                for column in range(left // columns, -(-(left + width) // columns)):
                    self._copy_segment(page, (plane * down + row) * across + column, window, out)

    def _copy_segment(self, page: Any, number: int, window: Window, out: NDArray[Any]) -> None:
        handle, count = self._file.filehandle, page.databytecounts[number]
        handle.seek(page.dataoffsets[number])
        data = handle.read(count)
        if len(data) < count:
            raise DecodeError("cut short: it ends before its last pixels")
        options = {"jpegtables": page.jpegtables} if page.jpegtables is not None else {}
        pixels, (plane, _, y, x, _), _ = page.keyframe.decode(data, number, **options)
        if pixels is None:  # a tile that was never written stands for zeros
            return
        pixels = pixels[0]
        top, left = max(y, window.top), max(x, window.left)
        bottom = min(y + pixels.shape[0], window.top + window.height)
        right = min(x + pixels.shape[1], window.left + window.width)
        place = out[top - window.top : bottom - window.top, left - window.left : right - window.left]
        place[..., plane : plane + pixels.shape[2]] = pixels[top - y : bottom - y, left - x : right - x]

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()


def _no_data(page: Any) -> np.float32 | None:
    """Returns the number that stands for no data by the tag of GDAL; None where that is 0, which does no harm."""
    tag = page.tags.get(_NO_DATA)
    try:
        with np.errstate(over="ignore"):  # the least number of 64 bits is -inf here, as in the pixels
            number = np.float32(str(tag.value).strip(" \0"))
    except (AttributeError, ValueError):
        return None
    return number if number else None


class OpenTiffs:
    """The files that a process has read last, which stay open until they are changed; another process opens its own."""

    def __init__(self) -> None:
        self._process, self._files = os.getpid(), dict[str, tuple[tuple[int, int], Tiff]]()

    def __reduce__(self) -> Any:
        return OpenTiffs, ()

    def get(self, path: str) -> Tiff:
        """Returns an open file."""
        if self._process != os.getpid():
            self._process, self._files = os.getpid(), {}
        status = os.stat(path)
        version = status.st_size, status.st_mtime_ns
        if path not in self._files or self._files[path][0] != version:
            if len(self._files) >= _OPEN:
                del self._files[next(iter(self._files))]
            self._files[path] = version, Tiff(Path(path))
        return self._files[path][1]


def _check_pages(file: Any) -> None:
    """Refuses pages that follow each other in a circle, since tifffile may go round in it without end."""
    tiff, handle, seen = file.tiff, file.filehandle, set[int]()
    offset = file.pages.first.offset
    while 0 < offset < handle.size:
        if offset in seen:
            raise DecodeError("damaged: its pages follow each other in a circle")
        seen.add(offset)
        handle.seek(offset)
        tags = int.from_bytes(handle.read(tiff.tagnosize), _ORDER[tiff.byteorder])
        handle.seek(offset + tiff.tagnosize + tags * tiff.tagsize)
        offset = int.from_bytes(handle.read(tiff.offsetsize), _ORDER[tiff.byteorder])
