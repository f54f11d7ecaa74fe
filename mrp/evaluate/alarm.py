"""When the features of a run count as collapsed, and the evidence that is kept of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from mrp.evaluate.config import Diagnose


class Alarm:
    """Counts how often in a row each threshold was crossed, from the step `start` on."""

    def __init__(self, config: Diagnose, start: int) -> None:
        self._config = config
        self._start = start
        self._crossed: dict[str, int] = {}

    def check(self, step: int, values: Mapping[str, float]) -> str | None:
        """Returns what is wrong, in one sentence, when a threshold has just been crossed `patience` times in a row."""
        if step < self._start:
            return None
        fault = None
        for name, lower_is_worse, limit in (
            ("features/rank_me", True, self._config.min_rank),
            ("features/spread", True, self._config.min_spread),
            ("features/loss_over_variance", False, self._config.max_loss_over_variance),
        ):
            if name not in values:
                continue
            value = float(values[name])  # a value that is not finite stands in the metrics as text
            good = value > limit if lower_is_worse else value < limit  # NaN is never good
            self._crossed[name] = 0 if good else self._crossed.get(name, 0) + 1
            if self._crossed[name] == self._config.patience:
                side = "below" if lower_is_worse else "above"
                fault = f"{name} has been {value:.4g}, {side} {limit:g}, {self._config.patience} times in a row"
        return fault


def save_evidence(folder: Path, values: Mapping[str, float], features: Tensor) -> None:
    """Writes the numbers and the features that an alarm was raised on."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "diagnostics.json").write_text(json.dumps(values, indent=1))
    save_file({"features": features.contiguous()}, folder / "features.safetensors")
