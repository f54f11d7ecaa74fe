"""The sections `optim:` (what every optimizer has) and `average:`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from mrp.config import Duration, Node
from mrp.schedules import Length, NonNegative, Positive, Schedule, half_cosine, main_value, stepwise

Beta = Annotated[float, Field(ge=0, lt=1)]
_MOST_LEFT = 0.05  # of the initial weights in an average at the end of a run
ADAMW_STATE = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps per parameter


class Section(Node):
    """What every optimizer has; the peak learning rate is `lr * batch / per`, or `lr` itself where `per` is null."""

    name: str  # the name of the optimizer
    # The learning rate after warm-up, per `per` images of a batch; or a schedule, in place of warmup, min_lr and drops.
    lr: Positive
    per: int | None = Field(None, gt=0)  # how many images lr is given for; null: lr holds for any batch
    weight_decay: NonNegative = 0.05  # the decay of matrices; biases, norms and tokens are not decayed
    layer_decay: float | None = Field(None, gt=0, le=1)  # a block's learning rate is this share of the next one's
    # With layer_decay, what stands before the blocks learns at full rate (blocks), or slowest of all (embedding).
    layer_decay_from: Literal["embedding", "blocks"] = "embedding"
    # Whether layer_decay holds for all of the learning rate; false: the numbers that it rises from and falls to are the
    # same for every layer.
    decay_bounds: bool = True
    warmup: Duration = Duration(0, "steps")  # the time in which the learning rate rises from 0
    min_lr: float = Field(0.0, ge=0)  # what the learning rate falls to
    # From each of these on, the learning rate is a tenth of what it was; this replaces half a cosine down to min_lr.
    drops: tuple[Duration, ...] = ()
    clip: float | None = Field(None, gt=0)  # the largest norm of the gradient; null: none

    @model_validator(mode="after")
    def _one_schedule(self) -> Section:
        for key in ("warmup", "min_lr", "drops") if isinstance(self.lr, Schedule) else ():
            default = Section.model_fields[key].default
            if getattr(self, key) != default:
                shown = f"'{default}'" if key == "warmup" else list(default) if key == "drops" else default
                raise ValueError(f"{key} is for a learning rate that is one number; set optim.{key}={shown}")
        return self

    def peak_lr(self, batch: int) -> float:
        """Returns the learning rate after warm-up."""
        return self._per_batch(main_value(self.lr), batch)

    def lr_at(self, step: int, length: Length, warmup: int = 0, drops: Sequence[int] = (), scale: float = 1.0) -> float:
        """Returns the learning rate of step `step`, from zero, for layers of this scale; lengths are in steps."""
        scale, of_peak = (scale, 1.0) if self.decay_bounds else (1.0, scale)
        peak = self.peak_lr(length.batch) * of_peak
        if isinstance(self.lr, Schedule):
            lr = self.lr.model_copy(update={"value": self.lr.value * of_peak})
            return scale * self._per_batch(lr.at(step, length), length.batch)
        if self.drops:
            return scale * stepwise(step, warmup, peak, drops)
        return scale * half_cosine(step, length.steps, warmup, peak, self.min_lr)

    def weight_decay_at(self, step: int, length: Length) -> float | None:
        """Returns the weight decay of step `step`; None where it never changes."""
        return self.weight_decay.at(step, length) if isinstance(self.weight_decay, Schedule) else None

    def _per_batch(self, lr: float, batch: int) -> float:
        return lr * batch / self.per if self.per else lr


class Average(Node):
    """`average:`, the moving average of the weights over the run."""

    decay: float = Field(0.9999, ge=0, lt=1)  # the share of itself that the average keeps at each step

    def fitting(self, steps: int) -> float:
        """Returns the decay for a run of so many steps: over a tenth of it, where its own would end as it begins."""
        if self.decay**steps <= _MOST_LEFT:
            return self.decay
        return max(0.0, round(1 - 10 / steps, max(5, len(str(steps)))))

    def remark(self, steps: int) -> str | None:
        """Returns what is wrong with it for a run of so many steps: it begins with the initial weights."""
        if (fitting := self.fitting(steps)) == self.decay:
            return None
        left = f"{self.decay**steps:.0%} of the initial weights in the average at the end of {steps:,} steps"
        return f"average.decay: {self.decay:g} leaves {left}; give {fitting:.8g}, an average over a tenth of the run"
