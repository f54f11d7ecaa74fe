"""The examples run as their head comments say, and do what they show."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import pytest
import torch

import mrp
from mrp.build import build_step
from mrp.cli import main
from mrp.processes.unused import unused_parameters
from mrp.run import load

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SHORT = ["length=4 steps", "optim.warmup=0 steps", "batch=32", "track.every=1", "backbone.depth=1"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_plain_loop_learns_and_its_backbone_is_timms(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["plain_loop.py", "60"])
    result = runpy.run_path(str(EXAMPLES / "plain_loop.py"))
    output = result["output"]
    assert output.loss < 0.8 * output.metrics["target_variance"]
    assert "features of 1797 images: (1797, 96)\n<All keys matched successfully>" in capsys.readouterr().out


def test_a_method_of_ones_own_trains_and_is_loaded_again(place: Path) -> None:
    words = ["demo", "objective.name=./examples/own_method.py", "objective.hidden=16", *SHORT]
    main(["pretrain", *words, "--folder", "run"])
    model = mrp.load("run")
    assert model.step == 4
    assert model.features(torch.rand(3, 1, 8, 8)).shape == (3, 96)
    assert model.objective.head[0].out_features == 16


def test_a_method_of_ones_own_keeps_the_rules_of_all_methods(place: Path) -> None:
    step = build_step(load("demo", ["objective={name: ./examples/own_method.py}"]))
    assert isinstance(step.objective, mrp.Objective)
    assert unused_parameters(step, 1, (8, 8)) == []
    images, keys = torch.rand(16, 1, 8, 8), torch.arange(16) * 977
    output = step(mrp.Batch(images, keys))
    turned = step(mrp.Batch(images.flip(0), keys.flip(0)))
    assert torch.allclose(output.per_sample["loss"].flip(0), turned.per_sample["loss"], atol=1e-6)
    compiled = torch.compile(step, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(mrp.Batch(images, keys)).loss, output.loss)


def test_rotated_images_are_what_torch_turns_them_to(place: Path) -> None:
    rotated = runpy.run_path("examples/own_method.py")["rotated"]
    images = torch.rand(4, 2, 5, 5)
    for number, image in enumerate(rotated(images, torch.arange(4))):
        assert torch.equal(image, torch.rot90(images[number], number, (1, 2)))


def test_data_of_ones_own_are_trained_on(place: Path) -> None:
    words = ["data.train={name: ./examples/own_data.py, count: 64}", "data.test=null", "data.channels=3"]
    words += ["data.mean=[0.5, 0.5, 0.5]", "data.std=[0.3, 0.3, 0.3]"]
    main(["pretrain", "demo", *words, *SHORT, "--folder", "run"])
    run = mrp.load("run").run
    assert (run.data.channels, run.data.train.count) == (3, 64)
    Source, Config = (runpy.run_path("examples/own_data.py")[name] for name in ("Source", "Config"))
    train, test = (Source(Config(count=64), split, None) for split in ("train", "test"))
    assert train.identity != test.identity
    pixels, label = train.read(5)
    assert (pixels.shape, pixels.dtype, label) == ((16, 16, 3), "uint8", train.labels[5])
    assert (pixels == train.read(5)[0]).all()
    assert (pixels != test.read(5)[0]).any()
