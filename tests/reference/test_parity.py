"""Every method against the official implementations' numbers, through the tool that a user runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tools import parity

CASES = sorted(path.parent for path in Path(__file__).parent.glob("cases/*/case.json"))
# What a case must at least have compared: a renamed tensor would otherwise go unnoticed.
ROWS = {
    "capi": 9,
    "crossmae": 21, "crossmae_selfattn": 22, "data2vec": 9, "data2vec2": 12, "data2vec_relative": 9, "ijepa": 23,
    "lars": 12, "mae_normpix": 13, "mae_rawpix": 13, "maskfeat": 16, "schedule": 1, "sigreg": 9, "simmim": 8,
    "simmim_relative": 8, "umae": 10, "vit_cls": 46, "vit_meanpool": 46,
}  # fmt: skip


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: folder.name)
def test_it_agrees(folder: Path) -> None:
    rows = parity.compare(folder)
    beyond = [row for row in rows if not row.agrees]
    assert not beyond
    assert sum(not row.name.startswith("init/") for row in rows) == ROWS[folder.name]


def test_every_known_case_is_here() -> None:
    assert [folder.name for folder in CASES] == sorted(ROWS)


@pytest.fixture
def umae(tmp_path: Path) -> Path:
    folder = tmp_path / "umae"
    shutil.copytree(Path(__file__).parent / "cases" / "umae", folder)
    return folder


def test_a_deviation_is_named_and_told_by_the_exit_code(umae: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert parity.main([str(umae)]) == 0
    tensors = load_file(umae / "tensors.safetensors")
    tensors["uniformity"] *= 1 + 3e-5
    save_file(tensors, umae / "tensors.safetensors")
    capsys.readouterr()
    assert parity.main([str(umae)]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "EXCEEDS" in line]
    assert line.split()[0] == "uniformity"


def test_no_expected_value_is_needed_to_compute(umae: Path) -> None:
    tensors = load_file(umae / "tensors.safetensors")
    kept = {"images", "noise", "free_features"}
    save_file(
        {k: v if k in kept else torch.full_like(v, torch.nan) for k, v in tensors.items()}, umae / "tensors.safetensors"
    )
    rows = parity.compare(umae)
    assert len(rows) == ROWS["umae"]
    assert not any(row.agrees for row in rows)  # nothing agrees with NaN, and nothing failed before


def test_an_unknown_case_is_one_line(umae: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (umae / "case.json").write_text(json.dumps({"arch": {}}))
    assert parity.main([str(umae), str(umae.parent)]) == 1
    printed = capsys.readouterr().out
    assert "umae: is no case that is known here" in printed
    assert "skipped" in printed


def test_encoded_tokens_may_come_in_any_order(tmp_path: Path) -> None:
    folder = tmp_path / "data2vec2"
    shutil.copytree(Path(__file__).parent / "cases" / "data2vec2", folder)
    tensors = load_file(folder / "tensors.safetensors")
    encoded = tensors["encoded"]
    tensors["encoded"] = torch.stack([rows[torch.randperm(len(rows))] for rows in encoded])
    save_file(tensors, folder / "tensors.safetensors")
    assert parity.main([str(folder)]) == 0
    tensors["encoded"][1, 2] *= 1.01
    save_file(tensors, folder / "tensors.safetensors")
    assert [row.name for row in parity.compare(folder) if not row.agrees] == ["encoded"]
