"""ImageNet-1K's archives as they are distributed, in miniature."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from mrp.config import ConfigError
from mrp.data.decode import decode
from mrp.data.open import open_source
from mrp.data.shardtool.build import Options, Plan, build
from mrp.data.shardtool.imagenet import DEVKIT, open_original
from tests.data.conftest import jpeg, make, tar

CLASSES = ["n03000000", "n01000000", "n02000000"]
HIDDEN = b"\0\5\x16\7"  # the beginning of what a Mac adds to a tar for each file, under a hidden name


def training(root: Path) -> Path:
    inner = {}
    for label, name in enumerate(CLASSES):
        images = {f"{name}_{n}.JPEG": jpeg(10 * label + n) for n in range(4)} | {f"._{name}_0.JPEG": HIDDEN}
        inner |= {f"{name}.tar": tar(root / "inner.tar", images).read_bytes(), f"._{name}.tar": HIDDEN}
    return tar(root / "ILSVRC2012_img_train.tar", inner)


def validation(root: Path, truth: list[int]) -> Path:
    images = {f"ILSVRC2012_val_{n + 1:08}.JPEG": jpeg(100 + n) for n in range(5)}
    images["._ILSVRC2012_val_00000001.JPEG"] = HIDDEN
    kind = np.dtype([("ILSVRC2012_ID", object), ("WNID", object), ("num_children", object)])
    rows = [(number, name, 0) for number, name in enumerate(CLASSES, 1)] + [(1001, "n00001740", 3)]
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(rows, kind).reshape(-1, 1)})
    files = {
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": "\n".join(map(str, truth)).encode(),
        "ILSVRC2012_devkit_t12/data/meta.mat": meta.getvalue(),
    }
    tar(root / DEVKIT, files, "w:gz")
    return tar(root / "ILSVRC2012_img_val.tar", images)


def test_the_tar_of_tars(tmp_path: Path) -> None:
    source = open_original(str(training(tmp_path)), "train", None)
    assert source.classes == tuple(sorted(CLASSES))
    assert len(source) == 12
    assert source.read(0) == (jpeg(10), 0)
    assert source.read(11) == (jpeg(3), 2)
    assert source.where(11).endswith("train.tar: n03000000/n03000000_3.JPEG")


def test_the_validation_tar_is_labelled_by_the_development_kit(tmp_path: Path) -> None:
    path = validation(tmp_path, [2, 1, 3, 1, 2])
    source = open_original(str(path), "test", None)
    train = open_original(str(training(tmp_path)), "train", None)
    assert source.classes == train.classes
    names = [source.classes[source.read(n)[1]] for n in range(5)]
    assert names == [CLASSES[number - 1] for number in (2, 1, 3, 1, 2)]
    assert source.read(4)[0] == jpeg(104)


def test_shards_of_an_archive_are_those_of_its_folder(tmp_path: Path) -> None:
    source = open_original(str(training(tmp_path)), "train", None)
    build(Plan(source, Options(shard_size=5), tmp_path / "a"), 1, lambda done, total: None)
    for label, name in enumerate(CLASSES):
        (tmp_path / "folder" / name).mkdir(parents=True)
        for n in range(4):
            (tmp_path / "folder" / name / f"{name}_{n}.JPEG").write_bytes(jpeg(10 * label + n))
    make(tmp_path / "folder", tmp_path / "b", shard_size=5)
    first, second = open_source(str(tmp_path / "a"), "train"), open_source(str(tmp_path / "b"), "train")
    assert first.identity == second.identity


def test_what_is_damaged_or_missing_is_named(tmp_path: Path) -> None:
    path = validation(tmp_path, [2, 1])
    with pytest.raises(ConfigError, match=r"ILSVRC2012_val_00000003\.JPEG: the development kit has only 2 labels"):
        open_original(str(path), "test", None)
    validation(tmp_path, [2, 1, 3, 1, 9])
    with pytest.raises(ConfigError, match=r"the label 9 has no class"):
        open_original(str(path), "test", None)
    (tmp_path / DEVKIT).unlink()
    with pytest.raises(ConfigError, match=r"is missing, and holds the labels of ILSVRC2012_img_val\.tar; give it with"):
        open_original(str(path), "test", None)
    content = training(tmp_path).read_bytes()
    (tmp_path / "cut.tar").write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigError, match=r"cut\.tar: cut short.*download it again"):
        open_original(str(tmp_path / "cut.tar"), "train", None)
    inner = content.index(b"n01000000_2.JPEG")
    damaged = bytearray(content)
    damaged[inner] ^= 1
    (tmp_path / "flip.tar").write_bytes(damaged)
    with pytest.raises(ConfigError, match=r"flip\.tar: n01000000\.tar: the header at byte \d+ is damaged"):
        open_original(str(tmp_path / "flip.tar"), "train", None)
    tar(tmp_path / "other.tar", {"a.txt": b"x"})
    with pytest.raises(ConfigError, match=r"is neither ImageNet-1K's training tar .* use 'mrp shards index'"):
        open_original(str(tmp_path / "other.tar"), "train", None)


def test_digits_and_other_arrays_are_kept_without_loss(tmp_path: Path) -> None:
    source = open_original("digits", "test", None)
    build(Plan(source, Options(seed=None), tmp_path / "a"), 1, lambda done, total: None)
    found = open_source(str(tmp_path / "a"), "test")
    assert len(found) == len(source)
    for number in (0, 100):
        np.testing.assert_array_equal(decode(found.read(number)[0], 1)[0], source.read(number)[0][..., 0])
        assert found.read(number)[1] == source.read(number)[1]
