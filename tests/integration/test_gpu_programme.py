"""The programme for the first minutes on a GPU, rehearsed tiny and on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).parents[2] / "tools" / "gpu.py"
PARTS = {
    "agree", "graphs", "kernels", "syncs", "faults", "resume", "fast", "faster", "more", "whole", "decoding",
    "certify", "learn",
}  # fmt: skip
WRONG = '{"what": "an older result", "value": "x", "passed": false, "numbers": {}}\n'


def programme(out: Path, *words: str) -> tuple[int, str]:
    environment = os.environ | {"PYTHONPATH": str(TOOL.parents[1])}
    command = [sys.executable, str(TOOL), "--rehearse", "--seconds", "7200", "--out", str(out), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    return done.returncode, done.stdout + done.stderr


def test_every_part_runs_and_all_is_right(tmp_path: Path) -> None:
    code, said = programme(tmp_path)
    assert code == 0, said
    results = {path.stem: [*map(json.loads, path.read_text().splitlines())] for path in tmp_path.glob("*.jsonl")}
    assert set(results) == PARTS
    assert all(rows[-1]["done"] and len(rows) > 1 for rows in results.values())
    table = (tmp_path / "table.md").read_text()
    assert table.count("| right |") >= 13
    assert "wrong" not in table

    before = {path: path.read_bytes() for path in tmp_path.glob("*.jsonl")}
    with (tmp_path / "kernels.jsonl").open("w") as file:
        file.write(WRONG)  # not done: it is run once more, and the others are not
    assert programme(tmp_path)[0] == 0
    after = {path: path.read_bytes() for path in tmp_path.glob("*.jsonl")}
    assert [path.stem for path in after if after[path] != before[path]] in ([], ["kernels"])
    assert "an older result" not in (tmp_path / "table.md").read_text()


def test_what_is_wrong_decides_the_exit_code(tmp_path: Path) -> None:
    (tmp_path / "kernels.jsonl").write_text(WRONG + '{"done": true, "seconds": 1}\n')
    code, said = programme(tmp_path, "--parts", "kernels")
    assert code == 1
    assert "| kernels | an older result | x | **wrong** |" in said


def test_a_call_ends_with_its_time(tmp_path: Path) -> None:
    code, said = programme(tmp_path, "--seconds", "5")
    assert code == 0
    assert said.count("not begun, for the 5 s are over; the same command goes on") == len(PARTS)
    assert not list(tmp_path.glob("*.jsonl"))
