"""Evaluation leaves a module as it was found."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mrp.evaluate.gathering import evaluating, left_as_it_was


def test_modes_are_restored_whatever_happens() -> None:
    module = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5).eval())
    modes = [True, True, False]
    with evaluating(module):
        assert not any(part.training for part in module.modules())
        assert not torch.is_grad_enabled()
    assert [part.training for part in module.modules()] == modes
    assert torch.is_grad_enabled()
    with pytest.raises(KeyError), evaluating(module):
        raise KeyError
    assert [part.training for part in module.modules()] == modes


def test_what_an_evaluator_changes_for_itself_is_as_it_was_for_the_next_step() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False).eval())
    with left_as_it_was(module):
        module(torch.ones(1, 2)).sum().backward()  # as a map of saliency does
        module.eval()[0].requires_grad_(False)
        torch.set_grad_enabled(False)
    assert [parameter.grad for parameter in module.parameters()] == [None] * 4
    assert [parameter.requires_grad for parameter in module.parameters()] == [True, True, False, False]
    assert [part.training for part in module.modules()] == [True, True, False]
    assert torch.is_grad_enabled()
