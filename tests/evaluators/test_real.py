"""ReaL labels: an answer is right if it is among those of its image, found by the number in the image's name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mrp.batch import Batch, Output
from mrp.config import ConfigError
from mrp.data.config import Config as Data
from mrp.data.open import open_source
from mrp.evaluate.contract import Result, never
from mrp.evaluators.real import Config, Evaluator
from tests.evaluators.settings import setting

GREYS = (0, 120, 240)  # of the three classes: the model answers by brightness
LABELS = [[0], [0, 1], [], [2], [1, 2], [2]]  # of the images 1 to 6


class ByBrightness(nn.Module):
    """Answers a, b or c: the class whose grey is nearest to the mean of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.objective = nn.Module()
        self.objective.config = type("Config", (), {"classes": 3})()  # type: ignore[assignment]

    def forward(self, batch: Batch) -> Output:
        scores = -(batch.images.float().mean((1, 2, 3))[:, None] - torch.tensor(GREYS)).abs()
        answer: Tensor = scores.argmax(1)
        values = {"loss": scores[:, 0], "correct": (answer == batch.labels).float(), "answer": answer}
        return Output(loss=scores.mean(), per_sample=values, scores=scores)


def validation(folder: Path) -> Path:
    """Six images of the classes a, b, b, c, c, c; the fifth is black, and answered with a."""
    for number, (name, grey) in enumerate(zip("abbccc", (0, 120, 120, 240, 0, 240), strict=True), start=1):
        (folder / name).mkdir(parents=True, exist_ok=True)
        pixels = np.full((8, 8, 3), grey, np.uint8)
        # Zeros in another order than that of the folders: the number counts, and not the position.
        Image.fromarray(pixels).save(folder / name / f"ILSVRC2012_val_{number:08d}.png")
    return folder


def measured(folder: Path, labels: Any, tmp_path: Path) -> Result:
    file = tmp_path / "real.json"
    file.write_text(labels if isinstance(labels, str) else json.dumps(labels))
    source = open_source(str(folder), "test")
    chosen = setting(Data(train="x", size=8), source, source, folder=tmp_path)
    return Evaluator(Config(labels=str(file)), chosen).measure(ByBrightness(), 0, never)


def test_images_without_labels_are_left_out(tmp_path: Path) -> None:
    result = measured(validation(tmp_path / "val"), LABELS, tmp_path)
    assert result.right is not None
    assert result.counted is not None
    assert result.right.tolist() == [True, True, False, True, False, True]
    assert result.counted.tolist() == [True, True, False, True, True, True]
    assert result.details["images"] == 5
    assert result.details["without_labels"] == 1
    assert result.details["accuracy"]["accuracy"] == 4 / 5


def test_images_are_found_by_their_numbers(tmp_path: Path) -> None:
    folder = validation(tmp_path / "val")
    (folder / "c" / "ILSVRC2012_val_00000006.png").rename(folder / "c" / "ILSVRC2012_val_00000003.png.old")
    (folder / "b" / "ILSVRC2012_val_00000002.png").rename(folder / "b" / "ILSVRC2012_val_00000007.png")
    result = measured(folder, [*LABELS, [2, 1]], tmp_path)
    assert result.right is not None
    assert result.counted is not None
    assert result.counted.tolist() == [True, False, True, True, True]  # 1, 3, 7, 4, 5
    assert result.right.tolist() == [True, False, True, True, False]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("no", "is not JSON"),
        ({"a": 1}, "is no list with one entry per validation image"),
        ([], "is no list with one entry"),
        ([[0], 1], "entry 2 is no list of class numbers"),
        ([[0], [True]], "entry 2 is no list of class numbers"),
        ([[0], [7]] * 3, "names class 7, but the model tells 3 apart"),
        ([[0], [1]], "numbered from 1 to 2 at the end of their names, and .*00000003.png has none"),
        ([[2], [2], [], [0], [0], [1]], "holds the usual label of 0 % of the images only"),
    ],
)
def test_each_fault_is_one_line(labels: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        measured(validation(tmp_path / "val"), labels, tmp_path)
    assert "\n" not in str(caught.value)


def test_other_names_of_images_are_refused(tmp_path: Path) -> None:
    folder = validation(tmp_path / "val")
    (folder / "a" / "ILSVRC2012_val_00000001.png").rename(folder / "a" / "first.png")
    with pytest.raises(ConfigError, match=r"first.png has none; give the validation images under their own names"):
        measured(folder, LABELS, tmp_path)
    (folder / "a" / "first.png").rename(folder / "a" / "other_00000002.png")
    with pytest.raises(ConfigError, match="several images have the same"):
        measured(folder, LABELS, tmp_path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        Config(labels=str(tmp_path / "none.json")).content()
