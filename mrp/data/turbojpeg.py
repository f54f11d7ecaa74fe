"""libjpeg-turbo 3, where it is installed: of a JPEG it turns only the part that is wanted into pixels, the same ones.

Whatever it does not take (another orientation, four inks, an odd subsampling, any damage) is left to `decode`, whose
verdict therefore never depends on whether this library is there.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from numpy.typing import NDArray

from mrp.config import ConfigError

VARIABLE = "MRP_TURBOJPEG"  # the library's path, or "off"
_NAMES = ("libturbojpeg.0.dylib",) if sys.platform == "darwin" else ("libturbojpeg.so.0",)
_HOMEBREW = "/opt/homebrew/lib"  # where the system's loader does not look

# Numbers of its interface, version 3.
_DECOMPRESS, _RGB, _GREY = 1, 0, 6
_STOP_ON_WARNING, _SUBSAMPLING = 0, 4
_UNIT = ((8, 8), (16, 8), (16, 16), (8, 8), (8, 16), (32, 8), (8, 32))  # width and height of an MCU by subsampling

Box = tuple[int, int, int, int]  # top, left, height, width


class _Region(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("left", "top", "width", "height")]


_handle, _pointer, _int, _size = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
_FUNCTIONS = {
    "tj3Init": (_handle, [_int]),
    "tj3Destroy": (None, [_handle]),
    "tj3Set": (_int, [_handle, _int, _int]),
    "tj3Get": (_int, [_handle, _int]),
    "tj3DecompressHeader": (_int, [_handle, ctypes.c_char_p, _size]),
    "tj3SetCroppingRegion": (_int, [_handle, _Region]),
    "tj3Decompress8": (_int, [_handle, ctypes.c_char_p, _size, _pointer, _int, _int]),
}


class _Decoder:
    """A decoder of one thread."""

    def __init__(self, functions: ctypes.CDLL) -> None:
        self.functions, self.handle = functions, functions.tj3Init(_DECOMPRESS)
        if not self.handle or functions.tj3Set(self.handle, _STOP_ON_WARNING, 1):
            raise MemoryError("libturbojpeg gives no decoder")

    def __del__(self) -> None:
        if self.handle:
            self.functions.tj3Destroy(self.handle)


class Library:
    """A libturbojpeg of version 3 or later, which has shown that its pixels are those of simplejpeg."""

    def __init__(self, path: str) -> None:
        """Loads and tries it; an OSError says why it is not taken."""
        self.path = path
        self._functions = ctypes.CDLL(path)
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(self._functions, name, None)
            if function is None:
                raise OSError(f"no libturbojpeg of version 3: it has no {name}")
            function.restype, function.argtypes = result, arguments
        self._threads = threading.local()
        for data, box in _examples():
            whole, (top, left, height, width) = simplejpeg.decode_jpeg(data, strict=True), box
            part = self.decode(data, box, 3, sound=True)
            if part is None or not np.array_equal(part, whole[top : top + height, left : left + width]):
                raise OSError("its pixels are not those of simplejpeg's libjpeg-turbo")

    def decode(self, data: bytes, box: Box, channels: int, *, sound: bool) -> NDArray[np.uint8] | None:
        """Returns the pixels in a box (H W C) of a JPEG; None where anything is odd about it.

        Only where the file is known to be sound may decoding end below the box: damage there would not be seen.
        """
        decoder = self._decoder()
        functions, handle = self._functions, decoder.handle
        if functions.tj3DecompressHeader(handle, data, len(data)):
            return None
        subsampling, width, height = (functions.tj3Get(handle, _SUBSAMPLING + more) for more in range(3))
        if not 0 <= subsampling < len(_UNIT):
            return None
        # One MCU more on each side, whose colours reach into the box where they have fewer pixels than the brightness.
        across, down = _UNIT[subsampling]
        top, left = max(0, box[0] // down - 1) * down, max(0, box[1] // across - 1) * across
        bottom = min(height, box[0] + box[2] + down) if sound else height
        right = min(width, box[1] + box[3] + across)
        region = _Region(left, top, right - left, bottom - top)
        if functions.tj3SetCroppingRegion(handle, region):
            return None
        out = np.empty((bottom - top, right - left, channels), np.uint8)
        if functions.tj3Decompress8(handle, data, len(data), out.ctypes.data, 0, _GREY if channels == 1 else _RGB):
            return None
        return out[box[0] - top :, box[1] - left :][: box[2], : box[3]]

    def _decoder(self) -> _Decoder:
        decoder: _Decoder | None = getattr(self._threads, "decoder", None)
        if decoder is None:
            decoder = self._threads.decoder = _Decoder(self._functions)
        return decoder


@cache
def library() -> Library | None:
    """Returns the library that MRP_TURBOJPEG names, or else the first of version 3 that is found."""
    named = os.environ.get(VARIABLE, "")
    if named:
        try:
            return None if named == "off" else Library(named)
        except OSError as error:
            raise ConfigError(
                f"{VARIABLE}: '{named}' cannot be used: {error}; name a libturbojpeg of version 3, or 'off'"
            ) from None
    for path in _places():
        try:
            return Library(path)
        except OSError:
            continue
    return None


def _places() -> Iterator[str]:
    """Yields where the system's loader finds it, then the folders of conda and Homebrew."""
    yield from _NAMES
    for folder in (os.environ.get("CONDA_PREFIX", ""), sys.prefix):
        yield from (str(path) for name in _NAMES if (path := Path(folder, "lib", name)).is_file())
    if sys.platform == "darwin":
        yield from (f"{_HOMEBREW}/{name}" for name in _NAMES)


def described() -> str:
    """Returns which decoder reads JPEGs, for people."""
    found = library()
    if found is None:
        return "whole images (a libturbojpeg of version 3, which is not found here, would decode only what crops need)"
    return f"only what crops need, with {found.path}"


def _examples() -> Iterator[tuple[bytes, Box]]:
    """Yields a JPEG of each usual subsampling, and a box in it."""
    rows, columns, colours = np.mgrid[:90, :150, :3]
    pixels = ((rows * 7 + columns * (colours + 3)) ** 2 // 97 % 256).astype(np.uint8)
    for subsampling in ("444", "422", "420", "440"):
        data = simplejpeg.encode_jpeg(pixels, 90, "RGB", subsampling)
        yield from ((data, box) for box in ((33, 41, 20, 52), (0, 90, 47, 60)))
