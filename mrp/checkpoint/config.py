"""The section `checkpoint:`."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from mrp.config import Duration, Node

_LOWEST = ("loss", "error", "rmse", "abs_rel", "nll", "brier", "ece", "ece_equal_mass")  # ends of names
_LOWEST_AS_WHOLE = ("loss_over_variance", "uniformity", "log_uniformity", "alignment")  # without their evaluator


class Best(Node):
    """`best:`, or the name of its metric alone: the checkpoint that is kept because this metric is best there."""

    short: ClassVar[type | None] = str
    name: str = Field(min_length=1)  # the metric's name, as in metrics.jsonl
    # Which value is the best. null: the lowest for a name that ends in loss, error, rmse, abs_rel, nll, brier or ece,
    # and for loss_over_variance, uniformity, log_uniformity and alignment; else the highest.
    direction: Literal["highest", "lowest"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    def better(self, new: float, old: float | None) -> bool:
        """Returns whether the new value beats the old one; NaN beats nothing."""
        lowest = self.direction == "lowest"
        if self.direction is None:
            lowest = self.name.endswith(_LOWEST) or self.name.rpartition("/")[2] in _LOWEST_AS_WHOLE
        return new == new and (old is None or (new < old if lowest else new > old))


class Config(Node):
    """`checkpoint:`, when a checkpoint is written and how long it is kept; the last step always writes one."""

    every: Duration = Duration(1, "epochs")  # how often a checkpoint is written
    keep: int = Field(3, gt=0)  # how many of the newest checkpoints stay on the disk
    milestone: Duration | None = None  # write a checkpoint also at each multiple of this, and keep it for ever
    # Write a checkpoint also where this metric has its best value so far, and keep it until a better value comes.
    best: Best | None = None
    asynchronous: bool = True  # a process beside the training writes checkpoints, from a copy in the host's memory
