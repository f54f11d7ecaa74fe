"""Evaluation leaves a module as it was found."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mrp.evaluate.evaluating import evaluating


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
