"""Which images belong together, by their names in every kind of source that has names."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mrp.cli import main
from mrp.config import ConfigError
from mrp.data.groups import groups_of
from mrp.data.open import open_source
from mrp.data.subset import Subset

PATTERN = r"(p\d+)-"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, four patients with three images each."""
    root = tmp_path_factory.mktemp("p9-scans") / "images"  # the pattern would find this folder in every path
    for number in range(12):
        path = root / "ab"[number % 2] / f"p{number % 4}-{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), 10 * number, np.uint8)).save(path)
    return root


def patients(source: object) -> list[str]:
    return [source.name_of(n).partition("p")[2][:1] for n in range(len(source))]  # type: ignore[attr-defined, arg-type]


@pytest.mark.parametrize("of", ["folder", "shards", "subset"])
def test_images_of_a_group_have_one_number(of: str, folder: Path, tmp_path: Path) -> None:
    if of == "shards":
        main(["shards", "build", str(folder), str(tmp_path / "shards"), "--shard-size", "5"])
        source = open_source(str(tmp_path / "shards"), "train")
    else:
        source = open_source(str(folder), "train")
    if of == "subset":
        source = Subset(source, np.arange(11, -1, -1))
    found, named = groups_of(source, PATTERN), patients(source)
    assert sorted(set(named)) == list("0123")
    assert len(set(found.tolist())) == 4
    assert len(set(zip(found.tolist(), named, strict=True))) == 4
    whole = groups_of(open_source(str(folder), "train"), PATTERN)
    assert set(found.tolist()) == set(whole.tolist())  # whatever the images are kept in


def test_what_the_pattern_finds_is_the_group_unless_it_has_brackets(folder: Path) -> None:
    source = open_source(str(folder), "train")
    assert len(set(groups_of(source, r"p\d+").tolist())) == 4
    assert len(set(groups_of(source, r"p(\d+)").tolist())) == 4
    assert len(set(groups_of(source, r"^(\w)/(p\d)").tolist())) == 4  # here each patient is in one class
    assert len(set(groups_of(source, r"(?:^b/(p\d)|^a)").tolist())) == 3  # a part that finds nothing is a name too


def test_a_pattern_that_finds_no_groups_is_refused(folder: Path) -> None:
    source = open_source(str(folder), "train")
    with pytest.raises(ConfigError, match=r"finds nothing in 'a/p0-0\.png', the name of an image \(.*/a/p0-0\.png\)"):
        groups_of(source, "patient")
    with pytest.raises(ConfigError, match=r"finds the same in the names of all 12 images, such as 'a/p0-0\.png'"):
        groups_of(source, "p")
    with pytest.raises(ConfigError, match="which is no regular expression: missing"):
        groups_of(source, "(p")


def test_only_the_number_that_mrp_writes_is_no_part_of_a_key(folder: Path, tmp_path: Path) -> None:
    main(["shards", "build", str(folder), str(tmp_path / "shards"), "--shard-size", "5"])
    source = open_source(str(tmp_path / "shards"), "train")
    assert source.name_of(7) == open_source(str(folder), "train").name_of(7).replace("/", "--").removesuffix(".png")
    with tarfile.open(tmp_path / "theirs.tar", "w") as tar:
        for number in range(4):
            tar.add(next(folder.rglob("*.png")), f"123456780-00000000{number}.png")
    main(["shards", "index", str(tmp_path / "theirs.tar"), str(tmp_path / "set")])
    assert open_source(str(tmp_path / "set"), "train").name_of(0) == "123456780-000000000"
