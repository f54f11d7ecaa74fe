"""Where the numbers of a run go: always a JSON-lines file, and TensorBoard or Weights & Biases by one setting."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field, model_validator

from mrp.config import ConfigError, Node

METRICS = "metrics.jsonl"
INTERRUPTED = "interrupted"  # in a line whose evaluation was left unfinished, and is made up for


class Config(Node):
    """`track:`, a tracker's name or a section."""

    name: Literal["none", "tensorboard", "wandb"] = "none"
    every: int = Field(10, gt=0)  # steps between two log points
    project: str = "mrp"
    mode: Literal["auto", "online", "offline"] = "auto"  # auto: what WANDB_MODE says, or online

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class Sink(Protocol):
    """Something that shows scalars."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Show the values of a step."""

    def close(self) -> None:
        """Hand over what is still held."""


class Tracker:
    """Writes one line a log point; on resume the lines after the checkpoint's step are cut, so none appears twice."""

    def __init__(self, config: Config, folder: Path, resolved: dict[str, Any], resumed_at: int) -> None:
        self.path = folder / METRICS
        with _writing(self.path):
            self._sinks = _open_sinks(config, folder, resolved, resumed_at)
            cut(self.path, resumed_at)
            self._file = self.path.open("a", encoding="utf-8")

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record the values of a step; JSON has no NaN, so a non-finite value becomes text."""
        line = {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
        with _writing(self.path):
            self._file.write(json.dumps({"step": step, **line}) + "\n")
            self._file.flush()
        for sink in self._sinks:
            sink.log(step, values)

    def close(self) -> None:
        """Flush everything."""
        for sink in self._sinks:
            sink.close()
        with _writing(self.path):
            self._file.close()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written: {error.strerror or error}; mend it and run the same command again"
        ) from None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file, if there is one; a line torn by a kill is passed over."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(values, dict) and isinstance(values.get("step"), int):
            found.append(values)
    return found


def cut(path: Path, step: int) -> None:
    """Drop the lines after `step`, and what is torn, in one atomic replacement."""
    if not path.exists():
        return
    replacement = path.with_suffix(".tmp")
    kept = [json.dumps(line) + "\n" for line in read_lines(path) if line["step"] <= step]
    replacement.write_text("".join(kept), encoding="utf-8")
    os.replace(replacement, path)


def _open_sinks(config: Config, folder: Path, resolved: dict[str, Any], resumed_at: int) -> list[Sink]:
    match config.name:
        case "tensorboard":
            return [_TensorBoard(folder, resumed_at)]
        case "wandb":
            return [_Wandb(config, folder, resolved)]
        case "none":
            return []


class _TensorBoard:
    def __init__(self, folder: Path, resumed_at: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError(
                "track: tensorboard is not installed; 'pip install tensorboard', or track: none"
            ) from None
        # What a killed run had written after the checkpoint (or before its first) is shown no more.
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=resumed_at + 1)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, config: Config, folder: Path, resolved: dict[str, Any]) -> None:
        try:
            import wandb
        except ImportError:
            raise ConfigError("track: wandb is not installed; 'pip install wandb', or track: none") from None
        name = folder / "wandb_id.txt"  # one id a run folder: a resumed run goes on in the same place
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
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()
