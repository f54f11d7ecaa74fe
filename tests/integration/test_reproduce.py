"""The plans of tools/reproduce.py, tiny: in pieces, each of which goes on where the one before it ended."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tools import reproduce


def test_a_plan_is_worked_on_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(reproduce.PLANS, "cifar10", reproduce.PLANS["cifar10"][1:])

    def piece(*words: str) -> list[str]:
        monkeypatch.setattr(
            sys, "argv", ["reproduce.py", "cifar10", "digits", "--rehearse", "--out", str(tmp_path), *words]
        )
        reproduce.main()
        row = (tmp_path / "cifar10.md").read_text().splitlines()[-1]
        return [cell.strip() for cell in row.strip("|").split("|")]

    assert piece("--seconds", "1")[1:] == ["-", "-", "-", "-", "-", "68.9", "-", "-", "89.4", "-"]
    assert "the same command goes on" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(reproduce, "_MARGIN", 1e9)
        assert piece()[7:] == ["-", "-", "89.4", "-"]
    assert "ends at the next step, with a checkpoint" in capsys.readouterr().out
    done = piece()
    assert done[:2] == ["umae_vit_tiny_cifar10, seed 0", "2"]
    assert float(done[7]) > 10
    assert done[10].endswith("(epoch 2)")
    assert "the same command goes on" not in capsys.readouterr().out
    assert piece() == done


def test_the_time_to_an_accuracy_is_that_of_the_training() -> None:
    lines = [
        {"step": 10, "images_per_second": 100.0},
        {"step": 20, "images_per_second": 50.0, "linear/accuracy": 0.6, "linear/seconds": 99.0},
        {"step": 30, "images_per_second": 50.0, "linear/accuracy": 0.7},
    ]
    assert [reproduce._first_time(lines, 10, accuracy) for accuracy in (0.596, 0.689, 0.8)] == ["3", "5", "-"]


def test_every_recipe_of_a_plan_comes_with_mrp() -> None:
    for rows in reproduce.PLANS.values():
        for row in rows:
            assert reproduce.load(row.recipe).data.test is not None
            assert row.tuning is None or reproduce.load(row.tuning).objective.name == "classify"
