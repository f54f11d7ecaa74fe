"""What `mrp compare` reads from the folders of runs, and the columns and rows that become of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mrp.build import measure_cost
from mrp.config import ConfigError, dump
from mrp.evaluate import results
from mrp.evaluate.results import Outcomes, Record
from mrp.report import compare, render, told
from mrp.report.page import Page
from mrp.run import load

DIGITS: dict[str, Any] = {"train": "digits", "test": "digits", "content": "aaaa", "own": True}
PETS: dict[str, Any] = {"label": "pets", "train": "p", "test": "q", "content": "bbbb", "score": "mean_per_class"}


def run(folder: Path, seed: int, right: int, lr: float = 1e-3, step: int = 10) -> Path:
    """The folder of a run that was judged: on digits it answered so many of 100 images rightly, and on pets 50."""
    folder.mkdir()
    recipe = load("demo", [f"seed={seed}", f"optim.lr={lr}", "batch=100"])
    (folder / "config.yaml").write_text(dump(recipe.resolved()))
    lines = [{"step": 5, "images_per_second": 100.0}, {"step": step, "images_per_second": 50.0}]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    for data, number in ((DIGITS, right), (PETS, 50)):
        share = number / 100
        result = {"accuracy": share, "low": share - 0.1, "high": min(1, share + 0.1)}
        result |= {"mean_per_class": {"accuracy": share / 2, "low": share / 4, "high": share}}
        record = Record("knn", {}, results.TRAINED, step, "student", data, result, digest=str(seed))
        outcomes = Outcomes(np.arange(100) < number, np.repeat(np.int32([0, 1]), 50))
        results.add(folder, [results.with_outcomes(folder, record, outcomes)])
    return folder


def texts(page: Page) -> dict[tuple[str, str], str]:
    return {
        (page.rows[row].name, f"{page.columns[column].data}: {page.columns[column].title}"): render.text_of(cell)
        for (row, column), cell in page.cells.items()
    }


def test_costs_and_measures_are_columns(tmp_path: Path) -> None:
    page = compare.page_of([run(tmp_path / "first", 0, 90), run(tmp_path / "second", 0, 70, lr=1e-4)])
    found = texts(page)
    flops = measure_cost(load("demo")).training_flops * 1000
    assert {key: value for key, value in found.items() if key[0] == "first"} == {
        ("first", ": step"): "10",
        ("first", ": images seen"): "1,000",
        ("first", ": training FLOPs"): f"{flops:.2g}",
        ("first", ": hours"): f"{(500 / 100 + 500 / 50) / 3600:.2g}",
        ("first", "digits: kNN (k = 20)"): "90.0 % (80.0 to 100.0)",
        ("first", "pets: kNN (k = 20), mean per class"): "25.0 % (12.5 to 50.0)",
    }
    column = [column.data for column in page.columns].index("digits")
    assert page.is_best(0, column)
    assert not any(page.is_best(row, column + 1) for row in (0, 1))  # both the same
    assert [row.name for row in page.rows] == ["first", "second"]


def test_runs_that_differ_in_their_seed_are_averaged(tmp_path: Path) -> None:
    runs = [run(tmp_path / name, seed, right) for name, seed, right in (("a", 0, 90), ("b", 1, 92), ("c", 2, 91))]
    runs.append(run(tmp_path / "d", 0, 50, lr=1e-4))
    page = compare.page_of(runs)
    assert [row.name for row in page.rows] == ["a", "b", "c", "d", "a, mean of 3 seeds"]
    assert texts(page)["a, mean of 3 seeds", "digits: kNN (k = 20)"] == "91.0 % (88.5 to 93.5)"
    column = [column.data for column in page.columns].index("digits")
    assert page.is_best(4, column)


def test_other_weights_are_no_other_seed(tmp_path: Path) -> None:
    first, second = run(tmp_path / "a", 0, 90), run(tmp_path / "b", 1, 92)
    kept = [replace(record, weights="average") for record in results.read(second)]
    (second / results.FILE).unlink()
    results.add(second, kept)
    assert [row.name for row in compare.page_of([first, second]).rows] == ["a", "b (average)"]


def test_data_of_other_content_are_other_columns(tmp_path: Path) -> None:
    first, second = run(tmp_path / "first", 0, 90), run(tmp_path / "second", 0, 70)
    other = Record("knn", {"k": 5}, results.TRAINED, 10, "student", DIGITS | {"content": "cccc"}, {"accuracy": 0.1})
    results.add(second, [other])
    results.add(second, [Record("rank", {}, results.TRAINED, 10, "student", DIGITS, {"rank_me": 7.0})])
    names = [f"{column.data}: {column.title}" for column in compare.page_of([first, second]).columns]
    assert names[4:] == [
        "digits #aaaa: kNN (k = 20)", "pets: kNN (k = 20), mean per class", "digits #cccc: kNN (k = 20) (k=5)",
    ]  # fmt: skip


def test_copies_of_training_images_are_told_below_the_table(tmp_path: Path) -> None:
    first = run(tmp_path / "one", 0, right=7)
    result = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "in_training": 1234}
    results.add(first, [Record("linear", {}, results.TRAINED, 10, "student", DIGITS, result)])
    (told,) = compare.page_of([first]).notes
    assert "1,234 of the test images are training images too; what is measured on them is no result" in told


def test_validation_on_other_data_of_the_same_name_is_another_column(tmp_path: Path) -> None:
    def validated(name: str, disk: str, accuracy: float) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        recipe = load("demo").resolved()
        recipe["data"] |= {"train": f"/{disk}/in100/train", "test": f"/{disk}/in100/val"}
        (folder / "config.yaml").write_text(dump(recipe))
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 5, "validation/accuracy": accuracy}))
        (folder / "validation.json").write_text(json.dumps({"student": {"images": 1000}}))
        return folder

    runs = [validated("a", "one", 0.9), validated("b", "one", 0.8), validated("c", "other", 0.5)]
    page = compare.page_of(runs)
    columns = [number for number, column in enumerate(page.columns) if column.data]
    assert len(columns) == 2
    assert sorted(key for key in page.cells if key[1] in columns) == [(0, columns[0]), (1, columns[0]), (2, columns[1])]


def test_each_paper_probe_stands_with_its_own_weights_and_data(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", 0, right=60)

    def probed(name: str, weights: str, accuracy: float, **data: str) -> None:
        (folder / name).mkdir()
        recipe = load("demo").resolved()
        recipe["data"] |= data
        (folder / name / "config.yaml").write_text(dump(recipe | {"init": {"from": "run", "weights": weights}}))
        interval = {"accuracy": accuracy, "low": 0.0, "high": 1.0}
        (folder / name / "validation.json").write_text(json.dumps({"student": {"accuracy": interval}}))

    probed("paper-00000010", "student", 0.1)
    probed("paper-00000010-teacher", "teacher", 0.2)
    probed("paper-00000010-0a1b2c3d", "student", 0.3, train="p", test="q")
    found = {key: text for key, text in texts(compare.page_of([folder])).items() if "(paper)" in key[1]}
    assert found == {
        ("run", "digits: linear probe (paper)"): "10.0 % (0.0 to 100.0)",
        ("run (teacher)", "digits: linear probe (paper)"): "20.0 % (0.0 to 100.0)",
        ("run", "p > q: linear probe (paper)"): "30.0 % (0.0 to 100.0)",
    }


def test_data_that_one_run_knows_the_content_of_are_the_same_in_a_run_that_was_only_validated(tmp_path: Path) -> None:
    first, second = run(tmp_path / "first", 0, 90), tmp_path / "second"
    second.mkdir()
    (second / "config.yaml").write_text((first / "config.yaml").read_text())
    (second / "metrics.jsonl").write_text(json.dumps({"step": 5, "validation/accuracy": 0.5}))
    (second / "validation.json").write_text(json.dumps({"student": {"images": 100}}))
    assert {column.data for column in compare.page_of([first, second]).columns} == {"", "digits", "pets"}


def test_validations_of_the_average_stand_beside_those_of_the_student(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(dump(load("demo").resolved()))
    (tmp_path / "validation.json").write_text(json.dumps({"student": {"images": 10}}))
    lines = [
        {"step": step, "validation/accuracy": student, "validation/average/accuracy": average}
        for step, student, average in ((5, 0.4, 0.1), (10, 0.5, 0.8), (15, 0.6, 0.7))
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    page = compare.page_of([tmp_path], ["run"])
    assert [row.name for row in page.rows] == [
        *(f"run, step {step}" for step in (5, 10, 15)), *(f"run (average), step {step}" for step in (5, 10, 15)),
    ]  # fmt: skip
    said = "".join(map(str, told.summary(told.Told.of(tmp_path))))
    assert "test accuracy in training (average) 80.0 % (" in said
    assert "step 10 (the best of 6 by these images; the last of step 15: 70.0 % (" in said


def test_many_validations_read_the_log_and_the_recipe_no_more_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run(tmp_path / "first", 0, 90)
    lines = [{"step": step, "images_per_second": 100.0, "validation/accuracy": 0.5} for step in range(1, 31)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (folder / "validation.json").write_text(json.dumps({"student": {"images": 1000}}))
    read: list[Path] = []
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *how, **more: (read.append(path), opened(path, *how, **more))[1])
    page = compare.page_of([folder])
    assert len(page.rows) == 30
    assert texts(page)["first, step 30", ": hours"] == f"{30 / 3600:.2g}"
    assert [path.name for path in read].count("metrics.jsonl") == 2
    assert [path.name for path in read].count("config.yaml") < 10


def test_several_steps_are_rows(tmp_path: Path) -> None:
    folder = run(tmp_path / "first", 0, 90)
    early = Record("knn", {}, results.TRAINED, 5, "student", DIGITS, {"accuracy": 0.5, "low": 0.4, "high": 0.6})
    results.add(folder, [early])
    page = compare.page_of([folder])
    assert [row.name for row in page.rows] == ["first, step 5", "first, step 10"]
    assert texts(page)["first, step 5", ": images seen"] == "500"
    render.write(page, tmp_path / "steps.png")


def test_a_report_says_what_was_chosen_by_the_images_that_it_is_measured_on(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", 0, right=60)
    assert "best of" not in "".join(map(str, told.summary(told.Told.of(folder))))
    early = Record("knn", {}, results.TRAINED, 5, "student", DIGITS, {"accuracy": 0.7, "low": 0.6, "high": 0.8})
    results.add(folder, [early])
    text = "".join(map(str, told.summary(told.Told.of(folder))))
    assert "kNN (k = 20) 70.0 % (60.0 to 80.0) on digits" in text
    assert ", step 5 (the best of 2 by these images; the last of step 10: 60.0 % (" in text


def test_the_same_run_twice(tmp_path: Path) -> None:
    folder = run(tmp_path / "first", 0, 90)
    with pytest.raises(ConfigError, match="the same run is given twice"):
        compare.page_of([folder, folder])
