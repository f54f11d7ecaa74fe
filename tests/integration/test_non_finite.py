"""A loss that is not finite ends the run with the weights before it, on every process, and loses nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from mrp.checkpoint import checkpoints
from mrp.cli import main
from tests.forked import launch

BAD_STEP = 5
METHOD = '''
"""Fails at one step, on the last process only."""
import os
from typing import Literal
import torch
from torch import nn
from mrp.batch import Output
from mrp.config import Node
from mrp.models.vit import embed, encode, pool
from mrp.methodkit import Objective as Base

class Config(Node):
    name: Literal["failing"] = "failing"
    bad_step: int = -1

class Objective(Base):
    def __init__(self, config, backbone):
        super().__init__(backbone)
        self.config = config
        self.last = os.environ.get("RANK", "0") == str(int(os.environ.get("WORLD_SIZE", "1")) - 1)

    def forward(self, batch):
        latent = pool(self.backbone, encode(self.backbone, embed(self.backbone, batch.images)).tokens)
        bad = self.last & (batch.step == self.config.bad_step)
        return Output(loss=torch.where(bad, float("nan"), 1.0) * latent.float()[:, 0].mean())
'''
RECIPE = [
    "length=8 steps",
    "optim.warmup=0 steps",
    "batch=32",
    "backbone.depth=1",
    "backbone.width=32",
    "track.every=1",
]


def words(method: Path, bad_step: int, folder: Path, steps: int) -> list[str]:
    section = f"objective={{name: {method}, bad_step: {bad_step}}}"
    return ["pretrain", "demo", section, *RECIPE, f"checkpoint.every={steps} steps", "--folder", str(folder)]


@pytest.mark.parametrize("processes", [1, 2])
def test_the_run_stops_with_the_weights_before_it(
    processes: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    method = tmp_path / "failing.py"
    method.write_text(METHOD)
    bad = words(method, BAD_STEP, tmp_path / "bad", 3)
    if processes == 1:
        with pytest.raises(SystemExit) as stopped:
            main(bad)
        code = stopped.value.code
    else:
        code = launch(2, bad)
    assert code == 3
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("mrp: stopped")]
    assert f"step {BAD_STEP + 1} is not finite" in line
    found = checkpoints.newest(tmp_path / "bad")
    assert found is not None
    assert found.step == BAD_STEP
    if processes == 1:
        main(words(method, -1, tmp_path / "good", BAD_STEP))
        good = checkpoints.Checkpoint(BAD_STEP, tmp_path / "good" / "checkpoints" / f"step-{BAD_STEP:08d}")
        for ours, theirs in ((found.weights(), good.weights()), (found.optimizer(), good.optimizer())):
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert os.listdir(tmp_path / "bad" / "checkpoints")
