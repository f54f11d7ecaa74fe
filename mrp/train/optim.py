"""The optimizer, its parameter groups and its learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from mrp.config import Duration, Node
from mrp.train.schedules import half_cosine, stepwise

Beta = Annotated[float, Field(ge=0, lt=1)]


class Config(Node):
    """`optim:`; the peak learning rate is `lr * batch / per`, or `lr` itself where `per` is null."""

    name: Literal["adamw"] = "adamw"
    lr: float = Field(gt=0)
    per: int | None = Field(None, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    warmup: Duration = Duration(0, "steps")
    min_lr: float = Field(0.0, ge=0)
    drops: tuple[Duration, ...] = ()  # a tenth from each of these on, in place of half a cosine down to min_lr
    clip: float | None = Field(None, gt=0)

    def peak_lr(self, batch: int) -> float:
        """The learning rate after warm-up."""
        return self.lr * batch / self.per if self.per else self.lr

    def lr_at(self, step: int, total: int, warmup: int, batch: int, drops: Sequence[int] = ()) -> float:
        """The learning rate of step `step`, counted from zero; lengths in steps."""
        if self.drops:
            return stepwise(step, warmup, self.peak_lr(batch), drops)
        return half_cosine(step, total, warmup, self.peak_lr(batch), self.min_lr)


def groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: one-dimensional ones (norms, biases) do not decay."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trainable if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trainable if parameter.ndim <= 1], "weight_decay": 0.0},
    ]


def build(config: Config, module: nn.Module) -> torch.optim.Optimizer:
    """A fused AdamW: it alone can be told on the device, without asking the host, to leave everything as it is."""
    parameters = groups(module, config.weight_decay)
    return torch.optim.AdamW(parameters, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group this learning rate, times its own scale if it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
