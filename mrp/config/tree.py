"""The values of a configuration, composed from a file, the files it is based on, and the command line.

A file may name a `base:`, whose values it changes: mappings merge, lists replace, and a section that names another
`name` starts afresh. `key=value` words from the command line come last.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel

from mrp.config.errors import ConfigError, reading

COMMAND_LINE = "the command line"

Origins = dict[str, str]  # dotted path ("" for the whole) -> the file or command line that gave its value


class Tree(NamedTuple):
    """The values of a configuration that is composed but not yet checked, and where each of them was written."""

    values: dict[str, Any]
    origins: Origins


class _Loader(yaml.SafeLoader):
    """Reads YAML 1.2 (1e-4 is a number, `no` and dates are text); a key has to be text, and may not be repeated."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 -- where PyYAML keeps its rules; not those of YAML 1.1


class _Dumper(yaml.SafeDumper):
    """Writes YAML, with quotes around a text that YAML 1.1 or 1.2 would take for something else."""


for _tag, _pattern in (
    ("null", r"~|null|Null|NULL|"),
    ("bool", r"true|True|TRUE|false|False|FALSE"),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)"),
    ("float", r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?"),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), None)


def _checked_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys: list[Any] = []
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        problem = f"the key '{key}' stands twice" if key in keys else f"the key {key!r} is not text; put it in quotes"
        if key in keys or not isinstance(key, str):
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
        keys.append(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _checked_mapping)


def parse(text: str, origin: str) -> Any:
    """Reads YAML; an error is one line that names the origin."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 -- a SafeLoader: no tag constructs anything but plain data
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{origin}{line}: not valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{origin}: not valid YAML: {' '.join(str(error).split())}") from None


def parse_by_line(text: str, origin: str) -> Tree:
    """Reads YAML that is a mapping, with the line that each value stands on, inside lists too, as its origin."""
    values = parse(text, origin)
    if not isinstance(values, dict):
        raise ConfigError(f"{origin}: a mapping (key: value) is expected, not a {_kind(values)}")
    origins: Origins = {"": origin}

    def visit(node: yaml.Node, path: str) -> None:
        if path:
            origins[path] = f"{origin}, line {node.start_mark.line + 1}"
        prefix = f"{path}." if path else ""
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                visit(value, f"{prefix}{key.value}")
                origins[f"{prefix}{key.value}"] = f"{origin}, line {key.start_mark.line + 1}"
        elif isinstance(node, yaml.SequenceNode):
            for number, value in enumerate(node.value):
                visit(value, f"{prefix}{number}")

    root = yaml.compose(text, _Loader)
    assert root is not None, "an empty file is no mapping"
    visit(root, "")
    return Tree(values, origins)


def dump(values: Mapping[str, Any]) -> str:
    """Returns YAML that `parse`, and any other reader, reads back to the same values."""
    return str(yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=120))


def as_words(overrides: Mapping[str, Any]) -> list[str]:
    """Returns Python values (plain data, paths, sections) as the words that say the same on the command line."""
    return [f"{key}={json.dumps(value, default=_as_plain, ensure_ascii=False)}" for key, value in overrides.items()]


def _as_plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)


def compose(path: str | Path, overrides: Iterable[str] = (), find: Callable[[str], Path] = Path) -> Tree:
    """Returns the values of a file, which replace those of its bases, and are replaced by the command line's words."""
    file = find(str(path))
    tree = _read(file, find, ())
    tree.origins[""] = str(file)
    return overridden(tree, overrides)


def overridden(tree: Tree, words: Iterable[str]) -> Tree:
    """Returns a tree in which the values of `key=value` words replace those it has."""
    for word in words:
        key, separator, text = word.partition("=")
        key = key.strip()
        if not separator or not key or "" in key.split("."):
            raise ConfigError(f"{COMMAND_LINE}: '{word}' is not of the form key=value, for example optim.lr=1e-3")
        value = parse(text, f"{COMMAND_LINE}, {key}")
        if value == {}:  # it empties a section, where merging it would do nothing
            tree = _merge(tree, _at(key, None))
        tree = _merge(tree, _at(key, value))
    return tree


def _at(key: str, value: Any) -> Tree:
    """Returns a tree that holds one value of the command line, at a dotted key."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return Tree(value, _origins(value, COMMAND_LINE))


def _read(path: Path, find: Callable[[str], Path], children: tuple[Path, ...]) -> Tree:
    if path.resolve() in children:
        raise ConfigError(f"{path}: base: the files name each other in a circle; remove one 'base:'")
    with reading(path, "'mrp recipes' lists those that come with mrp"):
        text = path.read_text(encoding="utf-8")
    values = parse(text, str(path))
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a configuration is a mapping (key: value), not a {_kind(values)}")
    base = values.pop("base", None)
    tree = Tree(values, _origins(values, str(path)))
    if base is None:
        return tree
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base: one other file is named here, not a {_kind(base)}")
    beside = path.parent / base
    try:
        parent = beside if beside.is_file() else find(base)
    except ConfigError as error:
        raise ConfigError(f"{path}: base: {error}") from None
    return _merge(_read(parent, find, (*children, path.resolve())), tree)


def _merge(parent: Tree, child: Tree, prefix: str = "") -> Tree:
    values, origins = dict(parent.values), dict(parent.origins)
    for key, new in child.values.items():
        path = f"{prefix}{key}"
        old = values.get(key)
        if isinstance(old, str) and isinstance(new, dict):  # `track: wandb` is short for `track: {name: wandb}`
            old = {"name": old}
            origins[f"{path}.name"] = origins[path]
        if isinstance(old, dict) and isinstance(new, dict) and new.get("name", old.get("name")) == old.get("name"):
            values[key], origins = _merge(Tree(old, origins), Tree(new, child.origins), path + ".")
            continue
        values[key] = new
        origins = {name: origin for name, origin in origins.items() if not f"{name}.".startswith(f"{path}.")}
        origins |= {name: origin for name, origin in child.origins.items() if f"{name}.".startswith(f"{path}.")}
    return Tree(values, origins)


def _origins(values: Mapping[Any, Any], origin: str, prefix: str = "") -> Origins:
    origins: Origins = {}
    for key, value in values.items():
        origins[f"{prefix}{key}"] = origin
        if isinstance(value, Mapping):
            origins |= _origins(value, origin, f"{prefix}{key}.")
    return origins


def _kind(value: Any) -> str:
    kinds = {list: "list", str: "text", int: "number", float: "number", bool: "truth value", dict: "section"}
    return kinds.get(type(value), type(value).__name__)
