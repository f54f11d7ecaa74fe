"""The optimizer, its parameter groups and its learning rate."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from mrp.config import Duration, Node
from mrp.optim.schedules import half_cosine, stepwise

Beta = Annotated[float, Field(ge=0, lt=1)]


class Common(Node):
    """What every optimizer has; the peak learning rate is `lr * batch / per`, or `lr` itself where `per` is null."""

    name: Literal["adamw", "lars"]
    lr: float = Field(gt=0)
    per: int | None = Field(None, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    layer_decay: float | None = Field(None, gt=0, le=1)  # a block's learning rate is this share of the next one's
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


class Config(Common):
    """`optim:` without another name: AdamW."""

    name: Literal["adamw"] = "adamw"
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)


class LarsConfig(Common):
    """`optim: {name: lars}`, for batches of many thousand images (You et al., 2017)."""

    name: Literal["lars"] = "lars"
    momentum: Beta = 0.9
    trust: float = Field(0.001, gt=0)  # how far a step goes, as a share of the weights' norm, at a learning rate of 1


_KINDS: dict[str, type[Common]] = {"adamw": Config, "lars": LarsConfig}


def _with_name(value: Any) -> Any:
    return {"name": "adamw", **value} if isinstance(value, Mapping) else value


def _choose(values: Any) -> type[Common] | None:
    return _KINDS.get(str(values.get("name", "adamw"))) if isinstance(values, Mapping) else None


Section = Annotated[
    Config | LarsConfig,
    Field(discriminator="name", json_schema_extra={"choose": _choose}),
    BeforeValidator(_with_name),
]


class Lars(torch.optim.Optimizer):
    """Momentum over gradients that are scaled to the norm of each matrix; vectors are neither scaled nor decayed.

    While `found_inf` (on the device) is set nothing moves, as with torch's fused optimizers, and the host never waits.
    """

    def __init__(self, parameters: list[dict[str, Any]], lr: float, momentum: float, trust: float) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "trust": trust, "weight_decay": 0.0})
        self.found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        assert closure is None, "the loop computes the gradient before it calls"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)

    def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        update = parameter.grad
        assert update is not None
        if parameter.ndim > 1:
            update = update.add(parameter, alpha=group["weight_decay"])
            weights, change = _norm(parameter), _norm(update)
            known = (weights > 0) & (change > 0)
            update = _local(update) * torch.where(known, group["trust"] * weights / change, 1.0)
        velocity = _local(state["momentum"])
        following = velocity * group["momentum"] + _local(update)
        values = _local(parameter)
        moved = values.add(following, alpha=-group["lr"])
        if self.found_inf is not None:
            held = self.found_inf > 0
            following, moved = torch.where(held, velocity, following), torch.where(held, values, moved)
        velocity.copy_(following)
        values.copy_(moved)


def _local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that several share, which may be all of it."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def _norm(tensor: Tensor) -> Tensor:
    """The norm of the whole tensor, whoever holds its parts."""
    norm = torch.linalg.vector_norm(tensor)
    whole: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return whole


def groups(module: nn.Module, weight_decay: float, layer_decay: float | None = None) -> list[dict[str, Any]]:
    """Trainable parameters by decay and learning-rate scale; one-dimensional ones (norms, biases) do not decay.

    Nor do those that the objective calls `undecayed`. With a layer-wise decay a backbone's block learns slower than
    the next (Clark et al., 2020), and what stands before the blocks slowest of all, as in MAE and BEiT.
    """
    undecayed: Collection[str] = getattr(getattr(module, "objective", module), "undecayed", ())
    trainable = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    if layer_decay is None:
        decayed = [p for name, p in trainable if _decays(name, p, undecayed)]
        plain = [p for name, p in trainable if not _decays(name, p, undecayed)]
        return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    depth = 1 + max((layer_of(name, 0) - 1 for name, _ in module.named_parameters() if _BLOCK.search(name)), default=-1)
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trainable:
        scale = layer_decay ** (depth + 1 - layer_of(name, depth))
        found.setdefault((scale, weight_decay if _decays(name, parameter, undecayed) else 0.0), []).append(parameter)
    return [{"params": members, "lr_scale": scale, "weight_decay": decay} for (scale, decay), members in found.items()]


def _decays(name: str, parameter: Tensor, undecayed: Collection[str]) -> bool:
    return parameter.ndim > 1 and name.rpartition(".")[2] not in undecayed


_BLOCK = re.compile(r"(?:^|\.)backbone\.blocks\.(\d+)\.")
_BEFORE = re.compile(r"(?:^|\.)backbone\.(?:cls_token|reg_token|pos_embed|patch_embed\.|norm_pre\.)")


def layer_of(name: str, depth: int) -> int:
    """A parameter's layer: 0 before the blocks, then one a block, and `depth` + 1 for all else, a head among it."""
    if block := _BLOCK.search(name):
        return int(block[1]) + 1
    return 0 if _BEFORE.search(name) else depth + 1


def build(config: Config | LarsConfig, module: nn.Module) -> torch.optim.Optimizer:
    """The optimizer; each can be told on the device, without asking the host, to leave everything as it is."""
    parameters = groups(module, config.weight_decay, config.layer_decay)
    if isinstance(config, LarsConfig):
        return Lars(parameters, config.lr, config.momentum, config.trust)
    # Of torch's own, the fused ones alone obey.
    return torch.optim.AdamW(parameters, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def forget_others(optimizer: torch.optim.Optimizer) -> bool:
    """Drop what a checkpoint holds of another kind of optimizer, where that was changed; whether there was any."""
    own = {"momentum"} if isinstance(optimizer, Lars) else {"step", "exp_avg", "exp_avg_sq"}
    foreign = [parameter for parameter, state in optimizer.state.items() if state and state.keys() != own]
    for parameter in foreign:
        optimizer.state[parameter] = {}
    return bool(foreign)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group this learning rate, times its own scale if it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def get_lr(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate that was set: that of the groups that have no smaller scale."""
    return max(float(group["lr"]) for group in optimizer.param_groups)
