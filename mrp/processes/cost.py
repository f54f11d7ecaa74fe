"""What a training step costs, counted on shapes alone: no memory is taken and nothing is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from mrp import outside
from mrp.batch import Batch, Output
from mrp.config import ConfigError
from mrp.processes.container import host_memory

_OVERHEAD = 1.2  # allows for what the count cannot see: workspaces, fragmentation, the allocator's rounding
_PROCESS = 450 << 20  # bytes of the host that Python, torch and mrp take in a process, before there is a model
_SHARE = 0.85  # of a device's memory that a run may plan to fill
# FLOPs of a micro-batch that keep a device busy for about 0.1 s (512 images of 224 x 224 with MAE and a ViT-B). Next to
# that the start of its kernels takes no time: a larger one saves nothing, needs memory and makes the loader wait.
_ENOUGH_WORK = 32e12
# FLOPs of a micro-batch below which one thread computes on a CPU: two of them gain a third where the cores are free,
# and lose two thirds of the speed where half of them are not (docs/measurements/2026-11-27-threads.md).
_WORTH_THREADS = 8e9
_aten = torch.ops.aten
_ASKS_WHERE = torch.ops.prim.device.default  # two of three calls that a count sees: answered at once
# The count runs on a CPU, for whose attention torch 2.11 has no formula: it is that of a GPU's.
_FORMULAS = {
    _aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[_aten._scaled_dot_product_flash_attention],
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _aten._scaled_dot_product_flash_attention_backward
    ],
} | flop_registry


@dataclass(frozen=True, slots=True)
class Cost:
    """The size of a model and the work of one image, where that changes over the run the most that it comes to."""

    parameters: int
    trainable: int
    forward_flops: int  # per image
    training_flops: int  # per image, forward and backward
    activation_bytes: int  # per image, kept for the backward pass
    moments: float = 2.0  # numbers that the optimizer keeps per trained parameter, on average
    changes: bool = False  # whether the work changes over the run, as with a mask ratio that does

    @property
    def bound(self) -> str:
        """Returns what is said before FLOPs of the run: nothing where they are exact."""
        return "at most " if self.changes else ""

    def memory(self, micro_batch: int) -> int:
        """Returns an estimate of a training process's bytes: weights, gradients, moments and activations."""
        state = 4 * (self.parameters + (1 + self.moments) * self.trainable)
        return int(state + _OVERHEAD * micro_batch * self.activation_bytes)

    def micro_batch(self, share: int, memory: int, inseparable: int = 1) -> int:
        """Returns how many images a process should take at once: a divisor of its share of the batch.

        It is the largest one that fits into this memory and is no larger than saves time. Images that are
        `inseparable`, such as the views of one sample, are taken together.
        """
        sizes = _divisors(share, inseparable)
        return next((size for size in sizes if self._fits(size, memory) and self._saves_time(size)), inseparable)

    def threads_pay(self, micro_batch: int) -> bool:
        """Returns whether more than one thread of a CPU should work on a micro-batch of so many images."""
        return micro_batch * self.training_flops >= _WORTH_THREADS

    def smaller(self, tried: int, used: int, share: int, memory: int, inseparable: int = 1) -> int:
        """Returns what would fit where `tried` images failed with `used` bytes; `tried` where nothing would."""
        error = max(1.0, used / self.memory(tried))  # by how much the estimate was too low, at the least
        sizes = [size for size in _divisors(share, inseparable) if size < tried]
        return next((size for size in sizes if self._fits(size, memory / error)), min(sizes, default=tried))

    def _fits(self, micro_batch: int, memory: float) -> bool:
        return self.memory(micro_batch) <= _SHARE * memory

    def _saves_time(self, micro_batch: int) -> bool:
        return micro_batch * self.training_flops <= _ENOUGH_WORK


def _divisors(share: int, multiple_of: int) -> list[int]:
    """Returns the divisors of a share that are multiples of a number, the largest first."""
    return [size for size in range(share, 0, -multiple_of) if share % size == 0]


def measure(step: nn.Module, channels: int, size: tuple[int, int], views: int = 1) -> Cost:
    """Counts the cost of a step that was built on the meta device: it runs on tensors without content."""
    parameters = list(step.parameters())
    two, four = (_count(step, channels, size, samples * views) for samples in (2, 4))
    forward, training, activations = ((more - fewer) // (2 * views) for fewer, more in zip(two, four, strict=True))
    return Cost(
        parameters=sum(parameter.numel() for parameter in parameters),
        trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        forward_flops=forward,
        training_flops=training,
        activation_bytes=activations,
    )


def reported_names(step: nn.Module, channels: int, size: tuple[int, int], views: int = 1) -> tuple[set[str], set[str]]:
    """Returns the names of the metrics, and of the numbers per sample, that a step on the meta device reports."""
    output: Output = _on_fake_tensors(step, channels, size, 2 * views)
    return set(output.metrics), set(output.per_sample)


def _count(step: nn.Module, channels: int, size: tuple[int, int], images: int) -> tuple[int, int, int]:
    """Returns the FLOPs of the forward pass, those of both passes, and the bytes that are kept in between."""
    try:
        counts: tuple[int, int, int] = _on_fake_tensors(_Counting(step), channels, size, images)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise ConfigError(
            f"objective: its forward pass needs numbers that are not known before it is run ({error.func}), so its "
            "memory cannot be foreseen; give machine.micro_batch a number"
        ) from None
    except AssertionError as error:
        if "FakeTensors" not in str(error):
            raise
        raise ConfigError(
            f"{outside.blamed(error) or 'objective'}: uses a tensor that is neither a parameter nor a buffer of the "
            "method, so it would be neither moved to a device nor saved; register it (nn.ModuleList, nn.Parameter, "
            "register_buffer)"
        ) from None
    return counts


def _on_fake_tensors(module: nn.Module, channels: int, size: tuple[int, int], images: int) -> Any:
    with FakeTensorMode():
        weights = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, requires_grad=tensor.requires_grad)
            for name, tensor in (*module.named_parameters(), *module.named_buffers())
        }
        keys = torch.zeros(images, dtype=torch.int64)
        batch = Batch(torch.zeros(images, channels, *size), keys, labels=keys, places=keys)
        return functional_call(module, weights, (batch,))


class _Counting(nn.Module):
    """Runs both passes in one call, since a backward pass that recomputes activations needs the weights again.

    Attention with a learned relative position bias is counted as it is computed on a CPU, where its probabilities are
    kept: a GPU's fused kernel needs less, and falls back to this where it cannot be used.
    """

    def __init__(self, step: nn.Module) -> None:
        super().__init__()
        self.step = step

    def forward(self, batch: Batch) -> tuple[int, int, int]:
        saved: dict[int, Tensor] = {}

        def remember(tensor: Tensor) -> Tensor:
            saved[tensor.untyped_storage()._cdata] = tensor  # held, so that no later storage takes its address
            return tensor

        with _Flops() as counter:  # type: ignore[no-untyped-call]
            with saved_tensors_hooks(remember, lambda tensor: tensor):
                output = self.step(batch)
            forward = counter.total
            kept = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
            if output.loss.requires_grad:  # or else a later check says what is wrong
                output.loss.backward()
        return forward, counter.total, kept


class _Flops(TorchDispatchMode):
    """Adds up FLOPs by torch's formulas; torch's own counter also keeps them by module, which takes as long again."""

    supports_higher_order_operators = True
    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _ASKS_WHERE:
            return args[0].fake_device
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = _FORMULAS.get(getattr(func, "_overloadpacket", func))
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=out)
        return out


def device_memory(device: torch.device, processes: int) -> int:
    """Returns the bytes that one training process may count on: its GPU's, or its part of the host's."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    share = host_memory() // processes
    return max(share // 4, share - _PROCESS)
