"""Folders, digits and the `data:` section: what is read, and what is said when it cannot be."""

import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mrp.config import ConfigError
from mrp.data.mixtures import Mixture
from mrp.data.open import open_source
from mrp.data.source import Source
from mrp.data.subset import Subset, select
from mrp.evaluate import feature_files


def picture(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(path)


def labels(source: Source) -> list[int]:
    return [source.read(index)[1] for index in range(len(source))]


def names(source: Source, root: Path) -> list[str]:
    return [os.path.relpath(source.where(index), root) for index in range(len(source))]


def message(path: Path | str, split: Any = "train") -> str:
    with pytest.raises(ConfigError) as error:
        open_source(str(path), split)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_class_folders_give_labels(tmp_path: Path) -> None:
    for name in ("dog/1.PNG", "cat/deep/er/2.jpeg", "cat/1.JPG", "cat/3.tiff", "cat-like/1.webp", ".hidden/1.png"):
        picture(tmp_path / name)
    (tmp_path / "cat" / ".DS_Store").write_bytes(b"")
    picture(tmp_path / "cat" / ".thumb.png")
    for name in ("cat/._1.JPG", "__MACOSX/cat/._1.JPG"):  # as a Mac packs them
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    (tmp_path / "cat" / "notes.txt").write_text("no picture")
    (tmp_path / "list.csv").write_text("no picture")
    source = open_source(str(tmp_path), "train")
    assert source.classes == ("cat", "cat-like", "dog")
    assert names(source, tmp_path) == ["cat-like/1.webp", "cat/1.JPG", "cat/3.tiff", "cat/deep/er/2.jpeg", "dog/1.PNG"]
    assert labels(source) == [1, 0, 0, 0, 2]
    assert source.read(4)[0] == (tmp_path / "dog/1.PNG").read_bytes()


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "\u00e9.png"):
        picture(tmp_path / name)
    source = open_source(str(tmp_path), "train")
    assert source.classes == ()
    assert names(source, tmp_path) == ["a.png", "b.png", "\u00e9.png"]
    assert labels(source) == [-1, -1, -1]


def test_a_name_that_is_no_text_is_read(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", os.fsencode(tmp_path) + b"/\xff.png")
    source = open_source(str(tmp_path), "train")
    assert isinstance(source.read(0)[0], bytes)


def test_a_class_folder_may_be_a_link_and_a_link_upwards_is_passed_over(tmp_path: Path) -> None:
    picture(tmp_path / "elsewhere" / "1.png")
    picture(tmp_path / "root" / "cat" / "1.png")
    (tmp_path / "root" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "cat" / "up").symlink_to(tmp_path / "root")
    source = open_source(str(tmp_path / "root"), "train")
    assert source.classes == ("cat", "dog")
    assert len(source) == 2


def test_links_between_siblings_end(tmp_path: Path) -> None:
    for name in "ab":
        picture(tmp_path / name / "1.png")
        (tmp_path / name / "other").symlink_to(tmp_path / ("b" if name == "a" else "a"))
    source = open_source(str(tmp_path), "train")
    assert names(source, tmp_path) == ["a/1.png", "a/other/1.png", "b/1.png", "b/other/1.png"]
    for name in "cdefgh":
        (tmp_path / name).mkdir()
        for other in "abcdefgh":
            (tmp_path / name / other).symlink_to(tmp_path / other)
    assert "is a link, and links behind links lead to" in message(tmp_path)


def test_many_folders_may_link_to_one(tmp_path: Path) -> None:
    picture(tmp_path / "shared" / "1.png")
    for number in range(101):
        (tmp_path / "root" / f"{number}").mkdir(parents=True)
        (tmp_path / "root" / f"{number}" / "shared").symlink_to(tmp_path / "shared")
    assert len(open_source(str(tmp_path / "root"), "train")) == 101


def test_identity_is_that_of_the_names(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/1.png"):
        picture(tmp_path / "here" / name)
    first = open_source(str(tmp_path / "here"), "train").identity
    (tmp_path / "here").rename(tmp_path / "there")
    assert open_source(str(tmp_path / "there"), "train").identity == first
    assert len(first) == 64
    (tmp_path / "there/a/1.png").rename(tmp_path / "there/a/2.png")
    renamed = open_source(str(tmp_path / "there"), "train").identity
    assert renamed != first
    with (tmp_path / "there/a/2.png").open("ab") as file:
        file.write(b"mended")
    assert open_source(str(tmp_path / "there"), "train").identity == renamed


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    assert "holds no images; files that count end in .jpg, .jpeg, .png" in message(tmp_path)
    picture(tmp_path / "cat" / "1.png")
    (tmp_path / "dog").mkdir()
    assert (
        message(tmp_path) == f"{tmp_path / 'dog'}: a class folder without images; put its images there, or move it away"
    )
    (tmp_path / "dog").rmdir()
    picture(tmp_path / "stray.png")
    assert "class folders ('cat') and also images outside of them ('stray.png')" in message(tmp_path)


def test_a_folder_of_splits_is_not_a_folder_of_classes(tmp_path: Path) -> None:
    for name in ("test/cat/1.png", "train/cat/1.png"):
        picture(tmp_path / name)
    said = f"{tmp_path}: its folders (test, train) are splits, not classes; give one of them, such as {tmp_path}/train"
    assert message(tmp_path) == said


def test_a_split_among_the_classes_is_not_a_class(tmp_path: Path) -> None:
    """Test images that lie beside the classes would be trained on, and be a class of their own."""
    for name in ("cat/1.png", "dog/1.png", "Val/cat/2.png"):
        picture(tmp_path / name)
    assert message(tmp_path) == (
        f"{tmp_path / 'Val'}: holds a folder 'cat', as {tmp_path} does, so it is a split and no class; move it out of "
        f"{tmp_path} (a run that was begun on it has learned wrong classes, and starts anew)"
    )
    (tmp_path / "Val/cat").rename(tmp_path / "Val/express")
    assert open_source(str(tmp_path), "train").classes == ("Val", "cat", "dog")  # trains, say


def test_numbers_in_the_place_of_endings_are_counted_together(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    for number in range(103):
        (tmp_path / f"frame.{number}").touch()
    assert open_source(str(tmp_path), "train").left_out.partition("names: ")[2].startswith("3 of other kinds, 1 .")


def test_files_that_are_not_taken_for_images_are_counted(tmp_path: Path) -> None:
    for name in ("1.png", "2.PNG"):
        picture(tmp_path / name)
    assert open_source(str(tmp_path), "train").left_out == ""
    (tmp_path / "1.png").with_name("scan").write_bytes((tmp_path / "1.png").read_bytes())
    one = open_source(str(tmp_path), "train")
    assert one.left_out == f"{tmp_path}: files left out as no images, by the endings of their names: 1 without one"
    for name in ("labels.csv", "another scan", "a.dcm", "b.DCM", "c.dcm", ".DS_Store"):
        (tmp_path / name).touch()
    several = open_source(str(tmp_path), "train")
    assert several.left_out == (
        f"{tmp_path}: files left out as no images, by the endings of their names: 3 .dcm, 2 without one, 1 .csv"
    )
    assert several.identity == one.identity
    assert select(several, "data.train", None, 0.5).left_out == several.left_out


def test_a_broken_link_is_named(tmp_path: Path) -> None:
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert message(tmp_path).startswith(f"{tmp_path / 'gone.png'}: cannot be read: No such file")


def test_what_does_not_exist(tmp_path: Path) -> None:
    assert message("digit").endswith("'digits' comes with mrp; did you mean 'digits'?")
    assert message("imagenet") == (
        "data.train: 'imagenet' does not exist; give a folder of images or an archive of CIFAR "
        f"(a relative path starts at {Path.cwd()}); 'digits' comes with mrp"
    )
    assert message(tmp_path / "gone", "test") == (
        f"data.test: '{tmp_path / 'gone'}' does not exist; give a folder of images or an archive of CIFAR"
    )


def test_digits() -> None:
    train, test = open_source("digits", "train"), open_source("digits", "test")
    assert (len(train), len(test)) == (1437, 360)
    assert train.classes == tuple("0123456789")
    assert np.ptp(np.bincount(labels(test))) <= 3
    assert np.ptp(np.bincount(labels(train))) <= 10
    image, _ = train.read(0)
    assert isinstance(image, np.ndarray)
    assert (image.shape, str(image.dtype), image.max()) == ((8, 8, 1), "uint8", 255)
    assert train.where(3) == "digits (train): image 3"
    assert open_source("digits", "train").identity == train.identity != test.identity
    shown = [{np.asarray(source.read(index)[0]).tobytes() for index in range(len(source))} for source in (train, test)]
    assert not shown[0] & shown[1]


def test_digits_are_those_of_scikit_learn_without_its_import(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "sklearn.datasets", None)
        splits = open_source("digits", "train"), open_source("digits", "test")
    monkeypatch.setattr("mrp.data.sources.digits._FILE", Path("is", "elsewhere"))
    theirs = open_source("digits", "train"), open_source("digits", "test")
    assert [split.identity for split in splits] == [split.identity for split in theirs]


def test_a_folder_travels_to_workers(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.png")
    source = open_source(str(tmp_path), "train")
    again = pickle.loads(pickle.dumps(source))
    assert again.identity == source.identity
    assert again.where(0) == source.where(0)
    np.testing.assert_array_equal(again.read(0)[0], source.read(0)[0])


def test_the_content_of_a_folder_changes_with_its_files_and_its_identity_with_their_names(tmp_path: Path) -> None:
    """A cache of features that is looked up by the identity would return those of images that are gone."""
    picture(tmp_path / "a" / "1.png", 1)
    picture(tmp_path / "b" / "1.png", 2)
    before = open_source(str(tmp_path), "train")
    picture(tmp_path / "a" / "1.png", 3)
    os.utime(tmp_path / "a" / "1.png", ns=(0, 1))
    after = open_source(str(tmp_path), "train")
    assert after.identity == before.identity
    assert after.content != before.content
    half = [Subset(source, np.array([0])) for source in (before, after)]
    assert half[0].identity == half[1].identity
    assert half[0].content != half[1].content
    mixed = [Mixture([source, source], [1, 1]) for source in (before, after)]
    assert mixed[0].identity == mixed[1].identity
    assert mixed[0].content != mixed[1].content


def test_images_of_sources_whose_classes_differ_are_written_without_labels(tmp_path: Path) -> None:
    picture(tmp_path / "animals" / "cat" / "1.png", 1)
    picture(tmp_path / "plants" / "oak" / "1.png", 2)
    sources = [open_source(str(tmp_path / name), "train") for name in ("animals", "plants")]
    feature_files.write(tmp_path / "features.npy", np.zeros((2, 3), np.float32), Mixture(sources, [1, 1]))
    lines = [json.loads(line) for line in (tmp_path / "features.jsonl").read_text().splitlines()]
    assert [(line["label"], line["class"]) for line in lines] == [(-1, None)] * 2
