"""The sections `optim:` (what every optimizer has) and `average:`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from mrp.config import Duration, Node
from mrp.optim.schedules import half_cosine, stepwise

Beta = Annotated[float, Field(ge=0, lt=1)]


class Section(Node):
    """What every optimizer has; the peak learning rate is `lr * batch / per`, or `lr` itself where `per` is null."""

    name: str  # of the optimizer
    lr: float = Field(gt=0)  # the learning rate after warm-up, per `per` images of a batch
    per: int | None = Field(None, gt=0)  # images that lr is given for; null: lr holds for any batch
    weight_decay: float = Field(0.05, ge=0)  # of matrices; biases, norms and tokens are not decayed
    layer_decay: float | None = Field(None, gt=0, le=1)  # a block's learning rate is this share of the next one's
    warmup: Duration = Duration(0, "steps")  # the time in which the learning rate rises from 0
    min_lr: float = Field(0.0, ge=0)  # what the learning rate falls to
    drops: tuple[Duration, ...] = ()  # a tenth from each of these on, in place of half a cosine down to min_lr
    clip: float | None = Field(None, gt=0)  # the largest norm of the gradient; null: none

    def peak_lr(self, batch: int) -> float:
        """Returns the learning rate after warm-up."""
        return self.lr * batch / self.per if self.per else self.lr

    def lr_at(self, step: int, total: int, warmup: int, batch: int, drops: Sequence[int] = ()) -> float:
        """Returns the learning rate of step `step`, counted from zero; lengths are in steps."""
        if self.drops:
            return stepwise(step, warmup, self.peak_lr(batch), drops)
        return half_cosine(step, total, warmup, self.peak_lr(batch), self.min_lr)


class Average(Node):
    """`average:`, the moving average of the weights over the run."""

    decay: float = Field(0.9999, ge=0, lt=1)  # the share of itself that it keeps at each step
