"""A non-finite step leaves the weights and the optimizer bitwise as they were, for good."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from mrp.build import build_optimizer
from mrp.monitor.guard import Guard
from mrp.optimizers import adamw

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
    optimizer = build_optimizer(adamw.Config(lr=0.1), model)
    guard = Guard(optimizer, torch.device(device), lambda flag: flag)
    assert all(bool(take(model, optimizer, guard, number)) for number in range(3))
    assert guard.news(now=True) == (None, False)
    before = state(model, optimizer)
    assert not take(model, optimizer, guard, 3, factor)
    assert not take(model, optimizer, guard, 4)  # sticky: this one would be finite
    after = state(model, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert guard.news(now=True).incident == 3


def test_an_infinite_loss_counts_although_its_gradient_is_finite() -> None:
    optimizer = build_optimizer(adamw.Config(lr=0.1), nn.Linear(2, 2))
    guard = Guard(optimizer, torch.device("cpu"), lambda flag: flag)
    assert not guard.check(0, torch.tensor(float("inf")), torch.tensor(1.0))
    assert guard.news().incident == 0


def test_the_step_is_named_exactly_where_a_float_would_not_do() -> None:
    guard = Guard(build_optimizer(adamw.Config(lr=0.1), nn.Linear(2, 2)), torch.device("cpu"), lambda flag: flag)
    guard.check(2**24 + 1, torch.tensor(float("nan")), torch.tensor(1.0))
    assert guard.news(now=True).incident == 2**24 + 1


def test_one_bad_rank_holds_back_all() -> None:
    optimizer = build_optimizer(adamw.Config(lr=0.1), nn.Linear(2, 2))
    guard = Guard(
        optimizer, torch.device("cpu"), lambda told: told + torch.tensor([1.0, 0.0])
    )  # another reports a fault
    assert not guard.check(5, torch.tensor(1.0), torch.tensor(1.0))
    assert guard.news() == (5, False)


def test_one_rank_that_is_asked_to_end_tells_all_and_holds_nothing_back() -> None:
    optimizer = build_optimizer(adamw.Config(lr=0.1), nn.Linear(2, 2))
    guard = Guard(optimizer, torch.device("cpu"), lambda told: told + torch.tensor([0.0, 1.0]))  # another was asked
    assert guard.check(5, torch.tensor(1.0), torch.tensor(1.0))
    assert guard.news() == (None, True)
    alone = Guard(optimizer, torch.device("cpu"), lambda told: told)
    assert alone.check(5, torch.tensor(1.0), torch.tensor(1.0), asked=True)
    assert alone.check(6, torch.tensor(1.0), torch.tensor(1.0))
    assert alone.news() == (None, True)


def test_once_cleared_it_lets_updates_through_and_notices_the_next_incident() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 3)
    optimizer = build_optimizer(adamw.Config(lr=0.1), model)
    guard = Guard(optimizer, torch.device("cpu"), lambda told: told)
    take(model, optimizer, guard, 0)
    take(model, optimizer, guard, 1, float("nan"))
    frozen = state(model, optimizer)
    guard.clear()
    assert guard.news(now=True).incident is None
    assert take(model, optimizer, guard, 2)
    assert any(not torch.equal(a, b) for a, b in zip(frozen, state(model, optimizer), strict=True))
    take(model, optimizer, guard, 3, float("nan"))
    assert guard.news(now=True).incident == 3


@pytest.mark.gpu
def test_the_host_learns_one_call_late_and_waits_for_nothing() -> None:
    model = nn.Linear(3, 3).cuda()
    optimizer = build_optimizer(adamw.Config(lr=0.1), model)
    guard = Guard(optimizer, torch.device("cuda"), lambda flag: flag)
    take(model, optimizer, guard, 0, float("nan"))
    assert guard.news().incident is None
    take(model, optimizer, guard, 1)
    assert guard.news().incident == 0
