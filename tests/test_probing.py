"""What results are kept under: another list of classes or another precision is another measurement."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mrp.data.open import open_source
from mrp.evaluators.knn import Config
from mrp.model import Model
from mrp.probing import Subject, described
from mrp.run import load
from tests.evaluators.settings import setting


def test_a_list_of_classes_is_known_by_what_it_says(tmp_path: Path) -> None:
    digits, file = open_source("digits", "test"), tmp_path / "classes.txt"
    at = replace(setting(load("demo").data, digits, digits), classes=str(file))

    def content(lines: str) -> str:
        file.write_text(lines)
        return str(described(at, own=False)["content"])

    assert content("0 1\n1 0\n") != content("0 0\n1 1\n")
    assert content("0 1\n1 0\n") == content("0 1\n1 0\n")


def test_another_precision_is_another_measurement() -> None:
    from mrp.build import build_step

    run = load("demo", ["backbone.width=16", "backbone.depth=1", "backbone.heads=2"])
    subject = Subject.of("weights.pth", Model(run, Path("weights.pth"), 0, build_step(run)))
    data = {"train": "digits", "test": "digits", "content": "aaaa"}
    fp32, bf16 = (subject.about("knn", Config(), data, precision) for precision in ("fp32", "bf16"))
    assert fp32.key != bf16.key
    assert (fp32.precision, bf16.precision) == ("", "bf16")  # "": that of the configuration, as in earlier files
