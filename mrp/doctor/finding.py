"""What a check finds, how bad it is, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of what the doctor says."""

    level: Level
    about: str  # what was looked at, in a few words
    found: str
    remedy: str = ""  # what to do, unless all is well


def ok(about: str, found: str) -> Finding:
    """Returns that all is well."""
    return Finding("ok", about, found)


def warning(about: str, found: str, remedy: str) -> Finding:
    """Returns what is probably not meant, or costs time; the run would still go on."""
    return Finding("warning", about, found, remedy)


def error(about: str, found: str, remedy: str) -> Finding:
    """Returns what would end the run, or make it worthless."""
    return Finding("error", about, found, remedy)


def said(level: Level, about: str, line: str) -> Finding:
    """Returns a line of ours, `what is wrong; what to do`, as a finding; a key in front of it is what it is about."""
    fault, _, remedy = line.removeprefix("warning: ").partition("; ")
    key, _, rest = fault.partition(": ")
    return Finding(level, about, fault, remedy) if " " in key else Finding(level, key, rest, remedy)
