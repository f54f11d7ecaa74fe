"""Evaluation mode, and back to whatever mode was there before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(step: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every submodule is in the mode in which it was found."""
    modes = [(module, module.training) for module in step.modules()]
    step.eval()
    try:
        with torch.no_grad():  # not inference_mode: sharded parameters cannot be gathered under it
            yield
    finally:
        for module, training in modes:
            module.training = training
