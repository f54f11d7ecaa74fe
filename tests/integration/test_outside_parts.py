"""Parts from one file outside the package, without another edit: a tracker, an optimizer, a verb."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mrp
from mrp.config import ConfigError
from mrp.run import load
from tests.integration.test_bad_input import ROOT, SMALL

TRACKER = """
import json
from pathlib import Path
from typing import Any
from mrp.trackers import Section
from beside import SUFFIX

class Config(Section):
    name: str = "mine"
    title: str = "numbers"

class Tracker:
    def __init__(self, config: Config, folder: Path, resolved: dict[str, Any], resumed_at: int) -> None:
        self.path = folder / (config.title + SUFFIX)

    def log(self, step: int, values: dict[str, float]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "loss": values["loss"]}) + "\\n")

    def close(self) -> None:
        self.path.write_text(self.path.read_text() + "closed")
"""
OPTIMIZER = """
import torch
from pydantic import Field
from mrp.optim.config import Section

class Config(Section):
    name: str = "mine"
    scale: float = Field(1.0, gt=0)

class Optimizer(torch.optim.SGD):
    state_names = ()

    def __init__(self, groups, config):
        super().__init__(groups, lr=config.lr)
        self.scale, self.found_inf = config.scale, None

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    change = group["lr"] * self.scale * parameter.grad
                    held = self.found_inf is not None and self.found_inf > 0
                    parameter.copy_(torch.where(torch.as_tensor(held), parameter, parameter - change))
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_tracker(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(TRACKER)
    (tmp_path / "beside.py").write_text("SUFFIX = '.txt'\n")
    run = mrp.pretrain(*SMALL, "track.name=./mine.py", "track.title=shown", folder="run", track={"every": 2})
    *lines, end = (run / "shown.txt").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4, 6]
    assert [json.loads(line)["loss"] for line in lines] == losses(run)
    assert end == "closed"
    for name in ("mine.py", "beside.py"):
        (tmp_path / name).unlink()
    assert load(run / "config.yaml").track.name == str(run.absolute() / "code/mine.py")
    assert mrp.load(run).step == 6


def test_an_optimizer(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OPTIMIZER)
    words = [word for word in SMALL if not word.startswith("optim")]
    own = {"name": "./mine.py", "lr": 0.01, "weight_decay": 0}
    slow = mrp.pretrain(*words, folder="slow", optim=own)
    fast = mrp.pretrain(*words, folder="fast", optim=own | {"scale": 5})
    assert losses(slow)[0] == losses(fast)[0]
    assert losses(fast)[-1] < losses(slow)[-1] < losses(slow)[0]
    (tmp_path / "mine.py").write_text(OPTIMIZER.replace("def step", "# the same code\n    def step"))
    mrp.pretrain(*words, folder="slow", optim=own)
    (tmp_path / "mine.py").write_text(OPTIMIZER.replace("- change", "- 2 * change"))
    with pytest.raises(ConfigError, match=r"this run was made with optim\.content = "):
        mrp.pretrain(*words, folder="slow", optim=own)


def test_an_optimizer_that_ignores_the_guard_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OPTIMIZER.replace("self.found_inf > 0", "False"))
    with pytest.raises(ConfigError, match=r"mine\.py changes the weights although its attribute found_inf is set"):
        mrp.pretrain(*SMALL, "optim.name=./mine.py", "optim.lr=0.1", folder="run")


def test_an_optimizer_whose_state_a_resume_would_drop_is_refused(tmp_path: Path) -> None:
    named = OPTIMIZER.replace("state_names = ()", "state_names = ('step',)")
    counted = named.replace("change = group", "self.state[parameter]['seen'] = 1; change = group")
    (tmp_path / "mine.py").write_text(counted)
    with pytest.raises(
        ConfigError, match=r"mine\.py keeps seen per weight, but its state_names are step: .*; name all of it there"
    ):
        mrp.pretrain(*SMALL, "optim.name=./mine.py", "optim.lr=0.1", folder="run")


def test_a_verb_of_an_installed_package(tmp_path: Path) -> None:
    info = tmp_path / "hello-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hello\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mrp.verbs]\nhello = hello\n")
    (tmp_path / "hello.py").write_text(
        "HELP, EXAMPLE = 'greet', 'mrp hello --name you'\n"
        "def words(parser): parser.add_argument('--name')\n"
        "def run(options): print('hello', options.name)\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"}

    def output(*words: str) -> str:
        command = [sys.executable, "-m", "mrp", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    assert output("hello", "--name", "me") == "hello me\n"
    assert "mrp hello --name you" in output("--help")
