"""Evaluation in the midst of training: afterwards the model is as it was."""

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


@contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Gives a training back what an evaluator may have changed: modes, gradients, and which weights are trained."""
    modes = [(module, module.training) for module in model.modules()]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    gradients = torch.is_grad_enabled()
    try:
        yield
    finally:
        torch.set_grad_enabled(gradients)
        for module, training in modes:
            module.training = training
        for parameter, is_trained in trained:
            parameter.grad = None  # it would be added to that of the next step
            if parameter.requires_grad != is_trained:
                parameter.requires_grad_(is_trained)
