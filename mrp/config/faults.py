"""What a user reads when a value does not fit its type: the place, what was given, and what is allowed, in one line."""

from __future__ import annotations

import difflib
import json
import re
import types
from collections.abc import Iterable, Mapping
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

Place = tuple[int | str, ...]

_PLAIN = (
    (r"^(Input|Value) should be (a |an )?(valid )?", ""),
    (r", (unable to parse|got) .*$", ""),
    (r"^dictionary or (instance of \w+|object to extract fields from)$", "a section (key: value)"),
    (r"^tuple$", "list"),
)


def describe(
    cls: type[BaseModel], error: ValidationError, values: Mapping[str, Any], origins: Mapping[str, str]
) -> str:
    """One line for the first fault (of a union, the fault of the branch that got furthest)."""
    faults = error.errors(include_url=False)
    # A misspelt key explains a missing one, and of a union the branch that got furthest is the one that was meant.
    fault = min(faults, key=lambda fault: (fault["type"] != "extra_forbidden", -len(_real_path(fault["loc"], values))))
    path = _real_path(fault["loc"], values)
    dotted = ".".join(str(part) for part in path)
    origin = _origin(dotted, origins)
    where = f"{origin}: {dotted}" if dotted else origin
    match fault["type"]:
        case "extra_forbidden":
            return f"{where}: unknown key; {_known_keys(cls, path, values)}"
        case "missing" if path and isinstance(path[-1], int):
            return f"{where}: the list is too short; add a value"
        case "missing":
            return f"{where}: this key is required and missing; add it"
        case "value_error":
            return f"{where}: {fault.get('ctx', {}).get('error', fault['msg'])}"
    same_place = [other for other in faults if _real_path(other["loc"], values) == path]
    allowed = " or ".join(dict.fromkeys(_allowed(other["msg"]) for other in same_place))
    given = fault["input"]
    hint = nearest(given, re.findall(r"'([^']*)'", allowed)) if isinstance(given, str) else ""
    return f"{where}: {_show(given)} was given; allowed: {allowed}{hint}"


def nearest(given: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing when no known name is near."""
    near = difflib.get_close_matches(given, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


def _known_keys(cls: type[BaseModel], path: Place, values: Any) -> str:
    section, key = ".".join(str(part) for part in path[:-1]), str(path[-1])
    if "." in key:
        return "dotted keys are for the command line; in a file, write a section inside a section"
    names = _keys(cls, path[:-1], values)
    return nearest(key, names).removeprefix("; ") or f"{section or 'the top level'} has: {', '.join(names)}"


def _allowed(message: str) -> str:
    for pattern, plain in _PLAIN:
        message = re.sub(pattern, plain, message)
    return message


def _real_path(loc: Place, values: Any) -> Place:
    """pydantic's path without the tags it adds for the branches of a union."""
    path: list[int | str] = []
    for index, part in enumerate(loc):
        last = index == len(loc) - 1
        if isinstance(values, Mapping) and (part in values or (last and not _is_tag(part))):
            path.append(part)
            values = values.get(part)
        elif isinstance(values, (list, tuple)) and isinstance(part, int):
            path.append(part)
            values = values[part] if part < len(values) else None
    return tuple(path)


def _is_tag(part: int | str) -> bool:
    types_ = {"str", "int", "float", "bool", "none", "dict", "list"}
    return isinstance(part, str) and (not part.isidentifier() or part in types_)


def _origin(dotted: str, origins: Mapping[str, str]) -> str:
    while dotted and dotted not in origins:
        dotted = dotted.rpartition(".")[0]
    return origins.get(dotted, "the configuration")


def _keys(cls: type[BaseModel], path: Place, values: Any) -> list[str]:
    """The keys that the section at `path` knows; where its type depends on its values, the field says how to choose."""
    found: Any = cls
    for part in path:
        values = values.get(part) if isinstance(values, Mapping) else None
        info = found.model_fields.get(str(part)) if found is not None else None
        if info is None:
            return []
        extra = info.json_schema_extra
        choose = extra.get("choose") if isinstance(extra, dict) else None
        found = choose(values) if callable(choose) else _section_in(info.annotation)
    return [info.alias or name for name, info in found.model_fields.items()] if found is not None else []


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType):
        return next((section for arg in get_args(annotation) if (section := _section_in(arg))), None)
    return None


def _show(value: Any) -> str:
    """A value as YAML spells it."""
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
