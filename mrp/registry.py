"""Parts that a configuration chooses by name: one file each, of mrp, of an installed package, or at a path."""

from __future__ import annotations

import importlib
import keyword
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from mrp import imports, outside
from mrp.config import ConfigError, Node, nearest


@dataclass(frozen=True)
class Registry:
    """The parts of one kind.

    A part is a module that defines the names in `parts`, such as `Config` and `Objective`. It is found as a file of the
    folder `package`, by its path (`./mine.py`), or through an entry point of the group that is named like the package.
    """

    kind: str  # what messages call one of them, such as "objective"
    package: str
    parts: tuple[str, ...]
    default: str | None = None  # the name of a section that gives none
    example: str | None = None  # a name for messages; by default the default, or the first one

    def names(self) -> list[str]:
        """Returns the parts that come with mrp, then those of installed packages."""
        own = self._own()
        return own + sorted(entry_points(group=self.package).names - set(own))

    def find(self, name: str) -> ModuleType:
        """Returns the module of a part."""
        if name.endswith(outside.SUFFIX):
            return self._checked(outside.load(Path(name).absolute(), self.kind), name)
        if name in self._own():
            file = f"{name}_" if keyword.iskeyword(name) else name  # `import` is a verb, but cannot name a module
            with imports.undisturbed():
                module = importlib.import_module(f"{self.package}.{file}")
            return self._checked(module, name)
        for point in entry_points(group=self.package, name=name):
            return self._checked(point.load(), name)
        names = self.names()
        raise ConfigError(
            f"unknown {self.kind} '{name}'{nearest(name, names)}; known: {', '.join(names)}, or a file; "
            f"for example {{name: {self._example()}}} or {{name: ./mine.py}}"
        )

    def of(self, section: Any) -> ModuleType:
        """Returns the module of the part whose section this is."""
        return self.find(section.name)

    def _example(self) -> str:
        return self.example or self.default or self.names()[0]

    def _own(self) -> list[str]:
        folder = importlib.import_module(self.package).__path__
        return [module.name.rstrip("_") for module in pkgutil.iter_modules(folder) if not module.name.startswith("_")]

    def config(self, name: str) -> type[Node]:
        """Returns the class of a part's section; for a file it accepts the file's path as the name."""
        config: type[Node] = self.find(name).Config
        return _named_by_path(config, name) if name.endswith(outside.SUFFIX) else config

    def read(self, value: Any) -> Node:
        """Returns the checked section of the part that a value names; a text is short for its name alone."""
        if isinstance(value, Node):
            return value
        section = {"name": value} if isinstance(value, str) else value
        if self.default is not None and isinstance(section, Mapping):
            section = {"name": self.default, **section}
        if not isinstance(section, Mapping) or not isinstance(section.get("name"), str):
            known = ", ".join(self.names())
            raise ValueError(f"a section with a name is needed, such as {{name: {self._example()}}}; known: {known}")
        name: str = section["name"]
        if name.endswith(outside.SUFFIX):
            name = str(Path(name).absolute())  # so that the run's own copy of its configuration works from any folder
        return self.config(name).model_validate({**section, "name": name})

    def config_of(self, value: Any) -> type[Node] | None:
        """Returns the class of the section that a value stands for; None where it names no part."""
        name = value.get("name", self.default) if isinstance(value, Mapping) else value
        try:
            return self.config(name) if isinstance(name, str) else None
        except ConfigError:
            return None

    def _checked(self, module: ModuleType, name: str) -> ModuleType:
        missing = [part for part in self.parts if not hasattr(module, part)]
        if missing:
            folder = self.package.replace(".", "/")
            raise ConfigError(f"{self.kind} '{name}' defines no {' and no '.join(missing)}; see the files in {folder}/")
        return module


@cache
def _named_by_path(config: type[Node], path: str) -> type[Node]:
    """Returns a section whose name is the path of its file: the type of a name is a literal, which a path is not."""
    widened = {"__annotations__": {"name": str}, "name": path, "__module__": __name__}
    return type(config.__name__, (config,), widened)
