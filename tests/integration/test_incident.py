"""A step that is not finite is put on record, repeated alone, located, and dealt with as the policy says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mrp.checkpoint import checkpoints
from mrp.cli import main

METHOD = '''
"""A method with faults to order."""
from typing import Literal
import torch
from torch import nn
from mrp.batch import Output
from mrp.config import Node
from mrp.models.vit import embed, encode, pool
from mrp.methodkit import Objective as Base

class Config(Node):
    name: Literal["faulty"] = "faulty"
    data: bool = False  # images are divided by their contrast, of which one has none
    weight: int = -1  # at this step a weight is lost
    gradient: tuple[int, ...] = ()  # at these steps the root of nothing is taken, whose slope is infinite

class Contrast(nn.Module):
    def forward(self, images):
        return images / images.std((1, 2, 3), keepdim=True)

class Root(nn.Module):
    def forward(self, x, bad):
        return x + torch.where(bad, x - x.detach(), torch.ones_like(x)).sqrt() * bad

class Objective(Base):
    def __init__(self, config, backbone):
        super().__init__(backbone)
        self.config, self.contrast, self.root = config, Contrast(), Root()

    def forward(self, batch):
        images = self.contrast(batch.images) if self.config.data else batch.images
        latent = pool(self.backbone, encode(self.backbone, embed(self.backbone, images)).tokens)
        bad = sum((batch.step == step for step in self.config.gradient), torch.tensor(False))
        return Output(loss=self.root(latent.float(), bad).square().mean())

    def after_step(self, step, updated):
        super().after_step(step, updated)
        if step + 1 == self.config.weight:
            with torch.no_grad():
                self.backbone.blocks[1].mlp.fc1.weight[3, 5] = float("nan")
'''
BLANK = 77


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A method, and a folder of images of which one is of a single grey."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "faulty.py").write_text(METHOD)
    generator = np.random.default_rng(0)
    for number in range(128):
        pixels = generator.integers(0, 255, (8, 8), np.uint8)
        path = folder / "images" / f"class{number % 2}" / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full_like(pixels, 128) if number == BLANK else pixels).save(path)
    return folder


def words(place: Path, folder: Path, fault: str, *more: str) -> list[str]:
    return [
        "pretrain", "demo", f"objective={{name: {place / 'faulty.py'}, {fault}}}", f"data.train={place / 'images'}",
        "data.test=null", "data.augment={name: resize}", "length=12 steps", "optim.warmup=0 steps", "batch=32",
        "backbone.depth=2", "backbone.width=32", "track.every=1", "checkpoint.every=4 steps", "machine.micro_batch=16",
        *more, "--folder", str(folder),
    ]  # fmt: skip


def stopped(command: list[str]) -> int | str | None:
    with pytest.raises(SystemExit) as caught:
        main(command)
    return caught.value.code


def replayed(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, object], list[str]]:
    (incident,) = (folder / "incidents").iterdir()
    capsys.readouterr()
    main(["replay", str(incident)])
    return json.loads((incident / "incident.json").read_text()), capsys.readouterr().out.splitlines()


def test_bad_data_is_traced_to_its_module_and_its_sample(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stopped(words(place, tmp_path / "run", "data: true")) == 3
    assert "mrp replay" in capsys.readouterr().err
    incident, said = replayed(tmp_path / "run", capsys)
    assert len(incident["batch"]["samples"]) == len(incident["batch"]["keys"][0]) == 32  # type: ignore[index]
    (suspect,) = incident["suspects"]  # type: ignore[misc]
    assert suspect["rank"] == 0
    assert len(suspect["names"]) == 16
    assert any(name.endswith(f"{BLANK:03}.png") for name in suspect["names"])
    assert said[1] == f"again not finite: micro-batch {suspect['micro_batch']} of process 0"
    assert said[2].startswith(
        "the first module whose output is not finite is objective.contrast (Contrast); its input is finite"
    )
    assert said[3].startswith("1 of its 16 samples: ")
    assert f"{BLANK:03}.png (sample " in said[3]


def test_a_lost_weight_is_named(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stopped(words(place, tmp_path / "run", "weight: 6")) == 3
    incident, said = replayed(tmp_path / "run", capsys)
    assert incident["step"] == 7
    assert (
        "before the step, the parameter objective.backbone.blocks.1.mlp.fc1.weight (1 of 4096 numbers) is not"
        in said[1]
    )
    assert said[2] == "again not finite: micro-batch 0 of process 0"
    assert len(said) == 3


def test_a_bad_gradient_is_named_though_the_loss_is_finite(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stopped(words(place, tmp_path / "run", "gradient: [6]")) == 3
    incident, said = replayed(tmp_path / "run", capsys)
    assert incident["suspects"] == []
    assert (
        "the gradient at the output of objective.root (Root); the first that is not is the gradient at the" in said[2]
    )
    assert "objective.backbone" in said[2]


def test_a_fault_that_does_not_come_again_is_said_to_be_gone(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stopped(words(place, tmp_path / "run", "gradient: [6]")) == 3
    (incident,) = (tmp_path / "run" / "incidents").iterdir()
    config = incident / "config.yaml"
    config.write_text(config.read_text().replace("gradient: [6]", "gradient: []"))
    capsys.readouterr()
    assert stopped(["replay", str(incident)]) == 1
    said = capsys.readouterr().out
    assert "the loss and every gradient are finite this time" in said
    assert "the training data are others now" not in said
    evidence = incident / "incident.json"
    evidence.write_text(json.dumps(json.loads(evidence.read_text()) | {"data": "others"}))
    assert stopped(["replay", str(incident)]) == 1
    assert "the training data are others now (added, removed or renamed): other samples" in capsys.readouterr().out
    assert stopped(["replay", str(tmp_path)]) == 2
    assert "is not the folder of an incident" in capsys.readouterr().err


def tensors(folder: Path, step: int) -> dict[str, torch.Tensor]:
    found = {one.step: one for one in checkpoints.listed(folder)}[step]
    return found.weights() | found.optimizer()


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


KEEP = ["checkpoint.keep=9", "guard.limit=2"]


def test_skip_leaves_out_the_update_and_nothing_else(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    main(words(place, run, "gradient: [6]", "guard.policy=skip", *KEEP))
    said = capsys.readouterr().out
    assert "warning: the loss or the gradient of step 7 is not finite: its update is left out (number 1 of 2)" in said
    (incident,) = (run / "incidents").iterdir()
    assert equal(tensors(run, 7), tensors(incident, 6)), "the state before the step and after it are the same"
    found = checkpoints.newest(run)
    assert found is not None
    assert found.step == 12
    assert found.state()["guard"] == {"left_out": [(7, 7)]}
    assert not equal(tensors(run, 7), tensors(run, 8))

    # One that stopped there and goes on with the other policy ends with the same bits.
    late = tmp_path / "late"
    assert stopped(words(place, late, "gradient: [6]", *KEEP)) == 3
    main(words(place, late, "gradient: [6]", "guard.policy=skip", "machine.workers=1", *KEEP))
    assert equal(tensors(late, 12), tensors(run, 12))


def test_no_more_than_the_limit_is_left_out_also_over_a_resume(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = words(place, tmp_path / "run", "gradient: [2, 5, 9]", "guard.policy=skip", *KEEP)
    assert stopped(command) == 3
    said = capsys.readouterr().err
    assert "step 10 is not finite (guard.limit: 2 before it)" in said
    assert "or go on here with a higher guard.limit" in said
    found = checkpoints.newest(tmp_path / "run")
    assert found is not None
    assert found.step == 9
    assert found.state()["guard"] == {"left_out": [(3, 3), (6, 6)]}
    assert stopped(command) == 3
    assert "step 10 is not finite (guard.limit: 2 before it)" in capsys.readouterr().err


def test_rollback_takes_the_weights_before_and_steps_over_the_data(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    main(words(place, run, "gradient: [6]", "guard.policy=rollback", *KEEP))
    said = capsys.readouterr().out
    assert (
        "the weights are those of checkpoint 4 again, and the updates and the data of steps 5 to 7 are left out" in said
    )
    assert equal(tensors(run, 7), tensors(run, 4))
    found = checkpoints.newest(run)
    assert found is not None
    assert found.step == 12
    assert found.state()["guard"] == {"left_out": [(5, 7)]}
    assert found.state()["data"]["consumed"] == 12 * 32


def test_rollback_to_a_checkpoint_of_another_optimizer_leaves_its_memory_out(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert stopped(words(place, run, "gradient: [4]", "optim={name: lars, lr: 0.1}")) == 3
    other = ["optim={name: adamw, lr: 1e-3}", "resume.allow=[optim]", "guard.policy=rollback"]
    main(words(place, run, "gradient: [4]", *other, *KEEP))
    found = checkpoints.newest(run)
    assert found is not None
    assert found.step == 12
    assert {name.rpartition("/")[2] for name in found.optimizer()} == {"step", "exp_avg", "exp_avg_sq"}


def test_what_is_due_after_a_step_that_is_left_out_is_done_also_if_it_is_the_last(place: Path, tmp_path: Path) -> None:
    diagnose = "diagnose={every: 4 steps, images: 32}"
    main(words(place, tmp_path / "run", "gradient: [3, 11]", "guard.policy=skip", diagnose, *KEEP))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "features/rank_me" in line] == [4, 8, 12]


def test_without_a_checkpoint_to_go_back_to_it_stops(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stopped(words(place, tmp_path / "run", "gradient: [2]", "guard.policy=rollback")) == 3
    assert "(guard.policy: there is no checkpoint yet to roll back to)" in capsys.readouterr().err
    found = checkpoints.newest(tmp_path / "run")
    assert found is not None
    assert found.step == 2
