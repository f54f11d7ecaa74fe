"""The section `mix:`, and the precision in which a model computes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mrp.config import Node

Precision = Literal["bf16", "fp32"]


class Mixing(Node):
    """`mix:`, how training changes images and labels; each part is off at 0."""

    mixup: float = Field(0.0, ge=0)  # alpha of the Beta distribution of shares (Zhang et al., 2018)
    cutmix: float = Field(0.0, ge=0)  # likewise (Yun et al., 2019); with both, each draw takes one or the other
    # Neighbours in the batch that share a draw: one share, one rectangle. null: the whole batch. Other code draws for
    # each process and each of its micro-batches; here the division does not matter, so give what it took at once.
    together: int | None = Field(None, gt=0, multiple_of=2)
    chance: float = Field(1.0, ge=0, le=1)  # of a draw to be used; else its images stay as they are
    erase: float = Field(0.0, ge=0, le=1)  # the share of images of which a rectangle is erased (Zhong et al., 2020)
    # The share of its channels without which an image is shown, as if it lacked them; one at least stays.
    drop_channels: float = Field(0.0, ge=0, lt=1)

    @property
    def pairs(self) -> bool:
        """Returns whether images are mixed two by two."""
        return self.mixup > 0 or self.cutmix > 0
