"""`mrp judge` with the suites `dense` and `retrieval`, on miniature data in the layouts that they describe."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mrp.cli import main
from mrp.evaluate import dense, results
from mrp.evaluate.heads import Schedule
from mrp.evaluators import segmentation
from tests.evaluators.miniature import PIXELS, as_depth, as_mask, blocks
from tests.trained import NARROW, pretrained

SMALL = [*NARROW, "length=1 steps", "optim.warmup=1 steps", "backbone.depth=1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = pretrained(tmp_path_factory.mktemp("suites") / "run", *SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmentation, "_SCHEDULE", Schedule((16, 16), 1, 20))
        patch.setattr(dense, "_DRAWS", 100)
        yield folder


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def bright(levels: np.ndarray) -> np.ndarray:
    return (20 + 100 * levels).astype(np.uint8)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("places")
    train, test = blocks(8, 1), blocks(4, 2)
    for split, levels in (("training", train), ("validation", test)):
        for number, one in enumerate(levels):
            write(root / f"ade/images/{split}/ADE_{number}.jpg", bright(one))
            path = root / f"ade/annotations/{split}/ADE_{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            as_mask(one + 1, path)
    for number, one in enumerate(np.concatenate([train, test])):
        write(root / f"voc/JPEGImages/{number:03}.jpg", bright(one))
        if number != 5:  # an image that no list names needs no mask
            write(root / f"voc/SegmentationClass/{number:03}.png", one.astype(np.uint8))
    (root / "voc/ImageSets/Segmentation").mkdir(parents=True)
    names = [f"{number:03}\n" for number in range(12) if number != 5]
    (root / "voc/ImageSets/Segmentation/train.txt").write_text("".join(names[:7]))
    (root / "voc/ImageSets/Segmentation/val.txt").write_text("".join(names[7:]))
    for split, levels in (("train", train), ("val", test)):
        for number, one in enumerate(levels):
            write(root / f"city/leftImg8bit/{split}/ulm/{number}_leftImg8bit.png", bright(one))
            write(root / f"city/gtFine/{split}/ulm/{number}_gtFine_labelTrainIds.png", one.astype(np.uint8))
    for split, levels in (("train", train), ("test", test)):
        for number, one in enumerate(levels):
            write(root / f"nyu/{split}/images/{number}.png", bright(one))
            path = root / f"nyu/{split}/depths/{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            as_depth(one, path)
    for number, one in enumerate(blocks(10, 3)):
        write(root / f"oxford/jpg/{number}.jpg", bright(one))
    gnd: dict[str, Any] = {"imlist": [str(n) for n in range(8)], "qimlist": ["8", "9"], "gnd": []}
    gnd["gnd"] = [{"bbx": [0, 0, PIXELS, 12], "easy": [n], "hard": [n + 1], "junk": [5]} for n in (0, 2)]
    (root / "oxford/gnd_roxford5k.json").write_text(json.dumps(gnd))
    for split, names in (("train", "ab"), ("test", "cd")):
        for name in names:
            for number, one in enumerate(blocks(4, ord(name))):
                write(root / f"cub/{split}/{name}/{number}.png", bright(one))
    given = {"ade": "ade", "voc": "voc", "cityscapes": "city", "nyu": "nyu", "oxford": "oxford", "cub": "cub"}
    return [f"{name}={root / folder}" for name, folder in (given | {"copies": "cub/test"}).items()]


@pytest.mark.slow
def test_dense(run: Path, places: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["judge", str(run), "--suite", "dense", *places[:4], "--out", str(tmp_path)])
    text = capsys.readouterr().out
    found = {record.data["label"]: record.result for record in results.read(run)}
    assert found.keys() == {"ade", "voc", "cityscapes", "nyu"}
    assert (found["ade"]["num_train"], len(found["ade"]["classes"])) == (8, 151)
    assert found["ade"]["classes"][0]["pixels"] == 0
    assert (found["voc"]["num_train"], found["voc"]["num_test"], len(found["voc"]["classes"])) == (7, 4, 21)
    assert len(found["cityscapes"]["classes"]) == 19
    assert found["nyu"]["rmse"] > 0
    for word in ("segmentation: mean_iou", "depth: rmse"):
        assert word in text
    before = (run / "probe.json").read_bytes()
    main(["judge", str(run), "--suite", "dense", *places[:4], "--out", str(tmp_path)])  # nothing is measured again
    assert (run / "probe.json").read_bytes() == before


@pytest.mark.slow
def test_retrieval(run: Path, places: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["judge", str(run), "--suite", "retrieval", *places[4:], "--out", str(tmp_path)])
    text = capsys.readouterr().out
    found = {record.data["label"]: record.result for record in results.read(run)}
    assert {"oxford", "cub", "copies"} <= found.keys()
    assert found["oxford"]["num_queries"] == 2
    assert 0 < found["oxford"]["medium_map"] <= 1
    assert (found["cub"]["gallery"], found["cub"]["num_gallery"]) == ("test", 8)
    assert found["copies"]["copies"] == 2
    for word in ("ROxford: medium_map", "among test images: map", "copy detection: micro_ap"):
        assert word in text
