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
    action: Literal["warn", "stop"] = "warn"
    min_rank: float = Field(1.5, ge=0)  # RankMe; 1 is a single direction
    min_spread: float = Field(0.01, ge=0)  # variance over images as a share of the mean square; 0 is a constant
    max_loss_over_variance: float = Field(0.99, gt=0)  # 1 is what a constant feature reaches (Theorem 3.6)
    patience: int = Field(2, gt=0)  # times in a row that a threshold must be crossed


class Alarm:
    """Counts how often in a row each threshold was crossed; speaks once, when the patience is over."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._crossed: dict[str, int] = {}

    def hear(self, values: Mapping[str, float]) -> str | None:
        """What is wrong, in one sentence, at the moment at which it has lasted long enough."""
        limits = {
            "held_out/rank_me": (self._config.min_rank, "below"),
            "held_out/spread": (self._config.min_spread, "below"),
            "held_out/loss_over_variance": (self._config.max_loss_over_variance, "above"),
        }
        for name, (limit, side) in limits.items():
            if name not in values:
                continue
            value = values[name]
            crossed = not value > limit if side == "below" else not value < limit  # NaN crosses both
            self._crossed[name] = self._crossed.get(name, 0) + 1 if crossed else 0
            if self._crossed[name] == self._config.patience:
                return f"{name} has been {value:.4g}, {side} {limit:g}, {self._config.patience} times in a row"
        return None


def save_evidence(place: Path, values: Mapping[str, float], features: Tensor) -> None:
    """Keep what the alarm was raised on, to be looked at later."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "diagnostics.json").write_text(json.dumps(values, indent=1))
    save_file({"features": features.contiguous()}, place / "features.safetensors")
