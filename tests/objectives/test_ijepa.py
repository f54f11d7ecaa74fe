"""I-JEPA: shapes of blocks against the released code's, what is seen and predicted, and its official checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mrp.build import build_step
from mrp.config import ConfigError
from mrp.interop import reading
from mrp.model import Model, run_of, step_of
from mrp.objectives.ijepa import block_shape, block_shapes
from mrp.schedules import Length
from tests.objectives.test_every_objective import make_batch, make_run

CASE = Path(__file__).parent.parent / "reference" / "cases" / "ijepa"
TINY = {"name": "ijepa", "targets": 2, "predictor": {"width": 32, "depth": 1, "heads": 4}}


def prepared(data: dict[str, Any] | None = None, **options: Any) -> tuple[Any, Any]:
    step, batch = build_step(run := make_run("ijepa", data, objective=TINY | options)), make_batch(run)
    return step.objective, batch.with_images(step.prepare(batch.images))


def test_blocks_have_the_shapes_of_the_released_code() -> None:
    sampler = json.loads((CASE / "case.json").read_text())["sampler"]
    for row in sampler["block_size_table"]:
        size = row["grid"], row["grid"]
        target = block_shape(size, sampler["target_scale"], sampler["target_aspect"], row["u_target"])
        context = block_shape(size, sampler["context_scale"], sampler["context_aspect"], row["u_context"])
        assert [list(target), list(context)] == [row["target_hw"], row["context_hw"]]


def test_what_is_seen_meets_no_target_and_lies_anywhere() -> None:
    objective, _ = prepared({"size": 56})  # 14 x 14 patches
    assert len(block_shapes((14, 14), (0.15, 0.2), (0.75, 1.5))) == 1024
    keys = torch.arange(600)
    mask, blocks = objective.draw_blocks(keys, torch.zeros_like(keys))
    assert ((~mask).sum(1) == 49).all()
    assert (blocks.sum(2) == 30).all()
    assert not (~mask[:, None] & blocks).any()
    for often, expected in (((~mask).float().mean(0), 0.25), (blocks.float().mean((0, 1)), 30 / 196)):
        square = often.view(14, 14)
        assert often.mean().item() == pytest.approx(expected, abs=1e-6)
        assert torch.allclose(square[:7].mean(), square[7:].mean(), atol=0.02)  # as often above as below
        assert often.min() > 0


def test_a_target_is_one_block_without_its_farthest_corners() -> None:
    objective, _ = prepared({"size": 56})
    keys = torch.arange(50)
    for block in objective.draw_blocks(keys, torch.zeros_like(keys))[1].flatten(0, 1).view(-1, 14, 14):
        rows, columns = block.any(1).nonzero(), block.any(0).nonzero()
        assert (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1) <= 40


def test_the_loss_is_the_mean_of_the_blocks_taken_one_at_a_time() -> None:
    objective, batch = prepared()
    draws = objective.draws(batch.keys)
    mask, blocks = objective.draw_blocks(*draws)
    both = objective(batch).per_sample["loss"]
    each = [objective(batch, mask, blocks[:, [number]]).per_sample["loss"] for number in range(2)]
    assert torch.allclose(both, torch.stack(each).mean(0), rtol=1e-5)


def test_the_collapse_line_is_the_cost_of_the_mean() -> None:
    objective, batch = prepared()
    _, blocks = objective.draw_blocks(*objective.draws(batch.keys))
    target = objective.target(batch.images)
    predicted = torch.cat([target[image][block] for image in range(8) for block in blocks[image]])
    expected = objective.error(predicted - predicted.mean(0)).mean()
    assert torch.allclose(objective(batch).metrics["target_variance"], expected, rtol=1e-4)


def test_the_teacher_stands_still_at_the_end_and_is_judged() -> None:
    objective, batch = prepared()
    assert objective.encoder is objective.teacher.backbone
    length = Length(100, 10, 8)
    for step, expected in ((0, 0.996), (50, 0.998), (100, 1.0)):
        objective.before_step(step, length)
        assert objective.teacher.decay.now == pytest.approx(expected)
    assert objective.features(batch).shape == (8, 32)


def test_an_official_checkpoint_becomes_the_whole_method() -> None:
    heads = {"backbone": {"heads": 4}}
    weights = reading.read(CASE / "checkpoint.pth", values=heads)
    run = run_of(weights)
    model = Model(run, CASE, 0, step_of(weights, run), "student", {})
    assert run.objective.name == "ijepa"
    assert not run.backbone.class_token
    assert model.missing_part is None
    student, teacher = model.objective.backbone, model.objective.teacher.backbone
    assert not torch.equal(student.blocks[0].attn.qkv.weight, teacher.blocks[0].attn.qkv.weight)


@pytest.mark.parametrize("bounds", [[0.2, 0.15], [0.0, 0.1]])
def test_bounds_that_cannot_be_are_said_in_one_line(bounds: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"objective.target_scale: .*the smaller one first"):
        make_run("ijepa", objective=TINY | {"target_scale": bounds})
