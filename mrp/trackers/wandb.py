"""Weights & Biases, with one id per run folder, so that a resumed run continues the same curves."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any, Literal

from mrp.config import ConfigError
from mrp.trackers import Section


class Config(Section):
    """`track: wandb`."""

    name: Literal["wandb"] = "wandb"


class Tracker:
    """Logs to a run of Weights & Biases."""

    def __init__(self, config: Config, folder: Path, resolved: dict[str, Any], resumed_at: int) -> None:
        try:
            import wandb
        except ImportError:
            raise ConfigError("track: wandb is not installed; 'pip install wandb', or track: none") from None
        name = folder / "wandb_id.txt"
        if not name.exists():
            name.write_text(secrets.token_hex(4))
        try:
            self._run = wandb.init(
                project=config.project,
                name=folder.resolve().name,
                id=name.read_text().strip(),
                resume="allow",
                mode=None if config.mode == "auto" else config.mode,
                dir=str(folder),
                config=resolved,
                settings=wandb.Settings(silent=True),
            )
        except wandb.Error as error:
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"track: wandb does not start: {reason}; track.mode=offline keeps the numbers here until 'wandb sync'"
            ) from None

    def log(self, step: int, values: dict[str, float]) -> None:
        """Shows the values of a step."""
        self._run.log(values, step=step)

    def close(self) -> None:
        """Sends what is still held."""
        self._run.finish()
