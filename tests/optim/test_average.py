"""The average of a run's weights: its arithmetic, its guard, and that using it leaves no trace."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mrp.build import build_optimizer
from mrp.checkpoint import checkpoints
from mrp.checkpoint.saver import save_now
from mrp.config import ConfigError
from mrp.optim import average
from mrp.optimizers import adamw


def module() -> nn.Module:
    built = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    built[0].bias.requires_grad_(False)
    return built


def test_it_follows_what_is_trained_by_its_decay() -> None:
    built = module()
    followed = average.Average(average.Config(decay=0.9), built)
    expected = {name: p.detach().clone() for name, p in built.named_parameters() if p.requires_grad}
    assert followed.tensors().keys() == expected.keys() == {"0.weight", "1.weight", "1.bias", "2.weight", "2.bias"}
    for _ in range(3):
        with torch.no_grad():
            for name, parameter in built.named_parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter))
                    expected[name] = 0.9 * expected[name] + 0.1 * parameter
        followed.follow(torch.tensor(True))
    for name, tensor in followed.tensors().items():
        assert tensor.dtype == torch.float32
        assert torch.allclose(tensor, expected[name], atol=1e-6)


def test_it_stays_where_it_is_while_the_optimizer_is_held_back() -> None:
    built = module()
    followed = average.Average(average.Config(decay=0.5), built)
    before = {name: tensor.clone() for name, tensor in followed.tensors().items()}
    with torch.no_grad():
        built[2].weight.add_(1)
    followed.follow(torch.tensor(False))
    assert all(torch.equal(tensor, before[name]) for name, tensor in followed.tensors().items())


def test_the_model_uses_it_and_gets_its_own_weights_back_bit_for_bit() -> None:
    built = module()
    followed = average.Average(average.Config(decay=0.5), built)
    first = {name: p.detach().clone() for name, p in built.named_parameters()}
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(torch.pi)
    second = {name: p.detach().clone() for name, p in built.named_parameters()}

    def interrupted() -> None:
        with followed.in_place():
            assert all(torch.equal(p, first[name]) for name, p in built.named_parameters() if p.requires_grad)
            assert torch.equal(built[0].bias, second["0.bias"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(torch.equal(p, second[name]) for name, p in built.named_parameters())
    assert all(torch.equal(tensor, first[name]) for name, tensor in followed.tensors().items())


def test_it_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    built = module()
    optimizer = build_optimizer(adamw.Config(lr=0.1), built)
    followed = average.Average(average.Config(), built)
    with torch.no_grad():
        built[2].weight.add_(1)
    followed.follow(torch.tensor(True))
    save_now(tmp_path, 3, built, optimizer, {}, 1, {average.GROUP: followed.tensors()})
    (found,) = checkpoints.listed(tmp_path)
    resumed = average.Average(average.Config(), built)
    resumed.restore(found.tensors(average.GROUP))
    assert all(torch.equal(tensor, followed.tensors()[name]) for name, tensor in resumed.tensors().items())
    with pytest.raises(ConfigError, match="average: the checkpoint averages other parameters"):
        average.Average(average.Config(), nn.Linear(2, 2)).restore(found.tensors(average.GROUP))


def test_brought_back_to_a_checkpoint_from_before_it_was_kept_it_begins_anew() -> None:
    built = module()
    followed = average.Average(average.Config(), built)
    with torch.no_grad():
        built[2].weight.add_(1)
    followed.restore(None)
    assert torch.equal(followed.tensors()["2.weight"], built[2].weight)
