"""The trackers, one file each: `Config`, its typed options, and `Tracker`, which shows the numbers of a run.

A `Tracker` is built from its `Config`, the run's folder, the resolved configuration and the step that the run goes on
from. `log(step, values)` shows the values of a step, and `close()` writes what is still held. Two methods may be left
out: `picture(step, name, array)` shows a picture (uint8: rows, columns, three colours), and `summary(values)` is given
the best values at the end. All are called in one thread, beside the training: a tracker may take its time, and one that
fails is switched off.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

from pydantic import Field, field_validator, model_validator

from mrp import outside
from mrp.config import ConfigError, Node
from mrp.registry import Registry

TRACKERS = Registry("tracker", __name__, ("Config", "Tracker"), default="none")


class Section(Node):
    """`track:`, a tracker's name or a section: where numbers are shown beside the run's own metrics file."""

    short: ClassVar[type | None] = str
    name: str  # the name of the tracker
    # Further trackers, by name or file, which show the same and take the same project and mode.
    also: tuple[str, ...] = ()
    every: int = Field(10, gt=0)  # steps between two log points
    project: str = "mrp"  # the project of wandb and trackio
    mode: Literal["auto", "online", "offline"] = "auto"  # the mode of wandb; auto: what WANDB_MODE says, or online

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("also")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            TRACKERS.find(name)
        return tuple(str(Path(name).absolute()) if name.endswith(outside.SUFFIX) else name for name in names)


@contextmanager
def installed(name: str) -> Iterator[None]:
    """Says what to do where the package that is imported inside is not there."""
    try:
        yield
    except ImportError:
        raise ConfigError(f"track: {name} is not installed; 'pip install {name}', or track: none") from None


def parts(section: Section) -> list[Section]:
    """Returns the section of each tracker that shows something, each of them once."""
    shared = {"every": section.every, "project": section.project, "mode": section.mode}
    others = [cast(Section, TRACKERS.read({"name": name, **shared})) for name in section.also]
    named = {part.name: part for part in (section, *others)}
    return [part for name, part in named.items() if name != TRACKERS.default]


def read(value: Any) -> Node:
    """Returns the checked section of `track:`; says how several trackers are written where a list was given."""
    if isinstance(value, list | tuple) and value:
        example = f"{{name: {value[0]}, also: [{', '.join(map(str, value[1:]))}]}}"
        raise ValueError(f"several trackers are one section: {example}")
    return TRACKERS.read(value)
