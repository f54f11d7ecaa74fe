"""The optimizers of the multi-view lab: how the gradient of some weights becomes a step, for every seed by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from mrp.schedules import half_cosine

OPTIMIZERS = {
    "sgd": "plain gradient descent",
    "global": "one global clock",
    "kernel": "a clock per kernel",
    "adam": "Adam",
}


class Descent:
    """The optimizer of one tensor of weights (seeds ...), in which each row along `dim` belongs to one kernel.

    A clock divides a gradient by its running norm, because small kernels would otherwise take thousands of steps to
    grow: "global" by that of the whole tensor, so that all kernels keep their relative speeds; "kernel" by that of each
    kernel, so that each stays on the path of its own gradient flow if the loss is a sum over kernels, and all move
    equally fast. With a clock and Adam a kernel moves by about `lr` per step, and steps shrink to zero by a cosine,
    because steps of constant length never settle.
    """

    def __init__(self, optimizer: str, lr: float, steps: int, dim: int) -> None:
        self.optimizer, self.lr, self.steps, self.dim = optimizer, lr, steps, dim
        self.step = 0
        self.mean: Tensor | None = None  # Adam's
        self.square: Tensor | None = None  # a clock's running square of the norm, or Adam's of every number

    def __call__(self, gradient: Tensor) -> Tensor:
        """Returns what is to be subtracted from the weights."""
        if self.optimizer == "sgd":
            return self.lr * gradient
        length = self.lr * half_cosine(self.step, self.steps, warmup=0, peak=1.0)
        self.step += 1
        step: Tensor = length * (self._adam(gradient) if self.optimizer == "adam" else self._clocked(gradient))
        return step

    def _clocked(self, gradient: Tensor) -> Tensor:
        dims = (1, 2) if self.optimizer == "global" else (self.dim,)
        square = gradient.square().sum(dim=dims, keepdim=True)
        if self.optimizer == "global":
            square = square * gradient.shape[self.dim] / gradient[0].numel()  # the mean over kernels
        self.square = square if self.square is None else torch.lerp(self.square, square, 0.1)
        step: Tensor = gradient / self.square.sqrt().clamp_min(1e-30)
        return step

    def _adam(self, gradient: Tensor) -> Tensor:
        mean, square = (torch.zeros_like(gradient) if state is None else state for state in (self.mean, self.square))
        self.mean, self.square = mean.lerp(gradient, 0.1), square.lerp(gradient.square(), 0.001)
        mean, square = self.mean / (1 - 0.9**self.step), self.square / (1 - 0.999**self.step)
        step: Tensor = mean / (square.sqrt() + 1e-12) / gradient.shape[self.dim] ** 0.5
        return step
