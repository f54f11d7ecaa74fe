"""Typed configuration: frozen nodes, one `base:` chain, dotted overrides, and errors of one line.

A file may name a `base:`, whose values it changes: mappings merge, lists replace, and a section that names another
`name` starts afresh. `key=value` words from the command line come last.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import core_schema

COMMAND_LINE = "the command line"

N = TypeVar("N", bound="Node")
Origins = dict[str, str]  # dotted path -> where its value was written


class ConfigError(ValueError):
    """Something the user can fix: one line that says what is wrong, where, and what to do."""


class Node(BaseModel):
    """A section of the configuration: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class Tree(NamedTuple):
    """A composed but not yet checked configuration, and where each value was written."""

    values: dict[str, Any]
    origins: Origins


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers (1e-4 is one), and a key given twice is an error."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:(?:[0-9][0-9_]*)(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)|\.[0-9]+(?:[eE][-+]?[0-9]+)?)$"),
    list("-+0123456789."),
)


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    for index, key in enumerate(keys):
        if key in keys[:index]:
            raise yaml.MarkedYAMLError(problem=f"the key '{key}' stands twice", problem_mark=node.value[index][0].start_mark)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def parse(text: str, origin: str) -> Any:
    """Read YAML, with an error of one line."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 -- a SafeLoader: no tag constructs anything but plain data
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{origin}{line}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin}: not valid YAML: {' '.join(str(error).split())}") from None


def compose(path: str | Path, overrides: Iterable[str] = (), find: Callable[[str], Path] = Path) -> Tree:
    """The values of a file on top of those of its bases, under the words of the command line."""
    tree = _read(find(str(path)), find, ())
    for word in overrides:
        key, separator, text = word.partition("=")
        key = key.strip()
        if not separator or not key or "" in key.split("."):
            raise ConfigError(f"{COMMAND_LINE}: '{word}' is not of the form key=value, for example optim.lr=1e-3")
        value = parse(text, f"{COMMAND_LINE}, {key}")
        for name in reversed(key.split(".")):
            value = {name: value}
        tree = Tree(*_merge(tree, Tree(value, _origins(value, COMMAND_LINE))))
    return tree


def _read(path: Path, find: Callable[[str], Path], children: tuple[Path, ...]) -> Tree:
    if path.resolve() in children:
        raise ConfigError(f"{path}: base: the files name each other in a circle; remove one 'base:'")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise ConfigError(f"{path}: cannot be read: {reason}; 'mrp recipes' lists those that come with mrp") from None
    values = parse(text, str(path))
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a configuration is a mapping (key: value), not a {_kind(values)}")
    base = values.pop("base", None)
    tree = Tree(values, _origins(values, str(path)))
    if base is None:
        return tree
    beside = path.parent / str(base)
    parent = _read(beside if beside.is_file() else find(str(base)), find, (*children, path.resolve()))
    return Tree(*_merge(parent, tree))


def _merge(parent: Tree, child: Tree, prefix: str = "") -> tuple[dict[str, Any], Origins]:
    values, origins = dict(parent.values), dict(parent.origins)
    for key, new in child.values.items():
        path = f"{prefix}{key}"
        old = values.get(key)
        renamed = isinstance(old, dict) and isinstance(new, dict) and new.get("name", old.get("name")) != old.get("name")
        if isinstance(old, dict) and isinstance(new, dict) and not renamed:
            values[key], origins = _merge(Tree(old, origins), Tree(new, child.origins), path + ".")
            continue
        values[key] = new
        origins = {name: origin for name, origin in origins.items() if name != path and not name.startswith(path + ".")}
        origins |= {name: origin for name, origin in child.origins.items() if name == path or name.startswith(path + ".")}
    return values, origins


def _origins(values: Mapping[Any, Any], origin: str, prefix: str = "") -> Origins:
    found: Origins = {}
    for key, value in values.items():
        found[f"{prefix}{key}"] = origin
        if isinstance(value, Mapping):
            found |= _origins(value, origin, f"{prefix}{key}.")
    return found


def build(cls: type[N], tree: Tree) -> N:
    """Check the values against the types; the first fault becomes a ConfigError of one line."""
    try:
        return cls.model_validate(tree.values)
    except ValidationError as error:
        raise ConfigError(_describe(cls, error, tree)) from None


def _describe(cls: type[Node], error: ValidationError, tree: Tree) -> str:
    """One line for the first fault (of a union, the fault of the branch that got furthest)."""
    faults = error.errors(include_url=False)
    # A misspelt key explains a missing one, and of a union the branch that got furthest is the one that was meant.
    fault = min(faults, key=lambda fault: (fault["type"] != "extra_forbidden", -len(_real_path(fault["loc"], tree.values))))
    path = _real_path(fault["loc"], tree.values)
    siblings = [other for other in faults if _real_path(other["loc"], tree.values) == path]
    dotted = ".".join(str(part) for part in path)
    origin = _origin(dotted, tree.origins)
    where = f"{origin}: {dotted}" if dotted else origin
    match fault["type"]:
        case "extra_forbidden":
            section = ".".join(str(part) for part in path[:-1])
            names = _keys(cls, path[:-1], tree.values)
            near = difflib.get_close_matches(str(path[-1]), names, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"'{section or 'the top level'}' has: {', '.join(names)}"
            return f"{where}: unknown key; {hint}"
        case "missing":
            return f"{where}: this key is required and missing; add it"
        case "value_error":
            message = str(fault.get("ctx", {}).get("error", fault["msg"]))
            return f"{where}: {message}"
    allowed = " or ".join(dict.fromkeys(_allowed(other) for other in siblings))
    given = fault["input"]
    hint = ""
    if isinstance(given, str) and (options := re.findall(r"'([^']*)'", allowed)):
        near = difflib.get_close_matches(given, options, n=1, cutoff=0.5)
        hint = f"; did you mean '{near[0]}'?" if near else ""
    return f"{where}: {_show(given)} was given; allowed: {allowed}{hint}"


def _allowed(fault: Any) -> str:
    message = str(fault["msg"])
    message = re.sub(r"^(Input|Value) should be (a |an )?(valid )?", "", message)
    return re.sub(r", unable to parse .*$", "", message)


def _real_path(loc: tuple[int | str, ...], values: Any) -> tuple[int | str, ...]:
    """pydantic's path without the tags it adds for the branches of a union."""
    path: list[int | str] = []
    for index, part in enumerate(loc):
        last = index == len(loc) - 1
        if isinstance(values, Mapping) and (part in values or last and not _is_tag(part)):
            path.append(part)
            values = values.get(part)
        elif isinstance(values, (list, tuple)) and isinstance(part, int):
            path.append(part)
            values = values[part] if part < len(values) else None
    return tuple(path)


def _is_tag(part: int | str) -> bool:
    return isinstance(part, str) and (not part.isidentifier() or part in {"str", "int", "float", "bool", "none", "dict", "list"})


def _origin(dotted: str, origins: Origins) -> str:
    while dotted and dotted not in origins:
        dotted = dotted.rpartition(".")[0]
    if dotted:
        return origins[dotted]
    files = [name for name in dict.fromkeys(origins.values()) if name != COMMAND_LINE]
    return files[-1] if files else "the configuration"


def _keys(cls: type[Node], path: tuple[int | str, ...], values: Any) -> list[str]:
    """The keys that the section at `path` knows."""
    found: Any = cls
    for part in path:
        values = values.get(part) if isinstance(values, Mapping) else None
        if found is None:
            return []
        info = found.model_fields.get(str(part))
        found = None
        if info is not None:
            choose = (info.json_schema_extra or {}).get("choose") if isinstance(info.json_schema_extra, dict) else None
            found = choose(values) if callable(choose) else _node_in(info.annotation)
    return list(found.model_fields) if found is not None else []


def _node_in(annotation: Any) -> type[Node] | None:
    if isinstance(annotation, type) and issubclass(annotation, Node):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType):
        return next((node for arg in get_args(annotation) if (node := _node_in(arg))), None)
    return None


def _kind(value: Any) -> str:
    return {list: "list", str: "text", int: "number", float: "number", bool: "truth value"}.get(type(value), type(value).__name__)


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def nearest(given: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing when no known name is near."""
    near = difflib.get_close_matches(given, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


@dataclass(frozen=True)
class Duration:
    """A length of training: a number of steps, epochs or samples."""

    amount: float
    unit: Literal["steps", "epochs", "samples"]

    @classmethod
    def parse(cls, value: Any) -> Duration:
        """Read '800 epochs', '100 steps', '1e6 samples'; a bare number is refused, since its unit would be a guess."""
        if isinstance(value, Duration):
            return value
        match = re.fullmatch(r"\s*([0-9][0-9_]*\.?[0-9]*(?:[eE]\+?[0-9]+)?)\s*(step|epoch|sample)s?\s*", str(value))
        if match is None:
            raise ValueError(f"{value!r} is not a duration; write for example '800 epochs', '1000 steps' or '1e6 samples'")
        return cls(float(match[1].replace("_", "")), f"{match[2]}s")  # type: ignore[arg-type]

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Tell pydantic how to read and write one."""
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    def __str__(self) -> str:
        return f"{self.amount:g} {self.unit}"

    def steps(self, steps_per_epoch: float, batch: int) -> int:
        """The same length in optimizer steps (at least one, unless it is zero)."""
        exact = {"steps": self.amount, "epochs": self.amount * steps_per_epoch, "samples": self.amount / batch}[self.unit]
        return max(round(exact), 1 if exact > 0 else 0)
