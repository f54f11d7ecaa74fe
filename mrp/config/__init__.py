"""Typed configuration: frozen sections, one `base:` chain, dotted overrides, and errors of one line."""

from mrp.config.duration import Duration
from mrp.config.errors import (
    ConfigError,
    FaultElsewhere,
    Preempted,
    ProcessLost,
    Stopped,
    check_out,
    reading,
    writing,
)
from mrp.config.faults import nearest
from mrp.config.node import Node, build
from mrp.config.tree import COMMAND_LINE, Tree, as_words, compose, dump, overridden, parse, parse_by_line

__all__ = [
    "COMMAND_LINE",
    "ConfigError",
    "Duration",
    "FaultElsewhere",
    "Node",
    "Preempted",
    "ProcessLost",
    "Stopped",
    "Tree",
    "as_words",
    "build",
    "check_out",
    "compose",
    "dump",
    "nearest",
    "overridden",
    "parse",
    "parse_by_line",
    "reading",
    "writing",
]
