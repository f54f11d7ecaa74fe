"""Which of several results of a run is taken where one is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mrp.evaluate import results
from mrp.evaluate.results import Outcomes, Record


def record(step: int, accuracy: float, **options: Any) -> Record:
    data = {"train": "digits", "test": "digits", "content": "aaaa", "own": True}
    return Record("linear", options, results.TRAINED, step, "student", data, {"accuracy": accuracy})


def test_the_default_options_stand_for_an_evaluator(tmp_path: Path) -> None:
    results.add(tmp_path, [record(5, 0.8), record(10, 0.9), record(10, 0.1, fraction=0.01)])
    assert results.latest(tmp_path, "linear")["accuracy"] == 0.9
    results.add(tmp_path, [record(20, 0.2, fraction=0.01), record(20, 0.3, fraction=0.1)])
    assert results.latest(tmp_path, "linear")["accuracy"] == 0.3  # the last one of the highest step


def test_an_empty_file_of_outcomes_is_none(tmp_path: Path) -> None:
    outcomes = Outcomes(np.array([True, False]), np.array([0, 1], np.int32))
    kept = results.with_outcomes(tmp_path, record(5, 0.5), outcomes)
    assert results.read_outcomes(tmp_path, kept) is not None
    (tmp_path / results.OUTCOMES / kept.outcomes).write_bytes(b"")
    assert results.read_outcomes(tmp_path, kept) is None
