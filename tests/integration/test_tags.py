"""Data with tags in place of classes: measured in training and after it, judged, compared, shown and adapted to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mrp import api
from mrp.cli import main
from mrp.evaluate import results
from tests import tagged_digits
from tests.forked import launch
from tests.trained import NARROW

SMALL = [
    *NARROW, "length=2 steps", "optim.warmup=1 steps", "optim.lr=3e-3", "backbone.depth=1", "diagnose.every=2 steps",
    "evaluate={tags: {every: 2 steps, images: 300}}", "checkpoint.best=tags/mean_ap",
]  # fmt: skip
VALUES = ("mean_ap", "mean_auroc", "knn_mean_ap", "knn_mean_auroc")


def data(split: str = "train", **options: Any) -> str:
    return f"data.{split}={json.dumps({'name': tagged_digits.FILE, 'tags': tagged_digits.UNSEEN, **options})}"


def both() -> list[str]:
    return [data(), data("test", tags=["large", "even", "with a loop"])]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tags")
    main(["pretrain", *SMALL, *both(), "--folder", str(folder / "run")])
    return folder / "run"


def logged(folder: Path) -> dict[str, float]:
    values = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return {name: values[f"tags/{name}"] for name in VALUES}


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit):
        main([*words])
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    return said


def test_in_training_it_measures_what_it_measures_after_it(run: Path) -> None:
    assert 0.5 < logged(run)["mean_auroc"] < 1
    after = api.probe(run, "tags.images=300", evaluators=["tags"]).results["trained"]["tags"]
    assert {name: after[name] for name in VALUES} == pytest.approx(logged(run), abs=1e-9)
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert "features/rank_me" in last
    assert "features/knn" not in last


@pytest.mark.slow
def test_two_processes_measure_what_one_measures(run: Path, tmp_path: Path) -> None:
    words = [*SMALL, *both()]
    assert launch(2, ["pretrain", *words, "--folder", str(tmp_path / "two")]) == 0
    assert logged(tmp_path / "two") == pytest.approx(logged(run), abs=5e-3)


def test_tags_are_measured_unless_others_are_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["probe", str(run), "--untrained"])
    said = capsys.readouterr().out
    for part in ("mean_auroc", "knn_mean_ap", "heads for tags", "least held-out loss", "3 tags on 360 test images"):
        assert part in said
    records = [one for one in results.read(run) if one.evaluator not in ("tags",)]
    assert not records
    assert {one.backbone for one in results.read(run)} == {"trained", "untrained"}
    assert "linear.layers: cannot be changed here" in refused(capsys, "probe", str(run), "linear.layers=1")


@pytest.mark.parametrize("name", ["linear", "knn", "few_shot", "logistic", "centroid", "attentive", "calibration"])
def test_what_needs_classes_names_what_takes_tags(
    run: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:  # fmt: skip
    said = refused(capsys, "probe", str(run), "--evaluator", name)
    assert "data.train has tags" in said
    assert "take the evaluator tags" in said


@pytest.mark.parametrize("words", [[], ["retrieval.gallery=test"]])
def test_retrieval_needs_classes_too(run: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert "take the evaluator tags" in refused(capsys, "probe", str(run), "--evaluator", "retrieval", *words)


def test_what_needs_no_classes_measures_data_with_tags(run: Path) -> None:
    names = ["invariance", "geometry", "diagnose"]
    options = ["invariance.images=40", "geometry.images=40", "geometry.views=2"]
    found = api.probe(run, *options, evaluators=names).results["trained"]
    assert found.keys() == {*names}
    assert "accuracy" not in found["invariance"]


def test_data_that_do_not_fit_are_refused_in_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probe = ("probe", str(run), "--evaluator", "tags")
    other = data("test", tags=["even", "zero"])
    assert "1 of its 2 tags, such as 'zero', are none of data.train's 4" in refused(capsys, *probe, other)
    assert "data.train has classes, which the evaluators linear and knn" in refused(capsys, *probe, "data.train=digits")
    assert "data.test has classes" in refused(capsys, *probe, "data.test=digits")
    assert "data.test is not set" in refused(capsys, *probe, "data.test=null")
    nothing = data("test", tags=["unseen"])
    assert "no tag is known of some images and known not to be of others" in refused(capsys, *probe, nothing)
    assert "tags are matched by name" in refused(capsys, *probe, "--classes", "by_index")


def test_a_suite_compares_by_the_same_images(run: Path, tmp_path: Path) -> None:
    train, test = ({"name": tagged_digits.FILE, "tags": tagged_digits.UNSEEN} for _ in range(2))
    measured = {"evaluator": "tags", "data": "digits", "options": {"images": 300}, "title": "head"}
    suite = tmp_path / "mine.yaml"
    suite.write_text(json.dumps({"data": {"digits": {"train": train, "test": test}}, "measure": [measured]}))
    main(["judge", str(run), "--suite", str(suite), "--untrained", "--out", str(tmp_path / "out")])
    page = json.loads((tmp_path / "out" / "judge.json").read_text())
    titles = [one["measure"] for one in page["cells"]]
    assert "head: linear probe, mean AP" in titles
    assert "head: kNN (k = 20), mean AUROC" in titles
    found = {one["measure"]: one for one in page["differences"]}["head: linear probe, mean AP"]
    assert found["low"] < found["value"] < found["high"]
    cells = [one for one in page["cells"] if one["measure"] == "head: linear probe, mean AP"]
    alone = sum(((one["high"] - one["low"]) / 2) ** 2 for one in cells) ** 0.5
    assert (found["high"] - found["low"]) / 2 < alone  # the draws of both are of the same images
    main(["compare", str(run), "--out", str(tmp_path / "table.md")])
    assert "head" not in (table := (tmp_path / "table.md").read_text())
    assert "linear probe, mean AP (images=300)" in table


def test_the_page_of_a_run_has_a_table_of_tags(run: Path, tmp_path: Path) -> None:
    main(["report", str(run), "--out", str(tmp_path / "page.html")])
    text = (tmp_path / "page.html").read_text()
    assert "<h2>Tags</h2>" in text
    assert '<th scope="row">with a loop</th>' in text
    assert "Mean average precision" in text  # the curve


def test_features_are_written_with_tags(run: Path, tmp_path: Path) -> None:
    main(["features", str(run), "--out", str(tmp_path / "rows.npy")])
    about = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    source = tagged_digits.opened("test", tags=["large", "even", "with a loop"])
    for number, one in enumerate(about):
        known = dict(zip(source.tags, source.tagged[number].tolist(), strict=True))
        assert one["tags"] == [tag for tag, has in known.items() if has == 1]
        assert one["unknown"] == [tag for tag, has in known.items() if has == -1]
    assert np.load(tmp_path / "rows.npy").shape == (360, 24)


@pytest.mark.slow
def test_an_adaptation_is_judged_by_the_tags_of_a_table(run: Path, tmp_path: Path) -> None:
    source = tagged_digits.opened("train")
    (tmp_path / "images").mkdir()
    for number in range(600):
        Image.fromarray(source.read(number)[0].squeeze(-1)).save(tmp_path / "images" / f"{number:04}.png")
    rows = [f"{number:04}.png,{','.join(map(str, source.tagged[number]))}" for number in range(600)]
    (tmp_path / "tags.csv").write_text("\n".join([",".join(["name", *source.tags]), *rows]))
    labels = json.dumps({"table": str(tmp_path / "tags.csv"), "label": list(source.tags)})
    words = ["length=2 steps", "batch=16", "optim.lr.warmup=0 steps", f"data.labels={labels}"]
    main(["adapt", str(run), str(tmp_path / "images"), *words, "--out", str(tmp_path / "adapt")])
    told = json.loads((tmp_path / "adapt" / "adapt.json").read_text())["verdict"]
    assert told["changes"][0]["name"] == "tags/mean_ap"
    assert 20 <= told["images"] <= 100


@pytest.mark.slow
def test_what_an_adaptation_has_made_better_is_told_by_tags(run: Path, tmp_path: Path) -> None:
    words = ["length=2 steps", "batch=16", "optim.lr.warmup=0 steps"]
    source = json.dumps({"name": tagged_digits.FILE, "tags": tagged_digits.UNSEEN, "alike": True})
    main(["adapt", str(run), source, *words, "--out", str(tmp_path / "adapt")])
    told = json.loads((tmp_path / "adapt" / "adapt.json").read_text())["verdict"]
    assert told["changes"][0]["name"] == "tags/mean_ap"
    assert not any("no labels" in note for note in told["notes"])
    assert 100 < told["images"] < 200
