"""Evaluation mode, and back to the mode that each module was in before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model into evaluation mode without gradients; afterwards every submodule is in its former mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():  # not inference_mode: sharded parameters cannot be gathered under it
            yield
    finally:
        for module, training in modes:
            module.training = training
