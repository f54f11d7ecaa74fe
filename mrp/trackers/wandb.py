"""Weights & Biases, with one id per run folder, so that a resumed run continues the same curves."""

from __future__ import annotations

import secrets
import sys
from functools import partial
from pathlib import Path
from typing import Any, Literal

from mrp import progress
from mrp.config import ConfigError
from mrp.environment import code_version
from mrp.trackers import Section, installed

_LAST = 150.0  # seconds in which what is left is sent at the end


class Config(Section):
    """`track: wandb`."""

    name: Literal["wandb"] = "wandb"


class Tracker:
    """Logs to a run of Weights & Biases."""

    def __init__(self, config: Config, folder: Path, resolved: dict[str, Any], resumed_at: int) -> None:
        with installed("wandb"):
            import wandb
        self._picture = wandb.Image
        name = folder / "wandb_id.txt"
        if not name.exists():
            name.write_text(secrets.token_hex(4))
        settings: dict[str, Any] = {"silent": True}
        if "finish_timeout" in wandb.Settings.model_fields:  # or an end without a network would wait for ever
            settings["finish_timeout"] = _LAST
        start = partial(
            wandb.init,
            project=config.project,
            name=folder.resolve().name,
            id=name.read_text().strip(),
            resume="allow",
            dir=str(folder),
            config=resolved | {"code": code_version()},
            settings=wandb.Settings(**settings),
        )
        try:
            try:
                self._run = start(mode=None if config.mode == "auto" else config.mode)
            except wandb.errors.CommError as error:
                progress.put(
                    f"warning: track: wandb is not reached ({_line(error)}); 'wandb sync' will send what it keeps in "
                    f"{folder / 'wandb'}", sys.stderr,
                )  # fmt: skip
                self._run = start(mode="offline")
        except wandb.Error as error:
            raise ConfigError(
                f"track: wandb does not start: {_line(error)}; track.mode=offline keeps the numbers here until "
                "'wandb sync'"
            ) from None

    def log(self, step: int, values: dict[str, float]) -> None:
        """Shows the values of a step."""
        self._run.log(values, step=step)

    def picture(self, step: int, name: str, array: Any) -> None:
        """Shows a picture."""
        self._run.log({name: self._picture(array)}, step=step)

    def summary(self, values: dict[str, float]) -> None:
        """Shows the best values beside the last ones, which wandb keeps itself."""
        self._run.summary.update({f"best/{name}": value for name, value in values.items()})

    def close(self) -> None:
        """Sends what is still held."""
        self._run.finish()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
