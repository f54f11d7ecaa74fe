"""Muon (Jordan et al., 2024) for the matrices of the blocks, and AdamW for everything else."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mrp.config import ConfigError
from mrp.optim.config import ADAMW_STATE, Beta, Section
from mrp.schedules import main_value
from mrp.tensors import laid_out_like, local_part, replace_unless, whole

_MATRIX = re.compile(r"(?:^|\.)blocks\.\d+\.(?:\w+\.)*(\w+)\.weight$")  # and the name of its layer
_STACKED = {"qkv": 3, "kv": 2, "key_value": 2}  # layers whose weight is several matrices, one above the other
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's quintic: steep at 0, so small singular values grow fast
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Config(Section):
    """`optim: {name: muon}`; learning rate and weight decay are those of AdamW (Liu et al., 2025)."""

    name: Literal["muon"] = "muon"
    momentum: Beta = 0.95  # the share of itself that the average of a matrix's gradient keeps at each step
    nesterov: bool = True  # mix the gradient into its average once more
    rms: float = Field(0.2, gt=0)  # root mean square of a matrix's step at a learning rate of 1; AdamW's is near 0.2
    iterations: int = Field(5, gt=0, lt=100)  # iterations of Newton-Schulz
    arithmetic: Literal["bf16", "fp32"] = "bf16"  # the precision in which Newton-Schulz computes
    betas: tuple[Beta, Beta] = (0.9, 0.95)  # betas of AdamW, which trains all that is no matrix of a block
    eps: float = Field(1e-8, gt=0)  # eps of AdamW


class Optimizer(torch.optim.AdamW):
    """Moves each matrix along its averaged gradient with all singular values made equal; the rest is AdamW's.

    Embeddings, heads, vectors and tokens are AdamW's, as Jordan has it. While `found_inf` (on the device) is set
    nothing changes. A sharded matrix is gathered for as long as its direction is computed; its state stays sharded.
    """

    state_names = ("gradient_average", *ADAMW_STATE)

    @staticmethod
    def state_names_of(name: str, parameter: Tensor) -> tuple[str, ...]:
        """Returns the names of a parameter's state, by the name that it has in the model."""
        return ("gradient_average",) if _layer(name, parameter) else ADAMW_STATE

    def __init__(self, groups: list[dict[str, Any]], config: Config) -> None:
        divided = [part for group in groups for part in _divided(group)]
        if not any("stacked" in part for part in divided):
            raise ConfigError("optim.name: muon is for the matrices of blocks, and this run trains none; take adamw")
        super().__init__(divided, lr=main_value(config.lr), betas=config.betas, eps=config.eps, fused=True)
        self._config = config
        self.found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates every parameter that has a gradient; those of matrices are used up."""
        assert closure is None, "the loop computes the gradient before this call"
        for group in (group for group in self.param_groups if "stacked" in group):
            for parameter, stacked in zip(group["params"], group["stacked"], strict=True):
                if parameter.grad is not None:
                    self._update(parameter, stacked, group)
                    parameter.grad = None  # so that AdamW leaves it out
        super().step()

    def _update(self, parameter: Tensor, stacked: int, group: dict[str, Any]) -> None:
        config, state, gradient = self._config, self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["gradient_average"] = torch.zeros_like(parameter)
        average = state["gradient_average"]
        next_average = average.lerp(gradient, 1 - config.momentum)
        direction = whole(gradient.lerp(next_average, config.momentum) if config.nesterov else next_average)
        matrices = direction.unflatten(0, (stacked, -1))
        change = orthogonalised(matrices, config.iterations, _DTYPES[config.arithmetic]).flatten(0, 1)
        change = local_part(laid_out_like(parameter, change.to(parameter.dtype)))
        length = config.rms * max(matrices.shape[1:]) ** 0.5  # the root mean square of `change` is one by this root
        weights = local_part(parameter)
        next_weights = (weights * (1 - group["lr"] * group["weight_decay"])).sub(change, alpha=group["lr"] * length)
        replace_unless(self.found_inf, weights, next_weights)
        replace_unless(self.found_inf, local_part(average), local_part(next_average))


def orthogonalised(matrices: Tensor, iterations: int, dtype: torch.dtype) -> Tensor:
    """Returns N x R x C matrices with the same singular vectors, and singular values near 1 (Newton-Schulz)."""
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.to(dtype)
    x = x.mT if tall else x
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)  # no singular value is above 1 now
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _layer(name: str, parameter: Tensor) -> str | None:
    """Returns the name of the layer whose weight a parameter is, if it is a matrix of a block."""
    found = _MATRIX.search(name) if parameter.ndim == 2 else None
    return None if found is None else found[1]


def _divided(group: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the matrices of blocks in a group, and what else it has, as far as there are any."""
    members = list(zip(group["param_names"], group["params"], strict=True))
    found = {name: layer for name, p in members if (layer := _layer(name, p))}
    ours = [(name, parameter) for name, parameter in members if name in found]
    rest = [(name, parameter) for name, parameter in members if name not in found]
    stacked = [_STACKED.get(found[name], 1) for name, _ in ours]
    parts = [
        group | {"params": ours, "stacked": stacked, "state_names": ("gradient_average",)},
        group | {"params": rest, "state_names": ADAMW_STATE},
    ]
    return [part for part in parts if part["params"]]
