"""The optimizer's parameter groups: which parameters decay, and which learn slower than others."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_BLOCK = re.compile(r"(?:^|\.)backbone\.blocks\.(\d+)\.")
_BEFORE_BLOCKS = re.compile(r"(?:^|\.)backbone\.(?:cls_token|reg_token|pos_embed|patch_embed\.|norm_pre\.|rope\.)")
_ROTARY = "freqs"  # learned frequencies of positions: decay would make all places alike


def groups(
    module: nn.Module, weight_decay: float, layer_decay: float | None = None, embedding_decays: bool = True
) -> list[dict[str, Any]]:
    """Returns the trainable parameters by weight decay and learning-rate scale.

    One-dimensional parameters (norms, biases) and those that the objective lists as `undecayed` do not decay. With a
    layer-wise decay a backbone's block learns slower than the next one (Clark et al., 2020), and the parameters before
    the blocks (patches, positions, class token) learn slowest, as in MAE and BEiT, or at full rate, as in data2vec 2.
    """
    undecayed = {*getattr(getattr(module, "objective", module), "undecayed", ()), _ROTARY}
    trainable = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    if layer_decay is None:
        decayed = [(name, p) for name, p in trainable if _decays(name, p, undecayed)]
        plain = [(name, p) for name, p in trainable if not _decays(name, p, undecayed)]
        return [_named(decayed, weight_decay=weight_decay), _named(plain, weight_decay=0.0)]
    depth = 1 + max((layer_of(name, 0) - 1 for name, _ in module.named_parameters() if _BLOCK.search(name)), default=-1)
    members: dict[tuple[float, float], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in trainable:
        layer = layer_of(name, depth)
        scale = layer_decay ** (depth + 1 - layer) if layer or embedding_decays else 1.0
        decay = weight_decay if _decays(name, parameter, undecayed) else 0.0
        members.setdefault((scale, decay), []).append((name, parameter))
    return [_named(named, lr_scale=scale, weight_decay=decay) for (scale, decay), named in members.items()]


def layer_of(name: str, depth: int) -> int:
    """Returns a parameter's layer: 0 before the blocks, then one per block, and `depth` + 1 for the rest."""
    if block := _BLOCK.search(name):
        return int(block[1]) + 1
    return 0 if _BEFORE_BLOCKS.search(name) else depth + 1


def set_lr(optimizer: torch.optim.Optimizer, lr_of: Callable[[float], float]) -> None:
    """Gives every group the learning rate of its scale, which is 1 where it has none."""
    for group in optimizer.param_groups:
        group["lr"] = lr_of(group.get("lr_scale", 1.0))


def set_weight_decay(optimizer: torch.optim.Optimizer, weight_decay: float) -> None:
    """Gives it to every group that decays."""
    for group in optimizer.param_groups:
        if group["decays"]:
            group["weight_decay"] = weight_decay


def get_lr(optimizer: torch.optim.Optimizer) -> float:
    """Returns the learning rate that was set: that of the groups whose scale is largest."""
    return max(float(group["lr"]) for group in optimizer.param_groups)


def drop_foreign_state(optimizer: torch.optim.Optimizer) -> bool:
    """Drops what a checkpoint holds of another kind of optimizer; returns whether there was any."""
    own = state_names(optimizer)
    foreign = [p for p, state in optimizer.state.items() if p in own and state and state.keys() != set(own[p])]
    for parameter in foreign:
        optimizer.state[parameter] = {}
    return bool(foreign)


def state_names(optimizer: torch.optim.Optimizer) -> dict[Tensor, Collection[str]]:
    """Returns the names of each parameter's state.

    An optimizer lists them as `state_names`, and in a group whose state is another as the group's; one without says
    nothing of its state.
    """
    names: Collection[str] | None = getattr(optimizer, "state_names", None)
    if names is None:
        return {}
    return {p: group.get("state_names", names) for group in optimizer.param_groups for p in group["params"]}


def _decays(name: str, parameter: Tensor, undecayed: Collection[str]) -> bool:
    return parameter.ndim > 1 and name.rpartition(".")[2] not in undecayed


def _named(members: Sequence[tuple[str, nn.Parameter]], **options: float) -> dict[str, Any]:
    return {"params": [p for _, p in members], "param_names": [name for name, _ in members], **options}
