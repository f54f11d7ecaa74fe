"""Stochastic gradient descent with momentum: torch's fused one, as the classical theory of training assumes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from mrp.optim.config import Beta, Section
from mrp.schedules import NonNegative, main_value


class Config(Section):
    """`optim: {name: sgd}`."""

    name: Literal["sgd"] = "sgd"
    momentum: Beta = 0.9  # the share of the last step that the next one keeps
    # The decay of matrices; it is a part of their gradient, so that the usual values are small.
    weight_decay: NonNegative = 5e-4


class Optimizer(torch.optim.SGD):
    """torch's SGD; while `found_inf` (on the device) is set nothing changes, and the host never waits."""

    def __init__(self, groups: list[dict[str, Any]], config: Config) -> None:
        super().__init__(groups, lr=main_value(config.lr), momentum=config.momentum, fused=True)
        self.state_names = ("momentum_buffer",) if config.momentum else ()
        self.found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates every parameter that has a gradient."""
        assert closure is None, "the loop computes the gradient before this call"
        for parameter in (parameter for group in self.param_groups for parameter in group["params"]):
            if self.state_names and parameter.grad is not None and not self.state[parameter]:
                # torch leaves a new buffer unwritten while `found_inf` is set, and would go on from what is there
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        super().step()
