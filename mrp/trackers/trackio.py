"""trackio: a local database of runs, which `trackio show` opens in a browser."""

from __future__ import annotations

import contextlib
import secrets
import sys
from pathlib import Path
from typing import Any, Literal

from mrp.environment import code_version
from mrp.trackers import Section, installed


class Config(Section):
    """`track: trackio`."""

    name: Literal["trackio"] = "trackio"


class Tracker:
    """Logs to the database that all projects of a user share (TRACKIO_DIR says where it is).

    It knows a run by its name alone, and two folders may have one name, so a random part is added and kept. Steps that
    a killed run made after its last checkpoint are shown twice after a resume: nothing is taken back there.
    """

    def __init__(self, config: Config, folder: Path, resolved: dict[str, Any], resumed_at: int) -> None:
        with installed("trackio"):
            import trackio
        kept = folder / "trackio_name.txt"
        if not kept.exists():
            kept.write_text(f"{folder.resolve().name}-{secrets.token_hex(3)}")
        self._picture = trackio.Image
        with contextlib.redirect_stdout(sys.stderr):  # where it says how to look at it
            self._run = trackio.init(
                project=config.project, name=kept.read_text().strip(), config=resolved | {"code": code_version()},
                resume="allow", embed=False, auto_log_gpu=False, auto_log_cpu=False,
            )  # fmt: skip

    def log(self, step: int, values: dict[str, float]) -> None:
        """Shows the values of a step."""
        self._run.log(values, step=step)

    def picture(self, step: int, name: str, array: Any) -> None:
        """Shows a picture."""
        self._run.log({name: self._picture(array)}, step=step)

    def close(self) -> None:
        """Writes what is still held."""
        with contextlib.redirect_stdout(sys.stderr):
            self._run.finish()
