"""TensorBoard: event files in the run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from mrp.config import dump
from mrp.trackers import Section, installed


class Config(Section):
    """`track: tensorboard`."""

    name: Literal["tensorboard"] = "tensorboard"


class Tracker:
    """Writes scalars and pictures to `tensorboard/` in the run's folder."""

    def __init__(self, config: Config, folder: Path, resolved: dict[str, Any], resumed_at: int) -> None:
        with installed("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter
        # Values that a killed run wrote after its last checkpoint are not shown.
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=resumed_at + 1)
        self._writer.add_text("configuration", f"```yaml\n{dump(resolved)}\n```", resumed_at)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Shows the values of a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, array: Any) -> None:
        """Shows a picture."""
        self._writer.add_image(name, array, step, dataformats="HWC")

    def close(self) -> None:
        """Writes what is still held."""
        self._writer.close()
