"""The moving average of a run's weights (Polyak and Juditsky, 1992), which is often the better model at its end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from pydantic import Field
from torch import Tensor, nn

from mrp.checkpoint.checkpoints import Checkpoint
from mrp.checkpoint.layout import place_like
from mrp.config import ConfigError, Node

GROUP = "average"  # the name of its tensors in a checkpoint


class Config(Node):
    """`average:`; the share of itself that it keeps at each step."""

    decay: float = Field(0.9999, ge=0, lt=1)


class Average:
    """Follows all that is trained, in float32; what is not trained it shares with the model."""

    def __init__(self, config: Config, module: nn.Module) -> None:
        self._decay = config.decay
        self._trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        self._tensors = {name: parameter.detach().float().clone() for name, parameter in self._trained.items()}

    def tensors(self) -> Mapping[str, Tensor]:
        """What a checkpoint holds of it, under the parameters' names."""
        return self._tensors

    @torch.no_grad()
    def restore(self, found: Checkpoint) -> None:
        """Go on from a checkpoint, or from the weights as they are where it was saved without an average."""
        if GROUP not in found.groups():
            for name, parameter in self._trained.items():
                self._tensors[name].copy_(parameter)
            return
        saved = found.tensors(GROUP)
        if saved.keys() != self._tensors.keys():
            raise ConfigError(
                "average: the checkpoint averages other parameters; start another run with --folder FOLDER"
            )
        for name, own in self._tensors.items():
            own.copy_(place_like(own, saved[name]))

    @torch.no_grad()
    def follow(self, moved: Tensor) -> None:
        """Move towards the weights, unless the optimizer was held back; the host need not know."""
        own = [_local(tensor) for tensor in self._tensors.values()]
        distances = list(torch._foreach_sub([_local(p.detach()).float() for p in self._trained.values()], own))
        torch._foreach_mul_(distances, (1 - self._decay) * moved)
        torch._foreach_add_(own, distances)

    @contextmanager
    def instead(self) -> Iterator[None]:
        """Have the model use the average; afterwards its weights are bit for bit what they were."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self._trained.items():
            own, weights = _local(self._tensors[name]), _local(parameter.detach())
            held = weights.clone()
            weights.copy_(own)
            own.copy_(held)


def begin(config: Config | None, module: nn.Module, found: Checkpoint | None) -> Average | None:
    """The average of a run that wants one: from its checkpoint, or from the weights as they are."""
    if config is None:
        return None
    average = Average(config, module)
    if found is not None:
        average.restore(found)
    return average


def _local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that several share, which may be all of it."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part
