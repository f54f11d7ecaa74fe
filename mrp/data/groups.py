"""Images that belong together, such as those of one patient, plate or scene, found by what their names share."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable

import numpy as np

from mrp.config import ConfigError
from mrp.data.order import Ints
from mrp.data.source import Source
from mrp.data.subset import Subset


def compiled(pattern: str) -> re.Pattern[str]:
    """Returns a pattern that has been checked."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"'{pattern}' was given, which is no regular expression: {error}") from None


def groups_of(source: Source, pattern: str) -> Ints:
    """Returns a number per image, the same for all images of a group, and for a group of this name in other data.

    The name of the group is what the pattern finds in the name of an image, or the part of it in brackets.
    """
    search, numbers = compiled(pattern).search, dict[tuple[str, ...], int]()
    found = np.empty(len(source), np.int64)
    for index in range(len(source)):
        name = source.name_of(index)
        match = search(name)
        if match is None:
            raise ConfigError(
                f"data.group: '{pattern}' finds nothing in '{name}', the name of an image ({source.where(index)}); "
                "give a pattern that finds the group in every name"
            )
        group = tuple(part or "" for part in match.groups()) or (match[0],)
        if group not in numbers:
            numbers[group] = int.from_bytes(hashlib.sha256(repr(group).encode()).digest()[:8], "big", signed=True)
        found[index] = numbers[group]
    if len(numbers) < 2 <= len(source):
        raise ConfigError(
            f"data.group: '{pattern}' finds the same in the names of all {len(source):,} images, such as "
            f"'{source.name_of(0)}' ({source.where(0)}); give a pattern that tells groups apart"
        )
    return found


def groups_among(
    source: Source, known: Iterable[Source | None], pattern: str, found: dict[tuple[str, str], Ints],
    say: Callable[[str], object] | None,
) -> Ints | None:  # fmt: skip
    """Returns the groups of a known source or of a part of one, looked for once; None for any other source."""
    part = source if isinstance(source, Subset) else None
    for whole in known:
        if whole is not None and (whole is source or (part is not None and whole is part.source)):
            if (whole.content, pattern) not in found:
                found[whole.content, pattern] = groups = groups_of(whole, pattern)
                if say is not None and len(groups):
                    say(f"data.group: {len(np.unique(groups)):,} groups of {len(groups):,} images")
            groups = found[whole.content, pattern]
            return groups if whole is source or part is None else groups[part.chosen]
    return None
