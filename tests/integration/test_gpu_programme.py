"""The programme for the first minutes on a GPU, rehearsed tiny and on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.waiting import ended, until

TOOL = Path(__file__).parents[2] / "tools" / "gpu.py"
PARTS = {
    "agree", "graphs", "kernels", "syncs", "faults", "resume", "warm", "fast", "faster", "more", "whole", "decoding",
    "certify", "learn",
}  # fmt: skip
ROW = '{"what": "an older result", "value": "x", "passed": %s, "numbers": {}}\n'
WRONG, RIGHT = ROW % "false", ROW % "true"


def programme(out: Path, *words: str) -> tuple[int, str]:
    environment = os.environ | {"PYTHONPATH": str(TOOL.parents[1]), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(TOOL), "--rehearse", "--seconds", "7200", "--out", str(out), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_every_part_runs_and_all_is_right_and_what_was_wrong_before_is_tried_again(tmp_path: Path) -> None:
    (tmp_path / "kernels.jsonl").write_text(RIGHT.replace("older", "early") + WRONG)
    code, said = programme(tmp_path)
    assert code == 0, said
    results = {path.stem: [*map(json.loads, path.read_text().splitlines())] for path in tmp_path.glob("*.jsonl")}
    assert set(results) == PARTS
    assert all(rows[-1]["done"] and len(rows) > 1 for rows in results.values())
    table = (tmp_path / "table.md").read_text()
    assert table.count("| right |") >= 14
    assert "wrong" not in table
    assert "| kernels | an early result | x | right |" in table
    assert "| kernels | an older result |" not in table
    assert "| kernels | mae: attention |" in table

    with tarfile.open(tmp_path / "gpu.tar.gz") as archive:
        assert {"table.md", "agree.jsonl", "agree.log", "work/run.log"} <= set(archive.getnames())
        assert archive.extractfile("table.md").read().decode() == table  # type: ignore[union-attr]


@pytest.mark.slow
def test_what_was_found_is_kept_and_not_found_once_more(tmp_path: Path) -> None:
    again = [line.replace("an older result", "simmim: older") for line in (RIGHT, WRONG)]  # of one method, so both go
    done = dict.fromkeys(PARTS - {"graphs"}, f'{RIGHT}{{"done": true, "seconds": 1}}\n')
    half = {"graphs": RIGHT.replace("an older result", "mae: graphs") + again[0] + again[1]}
    for name, lines in {**done, **half}.items():
        (tmp_path / f"{name}.jsonl").write_text(lines)
    code, said = programme(tmp_path)
    assert code == 0, said
    assert {name: (tmp_path / f"{name}.jsonl").read_text() for name in done} == done
    table = (tmp_path / "table.md").read_text()
    assert table.count("| graphs | mae: graphs | x | right |") == 1
    assert "simmim: older" not in table


NESTED = """
import os, pathlib, sys, time
from gpu_setup import CONTEXT, Process

CONTEXT.set_forkserver_preload(["gpu_setup"])
folder = pathlib.Path(sys.argv[1])

def inner():
    (folder / "new").write_text(str(os.getpid()))
    (folder / "new").rename(folder / "inner")
    time.sleep(600)

def outer():
    Process(folder / "inner.log", inner).wait(600)

if __name__ == "__main__":
    process = Process(folder / "outer.log", outer)
    while process.alive() and not (folder / "inner").exists():
        time.sleep(0.01)
    process.wait(0)
"""


def test_a_part_that_is_ended_takes_with_it_what_it_has_started(tmp_path: Path) -> None:
    """Or that would go on beside what is measured next."""
    (tmp_path / "nested.py").write_text(NESTED)
    environment = os.environ | {"PYTHONPATH": f"{TOOL.parent}:{TOOL.parents[1]}"}
    subprocess.run([sys.executable, str(tmp_path / "nested.py"), str(tmp_path)], env=environment, check=True)
    inner = int((tmp_path / "inner").read_text())
    until(lambda: ended(inner))


def test_what_is_wrong_decides_the_exit_code(tmp_path: Path) -> None:
    (tmp_path / "kernels.jsonl").write_text(WRONG + '{"done": true, "seconds": 1}\n')
    code, said = programme(tmp_path, "--parts", "kernels")
    assert code == 1
    assert "| kernels | an older result | x | **wrong** |" in said


def test_a_call_ends_with_its_time(tmp_path: Path) -> None:
    code, said = programme(tmp_path, "--seconds", "5")
    assert code == 0
    assert f"; the same command goes on: python {TOOL} --rehearse --seconds 7200 --out {tmp_path} --seconds 5" in said
    assert set(said.split("not done: ")[1].split(";")[0].split(", ")) == PARTS
    assert not list(tmp_path.glob("*.jsonl"))
