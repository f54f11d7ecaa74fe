"""Rank correlations over checkpoints, from the records of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mrp.cli import main
from mrp.config import ConfigError
from mrp.evaluate import results
from mrp.evaluate.results import TRAINED, UNTRAINED, Record
from mrp.monitor.metrics import METRICS
from mrp.report.foretell import correlations

RANKS = [3.0, 5.0, 4.0, 8.0, 9.0]
ACCURACIES = [0.2, 0.3, 0.4, 0.5, 0.6]


def record(evaluator: str, step: int, result: dict[str, Any], **other: Any) -> Record:
    about = {"options": {}, "backbone": TRAINED, "weights": "student", "data": {"content": "a", "own": True}} | other
    return Record(evaluator=evaluator, step=step, result=result, **about)


def write(folder: Path, count: int = 5) -> Path:
    records = []
    for step in range(count):
        rank = {"value": RANKS[step], "low": None, "high": None, "share": False, "better": ""}
        records.append(record("geometry", step, {"measures": {"rank_me": rank, "lidar": rank | {"value": 2.0}}}))
        found = {"accuracy": ACCURACIES[step], "low": 0.1, "high": 0.9}
        records.append(record("linear", step, found))
        records.append(record("linear", step, found | {"accuracy": -ACCURACIES[step]}, weights="average"))
        records.append(record("linear", step, found | {"accuracy": 0.5}, backbone=UNTRAINED))
    results.add(folder, records)
    return folder


def test_numbers_and_accuracies_are_paired_by_step(tmp_path: Path) -> None:
    found = {(one.number, one.measure): one for one in correlations([write(tmp_path)])}
    assert found.keys() == {
        (number, measure) for number in ("rank_me", "lidar") for measure in ("linear probe", "linear probe (average)")
    }
    best = found["rank_me", "linear probe"]
    assert (best.correlation.value, best.steps) == (pytest.approx(0.9), 5)  # one swap of neighbours
    assert found["rank_me", "linear probe (average)"].correlation.value == pytest.approx(-0.9)
    assert found["lidar", "linear probe"].correlation.value != found["lidar", "linear probe"].correlation.value  # NaN


def test_what_was_measured_while_training_counts_too(tmp_path: Path) -> None:
    lines = [
        {"step": 10 * step, "loss": 1.0, "geometry/lidar": rank, "geometry/seconds": 1.0, "knn/accuracy": accuracy}
        for step, (rank, accuracy) in enumerate(zip(RANKS, ACCURACIES, strict=True))
    ]
    lines += [{"step": 60, "loss": 1.0}, {"step": 70, "geometry/lidar": "nan", "knn/accuracy": 0.1}]
    (tmp_path / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (one,) = correlations([tmp_path])
    assert (one.number, one.measure, one.steps) == ("lidar", "knn in training", 5)
    assert one.correlation.value == pytest.approx(0.9)


def test_it_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["compare", str(write(tmp_path)), "--foretell"])
    text = capsys.readouterr().out
    assert "0.90 (-0.17 to 1.00)" in text
    assert "one value only" in text
    with pytest.raises(SystemExit):
        main(["compare", str(tmp_path), "--foretell", "--out", "x.md"])
    assert "--out: does nothing with --foretell; leave one of the two out" in capsys.readouterr().err


def test_too_few_steps(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="--foretell: needs 'geometry' and an accuracy after the same 4 steps of a run"
    ):
        correlations([write(tmp_path, 3)])
