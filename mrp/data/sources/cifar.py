"""CIFAR-10 and CIFAR-100 from their binary versions, read inside the archive or from the folder it extracts to."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mrp.config import ConfigError, Node
from mrp.data.source import Arrays
from mrp.data.storage.cache import Cache

_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE
_GZIP = b"\x1f\x8b"
_NAMES_LIMIT = 1 << 16  # bytes of a list of class names


class Config(Node):
    """An archive of the binary version, or the folder that it extracts to."""

    name: Literal["cifar"] = "cifar"
    path: str  # the archive, or the folder that it was unpacked into


def recognise(text: str) -> Config | None:
    """Returns a configuration if `data.train` names this kind of source."""
    path = Path(text).expanduser()
    return Config(path=text) if path.is_file() or _find(path) else None


class Source(Arrays):
    """One split of CIFAR-10 or CIFAR-100."""

    def __init__(self, config: Config, split: Literal["train", "test"], cache: Cache) -> None:
        path = Path(config.path).expanduser()
        if path.is_file():
            version, contents = _read_archive(path, split)
        elif (folder_and_version := _find(path)) is not None:
            path, version = folder_and_version
            contents = _read_folder(path, version, split)
        else:
            raise ConfigError(f"{path}: neither {_ARCHIVES}, nor a folder that it extracts to; give one of these")
        super().__init__(str(path), *_parse(path, version, contents, split))


class _Version(NamedTuple):
    """The files of one of the two data sets."""

    archive: str
    folder: str
    pickled: str  # the folder of the Python version
    names: str
    num_classes: int
    label_bytes: int  # the last is the label wanted: CIFAR-100 puts the coarse one before it
    rows: dict[str, dict[str, int]]  # split -> file -> number of images

    def check(self, where: object, name: str, size: int, split: str) -> None:
        """Refuses a file that is not of its one right size."""
        wanted = self.rows[split].get(name, 0) * (self.label_bytes + _PIXELS)
        if size != wanted and (wanted or size > _NAMES_LIMIT):
            raise ConfigError(
                f"{where}: {size} bytes where {wanted or f'at most {_NAMES_LIMIT}'} are expected; it is damaged, "
                "download it again"
            )


_VERSIONS = (
    _Version(
        "cifar-10-binary.tar.gz",
        "cifar-10-batches-bin",
        "cifar-10-batches-py",
        "batches.meta.txt",
        10,
        1,
        {"train": {f"data_batch_{n}.bin": 10_000 for n in range(1, 6)}, "test": {"test_batch.bin": 10_000}},
    ),
    _Version(
        "cifar-100-binary.tar.gz",
        "cifar-100-binary",
        "cifar-100-python",
        "fine_label_names.txt",
        100,
        2,
        {"train": {"train.bin": 50_000}, "test": {"test.bin": 10_000}},
    ),
)
_ARCHIVES = " or ".join(version.archive for version in _VERSIONS)


def _find(path: Path) -> tuple[Path, _Version] | None:
    """Returns the folder with the files, which may be one below, and what they are; None if there are none."""
    for version in _VERSIONS:
        for folder in (path, path / version.folder):
            if any((folder / name).is_file() for files in version.rows.values() for name in files):
                return folder, version
        if path.name == version.pickled or (path / version.pickled).is_dir():
            raise _pickled(path, version)
    return None


def _read_folder(folder: Path, version: _Version, split: str) -> dict[str, bytes]:
    contents = {}
    for file in (folder / name for name in (*version.rows[split], version.names)):
        if file.is_file():
            version.check(file, file.name, file.stat().st_size, split)
            contents[file.name] = file.read_bytes()
    return contents


def _read_archive(path: Path, split: str) -> tuple[_Version, dict[str, bytes]]:
    """Reads only the expected members, and then the stream to its end, where gzip's checksum stands."""
    with path.open("rb") as file:
        if file.read(2) != _GZIP:
            raise ConfigError(f"{path}: neither a folder of images nor {_ARCHIVES}; give one of these")
    version, contents, where = None, dict[str, bytes](), str(path)
    try:
        with gzip.open(path) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                where, parts = f"{path}: {member.name}", PurePosixPath(member.name).parts
                if not parts:
                    continue  # "./", which some programs put first
                top, name = parts[0], parts[-1]
                version = next((version for version in _VERSIONS if top in (version.folder, version.pickled)), None)
                if version is None:
                    raise ConfigError(f"{where}: does not belong to {_ARCHIVES}; give one of these")
                if top == version.pickled:
                    raise _pickled(path, version)
                if name in (*version.rows[split], version.names) and (content := tar.extractfile(member)) is not None:
                    version.check(where, name, member.size, split)
                    contents[name] = content.read()
            while stream.read(1 << 20):
                pass
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ConfigError(f"{where}: the archive is cut short or damaged here ({error}); download it again") from None
    assert version is not None, "tarfile refuses an archive without members"
    return version, contents


def _parse(
    path: Path, version: _Version, contents: dict[str, bytes], split: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]]:
    """Returns the images (N H W C), their labels, and the names of the classes."""
    missing = [name for name in (*version.rows[split], version.names) if name not in contents]
    if missing:
        raise ConfigError(f"{path}: '{missing[0]}' is missing; download {version.archive} again")
    classes = tuple(contents[version.names].decode("utf-8", "replace").split())
    if len(classes) != version.num_classes:
        raise ConfigError(
            f"{path}: '{version.names}' has {len(classes)} names, not {version.num_classes}; download it again"
        )
    content = b"".join(contents[name] for name in version.rows[split])
    records = np.frombuffer(content, np.uint8).reshape(-1, version.label_bytes + _PIXELS)
    labels, pixels = records[:, version.label_bytes - 1], records[:, version.label_bytes :]
    if labels.max() >= version.num_classes:
        raise ConfigError(f"{path}: holds the label {labels.max()}; it is damaged, download it again")
    return pixels.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1), labels.astype(np.int64), classes


def _pickled(path: Path, version: _Version) -> ConfigError:
    return ConfigError(
        f"{path}: the Python version of CIFAR is pickled, and reading it could run code; take {version.archive}"
    )
