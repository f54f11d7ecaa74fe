"""LARS (You et al., 2017), for batches of many thousand images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mrp.optim.config import Beta, Section
from mrp.tensors import local_part, replace_unless, whole


class Config(Section):
    """`optim: {name: lars}`."""

    name: Literal["lars"] = "lars"
    momentum: Beta = 0.9  # the share of the last step that the next one keeps
    trust: float = Field(0.001, gt=0)  # how far a step goes, as a share of the weights' norm, at a learning rate of 1


class Optimizer(torch.optim.Optimizer):
    """Momentum over gradients that are scaled to the norm of each matrix; vectors are neither scaled nor decayed.

    While `found_inf` (on the device) is set nothing changes, as with torch's fused optimizers; the host never waits.
    """

    state_names = ("momentum",)

    def __init__(self, groups: list[dict[str, Any]], config: Config) -> None:
        super().__init__(
            groups, {"lr": config.lr, "momentum": config.momentum, "trust": config.trust, "weight_decay": 0.0}
        )
        self.found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates every parameter that has a gradient."""
        assert closure is None, "the loop computes the gradient before this call"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        change = parameter.grad
        assert change is not None
        if parameter.ndim > 1:
            change = change.add(parameter, alpha=group["weight_decay"])
            weight_norm, change_norm = _norm(parameter), _norm(change)
            known = (weight_norm > 0) & (change_norm > 0)
            change = local_part(change) * torch.where(known, group["trust"] * weight_norm / change_norm, 1.0)
        velocity, weights = local_part(state["momentum"]), local_part(parameter)
        next_velocity = velocity * group["momentum"] + local_part(change)
        replace_unless(self.found_inf, weights, weights.add(next_velocity, alpha=-group["lr"]))
        replace_unless(self.found_inf, velocity, next_velocity)


def _norm(tensor: Tensor) -> Tensor:
    """Returns the norm of the whole tensor, also where it is sharded over processes."""
    return whole(torch.linalg.vector_norm(tensor))
