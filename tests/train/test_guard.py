"""A non-finite step leaves the weights and the optimizer bitwise as they were, for good."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from mrp.train import optim
from mrp.train.guard import Guard

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def take(model: nn.Module, optimizer: torch.optim.Optimizer, guard: Guard, number: int, factor: float = 1.0) -> Tensor:
    device = next(model.parameters()).device
    torch.manual_seed(number)
    loss = model(torch.randn(4, 3).to(device)).square().mean() * factor
    loss.backward()
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()])
    moved = guard.check(number, loss.detach(), norm)
    optimizer.step()
    optimizer.zero_grad()
    return moved


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    moments = [value for parameter in model.parameters() for value in optimizer.state[parameter].values()]
    return copy.deepcopy([*(parameter.detach() for parameter in model.parameters()), *moments])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_nothing_moves_from_the_first_bad_step_on(device: str, factor: float) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 3).to(device)
    optimizer = optim.build(optim.Config(lr=0.1), model)
    guard = Guard(optimizer, torch.device(device), lambda flag: flag)
    assert all(bool(take(model, optimizer, guard, number)) for number in range(3))
    assert guard.incident(now=True) is None
    before = state(model, optimizer)
    assert not take(model, optimizer, guard, 3, factor)
    assert not take(model, optimizer, guard, 4)  # sticky: this one would be finite
    after = state(model, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert guard.incident(now=True) == 3


def test_an_infinite_loss_counts_although_its_gradient_is_finite() -> None:
    optimizer = optim.build(optim.Config(lr=0.1), nn.Linear(2, 2))
    guard = Guard(optimizer, torch.device("cpu"), lambda flag: flag)
    assert not guard.check(0, torch.tensor(float("inf")), torch.tensor(1.0))
    assert guard.incident() == 0


def test_one_bad_rank_holds_back_all() -> None:
    optimizer = optim.build(optim.Config(lr=0.1), nn.Linear(2, 2))
    guard = Guard(optimizer, torch.device("cpu"), lambda flag: flag + 1)  # another rank reports a fault
    assert not guard.check(5, torch.tensor(1.0), torch.tensor(1.0))
    assert guard.incident() == 5


@pytest.mark.gpu
def test_the_host_learns_one_call_late_and_waits_for_nothing() -> None:
    model = nn.Linear(3, 3).cuda()
    optimizer = optim.build(optim.Config(lr=0.1), model)
    guard = Guard(optimizer, torch.device("cuda"), lambda flag: flag)
    take(model, optimizer, guard, 0, float("nan"))
    assert guard.incident() is None
    take(model, optimizer, guard, 1)
    assert guard.incident() == 0
