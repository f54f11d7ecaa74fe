"""The section `mix:`, and the precision in which a model computes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mrp.config import Node

Precision = Literal["bf16", "fp32"]


class Mixing(Node):
    """`mix:`, how training changes images and labels; each part is off at 0."""

    mixup: float = Field(0.0, ge=0)  # alpha of the Beta distribution that shares are drawn from (Zhang et al., 2018)
    # The same of cutmix (Yun et al., 2019); with both, each draw takes one or the other.
    cutmix: float = Field(0.0, ge=0)
    # How many neighbours in the batch share a draw: one share, one rectangle. null: the whole batch. Other code draws
    # once per process and micro-batch. Here the division does not matter, so give the number of images that the other
    # code took at once.
    together: int | None = Field(None, gt=0, multiple_of=2)
    # The share of draws that are used; the images of the other draws stay as they are.
    chance: float = Field(1.0, ge=0, le=1)
    erase: float = Field(0.0, ge=0, le=1)  # the share of images in which a rectangle is erased (Zhong et al., 2020)
    # The share of an image's channels that is left out, as if the image lacked them; at least one stays.
    drop_channels: float = Field(0.0, ge=0, lt=1)

    @property
    def pairs(self) -> bool:
        """Returns whether images are mixed two by two."""
        return self.mixup > 0 or self.cutmix > 0
