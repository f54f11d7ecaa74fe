"""Tensors that may be sharded over processes: their local part, the whole, and averages that follow them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def local_part(tensor: Tensor) -> Tensor:
    """Returns the part of a tensor that this process holds: all of it where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Returns the whole of a tensor; where it is sharded, every process has to ask for it."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def laid_out_like(model: Tensor, tensor: Tensor) -> Tensor:
    """Returns a whole tensor on the device of `model`, sharded in the same way; a single number is never sharded."""
    tensor = tensor.to(model.device)
    if isinstance(model, DTensor) and tensor.shape == model.shape:
        return distribute_tensor(tensor, model.device_mesh, model.placements, src_data_rank=None)
    return tensor


def replace_unless(flag: Tensor | None, tensor: Tensor, new: Tensor) -> None:
    """Writes new values into a tensor, unless the flag on the device is set; the host does not wait."""
    tensor.copy_(new if flag is None else torch.where(flag > 0, tensor, new))


@torch.no_grad()
def move_towards(averages: Sequence[Tensor], values: Sequence[Tensor], rate: Tensor) -> None:
    """Moves each average towards its value by `rate` times their distance, in place; the host does not wait."""
    distances = list(torch._foreach_sub(list(values), list(averages)))
    torch._foreach_mul_(distances, rate)
    torch._foreach_add_(list(averages), distances)
