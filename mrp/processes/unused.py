"""Parameters that would be trained but get no gradient, found before training starts.

One process would train on without a word; several would end in a traceback, since they wait for that gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mrp.batch import Batch
from mrp.config import ConfigError


def unused_parameters(step: nn.Module, channels: int, size: tuple[int, int], views: int = 1) -> list[str]:
    """Returns the names of trainable parameters that the loss of a training step does not depend on.

    The step, which is not yet wrapped for several processes, takes all views of two samples once. It is left as it was.
    """
    trained = {name: parameter for name, parameter in step.named_parameters() if parameter.requires_grad}
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in step.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    unsaved = {name: (tensor, tensor._version) for name, tensor in _unsaved(step)}
    keys = torch.arange(2 * views)
    batch = Batch(torch.zeros(len(keys), channels, *size), keys, labels=torch.zeros_like(keys), places=keys)
    loss = step(batch.to(next(step.parameters()).device)).loss
    _refuse_foreign_weights(loss, set(map(id, step.parameters())))
    for name, tensor in _unsaved(step):
        before, version = unsaved.get(name, (tensor, tensor._version))
        if tensor is not before or tensor._version != version:
            raise ConfigError(
                f"objective: {name} changes in forward and is in no checkpoint, so a run that goes on would lose it; "
                f"make it a buffer: self.register_buffer('{name.rpartition('.')[2]}', ...); or let it begin as None, "
                "if it is only looked at"
            )
    gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True) if loss.requires_grad else ()
    with torch.no_grad():
        for module, name, buffer, before in buffers:  # only now, since the backward pass may need a buffer as it was
            setattr(module, name, buffer.copy_(before))  # a forward pass may have put another tensor in its place
    if not loss.requires_grad:
        return list(trained)
    return [name for name, gradient in zip(trained, gradients, strict=True) if gradient is None]


def _unsaved(step: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors that modules keep as plain attributes, without those that are computed from weights.

    Such are the weights of torch's `weight_norm` and `spectral_norm`, whose parameters have their names and an ending.
    """
    for where, module in step.named_modules():
        for name, tensor in vars(module).items():
            computed = any(own.startswith(f"{name}_") for own, _ in module.named_parameters(recurse=False))
            if isinstance(tensor, Tensor) and not (computed or tensor.requires_grad):
                yield f"{where}.{name}", tensor


def _refuse_foreign_weights(loss: Tensor, known: set[int]) -> None:
    """Ends with one line if the loss depends on weights that no optimizer and no checkpoint would ever see."""
    waiting, seen = [loss.grad_fn], set[Any]()
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [earlier for earlier, _ in node.next_functions]
        weight = getattr(node, "variable", None)
        if isinstance(weight, nn.Parameter) and id(weight) not in known:  # else images whose gradient is asked for
            raise ConfigError(
                f"objective: the loss depends on a weight of shape {tuple(weight.shape)} that is no parameter of the "
                "method, so it would be neither trained nor saved; keep modules in nn.ModuleList or nn.ModuleDict"
            )


def refuse_unused_parameters(step: nn.Module, channels: int, size: tuple[int, int], views: int = 1) -> None:
    """Ends with one line if a trainable parameter would get no gradient."""
    unused = unused_parameters(step, channels, size, views)
    if unused:
        others = f" (and {len(unused) - 3} others)" if len(unused) > 3 else ""
        raise ConfigError(
            f"objective: the loss does not depend on {', '.join(unused[:3])}{others}, so they would never be trained; "
            "use them in forward, or freeze them with requires_grad_(False)"
        )
