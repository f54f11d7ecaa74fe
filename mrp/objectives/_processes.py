"""What a method has to know of the other processes: nothing but the mean over all of them."""

from __future__ import annotations

import torch.distributed as distributed
from torch import Tensor
from torch.distributed import _functional_collectives as collectives


def number() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def mean_over_processes(tensor: Tensor) -> Tensor:
    """The mean over all processes, with the gradient that makes two processes train as one.

    Every process goes on to compute the same from it, so each would send the others the gradient that they have
    already: the mean of all is what is at hand, and the backward pass needs no communication.
    """
    if number() == 1:
        return tensor
    own = tensor.detach()
    group = distributed.group.WORLD
    assert group is not None
    total: Tensor = collectives.all_reduce(own, "sum", group)
    return tensor + (total / number() - own)
