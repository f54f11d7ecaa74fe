"""The configuration as a JSON Schema, which editors use while a recipe is written, and from which its page is made.

An option is described by the comment beside it in the code, so that code, schema and page say the same.
"""

from __future__ import annotations

import ast
import inspect
import io
import textwrap
import tokenize
import types
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic_core import PydanticUndefined

from mrp.config import Duration, Node
from mrp.outside import SUFFIX
from mrp.schedules import Span

Schema = dict[str, Any]

_PLAIN: dict[Any, Schema] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    type(None): {"type": "null"},
    Duration: {"type": "string", "pattern": r"^\s*[0-9][0-9_.eE+-]*\s*(step|epoch|sample)s?\s*$"},
    Span: {"type": "string", "pattern": r"^\s*[0-9][0-9_.eE+-]*\s*(%|(step|epoch|sample)s?)\s*$"},
}
_BOUNDS = {
    annotated_types.Gt: ("gt", "exclusiveMinimum"),
    annotated_types.Ge: ("ge", "minimum"),
    annotated_types.Lt: ("lt", "exclusiveMaximum"),
    annotated_types.Le: ("le", "maximum"),
    annotated_types.MinLen: ("min_length", "minLength"),
}
_OUTSIDE: Schema = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": rf"\{SUFFIX}$"}},
    "required": ["name"],
    "description": "a part in a file outside mrp, with its own options",
}


def recipe_schema(cls: type[Node]) -> Schema:
    """Returns the JSON Schema of recipe files: any key may come from the `base`, so none is required."""
    schema = section_schema(cls)
    base = {"type": "string", "description": "another file, or a recipe of mrp, whose values this file changes"}
    schema["properties"] = {"base": base} | schema["properties"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "a recipe of mrp"} | schema


def section_schema(cls: type[Node]) -> Schema:
    """Returns the schema of one section."""
    sentences = option_sentences(cls)
    properties: dict[str, Schema] = {}
    for name, field in cls.model_fields.items():
        extra: dict[str, Any] = dict(field.json_schema_extra) if isinstance(field.json_schema_extra, dict) else {}
        if (registry := _registry(field)) is not None:
            option = _registry_schema(registry, field.annotation)
        elif "choose_by_key" in extra:
            option = _optional(_keyed_schema(extra["choose_by_key"].__self__, cls))
        else:
            option = _type_schema(field.annotation, field.metadata)
        if "short" in extra:
            option = _any([option, _PLAIN[extra["short"]]])
        sentence = sentences.get(name) or next(_descriptions(option), None) or (name == "name" and "the part's name")
        if sentence:
            option["description"] = sentence
        if field.default is not PydanticUndefined:
            option["default"] = cls.model_construct(**{name: field.default}).model_dump(
                mode="json", include={name}, warnings=False, by_alias=False
            )[name]
        properties[field.alias or name] = option
    return {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "description": inspect.cleandoc(cls.__doc__ or "").partition("\n")[0],
    }


def _registry(field: Any) -> Any:
    """Returns the registry that a field's section is chosen from, if there is one."""
    extra = getattr(field, "json_schema_extra", None)
    return getattr(extra.get("choose"), "__self__", None) if isinstance(extra, dict) else None


def _descriptions(option: Schema) -> Iterator[str]:
    """Yields what the docstrings of the sections say that an option may hold."""
    yield from (choice["description"] for choice in option.get("anyOf", [option]) if "description" in choice)


def _registry_schema(registry: Any, annotation: Any) -> Schema:
    """Returns a union over the parts of a registry: the name alone, the section of each part, or a file outside mrp."""
    sections = [section_schema(registry.config(name)) for name in registry.names()]
    return _any([{"enum": registry.names()}, *sections, _OUTSIDE, *_others(annotation)])


def _others(annotation: Any) -> list[Schema]:
    """Returns what a field may hold beside the parts of its registry: other types than sections."""
    if get_origin(annotation) is Annotated and get_origin(get_args(annotation)[0]) in (Union, types.UnionType):
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        return [other for argument in get_args(annotation) for other in _others(argument)]
    bare = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    return [] if _is_section(bare) else [_type_schema(annotation, ())]


def _is_section(annotation: Any) -> bool:
    return inspect.isclass(annotation) and issubclass(annotation, Node)


def _keyed_schema(registry: Any, cls: type[Node]) -> Schema:
    """Returns a mapping from the parts of a registry to their sections, without those that have a section elsewhere."""
    names = [name for name in registry.names() if name not in cls.model_fields]
    return {
        "type": "object",
        "properties": {name: _optional(section_schema(registry.find(name).Config)) for name in names},
        "patternProperties": {rf"\{SUFFIX}$": _optional({"type": "object"})},
        "additionalProperties": False,
    }


def _optional(section: Schema) -> Schema:
    """Returns a section, described as before, in whose place null may stand."""
    described = {"description": section["description"]} if "description" in section else {}
    return _any([section, _PLAIN[type(None)]]) | described


def _type_schema(annotation: Any, metadata: Iterable[Any]) -> Schema:
    origin, arguments = get_origin(annotation), get_args(annotation)
    registry = next((found for item in metadata if (found := _registry(item)) is not None), None)
    if origin is Annotated:
        choices = _type_schema(arguments[0], (*arguments[1:], *metadata))
    elif registry is not None:
        choices = _registry_schema(registry, annotation)
    elif origin in (Union, types.UnionType):
        choices = _any([_type_schema(argument, metadata) for argument in arguments])
    elif origin is Literal:
        choices = {"enum": list(arguments)}
    elif origin is tuple:
        choices = {"type": "array", "items": _type_schema(arguments[0], ())}
        least = [bound.min_length for bound in _flat(metadata) if isinstance(bound, annotated_types.MinLen)]
        if arguments[-1] is not Ellipsis:
            choices |= {"minItems": len(arguments), "maxItems": len(arguments)}
        elif least:
            choices |= {"minItems": max(least)}
    elif _is_section(annotation):
        choices = section_schema(annotation)
        if annotation.short is not None:
            choices = _any([choices, _PLAIN[annotation.short]])
    else:
        choices = dict(_PLAIN[annotation])
        if choices["type"] in ("integer", "number", "string"):
            choices |= {
                key: getattr(bound, attribute)
                for bound in _flat(metadata)
                for attribute, key in [_BOUNDS.get(type(bound), ("", ""))]
                if key
            }
    return choices


def _flat(metadata: Iterable[Any]) -> Iterable[Any]:
    for item in metadata:
        yield from getattr(item, "metadata", None) or [item]


def _any(options: list[Schema]) -> Schema:
    flat = [choice for option in options for choice in option.get("anyOf", [option])]
    return {"anyOf": [choice for index, choice in enumerate(flat) if choice not in flat[:index]]}


@cache
def option_sentences(cls: type[Node]) -> dict[str, str]:
    """Returns what the comments in the code say of each option: those above it, and those on its own lines."""
    sentences: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not issubclass(base, Node):
            continue
        source = textwrap.dedent(inspect.getsource(base))
        (definition,) = ast.parse(source).body
        assert isinstance(definition, ast.ClassDef)
        comments, lines = _comments(source), source.splitlines()
        for node in definition.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                first, last = node.lineno, node.end_lineno or node.lineno
                while lines[first - 2].strip().startswith("#"):
                    first -= 1
                sentences[node.target.id] = " ".join(
                    comments[line] for line in range(first, last + 1) if line in comments
                )
    return sentences


def _comments(source: str) -> dict[int, str]:
    """Returns the comments by their line, without notes to tools such as mypy."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    texts = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    return {line: text for line, text in texts.items() if not text.startswith(("type:", "noqa"))}
