"""Files that hold arrays (.npy, .npz, HDF5, zarr): what lies in them is read in place, and never executed."""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrp.config import ConfigError
from mrp.data.source import one_line

_MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # bytes of this machine

# Ways in which zarr may have stored numbers. There are others that run what a file holds (numcodecs' pickle does).
_CODECS = {
    "blosc", "bytes", "bz2", "crc32c", "delta", "fletcher32", "gzip", "lz4", "lzma", "sharding_indexed", "shuffle",
    "transpose", "zlib", "zstd",
}  # fmt: skip

# What comes of reading a damaged file, or one that was made to do harm.
_DAMAGED = (
    ValueError, TypeError, AttributeError, LookupError, ArithmeticError, EOFError, RecursionError, zipfile.BadZipFile,
)  # fmt: skip


def arrays_in(path: Path) -> Mapping[str, Any]:
    """Returns the arrays of a file, by name, of which no more than the shape is read yet."""
    try:
        if path.is_dir():
            return _of_zarr(path)
        if path.suffix.lower() == ".npy":
            return {"": np.load(path, mmap_mode="r", allow_pickle=False)}
        if path.suffix.lower() == ".npz":
            return _of_npz(path)
        return _of_hdf5(path)
    except ConfigError:
        raise
    except _DAMAGED as error:
        what = "objects, which are not read since they could run code" if "objects" in str(error) else error
        raise ConfigError(f"{path}: cannot be read as arrays: {what}; save it again") from None


def check_pieces(where: str, array: Any) -> None:
    """Refuses an array of which one item cannot be read without unpacking more than the memory holds."""
    piece = array.shape if isinstance(array, _Unpacked) else getattr(array, "chunks", None) or ()
    _check_fits(f"{where}: is unpacked in pieces of", math.prod(piece) * np.dtype(array.dtype).itemsize)


def whole(where: str, array: Any, kind: type) -> NDArray[Any]:
    """Returns all of an array as numbers of this kind; one that the memory cannot hold is refused unread."""
    size = max(np.dtype(array.dtype).itemsize, np.dtype(kind).itemsize)
    _check_fits(f"{where}: takes", math.prod(array.shape) * size)
    return np.asarray(array[...]).astype(kind)


def _check_fits(what: str, size: int) -> None:
    if size > _MEMORY:
        raise ConfigError(
            f"{what} {size / 2**30:,.3g} GiB, and this machine has {_MEMORY / 2**30:,.3g}; if the file is sound, save "
            "it uncompressed, or in smaller chunks"
        )


def _of_npz(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        return {info.filename.removesuffix(".npy"): _member(path, archive, info) for info in archive.infolist()}


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Any:
    """Returns an array of a .npz, in place on the disk; one that is compressed has to be unpacked into memory."""
    if info.compress_type != zipfile.ZIP_STORED:
        return _Unpacked(path, archive, info)
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        file.seek(sum(np.frombuffer(file.read(4), "<u2").tolist()), os.SEEK_CUR)  # the lengths of name and extra field
        shape, fortran, dtype = _header(file)
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")


class _Unpacked:
    """An array of a compressed .npz, which is read as a whole at the first use."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
        self._path, self._name = path, info.filename
        self._array: Any = None
        with archive.open(info) as file:
            self.shape, _, self.dtype = _header(file)
        if math.prod(self.shape) * self.dtype.itemsize > info.file_size:
            raise ValueError(f"{info.filename} is cut short")
        self.ndim = len(self.shape)

    def __getitem__(self, index: Any) -> Any:
        if self._array is None:
            with zipfile.ZipFile(self._path) as archive, archive.open(self._name) as file:
                self._array = np.lib.format.read_array(file, allow_pickle=False)
        return self._array[index]


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(file)[0]
    if version not in read:
        raise ValueError(f"a .npy of version {version} inside")
    shape, fortran, dtype = read[version](file)
    if dtype.hasobject:
        raise ValueError("Python objects")
    if min(shape, default=0) < 0:
        raise ValueError(f"an array of shape {shape} inside")
    return shape, fortran, dtype


def _of_hdf5(path: Path) -> dict[str, Any]:
    try:
        import h5py
    except ImportError:
        raise ConfigError(f"{path}: HDF5 is read by h5py; install it: pip install 'mrp-vit[arrays]'") from None
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        if not path.is_file():
            raise
        raise ConfigError(f"{path}: is no HDF5 file, or a damaged one ({one_line(error)})") from None
    found: dict[str, Any] = {}

    def note(name: str, item: Any) -> None:  # links to other files are not visited
        if isinstance(item, h5py.Dataset) and not item.external and not item.is_virtual:
            found[name] = item

    file.visititems(note)
    return found


def _of_zarr(folder: Path) -> dict[str, Any]:
    try:
        import zarr
    except ImportError:
        raise ConfigError(f"{folder}: is read by zarr; install it: pip install 'mrp-vit[arrays]'") from None
    inside = {entry.name: entry for entry in sorted(folder.iterdir()) if entry.is_dir()}
    names = {name: path for name, path in ({"": folder} | inside).items() if _is_array(path)}
    return {name: zarr.open_array(path, mode="r") for name, path in names.items()}


def _is_array(folder: Path) -> bool:
    """Returns whether a folder holds an array of zarr's, which has to be stored in a way that runs nothing.

    It may be described in both versions of the format, and both are looked at: zarr chooses between them.
    """
    old, new = folder / ".zarray", folder / "zarr.json"
    used, found = list[str](), old.is_file()
    if found:
        section = json.loads(old.read_text("utf-8"))
        used += [codec["id"] for codec in [section["compressor"], *(section["filters"] or ())] if codec]
    if new.is_file():
        section = json.loads(new.read_text("utf-8"))
        found = section["node_type"] == "array"
        used += _codecs(section["codecs"]) if found else []
    strange = sorted(set(used) - _CODECS)
    if strange and found:
        raise ConfigError(f"{folder}: is stored by way of '{strange[0]}'; known are {', '.join(sorted(_CODECS))}")
    return found


def _codecs(codecs: list[Any]) -> list[str]:
    """Returns the names of all codecs, also of those inside a shard."""
    names = []
    for codec in codecs:
        options = codec.get("configuration") or {}
        names += [codec["name"].removeprefix("numcodecs."), *_codecs(options.get("codecs", []))]
        names += _codecs(options.get("index_codecs", []))
    return names
