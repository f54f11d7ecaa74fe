"""Sections of the configuration as frozen, typed classes, and the check of values against them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from mrp.config.errors import ConfigError
from mrp.config.faults import describe
from mrp.config.tree import Tree

N = TypeVar("N", bound="Node")


class Node(BaseModel):
    """A section of the configuration: frozen, and an unknown key is an error."""

    short: ClassVar[type | None] = None  # a value of this type alone is short for the section

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _truth_is_no_number(cls, values: Any) -> Any:
        """Makes a truth value text where a number is expected: pydantic would take `batch: true` for 1."""
        if not isinstance(values, Mapping):
            return values
        return {
            key: str(value).lower() if isinstance(value, bool) and not cls._takes_words(key) else value
            for key, value in values.items()
        }

    @classmethod
    def _takes_words(cls, key: str) -> bool:
        return key not in cls.model_fields or bool({bool, str} & _types_in(cls.model_fields[key].annotation))


def _types_in(annotation: Any) -> set[Any]:
    return {annotation}.union(*(_types_in(part) for part in get_args(annotation) if not isinstance(part, str)))


def build(cls: type[N], tree: Tree) -> N:
    """Returns the section that these values make; the first fault becomes a ConfigError of one line."""
    try:
        return cls.model_validate(tree.values)
    except ValidationError as error:
        raise ConfigError(describe(cls, error, *tree)) from None
