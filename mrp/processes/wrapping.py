"""One step on many processes: each holds the whole model and they average gradients (DDP), or each a part (FSDP2)."""

from __future__ import annotations

import contextlib
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from mrp.config import ConfigError
from mrp.methodkit.scheduled import LEVELS
from mrp.step import Step


def wrap(
    step: Step, accelerator: Accelerator, compile: Literal["auto", "yes", "no"], shard_over: Literal["none", "full"]
) -> nn.Module:
    """Returns the module to call, compiled and wrapped.

    The optimizer has to be built after this, since sharding replaces the parameters.
    """
    compiled = is_compiled(compile, accelerator.device)
    if shard_over == "full" and accelerator.num_processes > 1:
        shard(step, accelerator.device.type, accelerator.num_processes, compiled)
        return step
    if compiled:
        # A graph for each mode, readout and scheduled number of patches; torch's own limit is 8 of all of them.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 4 * LEVELS)
        step.compile(dynamic=False)
    wrapped: nn.Module = accelerator.prepare_model(step)
    return wrapped


def is_compiled(compile: Literal["auto", "yes", "no"], device: torch.device) -> bool:
    """Returns whether a step is compiled on this device."""
    return compile == "yes" or (compile == "auto" and device.type == "cuda")


def shard(step: Step, device: str, processes: int, compiled: bool = False) -> None:
    """Cuts every parameter over the processes, in place; a block's are gathered while it runs and then cut again.

    Nothing is cast on the way: the step casts for itself, so that the results are those of unsharded training. What is
    outside of the blocks is cut again after the forward pass too, since teachers and checkpoints, which need it between
    steps, expect every process to hold its own part.
    """
    mesh = init_device_mesh(device, (processes,))
    blocks = sharded_blocks(step)
    _refuse_shared_parameters(blocks)
    for block in blocks.values():
        if compiled:
            block.compile(dynamic=False)  # one graph per block: it would break where parameters are gathered anyway
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(step, mesh=mesh, reshard_after_forward=True)


def sharded_blocks(step: nn.Module) -> dict[str, nn.Module]:
    """Returns the modules whose parameters are gathered together: the members of every list called `blocks`."""
    return {
        f"{name}.{number}": block
        for name, module in step.named_modules()
        if name.rpartition(".")[2] == "blocks"
        for number, block in module.named_children()
    }


def synchronised(model: nn.Module, accelerator: Accelerator, last: bool) -> contextlib.AbstractContextManager[None]:
    """Returns a context for one micro-batch: only after the last one do the processes average their gradients."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
        return contextlib.nullcontext()
    return contextlib.nullcontext() if last else accelerator.no_sync(model)


def clip(step: nn.Module, limit: float | None) -> Tensor:
    """Returns the norm of the whole gradient, which is scaled down to the limit where there is one."""
    parameters = [parameter for parameter in step.parameters() if parameter.grad is not None]
    if limit is None:
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    else:
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _refuse_shared_parameters(blocks: dict[str, nn.Module]) -> None:
    owners: dict[int, str] = {}
    for name, block in blocks.items():
        for parameter in block.parameters():
            if (other := owners.setdefault(id(parameter), name)) != name:
                raise ConfigError(
                    f"machine.shard: {other} and {name} share a parameter, and each is sharded by itself; use none"
                )
