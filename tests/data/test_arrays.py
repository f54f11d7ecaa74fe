"""Images in one array: the same samples and identity from every format, and nothing that a file holds is executed."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mrp.check import sources
from mrp.config import ConfigError
from mrp.data.open import open_source
from mrp.data.source import Source
from mrp.data.sources import SOURCES

IMAGES = np.random.default_rng(0).integers(0, 65536, (9, 10, 12, 5), np.uint16)
LABELS = np.arange(9) % 3
FORMATS = ("npy", "npz", "packed.npz", "h5", "zarr", "old.zarr")


def written(path: Path, images: Any = IMAGES, labels: Any = LABELS) -> Path:
    """An array of images with labels, in the format that its name says."""
    both = {"images": images} | ({} if labels is None else {"labels": labels})
    if path.suffix == ".npy":
        np.save(path, images)
        if labels is not None:
            np.save(path.with_name(f"{path.stem}_labels.npy"), labels)
    elif path.suffix == ".npz":
        (np.savez_compressed if "packed" in path.name else np.savez)(path, **both)
    elif path.suffix == ".h5":
        h5py = pytest.importorskip("h5py", reason="an extra: pip install 'mrp-vit[arrays]'")
        with h5py.File(path, "w") as file:
            for name, array in both.items():
                file.create_dataset(name, data=array, chunks=True, compression="gzip")
    else:
        zarr = pytest.importorskip("zarr", reason="an extra: pip install 'mrp-vit[arrays]'")
        group = zarr.open_group(str(path), mode="w", zarr_format=2 if "old" in path.name else 3)
        for name, array in both.items():
            group.create_array(name, data=array, chunks=(2, *array.shape[1:]))
    return path


def opened(path: Path | str, **options: Any) -> Source:
    section = SOURCES.read({"name": "arrays", "path": str(path), **options}) if options else str(path)
    return open_source(section, "train")


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_holds_the_same_samples(tmp_path: Path, name: str) -> None:
    source = opened(written(tmp_path / f"cells.{name}"))
    assert (len(source), source.classes) == (9, ("0", "1", "2"))
    for index in (8, 0, 4):
        pixels, label = source.read(index)
        np.testing.assert_array_equal(pixels, IMAGES[index])
        assert label == LABELS[index]
    assert source.identity == opened(written(tmp_path / "same.npy")).identity
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again.read(3)[0], IMAGES[3])


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_does_what_a_source_must(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / f"cells.{name}")
    for each in sources.CHECKS:
        each(SOURCES.read({"name": "arrays", "path": str(path)}))


@pytest.mark.parametrize("name", ["npz", "h5"])
def test_the_label_of_one_image_may_be_a_number(tmp_path: Path, name: str) -> None:
    if name == "npz":
        np.savez(tmp_path / "one.npz", images=IMAGES[:1], labels=2)
    else:
        h5py = pytest.importorskip("h5py", reason="an extra: pip install 'mrp-vit[arrays]'")
        with h5py.File(tmp_path / "one.h5", "w") as file:
            file["images"], file["labels"] = IMAGES[:1], 2
    assert opened(tmp_path / f"one.{name}").read(0)[1] == 2


@pytest.mark.parametrize("changed", ["pixel", "label", "name"])
def test_other_values_are_another_identity(tmp_path: Path, changed: str) -> None:
    images, labels, names = IMAGES.copy(), LABELS.copy(), ("a", "b", "c")
    before = opened(written(tmp_path / "a.npy"), classes=names).identity
    if changed == "pixel":
        images[5, 3, 2, 1] ^= 1
    elif changed == "label":
        labels[5] = 0
    else:
        names = ("a", "b", "d")
    assert opened(written(tmp_path / "b.npy", images, labels), classes=names).identity != before


def test_the_content_follows_the_files(tmp_path: Path) -> None:
    path = written(tmp_path / "cells.zarr")
    before = opened(path)
    content = before.content
    chunk = next(file for file in (path / "images").rglob("*") if file.is_file() and file.suffix != ".json")
    os.utime(chunk, ns=(1, 1))
    after = opened(path)
    assert (after.identity, after.content == content) == (before.identity, False)


def test_kinds_of_numbers_and_axes(tmp_path: Path) -> None:
    grey = opened(written(tmp_path / "grey.npy", IMAGES[..., 0].astype(">i2"), None))
    assert (grey.read(1)[0].dtype, grey.read(1)[0].shape, grey.read(1)[1], grey.classes) == (
        np.float32, (10, 12, 1), -1, (),
    )  # fmt: skip
    np.testing.assert_array_equal(grey.read(1)[0][..., 0], IMAGES[1, ..., 0].astype(">i2").astype(np.float32))
    first = opened(written(tmp_path / "first.npy", IMAGES.transpose(0, 3, 1, 2)), axes="nchw")
    np.testing.assert_array_equal(first.read(2)[0], IMAGES[2])
    fortran = opened(written(tmp_path / "fortran.npz", np.asfortranarray(IMAGES)))
    np.testing.assert_array_equal(fortran.read(2)[0], IMAGES[2])


def test_what_is_wrong_is_one_line(tmp_path: Path) -> None:
    def message(path: Path, **options: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            opened(path, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value).replace(f"{tmp_path}/", "")

    cells = written(tmp_path / "cells.npz")
    assert (
        message(cells, images="image")
        == "cells.npz: has no array 'image'; did you mean 'images'?; it has images, labels"
    )
    assert "has no array 'lables' for its labels; did you mean 'labels'?" in message(cells, labels="lables")
    assert "its labels go from 0 to 2" in message(cells, classes=["a"])
    short = written(tmp_path / "short.npy", labels=LABELS[:5])
    assert "its labels are int64 of shape (5,), and 9 class numbers are needed" in message(short)
    assert "is of shape (9,)" in message(written(tmp_path / "flat.npy", LABELS, None))
    assert "pixels of complex128; save them as" in message(written(tmp_path / "complex.npy", IMAGES * 1j, None))
    np.savez(tmp_path / "two.npz", a=IMAGES, b=IMAGES)
    assert "say by 'images: NAME' which one" in message(tmp_path / "two.npz")
    np.save(tmp_path / "objects.npy", np.array([{}, []], object), allow_pickle=True)
    assert "objects, which are not read since they could run code" in message(tmp_path / "objects.npy")
    np.savez(tmp_path / "objects.npz", images=np.array([{}, []], object))
    assert "objects, which are not read since they could run code" in message(tmp_path / "objects.npz")
    (tmp_path / "noise.npz").write_bytes(b"noise")
    assert "cannot be read as arrays" in message(tmp_path / "noise.npz")
    cells.write_bytes((tmp_path / "cells.npz").read_bytes()[:3000])
    assert "cannot be read as arrays" in message(cells)


def test_damage_is_one_line(tmp_path: Path) -> None:
    path = written(tmp_path / "cells.h5")
    (tmp_path / "noise.h5").write_bytes(b"noise")
    with pytest.raises(ConfigError, match=r"noise\.h5: is no HDF5 file, or a damaged one"):
        opened(tmp_path / "noise.h5")
    source = opened(path)
    source.read(0)
    path = written(tmp_path / "cells.zarr")
    source = opened(path)
    for file in (path / "images" / "c").rglob("*"):
        if file.is_file():
            file.write_bytes(b"noise")
    with pytest.raises(ValueError, match="damaged"):
        source.read(0)


def test_a_link_to_another_file_is_not_followed(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="an extra: pip install 'mrp-vit[arrays]'")
    written(tmp_path / "secret.h5")
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["images"] = h5py.ExternalLink("secret.h5", "images")
        file.create_dataset("raw", (9, 10, 12), "u1", external=[(str(tmp_path / "secret.h5"), 0, 1080)])
    with pytest.raises(ConfigError, match="holds no array"):
        opened(tmp_path / "link.h5")


def test_a_way_of_storing_that_runs_code_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "cells.old.zarr")
    section = json.loads((path / "images" / ".zarray").read_text())
    (path / "images" / ".zarray").write_text(json.dumps(section | {"filters": [{"id": "pickle"}]}))
    with pytest.raises(ConfigError, match="is stored by way of 'pickle'"):
        opened(path)
    path = written(tmp_path / "cells.zarr")
    section = json.loads((path / "images" / "zarr.json").read_text())
    inner = {"name": "sharding_indexed", "configuration": {"codecs": [{"name": "numcodecs.pickle"}]}}
    (path / "images" / "zarr.json").write_text(json.dumps(section | {"codecs": [inner]}))
    with pytest.raises(ConfigError, match="is stored by way of 'pickle'"):
        opened(path)
    # Described twice: zarr reads the newer description, so a harmless older one must not stand for it.
    old = {"compressor": None, "filters": None, "zarr_format": 2}
    (path / "images" / ".zarray").write_text(json.dumps(old))
    with pytest.raises(ConfigError, match=r"images: is stored by way of 'pickle'; known are [\w, ]*$"):
        opened(path)


@pytest.mark.parametrize("text", ["[]", '{"compressor": 5, "filters": null}', "[" * 100_000])
def test_a_description_that_is_none_is_one_line(tmp_path: Path, text: str) -> None:
    path = written(tmp_path / "cells.old.zarr")
    (path / "images" / ".zarray").write_text(text)
    with pytest.raises(ConfigError, match="cannot be read as arrays"):
        opened(path)


@pytest.mark.parametrize("shape", [(-1, 8, 8, 3), (2**40, 4, 4, 4), (3, 2**20, 2**20, 3)])
@pytest.mark.parametrize("name", ["a.npy", "a.npz", "packed.npz"])
def test_a_shape_that_a_file_cannot_hold_is_one_line(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    content, path = io.BytesIO(), tmp_path / name
    np.lib.format.write_array_header_1_0(content, {"descr": "|u1", "fortran_order": False, "shape": shape})
    if path.suffix == ".npy":
        path.write_bytes(content.getvalue() + bytes(4096))
    else:
        way = zipfile.ZIP_DEFLATED if "packed" in name else zipfile.ZIP_STORED
        with zipfile.ZipFile(path, "w", way) as archive:
            archive.writestr("images.npy", content.getvalue() + bytes(4096))
    with pytest.raises(ConfigError, match="cannot be read as arrays"):
        opened(path)


def test_images_that_would_exhaust_the_memory_are_refused_unread(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="an extra: pip install 'mrp-vit[arrays]'")
    with h5py.File(tmp_path / "big.h5", "w") as file:
        file.create_dataset("images", (3, 2**20, 2**20, 3), "u1", chunks=(1, 1024, 1024, 1))
    with pytest.raises(ConfigError, match="could be an attack on the memory"):
        opened(tmp_path / "big.h5")


@pytest.mark.parametrize("what", ["labels", "present"])
@pytest.mark.parametrize("name", ["cells.h5", "cells.zarr"])
def test_an_array_beside_the_images_is_not_read_before_it_has_their_number(
    tmp_path: Path, name: str, what: str
) -> None:
    """Zeros that no file holds: 8 TB of them would be one MemoryError."""
    path = written(tmp_path / name, labels=None)
    if name.endswith("h5"):
        with __import__("h5py").File(path, "a") as file:
            file.create_dataset(what, (10**12,), "i8", chunks=True)
    else:
        __import__("zarr").open_group(str(path), mode="a").create_array(what, shape=(10**12,), dtype="i8")
    with pytest.raises(ConfigError, match=r"of shape \(1000000000000,\)"):
        opened(path, **({} if what == "labels" else {"present": "present"}))


@pytest.mark.parametrize("name", ["cells.packed.npz", "cells.h5", "cells.zarr", "cells.npz"])
def test_what_the_memory_cannot_hold_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("mrp.data.arrayfiles._MEMORY", 71)  # one byte less than the labels take
    what = "its labels: takes" if name == "cells.npz" else "images: is unpacked in pieces of"
    with pytest.raises(ConfigError, match=f"{what} .* GiB, and this machine has"):
        opened(written(tmp_path / name))


@pytest.mark.parametrize(("package", "name"), [("h5py", "cells.h5"), ("zarr", "cells.zarr")])
def test_a_missing_package_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, name: str
) -> None:
    path = written(tmp_path / name)
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(ConfigError, match=r"install it: pip install 'mrp-vit\[arrays\]'"):
        opened(path)
