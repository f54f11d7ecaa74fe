"""The `init:` section: which weights a run starts with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from mrp.config import Node

WeightsName = Literal["student", "teacher", "average"]


class Config(Node):
    """The weights that a run starts with: `init:` is a section, or the path alone.

    Once the run has a checkpoint of its own, it goes on from that and no longer needs them.
    """

    short: ClassVar[type | None] = str
    model_config = ConfigDict(serialize_by_alias=True)

    source: str = Field(alias="from")  # a run, one of its checkpoints, or a file or folder of another project
    # Which weights of the run are taken; null: those that its method names as the ones to judge, ordinarily the
    # student's.
    weights: WeightsName | None = None
    resample: bool = False  # interpolate the positions, so that they fit images of another size
    # What is done with weights for another number of channels. same: refuse them. spread: spread their colours evenly
    # over all channels.
    channels: Literal["same", "spread"] = "same"
    content: str | None = None  # sha256 of the weights; filled in when the run starts, unless it is given

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"from": value}
        if isinstance(value, Mapping) and "name" in value and "from" not in value:  # `init=PATH init.weights=teacher`
            return {"from": value["name"]} | {key: other for key, other in value.items() if key != "name"}
        return value

    @field_validator("source")
    @classmethod
    def _at_home(cls, value: str) -> str:
        return os.path.expanduser(value)  # shells leave a ~ behind `from:`, and some behind `init=`

    def identity(self) -> dict[str, Any]:
        """Returns what decides the results: the content of the weights, wherever they are stored."""
        names = "content", "weights", "resample", "channels"
        return {name: getattr(self, name) for name in names}
