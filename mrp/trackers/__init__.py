"""The trackers, one file each: `Config`, its typed options, and `Tracker`, which shows the numbers of a run.

A `Tracker` is built from its `Config`, the run's folder, the resolved configuration and the step that the run goes on
from. `log(step, values)` shows the values of a step, and `close()` writes what is still held. A tracker that fails is
switched off, and training goes on.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from mrp.config import Node
from mrp.registry import Registry

TRACKERS = Registry("tracker", __name__, ("Config", "Tracker"), default="none")


class Section(Node):
    """`track:`, a tracker's name or a section: where numbers are shown beside the run's own metrics file."""

    short: ClassVar[type | None] = str
    name: str  # of the tracker
    every: int = Field(10, gt=0)  # steps between two log points
    project: str = "mrp"  # of wandb
    mode: Literal["auto", "online", "offline"] = "auto"  # of wandb; auto: what WANDB_MODE says, or online

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value
