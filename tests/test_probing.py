"""What results are kept under: another list of classes or another precision is another measurement."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mrp.build import build_step
from mrp.data.open import open_source
from mrp.evaluators import knn, linear
from mrp.model import Model
from mrp.probing import Subject, described
from mrp.run import load
from tests.evaluators.settings import setting

DATA = {"train": "digits", "test": "digits", "content": "aaaa", "own": True}


def test_a_list_of_classes_is_known_by_what_it_says(tmp_path: Path) -> None:
    digits, file = open_source("digits", "test"), tmp_path / "classes.txt"
    at = replace(setting(load("demo").data, digits, digits), classes=str(file))

    def content(lines: str) -> str:
        file.write_text(lines)
        return str(described(at, own=False)["content"])

    assert content("0 1\n1 0\n") != content("0 0\n1 1\n")
    assert content("0 1\n1 0\n") == content("0 1\n1 0\n")


@pytest.fixture(scope="module")
def subject() -> Subject:
    run = load("demo", ["backbone.width=16", "backbone.depth=1", "backbone.heads=2"])
    return Subject.of("weights.pth", Model(run, Path("weights.pth"), 0, build_step(run)))


def test_another_precision_is_another_measurement(subject: Subject) -> None:
    fp32, bf16 = (subject.about("knn", knn.Config(), DATA, precision) for precision in ("fp32", "bf16"))
    assert fp32.key != bf16.key
    assert (fp32.precision, bf16.precision) == ("", "bf16")  # "": that of the configuration, as in earlier files


def test_labels_of_a_list_are_not_the_data_of_the_run(subject: Subject, tmp_path: Path) -> None:
    (tmp_path / "one_percent.txt").write_text("a.png\n")
    some = linear.Config(list=str(tmp_path / "one_percent.txt"))
    every, listed = (subject.about("linear", section, DATA, "fp32").data for section in (linear.Config(), some))
    assert every == DATA
    assert listed["content"] != DATA["content"]
    assert listed["own"] is False
