"""The line that a user reads when a value does not fit its type: where it is, what was given, and what is allowed."""

from __future__ import annotations

import difflib
import json
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from mrp.config.duration import UNITS, Duration

Path = tuple[int | str, ...]  # of a value in the configuration: ("optim", "betas", 1)

_PLAIN = (
    (r"^(Input|Value) should be (a |an )?(valid )?", ""),
    (r", (unable to parse|got) .*$", ""),
    (r"^dictionary or (instance of \w+|object to extract fields from)$", "a section (key: value)"),
    (r"^tuple$", "list"),
)


def describe(
    cls: type[BaseModel], error: ValidationError, values: Mapping[str, Any], origins: Mapping[str, str]
) -> str:
    """Returns one line for the first fault (of a union, the fault of the branch that got furthest)."""
    faults = error.errors(include_url=False)
    # A misspelt key explains a missing one, and of a union the branch that got furthest is the one that was meant.
    fault = min(
        faults,
        key=lambda fault: (
            fault["type"] != "extra_forbidden", -len(_real_path(fault["loc"], values)), fault["type"] != "value_error"
        ),
    )  # fmt: skip
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
    same_path = [other for other in faults if _real_path(other["loc"], values) == path]
    allowed = " or ".join(dict.fromkeys(_allowed(other["msg"]) for other in same_path))
    allowed += " or null" if _may_be_null(cls, path, values) else ""
    given = fault["input"]
    return f"{where}: {_show(given)} was given; allowed: {allowed}{_hint(dotted, given, allowed)}"


def nearest(given: str, known: Iterable[str]) -> str:
    """Returns `; did you mean 'x'?`, or nothing when no known name is near."""
    near = difflib.get_close_matches(given, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


def _hint(dotted: str, given: Any, allowed: str) -> str:
    if not isinstance(given, str):
        return ""
    if "list" in allowed and "," in given:
        return f"; write {dotted}=[{given}]"
    return nearest(given, re.findall(r"'([^']*)'", allowed))


def _known_keys(cls: type[BaseModel], path: Path, values: Any) -> str:
    """Returns the key that was probably meant, in the same section or else in another, or all keys of the section."""
    section, key = ".".join(str(part) for part in path[:-1]), str(path[-1])
    if "." in key:
        return "dotted keys are for the command line; in a file, write a section inside a section"
    names = _keys(cls, path[:-1], values)
    lengths = [name for name, info in cls.model_fields.items() if not section and info.annotation is Duration]
    if key in UNITS and lengths:
        return f"a length has its unit with it: {lengths[0]}='{values[key]} {key}'"
    elsewhere = dict(_all_keys(cls, values))
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    # The section's own key comes first. One of another section is meant where none was named, or where it is the same.
    nearer = difflib.get_close_matches(key, [*near, *elsewhere], n=1, cutoff=1.0 if section else 0.8)
    if nearer and nearer != near:
        return f"did you mean '{elsewhere[nearer[0]]}'?"
    return f"did you mean '{near[0]}'?" if near else f"{section or 'the top level'} has: {', '.join(names)}"


def _all_keys(cls: type[BaseModel], values: Any, path: Path = ()) -> Iterator[tuple[str, str]]:
    """Yields every key of the configuration with its dotted path; sections whose type depends on values as they are."""
    for name in _keys(cls, path, values):
        yield name, ".".join(map(str, (*path, name)))
        yield from _all_keys(cls, values, (*path, name))


def _allowed(message: str) -> str:
    for pattern, plain in _PLAIN:
        message = re.sub(pattern, plain, message)
    return message


def _real_path(loc: Path, values: Any) -> Path:
    """Returns pydantic's path without the tags it adds for the branches of a union."""
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


def _keys(cls: type[BaseModel], path: Path, values: Any) -> list[str]:
    """Returns the keys of the section at `path`."""
    section = _section_at(cls, path, values)
    return [info.alias or name for name, info in section.model_fields.items()] if section is not None else []


def _may_be_null(cls: type[BaseModel], path: Path, values: Any) -> bool:
    """Returns whether the option at `path` may be null, which pydantic does not say."""
    section = _section_at(cls, path[:-1], values) if path else None
    info = section.model_fields.get(str(path[-1])) if section is not None else None
    return info is not None and types.NoneType in get_args(info.annotation)


def _section_at(cls: type[BaseModel], path: Path, values: Any) -> Any:
    """Returns the type of the section at `path`; where it depends on values, the field says how to choose."""
    section: Any = cls
    several: Any = None  # of a list or mapping of sections, what each is, or what chooses it
    for part in path:
        values = _part(values, part)
        if several is not None:
            section, several = several if isinstance(several, type) else several(values), None
            continue
        info = section.model_fields.get(str(part)) if section is not None else None
        if info is None:
            return None
        extra = info.json_schema_extra
        choose = extra.get("choose") if isinstance(extra, dict) else None
        listed = callable(choose) and isinstance(values, list | tuple)  # its sections are chosen one by one
        section = None if listed else choose(values) if callable(choose) else section_in(info.annotation)
        kind, parts = get_origin(info.annotation), get_args(info.annotation)
        several = choose if listed else section_in(parts[kind is dict]) if kind in (dict, list, tuple) else None
    return section


def _part(values: Any, part: int | str) -> Any:
    if isinstance(values, list | tuple) and isinstance(part, int):
        return values[part] if part < len(values) else None
    return values.get(part) if isinstance(values, Mapping) else None


def section_in(annotation: Any) -> type[BaseModel] | None:
    """Returns the section that a value of this type may be, if there is one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) is Annotated:
        return section_in(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return next((section for arg in get_args(annotation) if (section := section_in(arg))), None)
    return None


def _show(value: Any) -> str:
    """Returns a value as YAML spells it."""
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
