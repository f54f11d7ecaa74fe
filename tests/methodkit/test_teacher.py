"""Teachers: a moving average that is exact, shares what does not move, and stays still in evaluation."""

from __future__ import annotations

import pytest
import torch

from mrp.build import build_step
from mrp.config import ConfigError
from mrp.methodkit import Teacher, TeacherConfig
from mrp.models import vit
from tests.objectives.test_every_objective import make_batch, make_run

SMALL = {"width": 32, "depth": 2, "heads": 4, "patch": 4}


def student(**options: object) -> vit.VisionTransformer:
    return vit.build(vit.Config.model_validate(SMALL | options), (16, 16), 3)


def moved(model: vit.VisionTransformer) -> vit.VisionTransformer:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    return model


def test_it_is_the_moving_average_of_what_is_trained() -> None:
    model = student(relative_bias="shared", layer_scale=0.1)
    teacher = Teacher(TeacherConfig(decay=0.9), model, 1, "output")
    expected = {name: parameter.double() for name, parameter in model.named_parameters()}
    for step in range(4):
        moved(model)
        teacher.follow(model, step, torch.tensor(True))
        for name, parameter in model.named_parameters():
            expected[name] = 0.9 * expected[name] + 0.1 * parameter.double()
    for name, parameter in teacher.backbone.named_parameters():
        assert torch.allclose(parameter.double(), expected[name], atol=1e-6), name
        assert parameter.dtype == torch.float32
        assert not parameter.requires_grad


def test_what_is_fixed_is_shared_and_saved_once() -> None:
    model = student(relative_bias="shared")
    teacher = Teacher(TeacherConfig(), model, 1, "output")
    assert teacher.backbone.pos_embed is model.pos_embed
    assert teacher.backbone.cls_token is not model.cls_token
    missing = set(model.state_dict()) - {name.removeprefix("backbone.") for name in teacher.state_dict()}
    assert missing == {"pos_embed"}
    learned = Teacher(TeacherConfig(), student(positions="learned"), 1, "output")
    assert "backbone.pos_embed" in learned.state_dict()


def test_it_is_loaded_strictly_and_ignores_what_it_shares() -> None:
    model = student()
    teacher = Teacher(TeacherConfig(), model, 1, "output")
    before = model.pos_embed.clone()
    state = {name: torch.randn_like(tensor) for name, tensor in teacher.state_dict().items()}
    teacher.load_state_dict(state | {"backbone.pos_embed": torch.zeros_like(before)})
    assert torch.equal(model.pos_embed, before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in teacher.state_dict().items())
    del state["backbone.cls_token"]
    with pytest.raises(RuntimeError, match="cls_token"):
        teacher.load_state_dict(state)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (TeacherConfig(decay=0.9), [0.9, 0.9, 0.9, 0.9]),
        (TeacherConfig(decay=0.5, last=0.9, steps=4), [0.6, 0.7, 0.8, 0.9]),
        (TeacherConfig(decay=0.5, last=0.9, steps=2), [0.7, 0.9, 0.9, 0.9]),
        (TeacherConfig(decay=0.5, last=0.9), [0.9, 0.9, 0.9, 0.9]),
    ],
)
def test_its_schedule(config: TeacherConfig, expected: list[float]) -> None:
    assert [config.decay_at(step, config.decay) for step in range(4)] == pytest.approx(expected)


def test_it_drops_nothing_out_and_takes_no_part_in_training() -> None:
    run = make_run("data2vec", backbone={"drop_path": 0.5, "attention_dropout": 0.5})
    step = build_step(run).train()
    images = step.prepare(make_batch(run).images)
    assert not step.objective.teacher.backbone.training
    assert torch.equal(step.objective.target(images), step.objective.target(images))
    step(make_batch(run)).loss.backward()
    assert all(parameter.grad is None for parameter in step.objective.teacher.backbone.blocks.parameters())


def test_a_student_held_back_leaves_it_bit_equal_though_the_host_does_not_know() -> None:
    model = student()
    teacher = Teacher(TeacherConfig(decay=0.5), model, 1, "output")
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    teacher.follow(moved(model), 0, torch.tensor(False))
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    teacher.follow(model, 0, torch.tensor(True))
    assert not torch.equal(teacher.state_dict()["backbone.cls_token"], before["backbone.cls_token"])


def test_more_layers_than_there_are() -> None:
    with pytest.raises(ConfigError, match=r"objective.layers: 3 of the backbone's 2 blocks"):
        Teacher(TeacherConfig(), student(), 3, "output")
