"""Labels from a table: which row is about which image, what its cells say, and one line for what cannot be right."""

from __future__ import annotations

import json
import re
import shutil
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mrp.cli import main
from mrp.config import ConfigError, Tree, build
from mrp.data import tree
from mrp.data.augment import View
from mrp.data.batches import Batches, EvaluationPlan
from mrp.data.config import CacheConfig, Config
from mrp.data.held import Holding
from mrp.data.labels import Labels, of_other_images, refuse_same_rows
from mrp.data.manifest import MANIFEST, parse
from mrp.data.open import open_data
from mrp.data.quarantine import Quarantine
from mrp.data.source import Source
from mrp.data.storage.cache import Cache
from mrp.evaluate import feature_files, results
from mrp.report import verdict
from mrp.run import load
from tests.trained import NARROW, pretrained

NAMES = ("a/1.png", "a/2.png", "b/1.png", "b/3.png")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four images in two folders, whose names alone do not tell them apart."""
    for number, name in enumerate(NAMES):
        path = tmp_path / "set" / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), 10 * number, np.uint8)).save(path)
    return tmp_path / "set" / "images"


def written(folder: Path, text: str, name: str = "labels.csv") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def opened(train: Any, labels: Any, split: Any = "train", **more: Any) -> Source:
    values = {"train": train, "test": train, "labels": labels, "size": 4, "channels": 3} | more
    return open_data(build(Config, Tree(values, {})), split, Cache(CacheConfig()))


def of(source: Source) -> dict[str, str]:
    """Returns the class of each image, which must be what it is read with."""
    assert [source.read(n)[1] for n in range(len(source))] == source.labels.tolist()
    return {source.name_of(n): source.classes[source.labels[n]] for n in range(len(source))}


ROWS = {
    "as they are in the folder": "{}/{}.png",
    "without the ending": "{}/{}",
    "of the files that they were made from": "{}/{}.dcm",
    "from further up": "set/images/{}/{}.PNG",
    "from here": "./images/{}/{}.png",
    "written on Windows": "images\\{}\\{}.png",
}


@pytest.mark.parametrize("form", ROWS.values(), ids=ROWS.keys())
def test_a_row_names_an_image_by_the_end_of_its_path(form: str, images: Path, tmp_path: Path) -> None:
    rows = [f"{form.format(*name[:-4].split('/'))},{kind}" for name, kind in zip(NAMES, "xyyx", strict=True)]
    table = written(tmp_path, "\n".join(["image,kind", *rows]))
    assert of(opened(str(images), table)) == dict(zip(NAMES, "xyyx", strict=True))


def test_the_whole_path_names_an_image_too(images: Path, tmp_path: Path) -> None:
    table = written(tmp_path, "image,kind\n" + "".join(f"{images / name},{name[0]}\n" for name in NAMES))
    assert of(opened(str(images), table)) == {name: name[0] for name in NAMES}


@pytest.mark.parametrize("form", ["{}/{}.png", "set/images/{}/{}", "{}--{}"])
def test_rows_name_the_images_of_shards(form: str, images: Path, tmp_path: Path) -> None:
    main(["shards", "build", str(images), str(tmp_path / "shards"), "--shard-size", "3"])
    rows = [f"{form.format(*name[:-4].split('/'))},{kind}" for name, kind in zip(NAMES, "xyyx", strict=True)]
    labels = {
        "table": written(tmp_path, "\n".join(["image,kind", *rows])),
        "prefix": "set/images/" * form.startswith("s"),
    }
    source = opened(str(tmp_path / "shards"), labels)
    assert of(source) == {name[:-4].replace("/", "--"): kind for name, kind in zip(NAMES, "xyyx", strict=True)}
    assert source.shard_sizes.tolist() == [3, 1]


def test_windows_of_one_image_share_its_row(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    for name in ("x", "y"):
        (tmp_path / "scenes").mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / "scenes" / f"{name}.tif", np.zeros((4, 8, 3), np.uint8))
    table = written(tmp_path, "scene,land\ny,forest\nx.tif,sea\n")
    source = opened({"name": "tiff", "path": str(tmp_path / "scenes"), "window": 4}, table)
    assert [source.classes[number] for number in source.labels] == ["sea", "sea", "forest", "forest"]


def test_shards_of_deep_trees_keep_whole_paths(tmp_path: Path) -> None:
    names = ["p1/study1/view1", "p2/study1/view1", "p2/study2/view1"]
    for name in names:
        path = tmp_path / "images" / f"{name}.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(path)
    main(["shards", "build", str(tmp_path / "images"), str(tmp_path / "shards")])
    expected = {name.replace("/", "--"): name[1] + name[8] for name in names}
    for number, form in enumerate(["{}.dcm", "{}"]):
        rows = "".join(f"{form.format(name)},{name[1]}{name[8]}\n" for name in names)
        assert (
            of(opened(str(tmp_path / "shards"), written(tmp_path, f"image,kind\n{rows}", f"{number}.csv"))) == expected
        )
    rows = "".join(f"q{name[1:]},x\n" for name in names)
    with pytest.raises(ConfigError, match="none of its 3 images has a row"):
        opened(str(tmp_path / "shards"), written(tmp_path, f"image,kind\n{rows}"))


def test_rows_of_shards_tell_letters_of_every_alphabet_apart(tmp_path: Path) -> None:
    names = ["ä1", "ö1", "日本1", "日本2", "中国1", "1"]
    for name in names:
        path = tmp_path / "images" / "a" / f"{unicodedata.normalize('NFD', name)}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    main(["shards", "build", str(tmp_path / "images"), str(tmp_path / "shards")])
    for number, form in enumerate(["a/{}.png", "{}"]):
        rows = "".join(f"{form.format(name)},{name}\n" for name in names)
        table = written(tmp_path, f"image,kind\n{rows}", f"{number}.csv")
        expected = {"a--ue41": "ä1", "a--uf61": "ö1", "a--u65e5u672c1": "日本1", "a--u65e5u672c2": "日本2"}
        assert of(opened(str(tmp_path / "shards"), table)) == expected | {"a--u4e2du56fd1": "中国1", "a--1": "1"}
    feature_files.write(
        tmp_path / "features.npy", np.zeros((6, 3), np.float32), opened(str(tmp_path / "shards"), table)
    )
    named = [json.loads(line)["name"] for line in (tmp_path / "features.jsonl").read_text().splitlines()]
    assert sorted(named) == sorted([*expected, "a--u4e2du56fd1", "a--1"])
    labels = {"table": written(tmp_path, "image,kind\nä1.png,x\nü1.png,y\n"), "missing": "leave_out"}
    assert of(opened(str(tmp_path / "shards"), labels)) == {"a--ue41": "x"}


@pytest.mark.parametrize("joint", ["-", "--"])
def test_rows_of_shards_whose_keys_have_lost_letters_are_found_by_what_is_left(
    joint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As mrp built them before, with one hyphen at first."""
    for name in ("Vögel/Bär 1", "Vögel/Bär 2", "Hunde/ä", "Hunde/ö"):
        path = tmp_path / "images" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    with monkeypatch.context() as before:
        before.setattr(tree, "JOINT", joint)
        before.setattr(tree, "plain", lambda part: re.sub(r"[^A-Za-z0-9_-]+", "_", part).strip("_"))
        main(["shards", "build", str(tmp_path / "images"), str(tmp_path / "shards"), "--workers", "1"])
    path = tmp_path / "shards" / MANIFEST
    made = parse(path.read_bytes())
    path.write_text(replace(made, notes={"plan": made.notes["plan"]}).dump())
    rows = "image,kind\nVögel/Bär 1.png,x\nVögel/Bär 2.png,y\n"
    labels = {"table": written(tmp_path, rows), "missing": "leave_out"}
    assert of(opened(str(tmp_path / "shards"), labels)) == {f"V_gel{joint}B_r_1": "x", f"V_gel{joint}B_r_2": "y"}
    labels = {"table": written(tmp_path, f"{rows}Hunde/ä.png,x\n"), "missing": "leave_out"}
    with pytest.raises(ConfigError, match=r"'Hunde/ä\.png' may be each of 2 images"):
        opened(str(tmp_path / "shards"), labels)


def test_a_row_that_keys_of_shards_no_longer_tell_apart_is_refused(tmp_path: Path) -> None:
    for folder in "ab":
        path = tmp_path / "images" / folder / f"{'x' * 90}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    main(["shards", "build", str(tmp_path / "images"), str(tmp_path / "shards")])
    labels = {"table": written(tmp_path, f"image,kind\na/{'x' * 90}.png,A\n"), "missing": "leave_out"}
    with pytest.raises(ConfigError, match=r"line 2: 'a/x+\.png' may be each of 2 images, for the keys .* were cut to"):
        opened(str(tmp_path / "shards"), labels)
    assert of(opened(str(tmp_path / "images"), labels)) == {f"a/{'x' * 90}.png": "A"}


def test_a_file_beside_another_of_the_same_name_is_told_by_its_ending(images: Path, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(images / "a" / "1.jpg")
    text = "image,kind\n" + "".join(f"{name},x\n" for name in NAMES)
    with pytest.raises(ConfigError, match=r"1 of its 5 images have no row .* such as 'a/1\.jpg'"):
        opened(str(images), written(tmp_path, text))
    assert of(opened(str(images), written(tmp_path, text + "a/1.jpg,y\n")))["a/1.jpg"] == "y"


def test_a_row_with_the_ending_of_an_image_comes_before_others(images: Path, tmp_path: Path) -> None:
    rows = "".join(f"{name},x\n{name[:-4]}.jpg,y\n" for name in NAMES[:2])
    rows += "".join(f"{name[:-4]}.jpg,y\n{name},x\n" for name in NAMES[2:])
    assert of(opened(str(images), written(tmp_path, f"image,kind\n{rows}"))) == dict.fromkeys(NAMES, "x")


def test_hyphens_in_names_join_nothing(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("1", "2", "10-1", "cat-2"):
        Image.new("RGB", (4, 4)).save(tmp_path / "images" / f"{name}.png")
    main(["shards", "build", str(tmp_path / "images"), str(tmp_path / "shards")])
    table = written(tmp_path, "image,kind\n1.png,a\n2.png,b\n10-1.png,c\ncat-2.png,d\n")
    expected = {"1": "a", "2": "b", "10-1": "c", "cat-2": "d"}
    assert of(opened(str(tmp_path / "shards"), table)) == expected
    assert of(opened(str(tmp_path / "images"), table)) == {f"{name}.png": kind for name, kind in expected.items()}


def test_an_ending_that_is_a_part_of_another_name_is_no_match(images: Path, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(images / "a" / "11.png")
    text = "image,kind\n" + "".join(f"{name},x\n" for name in NAMES)
    with pytest.raises(ConfigError, match=r"such as 'a/11\.png'"):
        opened(str(images), written(tmp_path, text))


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (("10", "9", "-1", "9"), ("-1", "9", "10")),
        (("b", "B", "10", "b"), ("10", "B", "b")),
        ("0101", ("0", "1")),
        (("2.0", "10", "2", "1.5"), ("1.5", "2", "10")),
    ],
)
def test_classes_are_in_the_order_of_numbers_or_of_text(
    values: tuple[str, ...], classes: tuple[str, ...], images: Path, tmp_path: Path
) -> None:
    rows = "".join(f"{name},{value}\n" for name, value in zip(NAMES, values, strict=True))
    source = opened(str(images), written(tmp_path, f"image,kind\n{rows}"))
    assert source.classes == classes
    assert [source.classes[n] for n in source.labels] == [value.removesuffix(".0") for value in values]


@pytest.mark.parametrize(
    ("sign", "ending"), [(",", "\n"), (";", "\r\n"), ("\t", "\n")], ids=["commas", "semicolons", "tabs"]
)
def test_tables_as_other_programs_write_them(sign: str, ending: str, images: Path, tmp_path: Path) -> None:
    rows = [sign.join(["age", "image", "kind"])]
    rows += [sign.join(["7", name, '"x, and; y"' if name == "a/1.png" else "z"]) for name in NAMES]
    path = tmp_path / "table.csv"
    path.write_bytes(b"\xef\xbb\xbf" + ending.join([*rows, "", ""]).encode())
    source = opened(str(images), {"table": str(path), "image": "image", "label": "kind"})
    assert of(source) == dict.fromkeys(NAMES, "z") | {"a/1.png": "x, and; y"}


def test_options_are_added_to_a_table(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = written(tmp_path, "image,age,kind\n" + "".join(f"{name},7,x\n" for name in NAMES))
    words = [f"data.train={images}", f"data.labels={table}", "data.labels.label=kind", "data.labels.image=image"]
    main(["config", "demo", *words, "data.test=null", "batch=4", "data.channels=3"])
    assert f"labels: {{table: {table}, " in capsys.readouterr().out.replace("\n", " ").replace("    ", "")


def test_a_prefix_of_rows_is_taken_off_and_other_rows_are_about_others(images: Path, tmp_path: Path) -> None:
    rows = "".join(f"CheX/train/{name},x\nCheX/valid/{name},y\n" for name in NAMES)
    table = written(tmp_path, f"image,kind\n{rows}")
    with pytest.raises(ConfigError, match=r"goes into data\.labels\.prefix"):
        opened(str(images), table)
    assert of(opened(str(images), {"table": table, "prefix": "CheX/valid/"})) == dict.fromkeys(NAMES, "y")
    with pytest.raises(ConfigError, match="and its rows not with 'CheX/test/' in front"):
        opened(str(images), {"table": table, "prefix": "CheX/test/"})


def test_one_row_is_about_one_image_of_both_splits(images: Path, tmp_path: Path) -> None:
    other = tmp_path / "test" / "a" / "1.png"
    other.parent.mkdir(parents=True)
    other.write_bytes((images / "a" / "1.png").read_bytes())
    text = "image,kind\n" + "".join(f"{name},x\n" for name in NAMES)

    def both(labels: Any, **more: Any) -> list[tuple[str, Source | None]]:
        section = {"train": str(images), "test": str(tmp_path / "test"), "labels": labels} | more
        return [(split, opened(split=split, **section)) for split in ("train", "test")]

    shared, longer = written(tmp_path, text), text.replace("\na/1", "\nimages/a/1") + "test/a/1.png,y\n"
    for fraction in (None, 1.0):
        with pytest.raises(ConfigError, match=r"one row is about .*test/a/1\.png' of test and .* of train; name more"):
            refuse_same_rows(both(shared, fraction=fraction))
    refuse_same_rows(both(written(tmp_path, longer, "longer.csv")))
    refuse_same_rows(both({"table": shared, "test": written(tmp_path, text, "test.csv")}))
    (images.parent / "link").symlink_to(images)
    for same in (str(images.parent / "link"), {"name": "folder", "path": str(images)}):
        refuse_same_rows([*both(shared)[:1], ("the same", opened(same, shared)), ("none", None)])
    mixed = [{"source": str(images), "weight": 1}, {"source": str(tmp_path / "test"), "weight": 1}]
    with pytest.raises(ConfigError, match=r"of data\.train\.1 and .* of data\.train\.0"):
        opened(mixed, shared, test=None)


def test_with_a_table_images_may_lie_anywhere(images: Path, tmp_path: Path) -> None:
    (images / "train" / "empty").mkdir(parents=True)
    for name in ("train/5.png", "6.png"):
        (images / name).write_bytes((images / "a" / "1.png").read_bytes())
    rows = "".join(f"{name},x\n" for name in (*NAMES, "5.png", "6.png"))
    assert len(opened(str(images), written(tmp_path, f"image,kind\n{rows}"))) == 6
    with pytest.raises(ConfigError, match="images outside of them"):
        opened(str(images), None)
    assert opened({"name": "folder", "path": str(images), "classes": False}, None).classes == ()


def test_what_excel_and_macs_write(images: Path, tmp_path: Path) -> None:
    (images / "a" / "1.png").rename(images / "a" / unicodedata.normalize("NFD", "ä.png"))
    rows = "".join(f"{name};x\r\n" for name in ("a/./ä.png", "a//2.png", "../b/1.png", "b/3.png"))
    source = opened(str(images), written(tmp_path, f"sep=;\r\nimage;kind\r\n{rows}"))
    assert (len(source), source.classes) == (4, ("x",))


def test_both_splits_have_the_classes_of_both_tables(images: Path, tmp_path: Path) -> None:
    for name in NAMES:
        other = tmp_path / "test" / name
        other.parent.mkdir(parents=True, exist_ok=True)
        other.write_bytes((images / name).read_bytes())
    first = written(tmp_path, "image,kind\n" + "".join(f"{name},b\n" for name in NAMES))
    second = written(tmp_path, "image,kind\n" + "".join(f"{name},a\n" for name in NAMES), "test.csv")
    section = {"train": str(images), "test": str(tmp_path / "test"), "labels": {"table": first, "test": second}}
    for split, kind in (("train", "b"), ("test", "a")):
        source = opened(split=split, **section)
        assert source.classes == ("a", "b")
        assert of(source) == dict.fromkeys(NAMES, kind)


def test_images_without_a_label_are_an_error_or_left_out(images: Path, tmp_path: Path) -> None:
    table = written(tmp_path, "image,kind\na/1.png,x\nb/3.png,y\nb/1.png,\nelsewhere/7.png,z\n")
    with pytest.raises(
        ConfigError, match=r"2 of its 4 images have no row in .*labels\.csv, such as 'a/2\.png'; .*miss"
    ):
        opened(str(images), table)
    left = opened(str(images), {"table": table, "missing": "leave_out"})
    assert of(left) == {"a/1.png": "x", "b/3.png": "y"}
    assert left.classes == ("x", "y", "z")
    assert left.shard_sizes.tolist() == []  # as a folder, which can be read in any order
    for missing in ("error", "leave_out"):
        other = written(tmp_path, "image,kind\nc/1.png,x\n", "other.csv")
        with pytest.raises(
            ConfigError, match=r"none of its 4 images has a row in .* 'a/1\.png', and its rows such as 'c/1\.png'"
        ):
            opened(str(images), {"table": other, "missing": missing})


def test_a_table_that_gives_no_class_says_so(images: Path, tmp_path: Path) -> None:
    table = written(tmp_path, "image,kind\n" + "".join(f"{name},\n" for name in NAMES))
    with pytest.raises(ConfigError, match="4 of its 4 images have no label in"):
        opened(str(images), table)


WRONG = {
    "image,kind\n1,x\n": "line 2: '1' is the end of the names of 2 images, such as 'a/1.png' and 'b/1.png'",
    "image,kind\na/1,x\na/2,y\na/1.png,y\n": "lines 2 and 4 say different things of the image 'a/1.png'",
    "image,kind,age\na/1.png,x,7\n": "kind, age; say in data.labels.image which column names the images and in",
    "image\na/1.png\n": "has the columns image; say in data.labels.image",
    "a/1.png,x\na/2.png,y\nb/1.png,x\nb/3.png,y\n": "its first line has 'a/1.png' in the place of a column's name",
    "image,kind\na/1,1\na/2,01\nb/1,2\nb/3,2\n": "'01' and '1' are two classes; write a number in one way",
    "image,kind\n": "holds no rows",
    "": "has the columns (none)",
    "image,kind\na/1.png,x,7\n": "line 2 has 3 cells, where the first line names 2 columns",
    'image,kind\na/1.png,"x\n': "line 2: unexpected end of data; save the table as CSV anew",
}


@pytest.mark.parametrize(("text", "said"), WRONG.items(), ids=map(str, range(len(WRONG))))
def test_what_cannot_be_right_is_one_line(text: str, said: str, images: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        opened(str(images), written(tmp_path, text))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_names_of_columns_are_checked(images: Path, tmp_path: Path) -> None:
    table = written(tmp_path, "image,kind,kind\na/1.png,x,x\n")
    with pytest.raises(ConfigError, match=r"names the column 'kind' twice; its first line names image, kind, kind"):
        opened(str(images), {"table": table, "image": "image", "label": "kind"})
    with pytest.raises(ConfigError, match=r"has no column 'imag'.*'image'"):
        opened(str(images), {"table": table, "image": "imag", "label": "kind"})
    with pytest.raises(ConfigError, match="separator: is for tags that stand in one column"):
        opened(str(images), {"table": table, "label": ["kind", "image"], "separator": "|"})
    with pytest.raises(ConfigError, match="a list of different ones"):
        opened(str(images), {"table": table, "label": []})
    with pytest.raises(ConfigError, match=r"give data\.labels a CSV file"):
        opened(str(images), str(tmp_path / "none.csv"))
    (tmp_path / "latin.csv").write_bytes("image,kind\na/1.png,Ödem\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"is no text in UTF-8 \(byte 19\); save the table"):
        opened(str(images), str(tmp_path / "latin.csv"))


TAGS = "image,oedema,effusion\na/1.png,1,0\na/2.png,0.0,-1\nb/1.png,,1.0\nb/3.png,no,Yes\n"


@pytest.mark.parametrize(("blank", "value"), [("unknown", -1), ("absent", 0)])
def test_columns_of_tags(blank: str, value: int, images: Path, tmp_path: Path) -> None:
    labels = {"table": written(tmp_path, TAGS), "label": ["oedema", "effusion"], "blank": blank}
    source = opened(str(images), labels)
    assert (source.classes, source.tags) == ((), ("oedema", "effusion"))
    assert source.tagged.tolist() == [[1, 0], [0, -1], [value, 1], [0, 1]]
    assert [source.tags_of(n).tolist() for n in range(4)] == source.tagged.tolist()
    turned = opened(str(images), labels | {"label": ["effusion", "oedema"]})
    assert turned.tagged.tolist() == source.tagged[:, ::-1].tolist()
    assert turned.identity != source.identity


def test_a_tag_is_1_0_or_unknown(images: Path, tmp_path: Path) -> None:
    table = written(tmp_path, TAGS.replace("1.0", "2"))
    with pytest.raises(ConfigError, match=r"line 4: '2' stands in the column 'effusion'; tags are 1 \(has it\)"):
        opened(str(images), {"table": table, "label": ["oedema", "effusion"]})


@pytest.mark.parametrize(("blank", "value"), [("unknown", -1), ("absent", 0)])
def test_tags_in_one_column(blank: str, value: int, images: Path, tmp_path: Path) -> None:
    text = "image,found\na/1.png,Mass|Hernia\na/2.png,\nb/1.png,No Finding\nb/3.png, Hernia | \n"
    source = opened(str(images), {"table": written(tmp_path, text), "separator": "|", "blank": blank})
    assert source.tags == ("Hernia", "Mass", "No Finding")
    assert source.tagged.tolist() == [[1, 1, 0], [value] * 3, [0, 0, 1], [1, 0, 0]]


def test_batches_hold_what_is_known_of_tags(images: Path, tmp_path: Path) -> None:
    labels = {"table": written(tmp_path, TAGS), "label": ["oedema", "effusion"]}
    values = {"train": str(images), "labels": labels, "size": 4, "augment": "resize"}
    config = build(Config, Tree(values, {}))
    source = open_data(config, "train", Cache(CacheConfig()))
    known = torch.tensor([[1, 0], [0, torch.nan], [torch.nan, 1], [0, 1]])
    for start, rows in ((0, known), (2, torch.cat([known[2:], torch.zeros(2, 2)])), (4, torch.zeros(4, 2))):
        batch = Batches(source, View(config, train=False), EvaluationPlan(start, 4, 4), None)[0].batch  # type: ignore[union-attr]
        torch.testing.assert_close(batch.labels, rows, equal_nan=True, rtol=0, atol=0)
    holding = Holding(source, config, (4, 4))
    memory = torch.zeros(holding.bytes, dtype=torch.uint8)
    holding.decode(memory, Quarantine(), 0)
    torch.testing.assert_close(holding.in_memory(memory).labels, known, equal_nan=True, rtol=0, atol=0)


def test_labels_are_a_part_of_what_data_are(images: Path, tmp_path: Path) -> None:
    text = "image,kind\n" + "".join(f"{name},{kind}\n" for name, kind in zip(NAMES, "xyyx", strict=True))
    source = opened(str(images), written(tmp_path, text))
    same = opened(str(images), written(tmp_path, text.replace("kind", "class") + "c/1.png,x\n", "same.csv"))
    other = opened(str(images), written(tmp_path, text.replace("3.png,x", "3.png,y"), "other.csv"))
    assert (source.identity, source.content) == (same.identity, same.content)
    assert other.identity != source.identity
    assert other.content != source.content


def test_chosen_classes_and_fractions_are_of_the_table(images: Path, tmp_path: Path) -> None:
    table = written(
        tmp_path, "image,kind\n" + "".join(f"{name},{kind}\n" for name, kind in zip(NAMES, "xyyx", strict=True))
    )
    (tmp_path / "one.txt").write_text("y\n")
    assert of(opened(str(images), table, classes=str(tmp_path / "one.txt"))) == {"a/2.png": "y", "b/1.png": "y"}
    assert sorted(of(opened(str(images), table, fraction=0.5)).values()) == ["x", "y"]


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """36 images in folders of patients, as bright as their level, which a table tells; and the words that name them."""
    root, rows = tmp_path_factory.mktemp("scans"), dict[str, str]()
    for number in range(36):
        split = "test" if number % 3 == 0 else "train"
        path = root / split / f"patient{number % 5}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        level = number // 3 % 3
        Image.fromarray(np.full((8, 8), 100 * level + number, np.uint8)).save(path)
        rows[path.name] = ("low", "mid", "high")[level]
    table = written(root, "file,level\n" + "".join(f"{name},{level}\n" for name, level in rows.items()))
    return root, [f"data.train={root / 'train'}", f"data.test={root / 'test'}", f"data.labels={table}"]


FEW = ("batch=8", "length=6 steps", "optim.warmup=1 steps", "data.size=8")


@pytest.fixture(scope="module")
def run(scans: tuple[Path, list[str]]) -> Path:
    return pretrained(scans[0] / "run", *NARROW, *scans[1], *FEW, "evaluate={knn: {every: 3 steps}}")


def test_a_table_serves_training_and_probing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads((run / "evaluations" / "knn.json").read_text())["student"]["num_test"] == 12
    main(["probe", str(run), "--evaluator", "knn", "--json"])
    assert json.loads(capsys.readouterr().out)["trained"]["knn"]["accuracy"] > 0.9
    record = results.read(run)[0]
    assert record.data["own"]
    assert record.data["labels"]["table"].endswith("labels.csv")


def test_a_table_serves_fine_tuning_and_what_comes_after(
    run: Path, scans: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    root, data = scans
    tuned = root / "tuned"
    words = ["backbone=null", "objective.classes=3", f"init={run}", *data, *FEW]
    main(["finetune", "finetune_tiny_digits", *words, "--folder", str(tuned)])
    assert "classes of data.train: 3 (high, low, mid)" in capsys.readouterr().out
    assert json.loads((tuned / "classes.json").read_text()) == ["high", "low", "mid"]
    main(["evaluate", str(tuned)])
    assert [one.result["images"] for one in results.read(tuned)] == [12]
    shutil.copytree(root / "test", root / "other")
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", str(tuned), *(f"--test={name}={root / name}" for name in ("test", "other")), data[2]])
    assert "of the test data other and" in capsys.readouterr().err


def test_tags_of_which_only_one_answer_is_known_are_not_learned(
    run: Path, scans: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    root, data = scans
    table = written(root, (root / "labels.csv").read_text().replace(",low", ",").replace(",mid", ",seen"), "seen.csv")
    table = written(root, Path(table).read_text().replace(",high", ","), "seen.csv")
    words = ["finetune", "finetune_tiny_digits", "backbone=null", f"init={run}", *data[:2], *FEW, "objective.loss=tags"]
    words += ["checkpoint.best=null", "validation.every=null"]

    def labels(table: str, **more: str) -> str:
        return f"data.labels={json.dumps({'table': table, 'separator': '|'} | more)}"

    with pytest.raises(SystemExit, match="2"):
        main([*words, "objective.classes=1", labels(table), "--folder", str(root / "seen")])
    assert "nothing can be learned; where empty cells mean" in capsys.readouterr().err
    main([*words, "objective.classes=1", labels(table, blank="absent"), "--folder", str(root / "seen")])
    assert "cannot be learned" not in capsys.readouterr().out
    more = written(root, Path(table).read_text() + "none.png,unseen\n", "more.csv")
    main([*words, "objective.classes=2", labels(more, blank="absent"), "--folder", str(root / "more")])
    assert "warning: no image is known to have 1 (unseen): this cannot be learned" in capsys.readouterr().out


def test_a_table_serves_going_on(run: Path, scans: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    root, data = scans
    main(["adapt", str(run), str(root / "train"), *data[1:], "length=2 steps", "--out", str(root / "adapted")])
    found = json.loads((root / "adapted" / "adapt.json").read_text())
    assert {"linear probe", "kNN (k = 20)"} <= {change["title"] for change in found["verdict"]["changes"]}
    best = max(change["before"] for change in found["verdict"]["changes"])
    assert best > 0.9  # of three levels; the five patients, which the folders are called by, cannot be told apart


def test_weights_before_and_after_are_judged_on_one_view(tmp_path: Path) -> None:
    for number in range(60):  # what tells the classes apart is at the left edge
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 30, (8, 32)).astype(np.uint8)
        pixels[:, :4] += 200 * np.uint8(number % 2)
        Image.fromarray(pixels).save(path)
    data = [f"data.{split}={tmp_path}" for split in ("train", "test")]
    words = [*data, "batch=8", "length=1 steps", "optim.warmup=0 steps", "optim.lr=1e-12"]  # so weights stay equal
    seen, cut = (
        pretrained(tmp_path.with_name(augment), *NARROW, *words, f"data.augment={augment}")
        for augment in ("resize", "crop")
    )
    found = verdict.measure(load(cut / "config.yaml"), [cut, seen])
    assert found.changes
    assert all(change.before == change.after for change in found.changes)


def test_images_may_lie_anywhere_when_going_on_too(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = []
    for number in range(360):
        path = tmp_path / "images" / ("train/deep" if number % 3 else "") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), number % 180 + np.eye(8) * (number // 180), np.uint8)).save(path)
        rows.append(f"{path.name},{number % 2}\n")
    table = written(tmp_path, f"image,kind\n{''.join(rows)}")
    main(
        [
            "adapt",
            str(run),
            str(tmp_path / "images"),
            f"data.labels={table}",
            "--plan-only",
            "--out",
            str(tmp_path / "out"),
        ]
    )
    planned = load(tmp_path / "out" / "adapt.yaml")
    whole = [open_data(planned.data, split, Cache(CacheConfig())) for split in ("train", "test")]
    assert {source.classes for source in whole} == {("0", "1")}
    assert sum(map(len, whole)) == 360


def test_the_table_of_a_run_is_about_its_own_images(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits = ["data.train=digits", "data.test=digits"]
    for words in (["--evaluator", "knn"], ["--protocol", "paper"]):
        with pytest.raises(SystemExit, match="2"):
            main(["probe", str(run), *digits, *words])
        assert (
            "the run's labels are from a table about its own images; add data.labels=TABLE, or"
            in capsys.readouterr().err
        )
    main(["probe", str(run), *digits, "data.labels=null", "--evaluator", "knn"])
    (record,) = [one for one in results.read(run) if one.data["train"] == "digits"]
    assert "labels" not in record.data
    assert record.result["num_test"] > 100


def test_a_run_finds_its_table_from_anywhere(
    scans: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root, data = scans
    monkeypatch.chdir(root)
    words = [*data[:2], "data.labels=labels.csv", "data.labels.test=labels.csv"]
    run = pretrained(root / "relative", *NARROW, *words, "batch=8", "length=1 steps", "optim.warmup=0 steps")
    other = written(tmp_path, (root / "labels.csv").read_text().replace("low", "high"))
    assert Path(other).name == "labels.csv"
    monkeypatch.chdir(tmp_path)
    main(["probe", str(run), "--evaluator", "knn"])
    (record,) = results.read(run)
    assert record.data["labels"]["table"] == record.data["labels"]["test"] == str(root / "labels.csv")


OWN = Labels(table="train.csv", test="test.csv", image="file", label="level")
COMPLETED: list[tuple[dict[str, Any], dict[str, Any] | str]] = [
    ({"labels": {"label": "odd"}}, {"table": "train.csv", "test": "test.csv", "label": "odd"}),
    ({"labels": "other.csv"}, {"table": "other.csv", "test": None, "label": "level"}),
    ({"labels": {"name": "other.csv", "label": "odd"}}, {"table": "other.csv", "test": None, "label": "odd"}),
    ({"test": "x", "labels": {"test": "x.csv"}}, {"table": "train.csv", "test": "x.csv", "label": "level"}),
    ({"test": "x", "labels": "both.csv"}, {"table": "both.csv", "test": None, "label": "level"}),
    ({"test": "x", "labels": {"label": "odd"}}, "data.test: the run's labels .* add data.labels.test=TABLE"),
    ({"train": "x", "labels": {"test": "x.csv"}}, "data.train: the run's labels .* add data.labels=TABLE"),
    ({"train": "x"}, "data.train: the run's labels"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "expected"), COMPLETED, ids=map(str, range(len(COMPLETED))))
def test_words_about_a_table_are_completed_by_the_runs_own(
    words: dict[str, Any], expected: dict[str, Any] | str
) -> None:
    if isinstance(expected, str):
        with pytest.raises(ConfigError, match=expected):
            of_other_images(OWN, words)
        return
    labels = build(Labels, Tree(of_other_images(OWN, words)["labels"], {}))
    assert labels.model_dump(include=set(expected)) == expected
    assert labels.image == "file"
    assert of_other_images(OWN, words | {"labels": None})["labels"] is None
    assert of_other_images(None, words) == words


def test_another_column_of_the_same_table(scans: tuple[Path, list[str]], tmp_path: Path) -> None:
    root, data = scans
    rows = [line.split(",") for line in (root / "labels.csv").read_text().split()[1:]]
    wide = written(
        tmp_path, "file,level,odd\n" + "".join(f"{name},{level},{int(name[:-4]) % 2}\n" for name, level in rows)
    )
    labels = [f"data.labels={wide}", "data.labels.image=file", "data.labels.label=level"]
    run = pretrained(root / "wide", *NARROW, *data[:2], *labels, "batch=8", "length=1 steps", "optim.warmup=0 steps")
    main(["probe", str(run), "data.labels.label=odd", "--evaluator", "knn"])
    (record,) = results.read(run)
    assert (record.data["own"], record.data["labels"]["label"], record.data["labels"]["table"]) == (False, "odd", wide)
