"""Parquet and Arrow tables of images: every row in its place, from every layout, with labels and an identity."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mrp.check import sources
from mrp.config import ConfigError
from mrp.data import columns
from mrp.data.open import open_source
from mrp.data.source import DecodeError, Source
from mrp.data.sources import SOURCES
from tests.data.conftest import jpeg

pa = pytest.importorskip("pyarrow", reason="an extra: pip install 'mrp-vit[parquet]'")
pq = pytest.importorskip("pyarrow.parquet")

FILES = [jpeg(number) for number in range(24)]
NOTES = {"info": {"features": {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def table(first: int = 0, last: int = 24, name: str = "image", **more: Any) -> Any:
    """Rows as `datasets` writes them."""
    rows = [{"bytes": FILES[number], "path": f"{number}.jpg"} for number in range(first, last)]
    held = {name: pa.array(rows, STRUCT), "label": pa.array([n % 2 for n in range(first, last)], pa.int64())} | more
    return pa.table(held).replace_schema_metadata({"huggingface": json.dumps(NOTES)})


def saved_to_disk(folder: Path, first: int = 0, last: int = 24) -> Path:
    """What `save_to_disk` leaves: streams of Arrow, and a list of them."""
    folder.mkdir(parents=True)
    middle = (first + last) // 2
    names = [f"data-0000{number}-of-00002.arrow" for number in range(2)]
    for name, ends in zip(names, ((first, middle), (middle, last)), strict=True):
        part = table(*ends)
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, part.schema) as stream:
            stream.write_table(part, max_chunksize=5)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    return folder


def written(folder: Path, layout: str) -> Path:
    if layout == "arrow":
        return saved_to_disk(folder / "saved")
    if layout == "splits":
        (folder / "both").mkdir()
        (folder / "both" / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
        saved_to_disk(folder / "both" / "train")
        return saved_to_disk(folder / "both" / "validation", 0, 4).parent
    if layout == "one":
        pq.write_table(table(), folder / "one.parquet", row_group_size=7)
        return folder / "one.parquet"
    data = folder / "hub" / "data"
    data.mkdir(parents=True)
    pq.write_table(table(0, 10), data / "train-00000-of-00002.parquet", row_group_size=4)
    pq.write_table(table(10, 24), data / "train-00001-of-00002.parquet", row_group_size=100)
    pq.write_table(table(0, 4), data / "test-00000-of-00001.parquet")
    return folder / "hub"


def opened(path: Path, split: Any = "train", **options: Any) -> Source:
    return open_source(SOURCES.read({"name": "parquet", "path": str(path), **options}), split)


@pytest.mark.parametrize("layout", ["one", "hub", "arrow", "splits"])
def test_every_row_is_in_its_place_here_and_in_a_worker(layout: str, tmp_path: Path) -> None:
    path = written(tmp_path, layout)
    source = open_source(str(path), "train")
    assert (len(source), source.classes) == (24, ("cat", "dog"))
    assert source.labels.tolist() == [number % 2 for number in range(24)]
    order = np.random.default_rng(0).permutation(24).tolist()
    assert [source.read(number) for number in order] == [(FILES[number], number % 2) for number in order]
    again = pickle.loads(pickle.dumps(source))
    assert [again.read(number)[0] for number in range(24)] == FILES
    sizes = {"one": [7, 7, 7, 3], "hub": [4, 4, 2, 14]}.get(layout, [])
    assert source.shard_sizes.tolist() == sizes
    if layout in ("hub", "splits"):
        assert [open_source(str(path), "test").read(n)[0] for n in range(4)] == FILES[:4]
        assert len(open_source(str(path), "test")) == 4


def test_it_does_what_every_source_must(tmp_path: Path) -> None:
    section = SOURCES.read({"name": "parquet", "path": str(written(tmp_path, "hub"))})
    for each in sources.CHECKS:
        each(section)


@pytest.mark.parametrize("layout", ["one", "arrow"])
def test_the_identity_is_that_of_the_rows_and_not_of_the_place(layout: str, tmp_path: Path) -> None:
    path = written(tmp_path, layout)
    first = opened(path).identity
    moved = tmp_path / f"elsewhere{path.suffix}"
    path.rename(moved)
    assert opened(moved).identity == first
    if layout == "one":
        pq.write_table(table(0, 23), moved, row_group_size=7)
        fewer = opened(moved).identity
        swapped = table().take([1, 0, *range(2, 24)]).set_column(1, "label", table()["label"])
        pq.write_table(swapped.replace_schema_metadata(table().schema.metadata), moved, row_group_size=7)
        assert len({first, fewer, opened(moved).identity}) == 3


def test_what_was_read_last_is_kept_as_far_as_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, read = opened(written(tmp_path, "one")), []
    values = columns.values
    monkeypatch.setattr(columns, "values", lambda part, column: read.append(part.group) or values(part, column))
    for number in (0, 8, 1, 9, 0):
        source.read(number)
    assert read == [0, 1]
    monkeypatch.setattr(columns, "_KEPT", 1)
    for number in (20, 0, 20):
        source.read(number)
    assert read == [0, 1, 2, 0, 2]


def test_columns_are_found_or_named(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    names = pa.array(["dog", "cat"] * 12)
    pq.write_table(table(name="picture", species=names, mask=pa.array(FILES, pa.binary())), path)
    with pytest.raises(ConfigError, match=r"has the columns picture, label, species, mask; say by 'image: NAME' which"):
        opened(path)
    source = opened(path, image="picture", label="species")
    assert (source.classes, source.read(0)) == (("cat", "dog"), (FILES[0], 1))
    assert opened(path, image="mask").read(5) == (FILES[5], 1)
    with pytest.raises(ConfigError, match="has no column 'pictur'; did you mean 'picture'"):
        opened(path, image="pictur")
    with pytest.raises(ConfigError, match="the column species holds string, and no bytes of image files"):
        opened(path, image="species")
    pq.write_table(table(label=pa.array([-1] * 24)), path)
    unlabelled = opened(path)
    assert (unlabelled.classes, unlabelled.read(0)) == ((), (FILES[0], -1))
    pq.write_table(table(label=pa.array([0, 1, 2] * 8)), path)
    with pytest.raises(ConfigError, match="the labels go from 0 to 2, and there are 2 classes"):
        opened(path)


def test_files_that_number_their_classes_differently_are_no_set(tmp_path: Path) -> None:
    """Every label of the second file meant the first file's class of that number."""
    pq.write_table(table(0, 10), tmp_path / "a.parquet")
    swapped = json.dumps(NOTES).replace('["cat", "dog"]', '["dog", "cat"]')
    pq.write_table(table(10, 24).replace_schema_metadata({"huggingface": swapped}), tmp_path / "b.parquet")
    with pytest.raises(ConfigError, match=r"b\.parquet: numbers its classes in another way than .*a\.parquet"):
        opened(tmp_path)
    pq.write_table(table(10, 24).replace_schema_metadata({}), tmp_path / "b.parquet")  # as another program writes it
    assert opened(tmp_path).classes == ("cat", "dog")


def test_a_table_beside_images_leaves_them_a_folder_of_images(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.jpg").write_bytes(FILES[0])
    pq.write_table(pa.table({"file_name": ["cat/1.jpg"]}), tmp_path / "metadata.parquet")
    source = open_source(str(tmp_path), "train")
    assert (len(source), source.classes, source.read(0)[0]) == (1, ("cat",), FILES[0])


def test_what_is_damaged_or_missing_is_one_line(tmp_path: Path) -> None:
    path = written(tmp_path, "one")
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(ConfigError, match=r"one\.parquet: damaged: .*; mend or remove the file$"):
        opened(path)
    path.write_bytes(whole)
    source = opened(path)
    place = whole.index(b"\xff\xd8\xff", 200)
    path.write_bytes(whole[: place - 60] + bytes(200) + whole[place + 140 :])
    with pytest.raises((DecodeError, OSError)):
        [source.read(number) for number in range(7)]
    for labels, message in (
        ([None] + ["cat"] * 23, "1 rows have no label; leave them out"),
        ([1 << 60] + [0] * 23, "has the label 1152921504606846976; labels are class numbers from 0"),
        ([[0]] * 24, "the column label holds list<.*>, and no class numbers"),
    ):
        pq.write_table(pa.table({"image": FILES, "label": labels}), path)
        with pytest.raises(ConfigError, match=message):
            opened(path)
    pq.write_table(pa.table({"image": FILES, "label": [0] * 24}).slice(0, 0), path)
    with pytest.raises(ConfigError, match="holds no rows"):
        opened(path)
    pq.write_table(pa.table({"image": FILES, "label": pa.nulls(24, pa.string())}), path)
    assert opened(path).classes == ()
    only_paths = table().set_column(0, "image", pa.array([{"bytes": None, "path": "/etc/passwd"}] * 24, STRUCT))
    pq.write_table(only_paths, path)
    with pytest.raises(DecodeError, match="holds no image, or only the path of one"):
        opened(path).read(3)
    saved = saved_to_disk(tmp_path / "saved")
    shutil.copy(saved / "data-00000-of-00002.arrow", tmp_path / "outside.arrow")
    (saved / "state.json").write_text('{"_data_files": [{"filename": "../outside.arrow"}]}')
    with pytest.raises(ConfigError, match=r"names '\.\./outside\.arrow', which is no file of the folder"):
        opened(saved)
    (saved / "state.json").write_text("{}")
    with pytest.raises(ConfigError, match="is not what save_to_disk writes"):
        opened(saved)
