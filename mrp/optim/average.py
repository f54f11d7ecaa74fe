"""The moving average of a run's weights (Polyak and Juditsky, 1992), often a better model than the last weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mrp.config import ConfigError
from mrp.optim.config import Average as Config
from mrp.tensors import laid_out_like, local_part, move_towards

GROUP = "average"  # the name of its tensors in a checkpoint


class Average:
    """Averages every trained parameter, in float32; the model's other tensors it does not copy."""

    def __init__(self, config: Config, module: nn.Module) -> None:
        self._decay = config.decay
        self._trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        self._tensors = {name: parameter.detach().float().clone() for name, parameter in self._trained.items()}

    def tensors(self) -> Mapping[str, Tensor]:
        """Returns the averages under the parameters' names, for a checkpoint."""
        return self._tensors

    @torch.no_grad()
    def restore(self, saved: Mapping[str, Tensor] | None) -> None:
        """Goes on from a checkpoint's tensors, or from the weights where it was saved without an average (None)."""
        if saved is None:
            for name, parameter in self._trained.items():
                self._tensors[name].copy_(parameter)
            return
        if saved.keys() != self._tensors.keys():
            raise ConfigError(
                "average: the checkpoint averages other parameters; start another run with --folder FOLDER"
            )
        for name, tensor in self._tensors.items():
            tensor.copy_(laid_out_like(tensor, saved[name]))

    def follow(self, updated: Tensor) -> None:
        """Moves towards the weights, unless the optimizer changed nothing, which only the device needs to know."""
        weights = [local_part(parameter.detach()).float() for parameter in self._trained.values()]
        move_towards([local_part(tensor) for tensor in self._tensors.values()], weights, (1 - self._decay) * updated)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Makes the model use the average inside the block; afterwards its weights are bit for bit what they were."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self._trained.items():
            average, weights = local_part(self._tensors[name]), local_part(parameter.detach())
            current = weights.clone()
            weights.copy_(average)
            average.copy_(current)
