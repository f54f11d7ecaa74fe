"""AdamW (Loshchilov and Hutter, 2019): torch's fused one, the only one that obeys the guard's flag."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field

from mrp.optim.config import ADAMW_STATE, Beta, Section
from mrp.schedules import main_value


class Config(Section):
    """`optim:` without another name."""

    name: Literal["adamw"] = "adamw"
    betas: tuple[Beta, Beta] = (0.9, 0.95)  # decay of the averages of the gradient and of its square
    eps: float = Field(1e-8, gt=0)  # added to the denominator


class Optimizer(torch.optim.AdamW):
    """torch's AdamW; while `found_inf` (on the device) is set nothing changes, and the host never waits."""

    state_names = ADAMW_STATE

    def __init__(self, groups: list[dict[str, Any]], config: Config) -> None:
        super().__init__(groups, lr=main_value(config.lr), betas=config.betas, eps=config.eps, fused=True)
