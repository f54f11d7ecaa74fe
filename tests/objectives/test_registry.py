"""A new training method is one file: found by its path, trained, resumed, and written into the run's configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from mrp.checkpoint import checkpoints
from mrp.cli import main
from mrp.config import ConfigError
from mrp.objectives import OBJECTIVES
from mrp.run import load

METHOD = '''
"""Predict the mean colour of the image from its class token."""
from typing import Literal
from pydantic import Field
from torch import nn
from mrp.batch import Output
from mrp.config import Node
from mrp.models.vit import embed, encode, pool
from mrp.methodkit import Objective as Base

class Config(Node):
    name: Literal["mean"] = "mean"
    weight: float = Field(1.0, gt=0)

class Objective(Base):
    def __init__(self, config, backbone):
        super().__init__(backbone)
        self.config = config
        self.head = nn.Linear(backbone.embed_dim, 1)

    def forward(self, batch):
        latent = pool(self.backbone, encode(self.backbone, embed(self.backbone, batch.images)).tokens)
        loss = self.config.weight * (self.head(latent).float()[:, 0] - batch.images.mean((1, 2, 3))).square().mean()
        return Output(loss=loss, metrics={"loss": loss.detach()})
'''


@pytest.fixture
def method(tmp_path: Path) -> Path:
    path = tmp_path / "mean.py"
    path.write_text(METHOD)
    return path


def words(path: Path, steps: int) -> list[str]:
    section = f"objective={{name: {path}, weight: 2}}"
    return ["demo", section, "length=4 steps", "optim.warmup=0 steps", f"checkpoint.every={steps} steps", "batch=32"]


def test_one_file_is_enough_to_train_and_go_on(method: Path, tmp_path: Path) -> None:
    main(["pretrain", *words(method, 4), "--folder", str(tmp_path / "run")])
    found = checkpoints.newest(tmp_path / "run")
    assert found is not None
    assert found.step == 4
    assert "objective.head.weight" in found.weights()
    again = load(tmp_path / "run" / "config.yaml")
    assert again.identity("data") == load(words(method, 4)[0], words(method, 4)[1:]).identity("data")


def test_a_run_knows_its_method_by_content_and_not_by_place(method: Path, tmp_path: Path) -> None:
    before = load(words(method, 4)[0], words(method, 4)[1:]).identity("data")
    moved = tmp_path / "elsewhere" / "mean.py"
    moved.parent.mkdir()
    moved.write_text(METHOD)
    assert load(words(moved, 4)[0], words(moved, 4)[1:]).identity("data") == before
    moved.write_text(METHOD.replace("mean((1, 2, 3))", "amax((1, 2, 3))"))
    assert load(words(moved, 4)[0], words(moved, 4)[1:]).identity("data") != before


def test_its_options_are_checked_like_any_others(method: Path) -> None:
    with pytest.raises(ConfigError, match=r"objective.weight: -1 was given; allowed: greater than 0"):
        load("demo", [f"objective={{name: {method}, weight: -1}}"])
    with pytest.raises(ConfigError, match=r"objective.wieght: unknown key; did you mean 'weight'"):
        load("demo", [f"objective={{name: {method}, wieght: 1}}"])


def test_the_folder_is_the_registry() -> None:
    assert "mae" in OBJECTIVES.names()
    for name in OBJECTIVES.names():
        module = OBJECTIVES.find(name)
        assert module.Config.model_fields["name"].default == name
        assert module.Objective.__doc__
    with pytest.raises(ConfigError, match="unknown objective 'mea'; did you mean 'mae'"):
        OBJECTIVES.find("mea")
