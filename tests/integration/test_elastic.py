"""One run on 1, 2, 4 and 1 processes, changed in the midst of epochs because one process was asked to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mrp.cli import main
from tests.forked import launch

STEPS = 20
METHOD = '''
"""MAE that writes down what it sees; the last process is asked to end where MRP_EVENT says."""
import gc, json, os, signal, time
from typing import Literal
from mrp.objectives import mae
from mrp.processes.signals import Signals

class Config(mae.Config):
    name: Literal["seeing"] = "seeing"

class Objective(mae.Objective):
    def forward(self, batch, mask=None):
        if len(batch.keys) == 2:  # the run only looks for parameters without a gradient
            return super().forward(batch, mask)
        mask = self.mask(batch.keys)
        rank, last = os.environ.get("RANK", "0"), int(os.environ.get("WORLD_SIZE", "1")) - 1
        with open(os.environ["MRP_SEEN"], "a") as file:
            rows = zip(batch.keys.tolist(), mask.int().tolist())
            file.write("".join(json.dumps([int(batch.step), *row]) + "\\n" for row in rows))
        if rank == str(last) and os.environ.get("MRP_EVENT") == str(int(batch.step)):
            os.environ["MRP_EVENT"] = ""
            os.kill(os.getpid(), signal.SIGTERM)
            while not any(type(one) is Signals and one.asked for one in gc.get_objects()):
                time.sleep(0.01)
        return super().forward(batch, mask)
'''


def words(method: Path, folder: Path) -> list[str]:
    return [
        "pretrain", "demo", "machine.micro_batch=64",
        f"objective={{name: {method}, mask_ratio: 0.75, decoder: {{width: 16, depth: 1, heads: 2}}}}",
        f"length={STEPS} steps", "optim.warmup=2 steps", "batch=256", "backbone.depth=1", "backbone.width=32",
        "track.every=1", "data.augment={name: crop, scale: [0.5, 1]}", "--folder", str(folder),
    ]  # fmt: skip


def curve(folder: Path) -> list[tuple[int, float]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"]) for line in lines]


def seen(path: Path) -> list[list[Any]]:
    return sorted(json.loads(line) for line in path.read_text().splitlines())


@pytest.mark.slow
def test_the_number_of_processes_may_change_at_any_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = tmp_path / "seeing.py"
    method.write_text(METHOD)
    monkeypatch.setenv("MRP_SEEN", str(tmp_path / "alone.jsonl"))
    main(words(method, tmp_path / "alone"))
    monkeypatch.setenv("MRP_SEEN", str(tmp_path / "several.jsonl"))
    several = words(method, tmp_path / "several")
    monkeypatch.setenv("MRP_EVENT", "3")
    with pytest.raises(SystemExit) as ended:
        main(several)
    assert ended.value.code == 0
    for processes, event in ((2, "8"), (4, "12")):
        monkeypatch.setenv("MRP_EVENT", event)
        assert launch(processes, several) == 0
    monkeypatch.delenv("MRP_EVENT")
    main(several)
    assert seen(tmp_path / "several.jsonl") == seen(tmp_path / "alone.jsonl")
    ours, theirs = curve(tmp_path / "several"), curve(tmp_path / "alone")
    assert [step for step, _ in ours] == list(range(1, STEPS + 1))
    deviation = float(np.max(np.abs(np.array(ours)[:, 1] / np.array(theirs)[:, 1] - 1)))
    print(f"losses agree to {deviation:.1e}")
    assert deviation < 1e-5
    starts = json.loads((tmp_path / "several" / "environment.json").read_text())["starts"]
    assert [(start["processes"], start["step"]) for start in starts] == [(1, 0), (2, 4), (4, 9), (1, 13)]
