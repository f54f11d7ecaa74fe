"""No tracker: the run's own metrics file is enough."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from mrp.trackers import Section


class Config(Section):
    """`track:` without another name."""

    name: Literal["none"] = "none"


class Tracker:
    """Shows nothing."""

    def __init__(self, config: Config, folder: Path, resolved: dict[str, Any], resumed_at: int) -> None:
        pass

    def log(self, step: int, values: dict[str, float]) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""
