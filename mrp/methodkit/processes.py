"""All that a method may ask of the other processes: how many there are, and means, sums and maxima over them."""

from __future__ import annotations

from typing import Literal

import torch.distributed as distributed
from torch import Tensor
from torch.distributed import _functional_collectives as collectives


def num_processes() -> int:
    """Returns how many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def mean_over_processes(tensor: Tensor) -> Tensor:
    """Returns the mean over all processes, with the gradient that makes two processes train as one would.

    Every process computes the same loss from this mean. The exact gradient with respect to the local tensor is 1/P of
    the sum of P equal gradients, that is the gradient with respect to the mean: it passes through unchanged, and the
    backward pass needs no communication.
    """
    if num_processes() == 1:
        return tensor
    local = tensor.detach()
    return tensor + (over_processes(local, "sum") / num_processes() - local)


def over_processes(tensor: Tensor, how: Literal["sum", "max"]) -> Tensor:
    """Returns the sum or the maximum over all processes, without a gradient."""
    if num_processes() == 1:
        return tensor.detach()
    group = distributed.group.WORLD
    assert group is not None
    found: Tensor = collectives.all_reduce(tensor.detach(), how, group)
    return found
