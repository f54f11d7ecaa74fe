"""The base class of every method: what is frozen stays in evaluation mode, whoever switches modes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from mrp.build import build_step
from mrp.evaluate.gathering import evaluating
from mrp.step import Step
from tests.objectives.test_every_objective import make_batch, make_run

FROZEN = {
    "the first block": {"frozen_blocks": 1},
    "the backbone": {"frozen": True},
}


def frozen_step(options: dict[str, Any]) -> Step:
    backbone = {"drop_path": 0.5, "attention_dropout": 0.5, "positions": "learned", "depth": 3}
    run = make_run("classify", backbone=backbone, objective={"name": "classify", "classes": 4} | options)
    return build_step(run)


def modes(step: Step) -> list[bool]:
    return [block.training for block in step.objective.backbone.blocks]


@pytest.mark.parametrize("what", FROZEN)
def test_frozen_blocks_never_train(what: str) -> None:
    step = frozen_step(FROZEN[what])
    expected = [False, True, True] if what == "the first block" else [False] * 3
    assert step.training
    assert modes(step) == expected
    with evaluating(step):
        assert modes(step) == [False] * 3
    assert modes(step) == expected
    assert modes(step.eval()) == [False] * 3
    assert modes(step.train()) == expected
    compiled = torch.compile(step, backend="eager")
    compiled.train()
    compiled(make_batch(make_run("classify")))
    assert modes(step) == expected


def test_features_of_a_frozen_backbone_do_not_depend_on_the_key() -> None:
    step, batch = frozen_step({"frozen": True}), make_batch(make_run("classify"))
    images = step.prepare(batch.images)
    first, other = (step.objective.predict(images, batch.keys + shift)[0] for shift in (0, 1))
    assert torch.equal(first, other)


def test_the_first_block_of_a_partly_frozen_backbone_drops_nothing() -> None:
    step, batch = frozen_step({"frozen_blocks": 1}), make_batch(make_run("classify"))
    outputs: list[Any] = []
    step.objective.backbone.blocks[0].register_forward_hook(lambda module, given, output: outputs.append(output))
    for shift in (0, 1):
        step.objective.predict(step.prepare(batch.images), batch.keys + shift)
    assert torch.equal(*outputs)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's, while it compiles
def test_wrappers_change_no_modes(one_process: DeviceMesh) -> None:
    for wrapped in (DistributedDataParallel(frozen_step({"frozen_blocks": 1})), frozen_step({"frozen_blocks": 1})):
        step = wrapped.module if isinstance(wrapped, DistributedDataParallel) else wrapped
        if step is wrapped:
            for block in step.objective.backbone.blocks:
                block.compile(backend="eager")
                fully_shard(block, mesh=one_process)
            fully_shard(step, mesh=one_process)
        for switch in (lambda: None, wrapped.train):
            switch()
            wrapped(make_batch(make_run("classify"))).loss.backward()
            assert modes(step) == [False, True, True]
            with evaluating(wrapped):
                assert modes(step) == [False] * 3
