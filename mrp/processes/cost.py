"""What a training step costs, counted on shapes alone: no memory is taken and nothing is computed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from mrp.batch import Batch
from mrp.config import ConfigError
from mrp.processes.memory import host_memory

_OVERHEAD = 1.2  # of what the count cannot see: workspaces, fragmentation, the allocator's rounding
_SHARE = 0.85  # of a device's memory that a run may plan to fill


@dataclass(frozen=True, slots=True)
class Cost:
    """The size of a model and the work of one image."""

    parameters: int
    trainable: int
    forward_flops: int  # an image
    training_flops: int  # an image, forward and backward
    activation_bytes: int  # an image, kept for the backward pass

    def memory(self, micro_batch: int) -> int:
        """An estimate of the bytes of a training process: weights, gradients, two moments, activations."""
        state = 4 * (self.parameters + 3 * self.trainable)
        return int(state + _OVERHEAD * micro_batch * self.activation_bytes)

    def micro_batch(self, share: int, memory: int, views: int = 1) -> int:
        """The most images at once that divide a rank's share of the batch and fit into this memory (at least one).

        The views of a sample, which are decoded together, stay together.
        """
        return next((size for size in _divisors(share, views) if self.memory(size) <= _SHARE * memory), views)

    def smaller(self, tried: int, used: int, share: int, memory: int, views: int = 1) -> int:
        """What would fit where `tried` did not with so many bytes in use; `tried` itself where nothing would."""
        error = max(1.0, used / self.memory(tried))  # by how much the estimate was too low, at the least
        sizes = [size for size in _divisors(share, views) if size < tried]
        fitting = [size for size in sizes if error * self.memory(size) <= _SHARE * memory]
        return fitting[0] if fitting else min(sizes, default=tried)


def _divisors(share: int, views: int) -> list[int]:
    return [size for size in range(share, 0, -views) if share % size == 0]


def measure(step: nn.Module, channels: int, size: tuple[int, int]) -> Cost:
    """Run a step that was built on the meta device, with tensors that have shapes but no content, and count."""
    parameters = list(step.parameters())
    two, four = _count(step, channels, size, 2), _count(step, channels, size, 4)
    forward, training, activations = ((more - fewer) // 2 for fewer, more in zip(two, four, strict=True))
    return Cost(
        parameters=sum(parameter.numel() for parameter in parameters),
        trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        forward_flops=forward,
        training_flops=training,
        activation_bytes=activations,
    )


def _count(step: nn.Module, channels: int, size: tuple[int, int], images: int) -> tuple[int, int, int]:
    """FLOPs of the forward pass, of forward and backward, and bytes that are kept in between."""
    with FakeTensorMode():
        weights = {
            f"step.{name}": torch.empty(tensor.shape, dtype=tensor.dtype, requires_grad=tensor.requires_grad)
            for name, tensor in (*step.named_parameters(), *step.named_buffers())
        }
        keys = torch.zeros(images, dtype=torch.int64)
        batch = Batch(torch.zeros(images, channels, *size), keys, labels=keys)
        try:
            counts: tuple[int, int, int] = functional_call(_Counting(step), weights, (batch,))
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise ConfigError(
                f"objective: its forward pass needs numbers that are not known before it is run ({error.func}), so its "
                "memory cannot be foreseen; give machine.micro_batch a number"
            ) from None
        return counts


class _Counting(nn.Module):
    """Both passes in one call, since a backward pass that recomputes activations needs the weights once more."""

    def __init__(self, step: nn.Module) -> None:
        super().__init__()
        self.step = step

    def forward(self, batch: Batch) -> tuple[int, int, int]:
        saved: dict[int, Tensor] = {}

        def remember(tensor: Tensor) -> Tensor:
            saved[tensor.untyped_storage()._cdata] = tensor  # held, so that no later storage takes its address
            return tensor

        with FlopCounterMode(display=False) as counter:
            with saved_tensors_hooks(remember, lambda tensor: tensor):
                output = self.step(batch)
            forward = counter.get_total_flops()
            kept = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
            output.loss.backward()
        return forward, counter.get_total_flops(), kept


def device_memory(device: torch.device, processes: int) -> int:
    """Bytes that one training process may count on: its GPU's, or its part of the host's."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return host_memory() // processes
