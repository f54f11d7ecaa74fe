"""Diagnostics while a run goes on: in its metrics, alike on any number of processes, and an alarm that means it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mrp import api
from mrp.cli import main
from mrp.data.open import open_source
from mrp.data.subset import fixed_sample
from mrp.evaluate import geometry
from mrp.evaluate.config import Diagnose
from mrp.evaluate.contract import never
from mrp.evaluators.diagnose import Evaluator
from mrp.processes.join import join
from tests.evaluators.settings import setting
from tests.forked import launch
from tests.trained import pretrained

RECIPE = [
    "demo", "length=60 steps", "optim.warmup=4 steps", "optim.lr=3e-3", "batch=64", "backbone.depth=2",
    "backbone.width=32",
    "objective.decoder.depth=1", "diagnose.every=16 steps", "diagnose.images=128", "track.every=20",
]  # fmt: skip

# A method that has nothing to learn but a constant: its target is the same for every image.
COLLAPSING = '''
"""Learn to say the same of every image."""
from typing import Literal
from torch import nn
from mrp.batch import Output
from mrp.config import Node
from mrp.models.vit import embed, encode, pool
from mrp.methodkit import Objective as Base

class Config(Node):
    name: Literal["constant"] = "constant"

class Objective(Base):
    def __init__(self, config, backbone):
        super().__init__(backbone)

    def forward(self, batch):
        latent = pool(self.backbone, encode(self.backbone, embed(self.backbone, batch.images)).tokens)
        loss = (latent.float() - latent.float().mean(0).detach()).square().mean()
        return Output(loss=loss, metrics={"loss": loss.detach()}, features=latent.detach())
'''


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained(tmp_path_factory.mktemp("healthy"), *RECIPE)


def of_the_features(folder: Path) -> dict[str, float]:
    """Returns what the last line of the metrics says of the features, but not how long it took."""
    return {k: value for k, value in lines(folder)[-1].items() if k.startswith("features/") and k != "features/seconds"}


def test_the_numbers_stand_in_the_metrics_and_no_alarm_is_raised(healthy: Path) -> None:
    found = {line["step"]: line for line in lines(healthy)}
    assert list(found) == [16, 20, 32, 40, 48, 60]
    examined = [step for step, line in found.items() if "features/rank_me" in line]
    assert examined == [16, 32, 48, 60]
    assert 1 < found[60]["features/rank_me"] <= 32
    assert 0 < found[60]["features/knn"] <= 1
    assert 0 < found[60]["features/loss_over_variance"] < 1.5
    assert not (healthy / "alarms").exists()


def test_they_are_what_the_geometry_of_the_features_says(healthy: Path) -> None:
    model = api.load(healthy)
    source = open_source("digits", "test")
    evaluator = Evaluator(Diagnose(images=128), setting(model.run.data, source, source, join(), workers=2))
    measured, features = evaluator._measure(model.module, never)
    values = {f"features/{name}": value for name, value in measured.items()}
    chosen = fixed_sample(source, 128)
    again = model.features(torch.stack([torch.as_tensor(chosen.read(i)[0]).permute(2, 0, 1) for i in range(128)]))
    assert len({chosen.read(i)[1] for i in range(20)}) > 5
    assert torch.allclose(features, again, atol=1e-5)
    assert values["features/rank_me"] == pytest.approx(geometry.rank_me(again), rel=1e-4)
    assert values == pytest.approx(of_the_features(healthy), rel=1e-4)


def test_two_processes_measure_the_same(healthy: Path, tmp_path: Path) -> None:
    """The same weights, as a step at a learning rate of zero leaves them: two trainings differ by rounding."""
    still = ["length=1 steps", "optim.warmup=1 steps", f"init={healthy}"]
    assert launch(2, ["pretrain", *RECIPE, *still, "--folder", str(tmp_path / "two")]) == 0
    (ours,) = lines(tmp_path / "two")
    theirs = of_the_features(healthy)
    # A half's own variance is not the whole's; an image between two classes may fall to either by a last bit.
    loose = {"features/loss_over_variance": {"rel": 1e-3}, "features/knn": {"abs": 1 / 64 + 1e-6}}
    for key, value in theirs.items():
        assert ours[key] == pytest.approx(value, **loose.get(key, {"rel": 1e-4})), key


@pytest.mark.parametrize("action", ["warn", "stop"])
def test_the_alarm_is_raised_on_a_run_that_collapses(
    action: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method = tmp_path / "constant.py"
    method.write_text(COLLAPSING)
    words = [f"objective={{name: {method}}}", "diagnose.after=0 steps", f"diagnose.action={action}"]
    recipe = [word for word in RECIPE if not word.startswith("objective")]
    folder = tmp_path / "run"
    if action == "stop":
        with pytest.raises(SystemExit) as stopped:
            main(["pretrain", *recipe, *words, "--folder", str(folder)])
        assert stopped.value.code == 3
    else:
        main(["pretrain", *recipe, *words, "--folder", str(folder)])
    printed = capsys.readouterr()
    assert "the features have collapsed at step" in printed.out + printed.err
    place = min((folder / "alarms").iterdir())
    evidence = json.loads((place / "diagnostics.json").read_text())
    assert min(evidence["features/spread"] / 1e-3, evidence["features/rank_me"] / 1.5) < 1
    assert load_file(place / "features.safetensors")["features"].shape == (128, 32)
    step = int(place.name.removeprefix("step-"))
    assert (max(line["step"] for line in lines(folder)) == step) == (action == "stop")
    found = api.load(folder)
    assert found.step == (step if action == "stop" else 60)
    if action == "stop":  # a scheduler that starts it again does not make it go on
        with pytest.raises(SystemExit) as again:
            main(["pretrain", *recipe, *words, "--folder", str(folder)])
        assert again.value.code == 3
        assert f"had collapsed at step {step}" in capsys.readouterr().err
