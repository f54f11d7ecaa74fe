"""When a run has collapsed: the thresholds, and what is done about it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor

from mrp.config import Duration, Node


class Config(Node):
    """`diagnose:`, what is measured on a fixed set of held-out images while the run goes on, and when to worry."""

    every: Duration | None = None  # null: never
    images: int = Field(512, ge=8)
    # Features of a fresh network are nearly constant, and MAE's stay so for some hundred steps, while it learns the
    # mean image: what is measured before this point, or before the end of warm-up, raises no alarm.
    after: Duration = Duration(1000, "steps")
    action: Literal["warn", "stop"] = "warn"
    min_rank: float = Field(1.5, ge=0)  # RankMe; 1 is a single direction
    min_spread: float = Field(1e-3, ge=0)  # variance over images as a share of the mean square; 0 is a constant
    max_loss_over_variance: float = Field(0.99, gt=0)  # 1 is what a constant feature reaches (Theorem 3.6)
    patience: int = Field(2, gt=0)  # times in a row that a threshold must be crossed


class Alarm:
    """Counts how often in a row each threshold was crossed, from `start` on, and speaks when the patience is over."""

    def __init__(self, config: Config, start: int) -> None:
        self._config = config
        self._start = start
        self._crossed: dict[str, int] = {}

    def hear(self, step: int, values: Mapping[str, float]) -> str | None:
        """What is wrong, in one sentence, at the moment at which it has lasted long enough."""
        if step < self._start:
            return None
        found = None
        for name, below, limit in (
            ("features/rank_me", True, self._config.min_rank),
            ("features/spread", True, self._config.min_spread),
            ("features/loss_over_variance", False, self._config.max_loss_over_variance),
        ):
            if name not in values:
                continue
            value = float(values[name])  # what is not finite stands in the metrics as text
            good = value > limit if below else value < limit  # NaN is never good
            self._crossed[name] = 0 if good else self._crossed.get(name, 0) + 1
            if self._crossed[name] == self._config.patience:
                side = "below" if below else "above"
                found = f"{name} has been {value:.4g}, {side} {limit:g}, {self._config.patience} times in a row"
        return found


def save_evidence(place: Path, values: Mapping[str, float], features: Tensor) -> None:
    """Keep what the alarm was raised on, to be looked at later."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "diagnostics.json").write_text(json.dumps(values, indent=1))
    save_file({"features": features.contiguous()}, place / "features.safetensors")
