"""The sections of a configuration that ask for evaluation while a run trains; importing this loads no torch."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from mrp.config import Duration, Node


class Section(Node):
    """What every evaluator's section has; null in its place is a section that says never."""

    short: ClassVar[type | None] = type(None)
    # How often this is measured while a run trains, and also after the last step; null or 0 steps: never.
    every: Duration | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_null(cls, value: Any) -> Any:
        return {"every": None} if value is None else value

    @field_validator("every")
    @classmethod
    def _zero_is_never(cls, every: Duration | None) -> Duration | None:
        return every if every and every.amount else None

    def content(self) -> str:
        """Returns a hash of the files that the options name, for a result is kept under what it was measured on."""
        return ""


class Paired(Node):
    """Where the images of a dense task are, which are paired with their targets by name."""

    images: str  # the folder of images
    list: str | None = None  # a file with one image per line (with or without its ending); null: all in the folder
    # Where the names differ: a part of an image's name, and what stands in its place in the other name.
    rename: tuple[str, str] | None = None


class Masks(Paired):
    """Images and their masks, PNG files of the same names with one class index per pixel."""

    masks: str  # the folder of masks

    @property
    def targets(self) -> str:
        """Returns the folder of masks."""
        return self.masks


class Depths(Paired):
    """Images and their depth maps of the same names, PNG of 16 bits or .npy files in metres."""

    depths: str  # the folder of depth maps

    @property
    def targets(self) -> str:
        """Returns the folder of depth maps."""
        return self.depths


class Labelled(Section):
    """Which training images give their labels to an evaluator; by default all of them."""

    # Use only this share of each class, the same images every time, and at least one per class.
    fraction: float | None = Field(None, gt=0, le=1)
    # Use only the images that this file names, one per line, like the lists of 1 % of ImageNet.
    list: str | None = None

    @model_validator(mode="after")
    def _check_which(self) -> Labelled:
        if self.fraction is not None and self.list is not None:
            raise ValueError("fraction and list both say which labels are used; give one of them")
        return self

    def content(self) -> str:
        """Returns a hash of the list of images."""
        path = Path(self.list).expanduser() if self.list else None
        return hashlib.sha256(path.read_bytes()).hexdigest() if path and path.is_file() else ""


class Heads(Labelled):
    """What the sweep over linear heads is asked for."""

    layers: int | None = Field(None, ge=1)  # how many of the last blocks are read; null: four, or all of fewer
    # What heads read. sweep: each layer under each pooling, and the last four side by side. dinov2: the class token of
    # the last layer and of the last four, with and without the last mean patch token. all: both.
    inputs: Literal["sweep", "dinov2", "all"] = "sweep"
    # The precision of the matrix products while heads are trained; auto: bf16 on a GPU that has it, else fp32.
    products: Literal["auto", "fp32", "bf16"] = "auto"


class Diagnose(Section):
    """`diagnose:`, what is measured on a fixed set of held-out images, and when the features count as collapsed."""

    images: int = Field(512, ge=8)  # how many images are measured
    # What is measured before this point, or before the end of warm-up, raises no alarm: the features of a fresh network
    # are nearly constant, and MAE's stay so for some hundred steps, while it learns the mean image.
    after: Duration = Duration(1000, "steps")
    action: Literal["warn", "stop"] = "warn"  # what an alarm does
    min_rank: float = Field(1.5, ge=0)  # an alarm is raised below this RankMe; 1 is a single direction
    # An alarm is raised below this variance over images, as a share of the mean square; a constant has 0.
    min_spread: float = Field(1e-3, ge=0)
    # An alarm is raised above this; a constant feature has 1 (Theorem 3.6).
    max_loss_over_variance: float = Field(0.99, gt=0)
    patience: int = Field(2, gt=0)  # how many times in a row a threshold must be crossed for an alarm


class Validation(Section):
    """`validation:`, how often a run is measured on `data.test` while it trains."""
