"""Groups, learning rates, and which of them a recipe means."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mrp.config import Duration
from mrp.train import optim


def test_one_dimensional_parameters_do_not_decay_and_frozen_ones_are_left_out() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))
    module[2].weight.requires_grad_(False)
    decayed, plain = optim.groups(module, 0.05)
    assert [tuple(parameter.shape) for parameter in decayed["params"]] == [(4, 3)]
    assert [tuple(parameter.shape) for parameter in plain["params"]] == [(4,), (4,), (4,)]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)


def test_the_learning_rate_scales_with_the_batch_only_when_the_recipe_says_so() -> None:
    assert optim.Config(lr=1.5e-4, per=256).peak_lr(4096) == pytest.approx(2.4e-3)
    assert optim.Config(lr=1.5e-4).peak_lr(4096) == 1.5e-4


def test_lr_at_warms_up_from_zero_and_ends_at_the_floor() -> None:
    config = optim.Config(lr=1.0, min_lr=0.1, warmup=Duration(10, "steps"))
    assert config.lr_at(0, 100, 10, 64) == 0
    assert config.lr_at(10, 100, 10, 64) == 1.0
    assert config.lr_at(100, 100, 10, 64) == pytest.approx(0.1)


def test_lr_can_fall_to_a_tenth_instead() -> None:
    config = optim.Config(lr=1.0, warmup=Duration(10, "steps"), drops=(Duration(80, "steps"), Duration(90, "steps")))
    found = [config.lr_at(step, 100, 10, 64, (80, 90)) for step in (0, 5, 10, 79, 80, 90, 99)]
    assert found == pytest.approx([0, 0.5, 1, 1, 0.1, 0.01, 0.01])


def test_set_lr_respects_a_groups_own_scale() -> None:
    module = nn.Linear(2, 2)
    optimizer = torch.optim.SGD([{"params": [module.weight], "lr_scale": 0.5}, {"params": [module.bias]}], lr=1.0)
    optim.set_lr(optimizer, 0.2)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2]


def test_the_update_is_adamws() -> None:
    ours, theirs = nn.Linear(3, 1, bias=False), nn.Linear(3, 1, bias=False)
    theirs.load_state_dict(ours.state_dict())
    config = optim.Config(lr=0.1, weight_decay=0.3, betas=(0.8, 0.9), eps=1e-6)
    pair = (
        optim.build(config, ours),
        torch.optim.AdamW(theirs.parameters(), lr=0.1, weight_decay=0.3, betas=(0.8, 0.9), eps=1e-6, foreach=False),
    )
    for _ in range(5):
        inputs = torch.randn(8, 3)
        for module, optimizer in zip((ours, theirs), pair, strict=True):
            module(inputs).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert torch.allclose(ours.weight, theirs.weight, atol=1e-6)
