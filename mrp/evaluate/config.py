"""The sections of a configuration that ask for evaluation while a run trains; importing this loads no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mrp.config import Duration, Node


class Section(Node):
    """What every evaluator's section has."""

    every: Duration | None = None  # how often while a run trains, and after its last step; null: never

    def content(self) -> str:
        """Returns a hash of the files that the options name, for a result is kept under what it was measured on."""
        return ""


class Paired(Node):
    """Where the images of a dense task are, which are paired with their targets by name."""

    images: str  # the folder of images
    list: str | None = None  # a file with one image per line (with or without its ending); null: all in the folder
    rename: tuple[str, str] | None = None  # where names differ: the part of an image's name, and what stands instead

    @property
    def targets(self) -> str:
        """Returns the folder of targets."""
        raise NotImplementedError


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
