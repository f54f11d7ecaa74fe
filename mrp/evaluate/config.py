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
    every: Duration | None = None  # how often while a run trains, and after its last step; null or 0 steps: never

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
    rename: tuple[str, str] | None = None  # where names differ: the part of an image's name, and what stands instead


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

    fraction: float | None = Field(None, gt=0, le=1)  # of each class, the same images every time; at least one
    list: str | None = None  # a file with one name of an image per line, as the lists of 1 % of ImageNet are

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

    layers: int | None = Field(None, ge=1)  # of the last blocks; null: four, or all of fewer
    # What heads read. sweep: each layer under each pooling, and the last four side by side. dinov2: the class token of
    # the last layer and of the last four, with and without the last mean patch token. all: both.
    inputs: Literal["sweep", "dinov2", "all"] = "sweep"
    # The precision of the matrix products while heads are trained; auto: bf16 on a GPU that has it, and fp32 elsewhere.
    products: Literal["auto", "fp32", "bf16"] = "auto"


class Diagnose(Section):
    """`diagnose:`, what is measured on a fixed set of held-out images, and when the features count as collapsed."""

    images: int = Field(512, ge=8)  # how many are measured
    # Features of a fresh network are nearly constant, and MAE's stay so for some hundred steps, while it learns the
    # mean image: what is measured before this point, or before the end of warm-up, raises no alarm.
    after: Duration = Duration(1000, "steps")
    action: Literal["warn", "stop"] = "warn"  # what an alarm does
    min_rank: float = Field(1.5, ge=0)  # RankMe; 1 is a single direction
    min_spread: float = Field(1e-3, ge=0)  # variance over images as a share of the mean square; 0 is a constant
    max_loss_over_variance: float = Field(0.99, gt=0)  # 1 is what a constant feature reaches (Theorem 3.6)
    patience: int = Field(2, gt=0)  # times in a row that a threshold must be crossed


class Validation(Section):
    """`validation:`, how often a run is measured on `data.test` while it trains."""
