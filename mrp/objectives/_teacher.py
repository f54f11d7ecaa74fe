"""A teacher: the moving average of a backbone over training, which sees whole images and sets the targets."""

from __future__ import annotations

import copy
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from mrp.config import ConfigError, Node
from mrp.models.blocks import Block
from mrp.models.vit import Kept, VisionTransformer, embed, encode


class Config(Node):
    """`teacher:`; the share of itself that it keeps at each step: from `decay` evenly to `last` in so many steps."""

    decay: float = Field(0.9998, ge=0, le=1)
    last: float | None = Field(None, ge=0, le=1)  # null: the same throughout
    steps: int = Field(0, ge=0)

    def decay_at(self, step: int) -> float:
        """What it keeps in the update after step `step`, counted from zero."""
        if self.last is None:
            return self.decay
        done = min(1.0, (step + 1) / self.steps) if self.steps else 1.0
        return self.decay + (self.last - self.decay) * done


class Teacher(nn.Module):
    """Averages what is trained, in float32, and shares the rest with the student, so that nothing is kept twice."""

    def __init__(self, config: Config, student: VisionTransformer, last: int, kept: Kept) -> None:
        super().__init__()
        if last > len(student.blocks):
            raise ConfigError(f"objective.layers: {last} of the backbone's {len(student.blocks)} blocks; lower it")
        if kept == "added" and not isinstance(student.blocks[0], Block):
            raise ConfigError("backbone.name: its blocks do not say what their feed-forward part adds; take another")
        self.config = config
        self.last = last
        self.kept = kept
        fixed = [tensor for tensor in (*student.parameters(), *student.buffers()) if not tensor.requires_grad]
        self.backbone = copy.deepcopy(student, {id(tensor): tensor for tensor in fixed}).requires_grad_(False)
        trained = [name for name, parameter in student.named_parameters() if parameter.requires_grad]
        self._trained = tuple(trained)
        self._shared = tuple(name for name in student.state_dict() if name not in trained)
        self.register_state_dict_post_hook(_leave_out_shared)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_put_in_shared)  # type: ignore[no-untyped-call]
        self.eval()

    def train(self, mode: bool = True) -> Teacher:
        """Stay as in evaluation: a teacher drops nothing out."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """What its last blocks say of every patch of the whole image, in float32."""
        found = encode(self.backbone, embed(self.backbone, images), layers=self.kept).layers
        return [layer[:, self.backbone.num_prefix_tokens :].float() for layer in found[-self.last :]]  # B N D each

    @torch.no_grad()
    def follow(self, student: VisionTransformer, step: int, moved: Tensor) -> None:
        """Move towards the student, unless the optimizer was held back; the host need not know."""
        weight = (1 - self.config.decay_at(step)) * moved
        averages = self._averaged(self.backbone)
        distances = list(torch._foreach_sub(self._averaged(student), averages))
        torch._foreach_mul_(distances, weight)
        torch._foreach_add_(averages, distances)

    def _averaged(self, vit: VisionTransformer) -> list[Tensor]:
        parameters = dict(vit.named_parameters())
        return [parameters[name] for name in self._trained]


def _leave_out_shared(teacher: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    assert isinstance(teacher, Teacher)
    for name in teacher._shared:
        del state[f"{prefix}backbone.{name}"]


def _put_in_shared(teacher: nn.Module, state: dict[str, Any], prefix: str, *more: Any) -> None:
    assert isinstance(teacher, Teacher)
    own = teacher.backbone.state_dict()
    state |= {f"{prefix}backbone.{name}": own[name] for name in teacher._shared}
