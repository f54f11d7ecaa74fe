"""Which training images give their labels: fractions inside each other, lists of names, and mistakes in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from mrp.config import ConfigError
from mrp.data.open import open_source
from mrp.data.source import Source
from mrp.evaluate.config import Labelled
from mrp.evaluate.probe import chosen_images, listed
from mrp.evaluate.table import Table


@pytest.fixture
def folder(tmp_path: Path) -> Source:
    for name in ("a/1.png", "a/2.png", "b/2.png", "b/3.png"):
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(path)
    return open_source(str(tmp_path / "train"), "train")


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "list.txt"
    path.write_text(text)
    return path


def test_names_with_and_without_folders(folder: Source, tmp_path: Path) -> None:
    assert listed(write(tmp_path, "3.png\n\na/2.png\n1.png\n"), folder).tolist() == [0, 1, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2.png", "'2.png' is the name of several images, such as .*a/2.png and .*b/2.png; write their folders"),
        ("1.png\n9.png", "1 of its 2 names, such as '9.png', are of none of the 4 images of data.train"),
        ("\n", "holds no names"),
    ],
)
def test_a_list_that_does_not_fit(folder: Source, tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        listed(write(tmp_path, text), folder)


def test_a_list_that_is_not_there(folder: Source, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.txt: cannot be read: No such file"):
        listed(tmp_path / "nowhere.txt", folder)


def test_one_way_of_choosing_at_a_time() -> None:
    with pytest.raises(ValidationError, match="fraction and list both"):
        Labelled(fraction=0.1, list="list.txt")


def table(count: int = 100) -> Table:
    values = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
    return Table({"1.mean": values}, torch.arange(count) % 4, torch.arange(count) * 7)


def test_a_fraction_is_of_each_class_and_inside_a_larger_one(folder: Source) -> None:
    whole = table()
    small, large = (chosen_images(Labelled(fraction=share), whole, folder) for share in (0.04, 0.2))
    assert torch.bincount(small.labels).tolist() == [1] * 4
    assert torch.bincount(large.labels).tolist() == [5] * 4
    assert set(small.keys.tolist()) < set(large.keys.tolist())
    rows = torch.from_numpy(large.columns["1.mean"][:])
    assert torch.equal(rows[:, 0], 2.0 * large.keys / 7)
    assert chosen_images(Labelled(), whole, folder) is whole


def test_every_view_of_a_chosen_image_is_taken(folder: Source, tmp_path: Path) -> None:
    plain = table(4)
    seen = Table({"1.mean": np.arange(16).reshape(8, 2)}, plain.labels.repeat(2), plain.keys.repeat(2), views=2)
    chosen = chosen_images(Labelled(list=str(write(tmp_path, "1.png\n3.png"))), seen, folder)
    assert (chosen.images, len(chosen)) == (2, 4)
    assert chosen.columns["1.mean"][:][:, 0].tolist() == [0, 6, 8, 14]
    assert chosen.labels.tolist() == [0, 3, 0, 3]


def test_a_changed_list_is_another_content(tmp_path: Path) -> None:
    """Results are kept under it, so that those of another list are never taken for those of this one."""
    before = Labelled(list=str(write(tmp_path, "1.png"))).content()
    assert before == Labelled(list=str(write(tmp_path, "1.png"))).content()
    assert before != Labelled(list=str(write(tmp_path, "2.png"))).content()
    assert Labelled().content() == ""
