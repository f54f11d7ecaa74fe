"""A teacher: the moving average of a backbone over training, which sees whole images and sets the targets."""

from __future__ import annotations

import copy
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from mrp.config import ConfigError, Node
from mrp.methodkit.objective import freeze
from mrp.methodkit.scheduled import Scheduled
from mrp.models.blocks import KeyedBlock
from mrp.models.vit import Backbone, Kept, embed, encode
from mrp.schedules import Schedule, Share
from mrp.tensors import move_towards


class TeacherConfig(Node):
    """`teacher:` in a method's options: the share of itself that the teacher keeps at each step.

    It is `decay` throughout or as a schedule says, or goes linearly from `decay` to `last` in the first `steps` steps.
    """

    # The share of itself that the teacher keeps at each step, in the beginning; or a schedule of this share.
    decay: Share = 0.9998
    last: float | None = Field(None, ge=0, le=1)  # this share in the end; null: it stays at `decay`
    steps: int = Field(0, ge=0)  # how many steps this share takes from `decay` to `last`

    @model_validator(mode="after")
    def _one_schedule(self) -> TeacherConfig:
        if isinstance(self.decay, Schedule) and (self.last is not None or self.steps):
            raise ValueError("last and steps are for a decay that is one number; leave them out, or the schedule")
        return self

    def decay_at(self, step: int, decay: float) -> float:
        """Returns the share that is kept in the update after step `step`, counted from zero; it begins as `decay`."""
        if self.last is None:
            return decay
        done = min(1.0, (step + 1) / self.steps) if self.steps else 1.0
        return decay + (self.last - decay) * done


class Teacher(nn.Module):
    """The moving average, in float32, of the weights of a student that are trained; the others are the student's own.

    `teacher.backbone` is a backbone like the student's. What is not trained (fixed positions, say) is the same tensor
    in both and is saved once, with the student.
    """

    def __init__(self, config: TeacherConfig, student: Backbone, num_layers: int = 0, kept: Kept = "none") -> None:
        """Targets come from the last `num_layers` blocks: from their output, or from what their MLP adds to it.

        By default they come from the encoder's output, which has passed its last norm.
        """
        super().__init__()
        if num_layers > len(student.blocks):
            raise ConfigError(
                f"objective.layers: {num_layers} of the backbone's {len(student.blocks)} blocks; lower it"
            )
        if kept == "added" and not isinstance(student.blocks[0], KeyedBlock):
            raise ConfigError("backbone.name: its blocks do not say what their feed-forward part adds; take another")
        self.config = config
        self.decay = Scheduled(config.decay, "teacher.decay")
        self.num_layers = num_layers
        self.kept = kept
        fixed = [tensor for tensor in (*student.parameters(), *student.buffers()) if not tensor.requires_grad]
        self.backbone = copy.deepcopy(student, {id(tensor): tensor for tensor in fixed})
        self._trained = [name for name, parameter in student.named_parameters() if parameter.requires_grad]
        self._shared = [name for name in student.state_dict() if name not in self._trained]
        self.register_state_dict_post_hook(_leave_out_shared)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_put_in_shared)  # type: ignore[no-untyped-call]
        freeze(self)

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """Returns what each of its last blocks (or all of it) computes for every patch of the image, in float32."""
        encoded = encode(self.backbone, embed(self.backbone, images), layers=self.kept)
        layers = [encoded.tokens] if self.kept == "none" else encoded.layers[-self.num_layers :]
        return [layer[:, self.backbone.num_prefix_tokens :].float() for layer in layers]  # B N D each

    @torch.no_grad()
    def follow(self, student: Backbone, step: int, updated: Tensor) -> None:
        """Moves the average towards the student, unless the optimizer skipped its step; the host need not wait."""
        weight = (1 - self.config.decay_at(step, self.decay.now)) * updated
        move_towards(self._trained_weights(self.backbone), self._trained_weights(student), weight)

    def _trained_weights(self, vit: Backbone) -> list[Tensor]:
        return [vit.get_parameter(name) for name in self._trained]


def _leave_out_shared(teacher: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    assert isinstance(teacher, Teacher)
    for name in teacher._shared:
        del state[f"{prefix}backbone.{name}"]


def _put_in_shared(teacher: nn.Module, state: dict[str, Any], prefix: str, *more: Any) -> None:
    assert isinstance(teacher, Teacher)
    weights = teacher.backbone.state_dict()
    state |= {f"{prefix}backbone.{name}": weights[name] for name in teacher._shared}
