"""What results are kept under: another list of classes or another precision is another measurement."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mrp import probing
from mrp.build import build_step
from mrp.config import ConfigError
from mrp.data.open import open_source
from mrp.data.source import Arrays
from mrp.evaluate.tables import weights_digest
from mrp.evaluators import knn, linear
from mrp.folder import CONFIG
from mrp.model import Model
from mrp.probing import Subject, changed, tables_of
from mrp.run import load
from tests.evaluators.settings import setting

DATA = {"train": "digits", "test": "digits", "content": "aaaa", "own": True}


def test_a_list_of_classes_is_known_by_what_it_says(tmp_path: Path) -> None:
    digits, file = open_source("digits", "test"), tmp_path / "classes.txt"
    at = replace(setting(load("demo").data, digits, digits), classes=str(file))

    def content(lines: str) -> str:
        file.write_text(lines)
        return str(at.described(own=False)["content"])

    assert content("0 1\n1 0\n") != content("0 0\n1 1\n")
    assert content("0 1\n1 0\n") == content("0 1\n1 0\n")


@pytest.fixture(scope="module")
def subject() -> Subject:
    run = load("demo", ["backbone.width=16", "backbone.depth=1", "backbone.heads=2"])
    return Subject.of("weights.pth", Model(run, Path("weights.pth"), 0, build_step(run)))


def test_a_run_in_the_home_folder_is_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / CONFIG).touch()
    run = load("demo", ["backbone.width=16", "backbone.depth=1", "backbone.heads=2"])
    model = Model(run, tmp_path / "run", 0, build_step(run))
    assert probing.results_folder("~/run", model) == tmp_path / "run"
    assert Subject.of("~/run", model).source == ""


def test_another_crop_of_imported_weights_is_another_measurement() -> None:
    """Files that say how images are shown to them were measured on other crops before they were heard."""
    small, digests = ["backbone.width=16", "backbone.depth=1", "backbone.heads=2"], []
    for crop in ("{name: crop}", "resize", "{name: crop, whole_from: 1}"):
        run = load("demo", [*small, "data.augment=null", f"data.augment={crop}"])
        model = Model(run, Path("folder"), 0, build_step(run))
        digests += [Subject.of("folder", model).digest]
    assert len({*digests}) == 3
    assert digests[0] == probing.model_digest(model.module)  # as in earlier files


def test_another_precision_is_another_measurement(subject: Subject) -> None:
    fp32, bf16 = (subject.about("knn", knn.Config(), DATA, precision) for precision in ("fp32", "bf16"))
    assert fp32.key != bf16.key
    assert (fp32.precision, bf16.precision) == ("", "bf16")  # "": that of the configuration, as in earlier files


def test_a_processor_that_only_emulates_bfloat16_computes_features_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Emulated it takes up to thirty times as long."""
    run = load("demo", ["backbone.width=16", "backbone.depth=1", "backbone.heads=2", "precision=bf16"])
    model = Model(run, Path("run"), 0, build_step(run))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for slowdown, precision in ((30.0, "fp32"), (0.3, "bf16")):
        monkeypatch.setattr("mrp.processes.halves.bf16_slowdown", lambda slowdown=slowdown: slowdown)
        at = changed(model, {})
        assert at.run.precision == at.module.precision == precision


def test_the_same_weights_with_other_heads_have_other_features() -> None:
    """Otherwise features of a first import with the wrong number of heads would stand for those of a second one."""
    few, many = (build_step(load("demo", [f"backbone.heads={heads}"])) for heads in (2, 4))
    many.load_state_dict(few.state_dict())
    assert weights_digest(few) != weights_digest(many)
    assert weights_digest(few) == weights_digest(build_step(load("demo", ["backbone.heads=2"])))


def test_labels_of_a_list_are_not_the_data_of_the_run(subject: Subject, tmp_path: Path) -> None:
    (tmp_path / "one_percent.txt").write_text("a.png\n")
    some = linear.Config(list=str(tmp_path / "one_percent.txt"))
    every, listed = (subject.about("linear", section, DATA, "fp32").data for section in (linear.Config(), some))
    assert every == DATA
    assert listed["content"] != DATA["content"]
    assert listed["own"] is False


def test_another_version_of_an_evaluator_is_another_measurement(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = subject.about("knn", knn.Config(), DATA, "fp32")
    monkeypatch.setattr(knn.Evaluator, "version", 2)
    second = subject.about("knn", knn.Config(), DATA, "fp32")
    assert (first.code, second.code) == ("", "v2")  # "": as in files of the first version
    assert first.key != second.key


def test_test_images_without_a_label_are_an_error_and_no_mistakes_of_the_model() -> None:
    train, test = open_source("digits", "train"), open_source("digits", "test")
    labels = np.asarray(test.labels).copy()
    labels[3] = -1  # as the number of a class it would be the last one
    some = Arrays("some", test.images, labels, test.classes)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"data\.test: 1 of its 360 images have no label"):
        setting(load("demo").data, train, some).labelled()


@pytest.mark.parametrize(
    ("differing", "said"), [("weights", "different weights; .* --step"), ("data", "different data")]
)
def test_features_of_processes_that_have_read_something_else_are_not_mixed(
    monkeypatch: pytest.MonkeyPatch, differing: str, said: str
) -> None:
    """As where a run goes on saving: each process of a probe takes the newest checkpoint that it sees."""
    digits = open_source("digits", "test")
    at = setting(load("demo").data, digits, digits)
    module = build_step(load("demo", ["backbone.width=16", "backbone.depth=1", "backbone.heads=2"]))

    def with_another(value: tuple[str, list[str]]) -> list[Any]:
        weights, data = value
        return [value, ("other", data) if differing == "weights" else (weights, ["other", *data[1:]])]

    monkeypatch.setattr(probing, "from_all", with_another)
    with pytest.raises(ConfigError, match=said):
        tables_of(module, [at])
