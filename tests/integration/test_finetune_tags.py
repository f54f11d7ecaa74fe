"""A classifier of tags, of which an image may have several: trained, interrupted, shown, measured, exported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mrp import api
from mrp.build import follow_up
from mrp.checkpoint import checkpoints
from mrp.cli import main
from mrp.exchange.export import export
from mrp.interop import reading
from mrp.report import compare, listing
from tests.forked import launch
from tests.tagged_digits import FILE, TAGS

DATA = [f"data.{split}={{name: {FILE}}}" for split in ("train", "test")]
OF_TAGS = [*DATA, "objective.loss=tags", "objective.classes=4", "machine.workers=0"]
TINY = ["backbone.width=16", "backbone.depth=2", "backbone.heads=2"]
RECIPE = [
    "finetune_tiny_digits", "backbone=null", *OF_TAGS, "length=6 steps", "optim.warmup=2 steps", "batch=24",
    "track.every=1", "validation.every=4 steps", "average.decay=0.5", "mix={mixup: 0.8, cutmix: 1, chance: 0.5}",
    "checkpoint={every: 2 steps, keep: 9, best: validation/mean_ap}",
]  # fmt: skip


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    words = ["length=2 steps", "optim.warmup=1 step", "batch=24", "objective.decoder.width=16", "machine.workers=0"]
    main(["pretrain", "demo", *TINY, *words, *DATA, "diagnose.every=2 steps", "--folder", str(folder)])
    return folder


@pytest.fixture(scope="module")
def tuned(pretrained: Path) -> Path:
    folder = pretrained.with_name("tuned")
    main(["finetune", *RECIPE, f"init={pretrained}", "--folder", str(folder)])
    return folder


def content(folder: Path) -> dict[str, bytes]:
    found = checkpoints.newest(folder)
    assert found is not None
    assert found.step == 6
    files = {path.name: path.read_bytes() for path in found.folder.glob("*.safetensors")}
    return files | {"validation": (folder / "validation.json").read_bytes()}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_interrupted_it_ends_bit_equal_and_tells_what_it_has_learned(
    pretrained: Path, tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tuned, other)
    for one in checkpoints.listed(other):
        if one.step > 2:
            shutil.rmtree(one.folder)
    (other / "validation.json").unlink()
    main(["finetune", *RECIPE, f"init={pretrained}", "--folder", str(other)])
    printed = capsys.readouterr().out
    assert content(other) == content(tuned)
    assert "tags of data.train: 4 (even, below five, with a loop, seven)" in printed
    assert "mean average precision" in printed
    assert "4 tags on 360 test images, from the lowest" in printed
    assert json.loads((tuned / "classes.json").read_text()) == list(TAGS)
    for name in ("loss", "validation/loss", "validation/mean_ap", "validation/average/mean_auroc"):
        assert [line.get(name) for line in lines(other)] == [line.get(name) for line in lines(tuned)]
    assert [line["step"] for line in lines(tuned) if "validation/mean_ap" in line] == [4, 6]
    assert not any("accuracy" in name for line in lines(tuned) for name in line)
    assert "average.safetensors" in content(tuned)


@pytest.mark.slow
def test_two_processes_train_and_judge_as_one(pretrained: Path, tmp_path: Path) -> None:
    found, losses = [], []
    for number in (1, 2):
        folder = tmp_path / str(number)
        assert launch(number, ["finetune", *RECIPE, f"init={pretrained}", "--folder", str(folder)]) == 0
        found.append(json.loads((folder / "validation.json").read_text())["student"])
        losses.append([line["loss"] for line in lines(folder)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    one, two = found
    assert one["images"] == two["images"] == 360
    for key in ("loss", "mean_ap", "mean_auroc"):
        assert two[key] == pytest.approx(one[key], abs=1e-3)
    assert [tag["having"] for tag in one["tags"]] == [tag["having"] for tag in two["tags"]]


def test_what_was_measured_is_listed_compared_and_reported(tuned: Path) -> None:
    student = json.loads((tuned / "validation.json").read_text())["student"]
    (row,) = listing.listing(tuned).rows
    assert row.measured["validation/mean_ap"][0] >= student["mean_ap"]
    assert listing.text("validation/mean_ap", 0.5, row) == "50.0 %"
    points = [one for one in compare.collect([tuned], ["tuned"]) if one.weights == "student"]
    last = {one.measure.title: one.measure for one in points if one.step == 6}
    assert last["test mean average precision in training"].value == student["mean_ap"]
    assert last["test mean average precision in training"].low == student["measures"]["mean_ap"]["low"]
    assert [one.measure.low for one in points if one.step == 4] == [None, None]
    main(["report", str(tuned), "--out", str(tuned.parent / "page.html")])
    page = (tuned.parent / "page.html").read_text()
    assert "<h2>Tags</h2>" in page
    assert "Classes and their confusions" not in page
    for tag in student["tags"]:
        assert f'<td class="number">{tag["having"]} (' in page


def test_it_is_measured_on_other_data_that_have_some_of_its_tags(
    tuned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    average = json.loads((tuned / "validation.json").read_text())["average"]
    main(["evaluate", str(tuned), "--json"])
    cells = {one["measure"]: one for one in json.loads(capsys.readouterr().out.split("\n", 1)[1])["cells"]}
    assert cells["mean AUROC"]["value"] == pytest.approx(average["mean_auroc"], rel=1e-6)
    assert cells["loss"]["value"] == pytest.approx(average["loss"], rel=1e-6)
    some = api.evaluate(tuned, data={"test": {"name": FILE, "tags": ["seven", "even"]}})
    assert some is not None
    assert {column.title for column in some.page.columns} == {"mean average precision", "mean AUROC", "loss"}
    for words, message in (
        (["data.test=digits"], "data.test: has no tags, which a classifier of tags is measured by"),
        ([f"data.test={{name: {FILE}, tags: [even, odd]}}"], "has a tag 'odd' that the classifier has not"),
    ):
        with pytest.raises(SystemExit):
            main(["evaluate", str(tuned), *words])
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_labels_from_a_table_come_along(pretrained: Path, tmp_path: Path) -> None:
    """The table of a run says what its own test images show, also after the training."""
    random, rows = np.random.default_rng(0), ["image,bright,dark"]
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        for number in range(48):
            bright = int(random.integers(2))
            pixels = random.integers(0, 100, (8, 8), np.uint8) + np.uint8(150 * bright)
            Image.fromarray(pixels).save(tmp_path / split / f"{split}{number}.png")
            rows.append(f"{split}{number}.png,{bright},{'' if number % 5 == 0 else 1 - bright}")
    (tmp_path / "tags.csv").write_text("\n".join(rows))
    words = [
        f"data.train={tmp_path / 'train'}", f"data.test={tmp_path / 'test'}", "length=40 steps", "objective.classes=2",
        f"data.labels={{table: {tmp_path / 'tags.csv'}, label: [bright, dark]}}", "data.channels=1", "average=null",
    ]  # fmt: skip
    main(["finetune", *RECIPE, *words, f"init={pretrained}", "--folder", str(tmp_path / "run")])
    student = json.loads((tmp_path / "run" / "validation.json").read_text())["student"]
    assert student["mean_auroc"] == 1
    assert [one["images"] for one in student["tags"]] == [48, 38]
    found = api.evaluate(tmp_path / "run")
    assert found is not None
    cells = [cell.measure for _, cell in sorted(found.page.cells.items())]
    assert [one.value for one in cells if one] == pytest.approx([1, 1, student["loss"]], rel=1e-6)


def test_what_asks_for_one_answer_per_image_refuses_it(tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["probe", str(tuned), "data.train=digits", "data.test=digits", "--evaluator", "calibration"])
    error = capsys.readouterr().err
    assert "calibration: the model tells tags, of which an image may have several; leave calibration out" in error
    assert error.count("\n") == 1


def test_transformers_is_told_that_an_image_may_have_several(tuned: Path, tmp_path: Path) -> None:
    export(tuned, "transformers", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert list(config["id2label"].values()) == list(TAGS)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Their order: even, below five, with a loop, seven." in card
    assert "logits.sigmoid()" in card
    assert "validation.average.mean_ap" in card
    assert reading.read(tmp_path / "out").objective["loss"] == "tags"
    export(tuned, "timm", tmp_path / "timm")
    assert json.loads((tmp_path / "timm" / "config.json").read_text())["label_names"] == list(TAGS)


def test_a_protocol_learns_tags_where_the_data_have_them(pretrained: Path) -> None:
    run = follow_up("linear_mae_vit_base_in1k", pretrained, ["precision=fp32"])
    assert run.objective.model_dump(include={"classes", "loss", "frozen"}) == {
        "classes": 4, "loss": "tags", "frozen": True,
    }  # fmt: skip
