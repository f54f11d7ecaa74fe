"""What is judged and exported is what the method says: features that it defines itself, or its teacher's encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mrp
from mrp import api
from mrp.build import open_source
from mrp.cli import main
from mrp.config import ConfigError
from mrp.evaluate import neighbours, sweep
from mrp.exchange.export import export
from mrp.model import load
from tests.integration.test_own_evaluator import SMALL, lines

METHOD = """
from typing import Literal
from torch import nn
import mrp
from mrp import methodkit as kit
from mrp.config import Node
from mrp.models.vit import embed, encode, pool

class Config(Node):
    name: Literal["mine"] = "mine"
    teacher: kit.TeacherConfig = kit.TeacherConfig(decay=0.5)

class Objective(mrp.Objective):
    JUDGED
    def __init__(self, config, backbone):
        super().__init__(backbone)
        self.head = nn.Linear(backbone.embed_dim, 5)
        self.teacher = kit.Teacher(config.teacher, backbone, 1, "output")

    def forward(self, batch):
        tokens = encode(self.backbone, embed(self.backbone, batch.images), keys=batch.keys).tokens
        features = pool(self.backbone, tokens)
        loss = (self.head(features).float() - batch.images.flatten(1)[:, :5]).square().mean()
        return mrp.Output(loss=loss, metrics={"loss": loss.detach()})

    def after_step(self, step, updated):
        self.teacher.follow(self.backbone, step, updated)
"""
FEATURES = """
    def features(self, batch):
        return self.head(super().features(batch))
"""
KNN = "evaluate={knn: {every: 6 steps}}"


def pretrained(tmp_path: Path, text: str, *words: str) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(text)
    shared = [word for word in SMALL if not word.startswith(("objective.", "average."))]
    return mrp.pretrain(*shared, f"objective={{name: {path}}}", KNN, *words, folder=tmp_path / "run")


def knn(model: Any, features: Any) -> float:
    """The accuracy of 20 neighbours in the features that a function gives of images in [0, 1]."""
    from sklearn.datasets import load_digits  # the split is the demo's own

    train, test = (open_source(model.run, split) for split in ("train", "test"))
    rows = [torch.stack([torch.as_tensor(s.read(i)[0]).permute(2, 0, 1) for i in range(len(s))]) for s in (train, test)]
    assert sum(map(len, rows)) == len(load_digits().images)
    with torch.no_grad():
        found = [features(images) for images in rows]
    labels = [torch.as_tensor(source.labels) for source in (train, test)]
    (answers,) = neighbours.predict(found[0].half().float(), labels[0], found[1].half().float(), [20])
    return float((answers == labels[1]).double().mean())


@pytest.fixture
def few_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sweep.choose,
        "__defaults__",
        ((1e-1,), (0.0,), sweep.Schedule(epochs=2, steps=40), *sweep.choose.__defaults__[3:]),
    )


@pytest.mark.usefixtures("few_heads")
def test_probes_read_the_features_that_a_method_defines(tmp_path: Path) -> None:
    run = pretrained(tmp_path, METHOD.replace("JUDGED", "") + FEATURES)
    model = mrp.load(run)
    plain = lambda images: model.module.eval().objective.encoder.forward_head(  # noqa: E731
        model.backbone.forward_features(model.module.prepare(images)), pre_logits=True
    )
    own, backbone = knn(model, model.features), knn(model, plain)
    assert abs(own - backbone) > 0.02
    assert lines(run)[12]["knn/accuracy"] == pytest.approx(own, abs=2 / 360)
    results = api.probe(run, evaluators=["knn", "linear", "logistic"]).results["trained"]
    assert results["knn"]["accuracy"] == pytest.approx(own, abs=2 / 360)
    assert results["linear"]["grid"]["mine"].keys() == {"features"}  # one more input of the sweep
    assert results["linear"]["grid"]["2"].keys() == {"class", "mean", "both"}

    features = tmp_path / "features.npy"
    main(["features", str(run), "--out", str(features), "--layer", "2"])
    assert features.stat().st_size > 360 * 24 * 2
    main(["features", str(run), "--out", str(features)])
    assert features.stat().st_size < 360 * 6 * 2

    # Other code, or another head, gives other features of the same backbone: no table on the disk stands for them.
    kept = run / "code" / "mine.py"
    kept.write_text(kept.read_text().replace("self.head(super", "0 * self.head(super"))
    assert api.probe(run, evaluators=["knn"]).results["trained"]["knn"]["accuracy"] < own - 0.02

    export(run, "timm", tmp_path / "timm")
    assert (
        "defines the features of an image itself; this folder gives the encoder's"
        in (tmp_path / "timm/README.md").read_text()
    )


def test_features_of_another_shape_are_one_line(tmp_path: Path) -> None:
    text = METHOD.replace("JUDGED", "") + FEATURES.replace("(batch))", "(batch))[:, None]")
    with pytest.raises(ConfigError, match=r"the features of mine for one image are of shape \(1, 1, 5\); return one"):
        pretrained(tmp_path, text)


def test_a_method_may_have_its_teacher_judged_and_exported(tmp_path: Path) -> None:
    run = pretrained(tmp_path, METHOD.replace("JUDGED", "judged = 'teacher'"), "average.decay=0.95", "optim.lr=1e-2")
    student, teacher, average = (load(run, name) for name in ("student", "teacher", "average"))
    assert mrp.load(run).weights == "average"  # which the run was asked to keep
    accuracies = [knn(model, model.features) for model in (student, teacher, average)]
    assert len({round(accuracy, 3) for accuracy in accuracies}) == 3
    measured = lines(run)[12]
    assert measured["knn/accuracy"] == pytest.approx(accuracies[1], abs=2 / 360)
    assert measured["knn/average/accuracy"] == pytest.approx(accuracies[2], abs=2 / 360)
    assert set(json.loads((run / "evaluations/knn.json").read_text())) == {"step", "teacher", "average"}


def test_the_teacher_is_taken_where_nothing_else_is_asked_for(tmp_path: Path) -> None:
    run = pretrained(tmp_path, METHOD.replace("JUDGED", "judged = 'teacher'"))
    (tmp_path / "mine.py").unlink()  # the run keeps a copy, which says it too
    name = "blocks.0.attn.qkv.weight"
    teacher, student = load(run, "teacher"), load(run, "student")
    assert not torch.equal(teacher.backbone.get_parameter(name), student.backbone.get_parameter(name))
    assert torch.equal(mrp.load(run).backbone.get_parameter(name), teacher.backbone.get_parameter(name))
    for weights, expected in ((None, "teacher"), ("student", "student")):
        words = [f"init={run}", *([f"init.weights={weights}"] if weights else [])]
        tuned = mrp.run.load("finetune_mae_vit_base_in1k", [*words, "backbone=null", "data.channels=1"])
        assert tuned.init.weights == expected


def test_a_teacher_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    text = METHOD.replace("JUDGED", "judged = 'teacher'").replace("self.teacher = ", "self.guide = ")
    with pytest.raises(ConfigError, match=r"mine has its teacher judged .* but has no self\.teacher\.backbone"):
        pretrained(tmp_path, text)
