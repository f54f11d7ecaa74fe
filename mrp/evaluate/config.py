"""The sections of a configuration that ask for evaluation while a run trains; importing this loads no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mrp.config import Duration, Node


class Section(Node):
    """What every evaluator's section has."""

    every: Duration | None = None  # how often while a run trains, and after its last step; null: never


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
