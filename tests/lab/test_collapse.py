"""Lambda and optimizers against collapse: the tool at toy size, and what the table of claims makes of its results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mrp.config import ConfigError
from mrp.lab.claims import ours
from mrp.lab.claims.results import NotCounted
from mrp.lab.ratio.predict import digest_of
from tools import collapse_study


def test_every_checkpoint_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--seeds", "1", "--steps", "4", "--weights", ".1", "--checkpoints", "2", "--out"]
    collapse_study.main([*words, str(tmp_path)])
    data = json.loads((tmp_path / "results.json").read_text())
    assert len(data["rows"]) == 2 * 2 * 3, "optimizers, tokens, and the start with two checkpoints"
    assert {row["step"] for row in data["rows"]} == {0, 2, 4}
    for row in data["rows"]:
        assert sum(row["eigenvalues"]) == pytest.approx(1), "rows of unit length"
        assert sum(value**2 for value in row["eigenvalues"]) == pytest.approx(row["uniformity"])
        assert 1 <= row["rank_me"] <= 64
        assert 0 <= row["knn"] <= 100
    starts = [row for row in data["rows"] if row["step"] == 0]
    assert starts[0]["knn"] == starts[2]["knn"], "both optimizers begin with the same weights"
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("curves.png", "ends.png"))
    monkeypatch.setattr(collapse_study, "train", lambda *_: pytest.fail("it is trained already"))
    collapse_study.main([*words, str(tmp_path)])
    with pytest.raises(ConfigError, match=r"holds runs of \[4\] steps"):
        collapse_study.grid(collapse_study.Options(0, 5), tmp_path)
    for checkpoints in (0, 6):
        with pytest.raises(ConfigError, match=rf"--checkpoints: {checkpoints} was given; allowed: 1 to 5"):
            collapse_study.grid(collapse_study.Options(1, 5, checkpoints=checkpoints), tmp_path / "new")
    with pytest.raises(NotCounted, match="4 steps"):
        ours.collapse(data, "class")


def grid(seeds: int) -> dict[str, Any]:
    """Results in which lambda .01 takes uniformity from .9 to .1, and Muon to .5."""
    uniformity = {("adamw", 0.0): 0.9, ("adamw", 0.01): 0.1, ("muon", 0.0): 0.5, ("muon", 0.01): 0.1}
    rows = [
        {
            "optimizer": optimizer, "weight": weight, "seed": seed, "token": token, "step": step,
            "uniformity": value, "rank_me": 10 - 10 * value + seed, "knn": 90 - 20 * value,
        }
        for seed in range(seeds)
        for token in ("class", "mean")
        for step in (0, 600)
        for (optimizer, weight), value in uniformity.items()
    ]  # fmt: skip
    return {"options": {"steps": 600}, "rows": rows}


def test_lambda_and_muon_are_compared_seed_by_seed_at_the_end() -> None:
    numbers = ours.collapse(grid(3), "class")
    assert numbers["rank, by lambda .01"].value == pytest.approx(8)
    assert numbers["rank, by lambda .01"].half == pytest.approx(0, abs=1e-9), "the seeds agree, whatever their level"
    assert numbers["rank, by Muon"].value == pytest.approx(4)
    assert numbers["rank, by Muon beside lambda .01"].value == pytest.approx(0)
    assert numbers["share of lambda's effect on uniformity that Muon has"].value == pytest.approx(0.5)
    assert numbers["kNN points, by Muon"].value == pytest.approx(8)
    assert numbers["kNN points, by lambda .01 beside Muon"].value == pytest.approx(8)
    assert numbers["rank against kNN, correlation over cells"].value == pytest.approx(1)
    assert numbers["rank, by Muon"].over == "3 seeds, 600 steps"
    part = grid(3)
    part["rows"] = [row for row in part["rows"] if (row["seed"], row["optimizer"]) != (2, "muon")]
    assert ours.collapse(part, "class")["rank, by Muon"].over.startswith("2 seeds"), "the third one is not whole"
    part["rows"] = [row for row in part["rows"] if row["weight"] == 0]
    with pytest.raises(NotCounted, match="lambda"):
        ours.collapse(part, "class")


def test_a_rule_is_judged_over_seeds_at_several_ratios() -> None:
    outcome = {
        "rule": "lesson",
        "probe": "knn",
        "rank correlation": [0.5, 0.7, 0.9],
        "ratios off": [0, 1, 2],
        "points gained": [1, 2, 3],
    }
    prediction = {"ratios": [0.1, 0.3, 0.5, 0.7, 0.9], "options": {"recipe": "demo"}}
    fixed = outcome | {"rule": ours.FIXED, "rank correlation": [0.4, 0.6, 0.8]}
    data = {"prediction": prediction, "sha256": digest_of(prediction), "outcomes": [outcome, fixed]}
    numbers = ours.predicted_ratio(data, "lesson", "knn")
    assert numbers["rank correlation, knn"].value == pytest.approx(0.7)
    assert numbers["rank correlation beyond that of 'nearest to 0.5', knn"].value == pytest.approx(0.1)
    assert numbers["ratios off, knn"].over == "3 seeds, 5 mask ratios, demo"
    toy = prediction | {"ratios": [0.3, 0.7]}
    with pytest.raises(NotCounted, match="changed after it was frozen"):
        ours.predicted_ratio(data | {"prediction": toy}, "lesson", "knn")
    with pytest.raises(NotCounted, match="toy"):
        ours.predicted_ratio(data | {"prediction": toy, "sha256": digest_of(toy)}, "lesson", "knn")
