"""CIFAR in its true binary layout, whole and damaged."""

import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mrp.config import ConfigError
from mrp.data.open import open_source
from mrp.data.source import Source
from tests.data.conftest import tar

NAMES_10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
NAMES_100 = [f"kind_{number:02}" for number in range(100)]


def records(rows: int, classes: int, label_bytes: int, first: int = 0) -> NDArray[np.uint8]:
    """Labels that count up, and images whose rows, columns and channels can be told apart."""
    numbers = np.arange(first, first + rows)
    out = np.zeros((rows, label_bytes + 3072), np.uint8)
    out[:, label_bytes - 1] = numbers % classes
    if label_bytes == 2:
        out[:, 0] = numbers % 20
    pixels = out[:, label_bytes:].reshape(rows, 3, 32, 32)
    pixels[:, 0, :, 0] = np.arange(32)
    pixels[:, 1, 0, :] = np.arange(32) * 2
    pixels[:, 2, 5, 6] = numbers % 251
    return out


def files_10() -> dict[str, bytes]:
    files = {f"data_batch_{n}.bin": records(10_000, 10, 1, 10_000 * (n - 1)).tobytes() for n in range(1, 6)}
    files["batches.meta.txt"] = ("\n".join(NAMES_10) + "\n\n").encode()
    return files | {"test_batch.bin": records(10_000, 10, 1, 7).tobytes(), "readme.html": b"<html>"}


def files_100() -> dict[str, bytes]:
    names = {"coarse_label_names.txt": b"fish\n" * 20, "fine_label_names.txt": "\n".join(NAMES_100).encode()}
    return names | {
        "test.bin": records(10_000, 100, 2, 3).tobytes(),
        "train.bin": records(50_000, 100, 2).tobytes(),
    }


def archive(path: Path, folder: str, files: Mapping[str, bytes]) -> Path:
    members = {f"{folder}/": b""} | {f"{folder}/{name}": content for name, content in files.items()}
    return tar(path, members, "w:gz", compresslevel=1)


@pytest.fixture(scope="module")
def cifar_10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return archive(tmp_path_factory.mktemp("cifar") / "any-name.tgz", "cifar-10-batches-bin", files_10())


@pytest.fixture(scope="module")
def cifar_100(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return archive(tmp_path_factory.mktemp("cifar") / "cifar-100-binary.tar.gz", "cifar-100-binary", files_100())


def check_pixels(source: Source, index: int, mark: int) -> None:
    image, _ = source.read(index)
    assert isinstance(image, np.ndarray)
    assert image.shape == (32, 32, 3)
    assert image[:, 0, 0].tolist() == list(range(32))
    assert image[0, :, 1].tolist() == list(range(0, 64, 2))
    assert image[5, 6, 2] == mark


def test_cifar_10(cifar_10: Path) -> None:
    train, test = open_source(str(cifar_10), "train"), open_source(str(cifar_10), "test")
    assert (len(train), len(test)) == (50_000, 10_000)
    assert train.classes == test.classes == tuple(NAMES_10)
    assert [train.read(index)[1] for index in (0, 9, 12_345)] == [0, 9, 5]
    assert test.read(0)[1] == 7
    check_pixels(train, 12_345, 12_345 % 251)
    check_pixels(test, 3, 10)
    assert train.identity != test.identity
    assert train.where(12) == f"{cifar_10}: image 12"


def test_cifar_100_has_fine_labels(cifar_100: Path) -> None:
    train, test = open_source(str(cifar_100), "train"), open_source(str(cifar_100), "test")
    assert (len(train), len(test)) == (50_000, 10_000)
    assert train.classes == tuple(NAMES_100)
    assert train.read(30_057)[1] == 57
    check_pixels(train, 30_057, 30_057 % 251)


def test_the_extracted_folder_is_the_same_data(cifar_10: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    files = files_10()
    for name in ("test_batch.bin", "batches.meta.txt"):
        (folder / name).write_bytes(files[name])
    packed = open_source(str(cifar_10), "test")
    for path in (folder, tmp_path):
        assert open_source(str(path), "test").identity == packed.identity
    with pytest.raises(ConfigError, match=r"'data_batch_1\.bin' is missing; download cifar-10-binary\.tar\.gz again"):
        open_source(str(folder), "train")


def sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def test_a_folder_with_a_damaged_file_names_it(tmp_path: Path) -> None:
    sparse(tmp_path / "test.bin", 10_000 * 3074 - 1)
    (tmp_path / "fine_label_names.txt").write_text("\n".join(NAMES_100))
    with pytest.raises(ConfigError, match=r"test\.bin: 30739999 bytes where 30740000 are expected; it is damaged"):
        open_source(str(tmp_path), "test")
    sparse(tmp_path / "test.bin", 10_000 * 3074)
    assert open_source(str(tmp_path), "test").read(0)[1] == 0
    (tmp_path / "fine_label_names.txt").write_text("one two")
    with pytest.raises(ConfigError, match=r"'fine_label_names\.txt' has 2 names, not 100"):
        open_source(str(tmp_path), "test")


def test_a_label_out_of_range_is_damage(tmp_path: Path) -> None:
    content = bytearray(10_000 * 3073)
    content[3073 * 5] = 10
    (tmp_path / "test_batch.bin").write_bytes(content)
    (tmp_path / "batches.meta.txt").write_text(" ".join(NAMES_10))
    with pytest.raises(ConfigError, match=r"holds the label 10; it is damaged"):
        open_source(str(tmp_path), "test")


def test_a_member_of_the_wrong_size_is_named(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar.gz", "cifar-10-batches-bin", {"data_batch_1.bin": b"\0" * 3073})
    with pytest.raises(ConfigError, match=r"cifar-10-batches-bin/data_batch_1\.bin: 3073 bytes where 30730000"):
        open_source(str(path), "train")
    path = archive(tmp_path / "b.tar.gz", "cifar-10-batches-bin", {"batches.meta.txt": b"\0" * 70_000})
    with pytest.raises(ConfigError, match=r"batches\.meta\.txt: 70000 bytes where at most 65536"):
        open_source(str(path), "train")


@pytest.mark.parametrize("share", [0.3, 0.95])
def test_an_archive_cut_short_names_the_member(share: float, cifar_10: Path, tmp_path: Path) -> None:
    content = cifar_10.read_bytes()
    (tmp_path / "a.tar.gz").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ConfigError, match=r"a\.tar\.gz: cifar-10-batches-bin/.*: the archive is cut short or damaged"):
        open_source(str(tmp_path / "a.tar.gz"), "train")


def test_a_flipped_bit_anywhere_is_found(cifar_100: Path, tmp_path: Path) -> None:
    content = bytearray(cifar_100.read_bytes())
    content[len(content) - 200_000] ^= 4
    (tmp_path / "a.tar.gz").write_bytes(content)
    with pytest.raises(ConfigError, match="the archive is cut short or damaged"):
        open_source(str(tmp_path / "a.tar.gz"), "test")


def test_the_pickled_version_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "cifar-10-python.tar.gz", "cifar-10-batches-py", {"data_batch_1": b"pickle"})
    (tmp_path / "cifar-100-python").mkdir()
    with pytest.raises(ConfigError, match=r"reading it could run code; take cifar-10-binary\.tar\.gz"):
        open_source(str(path), "train")
    for folder in (tmp_path, tmp_path / "cifar-100-python"):
        with pytest.raises(ConfigError, match=r"take cifar-100-binary\.tar\.gz"):
            open_source(str(folder), "test")


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ConfigError, match="neither a folder of images nor cifar-10-binary"):
        open_source(str(tmp_path / "notes.txt"), "train")
    path = archive(tmp_path / "other.tar.gz", "photos", {"1.jpg": b""})
    with pytest.raises(ConfigError, match=r"other\.tar\.gz: photos: does not belong to cifar-10-binary"):
        open_source(str(path), "train")
    path = archive(tmp_path / "short.tar.gz", "cifar-10-batches-bin", {"readme.html": b""})
    with pytest.raises(ConfigError, match=r"'data_batch_1\.bin' is missing"):
        open_source(str(path), "train")
    path.write_bytes(b"\x1f\x8b")
    with pytest.raises(ConfigError, match="cut short or damaged"):
        open_source(str(path), "train")


def test_a_link_in_place_of_a_member_is_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "links.tar.gz"
    with tarfile.open(path, "w:gz") as out:
        link = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        out.addfile(link)
    with pytest.raises(ConfigError, match=r"test_batch\.bin"):
        open_source(str(path), "test")


def test_an_archive_that_begins_with_its_folder_is_read(tmp_path: Path) -> None:
    """As `tar c .` makes it: its first member has no name but a point."""
    members = {"./": b""} | {f"./cifar-10-batches-bin/{name}": content for name, content in files_10().items()}
    tar(tmp_path / "a.tar.gz", members, "w:gz", compresslevel=1)
    assert len(open_source(str(tmp_path / "a.tar.gz"), "test")) == 10_000
