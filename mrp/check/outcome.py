"""What becomes of a check: it is ok, it failed for a reason that has a remedy, or it was skipped."""

from __future__ import annotations

import inspect
import pickle
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mrp.config import ConfigError, Node
from mrp.registry import Registry


class Failed(AssertionError):
    """A part does not do what it must."""

    def __init__(self, fault: str, remedy: str) -> None:
        super().__init__(f"{fault}; {remedy}")
        self.fault = fault
        self.remedy = remedy


class Skipped(Exception):
    """A check does not apply here; the message says why."""


@dataclass(frozen=True)
class Outcome:
    """One row of the table."""

    check: str
    status: Literal["ok", "failed", "skipped"]
    detail: str = ""  # why
    remedy: str = ""


def sent_to_worker(part: Any, name: str, remedy: str) -> Any:
    """Returns what a worker process gets of a part, which has just started and knows nothing of the part's module."""
    module = sys.modules[name]
    try:
        sent = pickle.dumps(part)
        del sys.modules[name]
        return pickle.loads(sent)  # noqa: S301 -- written by this process
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise Failed(f"it cannot be sent to a worker: {error}", remedy) from None
    finally:
        sys.modules[name] = module


def refuse_misspelt_options(registry: Registry, section: Node, remedy: str) -> None:
    """Fails where a section accepts an option that it does not have."""
    try:
        registry.read({**section.model_dump(mode="json"), "mispelt": 1})
    except (ConfigError, ValueError):
        return
    raise Failed("an option that it does not have is accepted", remedy)


def tried(check: Callable[..., None], file: Path, *arguments: Any) -> Outcome:
    """Returns what becomes of a check; an exception of the author's code is told with its line in the author's file."""
    title = (inspect.getdoc(check) or check.__name__).partition("\n")[0].rstrip(".")
    try:
        check(*arguments)
    except Skipped as skipped:
        return Outcome(title, "skipped", str(skipped))
    except Failed as failed:
        return Outcome(title, "failed", failed.fault, failed.remedy)
    except ConfigError as error:
        return Outcome(title, "failed", str(error), "")
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file]
        where = f"{file.name}, line {frames[-1].lineno}" if frames else file.name
        text = (str(error).splitlines() or [""])[0]
        return Outcome(title, "failed", f"{where}: {type(error).__name__}: {text}", "mend the file")
    return Outcome(title, "ok")
