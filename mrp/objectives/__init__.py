"""The registry of training methods: each file of this folder that exports `Config` and `Objective` is one.

A user's own method is reached by its path (`name: ./foo.py`) or, once installed, by an entry point of the group
`mrp.objectives` that points to a module of the same form.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from mrp.config import ConfigError, nearest

GROUP = "mrp.objectives"


def names() -> list[str]:
    """The methods that come with mrp, then those of installed packages."""
    own = [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]
    return own + sorted(point.name for point in entry_points(group=GROUP) if point.name not in own)


def find(name: str) -> ModuleType:
    """The module of a method: its `Config`, its `Objective`."""
    if name.endswith(".py"):
        return _checked(_from_file(Path(name)), name)
    if name not in names():
        raise ConfigError(
            f"unknown objective '{name}'{nearest(name, names())}; known: {', '.join(names())}, or ./FILE.py"
        )
    for point in entry_points(group=GROUP):
        if point.name == name:
            return _checked(point.load(), name)
    return _checked(importlib.import_module(f"{__name__}.{name}"), name)


@cache
def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"objective file '{path}' does not exist; a relative path starts at the current folder")
    name = f"mrp_objective_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _checked(module: ModuleType, name: str) -> ModuleType:
    missing = [part for part in ("Config", "Objective") if not hasattr(module, part)]
    if missing:
        raise ConfigError(f"objective '{name}' defines no {' and no '.join(missing)}; see mrp/objectives/mae.py")
    return module
